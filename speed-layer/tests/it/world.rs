//! A stream in memory, views that are simple enough to recount by hand, and a worker on top of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray, new_null_array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use async_trait::async_trait;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use watershed_shared::clock;
use watershed_shared::config::{Format, StreamConfig};
use watershed_shared::delta::{DeltaAnswer, DeltaRun, DeltaService, Maximum, StreamDelta};
use watershed_shared::names::DefinitionHash;
use watershed_shared::offsets::{Cut, Offset, OffsetRange, OffsetVector, PartitionId};
use watershed_shared::record::{DecodedBatch, event_schema};
use watershed_shared::run::EventError;
use watershed_speed_layer::{
    DeltaStore, EventReader, EventSource, Options, SourceError, SpeedHandle, SpeedWorker, StateMaker, StatesError,
    ViewPlan,
};

/// No wait of a test is longer; it is far above what a busy machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Groups with their counts and sums.
pub(crate) type Groups = BTreeMap<i64, (i64, i64)>;

pub(crate) fn user_schema() -> Schema {
    Schema::new(vec![Field::new("key", DataType::Int64, false), Field::new("value", DataType::Int64, false)])
}

pub(crate) fn config() -> StreamConfig {
    StreamConfig {
        name: "s".to_owned(),
        topic: "s".to_owned(),
        partitions: 1,
        replication: 1,
        shards: 1,
        format: Format::Json,
        event_time: None,
        allowed_lateness: None,
        max_ahead: Duration::from_secs(1),
        columns: Arc::new(user_schema()),
        json_columns: vec![],
        accept_compacted: false,
        epoch_units: BTreeMap::new(),
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) offset: i64,
    pub(crate) key: i64,
    pub(crate) value: i64,
}

/// A log with holes, read in random batches, with redeliveries and failures.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    events: Arc<Mutex<BTreeMap<PartitionId, Vec<Event>>>>,
    end: watch::Sender<OffsetVector>,
    seeds: Arc<Mutex<StdRng>>,
    /// Readers redeliver and fail.
    pub(crate) hostile: Arc<AtomicBool>,
    /// In front of each position, as the master dataset says; `None`: it does not answer.
    pub(crate) maximum: watch::Sender<Option<Maximum>>,
}

impl Log {
    pub(crate) fn new(seed: u64, origins: &OffsetVector) -> Self {
        Self {
            events: Arc::default(),
            end: watch::Sender::new(origins.clone()),
            seeds: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))),
            hostile: Arc::default(),
            maximum: watch::Sender::new(Some(Maximum::Known(None))),
        }
    }

    /// Appends `count` events to `partition`; some offsets stay without.
    pub(crate) fn append(&self, partition: PartitionId, count: usize, random: &mut StdRng) {
        let mut end = self.end();
        let mut next = end.get(partition).unwrap().0;
        {
            let mut events = self.events.lock();
            let events = events.entry(partition).or_default();
            for _ in 0..count {
                next += i64::from(random.random_ratio(1, 10)) * 3;
                events.push(Event {
                    offset: next,
                    key: random.random_range(0..500),
                    value: random.random_range(-9..99),
                });
                next += 1;
            }
        }
        end.set(partition, Offset(next));
        self.end.send_replace(end);
    }

    pub(crate) fn add_partition(&self, partition: PartitionId, origin: Offset) {
        self.end.send_modify(|end| end.set(partition, origin));
    }

    pub(crate) fn end(&self) -> OffsetVector {
        self.end.borrow().clone()
    }

    /// The events in `[from, until)`, in a batch for each partition.
    pub(crate) fn events(&self, from: &OffsetVector, until: &OffsetVector) -> Vec<RecordBatch> {
        let range = |(p, end): (PartitionId, Offset)| (p, OffsetRange::new(from.get(p).unwrap_or(Offset(0)), end));
        until.iter().map(range).map(|(p, range)| self.batch(p, range).events).collect()
    }

    fn batch(&self, partition: PartitionId, range: OffsetRange) -> DecodedBatch {
        let events = self.events.lock();
        let empty = vec![];
        let all = events.get(&partition).unwrap_or(&empty);
        let from = all.partition_point(|e| e.offset < range.start.0);
        let to = all.partition_point(|e| e.offset < range.end.0);
        let events = &all[from..to];
        let schema = event_schema(&user_schema());
        let longs = |f: fn(&Event) -> i64| -> ArrayRef { Arc::new(events.iter().map(f).collect::<Int64Array>()) };
        let times = TimestampMicrosecondArray::from_iter_values(events.iter().map(|e| e.offset)).with_timezone("UTC");
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from(vec![partition.0; events.len()])),
            longs(|e| e.offset),
            Arc::new(times),
            new_null_array(schema.field(3).data_type(), events.len()),
            new_null_array(schema.field(4).data_type(), events.len()),
            new_null_array(schema.field(5).data_type(), events.len()),
            longs(|e| e.key),
            longs(|e| e.value),
        ];
        DecodedBatch {
            partition,
            range,
            events: RecordBatch::try_new(schema, columns).unwrap(),
            dead_letters: vec![],
            tombstones: 0,
            ahead: 0,
            event_time_max: None,
            leader_epoch: None,
        }
    }
}

