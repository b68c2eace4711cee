//! The delta service: the shards that this process owns, for the serving and the batch processes.
//!
//! | route | answers |
//! |---|---|
//! | `GET /v1/delta/{stream}/{shard}` | its snapshots, now and as they come, as [`wire`](watershed_shared::delta::wire) has them |
//! | `GET /v1/delta/{stream}/{shard}/progress` | how far it is |
//! | `POST /v1/delta/{stream}/{shard}/seal` | the cut at which all runs end |

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use serde::Serialize;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::http::StatusCode;
use warp::reply::Response;
use warp::{Filter, Reply};
use watershed_shared::delta::wire::{Encoder, WireError};
use watershed_shared::delta::{DeltaService, HEARTBEAT, Progress, StreamDelta};
use watershed_shared::shard::Shard;
use watershed_shared::task;

/// Serves the deltas of the shards that are offered. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeltaServer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    offered: RwLock<BTreeMap<(String, u32), Offer>>,
    token: Option<String>,
    shutdown: CancellationToken,
}

#[derive(Debug, Clone)]
struct Offer {
    service: Arc<dyn DeltaService>,
    /// Ends its connections.
    withdrawn: CancellationToken,
}

impl DeltaServer {
    /// `token`: what a request has to bear; `None`: nothing. `shutdown` ends all connections.
    pub fn new(token: Option<String>, shutdown: CancellationToken) -> Self {
        Self { inner: Arc::new(Inner { offered: RwLock::default(), token, shutdown }) }
    }

    /// Serves `shard` of `stream` from now on.
    pub fn offer(&self, stream: &str, shard: Shard, service: Arc<dyn DeltaService>) {
        let offer = Offer { service, withdrawn: self.inner.shutdown.child_token() };
        let before = self.inner.offered.write().insert((stream.to_owned(), shard.number), offer);
        if let Some(before) = before {
            before.withdrawn.cancel();
        }
    }

    /// Serves it no more; whoever follows it hears of it.
    pub fn withdraw(&self, stream: &str, shard: Shard) {
        if let Some(offer) = self.inner.offered.write().remove(&(stream.to_owned(), shard.number)) {
            offer.withdrawn.cancel();
        }
    }

    /// How far the delta of an offered shard is.
    pub fn progress(&self, stream: &str, shard: Shard) -> Option<Progress> {
        let offered = self.inner.offered.read();
        let offer = offered.get(&(stream.to_owned(), shard.number))?;
        Some(offer.service.watch().borrow().progress())
    }

    /// The delta of each offered shard as it is now, by stream and shard.
    pub fn offered(&self) -> BTreeMap<(String, u32), Arc<StreamDelta>> {
        let offered = self.inner.offered.read();
        offered.iter().map(|(key, offer)| (key.clone(), Arc::clone(&offer.service.watch().borrow()))).collect()
    }

    /// The routes. What is wrong is answered as an error of the form that all errors have.
    pub fn routes(&self) -> BoxedFilter<(Response,)> {
        let path = || warp::path!("v1" / "delta" / String / u32 / ..);
        let offer = || {
            let server = self.clone();
            path().and(warp::header::optional("authorization")).map(
                move |stream: String, shard: u32, authorization: Option<String>| {
                    server.allowed(&stream, shard, authorization.as_deref())
                },
            )
        };
        let follow =
            offer().and(warp::path::end()).and(warp::get()).map(|offer: Result<Offer, Box<Response>>| match offer {
                Ok(offer) => follow(offer),
                Err(refused) => *refused,
            });
        let progress = offer().and(warp::path!("progress")).and(warp::get()).map(
            |offer: Result<Offer, Box<Response>>| match offer {
                Ok(offer) => reply(StatusCode::OK, &offer.service.watch().borrow().progress()),
                Err(refused) => *refused,
            },
        );
        let seal =
            offer().and(warp::path!("seal")).and(warp::post()).then(|offer: Result<Offer, Box<Response>>| async move {
                let offer = match offer {
                    Ok(offer) => offer,
                    Err(refused) => return *refused,
                };
                match offer.service.seal().await {
                    Ok(cut) => reply(StatusCode::OK, &cut),
                    Err(error) => failed(StatusCode::SERVICE_UNAVAILABLE, "not_ready", &error.to_string()),
                }
            });
        follow.or(progress).unify().or(seal).unify().boxed()
    }

    fn allowed(&self, stream: &str, shard: u32, authorization: Option<&str>) -> Result<Offer, Box<Response>> {
        if let Some(token) = &self.inner.token {
            let given = authorization.and_then(|text| text.strip_prefix("Bearer "));
            if !given.is_some_and(|given| same(given, token)) {
                let message = "the delta service asks for the `token` under [speed]";
                return Err(Box::new(failed(StatusCode::UNAUTHORIZED, "unauthorized", message)));
            }
        }
        let offered = self.inner.offered.read();
        offered.get(&(stream.to_owned(), shard)).cloned().ok_or_else(|| {
            let message = format!("this worker does not have shard {shard} of stream `{stream}`");
            Box::new(failed(StatusCode::NOT_FOUND, "unknown_shard", &message))
        })
    }
}

/// In a time that does not tell where two texts of one length differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

fn follow(offer: Offer) -> Response {
    // One frame on its way: a slow reader gets the newest next, not all that have been.
    let (sender, frames) = mpsc::channel(1);
    drop(task::spawn("delta connection", async move {
        let Offer { service, withdrawn } = offer;
        if let Some(Err(error)) = withdrawn.run_until_cancelled(send(service.watch(), sender)).await {
            tracing::error!(%error, "a delta cannot be sent");
        }
    }));
    let mut response =
        warp::reply::stream(ReceiverStream::new(frames).map(Ok::<Bytes, std::io::Error>)).into_response();
    let content_type = warp::http::HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(warp::http::header::CONTENT_TYPE, content_type);
    response
}

/// Sends snapshots until nobody takes them or none will come.
async fn send(mut deltas: watch::Receiver<Arc<StreamDelta>>, sender: mpsc::Sender<Bytes>) -> Result<(), WireError> {
    let mut encoder = Encoder::default();
    deltas.mark_changed();
    loop {
        let parts = match tokio::time::timeout(HEARTBEAT, deltas.changed()).await {
            Ok(Ok(())) => {
                let delta = Arc::clone(&deltas.borrow_and_update());
                encoder.frame(&delta)?
            }
            Ok(Err(_)) => return Ok(()),
            Err(_) => vec![Encoder::heartbeat()],
        };
        for part in parts {
            if sender.send(part).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn reply(status: StatusCode, document: &impl Serialize) -> Response {
    warp::reply::with_status(warp::reply::json(document), status).into_response()
}

fn failed(status: StatusCode, code: &str, message: &str) -> Response {
    reply(status, &json!({ "error": { "code": code, "message": message } }))
}
