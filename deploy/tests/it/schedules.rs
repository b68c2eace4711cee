//! Builds that schedules start, in the whole program.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use watershed_shared::clock::Instant;

use crate::harness::{Broker, Client, Running};

const STREAM: &str = "scheduled";
const PATIENCE: Duration = Duration::from_secs(120);

fn config(broker: &Broker) -> String {
    format!(
        "{}[stream.{STREAM}]\npartitions = 1\nformat = \"json\"\ncolumns = \"n BIGINT NOT NULL\"\n\
         [view.refreshed]\nsql = \"SELECT count(*) AS c, sum(n) AS s FROM {STREAM}\"\nrefresh = \"* * * * * *\"\n\
         [view.rebuilt]\nsql = \"SELECT count(*) AS c, sum(n) AS s FROM {STREAM}\"\nrebuild = \"*/2 * * * * *\"\n",
        broker.config("100 ms", ""),
    )
}

/// The builds of `view`, newest first.
fn builds(client: &Client, view: &str) -> Vec<Value> {
    let (status, body) = client.get(&format!("/v1/rebuilds?view={view}"));
    assert_eq!(status, 200, "{body}");
    body["rebuilds"].as_array().expect("builds").clone()
}

fn produce(broker: &Broker, numbers: std::ops::Range<i64>) -> BTreeMap<i32, i64> {
    let record = |n: i64| (0, 1_700_000_000_000, Some(json!({"n": n}).to_string().into_bytes()));
    let offsets = broker.produce(STREAM, &numbers.map(record).collect::<Vec<_>>());
    BTreeMap::from([(0, offsets.last().expect("records") + 1)])
}

#[track_caller]
fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is(build: &Value, mode: &str, state: &str) -> bool {
    build["mode"] == mode && build["state"] == state && build["trigger"] == "schedule"
}

fn until(meta: &Value) -> Option<i64> {
    meta["partitions"]["0"]["batch_until"].as_i64()
}

#[test]
fn schedules_build_skip_what_is_not_needed_pause_and_go_on() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().expect("a folder");
    let running = Running::start_with(&config(&broker), dir.path(), &[("RUST_LOG", "info")]);
    let client = running.client();
    let end = produce(&broker, 0..100)[&0];

    // Both views get there, by builds that nobody asked for.
    for view in ["refreshed", "rebuilt"] {
        let body = client.view_when(view, PATIENCE, |meta| until(meta) == Some(end));
        assert_eq!(body["rows"], json!([{"c": 100, "s": 4950}]));
    }
    let rebuilds = || builds(client, "rebuilt").iter().filter(|b| is(b, "rebuild", "succeeded")).count();
    wait("rebuilds go on though nothing is new", || rebuilds() >= 2);

    // A refresh with nothing new is skipped; of several in a row the history has the last.
    let skipped = || builds(client, "refreshed").into_iter().find(|b| is(b, "refresh", "skipped"));
    wait("a refresh is skipped", || skipped().is_some());
    let first = skipped().expect("it stands there");
    assert_eq!(first["error"], "nothing new since the last generation");
    wait("another one is", || skipped().is_some_and(|b| b["id"] != first["id"]));
    wait("the one before is gone", || client.get(&format!("/v1/rebuilds/{}", text(&first["id"]))).0 == 404);
    let all = builds(client, "refreshed");
    assert!(all.iter().any(|b| b["state"] == "succeeded" && b["trigger"] == "schedule"), "{all:?}");
    let repeats = |all: &[Value]| all.windows(2).any(|pair| pair.iter().all(|b| b["state"] == "skipped"));
    wait("the last of them stands alone", || !repeats(&builds(client, "refreshed")));
    assert!(!running.log().contains("ended without a generation"), "{}", running.log());

    // Paused, what comes is answered, but not built.
    let pause = |paused: bool| {
        let answer = client.put("/v1/views/refreshed/schedule", &json!({"paused": paused}));
        assert_eq!(answer, (200, json!({"view": "refreshed", "paused": paused})));
    };
    let passed_over = || running.log().matches("the schedule is paused").count();
    pause(true);
    let before = passed_over();
    wait("a time is passed over", || passed_over() > before);
    wait("no build runs", || builds(client, "refreshed").iter().all(|b| !b["finished_at"].is_null()));
    let more = produce(&broker, 100..200);
    let before = passed_over();
    wait("two more are", || passed_over() >= before + 2);
    let body = client.view_waiting("refreshed", &more, PATIENCE);
    assert_eq!(body["rows"], json!([{"c": 200, "s": 19900}]));
    assert_eq!(until(&body["meta"]["views"]["refreshed"]), Some(end), "it was built: {body}");

    pause(false);
    client.view_when("refreshed", PATIENCE, |meta| until(meta) == Some(more[&0]));
    assert!(is(
        &builds(client, "refreshed").into_iter().find(|b| b["state"] == "succeeded").expect("one"),
        "refresh",
        "succeeded"
    ));
    running.stop();
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}
