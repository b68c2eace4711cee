//! A stream, its views, its master dataset, generations and a delta, all advanced by hand.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::TimestampMicrosecondType;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use datafusion::datasource::MemTable;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionContext;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use watershed_serving_layer::{
    BuildEstimate, Builds, BuildsError, Definitions, Ingest, IngestError, KafkaAddress, LogStatus, Published,
    QuerySettings, Serving, ServingInput, Settings, Started, StreamInput, ViewInput,
};
use watershed_shared::archive::ArchiverState;
use watershed_shared::builds::{BuildState, BuildStatus, Trigger};
use watershed_shared::catalog::{Build, BuildMode, Definition, Generation, StreamState, ViewEvent, ViewState};
use watershed_shared::clock;
use watershed_shared::config::{Config, StreamConfig, ViewConfig};
use watershed_shared::decode::{Decoder, RunningMaximum};
use watershed_shared::delta::{DeltaRun, DeltaService, Maximum, PartitionStatus, SealError, StreamDelta, ViewDelta};
use watershed_shared::log::{ProduceError, ProduceErrorKind};
use watershed_shared::master::MasterDataset;
use watershed_shared::names::{BuildId, DefinitionHash, GenerationId, RunId};
use watershed_shared::offsets::{Coverage, Cut, Offset, OffsetRange, OffsetVector, PartitionId, Position, Side};
use watershed_shared::paths;
use watershed_shared::record::{DecodedBatch, RawBatch, RawRecord};
use watershed_shared::register::Register;
use watershed_shared::run::{RunMeta, RunOptions, write_event_errors, write_run};
use watershed_shared::storage::Storage;
use watershed_shared::view::{CompiledView, Compiler, Kind, pinned_config};

const CONFIG: &str = r#"
[stream.clicks]
partitions = 2
event_time = "at"
allowed_lateness = "10 minutes"
columns = "who VARCHAR, page VARCHAR, n BIGINT, price DOUBLE, cost DECIMAL(10, 2), at TIMESTAMP"

[view.per_who]
sql = "SELECT who, count(*) AS events, sum(n) AS total, avg(price) AS mean, approx_distinct(page) AS pages FROM clicks GROUP BY who"
refresh = "*/5 * * * *"

[view.per_hour]
sql = "SELECT date_bin(INTERVAL '1 hour', at) AS hour, who, count(*) AS events, max(price) AS high, sum(cost) AS cost FROM clicks GROUP BY 1, 2"

[view.totals]
sql = "SELECT count(*) AS events, sum(n) AS total, min(price) AS low FROM clicks"

[view.large]
sql = "SELECT who, n, at, upper(page) AS page FROM clicks WHERE n > 7"

[view.shares]
sql = "SELECT who, _partition, _offset, 100 / n AS share FROM clicks WHERE page <> '/p1'"

[view.rates]
sql = "SELECT who, sum(100 / n) AS rate FROM clicks GROUP BY who"

[view.recent]
sql = "SELECT date_bin(INTERVAL '1 hour', at) AS hour, count(*) AS events FROM clicks GROUP BY 1"
retain = "12 hours"
"#;

/// The views whose truth is their SQL over the events.
pub(crate) const PLAIN: [&str; 4] = ["per_who", "per_hour", "totals", "large"];

/// Where partitions begin.
pub(crate) const ORIGINS: [(i32, i64); 2] = [(0, 0), (1, 7)];

/// No wait of a test is longer; it is far above what a busy machine needs.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

pub(crate) struct World {
    pub(crate) serving: Serving,
    pub(crate) storage: Storage,
    pub(crate) config: Config,
    pub(crate) compiled: BTreeMap<String, Arc<CompiledView>>,
    pub(crate) registers: BTreeMap<String, watch::Sender<Arc<ViewState>>>,
    pub(crate) delta: Arc<TestDelta>,
    pub(crate) ingest: Arc<TestIngest>,
    master: MasterDataset,
    pub(crate) stream_register: Register<StreamState>,
    /// All events there will ever be, by partition, from its origin.
    log: BTreeMap<PartitionId, DecodedBatch>,
    end: OffsetVector,
    #[expect(dead_code, reason = "it is deleted with the world")]
    folder: tempfile::TempDir,
    stop: DropGuard,
}

