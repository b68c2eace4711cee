//! Puts the layers together in one process: the only place that knows all of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use watershed_batch_layer::archiver::{self, Archiver};
use watershed_batch_layer::builder::{BuildTarget, Builder, BuilderOptions};
use watershed_batch_layer::compaction::{self, Compactor};
use watershed_batch_layer::history::History;
use watershed_batch_layer::scheduler::{self, ScheduledBuild};
use watershed_serving_layer::{
    Ingest, IngestError, Published, Serving, ServingInput, Settings, StreamInput, ViewInput, serve,
};
use watershed_shared::catalog::{BuildMode, Definition, Rejected, StreamEvent, StreamState, ViewEvent, ViewState};
use watershed_shared::config::{Config, KafkaConfig, StreamConfig, ViewConfig};
use watershed_shared::definitions::Definitions;
use watershed_shared::delta::DeltaService;
use watershed_shared::log::{
    self, DirLock, EmbeddedBroker, FeedOptions, LogClient, ProduceRecord, Producer, Seed, Seeds, SeedsError, StreamFeed,
};
use watershed_shared::master::MasterDataset;
use watershed_shared::offsets::{Cut, OffsetVector, PartitionId};
use watershed_shared::record::DecodedBatch;
use watershed_shared::register::Register;
use watershed_shared::schedule::Schedule;
use watershed_shared::storage::Storage;
use watershed_shared::view::{CompiledView, DimensionTable};
use watershed_shared::{clock, tables, task};
use watershed_speed_layer::{self as speed, LogAndArchive, SledStore, SpeedWorker, ViewPlan};

use crate::builds::LocalBuilds;
use crate::client::HttpFile;

/// How often a view's register is looked at for records of other processes; own records are seen at once.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// How often a topic is looked at for new partitions.
const PARTITIONS_INTERVAL: Duration = Duration::from_secs(10);
/// The kinds of registers.
const STREAMS: &str = "streams";
const VIEWS: &str = "views";

/// Every layer in one process.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) http: SocketAddr,
    pub(crate) bootstrap_servers: String,
    shutdown: Shutdown,
    http_file: PathBuf,
    broker: Option<EmbeddedBroker>,
    _lock: DirLock,
}

/// Stops what takes requests first and what makes things durable last.
#[derive(Debug, Default)]
struct Shutdown {
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Shutdown {
    /// A new stage that is stopped before all earlier ones.
    fn stage(&mut self) -> &mut Stage {
        self.stages.push(Stage { stop: CancellationToken::new(), tasks: Vec::new() });
        self.stages.last_mut().expect("just pushed")
    }

    async fn run(self) {
        for stage in self.stages.into_iter().rev() {
            stage.stop.cancel();
            for task in stage.tasks {
                // A panic has been reported by the task itself.
                drop(task.await);
            }
        }
    }
}

/// What one stream consists of.
#[derive(Debug)]
struct Stream {
    config: StreamConfig,
    master: MasterDataset,
    archive: archiver::Handle,
    delta: Arc<dyn DeltaService>,
}

/// What a view's register says, as it moves on.
#[derive(Debug)]
struct View {
    config: ViewConfig,
    stream: String,
    register: Register<ViewState>,
    state: watch::Receiver<Arc<ViewState>>,
}

/// What all parts are made from.
struct Parts<'a> {
    config: &'a Config,
    client: LogClient,
    storage: Storage,
    definitions: Definitions,
}

