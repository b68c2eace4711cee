//! Chaos: real processes of all roles on a real Kafka of three brokers and a real HDFS, under everything that can happen
//! to any of them. A producer counts what was acknowledged; who asks compares each answer with the truth at the answer's
//! own position. At the end, with everything whole again, nothing is lost, doubled or missing.
//!
//! A run goes in rounds. In each, three decks of faults are dealt at the same time, and builds are asked for all the
//! while; then comes a calm: every serving process must come to answer all views completely, past what the log held when
//! the last fault was healed, and from then on until the next round no answer may be incomplete.
//!
//! `WATERSHED_CHAOS_MINUTES` and `WATERSHED_CHAOS_SEED` make it longer and other. The seed decides what strikes in which
//! order and what is produced; not what the machine makes of it.

mod builds;
mod end;
mod fleet;
mod hits;
mod ledger;
mod machine;
mod poller;
mod producer;
mod recount;
mod strikes;
mod volume;
mod weather;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use watershed_shared::clock::Instant;
use watershed_shared::testing::real_component;
use xtask::cluster::{Cluster, Options, directory};

use self::fleet::{Fleet, Process, Role};
use self::hits::Hits;
use self::ledger::Ledger;
use self::poller::Poller;
use self::recount::views;
use self::weather::{Part, Weather};
use crate::harness::config_head;
use crate::oracle::events::COLUMNS;

/// The topic and the stream.
const TOPIC: &str = "chaos";
const PARTITIONS: i32 = 4;
const SHARDS: usize = 2;
const OWNER_TIMEOUT: Duration = Duration::from_secs(3);
/// How many processes of each role there are; one worker more than shards stands by.
const PROCESSES: [(Role, usize); 3] = [(Role::Batch, 2), (Role::Speed, 3), (Role::Serving, 2)];
/// No recovery may take longer; it is far above what a busy machine needs: on two cores under a load of 40 a build has
/// taken more than four minutes.
const PATIENCE: Duration = Duration::from_secs(1200);
/// Of the run in the test command: one round.
const SEED: u64 = 1;

/// Something that goes on until it is told to stop, or until anything has failed.
struct Watch {
    stopped: AtomicBool,
    failure: Arc<Mutex<Option<String>>>,
}

impl Watch {
    fn new() -> Self {
        Self { stopped: AtomicBool::new(false), failure: Arc::default() }
    }

    /// Another one, which the same failures end.
    fn another(&self) -> Self {
        Self { stopped: AtomicBool::new(false), failure: Arc::clone(&self.failure) }
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.has_failed()
    }

    fn has_failed(&self) -> bool {
        self.failure.lock().is_some()
    }