impl World {
    /// With `count` events a partition in the log, none of them read yet.
    pub(crate) async fn new(seed: u64, count: i64) -> Self {
        Self::with(
            seed,
            count,
            Settings { query: QuerySettings { threads: 2, ..QuerySettings::default() }, ..Settings::default() },
        )
        .await
    }

    pub(crate) async fn with(seed: u64, count: i64, settings: Settings) -> Self {
        let config = Config::parse(CONFIG, Path::new("/tmp"), &|_: &str| None).expect("the configuration is right");
        let stream = config.streams["clicks"].clone();
        let log = events(&stream, seed, count);
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(&url::Url::from_directory_path(folder.path()).unwrap()).unwrap();
        let master = MasterDataset::open_or_create(&storage, &stream).await.unwrap();
        let compiler = Compiler::new(&config.streams, &BTreeMap::new()).unwrap();
        let (mut compiled, mut registers, mut views) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, view) in &config.views {
            let one = compiler.compile(view).unwrap();
            let state =
                ViewState::default().apply(&ViewEvent::Defined { definition: Box::new(definition(view, &one)) });
            let sender = watch::Sender::new(Arc::new(state.unwrap()));
            views.insert(
                name.clone(),
                ViewInput { config: view.clone(), stream: "clicks".into(), register: sender.subscribe() },
            );
            registers.insert(name.clone(), sender);
            compiled.insert(name.clone(), one);
        }
        let end: OffsetVector = log.iter().map(|(p, b)| (*p, b.range.end)).collect();
        let delta = Arc::new(TestDelta::new(&compiled, &end));
        let ingest = Arc::new(TestIngest::default());
        let builds = Arc::new(TestBuilds::default());
        let definitions = TestDefinitions(compiled.values().map(|c| (c.definition().clone(), Arc::clone(c))).collect());
        let stream_register = Register::<StreamState>::open(&storage, "streams", "clicks");
        let stream_state = follow(&stream_register).await;
        let streams = BTreeMap::from([(
            "clicks".to_owned(),
            StreamInput {
                config: stream,
                delta: Arc::clone(&delta) as _,
                master: master.clone(),
                register: stream_register.clone(),
                state: stream_state,
                archiver: watch::channel(ArchiverState::Healthy).1,
                archiving: None,
                archived_until: watch::channel(OffsetVector::new()).1,
                log: watch::channel(LogStatus::default()).1,
            },
        )]);
        let serving = Serving::new(ServingInput {
            storage: storage.clone(),
            streams,
            views,
            tables: BTreeMap::new(),
            definitions: Arc::new(definitions),
            builds,
            ingest: Arc::clone(&ingest) as _,
            kafka: KafkaAddress { bootstrap_servers: "kafka-1:9092,kafka-2:9092".to_owned(), embedded: false },
            metrics: Vec::new(),
            settings,
        })
        .unwrap();
        let stop = CancellationToken::new();
        let (run, token) = (serving.clone(), stop.clone());
        watershed_shared::task::spawn("serving", async move { run.run(token).await });
        let world = Self {
            serving,
            storage,
            config,
            compiled,
            registers,
            delta,
            ingest,
            master,
            stream_register,
            log,
            end,
            folder,
            stop: stop.drop_guard(),
        };
        world.settle().await;
        world
    }

    /// Until the front has seen what was sent last.
    pub(crate) async fn settle(&self) {
        let mut answers = self.serving.answers("clicks").unwrap();
        let deadline = clock::Instant::now() + PATIENCE;
        while clock::Instant::now() < deadline {
            let now = Arc::clone(&answers.borrow_and_update());
            let position: OffsetVector = OffsetVector::from(ORIGINS).join(&self.delta.position());
            let up = now.unanswerable.is_empty() && now.position == position && now.log_end == self.end;
            let registers = self.registers.iter().all(|(view, register)| {
                now.views.get(view).is_some_and(|v| v.generation_id() == register.borrow().generation)
            });
            // SUBTLE: the front may see a view lost and the stream at its end in one snapshot; the view comes later.
            let joined: Vec<String> =
                self.delta.views.lock().iter().filter(|(_, v)| v.joined).map(|(n, _)| n.clone()).collect();
            let there = joined.iter().all(|v| now.views.get(v).is_some_and(|v| v.position == position));
            if up && registers && there {
                return;
            }
            tokio::time::timeout(std::time::Duration::from_millis(20), answers.changed()).await.ok();
        }
        panic!("the front does not settle: {:?}", answers.borrow().unanswerable);
    }

    pub(crate) fn end(&self) -> &OffsetVector {
        &self.end
    }

    /// The events in `[from, until)`.
    pub(crate) fn events(&self, from: &OffsetVector, until: &OffsetVector) -> RecordBatch {
        let parts: Vec<RecordBatch> = self
            .log
            .iter()
            .map(|(partition, log)| {
                let start = from.get(*partition).unwrap_or(log.range.start).0 - log.range.start.0;
                let end = until.get(*partition).unwrap_or(log.range.start).0 - log.range.start.0;
                log.events.slice(usize::try_from(start).unwrap(), usize::try_from((end - start).max(0)).unwrap())
            })
            .collect();
        concat_batches(&parts[0].schema(), &parts).unwrap()
    }

    /// The speed layer reads on, to `until`.
    pub(crate) async fn advance(&self, until: &OffsetVector) {
        let from = self.delta.position();
        let mut coverage = Coverage::new();
        for (partition, end) in until.iter() {
            let start = from.get(partition).unwrap_or(OffsetVector::from(ORIGINS).get(partition).unwrap());
            coverage.add(partition, OffsetRange::new(start, end.max(start))).unwrap();
        }
        let events = self.events(&from, until);
        let mut runs = BTreeMap::new();
        for (view, compiled) in &self.compiled {
            runs.insert(view.clone(), delta_run(compiled, coverage.clone(), &events).await);
        }
        let position = from.join(until);
        *self.delta.partitions.lock() = self.statuses(&position);
        self.delta.publish(
            |views| {
                for (view, delta) in views.iter_mut().filter(|(_, delta)| delta.joined) {
                    delta.runs.push(Arc::clone(&runs[view]));
                    delta.position = position.clone();
                }
            },
            &self.end,
        );
    }

    /// What a worker that stands at `position` knows.
    fn statuses(&self, position: &Position) -> BTreeMap<PartitionId, PartitionStatus> {
        let status = |(partition, end): (PartitionId, Offset)| {
            let events = self.events(&OffsetVector::new(), &[(partition.0, end.0)].into());
            let times = events.column_by_name("at").expect("a column").as_primitive::<TimestampMicrosecondType>();
            let event_time_max = Maximum::Known(arrow::compute::max(times));
            (partition, PartitionStatus { event_time_max, ..PartitionStatus::default() })
        };
        position.iter().map(status).collect()
    }

    /// The speed layer merges two neighbouring runs of a view, unless a boundary lies between them.
    pub(crate) async fn merge(&self, view: &str, at: usize) {
        let boundaries = self.registers[view].borrow().boundaries(self.compiled[view].definition());
        let runs = self.delta.views.lock()[view].runs.clone();
        if at + 1 >= runs.len() {
            return;
        }
        let (a, b) = (&runs[at], &runs[at + 1]);
        let mut coverage = a.coverage.clone();
        for (partition, range) in b.coverage.iter() {
            coverage.add(partition, range).unwrap();
        }
        if boundaries.iter().any(|cut| coverage.side(&OffsetVector::from(ORIGINS).join(cut)) == Side::Straddles) {
            return;
        }
        let states = self.compiled[view].merge(&[a.states.clone(), b.states.clone()]).await.unwrap();
        let errors = a.errors.iter().chain(&b.errors).cloned().collect();
        let merged = Arc::new(DeltaRun { id: RunId::unique(), coverage, states, errors, memory_bytes: 0 });
        self.delta.publish(
            |views| {
                let delta = views.get_mut(view).unwrap();
                delta.runs.splice(at..at + 2, [merged]);
            },
            &self.end,
        );
    }

    /// The speed layer loses what it has of a view, and then replays from `cut` to where it was.
    pub(crate) fn lose(&self, view: &str, cut: &Cut) {
        self.delta.publish(
            |views| {
                let delta = views.get_mut(view).unwrap();
                delta.runs.clear();
                delta.from = cut.clone();
                delta.position = cut.clone();
                delta.joined = false;
            },
            &self.end,
        );
    }

    pub(crate) async fn replay(&self, view: &str, until: &Position) {
        let from = self.delta.views.lock()[view].position.clone();
        let mut coverage = Coverage::new();
        for (partition, end) in until.iter() {
            let start = from.get(partition).unwrap_or(OffsetVector::from(ORIGINS).get(partition).unwrap());
            coverage.add(partition, OffsetRange::new(start, end)).unwrap();
        }
        let run = delta_run(&self.compiled[view], coverage, &self.events(&from, until)).await;
        let joined = *until == self.delta.position();
        self.delta.publish(
            |views| {
                let delta = views.get_mut(view).unwrap();
                delta.runs.push(run);
                delta.position = until.clone();
                delta.joined = joined;
            },
            &self.end,
        );
    }

    /// The archiver reaches `until`.
    pub(crate) async fn archive(&self, until: &OffsetVector) {
        let snapshot = self.master.snapshot().await.unwrap();
        let mut batches = Vec::new();
        for (partition, log) in &self.log {
            let start = snapshot.archived_until().get(*partition).unwrap_or(log.range.start);
            let end = until.get(*partition).unwrap_or(start);
            if end > start {
                let (_, rest) = log.clone().split_at(start);
                batches.push(Arc::new(rest.split_at(end).0));
            }
        }
        self.master.append(&snapshot, &batches).await.unwrap();
    }

    /// A build: a rebuild, or a refresh of the newest generation. Returns the new generation.
    pub(crate) async fn build(&self, view: &str, cut: &Cut, mode: BuildMode) -> GenerationId {
        self.archive(&self.delta.position().join(cut)).await;
        let compiled = &self.compiled[view];
        let state = Arc::clone(&self.registers[view].borrow());
        let base = match mode {
            BuildMode::Refresh => state.newest_generation(compiled.definition()).cloned(),
            _ => None,
        };
        let build = Build {
            id: BuildId::unique(),
            mode,
            definition: compiled.definition().clone(),
            base: base.as_ref().map(|b| b.id),
            cut: cut.clone(),
            holder: "test".into(),
            claimed_at: clock::now(),
        };
        self.append(view, ViewEvent::Claimed { build: Box::new(build.clone()) });
        let from = base.as_ref().map(|b| b.cut.clone()).unwrap_or_default();
        let mut runs = base.as_ref().map(|b| b.runs.clone()).unwrap_or_default();
        if compiled.kind() == Kind::Aggregate || compiled.can_fail() {
            runs.push(self.write(view, &from, cut).await);
        }
        let generation = Generation {
            id: state.next_generation(),
            definition: compiled.definition().clone(),
            cut: cut.clone(),
            runs,
            build: build.id,
            mode,
            base: build.base,
            delta_version: 0,
            events: 0,
            losses: 0,
            published_at: clock::now(),
        };
        let id = generation.id;
        self.append(view, ViewEvent::Published { generation: Box::new(generation) });
        id
    }

    async fn write(&self, view: &str, from: &Cut, cut: &Cut) -> RunMeta {
        let compiled = &self.compiled[view];
        let states = compiled.states(&[self.events(from, cut)]).await.unwrap();
        let id = RunId::unique();
        let coverage: Coverage = cut
            .iter()
            .map(|(p, end)| {
                let start = from.get(p).unwrap_or(OffsetVector::from(ORIGINS).get(p).unwrap());
                (p, OffsetRange::new(start, end))
            })
            .collect();
        let path = paths::run(view, compiled.definition(), &id);
        // A row view's run has the events that fail, and no rows: those are in the master dataset.
        let batch = match compiled.kind() {
            Kind::Aggregate => states.states.clone(),
            Kind::Rows => states.states.slice(0, 0),
        };
        let stream = RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)]));
        let mut options = RunOptions::new(id.clone(), compiled.definition().clone(), coverage.clone());
        options.row_group_rows = 16;
        options.page_rows = 4;
        let file = write_run(&self.storage, &path, Box::pin(stream), compiled.key_count(), &options).await.unwrap();
        let errors_path = paths::run_errors(view, compiled.definition(), &id);
        let errors_file = match states.errors.is_empty() {
            true => None,
            false => {
                Some(write_event_errors(&self.storage, &errors_path, states.errors.clone(), &options).await.unwrap())
            }
        };
        RunMeta {
            id,
            file: path.to_string(),
            size_bytes: file.size_bytes,
            tail: Some(file.tail),
            rows: file.rows,
            coverage,
            errors: states.errors.len() as u64,
            errors_crc32: errors_file.map(|file| file.crc32),
            errors_file: errors_file.map(|_| errors_path.to_string()),
        }
    }

    /// Old generations leave the register and their files the storage, at once.
    pub(crate) async fn collect(&self, view: &str) {
        let state = Arc::clone(&self.registers[view].borrow());
        let needed = state.needed_generations();
        let old: Vec<_> = state.generations.iter().filter(|g| !needed.contains(&g.id)).cloned().collect();
        self.append(view, ViewEvent::Retired { generations: old.iter().map(|g| g.id).collect() });
        let state = Arc::clone(&self.registers[view].borrow());
        let kept: Vec<_> = state.generations.iter().flat_map(|g| &g.runs).map(|r| &r.id).collect();
        for run in old.iter().flat_map(|g| &g.runs).filter(|r| !kept.contains(&&r.id)) {
            self.storage.delete(&run.file.as_str().into()).await.unwrap();
        }
        // And the speed layer drops what lies below all boundaries.
        let boundaries = state.boundaries(self.compiled[view].definition());
        let lowest =
            boundaries.iter().fold(None::<Cut>, |low, cut| Some(low.map_or_else(|| cut.clone(), |l| l.meet(cut))));
        let lowest = lowest.unwrap_or_default();
        self.delta.publish(
            |views| {
                let delta = views.get_mut(view).unwrap();
                let full = OffsetVector::from(ORIGINS).join(&lowest);
                delta.runs.retain(|r| r.coverage.side(&full) != Side::Below || r.coverage.is_empty());
                delta.from = lowest.clone();
            },
            &self.end,
        );
    }

    fn append(&self, view: &str, event: ViewEvent) {
        self.registers[view].send_modify(|state| *state = Arc::new(state.apply(&event).unwrap()));
    }

    /// The view's SQL over exactly the events below `position`.
    pub(crate) async fn truth(&self, view: &str, position: &Position) -> Vec<Value> {
        let events = self.events(&OffsetVector::new(), position);
        rows_of(&self.config.views[view].sql, &events).await
    }

    /// The fronts end.
    pub(crate) fn stop(self) -> Serving {
        drop(self.stop);
        self.serving
    }

    /// GET, as JSON.
    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.request("GET", path, "").await
    }

    pub(crate) async fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let routes = watershed_serving_layer::routes(self.serving.clone());
        let response = warp::test::request().method(method).path(path).body(body).reply(&routes).await;
        let text = String::from_utf8_lossy(response.body());
        let value = serde_json::from_slice(response.body()).unwrap_or_else(|_| Value::String(text.into_owned()));
        (response.status().as_u16(), value)
    }
}

