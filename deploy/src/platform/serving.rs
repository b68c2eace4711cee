//! The serving layer, with what it asks of the others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use tokio::sync::watch;
use tracing::debug;
use watershed_batch_layer::archiver;
use watershed_batch_layer::history::StoredHistory;
use watershed_serving_layer::{
    Archiving, Builds, KafkaAddress, LogIngest, QuerySettings, Serving, ServingInput, Settings, StreamInput, ViewInput,
    serve,
};
use watershed_shared::archive::ArchiverState;
use watershed_shared::catalog::Definition;
use watershed_shared::clock;
use watershed_shared::config::ServingConfig;
use watershed_shared::definitions::Definitions;
use watershed_shared::delta::{DeltaService, Peers};
use watershed_shared::log::Producer;
use watershed_shared::offsets::OffsetVector;
use watershed_shared::task;
use watershed_shared::view::{CompiledView, DimensionTable};

use super::Parts;
use super::stages::{Shutdown, Stage};
use super::stream::Stream;
use super::view::View;
use crate::builds::{RemoteBuilds, RemoteTarget, schedules};

/// How often a process without an archiver looks how far the archive is.
const ARCHIVE_INTERVAL: Duration = Duration::from_secs(5);

/// How the archive of a stream does.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) state: watch::Receiver<ArchiverState>,
    pub(super) archived_until: watch::Receiver<OffsetVector>,
    /// The archiver, if it runs in this process.
    pub(super) archiver: Option<archiver::Handle>,
}

/// An archiver of this process, as who waits for it sees it.
#[derive(Debug)]
struct LocalArchiver(archiver::Handle);

impl Archiving for LocalArchiver {
    fn hurry(&self, until: &OffsetVector) {
        self.0.flush_to(until);
    }
}

/// Starts a process that serves what others archive, build and keep.
pub(super) async fn start(
    parts: &Parts<'_>,
    tables: BTreeMap<String, DimensionTable>,
    streams: BTreeMap<String, Stream>,
    views: BTreeMap<String, View>,
    shutdown: &mut Shutdown,
) -> Result<SocketAddr> {
    let peers = Peers::new(parts.config.speed.token.clone())?;
    let mut archives = BTreeMap::new();
    let mut deltas = BTreeMap::new();
    let stage = shutdown.stage();
    for (name, stream) in &streams {
        deltas.insert(name.clone(), stream.follow_delta(&peers, stage));
        archives.insert(name.clone(), follow_archive(stream, stage));
    }
    let targets = views.iter().map(|(name, view)| {
        let stream = &streams[&view.stream];
        let target = RemoteTarget {
            register: view.register.clone(),
            master: stream.master.clone(),
            delta: Arc::clone(&deltas[&view.stream]),
            origins: stream.origins.clone(),
        };
        (name.clone(), target)
    });
    let builds = RemoteBuilds {
        history: StoredHistory::new(parts.storage.clone()),
        targets: targets.collect(),
        schedules: schedules(parts.config)?,
    };
    start_serving(parts, Box::new(builds), tables, streams, archives, deltas, views, shutdown.stage()).await
}

/// How far others have archived `stream`.
fn follow_archive(stream: &Stream, stage: &mut Stage) -> Archive {
    let (sender, archived_until) = watch::channel(OffsetVector::new());
    // It never changes; the receivers keep it.
    let (_, state) = watch::channel(ArchiverState::Elsewhere);
    let (master, name, stop) = (stream.master.clone(), stream.config.name.clone(), stage.stop.clone());
    stage.tasks.push(task::spawn("follow the archive", async move {
        loop {
            match master.snapshot().await {
                Ok(snapshot) => drop(sender.send_replace(snapshot.archived_until().clone())),
                Err(error) => debug!(stream = name, %error, "cannot look how far the archive is"),
            }
            if stop.run_until_cancelled(clock::sleep(ARCHIVE_INTERVAL)).await.is_none() {
                return;
            }
        }
    }));
    Archive { state, archived_until, archiver: None }
}

#[expect(clippy::too_many_arguments, reason = "one of each part of a serving layer")]
pub(super) async fn start_serving(
    parts: &Parts<'_>,
    builds: Box<dyn Builds>,
    tables: BTreeMap<String, DimensionTable>,
    streams: BTreeMap<String, Stream>,
    mut archives: BTreeMap<String, Archive>,
    mut deltas: BTreeMap<String, Arc<dyn DeltaService>>,
    views: BTreeMap<String, View>,
    stage: &mut Stage,
) -> Result<SocketAddr> {
    let topics = streams.values().map(|s| (s.config.name.clone(), s.config.topic.clone())).collect();
    let ingest = LogIngest::new(Producer::new(&parts.client)?, topics);
    let stream_inputs = streams.into_iter().map(|(name, s)| {
        let archive = archives.remove(&name).expect("every stream has an archive");
        let input = StreamInput {
            delta: deltas.remove(&name).expect("every stream has a delta"),
            config: s.config,
            master: s.master,
            register: s.register,
            state: s.state,
            archiver: archive.state,
            archiving: archive.archiver.map(|archiver| Arc::new(LocalArchiver(archiver)) as _),
            archived_until: archive.archived_until,
            log: s.log.subscribe(),
        };
        (name, input)
    });
    let view_inputs =
        views.into_iter().map(|(name, v)| (name, ViewInput { config: v.config, stream: v.stream, register: v.state }));
    let serving = Serving::new(ServingInput {
        storage: parts.storage.clone(),
        streams: stream_inputs.collect(),
        views: view_inputs.collect(),
        tables,
        definitions: Arc::new(RecordedDefinitions(parts.definitions.clone())),
        builds: builds.into(),
        ingest: Arc::new(ingest),
        kafka: KafkaAddress {
            bootstrap_servers: parts.client.bootstrap_servers().to_owned(),
            embedded: parts.config.kafka.is_none(),
        },
        metrics: Vec::new(),
        settings: settings(&parts.config.serving),
    })
    .context("start the serving layer")?;
    let following = serving.clone();
    let stop = stage.stop.clone();
    stage.tasks.push(task::spawn("serving", async move { following.run(stop).await }));
    let listen = parts.config.http.listen;
    let (address, server) = serve(serving, listen, stage.stop.clone()).await.with_context(|| {
        format!("cannot listen on {listen} for HTTP: stop the other program or set another `listen` under [http]")
    })?;
    stage.tasks.push(task::spawn("http", server));
    Ok(address)
}

fn settings(config: &ServingConfig) -> Settings {
    let query = QuerySettings {
        memory_limit_bytes: config.memory_limit_bytes,
        max_result_bytes: config.max_result_bytes,
        page_cache_bytes: config.page_cache_bytes,
        max_concurrent: config.max_queries,
        max_waiting: config.max_waiting,
        timeout: config.timeout,
        ..QuerySettings::default()
    };
    let publish_memory_bytes = config.publish_memory_bytes;
    Settings { query, max_live: config.max_live, publish_memory_bytes, ..Settings::default() }
}

/// Definitions as the registers recorded them.
#[derive(Debug)]
struct RecordedDefinitions(Definitions);

#[async_trait]
impl watershed_serving_layer::Definitions for RecordedDefinitions {
    async fn compiled(&self, _view: &str, definition: &Definition) -> Result<Arc<CompiledView>, String> {
        self.0.get(definition).await.map_err(|e| e.to_string())
    }
}
