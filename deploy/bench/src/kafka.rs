//! The log: topics that are filled once and read by every run.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, FutureProducer, Producer};
use rdkafka::types::RDKafkaErrorCode;

use crate::events::Shape;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A Kafka that somebody else runs.
#[derive(Debug, Clone)]
pub(crate) struct Kafka {
    pub(crate) bootstrap_servers: String,
}

/// A topic, deleted when it is dropped if it was created here.
#[derive(Debug)]
pub(crate) struct Topic {
    kafka: Kafka,
    created: bool,
    pub(crate) name: String,
    pub(crate) partitions: i32,
}

impl Kafka {
    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap_servers);
        config
    }

    /// A producer that is to be fast, with `settings` on top.
    pub(crate) fn producer(&self, settings: &[(&str, &str)]) -> Result<BaseProducer> {
        let mut config = self.config();
        config
            .set("linger.ms", "20")
            .set("batch.size", "1000000")
            .set("batch.num.messages", "10000")
            .set("queue.buffering.max.messages", "500000")
            .set("queue.buffering.max.kbytes", "262144");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        config.create().context("make a producer")
    }

    /// A producer of single records, each sent at once.
    pub(crate) fn probe_producer(&self) -> Result<FutureProducer> {
        self.config().set("linger.ms", "0").create().context("make a producer")
    }

    /// Creates a topic with a name that was never used.
    pub(crate) async fn create_topic(&self, name: &str, partitions: i32) -> Result<Topic> {
        let unique = watershed_shared::clock::now().timestamp_micros();
        let name = format!("bench-{name}-{}-{unique}", std::process::id());
        let admin: AdminClient<DefaultClientContext> = self.config().create()?;
        let new = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        let results = admin.create_topics([&new], &AdminOptions::new().operation_timeout(Some(TIMEOUT))).await;
        let results = results.with_context(|| format!("create a topic at {}", self.bootstrap_servers))?;
        for result in results {
            result.map_err(|(topic, code)| anyhow!("create topic {topic}: {code}"))?;
        }
        Ok(Topic { kafka: self.clone(), created: true, name, partitions })
    }
}

impl Topic {
    /// One that somebody else created.
    pub(crate) fn existing(kafka: Kafka, name: &str, partitions: i32) -> Self {
        Self { kafka, created: false, name: name.to_owned(), partitions }
    }

    /// Publishes the records `0..count` of `shape` evenly to all partitions and waits until the log has them all.
    pub(crate) fn fill(&self, shape: Shape, count: u64) -> Result<()> {
        let producer = self.kafka.producer(&[])?;
        let mut value = String::new();
        for i in 0..count {
            shape.write(i, count, &mut value);
            // Blocks of neighbours, so that partitions advance together in event time.
            let partition = i32::try_from(i / 1000 % u64::try_from(self.partitions)?)?;
            send(&producer, &self.name, partition, value.as_bytes())?;
        }
        producer.flush(TIMEOUT).context("wait for acknowledgements")
    }

    /// The next offset of each partition.
    pub(crate) fn ends(&self) -> Result<BTreeMap<i32, i64>> {
        let consumer: BaseConsumer = self.kafka.config().create()?;
        let mut ends = BTreeMap::new();
        for partition in 0..self.partitions {
            let (_, end) = consumer.fetch_watermarks(&self.name, partition, TIMEOUT)?;
            ends.insert(partition, end);
        }
        Ok(ends)
    }

    /// Checks that the log has what was sent, no more and no less.
    pub(crate) fn expect_records(&self, count: u64) -> Result<BTreeMap<i32, i64>> {
        let ends = self.ends()?;
        let have: i64 = ends.values().sum();
        ensure!(have == i64::try_from(count)?, "topic {} holds {have} records, not {count}", self.name);
        Ok(ends)
    }
}

/// Sends one record; waits while the producer's queue is full.
pub(crate) fn send(producer: &BaseProducer, topic: &str, partition: i32, value: &[u8]) -> Result<()> {
    loop {
        match producer.send(BaseRecord::<(), [u8]>::to(topic).partition(partition).payload(value)) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                producer.poll(Duration::from_millis(10));
            }
            Err((error, _)) => return Err(error).context("send a record"),
        }
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        if !self.created {
            return;
        }
        let Ok(admin) = self.kafka.config().create::<AdminClient<DefaultClientContext>>() else { return };
        // What stays is removed with the broker.
        let options = AdminOptions::new();
        let deleted = admin.delete_topics(&[&self.name], &options);
        drop(std::thread::scope(|scope| scope.spawn(|| futures::executor::block_on(deleted)).join()));
    }
}
