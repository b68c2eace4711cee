//! Partitions that are added to a topic under the running program: their events count from the first one on, in both
//! layers, over builds and restarts, in one process and in the roles' own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, Producer};
use serde_json::json;
use tokio::runtime::Runtime;
use watershed_shared::names::RunId;

use crate::harness::{Client, Running, config_head, real_kafka, wait_until};

const PATIENCE: Duration = Duration::from_secs(120);
const STREAM: &str = "growing";
const VIEW: &str = "sums";

/// A topic of a real Kafka, and what is in it.
struct World {
    bootstrap: String,
    topic: String,
    dir: tempfile::TempDir,
    /// By partition the values, which are 1, 2, 4, …
    values: BTreeMap<i32, Vec<i64>>,
}

impl World {
    /// `None` under plain `cargo test`.
    fn new() -> Option<Self> {
        let bootstrap = real_kafka()?;
        let topic = format!("growing-{}", RunId::unique());
        let dir = tempfile::tempdir().expect("a temporary directory");
        Some(Self { bootstrap, topic, dir, values: BTreeMap::new() })
    }

    fn home(&self, name: &str) -> PathBuf {
        let home = self.dir.path().join(name);
        std::fs::create_dir_all(&home).expect("a folder");
        home
    }

    fn config(&self) -> String {
        let head = config_head(&self.bootstrap, "100 ms", "listen = \"127.0.0.1:0\"\ncommit_interval = \"50 ms\"");
        let storage = self.dir.path().join("storage");
        format!(
            r#"{head}[storage]
url = "{}"
[stream.{STREAM}]
topic = "{}"
partitions = 2
shards = 2
columns = "p INT, v BIGINT"
[view.{VIEW}]
sql = "SELECT p, count(*) AS n, sum(v) AS sum FROM {STREAM} GROUP BY p"
"#,
            storage.display(),
            self.topic,
        )
    }

    /// Five events to each of `partitions`.
    fn produce(&mut self, partitions: std::ops::Range<i32>) {
        let mut records = Vec::new();
        for partition in partitions {
            let values = self.values.entry(partition).or_default();
            for _ in 0..5 {
                let value = 1_i64 << values.len();
                values.push(value);
                let payload = format!("{{\"p\": {partition}, \"v\": {value}}}");
                records.push((partition, 1_700_000_000_000, Some(payload.into_bytes())));
            }
        }
        Client::default().produce_to_log(&self.bootstrap, &self.topic, &records);
    }

    /// On return producers see all of them.
    fn grow_to(&self, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().expect("a client");
        let new = NewPartitions::new(&self.topic, usize::try_from(partitions).unwrap());
        let runtime = Runtime::new().expect("a runtime");
        let done = runtime.block_on(admin.create_partitions([&new], &AdminOptions::new())).expect("an answer");
        done[0].as_ref().expect("created");
        wait_until(PATIENCE, || {
            let client: FutureProducer =
                ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().expect("a client");
            let found =
                client.client().fetch_metadata(Some(&self.topic), PATIENCE).map_err(|e| json!(e.to_string()))?;
            let all = found.topics()[0].partitions();
            let led = all.iter().filter(|p| p.leader() > 0).count();
            if led == usize::try_from(partitions).unwrap() { Ok(()) } else { Err(json!(led)) }
        });
    }

    /// Every event, and nothing else, at the log's end; complete.
    fn check(&self, client: &Client, when: &str) {
        let ends = self.values.iter().map(|(p, values)| (*p, values.len() as i64)).collect();
        let truth: BTreeMap<i64, (i64, i64)> =
            self.values.iter().map(|(p, v)| (i64::from(*p), (v.len() as i64, v.iter().sum()))).collect();
        let body = client.view_waiting(VIEW, &ends, PATIENCE);
        let number = |value: &serde_json::Value| value.as_i64().expect("a number");
        let rows = body["rows"].as_array().expect("rows").iter();
        let rows: BTreeMap<_, _> = rows.map(|r| (number(&r["p"]), (number(&r["n"]), number(&r["sum"])))).collect();
        assert_eq!(rows, truth, "after {when}: {}", body["meta"]);
        client.view_when(VIEW, PATIENCE, |meta| meta["complete"] == json!(true));
    }
}

fn build(client: &Client, mode: &str) {
    let id = client.build(VIEW, mode).expect("no other build runs");
    let status = client.wait_build(&id, PATIENCE);
    assert_eq!(status["state"], "succeeded", "{status}");
    client.view_when(VIEW, PATIENCE, |meta| meta["generation"] == status["generation"]);
}

#[test]
fn added_partitions_count_from_their_first_event_on() {
    let Some(mut world) = World::new() else { return };
    let home = world.home("all");
    let start = |world: &World, home: &Path| Running::start(&world.config(), home);
    let running = start(&world, &home);
    world.produce(0..2);
    build(running.client(), "rebuild");
    world.grow_to(4);
    world.produce(0..4);
    world.check(running.client(), "two partitions came");
    running.kill();
    let running = start(&world, &home);
    world.check(running.client(), "a kill");
    build(running.client(), "refresh");
    world.check(running.client(), "a refresh");
    world.produce(0..4);
    build(running.client(), "rebuild");
    world.check(running.client(), "a rebuild");
    running.stop();
    // And while nobody looks.
    world.grow_to(5);
    world.produce(0..5);
    let running = start(&world, &home);
    world.check(running.client(), "one came while nothing ran");
    build(running.client(), "refresh");
    world.check(running.client(), "a refresh over it");
    running.stop();
}

#[test]
fn added_partitions_find_a_worker_among_the_roles() {
    let Some(mut world) = World::new() else { return };
    let start =
        |world: &World, role: &str, name: &str| Running::start_role(role, &world.config(), &world.home(name), &[]);
    let speed = start(&world, "speed", "speed");
    let batch = start(&world, "batch", "batch");
    let serving = start(&world, "serving", "serving");
    world.produce(0..2);
    world.check(serving.client(), "the start");
    world.grow_to(3);
    world.produce(0..3);
    world.check(serving.client(), "a partition came");
    build(serving.client(), "rebuild");
    world.check(serving.client(), "a rebuild");
    speed.kill();
    let speed = start(&world, "speed", "speed");
    world.produce(0..3);
    world.check(serving.client(), "a kill of the speed worker");
    for running in [serving, batch, speed] {
        running.stop();
    }
}
