//! The log against a broker that really runs, in this process.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::*;
use crate::config::{Format, KafkaConfig, StreamConfig};
use crate::offsets::{Offset, OffsetRange, OffsetVector, PartitionId};
use crate::record::{RawBatch, RawRecord};

mod kafka;

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn broker(dir: &Path) -> (EmbeddedBroker, LogClient) {
    let broker = EmbeddedBroker::start(dir, ANY).await.unwrap();
    let client = LogClient::connect(broker.bootstrap_servers()).unwrap();
    (broker, client)
}

pub(super) fn stream(name: &str, partitions: i32) -> StreamConfig {
    StreamConfig {
        name: name.to_owned(),
        topic: name.to_owned(),
        partitions,
        replication: 1,
        shards: 1,
        format: Format::Json,
        event_time: Some("at".to_owned()),
        allowed_lateness: None,
        max_ahead: Duration::from_secs(86_400),
        columns: Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("at", crate::record::timestamp_type(), true),
        ])),
        json_columns: Vec::new(),
        accept_compacted: false,
        epoch_units: BTreeMap::new(),
    }
}

pub(super) fn to(partition: i32, value: &str) -> ProduceRecord {
    ProduceRecord {
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        partition: Some(PartitionId(partition)),
        ..ProduceRecord::default()
    }
}

async fn next(reader: &mut RawReader) -> Result<RawBatch> {
    tokio::time::timeout(PATIENCE, reader.next()).await.expect("a batch comes in time")
}

/// Reads until every partition of `until` is reached; checks that the ranges are contiguous.
async fn read_to(
    reader: &mut RawReader,
    from: &OffsetVector,
    until: &OffsetVector,
) -> BTreeMap<PartitionId, Vec<RawRecord>> {
    let mut records: BTreeMap<PartitionId, Vec<RawRecord>> = BTreeMap::new();
    let mut position = from.clone();
    while !position.covers(until) {
        let batch = next(reader).await.unwrap();
        let expected = position.get(batch.partition).unwrap_or(Offset(0));
        assert_eq!(batch.range.start, expected, "ranges are contiguous");
        assert!(batch.records.iter().all(|r| batch.range.contains(r.offset)));
        position.set(batch.partition, batch.range.end);
        records.entry(batch.partition).or_default().extend(batch.records);
    }
    records
}

#[tokio::test]
async fn what_is_produced_is_read_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, client) = broker(dir.path()).await;
    let info = client.ensure_topic(&stream("t", 2)).await.unwrap();
    assert_eq!(info.partitions, 2);
    assert_eq!(client.ensure_topic(&stream("t", 5)).await.unwrap(), info, "an existing topic keeps its partitions");

    let producer = Producer::new(&client).unwrap();
    let full = ProduceRecord {
        key: Some(Bytes::from_static(b"k")),
        value: Some(Bytes::from_static(b"v")),
        headers: vec![("a".to_owned(), Some(Bytes::from_static(b"1"))), ("a".to_owned(), None)],
        partition: Some(PartitionId(1)),
        timestamp_millis: Some(1_700_000_000_123),
    };
    let tombstone = ProduceRecord { value: None, headers: Vec::new(), ..full.clone() };
    let empty = ProduceRecord { key: None, value: Some(Bytes::new()), headers: Vec::new(), ..full.clone() };
    let report = producer.produce("t", vec![full, tombstone, empty, to(0, "zero")]).await.unwrap();
    assert_eq!(report.errors, []);
    assert_eq!(report.delivered, 4);
    assert_eq!(report.partitions[&PartitionId(1)], Produced { first: Offset(0), next: Offset(3), records: 3 });
    assert_eq!(report.partitions[&PartitionId(0)], Produced { first: Offset(0), next: Offset(1), records: 1 });
    assert_eq!(
        client.watermarks("t").await.unwrap(),
        [(PartitionId(0), (Offset(0), Offset(1))), (PartitionId(1), (Offset(0), Offset(3)))].into()
    );

    let mut reader = RawReader::open(&client, "t", &OffsetVector::new(), RawReaderOptions::default()).await.unwrap();
    let records = read_to(&mut reader, &OffsetVector::new(), &[(0, 1), (1, 3)].into()).await;
    let of = &records[&PartitionId(1)];
    assert_eq!(of[0].timestamp, Some(1_700_000_000_123_000));
    assert_eq!(of[0].key.as_deref(), Some(&b"k"[..]));
    assert_eq!(of[0].value.as_deref(), Some(&b"v"[..]));
    assert_eq!(of[0].headers, [("a".to_owned(), Some(Bytes::from_static(b"1"))), ("a".to_owned(), None)]);
    assert_eq!((of[1].key.as_deref(), of[1].value.as_deref()), (Some(&b"k"[..]), None));
    assert_eq!((of[2].key.as_deref(), of[2].value.as_deref()), (None, Some(&b""[..])));
    assert_eq!(records[&PartitionId(0)][0].value.as_deref(), Some(&b"zero"[..]));
    assert_eq!(*reader.health().borrow(), Health::Connected);
    let mut ends = reader.log_end();
    let end: OffsetVector = [(0, 1), (1, 3)].into();
    tokio::time::timeout(PATIENCE, ends.wait_for(|known| *known == end)).await.unwrap().unwrap();

    // It goes on with what comes later.
    producer.produce("t", vec![to(0, "one")]).await.unwrap();
    let batch = next(&mut reader).await.unwrap();
    assert_eq!((batch.range.start, batch.records[0].offset), (Offset(1), Offset(1)));
    drop(reader);
    broker.stop().await;
}

