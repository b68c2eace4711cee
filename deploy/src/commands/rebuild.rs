//! `watershed rebuild VIEW`.

use std::io::IsTerminal;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::cli::OutputFormat;
use crate::client::{Answer, Client};
use crate::failure::{Failure, Outcome};
use crate::table::{self, Json};

/// A build that goes on.
const UNFINISHED: [&str; 4] = ["queued", "running", "publishing", "held"];

#[derive(Debug, Args)]
pub(crate) struct RebuildArgs {
    view: String,
    /// Fold in what was archived since the last build, instead of recomputing from all events.
    #[arg(long)]
    refresh: bool,
    /// Wait until it has ended; exit status 1 unless it succeeded.
    #[arg(long)]
    wait: bool,
    /// Only tell what it would read.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: &RebuildArgs, client: &Client, format: OutputFormat) -> Outcome {
    let mode = if args.refresh { "refresh" } else { "rebuild" };
    let body = json!({ "mode": mode, "dry_run": args.dry_run });
    let answer = client.post(&["v1", "views", &args.view, "rebuilds"], &body).await?;
    if args.dry_run {
        return super::print(&answer, format, table::document);
    }
    follow(&answer, args.wait, client, format).await
}

/// Prints the answer to a start, `{"id", …}`; with `wait` the build's status once it has ended.
pub(super) async fn follow(started: &Answer, wait: bool, client: &Client, format: OutputFormat) -> Outcome {
    let json = started.json()?;
    let id = match (wait, json.get("id").and_then(Json::text)) {
        (true, Some(id)) => id.to_owned(),
        _ => return super::print(started, format, table::document),
    };
    let bar = progress_bar();
    let (answer, json) = loop {
        let answer = client.get(&["v1", "rebuilds", &id], &[("wait_ms", "1000")]).await?;
        let json = answer.json()?;
        show(&bar, &json);
        match json.get("state").and_then(Json::text) {
            Some(state) if UNFINISHED.contains(&state) => {}
            _ => break (answer, json),
        }
        // The platform waits too; this is for one that answers at once.
        watershed_shared::clock::sleep(std::time::Duration::from_millis(50)).await;
    };
    bar.finish_and_clear();
    super::print(&answer, format, table::document)?;
    match json.get("state").and_then(Json::text) {
        Some("succeeded") => Ok(()),
        _ => Err(Failure::Negative),
    }
}

/// On standard error, and only if that is a terminal.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

/// `progress` is {"step", "events_read", "events_total"}.
fn show(bar: &ProgressBar, build: &Json) {
    let progress = build.get("progress");
    let number = |name: &str| progress.and_then(|p| p.get(name)).and_then(Json::number).unwrap_or(0);
    let step = progress.and_then(|p| p.get("step")).and_then(Json::text);
    let state = build.get("state").and_then(Json::text).unwrap_or_default();
    let (read, total) = (number("events_read"), number("events_total"));
    let template = match total {
        0 => "{spinner} {elapsed} {msg}",
        _ => "{elapsed} {wide_bar} {human_pos}/{human_len} events, {per_sec} {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_length(total.max(read));
    bar.set_position(read);
    bar.set_message(step.unwrap_or(state).to_owned());
}
