//! `watershed diff VIEW A B`.

use clap::Args;

use crate::cli::OutputFormat;
use crate::client::Client;
use crate::failure::Outcome;
use crate::table;

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    view: String,
    /// A generation's number.
    a: u64,
    /// Another generation's number.
    b: u64,
    /// Compare them as they were stored, each at its own cut; else the one that is behind is brought to the higher cut.
    #[arg(long)]
    as_stored: bool,
}

pub(crate) async fn run(args: &DiffArgs, client: &Client, format: OutputFormat) -> Outcome {
    let (a, b) = (args.a.to_string(), args.b.to_string());
    let query: &[(&str, &str)] = if args.as_stored { &[("as_stored", "true")] } else { &[] };
    let answer = client.get(&["v1", "views", &args.view, "generations", &a, "diff", &b], query).await?;
    super::print(&answer, format, table::document)
}