/// Any SQL over `clicks`, as JSON rows.
pub(crate) async fn rows_of(sql: &str, events: &RecordBatch) -> Vec<Value> {
    let context = SessionContext::new_with_config(pinned_config());
    let table = MemTable::try_new(events.schema(), vec![vec![events.clone()]]).unwrap();
    context.register_table("clicks", Arc::new(table)).unwrap();
    let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::JsonArray>(Vec::new());
    for batch in &batches {
        // Decimals are strings in the contract.
        let schema = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns()).map(|(f, c)| {
            let decimal = matches!(f.data_type(), arrow::datatypes::DataType::Decimal128(..));
            let column = if decimal {
                arrow::compute::cast(c, &arrow::datatypes::DataType::Utf8).unwrap()
            } else {
                Arc::clone(c)
            };
            (f.name().clone(), column, true)
        });
        writer.write(&RecordBatch::try_from_iter_with_nullable(columns.collect::<Vec<_>>()).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    let bytes = writer.into_inner();
    if bytes.is_empty() { Vec::new() } else { serde_json::from_slice(&bytes).unwrap() }
}

/// `position` of an answer's meta.
pub(crate) fn position_of(answer: &Value, view: &str) -> Position {
    let partitions = answer["meta"]["views"][view]["partitions"].as_object().expect("an answer has partitions");
    let of = |(p, m): (&String, &Value)| (PartitionId(p.parse().unwrap()), Offset(m["position"].as_i64().unwrap()));
    partitions.iter().map(of).collect()
}

/// Compares rows in any order, floats with the tolerance of the contract.
pub(crate) fn assert_same(found: &[Value], expected: &[Value], about: &str) {
    let rounded = |rows: &[Value]| {
        let mut rows: Vec<String> = rows.iter().map(|r| round(r).to_string()).collect();
        rows.sort();
        rows
    };
    assert_eq!(rounded(found), rounded(expected), "{about}");
}

fn round(value: &Value) -> Value {
    match value {
        Value::Object(o) => o.iter().map(|(k, v)| (k.clone(), round(v))).collect(),
        Value::Number(n) if n.is_f64() => json!(format!("{:.6}", n.as_f64().unwrap())),
        other => other.clone(),
    }
}

fn definition(view: &ViewConfig, compiled: &CompiledView) -> Definition {
    Definition {
        hash: compiled.definition().clone(),
        stream: compiled.stream().to_owned(),
        sql: view.sql.clone(),
        late: view.late,
        retain: view.retain,
        materialize: view.materialize,
        tables: BTreeMap::new(),
        appended_at: clock::now(),
    }
}

async fn delta_run(compiled: &CompiledView, coverage: Coverage, events: &RecordBatch) -> Arc<DeltaRun> {
    let states = compiled.states(std::slice::from_ref(events)).await.unwrap();
    Arc::new(DeltaRun { id: RunId::unique(), coverage, states: states.states, errors: states.errors, memory_bytes: 0 })
}

fn events(stream: &StreamConfig, seed: u64, count: i64) -> BTreeMap<PartitionId, DecodedBatch> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut log = BTreeMap::new();
    for (partition, origin) in ORIGINS {
        let mut records = Vec::new();
        for i in 0..count {
            let minutes = i * 2 + random.random_range(-30..30);
            let at = DateTime::from_timestamp(1_728_216_000 + minutes * 60, 0).unwrap();
            let who = random.random_range(0..20);
            let value = json!({
                "who": if who == 0 { Value::Null } else { json!(format!("w{who:02}")) },
                "page": format!("/p{}", random.random_range(0..50)),
                "n": random.random_range(0..12),
                "price": random.random_range(0..1000) as f64 / 8.0,
                "cost": format!("{}.25", random.random_range(0..100)),
                "at": at.to_rfc3339(),
            });
            records.push(RawRecord {
                offset: Offset(origin + i),
                timestamp: Some(at.timestamp_micros()),
                key: None,
                value: Some(value.to_string().into()),
                headers: Vec::new(),
            });
        }
        let range = OffsetRange::new(Offset(origin), Offset(origin + count));
        let raw = RawBatch { partition: PartitionId(partition), range, records, leader_epoch: None };
        let mut max = RunningMaximum { event_time_max: None };
        let decoded = Decoder::new(stream).unwrap().decode(&raw, &mut max);
        assert!(decoded.dead_letters.is_empty(), "{:?}", decoded.dead_letters);
        log.insert(PartitionId(partition), decoded);
    }
    log
}

