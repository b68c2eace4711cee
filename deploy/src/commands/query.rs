//! `watershed query SQL`.

use anyhow::Context;
use clap::Args;
use serde_json::json;

use crate::cli::OutputFormat;
use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::table::{self, Json};

#[derive(Debug, Args)]
pub(crate) struct QueryArgs {
    /// One SELECT over views, streams, dead_letters.STREAM, view_errors.VIEW and tables; `-` reads it from standard input.
    sql: String,
    /// Wait until the answer includes these offsets: {"STREAM": {"PARTITION": OFFSET}}.
    #[arg(long, value_name = "JSON")]
    wait_for: Option<String>,
    /// Give up after this time.
    #[arg(long, value_name = "DURATION", default_value = "30 seconds")]
    timeout: String,
}

pub(crate) async fn run(args: &QueryArgs, client: &Client, format: OutputFormat) -> Outcome {
    let sql = match args.sql.as_str() {
        "-" => std::io::read_to_string(std::io::stdin()).context("read the SQL from standard input")?,
        sql => sql.to_owned(),
    };
    let timeout = watershed_shared::config::parse_duration(&args.timeout)
        .map_err(|error| Failure::Usage(format!("--timeout: {error}")))?;
    let mut body = json!({ "sql": sql, "timeout_ms": u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) });
    if let Some(offsets) = &args.wait_for {
        body["wait_for"] = serde_json::from_str(offsets)
            .map_err(|error| Failure::Usage(format!("--wait-for is not JSON: {error}")))?;
    }
    let answer = client.post(&["v1", "query"], &body).await?;
    super::print(&answer, format, |json| {
        tell_what_is_missing(json);
        let rows = json.get("rows").and_then(Json::list).unwrap_or_default();
        let count = rows.len();
        let plural = if count == 1 { "" } else { "s" };
        match count {
            0 => "0 rows\n".to_owned(),
            _ => format!("{}{count} row{plural}\n", table::rows_table(rows, &[])),
        }
    })
}

/// An answer that is not complete, or cut short, is said to be so on standard error.
fn tell_what_is_missing(json: &Json) {
    let meta = json.get("meta");
    if meta.and_then(|meta| meta.get("truncated")) == Some(&Json::Boolean(true)) {
        eprintln!("warning: there are more rows; add a LIMIT to choose how many");
    }
    for kind in ["views", "streams"] {
        let Some(Json::Object(members)) = meta.and_then(|meta| meta.get(kind)) else { continue };
        for (name, member) in members {
            if member.get("complete") == Some(&Json::Boolean(false)) {
                let reasons = member.get("reasons").and_then(Json::list).unwrap_or_default();
                let reasons: Vec<String> = reasons
                    .iter()
                    .map(|reason| reason.get("message").or(reason.get("code")).unwrap_or(reason).to_string())
                    .collect();
                eprintln!("warning: {name} is not complete: {}", reasons.join("; "));
            }
        }
    }
}
