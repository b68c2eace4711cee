//! Builds, generations, verification, status: what operators do and see.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::StatusCode;
use warp::reply::Response;
use watershed_shared::builds::{BuildState, Trigger};
use watershed_shared::catalog::{BuildMode, Loss, Rejected, StreamEvent, StreamState};
use watershed_shared::master::{self, MasterDataset, MasterSnapshot};
use watershed_shared::names::{BuildId, GenerationId};
use watershed_shared::task;

use super::catalog::{describe, time};
use super::params::Params;
use super::{Request, document, openapi, reply};
use crate::builds::Started;
use crate::error::{Code, Error, Result};
use crate::headroom;

/// How long `wait_ms` may wait.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How long an accepted loss may take to be seen by who answers.
const ACCEPT_WAIT: Duration = Duration::from_secs(5);
/// How long `status` waits for the storage: it must answer when that is away.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(5);
/// How long `verify` and `diff` may take when nothing is said.
const COMPARE_TIMEOUT_MS: u64 = 120_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StartBody {
    mode: Option<Mode>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Rebuild,
    Refresh,
}

pub(super) async fn start(request: Request, view: String, body: Bytes) -> Result<Response> {
    Params::parse(&request.query, &[])?;
    request.serving.view(&view)?;
    let body: StartBody = document(&body)?;
    let mode = match body.mode.unwrap_or(Mode::Rebuild) {
        Mode::Rebuild => BuildMode::Rebuild,
        Mode::Refresh => BuildMode::Refresh,
    };
    Ok(match request.serving.inner.input.builds.start(&view, mode, Trigger::Manual, body.dry_run).await? {
        Started::Build(id) => reply::json(StatusCode::ACCEPTED, &json!({ "id": id })),
        Started::Estimate(estimate) => reply::json(StatusCode::OK, &estimate),
    })
}

pub(super) async fn builds(request: Request) -> Result<Response> {
    let params = Params::parse(&request.query, &["view", "state"])?;
    let view = params.text("view");
    if let Some(view) = &view {
        request.serving.view(view)?;
    }
    let state: Option<BuildState> = match params.text("state") {
        Some(name) => Some(
            serde_json::from_value(Value::String(name.clone()))
                .map_err(|_| Error::bad_parameter("state", format!("`{name}` is not a state of a build")))?,
        ),
        None => None,
    };
    let builds = request.serving.inner.input.builds.list(view.as_deref(), state).await?;
    Ok(reply::json(StatusCode::OK, &json!({ "rebuilds": builds })))
}

pub(super) async fn build(request: Request, id: String) -> Result<Response> {
    let params = Params::parse(&request.query, &["wait_ms"])?;
    let wait = params.get::<u64>("wait_ms", "a number of milliseconds")?;
    let wait = wait.map(|ms| Duration::from_millis(ms).min(MAX_WAIT));
    let build = request.serving.inner.input.builds.get(&BuildId::new(id), wait).await?;
    Ok(reply::json(StatusCode::OK, &build))
}

pub(super) async fn cancel(request: Request, id: String) -> Result<Response> {
    let build = request.serving.inner.input.builds.cancel(&BuildId::new(id)).await?;
    Ok(reply::json(StatusCode::OK, &build))
}

fn generation(view: &str, text: &str) -> Result<GenerationId> {
    let unknown = || Error::new(Code::UnknownGeneration, format!("view `{view}` has no generation {text}"));
    text.parse().map(GenerationId).map_err(|_| unknown())
}