/// A delta service whose snapshots a test makes.
#[derive(Debug)]
pub(crate) struct TestDelta {
    pub(crate) views: Mutex<BTreeMap<String, ViewDelta>>,
    pub(crate) partitions: Mutex<BTreeMap<PartitionId, PartitionStatus>>,
    sender: watch::Sender<Arc<StreamDelta>>,
}

impl TestDelta {
    fn new(compiled: &BTreeMap<String, Arc<CompiledView>>, log_end: &OffsetVector) -> Self {
        let view = |c: &Arc<CompiledView>| ViewDelta {
            definition: c.definition().clone(),
            from: Cut::new(),
            position: Position::new(),
            runs: Vec::new(),
            joined: true,
            unowned: std::collections::BTreeSet::new(),
        };
        let snapshot = StreamDelta {
            stream: "clicks".into(),
            position: Position::new(),
            origins: ORIGINS.into(),
            log_end: log_end.clone(),
            oldest_pending: None,
            partitions: BTreeMap::new(),
            views: BTreeMap::new(),
            reasons: Vec::new(),
            losses: 0,
        };
        Self {
            views: Mutex::new(compiled.iter().map(|(n, c)| (n.clone(), view(c))).collect()),
            partitions: Mutex::default(),
            sender: watch::Sender::new(Arc::new(snapshot)),
        }
    }

