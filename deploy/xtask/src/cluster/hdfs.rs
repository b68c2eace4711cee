//! HDFS: one NameNode and some DataNodes, each a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::daemon::{Daemon, with_free_ports};
use super::http::get_json;
use super::{Artifacts, patience, ports};

const LOGGING: &str = include_str!("../../../cluster/hdfs/log4j.properties");
const NAMENODE: &str = "org.apache.hadoop.hdfs.server.namenode.NameNode";
const DATANODE: &str = "org.apache.hadoop.hdfs.server.datanode.DataNode";
const FS_SHELL: &str = "org.apache.hadoop.fs.FsShell";
const ADMIN: &str = "org.apache.hadoop.hdfs.tools.DFSAdmin";

/// An HDFS that is ready.
#[derive(Debug)]
pub struct Hdfs {
    /// The NameNode, then the DataNodes.
    daemons: Vec<Daemon>,
    http: String,
    configuration: PathBuf,
    class_path: String,
}

impl Hdfs {
    /// Starts a NameNode and `count` DataNodes with their data in `dir/data` and their logs in `dir/logs`.
    ///
    /// Files are replicated twice if there are two DataNodes. On return the NameNode has left safe mode and knows
    /// all DataNodes. One that dies is declared dead after some 14 seconds.
    pub fn start(artifacts: &Artifacts, dir: &Path, count: u16) -> Result<Self> {
        with_free_ports(|| {
            let plan = Plan::choose(artifacts, dir, count);
            plan.format()?;
            let mut daemons = vec![plan.start_namenode(dir)?];
            for id in 1..=count {
                daemons.push(plan.start_datanode(dir, id)?);
            }
            let http = format!("127.0.0.1:{}", plan.http_port);
            let configuration = plan.data.join("conf");
            let mut hdfs = Self { daemons, http, configuration, class_path: plan.class_path.clone() };
            hdfs.wait_until_ready()?;
            Ok(hdfs)
        })
    }

    /// Waits until no daemon has ended, the NameNode takes writes, and every DataNode reports to it.
    ///
    /// A DataNode that was just killed counts as alive until it is declared dead.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let Self { daemons, http, .. } = self;
        patience::until("HDFS is out of safe mode with all DataNodes", || {
            daemons.iter_mut().try_for_each(Daemon::check_alive)?;
            // Refused or cut off: not up yet.
            Ok(live_datanodes(http).is_ok_and(|live| live == Some(daemons.len() - 1)).then_some(()))
        })
    }

    /// Waits until it is ready and every block has as many replicas as it is to have: then any one DataNode may go.
    pub fn wait_until_replicated(&mut self) -> Result<()> {
        self.wait_until_ready()?;
        let http = &self.http;
        patience::until("each block of HDFS has all its replicas", || {
            Ok(all_replicated(http).is_ok_and(|all| all).then_some(()))
        })
    }

    /// `hdfs://host:port`
    pub fn url(&self) -> String {
        format!("hdfs://{}", self.daemons[0].address())
    }

    /// `host:port` of the NameNode's reports about itself (`/jmx`) and of WebHDFS.
    pub fn http_address(&self) -> &str {
        &self.http
    }

    /// A folder for `HADOOP_CONF_DIR`.
    pub fn configuration(&self) -> &Path {
        &self.configuration
    }

    /// `hdfs dfs arguments…`; what it printed. Takes some seconds.
    pub fn dfs(&self, arguments: &[&str]) -> Result<String> {
        self.tool(FS_SHELL, arguments)
    }

    /// `hdfs dfsadmin arguments…`; what it printed. Takes some seconds.
    pub fn dfsadmin(&self, arguments: &[&str]) -> Result<String> {
        self.tool(ADMIN, arguments)
    }

    fn tool(&self, class: &str, arguments: &[&str]) -> Result<String> {
        let mut java = Command::new("java");
        java.args(java_arguments("128m", &self.class_path, class)).args(arguments).stdin(Stdio::null());
        let output = java.output().context("start java")?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(output.status.success(), "{java:?} ended with {}: {said}", output.status);
        Ok(said)
    }

    /// The NameNode, then `datanode-1`, `datanode-2`, ….
    pub fn daemons(&self) -> &[Daemon] {
        &self.daemons
    }

    /// The same, to kill and restart.
    pub fn daemons_mut(&mut self) -> &mut [Daemon] {
        &mut self.daemons
    }
}

/// How many DataNodes the NameNode knows to be alive; `None` while it is in safe mode.
fn live_datanodes(http: &str) -> Result<Option<usize>> {
    if bean(http, "NameNodeInfo")?["Safemode"] != "" {
        return Ok(None);
    }
    let live = bean(http, "FSNamesystemState")?["NumLiveDataNodes"].as_u64().context("NumLiveDataNodes")?;
    Ok(Some(usize::try_from(live)?))
}

/// Whether every DataNode has reported its blocks since the NameNode's start, and no block lacks a replica.
fn all_replicated(http: &str) -> Result<bool> {
    let state = bean(http, "FSNamesystemState")?;
    let counts = ["NumStaleDataNodes", "NumStaleStorages", "UnderReplicatedBlocks", "PendingReplicationBlocks"];
    Ok(counts.iter().all(|name| state[name] == 0))
}

fn bean(http: &str, name: &str) -> Result<Value> {
    let answer = get_json(http, &format!("/jmx?qry=Hadoop:service=NameNode,name={name}"))?;
    // Missing until that part of the NameNode has started.
    answer["beans"].get(0).cloned().with_context(|| format!("{name} is not there yet"))
}

