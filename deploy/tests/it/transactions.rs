//! Kafka's transactions, which only a real Kafka has: what is aborted never counts, and what transactions leave in the
//! log beside their records holds nobody up and is not taken for loss.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, Producer};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::harness::{Running, config_head, real_kafka, send};

const PATIENCE: Duration = Duration::from_secs(120);

/// A transactional producer.
struct Transactions {
    producer: FutureProducer,
    runtime: Runtime,
}

impl Transactions {
    fn new(bootstrap: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("transactional.id", id).set("linger.ms", "2");
        let producer: FutureProducer = config.create().expect("a producer");
        producer.init_transactions(PATIENCE).expect("transactions");
        Self { producer, runtime: Runtime::new().expect("a runtime") }
    }

    /// Produces records, at least one, in one transaction; answers their offsets.
    ///
    /// On return the transaction's marker is in each partition, one offset behind its last record there.
    fn produce(&self, topic: &str, records: &[(i32, i64, Option<Vec<u8>>)], commit: bool) -> Vec<i64> {
        self.begin();
        let offsets = send(&self.runtime, &self.producer, topic, records);
        self.end(commit);
        let last: BTreeMap<i32, i64> = records.iter().map(|(p, ..)| *p).zip(offsets.iter().copied()).collect();
        for (partition, offset) in last {
            // The coordinator answers first and writes the markers then.
            while self.stable_end(topic, partition) < offset + 2 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        offsets
    }

    fn begin(&self) {
        self.producer.begin_transaction().expect("a transaction begins");
    }

    fn end(&self, commit: bool) {
        match commit {
            true => self.producer.commit_transaction(PATIENCE).expect("committed"),
            false => self.producer.abort_transaction(PATIENCE).expect("aborted"),
        }
    }

    /// Up to where a reader of what is committed gets.
    fn stable_end(&self, topic: &str, partition: i32) -> i64 {
        self.producer.client().fetch_watermarks(topic, partition, PATIENCE).expect("watermarks").1
    }
}

#[test]
fn an_aborted_transaction_at_the_end_of_the_log_holds_nobody_up() {
    let Some(bootstrap) = real_kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    let stream = format!("transactions_{}", std::process::id());
    let config = config(&bootstrap, &stream);
    let running = Running::start(&config, dir.path());
    let transactions = Transactions::new(&bootstrap);

    assert_eq!(transactions.produce(&stream, &records(&[1, 2, 3]), true), [0, 1, 2]);
    assert_eq!(transactions.produce(&stream, &records(&[100, 200]), false), [4, 5]);
    // Six offsets are behind it, and the abort's marker is the last thing in the log.
    ask(&running, 7, 3, 6);
    let id = running.client().build("total", "rebuild").expect("no other build runs");
    assert_eq!(running.client().wait_build(&id, PATIENCE)["state"], "succeeded");
    let meta = ask(&running, 7, 3, 6);
    assert_eq!(meta["partitions"]["0"]["batch_until"], 7, "{meta}");

    // An open transaction is not in the log yet; what others commit behind it has to wait for it.
    transactions.begin();
    send(&transactions.runtime, &transactions.producer, &stream, &records(&[1000]));
    let other = Transactions::new(&bootstrap);
    other.begin();
    assert_eq!(send(&other.runtime, &other.producer, &stream, &records(&[4])), [8]);
    other.end(true);
    let meta = ask(&running, 7, 3, 6);
    assert_eq!(meta["partitions"]["0"]["position"], 7, "{meta}");
    transactions.end(false);
    ask(&running, 11, 4, 10);

    // A kill and the way back, through what is archived and what is only in the log: no hole is taken for loss.
    running.kill();
    let running = Running::start(&config, dir.path());
    ask(&running, 11, 4, 10);
    let id = running.client().build("total", "refresh").expect("no other build runs");
    assert_eq!(running.client().wait_build(&id, PATIENCE)["state"], "succeeded");
    let meta = ask(&running, 11, 4, 10);
    assert_eq!(meta["partitions"]["0"]["batch_until"], 11, "{meta}");
    running.stop();
}

/// Waits for the position `end` and compares the answer; it must be complete. Answers the view's meta.
fn ask(running: &Running, end: i64, count: i64, sum: i64) -> Value {
    let mut body = running.client().view_waiting("total", &[(0, end)].into(), PATIENCE);
    assert_eq!(body["rows"], json!([{"n": count, "sum": sum}]));
    let meta = body["meta"]["views"]["total"].take();
    assert_eq!(meta["complete"], true, "{meta}");
    meta
}

fn records(values: &[i64]) -> Vec<(i32, i64, Option<Vec<u8>>)> {
    let record = |v: &i64| (0, 1_700_000_000_000, Some(format!("{{\"v\": {v}}}").into_bytes()));
    values.iter().map(record).collect()
}

fn config(bootstrap: &str, stream: &str) -> String {
    let head = config_head(bootstrap, "200 ms", "");
    format!(
        r#"{head}[stream.{stream}]
partitions = 1
format = "json"
columns = "v BIGINT"
[view.total]
sql = "SELECT count(*) AS n, sum(v) AS sum FROM {stream}"
"#
    )
}