impl Platform {
    /// Starts every layer; on return HTTP answers, though perhaps not yet that it is ready.
    ///
    /// # Errors
    /// What could not be started, and what to do about it.
    pub(crate) async fn start(config: &Config) -> Result<Self> {
        let lock = DirLock::acquire(&config.data_dir)?;
        let holder = holder(&config.data_dir)?;
        let broker = match &config.kafka {
            Some(_) => None,
            None => Some(EmbeddedBroker::start(&config.data_dir, config.broker.listen).await?),
        };
        let client = LogClient::new(&kafka(config, broker.as_ref())?)?;
        let storage = Storage::open(&config.storage_url).context("open the storage")?;
        let definitions = Definitions::new(storage.clone(), config.streams.clone());
        let parts = Parts { config, client, storage, definitions };
        let mut shutdown = Shutdown::default();

        let tables = dimension_tables(&parts).await?;
        let mut views = BTreeMap::new();
        let follow = shutdown.stage();
        for view in config.views.values() {
            views.insert(view.name.clone(), View::open(&parts, view, &tables, follow).await?);
        }
        let mut streams = BTreeMap::new();
        for stream in config.streams.values() {
            let started = Stream::start(&parts, stream, &views, &mut shutdown).await;
            let started = started.with_context(|| format!("start stream `{}`", stream.name))?;
            streams.insert(stream.name.clone(), started);
        }
        let builds = start_builds(&parts, holder, &streams, &views, shutdown.stage()).await?;
        let http = start_serving(&parts, builds, tables, streams, views, shutdown.stage()).await?;

        let http_file = HttpFile::path(&config.data_dir);
        let url = HttpFile { url: format!("http://{http}") };
        std::fs::write(&http_file, serde_json::to_vec(&url)?)
            .with_context(|| format!("write {}", http_file.display()))?;
        info!(%http, "watershed is up");
        let bootstrap_servers = parts.client.bootstrap_servers().to_owned();
        Ok(Self { http, bootstrap_servers, shutdown, http_file, broker, _lock: lock })
    }

    /// Waits for a part to fail without which nothing goes on. Cancel safe.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        match &self.broker {
            Some(broker) => broker.ended().await.into(),
            None => std::future::pending().await,
        }
    }

    /// Stops HTTP first, then builds, then what makes events durable, then the log.
    pub(crate) async fn stop(self) {
        drop(std::fs::remove_file(&self.http_file));
        self.shutdown.run().await;
        if let Some(broker) = self.broker {
            broker.stop().await;
        }
    }
}

/// The name under which this process claims builds: the same after a restart on the same `data_dir`.
fn holder(data_dir: &Path) -> Result<String> {
    let file = data_dir.join("process.id");
    match std::fs::read_to_string(&file) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        Ok(_) | Err(_) => {
            let id = watershed_shared::names::BuildId::unique().to_string();
            std::fs::write(&file, &id).with_context(|| format!("write {}", file.display()))?;
            Ok(id)
        }
    }
}

fn kafka(config: &Config, broker: Option<&EmbeddedBroker>) -> Result<KafkaConfig> {
    if let Some(kafka) = &config.kafka {
        return Ok(kafka.clone());
    }
    let broker = broker.context("without [kafka] there is an embedded broker")?;
    let properties = [("bootstrap.servers".to_owned(), broker.bootstrap_servers().to_owned())];
    Ok(KafkaConfig { properties: properties.into() })
}

fn schedules(config: &Config) -> Result<BTreeMap<String, Vec<(BuildMode, Schedule)>>> {
    let mut schedules: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for view in config.views.values() {
        for (mode, expression) in [(BuildMode::Rebuild, &view.rebuild), (BuildMode::Refresh, &view.refresh)] {
            if let Some(expression) = expression {
                let schedule = Schedule::parse(expression, view.timezone)
                    .with_context(|| format!("the schedule of view `{}`", view.name))?;
                schedules.entry(view.name.clone()).or_default().push((mode, schedule));
            }
        }
    }
    Ok(schedules)
}

impl View {
    /// Opens the view's register, appends the configured definition unless it stands there, and follows it.
    async fn open(
        parts: &Parts<'_>,
        config: &ViewConfig,
        tables: &BTreeMap<String, DimensionTable>,
        stage: &mut Stage,
    ) -> Result<Self> {
        let name = &config.name;
        let (definition, _) = parts.definitions.configured(config, tables).map_err(|e| {
            anyhow!("view `{name}`, line {} of its SQL: {e}; `watershed check` shows the place", e.line)
        })?;
        let register = Register::<ViewState>::open(&parts.storage, VIEWS, name);
        let mut superseded = false;
        register
            .update(|state: &ViewState| {
                let known = state.definitions.contains_key(&definition.hash);
                superseded = known && state.configured.as_ref() != Some(&definition.hash);
                let event = ViewEvent::Defined { definition: Box::new(definition.clone()) };
                Ok::<_, Rejected>((!known).then_some(event))
            })
            .await
            .with_context(|| format!("record the definition of view `{name}`"))?;
        if superseded {
            warn!(
                view = %name,
                definition = %definition.hash,
                "the configured definition was superseded earlier and does not come back by itself: activate one of its generations"
            );
        }
        let mut records = register.watch(FOLLOW_INTERVAL).await.with_context(|| format!("follow view `{name}`"))?;
        let (sender, state) = watch::channel(Arc::new(state_of(records.borrow_and_update().as_deref())));
        let stop = stage.stop.clone();
        stage.tasks.push(task::spawn("follow view", async move {
            while let Some(Ok(())) = stop.run_until_cancelled(records.changed()).await {
                sender.send_replace(Arc::new(state_of(records.borrow_and_update().as_deref())));
            }
        }));
        Ok(Self { config: config.clone(), stream: definition.stream, register, state })
    }
}

