//! The real program killed at named points while it ingests and builds: each point is hit, and at the end the answers
//! equal the truth and the master dataset holds each event once.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Broker, Running};
use crate::oracle::events::{COLUMNS, Generator, Kind};
use crate::oracle::truth::{Log, events_below};

const STREAM: &str = "killed";
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the program aborts, and what makes it get there.
const POINTS: &[(&str, Provoke)] = &[
    ("master.dead_letter_files_written", Provoke::Ingest),
    ("master.dead_letters_committed", Provoke::Ingest),
    ("master.files_written", Provoke::Ingest),
    ("master.commit_sent", Provoke::Ingest),
    ("master.committed", Provoke::Ingest),
    ("sealed", Provoke::Build),
    ("claimed", Provoke::Build),
    ("generation written", Provoke::Build),
    ("generation published", Provoke::Build),
];

#[derive(Debug, Clone, Copy)]
enum Provoke {
    Ingest,
    Build,
}

#[test]
fn a_kill_at_any_named_point_loses_and_repeats_nothing() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().unwrap();
    let config = config(broker.bootstrap_servers());
    let mut generator = Generator::new(7);
    generator.bad_percent = 10;
    let mut log = Log::new();
    let mut running = Running::start(&config, dir.path());
    for (point, provoke) in POINTS {
        running.stop();
        running = Running::start_with(&config, dir.path(), &[("WATERSHED_ABORT_AT", point)]);
        produce(&running, broker.bootstrap_servers(), &mut generator, &mut log);
        if matches!(provoke, Provoke::Build) {
            // The connection may break: that is what is provoked.
            let url = format!("{}/v1/views/counts/rebuilds", running.client().url());
            drop(reqwest::blocking::Client::new().post(url).json(&json!({"mode": "refresh"})).send());
        }
        let status = running.wait(PATIENCE);
        assert!(!status.success(), "the program did not abort at `{point}`");
        running = Running::start(&config, dir.path());
        produce(&running, broker.bootstrap_servers(), &mut generator, &mut log);
        check(&running, &log, point);
    }
    let id = running.client().build("counts", "rebuild").expect("no other build runs");
    let status = running.client().wait_build(&id, PATIENCE);
    assert_eq!(status["state"], "succeeded", "{status}");
    check(&running, &log, "the end");
    check_master_dataset(&running, &log);
    running.stop();
}

fn produce(running: &Running, bootstrap: &str, generator: &mut Generator, log: &mut Log) {
    let records: Vec<_> = (0..60).map(|i| (i % 2, generator.record())).collect();
    let payloads: Vec<_> = records.iter().map(|(p, r)| (*p, r.timestamp, r.payload())).collect();
    let offsets = running.client().produce_to_log(bootstrap, STREAM, &payloads);
    for ((partition, record), offset) in records.into_iter().zip(offsets) {
        log.entry(partition).or_default().push((offset, record));
    }
}

fn check(running: &Running, log: &Log, when: &str) {
    let ends = ends(log);
    let body = running.client().view_waiting("counts", &ends, PATIENCE);
    let mut truth: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for event in events_below(log, &ends) {
        let (n, sum) = truth.entry(json!(event.row.k).to_string()).or_default();
        *n += 1;
        *sum += event.row.v;
    }
    let rows = body["rows"].as_array().expect("rows");
    let served: BTreeMap<String, (i64, i64)> =
        rows.iter().map(|r| (r["k"].to_string(), (r["n"].as_i64().unwrap(), r["sv"].as_i64().unwrap()))).collect();
    assert_eq!(served, truth, "after {when}: {}", body["meta"]);
}

/// Each event and each dead letter once, none that was not produced.
fn check_master_dataset(running: &Running, log: &Log) {
    let all = |sql: &str| -> Vec<(i64, i64)> {
        let (status, body) = running.client().post("/v1/query", &json!({"sql": sql}));
        assert_eq!(status, 200, "{body}");
        let rows = body["rows"].as_array().expect("rows");
        rows.iter().map(|r: &Value| (r["_partition"].as_i64().unwrap(), r["_offset"].as_i64().unwrap())).collect()
    };
    let produced = |wanted: fn(&Kind) -> bool| -> Vec<(i64, i64)> {
        let partitions = log.iter();
        partitions
            .flat_map(|(p, records)| {
                records.iter().filter(|(_, r)| wanted(&r.kind)).map(|(offset, _)| (i64::from(*p), *offset))
            })
            .collect()
    };
    let order = "ORDER BY _partition, _offset LIMIT 1000000";
    let events = all(&format!("SELECT _partition, _offset FROM {STREAM} {order}"));
    assert_eq!(events, produced(|k| matches!(k, Kind::Event(_))), "each event once");
    let letters = all(&format!("SELECT _partition, _offset FROM dead_letters.{STREAM} {order}"));
    assert_eq!(letters, produced(|k| matches!(k, Kind::Bad(_))), "each dead letter once");
}

fn ends(log: &Log) -> BTreeMap<i32, i64> {
    log.iter().filter_map(|(p, records)| Some((*p, records.last()?.0 + 1))).collect()
}

fn config(bootstrap: &str) -> String {
    format!(
        r#"
data_dir = "data"
[kafka]
bootstrap_servers = "{bootstrap}"
[http]
listen = "127.0.0.1:0"
[archive]
commit_interval = "200 ms"
[speed]
commit_interval = "50 ms"
[stream.{STREAM}]
partitions = 2
format = "json"
event_time = "t"
allowed_lateness = "10 minutes"
columns = """{COLUMNS}"""
[view.counts]
sql = "SELECT k, count(*) AS n, sum(v) AS sv FROM {STREAM} GROUP BY k"
"#
    )
}
