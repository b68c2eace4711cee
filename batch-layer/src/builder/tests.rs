mod ends;

use std::path::Path;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int32Type;
use async_trait::async_trait;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use watershed_shared::catalog::{Build, Request};
use watershed_shared::config::Config;
use watershed_shared::decode::{Decoder, RunningMaximum};
use watershed_shared::delta::{SealError, StreamDelta};
use watershed_shared::log;
use watershed_shared::offsets::{Offset, OffsetRange, PartitionId};
use watershed_shared::record::{DecodedBatch, RawBatch, RawRecord};
use watershed_shared::register::Record;

use super::*;
use crate::archiver::{Archiver, Losses, LossesError, Options, Reader, Source};
use crate::history::{read_status, write_status};
use crate::requests::{Requests, end_build};

const CONFIG: &str = r#"
[batch]
archive_wait = "5 seconds"
[stream.numbers]
partitions = 2
format = "json"
columns = "n INT"
[view.sums]
sql = "SELECT n % 3 AS k, count(*) AS c, sum(n) AS s FROM numbers GROUP BY 1"
"#;

/// A worker that has sealed at these offsets.
#[derive(Debug)]
struct Sealed(watch::Sender<Arc<StreamDelta>>);

#[async_trait]
impl DeltaService for Sealed {
    fn watch(&self) -> watch::Receiver<Arc<StreamDelta>> {
        self.0.subscribe()
    }

    async fn seal(&self) -> Result<Cut, SealError> {
        Ok(self.0.borrow().position.clone())
    }
}

/// A log from which nothing comes any more.
#[derive(Debug)]
struct Silent;

impl Source for Silent {
    fn open(&self, _: OffsetVector) -> Box<dyn Reader> {
        Box::new(Self)
    }
}

#[async_trait]
impl Reader for Silent {
    async fn next(&mut self) -> log::Result<Arc<DecodedBatch>> {
        std::future::pending().await
    }
}

#[async_trait]
impl Losses for Silent {
    async fn record(&self, partition: PartitionId, _: Offset, _: Offset) -> Result<(), LossesError> {
        Err(format!("nothing was lost of {partition}").into())
    }

    fn passed(&self) {}
}

/// A view over archived events, and an archiver that has nothing more to do.
struct World {
    folder: tempfile::TempDir,
    storage: Storage,
    config: Config,
    definitions: Definitions,
    register: Register<ViewState>,
    target: BuildTarget,
    position: OffsetVector,
    shutdown: CancellationToken,
}

impl World {
    async fn new() -> Self {
        Self::on(Storage::memory()).await
    }

    /// Partition 0 begins at 30 and holds records until 50; partition 1 has none left, and would go on at 9.
    async fn on(storage: Storage) -> Self {
        let config = Config::parse(CONFIG, Path::new("/tmp"), &|_: &str| None).expect("the configuration is right");
        let stream = config.streams["numbers"].clone();
        let master = MasterDataset::open_or_create(&storage, &stream).await.unwrap();
        let batch = records(&stream, 30..50);
        let snapshot = master.snapshot().await.unwrap();
        master.append(&snapshot, &[Arc::new(batch)]).await.unwrap();

        let definitions = Definitions::new(storage.clone(), config.streams.clone());
        let (definition, _) = definitions.configured(&config.views["sums"], &BTreeMap::new()).unwrap();
        let register = Register::<ViewState>::open(&storage, "views", "sums");
        register.append(0, ViewEvent::Defined { definition: Box::new(definition) }).await.unwrap();

        let origins: OffsetVector = [(0, 30), (1, 9)].into();
        let position: OffsetVector = [(0, 50), (1, 9)].into();
        let delta = StreamDelta {
            stream: "numbers".to_owned(),
            position: position.clone(),
            origins: origins.clone(),
            log_end: position.clone(),
            oldest_pending: None,
            partitions: BTreeMap::new(),
            views: BTreeMap::new(),
            reasons: vec![],
            losses: 0,
        };
        let options = Options {
            commit_interval: Duration::from_millis(20),
            target_file_size_bytes: 1 << 20,
            first_backoff: Duration::from_millis(1),
            max_backoff: Duration::from_millis(10),
        };
        let (archiver, archive) =
            Archiver::new(options, master.clone(), Arc::new(Silent), Arc::new(Silent), origins.clone());
        let shutdown = CancellationToken::new();
        drop(task::spawn("test archiver", archiver.run(shutdown.clone())));
        let target = BuildTarget {
            view: "sums".to_owned(),
            register: register.clone(),
            stream: Register::open(&storage, "streams", "numbers"),
            master,
            delta: Some(Arc::new(Sealed(watch::Sender::new(Arc::new(delta))))),
            archive,
            origins: watch::channel(origins).1,
        };
        let folder = tempfile::tempdir().unwrap();
        Self { folder, storage, config, definitions, register, target, position, shutdown }
    }

