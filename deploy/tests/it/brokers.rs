//! Brokers of a real Kafka that hang, die and come back under the running program, and the limits that they set to what
//! is produced.

use std::time::Duration;

use serde_json::{Value, json};
use watershed_shared::names::RunId;
use xtask::cluster::{Cluster, Daemon, Options, directory};

use crate::harness::{Client, Running, config_head, real_kafka, wait_until};
use crate::program::watershed;

const PATIENCE: Duration = Duration::from_secs(180);

fn config(bootstrap: &str, kafka: &str, topic: &str) -> String {
    let servers = format!("bootstrap_servers = \"{bootstrap}\"\n");
    let head = config_head(bootstrap, "50 ms", "").replace(&servers, &format!("{servers}{kafka}\n"));
    format!(
        r#"{head}[stream.numbers]
topic = "{topic}"
columns = "v BIGINT, pad VARCHAR"
[view.total]
sql = "SELECT count(*) AS n, sum(v) AS sum FROM numbers"
"#
    )
}

fn produce(bootstrap: &str, topic: &str, values: &[i64]) {
    let record = |v: &i64| (0, 1_700_000_000_000, Some(format!("{{\"v\": {v}}}").into_bytes()));
    Client::default().produce_to_log(bootstrap, topic, &values.iter().map(record).collect::<Vec<_>>());
}

/// Waits for the position `n`; the answer is complete and has `sum`.
fn ask(client: &Client, n: i64, sum: i64) {
    let body = client.view_waiting("total", &[(0, n)].into(), PATIENCE);
    assert_eq!(body["rows"][0], json!({"n": n, "sum": sum}), "{body}");
    client.view_when("total", PATIENCE, |meta| meta["complete"] == json!(true));
}

/// Waits until the log's absence is said, with what there is.
fn wait_for_absence(client: &Client, n: i64, sum: i64) {
    let away =
        |meta: &Value| meta["reasons"].as_array().expect("reasons").iter().any(|r| r["code"] == "log_unreachable");
    let body = client.view_when("total", PATIENCE, away);
    assert_eq!(body["rows"][0], json!({"n": n, "sum": sum}), "{body}");
    let (status, body) = client.get("/v1/status");
    assert_eq!(status, 200, "{body}");
    assert!(body["streams"][0]["log_unreachable"]["since"].is_string(), "{body}");
}

#[test]
fn a_broker_may_hang_and_die_and_come_back() {
    if real_kafka().is_none() {
        return;
    }
    let dir = directory(&format!("it-brokers-{}", std::process::id())).expect("a folder");
    let options = Options { brokers: 1, secured: false, datanodes: 0 };
    let mut cluster = Cluster::start(&dir, options).expect("Kafka starts");
    let bootstrap = cluster.kafka().expect("it was asked for").bootstrap_servers();
    let mut broker = |act: &dyn Fn(&mut Daemon)| act(&mut cluster.kafka_mut().expect("Kafka").daemons_mut()[0]);
    let dir = tempfile::tempdir().unwrap();
    // Who publishes is told before long.
    let running = Running::start(&config(&bootstrap, "message.timeout.ms = 3000", "numbers"), dir.path());
    let client = running.client();
    produce(&bootstrap, "numbers", &[1]);
    ask(client, 1, 1);

    broker(&|broker| broker.signal("STOP").expect("stopped"));
    wait_for_absence(client, 1, 1);
    let (status, body) = client.post_text("/v1/streams/numbers", "{\"v\": 2}\n");
    assert_eq!((status, &body["error"]["code"]), (503, &json!("not_ready")), "{body}");
    let message = body["error"]["message"].as_str().expect("a message");
    assert!(message.contains("may or may not have been written"), "{message}");
    broker(&|broker| broker.signal("CONT").expect("continued"));
    // That record is there, or it isn't; what comes next tells.
    wait_until(PATIENCE, || match client.post_text("/v1/streams/numbers", "{\"v\": 4}\n") {
        (200, _) => Ok(()),
        (_, body) => Err(body),
    });
    let body = client.view_when("total", PATIENCE, |meta| {
        let position = meta["partitions"]["0"]["position"].as_i64();
        meta["complete"] == json!(true) && position > Some(1) && meta["partitions"]["0"]["log_end"].as_i64() == position
    });
    let (n, sum) = (body["rows"][0]["n"].as_i64().unwrap(), body["rows"][0]["sum"].as_i64().unwrap());

    broker(&|broker| broker.kill().expect("killed"));
    wait_for_absence(client, n, sum);
    broker(&|broker| broker.restart().expect("started"));
    cluster.kafka_mut().expect("Kafka").wait_until_ready().expect("it is back");
    produce(&bootstrap, "numbers", &[100]);
    ask(client, n + 1, sum + 100);
    let id = client.build("total", "rebuild").expect("no other build runs");
    assert_eq!(client.wait_build(&id, PATIENCE)["state"], "succeeded");
    ask(client, n + 1, sum + 100);
    running.stop();
}

