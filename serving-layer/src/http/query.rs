//! `GET /v1/views/{view}` and `POST /v1/query`.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use bytes::Bytes;
use serde::Deserialize;
use warp::reply::Response;
use watershed_shared::names::GenerationId;

use super::params::{Offsets, Params};
use super::{Request, document, reply};
use crate::ask::{Answer, Ask};
use crate::encode::Format;
use crate::error::{Code, Error, Result};
use crate::serving::Serving;
use crate::sql::{DEFAULT_LIMIT_ROWS, Query, Select};

pub(super) const VIEW_PARAMETERS: [&str; 9] =
    ["where", "columns", "order", "limit", "generation", "wait_for", "format", "timeout_ms", "min_complete"];
pub(super) const QUERY_PARAMETERS: [&str; 1] = ["format"];

pub(super) async fn view(request: Request, view: String) -> Result<Response> {
    let params = Params::parse(&request.query, &VIEW_PARAMETERS)?;
    let stream = request.serving.view(&view)?.stream.clone();
    let format = params.format(request.accept.as_deref())?;
    let generation = params.get::<u64>("generation", "a generation's number")?;
    let wait_for = params.offsets("wait_for")?;
    if generation.is_some() && wait_for.is_some() {
        return Err(Error::bad_parameter(
            "wait_for",
            "a generation stands at its cut for ever: leave one of the two out",
        ));
    }
    if let Some(wanted) = &wait_for {
        request.serving.check_wait(&stream, wanted)?;
    }
    let select = Select {
        filter: params.text("where"),
        columns: params.text("columns"),
        order: params.text("order"),
        limit: params.get("limit", "a number of rows")?,
    };
    let ask = Ask {
        wait_for: wait_for.map(|w| BTreeMap::from([(stream, w)])).unwrap_or_default(),
        deadline: request.deadline(params.get("timeout_ms", "a number of milliseconds")?),
        generation: generation.map(|g| (view.clone(), GenerationId(g))),
        min_complete: params.flag("min_complete")?,
    };
    let answered = match request.serving.lookup(&view, &select, &ask).await? {
        Some(answer) => Ok(answer),
        None => request.serving.ask(&select.query(&view)?, &ask).await,
    };
    let mut answer = match answered {
        Ok(answer) => answer,
        Err(error) if error.code == Code::BadSql => {
            return Err(at_fault(&request.serving, &view, &select, &ask, error).await);
        }
        Err(error) => return Err(error),
    };
    if select.limit.is_none() {
        truncate(&mut answer);
    }
    encoded(&request.serving, format, answer).await
}

/// The error of the parameter that is wrong: the statement was put together here, its user wrote parameters.
async fn at_fault(serving: &Serving, view: &str, select: &Select, ask: &Ask, error: Error) -> Error {
    let parameters = select.parameters();
    // Which one that is shows when each is asked for alone, without any row.
    for (name, text, alone) in &parameters {
        let Ok(query) = alone.query(view) else { continue };
        if let Err(error) = serving.ask(&query, ask).await
            && error.code == Code::BadSql
        {
            return wrong(serving, view, name, text, &error.message);
        }
    }
    match parameters.as_slice() {
        [(name, text, _)] => wrong(serving, view, name, text, &error.message),
        all => {
            let names: Vec<&str> = all.iter().map(|(name, ..)| *name).collect();
            Error::bad_parameter(&names.join(", "), without_place(&error.message))
        }
    }
}

fn wrong(serving: &Serving, view: &str, name: &str, text: &str, message: &str) -> Error {
    let message = without_place(message);
    // In the engine's two ways to say it.
    let quoted = message.strip_prefix("column '").and_then(|rest| rest.split_once('\''));
    let missing = quoted.or_else(|| message.strip_prefix("No field named ")?.split_once('.'));
    let missing = missing.map(|(column, _)| column.trim_matches('"'));
    let known = missing.and_then(|missing| {
        let stream = &serving.view(view).ok()?.stream;
        let answer = serving.now(stream).ok()?.views.get(view).map(std::sync::Arc::clone)?;
        let schema = answer.compiled.output_schema();
        let columns = schema.fields().iter().map(|field| field.name().as_str());
        Some(Error::unknown(Code::BadParameter, "column", missing, columns).message)
    });
    Error::bad_parameter(name, format!("{}, in `{text}`", known.as_deref().unwrap_or(message)))
}

/// A place in a statement that its user has not written means nothing.
fn without_place(message: &str) -> &str {
    message.find(" at Line: ").map_or(message, |at| &message[..at])
}

/// One row more than the limit was asked for.
fn truncate(answer: &mut Answer) {
    let mut left = DEFAULT_LIMIT_ROWS;
    answer.meta.truncated = (answer.rows.count() > left).then_some(true);
    for batch in &mut answer.rows.batches {
        *batch = batch.slice(0, batch.num_rows().min(left));
        left -= batch.num_rows();
    }
    answer.rows.batches.retain(|b| b.num_rows() > 0);
}

/// The body of `POST /v1/query`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QueryBody {
    sql: String,
    #[serde(default)]
    wait_for: BTreeMap<String, Offsets>,
    timeout_ms: Option<u64>,
    #[serde(default)]
    min_complete: bool,
}

pub(super) async fn query(request: Request, body: Bytes) -> Result<Response> {
    let params = Params::parse(&request.query, &QUERY_PARAMETERS)?;
    let format = params.format(request.accept.as_deref())?;
    let body: QueryBody = document(&body)?;
    let query = Query::parse(&body.sql)?;
    let ask = Ask {
        wait_for: body.wait_for.into_iter().map(|(stream, offsets)| (stream, offsets.0)).collect(),
        deadline: request.deadline(body.timeout_ms),
        generation: None,
        min_complete: body.min_complete,
    };
    let answer = request.serving.ask(&query, &ask).await?;
    encoded(&request.serving, format, answer).await
}

/// Rows that are encoded by who asks.
const FEW_ROWS: usize = 128;
/// Of memory, at most.
const FEW_BYTES: usize = 64 << 10;

/// Encoding is work, too: unless it is next to none, it is done on the engine's threads.
async fn encoded(serving: &Serving, format: Format, answer: Answer) -> Result<Response> {
    let bytes = || answer.rows.batches.iter().map(RecordBatch::get_array_memory_size).sum::<usize>();
    if format == Format::Json && answer.rows.count() <= FEW_ROWS && bytes() <= FEW_BYTES {
        return reply::rows(format, &answer);
    }
    serving.inner.engine.on_threads("encode", async move { reply::rows(format, &answer) }).await
}
