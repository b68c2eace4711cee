//! `watershed produce` into the embedded broker.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::json;
use tokio::runtime::Runtime;
use watershed_shared::log::EmbeddedBroker;

use crate::program::watershed;

const CONFIG: &str = r#"
[stream.s]
partitions = 2
columns = '"Brand Name" VARCHAR, id VARCHAR, n BIGINT, "Rating (Out of 5)" DOUBLE'

[stream.lines]
format = "text"
"#;

/// A folder with a configuration, and its broker.
struct Platform {
    broker: EmbeddedBroker,
    _runtime: Runtime,
    dir: tempfile::TempDir,
}

impl Platform {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("watershed.toml"), CONFIG).expect("a file");
        let runtime = Runtime::new().expect("a runtime");
        let listen = "127.0.0.1:0".parse().expect("an address");
        let broker = runtime.block_on(EmbeddedBroker::start(&dir.path().join("data"), listen)).expect("a broker");
        Self { broker, _runtime: runtime, dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// All records of a topic: partition → (key, value) in their order.
    fn records(&self, topic: &str, partitions: i32) -> BTreeMap<i32, Vec<(Option<String>, String)>> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.broker.bootstrap_servers())
            .set("group.id", "test")
            .set("enable.partition.eof", "true")
            .create()
            .expect("a consumer");
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
        }
        consumer.assign(&assignment).expect("assigned");
        let mut records: BTreeMap<i32, Vec<_>> = BTreeMap::new();
        let mut ends = 0;
        while ends < partitions {
            match consumer.poll(Duration::from_secs(20)).expect("a record or an end") {
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ends += 1,
                Err(error) => panic!("{error}"),
                Ok(record) => {
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
                    let entry = (record.key().map(text), record.payload().map(text).expect("no tombstone"));
                    records.entry(record.partition()).or_default().push(entry);
                }
            }
        }
        records
    }

    fn values(&self, topic: &str, partitions: i32) -> Vec<String> {
        let mut values: Vec<String> = self.records(topic, partitions).into_values().flatten().map(|r| r.1).collect();
        values.sort();
        values
    }
}

#[test]
fn records_are_published_and_counted_per_partition() {
    let platform = Platform::start();
    let file = platform.path().join("a.json.gz");
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for n in 0..5_000 {
        writeln!(zip, "{{\"id\": \"k{}\", \"n\": {n}}}", n % 7).expect("memory");
    }
    std::fs::write(&file, zip.finish().expect("memory")).expect("a file");
    let args = ["produce", "s", "--from", "a.json.gz", "--key", "id", "--format", "json"];
    let report = watershed(platform.path(), &args, b"").expect_status(0).json();
    let records = platform.records("s", 2);
    let partitions: serde_json::Map<String, serde_json::Value> =
        records.iter().map(|(p, r)| (p.to_string(), json!({"first": 0, "next": r.len()}))).collect();
    let expected = json!({
        "stream": "s", "read": 5_000, "delivered": 5_000, "failed": 0, "partitions": partitions, "errors": [],
    });
    assert_eq!(report, expected);
    // One key, one partition, in the order of the file.
    let mut last: BTreeMap<String, (i32, i64)> = BTreeMap::new();
    for (partition, records) in &records {
        for (key, value) in records {
            let value: serde_json::Value = serde_json::from_str(value).expect("JSON");
            assert_eq!(key.as_deref(), value["id"].as_str());
            let n = value["n"].as_i64().expect("a number");
            let before = last.insert(key.clone().expect("a key"), (*partition, n));
            assert!(before.is_none_or(|(p, before)| p == *partition && before < n), "{key:?}: {before:?}, {n}");
        }
    }
    // What comes later begins where that ended.
    let report =
        watershed(platform.path(), &["produce", "s", "--key", "id", "--format", "json"], b"\n{\"id\":\"k1\"}\n\n");
    let report = report.expect_status(0).json();
    let (partition, offsets) = report["partitions"].as_object().and_then(|p| p.iter().next()).expect("a partition");
    let partition = partition.parse::<i32>().expect("a number");
    let next = records[&partition].len();
    assert_eq!((report["read"].as_u64(), offsets), (Some(1), &json!({"first": next, "next": next + 1})));
}

