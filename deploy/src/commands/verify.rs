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
    super::print(&answer, format, |json| table::document(&named(json)))?;
    match answer.json()?.get("equal") {
        Some(Json::Boolean(true)) => Ok(()),
        _ => Err(Failure::Negative),
    }
}

/// What the two numbers of errors are.
fn named(answer: &Json) -> Json {
    let Json::Object(members) = answer else { return answer.clone() };
    let name = |(name, value): &(String, Json)| match (name.as_str(), value.list()) {
        ("errors", Some([served, recounted])) => {
            let text = format!("{served} events fail as served, {recounted} as recounted");
            (name.clone(), Json::Text(text))
        }
        _ => (name.clone(), value.clone()),
    };
    Json::Object(members.iter().map(name).collect())
}
