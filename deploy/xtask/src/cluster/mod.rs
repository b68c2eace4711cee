//! Real Kafka and HDFS on free ports of this machine.
//!
//! Whoever holds a [`Cluster`] owns its daemons. They end with it, and also when its process is killed: each asks the
//! kernel for SIGKILL at its parent's death (`setpriv --pdeathsig`), and all are started by one thread that lasts as
//! long as the process. Nothing that they hold is worth a clean end; their data is deleted, their logs are kept.

mod artifacts;
mod daemon;
mod hdfs;
mod http;
mod kafka;
mod kafka_acls;
mod kafka_protocol;
mod patience;
mod ports;
mod secured;
mod state;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use self::artifacts::{Artifacts, spark_jars};
pub use self::daemon::Daemon;
pub use self::hdfs::Hdfs;
pub use self::kafka::Kafka;
pub use self::kafka_acls::{Acl, Permission, Right};
pub use self::secured::Secured;
pub use self::state::{Process, State, directory, is_alive, sweep};

/// What to start.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many Kafka brokers; 0 for none.
    pub brokers: u16,
    /// Whether the brokers also listen for SASL over TLS, with an authorizer: [`Secured`].
    pub secured: bool,
    /// How many HDFS DataNodes beside one NameNode; 0 for no HDFS.
    pub datanodes: u16,
}

/// Kafka and HDFS, started and ready; they end when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    _lock: File,
    kafka: Option<Kafka>,
    hdfs: Option<Hdfs>,
}

impl Cluster {
    /// Starts what `options` asks for in `dir`: `dir/data` is deleted at the end, `dir/logs` is kept.
    ///
    /// On return every broker and DataNode is known to all others. `dir/state.json` says where they are.
    pub fn start(dir: &Path, options: Options) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let lock = state::lock(dir)?;
        // Of an owner that was killed, and the logs of the cluster before.
        state::clear(dir);
        let logs = dir.join("logs");
        if logs.try_exists().context("look for old logs")? {
            std::fs::remove_dir_all(&logs).with_context(|| format!("delete {}", logs.display()))?;
        }
        std::fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        let artifacts = Artifacts::install(options)?;
        let (kafka, hdfs) = std::thread::scope(|scope| {
            let hdfs = scope.spawn(|| match options.datanodes {
                0 => Ok(None),
                n => Hdfs::start(&artifacts, dir, n).map(Some),
            });
            let kafka = match options.brokers {
                0 => Ok(None),
                n => Kafka::start(&artifacts, dir, n, options.secured).map(Some),
            };
            (kafka, hdfs.join().expect("starting HDFS does not panic"))
        });
        let cluster = Self { dir: dir.to_owned(), _lock: lock, kafka: kafka?, hdfs: hdfs? };
        cluster.state().write(dir)?;
        Ok(cluster)
    }

    /// Where everything is.
    pub fn state(&self) -> State {
        State {
            owner: std::process::id(),
            kafka: self.kafka.as_ref().map(Kafka::bootstrap_servers),
            kafka_secured: self.kafka.as_ref().and_then(Kafka::secured).map(Path::to_owned),
            hdfs: self.hdfs.as_ref().map(Hdfs::url),
            processes: self.daemons().map(Daemon::process).collect(),
        }
    }

    /// `host:port,…`, if Kafka was asked for.
    pub fn kafka(&self) -> Option<&Kafka> {
        self.kafka.as_ref()
    }

    /// The same, to kill and restart its brokers.
    pub fn kafka_mut(&mut self) -> Option<&mut Kafka> {
        self.kafka.as_mut()
    }

    /// `hdfs://host:port`, if HDFS was asked for.
    pub fn hdfs(&self) -> Option<&Hdfs> {
        self.hdfs.as_ref()
    }

    /// The same, to kill and restart its daemons.
    pub fn hdfs_mut(&mut self) -> Option<&mut Hdfs> {
        self.hdfs.as_mut()
    }

    /// Both, to kill and restart their daemons at the same time.
    pub fn parts_mut(&mut self) -> (Option<&mut Kafka>, Option<&mut Hdfs>) {
        (self.kafka.as_mut(), self.hdfs.as_mut())
    }

    fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.kafka.iter().flat_map(Kafka::daemons).chain(self.hdfs.iter().flat_map(Hdfs::daemons))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kafka = None;
        self.hdfs = None;
        state::clear(&self.dir);
    }
}
