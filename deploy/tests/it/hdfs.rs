//! The whole program with its storage on a real HDFS: it is killed, the NameNode is killed, and the answers stay the
//! truth.

use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tokio::runtime::Runtime;
use watershed_shared::names::RunId;
use watershed_shared::storage::Storage;
use watershed_shared::testing::real_component;
use xtask::cluster::{Cluster, Hdfs, Options, directory};

use crate::harness::{Broker, Running, wait_until};
use crate::oracle::events::{Format, Generator};
use crate::oracle::log::Log;
use crate::processes::{STREAM, check, config, produce};

const PATIENCE: Duration = Duration::from_secs(120);
const NAMENODE: usize = 0;
const DATANODE: usize = 1;

const AWAY: &str = "the NameNode or a DataNode does not answer. Start it, or correct [storage] url";
const FORBIDDEN: &str = "Let HADOOP_USER_NAME name a user who may write under [storage] url";

/// A second view that is never built: all of it is the speed layer's.
const FRESH: &str = "[view.fresh]\nsql = \"SELECT k, count(*) AS n, sum(v) AS sv FROM killed GROUP BY k\"\n";

fn config_on(broker: &Broker, url: &str) -> String {
    format!("{}{FRESH}[storage]\nurl = \"{url}\"\n", config(broker, 0))
}

struct World {
    broker: Broker,
    cluster: Cluster,
    dir: tempfile::TempDir,
    generator: Generator,
    log: Log,
}

impl World {
    /// `None` under plain `cargo test`.
    fn start() -> Option<Self> {
        real_component("WATERSHED_TEST_HDFS")?;
        let cluster = directory(&format!("it-{}", std::process::id())).expect("a folder");
        let cluster =
            Cluster::start(&cluster, Options { brokers: 0, secured: false, datanodes: 2 }).expect("HDFS starts");
        let mut generator = Generator::new(11, 2, Format::Json);
        generator.bad_percent = 10;
        let dir = tempfile::tempdir().expect("a temporary directory");
        Some(Self { broker: Broker::start(), cluster, dir, generator, log: Log::default() })
    }

    fn hdfs(&mut self) -> &mut Hdfs {
        self.cluster.hdfs_mut().expect("it was asked for")
    }

    fn url(&mut self, folder: &str) -> String {
        format!("{}/{folder}", self.hdfs().url())
    }

    fn config(&self, url: &str) -> String {
        config_on(&self.broker, url)
    }

    fn up(&mut self, env: &[(&str, &str)]) -> Running {
        let url = self.url("watershed");
        Running::start_with(&self.config(&url), self.dir.path(), env)
    }

    /// The same folder through a name service whose first NameNode is away.
    fn up_by_name_service(&mut self) -> Running {
        let url = self.hdfs().url();
        let properties = [
            ("dfs.nameservices", "lake"),
            ("dfs.ha.namenodes.lake", "a,b"),
            // Nobody listens on the discard port.
            ("dfs.namenode.rpc-address.lake.a", "127.0.0.1:9"),
            ("dfs.namenode.rpc-address.lake.b", url.trim_start_matches("hdfs://")),
        ];
        let property = |(name, value)| format!("<property><name>{name}</name><value>{value}</value></property>\n");
        let site: String = properties.map(property).concat();
        let folder = self.dir.path().join("hadoop");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("hdfs-site.xml"), format!("<configuration>\n{site}</configuration>\n"))
            .expect("a file");
        let folder = folder.to_str().expect("UTF-8");
        let config = self.config("hdfs://lake/watershed");
        Running::start_with(&config, self.dir.path(), &[("HADOOP_CONF_DIR", folder)])
    }

    fn produce(&mut self) {
        produce(&self.broker, &mut self.generator, &mut self.log, 60);
    }

    fn check(&self, running: &Running, when: &str) {
        check(running, "counts", &self.log, when);
        check(running, "fresh", &self.log, when);
    }

    fn build(&self, running: &Running, mode: &str) {
        let id = running.client().build("counts", mode).expect("no other build runs");
        let status = running.client().wait_build(&id, PATIENCE);
        assert_eq!(status["state"], "succeeded", "{status}");
    }
}

