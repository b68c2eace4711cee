//! One fetch of a stream for all of a process: fetched and decoded once, read by many at their own pace.

mod decoding;
mod reader;
mod side;
mod window;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use self::decoding::Decoding;
pub use self::reader::FeedReader;
use self::window::{ReaderId, Start, Step, Window};
use super::client::LogClient;
use super::error::{Error, Result};
use super::raw::{Health, RawReader, RawReaderOptions, Reports};
use crate::config::StreamConfig;
use crate::offsets::{Offset, OffsetVector, PartitionId};
use crate::schemas::Schemas;
use crate::{clock, task};

/// Where the master dataset of a partition ends: decoding from the log begins there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed {
    pub archived_until: Offset,
    /// The running maximum in front of `archived_until`, in microseconds.
    pub event_time_max: Option<i64>,
    /// The epoch of the leader that wrote what lies in front of `archived_until`, if that is known.
    pub leader_epoch: Option<i32>,
}

/// Why it is not known where the master dataset ends.
pub type SeedsError = Box<dyn std::error::Error + Send + Sync>;

/// Knows where the master dataset of a stream ends.
///
/// # Contract
/// `archived_until` never goes back. An [`Error`] of the log itself ends a fetch at once, anything else is tried again. A partition of which nothing is archived is left out, and is then read from its first
/// offset in the log; or it stands with its recorded origin.
#[async_trait]
pub trait Seeds: Send + Sync {
    async fn resume(&self) -> Result<BTreeMap<PartitionId, Seed>, SeedsError>;
}

/// Settings of a [`StreamFeed`].
#[derive(Debug, Clone)]
pub struct FeedOptions {
    /// Bytes of decoded batches that the window holds.
    pub window_bytes: usize,
    pub raw: RawReaderOptions,
    /// Of a stream whose format is Avro: what its writers' schemas are.
    pub schemas: Option<Schemas>,
}

impl FeedOptions {
    pub fn new(window_bytes: usize) -> Self {
        Self { window_bytes, raw: RawReaderOptions::default(), schemas: None }
    }
}

/// The shared fetch of one stream. Cheap to clone.
///
/// # Contract
/// - Nothing is fetched while there is no reader; the fetch begins where the master dataset ends.
/// - It reads ahead only while the fastest reader needs it. A reader that is slower by more than the window reads for
///   itself and comes back when it has caught up; nobody waits for it.
/// - An error that ends the fetch is told to every reader, also later ones. Start another feed to go on.
#[derive(Debug, Clone)]
pub struct StreamFeed {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_one();
    }
}

impl StreamFeed {
    /// Starts the feed of `config`'s topic; `shutdown` ends it and all its readers.
    pub fn start(
        client: LogClient,
        config: StreamConfig,
        archived: Arc<dyn Seeds>,
        options: FeedOptions,
        shutdown: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared {
            client,
            config,
            seeds: archived,
            state: Mutex::new(State {
                window: Window::new(options.window_bytes),
                begun: false,
                readers: 0,
                last_id: 0,
                failed: None,
                closed: false,
            }),
            raw: options.raw,
            schemas: options.schemas,
            changes: watch::Sender::new(0),
            wake: Notify::new(),
            reports: Reports::default(),
            shutdown,
        });
        let fetch = fetch(FetchGuard(Arc::clone(&shared)));
        drop(task::spawn("stream-feed", fetch));
        Self { handle: Arc::new(Handle { shared }) }
    }

    /// A reader of everything at or past `from`; a partition that `from` does not name stands at its origin.
    pub fn reader(&self, from: OffsetVector) -> FeedReader {
        FeedReader::new(Arc::clone(&self.handle.shared), from)
    }

    /// The last stable offset of each partition as last seen; empty before the first fetch.
    pub fn log_end(&self) -> watch::Receiver<OffsetVector> {
        self.handle.shared.reports.log_end.subscribe()
    }

    /// Whether the cluster answers.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.handle.shared.reports.health.subscribe()
    }

    /// Waits until the fetch has ended, and answers why: this feed then is of no use any more. Cancel safe.
    pub async fn ended(&self) -> Error {
        let shared = &self.handle.shared;
        let mut changes = shared.changes.subscribe();
        loop {
            if let Some(error) = shared.state.lock().failed.clone() {
                return error;
            }
            changes.changed().await.expect("the sender lives as long as this handle");
        }
    }

    pub fn config(&self) -> &StreamConfig {
        &self.handle.shared.config
    }
}