/// The ports and folders of an HDFS before it runs.
struct Plan {
    class_path: String,
    data: PathBuf,
    port: u16,
    http_port: u16,
    datanodes: u16,
}

impl Plan {
    fn choose(artifacts: &Artifacts, dir: &Path, datanodes: u16) -> Self {
        let data = dir.join(format!("data/hdfs-{:x}", ports::random()));
        let class_path = format!("{}:{}/libs/*", data.join("conf").display(), artifacts.hdfs().display());
        Self { class_path, data, port: ports::free(), http_port: ports::free(), datanodes }
    }

    /// Writes the configuration and an empty file system.
    fn format(&self) -> Result<()> {
        let conf = self.data.join("conf");
        // Hadoop's jars lack these two folders, and its daemons end without them.
        for webapp in ["hdfs", "datanode"] {
            let folder = conf.join("webapps").join(webapp);
            std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        for (name, text) in [
            ("core-site.xml", self.core_site()),
            ("hdfs-site.xml", self.hdfs_site()),
            ("log4j.properties", LOGGING.to_owned()),
        ] {
            std::fs::write(conf.join(name), text).with_context(|| format!("write {name}"))?;
        }
        let mut java = Command::new("java");
        java.args(self.arguments("128m", NAMENODE)).args(["-format", "-nonInteractive"]).stdin(Stdio::null());
        let output = java.output().context("start java")?;
        let said = [output.stdout, output.stderr].concat();
        ensure!(output.status.success(), "{java:?} ended with {}: {}", output.status, String::from_utf8_lossy(&said));
        Ok(())
    }

    fn core_site(&self) -> String {
        let tmp = self.data.join("tmp").display().to_string();
        site(&[
            ("fs.defaultFS", &format!("hdfs://127.0.0.1:{}", self.port)),
            ("hadoop.tmp.dir", &tmp),
            ("ipc.client.connect.max.retries", "3"),
        ])
    }

    fn hdfs_site(&self) -> String {
        let replication = self.datanodes.min(2).to_string();
        site(&[
            ("dfs.replication", &replication),
            ("dfs.namenode.name.dir", &format!("file://{}", self.data.join("namenode").display())),
            ("dfs.namenode.rpc-address", &format!("127.0.0.1:{}", self.port)),
            ("dfs.namenode.http-address", &format!("127.0.0.1:{}", self.http_port)),
            ("dfs.namenode.datanode.registration.ip-hostname-check", "false"),
            ("dfs.namenode.safemode.extension", "0"),
            ("dfs.namenode.safemode.min.datanodes", "1"),
            // So that tests can have several blocks without much data.
            ("dfs.namenode.fs-limits.min-block-size", "4096"),
            // A dead DataNode is one that was silent for 2 * recheck + 10 * heartbeat = 14 s.
            ("dfs.heartbeat.interval", "1"),
            ("dfs.namenode.heartbeat.recheck-interval", "2000"),
            ("dfs.namenode.redundancy.interval.seconds", "1"),
            ("dfs.namenode.stale.datanode.interval", "3000"),
            ("dfs.namenode.avoid.read.stale.datanode", "true"),
            ("dfs.namenode.avoid.write.stale.datanode", "true"),
        ])
    }

    fn start_namenode(&self, dir: &Path) -> Result<Daemon> {
        let address = format!("127.0.0.1:{}", self.port);
        Daemon::start("namenode", address, self.arguments("384m", NAMENODE), &dir.join("logs/namenode.log"))
    }

    fn start_datanode(&self, dir: &Path, id: u16) -> Result<Daemon> {
        let name = format!("datanode-{id}");
        let address = format!("127.0.0.1:{}", ports::free());
        let mut arguments = self.arguments("256m", DATANODE);
        arguments.push(format!("-Ddfs.datanode.data.dir=file://{}", self.data.join(&name).display()));
        arguments.push(format!("-Ddfs.datanode.address={address}"));
        arguments.push(format!("-Ddfs.datanode.ipc.address=127.0.0.1:{}", ports::free()));
        arguments.push(format!("-Ddfs.datanode.http.address=127.0.0.1:{}", ports::free()));
        Daemon::start(&name, address, arguments, &dir.join(format!("logs/{name}.log")))
    }

    fn arguments(&self, heap: &str, class: &str) -> Vec<String> {
        java_arguments(heap, &self.class_path, class)
    }
}

fn java_arguments(heap: &str, class_path: &str, class: &str) -> Vec<String> {
    vec![
        format!("-Xmx{heap}"),
        // Small heaps and short lives: what starts soonest.
        "-XX:+UseSerialGC".to_owned(),
        "-XX:TieredStopAtLevel=1".to_owned(),
        "--add-opens=java.base/java.lang=ALL-UNNAMED".to_owned(),
        "--add-opens=java.base/java.util=ALL-UNNAMED".to_owned(),
        "-cp".to_owned(),
        class_path.to_owned(),
        class.to_owned(),
    ]
}

/// A configuration file of Hadoop. The values hold nothing that XML would read otherwise.
fn site(properties: &[(&str, &str)]) -> String {
    let property =
        |(name, value): &(&str, &str)| format!("  <property><name>{name}</name><value>{value}</value></property>\n");
    let properties: String = properties.iter().map(property).collect();
    format!("<?xml version=\"1.0\"?>\n<configuration>\n{properties}</configuration>\n")
}
