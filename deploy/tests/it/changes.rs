//! What of the configuration may change once a stream or view has been started, and what becomes of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use watershed_shared::clock::Instant;

use crate::harness::{Broker, Running};
use crate::program::watershed;

const STREAM: &str = "changing";
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn records_of_a_stream_are_decoded_in_one_way_for_ever() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().expect("a folder");
    let config = |keys: &str| {
        let head = broker.config("100 ms", "commit_interval = \"20 ms\"");
        let columns = "columns = \"at TIMESTAMP, sent TIMESTAMP, n BIGINT\"";
        let view = format!("[view.v]\nsql = \"SELECT sum(n) AS n FROM {STREAM}\"\n");
        format!("{head}{view}[stream.{STREAM}]\npartitions = 1\n{columns}\n{keys}\n")
    };
    let first = "event_time = \"at\"\nepoch_units = { at = \"milliseconds\" }\n";
    let running = Running::start(&config(first), dir.path());
    broker.produce(STREAM, &[(0, 0, Some(b"{\"at\":1704067200000,\"n\":1}".to_vec()))]);
    running.kill();
    for (changed, said) in [
        (
            "event_time = \"at\"\nepoch_units = { at = \"seconds\" }",
            "`epoch_units.at` of stream `changing` is `milliseconds` since it was first started, and the configuration says \
             `seconds`",
        ),
        ("event_time = \"sent\"\nepoch_units = { at = \"milliseconds\" }", "`event_time` of stream `changing` is `at`"),
        ("epoch_units = { at = \"milliseconds\" }", "the configuration says not given"),
        (&format!("{first}max_ahead = \"1 hour\""), "`max_ahead` of stream `changing` is `86400000000 microseconds`"),
        (&format!("{first}format = \"csv\""), "`delimiter` of stream `changing` is not given"),
    ] {
        let refused = Running::refused(&config(changed), dir.path());
        assert!(refused.contains(said), "{changed}: {refused}");
        assert!(refused.contains("Set it back under [stream.changing], or declare a new stream"), "{refused}");
    }
    // Another column makes another definition of the view: a process that does not start has not recorded it.
    let refused = Running::refused(&config(first).replace("n BIGINT", "n DOUBLE"), dir.path());
    assert!(refused.contains("`n`"), "{refused}");
    // What a record becomes does not hang on these.
    let running = Running::start(&config(&format!("{first}allowed_lateness = \"1 hour\"")), dir.path());
    let id = running.client().build("v", "rebuild").expect("no other build runs");
    assert_eq!(running.client().wait_build(&id, PATIENCE)["state"], "succeeded");
    let (_, views) = running.client().get("/v1/views");
    assert_eq!(views["views"][0]["pending_definition"], serde_json::Value::Null, "{views}");
    running.stop();
}

#[test]
fn a_live_view_begins_anew_when_another_definition_answers() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().expect("a folder");
    let config = |sql: &str| {
        let head = broker.config("100 ms", "commit_interval = \"20 ms\"");
        format!("{head}[stream.{STREAM}]\npartitions = 1\nformat = \"text\"\n[view.v]\nsql = \"{sql} FROM {STREAM}\"\n")
    };
    let running = Running::start(&config("SELECT count(*) AS lines"), dir.path());
    let offsets = broker.produce(STREAM, &[(0, 0, Some(b"one".to_vec())), (0, 0, Some(b"three".to_vec()))]);
    let end = [(0, offsets[1] + 1)].into();
    running.client().view_waiting("v", &end, PATIENCE);
    let build = |running: &Running| {
        let id = running.client().build("v", "rebuild").expect("no other build runs");
        let status = running.client().wait_build(&id, PATIENCE);
        assert_eq!(status["state"], "succeeded", "{status}");
    };
    build(&running);
    running.stop();
    let running = Running::start(&config("SELECT sum(length(line)) AS letters"), dir.path());
    let url = running.client().url().to_owned();
    let command = |arguments: &[&str]| watershed(dir.path(), &[arguments, &["--url", &url]].concat(), b"");
    running.client().view_waiting("v", &end, PATIENCE);
    let (_, views) = running.client().get("/v1/views");
    let view = &views["views"][0];
    assert_eq!(view["sql"], format!("SELECT count(*) AS lines FROM {STREAM}"), "which answers: {view}");
    assert_eq!(view["pending_sql"], format!("SELECT sum(length(line)) AS letters FROM {STREAM}"));
    let status = command(&["status"]).expect_status(0).stdout;
    assert!(
        status.contains("it answers by its former SQL until a rebuild of the present one is published"),
        "{status}"
    );
    build(&running);
    running.client().view_waiting("v", &end, PATIENCE);
    running.client().view_when("v", PATIENCE, |meta| meta["generation"] == 2);

    let address = running.client().url().trim_start_matches("http://").to_owned();
    let mut connection = TcpStream::connect(address).expect("a connection");
    connection.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // The position is the one that is answered, but a client may have seen it by the other definition.
    let request = "GET /v1/views/v/live HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {\"0\":2}\r\n\r\n";
    connection.write_all(request.as_bytes()).expect("sent");
    let mut text = String::new();
    let mut until = |wanted: &str| {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        while !text.contains(wanted) {
            let n = connection.read(&mut buffer).expect("more events");
            assert!(n > 0 && Instant::now() < deadline, "no {wanted}: {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    };
    until("{\"position\":{\"0\":2},\"rows\":[{\"letters\":8}]}");
    let activated = command(&["activate", "v", "1", "--wait"]).expect_status(0);
    let said = "the schedules of v are paused; PUT /v1/views/v/schedule {\"paused\": false} resumes them\n";
    assert_eq!(activated.stderr, said);
    until("{\"position\":{\"0\":2},\"rows\":[{\"lines\":2}]}");
    let generations = command(&["generations", "v"]).expect_status(0).stdout;
    let rows: Vec<Vec<&str>> = generations.lines().map(|line| line.split_whitespace().take(4).collect()).collect();
    assert_eq!(rows[0], ["generation", "state", "mode", "base"], "{generations}");
    assert_eq!((&rows[2][..], &rows[3][..2]), (&["3", "active", "activate", "1"][..], &["2", "previous"][..]));
    assert!(generations.lines().all(|line| line.chars().count() < 160), "{generations}");
    running.stop();
}
