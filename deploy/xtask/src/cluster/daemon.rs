//! One Java process: its command, its log, its end.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};

use anyhow::{Context, Result, bail};

use super::{Process, patience};
use crate::host::run;

/// A Java process that ends with this value, or with this process.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    arguments: Vec<String>,
    address: String,
    log: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts `java arguments…`; its output is appended to `log`.
    pub(super) fn start(name: &str, address: String, arguments: Vec<String>, log: &Path) -> Result<Self> {
        let child = spawn(name, &arguments, log)?;
        Ok(Self { name: name.to_owned(), arguments, address, log: log.to_owned(), child })
    }

    /// Its name, unique within a cluster: `broker-1`, `namenode`, `datanode-2`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `host:port`, where it serves.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where everything is that it says.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends a signal by its name, as `kill` knows it: `STOP`, `CONT`, `TERM`.
    pub fn signal(&self, signal: &str) -> Result<()> {
        run(Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()))
    }

    /// SIGKILL; on return the process is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// SIGTERM; on return the process is gone, with SIGKILL if it takes its time.
    pub fn stop(&mut self) -> Result<()> {
        self.signal("TERM")?;
        let gone = patience::until("it ends after SIGTERM", || Ok(self.ended().map(|_| ())));
        gone.or_else(|_| self.kill())
    }

    /// Starts it again with the same ports and data after [`Daemon::kill`] or [`Daemon::stop`]. It is not ready yet on return.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.child = spawn(&self.name, &self.arguments, &self.log)?;
        Ok(())
    }

    /// How it ended, if it did so by itself.
    pub(super) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("{} ended with {status}; its log: {}", self.name, self.log.display()))
    }

    /// An error if it has ended: with [`PortTaken`] if another process had its port.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        let Some(ended) = self.ended() else { return Ok(()) };
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        if said.contains("Address already in use") {
            return Err(PortTaken.into());
        }
        let lines: Vec<_> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        bail!("{ended}\n{tail}");
    }

    pub(super) fn process(&self) -> Process {
        let Self { name, address, log, child, .. } = self;
        Process { name: name.clone(), pid: child.id(), address: address.clone(), log: log.clone() }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}

/// Another process took a port between its choice and its use: choose others and start again.
#[derive(Debug)]
pub(super) struct PortTaken;

impl std::fmt::Display for PortTaken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a port was taken meanwhile")
    }
}

impl std::error::Error for PortTaken {}

/// Runs `start` until no port is taken meanwhile, three times at most.
pub(super) fn with_free_ports<T>(mut start: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..2 {
        match start() {
            Err(error) if error.is::<PortTaken>() => {}
            other => return other,
        }
    }
    start()
}

fn spawn(name: &str, arguments: &[String], log: &Path) -> Result<Child> {
    let file = OpenOptions::new().create(true).append(true).open(log);
    let file = file.with_context(|| format!("open {}", log.display()))?;
    let errors = file.try_clone().with_context(|| format!("open {}", log.display()))?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "java"]).args(arguments);
    command.stdin(Stdio::null()).stdout(file).stderr(errors);
    let child = from_lasting_thread(command).with_context(|| format!("start {name} by setpriv (of util-linux)"))?;
    Ok(child)
}

type Request = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Spawns `command` from a thread that never ends.
///
/// SUBTLE: "parent" in the kernel's parent-death signal is the thread that forked, and a test's thread ends with its
/// test.
fn from_lasting_thread(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, answer) in requests {
                drop(answer.send(command.spawn()));
            }
        });
        sender
    });
    let (answer, child) = mpsc::channel();
    spawner.send((command, answer)).context("the spawning thread has ended")?;
    Ok(child.recv().context("the spawning thread has ended")??)
}
