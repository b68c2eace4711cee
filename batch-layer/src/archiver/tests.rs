use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema};
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::prelude::SessionContext;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use url::Url;
use watershed_shared::abort_point::{AbortPoint, scope};
use watershed_shared::config::{Format, StreamConfig};
use watershed_shared::decode::{Decoder, RunningMaximum};
use watershed_shared::log::{EmbeddedBroker, FeedOptions, LogClient, ProduceRecord, Producer, StreamFeed};
use watershed_shared::mutant::{Mutant, assert_noticed};
use watershed_shared::offsets::OffsetRange;
use watershed_shared::record::{DecodedBatch, RawBatch, RawRecord};
use watershed_shared::storage::{FaultRates, Faulty, Settings, Storage};
use watershed_shared::task;

use super::*;

const PATIENCE: Duration = Duration::from_secs(120);

/// One column `n INT`; records that hold no number are dead letters.
fn stream() -> StreamConfig {
    StreamConfig {
        name: "numbers".to_owned(),
        topic: "numbers".to_owned(),
        partitions: 2,
        replication: 1,
        shards: 1,
        format: Format::Json,
        event_time: None,
        allowed_lateness: None,
        max_ahead: Duration::from_secs(86_400),
        columns: Arc::new(Schema::new(vec![Field::new("n", DataType::Int32, true)])),
        json_columns: vec![],
        accept_compacted: false,
        epoch_units: BTreeMap::new(),
    }
}

fn quick() -> Options {
    Options {
        commit_interval: Duration::from_millis(20),
        target_file_size_bytes: 1 << 20,
        first_backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(10),
    }
}

/// Commits only when it is asked to.
fn patient() -> Options {
    Options { commit_interval: Duration::from_secs(3600), ..quick() }
}

/// Every tenth record is bad.
fn is_bad(offset: i64) -> bool {
    offset % 10 == 7
}

/// A log in memory: two partitions whose records begin at `low`.
#[derive(Debug, Default)]
struct Records {
    low: Mutex<i64>,
    high: Mutex<i64>,
    grown: Notify,
    /// What was read to its end, and waits for more: the `high` of that moment.
    drained: watch::Sender<i64>,
}

impl Records {
    fn until(high: i64) -> Arc<Self> {
        let records = Self::default();
        *records.high.lock() = high;
        Arc::new(records)
    }

    fn grow(&self, high: i64) {
        *self.high.lock() = high;
        self.grown.notify_waiters();
    }

    /// Until an archiver has taken all there is.
    async fn drained(&self) {
        let high = *self.high.lock();
        let mut drained = self.drained.subscribe();
        drop(tokio::time::timeout(PATIENCE, drained.wait_for(|at| *at >= high)).await.expect("in time").unwrap());
    }
}

#[derive(Debug)]
struct TestSource(Arc<Records>);

struct TestReader {
    records: Arc<Records>,
    decoder: Decoder,
    next: [i64; 2],
}

impl Source for TestSource {
    fn open(&self, from: OffsetVector) -> Box<dyn Reader> {
        let next = [0, 1].map(|p| from.get(PartitionId(p)).map_or(*self.0.low.lock(), |o| o.0));
        Box::new(TestReader { records: Arc::clone(&self.0), decoder: Decoder::new(&stream()).unwrap(), next })
    }
}

#[async_trait]
impl Reader for TestReader {
    async fn next(&mut self) -> log::Result<Arc<DecodedBatch>> {
        loop {
            let grown = self.records.grown.notified();
            let (low, high) = (*self.records.low.lock(), *self.records.high.lock());
            let (partition, start) = if self.next[0] <= self.next[1] { (0, self.next[0]) } else { (1, self.next[1]) };
            let id = PartitionId(i32::try_from(partition).unwrap());
            if start < low {
                return Err(log::Error::OffsetLost {
                    topic: "numbers".to_owned(),
                    partition: id,
                    wanted: Offset(start),
                    low: Offset(low),
                    high: Offset(high),
                });
            }
            if start < high {
                let end = (start + 13).min(high);
                let record = |offset| RawRecord {
                    offset: Offset(offset),
                    timestamp: Some(offset),
                    key: None,
                    value: Some(if is_bad(offset) { "bad".into() } else { format!("{{\"n\":{offset}}}").into() }),
                    headers: vec![],
                };
                let range = OffsetRange::new(Offset(start), Offset(end));
                let raw =
                    RawBatch { partition: id, range, records: (start..end).map(record).collect(), leader_epoch: None };
                self.next[partition] = end;
                return Ok(Arc::new(self.decoder.decode(&raw, &mut RunningMaximum::default())));
            }
            self.records.drained.send_replace(high);
            grown.await;
        }
    }
}

