//! A log that is cut off behind what was read of it, by an unclean leader election: it is noticed while the program runs
//! and when it starts on a log that has grown past it again, it is said, and no event of the other log is mixed in.

use std::path::Path;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use xtask::cluster::{Cluster, Daemon, Options, directory};

use crate::harness::{Client, Running, config_head, real_kafka, wait_until};

const PATIENCE: Duration = Duration::from_secs(180);
const LEADER: usize = 0;
const FOLLOWER: usize = 1;

struct World {
    cluster: Cluster,
}

impl World {
    /// `None` under plain `cargo test`.
    fn start() -> Option<Self> {
        real_kafka()?;
        let dir = directory(&format!("it-truncation-{}", std::process::id())).expect("a folder");
        let options = Options { brokers: 3, secured: false, datanodes: 0 };
        Some(Self { cluster: Cluster::start(&dir, options).expect("Kafka starts") })
    }

    fn brokers(&mut self) -> &mut [Daemon] {
        self.cluster.kafka_mut().expect("it was asked for").daemons_mut()
    }

    /// The addresses of all brokers but one.
    fn without(&self, broker: usize) -> String {
        let brokers = self.cluster.kafka().expect("it was asked for").daemons();
        let others = brokers.iter().enumerate().filter(|(i, _)| *i != broker);
        others.map(|(_, broker)| broker.address()).collect::<Vec<_>>().join(",")
    }

    fn all(&self) -> String {
        self.cluster.kafka().expect("it was asked for").bootstrap_servers()
    }

    /// One partition on the leader and the follower, which may become leader without having everything.
    fn create_topic(&self, topic: &str) {
        let replicas = [LEADER as i32 + 1, FOLLOWER as i32 + 1];
        let replicas: [&[i32]; 1] = [&replicas];
        let new = NewTopic::new(topic, 1, TopicReplication::Variable(&replicas))
            .set("unclean.leader.election.enable", "true")
            .set("min.insync.replicas", "1");
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", self.all()).create().expect("a client");
        let created = Runtime::new().expect("a runtime").block_on(admin.create_topics([&new], &AdminOptions::new()));
        created.expect("an answer")[0].as_ref().expect("created");
    }

    /// Waits until `servers` name `leader` and the in-sync replicas, by their places.
    fn wait_for_leader(&self, servers: &str, topic: &str, leader: usize, in_sync: &[usize]) {
        let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", servers).create().expect("a client");
        let expected: Vec<i32> = in_sync.iter().map(|i| *i as i32 + 1).collect();
        wait_until(PATIENCE, || {
            let found =
                client.fetch_metadata(Some(topic), Duration::from_secs(10)).map_err(|e| json!(e.to_string()))?;
            let partition = found.topics()[0].partitions().first().ok_or(json!("no partition"))?;
            let mut isr = partition.isr().to_vec();
            isr.sort_unstable();
            match partition.leader() == leader as i32 + 1 && isr == expected {
                true => Ok(()),
                false => Err(json!([partition.leader(), isr])),
            }
        });
    }
}

fn produce(servers: &str, topic: &str, values: std::ops::Range<i64>) -> Vec<i64> {
    let record = |v: i64| (0, 1_700_000_000_000, Some(format!("{{\"v\": {v}}}").into_bytes()));
    Client::default().produce_to_log(servers, topic, &values.map(record).collect::<Vec<_>>())
}

fn config(servers: &str, topic: &str) -> String {
    let head = config_head(servers, "50 ms", "");
    format!(
        r#"{head}[stream.{topic}]
partitions = 1
columns = "v BIGINT"
[view.total]
sql = "SELECT count(*) AS n, sum(v) AS sum FROM {topic}"
"#
    )
}

/// 0 to 14: what was read before the log was cut off at 10.
fn all_read() -> Value {
    json!({"n": 15, "sum": 105})
}

/// Waits until what is read is answered with the reason, and the archiver has stopped.
fn wait_for_truncation(running: &Running) {
    let client = running.client();
    wait_until(PATIENCE, || {
        let (status, body) = client.get("/v1/views/total");
        let reasons = body["meta"]["views"]["total"]["reasons"].as_array().cloned().unwrap_or_default();
        let said = reasons.iter().find(|reason| reason["code"] == "log_truncated");
        match said {
            Some(reason) if status == 200 && body["rows"][0] == all_read() => {
                assert_eq!((&reason["partition"], &reason["from"], &reason["to"]), (&json!(0), &json!(10), &json!(15)));
                let message = reason["message"].as_str().expect("a message");
                assert!(message.contains("declare it under another name"), "{message}");
                Ok(())
            }
            _ => Err(json!([body, running.log()])),
        }
    });
    let (status, body) = client.get("/v1/views/total?min_complete=true");
    assert_eq!((status, &body["error"]["code"]), (503, &json!("incomplete")), "{body}");
    wait_until(PATIENCE, || {
        let (_, body) = client.get("/v1/status");
        let stream = &body["streams"][0];
        let stopped = stream["archiver"]["state"] == "stopped" && stream["archive"]["archived_until"]["0"] == json!(15);
        let error = stream["archiver"]["error"].as_str().unwrap_or_default();
        if stopped && error.contains("[10, 15)") { Ok(()) } else { Err(body) }
    });
}

fn read_all(running: &Running) {
    let body = running.client().view_waiting("total", &[(0, 15)].into(), PATIENCE);
    assert_eq!(body["rows"][0], all_read(), "{body}");
}

fn start_again(servers: &str, topic: &str, dir: &Path) -> Running {
    Running::start_unready(&config(servers, topic), dir)
}

#[test]
fn a_log_that_was_cut_off_is_never_read_on() {
    let Some(mut world) = World::start() else { return };
    let all = world.all();
    let (watched, unwatched) = ("watched", "unwatched");
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for topic in [watched, unwatched] {
        world.create_topic(topic);
        world.wait_for_leader(&all, topic, LEADER, &[LEADER, FOLLOWER]);
        produce(&all, topic, 0..10);
    }
    let running = Running::start(&config(&all, watched), dirs[0].path());
    let ended = Running::start(&config(&all, unwatched), dirs[1].path());

    // The follower hears nothing of five more.
    world.brokers()[FOLLOWER].signal("STOP").expect("stopped");
    let servers = world.without(FOLLOWER);
    for topic in [watched, unwatched] {
        world.wait_for_leader(&servers, topic, LEADER, &[LEADER]);
        produce(&servers, topic, 10..15);
    }
    read_all(&running);
    read_all(&ended);
    ended.stop();

    // It becomes the leader all the same.
    world.brokers()[LEADER].kill().expect("killed");
    world.brokers()[FOLLOWER].signal("CONT").expect("continued");
    let servers = world.without(LEADER);
    for topic in [watched, unwatched] {
        world.wait_for_leader(&servers, topic, FOLLOWER, &[FOLLOWER]);
    }
    wait_for_truncation(&running);
    // Other records under the same numbers, and past them.
    for topic in [watched, unwatched] {
        assert_eq!(produce(&servers, topic, 1000..1010), (10..20).collect::<Vec<_>>());
    }
    let ended = start_again(&all, unwatched, dirs[1].path());
    wait_for_truncation(&ended);
    ended.stop();
    wait_for_truncation(&running);
    running.stop();
    let running = start_again(&all, watched, dirs[0].path());
    wait_for_truncation(&running);
    running.stop();
}
