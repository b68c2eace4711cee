//! Where clusters live and what each left on disk: `state.json` while it runs, its logs for ever after.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::host::cache_dir;

/// How many clusters that are gone keep their logs.
const KEPT: usize = 10;

/// Where a running cluster is, as `state.json` holds it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The process with whose end the cluster ends.
    pub owner: u32,
    /// `host:port,…`
    pub kafka: Option<String>,
    /// The file that says how to reach Kafka's secured listener: [`super::Secured`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka_secured: Option<PathBuf>,
    /// `hdfs://host:port`
    pub hdfs: Option<String>,
    /// The daemons.
    pub processes: Vec<Process>,
}

/// One daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// `broker-1`, `namenode`, `datanode-2`.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// `host:port`, where it serves.
    pub address: String,
    /// Its log.
    pub log: PathBuf,
}

impl State {
    /// What `dir/state.json` says; `None` if no cluster runs there.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let file = file(dir);
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        };
        let state: Self = serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))?;
        Ok(lock(dir).is_err().then_some(state))
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        // Renamed into place, so that nobody reads half of it.
        let unfinished = dir.join("state.json.unfinished");
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(&unfinished, text).with_context(|| format!("write {}", unfinished.display()))?;
        std::fs::rename(&unfinished, file(dir)).with_context(|| format!("write {}", file(dir).display()))
    }
}

/// Takes the folder for a cluster of this process; another process that has it is an error.
///
/// The kernel lets go of it when the process ends, however it ends.
pub(super) fn lock(dir: &Path) -> Result<File> {
    let file = dir.join("lock");
    let lock = File::create(&file).with_context(|| format!("create {}", file.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!("another process has the cluster in {}", dir.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", file.display())),
    }
}

/// The folder of the cluster `name`.
pub fn directory(name: &str) -> Result<PathBuf> {
    Ok(cache_dir()?.join("clusters").join(name))
}

/// Whether the process runs; one that has ended and was not waited for does not.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    // The state follows the name, which is in parentheses and can hold anything.
    stat.is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}

/// Deletes what clusters left behind whose owners died, and all but the newest logs.
pub fn sweep() -> Result<()> {
    let clusters = cache_dir()?.join("clusters");
    let Ok(entries) = std::fs::read_dir(&clusters) else { return Ok(()) };
    let mut gone = Vec::new();
    for entry in entries {
        let dir = entry.with_context(|| format!("list {}", clusters.display()))?.path();
        if let Ok(_lock) = lock(&dir) {
            clear(&dir);
            gone.push((std::fs::metadata(&dir).and_then(|m| m.modified()).ok(), dir));
        }
    }
    gone.sort();
    let old = gone.len().saturating_sub(KEPT);
    for (_, dir) in &gone[..old] {
        drop(std::fs::remove_dir_all(dir));
    }
    Ok(())
}

/// Deletes everything of the cluster in `dir` but its logs.
pub(super) fn clear(dir: &Path) {
    // What is not there any more needs no deletion; what cannot be deleted is in nobody's way.
    drop(std::fs::remove_file(file(dir)));
    drop(std::fs::remove_dir_all(dir.join("data")));
}

fn file(dir: &Path) -> PathBuf {
    dir.join("state.json")
}