pub(super) async fn activate(request: Request, view: String, id: String) -> Result<Response> {
    let id = generation(&view, &id)?;
    let state = Arc::clone(&request.serving.view(&view)?.register.borrow());
    if state.generation(id).is_none() {
        return Err(Error::new(Code::UnknownGeneration, format!("view `{view}` has no generation {id}")));
    }
    let build = request.serving.inner.input.builds.activate(&view, id).await?;
    Ok(reply::json(StatusCode::ACCEPTED, &json!({ "id": build })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScheduleBody {
    paused: bool,
}

pub(super) async fn schedule(request: Request, view: String, body: Bytes) -> Result<Response> {
    request.serving.view(&view)?;
    let body: ScheduleBody = document(&body)?;
    request.serving.inner.input.builds.pause(&view, body.paused).await?;
    Ok(reply::json(StatusCode::OK, &json!({ "view": view, "paused": body.paused })))
}

pub(super) async fn diff(request: Request, view: String, a: String, b: String) -> Result<Response> {
    let params = Params::parse(&request.query, &["as_stored", "timeout_ms"])?;
    let timeout = params.get("timeout_ms", "a number of milliseconds")?.unwrap_or(COMPARE_TIMEOUT_MS);
    let (a, b) = (generation(&view, &a)?, generation(&view, &b)?);
    let diff = request.serving.diff(&view, a, b, params.flag("as_stored")?, request.deadline(Some(timeout))).await?;
    Ok(reply::json(StatusCode::OK, &diff))
}

pub(super) async fn verify(request: Request, view: String) -> Result<Response> {
    let params = Params::parse(&request.query, &["timeout_ms"])?;
    let timeout = params.get("timeout_ms", "a number of milliseconds")?.unwrap_or(COMPARE_TIMEOUT_MS);
    let verified = request.serving.verify(&view, request.deadline(Some(timeout))).await?;
    Ok(reply::json(StatusCode::OK, &verified))
}

/// Accepts what the stream has lost so far.
pub(super) async fn accept_loss(request: Request, stream: String) -> Result<Response> {
    let input = request.serving.stream(&stream)?;
    let mut accepted = 0;
    let decided = input.register.update(|state: &StreamState| {
        accepted = state.open_losses().count();
        Ok::<_, Rejected>((accepted > 0).then_some(StreamEvent::LossAccepted))
    });
    let decided = decided.await.map_err(Error::internal)?;
    // Whoever asks next finds it accepted.
    let mut followed = input.state.clone();
    let seen = followed.wait_for(|state| state.open_losses().next().is_none());
    drop(tokio::time::timeout(ACCEPT_WAIT, seen).await);
    let losses = decided.record().map(|r| r.state.losses.clone()).unwrap_or_default();
    let losses: Vec<_> = losses.iter().map(lost).collect();
    Ok(reply::json(StatusCode::OK, &json!({ "stream": stream, "accepted": accepted, "losses": losses })))
}

fn lost(loss: &Loss) -> Value {
    json!({
        "partition": loss.partition,
        "from": loss.range.start,
        "to": loss.range.end,
        "found_at": time(loss.found_at),
        "accepted": loss.accepted,
    })
}

pub(super) async fn status(request: Request) -> Result<Response> {
    Params::parse(&request.query, &[])?;
    let serving = &request.serving;
    let mut streams = Vec::new();
    let snapshots = serving.inner.input.streams.values().map(|input| snapshot(input.master.clone()));
    let mut snapshots = futures::future::join_all(snapshots).await.into_iter();
    for (name, input) in &serving.inner.input.streams {
        let now = serving.now(name)?;
        let log = input.log.borrow().clone();
        let snapshot = snapshots.next().expect("one for each stream");
        let (archived_until, version, dead_letters, error) = match &snapshot {
            Ok((snapshot, letters)) => (snapshot.archived_until().clone(), Some(snapshot.version()), *letters, None),
            Err(error) => (input.archived_until.borrow().clone(), None, None, Some(error)),
        };
        // Of a stream that no view reads, its archived part is all that is answered.
        let followed = serving.is_followed(name);
        let (position, log_end, origins) = match followed {
            true => (now.position.clone(), now.log_end.clone(), now.origins.clone()),
            false => {
                let origins = input.state.borrow().origins.clone();
                (origins.join(&archived_until), log.ends.join(&archived_until), origins)
            }
        };
        let headroom = headroom::of(&now, &archived_until, &log.starts);
        let mut archive = json!({
            "version": version,
            "archived_until": archived_until,
            "headroom": headroom.offsets,
            "alarm": headroom.alarm,
        });
        if let Some(error) = error {
            archive["error"] = json!(error);
        }
        let losses = input.state.borrow().losses.clone();
        streams.push(json!({
            "name": name,
            "topic": input.config.topic,
            "position": position,
            "log_end": log_end,
            "origins": origins,
            "caught_up": if followed { now.caught_up() } else { true },
            "late": now.late,
            "late_since": now.late_since.map(time),
            "dead_letters": dead_letters,
            "reasons": now.reasons,
            "archive": archive,
            "archiver": *input.archiver.borrow(),
            "log_start": log.starts,
            "log_unreachable": log.unreachable,
            "losses": losses.iter().map(lost).collect::<Vec<_>>(),
        }));
    }
    let mut views = Vec::new();
    for view in serving.inner.input.views.keys() {
        let mut about = describe(serving, view);
        about["next"] = match serving.inner.input.builds.next_times(view).await {
            Ok(times) => times.into_iter().map(|(mode, at)| json!({ "mode": mode, "at": time(at) })).collect(),
            Err(error) => json!({ "error": error.to_string() }),
        };
        views.push(about);
    }
    let ready = serving.ready();
    let storage = &serving.inner.input.storage;
    let health = storage.health();
    let document = json!({
        "ready": ready.is_ok(),
        "missing": ready.err(),
        "kafka": serving.inner.input.kafka,
        "storage": { "url": storage.url(), "reads": health.reads, "writes": health.writes },
        "streams": streams,
        "views": views,
    });
    Ok(reply::json(StatusCode::OK, &document))
}

/// What a master dataset holds, and how many dead letters there are, or why that is not known now.
async fn snapshot(dataset: MasterDataset) -> std::result::Result<(MasterSnapshot, Option<u64>), String> {
    // Not ended with the waiting: how it ends is taken note of.
    let looking = task::spawn("look at the archive", async move {
        let snapshot = dataset.snapshot().await?;
        Ok::<_, master::Error>((snapshot, dataset.dead_letter_count().await?))
    });
    match tokio::time::timeout(SNAPSHOT_WAIT, looking).await {
        Ok(Ok(Ok(found))) => Ok(found),
        Ok(Ok(Err(error))) => Err(Error::read(error).message),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the storage has not answered for {} seconds", SNAPSHOT_WAIT.as_secs())),
    }
}

pub(super) async fn metrics(request: Request) -> Result<Response> {
    let text = request.serving.metrics_text();
    Ok(reply::body(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text.into_bytes()))
}

pub(super) async fn healthz(_: Request) -> Result<Response> {
    Ok(reply::json(StatusCode::OK, &json!({ "status": "alive" })))
}

pub(super) async fn readyz(request: Request) -> Result<Response> {
    match request.serving.ready() {
        Ok(()) => Ok(reply::json(StatusCode::OK, &json!({ "status": "ready" }))),
        Err(missing) => Err(Error::new(Code::NotReady, missing)),
    }
}

pub(super) async fn openapi(_: Request) -> Result<Response> {
    Ok(reply::json(StatusCode::OK, &openapi::document()))
}