    /// A process that builds.
    async fn builder(&self, holder: &str) -> Builder {
        Builder::new(BuilderOptions {
            storage: self.storage.clone(),
            history: History::open(self.storage.clone()).await.unwrap(),
            definitions: self.definitions.clone(),
            settings: self.config.batch.clone(),
            spill_dir: self.folder.path().join("spill"),
            holder: holder.to_owned(),
            targets: vec![self.target.clone()],
            shutdown: self.shutdown.clone(),
        })
    }

    /// Lets `builder` do what the register asks for.
    async fn follow(&self, builder: &Builder, take_over: Duration) {
        let state = |head: Option<Arc<Record<ViewState>>>| Arc::new(head.map(|r| r.state.clone()).unwrap_or_default());
        let mut records = self.register.watch(Duration::from_millis(5)).await.unwrap();
        let (sender, states) = watch::channel(state(records.borrow_and_update().clone()));
        drop(task::spawn("test register", async move {
            while records.changed().await.is_ok() {
                sender.send_replace(state(records.borrow_and_update().clone()));
            }
        }));
        let requests = Requests::new(builder.clone(), self.target.clone(), states).with_take_over(take_over);
        drop(task::spawn("test requests", requests.run(self.shutdown.clone())));
    }

    async fn until(&self, holds: impl Fn(&ViewState) -> bool) -> ViewState {
        let start = clock::Instant::now();
        loop {
            let state = self.register.state().await.unwrap();
            if holds(&state) {
                return state;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{state:?}");
            clock::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_partition_that_stands_at_its_origin_nothing_need_be_archived() {
    let world = World::new().await;
    let builder = world.builder("test").await;
    for mode in [BuildMode::Rebuild, BuildMode::Refresh, BuildMode::Rebuild] {
        let request =
            BuildRequest { view: "sums".to_owned(), mode, base: None, trigger: Trigger::Manual, requested: None };
        let plan = builder.dry_run(&request).await.unwrap();
        assert_eq!(plan.offsets_to_read, if mode == BuildMode::Refresh { 0 } else { 20 });
        let id = builder.start(request).await.unwrap().id;
        let mut status = builder.history().watch(&id).unwrap();
        let ended = status.wait_for(|s| s.state.is_final()).await.unwrap().clone();
        assert_eq!(ended.state, BuildState::Succeeded, "{mode:?}: {:?}", ended.error);
        builder.drained().await;
    }
    let state = world.register.state().await.unwrap();
    let generation = state.active_generation().unwrap();
    assert_eq!(generation.cut, world.position);
    assert_eq!(generation.events, 20);
    let coverage = generation.runs[0].coverage.clone();
    assert_eq!(coverage.iter().collect::<Vec<_>>(), [(PartitionId(0), OffsetRange::new(Offset(30), Offset(50)))]);
    world.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_two_processes_are_asked_for_is_run_by_one() {
    let world = World::new().await;
    let builders = [world.builder("a").await, world.builder("b").await];
    for builder in &builders {
        world.follow(builder, Duration::from_secs(600)).await;
    }
    for number in 1..=5 {
        let id = BuildId::new(format!("build-{number}"));
        let (mode, requested_at) = (BuildMode::Rebuild, clock::now());
        let request =
            Request { id: id.clone(), mode, base: None, requested_at, trigger: Trigger::Manual, holder: None };
        let event = ViewEvent::Requested { request };
        world.register.update(|_: &ViewState| Ok::<_, Rejected>(Some(event.clone()))).await.unwrap();
        let state = world.until(|state| !state.is_open(&id)).await;
        let published: Vec<_> = state.generations.iter().map(|g| g.build.to_string()).collect();
        assert_eq!(published.last(), Some(&id.to_string()), "{published:?}");
        assert_eq!(state.last_generation, GenerationId(number), "each is published once");
    }
    world.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_this_process_took_on_and_does_not_run_is_run() {
    let world = World::new().await;
    let id = BuildId::new("stranded");
    let (mode, requested_at) = (BuildMode::Rebuild, clock::now());
    let request = Request { id: id.clone(), mode, base: None, requested_at, trigger: Trigger::Manual, holder: None };
    let taken = ViewEvent::Taken { build: id.clone(), holder: "a".to_owned() };
    for event in [ViewEvent::Requested { request }, taken] {
        world.register.update(|_: &ViewState| Ok::<_, Rejected>(Some(event.clone()))).await.unwrap();
    }
    world.follow(&world.builder("a").await, Duration::from_secs(600)).await;
    let state = world.until(|state| !state.is_open(&id)).await;
    assert_eq!(state.generations.last().map(|g| &g.build), Some(&id));
    world.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_another_process_ends_is_not_published() {
    let mut world = World::new().await;
    // What lies below this cut is never archived: the build waits.
    let delta = world.target.delta.take().expect("a delta");
    let ahead = StreamDelta { position: [(0, 60), (1, 9)].into(), ..StreamDelta::clone(&delta.watch().borrow()) };
    world.target.delta = Some(Arc::new(Sealed(watch::Sender::new(Arc::new(ahead)))));
    let builder = world.builder("a").await;
    world.follow(&builder, Duration::from_secs(600)).await;
    let request = BuildRequest {
        view: "sums".to_owned(),
        mode: BuildMode::Rebuild,
        base: None,
        trigger: Trigger::Manual,
        requested: None,
    };
    let id = builder.start(request).await.unwrap().id;
    world.until(|state| state.builds.values().any(|b| b.id == id)).await;
    let ended = end_build(&world.target.register, &id, BuildOutcome::Cancelled).await.unwrap();
    assert_eq!(ended, EndedBuild::Ended);
    let mut status = builder.history().watch(&id).unwrap();
    let ended = status.wait_for(|s| s.state.is_final()).await.unwrap().clone();
    assert_eq!((ended.state, ended.error), (BuildState::Cancelled, None));
    assert_eq!(world.register.state().await.unwrap().last_generation, GenerationId(0));
    world.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_build_of_a_process_that_is_gone_is_ended_by_another() {
    let world = World::new().await;
    let id = BuildId::new("abandoned");
    let definition = world.register.state().await.unwrap().configured.unwrap();
    let build = Build {
        id: id.clone(),
        mode: BuildMode::Rebuild,
        definition,
        base: None,
        cut: world.position.clone(),
        holder: "gone".to_owned(),
        claimed_at: clock::now(),
    };
    let claimed = ViewEvent::Claimed { build: Box::new(build) };
    world.register.update(|_: &ViewState| Ok::<_, Rejected>(Some(claimed.clone()))).await.unwrap();
    let status = BuildStatus::new(id.clone(), "sums", BuildMode::Rebuild, Trigger::Manual, "gone");
    write_status(&world.storage, &status).await.unwrap();
    let builder = world.builder("a").await;
    world.follow(&builder, Duration::from_millis(100)).await;
    world.until(|state| !state.is_open(&id)).await;
    let start = clock::Instant::now();
    loop {
        let status = read_status(&world.storage, &id).await.unwrap().unwrap();
        if status.state.is_final() {
            assert_eq!(status.state, BuildState::Interrupted);
            assert!(status.error.unwrap().contains("process gone, which ran it, has shown no sign of life"));
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60));
        clock::sleep(Duration::from_millis(5)).await;
    }
    world.shutdown.cancel();
}

/// A rebuild over 100,000 groups with this much memory, once it has ended.
async fn rebuilt_with_memory(bytes: usize) -> (World, BuildStatus) {
    let mut world = World::new().await;
    world.config.batch.memory_limit_bytes = bytes;
    let events = 50..100_030_i64;
    let view = world.config.views.get_mut("sums").unwrap();
    view.sql = "SELECT n AS k, count(*) AS c, min(n) AS lo, array_agg(n) AS ns FROM numbers GROUP BY 1".to_owned();
    let (definition, _) = world.definitions.configured(&world.config.views["sums"], &BTreeMap::new()).unwrap();
    world.register.append(1, ViewEvent::Defined { definition: Box::new(definition) }).await.unwrap();
    let batch = records(&world.config.streams["numbers"], events.clone());
    let snapshot = world.target.master.snapshot().await.unwrap();
    world.target.master.append(&snapshot, &[Arc::new(batch)]).await.unwrap();
    let delta = world.target.delta.take().expect("a delta");
    let position: OffsetVector = [(0, events.end), (1, 9)].into();
    let ahead = StreamDelta { position, ..StreamDelta::clone(&delta.watch().borrow()) };
    world.target.delta = Some(Arc::new(Sealed(watch::Sender::new(Arc::new(ahead)))));

    let builder = world.builder("test").await;
    let (mode, trigger) = (BuildMode::Rebuild, Trigger::Manual);
    let request = BuildRequest { view: "sums".to_owned(), mode, base: None, trigger, requested: None };
    let id = builder.start(request).await.unwrap().id;
    let mut status = builder.history().watch(&id).unwrap();
    let ended = status.wait_for(|s| s.state.is_final()).await.unwrap().clone();
    world.shutdown.cancel();
    (world, ended)
}

/// At the least memory that the configuration takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_needs_more_memory_than_it_has_spills() {
    let (world, ended) = rebuilt_with_memory(16 << 20).await;
    assert_eq!(ended.state, BuildState::Succeeded, "{:?}", ended.error);
    assert!(ended.progress.spilled_bytes > 0, "it had memory enough: {:?}", ended.progress);
    let state = world.register.state().await.unwrap();
    let run = &state.active_generation().unwrap().runs[0];
    let bytes = world.storage.get(&object_store::path::Path::from(run.file.as_str())).await.unwrap().unwrap();
    let read = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
    let keys = read.flat_map(|batch| batch.unwrap().column(0).as_primitive::<Int32Type>().values().to_vec());
    let keys: Vec<i32> = keys.collect();
    assert!(keys.iter().copied().eq(30..100_030), "each key once, in order: {} of them", keys.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_spilling_does_not_help_says_which_setting_would() {
    let (_world, ended) = rebuilt_with_memory(64 << 10).await;
    assert_eq!(ended.state, BuildState::Failed);
    let error = ended.error.unwrap();
    assert!(error.contains("raise [batch] memory_limit"), "{error}");
    assert!(!error.contains("datafusion"), "{error}");
}

fn records(stream: &watershed_shared::config::StreamConfig, offsets: std::ops::Range<i64>) -> DecodedBatch {
    let record = |offset| RawRecord {
        offset: Offset(offset),
        timestamp: Some(offset),
        key: None,
        value: Some(format!("{{\"n\":{offset}}}").into()),
        headers: vec![],
    };
    let range = OffsetRange::new(Offset(offsets.start), Offset(offsets.end));
    let raw = RawBatch { partition: PartitionId(0), range, records: offsets.map(record).collect(), leader_epoch: None };
    Decoder::new(stream).unwrap().decode(&raw, &mut RunningMaximum::default())
}
