//! The oracle: random events, orders, bad and late records, rebuilds, refreshes, activations, restarts; at each step
//! the served answer at its position equals the recount in plain Rust over exactly the events below it, no position
//! goes back, and once input stops the position gets to the end.
//!
//! `WATERSHED_SEEDS=17..18` replays; a failure prints its seed and its steps.

pub(crate) mod events;
pub(crate) mod truth;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use self::events::{COLUMNS, Generator, Kind};
use self::truth::{Log, VIEWS, ViewCase, events_below};
use crate::harness::{Broker, Client, Running};

/// How many seeds the test command tries.
const SEEDS: u64 = 24;
/// No step may take longer; it is far above what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(120);

/// What has been seen, so that a test that never gets to the interesting cases fails.
#[derive(Debug, Default)]
struct Coverage {
    answers: u64,
    both_parts: u64,
    generation_zero: u64,
    after_restart: u64,
    after_kill: u64,
    after_activation: u64,
    after_damage: u64,
    during_build: u64,
    late: u64,
    dead: u64,
    view_errors: u64,
}

#[test]
fn the_served_answer_is_the_sql_over_exactly_the_events_below_its_position() {
    let seeds = seeds();
    let broker = Broker::start();
    let mut coverage = Coverage::default();
    for seed in seeds.clone() {
        let mut case = Case::new(seed, &broker);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.run(&mut coverage)));
        if let Err(panic) = outcome {
            eprintln!("oracle failed; replay with WATERSHED_SEEDS={seed}..{}; steps:", seed + 1);
            for step in &case.steps {
                eprintln!("  {step}");
            }
            std::panic::resume_unwind(panic);
        }
    }
    println!("oracle: {coverage:?}");
    if seeds.end - seeds.start >= SEEDS {
        let Coverage { answers, both_parts, generation_zero, after_restart, after_kill, .. } = coverage;
        let Coverage { after_activation, after_damage, during_build, late, dead, view_errors, .. } = coverage;
        for (name, count) in [
            ("answers", answers),
            ("answers with both parts non-empty", both_parts),
            ("answers before the first build", generation_zero),
            ("answers after a restart", after_restart),
            ("answers after a kill", after_kill),
            ("answers after an activation", after_activation),
            ("answers after the delta store was damaged", after_damage),
            ("answers while a build ran", during_build),
            ("late events", late),
            ("dead letters", dead),
            ("events on which a view failed", view_errors),
        ] {
            assert!(count > 0, "the oracle never saw: {name}");
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("WATERSHED_SEEDS") else { return 0..SEEDS };
    let (from, to) = text.split_once("..").expect("WATERSHED_SEEDS=from..to");
    from.parse().expect("a number")..to.parse().expect("a number")
}

/// One seed: a stream, some views, and what happens to them.
struct Case {
    seed: u64,
    random: StdRng,
    generator: Generator,
    stream: String,
    partitions: i32,
    views: Vec<ViewCase>,
    log: Log,
    running: Option<Running>,
    dir: tempfile::TempDir,
    bootstrap: String,
    /// Per view the greatest position that an answer of the running process had.
    answered: BTreeMap<&'static str, BTreeMap<i32, i64>>,
    steps: Vec<String>,
    restarted: bool,
    killed: bool,
    damaged: bool,
    activated: bool,
    building: Vec<(&'static str, String)>,
}

impl Case {
    fn new(seed: u64, broker: &Broker) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
        let partitions = random.random_range(1..4);
        let mut views = VIEWS.to_vec();
        while views.len() > 4 {
            views.remove(random.random_range(0..views.len()));
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("names.csv"), "k,name\n0,name 0\n1,name 1\n2,name 2\n3,name 3\n").unwrap();
        let stream = format!("events_{}_{seed}", std::process::id());
        Self {
            seed,
            random,
            generator: Generator::new(seed),
            stream,
            partitions,
            views,
            log: Log::new(),
            running: None,
            dir,
            bootstrap: broker.bootstrap_servers().to_owned(),
            answered: BTreeMap::new(),
            steps: Vec::new(),
            restarted: false,
            killed: false,
            damaged: false,
            activated: false,
            building: Vec::new(),
        }
    }

    fn config(&self) -> String {
        let mut text = format!(
            r#"
data_dir = "data"
[kafka]
bootstrap_servers = "{bootstrap}"
[http]
listen = "127.0.0.1:0"
[archive]
commit_interval = "200 ms"
[speed]
commit_interval = "50 ms"
[stream.{stream}]
partitions = {partitions}
format = "json"
event_time = "t"
allowed_lateness = "10 minutes"
columns = """{COLUMNS}"""
[table.names]
url = "names.csv"
"#,
            bootstrap = self.bootstrap,
            stream = self.stream,
            partitions = self.partitions,
        );
        for view in &self.views {
            let sql = view.sql.replace("{stream}", &self.stream);
            text += &format!("[view.{}]\nsql = \"\"\"{sql}\"\"\"\n{}\n", view.name, view.extra);
        }
        text
    }

    fn client(&self) -> &Client {
        self.running.as_ref().expect("the platform runs").client()
    }

    fn run(&mut self, coverage: &mut Coverage) {
        self.start();
        let steps = self.random.random_range(6..14);
        for _ in 0..steps {
            self.step(coverage);
            self.check(coverage);
        }
        // Liveness: input has stopped; the position reaches the log's end, a rebuild's cut reaches it, answers equal.
        self.settle();
        self.await_builds();
        self.check(coverage);
        let before: Vec<_> = self.views.clone().iter().map(|v| self.client().view(v.name)).collect();
        for view in self.views.clone() {
            self.steps.push(format!("final rebuild of {}", view.name));
            let id = self.client().build(view.name, "rebuild").expect("no other build runs");
            assert_eq!(self.client().wait_build(&id, PATIENCE)["state"], "succeeded", "{}", view.name);
        }
        for (view, before) in self.views.clone().iter().zip(before) {
            let after = self.client().view_when(view.name, PATIENCE, |meta| {
                let ends = log_ends(&self.log);
                ends.iter().all(|(p, end)| meta["partitions"][p.to_string()]["batch_until"].as_i64() == Some(*end))
            });
            assert_rows(view, &after["rows"], &rows_of(&before), "the answer at a position does not move");
            assert_eq!(after["meta"]["views"][view.name]["complete"], true);
            self.compare(view, &after);
        }
        self.running.take().expect("runs").stop();
    }

    fn start(&mut self) {
        self.steps.push("start".to_owned());
        self.answered.clear();
        self.building.clear();
        self.running = Some(Running::start(&self.config(), self.dir.path()));
    }

    fn step(&mut self, coverage: &mut Coverage) {
        match self.random.random_range(0..16) {
            0..6 => {
                let count = self.random.random_range(1..120);
                self.produce(count, coverage);
            }
            6 | 7 => self.settle(),
            8 | 9 => self.start_build("rebuild"),
            10 | 11 => self.start_build("refresh"),
            12 => self.await_builds(),
            13 => self.activate(),
            14 => {
                self.steps.push("restart".to_owned());
                self.running.take().expect("runs").stop();
                self.restarted = true;
                self.start();
            }
            _ => {
                self.running.take().expect("runs").kill();
                self.killed = true;
                if self.random.random_bool(0.4) {
                    self.damage();
                }
                self.steps.push("kill".to_owned());
                self.start();
            }
        }
    }

    fn produce(&mut self, count: usize, coverage: &mut Coverage) {
        self.steps.push(format!("produce {count}"));
        let mut records = Vec::with_capacity(count);
        for _ in 0..count {
            let partition = self.random.random_range(0..self.partitions);
            records.push((partition, self.generator.record()));
        }
        let payloads: Vec<_> = records.iter().map(|(p, r)| (*p, r.timestamp, r.payload())).collect();
        let offsets = self.client().produce_to_log(&self.bootstrap, &self.stream, &payloads);
        for ((partition, record), offset) in records.into_iter().zip(offsets) {
            coverage.dead += u64::from(matches!(record.kind, Kind::Bad(_)));
            let log = self.log.entry(partition).or_default();
            assert!(log.last().is_none_or(|(last, _)| *last < offset), "offsets ascend");
            log.push((offset, record));
        }
    }

    fn settle(&mut self) {
        self.steps.push("settle".to_owned());
        let ends = log_ends(&self.log);
        for view in self.views.clone() {
            let body = self.client().view_waiting(view.name, &ends, PATIENCE);
            self.compare(&view, &body);
        }
    }

    fn start_build(&mut self, mode: &str) {
        let view = self.views[self.random.random_range(0..self.views.len())];
        self.steps.push(format!("{mode} {}", view.name));
        // A 409 says that one is running: that is an answer, not a failure.
        if let Some(id) = self.client().build(view.name, mode) {
            self.building.push((view.name, id));
        }
    }

    fn await_builds(&mut self) {
        self.steps.push("await builds".to_owned());
        for (view, id) in std::mem::take(&mut self.building) {
            let status = self.client().wait_build(&id, PATIENCE);
            assert_eq!(status["state"], "succeeded", "build of {view}: {status}");
        }
    }

    fn activate(&mut self) {
        self.await_builds();
        let view = self.views[self.random.random_range(0..self.views.len())];
        let generations = self.client().generations(view.name);
        if generations.is_empty() {
            return;
        }
        let generation = generations[self.random.random_range(0..generations.len())];
        self.steps.push(format!("activate {} {generation}", view.name));
        let id = self.client().activate(view.name, generation);
        let status = self.client().wait_build(&id, PATIENCE);
        assert_eq!(status["state"], "succeeded", "activation of {}: {status}", view.name);
        self.activated = true;
    }

    /// Flips bytes in the delta store's files.
    fn damage(&mut self) {
        self.steps.push("damage the delta store".to_owned());
        let mut pending = vec![self.dir.path().join("data/delta")];
        while let Some(dir) = pending.pop() {
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            for entry in entries.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    pending.push(path);
                    continue;
                }
                let Ok(mut bytes) = std::fs::read(&path) else { continue };
                if bytes.is_empty() {
                    continue;
                }
                for _ in 0..8 {
                    let at = self.random.random_range(0..bytes.len());
                    bytes[at] ^= 1 << self.random.random_range(0..8);
                }
                std::fs::write(&path, bytes).expect("the file can be written");
                self.damaged = true;
            }
        }
    }

    fn check(&mut self, coverage: &mut Coverage) {
        for view in self.views.clone() {
            let body = self.client().view(view.name);
            let seen = self.compare(&view, &body);
            let meta = &body["meta"]["views"][view.name];
            let generation = meta["generation"].as_u64().expect("a number");
            let parts = positions(meta, "batch_until");
            let ends = positions(meta, "position");
            coverage.answers += 1;
            coverage.late += seen.0;
            coverage.view_errors += meta["errors"].as_u64().expect("a number");
            coverage.generation_zero += u64::from(generation == 0);
            let below = parts.values().any(|o| *o > 0);
            coverage.both_parts += u64::from(generation > 0 && below && parts != ends);
            coverage.after_restart += u64::from(self.restarted);
            coverage.after_kill += u64::from(self.killed);
            coverage.after_activation += u64::from(self.activated);
            coverage.after_damage += u64::from(self.damaged);
            coverage.during_build += u64::from(!self.building.is_empty());
        }
    }

    /// Compares an answer with the truth at its position. Answers how many late events it holds.
    fn compare(&mut self, view: &ViewCase, body: &Value) -> (u64,) {
        let meta = &body["meta"]["views"][view.name];
        let position = positions(meta, "position");
        let cut = positions(meta, "batch_until");
        for (partition, next) in &position {
            assert!(cut[partition] <= *next, "{}: a position lies below its cut: {meta}", view.name);
        }
        let answered = self.answered.entry(view.name).or_default();
        for (partition, before) in answered.iter() {
            let now = position.get(partition).copied().unwrap_or(0);
            assert!(now >= *before, "{}: partition {partition} went back from {before} to {now}", view.name);
        }
        *answered = position.clone();
        let seen = events_below(&self.log, &position);
        let truth = (view.truth)(&seen);
        assert_rows(view, &body["rows"], &truth, &format!("seed {}, at {position:?}, meta {meta}", self.seed));
        (seen.iter().filter(|e| e.late).count() as u64,)
    }
}

