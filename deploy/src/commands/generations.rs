//! `watershed generations VIEW`.

use clap::Args;

use crate::cli::OutputFormat;
use crate::client::Client;
use crate::failure::Outcome;

#[derive(Debug, Args)]
pub(crate) struct GenerationsArgs {
    view: String,
}

pub(crate) async fn run(args: &GenerationsArgs, client: &Client, format: OutputFormat) -> Outcome {
    let answer = client.get(&["v1", "views", &args.view, "generations"], &[]).await?;
    let first = ["generation", "active", "mode", "published_at", "events", "definition"];
    super::print(&answer, format, |json| super::list_table(json, "generations", &first, "no generation yet"))
}