    /// Waits; answers whether it came to be, before this was over.
    fn waits_until(&self, done: impl Fn() -> bool) -> bool {
        while !done() {
            if self.is_over() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Waits for what must come to be.
    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(!self.has_failed(), "{what}: something else has failed");
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs `part`; its panic is the failure of all, unless something has failed before.
    fn guard<T>(&self, part: impl FnOnce() -> T) -> Option<T> {
        let panic = match catch_unwind(AssertUnwindSafe(part)) {
            Ok(value) => return Some(value),
            Err(panic) => panic,
        };
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        self.failure.lock().get_or_insert_with(|| text.unwrap_or("no message").to_owned());
        None
    }
}

/// Everything but Kafka and HDFS themselves.
struct World {
    bootstrap: String,
    fleet: Fleet,
    ledger: Arc<Ledger>,
    weather: Weather,
    hits: Hits,
    /// Over when something has failed.
    watch: Watch,
    started: Instant,
    /// Builds that were asked for and have not ended.
    builds: AtomicUsize,
}

impl World {
    fn new(bootstrap: String, hdfs: &str, dir: &Path) -> Self {
        let config = config(&bootstrap, hdfs);
        let (data, logs) = (dir.join("data"), dir.join("logs"));
        let processes = PROCESSES.iter().flat_map(|(role, count)| (0..*count).map(|number| (*role, number)));
        let process = |(role, number)| Process::new(role, number, &data, &logs, &config, role == Role::Speed);
        Self {
            bootstrap,
            fleet: Fleet::new(processes.map(process).collect()),
            ledger: Arc::default(),
            weather: Weather::new(2),
            hits: Hits::default(),
            watch: Watch::new(),
            started: Instant::now(),
            builds: AtomicUsize::new(0),
        }
    }

    /// Since the start, for what is printed.
    fn time(&self) -> String {
        format!("{:>7.1}s", self.started.elapsed().as_secs_f64())
    }

    fn run(&self, cluster: &mut Cluster, seed: u64, minutes: f64) {
        let (producing, asking, attending) = (self.watch.another(), self.watch.another(), self.watch.another());
        let starts = [Part::Speed, Part::Serving(0), Part::Serving(1)];
        let starts = starts.map(|part| self.weather.begins(part, "the start"));
        std::thread::scope(|scope| {
            scope.spawn(|| self.watch.guard(|| self.fleet.attend(&self.weather, &attending)));
            scope.spawn(|| self.watch.guard(|| self.watch_machine(&attending)));
            let mut threads = Vec::new();
            let mut said: BTreeMap<String, u64> = BTreeMap::new();
            let outcome = self.watch.guard(|| {
                self.fleet.all().iter().for_each(|process| process.wait_until_up(&self.watch));
                println!("{} all processes are up", self.time());
                let producer = || self.watch.guard(|| producer::run(&self.bootstrap, seed, &self.ledger, &producing));
                let producer = scope.spawn(producer);
                let look = || self.watch.guard(|| self.ledger.look_for_unknown(&self.bootstrap, TOPIC, &producing));
                let looking = scope.spawn(look);
                for process in self.fleet.of(Role::Serving) {
                    let poller = Poller::new(process, self);
                    let asking = &asking;
                    threads.push(scope.spawn(move || self.watch.guard(|| poller.run(asking))));
                }
                let wander = || self.watch.guard(|| poller::wander(self, &asking));
                let wanderer = scope.spawn(wander);
                starts.into_iter().for_each(|start| self.weather.heals(start, self.ledger.ends()));
                self.rounds(cluster, seed, minutes);

                producing.stop();
                producer.join().expect("its panics are caught");
                looking.join().expect("its panics are caught");
                self.ledger.settle(&self.bootstrap, TOPIC, PARTITIONS);
                println!("{} {} records are in the log, each once", self.time(), self.ledger.len());
                asking.stop();
                wanderer.join().expect("its panics are caught");
                for thread in std::mem::take(&mut threads) {
                    for (what, times) in thread.join().expect("its panics are caught").unwrap_or_default() {
                        *said.entry(what).or_default() += times;
                    }
                }
                assert!(!self.watch.has_failed(), "before the end");
                let ends = self.ledger.ends();
                self.check_end(&ends);
                self.count_at_end();
                println!("{} every view is the truth at the log's end", self.time());
                ends
            });
            producing.stop();
            asking.stop();
            println!("instead of complete answers: {said:?}; {} starts failed", self.fleet.ended());
            if let Some(ends) = outcome {
                self.watch.guard(|| {
                    let log = self.ledger.to_log();
                    self.check_table(&log, &ends);
                    self.fleet.all().iter().rev().for_each(Process::stop);
                });
            }
            attending.stop();
        });
        self.watch.guard(|| self.check_logs());
    }

    /// Round after round until the time is over, one at least.
    fn rounds(&self, cluster: &mut Cluster, seed: u64, minutes: f64) {
        let random = |lane: u64| StdRng::seed_from_u64(seed.wrapping_mul(4).wrapping_add(lane));
        let [mut processes, mut log, mut storage, mut builds] = [0, 1, 2, 3].map(random);
        self.recover();
        while !self.watch.is_over() {
            let (kafka, hdfs) = cluster.parts_mut();
            let (kafka, hdfs) = (kafka.expect("Kafka"), hdfs.expect("HDFS"));
            let at_work = AtomicUsize::new(3);
            let done = || at_work.fetch_sub(1, Ordering::Relaxed);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    self.watch.guard(|| self.strike_processes(&mut processes));
                    done();
                });
                scope.spawn(|| {
                    self.watch.guard(|| self.strike_log(kafka, &mut log));
                    done();
                });
                scope.spawn(|| {
                    self.watch.guard(|| self.strike_storage(hdfs, &mut storage));
                    done();
                });
                let going_on = || at_work.load(Ordering::Relaxed) > 0;
                self.watch.guard(|| self.build_while(&mut builds, going_on));
            });
            assert!(!self.watch.has_failed(), "in a round");
            self.recover();
            self.build_in_calm(&mut builds);
            println!("{} the round is over, {} records", self.time(), self.ledger.len());
            if self.started.elapsed().as_secs_f64() >= minutes * 60.0 {
                return;
            }
        }
    }

    /// Nothing is broken any more: every serving process comes to answer completely.
    fn recover(&self) {
        let recovered = self.watch.guard(|| {
            self.watch.until("everybody has recovered", || self.weather.report().is_empty());
        });
        assert!(recovered.is_some(), "left over: {:#?}", self.weather.report());
        println!("{} recovered", self.time());
    }
}