fn state_of(record: Option<&watershed_shared::register::Record<ViewState>>) -> ViewState {
    record.map(|r| r.state.clone()).unwrap_or_default()
}

impl Stream {
    async fn start(
        parts: &Parts<'_>,
        config: &StreamConfig,
        views: &BTreeMap<String, View>,
        shutdown: &mut Shutdown,
    ) -> Result<Self> {
        let topic = parts.client.ensure_topic(config).await?;
        let register = Register::<StreamState>::open(&parts.storage, STREAMS, &config.name);
        let origins = see_partitions(&parts.client, config, &register).await?;
        let topic_id = topic.topic_id.as_deref();
        let master = MasterDataset::open_for_topic(&parts.storage, config, topic_id).await?;
        let stage = shutdown.stage();
        let (origins_sender, origins) = watch::channel(origins);
        let follow =
            follow_partitions(parts.client.clone(), config.clone(), register, origins_sender, stage.stop.clone());
        stage.tasks.push(task::spawn("follow partitions", follow));

        let seeds = Arc::new(Archived { master: master.clone(), origins: origins.clone() });
        let feed = StreamFeed::start(
            parts.client.clone(),
            config.clone(),
            seeds,
            FeedOptions::new(parts.config.speed.window_bytes),
            stage.stop.clone(),
        );

        let stage = shutdown.stage();
        let options = archiver::Options::from(&parts.config.archive);
        let source = Arc::new(FeedSource(feed.clone()));
        let (archiver, archive) = Archiver::new(options, master.clone(), source, origins.borrow().clone());
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
        let (_, feeds) = watch::channel(feed);
        let events = Arc::new(LogAndArchive::new(config.clone(), feeds, master.clone()));
        let options =
            speed::Options { commit_interval: parts.config.speed.commit_interval, ..speed::Options::default() };
        let worker = SpeedWorker::new(config.clone(), plans, origins, events, Arc::new(store), options);
        let delta: Arc<dyn DeltaService> = Arc::new(worker.handle());
        stage.tasks.push(task::spawn("speed worker", worker.run(stage.stop.clone())));
        Ok(Self { config: config.clone(), master, archive, delta })
    }
}

/// Records partitions that are seen for the first time, with the log's start of this moment. Answers all origins.
async fn see_partitions(
    client: &LogClient,
    config: &StreamConfig,
    register: &Register<StreamState>,
) -> Result<OffsetVector> {
    let topic = client.topic(&config.topic).await?;
    let lows: OffsetVector =
        client.watermarks(&config.topic).await?.into_iter().map(|(p, (low, _))| (p, low)).collect();
    let decided = register
        .update(|state: &StreamState| {
            let event = StreamEvent::Seen {
                topic: config.topic.clone(),
                topic_id: topic.topic_id.clone(),
                origins: lows.clone(),
            };
            let next = state.apply(&event)?;
            Ok::<_, Rejected>((next != *state).then_some(event))
        })
        .await
        .with_context(|| format!("record the origins of stream `{}`", config.name))?;
    let origins = decided.record().map(|r| r.state.origins.clone());
    origins.context("a stream whose topic has partitions has a record of them")
}

/// Looks for new partitions until `stop`.
async fn follow_partitions(
    client: LogClient,
    config: StreamConfig,
    register: Register<StreamState>,
    origins: watch::Sender<OffsetVector>,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(clock::sleep(PARTITIONS_INTERVAL)).await.is_some() {
        match see_partitions(&client, &config, &register).await {
            Ok(seen) => {
                origins.send_if_modified(|known| {
                    let more = *known != seen;
                    *known = seen;
                    more
                });
            }
            Err(error) => warn!(stream = %config.name, error = format!("{error:#}"), "cannot look for new partitions"),
        }
    }
}

