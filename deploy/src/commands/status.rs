//! `watershed status`.

use super::{field, list_table, offsets, time};
use crate::cli::OutputFormat;
use crate::client::Client;
use crate::failure::Outcome;
use crate::table::Json;

pub(crate) async fn run(client: &Client, format: OutputFormat) -> Outcome {
    let answer = client.get(&["v1", "status"], &[]).await?;
    super::print(&answer, format, render)
}

/// Streams and views at a glance: a row each. What else there is stands in the JSON.
fn render(status: &Json) -> String {
    let ready = match status.get("missing").and_then(Json::text) {
        Some(missing) => format!("not ready: {missing}\n"),
        None => "ready\n".to_owned(),
    };
    let streams = list_table(status, "streams", "no streams", |stream| {
        let archive = |name| stream.get("archive").and_then(|a| a.get(name));
        vec![
            ("stream", field(stream, "name")),
            ("topic", field(stream, "topic")),
            ("archived until", offsets(archive("archived_until"))),
            ("position", offsets(stream.get("position"))),
            ("log end", offsets(stream.get("log_end"))),
            ("dead letters", field(stream, "dead_letters")),
            ("late", late(stream)),
            ("archiver", archiver(stream)),
            ("headroom", offsets(archive("headroom"))),
            ("losses", losses(stream)),
            ("trouble", trouble(stream)),
        ]
    });
    let views = list_table(status, "views", "no views", |view| {
        let meta = view.get("meta").unwrap_or(&Json::Null);
        vec![
            ("view", field(view, "name")),
            ("stream", field(view, "stream")),
            ("generation", field(meta, "generation")),
            ("built at", time(meta, "built_at")),
            ("lag seconds", field(meta, "lag_seconds")),
            ("complete", field(meta, "complete")),
            ("errors", field(meta, "errors")),
            ("paused", field(view, "paused")),
            ("next rebuild", time_of(view, "rebuild")),
            ("next refresh", time_of(view, "refresh")),
            ("trouble", trouble_of_view(view, meta)),
        ]
    });
    format!("{ready}{}{}\n{streams}\n{views}", kafka(status), storage(status))
}

/// `kafka 127.0.0.1:9092 (embedded)`.
fn kafka(status: &Json) -> String {
    let Some(kafka) = status.get("kafka") else { return String::new() };
    let servers = kafka.get("bootstrap_servers").and_then(Json::text).unwrap_or_default();
    let embedded = matches!(kafka.get("embedded"), Some(Json::Boolean(true)));
    let embedded = if embedded { " (embedded)" } else { "" };
    format!("kafka {servers}{embedded}\n")
}

/// `storage hdfs://…: ok`, or since when which calls fail, and why.
fn storage(status: &Json) -> String {
    let Some(storage) = status.get("storage") else { return String::new() };
    let url = storage.get("url").and_then(Json::text).unwrap_or_default();
    let failing = ["reads", "writes"].into_iter().filter_map(|calls| {
        let trouble = storage.get(calls)?;
        let text = |name| trouble.get(name).and_then(Json::text);
        Some(format!("{calls} fail since {}: {}", text("since")?, text("error")?))
    });
    let failing: Vec<_> = failing.collect();
    let state = if failing.is_empty() { "ok".to_owned() } else { failing.join("\n  ") };
    format!("storage {url}: {state}\n")
}

/// `12 since 2026-03-01T10:00:00Z`: workers count what they read.
fn late(stream: &Json) -> Json {
    match (stream.get("late"), stream.get("late_since").and_then(Json::text)) {
        (Some(late), Some(_)) => Json::Text(format!("{late} since {}", time(stream, "late_since"))),
        (late, _) => late.cloned().unwrap_or(Json::Null),
    }
}

/// `retrying since …: why`, or one word.
fn archiver(stream: &Json) -> Json {
    let text = |name| stream.get("archiver").and_then(|a| a.get(name)).and_then(Json::text);
    let Some(state) = text("state") else { return Json::Null };
    let since = text("since").or_else(|| text("at")).map(|at| format!(" since {at}")).unwrap_or_default();
    let error = text("error").map(|error| format!(": {error}")).unwrap_or_default();
    Json::Text(format!("{state}{since}{error}"))
}

/// `0: [100, 250) accepted`.
fn losses(stream: &Json) -> Json {
    let list = stream.get("losses").and_then(Json::list).unwrap_or_default();
    let one = |loss: &Json| {
        let field = |name| loss.get(name).map(ToString::to_string).unwrap_or_default();
        let accepted = if field("accepted") == "true" { " accepted" } else { "" };
        format!("{}: [{}, {}){accepted}", field("partition"), field("from"), field("to"))
    };
    let list: Vec<_> = list.iter().map(one).collect();
    if list.is_empty() { Json::Null } else { Json::Text(list.join(", ")) }
}

/// The reasons of its answers, what is going to be one, and why its archive can't be looked at.
fn trouble(stream: &Json) -> Json {
    let archive = |name| stream.get("archive").and_then(|a| a.get(name)).and_then(Json::text);
    let known = [
        reasons(stream).text().map(str::to_owned),
        archive("alarm").map(str::to_owned),
        archive("error").map(str::to_owned),
    ];
    let known: Vec<_> = known.into_iter().flatten().collect();
    if known.is_empty() { Json::Null } else { Json::Text(known.join("; ")) }
}

/// Why it cannot be answered, or not completely, and whether it answers by its former SQL.
fn trouble_of_view(view: &Json, meta: &Json) -> Json {
    let text = |of: &Json, name| of.get(name).and_then(Json::text).map(str::to_owned);
    let pending = text(view, "pending_definition").filter(|_| text(meta, "definition").is_some());
    let pending = pending.map(|_| {
        let paused = if field(view, "paused") == Json::Boolean(true) { ", its schedules are paused" } else { "" };
        format!("it answers by its former SQL until a rebuild of the present one is published{paused}")
    });
    let known: Vec<_> = [text(view, "error").or_else(|| reasons(meta).text().map(str::to_owned)), pending]
        .into_iter()
        .flatten()
        .collect();
    if known.is_empty() { Json::Null } else { Json::Text(known.join("; ")) }
}

fn reasons(of: &Json) -> Json {
    let list = of.get("reasons").and_then(Json::list).unwrap_or_default();
    let messages: Vec<_> = list.iter().filter_map(|r| r.get("message")?.text()).collect();
    if messages.is_empty() { Json::Null } else { Json::Text(messages.join("; ")) }
}

/// When the view's schedule of `mode` fires next.
fn time_of(view: &Json, mode: &str) -> Json {
    let next = view.get("next").and_then(Json::list).unwrap_or_default();
    let of_mode = next.iter().find(|n| n.get("mode").and_then(Json::text) == Some(mode));
    of_mode.and_then(|n| n.get("at").or_else(|| n.get("time"))).cloned().unwrap_or(Json::Null)
}