fn config(bootstrap: &str, hdfs: &str) -> String {
    let timeout = OWNER_TIMEOUT.as_secs();
    let speed =
        format!("commit_interval = \"300 ms\"\nlisten = \"127.0.0.1:0\"\nowner_timeout = \"{timeout} seconds\"");
    let head = config_head(bootstrap, "3 seconds", &speed);
    let views: String = views().iter().map(|view| view.config(TOPIC)).collect();
    format!(
        "{head}[batch]\nmax_builds = 2\n[storage]\nurl = \"{hdfs}/chaos\"\n[stream.{TOPIC}]\npartitions = {PARTITIONS}\nreplication = 3\n\
         shards = {SHARDS}\nformat = \"json\"\nevent_time = \"t\"\nallowed_lateness = \"10 minutes\"\n\
         columns = \"\"\"{COLUMNS}\"\"\"\n{views}"
    )
}

#[test]
fn whatever_fails_every_answer_is_the_truth_and_nothing_is_lost() {
    let minutes = std::env::var("WATERSHED_CHAOS_MINUTES").ok();
    if minutes.is_none() && real_component("WATERSHED_TEST_HDFS").is_none() {
        return;
    }
    let minutes: f64 = minutes.map_or(0.0, |text| text.parse().expect("WATERSHED_CHAOS_MINUTES is a number"));
    let seed = std::env::var("WATERSHED_CHAOS_SEED").ok();
    let seed = seed.map_or(SEED, |text| text.parse().expect("WATERSHED_CHAOS_SEED is a number"));
    let dir = directory(&format!("chaos-{}", std::process::id())).expect("a folder");
    let mut cluster =
        Cluster::start(&dir, Options { brokers: 3, secured: false, datanodes: 2 }).expect("Kafka and HDFS start");
    println!("chaos: seed {seed}, logs in {}", dir.join("logs").display());
    let kafka = cluster.kafka().expect("it was asked for").bootstrap_servers();
    let hdfs = cluster.hdfs().expect("it was asked for").url();
    let world = World::new(kafka, &hdfs, &dir);
    world.run(&mut cluster, seed, minutes);
    let report = world.hits.report();
    if let Some(why) = world.watch.failure.lock().take() {
        let logs = dir.join("logs");
        panic!("chaos failed with seed {seed}; logs: {}\n{report}\n{why}", logs.display());
    }
    println!("chaos of {:.1} minutes with seed {seed}\n{report}", world.started.elapsed().as_secs_f64() / 60.0);
    let mut missing = world.hits.missing();
    missing.retain(|what| *what != hits::DISK_FULL || world.fleet.has_disks());
    assert_eq!(missing, Vec::<&str>::new(), "these never struck");
}
