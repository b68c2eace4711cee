//! What `GET /v1/status` counts.

use std::time::Duration;

use serde_json::{Value, json};
use watershed_shared::clock::Instant;

use crate::harness::{Broker, Running};
use crate::program::watershed;

const STREAM: &str = "counted";
const PATIENCE: Duration = Duration::from_secs(120);

/// The stream's status once `holds`.
fn stream_when(running: &Running, holds: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stream = running.client().get("/v1/status").1["streams"][0].clone();
        if holds(&stream) {
            return stream;
        }
        assert!(Instant::now() < deadline, "{stream}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_restart_forgets_no_dead_letter_and_says_since_when_late_events_count() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().expect("a folder");
    let config = format!(
        "{}[stream.{STREAM}]\npartitions = 1\nevent_time = \"at\"\nallowed_lateness = \"1 minute\"\n\
         columns = \"at TIMESTAMP\"\n[view.v]\nsql = \"SELECT count(*) AS c FROM {STREAM}\"\n",
        broker.config("100 ms", "commit_interval = \"20 ms\""),
    );
    let event = |minute: u32| Some(format!("{{\"at\":\"2024-01-01T00:{minute:02}:00Z\"}}").into_bytes());
    let produce = |values: &[Option<Vec<u8>>]| {
        let records: Vec<_> = values.iter().map(|value| (0, 1_704_067_200_000, value.clone())).collect();
        broker.produce(STREAM, &records);
    };
    let running = Running::start(&config, dir.path());
    produce(&[event(30), event(10), Some(b"{".to_vec()), event(31), event(12), Some(b"[]".to_vec())]);
    let counted = |letters: i64, late: i64| move |s: &Value| s["dead_letters"] == letters && s["late"] == late;
    let first = stream_when(&running, counted(2, 2));
    let since = |stream: &Value| stream["late_since"].as_str().expect("a time").to_owned();
    running.stop();

    let running = Running::start(&config, dir.path());
    stream_when(&running, |s| s["dead_letters"] == 2);
    produce(&[event(11), Some(b"x".to_vec())]);
    let second = stream_when(&running, |s| s["dead_letters"] == 3 && s["late"].as_u64() >= Some(1));
    assert!(since(&second) > since(&first), "{first} {second}");
    running.stop();
}

#[test]
fn the_address_of_the_embedded_broker_is_shown() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = "data_dir = \"data\"\n[broker]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n";
    let running = Running::start(config, dir.path());
    let kafka = running.client().get("/v1/status").1["kafka"].clone();
    let broker = std::fs::read_to_string(dir.path().join("data/broker.json")).expect("the broker's file");
    let broker: Value = serde_json::from_str(&broker).expect("JSON");
    assert_eq!(kafka, json!({"bootstrap_servers": broker["bootstrap_servers"], "embedded": true}));
    let url = running.client().url();
    let shown = watershed(dir.path(), &["status", "--url", url], b"").expect_status(0).stdout;
    let line = format!("kafka {} (embedded)", broker["bootstrap_servers"].as_str().expect("an address"));
    assert!(shown.lines().any(|shown| shown == line), "{shown}");
    running.stop();
}
