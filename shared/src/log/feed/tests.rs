//! All paths of a stream give the same batches: compared with one decoding of everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::decode::{Decoder, RunningMaximum};
use crate::log::tests::{broker, stream};
use crate::log::{EmbeddedBroker, ProduceRecord, Producer};
use crate::offsets::OffsetRange;
use crate::record::{DecodedBatch, RawBatch};

const PATIENCE: Duration = Duration::from_secs(60);
const PARTITIONS: i32 = 3;

/// Where a master dataset would end; a test moves it.
#[derive(Default)]
struct Archived(Mutex<BTreeMap<PartitionId, Seed>>);

#[async_trait]
impl Seeds for Archived {
    async fn resume(&self) -> Result<BTreeMap<PartitionId, Seed>, SeedsError> {
        Ok(self.0.lock().clone())
    }
}

/// A topic with records of all kinds, and what they decode to, at once.
struct Fixture {
    _dir: tempfile::TempDir,
    broker: EmbeddedBroker,
    client: LogClient,
    config: StreamConfig,
    whole: BTreeMap<PartitionId, DecodedBatch>,
}

impl Fixture {
    async fn new(rng: &mut StdRng, records: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (broker, client) = broker(dir.path()).await;
        let config = stream("t", PARTITIONS);
        client.ensure_topic(&config).await.unwrap();
        let records: Vec<_> = (0..records).map(|i| record(rng, i)).collect();
        let report = Producer::new(&client).unwrap().produce("t", records).await.unwrap();
        assert_eq!(report.errors, []);

        let until: OffsetVector = report.partitions.iter().map(|(p, done)| (*p, done.next)).collect();
        let mut raw: BTreeMap<PartitionId, RawBatch> = BTreeMap::new();
        let nothing = OffsetVector::new();
        let mut reader = RawReader::open(&client, "t", &nothing, RawReaderOptions::default()).await.unwrap();
        let mut position = nothing;
        while !position.covers(&until) {
            let batch = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap();
            position.set(batch.partition, batch.range.end);
            let all = raw.entry(batch.partition).or_insert_with(|| RawBatch {
                partition: batch.partition,
                range: OffsetRange::new(Offset(0), Offset(0)),
                records: Vec::new(),
                leader_epoch: None,
            });
            all.range.end = batch.range.end;
            all.records.extend(batch.records);
        }
        let mut decoder = Decoder::new(&config).unwrap();
        let whole = raw.into_iter().map(|(p, raw)| (p, decoder.decode(&raw, &mut RunningMaximum::default()))).collect();
        Self { _dir: dir, broker, client, config, whole }
    }

    fn end(&self) -> OffsetVector {
        self.whole.iter().map(|(p, w)| (*p, w.range.end)).collect()
    }

    /// The seed of a master dataset that ends at `offset`.
    fn seed(&self, partition: PartitionId, offset: Offset) -> Seed {
        let (below, _) = self.whole[&partition].clone().split_at(offset);
        let event_time_max = if offset == Offset(0) { None } else { below.event_time_max };
        Seed { archived_until: offset, event_time_max, leader_epoch: None }
    }

    fn feed(&self, archived: &Arc<Archived>, window_bytes: usize, batch: usize) -> StreamFeed {
        let raw = RawReaderOptions { max_batch_records: batch, queued_batches: 1, ..RawReaderOptions::default() };
        let seeds: Arc<dyn Seeds> = Arc::<Archived>::clone(archived);
        let options = FeedOptions { raw, ..FeedOptions::new(window_bytes) };
        StreamFeed::start(self.client.clone(), self.config.clone(), seeds, options, CancellationToken::new())
    }

    /// Fails unless `batches` are what the whole holds from `from` on.
    fn check(&self, from: &OffsetVector, batches: Vec<Arc<DecodedBatch>>) {
        let mut by_partition: BTreeMap<PartitionId, Vec<DecodedBatch>> = BTreeMap::new();
        for batch in batches {
            by_partition.entry(batch.partition).or_default().push(DecodedBatch::clone(&batch));
        }
        for (partition, whole) in &self.whole {
            let expected = whole.clone().split_at(from.get(*partition).unwrap_or(Offset(0))).1;
            let Some(got) = by_partition.remove(partition) else {
                assert!(expected.range.is_empty(), "nothing came of partition {partition}");
                continue;
            };
            let got = DecodedBatch::concat(got).unwrap();
            assert_eq!(got.range, expected.range);
            assert_eq!(got.events, expected.events);
            assert_eq!(got.dead_letters, expected.dead_letters);
            assert_eq!(got.event_time_max, expected.event_time_max);
        }
    }
}

