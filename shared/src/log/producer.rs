//! Producing: idempotent, acknowledged by all replicas, with the outcome of each record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, NoCustomPartitioner, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::Notify;

use super::client::{LogClient, log_line};
use super::error::{Error, Result};
use crate::clock;
use crate::offsets::{Offset, PartitionId};
use crate::record::Headers;

/// A record to be produced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProduceRecord {
    pub key: Option<Bytes>,
    /// `None`: a tombstone.
    pub value: Option<Bytes>,
    pub headers: Headers,
    /// `None`: by the key's hash, as Java clients do; without a key, spread.
    pub partition: Option<PartitionId>,
    /// Milliseconds since the epoch; `None`: now.
    pub timestamp_millis: Option<i64>,
}

/// Where the records of one call went within a partition. Others' records may lie between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Produced {
    /// The lowest offset of them, as far as the log has said where they are.
    pub first: Offset,
    /// All of them lie below: the offset behind the greatest of them, or a later one where the log did not say it.
    pub next: Offset,
    pub records: u64,
}

impl Produced {
    fn at(offset: Offset) -> Self {
        Self { first: offset, next: Offset(offset.0 + 1), records: 1 }
    }

    /// Both together.
    fn and(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            next: self.next.max(other.next),
            records: self.records + other.records,
        }
    }
}

/// The outcome of a call, complete: `delivered` plus the errors are all its records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProduceReport {
    pub delivered: u64,
    pub partitions: BTreeMap<PartitionId, Produced>,
    /// By the record's place in the call, ascending. Such a record may yet have been written if the error is a timeout.
    pub errors: Vec<ProduceError>,
}

/// A record that was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProduceError {
    pub index: usize,
    pub kind: ProduceErrorKind,
    pub message: String,
}

/// Whether it is of use to try the same record again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProduceErrorKind {
    /// Not before a limit is another one.
    TooLarge,
    /// A broker has refused the batch that it came in. No report has it.
    BatchTooLarge,
    /// Not before the user has been granted it.
    Denied,
    /// It may be.
    Failed,
}

impl ProduceReport {
    fn add(&mut self, more: Self) {
        self.delivered += more.delivered;
        for (partition, added) in more.partitions {
            self.put(partition, added);
        }
        self.errors.extend(more.errors);
        self.errors.sort_by_key(|error| error.index);
    }

    fn put(&mut self, partition: PartitionId, added: Produced) {
        self.partitions.entry(partition).and_modify(|known| *known = known.and(added)).or_insert(added);
    }

    /// Takes up records that are written below `end`, it is not known where.
    fn place(&mut self, partition: PartitionId, indexes: &[usize], end: std::result::Result<Offset, String>) {
        let records = indexes.len() as u64;
        match end {
            Ok(end) => {
                self.delivered += records;
                let first = self.partitions.get(&partition).map_or(end, |known| known.first);
                self.put(partition, Produced { first, next: end, records });
            }
            Err(error) => {
                let message = format!("it is written, but the log does not say where it ends: {error}");
                let failed = |index: &usize| ProduceError {
                    index: *index,
                    kind: ProduceErrorKind::Failed,
                    message: message.clone(),
                };
                self.errors.extend(indexes.iter().map(failed));
            }
        }
    }
}

/// Why a record was not acknowledged, before its place in the call is known.
type Refusal = (ProduceErrorKind, String);

/// Produces to any topic of a cluster. Cheap to clone; all clones share one connection and its buffers.
#[derive(Clone)]
pub struct Producer {
    config: Arc<ClientConfig>,
    max_bytes: usize,
    current: Arc<Mutex<Connection>>,
    /// Sends each record by itself; made when it is needed.
    singly: Arc<Mutex<Option<Connection>>>,
}

type Connection = Arc<ThreadedProducer<Deliveries>>;

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").field("max_bytes", &self.max_bytes).finish_non_exhaustive()
    }
}

/// For the question where the log ends.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a full buffer is waited for before it is looked at again, if no delivery wakes the caller before.
const FULL_PAUSE: Duration = Duration::from_millis(20);

impl Producer {
    /// # Errors
    /// [`Error::Properties`]: a property of the `[kafka]` section is not valid, or contradicts an idempotent producer.
    pub fn new(client: &LogClient) -> Result<Self> {
        let given = client.properties();
        if let Some(id) = given.get("transactional.id") {
            return Err(Error::Properties {
                detail: format!("`transactional.id` = \"{id}\": transactions are not used here, remove it"),
            });
        }
        let mut config = client.base_config();
        for (key, value) in [
            ("linger.ms", "2"),
            ("batch.num.messages", "50000"),
            ("queue.buffering.max.messages", "500000"),
            ("queue.buffering.max.kbytes", "65536"),
            // As Java clients: the same key goes to the same partition whoever produces it.
            ("partitioner", "murmur2_random"),
            ("message.timeout.ms", "60000"),
            ("reconnect.backoff.max.ms", "2000"),
        ] {
            let alias = match key {
                "message.timeout.ms" => "delivery.timeout.ms",
                "linger.ms" => "queue.buffering.max.ms",
                other => other,
            };
            if !given.contains_key(key) && !given.contains_key(alias) {
                config.set(key, value);
            }
        }
        config.set("enable.idempotence", "true").set("acks", "all");
        config.remove("request.required.acks");
        let max_bytes = given.get("message.max.bytes").and_then(|v| v.parse().ok()).unwrap_or(1_000_000);
        let current = Arc::new(Mutex::new(connect(&config)?));
        Ok(Self { config: Arc::new(config), max_bytes, current, singly: Arc::default() })
    }

