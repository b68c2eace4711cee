//! The tasks themselves: each only starts other programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What the recounts by an independent engine run on, from PyPI.
const PYTHON_PACKAGES: [&str; 1] = ["duckdb==2.0.0"];

/// Installs the Python packages into a virtual environment outside the tree, once.
pub(crate) fn setup() -> Result<PathBuf> {
    let venv = cache_dir()?.join("venv");
    let stamp = venv.join("installed");
    let wanted = PYTHON_PACKAGES.join("\n");
    let python = venv.join("bin/python");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    run(Command::new("python3").arg("-m").arg("venv").arg(&venv))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(PYTHON_PACKAGES))?;
    std::fs::write(&stamp, wanted).with_context(|| format!("write {}", stamp.display()))?;
    Ok(python)
}

/// Runs every test of the workspace.
pub(crate) fn test(filter: Option<&str>) -> Result<()> {
    let python = setup()?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--workspace"]).args(filter).env("WATERSHED_TEST_PYTHON", python);
    run(&mut cargo)
}

/// Runs the oracle test with the seeds `[from, from + seeds)`.
pub(crate) fn oracle(from: u64, seeds: u64) -> Result<()> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--package", "watershed", "--test", "it", "oracle::", "--", "--nocapture"]);
    cargo.env("WATERSHED_SEEDS", format!("{from}..{}", from + seeds));
    run(&mut cargo)
}

fn cache_dir() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let dir = base.join("watershed");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