#[derive(Debug)]
struct Reader {
    log: Log,
    position: OffsetVector,
    end: watch::Receiver<OffsetVector>,
    random: StdRng,
}

#[async_trait]
impl EventSource for Log {
    async fn open(&self, from: &OffsetVector) -> Result<Box<dyn EventReader>, SourceError> {
        let random = StdRng::seed_from_u64(self.seeds.lock().random());
        Ok(Box::new(Reader { log: self.clone(), position: from.clone(), end: self.end.subscribe(), random }))
    }

    fn log_end(&self) -> watch::Receiver<OffsetVector> {
        self.end.subscribe()
    }

    async fn event_time_max(&self, _: PartitionId, _: Offset) -> Result<Maximum, SourceError> {
        let mut maximum = self.maximum.subscribe();
        let known = maximum.wait_for(Option::is_some).await.map_err(|e| SourceError::Failed(Box::new(e)))?;
        Ok(known.expect("waited for"))
    }
}

#[async_trait]
impl EventReader for Reader {
    async fn next(&mut self) -> Result<Arc<DecodedBatch>, SourceError> {
        loop {
            let end = self.end.borrow_and_update().clone();
            let pending: Vec<_> = self.position.iter().filter(|(p, at)| end.get(*p).unwrap() > *at).collect();
            if pending.is_empty() {
                self.end.changed().await.map_err(|e| SourceError::Failed(Box::new(e)))?;
                continue;
            }
            let (p, at) = pending[self.random.random_range(0..pending.len())];
            let rest = end.get(p).unwrap().0 - at.0;
            let next = at.0 + self.random.random_range(1..=rest.min(4_000));
            let mut start = at.0;
            if self.log.hostile.load(Ordering::Relaxed) {
                match self.random.random_range(0..40) {
                    0 => return Err(SourceError::Failed("the log failed on purpose".into())),
                    1..4 => start -= self.random.random_range(0..3),
                    _ => {}
                }
            }
            self.position.set(p, Offset(next));
            return Ok(Arc::new(self.log.batch(p, OffsetRange::new(Offset(start), Offset(next)))));
        }
    }
}

/// `SELECT key % modulus, count(*), sum(value) GROUP BY 1`; values that are a multiple of 13 are in error.
#[derive(Debug, Clone)]
pub(crate) struct Sums {
    pub(crate) modulus: i64,
    /// The engine fails.
    pub(crate) broken: Arc<AtomicBool>,
}

impl Sums {
    fn to_batch(&self, groups: &Groups) -> RecordBatch {
        let column =
            |f: fn((&i64, &(i64, i64))) -> i64| -> ArrayRef { Arc::new(groups.iter().map(f).collect::<Int64Array>()) };
        let columns = vec![column(|(k, _)| *k), column(|(_, v)| v.0), column(|(_, v)| v.1)];
        RecordBatch::try_new(self.state_schema(), columns).unwrap()
    }

    fn check(&self) -> Result<(), StatesError> {
        if self.broken.load(Ordering::Relaxed) { Err(StatesError("broken on purpose".to_owned())) } else { Ok(()) }
    }

    fn count(&self, groups: &mut Groups, errors: &mut Vec<EventError>, p: i32, event: Event) {
        if event.value % 13 == 0 {
            let (partition, offset) = (PartitionId(p), Offset(event.offset));
            errors.push(EventError { partition, offset, error: "unlucky".to_owned() });
            return;
        }
        let group = groups.entry(event.key % self.modulus).or_default();
        group.0 += 1;
        group.1 += event.value;
    }

    /// What the view says of the events in `[from, until)`, counted from the log itself.
    pub(crate) fn recount(&self, log: &Log, from: &OffsetVector, until: &OffsetVector) -> (Groups, Vec<(i32, i64)>) {
        let mut groups = Groups::new();
        let mut errors = Vec::new();
        for (p, events) in &*log.events.lock() {
            let start = from.get(*p).map_or(i64::MIN, |o| o.0);
            let end = until.get(*p).map_or(i64::MIN, |o| o.0);
            for event in events.iter().filter(|e| start <= e.offset && e.offset < end) {
                self.count(&mut groups, &mut errors, p.0, *event);
            }
        }
        let mut errors: Vec<_> = errors.into_iter().map(|e| (e.partition.0, e.offset.0)).collect();
        errors.sort_unstable();
        (groups, errors)
    }
}

fn add(groups: &mut Groups, states: &RecordBatch) {
    let column = |i: usize| states.column(i).as_primitive::<Int64Type>().values();
    for ((key, count), sum) in column(0).iter().zip(column(1)).zip(column(2)) {
        let group = groups.entry(*key).or_default();
        group.0 += count;
        group.1 += sum;
    }
}

#[async_trait]
impl StateMaker for Sums {
    fn state_schema(&self) -> SchemaRef {
        let field = |name: &str| Field::new(name, DataType::Int64, false);
        Arc::new(Schema::new(vec![field("key"), field("count"), field("sum")]))
    }

