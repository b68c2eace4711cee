//! The real source: an embedded broker, a master dataset, and a worker on both.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use arrow::util::pretty::pretty_format_batches;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;
use watershed_shared::config::Config;
use watershed_shared::delta::{DeltaAnswer, DeltaService, Maximum};
use watershed_shared::log::{EmbeddedBroker, FeedOptions, LogClient, ProduceRecord, Producer, Seeds, StreamFeed};
use watershed_shared::master::{AppendOutcome, MasterDataset};
use watershed_shared::offsets::{Cut, Offset, OffsetVector, PartitionId};
use watershed_shared::record::DecodedBatch;
use watershed_shared::storage::Storage;
use watershed_shared::view::Compiler;
use watershed_speed_layer::{EventSource, LogAndArchive, MemoryStore, SpeedWorker, ViewPlan};

use crate::world::{PATIENCE, options};

const CONFIG: &str = r#"
[stream.s]
event_time = "at"
allowed_lateness = "1 second"
columns = "key BIGINT, at TIMESTAMP"

[view.v]
sql = "SELECT key % 10 AS k, count(*) AS n, sum(key) AS s, count(*) FILTER (WHERE _late) AS late FROM s GROUP BY 1"
"#;
const PARTITIONS: i32 = 2;

fn records(from: i64, count: i64) -> Vec<ProduceRecord> {
    let record = |n: i64| {
        let value = if n % 50 == 7 {
            "no json".to_owned()
        } else {
            format!(r#"{{"key": {n}, "at": "2024-01-01T00:{:02}:{:02}Z"}}"#, (n / 60) % 60, (n * 7) % 60)
        };
        ProduceRecord {
            key: None,
            value: Some(value.into()),
            headers: vec![],
            partition: Some(PartitionId(i32::try_from(n % i64::from(PARTITIONS)).unwrap())),
            timestamp_millis: Some(1_704_067_200_000 + n),
        }
    };
    (from..from + count).map(record).collect()
}

/// All events from `from` to `until`, by partition; checks that they are contiguous and in order.
async fn read(source: &LogAndArchive, from: &OffsetVector, until: &OffsetVector) -> BTreeMap<PartitionId, RecordBatch> {
    let mut reader = source.open(from).await.unwrap();
    let mut position = from.clone();
    let mut all: BTreeMap<PartitionId, Vec<RecordBatch>> = BTreeMap::new();
    while position != *until {
        let batch = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap();
        assert_eq!(position.get(batch.partition), Some(batch.range.start));
        position.set(batch.partition, batch.range.end);
        let offsets = batch.events.column_by_name("_offset").unwrap().as_primitive::<Int64Type>().values().clone();
        assert!(offsets.is_sorted() && offsets.iter().all(|o| batch.range.contains(Offset(*o))));
        all.entry(batch.partition).or_default().push(batch.events.clone());
    }
    all.into_iter().map(|(p, batches)| (p, concat_batches(&batches[0].schema(), &batches).unwrap())).collect()
}

async fn archive(source: &LogAndArchive, master: &MasterDataset, from: &OffsetVector, until: &OffsetVector) {
    let mut reader = source.open(from).await.unwrap();
    let mut position = from.clone();
    let mut batches: Vec<Arc<DecodedBatch>> = Vec::new();
    while position != *until {
        let batch = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap();
        let Some(end) = until.get(batch.partition).filter(|end| batch.range.start < *end) else { continue };
        let batch = if batch.range.end > end { Arc::new(DecodedBatch::clone(&batch).split_at(end).0) } else { batch };
        position.set(batch.partition, batch.range.end);
        batches.push(batch);
    }
    let snapshot = master.snapshot().await.unwrap();
    assert!(matches!(master.append(&snapshot, &batches).await.unwrap(), AppendOutcome::Committed(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_archived_comes_from_the_master_dataset_and_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::parse(CONFIG, Path::new("/"), &|_| None).unwrap();
    let mut stream = config.streams["s"].clone();
    stream.partitions = PARTITIONS;
    let broker = EmbeddedBroker::start(folder.path(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let client = LogClient::connect(broker.bootstrap_servers()).unwrap();
    client.ensure_topic(&stream).await.unwrap();
    let producer = Producer::new(&client).unwrap();
    let storage = Storage::open(&Url::from_directory_path(folder.path().join("storage")).unwrap()).unwrap();
    let master = MasterDataset::open_or_create(&storage, &stream).await.unwrap();
    let shutdown = CancellationToken::new();
    let feed = || {
        let seeds: Arc<dyn Seeds> = Arc::new(master.clone());
        StreamFeed::start(client.clone(), stream.clone(), seeds, FeedOptions::new(1 << 20), shutdown.clone())
    };
    let (feeds, receiver) = watch::channel(feed());
    let source = || LogAndArchive::new(stream.clone(), receiver.clone(), master.clone());

    producer.produce("s", records(0, 4_000)).await.unwrap();
    let origins: OffsetVector = [(0, 0), (1, 0)].into();
    let end: OffsetVector = [(0, 2_000), (1, 2_000)].into();
    let all = read(&source(), &origins, &end).await;
    // The archive in two commits, the second one small.
    let middle: OffsetVector = [(0, 1_300), (1, 700)].into();
    archive(&source(), &master, &origins, &middle).await;
    let archived: OffsetVector = [(0, 1_310), (1, 900)].into();
    archive(&source(), &master, &middle, &archived).await;

    // A new fetch begins where the master dataset ends.
    feeds.send_replace(feed());
    assert_eq!(read(&source(), &origins, &end).await, all);
    let from: OffsetVector = [(0, 1_305), (1, 1_000)].into();
    let some = read(&source(), &from, &end).await;
    for (p, events) in &some {
        let first = all[p].num_rows() - events.num_rows();
        assert_eq!(*events, all[p].slice(first, events.num_rows()));
    }

    // A worker that starts with nothing replays, and goes on with the log.
    let view = Compiler::new(&config.streams, &BTreeMap::new()).unwrap().compile(&config.views["v"]).unwrap();
    let plan = |boundaries: Vec<Cut>| {
        let from = boundaries[0].clone();
        let compiled = Arc::<watershed_shared::view::CompiledView>::clone(&view);
        Arc::new(vec![ViewPlan {
            name: "v".to_owned(),
            definition: view.definition().clone(),
            compiled,
            boundaries,
            from,
        }])
    };
    let plans = watch::Sender::new(plan(vec![Cut::new()]));
    let origins_now = watch::Sender::new(origins.clone());
    let worker = SpeedWorker::new(
        stream.clone(),
        plans.subscribe(),
        origins_now.subscribe(),
        Arc::new(source()),
        Arc::new(MemoryStore::default()),
        options(),
    );
    let handle = worker.handle();
    let running = watershed_shared::task::spawn("speed", worker.run(shutdown.child_token()));
    producer.produce("s", records(4_000, 1_000)).await.unwrap();
    let end: OffsetVector = [(0, 2_500), (1, 2_500)].into();
    let mut snapshots = handle.watch();
    // A boundary in what is archived, that a run straddles by now, and one in what is only in the log.
    for cut in [Cut::new(), [(0, 600), (1, 650)].into(), [(0, 1_900), (1, 2_100)].into()] {
        plans.send_replace(plan(vec![Cut::new(), cut.clone()]));
        let answers = |d: &Arc<watershed_shared::delta::StreamDelta>| {
            d.position == end
                && d.view("v", view.definition())
                    .is_some_and(|v| v.joined && matches!(v.from_cut(&cut), DeltaAnswer::Runs(_)))
        };
        let delta = tokio::time::timeout(PATIENCE, snapshots.wait_for(answers)).await.unwrap().unwrap().clone();
        assert_eq!(delta.oldest_pending, None);
        assert!(delta.partitions.values().all(|p| p.late > 0 && matches!(p.event_time_max, Maximum::Known(Some(_)))));
        let DeltaAnswer::Runs(runs) = delta.view("v", view.definition()).unwrap().from_cut(&cut) else {
            unreachable!()
        };
        let states: Vec<RecordBatch> = runs.iter().map(|run| run.states.clone()).collect();
        let from = origins.join(&cut);
        let events: Vec<RecordBatch> = read(&source(), &from, &end).await.into_values().collect();
        let expected = view.states(&events).await.unwrap();
        let text = |batch| pretty_format_batches(&[batch]).unwrap().to_string();
        let lines = |text: String| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let found = lines(text(view.finalize(&states).await.unwrap()));
        assert_eq!(found, lines(text(view.finalize(&[expected.states]).await.unwrap())), "from {cut}");
    }
    shutdown.cancel();
    running.await.unwrap();
    drop((feeds, receiver));
    broker.stop().await;
}
