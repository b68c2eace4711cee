//! One seed: a stream, some views, and what happens to them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use watershed_shared::clock::Instant;
use watershed_shared::mutant::Mutant;

use super::compare::assert_rows;
use super::coverage::Coverage;
use super::events::{COLUMNS, Format, Generator, Kind};
use super::log::{Log, offsets};
use super::recount::MORE_VIEWS;
use super::subject::{Launch, Roles, Subject};
use super::truth::{TEXT_VIEWS, VIEWS};
use super::view::{Variant, View};
use crate::harness::{Broker, Client};
use crate::processes::POINTS;

/// How a case is run.
#[derive(Clone, Copy)]
pub(crate) struct Trial<'a> {
    pub(crate) broker: &'a Broker,
    /// No step may take longer.
    pub(crate) patience: Duration,
    /// The bug that the program is to have.
    pub(crate) mutant: Option<Mutant>,
    /// Each role in processes of its own.
    pub(crate) roles: bool,
}

/// What became of a case.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What went wrong, with the steps that led there.
    pub(crate) failure: Option<String>,
    pub(crate) coverage: Coverage,
    /// The program came by the place of the mutant.
    pub(crate) reached: bool,
}

/// Runs the case of `seed`.
pub(crate) fn run(seed: u64, trial: &Trial<'_>) -> Outcome {
    let mut case = Case::new(seed, *trial);
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.run())).err();
    let failure = panic.map(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let log = case.running.as_ref().map(Subject::log).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(40).collect();
        let tail: String = tail.into_iter().rev().map(|line| format!("    {line}\n")).collect();
        let steps: String = case.steps.iter().map(|step| format!("  {step}\n")).collect();
        format!("{}\nsteps:\n{steps}log:\n{tail}", text.unwrap_or("no message"))
    });
    case.harvest();
    Outcome { failure, coverage: case.coverage, reached: case.reached }
}

struct Case<'a> {
    trial: Trial<'a>,
    random: StdRng,
    generator: Generator,
    format: Format,
    stream: String,
    beginning: String,
    /// The speed layer gets batches again.
    redelivers: bool,
    views: Vec<View>,
    log: Log,
    running: Option<Subject>,
    dir: tempfile::TempDir,
    steps: Vec<String>,
    coverage: Coverage,
    reached: bool,
    /// What the answers from now on come after.
    after: BTreeSet<&'static str>,
    /// The log's ends when the process that answers was started.
    started_at: BTreeMap<i32, i64>,
    /// A process may be down, or may be taking over from one, since all answers were complete.
    moving: bool,
}

impl<'a> Case<'a> {
    fn new(seed: u64, trial: Trial<'a>) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
        let format = match random.random_range(0..10) {
            0 => Format::Text,
            1..4 => Format::Csv,
            _ => Format::Json,
        };
        let mut cases = if format == Format::Text { TEXT_VIEWS.to_vec() } else { VIEWS.to_vec() };
        while cases.len() > 3 {
            cases.remove(random.random_range(0..cases.len()));
        }
        // By a generator of its own: what else a seed brings does not depend on these.
        let more = &mut StdRng::seed_from_u64(seed ^ 0x0043);
        if format != Format::Text && more.random_ratio(2, 3) {
            let at = more.random_range(0..cases.len());
            cases[at] = MORE_VIEWS[more.random_range(0..MORE_VIEWS.len())];
        }
        let mut views = Vec::new();
        for case in cases {
            let on_time = format != Format::Text && random.random_bool(0.3);
            views.push(View::new(case, if on_time { Variant::OnTime } else { Variant::Whole }));
        }
        let partitions = random.random_range(1..4);
        let archive = ["100 ms", "200 ms", "1 second"][random.random_range(0..3)];
        // How far what is durable lags what is answered, and whether readers fall out of the shared window.
        let commit = ["20 ms", "50 ms", "5 seconds"][random.random_range(0..3)];
        let window = ["64 MiB", "1 MiB"][random.random_range(0..2)];
        let mut speed = format!("commit_interval = \"{commit}\"\nwindow = \"{window}\"");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let names = dir.path().join("names.csv");
        let (names, mut shared) = (names.display(), String::new());
        let mut shards = 1;
        if trial.roles {
            speed += "\nlisten = \"127.0.0.1:0\"\nowner_timeout = \"3 seconds\"";
            shared = format!("[storage]\nurl = \"{}\"\n", dir.path().join("storage").display());
            shards = random.random_range(1..=partitions.min(2));
        }
        std::fs::write(dir.path().join("names.csv"), "k,name\n0,name 0\n1,name 1\n2,name 2\n3,name 3\n").unwrap();
        // Many cases share a broker, and a mutant's cases have the seeds of the others.
        let mutant = trial.mutant.map_or("none", Mutant::name);
        let stream = format!("events_{seed}_{}{mutant}", if trial.roles { "roles_" } else { "" });
        let declared = match format {
            Format::Text => String::new(),
            _ => format!("event_time = \"t\"\nallowed_lateness = \"10 minutes\"\ncolumns = \"\"\"{COLUMNS}\"\"\""),
        };
        let beginning = format!(
            "{}{shared}[stream.{stream}]\npartitions = {partitions}\nshards = {shards}\nformat = \"{}\"\n{declared}\n\
             [table.names]\nurl = \"{names}\"\n",
            trial.broker.config(archive, &speed),
            format.name(),
        );
        let mut coverage = Coverage::default();
        let kind = match format {
            Format::Json => "json streams",
            Format::Csv => "csv streams",
            Format::Text => "text streams",
        };
        coverage.count(kind, 1);
        Self {
            trial,
            random,
            generator: Generator::new(seed, partitions, format),
            format,
            stream,
            beginning,
            redelivers: more.random_ratio(1, 3),
            views,
            log: Log::default(),
            running: None,
            dir,
            steps: Vec::new(),
            coverage,
            reached: false,
            after: BTreeSet::new(),
            started_at: BTreeMap::new(),
            moving: true,
        }
    }

