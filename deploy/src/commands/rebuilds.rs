//! `watershed rebuilds [VIEW]`.

use clap::Args;

use super::{field, list_table, short, time};
use crate::cli::OutputFormat;
use crate::client::Client;
use crate::failure::Outcome;
use crate::table::Json;

#[derive(Debug, Args)]
pub(crate) struct RebuildsArgs {
    /// Only builds of this view.
    view: Option<String>,
    /// Only builds in this state: queued, running, publishing, held, succeeded, failed, cancelled, skipped, interrupted.
    #[arg(long)]
    state: Option<String>,
}

pub(crate) async fn run(args: &RebuildsArgs, client: &Client, format: OutputFormat) -> Outcome {
    let query: Vec<(&str, &str)> = [("view", &args.view), ("state", &args.state)]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_deref()?)))
        .collect();
    let answer = client.get(&["v1", "rebuilds"], &query).await?;
    super::print(&answer, format, |json| list_table(json, "rebuilds", "no builds", row))
}

fn row(build: &Json) -> Vec<(&'static str, Json)> {
    vec![
        ("id", field(build, "id")),
        ("view", field(build, "view")),
        ("mode", field(build, "mode")),
        ("state", field(build, "state")),
        ("trigger", field(build, "trigger")),
        ("generation", field(build, "generation")),
        ("events read", build.get("progress").map_or(Json::Null, |progress| field(progress, "events_read"))),
        ("requested at", time(build, "requested_at")),
        ("finished at", time(build, "finished_at")),
        ("definition", short(build, "definition")),
        ("error", field(build, "error")),
    ]
}
