//! What every role needs of a stream: its topic, its register, its master dataset.

use std::sync::Arc;

use anyhow::Result;
use tokio::sync::watch;
use watershed_serving_layer::LogStatus;
use watershed_shared::catalog::StreamState;
use watershed_shared::config::{Format, StreamConfig};
use watershed_shared::delta::{DeltaClient, DeltaService, Peers};
use watershed_shared::log::FeedOptions;
use watershed_shared::master::MasterDataset;
use watershed_shared::offsets::OffsetVector;
use watershed_shared::register::Register;
use watershed_shared::schemas::{self, Schemas};
use watershed_shared::task;

use super::Parts;
use super::feeds::{Archived, Feeds};
use super::partitions::{follow_partitions, open_topic};
use super::register::follow;
use super::stages::Stage;
use super::truncations::Truncations;

/// The kind of register.
const STREAMS: &str = "streams";

/// A stream whose topic and register are followed.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) config: StreamConfig,
    pub(super) master: MasterDataset,
    pub(super) origins: watch::Receiver<OffsetVector>,
    pub(super) register: Register<StreamState>,
    /// The state of the register's head.
    pub(super) state: watch::Receiver<Arc<StreamState>>,
    pub(super) log: Arc<watch::Sender<LogStatus>>,
    topic_id: Option<String>,
}

impl Stream {
    /// `reads`: whether this process reads the log of the stream.
    pub(super) async fn open(parts: &Parts<'_>, config: &StreamConfig, reads: bool, stage: &mut Stage) -> Result<Self> {
        let register = Register::<StreamState>::open(&parts.storage, STREAMS, &config.name);
        let seen = open_topic(&parts.client, config, &register).await?;
        let master = MasterDataset::open_for_topic(&parts.storage, config, seen.topic_id.as_deref()).await?;
        let state = follow(&register, stage).await?;
        let (origins_sender, origins) = watch::channel(seen.origins);
        let log = Arc::new(watch::Sender::new(LogStatus { starts: seen.starts, ends: seen.ends, unreachable: None }));
        let looking = follow_partitions(
            parts.client.clone(),
            config.clone(),
            register.clone(),
            origins_sender,
            Arc::clone(&log),
            !reads,
            stage.stop.clone(),
        );
        stage.tasks.push(task::spawn("follow partitions", looking));
        Ok(Self { config: config.clone(), master, origins, register, state, log, topic_id: seen.topic_id })
    }

    /// The delta that other processes keep.
    pub(super) fn follow_delta(&self, peers: &Peers, stage: &mut Stage) -> Arc<dyn DeltaService> {
        let client = DeltaClient::new(&self.config.name, self.config.shards, self.state.clone(), peers.clone());
        stage.tasks.push(task::spawn("follow deltas", client.clone().run(stage.stop.clone())));
        Arc::new(client)
    }

    /// How the log of this topic, and of no other with its name, is read.
    ///
    /// # Errors
    /// If the stream's schema registry cannot be asked at all.
    pub(super) fn feed_options(&self, parts: &Parts<'_>) -> Result<FeedOptions> {
        let mut options = FeedOptions::new(parts.config.speed.window_bytes);
        options.raw.topic_id.clone_from(&self.topic_id);
        if let Format::Avro(registry) = &self.config.format {
            let settings = schemas::Settings::default();
            options.schemas = Some(Schemas::new(&parts.storage, &self.config.name, registry, settings)?);
        }
        Ok(options)
    }

    pub(super) fn truncations(&self) -> Truncations {
        let topic = self.config.topic.clone();
        Truncations { topic, register: self.register.clone(), state: self.state.clone() }
    }

    /// A feed of all partitions, kept up until the stage ends.
    ///
    /// # Errors
    /// As [`feed_options`](Self::feed_options).
    pub(super) fn feed(&self, parts: &Parts<'_>, stage: &mut Stage) -> Result<Arc<Feeds>> {
        let truncations = self.truncations();
        let seeds = Arc::new(Archived {
            master: self.master.clone(),
            origins: self.origins.clone(),
            truncations: truncations.clone(),
        });
        let (options, stop) = (self.feed_options(parts)?, stage.stop.clone());
        let feeds = Feeds::start(parts.client.clone(), self.config.clone(), seeds, options, truncations, stop);
        let feeds = Arc::new(feeds);
        stage.tasks.push(task::spawn("keep feed", Arc::clone(&feeds).keep()));
        let log = Arc::clone(&self.log);
        let note = move |unreachable| {
            log.send_if_modified(|log| {
                let changed = log.unreachable != unreachable;
                log.unreachable = unreachable;
                changed
            });
        };
        stage.tasks.push(task::spawn("watch the log", Arc::clone(&feeds).watch_health(note)));
        Ok(feeds)
    }
}
