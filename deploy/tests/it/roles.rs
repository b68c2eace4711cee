//! The roles as processes of their own: what one of them decides the others know, and whoever dies, the answers stay the
//! truth.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use watershed_shared::clock::Instant;

use crate::detour::Detour;
use crate::harness::{Broker, Running};
use crate::oracle::events::{COLUMNS, Format, Generator};
use crate::oracle::log::{Log, offsets};

const STREAM: &str = "shared";
const VIEW: &str = "counts";
const PARTITIONS: i32 = 4;
const PATIENCE: Duration = Duration::from_secs(120);

struct World {
    broker: Broker,
    dir: tempfile::TempDir,
    generator: Generator,
    log: Log,
}

impl World {
    fn new() -> Self {
        let mut generator = Generator::new(5, PARTITIONS, Format::Json);
        generator.bad_percent = 10;
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self { broker: Broker::start(), dir, generator, log: Log::default() }
    }

    /// The folder of the process `name`.
    fn home(&self, name: &str) -> PathBuf {
        let home = self.dir.path().join(name);
        std::fs::create_dir_all(&home).expect("a folder");
        home
    }

    fn config(&self, speed: &str) -> String {
        let speed =
            format!("commit_interval = \"50 ms\"\nlisten = \"127.0.0.1:0\"\nowner_timeout = \"2 seconds\"\n{speed}");
        let head = self.broker.config("200 ms", &speed);
        let storage = self.dir.path().join("storage");
        format!(
            r#"
{head}
[storage]
url = "{}"
[stream.{STREAM}]
partitions = {PARTITIONS}
shards = 2
format = "json"
event_time = "t"
allowed_lateness = "10 minutes"
columns = """{COLUMNS}"""
[view.{VIEW}]
sql = "SELECT k, count(*) AS n, sum(v) AS sv FROM {STREAM} GROUP BY k"
"#,
            storage.display()
        )
    }

    fn start(&self, role: &str, name: &str) -> Running {
        Running::start_role(role, &self.config(""), &self.home(name), &[])
    }

    fn produce(&mut self, count: usize) {
        let records = (0..count).map(|_| self.generator.placed()).collect();
        let broker = &self.broker;
        self.log.produce(Format::Json, records, |payloads| broker.produce(STREAM, payloads));
    }

    fn truth(&self, position: &BTreeMap<i32, i64>) -> BTreeMap<String, (i64, i64)> {
        let mut truth: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for event in self.log.seen_below(position) {
            let (n, sum) = truth.entry(json!(event.row.k).to_string()).or_default();
            *n += 1;
            *sum += event.row.v;
        }
        truth
    }

    /// The answer is the truth at the position that it names.
    fn check(&self, body: &Value, when: &str) {
        let position = offsets(&body["meta"]["views"][VIEW], "position");
        assert_eq!(rows(body), self.truth(&position), "after {when}: {}", body["meta"]);
    }

    /// Each serving process answers the truth at the log's end.
    fn check_all(&self, serving: &[&Running], when: &str) {
        for running in serving {
            let body = running.client().view_waiting(VIEW, &self.log.ends(), PATIENCE);
            self.check(&body, when);
        }
    }
}

fn rows(body: &Value) -> BTreeMap<String, (i64, i64)> {
    let rows = body["rows"].as_array().expect("rows");
    let number = |value: &Value| value.as_i64().expect("a number");
    rows.iter().map(|r| (r["k"].to_string(), (number(&r["n"]), number(&r["sv"])))).collect()
}

fn reasons<'a>(meta: &'a Value, code: &str) -> Vec<&'a Value> {
    let reasons = meta["reasons"].as_array().expect("reasons");
    reasons.iter().filter(|reason| reason["code"] == code).collect()
}

fn is_complete(meta: &Value) -> bool {
    meta["complete"] == true
}

fn succeeded(running: &Running, id: &str) {
    let status = running.client().wait_build(id, PATIENCE);
    assert_eq!(status["state"], "succeeded", "{status}");
}

