//! What tests of the whole program share: a broker, the real program as a process, a client.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use watershed_shared::clock::Instant;
use watershed_shared::log::EmbeddedBroker;
use watershed_shared::testing::real_component;

/// How long the program may take to be ready; it is far above what a busy machine needs.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// The embedded broker in the test's own process, so that it outlives the platform that is killed.
pub(crate) struct Broker {
    /// `None` while it is stopped.
    broker: Option<EmbeddedBroker>,
    runtime: Runtime,
    producer: FutureProducer,
    dir: tempfile::TempDir,
    bootstrap_servers: String,
}

impl Broker {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let runtime = Runtime::new().expect("a runtime");
        let listen = "127.0.0.1:0".parse().expect("an address");
        let broker = runtime.block_on(EmbeddedBroker::start(dir.path(), listen)).expect("the broker starts");
        let bootstrap_servers = broker.bootstrap_servers().to_owned();
        let producer = producer(&bootstrap_servers);
        Self { broker: Some(broker), runtime, producer, dir, bootstrap_servers }
    }

    pub(crate) fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// Produces to the log itself, past the platform; answers the offset of each record.
    pub(crate) fn produce(&self, topic: &str, records: &[(i32, i64, Option<Vec<u8>>)]) -> Vec<i64> {
        send(&self.runtime, &self.producer, topic, records)
    }

    /// The beginning of a configuration whose log this is: everything up to the streams.
    pub(crate) fn config(&self, archive_interval: &str, speed: &str) -> String {
        config_head(&self.bootstrap_servers, archive_interval, speed)
    }

    /// Goes away, with all connections.
    pub(crate) fn stop(&mut self) {
        self.runtime.block_on(self.broker.take().expect("it runs").stop());
    }

    /// Comes back at the same address, with all that it has.
    pub(crate) fn start_again(&mut self) {
        let listen = self.bootstrap_servers.parse().expect("an address");
        let broker = self.runtime.block_on(EmbeddedBroker::start(self.dir.path(), listen));
        self.broker = Some(broker.expect("the broker starts"));
    }

    /// Drops what lies before `starts`, as a log does whose retention is over. The broker has no request for that, so it
    /// is done in its file while it is away. One record of each partition must be left: it says where the log begins.
    pub(crate) fn drop_before(&mut self, topic: &str, starts: &BTreeMap<i32, i64>) {
        const DROP: &str = r#"
import json, sqlite3, sys
db = sqlite3.connect(sys.argv[1])
for partition, start in json.loads(sys.argv[3]).items():
    dropped = db.execute("""delete from record where offset_id < ? and topition in (
        select p.id from topition p join topic t on p.topic = t.id where t.name = ? and p.partition = ?)""",
        (start, sys.argv[2], int(partition))).rowcount
    assert dropped > 0, (partition, start)
db.commit()
"#;
        self.stop();
        let starts = serde_json::to_string(starts).expect("a map serializes");
        let python = std::env::var("WATERSHED_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let file = self.dir.path().join("broker/log.sqlite");
        let done = Command::new(python).args(["-c", DROP]).arg(&file).args([topic, &starts]).output();
        let done = done.expect("Python 3 is there");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        self.start_again();
    }
}

/// The real Kafka that `cargo xtask test` starts; `None` under plain `cargo test`.
pub(crate) fn real_kafka() -> Option<String> {
    real_component("WATERSHED_TEST_KAFKA")
}

/// How a test's `watershed.toml` begins: everything up to the streams.
pub(crate) fn config_head(bootstrap: &str, archive_interval: &str, speed: &str) -> String {
    format!(
        r#"
data_dir = "data"
[kafka]
bootstrap_servers = "{bootstrap}"
[http]
listen = "127.0.0.1:0"
[archive]
commit_interval = "{archive_interval}"
[speed]
{speed}
"#
    )
}

/// `watershed up` with the configuration in `file`, and further arguments.
pub(crate) fn up(file: &Path, more: &[&str]) -> Command {
    let mut up = Command::new(env!("CARGO_BIN_EXE_watershed"));
    up.arg("up").arg("-c").arg(file).args(more);
    up
}

