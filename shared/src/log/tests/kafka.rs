//! What the embedded broker cannot do, on the real Kafka that `cargo xtask test` starts.

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset as KafkaOffset, TopicPartitionList};

use super::*;

fn cluster() -> Option<(String, String)> {
    let servers = crate::testing::real_component("WATERSHED_TEST_KAFKA");
    servers.map(|s| (s, format!("test-{}", uuid::Uuid::new_v4())))
}

fn config(servers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers);
    config
}

fn admin(servers: &str) -> AdminClient<DefaultClientContext> {
    config(servers).create().unwrap()
}

/// Produces `values` to partition 0 in one transaction.
fn transaction(producer: &BaseProducer, topic: &str, values: &[&str], commit: bool) {
    producer.begin_transaction().unwrap();
    for value in values {
        producer.send(BaseRecord::<(), str>::to(topic).partition(0).payload(value)).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    match commit {
        true => producer.commit_transaction(PATIENCE).unwrap(),
        false => producer.abort_transaction(PATIENCE).unwrap(),
    }
}

#[tokio::test]
async fn control_records_and_aborted_tails_are_passed_over() {
    let Some((servers, topic)) = cluster() else { return };
    let client = LogClient::connect(&servers).unwrap();
    let info = client.ensure_topic(&stream(&topic, 1)).await.unwrap();
    assert!(info.topic_id.is_some());
    let producer: BaseProducer = config(&servers).set("transactional.id", &topic).create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    transaction(&producer, &topic, &["a", "b"], true); // 0, 1, commit marker at 2
    transaction(&producer, &topic, &["x", "y"], false); // 3, 4, abort marker at 5

    let mut reader = RawReader::open(&client, &topic, &OffsetVector::new(), RawReaderOptions::default()).await.unwrap();
    let start = OffsetVector::new();
    let records = read_to(&mut reader, &start, &[(0, 6)].into()).await;
    let offsets = |r: &BTreeMap<PartitionId, Vec<RawRecord>>| {
        r.get(&PartitionId(0)).map(|r| r.iter().map(|r| r.offset.0).collect::<Vec<_>>()).unwrap_or_default()
    };
    assert_eq!(offsets(&records), [0, 1]);

    transaction(&producer, &topic, &["c"], true); // 6, commit marker at 7
    let records = read_to(&mut reader, &[(0, 6)].into(), &[(0, 8)].into()).await;
    assert_eq!(offsets(&records), [6]);
    // An open transaction holds the last stable offset, whatever comes behind it.
    producer.begin_transaction().unwrap();
    producer.send(BaseRecord::<(), str>::to(&topic).partition(0).payload("open")).map_err(|(e, _)| e).unwrap();
    producer.flush(PATIENCE).unwrap();
    Producer::new(&client).unwrap().produce(&topic, vec![to(0, "behind")]).await.unwrap();
    assert_eq!(client.watermarks(&topic).await.unwrap()[&PartitionId(0)], (Offset(0), Offset(8)));
    assert!(tokio::time::timeout(Duration::from_secs(1), reader.next()).await.is_err(), "nothing is stable yet");
    producer.abort_transaction(PATIENCE).unwrap();
    let records = read_to(&mut reader, &[(0, 8)].into(), &[(0, 11)].into()).await;
    assert_eq!(offsets(&records), [9]);
}

#[tokio::test]
async fn a_new_partition_is_read_from_its_beginning() {
    let Some((servers, topic)) = cluster() else { return };
    let client = LogClient::connect(&servers).unwrap();
    client.ensure_topic(&stream(&topic, 1)).await.unwrap();
    let options = RawReaderOptions { refresh_interval: Duration::from_millis(200), ..RawReaderOptions::default() };
    let mut reader = RawReader::open(&client, &topic, &OffsetVector::new(), options).await.unwrap();
    let new = NewPartitions::new(&topic, 2);
    admin(&servers).create_partitions([&new], &AdminOptions::new()).await.unwrap();
    let producer = Producer::new(&client).unwrap();
    for _ in 0..100 {
        let report = producer.produce(&topic, vec![to(1, "a")]).await.unwrap();
        if report.errors.is_empty() {
            break;
        }
        crate::clock::sleep(Duration::from_millis(100)).await;
    }
    let batch = next(&mut reader).await.unwrap();
    assert_eq!((batch.partition, batch.range.start), (PartitionId(1), Offset(0)));
    assert_eq!(batch.records[0].value.as_deref(), Some(&b"a"[..]));
}

#[tokio::test]
async fn what_retention_deleted_is_lost_and_a_new_topic_is_another() {
    let Some((servers, topic)) = cluster() else { return };
    let client = LogClient::connect(&servers).unwrap();
    let info = client.ensure_topic(&stream(&topic, 1)).await.unwrap();
    let producer = Producer::new(&client).unwrap();
    producer.produce(&topic, (0..10).map(|i| to(0, &i.to_string())).collect()).await.unwrap();
    let mut below = TopicPartitionList::new();
    below.add_partition_offset(&topic, 0, KafkaOffset::Offset(4)).unwrap();
    admin(&servers).delete_records(&below, &AdminOptions::new()).await.unwrap();
    let options = RawReaderOptions {
        refresh_interval: Duration::from_millis(200),
        topic_id: info.topic_id.clone(),
        ..RawReaderOptions::default()
    };
    let error = RawReader::open(&client, &topic, &[(0, 3)].into(), options.clone()).await.unwrap_err();
    assert!(matches!(error, Error::OffsetLost { wanted: Offset(3), low: Offset(4), high: Offset(10), .. }), "{error}");

    let from: OffsetVector = [(0, 4)].into();
    let mut reader = RawReader::open(&client, &topic, &from, options).await.unwrap();
    read_to(&mut reader, &from, &[(0, 10)].into()).await;
    admin(&servers).delete_topics(&[topic.as_str()], &AdminOptions::new()).await.unwrap();
    for _ in 0..100 {
        if client.ensure_topic(&stream(&topic, 1)).await.is_ok_and(|new| new != info) {
            break;
        }
        crate::clock::sleep(Duration::from_millis(100)).await;
    }
    let error = next(&mut reader).await.unwrap_err();
    assert!(matches!(error, Error::TopicReplaced { .. } | Error::UnknownTopic { .. }), "{error}");
}
