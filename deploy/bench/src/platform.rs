//! The program `watershed` as a process, asked over HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use watershed_shared::clock::{self, Instant};

use crate::events::COLUMNS;
use crate::usage::{self, Memory};

/// Of a build; the engines that it is compared with get as many.
pub(crate) const BUILD_THREADS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(900);

/// What a platform is started with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// `None`: the embedded broker.
    pub(crate) bootstrap_servers: Option<String>,
    pub(crate) topic: String,
    pub(crate) partitions: i32,
    /// Name and SQL.
    pub(crate) views: Vec<(&'static str, &'static str)>,
    pub(crate) archive: Archive,
}

/// How much the archiver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Archive {
    /// Commits every other second, so that it keeps up within a short measurement.
    On,
    /// Holds what it is handed and commits nothing before the end.
    Held,
}

/// A running platform; killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Platform {
    child: Child,
    client: Client,
    dir: TempDir,
}

/// Asks a running platform. Cheap to clone; all clones share their connections.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    url: String,
    http: reqwest::Client,
}

impl Setup {
    fn config(&self) -> String {
        let mut config = String::from("[http]\nlisten = \"127.0.0.1:0\"\n[broker]\nlisten = \"127.0.0.1:0\"\n");
        let (interval, size) = match self.archive {
            Archive::On => ("2 seconds", "128 MiB"),
            Archive::Held => ("1 hour", "64 GiB"),
        };
        let mut line = |text: std::fmt::Arguments<'_>| config.write_fmt(text).expect("a text takes everything");
        line(format_args!("[batch]\nthreads = {BUILD_THREADS}\nmemory_limit = \"6 GiB\"\n"));
        line(format_args!("[archive]\ncommit_interval = \"{interval}\"\ntarget_file_size = \"{size}\"\n"));
        if let Some(servers) = &self.bootstrap_servers {
            line(format_args!("[kafka]\nbootstrap_servers = \"{servers}\"\n"));
        }
        line(format_args!(
            "[stream.events]\ntopic = \"{}\"\npartitions = {}\nevent_time = \"ts\"\ncolumns = \"{COLUMNS}\"\n",
            self.topic, self.partitions
        ));
        for (name, sql) in &self.views {
            line(format_args!("[view.{name}]\nsql = \"{sql}\"\n"));
        }
        config
    }
}

impl Platform {
    /// Starts `program` in a fresh directory; on return it answers HTTP, though it may be far behind the log.
    pub(crate) async fn start(program: &Path, setup: &Setup) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("watershed-bench-").tempdir()?;
        let file = dir.path().join("watershed.toml");
        std::fs::write(&file, setup.config())?;
        let log = std::fs::File::create(dir.path().join("stderr.log"))?;
        let child = Command::new(program)
            .args(["up", "-c"])
            .arg(&file)
            .current_dir(dir.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let http = reqwest::Client::builder().pool_max_idle_per_host(64).build()?;
        let mut platform = Self { child, client: Client { url: String::new(), http }, dir };
        let deadline = Instant::now() + Duration::from_secs(60);
        while platform.client.url.is_empty() {
            if let Some(status) = platform.child.try_wait()? {
                bail!("the program ended with {status}:\n{}", platform.log());
            }
            ensure!(Instant::now() < deadline, "the program does not answer:\n{}", platform.log());
            platform.client.url = platform.discover().unwrap_or_default();
            clock::sleep(Duration::from_millis(2)).await;
        }
        Ok(platform)
    }