fn record(rng: &mut StdRng, i: usize) -> ProduceRecord {
    let now = 1_700_000_000_000 + i as i64 * 1000;
    let at = now + rng.random_range(-600_000..600_000) + if rng.random_ratio(1, 50) { 7 * 86_400_000 } else { 0 };
    let value = match rng.random_range(0..20) {
        0 => None,
        1 => Some("{not json".to_owned()),
        2 => Some(format!(r#"{{"id": {i}}}"#)),
        _ => {
            let at = chrono::DateTime::from_timestamp_millis(at).unwrap().to_rfc3339();
            Some(format!(r#"{{"id": {i}, "at": "{at}"}}"#))
        }
    };
    ProduceRecord {
        value: value.map(Bytes::from),
        partition: Some(PartitionId(rng.random_range(0..PARTITIONS))),
        timestamp_millis: Some(now),
        ..ProduceRecord::default()
    }
}

/// Reads to the end, pausing now and then, and dropping the wait now and then: it is cancel safe.
async fn read_all(
    mut reader: FeedReader,
    until: OffsetVector,
    seed: u64,
    pause_micros: u64,
    begun: &AtomicUsize,
) -> (Vec<Arc<DecodedBatch>>, bool) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut batches = Vec::new();
    let mut was_detached = false;
    while !reader.position().covers(&until) {
        if rng.random_ratio(1, 4) {
            let wait = Duration::from_micros(rng.random_range(0..300));
            match tokio::time::timeout(wait, reader.next()).await {
                Ok(batch) => batches.push(batch.unwrap()),
                Err(_) => continue,
            }
        } else {
            batches.push(tokio::time::timeout(PATIENCE, reader.next()).await.expect("in time").unwrap());
        }
        if batches.len() == 1 {
            begun.fetch_add(1, Ordering::SeqCst);
        }
        was_detached |= reader.is_detached();
        if pause_micros > 0 {
            clock::sleep(Duration::from_micros(rng.random_range(0..pause_micros))).await;
        }
    }
    if batches.is_empty() {
        begun.fetch_add(1, Ordering::SeqCst);
    }
    (batches, was_detached)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_gives_the_same_batches() {
    let seed = std::env::var("WATERSHED_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| StdRng::from_os_rng().random());
    println!("WATERSHED_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let fixture = Fixture::new(&mut rng, 1500).await;
    let end = fixture.end();
    let mut detached = 0;
    for window_bytes in [1, 20_000, 60_000, 64 << 20] {
        let mut archived_until = OffsetVector::new();
        let archived = Arc::new(Archived::default());
        for (partition, until) in end.iter() {
            let offset = Offset(rng.random_range(0..until.0 / 2));
            if rng.random_bool(0.7) {
                archived.0.lock().insert(partition, fixture.seed(partition, offset));
                archived_until.set(partition, offset);
            }
        }
        let feed = fixture.feed(&archived, window_bytes, 10);
        let mut readers = Vec::new();
        let begun = Arc::new(AtomicUsize::new(0));
        for i in 0..6 {
            let from: OffsetVector = (end.iter())
                .map(|(p, until)| {
                    let low = archived_until.get(p).unwrap_or(Offset(0));
                    (p, if i < 2 { low } else { Offset(rng.random_range(low.0..=until.0)) })
                })
                .collect();
            let pause = [0, 0, 200, 2_000, 10_000, 20_000][i];
            let (reader, until, seed, counted) =
                (feed.reader(from.clone()), end.clone(), rng.random(), Arc::clone(&begun));
            let read = async move { read_all(reader, until, seed, pause, &counted).await };
            readers.push((from, task::spawn("reader", read)));
            if i == 3 {
                // The master dataset grows meanwhile; who reads already must not notice.
                let all = async {
                    while begun.load(Ordering::SeqCst) < 4 {
                        clock::sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::time::timeout(PATIENCE, all).await.expect("each begins to read");
                for (partition, until) in end.iter() {
                    let low = archived_until.get(partition).unwrap_or(Offset(0));
                    let offset = Offset(rng.random_range(low.0..=until.0));
                    archived.0.lock().insert(partition, fixture.seed(partition, offset));
                    archived_until.set(partition, offset);
                }
            }
        }
        // All have left; the last begins a new fetch, where the master dataset ends now.
        for (from, reader) in readers {
            let (batches, was_detached) = reader.await.unwrap();
            fixture.check(&from, batches);
            detached += usize::from(was_detached);
        }
        let (batches, _) =
            read_all(feed.reader(archived_until.clone()), end.clone(), rng.random(), 0, &AtomicUsize::new(0)).await;
        fixture.check(&archived_until, batches);
    }
    assert!(detached > 0, "no reader ever fell out of its window: the test does not test it");
    fixture.broker.stop().await;
}

#[tokio::test]
async fn a_position_below_the_archived_one_is_refused_unless_the_window_has_it() {
    let mut rng = StdRng::seed_from_u64(7);
    let fixture = Fixture::new(&mut rng, 300).await;
    let end = fixture.end();
    let archived = Arc::new(Archived::default());
    let seeds = end.iter().map(|(p, _)| (p, fixture.seed(p, Offset(10)))).collect();
    *archived.0.lock() = seeds;
    let feed = fixture.feed(&archived, 64 << 20, 20);
    for from in [[(0, 10), (1, 9), (2, 10)].into(), OffsetVector::from([(0, 10), (2, 10)])] {
        let mut reader = feed.reader(from.clone());
        for _ in 0..2 {
            let error = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap_err();
            let wanted = from.get(PartitionId(1));
            assert!(
                matches!(error, Error::Archived { partition: PartitionId(1), wanted: w, archived_until: Offset(10) } if w == wanted),
                "{error}"
            );
        }
    }
    let from: OffsetVector = [(0, 10), (1, 10), (2, 10)].into();
    let first = feed.reader(from.clone());
    let (batches, _) = read_all(feed.reader(from.clone()), end.clone(), 1, 0, &AtomicUsize::new(0)).await;
    fixture.check(&from, batches);
    *archived.0.lock() = end.iter().map(|(p, o)| (p, fixture.seed(p, o))).collect();
    // Now everything is archived, and still in the window.
    let (batches, was_detached) = read_all(feed.reader(from.clone()), end.clone(), 1, 0, &AtomicUsize::new(0)).await;
    fixture.check(&from, batches);
    assert!(!was_detached);
    drop(first);

    let past: OffsetVector = end.iter().map(|(p, o)| (p, Offset(o.0 + 1))).collect();
    let error = tokio::time::timeout(PATIENCE, feed.reader(past).next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::LogTruncated { .. }), "{error}");
    fixture.broker.stop().await;
}

#[tokio::test]
async fn an_error_is_told_to_every_reader_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, client) = broker(dir.path()).await;
    let archived: Arc<dyn Seeds> = Arc::new(Archived::default());
    let shutdown = CancellationToken::new();
    let options = FeedOptions::new(1 << 20);
    let feed =
        StreamFeed::start(client.clone(), stream("gone", 1), Arc::clone(&archived), options.clone(), shutdown.clone());
    let mut readers = [feed.reader(OffsetVector::new()), feed.reader(OffsetVector::new())];
    for _ in 0..2 {
        for reader in &mut readers {
            let error = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap_err();
            assert!(matches!(error, Error::UnknownTopic { .. }), "{error}");
        }
    }
    let error = feed.reader(OffsetVector::new()).next().await.unwrap_err();
    assert!(matches!(error, Error::UnknownTopic { .. }), "{error}");

    client.ensure_topic(&stream("t", 1)).await.unwrap();
    let feed = StreamFeed::start(client, stream("t", 1), archived, options, shutdown.clone());
    let mut reader = feed.reader(OffsetVector::new());
    assert!(tokio::time::timeout(Duration::from_millis(300), reader.next()).await.is_err(), "there is nothing to read");
    shutdown.cancel();
    let error = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Shutdown), "{error}");
    broker.stop().await;
}

#[test]
fn the_window_stays_within_its_bytes() {
    let config = stream("t", 1);
    let mut decoder = Decoder::new(&config).unwrap();
    let mut batch = |start: i64| {
        let range = OffsetRange::new(Offset(start), Offset(start + 1));
        let raw = RawBatch { partition: PartitionId(0), range, records: Vec::new(), leader_epoch: None };
        decoder.decode(&raw, &mut RunningMaximum::default())
    };
    let one = {
        let mut window = Window::new(1 << 30);
        window.push(batch(0));
        window.bytes()
    };
    let limit = one * 10;
    let mut window = Window::new(limit);
    window.begin([(PartitionId(0), Start { offset: Offset(0), event_time_max: None, is_origin: true })]);
    let (mut fast, mut slow) = (OffsetVector::new(), OffsetVector::new());
    assert!(window.attach(1, &mut fast).unwrap());
    assert!(window.attach(2, &mut slow).unwrap());
    let mut next = 0;
    let mut fell_out_at = None;
    for _ in 0..50 {
        while window.has_room() {
            window.push(batch(next));
            next += 1;
            assert!(window.bytes() <= limit + one);
        }
        let Step::Deliver(got) = window.step(1, &mut fast).unwrap() else { panic!("the fastest never waits here") };
        fast.set(got.partition, got.range.end);
        // The slow one reads a third as much.
        if fell_out_at.is_none() && fast.get(PartitionId(0)).unwrap().0 % 3 == 0 {
            match window.step(2, &mut slow).unwrap() {
                Step::Deliver(got) => slow.set(got.partition, got.range.end),
                Step::FellOut => fell_out_at = slow.get(PartitionId(0)),
                Step::Wait => panic!("there is enough"),
            }
        }
    }
    let at = fell_out_at.expect("the slow one falls out");
    assert!(!window.rejoin(2, &mut slow).unwrap(), "what it needs is gone");
    assert!(at > Offset(2), "the window gave it some room");
    let mut caught_up: OffsetVector = [(0, next - 2)].into();
    assert!(window.rejoin(2, &mut caught_up).unwrap());
    assert!(matches!(window.step(2, &mut caught_up).unwrap(), Step::Deliver(b) if b.range.start == Offset(next - 2)));
}