    pub(crate) fn position(&self) -> Position {
        self.sender.borrow().position.clone()
    }

    pub(crate) fn publish(&self, change: impl FnOnce(&mut BTreeMap<String, ViewDelta>), log_end: &OffsetVector) {
        let mut views = self.views.lock();
        change(&mut views);
        let joined = views.values().filter(|v| v.joined).fold(Position::new(), |p, v| p.join(&v.position));
        let shown = views.iter().map(|(n, v)| (n.clone(), [(v.definition.clone(), Arc::new(v.clone()))].into()));
        let shown = shown.collect();
        self.sender.send_modify(|now| {
            *now = Arc::new(StreamDelta {
                position: now.position.join(&joined),
                log_end: log_end.clone(),
                views: shown,
                partitions: self.partitions.lock().clone(),
                ..now.as_ref().clone()
            });
        });
    }
}

#[async_trait]
impl DeltaService for TestDelta {
    fn watch(&self) -> watch::Receiver<Arc<StreamDelta>> {
        self.sender.subscribe()
    }

    async fn seal(&self) -> Result<Cut, SealError> {
        Ok(self.position())
    }
}

#[derive(Debug)]
struct TestDefinitions(BTreeMap<DefinitionHash, Arc<CompiledView>>);

#[async_trait]
impl Definitions for TestDefinitions {
    async fn compiled(&self, _: &str, definition: &Definition) -> Result<Arc<CompiledView>, String> {
        self.0.get(&definition.hash).cloned().ok_or_else(|| "not here".to_owned())
    }
}