#[test]
fn what_is_too_large_for_a_topic_is_said_and_nothing_else_fails_with_it() {
    let Some(bootstrap) = real_kafka() else { return };
    let topic = format!("limited-{}", RunId::unique());
    Client::default().create_topic(&bootstrap, &topic, 1, &[("max.message.bytes", "2000")]);
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(&config(&bootstrap, "", &topic), dir.path());
    let client = running.client();
    let record = |v: i64, bytes: usize| format!("{{\"v\": {v}, \"pad\": \"{}\"}}\n", "x".repeat(bytes));

    // Each of them is small, and all of them together are not.
    let many: String = (0..100).map(|_| record(1, 100)).collect();
    let (status, body) = client.post_text("/v1/streams/numbers", &many);
    assert_eq!((status, &body["accepted"]), (200, &json!(100)), "{body}");
    ask(client, 100, 100);

    // Of a topic's limit only the log knows; a record above that of the client is seen before anything is sent.
    for (bytes, limit, published) in
        [(5000, "max.message.bytes", "2 of 3"), (1_500_000, "message.max.bytes", "nothing was published")]
    {
        let three = [record(1, 10), record(1000, bytes), record(1, 10)].concat();
        let (status, body) = client.post_text("/v1/streams/numbers", &three);
        assert_eq!((status, &body["error"]["code"]), (413, &json!("too_large")), "{body}");
        let message = body["error"]["message"].as_str().expect("a message");
        assert!(message.contains(published) && message.contains("line 2") && message.contains(limit), "{message}");
        // What the log has of it is not to be sent again.
        let partly = (&body["accepted"], &body["offsets"], &body["errors"][0]["line"]);
        match bytes {
            5000 => assert_eq!(partly, (&json!(2), &json!({"0": 102}), &json!(2)), "{body}"),
            _ => assert_eq!(partly, (&json!(null), &json!(null), &json!(null)), "{body}"),
        }
    }
    ask(client, 102, 102);

    let three = [record(1, 10), record(1000, 5000), record(1, 10)].concat();
    // To the log itself; and over HTTP, where there is no configuration.
    let elsewhere = tempfile::tempdir().unwrap();
    let over_http = ["--url", client.url()];
    for (from, more, n) in [(dir.path(), &[][..], 104), (elsewhere.path(), &over_http[..], 106)] {
        let args = [&["produce", "numbers", "--from", "-", "--format", "json"][..], more].concat();
        let produced = watershed(from, &args, three.as_bytes()).expect_status(1).json();
        assert_eq!((&produced["delivered"], &produced["failed"]), (&json!(2), &json!(1)), "{produced}");
        assert_eq!(produced["partitions"]["0"]["next"], n, "{produced}");
        let error = &produced["errors"][0];
        assert_eq!(error["line"], json!(2), "{produced}");
        assert!(error["error"].as_str().expect("a text").contains("max.message.bytes"), "{produced}");
        ask(client, n, n);
    }
    running.stop();
}
