//! `watershed accept-loss STREAM`.

use clap::Args;
use serde_json::json;

use crate::cli::OutputFormat;
use crate::client::Client;
use crate::failure::Outcome;
use crate::table::{self, Json};

#[derive(Debug, Args)]
pub(crate) struct AcceptLossArgs {
    stream: String,
}

pub(crate) async fn run(args: &AcceptLossArgs, client: &Client, format: OutputFormat) -> Outcome {
    let answer = client.post(&["v1", "streams", &args.stream, "accept-loss"], &json!({})).await?;
    super::print(&answer, format, render)
}

fn render(answer: &Json) -> String {
    match answer.get("losses").and_then(Json::list) {
        None | Some([]) => "nothing of the stream is lost\n".to_owned(),
        Some(losses) => {
            let accepted = answer.get("accepted").and_then(Json::number).unwrap_or_default();
            format!("newly accepted: {accepted}\n{}", table::rows_table(losses, &[]))
        }
    }
}