/// Below what is handed on, as a topic's may be.
pub(crate) const TOPIC_LIMIT: usize = 900;

/// A log that keeps what it is given, in one partition whose records may have [`TOPIC_LIMIT`] bytes.
#[derive(Debug, Default)]
pub(crate) struct TestIngest(pub(crate) Mutex<Vec<bytes::Bytes>>);

#[async_trait]
impl Ingest for TestIngest {
    async fn publish(&self, _: &str, records: Vec<bytes::Bytes>) -> Result<Published, IngestError> {
        let mut log = self.0.lock();
        let mut published = Published::default();
        for (index, record) in records.into_iter().enumerate() {
            if record.len() > TOPIC_LIMIT {
                let (kind, message) = (ProduceErrorKind::TooLarge, format!("{} bytes", record.len()));
                published.failed.push(ProduceError { index, kind, message });
                continue;
            }
            log.push(record);
            published.accepted += 1;
            published.next = [(0, log.len() as i64)].into();
        }
        Ok(published)
    }

    fn max_record_bytes(&self) -> usize {
        1_000
    }
}

/// Builds that run until they are cancelled.
#[derive(Debug, Default)]
pub(crate) struct TestBuilds(Mutex<Vec<BuildStatus>>);

#[async_trait]
impl Builds for TestBuilds {
    async fn start(
        &self,
        view: &str,
        mode: BuildMode,
        trigger: Trigger,
        dry_run: bool,
    ) -> Result<Started, BuildsError> {
        let mut all = self.0.lock();
        if let Some(running) = all.iter().find(|b| b.view == view && !b.state.is_final()) {
            return Err(BuildsError::AlreadyRunning { view: view.into(), id: running.id.clone() });
        }
        if dry_run {
            let cut = Cut::new();
            return Ok(Started::Estimate(BuildEstimate {
                view: view.into(),
                mode,
                definition: None,
                base: None,
                cut,
                events: 5,
            }));
        }
        let build = BuildStatus::new(BuildId::unique(), view, mode, trigger, "test");
        all.push(build.clone());
        Ok(Started::Build(build.id))
    }