fn log_ends(log: &Log) -> BTreeMap<i32, i64> {
    log.iter().filter_map(|(p, records)| Some((*p, records.last()?.0 + 1))).collect()
}

fn positions(meta: &Value, field: &str) -> BTreeMap<i32, i64> {
    let partitions = meta["partitions"].as_object().expect("partitions");
    partitions.iter().map(|(p, m)| (p.parse().expect("a number"), m[field].as_i64().expect("an offset"))).collect()
}

fn rows_of(body: &Value) -> Vec<Value> {
    body["rows"].as_array().expect("rows").clone()
}

/// Compares rows without regard to their order: keys exactly, floats within 1e-9, sketches within their error.
fn assert_rows(view: &ViewCase, served: &Value, truth: &[Value], context: &str) {
    let sort = |mut rows: Vec<Value>| {
        rows.sort_by_cached_key(|row| {
            let key: Vec<String> = view.key.iter().map(|k| row[*k].to_string()).collect();
            key
        });
        rows
    };
    let served = sort(served.as_array().expect("rows").clone());
    let truth = sort(truth.to_vec());
    assert_eq!(served.len(), truth.len(), "{}: rows\nserved {served:?}\ntruth {truth:?}\n{context}", view.name);
    for (mine, real) in served.iter().zip(&truth) {
        for (column, value) in real.as_object().expect("a row") {
            let got = &mine[column];
            let equal = match (value.as_f64(), got.as_f64()) {
                (Some(a), Some(b)) if column == "ad" => (a - b).abs() <= 2.0 + a * 0.05,
                (Some(a), Some(b)) if value.is_f64() || got.is_f64() => {
                    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
                }
                _ => value == got,
            };
            assert!(
                equal,
                "{}: column {column}: served {got}, truth {value}\nin {mine}\nnot {real}\n{context}",
                view.name
            );
        }
        assert_eq!(mine.as_object().map(|o| o.len()), real.as_object().map(|o| o.len()), "{}: columns", view.name);
    }
}
