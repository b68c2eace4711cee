//! `GET /v1/views/{view}` and `POST /v1/query`.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use warp::reply::Response;
use watershed_shared::names::GenerationId;
use watershed_shared::offsets::OffsetVector;

use super::params::Params;
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
    let mut answer = answered.map_err(|error| match error.code {
        // The statement was put together here: its user wrote parameters.
        Code::BadSql => Error::bad_parameter("where, columns, order", error.message),
        _ => error,
    })?;
    if select.limit.is_none() {
        truncate(&mut answer);
    }
    encoded(&request.serving, format, answer).await
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
    wait_for: BTreeMap<String, OffsetVector>,
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
        wait_for: body.wait_for,
        deadline: request.deadline(body.timeout_ms),
        generation: None,
        min_complete: body.min_complete,
    };
    let answer = request.serving.ask(&query, &ask).await?;
    encoded(&request.serving, format, answer).await
}

/// Encoding is work, too: it is done on the engine's threads.
async fn encoded(serving: &Serving, format: Format, answer: Answer) -> Result<Response> {
    serving.inner.engine.on_threads("encode", async move { reply::rows(format, &answer) }).await
}