    async fn list(&self, view: Option<&str>, state: Option<BuildState>) -> Result<Vec<BuildStatus>, BuildsError> {
        let all = self.0.lock();
        let fits = |b: &&BuildStatus| view.is_none_or(|v| b.view == v) && state.is_none_or(|s| b.state == s);
        Ok(all.iter().rev().filter(fits).cloned().collect())
    }

    async fn get(&self, id: &BuildId, _: Option<std::time::Duration>) -> Result<BuildStatus, BuildsError> {
        self.0.lock().iter().find(|b| b.id == *id).cloned().ok_or_else(|| BuildsError::UnknownBuild(id.clone()))
    }

    async fn cancel(&self, id: &BuildId) -> Result<BuildStatus, BuildsError> {
        let mut all = self.0.lock();
        let build = all.iter_mut().find(|b| b.id == *id).ok_or_else(|| BuildsError::UnknownBuild(id.clone()))?;
        if build.state.is_final() {
            return Err(BuildsError::Finished { id: id.clone(), state: build.state });
        }
        build.state = BuildState::Cancelled;
        Ok(build.clone())
    }

    async fn activate(&self, view: &str, _: GenerationId) -> Result<BuildId, BuildsError> {
        match self.start(view, BuildMode::Activate, Trigger::Manual, false).await? {
            Started::Build(id) => Ok(id),
            Started::Estimate(_) => unreachable!("it was no dry run"),
        }
    }

    async fn pause(&self, _: &str, _: bool) -> Result<(), BuildsError> {
        Ok(())
    }

    async fn next_times(&self, _: &str) -> Result<Vec<(BuildMode, DateTime<Utc>)>, BuildsError> {
        Ok(vec![(BuildMode::Refresh, DateTime::from_timestamp(1_728_216_000, 0).unwrap())])
    }
}

/// The state of the head of `register`, as the platform follows it.
async fn follow(register: &Register<StreamState>) -> watch::Receiver<Arc<StreamState>> {
    let mut records = register.watch(std::time::Duration::from_millis(20)).await.unwrap();
    let sender = watch::Sender::new(Arc::default());
    let receiver = sender.subscribe();
    watershed_shared::task::spawn("test register", async move {
        while records.changed().await.is_ok() {
            let head = records.borrow_and_update().clone();
            sender.send_replace(Arc::new(head.map(|record| record.state.clone()).unwrap_or_default()));
        }
    });
    receiver
}