    fn client(&self) -> &Client {
        self.running.as_ref().expect("the platform runs").client()
    }

    fn run(&mut self) {
        self.start();
        self.produce();
        if self.random.random_bool(0.7) {
            self.watch_any_build();
        }
        for _ in 0..self.random.random_range(4..10) {
            self.step();
            self.check();
        }
        if self.trial.roles {
            self.replace_one();
            self.check();
        }
        self.end();
    }

    fn step(&mut self) {
        match self.random.random_range(0..34) {
            0..9 => self.produce(),
            9..11 => self.settle(),
            11..15 => self.start_build(),
            15..19 => self.watch_any_build(),
            19..21 => self.await_builds(),
            21..23 => self.activate(),
            23..25 => self.cancel(),
            25 => {
                self.step_is("restart");
                self.stop();
                self.after("answers after a restart");
                self.start();
            }
            26..28 if self.trial.roles => self.replace_one(),
            26..28 => {
                self.kill();
                if self.random.random_bool(0.5) {
                    self.damage();
                }
                self.start();
            }
            28..31 => self.redefine(),
            _ => self.abort(),
        }
    }

    /// Liveness: input has stopped; the position reaches the log's end, a rebuild's cut reaches it, and neither moves
    /// an answer. Then the master dataset is looked at.
    fn end(&mut self) {
        self.settle();
        self.await_builds();
        self.check();
        let before: Vec<Value> = self.views.iter().map(|v| self.client().view(v.name())).collect();
        for index in 0..self.views.len() {
            self.build(index, "rebuild").expect("no other build runs");
        }
        self.await_builds();
        let ends = self.log.ends();
        for (index, before) in before.into_iter().enumerate() {
            let name = self.views[index].name();
            let at_the_end = |meta: &Value| {
                ends.iter().all(|(p, end)| meta["partitions"][p.to_string()]["batch_until"].as_i64() == Some(*end))
            };
            let roles = self.trial.roles;
            let at_rest = |meta: &Value| at_the_end(meta) && (!roles || meta["complete"] == true);
            let after = self.client().view_when(name, self.trial.patience, at_rest);
            if before["meta"]["views"][name]["definition"] == after["meta"]["views"][name]["definition"] {
                let rows = before["rows"].as_array().expect("rows");
                assert_rows(&self.views[index].case, &after["rows"], rows, "the answer at a position does not move");
            }
            self.compare(index, &after);
            assert_eq!(after["meta"]["views"][name]["complete"], true, "at rest: {}", after["meta"]);
        }
        self.log.check_master_dataset(self.client(), &self.stream);
        self.stop();
    }