/// The program under `watershed up`.
pub(crate) struct Running {
    child: Child,
    client: Client,
    stderr: Arc<Mutex<Vec<String>>>,
}

impl Running {
    /// Writes `config` to `dir/watershed.toml`, starts the program and waits until it is ready.
    pub(crate) fn start(config: &str, dir: &Path) -> Self {
        Self::start_with(config, dir, &[])
    }

    /// As [`Running::start`], with environment variables; does not wait for readiness if the program ends first.
    pub(crate) fn start_with(config: &str, dir: &Path, env: &[(&str, &str)]) -> Self {
        Self::start_within(config, dir, env, START_PATIENCE)
    }

    /// As [`Running::start_with`], ready within `patience`.
    pub(crate) fn start_within(config: &str, dir: &Path, env: &[(&str, &str)], patience: Duration) -> Self {
        Self::spawn(config, dir, env).ready_within(dir, env, patience)
    }

    fn ready_within(mut self, dir: &Path, env: &[(&str, &str)], patience: Duration) -> Self {
        let running = &mut self;
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = running.child.try_wait().expect("the process can be waited for") {
                if env.iter().any(|(name, _)| *name == "WATERSHED_ABORT_AT") {
                    return self;
                }
                panic!("the program ended with {status} before it was ready:\n{}", running.log());
            }
            if running.client.discover(dir) && running.client.is_ready() {
                return self;
            }
            if Instant::now() > deadline {
                let status = (!running.client.url.is_empty()).then(|| running.client.get("/v1/status"));
                panic!("not ready after {patience:?} with {env:?}: {status:?}\n{}", running.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts a program that refuses to run; answers what it says.
    pub(crate) fn refused(config: &str, dir: &Path) -> String {
        Self::refused_with(config, dir, &[], &[])
    }

    /// As [`Running::refused`], with environment variables, and further arguments of `up`.
    pub(crate) fn refused_with(config: &str, dir: &Path, env: &[(&str, &str)], more: &[&str]) -> String {
        Self::spawn_with(config, dir, env, more).refusal(1)
    }

    /// As [`Running::refused`], with environment variables; it ends with `status`.
    pub(crate) fn refused_as(config: &str, dir: &Path, env: &[(&str, &str)], status: i32) -> String {
        Self::spawn(config, dir, env).refusal(status)
    }

    fn refusal(self, expected: i32) -> String {
        let mut running = self;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Some(status) = running.child.try_wait().expect("the process can be waited for") {
                assert_eq!(status.code(), Some(expected), "{}", running.log());
                // What it said last may still be on its way.
                while !running.log().contains("error: ") && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(10));
                }
                return running.log();
            }
            assert!(Instant::now() < deadline, "the program runs:\n{}", running.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the program and waits until it answers, though it may not become ready.
    pub(crate) fn start_unready(config: &str, dir: &Path) -> Self {
        let mut running = Self::spawn(config, dir, &[]);
        running.wait_until_alive(dir);
        running
    }

    fn wait_until_alive(&mut self, dir: &Path) {
        let deadline = Instant::now() + START_PATIENCE;
        while !(self.client.discover(dir) && self.client.get("/healthz").0 == 200) {
            let ended = self.child.try_wait().expect("the process can be waited for");
            assert!(ended.is_none() && Instant::now() < deadline, "does not answer: {ended:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As [`Running::start_with`], with the layers of `role` alone. Its folder is its own.
    pub(crate) fn start_role(role: &str, config: &str, dir: &Path, env: &[(&str, &str)]) -> Self {
        Self::start_role_within(role, config, dir, env, START_PATIENCE)
    }

    /// As [`Running::start_role`], ready within `patience`.
    pub(crate) fn start_role_within(
        role: &str,
        config: &str,
        dir: &Path,
        env: &[(&str, &str)],
        patience: Duration,
    ) -> Self {
        Self::spawn_with(config, dir, env, &["--role", role]).ready_within(dir, env, patience)
    }

    /// As [`Running::start_role`], not ready yet, though it answers, or has ended.
    pub(crate) fn start_role_unready(role: &str, config: &str, dir: &Path, env: &[(&str, &str)]) -> Self {
        let mut running = Self::spawn_with(config, dir, env, &["--role", role]);
        while !running.ended_within(Duration::ZERO) && !running.client.discover(dir) {
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    fn spawn(config: &str, dir: &Path, env: &[(&str, &str)]) -> Self {
        Self::spawn_with(config, dir, env, &[])
    }

    fn spawn_with(config: &str, dir: &Path, env: &[(&str, &str)], more: &[&str]) -> Self {
        let file = dir.join("watershed.toml");
        std::fs::write(&file, config).expect("the configuration can be written");
        match std::fs::remove_file(dir.join("data/http.json")) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        }
        let mut child = up(&file, more)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let pipe = BufReader::new(child.stderr.take().expect("piped"));
        let lines = Arc::clone(&stderr);
        std::thread::spawn(move || {
            for line in pipe.lines().map_while(Result::ok) {
                lines.lock().push(line);
            }
        });
        Self { child, client: Client::default(), stderr }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Everything on standard error so far.
    pub(crate) fn log(&self) -> String {
        self.stderr.lock().join("\n")
    }

    /// SIGTERM; the program must end cleanly.
    pub(crate) fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the process can be waited for") {
                assert!(status.success(), "ended with {status}:\n{}", self.log());
                return;
            }
            assert!(Instant::now() < deadline, "does not end after SIGTERM:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The most memory that it has had resident.
    pub(crate) fn peak_memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says it");
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
        kib << 10
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("the process can be killed");
        self.child.wait().expect("the process can be waited for");
    }

    /// Whether the program ends by itself within `patience`.
    pub(crate) fn ended_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.child.try_wait().expect("the process can be waited for").is_none() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.stderr.lock();
            for line in &log[log.len().saturating_sub(60)..] {
                eprintln!("    {line}");
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                eprintln!("    the program had ended: {status}");
            }
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Tries until `done`; what it says last is shown when the time is over.
pub(crate) fn wait_until(patience: Duration, mut done: impl FnMut() -> Result<(), Value>) {
    let deadline = Instant::now() + patience;
    while let Err(now) = done() {
        assert!(Instant::now() < deadline, "does not get there: {now}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Talks HTTP to a running platform.
#[derive(Default)]
pub(crate) struct Client {
    url: String,
    http: reqwest::blocking::Client,
    runtime: std::sync::OnceLock<Runtime>,
    producers: Mutex<BTreeMap<String, FutureProducer>>,
}

impl Client {
    /// Of the platform that answers at `url`.
    pub(crate) fn at(url: String) -> Self {
        Self { url, ..Self::default() }
    }

    fn discover(&mut self, dir: &Path) -> bool {
        let Ok(text) = std::fs::read_to_string(dir.join("data/http.json")) else { return false };
        let Ok(value) = serde_json::from_str::<Value>(&text) else { return false };
        self.url = value["url"].as_str().expect("url").to_owned();
        true
    }

    fn is_ready(&self) -> bool {
        self.http.get(format!("{}/readyz", self.url)).send().is_ok_and(|r| r.status().is_success())
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// GET; answers the status and the body.
    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        let response = self.http.get(format!("{}{path}", self.url)).timeout(START_PATIENCE).send().expect("an answer");
        let status = response.status().as_u16();
        (status, response.json().unwrap_or(Value::Null))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(reqwest::Method::POST, path, body)
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(reqwest::Method::PUT, path, body)
    }

    fn send(&self, method: reqwest::Method, path: &str, body: &Value) -> (u16, Value) {
        let request = self.http.request(method, format!("{}{path}", self.url)).timeout(START_PATIENCE).json(body);
        let response = request.send().expect("an answer");
        let status = response.status().as_u16();
        (status, response.json().unwrap_or(Value::Null))
    }

    /// POST of a text.
    pub(crate) fn post_text(&self, path: &str, body: &str) -> (u16, Value) {
        let request = self.http.post(format!("{}{path}", self.url)).timeout(START_PATIENCE).body(body.to_owned());
        let response = request.send().expect("an answer");
        let status = response.status().as_u16();
        (status, response.json().unwrap_or(Value::Null))
    }

    /// The whole view; it must answer.
    pub(crate) fn view(&self, view: &str) -> Value {
        let (status, body) = self.get(&format!("/v1/views/{view}?limit=1000000"));
        assert_eq!(status, 200, "{view}: {body}");
        body
    }

    /// The view's rows where `filter` holds.
    pub(crate) fn view_where(&self, view: &str, filter: &str) -> Value {
        let request = self.http.get(format!("{}/v1/views/{view}", self.url)).query(&[("where", filter)]);
        let response = request.timeout(START_PATIENCE).send().expect("an answer");
        let status = response.status().as_u16();
        let body: Value = response.json().expect("JSON");
        assert_eq!(status, 200, "{view} where {filter}: {body}");
        body
    }

    /// The whole view at a position that has reached `offsets`.
    pub(crate) fn view_waiting(&self, view: &str, offsets: &BTreeMap<i32, i64>, patience: Duration) -> Value {
        let wanted: BTreeMap<String, i64> = offsets.iter().map(|(p, o)| (p.to_string(), *o)).collect();
        let wait_for = serde_json::to_string(&wanted).expect("a map serializes");
        let request = self
            .http
            .get(format!("{}/v1/views/{view}", self.url))
            .query(&[("limit", "1000000"), ("wait_for", &wait_for)])
            .query(&[("timeout_ms", patience.as_millis().to_string())])
            .timeout(patience + Duration::from_secs(5));
        let response = request.send().expect("an answer");
        let status = response.status().as_u16();
        let body: Value = response.json().expect("JSON");
        assert_eq!(status, 200, "{view} waiting for {wait_for}: {body}");
        body
    }

    /// The whole view once `holds` is true of its meta.
    pub(crate) fn view_when(&self, view: &str, patience: Duration, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + patience;
        loop {
            let body = self.view(view);
            if holds(&body["meta"]["views"][view]) {
                return body;
            }
            assert!(Instant::now() < deadline, "{view} does not get there: {}", body["meta"]);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts a build; `None` if one of the view runs.
    pub(crate) fn build(&self, view: &str, mode: &str) -> Option<String> {
        let (status, body) = self.post(&format!("/v1/views/{view}/rebuilds"), &json!({"mode": mode}));
        match status {
            202 => Some(body["id"].as_str().expect("an id").to_owned()),
            409 => None,
            _ => panic!("{mode} of {view}: {status} {body}"),
        }
    }

    /// The build's status once it has ended.
    pub(crate) fn wait_build(&self, id: &str, patience: Duration) -> Value {
        let deadline = Instant::now() + patience;
        loop {
            let (status, body) = self.get(&format!("/v1/rebuilds/{id}?wait_ms=1000"));
            assert_eq!(status, 200, "{id}: {body}");
            let state = body["state"].as_str().expect("a state");
            if !["queued", "running", "publishing", "held"].contains(&state) {
                return body;
            }
            assert!(Instant::now() < deadline, "build {id} does not end: {body}");
        }
    }

    /// Asks for the end of a build; answers the status.
    pub(crate) fn cancel(&self, id: &str) -> u16 {
        let request = self.http.delete(format!("{}/v1/rebuilds/{id}", self.url)).timeout(START_PATIENCE);
        request.send().expect("an answer").status().as_u16()
    }

    /// The view's generations: number and definition.
    pub(crate) fn generations(&self, view: &str) -> Vec<(u64, String)> {
        let (status, body) = self.get(&format!("/v1/views/{view}/generations"));
        assert_eq!(status, 200, "{view}: {body}");
        let list = body["generations"].as_array().expect("generations");
        let definition = |g: &Value| g["definition"].as_str().expect("a hash").to_owned();
        list.iter().map(|g| (g["generation"].as_u64().expect("a number"), definition(g))).collect()
    }

    /// Starts an activation; answers the id of its build.
    pub(crate) fn activate(&self, view: &str, generation: u64) -> String {
        let (status, body) = self.post(&format!("/v1/views/{view}/generations/{generation}/activate"), &json!({}));
        assert_eq!(status, 202, "{view}: {body}");
        body["id"].as_str().expect("an id").to_owned()
    }

    /// Produces to the log itself, past the platform; answers the offset of each record.
    pub(crate) fn produce_to_log(
        &self,
        bootstrap: &str,
        topic: &str,
        records: &[(i32, i64, Option<Vec<u8>>)],
    ) -> Vec<i64> {
        let mut producers = self.producers.lock();
        let producer = producers.entry(bootstrap.to_owned()).or_insert_with(|| producer(bootstrap));
        send(self.runtime(), producer, topic, records)
    }

    /// Deletes the topic and makes another one of the same name.
    pub(crate) fn replace_topic(&self, bootstrap: &str, topic: &str, partitions: i32) {
        let options = AdminOptions::new();
        let deleted = self.runtime().block_on(admin(bootstrap).delete_topics(&[topic], &options));
        deleted.expect("an answer")[0].as_ref().expect("deleted");
        // They count the records of the topic that is gone.
        self.producers.lock().clear();
        self.create_topic(bootstrap, topic, partitions, &[]);
    }

    /// Drops the records of a real Kafka that lie before `starts`.
    pub(crate) fn delete_records(&self, bootstrap: &str, topic: &str, starts: &BTreeMap<i32, i64>) {
        let mut before = TopicPartitionList::new();
        for (partition, start) in starts {
            before.add_partition_offset(topic, *partition, Offset::Offset(*start)).expect("an offset");
        }
        let (admin, options) = (admin(bootstrap), AdminOptions::new());
        let deleted = self.runtime().block_on(admin.delete_records(&before, &options)).expect("an answer");
        assert!(deleted.elements().iter().all(|partition| partition.error().is_ok()), "{deleted:?}");
    }

    pub(crate) fn create_topic(&self, bootstrap: &str, topic: &str, partitions: i32, config: &[(&str, &str)]) {
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (name, value) in config {
            new = new.set(name, value);
        }
        let (admin, options) = (admin(bootstrap), AdminOptions::new());
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            // A cluster goes on deleting an older one for a while after it has answered.
            let created = self.runtime().block_on(admin.create_topics([&new], &options)).expect("an answer");
            match &created[0] {
                Ok(_) => return,
                Err((_, code)) => assert!(Instant::now() < deadline, "not created: {code}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.get_or_init(|| Runtime::new().expect("a runtime"))
    }
}

fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("a client")
}

fn producer(bootstrap: &str) -> FutureProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("enable.idempotence", "true").set("linger.ms", "2");
    config.create().expect("a producer")
}

/// Sends records and waits until each is acknowledged; answers their offsets.
pub(crate) fn send(
    runtime: &Runtime,
    producer: &FutureProducer,
    topic: &str,
    records: &[(i32, i64, Option<Vec<u8>>)],
) -> Vec<i64> {
    let offsets = runtime.block_on(async {
        let mut waiting = Vec::with_capacity(records.len());
        for (partition, timestamp, payload) in records {
            let mut record = FutureRecord::<(), [u8]>::to(topic).partition(*partition).timestamp(*timestamp);
            record.payload = payload.as_deref();
            waiting.push(producer.send_result(record).map_err(|(e, _)| e).expect("the queue has room"));
        }
        let mut offsets = Vec::with_capacity(waiting.len());
        for delivery in waiting {
            offsets.push(delivery.await.expect("not cancelled").map_err(|(e, _)| e).expect("delivered").offset);
        }
        offsets
    });
    producer.flush(Duration::from_secs(30)).expect("flushed");
    offsets
}

/// The real data of the developers' shared folder, by path.
pub(crate) fn shared_data() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    match std::env::var_os("WATERSHED_SHARED_DATA") {
        Some(dir) => PathBuf::from(dir),
        None => beside,
    }
}
