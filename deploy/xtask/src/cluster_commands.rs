//! `cargo xtask cluster`: a cluster that outlives the command which starts it.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use xtask::cluster::{Cluster, Options, State, directory, is_alive, sweep};
use xtask::run;

/// What the process that holds a cluster prints once everything is ready.
const READY: &str = "ready";

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Starts Kafka and HDFS on free ports, and returns when they are ready.
    Up(Up),
    /// Ends them and deletes their data; their logs stay.
    Down(Named),
    /// Prints where they are.
    Status {
        #[command(flatten)]
        named: Named,
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Holds a cluster until this process is killed: what `up` starts.
    #[command(hide = true)]
    Hold(Up),
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    named: Named,
    /// How many Kafka brokers; 0 for none.
    #[arg(long, default_value_t = 1)]
    brokers: u16,
    /// Kafka also listens for SASL over TLS, and asks its authorizer what its users may do.
    #[arg(long)]
    secured: bool,
    /// How many HDFS DataNodes beside one NameNode; 0 for no HDFS.
    #[arg(long, default_value_t = 2)]
    datanodes: u16,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Which cluster; several can run at once.
    #[arg(long, default_value = "dev", value_parser = name)]
    name: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

pub(crate) fn execute(command: &ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::Up(up) => start(up),
        ClusterCommand::Down(named) => stop(&named.name),
        ClusterCommand::Status { named, format } => {
            let state = State::read(&directory(&named.name)?)?;
            let state = state
                .with_context(|| format!("no cluster `{0}` runs; `cargo xtask cluster up --name {0}`", named.name))?;
            print(&state, *format)
        }
        ClusterCommand::Hold(up) => hold(up),
    }
}

fn start(up: &Up) -> Result<()> {
    let Up { named: Named { name }, brokers, secured, datanodes, format } = up;
    let dir = directory(name)?;
    if (*brokers, *datanodes) == (0, 0) {
        bail!("--brokers 0 --datanodes 0: nothing to start");
    }
    if State::read(&dir)?.is_some() {
        bail!("the cluster `{name}` runs already: `cargo xtask cluster status --name {name}`");
    }
    sweep()?;
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let log = dir.join("hold.log");
    let errors = std::fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut holder = Command::new(std::env::current_exe().context("find this program")?)
        .args(["cluster", "hold", "--name", name])
        .args(["--brokers", &brokers.to_string(), "--datanodes", &datanodes.to_string()])
        .args(secured.then_some("--secured"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        // Ctrl-C in the terminal is not for it.
        .process_group(0)
        .spawn()
        .context("start the process that holds the cluster")?;
    let mut line = String::new();
    BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).context("read from the holder")?;
    if line.trim() != READY {
        let status = holder.wait().context("wait for the holder")?;
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        bail!("the cluster did not start ({status}); logs: {}\n{said}", dir.join("logs").display());
    }
    print(&State::read(&dir)?.context("the cluster ended at once")?, *format)
}

fn hold(up: &Up) -> Result<()> {
    let dir = directory(&up.named.name)?;
    let Up { brokers, secured, datanodes, .. } = *up;
    let _cluster = Cluster::start(&dir, Options { brokers, secured, datanodes })?;
    println!("{READY}");
    loop {
        std::thread::park();
    }
}

fn stop(name: &str) -> Result<()> {
    let dir = directory(name)?;
    let Some(state) = State::read(&dir)? else {
        eprintln!("no cluster `{name}` runs");
        return sweep();
    };
    // The daemons end with their owner.
    run(Command::new("kill").args(["-KILL", &state.owner.to_string()]))?;
    let pids = || state.processes.iter().map(|p| p.pid).chain([state.owner]);
    while let Some(pid) = pids().find(|pid| is_alive(*pid)) {
        eprintln!("waiting for the end of process {pid}");
        std::thread::sleep(Duration::from_millis(200));
    }
    sweep()?;
    eprintln!("logs: {}", dir.join("logs").display());
    Ok(())
}

fn print(state: &State, format: Format) -> Result<()> {
    if let Format::Json = format {
        println!("{}", serde_json::to_string_pretty(state)?);
        return Ok(());
    }
    for (what, address) in [("kafka", &state.kafka), ("hdfs", &state.hdfs)] {
        if let Some(address) = address {
            println!("{what:12} {address}");
        }
    }
    if let Some(secured) = &state.kafka_secured {
        println!("{:12} {}", "sasl_ssl", secured.display());
    }
    for process in &state.processes {
        let is = if is_alive(process.pid) { "pid" } else { "ENDED, was pid" };
        println!("  {:12} {}  {is} {}  {}", process.name, process.address, process.pid, process.log.display());
    }
    Ok(())
}

/// A name that is one folder's.
fn name(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match !text.is_empty() && text.chars().all(fine) {
        true => Ok(text.to_owned()),
        false => Err("a name is letters, digits, - and _".to_owned()),
    }
}