#[test]
fn on_hdfs_the_program_is_killed_and_its_namenode_too_and_answers_stay_the_truth() {
    let Some(mut world) = World::start() else { return };
    let running = world.up(&[]);
    world.produce();
    world.check(&running, "the start");
    world.build(&running, "rebuild");
    world.produce();
    world.check(&running, "a rebuild");
    world.build(&running, "refresh");
    world.check(&running, "a refresh");
    running.stop();

    // Ended between the last byte of a file and its place: the file is no object, and nothing misses it.
    let mut running = world.up(&[("WATERSHED_ABORT_AT", "hdfs.staged")]);
    world.produce();
    assert!(running.ended_within(PATIENCE), "the program does not get to `hdfs.staged`:\n{}", running.log());
    assert!(running.log().contains("aborting at hdfs.staged"), "{}", running.log());
    let running = world.up(&[]);
    world.check(&running, "an end before a rename");
    world.produce();
    running.kill();
    let url = world.url("watershed").parse().expect("a URL");
    let removed = Runtime::new().expect("a runtime").block_on(async {
        Storage::open(&url).expect("it opens").remove_leftovers(Duration::ZERO).await.expect("HDFS answers")
    });
    assert!(removed > 0, "the temporary file was left behind");

    let running = world.up_by_name_service();
    world.check(&running, "a kill");
    world.hdfs().daemons_mut()[NAMENODE].kill().expect("it can be killed");
    // What was produced before and what comes meanwhile is answered from the log and what is in memory.
    for turn in 0..3 {
        world.produce();
        check(&running, "fresh", &world.log, &format!("the NameNode's end, turn {turn}"));
    }
    let (status, body) = running.client().get("/v1/views/counts?timeout_ms=60000");
    let error = &body["error"];
    let said = error["message"].as_str().unwrap_or_default();
    assert!(status == 200 || error["code"] == "storage_unavailable" && said.contains(AWAY), "{status} {body}");
    status_says(&running, "reads", &[AWAY, "hdfs://lake/watershed"]);
    let status = status_of(&running);
    assert!(status.contains("storage hdfs://lake/watershed/: reads fail since 2") && status.contains(AWAY), "{status}");
    world.hdfs().daemons_mut()[NAMENODE].restart().expect("it can be started");
    world.produce();
    world.hdfs().wait_until_ready().expect("it comes back");
    world.check(&running, "the NameNode's return");
    world.build(&running, "refresh");
    world.build(&running, "rebuild");
    world.check(&running, "builds after the NameNode's return");
    assert!(status_of(&running).contains("storage hdfs://lake/watershed/: ok"), "{}", status_of(&running));

    // Away while a build is under way, which goes on when it is back.
    for mode in ["rebuild", "refresh"] {
        world.produce();
        let id = running.client().build("counts", mode).expect("no other build runs");
        wait_until(PATIENCE, || {
            let (_, build) = running.client().get(&format!("/v1/rebuilds/{id}"));
            if build["cut"].is_null() { Err(build) } else { Ok(()) }
        });
        world.hdfs().daemons_mut()[NAMENODE].kill().expect("it can be killed");
        world.hdfs().daemons_mut()[NAMENODE].restart().expect("it can be started");
        let status = running.client().wait_build(&id, PATIENCE);
        assert_eq!(status["state"], "succeeded", "{status}");
        world.hdfs().wait_until_ready().expect("it comes back");
        world.check(&running, "a build through the NameNode's restart");
    }

    // What is being written when a DataNode stops is written anew; all else has a replica on either.
    world.hdfs().wait_until_replicated().expect("it replicates");
    world.hdfs().daemons()[DATANODE].signal("STOP").expect("it can be stopped");
    world.produce();
    world.build(&running, "refresh");
    world.check(&running, "a DataNode's stop");
    world.hdfs().daemons()[DATANODE].signal("CONT").expect("it goes on");
    world.log.check_master_dataset(running.client(), STREAM);
    running.stop();
}

/// Waits until `/v1/status` says of the storage's `calls` that they fail, in all these words.
fn status_says(running: &Running, calls: &str, words: &[&str]) {
    wait_until(PATIENCE, || {
        let (_, status) = running.client().get("/v1/status");
        let error = status["storage"][calls]["error"].as_str().unwrap_or_default();
        if words.iter().all(|word| error.contains(word)) { Ok(()) } else { Err(status) }
    });
}

/// What `watershed status` prints.
fn status_of(running: &Running) -> String {
    let program = env!("CARGO_BIN_EXE_watershed");
    let done = Command::new(program).args(["status", "--url", running.client().url()]).current_dir("/").output();
    let done = done.expect("the program runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("UTF-8")
}

#[test]
fn who_may_not_write_to_hdfs_is_told_so_and_the_rest_goes_on() {
    let Some(service) = real_component("WATERSHED_TEST_HDFS") else { return };
    let (broker, dir) = (Broker::start(), tempfile::tempdir().expect("a temporary directory"));
    let (mut generator, mut log) = (Generator::new(12, 2, Format::Json), Log::default());
    let url = format!("{service}/tests/{}", RunId::unique());
    let config = config_on(&broker, &url);
    let running = Running::start(&config, dir.path());
    produce(&broker, &mut generator, &mut log, 60);
    check(&running, "counts", &log, "the start");
    running.stop();

    let stranger = [("HADOOP_USER_NAME", "stranger")];
    let running = Running::start_with(&config, dir.path(), &stranger);
    produce(&broker, &mut generator, &mut log, 60);
    check(&running, "counts", &log, "a stranger's start");
    status_says(&running, "writes", &[FORBIDDEN, "user=stranger"]);
    let (_, status) = running.client().get("/v1/status");
    assert_eq!(status["streams"][0]["archiver"]["state"], "retrying", "{status}");
    assert!(running.log().contains("somebody must act"), "{}", running.log());
    let (code, body) = running.client().post("/v1/views/counts/rebuilds", &json!({"mode": "rebuild"}));
    let error = match code {
        202 => running.client().wait_build(body["id"].as_str().expect("an id"), PATIENCE)["error"].to_string(),
        _ => body["error"]["message"].to_string(),
    };
    assert!(error.contains(FORBIDDEN), "{code} {error}");
    check(&running, "counts", &log, "a refused build");
    running.stop();

    // Where nothing is yet it does not start at all.
    let inner = config_on(&broker, &format!("{url}/inner"));
    let said = Running::refused_with(&inner, dir.path(), &stranger, &[]);
    assert!(said.contains(FORBIDDEN) && said.contains("user=stranger"), "{said}");

    let running = Running::start(&config, dir.path());
    check(&running, "counts", &log, "the owner's return");
    let id = running.client().build("counts", "rebuild").expect("no other build runs");
    let status = running.client().wait_build(&id, PATIENCE);
    assert_eq!(status["state"], "succeeded", "{status}");
    log.check_master_dataset(running.client(), STREAM);
    running.stop();
}
