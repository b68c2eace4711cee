//! What a running platform says of streams that no view reads, of its files, and of what it does not take.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Broker, Client, Running, wait_until};

const PATIENCE: Duration = Duration::from_secs(120);

const STREAMS: &str = r#"
[stream.ev]
columns = "k VARCHAR, n BIGINT"
[stream.idle]
columns = "k VARCHAR, n BIGINT"
[view.words]
sql = "SELECT k, count(*) AS events, sum(n) AS n FROM ev GROUP BY k"
"#;

fn publish(client: &Client, stream: &str, record: &Value) -> Value {
    let (status, answer) = client.post(&format!("/v1/streams/{stream}"), record);
    assert_eq!((status, &answer["accepted"]), (200, &json!(1)), "{answer}");
    answer["offsets"].clone()
}

#[test]
fn a_stream_without_a_view_is_ready_and_who_writes_to_it_reads_it() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().expect("a folder");
    // Nobody would see his own writes within the hour if the archiver were not asked.
    let config = format!("{}{STREAMS}", broker.config("1 hour", ""));
    let running = Running::start(&config, dir.path());
    let client = running.client();
    for n in 1..4 {
        let offsets = publish(client, "idle", &json!({"k": "a", "n": n}));
        let sql = "SELECT count(*) AS events, sum(n) AS n FROM idle";
        let query = json!({"sql": sql, "wait_for": {"idle": offsets}, "timeout_ms": PATIENCE.as_millis() as u64});
        let (status, answer) = client.post("/v1/query", &query);
        assert_eq!((status, &answer["rows"]), (200, &json!([{"events": n, "n": n * (n + 1) / 2}])), "{answer}");
    }
    let offsets = publish(client, "idle", &json!({"k": "a", "n": "none"}));
    let sql = "SELECT count(*) AS n FROM dead_letters.idle";
    let query = json!({"sql": sql, "wait_for": {"idle": offsets}, "timeout_ms": PATIENCE.as_millis() as u64});
    assert_eq!(client.post("/v1/query", &query).1["rows"], json!([{"n": 1}]));
    wait_until(PATIENCE, || {
        let (_, status) = client.get("/v1/status");
        let streams = status["streams"].as_array().expect("streams");
        let idle = streams.iter().find(|s| s["name"] == "idle").expect("it is one").clone();
        let told = json!({"0": 4});
        let there = idle["caught_up"] == true && idle["position"] == told && idle["log_end"] == told;
        if there && idle["archive"]["archived_until"] == told { Ok(()) } else { Err(idle) }
    });
    let (status, error) = client.post("/v1/streams/idle", &json!({"k": "x".repeat(1_100_000)}));
    assert_eq!((status, &error["error"]["code"]), (413, &json!("too_large")), "{error}");
    assert!(error["error"]["message"].as_str().expect("a text").starts_with("line 1 has 11000"), "{error}");
    running.stop();
}

fn delete_runs(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries
        .map(|path| match path.is_dir() {
            true => delete_runs(&path),
            false => std::fs::remove_file(&path).map(|()| 1).expect("it was there"),
        })
        .sum()
}

#[test]
fn a_generation_whose_file_is_gone_is_built_anew_by_itself() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().expect("a folder");
    let config = format!("{}{STREAMS}", broker.config("100 ms", ""));
    let running = Running::start(&config, dir.path());
    let client = running.client();
    publish(client, "ev", &json!({"k": "a", "n": 1}));
    publish(client, "ev", &json!({"k": "b", "n": 2}));
    let id = client.build("words", "rebuild").expect("nothing else builds");
    assert_eq!(client.wait_build(&id, PATIENCE)["state"], "succeeded");
    publish(client, "ev", &json!({"k": "a", "n": 4}));
    running.stop();
    assert_eq!(delete_runs(&dir.path().join("data/storage/views/words")), 1);

    let running = Running::start_unready(&config, dir.path());
    let client = running.client();
    let expected = json!([{"k": "a", "events": 2, "n": 5}, {"k": "b", "events": 1, "n": 2}]);
    wait_until(PATIENCE, || {
        let (status, answer) = client.get("/v1/views/words?order=k");
        // Never half of it as if it were all.
        let complete = answer["meta"]["views"]["words"]["complete"] == true;
        assert!(status == 503 || !complete || answer["rows"] == expected, "{status} {answer}");
        if status == 200 && complete { Ok(()) } else { Err(answer) }
    });
    wait_until(PATIENCE, || match client.get("/readyz") {
        (200, _) => Ok(()),
        (_, missing) => Err(missing),
    });
    let (_, list) = client.get("/v1/rebuilds?view=words");
    let triggers: Vec<&Value> = list["rebuilds"].as_array().expect("a list").iter().map(|b| &b["trigger"]).collect();
    assert_eq!(triggers, ["repair", "manual"], "{list}");
    running.stop();
}

#[test]
fn an_address_in_use_is_named_with_what_to_do() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().expect("a folder");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let config = format!("{}{STREAMS}", broker.config("1 second", ""));
    let said = Running::refused(&config.replace("127.0.0.1:0", &address), dir.path());
    assert!(said.contains(&format!("cannot listen on {address} for HTTP: stop the other program")), "{said}");
}
