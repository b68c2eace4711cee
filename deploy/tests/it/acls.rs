//! A real Kafka that denies its user something: the stream says so, what it has goes on being answered, and the other
//! streams have nothing to do with it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use watershed_shared::names::RunId;
use xtask::cluster::{Acl, Permission, Right, Secured};

use crate::harness::{Client, Running, real_kafka, wait_until};
use crate::program::watershed;
use crate::secured::secured;

const PATIENCE: Duration = Duration::from_secs(120);

/// Two topics on a Kafka, and a user who may do with them what is granted.
struct World {
    /// Of the listener that denies nothing.
    plain: String,
    secured: Secured,
    dir: tempfile::TempDir,
    /// A part of the names of the topics.
    id: String,
}

/// The streams.
const DENIED: &str = "denied";
const OPEN: &str = "open";

impl World {
    fn new() -> Option<Self> {
        let (secured, plain) = (secured()?, real_kafka()?);
        let dir = tempfile::tempdir().unwrap();
        Some(Self { plain, secured, dir, id: RunId::unique().to_string() })
    }

    fn topic(&self, stream: &str) -> String {
        format!("acl-{stream}-{}", self.id)
    }

    fn grant(&self, stream: &str, rights: &[Right]) {
        for right in rights {
            self.acl(stream, *right, |acl| acl.add(&self.plain).expect("granted"));
        }
    }

    fn revoke(&self, stream: &str, rights: &[Right]) {
        for right in rights {
            self.acl(stream, *right, |acl| acl.remove(&self.plain).expect("taken back"));
        }
    }