#[tokio::test]
async fn records_outlive_the_broker() {
    let dir = tempfile::tempdir().unwrap();
    let (first, client) = broker(dir.path()).await;
    let before = client.ensure_topic(&stream("t", 1)).await.unwrap();
    Producer::new(&client).unwrap().produce("t", (0..1000).map(|i| to(0, &i.to_string())).collect()).await.unwrap();
    first.stop().await;

    let (second, client) = broker(dir.path()).await;
    assert_eq!(client.ensure_topic(&stream("t", 1)).await.unwrap(), before, "the topic and its id stay");
    let from: OffsetVector = [(0, 990)].into();
    let mut reader = RawReader::open(&client, "t", &from, RawReaderOptions::default()).await.unwrap();
    let records = read_to(&mut reader, &from, &[(0, 1000)].into()).await;
    let values: Vec<_> = records[&PartitionId(0)]
        .iter()
        .map(|r| String::from_utf8_lossy(r.value.as_ref().unwrap()).into_owned())
        .collect();
    assert_eq!(values, (990..1000).map(|i| i.to_string()).collect::<Vec<_>>());

    let report = Producer::new(&client).unwrap().produce("t", vec![to(0, "more")]).await.unwrap();
    assert_eq!(report.partitions[&PartitionId(0)].first, Offset(1000), "nothing is given an offset twice");
    drop(reader);
    second.stop().await;
}

#[tokio::test]
async fn batches_are_bounded_and_contiguous() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, client) = broker(dir.path()).await;
    client.ensure_topic(&stream("t", 3)).await.unwrap();
    let records = (0..3000).map(|i| to(i % 3, &format!("{i:04}"))).collect();
    Producer::new(&client).unwrap().produce("t", records).await.unwrap();
    let options = RawReaderOptions { max_batch_records: 100, queued_batches: 1, ..RawReaderOptions::default() };
    let from: OffsetVector = [(0, 10), (2, 1000)].into();
    let mut reader = RawReader::open(&client, "t", &from, options).await.unwrap();
    // The thread runs into the full channel meanwhile.
    crate::clock::sleep(Duration::from_millis(300)).await;
    let start: OffsetVector = [(0, 10), (1, 0), (2, 1000)].into();
    let until: OffsetVector = [(0, 1000), (1, 1000), (2, 1000)].into();
    let mut position = start.clone();
    let mut seen = 0;
    while !position.covers(&until) {
        let batch = next(&mut reader).await.unwrap();
        assert!(batch.records.len() <= 100);
        assert_eq!(position.get(batch.partition), Some(batch.range.start));
        for record in &batch.records {
            let i: i64 = std::str::from_utf8(record.value.as_ref().unwrap()).unwrap().parse().unwrap();
            assert_eq!((i % 3, i / 3), (i64::from(batch.partition.0), record.offset.0));
        }
        seen += batch.records.len();
        position.set(batch.partition, batch.range.end);
    }
    assert_eq!(seen, 990 + 1000);
    drop(reader);
    broker.stop().await;
}

#[tokio::test]
async fn a_record_that_is_too_large_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, client) = broker(dir.path()).await;
    client.ensure_topic(&stream("t", 1)).await.unwrap();
    let producer = Producer::new(&client).unwrap();
    let large = "x".repeat(producer.max_record_bytes() + 1);
    let report = producer.produce("t", vec![to(0, "a"), to(0, &large), to(0, "b"), to(7, "c")]).await.unwrap();
    assert_eq!(report.delivered, 2);
    assert_eq!(report.errors.iter().map(|e| e.index).collect::<Vec<_>>(), [1, 3]);
    assert!(report.errors[0].message.contains("too large: 1000001 bytes"), "{}", report.errors[0].message);
    assert!(report.errors[1].message.contains("partition"), "{}", report.errors[1].message);
    broker.stop().await;
}