/// A build's cut is at the end of the log, and all below it is archived.
fn archived(running: &Running) {
    let id = running.client().build(VIEW, "refresh").expect("no other build runs");
    succeeded(running, &id);
}

/// The shards that a speed process serves.
fn shards(running: &Running) -> Vec<u64> {
    let (status, body) = running.client().get("/v1/status");
    assert_eq!(status, 200, "{body}");
    body["shards"].as_array().expect("shards").iter().map(|s| s["shard"].as_u64().expect("a number")).collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn processes_of_their_own_answer_as_one_whoever_dies() {
    let mut world = World::new();
    let batch = world.start("batch", "batch");
    let first = world.start("speed", "speed-a");
    eventually("both shards are claimed", || shards(&first) == [0, 1]);
    let (x, y) = (world.start("serving", "serving-x"), world.start("serving", "serving-y"));
    world.produce(200);
    world.check_all(&[&x, &y], "the start");

    // A build that one of them is asked for, the other one follows.
    let id = x.client().build(VIEW, "rebuild").expect("no other build runs");
    succeeded(&y, &id);
    let second = world.start("speed", "speed-b");
    assert_eq!(shards(&second), [0_u64; 0], "the owner answers");
    world.produce(200);
    for serving in [&x, &y] {
        let body = serving.client().view_when(VIEW, PATIENCE, |meta| meta["generation"] == 1 && is_complete(meta));
        world.check(&body, "a rebuild");
    }
    world.check_all(&[&x, &y], "a rebuild");

    // The owner dies: the other worker takes over.
    first.kill();
    world.produce(200);
    eventually("the other worker claims both", || shards(&second) == [0, 1]);
    world.check_all(&[&x, &y], "the end of an owner");
    let id = y.client().build(VIEW, "refresh").expect("no other build runs");
    succeeded(&x, &id);
    world.check_all(&[&x, &y], "a refresh after a takeover");

    // Nobody keeps the deltas: the answers stay, and say which partitions stand still.
    second.kill();
    let body = x.client().view_when(VIEW, PATIENCE, |meta| reasons(meta, "no_owner").len() == PARTITIONS as usize);
    world.check(&body, "the end of all owners");
    let (status, refused) = x.client().get(&format!("/v1/views/{VIEW}?min_complete=true"));
    assert_eq!((status, refused["error"]["code"].as_str()), (503, Some("incomplete")), "{refused}");
    world.produce(200);
    // Without a worker a cut is what is archived; and what is below it is answered though nobody keeps a delta.
    let id = x.client().build(VIEW, "refresh").expect("no other build runs");
    succeeded(&x, &id);
    let body = y.client().view_when(VIEW, PATIENCE, |meta| meta["generation"] == 3);
    world.check(&body, "a refresh without an owner");
    let first = world.start("speed", "speed-a");
    world.check_all(&[&x, &y], "the return of a worker");
    let body = x.client().view_when(VIEW, PATIENCE, is_complete);
    world.check(&body, "the return of a worker");

    // Without a batch process a request waits, and can be withdrawn.
    batch.kill();
    let id = x.client().build(VIEW, "rebuild").expect("no other build runs");
    assert_eq!(y.client().build(VIEW, "refresh"), None, "one is asked for already");
    assert_eq!(y.client().cancel(&id), 200);
    assert_eq!(x.client().wait_build(&id, PATIENCE)["state"], "cancelled");
    assert_eq!(y.client().cancel(&id), 409, "it has ended");

    // A batch process dies in the middle of a build: the next one knows.
    let abort = [("WATERSHED_ABORT_AT", "claimed")];
    let mut batch = Running::start_role("batch", &world.config(""), &world.home("batch"), &abort);
    let id = x.client().build(VIEW, "rebuild").expect("no other build runs");
    assert!(batch.ended_within(PATIENCE), "it does not get to the abort point:\n{}", batch.log());
    let batch = world.start("batch", "batch");
    assert_eq!(y.client().wait_build(&id, PATIENCE)["state"], "interrupted");
    let id = x.client().build(VIEW, "rebuild").expect("no other build runs");
    succeeded(&y, &id);
    world.produce(100);
    world.check_all(&[&x, &y], "a rebuild after an interrupted one");
    archived(&x);
    world.log.check_master_dataset(x.client(), STREAM);
    for running in [x, y, batch, first] {
        running.stop();
    }
}

/// Asks for the view without a pause; every answer is there, and no position goes back.
fn poll(url: &str, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let (url, stop) = (format!("{url}/v1/views/{VIEW}?limit=100000"), Arc::clone(stop));
    std::thread::spawn(move || {
        let http = reqwest::blocking::Client::new();
        let mut last: BTreeMap<i32, i64> = BTreeMap::new();
        let answered = AtomicU64::new(0);
        while !stop.load(Ordering::Relaxed) {
            let response = http.get(&url).timeout(PATIENCE).send().expect("an answer");
            let status = response.status();
            let body: Value = response.json().expect("JSON");
            assert!(status.is_success(), "{status} {body}");
            let now = offsets(&body["meta"]["views"][VIEW], "position");
            let back = last.iter().find(|(partition, offset)| now.get(partition).is_none_or(|now| now < *offset));
            assert_eq!(back, None, "{now:?} after {last:?}: {}", body["meta"]);
            last = now;
            answered.fetch_add(1, Ordering::Relaxed);
        }
        answered.into_inner()
    })
}

#[test]
fn workers_and_builders_are_replaced_one_by_one_without_a_failed_query() {
    let mut world = World::new();
    let mut batch = vec![world.start("batch", "batch-a"), world.start("batch", "batch-b")];
    let fixed = |world: &World, shard: u32| {
        let config = world.config(&format!("claim = [{shard}]"));
        Running::start_role("speed", &config, &world.home(&format!("speed-{shard}")), &[])
    };
    let mut speed = vec![fixed(&world, 0), fixed(&world, 1)];
    world.produce(100);
    let serving = world.start("serving", "serving");
    world.check_all(&[&serving], "the start");
    let id = serving.client().build(VIEW, "rebuild").expect("no other build runs");
    succeeded(&serving, &id);

    let stop = Arc::new(AtomicBool::new(false));
    let polling = poll(serving.client().url(), &stop);
    for round in 0..2 {
        for shard in 0..2 {
            speed.remove(0).stop();
            world.produce(40);
            speed.push(fixed(&world, shard));
            world.check_all(&[&serving], &format!("worker {shard} was replaced, round {round}"));
        }
        batch.remove(0).stop();
        let id = serving.client().build(VIEW, if round == 0 { "refresh" } else { "rebuild" });
        succeeded(&serving, &id.expect("no other build runs"));
        batch.push(world.start("batch", ["batch-a", "batch-b"][round]));
        world.produce(40);
        world.check_all(&[&serving], &format!("a builder was replaced, round {round}"));
    }
    stop.store(true, Ordering::Relaxed);
    let answered = polling.join().expect("no query fails, and no position goes back");
    assert!(answered > 0, "somebody asked");
    archived(&serving);
    world.log.check_master_dataset(serving.client(), STREAM);
    let body = serving.client().view_when(VIEW, PATIENCE, is_complete);
    world.check(&body, "the end");
}

#[test]
fn a_process_that_serves_without_workers_says_so_and_is_not_ready() {
    let mut world = World::new();
    let serving = Running::start_role_unready("serving", &world.config(""), &world.home("serving"), &[]);
    world.produce(50);
    eventually("it answers", || serving.client().get(&format!("/v1/views/{VIEW}")).0 == 200);
    let meta = |meta: &Value| reasons(meta, "no_owner").len() == PARTITIONS as usize;
    let body = serving.client().view_when(VIEW, PATIENCE, meta);
    world.check(&body, "the start without a worker");
    let (status, missing) = serving.client().get("/readyz");
    assert_eq!((status, missing["error"]["code"].as_str()), (503, Some("not_ready")), "{missing}");
    let speed = world.start("speed", "speed");
    world.check_all(&[&serving], "the start of a worker");
    eventually("it is ready", || serving.client().get("/readyz").0 == 200);
    let body = serving.client().view_when(VIEW, PATIENCE, is_complete);
    world.check(&body, "readiness");
    speed.stop();
}

#[test]
fn a_worker_that_alone_has_lost_the_log_says_so() {
    let mut world = World::new();
    let detour = Detour::to(world.broker.bootstrap_servers());
    let config = world.config("").replace(world.broker.bootstrap_servers(), &detour.bootstrap_servers());
    let speed = Running::start_role("speed", &config, &world.home("speed"), &[]);
    let serving = world.start("serving", "serving");
    world.produce(100);
    world.check_all(&[&serving], "the start");
    serving.client().view_when(VIEW, PATIENCE, is_complete);

    detour.close();
    world.produce(100);
    let away = |meta: &Value| reasons(meta, "log_unreachable").len() == 2;
    let body = serving.client().view_when(VIEW, PATIENCE, away);
    world.check(&body, "the worker lost the log");
    assert!(!is_complete(&body["meta"]["views"][VIEW]), "{body}");
    let (_, status) = speed.client().get("/v1/status");
    assert_eq!(status["shards"][1]["reasons"][0]["code"], "log_unreachable", "{status}");
    // How far the log is by now the serving process sees by itself.
    let ends = world.log.ends();
    let body = serving.client().view_when(VIEW, PATIENCE, |meta| offsets(meta, "log_end") == ends);
    let lag = body["meta"]["views"][VIEW]["lag_seconds"].as_f64();
    assert!(lag > Some(0.0), "{body}");

    detour.open();
    world.check_all(&[&serving], "the worker has the log again");
    let body = serving.client().view_when(VIEW, PATIENCE, is_complete);
    world.check(&body, "the end");
}

#[test]
fn what_processes_share_has_to_be_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = Broker::start();
    let stream = "[stream.s]\nformat = \"text\"\n";
    let embedded = Running::refused_with(stream, dir.path(), &[], &["--role", "speed"]);
    assert!(embedded.contains("the embedded broker belongs to one process. Name the brokers"), "{embedded}");
    let head = broker.config("1 second", "listen = \"0.0.0.0:0\"");
    let unnamed = Running::refused_with(&format!("{head}{stream}"), dir.path(), &[], &["--role", "serving"]);
    assert!(unnamed.contains("separate processes share the storage"), "{unnamed}");
    let storage = format!("[storage]\nurl = \"{}\"\n", dir.path().join("storage").display());
    let open = Running::refused_with(&format!("{head}{storage}{stream}"), dir.path(), &[], &["--role", "speed"]);
    assert!(open.contains("set a `token` under [speed]"), "{open}");
    let head = broker.config("1 second", "listen = \"0.0.0.0:0\"\ntoken = \"secret\"");
    let nowhere = Running::refused_with(&format!("{head}{storage}{stream}"), dir.path(), &[], &["--role", "speed"]);
    assert!(nowhere.contains("say under [speed] how others reach it, as in advertise = "), "{nowhere}");

    let head = broker.config("1 second", "listen = \"127.0.0.1:0\"\ntoken = \"secret\"");
    let config = |shards: u32| format!("{head}{storage}{stream}partitions = 2\nshards = {shards}\n");
    let speed = Running::start_role("speed", &config(1), dir.path(), &[]);
    let (status, body) = speed.client().get("/v1/delta/s/0/progress");
    assert_eq!((status, body["error"]["code"].as_str()), (401, Some("unauthorized")), "{body}");
    let (status, body) = speed.client().get("/v1/views");
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("unknown_route")), "{body}");
    speed.stop();
    let other = Running::refused_with(&config(2), dir.path(), &[], &["--role", "speed"]);
    assert!(other.contains("the stream has 1 shards since it was first started"), "{other}");
}
