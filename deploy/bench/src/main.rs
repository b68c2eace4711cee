//! Benchmarks: the program `watershed` as a process of its own, over Kafka and HTTP, beside baselines in the same run.
//!
//! `cargo xtask bench` builds both and starts this; `README.md` beside it has the figures and how to read them.

mod baseline;
mod builds;
mod events;
mod ingest;
mod kafka;
mod latency;
mod load;
mod lookups;
mod platform;
mod report;
mod stats;
mod usage;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;

use crate::kafka::Kafka;

/// Every benchmark, in the order in which they run.
const NAMES: [&str; 6] = ["ingest", "undecodable", "latency", "lookups", "builds", "embedded"];

#[derive(Debug, Parser)]
struct Cli {
    /// Which benchmarks to run; all if none is named.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(NAMES))]
    names: Vec<String>,
    /// The built program.
    #[arg(long)]
    program: PathBuf,
    /// A running Kafka, as HOST:PORT.
    #[arg(long, env = "WATERSHED_BENCH_KAFKA")]
    kafka: String,
    /// A Python that has DuckDB; without it that comparison is left out.
    #[arg(long)]
    python: Option<PathBuf>,
    /// How often each figure is taken.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Small sizes, once: shows that the benchmarks work, and says nothing about speed.
    #[arg(long)]
    quick: bool,
    /// The file whose sections are replaced; nothing is written without it, or with --quick.
    #[arg(long)]
    readme: Option<PathBuf>,
}

/// What every benchmark is given.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) program: PathBuf,
    pub(crate) kafka: Kafka,
    pub(crate) python: Option<PathBuf>,
    pub(crate) runs: usize,
    pub(crate) quick: bool,
}

/// A finished benchmark.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    /// Markdown.
    pub(crate) text: String,
}

impl Bench {
    pub(crate) fn size(&self, full: u64, quick: u64) -> u64 {
        if self.quick { quick } else { full }
    }

    pub(crate) fn progress(&self, name: &str, run: usize, so_far: &str) {
        eprintln!("{name} {}/{}: {so_far}", run + 1, self.runs);
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    ensure!(cli.runs > 0, "take each figure at least once: --runs 1");
    let machine = report::machine(&format!("Kafka at {}", cli.kafka));
    println!("{machine}\n");
    if cli.quick {
        println!("A quick run: its figures say nothing but that there are some.\n");
    }
    let kafka = Kafka { bootstrap_servers: cli.kafka };
    let runs = if cli.quick { 1 } else { cli.runs };
    let bench = Bench { program: cli.program, kafka, python: cli.python, runs, quick: cli.quick };
    for name in NAMES.iter().filter(|name| cli.names.is_empty() || cli.names.iter().any(|wanted| wanted == *name)) {
        let outcome = match *name {
            "ingest" => ingest::run(&bench).await?,
            "undecodable" => ingest::undecodable(&bench).await?,
            "latency" => latency::run(&bench).await?,
            "lookups" => lookups::run(&bench).await?,
            "builds" => builds::run(&bench).await?,
            _ => ingest::embedded(&bench).await?,
        };
        println!("## {}\n\n{}", outcome.name, outcome.text);
        if let Some(readme) = cli.readme.as_ref().filter(|_| !cli.quick) {
            report::write_section(
                readme,
                outcome.name,
                &format!("{machine}; {} runs.\n\n{}", bench.runs, outcome.text),
            )?;
        }
    }
    Ok(())
}
