//! A connection to the delta service of one owner of a shard, made again whenever it breaks.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::StreamDelta;
use super::wire::{Decoder, Message};
use crate::catalog::Ownership;
use crate::clock::{self, Instant};
use crate::offsets::{Cut, Position};

/// A sender sends at least a heartbeat in this time.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Who has sent nothing for this long counts as stopped.
const SILENCE: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// An owner that has not sealed by then counts as none.
const SEAL_TIMEOUT: Duration = Duration::from_secs(4);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// What is known of an owner's delta.
#[derive(Debug, Clone, Default)]
pub(super) struct LinkState {
    /// The newest that came, also after the connection broke.
    pub(super) delta: Option<Arc<StreamDelta>>,
    /// Since when it does not answer, and why; `None` while it does.
    pub(super) away: Option<(Instant, String)>,
}

/// How far the delta of a shard is, as its owner says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub position: Position,
    /// All views stand there.
    pub joined: bool,
}

/// The delta service of one shard in another process.
#[derive(Debug, Clone)]
pub struct Peer {
    http: reqwest::Client,
    /// `http://host:port/v1/delta/<stream>/<shard>`
    url: String,
    token: Option<String>,
}

/// Reaches the delta services of other processes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Peers {
    http: reqwest::Client,
    token: Option<String>,
}

/// No HTTP client can be made.
#[derive(Debug, thiserror::Error)]
#[error("no HTTP client can be made: {0}")]
pub struct PeersError(#[from] reqwest::Error);

impl Peers {
    /// `token`: what the delta services ask for.
    ///
    /// # Errors
    /// If this machine's network settings cannot be used.
    pub fn new(token: Option<String>) -> Result<Self, PeersError> {
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
        Ok(Self { http, token })
    }

    /// The delta service of `owner`'s shard; `None` if it has no address.
    pub fn of(&self, stream: &str, owner: &Ownership) -> Option<Peer> {
        let address = owner.address.as_ref()?;
        let url = format!("http://{address}/v1/delta/{stream}/{}", owner.shard);
        Some(Peer { http: self.http.clone(), url, token: self.token.clone() })
    }
}

impl Peer {
    /// How far it is; `None` if it does not answer within `limit`, or does not have the shard.
    pub async fn progress(&self, limit: Duration) -> Option<Progress> {
        let request = self.request(self.http.get(format!("{}/progress", self.url)));
        let asked = async { request.send().await?.error_for_status()?.json().await };
        tokio::time::timeout(limit.min(CONNECT_TIMEOUT), asked).await.ok()?.ok()
    }

    fn request(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Asks the owner to seal; `None` if it does not answer.
    pub(super) async fn seal(&self) -> Option<Cut> {
        let request = self.request(self.http.post(format!("{}/seal", self.url)));
        let sealed = async {
            let response = request.send().await?.error_for_status()?;
            response.json::<Cut>().await
        };
        match tokio::time::timeout(SEAL_TIMEOUT, sealed).await {
            Ok(Ok(cut)) => Some(cut),
            Ok(Err(error)) => {
                tracing::warn!(url = self.url, error = said(&error), "the owner of a shard cannot seal");
                None
            }
            Err(_) => {
                tracing::warn!(url = self.url, "the owner of a shard does not answer to a seal");
                None
            }
        }
    }

    /// Follows the owner's delta for ever.
    pub(super) async fn follow(self, state: watch::Sender<LinkState>) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let why = self.follow_once(&state, &mut backoff).await;
            state.send_modify(|state| {
                let since = state.away.take().map_or_else(Instant::now, |(since, _)| since);
                state.away = Some((since, why));
            });
            clock::sleep(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Why the connection ended.
    async fn follow_once(&self, state: &watch::Sender<LinkState>, backoff: &mut Duration) -> String {
        let request = self.request(self.http.get(&self.url));
        let mut response = match tokio::time::timeout(CONNECT_TIMEOUT, request.send()).await {
            Ok(Ok(response)) if response.status().is_success() => response,
            Ok(Ok(response)) => {
                let status = response.status();
                let body = tokio::time::timeout(CONNECT_TIMEOUT, response.text()).await;
                return format!("it answers {status}: {}", body.ok().and_then(Result::ok).unwrap_or_default());
            }
            Ok(Err(error)) => return said(&error),
            Err(_) => return "no answer in time".to_owned(),
        };
        let mut decoder = Decoder::default();
        loop {
            let chunk = match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return "it ended the connection".to_owned(),
                Ok(Err(error)) => return said(&error),
                Err(_) => return format!("nothing came from it for {SILENCE:?}"),
            };
            decoder.push(&chunk);
            loop {
                match decoder.message() {
                    Ok(Some(Message::Heartbeat)) => {}
                    Ok(Some(Message::Snapshot(delta))) => {
                        *backoff = FIRST_BACKOFF;
                        state.send_replace(LinkState { delta: Some(delta), away: None });
                    }
                    Ok(None) => break,
                    Err(error) => return error.to_string(),
                }
            }
        }
    }
}

/// An error with its causes: the client's own says only which step failed.
fn said(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
