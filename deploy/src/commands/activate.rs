//! `watershed activate VIEW GENERATION`.

use clap::Args;
use serde_json::json;

use crate::cli::OutputFormat;
use crate::client::Client;
use crate::failure::Outcome;

#[derive(Debug, Args)]
pub(crate) struct ActivateArgs {
    view: String,
    /// The generation's number.
    generation: u64,
    /// Wait until it is active; exit status 1 unless it becomes so.
    #[arg(long)]
    wait: bool,
}

pub(crate) async fn run(args: &ActivateArgs, client: &Client, format: OutputFormat) -> Outcome {
    let generation = args.generation.to_string();
    let path = ["v1", "views", &args.view, "generations", &generation, "activate"];
    let answer = client.post(&path, &json!({})).await?;
    super::rebuild::follow(&answer, args.wait, client, format).await
}
