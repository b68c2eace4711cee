//! `watershed cancel ID`.

use clap::Args;

use crate::cli::OutputFormat;
use crate::client::Client;
use crate::failure::Outcome;
use crate::table;

#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// The build, as `watershed rebuilds` lists it.
    id: String,
}

pub(crate) async fn run(args: &CancelArgs, client: &Client, format: OutputFormat) -> Outcome {
    let answer = client.delete(&["v1", "rebuilds", &args.id]).await?;
    super::print(&answer, format, table::document)
}
