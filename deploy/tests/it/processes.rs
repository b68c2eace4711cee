//! The real program killed at named points while it ingests, builds, swaps and replays: each point is hit, and at the
//! end the answers equal the truth and the master dataset holds each event once.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::harness::{Broker, Running};
use crate::oracle::events::{COLUMNS, Format, Generator};
use crate::oracle::log::Log;

pub(crate) const STREAM: &str = "killed";
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the program aborts, and what makes it get there.
pub(crate) const POINTS: &[(&str, Provoke)] = &[
    ("master.dead_letter_files_written", Provoke::Ingest),
    ("master.dead_letters_committed", Provoke::Ingest),
    ("master.files_written", Provoke::Ingest),
    ("master.commit_sent", Provoke::Ingest),
    ("master.committed", Provoke::Ingest),
    ("speed.advanced", Provoke::Ingest),
    ("speed.commit_begun", Provoke::Ingest),
    ("speed.commit_applied", Provoke::Ingest),
    ("speed.committed", Provoke::Ingest),
    ("speed.merged", Provoke::Ingest),
    ("speed.sealed", Provoke::Build),
    ("sealed", Provoke::Build),
    ("register.created", Provoke::Build),
    ("claimed", Provoke::Build),
    ("generation written", Provoke::Build),
    ("generation published", Provoke::Build),
    ("serving.swapped", Provoke::Build),
    ("speed.not_dropped", Provoke::Build),
    ("speed.dropped", Provoke::Build),
    ("speed.replayed", Provoke::Redefine),
    ("speed.set_aside", Provoke::Damage),
];

#[derive(Debug, Clone, Copy)]
pub(crate) enum Provoke {
    Ingest,
    Build,
    /// A definition that is not in the register yet is replayed from its origin.
    Redefine,
    /// No file of the delta store can be read.
    Damage,
}

#[test]
fn a_kill_at_any_named_point_loses_and_repeats_nothing() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().unwrap();
    let mut definition = 0;
    let mut generator = Generator::new(7, 2, Format::Json);
    generator.bad_percent = 10;
    let mut log = Log::default();
    let mut running = Running::start(&config(&broker, definition), dir.path());
    for (point, provoke) in POINTS {
        running.stop();
        match provoke {
            Provoke::Ingest | Provoke::Build => {}
            Provoke::Redefine => definition += 1,
            Provoke::Damage => overwrite(&dir.path().join("data/delta")),
        }
        let config = config(&broker, definition);
        running = Running::start_with(&config, dir.path(), &[("WATERSHED_ABORT_AT", point)]);
        // A merge takes several micro-batches.
        for _ in 0..6 {
            produce(&broker, &mut generator, &mut log, 20);
            std::thread::sleep(Duration::from_millis(10));
        }
        if matches!(provoke, Provoke::Build) {
            // The connection may break: that is what is provoked.
            let url = format!("{}/v1/views/counts/rebuilds", running.client().url());
            drop(reqwest::blocking::Client::new().post(url).json(&json!({"mode": "refresh"})).send());
        }
        assert!(running.ended_within(PATIENCE), "the program does not get to `{point}`:\n{}", running.log());
        assert!(running.log().contains(&format!("aborting at {point}")), "{point}:\n{}", running.log());
        running = Running::start(&config, dir.path());
        produce(&broker, &mut generator, &mut log, 60);
        check(&running, "counts", &log, point);
        println!("killed at {point}");
    }
    let id = running.client().build("counts", "rebuild").expect("no other build runs");
    let status = running.client().wait_build(&id, PATIENCE);
    assert_eq!(status["state"], "succeeded", "{status}");
    check(&running, "counts", &log, "the end");
    log.check_master_dataset(running.client(), STREAM);
    running.stop();
}

pub(crate) fn produce(broker: &Broker, generator: &mut Generator, log: &mut Log, count: usize) {
    let records = (0..count).map(|_| generator.placed()).collect();
    log.produce(Format::Json, records, |payloads| broker.produce(STREAM, payloads));
}

/// Writes over every file of a folder.
fn overwrite(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            overwrite(&path);
        } else {
            std::fs::write(&path, [0xa5; 4096]).expect("the file can be written");
        }
    }
}

pub(crate) fn check(running: &Running, view: &str, log: &Log, when: &str) {
    let ends = log.ends();
    let body = running.client().view_waiting(view, &ends, PATIENCE);
    let mut truth: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for event in log.seen_below(&ends) {
        let (n, sum) = truth.entry(json!(event.row.k).to_string()).or_default();
        *n += 1;
        *sum += event.row.v;
    }
    let rows = body["rows"].as_array().expect("rows");
    let served: BTreeMap<String, (i64, i64)> =
        rows.iter().map(|r| (r["k"].to_string(), (r["n"].as_i64().unwrap(), r["sv"].as_i64().unwrap()))).collect();
    assert_eq!(served, truth, "{view} after {when}: {}", body["meta"]);
}

/// All definitions of the view have the same answer.
pub(crate) fn config(broker: &Broker, definition: u32) -> String {
    let beginning = broker.config("200 ms", "commit_interval = \"50 ms\"");
    format!(
        r#"
{beginning}
[stream.{STREAM}]
partitions = 2
format = "json"
event_time = "t"
allowed_lateness = "10 minutes"
columns = """{COLUMNS}"""
[view.counts]
sql = "SELECT k, count(*) AS n, sum(v) AS sv FROM {STREAM} WHERE v > -{definition}000000 - 1000000 GROUP BY k"
"#
    )
}