    /// The greatest record that is taken (`message.max.bytes`); the broker may have a lower limit.
    pub fn max_record_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Produces `records` in their order and waits until each is acknowledged or has failed.
    ///
    /// Within a partition records are written in order, each once, even if connections break. In-flight bytes are bounded: it waits
    /// while the buffers are full. Not cancel safe: records that were handed over are written even if nobody waits any more.
    ///
    /// A record that fails is reported by its index and does not stop the others. A broker refuses a whole batch that is
    /// larger than the topic's `max.message.bytes`; its records are sent again, each by itself, in their order but behind
    /// others of the call.
    ///
    /// # Errors
    /// Only when no producer can be made at all.
    pub async fn produce(&self, topic: &str, records: Vec<ProduceRecord>) -> Result<ProduceReport> {
        let whole = (0..records.len()).collect::<Vec<_>>();
        let mut report = self.send(&self.connection()?, topic, &records, &whole).await;
        let batch_refused = |error: &ProduceError| error.kind == ProduceErrorKind::BatchTooLarge;
        let again: Vec<usize> = report.errors.extract_if(.., |e| batch_refused(e)).map(|e| e.index).collect();
        if !again.is_empty() {
            tracing::debug!(topic, records = again.len(), "a batch was too large for the topic, sending them singly");
            report.add(self.send(&self.single_connection()?, topic, &records, &again).await);
        }
        for error in &mut report.errors {
            if batch_refused(error) {
                error.kind = ProduceErrorKind::TooLarge;
            }
        }
        Ok(report)
    }

    /// Sends those of `records` that `which` names, in that order, and waits for the outcome of each.
    async fn send(
        &self,
        connection: &Connection,
        topic: &str,
        records: &[ProduceRecord],
        which: &[usize],
    ) -> ProduceReport {
        let call = Arc::new(Call::default());
        for index in which.iter().copied() {
            let record = &records[index];
            let mut delivery = Box::new(Delivery { call: Arc::clone(&call), index });
            call.outstanding.lock().count += 1;
            loop {
                let freed = connection.client().context().freed.notified();
                match connection.send(base_record(topic, record, delivery)) {
                    Ok(()) => break,
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                        delivery = back.delivery_opaque;
                        // Woken by a delivery; the pause is there in case another caller took the place.
                        tokio::select! {
                            () = freed => {}
                            () = clock::sleep(FULL_PAUSE) => {}
                        }
                    }
                    Err((error, back)) => {
                        let size = record.value.as_ref().map_or(0, Bytes::len);
                        back.delivery_opaque.settle(Err(self.explain(&error, topic, size)));
                        break;
                    }
                }
            }
        }
        let Outstanding { mut report, unplaced, .. } = call.finished().await;
        for (partition, indexes) in unplaced {
            report.place(partition, &indexes, end(connection, topic, partition).await);
        }
        report.errors.sort_by_key(|error| error.index);
        let outcomes = report.delivered + report.errors.len() as u64;
        assert_eq!(outcomes, which.len() as u64, "each record is delivered or has an error");
        report
    }

    fn single_connection(&self) -> Result<Connection> {
        let mut singly = self.singly.lock();
        if let Some(known) = singly.as_ref().filter(|known| known.client().fatal_error().is_none()) {
            return Ok(Arc::clone(known));
        }
        let mut config = ClientConfig::clone(&self.config);
        config.set("batch.num.messages", "1");
        let new = connect(&config)?;
        *singly = Some(Arc::clone(&new));
        Ok(new)
    }

    /// The current connection; a new one when the old one has failed for good.
    fn connection(&self) -> Result<Connection> {
        let mut current = self.current.lock();
        if let Some((code, reason)) = current.client().fatal_error() {
            tracing::warn!(%code, reason, "the producer failed for good, connecting anew");
            *current = connect(&self.config)?;
        }
        Ok(Arc::clone(&current))
    }

    /// Why a record of `size` bytes is not even taken to be sent.
    fn explain(&self, error: &KafkaError, topic: &str, size: usize) -> Refusal {
        match explain(error, topic, size, self.max_bytes) {
            (ProduceErrorKind::BatchTooLarge, message) => (ProduceErrorKind::TooLarge, message),
            other => other,
        }
    }
}

/// Where the log of a partition ends now.
async fn end(connection: &Connection, topic: &str, partition: PartitionId) -> std::result::Result<Offset, String> {
    let (connection, topic) = (Arc::clone(connection), topic.to_owned());
    let asked = move || connection.client().fetch_watermarks(&topic, partition.0, END_TIMEOUT);
    let asked = tokio::task::spawn_blocking(asked).await.map_err(|e| e.to_string())?;
    asked.map(|(_, end)| Offset(end)).map_err(|e| e.to_string())
}

