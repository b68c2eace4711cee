//! `cargo xtask mutants`: which case of the oracle notices which bug.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::tasks::cargo;

/// Runs the oracle on each mutant and prints the table of what became of them.
pub(crate) fn show(names: Option<&str>) -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["test", "--package", "watershed", "--test", "it", "mutants::", "--", "--nocapture"]);
    if let Some(names) = names {
        cargo.env("WATERSHED_MUTANTS", names);
    }
    // What the cases say on standard error as they fail, which they are to do, is of no interest.
    let child = cargo.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.with_context(|| format!("start {cargo:?}"))?;
    println!("{:<26} | seed | cases | noticed as", "mutant");
    for line in BufReader::new(child.stdout.take().context("standard output is piped")?).lines() {
        if let Some(row) = line?.strip_prefix("mutant | ") {
            println!("{row}");
        }
    }
    let status = child.wait().with_context(|| format!("wait for {cargo:?}"))?;
    ensure!(status.success(), "a mutant without a seed has survived: {cargo:?} ended with {status}");
    Ok(())
}