#[test]
fn rows_of_csv_become_objects() {
    let platform = Platform::start();
    let csv = "\u{feff}Brand Name,id,n,Rating (Out of 5)\n\"Fit\"\"Bit\nInc\",\"2,499\",14,4.10\nx,,\"2,499\",\nshort,1\nlast,9,9,9\n";
    let args = ["produce", "s", "--input", "csv", "--format", "json"];
    let report = watershed(platform.path(), &args, csv.as_bytes()).expect_status(1).json();
    assert_eq!(
        (report["read"].as_u64(), report["delivered"].as_u64(), report["failed"].as_u64()),
        (Some(4), Some(3), Some(1))
    );
    assert_eq!(report["errors"], json!([{"line": 5, "error": "the row has 2 fields, the header 4"}]));
    assert_eq!(
        platform.values("s", 2),
        [
            r#"{"Brand Name":"Fit\"Bit\nInc","id":"2,499","n":14,"Rating (Out of 5)":4.10}"#,
            r#"{"Brand Name":"last","id":"9","n":9,"Rating (Out of 5)":9}"#,
            r#"{"Brand Name":"x","id":null,"n":"2,499","Rating (Out of 5)":null}"#,
        ]
    );
    let args = ["produce", "lines", "--input", "csv"];
    let ended = watershed(platform.path(), &args, csv.as_bytes()).expect_status(2);
    assert!(ended.stderr.contains("--input csv makes JSON objects"), "{}", ended.stderr);
}

#[test]
fn lines_of_a_socket_are_published_as_they_are() {
    let platform = Platform::start();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let from = format!("tcp://{}", listener.local_addr().expect("an address"));
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        for line in ["one\n", "\n", "three é\r\n", "four"] {
            stream.write_all(line.as_bytes()).expect("sent");
        }
    });
    let args = ["produce", "lines", "--input", "text", "--rate", "1000", "--from", &from, "--format", "json"];
    let report = watershed(platform.path(), &args, b"").expect_status(0).json();
    server.join().expect("it ends");
    assert_eq!(report["partitions"], json!({"0": {"first": 0, "next": 4}}));
    assert_eq!(
        platform.records("lines", 1)[&0].iter().map(|r| r.1.as_str()).collect::<Vec<_>>(),
        ["one", "", "three é", "four"]
    );
}

#[test]
fn a_record_that_is_too_large_fails_alone() {
    let platform = Platform::start();
    let mut input = b"{\"id\":\"a\"}\n{\"id\":\"".to_vec();
    input.extend(std::iter::repeat_n(b'x', 2_000_000));
    input.extend_from_slice(b"\"}\n{\"id\":\"b\"}\n");
    let ended = watershed(platform.path(), &["produce", "s", "--format", "json"], &input).expect_status(1);
    let report = ended.json();
    assert_eq!(
        (report["read"].as_u64(), report["delivered"].as_u64(), report["failed"].as_u64()),
        (Some(3), Some(2), Some(1))
    );
    assert_eq!(report["errors"][0]["line"], 2);
    assert_eq!(platform.values("s", 2), [r#"{"id":"a"}"#, r#"{"id":"b"}"#]);
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_published() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("watershed.toml"), CONFIG).expect("a file");
    let ended = watershed(dir.path(), &["produce", "lime"], b"").expect_status(2);
    assert!(ended.stderr.contains("watershed.toml has no stream `lime`; did you mean `lines`?"), "{}", ended.stderr);
    let ended = watershed(dir.path(), &["produce", "s"], b"").expect_status(1);
    assert!(ended.stderr.contains("start the platform with `watershed up`"), "{}", ended.stderr);
    let platform = Platform::start();
    let ended = watershed(platform.path(), &["produce", "s", "--key", "ident"], b"").expect_status(2);
    assert!(ended.stderr.contains("stream `s` has no column `ident`; did you mean `id`?"), "{}", ended.stderr);
    let ended = watershed(platform.path(), &["produce", "s", "--from", "absent"], b"").expect_status(1);
    assert!(ended.stderr.contains("open absent: No such file"), "{}", ended.stderr);
}
