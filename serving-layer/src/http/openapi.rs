//! `/openapi.json`: what there is, kept by hand beside the routes.

use serde_json::{Map, Value, json};

use super::query::{QUERY_PARAMETERS, VIEW_PARAMETERS};
use crate::encode::Format;

/// Each route: method, path with its parameters in braces, what it does, its query parameters.
pub const ROUTES: [(&str, &str, &str, &[&str]); 23] = [
    ("get", "/", "A page that lists the views.", &[]),
    ("get", "/v1/views", "The views, with where each stands.", &[]),
    ("get", "/v1/views/{view}", "Merged rows of a view.", &VIEW_PARAMETERS),
    ("get", "/v1/views/{view}/schema", "A view's columns.", &[]),
    ("get", "/v1/views/{view}/live", "Server-sent events: `snapshot`, then `delta`, `heartbeat`.", &["where"]),
    (
        "post",
        "/v1/query",
        "Any SELECT over views, streams, dead_letters.<stream>, view_errors.<view> and tables.",
        &QUERY_PARAMETERS,
    ),
    ("post", "/v1/streams/{stream}", "Publishes newline-delimited records.", &[]),
    (
        "post",
        "/v1/streams/{stream}/accept-loss",
        "Accepts what the stream has lost so far: it stays listed, and answers count as complete again.",
        &[],
    ),
    ("post", "/v1/views/{view}/rebuilds", "Starts a rebuild or a refresh.", &[]),
    ("get", "/v1/views/{view}/generations", "A view's generations, newest first.", &[]),
    ("post", "/v1/views/{view}/generations/{generation}/activate", "Returns to another generation.", &[]),
    ("get", "/v1/views/{view}/generations/{a}/diff/{b}", "Compares two generations.", &["as_stored", "timeout_ms"]),
    ("put", "/v1/views/{view}/schedule", "Pauses and resumes a view's schedules.", &[]),
    ("post", "/v1/views/{view}/verify", "Recounts a view and compares it with what is served.", &["timeout_ms"]),
    ("get", "/v1/rebuilds", "Builds, newest first.", &["view", "state"]),
    ("get", "/v1/rebuilds/{id}", "One build and its progress.", &["wait_ms"]),
    ("delete", "/v1/rebuilds/{id}", "Cancels a build.", &[]),
    ("get", "/v1/status", "Streams, views, freshness, lag, schedules.", &[]),
    ("get", "/metrics", "Metrics in Prometheus' text format.", &[]),
    ("get", "/healthz", "Whether the process lives.", &[]),
    ("get", "/readyz", "Whether every view can be answered and the process has caught up since its start.", &[]),
    ("get", "/openapi.json", "This document.", &[]),
    ("head", "/healthz", "As GET, without a body.", &[]),
];

/// The document.
pub(crate) fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for (method, path, summary, query) in ROUTES {
        let in_path = path.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}'));
        let mut parameters: Vec<Value> = in_path
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
            .collect();
        parameters.extend(query.iter().map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}})));
        let rows = [Format::Json, Format::NdJson, Format::Csv, Format::Arrow, Format::Parquet];
        let content: Map<String, Value> = match path {
            "/v1/views/{view}" | "/v1/query" => rows.iter().map(|f| (f.content_type().to_owned(), json!({}))).collect(),
            "/v1/views/{view}/live" => [("text/event-stream".to_owned(), json!({}))].into_iter().collect(),
            "/metrics" => [("text/plain".to_owned(), json!({}))].into_iter().collect(),
            "/" => [("text/html".to_owned(), json!({}))].into_iter().collect(),
            _ => [("application/json".to_owned(), json!({}))].into_iter().collect(),
        };
        let success = if path.ends_with("/rebuilds") && method == "post" { "202" } else { "200" };
        let mut operation = json!({
            "summary": summary,
            "parameters": parameters,
            "responses": {
                success: {"description": "Done.", "content": content},
                "default": {
                    "description": "Not done.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                },
            },
        });
        let body = match (method, path) {
            ("post", "/v1/query") => Some((
                "application/json",
                json!({
                    "type": "object", "required": ["sql"],
                    "properties": {
                        "sql": {"type": "string"}, "wait_for": {"type": "object"},
                        "timeout_ms": {"type": "integer"}, "min_complete": {"type": "boolean"},
                    },
                }),
            )),
            ("post", "/v1/streams/{stream}") => Some(("application/x-ndjson", json!({"type": "string"}))),
            ("post", "/v1/views/{view}/rebuilds") => Some((
                "application/json",
                json!({
                    "type": "object",
                    "properties": {"mode": {"enum": ["rebuild", "refresh"]}, "dry_run": {"type": "boolean"}},
                }),
            )),
            ("put", "/v1/views/{view}/schedule") => Some((
                "application/json",
                json!({
                    "type": "object", "required": ["paused"], "properties": {"paused": {"type": "boolean"}},
                }),
            )),
            _ => None,
        };
        if let Some((media, schema)) = body {
            operation["requestBody"] = json!({"content": {media: {"schema": schema}}});
        }
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Watershed", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": {"Error": {
            "type": "object",
            "properties": {
                "error": {
                    "type": "object", "required": ["code", "message"],
                    "properties": {
                        "code": {"type": "string"}, "message": {"type": "string"}, "position": {"type": "object"},
                    },
                },
                // Of records of which the log has only some.
                "accepted": {"type": "integer"},
                "offsets": {"type": "object"},
                "errors": {"type": "array", "items": {
                    "type": "object", "properties": {"line": {"type": "integer"}, "error": {"type": "string"}},
                }},
            },
        }}},
    })
}

/// The pattern of the route that a request goes to, for metrics; there are few of them whatever is asked for.
pub(crate) fn pattern(method: &str, path: &str) -> String {
    let route = ROUTES.iter().find(|(m, p, ..)| m.eq_ignore_ascii_case(method) && fits(p, path));
    route.map_or_else(|| "other".to_owned(), |(m, p, ..)| format!("{} {p}", m.to_ascii_uppercase()))
}

/// The methods that `path` takes, in capitals.
pub(crate) fn allowed(path: &str) -> Vec<String> {
    let routes = ROUTES.iter().filter(|(_, pattern, ..)| fits(pattern, path));
    let mut allowed: Vec<String> = routes.clone().map(|(method, ..)| method.to_ascii_uppercase()).collect();
    if routes.clone().any(|(method, pattern, ..)| *method == "get" && !pattern.ends_with("/live")) {
        allowed.push("HEAD".to_owned());
    }
    allowed.sort();
    allowed.dedup();
    allowed
}

fn fits(pattern: &str, path: &str) -> bool {
    let (pattern, path) = (pattern.split('/'), path.split('/'));
    pattern.clone().count() == path.clone().count() && pattern.zip(path).all(|(p, s)| p.starts_with('{') || p == s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_to_its_pattern() {
        assert_eq!(pattern("GET", "/v1/views/a"), "GET /v1/views/{view}");
        assert_eq!(pattern("GET", "/v1/views/a/generations/1/diff/2"), "GET /v1/views/{view}/generations/{a}/diff/{b}");
        assert_eq!(pattern("GET", "/"), "GET /");
        assert_eq!(pattern("POST", "/v1/views/a"), "other");
        assert_eq!(pattern("GET", "/etc/passwd"), "other");
        assert_eq!(allowed("/v1/views/a"), ["GET", "HEAD"]);
        assert_eq!(allowed("/v1/views/a/live"), ["GET"]);
        assert_eq!(allowed("/v1/rebuilds/a"), ["DELETE", "GET", "HEAD"]);
    }
}
