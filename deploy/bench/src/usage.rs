//! What a process has used, as Linux tells it.

use anyhow::{Context, Result};

/// Linux counts CPU time to user space in these, whatever the kernel's own tick.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU-seconds of all threads of `pid` since it started, in user space and kernel.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The name in parentheses may hold anything; user and system time are the 14th and 15th field.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).with_context(|| format!("parse {path}"));
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

/// Resident memory of a process, in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) now_mib: f64,
    pub(crate) peak_mib: f64,
}

pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("parse {path}"))?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("parse {path}"))?;
        anyhow::Ok(kib / 1024.0)
    };
    Ok(Memory { now_mib: mib("VmRSS:")?, peak_mib: mib("VmHWM:")? })
}