/// Where decoding begins: behind what is archived, else at the recorded origin.
struct Archived {
    master: MasterDataset,
    origins: watch::Receiver<OffsetVector>,
}

#[async_trait]
impl Seeds for Archived {
    async fn resume(&self) -> Result<BTreeMap<PartitionId, Seed>, SeedsError> {
        let snapshot = self.master.snapshot().await?;
        let archived = snapshot.resume().await?;
        let origins = self.origins.borrow().clone();
        let mut seeds: BTreeMap<PartitionId, Seed> =
            origins.iter().map(|(p, o)| (p, Seed { archived_until: o, event_time_max: None })).collect();
        seeds.extend(archived);
        Ok(seeds)
    }
}

/// The archiver's batches come from the stream's shared feed.
#[derive(Debug)]
struct FeedSource(StreamFeed);

impl archiver::Source for FeedSource {
    fn open(&self, from: OffsetVector) -> Box<dyn archiver::Reader> {
        Box::new(FeedBatches(self.0.reader(from)))
    }
}

struct FeedBatches(log::FeedReader);

#[async_trait]
impl archiver::Reader for FeedBatches {
    async fn next(&mut self) -> log::Result<Arc<DecodedBatch>> {
        self.0.next().await
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
        while stop.run_until_cancelled(clock::sleep(PARTITIONS_INTERVAL)).await.is_some() {
            sender.send_replace(least());
        }
    }));
    receiver
}

/// What the speed layer is to keep of all views of `stream`, as their registers move on.
async fn follow_plans(
    stream: &str,
    views: &BTreeMap<String, View>,
    definitions: &Definitions,
    stage: &mut Stage,
) -> watch::Receiver<Arc<Vec<ViewPlan>>> {
    let of_stream = views.iter().filter(|(_, v)| v.stream == stream);
    let mut states: Vec<_> = of_stream.map(|(name, v)| (name.clone(), v.state.clone())).collect();
    let definitions = definitions.clone();
    let mut known = BTreeMap::new();
    for (name, state) in &mut states {
        let current = Arc::clone(&state.borrow_and_update());
        known.insert(name.clone(), plans_of(name, &current, &definitions).await);
    }
    let (sender, receiver) = watch::channel(Arc::new(known.values().flatten().cloned().collect::<Vec<_>>()));
    let stop = stage.stop.clone();
    stage.tasks.push(task::spawn("follow plans", async move {
        while !states.is_empty() {
            let changes = states.iter_mut().map(|(name, state)| {
                Box::pin(async move {
                    let gone = state.changed().await.is_err();
                    (name.clone(), Arc::clone(&state.borrow_and_update()), gone)
                })
            });
            let changed = stop.run_until_cancelled(futures::future::select_all(changes)).await;
            let Some(((name, state, gone), _, _)) = changed else { return };
            if gone {
                return;
            }
            let plans = plans_of(&name, &state, &definitions).await;
            known.insert(name, plans);
            sender.send_replace(Arc::new(known.values().flatten().cloned().collect()));
        }
    }));
    receiver
}

/// What the speed layer is to keep of `state`: every definition that answers, answered, or is being built.
async fn plans_of(name: &str, state: &ViewState, definitions: &Definitions) -> Vec<ViewPlan> {
    let mut plans = Vec::new();
    for hash in state.needed_definitions() {
        let Some(definition) = state.definitions.get(&hash) else { continue };
        let boundaries = state.boundaries(&hash);
        let from = boundaries.iter().cloned().reduce(|a, b| a.meet(&b)).unwrap_or_else(Cut::new);
        match definitions.get(definition).await {
            Ok(compiled) => {
                plans.push(ViewPlan { name: name.to_owned(), definition: hash, compiled, boundaries, from });
            }
            Err(error) => warn!(view = name, definition = %hash, %error, "a recorded definition cannot be kept up"),
        }
    }
    plans
}

/// Reads the dimension tables and copies them to the storage under their content hash.
async fn dimension_tables(parts: &Parts<'_>) -> Result<BTreeMap<String, DimensionTable>> {
    let mut read = BTreeMap::new();
    for table in parts.config.tables.values() {
        let content = tables::read(table).await?;
        tables::store(&parts.storage, &content).await?;
        read.insert(table.name.clone(), content);
    }
    Ok(read)
}