    async fn states(&self, events: &[RecordBatch]) -> Result<(RecordBatch, Vec<EventError>), StatesError> {
        self.check()?;
        let mut groups = Groups::new();
        let mut errors = vec![];
        for batch in events {
            let longs = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().values();
            let partition = batch.column(0).as_primitive::<arrow::datatypes::Int32Type>().value(0);
            for ((offset, key), value) in longs("_offset").iter().zip(longs("key")).zip(longs("value")) {
                let event = Event { offset: *offset, key: *key, value: *value };
                self.count(&mut groups, &mut errors, partition, event);
            }
        }
        tokio::task::yield_now().await;
        Ok((self.to_batch(&groups), errors))
    }

    async fn merge(&self, runs: &[RecordBatch]) -> Result<RecordBatch, StatesError> {
        self.check()?;
        let mut groups = Groups::new();
        runs.iter().for_each(|run| add(&mut groups, run));
        tokio::task::yield_now().await;
        Ok(self.to_batch(&groups))
    }
}

/// What a serving layer would answer from `runs`.
pub(crate) fn answer(runs: &[Arc<DeltaRun>]) -> (Groups, Vec<(i32, i64)>) {
    let mut groups = Groups::new();
    runs.iter().for_each(|run| add(&mut groups, &run.states));
    let mut errors: Vec<_> = runs.iter().flat_map(|r| &r.errors).map(|e| (e.partition.0, e.offset.0)).collect();
    errors.sort_unstable();
    (groups, errors)
}

pub(crate) fn options() -> Options {
    Options {
        commit_interval: Duration::from_millis(15),
        batch_interval: Duration::from_micros(200),
        retry: Duration::from_millis(2),
        ..Options::default()
    }
}

/// A running worker.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) handle: SpeedHandle,
    pub(crate) watch: watch::Receiver<Arc<StreamDelta>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(
        log: &Log,
        plans: &watch::Sender<Arc<Vec<ViewPlan>>>,
        origins: &watch::Sender<OffsetVector>,
        store: Arc<dyn DeltaStore>,
        options: Options,
    ) -> Self {
        let source = Arc::new(log.clone());
        let worker = SpeedWorker::new(config(), plans.subscribe(), origins.subscribe(), source, store, options);
        let handle = worker.handle();
        let shutdown = CancellationToken::new();
        let task = watershed_shared::task::spawn("speed", worker.run(shutdown.clone()));
        Self { watch: handle.watch(), handle, shutdown, task }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }

    pub(crate) fn snapshot(&self) -> Arc<StreamDelta> {
        Arc::clone(&self.watch.borrow())
    }

    /// Waits until `done` holds of a snapshot.
    pub(crate) async fn until(&self, what: &str, done: impl Fn(&StreamDelta) -> bool) -> Arc<StreamDelta> {
        let mut watch = self.watch.clone();
        let found = tokio::time::timeout(PATIENCE, watch.wait_for(|d| done(d))).await;
        match found {
            Ok(found) => Arc::clone(&found.unwrap()),
            Err(_) => panic!("not reached within {PATIENCE:?}: {what}: {:#?}", Brief(&self.snapshot())),
        }
    }
}

/// A snapshot without its states.
pub(crate) struct Brief<'a>(pub(crate) &'a StreamDelta);

impl std::fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "position {} log end {} {:?}", self.0.position, self.0.log_end, self.0.reasons)?;
        for (view, definition, delta) in
            self.0.views.iter().flat_map(|(v, d)| d.iter().map(move |(h, delta)| (v, h, delta)))
        {
            writeln!(f, "{view} {definition} from {} position {} joined {}", delta.from, delta.position, delta.joined)?;
            for run in &delta.runs {
                writeln!(f, "  {} {} rows", run.coverage, run.states.num_rows())?;
            }
        }
        Ok(())
    }
}

pub(crate) fn plan(name: &str, sums: &Sums, boundaries: Vec<Cut>, from: Cut) -> ViewPlan {
    let definition = DefinitionHash::new(format!("mod{}", sums.modulus));
    ViewPlan { name: name.to_owned(), definition, compiled: Arc::new(sums.clone()), boundaries, from }
}

/// Checks what `delta` answers for `cut`. Answers whether it answered with runs.
pub(crate) fn check_cut(log: &Log, sums: &Sums, plan: &ViewPlan, delta: &StreamDelta, cut: &Cut, seed: u64) -> bool {
    let Some(view) = delta.view(&plan.name, &plan.definition) else {
        return false;
    };
    let DeltaAnswer::Runs(runs) = view.from_cut(cut) else {
        return false;
    };
    let expected = sums.recount(log, cut, &view.position);
    let found = answer(&runs);
    let differs = found != expected;
    assert!(!differs, "seed {seed}: view {} from {cut} differs\n{:?}", plan.name, Brief(delta));
    true
}

/// Waits a moment of real time.
pub(crate) async fn moment() {
    clock::sleep(Duration::from_millis(1)).await;
}