    fn step_is(&mut self, step: impl Into<String>) {
        self.steps.push(step.into());
    }

    /// All answers from now on count as `what`.
    fn after(&mut self, what: &'static str) {
        self.after.insert(what);
    }

    fn config(&self) -> String {
        let views: String = self.views.iter().map(|view| view.config(&self.stream)).collect();
        format!("{}{views}", self.beginning)
    }

    fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Of every process.
    fn environment(&self) -> Vec<(&'static str, &'static str)> {
        // Says when a replay begins.
        let mut env = vec![("RUST_LOG", "warn,watershed_speed_layer=info")];
        if self.redelivers {
            env.push(("WATERSHED_REDELIVER", "1"));
        }
        env.extend(self.trial.mutant.map(|mutant| ("WATERSHED_MUTANT", mutant.name())));
        env
    }

    fn start_with(&mut self, env: &[(&str, &str)]) {
        let env = [env, &self.environment()].concat();
        let config = self.config();
        (self.started_at, self.moving) = (self.log.ends(), true);
        let launch = Launch { config: &config, dir: self.dir.path(), env: &env, patience: self.trial.patience };
        self.running = Some(Subject::start(&launch, self.trial.roles));
        let dies = env.iter().any(|(name, _)| *name == "WATERSHED_ABORT_AT");
        if self.trial.roles && !dies {
            self.await_quiet();
        }
        for view in &mut self.views {
            if self.trial.roles {
                view.may_fall_back();
            }
            if view.started() {
                self.coverage.count("superseded definitions that stayed away", 1);
            }
        }
    }

    /// Ends one process and starts it again, while the others go on.
    fn replace_one(&mut self) {
        let (number, kill) = (self.random.random_range(0..Roles::COUNT), self.random.random_bool(0.7));
        self.harvest();
        (self.started_at, self.moving) = (self.log.ends(), true);
        let config = self.config();
        let env = self.environment();
        let launch = Launch { config: &config, dir: self.dir.path(), env: &env, patience: self.trial.patience };
        let Some(Subject::Roles(roles)) = &mut self.running else { panic!("the roles run") };
        let role = roles.replace(number, kill, &launch);
        self.steps.push(format!("{} process {number}, {role}", if kill { "kill" } else { "stop" }));
        match role {
            "batch" => {
                self.await_quiet();
                self.views.iter_mut().for_each(|view| view.building = None);
                self.after("answers after a batch process was replaced");
            }
            "speed" => self.after("answers after a worker was replaced"),
            _ => {
                self.views.iter_mut().for_each(View::asked_elsewhere);
                self.views.iter_mut().for_each(View::may_fall_back);
                self.after("answers after a serving process was replaced");
            }
        }
    }