    fn discover(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.data_dir().join("http.json")).ok()?;
        let file: Value = serde_json::from_str(&text).ok()?;
        Some(file["url"].as_str()?.to_owned())
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr.log")).unwrap_or_default()
    }

    /// Where Kafka clients reach the embedded broker.
    pub(crate) fn embedded_broker(&self) -> Result<String> {
        let file = watershed_shared::log::BrokerFile::read(&self.data_dir())?;
        Ok(file.context("the platform runs no broker of its own")?.bootstrap_servers)
    }

    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        usage::cpu_seconds(self.child.id())
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        usage::memory(self.child.id())
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The files that the master dataset consists of now.
    pub(crate) fn master_files(&self) -> Result<Vec<PathBuf>> {
        let dir = self.data_dir().join("storage/streams/events");
        let log = dir.join("_delta_log");
        let entries = std::fs::read_dir(&log).with_context(|| format!("read {}", log.display()))?;
        let mut commits: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        commits.retain(|path| path.extension().is_some_and(|e| e == "json"));
        // Their names are numbers of one length.
        commits.sort();
        let mut files = BTreeSet::new();
        for commit in commits {
            let text = std::fs::read_to_string(&commit)?;
            for line in text.lines() {
                let action: Value = serde_json::from_str(line)?;
                if let Some(path) = action["add"]["path"].as_str() {
                    files.insert(path.to_owned());
                }
                if let Some(path) = action["remove"]["path"].as_str() {
                    files.remove(path);
                }
            }
        }
        ensure!(!files.is_empty(), "{} names no file", log.display());
        Ok(files.into_iter().map(|file| dir.join(file)).collect())
    }

    /// Runs SQL once the stream's position has reached `offsets`.
    pub(crate) async fn query(&self, sql: &str, offsets: &BTreeMap<i32, i64>) -> Result<Value> {
        let offsets: BTreeMap<String, i64> = offsets.iter().map(|(p, o)| (p.to_string(), *o)).collect();
        let body = json!({"sql": sql, "wait_for": {"events": offsets}, "timeout_ms": PATIENCE.as_millis() as u64});
        let request = self.client.post("/v1/query").json(&body);
        answer(request).await.with_context(|| format!("ask {sql}"))
    }

    /// The next offset of each partition that the stream's answers include.
    pub(crate) async fn position(&self) -> Result<BTreeMap<i32, i64>> {
        let status = answer(self.client.get("/v1/status")).await?;
        Ok(offsets(&status["streams"][0]["position"]))
    }

    /// Waits until the archiver has reached `ends`.
    pub(crate) async fn archived(&self, ends: &BTreeMap<i32, i64>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = answer(self.client.get("/v1/status")).await?;
            let archived = offsets(&status["streams"][0]["archive"]["archived_until"]);
            if ends.iter().all(|(p, end)| *end == 0 || archived.get(p).is_some_and(|at| at >= end)) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the archiver does not get to the log's end: {status}");
            clock::sleep(Duration::from_millis(20)).await;
        }
    }

    /// As [`Client::build`].
    pub(crate) async fn build(&self, view: &str, mode: &str) -> Result<Duration> {
        self.client.build(view, mode).await
    }
}

impl Client {
    fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("{}{path}", self.url))
    }

    fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.url))
    }

    /// A view's body as it came, with these parameters.
    pub(crate) async fn text(&self, view: &str, parameters: &[(&str, &str)]) -> Result<String> {
        let request = self.get(&format!("/v1/views/{view}")).query(parameters).timeout(PATIENCE);
        let response = request.send().await?;
        let status = response.status();
        let body = response.text().await?;
        ensure!(status.is_success(), "{view} with {parameters:?}: {status}: {body}");
        Ok(body)
    }

    /// Runs a build to its end; answers how long that took.
    pub(crate) async fn build(&self, view: &str, mode: &str) -> Result<Duration> {
        let started = Instant::now();
        let request = self.post(&format!("/v1/views/{view}/rebuilds")).json(&json!({"mode": mode}));
        let build = answer(request).await.with_context(|| format!("start a {mode} of {view}"))?;
        let id = build["id"].as_str().context("a build has an id")?.to_owned();
        loop {
            let build = answer(self.get(&format!("/v1/rebuilds/{id}?wait_ms=1000"))).await?;
            match build["state"].as_str() {
                Some("succeeded") => return Ok(started.elapsed()),
                Some("queued" | "running" | "publishing" | "held") => {}
                _ => bail!("{mode} of {view}: {build}"),
            }
        }
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Result<Value> {
    let response = request.timeout(PATIENCE).send().await?;
    let status = response.status();
    let body: Value = response.json().await?;
    ensure!(status.is_success(), "{status}: {body}");
    Ok(body)
}

fn offsets(value: &Value) -> BTreeMap<i32, i64> {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(p, o)| Some((p.parse().ok()?, o.as_i64()?))).collect()
}

impl Drop for Platform {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
