//! A stream's shared feed, which is renewed when it fails; and what it needs of the master dataset.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use watershed_batch_layer::archiver;
use watershed_serving_layer::Unreachable;
use watershed_shared::clock::{self, Instant};
use watershed_shared::config::StreamConfig;
use watershed_shared::log::{self, FeedOptions, Health, LogClient, Seed, Seeds, SeedsError, StreamFeed};
use watershed_shared::master::MasterDataset;
use watershed_shared::offsets::{OffsetVector, PartitionId};

use super::truncations::Truncations;

/// Before a failed feed is renewed, at first; it doubles up to [`MAX_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// While a schema registry is away, which says so at once: it costs little to ask.
const MAX_REGISTRY_BACKOFF: Duration = Duration::from_secs(5);
/// A feed that has lived this long had been started rightly: the pause begins anew.
const GOOD_LIFE: Duration = Duration::from_secs(60);

/// What every feed of a stream is made from.
struct Maker {
    client: LogClient,
    config: StreamConfig,
    seeds: Arc<dyn Seeds>,
    options: FeedOptions,
    truncations: Truncations,
    stop: CancellationToken,
}

/// The feed of a stream as it is now. An error ends a feed for good; then another one takes its place.
pub(super) struct Feeds {
    maker: Maker,
    sender: watch::Sender<StreamFeed>,
    /// Ends the present feed.
    present: Mutex<CancellationToken>,
}

impl std::fmt::Debug for Feeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feeds").field("stream", &self.maker.config.name).finish_non_exhaustive()
    }
}

impl Maker {
    fn make(&self) -> (StreamFeed, CancellationToken) {
        let stop = self.stop.child_token();
        let (client, config, seeds) = (self.client.clone(), self.config.clone(), Arc::clone(&self.seeds));
        (StreamFeed::start(client, config, seeds, self.options.clone(), stop.clone()), stop)
    }
}

impl Feeds {
    /// Feeds of the topic with the id that `options` name; `stop` ends them.
    pub(super) fn start(
        client: LogClient,
        config: StreamConfig,
        seeds: Arc<dyn Seeds>,
        options: FeedOptions,
        truncations: Truncations,
        stop: CancellationToken,
    ) -> Self {
        let maker = Maker { client, config, seeds, options, truncations, stop };
        let (first, present) = maker.make();
        Self { maker, sender: watch::Sender::new(first), present: Mutex::new(present) }
    }

    pub(super) fn watch(&self) -> watch::Receiver<StreamFeed> {
        self.sender.subscribe()
    }

    /// Ends the present feed with all its readers; the next one comes with [`renew`](Self::renew), or after a pause.
    pub(super) fn end(&self) {
        self.present.lock().cancel();
    }

    /// Puts another feed in the place of the present one.
    pub(super) fn renew(&self) {
        let mut present = self.present.lock();
        present.cancel();
        let (feed, stop) = self.maker.make();
        *present = stop;
        self.sender.send_replace(feed);
    }

    /// Renews feeds that fail, until the stop.
    pub(super) async fn keep(self: Arc<Self>) {
        let stream = &self.maker.config.name;
        let mut feeds = self.watch();
        let mut backoff = FIRST_BACKOFF;
        let mut said = String::new();
        loop {
            let feed = feeds.borrow_and_update().clone();
            let started = Instant::now();
            let error = tokio::select! {
                // First: a feed that ends since it was told to has not failed.
                biased;
                () = self.maker.stop.cancelled() => return,
                _ = feeds.changed() => continue,
                error = feed.ended() => error,
            };
            if started.elapsed() > GOOD_LIFE {
                backoff = FIRST_BACKOFF;
            }
            let most = match error {
                log::Error::Schemas { .. } => MAX_REGISTRY_BACKOFF,
                _ => MAX_BACKOFF,
            };
            // Once, not at each attempt.
            if std::mem::replace(&mut said, error.to_string()) != said {
                warn!(stream, %error, "reading the log failed, and is tried again");
            }
            // SUBTLE: before the next feed, which reads from the end of the archive on. That may lie where the log is still
            // what it was, and it would read on from there over what others have read already.
            while let Err(failed) = self.maker.truncations.record(&error).await {
                let failed = format!("{failed:#}");
                warn!(stream, error = failed, "cannot record that the log was cut off, trying again");
                if self.maker.stop.run_until_cancelled(clock::sleep(FIRST_BACKOFF)).await.is_none() {
                    return;
                }
            }
            tokio::select! {
                () = self.maker.stop.cancelled() => return,
                // Somebody else was quicker.
                _ = feeds.changed() => continue,
                () = clock::sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(most);
            self.renew();
        }
    }
}

/// The log counts as unreachable after this long without it: brokers restart.
const PATIENCE: Duration = Duration::from_secs(10);

impl Feeds {
    /// Tells `say` since when no broker answers, again and again, until the stop.
    pub(super) async fn watch_health(self: Arc<Self>, say: impl Fn(Option<Unreachable>)) {
        let mut feeds = self.watch();
        let mut away: Option<(Instant, DateTime<Utc>)> = None;
        loop {
            let mut health = feeds.borrow_and_update().health();
            loop {
                let now = health.borrow_and_update().clone();
                let unreachable = match now {
                    Health::Connected => {
                        away = None;
                        None
                    }
                    Health::Disconnected { reason } => {
                        let (at, since) = *away.get_or_insert_with(|| (Instant::now(), clock::now()));
                        (at.elapsed() >= PATIENCE).then_some(Unreachable { since, reason })
                    }
                };
                say(unreachable);
                tokio::select! {
                    () = self.maker.stop.cancelled() => return,
                    _ = feeds.changed() => break,
                    changed = health.changed() => if changed.is_err() { break },
                    () = clock::sleep(PATIENCE), if away.is_some() => {}
                }
            }
        }
    }
}

/// The archiver's batches come from the stream's feed.
#[derive(Debug)]
pub(super) struct FeedSource(pub(super) watch::Receiver<StreamFeed>);

impl archiver::Source for FeedSource {
    fn open(&self, from: OffsetVector) -> Box<dyn archiver::Reader> {
        archiver::Source::open(&*self.0.borrow(), from)
    }
}

/// Where decoding begins: behind what is archived, else at the recorded origin.
pub(super) struct Archived {
    pub(super) master: MasterDataset,
    pub(super) origins: watch::Receiver<OffsetVector>,
    pub(super) truncations: Truncations,
}

#[async_trait]
impl Seeds for Archived {
    async fn resume(&self) -> Result<BTreeMap<PartitionId, Seed>, SeedsError> {
        if let Some(stop) = self.truncations.stop() {
            return Err(stop.into());
        }
        let snapshot = self.master.snapshot().await?;
        let archived = snapshot.resume().await?;
        let origins = self.origins.borrow().clone();
        let mut seeds: BTreeMap<PartitionId, Seed> = origins
            .iter()
            .map(|(p, o)| (p, Seed { archived_until: o, event_time_max: None, leader_epoch: None }))
            .collect();
        seeds.extend(archived);
        Ok(seeds)
    }
}
