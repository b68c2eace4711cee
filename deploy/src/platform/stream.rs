//! The parts of one stream: its topic, the shared feed, the archiver, the speed worker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use watershed_batch_layer::archiver::{self, Archiver};
use watershed_batch_layer::compaction::{self, Compactor};
use watershed_serving_layer::LogStatus;
use watershed_shared::catalog::StreamState;
use watershed_shared::config::StreamConfig;
use watershed_shared::delta::DeltaService;
use watershed_shared::log::FeedOptions;
use watershed_shared::master::MasterDataset;
use watershed_shared::offsets::{Cut, OffsetVector};
use watershed_shared::register::Register;
use watershed_shared::{clock, task};
use watershed_speed_layer::{self as speed, LogAndArchive, SledStore, SpeedWorker};

use super::Parts;
use super::feeds::{Archived, FeedSource, Feeds};
use super::losses::RecordedLosses;
use super::partitions::{follow_partitions, open_topic};
use super::plans::follow_plans;
use super::register::follow;
use super::stages::{Shutdown, Stage};
use super::view::View;

/// The kind of register.
const STREAMS: &str = "streams";
/// How often the views' cuts are looked at.
const CUTS_INTERVAL: Duration = Duration::from_secs(10);

/// What one stream consists of.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) config: StreamConfig,
    pub(super) master: MasterDataset,
    pub(super) archive: archiver::Handle,
    pub(super) delta: Arc<dyn DeltaService>,
    pub(super) origins: watch::Receiver<OffsetVector>,
    pub(super) register: Register<StreamState>,
    /// The state of the register's head.
    pub(super) state: watch::Receiver<Arc<StreamState>>,
    pub(super) log: watch::Receiver<LogStatus>,
}

impl Stream {
    pub(super) async fn start(
        parts: &Parts<'_>,
        config: &StreamConfig,
        views: &BTreeMap<String, View>,
        shutdown: &mut Shutdown,
    ) -> Result<Self> {
        let register = Register::<StreamState>::open(&parts.storage, STREAMS, &config.name);
        let seen = open_topic(&parts.client, config, &register).await?;
        let topic_id = seen.topic_id.as_deref();
        let master = MasterDataset::open_for_topic(&parts.storage, config, topic_id).await?;
        let stage = shutdown.stage();
        let state = follow(&register, stage).await?;
        let (origins_sender, origins) = watch::channel(seen.origins);
        let log = Arc::new(watch::Sender::new(LogStatus { starts: seen.starts, unreachable: None }));
        let looking = follow_partitions(
            parts.client.clone(),
            config.clone(),
            register.clone(),
            origins_sender,
            Arc::clone(&log),
            stage.stop.clone(),
        );
        stage.tasks.push(task::spawn("follow partitions", looking));

        let seeds = Arc::new(Archived { master: master.clone(), origins: origins.clone() });
        let mut options = FeedOptions::new(parts.config.speed.window_bytes);
        options.raw.topic_id.clone_from(&seen.topic_id);
        let stop = stage.stop.clone();
        let feeds = Arc::new(Feeds::start(parts.client.clone(), config.clone(), seeds, options, stop));
        stage.tasks.push(task::spawn("keep feed", Arc::clone(&feeds).keep()));
        stage.tasks.push(task::spawn("watch the log", Arc::clone(&feeds).watch_health(Arc::clone(&log))));

        let stage = shutdown.stage();
        let options = archiver::Options::from(&parts.config.archive);
        let source = Arc::new(FeedSource(feeds.watch()));
        let losses =
            Arc::new(RecordedLosses { register: register.clone(), state: state.clone(), feeds: Arc::clone(&feeds) });
        let (archiver, archive) = Archiver::new(options, master.clone(), source, losses, origins.borrow().clone());
        let stop = stage.stop.clone();
        stage.tasks.push(task::spawn("archiver", async move {
            // What ends it has been logged, and shows in its state; answers go on from the speed layer.
            drop(archiver.run(stop).await);
        }));
        let cuts = least_cuts(config, views, stage);
        let compactor = Compactor::new(compaction::Options::from(&parts.config.archive), master.clone(), cuts);
        stage.tasks.push(task::spawn("compaction", compactor.run(stage.stop.clone())));

        let stage = shutdown.stage();
        let plans = follow_plans(&config.name, views, &parts.definitions, stage).await;
        let path = parts.config.data_dir.join("delta").join(&config.name);
        let store = tokio::task::spawn_blocking(move || SledStore::open(&path)).await??;
        let events = Arc::new(LogAndArchive::new(config.clone(), feeds.watch(), master.clone()));
        let options =
            speed::Options { commit_interval: parts.config.speed.commit_interval, ..speed::Options::default() };
        let worker = SpeedWorker::new(config.clone(), plans, origins.clone(), events, Arc::new(store), options)
            .with_losses(state.clone());
        let delta: Arc<dyn DeltaService> = Arc::new(worker.handle());
        stage.tasks.push(task::spawn("speed worker", worker.run(stage.stop.clone())));
        Ok(Self { config: config.clone(), master, archive, delta, origins, register, state, log: log.subscribe() })
    }
}

/// The meet of the cuts of all views of the stream that have a generation.
fn least_cuts(
    stream: &StreamConfig,
    views: &BTreeMap<String, View>,
    stage: &mut Stage,
) -> watch::Receiver<Option<Cut>> {
    let states: Vec<_> = views.values().filter(|v| v.stream == stream.name).map(|v| v.state.clone()).collect();
    let least = move || {
        let cuts = states.iter().filter_map(|s| s.borrow().active_generation().map(|g| g.cut.clone()));
        cuts.reduce(|a, b| a.meet(&b))
    };
    let (sender, receiver) = watch::channel(least());
    let stop = stage.stop.clone();
    stage.tasks.push(task::spawn("least cuts", async move {
        while stop.run_until_cancelled(clock::sleep(CUTS_INTERVAL)).await.is_some() {
            sender.send_replace(least());
        }
    }));
    receiver
}
