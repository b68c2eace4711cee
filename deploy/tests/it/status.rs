//! What `GET /v1/status` counts.

use std::time::Duration;

use serde_json::Value;
use watershed_shared::clock::Instant;

use crate::harness::{Broker, Running};

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