/// A cluster of librdkafka's own: what a broker acknowledges in this way depends on which answer was lost.
#[tokio::test]
async fn a_record_that_is_acknowledged_without_its_offset_lies_below_the_end_of_the_log() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    let producer = Producer::new(&LogClient::connect(&cluster.bootstrap_servers()).unwrap()).unwrap();
    let report = producer.produce("t", vec![to(0, "a"), to(0, "b")]).await.unwrap();
    assert_eq!(report.partitions[&PartitionId(0)].next, Offset(2));
    let written_already = RDKafkaRespErr::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER;
    cluster.request_errors(RDKafkaApiKey::Produce, &[written_already]);
    let report = producer.produce("t", vec![to(0, "b")]).await.unwrap();
    assert_eq!((report.delivered, &report.errors[..]), (1, &[][..]));
    let produced = report.partitions[&PartitionId(0)];
    assert_eq!((produced.next, produced.records), (Offset(2), 1), "who waits for that offset has it");
}

#[tokio::test]
async fn an_offset_that_the_log_lacks_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, client) = broker(dir.path()).await;
    client.ensure_topic(&stream("t", 1)).await.unwrap();
    Producer::new(&client).unwrap().produce("t", vec![to(0, "a")]).await.unwrap();
    let refused = async |from: [(i32, i64); 1]| {
        RawReader::open(&client, "t", &from.into(), RawReaderOptions::default()).await.unwrap_err()
    };
    let error = refused([(0, 2)]).await;
    assert!(matches!(error, Error::LogTruncated { end: Offset(1), position: Offset(2), .. }), "{error}");
    let error = refused([(3, 1)]).await;
    assert!(matches!(error, Error::OffsetLost { wanted: Offset(1), .. }), "{error}");
    let error = RawReader::open(&client, "nope", &OffsetVector::new(), RawReaderOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::UnknownTopic { .. }), "{error}");
    let options = RawReaderOptions { topic_id: Some("another".to_owned()), ..RawReaderOptions::default() };
    let error = RawReader::open(&client, "t", &OffsetVector::new(), options).await.unwrap_err();
    assert!(matches!(error, Error::TopicReplaced { .. }), "{error}");
    broker.stop().await;
}

#[tokio::test]
async fn a_cluster_that_is_away_is_said_so() {
    let free = std::net::TcpListener::bind(ANY).unwrap().local_addr().unwrap();
    let properties = [("bootstrap.servers".to_owned(), free.to_string())].into();
    let client = LogClient::with_timeout(&KafkaConfig { properties }, Duration::from_secs(2)).unwrap();
    let error = client.topic("t").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&free.to_string()), "{error}");

    let properties = [("bootstrap.server".to_owned(), "x".to_owned())].into();
    let error = LogClient::new(&KafkaConfig { properties }).unwrap_err();
    assert!(error.to_string().contains("bootstrap.server"), "{error}");
}

#[tokio::test]
async fn a_log_that_is_cut_while_it_is_read_ends_the_reader() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    let client = LogClient::connect(&cluster.bootstrap_servers()).unwrap();
    let producer = Producer::new(&client).unwrap();
    producer.produce("t", vec![to(0, "a"), to(0, "b")]).await.unwrap();
    let mut reader = RawReader::open(&client, "t", &OffsetVector::new(), RawReaderOptions::default()).await.unwrap();
    let start = OffsetVector::new();
    read_to(&mut reader, &start, &[(0, 2)].into()).await;
    let cut = [rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE; 3];
    cluster.request_errors(rdkafka::types::RDKafkaApiKey::Fetch, &cut);
    for _ in 0..2 {
        let error = next(&mut reader).await.unwrap_err();
        assert!(
            matches!(error, Error::OffsetLost { wanted: Offset(2), low: Offset(0), high: Offset(2), .. }),
            "it is told again and again: {error}"
        );
    }
}

#[tokio::test]
async fn a_reader_waits_for_a_broker_that_comes_back() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    let client = LogClient::connect(&cluster.bootstrap_servers()).unwrap();
    let producer = Producer::new(&client).unwrap();
    producer.produce("t", vec![to(0, "a")]).await.unwrap();
    let mut reader = RawReader::open(&client, "t", &OffsetVector::new(), RawReaderOptions::default()).await.unwrap();
    assert_eq!(next(&mut reader).await.unwrap().range, OffsetRange::new(Offset(0), Offset(1)));

    cluster.broker_down(-1).unwrap();
    let mut health = reader.health();
    let down = |h: &Health| matches!(h, Health::Disconnected { .. });
    tokio::time::timeout(PATIENCE, health.wait_for(down)).await.unwrap().unwrap();
    cluster.broker_up(-1).unwrap();
    tokio::time::timeout(PATIENCE, health.wait_for(|h| !down(h))).await.unwrap().unwrap();
    producer.produce("t", vec![to(0, "b")]).await.unwrap();
    let batch = next(&mut reader).await.unwrap();
    assert_eq!(batch.range, OffsetRange::new(Offset(1), Offset(2)));
    assert_eq!(batch.records[0].value.as_deref(), Some(&b"b"[..]));
}
