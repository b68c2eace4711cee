//! `GET /v1/views`, schemas, generations: what there is.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use warp::http::StatusCode;
use warp::reply::Response;
use watershed_shared::catalog::{Generation, ViewState};
use watershed_shared::clock;
use watershed_shared::columns::sql_type;
use watershed_shared::names::DefinitionHash;

use super::params::Params;
use super::{Request, reply};
use crate::error::{Code, Error, Result};
use crate::front::ViewAnswer;
use crate::serving::Serving;

pub(super) async fn views(request: Request) -> Result<Response> {
    Params::parse(&request.query, &[])?;
    let views: Vec<Value> = request.serving.inner.input.views.keys().map(|v| describe(&request.serving, v)).collect();
    Ok(reply::json(StatusCode::OK, &json!({ "views": views })))
}

/// One view, as the list of views and `status` show it.
pub(super) fn describe(serving: &Serving, view: &str) -> Value {
    let input = &serving.inner.input.views[view];
    let state = Arc::clone(&input.register.borrow());
    let answer = serving.inner.answers.get(&input.stream).and_then(|a| a.borrow().views.get(view).cloned());
    let unanswerable =
        serving.inner.answers.get(&input.stream).and_then(|a| a.borrow().unanswerable.get(view).cloned());
    let columns = answer.as_ref().map(columns);
    let sql = |hash: &DefinitionHash| state.definitions.get(hash).map(|definition| &definition.sql);
    let answered = answer.as_ref().and_then(|answer| sql(answer.compiled.definition()));
    let pending = state.configured.as_ref().filter(|configured| state.active.as_ref() != Some(configured));
    let meta = answer.as_ref().map(|a| a.meta(clock::now()));
    json!({
        "name": view,
        "stream": input.stream,
        "sql": answered.unwrap_or(&input.config.sql),
        "kind": answer.as_ref().map(|a| a.compiled.kind()),
        "columns": columns,
        "rebuild": input.config.rebuild,
        "refresh": input.config.refresh,
        "timezone": input.config.timezone.name(),
        "paused": state.paused,
        "building": state.builds.values().map(|b| &b.id).collect::<Vec<_>>(),
        "pending_definition": pending,
        "pending_sql": pending.and_then(sql),
        "error": unanswerable,
        "meta": meta,
    })
}

fn columns(answer: &Arc<ViewAnswer>) -> Vec<Value> {
    let schema = answer.compiled.output_schema();
    let keys = answer.compiled.key_columns();
    let describe = schema.fields().iter().map(|f| {
        json!({
            "name": f.name(),
            "type": sql_type(f.data_type()),
            "nullable": f.is_nullable(),
            "key": keys.iter().any(|(name, _)| name == f.name()),
        })
    });
    describe.collect()
}

pub(super) async fn schema(request: Request, view: String) -> Result<Response> {
    Params::parse(&request.query, &[])?;
    let input = request.serving.view(&view)?;
    let now = request.serving.now(&input.stream)?;
    let Some(answer) = now.views.get(&view) else {
        let why = now.unanswerable.get(&view).map_or("it is not known", String::as_str);
        return Err(Error::new(Code::NotReady, format!("view `{view}` cannot be answered yet: {why}")));
    };
    let document = json!({
        "view": view,
        "definition": answer.compiled.definition(),
        "kind": answer.compiled.kind(),
        "columns": columns(answer),
        "report": answer.compiled.report(),
    });
    Ok(reply::json(StatusCode::OK, &document))
}

#[derive(Serialize)]
struct GenerationInfo<'a> {
    generation: u64,
    active: bool,
    previous: bool,
    #[serde(flatten)]
    recorded: &'a Generation,
    rows: u64,
    size_bytes: u64,
    errors: u64,
}

pub(super) async fn generations(request: Request, view: String) -> Result<Response> {
    Params::parse(&request.query, &[])?;
    let state: Arc<ViewState> = Arc::clone(&request.serving.view(&view)?.register.borrow());
    let list: Vec<_> = state
        .generations
        .iter()
        .rev()
        .map(|g| GenerationInfo {
            generation: g.id.0,
            active: g.id == state.generation,
            previous: state.previous.as_ref().is_some_and(|(_, p)| *p == g.id),
            recorded: g,
            rows: g.runs.iter().map(|r| r.rows).sum(),
            size_bytes: g.runs.iter().map(|r| r.size_bytes).sum(),
            errors: g.runs.iter().map(|r| r.errors).sum(),
        })
        .collect();
    Ok(reply::json(StatusCode::OK, &json!({ "view": view, "generations": list })))
}

/// RFC 3339 with `Z`.
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}