    /// Waits until no build is asked for or under way: a request outlives who was asked, and may be taken on.
    fn await_quiet(&self) {
        let deadline = Instant::now() + self.trial.patience;
        loop {
            let (status, body) = self.client().get("/v1/rebuilds");
            assert_eq!(status, 200, "{body}");
            let over = ["succeeded", "failed", "cancelled", "skipped", "interrupted"];
            let builds = body["rebuilds"].as_array().expect("builds");
            let Some(open) = builds.iter().find(|b| !over.iter().any(|state| b["state"] == *state)) else { return };
            assert!(Instant::now() < deadline, "it does not end: {open}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(&mut self) {
        self.harvest();
        self.running.take().expect("it runs").stop();
    }

    fn kill(&mut self) {
        self.step_is("kill");
        self.harvest();
        self.running.take().expect("it runs").kill();
        self.after("answers after a kill");
    }

    /// Looks at what the running process said.
    fn harvest(&mut self) {
        let Some(log) = self.running.as_ref().map(Subject::log) else { return };
        if log.contains("replay begins") {
            self.after("answers after a replay");
        }
        if log.contains("batches are delivered again") {
            self.after("answers after batches came again");
        }
        if log.contains("set aside") {
            self.after("answers after the delta store was set aside");
        }
        self.reached |= self.trial.mutant.is_some_and(|m| log.contains(&format!("mutant {} reached", m.name())));
    }

    fn produce(&mut self) {
        let count = self.random.random_range(1..100);
        self.step_is(format!("produce {count}"));
        self.produce_records(count);
    }

    fn produce_records(&mut self, count: usize) {
        let records: Vec<_> = (0..count).map(|_| self.generator.placed()).collect();
        let dead = records.iter().filter(|(_, r)| matches!(r.kind, Kind::Bad(_))).count();
        self.coverage.count("dead letters", dead as u64);
        let (broker, stream) = (self.trial.broker, &self.stream);
        self.log.produce(self.format, records, |payloads| broker.produce(stream, payloads));
    }

    /// Reads its own last writes at once; then input rests: every position reaches the log's end, and every answer is
    /// complete.
    fn settle(&mut self) {
        self.step_is("settle");
        self.produce_records(20);
        let ends = self.log.ends();
        for index in 0..self.views.len() {
            let name = self.views[index].name();
            let body = self.client().view_waiting(name, &ends, self.trial.patience);
            self.compare(index, &body);
            let meta = &body["meta"]["views"][name];
            let reached = |(p, end): (&i32, &i64)| meta["partitions"][p.to_string()]["position"].as_i64() >= Some(*end);
            assert!(ends.iter().all(reached), "{name}: wait_for {ends:?} was answered before: {meta}");
            if self.trial.roles {
                // A partition may wait for its next owner though nothing came to it.
                self.client().view_when(name, self.trial.patience, |meta| meta["complete"] == true);
                continue;
            }
            assert_eq!(meta["complete"], true, "{name} at rest: {meta}");
        }
        self.moving = false;
    }

    fn any_view(&mut self) -> usize {
        self.random.random_range(0..self.views.len())
    }

    fn any_mode(&mut self) -> &'static str {
        ["rebuild", "refresh", "refresh"][self.random.random_range(0..3)]
    }

    /// Starts a build. Answers its id; `None` if one of the view runs.
    fn build(&mut self, index: usize, mode: &str) -> Option<String> {
        let view = &self.views[index];
        self.steps.push(format!("{mode} {}", view.name()));
        let id = self.client().build(view.name(), mode);
        let view = &mut self.views[index];
        view.build_begins();
        if id.is_some() {
            view.building.clone_from(&id);
        }
        id
    }

    fn start_build(&mut self) {
        let (index, mode) = (self.any_view(), self.any_mode());
        self.build(index, mode);
    }

    fn watch_any_build(&mut self) {
        let index = self.any_view();
        self.build_and_watch(index);
    }

    /// Asks without pause while a build runs and its generation comes to answer.
    fn build_and_watch(&mut self, index: usize) {
        let mode = self.any_mode();
        self.await_build(index);
        let name = self.views[index].name();
        let first = self.client().view(name)["meta"]["views"][name]["generation"].as_u64();
        let id = self.build(index, mode).expect("no other build of the view runs");
        if self.random.random_bool(0.6) {
            self.produce();
        }
        let deadline = Instant::now() + self.trial.patience;
        let mut asked = 0;
        loop {
            let body = self.client().view(name);
            let found = self.compare(index, &body);
            asked += 1;
            if Some(found.generation) != first {
                break;
            }
            let (_, status) = self.client().get(&format!("/v1/rebuilds/{id}"));
            let over = ["failed", "cancelled", "skipped", "interrupted"].iter().any(|s| status["state"] == *s);
            assert!(!over && Instant::now() < deadline, "the build's generation does not answer: {status}");
            std::thread::sleep(Duration::from_millis(15));
        }
        self.coverage.count("answers during a swap", asked);
        self.await_build(index);
    }

    /// Waits until the view's build has ended and its generation answers.
    fn await_build(&mut self, index: usize) {
        let Some(id) = self.views[index].building.take() else { return };
        let name = self.views[index].name();
        let status = self.client().wait_build(&id, self.trial.patience);
        assert_eq!(status["state"], "succeeded", "build of {name}: {status}");
        let answers = |meta: &Value| meta["generation"].as_u64() >= status["generation"].as_u64();
        let body = self.client().view_when(name, self.trial.patience, answers);
        self.views[index].build_answers();
        self.compare(index, &body);
    }

    fn await_builds(&mut self) {
        self.step_is("await builds");
        for index in 0..self.views.len() {
            self.await_build(index);
        }
    }

    fn activate(&mut self) {
        let index = self.any_view();
        self.await_build(index);
        let name = self.views[index].name();
        let generations = self.client().generations(name);
        if generations.is_empty() {
            return;
        }
        let (generation, definition) = &generations[self.random.random_range(0..generations.len())];
        self.step_is(format!("activate {name} {generation}"));
        self.views[index].may_become(definition);
        let id = self.client().activate(name, *generation);
        let status = self.client().wait_build(&id, self.trial.patience);
        assert_eq!(status["state"], "succeeded", "activation of {name}: {status}");
        let answers = |meta: &Value| meta["generation"].as_u64() >= status["generation"].as_u64();
        let body = self.client().view_when(name, self.trial.patience, answers);
        self.views[index].activated(definition);
        self.compare(index, &body);
        self.after("answers after an activation");
    }

    /// Asks for the end of a build right after its start: in one of a few attempts it ends so, and publishes nothing.
    fn cancel(&mut self) {
        let (index, mode) = (self.any_view(), self.any_mode());
        self.await_build(index);
        let name = self.views[index].name();
        for _ in 0..5 {
            let id = self.build(index, mode).expect("no other build of the view runs");
            self.step_is("cancel it");
            let answer = self.client().cancel(&id);
            assert!(answer == 200 || answer == 409, "{answer}");
            let status = self.client().wait_build(&id, self.trial.patience);
            if status["state"] == "cancelled" {
                self.views[index].building = None;
                let published = &status["generation"];
                assert!(published.is_null(), "a cancelled build has published: {status}");
                self.coverage.count("cancelled builds", 1);
                return;
            }
            self.await_build(index);
        }
        panic!("{name}: of five builds that were asked to end at once none did");
    }

    /// Starts again with another definition of a view: that in use answers until the new one is built; one that was
    /// superseded earlier does not come back.
    fn redefine(&mut self) {
        if self.format == Format::Text {
            return;
        }
        self.await_builds();
        // Two changes of one view tell more than one of each.
        let changed = self.views.iter().position(View::has_changed).filter(|_| self.random.random_bool(0.7));
        let index = changed.unwrap_or_else(|| self.any_view());
        if !self.views[index].has_answered() {
            // Only an answer tells which definition has which hash.
            let body = self.client().view(self.views[index].name());
            self.compare(index, &body);
        }
        let view = &mut self.views[index];
        view.written = view.written.other();
        self.steps.push(format!("define {} {:?}", view.name(), view.written));
        self.stop();
        self.start();
        self.after("answers after a change of the definition");
        if self.random.random_bool(0.7) {
            self.check();
            self.build_and_watch(index);
        }
    }

    /// Runs the program until it gets to a named point and dies there, or is killed after a while.
    fn abort(&mut self) {
        let (point, _) = POINTS[self.random.random_range(0..POINTS.len())];
        let nth = self.random.random_range(1..4);
        self.step_is(format!("abort at {point}:{nth}"));
        self.stop();
        self.start_with(&[("WATERSHED_ABORT_AT", &format!("{point}:{nth}"))]);
        for _ in 0..2 {
            self.produce();
            for index in 0..self.views.len() {
                let mode = self.any_mode();
                let view = &mut self.views[index];
                view.build_begins();
                let url = format!("{}/v1/views/{}/rebuilds", self.client().url(), self.views[index].name());
                // The connection may break: that is what is provoked.
                drop(reqwest::blocking::Client::new().post(url).json(&json!({"mode": mode})).send());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let running = self.running.as_mut().expect("it was started");
        if running.ended_within(Duration::from_millis(600)) {
            self.harvest();
            self.running = None;
            self.after("answers after an abort at a named point");
        } else {
            self.kill();
        }
        self.start();
    }

    /// Flips bytes in the delta store's files.
    fn damage(&mut self) {
        self.step_is("damage the delta store");
        let mut pending = Subject::delta_stores(self.dir.path(), self.trial.roles);
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
            }
        }
    }

    /// Asks each view, and for a key of those that have one.
    fn check(&mut self) {
        self.harvest();
        for index in 0..self.views.len() {
            let view = &self.views[index];
            if view.case.by_k && self.random.random_bool(0.5) {
                self.lookup(index);
            } else {
                let body = self.client().view(view.name());
                self.compare(index, &body);
            }
        }
    }

    /// Asks for the groups of one key, or of a range of keys.
    fn lookup(&mut self, index: usize) {
        let low: i32 = self.random.random_range(-3..6);
        // By a generator of its own: what else a seed brings does not depend on these.
        let more = &mut StdRng::seed_from_u64(self.steps.len() as u64 ^ u64::from(low.unsigned_abs()));
        let (low, high) = (i64::from(low), more.random_range(-3..8));
        let (filter, wanted, what): (_, fn(i64, i64, i64) -> bool, _) = match more.random_range(0..6) {
            0 | 1 => (format!("k = {low}"), |k, low, _| k == low, "lookups by key"),
            2 => (format!("k >= {low} AND k < {high}"), |k, low, high| low <= k && k < high, "lookups by range"),
            3 => (format!("{low} < k AND k <= {high}"), |k, low, high| low < k && k <= high, "lookups by range"),
            4 => (format!("k < {high}"), |k, _, high| k < high, "lookups by range"),
            _ => (format!("k > {low}"), |k, low, _| k > low, "lookups by range"),
        };
        let body = self.client().view_where(self.views[index].name(), &filter);
        // Of NULL no comparison is true.
        self.compare_where(index, &body, &|row| row["k"].as_i64().is_some_and(|k| wanted(k, low, high)));
        self.coverage.count(what, 1);
    }

    fn compare(&mut self, index: usize, body: &Value) -> super::view::Found {
        self.compare_where(index, body, &|_| true)
    }

    fn compare_where(&mut self, index: usize, body: &Value, wanted: &dyn Fn(&Value) -> bool) -> super::view::Found {
        self.check_complete(index, body);
        let view = &mut self.views[index];
        let found = view.compare(&self.log, body, wanted, "");
        let coverage = &mut self.coverage;
        coverage.count("answers", 1);
        coverage.count("late events", found.late);
        coverage.count("events on which a view failed", found.failed);
        coverage.count("answers before the first build", u64::from(found.generation == 0));
        coverage.count("answers with both parts non-empty", u64::from(found.both_parts));
        coverage.count("answers while a build ran", u64::from(view.building.is_some()));
        coverage.count("answers by a superseded definition", u64::from(found.superseded));
        for what in &self.after {
            coverage.count(what, 1);
        }
        found
    }

    /// `complete: false` with reasons that what the case has done justifies, and never `complete: true` with any.
    fn check_complete(&mut self, index: usize, body: &Value) {
        let view = &mut self.views[index];
        let name = view.name();
        let meta = &body["meta"]["views"][name];
        let (position, ends) = (offsets(meta, "position"), self.log.ends());
        let at = |partition: i32| position.get(&partition).copied().unwrap_or(0);
        let below = |ends: &BTreeMap<i32, i64>| ends.iter().any(|(partition, end)| at(*partition) < *end);
        let reasons = meta["reasons"].as_array().expect("reasons");
        assert_eq!(meta["complete"], reasons.is_empty(), "{name}: {meta}");
        let (mut catches_up, mut passes) = (false, false);
        for reason in reasons {
            let justified = match reason["code"].as_str().expect("a code") {
                // Of a process that has just started, until the answer reaches the log's end as it was then.
                "catching_up" => {
                    catches_up = true;
                    let starts = if self.trial.roles { &ends } else { &self.started_at };
                    match (reason["partition"].as_i64(), reason["to"].as_i64()) {
                        (Some(partition), Some(to)) => {
                            let partition = i32::try_from(partition).expect("a partition");
                            let below = position.get(&partition).is_none_or(|at| *at < to);
                            below && to <= starts.get(&partition).copied().unwrap_or(0)
                        }
                        _ => true,
                    }
                }
                // Of a delta that was lost, or that another generation asks for.
                "replaying" => below(&ends),
                // On a busy machine an owner may miss its time though nobody stopped it: then that passes.
                "no_owner" | "owner_catching_up" if self.trial.roles => {
                    passes |= !self.moving;
                    true
                }
                _ => false,
            };
            assert!(justified, "{name}: nothing that was done justifies {reason}: {meta}");
        }
        assert!(!(catches_up && view.caught_up), "{name}: it had caught up already: {meta}");
        view.caught_up |= !catches_up;
        if reasons.is_empty() && !self.trial.roles {
            let started = &self.started_at;
            assert!(!below(started), "{name}: complete, but below the log's end at the start, {started:?}: {meta}");
        }
        if passes {
            self.client().view_when(name, self.trial.patience, |meta| meta["complete"] == true);
        }
    }
}