async fn start_builds(
    parts: &Parts<'_>,
    holder: String,
    streams: &BTreeMap<String, Stream>,
    views: &BTreeMap<String, View>,
    stage: &mut Stage,
) -> Result<LocalBuilds> {
    let history = History::open(parts.storage.clone()).await.context("read the history of builds")?;
    let targets = views.iter().map(|(name, view)| {
        let stream = &streams[&view.stream];
        BuildTarget {
            view: name.clone(),
            register: view.register.clone(),
            master: stream.master.clone(),
            delta: Some(Arc::clone(&stream.delta)),
            archive: stream.archive.clone(),
        }
    });
    let builder = Builder::new(BuilderOptions {
        storage: parts.storage.clone(),
        history,
        definitions: parts.definitions.clone(),
        settings: parts.config.batch.clone(),
        spill_dir: parts.config.data_dir.join("spill"),
        holder,
        targets: targets.collect(),
        shutdown: stage.stop.clone(),
    });
    builder.recover().await.context("look for interrupted builds")?;
    let schedules = schedules(parts.config)?;
    for (view, of_view) in &schedules {
        for (mode, schedule) in of_view {
            let scheduled = ScheduledBuild { view: view.clone(), mode: *mode, schedule: schedule.clone() };
            let run = scheduler::run(scheduled, builder.clone(), stage.stop.clone());
            stage.tasks.push(task::spawn("scheduler", run));
        }
    }
    let (draining, stop) = (builder.clone(), stage.stop.clone());
    stage.tasks.push(task::spawn("builds", async move {
        stop.cancelled().await;
        draining.drained().await;
    }));
    Ok(LocalBuilds { builder, schedules })
}

async fn start_serving(
    parts: &Parts<'_>,
    builds: LocalBuilds,
    tables: BTreeMap<String, DimensionTable>,
    streams: BTreeMap<String, Stream>,
    views: BTreeMap<String, View>,
    stage: &mut Stage,
) -> Result<SocketAddr> {
    let topics = streams.values().map(|s| (s.config.name.clone(), s.config.topic.clone())).collect();
    let ingest = LogIngest { producer: Producer::new(&parts.client)?, topics };
    let stream_inputs =
        streams.into_iter().map(|(name, s)| (name, StreamInput { config: s.config, delta: s.delta, master: s.master }));
    let view_inputs =
        views.into_iter().map(|(name, v)| (name, ViewInput { config: v.config, stream: v.stream, register: v.state }));
    let serving = Serving::new(ServingInput {
        storage: parts.storage.clone(),
        streams: stream_inputs.collect(),
        views: view_inputs.collect(),
        tables,
        definitions: Arc::new(RecordedDefinitions(parts.definitions.clone())),
        builds: Arc::new(builds),
        ingest: Arc::new(ingest),
        metrics: Vec::new(),
        settings: Settings::default(),
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

/// Definitions as the registers recorded them.
#[derive(Debug)]
struct RecordedDefinitions(Definitions);

#[async_trait]
impl watershed_serving_layer::Definitions for RecordedDefinitions {
    async fn compiled(&self, _view: &str, definition: &Definition) -> Result<Arc<CompiledView>, String> {
        self.0.get(definition).await.map_err(|e| e.to_string())
    }
}

/// Publishes to the log.
#[derive(Debug)]
struct LogIngest {
    producer: Producer,
    /// By stream.
    topics: BTreeMap<String, String>,
}

#[async_trait]
impl Ingest for LogIngest {
    async fn publish(&self, stream: &str, records: Vec<Bytes>) -> Result<Published, IngestError> {
        let refused = |reason: String| IngestError { stream: stream.to_owned(), reason };
        let topic = self.topics.get(stream).ok_or_else(|| refused("the stream is not configured".to_owned()))?;
        let records = records.into_iter().map(|value| ProduceRecord { value: Some(value), ..ProduceRecord::default() });
        let report = self.producer.produce(topic, records.collect()).await.map_err(|e| refused(e.to_string()))?;
        Ok(Published {
            accepted: report.delivered,
            next: report.partitions.iter().map(|(p, produced)| (*p, produced.next)).collect(),
            failed: report.errors.into_iter().map(|e| (e.index, e.message)).collect(),
        })
    }
}
