//! Far behind the log: memory stays bounded, however much there is to read.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::harness::{Client, Running, real_kafka};

const PATIENCE: Duration = Duration::from_secs(300);
const PARTITIONS: i32 = 2;
const KEYS: usize = 10;
/// Of a record, about.
const RECORD_BYTES: usize = 4096;
/// Records of the smaller backlog: enough to fill every queue and buffer of the program.
const SMALL: usize = 24_000;
const LARGE: usize = 4 * SMALL;

#[test]
fn memory_does_not_grow_with_what_there_is_to_read() {
    let Some(bootstrap) = real_kafka() else { return };
    let small = peak_after(&bootstrap, SMALL);
    let large = peak_after(&bootstrap, LARGE);
    let (more_to_read, more_memory) = (((LARGE - SMALL) * RECORD_BYTES) as u64, large.saturating_sub(small));
    println!("backlog | {SMALL} records: {small} bytes at most | {LARGE} records: {large} bytes at most");
    assert!(more_memory < more_to_read / 2, "{more_to_read} bytes more to read took {more_memory} bytes more memory");
}

/// Lets a program that has never run read `count` records, and archive them. Answers the most memory that it had.
fn peak_after(bootstrap: &str, count: usize) -> u64 {
    let topic = format!("backlog-{}", watershed_shared::names::RunId::unique());
    let log = Client::default();
    log.create_topic(bootstrap, &topic, PARTITIONS, &[]);
    let filler = "x".repeat(RECORD_BYTES - 32);
    let mut ends = BTreeMap::new();
    for first in (0..count).step_by(1000) {
        let record = |n: usize| {
            let partition = i32::try_from(n % 2).expect("a partition");
            (partition, 0, Some(format!("{{\"k\":{},\"filler\":\"{filler}\"}}", n % KEYS).into_bytes()))
        };
        let records: Vec<_> = (first..count.min(first + 1000)).map(record).collect();
        for ((partition, _, _), offset) in records.iter().zip(log.produce_to_log(bootstrap, &topic, &records)) {
            ends.insert(*partition, offset + 1);
        }
    }

    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = format!(
        r#"
data_dir = "data"
[kafka]
bootstrap_servers = "{bootstrap}"
"queued.max.messages.kbytes" = 2048
[http]
listen = "127.0.0.1:0"
[archive]
target_file_size = "4 MiB"
[speed]
window = "4 MiB"
[stream.backlog]
topic = "{topic}"
partitions = {PARTITIONS}
format = "json"
columns = "k BIGINT NOT NULL, filler VARCHAR NOT NULL"
[view.by_k]
sql = "SELECT k, count(*) AS events, max(length(filler)) AS longest FROM backlog GROUP BY k"
"#
    );
    let running = Running::start_within(&config, dir.path(), &[], PATIENCE);
    let answer = running.client().view_waiting("by_k", &ends, PATIENCE);
    let rows = answer["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), KEYS, "{answer}");
    let (events, longest) = (count / KEYS, RECORD_BYTES - 32);
    assert!(rows.iter().all(|row| row["events"] == events && row["longest"] == longest), "{answer}");

    let sql = "SELECT count(*) AS events, count(DISTINCT _partition * 1000000 + _offset) AS places FROM backlog";
    let wait_for = json!({ "backlog": ends });
    let (status, archived) =
        running.client().post("/v1/query", &json!({ "sql": sql, "wait_for": wait_for, "timeout_ms": 120_000 }));
    assert_eq!(status, 200, "{archived}");
    assert_eq!(archived["rows"], json!([{ "events": count, "places": count }]));
    let peak = running.peak_memory_bytes();
    running.stop();
    peak
}