    fn acl(&self, stream: &str, right: Right, act: impl Fn(Acl<'_>)) {
        act(Acl { topic: &self.topic(stream), right, permission: Permission::Allow });
    }

    /// Creates the topics of both streams.
    fn create_topics(&self) {
        for stream in [DENIED, OPEN] {
            Client::default().create_topic(&self.plain, &self.topic(stream), 1, &[]);
        }
    }

    /// Produces past the program, as somebody who may.
    fn produce(&self, stream: &str, values: &[i64]) {
        let record = |v: &i64| (0, 1_700_000_000_000, Some(format!("{{\"v\": {v}}}").into_bytes()));
        let records: Vec<_> = values.iter().map(record).collect();
        Client::default().produce_to_log(&self.plain, &self.topic(stream), &records);
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn config(&self) -> String {
        let Secured { bootstrap_servers, ca, passwords } = &self.secured;
        let (user, ca) = (Secured::LIMITED, ca.display());
        let mut config = format!(
            r#"
data_dir = "data"
[kafka]
bootstrap_servers = "{bootstrap_servers}"
security.protocol = "SASL_SSL"
sasl.mechanism = "PLAIN"
sasl.username = "{user}"
sasl.password = "{password}"
ssl.ca.location = "{ca}"
[http]
listen = "127.0.0.1:0"
[archive]
commit_interval = "50 ms"
"#,
            password = passwords[user],
        );
        for stream in [DENIED, OPEN] {
            let topic = self.topic(stream);
            config += &format!(
                r#"
[stream.{stream}]
topic = "{topic}"
columns = "v BIGINT"
[view.{stream}_total]
sql = "SELECT count(*) AS n, sum(v) AS sum FROM {stream}"
"#
            );
        }
        config
    }
}

/// Waits for the position `end`; the answer is complete and has `sum`.
fn ask(client: &Client, stream: &str, end: i64, sum: i64) {
    let view = format!("{stream}_total");
    let body = client.view_waiting(&view, &[(0, end)].into(), PATIENCE);
    assert_eq!(body["rows"][0], json!({"n": end, "sum": sum}), "{body}");
    client.view_when(&view, PATIENCE, |meta| meta["complete"] == json!(true));
}

fn stream_status(client: &Client, stream: &str) -> Value {
    let (code, body) = client.get("/v1/status");
    assert_eq!(code, 200, "{body}");
    let streams = body["streams"].as_array().expect("streams");
    streams.iter().find(|s| s["name"] == stream).expect("the stream").clone()
}

/// Waits until the answers of `stream` say that it is denied, with what it had until then.
fn wait_for_denial(world: &World, client: &Client, n: i64, sum: i64) {
    let denied = |meta: &Value| meta["reasons"].as_array().expect("reasons").iter().any(|r| r["code"] == "log_denied");
    wait_until(PATIENCE, || {
        // A process that has just started answers nothing yet.
        let (status, body) = client.get(&format!("/v1/views/{DENIED}_total"));
        let meta = &body["meta"]["views"][format!("{DENIED}_total")];
        let said = status == 200 && denied(meta) && body["rows"][0] == json!({"n": n, "sum": sum});
        if said { Ok(()) } else { Err(body) }
    });
    let (status, body) = client.get(&format!("/v1/views/{DENIED}_total?min_complete=true"));
    assert_eq!((status, &body["error"]["code"]), (503, &json!("incomplete")), "{body}");
    wait_until(PATIENCE, || {
        let status = stream_status(client, DENIED);
        let error = status["archiver"]["error"].as_str().unwrap_or_default();
        let said = [world.topic(DENIED).as_str(), "READ", "[kafka]"].iter().all(|part| error.contains(part));
        if status["archiver"]["state"] == "retrying" && said { Ok(()) } else { Err(status) }
    });
}

#[test]
fn a_topic_that_may_not_be_read_any_more_stands_alone() {
    let Some(world) = World::new() else { return };
    world.create_topics();
    world.grant(DENIED, &[Right::Read]);
    world.grant(OPEN, &[Right::Read]);
    let running = Running::start(&world.config(), world.path());
    world.produce(DENIED, &[1, 2]);
    world.produce(OPEN, &[1, 2]);
    ask(running.client(), DENIED, 2, 3);
    ask(running.client(), OPEN, 2, 3);

    world.revoke(DENIED, &[Right::Read]);
    world.produce(DENIED, &[4]);
    world.produce(OPEN, &[4]);
    wait_for_denial(&world, running.client(), 2, 3);
    ask(running.client(), OPEN, 3, 7);
    running.stop();
    // It starts all the same.
    let running = Running::start_unready(&world.config(), world.path());
    wait_for_denial(&world, running.client(), 2, 3);
    world.produce(OPEN, &[8]);
    ask(running.client(), OPEN, 4, 15);

    // Nothing but the right is needed to go on, and nothing is missing.
    world.grant(DENIED, &[Right::Read]);
    ask(running.client(), DENIED, 3, 7);
    wait_until(PATIENCE, || {
        let status = stream_status(running.client(), DENIED);
        if status["archiver"]["state"] == "healthy" { Ok(()) } else { Err(status) }
    });
    let id = running.client().build(&format!("{DENIED}_total"), "rebuild").expect("no other build runs");
    assert_eq!(running.client().wait_build(&id, PATIENCE)["state"], "succeeded");
    ask(running.client(), DENIED, 3, 7);
    running.stop();
}

#[test]
fn a_topic_that_may_not_be_seen_or_created_is_said_at_the_start() {
    let Some(world) = World::new() else { return };
    world.grant(OPEN, &[Right::Read]);
    let topic = world.topic(DENIED);
    // It may see that there is none, and not create it.
    world.grant(DENIED, &[Right::Describe]);
    let said = Running::refused(&world.config(), world.path());
    for part in ["start stream `denied`", "create the topic", &topic, "CREATE"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    world.revoke(DENIED, &[Right::Describe]);
    world.create_topics();
    let said = Running::refused(&world.config(), world.path());
    for part in ["start stream `denied`", "describe the topic", &topic, "DESCRIBE"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_topic_that_may_not_be_written_is_said_to_who_publishes() {
    let Some(world) = World::new() else { return };
    world.create_topics();
    world.grant(DENIED, &[Right::Read]);
    world.grant(OPEN, &[Right::Read, Right::Write]);
    let running = Running::start(&world.config(), world.path());
    let client = running.client();
    let topic = world.topic(DENIED);
    for _ in 0..2 {
        let (status, body) = client.post_text("/v1/streams/denied", "{\"v\": 1}\n");
        assert_eq!((status, &body["error"]["code"]), (403, &json!("denied")), "{body}");
        let message = body["error"]["message"].as_str().expect("a message");
        assert!(message.contains(&topic) && message.contains("WRITE"), "{message}");
        let (status, body) = client.post_text("/v1/streams/open", "{\"v\": 1}\n");
        assert_eq!(status, 200, "{body}");
    }
    ask(client, OPEN, 2, 2);
    let args = ["produce", "denied", "--from", "-", "--format", "json"];
    let produced = watershed(world.path(), &args, b"{\"v\": 1}\n").expect_status(1).json();
    let error = produced["errors"][0]["error"].as_str().expect("an error");
    assert!(error.contains(&topic) && error.contains("WRITE"), "{produced}");

    world.grant(DENIED, &[Right::Write]);
    wait_until(PATIENCE, || match client.post_text("/v1/streams/denied", "{\"v\": 1}\n") {
        (200, _) => Ok(()),
        (_, body) => Err(body),
    });
    ask(client, DENIED, 1, 1);
    running.stop();
}