fn connect(config: &ClientConfig) -> Result<Connection> {
    let deliveries = Deliveries {
        freed: Notify::new(),
        max_bytes: config.get("message.max.bytes").and_then(|v| v.parse().ok()).unwrap_or(1_000_000),
    };
    let producer: ThreadedProducer<Deliveries> = config.create_with_context(deliveries).map_err(Error::properties)?;
    Ok(Arc::new(producer))
}

fn base_record<'a>(
    topic: &'a str,
    record: &'a ProduceRecord,
    delivery: Box<Delivery>,
) -> BaseRecord<'a, [u8], [u8], Box<Delivery>> {
    let mut base = BaseRecord::with_opaque_to(topic, delivery);
    base.key = record.key.as_deref();
    base.payload = record.value.as_deref();
    base.partition = record.partition.map(|p| p.0);
    base.timestamp = record.timestamp_millis;
    if !record.headers.is_empty() {
        let headers = OwnedHeaders::new_with_capacity(record.headers.len());
        base.headers = Some(
            record
                .headers
                .iter()
                .fold(headers, |headers, (key, value)| headers.insert(Header { key, value: value.as_deref() })),
        );
    }
    base
}

fn explain(error: &KafkaError, topic: &str, size: usize, max_bytes: usize) -> Refusal {
    let Some(code) = error.rdkafka_error_code() else { return (ProduceErrorKind::Failed, error.to_string()) };
    match code {
        RDKafkaErrorCode::MessageSizeTooLarge => {
            let message = format!(
                "the record is too large: {size} bytes; a client takes up to {max_bytes} (`\"message.max.bytes\"` in [kafka]), \
                 a topic up to its `max.message.bytes`"
            );
            (ProduceErrorKind::BatchTooLarge, message)
        }
        // The second is said where the user may write to no topic at all.
        RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed => {
            let message = format!(
                "the Kafka cluster denies writing to the topic `{topic}`: grant the user of the [kafka] section WRITE on it"
            );
            (ProduceErrorKind::Denied, message)
        }
        code => (ProduceErrorKind::Failed, failure(code, topic)),
    }
}

fn failure(code: RDKafkaErrorCode, topic: &str) -> String {
    match code {
        RDKafkaErrorCode::UnknownPartition => format!("the topic `{topic}` has no such partition"),
        RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition => {
            format!("the topic `{topic}` does not exist")
        }
        RDKafkaErrorCode::MessageTimedOut => {
            "no acknowledgement in time (`\"message.timeout.ms\"`); the record may or may not have been written"
                .to_owned()
        }
        code => code.to_string(),
    }
}

/// One call of [`Producer::produce`].
#[derive(Default)]
struct Call {
    outstanding: Mutex<Outstanding>,
    done: Notify,
}

#[derive(Default)]
struct Outstanding {
    count: usize,
    report: ProduceReport,
    /// By the record's place in the call: acknowledged, though not where.
    unplaced: BTreeMap<PartitionId, Vec<usize>>,
}

impl Call {
    async fn finished(&self) -> Outstanding {
        loop {
            let done = self.done.notified();
            {
                let mut outstanding = self.outstanding.lock();
                if outstanding.count == 0 {
                    return std::mem::take(&mut outstanding);
                }
            }
            done.await;
        }
    }
}

/// Travels with a record through librdkafka, so that its outcome finds its call.
struct Delivery {
    call: Arc<Call>,
    index: usize,
}

impl Delivery {
    /// SUBTLE: a batch whose acknowledgement was lost is sent again; a broker that knows it already may acknowledge it
    /// without an offset.
    fn settle(&self, outcome: std::result::Result<(PartitionId, Offset), Refusal>) {
        let mut outstanding = self.call.outstanding.lock();
        match outcome {
            Ok((partition, offset)) if offset.0 >= 0 => {
                outstanding.report.delivered += 1;
                outstanding.report.put(partition, Produced::at(offset));
            }
            Ok((partition, _)) => outstanding.unplaced.entry(partition).or_default().push(self.index),
            Err((kind, message)) => {
                outstanding.report.errors.push(ProduceError { index: self.index, kind, message });
            }
        }
        outstanding.count -= 1;
        if outstanding.count == 0 {
            self.call.done.notify_one();
        }
    }
}

/// Receives every acknowledgement of a connection.
struct Deliveries {
    /// Told of each delivery: there is room in the buffers.
    freed: Notify,
    max_bytes: usize,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka producer reports");
    }
}

impl ProducerContext<NoCustomPartitioner> for Deliveries {
    type DeliveryOpaque = Box<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Box<Delivery>) {
        let outcome = match result {
            Ok(message) => Ok((PartitionId(message.partition()), Offset(message.offset()))),
            Err((error, message)) => {
                Err(explain(error, message.topic(), message.payload().map_or(0, <[u8]>::len), self.max_bytes))
            }
        };
        delivery.settle(outcome);
        self.freed.notify_one();
    }
}
