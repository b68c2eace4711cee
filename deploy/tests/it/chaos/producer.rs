//! A producer with idempotence that never gives up, and tells the ledger what was acknowledged.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};

use super::ledger::{ID, Ledger, Sent};
use super::{PARTITIONS, PATIENCE, TOPIC, Watch};
use crate::oracle::events::{Format, Generator, Kind, Record, START};

struct Acknowledgements(Arc<Ledger>);

impl ClientContext for Acknowledgements {
    // What it says of brokers that are away is expected.
    fn error(&self, _error: KafkaError, _reason: &str) {}
}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Self::DeliveryOpaque) {
        match result {
            Ok(message) if message.offset() >= 0 => self.0.acknowledged(*sent, message.offset()),
            Ok(message) => self.0.without_offset(*sent, format!("acknowledged at {}", message.offset())),
            Err((error, _)) => self.0.without_offset(*sent, error.to_string()),
        }
    }
}

/// Produces in bursts until `stop`, then waits until everything has an outcome.
pub(super) fn run(bootstrap: &str, seed: u64, ledger: &Arc<Ledger>, stop: &Watch) {
    let producer: ThreadedProducer<Acknowledgements> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        // Until it is acknowledged, however long no broker answers.
        .set("message.timeout.ms", "0")
        .set("socket.timeout.ms", "10000")
        .create_with_context(Acknowledgements(Arc::clone(ledger)))
        .expect("a producer");
    let mut generator = Generator::new(seed, PARTITIONS, Format::Json);
    generator.bad_percent = 5;
    let mut random = StdRng::seed_from_u64(seed);
    let mut id = 0;
    while !stop.is_over() {
        for _ in 0..random.random_range(1..20) {
            let (partition, mut record) = generator.placed();
            compress(&mut record);
            id += 1;
            let (payload, timestamp) = (record.payload(Format::Json), record.timestamp);
            let number = u64::to_be_bytes(id);
            let headers = OwnedHeaders::new().insert(Header { key: ID, value: Some(&number) });
            let mut next = BaseRecord::<(), [u8], _>::with_opaque_to(TOPIC, Box::new(Sent { id, partition, record }));
            next = next.partition(partition).timestamp(timestamp).headers(headers);
            next.payload = payload.as_deref();
            while let Err((error, unsent)) = producer.send(next) {
                assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull), "{error}");
                std::thread::sleep(Duration::from_millis(50));
                next = unsent;
            }
        }
        std::thread::sleep(Duration::from_millis(random.random_range(50..400)));
    }
    producer.flush(PATIENCE).expect("everything has an outcome");
}

/// Brings the times nearer to each other: a file of the master dataset holds one day, and each event of the oracle's is
/// minutes behind the one before. Late ones stay late, clocks that are wrong stay wrong.
fn compress(record: &mut Record) {
    const FACTOR: i64 = 60;
    record.timestamp = (START / 1000) + (record.timestamp - START / 1000) / FACTOR;
    if let Kind::Event(row) = &mut record.kind
        && let Some(t) = &mut row.t
    {
        *t = START + (*t - START) / FACTOR;
    }
}