struct Running {
    handle: Handle,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    fn start(options: Options, dataset: &MasterDataset, source: Arc<dyn Source>) -> Self {
        Self::start_with(options, dataset, source, vec![])
    }

    fn start_with(options: Options, dataset: &MasterDataset, source: Arc<dyn Source>, points: Vec<AbortPoint>) -> Self {
        let (archiver, handle) =
            Archiver::new(options, dataset.clone(), source, Arc::new(NotLost), OffsetVector::new());
        let shutdown = CancellationToken::new();
        let task = task::spawn("test archiver", scope(points, archiver.run(shutdown.clone())));
        Self { handle, shutdown, task }
    }

    async fn reach(&self, cut: impl Into<OffsetVector>) {
        let cut = cut.into();
        let mut archived_until = self.handle.archived_until();
        let reached = archived_until.wait_for(|archived| archived.covers(&cut));
        drop(tokio::time::timeout(PATIENCE, reached).await.expect("in time").expect("it runs"));
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        assert_eq!(*self.handle.state().borrow(), State::Ended);
    }
}

async fn open(storage: &Storage) -> MasterDataset {
    MasterDataset::open_or_create(storage, &stream()).await.unwrap()
}

/// Fails unless each record below `until` of both partitions stands in the tables exactly once.
async fn check(storage: &Storage, until: i64) {
    check_without(storage, until, 0..0).await;
}

