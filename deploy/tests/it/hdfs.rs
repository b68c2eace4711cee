//! The whole program with its storage on a real HDFS: it is killed, the NameNode is killed, and the answers stay the
//! truth.

use std::time::Duration;

use tokio::runtime::Runtime;
use watershed_shared::storage::Storage;
use watershed_shared::testing::real_component;
use xtask::cluster::{Cluster, Hdfs, Options, directory};

use crate::harness::{Broker, Running};
use crate::oracle::events::{Format, Generator};
use crate::oracle::log::Log;
use crate::processes::{STREAM, check, config, produce};

const PATIENCE: Duration = Duration::from_secs(120);
const NAMENODE: usize = 0;

/// A second view that is never built: all of it is the speed layer's.
const FRESH: &str = "[view.fresh]\nsql = \"SELECT k, count(*) AS n, sum(v) AS sv FROM killed GROUP BY k\"\n";

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
        let cluster = Cluster::start(&cluster, Options { brokers: 0, datanodes: 2 }).expect("HDFS starts");
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
        format!("{}{FRESH}[storage]\nurl = \"{url}\"\n", config(&self.broker, 0))
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
    assert!(
        status == 200 || body["error"]["message"].as_str().is_some_and(|m| m.contains("does not answer")),
        "{status} {body}"
    );
    world.hdfs().daemons_mut()[NAMENODE].restart().expect("it can be started");
    world.produce();
    world.hdfs().wait_until_ready().expect("it comes back");
    world.check(&running, "the NameNode's return");
    world.build(&running, "refresh");
    world.build(&running, "rebuild");
    world.check(&running, "builds after the NameNode's return");
    world.log.check_master_dataset(running.client(), STREAM);
    running.stop();

    // Nobody else may write below the folder of the user who made it.
    let url = world.url("watershed/inner");
    let said = Running::refused_with(&world.config(&url), world.dir.path(), &[("HADOOP_USER_NAME", "stranger")], &[]);
    assert!(said.contains("Let HADOOP_USER_NAME name a user who may write under [storage] url"), "{said}");
    assert!(said.contains("user=stranger"), "{said}");
}
