//! `watershed verify VIEW`.

use clap::Args;
use serde_json::json;

use crate::cli::OutputFormat;
use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::table::{self, Json};

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    view: String,
}

pub(crate) async fn run(args: &VerifyArgs, client: &Client, format: OutputFormat) -> Outcome {
    let answer = client.post(&["v1", "views", &args.view, "verify"], &json!({})).await?;
    super::print(&answer, format, table::document)?;
    match answer.json()?.get("equal") {
        Some(Json::Boolean(true)) => Ok(()),
        _ => Err(Failure::Negative),
    }
}
