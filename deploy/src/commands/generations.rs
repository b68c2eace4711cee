//! `watershed generations VIEW`.

use clap::Args;

use super::{field, list_table, offsets, short, time};
use crate::cli::OutputFormat;
use crate::client::Client;
use crate::failure::Outcome;
use crate::table::Json;

#[derive(Debug, Args)]
pub(crate) struct GenerationsArgs {
    view: String,
}

pub(crate) async fn run(args: &GenerationsArgs, client: &Client, format: OutputFormat) -> Outcome {
    let answer = client.get(&["v1", "views", &args.view, "generations"], &[]).await?;
    super::print(&answer, format, |json| list_table(json, "generations", "no generation yet", row))
}

fn row(generation: &Json) -> Vec<(&'static str, Json)> {
    let is = |name| field(generation, name) == Json::Boolean(true);
    let state = match (is("active"), is("previous")) {
        (true, _) => "active",
        (false, true) => "previous",
        (false, false) => "",
    };
    let runs = generation.get("runs").and_then(Json::list).unwrap_or_default().len();
    vec![
        ("generation", field(generation, "generation")),
        ("state", Json::Text(state.to_owned())),
        ("mode", field(generation, "mode")),
        ("base", field(generation, "base")),
        ("published at", time(generation, "published_at")),
        ("until", offsets(generation.get("cut"))),
        ("events", field(generation, "events")),
        ("rows", field(generation, "rows")),
        ("errors", field(generation, "errors")),
        ("runs", Json::Number(runs.into())),
        ("bytes", field(generation, "size_bytes")),
        ("definition", short(generation, "definition")),
        ("build", field(generation, "build")),
    ]
}
