//! `watershed rebuilds [VIEW]`.

use clap::Args;

use crate::cli::OutputFormat;
use crate::client::Client;
use crate::failure::Outcome;

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
    let first = ["id", "view", "mode", "state", "trigger", "generation", "error", "requested_at", "finished_at"];
    super::print(&answer, format, |json| super::list_table(json, "rebuilds", &first, "no builds"))
}