/// As [`check`], without the records at `lost`.
async fn check_without(storage: &Storage, until: i64, lost: std::ops::Range<i64>) {
    let dataset = open(storage).await;
    let snapshot = dataset.snapshot().await.unwrap();
    assert_eq!(*snapshot.archived_until(), [(0, until), (1, until)].into());
    let session = SessionContext::new();
    for (table, bad) in [(snapshot.scan_archived().unwrap(), false), (snapshot.dead_letters().await.unwrap(), true)] {
        let mut found = vec![];
        for batch in session.read_table(table).unwrap().collect().await.unwrap() {
            let partitions = batch.column_by_name("_partition").unwrap().as_primitive::<Int32Type>().clone();
            let offsets = batch.column_by_name("_offset").unwrap().as_primitive::<Int64Type>().clone();
            found.extend(partitions.values().iter().copied().zip(offsets.values().iter().copied()));
        }
        found.sort_unstable();
        let all = [0, 1].into_iter().flat_map(|p| (0..until).map(move |o| (p, o)));
        assert_eq!(
            found,
            all.filter(|(_, o)| is_bad(*o) == bad && !lost.contains(o)).collect::<Vec<_>>(),
            "bad: {bad}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_is_archived_after_the_commit_interval() {
    let storage = Storage::memory();
    let records = Records::until(100);
    let archiver = Running::start(quick(), &open(&storage).await, Arc::new(TestSource(Arc::clone(&records))));
    archiver.reach([(0, 100), (1, 100)]).await;
    records.grow(120);
    archiver.reach([(0, 120), (1, 120)]).await;
    assert_eq!(*archiver.handle.state().borrow(), State::Healthy);
    archiver.stop().await;
    check(&storage, 120).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_builder_need_not_wait_for_the_interval() {
    let storage = Storage::memory();
    let records = Records::until(50);
    let archiver = Running::start(patient(), &open(&storage).await, Arc::new(TestSource(Arc::clone(&records))));
    archiver.handle.reach(&[(0, 30), (1, 40), (2, 0)].into()).await.unwrap();
    let before = archiver.handle.archived_until().borrow().clone();
    // What lies ahead of the log is reached when it comes.
    let handle = archiver.handle.clone();
    let waiting = task::spawn("test builder", async move { handle.reach(&[(0, 60)].into()).await });
    clock::sleep(Duration::from_millis(50)).await;
    assert_eq!(*archiver.handle.archived_until().borrow(), before, "nothing more was asked for");
    records.grow(60);
    waiting.await.unwrap().unwrap();
    archiver.stop().await;
    check(&storage, 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_in_vain_keeps_no_other_from_being_heard() {
    let storage = Storage::memory();
    let records = Records::until(50);
    let archiver = Running::start(patient(), &open(&storage).await, Arc::new(TestSource(Arc::clone(&records))));
    archiver.handle.flush_to(&[(99, 1)].into());
    archiver.handle.flush_to(&[(0, 1_000_000)].into());
    let wanted = [(0, 30), (1, 40)].into();
    tokio::time::timeout(PATIENCE, archiver.handle.reach(&wanted)).await.expect("in time").unwrap();
    archiver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_its_origin_a_partition_has_nothing_to_archive() {
    let dataset = open(&Storage::memory()).await;
    let records = Records::until(9);
    *records.low.lock() = 9;
    let origins: OffsetVector = [(0, 9), (1, 9)].into();
    let (archiver, handle) =
        Archiver::new(patient(), dataset.clone(), Arc::new(TestSource(records)), Arc::new(NotLost), origins.clone());
    let shutdown = CancellationToken::new();
    let task = task::spawn("test archiver", archiver.run(shutdown.clone()));
    handle.reach(&origins).await.unwrap();
    shutdown.cancel();
    task.await.unwrap().unwrap();
    let snapshot = dataset.snapshot().await.unwrap();
    assert_eq!(snapshot.version(), 0);
    drop(snapshot.scan(Some(&origins), &origins).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_commits_what_was_read() {
    let storage = Storage::memory();
    let records = Records::until(70);
    let archiver = Running::start(patient(), &open(&storage).await, Arc::new(TestSource(Arc::clone(&records))));
    records.drained().await;
    archiver.stop().await;
    check(&storage, 70).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_happens_when_there_is_enough() {
    let storage = Storage::memory();
    let options = Options { target_file_size_bytes: 10_000, ..patient() };
    let archiver = Running::start(options, &open(&storage).await, Arc::new(TestSource(Records::until(5_000))));
    archiver.reach([(0, 4_000), (1, 4_000)]).await;
    assert!(open(&storage).await.snapshot().await.unwrap().version() > 3);
    archiver.stop().await;
    check(&storage, 5_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn archivers_that_race_archive_each_record_once() {
    let storage = Storage::memory();
    let records = Records::until(40);
    let mut archivers = vec![];
    for _ in 0..3 {
        archivers.push(Running::start(quick(), &open(&storage).await, Arc::new(TestSource(Arc::clone(&records)))));
    }
    for step in 2..=40 {
        records.grow(step * 20);
        clock::sleep(Duration::from_millis(10)).await;
    }
    for archiver in &archivers {
        archiver.reach([(0, 800), (1, 800)]).await;
    }
    // Whichever goes, another one takes over.
    archivers.remove(0).stop().await;
    archivers.remove(0).stop().await;
    records.grow(900);
    archivers[0].reach([(0, 900), (1, 900)]).await;
    archivers.remove(0).stop().await;
    check(&storage, 900).await;
}

#[test]
fn dead_letters_behind_their_offsets_are_noticed() {
    assert_noticed(Mutant::DeadLettersAfterEvents, "archiver::tests::a_crash_at_any_point_loses_and_repeats_nothing");
}

#[test]
fn a_commit_on_a_refreshed_snapshot_is_noticed() {
    assert_noticed(Mutant::RefreshedSnapshot, "archiver::tests::archivers_that_race_archive_each_record_once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_fails_is_waited_out() {
    let settings = Settings {
        retry_for: Duration::from_millis(20),
        first_backoff: Duration::from_millis(1),
        ..Settings::default()
    };
    let url = Url::parse("memory:///").unwrap();
    for seed in 0..4 {
        let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let healthy = Storage::over(url.clone(), Arc::clone(&memory), settings);
        drop(open(&healthy).await);
        let faulty = Faulty::new(memory, seed, FaultRates::each(60));
        let storage = Storage::over(url.clone(), Arc::new(faulty.clone()), settings);
        let dataset = loop {
            if let Ok(dataset) = MasterDataset::open_or_create(&storage, &stream()).await {
                break dataset;
            }
        };
        let records = Records::until(10);
        let archiver = Running::start(quick(), &dataset, Arc::new(TestSource(Arc::clone(&records))));
        for step in 1..=20 {
            records.grow(step * 10);
            archiver.reach([(0, step * 10), (1, step * 10)]).await;
        }
        archiver.stop().await;
        assert!(faulty.faults() > 5, "seed {seed}: too few faults to have tested anything");
        check(&healthy, 200).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_point_loses_and_repeats_nothing() {
    for point in [
        "master.dead_letter_files_written",
        "master.dead_letters_committed",
        "master.files_written",
        "master.commit_sent",
        "master.committed",
    ] {
        for nth in [1, 4] {
            let storage = Storage::memory();
            let records = Records::until(1_000);
            let options = Options { target_file_size_bytes: 5_000, ..quick() };
            let armed = AbortPoint::nth(point, nth);
            let source: Arc<dyn Source> = Arc::new(TestSource(records));
            let crashing =
                Running::start_with(options, &open(&storage).await, Arc::clone(&source), vec![armed.clone()]);
            let error = tokio::time::timeout(PATIENCE, crashing.task).await.unwrap().unwrap().unwrap_err();
            assert!(armed.fired() && error.to_string().contains("can't be written"), "{point}: {error}");
            assert!(
                matches!(&*crashing.handle.state().borrow(), State::Stopped { error, .. } if error.contains(point))
            );

            let again = Running::start(options, &open(&storage).await, source);
            again.reach([(0, 1_000), (1, 1_000)]).await;
            again.stop().await;
            check(&storage, 1_000).await;
        }
    }
}

/// Takes losses as a register does: only after the archive has stopped in front of them.
#[derive(Debug)]
struct TestLosses {
    dataset: MasterDataset,
    found: Mutex<Vec<(i32, i64, i64)>>,
    refusals: Mutex<u32>,
}

impl TestLosses {
    fn new(dataset: &MasterDataset, refusals: u32) -> Arc<Self> {
        Arc::new(Self { dataset: dataset.clone(), found: Mutex::default(), refusals: Mutex::new(refusals) })
    }

    fn found(&self) -> Vec<(i32, i64, i64)> {
        let mut found = self.found.lock().clone();
        found.sort_unstable();
        found
    }
}

#[async_trait]
impl Losses for TestLosses {
    async fn record(&self, partition: PartitionId, archived: Offset, low: Offset) -> Result<(), LossesError> {
        let snapshot = self.dataset.snapshot().await?;
        let at = snapshot.archived_until().get(partition).unwrap_or(archived);
        assert_eq!(at, archived, "the archive has not passed what is not recorded");
        let left = self.refusals.lock().checked_sub(1);
        if let Some(left) = left {
            *self.refusals.lock() = left;
            return Err("the register does not answer".into());
        }
        self.found.lock().push((partition.0, archived.0, low.0));
        Ok(())
    }

    fn passed(&self) {}
}

/// For logs that drop nothing.
#[derive(Debug)]
struct NotLost;

#[async_trait]
impl Losses for NotLost {
    async fn record(&self, partition: PartitionId, archived: Offset, low: Offset) -> Result<(), LossesError> {
        Err(format!("nothing was lost: {partition}, {archived}, {low}").into())
    }

    fn passed(&self) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_records_are_recorded_before_they_are_passed() {
    let storage = Storage::memory();
    let records = Records::until(30);
    let dataset = open(&storage).await;
    let losses = TestLosses::new(&dataset, 2);
    let source = Arc::new(TestSource(Arc::clone(&records)));
    let (archiver, handle) =
        Archiver::new(quick(), dataset.clone(), source, Arc::clone(&losses) as _, OffsetVector::new());
    let shutdown = CancellationToken::new();
    let task = task::spawn("test archiver", archiver.run(shutdown.clone()));
    let archiver = Running { handle, shutdown, task };
    archiver.reach([(0, 30), (1, 30)]).await;
    *records.low.lock() = 35;
    records.grow(50);
    archiver.reach([(0, 50), (1, 50)]).await;
    archiver.stop().await;
    assert_eq!(losses.found(), [(0, 30, 35), (1, 30, 35)]);
    check_without(&storage, 50, 30..35).await;

    // As are those that went before anything was archived, if the origin is recorded.
    let storage = Storage::memory();
    let dataset = open(&storage).await;
    let losses = TestLosses::new(&dataset, 0);
    let source = Arc::new(TestSource(records));
    let origins = [(0, 3), (1, 35)].into();
    let (archiver, handle) = Archiver::new(quick(), dataset.clone(), source, Arc::clone(&losses) as _, origins);
    let shutdown = CancellationToken::new();
    let task = task::spawn("test archiver", archiver.run(shutdown.clone()));
    let archiver = Running { handle, shutdown, task };
    archiver.reach([(0, 50), (1, 50)]).await;
    archiver.stop().await;
    assert_eq!(losses.found(), [(0, 3, 35)]);
    check_without(&storage, 50, 0..35).await;
}

/// A source of which a permission is missing for the first few readers.
#[derive(Debug)]
struct Denied(TestSource, Mutex<u32>);

struct DeniedReader;

#[async_trait]
impl Reader for DeniedReader {
    async fn next(&mut self) -> log::Result<Arc<DecodedBatch>> {
        let (operation, detail) = ("read".to_owned(), "topic authorization failed".to_owned());
        Err(log::Error::Client { operation, detail })
    }
}

impl Source for Denied {
    fn open(&self, from: OffsetVector) -> Box<dyn Reader> {
        let mut left = self.1.lock();
        if *left == 0 {
            return self.0.open(from);
        }
        *left -= 1;
        Box::new(DeniedReader)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_has_to_mend_is_shown_and_tried_again() {
    let storage = Storage::memory();
    let source = Denied(TestSource(Records::until(30)), Mutex::new(5));
    let options = Options { first_backoff: Duration::from_millis(50), ..quick() };
    let archiver = Running::start(options, &open(&storage).await, Arc::new(source));
    let mut state = archiver.handle.state();
    let shown = state.wait_for(|s| matches!(s, State::Retrying { error, .. } if error.contains("authorization")));
    drop(tokio::time::timeout(PATIENCE, shown).await.expect("in time").expect("it runs"));
    archiver.reach([(0, 30), (1, 30)]).await;
    let healthy = state.wait_for(|s| *s == State::Healthy);
    drop(tokio::time::timeout(PATIENCE, healthy).await.expect("in time").expect("it runs"));
    archiver.stop().await;
    check(&storage, 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_cut_off_at_its_end_stops_the_archiver() {
    let storage = Storage::memory();
    let dataset = open(&storage).await;
    let archiver = Running::start(quick(), &dataset, Arc::new(CutOff));
    let error = tokio::time::timeout(PATIENCE, archiver.task).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains("can't be read"), "{error}");
    let state = archiver.handle.state().borrow().clone();
    assert!(matches!(&state, State::Stopped { error, .. } if error.contains("wanted=`50`")), "{state:?}");
    let waiting = archiver.handle.reach(&[(0, 40)].into()).await.unwrap_err();
    assert!(matches!(waiting.state, State::Stopped { .. }));
}

/// A log that ends before what was archived of it.
#[derive(Debug)]
struct CutOff;

#[async_trait]
impl Reader for CutOff {
    async fn next(&mut self) -> log::Result<Arc<DecodedBatch>> {
        let (topic, partition) = ("numbers".to_owned(), PartitionId(0));
        Err(log::Error::OffsetLost { topic, partition, wanted: Offset(50), low: Offset(0), high: Offset(40) })
    }
}

impl Source for CutOff {
    fn open(&self, _: OffsetVector) -> Box<dyn Reader> {
        Box::new(Self)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn from_a_real_log_to_a_real_folder() {
    let folder = tempfile::tempdir().unwrap();
    let broker = EmbeddedBroker::start(folder.path(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let client = LogClient::connect(broker.bootstrap_servers()).unwrap();
    client.ensure_topic(&stream()).await.unwrap();
    let storage = Storage::open(&Url::from_directory_path(folder.path().join("storage")).unwrap()).unwrap();
    let dataset = open(&storage).await;
    let producer = Producer::new(&client).unwrap();
    let shutdown = CancellationToken::new();
    let mut next = 0;
    // The second round begins from the table.
    for round in [150, 400] {
        let records = |partition| {
            (next..round).map(move |offset| ProduceRecord {
                key: None,
                value: Some(Bytes::from(if is_bad(offset) { "bad".to_owned() } else { format!("{{\"n\":{offset}}}") })),
                headers: vec![],
                partition: Some(PartitionId(partition)),
                timestamp_millis: Some(offset),
            })
        };
        let feed = StreamFeed::start(
            client.clone(),
            stream(),
            Arc::new(dataset.clone()),
            FeedOptions::new(1 << 20),
            shutdown.child_token(),
        );
        let archiver = Running::start(quick(), &dataset, Arc::new(feed));
        let report = producer.produce("numbers", records(0).chain(records(1)).collect()).await.unwrap();
        assert_eq!(report.errors, []);
        archiver.reach([(0, round), (1, round)]).await;
        archiver.stop().await;
        check(&storage, round).await;
        next = round;
    }
    shutdown.cancel();
}