/// What the fetch and the readers share.
struct Shared {
    client: LogClient,
    config: StreamConfig,
    seeds: Arc<dyn Seeds>,
    raw: RawReaderOptions,
    schemas: Option<Schemas>,
    state: Mutex<State>,
    /// Told of each change that readers wait for.
    changes: watch::Sender<u64>,
    /// Told of each change that the fetch waits for.
    wake: Notify,
    reports: Reports,
    shutdown: CancellationToken,
}

struct State {
    window: Window,
    /// The window knows where its partitions begin.
    begun: bool,
    readers: usize,
    last_id: ReaderId,
    failed: Option<Error>,
    /// No handle is left that could make new readers.
    closed: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamFeed").field("stream", &self.config.name).finish_non_exhaustive()
    }
}

impl Shared {
    fn register(&self) -> (ReaderId, watch::Receiver<u64>) {
        let mut state = self.state.lock();
        state.readers += 1;
        state.last_id += 1;
        self.wake.notify_one();
        (state.last_id, self.changes.subscribe())
    }

    fn unregister(&self, reader: ReaderId) {
        let mut state = self.state.lock();
        state.readers -= 1;
        state.window.detach(reader);
        self.wake.notify_one();
    }

    fn detach(&self, reader: ReaderId) {
        self.state.lock().window.detach(reader);
        self.wake.notify_one();
    }

    /// Attaches a new reader; `None` as long as the window has not begun, `false` if the position lies before it.
    fn join(&self, reader: ReaderId, position: &mut OffsetVector) -> Result<Option<bool>> {
        let mut state = self.state.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        if !state.begun {
            return Ok(None);
        }
        let joined = state.window.attach(reader, position)?;
        self.wake.notify_one();
        Ok(Some(joined))
    }

    /// Attaches a reader that had fallen out, when it has caught up.
    fn rejoin(&self, reader: ReaderId, position: &mut OffsetVector) -> Result<bool> {
        let mut state = self.state.lock();
        let joined = state.begun && state.window.rejoin(reader, position)?;
        if joined {
            self.wake.notify_one();
        }
        Ok(joined)
    }

    fn step(&self, reader: ReaderId, position: &mut OffsetVector) -> Result<(Step, Option<Error>)> {
        let mut state = self.state.lock();
        let step = state.window.step(reader, position)?;
        self.wake.notify_one();
        Ok((step, state.failed.clone()))
    }

    /// Whether `position` is past what has been fetched, so that only the log can tell whether it exists.
    fn is_ahead(&self, position: &OffsetVector) -> bool {
        let state = self.state.lock();
        let next = |p| state.window.next(p);
        position.iter().any(|(p, o)| next(p).is_none_or(|next| o > next))
    }

    /// Ends the fetch, for all.
    fn fail(&self, error: &Error) {
        self.state.lock().failed.get_or_insert_with(|| error.clone());
        self.tell();
    }

