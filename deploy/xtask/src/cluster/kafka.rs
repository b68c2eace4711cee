//! Kafka in KRaft mode: each node is broker and controller.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::daemon::{Daemon, with_free_ports};
use super::kafka_protocol::known_brokers;
use super::secured::{Keys, Secured};
use super::{Artifacts, patience, ports};

/// A Kafka that is ready.
#[derive(Debug)]
pub struct Kafka {
    brokers: Vec<Daemon>,
    /// The file that says how to get in by the secured listener.
    secured: Option<PathBuf>,
}

impl Kafka {
    /// Starts `count` brokers with their data in `dir/data` and their logs in `dir/logs`.
    ///
    /// With three or more, topics are replicated three times and two replicas must be in sync. Nothing is deleted by
    /// age unless a topic asks for it (its own `retention.ms`, looked at each second): tests produce records with the
    /// timestamps of years ago. On return each broker knows all of them.
    ///
    /// `secured`: each broker also listens for SASL over TLS, and asks an authorizer what the users of that listener
    /// may do; whoever comes by the other one may do everything.
    pub fn start(artifacts: &Artifacts, dir: &Path, count: u16, secured: bool) -> Result<Self> {
        let keys = secured.then(|| Keys::make(&dir.join("data/keys"))).transpose()?;
        with_free_ports(|| {
            let nodes = Node::choose(dir, count);
            let layout = Layout { nodes: &nodes, cluster: cluster_id(), keys: keys.as_ref() };
            std::thread::scope(|scope| {
                let formats: Vec<_> =
                    nodes.iter().map(|node| scope.spawn(|| node.format(artifacts, &layout))).collect();
                formats.into_iter().try_for_each(|format| format.join().expect("formatting does not panic"))
            })?;
            let brokers = nodes.iter().map(|node| node.start(artifacts, dir)).collect::<Result<_>>()?;
            let mut kafka = Self { brokers, secured: None };
            kafka.wait_until_ready()?;
            if let Some(keys) = &keys {
                let servers: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.secured_port)).collect();
                let file = dir.join("data/secured.json");
                Secured {
                    bootstrap_servers: servers.join(","),
                    ca: keys.ca.clone(),
                    passwords: keys.passwords.clone(),
                }
                .write(&file)?;
                kafka.secured = Some(file);
            }
            Ok(kafka)
        })
    }

    /// Waits until every broker is up and knows all others, as after a restart of one.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let count = i32::try_from(self.brokers.len()).expect("few brokers");
        for broker in &mut self.brokers {
            let what = format!("{} at {} knows {count} brokers", broker.name(), broker.address());
            patience::until(&what, || {
                broker.check_alive()?;
                // Refused or cut off: not up yet.
                Ok(known_brokers(broker.address()).is_ok_and(|known| known == count).then_some(()))
            })?;
        }
        Ok(())
    }

    /// `host:port` of each broker, with commas between.
    pub fn bootstrap_servers(&self) -> String {
        self.brokers.iter().map(Daemon::address).collect::<Vec<_>>().join(",")
    }

    /// The file that holds how to get in by the secured listener, if that was asked for: a [`Secured`].
    pub fn secured(&self) -> Option<&Path> {
        self.secured.as_deref()
    }

    /// The brokers, `broker-1` first.
    pub fn daemons(&self) -> &[Daemon] {
        &self.brokers
    }

    /// The brokers, to kill and restart.
    pub fn daemons_mut(&mut self) -> &mut [Daemon] {
        &mut self.brokers
    }
}

/// One node before it runs.
struct Node {
    id: usize,
    port: u16,
    controller_port: u16,
    secured_port: u16,
    data: PathBuf,
}

/// What all nodes know.
struct Layout<'a> {
    nodes: &'a [Node],
    cluster: String,
    /// `None`: there is no secured listener.
    keys: Option<&'a Keys>,
}

impl Node {
    fn choose(dir: &Path, count: u16) -> Vec<Self> {
        let attempt = ports::random();
        let node = |id: usize| Self {
            id,
            port: ports::free(),
            controller_port: ports::free(),
            secured_port: ports::free(),
            data: dir.join(format!("data/broker-{id}-{attempt:x}")),
        };
        (1..=usize::from(count)).map(node).collect()
    }

    fn properties(&self, Layout { nodes, keys, .. }: &Layout<'_>) -> String {
        let Self { id, port, controller_port, secured_port, data } = self;
        let secured = keys.map(|_| format!(",SASL_SSL://127.0.0.1:{secured_port}")).unwrap_or_default();
        let security = keys.map(Keys::properties).unwrap_or_default();
        let voters: Vec<_> = nodes.iter().map(|n| format!("{}@127.0.0.1:{}", n.id, n.controller_port)).collect();
        let replicas = nodes.len().min(3);
        let in_sync = replicas.div_ceil(2);
        format!(
            "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}{secured}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{secured}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL
log.dirs={data}/log
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.num.partitions=3
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=3
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
log.initial.task.delay.ms=1000
log.retention.check.interval.ms=1000
log.retention.ms=-1
{security}",
            voters = voters.join(","),
            data = data.display(),
        )
    }

    fn file(&self) -> String {
        self.data.join("server.properties").display().to_string()
    }

    fn format(&self, artifacts: &Artifacts, layout: &Layout<'_>) -> Result<()> {
        std::fs::create_dir_all(&self.data).with_context(|| format!("create {}", self.data.display()))?;
        std::fs::write(self.file(), self.properties(layout)).with_context(|| format!("write {}", self.file()))?;
        let mut java = Command::new("java");
        java.args(arguments(artifacts, "128m", "kafka.tools.StorageTool"));
        java.args(["format", "-t", &layout.cluster, "-c", &self.file()]).stdin(Stdio::null());
        java.args(layout.keys.map(Keys::format_arguments).unwrap_or_default());
        let output = java.output().context("start java")?;
        let said = [output.stdout, output.stderr].concat();
        ensure!(output.status.success(), "{java:?} ended with {}: {}", output.status, String::from_utf8_lossy(&said));
        Ok(())
    }

    fn start(&self, artifacts: &Artifacts, dir: &Path) -> Result<Daemon> {
        let name = format!("broker-{}", self.id);
        let mut arguments = arguments(artifacts, "1g", "kafka.Kafka");
        arguments.push(self.file());
        let log = dir.join(format!("logs/{name}.log"));
        Daemon::start(&name, format!("127.0.0.1:{}", self.port), arguments, &log)
    }
}

fn arguments(artifacts: &Artifacts, heap: &str, class: &str) -> Vec<String> {
    let dir = artifacts.kafka().display();
    vec![
        format!("-Xmx{heap}"),
        format!("-Dlog4j2.configurationFile={dir}/log4j2.xml"),
        "-cp".to_owned(),
        format!("{dir}/libs/*"),
        class.to_owned(),
    ]
}

/// 16 bytes in Kafka's alphabet, none of them its two signs.
fn cluster_id() -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let letter = |_| char::from(LETTERS[(ports::random() % LETTERS.len() as u64) as usize]);
    // The last sign stands for two bits.
    (0..21).map(letter).chain(['A']).collect()
}
