//! Developers' tasks: `cargo xtask <task>`.

mod cluster_commands;
mod mutants;
mod tasks;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Watershed's developer tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Installs what the tests need and runs all of them.
    Test {
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// Installs what the tests need, and nothing else.
    Setup,
    /// Real Kafka and HDFS on this machine.
    #[command(subcommand)]
    Cluster(cluster_commands::ClusterCommand),
    /// Switches on each classic bug in turn and shows which seed of the oracle notices it.
    Mutants {
        /// Only these, separated by commas.
        names: Option<String>,
    },
    /// Runs the oracle over many seeds.
    Oracle {
        /// How many seeds.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
    /// Runs the roles on a real Kafka and HDFS under random faults.
    Chaos {
        /// For how long; the round that goes on then is ended.
        #[arg(long, default_value_t = 10.0)]
        minutes: f64,
        /// What decides which fault comes when; any if it is not named.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Measures the program against baselines; writes deploy/bench/README.md.
    Bench {
        /// Small sizes, once: only shows that it works.
        #[arg(long)]
        quick: bool,
        /// How often each figure is taken.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Which benchmarks; all if none is named.
        names: Vec<String>,
    },
}

fn main() -> ExitCode {
    match execute(&Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(task: &Task) -> anyhow::Result<()> {
    match task {
        Task::Test { filter } => tasks::test(filter.as_deref()),
        Task::Setup => tasks::setup().map(|_| ()),
        Task::Cluster(command) => cluster_commands::execute(command),
        Task::Mutants { names } => mutants::show(names.as_deref()),
        Task::Oracle { seeds, from } => tasks::oracle(*from, *seeds),
        Task::Chaos { minutes, seed } => tasks::chaos(*minutes, *seed),
        Task::Bench { quick, runs, names } => tasks::bench(*quick, *runs, names),
    }
}