    fn tell(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Where the master dataset ends. Storage that does not answer is asked again for a while.
    async fn seeds(&self) -> Result<BTreeMap<PartitionId, Seed>> {
        let mut pause = Duration::from_millis(100);
        for attempt in 1.. {
            match self.seeds.resume().await {
                Ok(seeds) => return Ok(seeds),
                Err(error) if error.is::<Error>() => return Err(*error.downcast().expect("it is one")),
                Err(error) if attempt < SEED_ATTEMPTS => {
                    tracing::warn!(
                        stream = self.config.name,
                        error,
                        "cannot tell where the master dataset ends, trying again"
                    );
                }
                Err(error) => {
                    return Err(Error::Seeds { stream: self.config.name.clone(), detail: error.to_string() });
                }
            }
            clock::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        unreachable!("the last attempt returns")
    }
}

const SEED_ATTEMPTS: u32 = 8;
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Opens a raw reader; a cluster that does not answer is waited for.
async fn open_patiently(
    shared: &Shared,
    from: &OffsetVector,
    options: RawReaderOptions,
    reports: &Reports,
) -> Result<RawReader> {
    let mut pause = Duration::from_millis(100);
    loop {
        let opened =
            RawReader::open_reporting(&shared.client, &shared.config.topic, from, options.clone(), reports.clone())
                .await;
        match opened {
            Err(error) if error.is_transient() => {
                let reason = error.to_string();
                tracing::debug!(stream = shared.config.name, reason, "waiting for the cluster");
                reports.health.send_replace(Health::Disconnected { reason });
            }
            done => return done,
        }
        clock::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Tells the readers when the fetch ends, even by a panic.
struct FetchGuard(Arc<Shared>);

impl Drop for FetchGuard {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.failed.get_or_insert_with(|| Error::client("fetch the stream", "the fetch has ended"));
        drop(state);
        self.0.tell();
    }
}

/// Fetches while there are readers, until an error, `shutdown`, or nobody is left to read.
async fn fetch(guard: FetchGuard) {
    let shared = &*guard.0;
    loop {
        let outcome = tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => Err(Error::Shutdown),
            outcome = fetch_while_wanted(shared) => outcome,
        };
        match outcome {
            Ok(Wanted::Later) => {}
            Ok(Wanted::Never) => return,
            Err(error) => {
                tracing::debug!(stream = shared.config.name, %error, "the fetch of the stream ends");
                shared.state.lock().failed = Some(error);
                return;
            }
        }
    }
}

enum Wanted {
    Later,
    Never,
}

/// Begins where the master dataset ends and fetches until there is no reader any more.
async fn fetch_while_wanted(shared: &Shared) -> Result<Wanted> {
    loop {
        {
            let state = shared.state.lock();
            if state.readers > 0 {
                break;
            }
            if state.closed {
                return Ok(Wanted::Never);
            }
        }
        shared.wake.notified().await;
    }
    let seeds = shared.seeds().await?;
    let from = seeds.iter().map(|(p, s)| (*p, s.archived_until)).collect();
    let maxima = seeds.iter().map(|(p, s)| (*p, s.event_time_max));
    let mut decoding = Decoding::new(&shared.config, shared.schemas.as_ref(), maxima)?;
    let leader_epochs = seeds.iter().filter_map(|(p, s)| Some((*p, s.leader_epoch?))).collect();
    let options = RawReaderOptions { leader_epochs, ..shared.raw.clone() };
    let mut raw = open_patiently(shared, &from, options, &shared.reports).await?;
    {
        let start = |(p, offset): (PartitionId, Offset)| {
            // Before offset 0 there is nothing, whatever is archived.
            let seed = seeds.get(&p);
            let is_origin = seed.is_none() || offset == Offset(0);
            (p, Start { offset, event_time_max: seed.and_then(|s| s.event_time_max), is_origin })
        };
        let mut state = shared.state.lock();
        state.window.begin(raw.starts().iter().map(start));
        state.begun = true;
    }
    shared.tell();
    loop {
        let wants_more = {
            let mut state = shared.state.lock();
            if state.readers == 0 {
                state.begun = false;
                state.window.begin([]);
                return Ok(Wanted::Later);
            }
            state.window.has_room()
        };
        let batch = tokio::select! {
            () = shared.wake.notified() => continue,
            batch = raw.next(), if wants_more => batch?,
        };
        let decoded;
        (decoding, decoded) = decoding.decode(batch).await?;
        shared.state.lock().window.push(decoded);
        shared.tell();
    }
}

#[cfg(test)]
mod tests;
