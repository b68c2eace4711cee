//! The faults: cards of three decks, each shuffled by the seed and dealt by a thread of its own, so that what strikes the
//! processes, the log and the storage overlaps.

use std::collections::VecDeque;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;
use watershed_shared::clock::Instant;
use xtask::cluster::{Hdfs, Kafka};

use super::fleet::{Process, Role};
use super::hits::DISK_FULL;
use super::weather::Part;
use super::{OWNER_TIMEOUT, PARTITIONS, PATIENCE, TOPIC, Watch, World};

/// Within this time an owner, who commits several times a second, notices that its disk is full.
const NOTICED: Duration = Duration::from_secs(60);

/// What strikes the program's own processes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Strike {
    Kill(Role),
    /// SIGSTOP, SIGCONT.
    Pause(Role),
    /// The same, for longer than an owner may be silent.
    LongPause(Role),
    DiskFull,
    Truncate,
    Flip,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum OnLog {
    Kill,
    KillLeader,
    Restart,
    Pause,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum OnStorage {
    NameNodeKilled,
    NameNodePaused,
    DataNodeKilled,
    DataNodePaused,
}

const STRIKES: [Strike; 12] = [
    Strike::Kill(Role::Batch),
    Strike::Kill(Role::Speed),
    Strike::Kill(Role::Serving),
    Strike::Pause(Role::Batch),
    Strike::Pause(Role::Speed),
    Strike::Pause(Role::Serving),
    Strike::LongPause(Role::Batch),
    Strike::LongPause(Role::Speed),
    Strike::LongPause(Role::Serving),
    Strike::DiskFull,
    Strike::Truncate,
    Strike::Flip,
];
const ON_LOG: [OnLog; 4] = [OnLog::Kill, OnLog::KillLeader, OnLog::Restart, OnLog::Pause];
const ON_STORAGE: [OnStorage; 4] =
    [OnStorage::NameNodeKilled, OnStorage::NameNodePaused, OnStorage::DataNodeKilled, OnStorage::DataNodePaused];

/// `cards` in an order that `random` chooses.
pub(super) fn shuffled<T: Copy>(cards: &[T], random: &mut StdRng) -> Vec<T> {
    let mut cards = cards.to_vec();
    cards.shuffle(random);
    cards
}

fn nap(random: &mut StdRng, milliseconds: std::ops::Range<u64>) {
    std::thread::sleep(Duration::from_millis(random.random_range(milliseconds)));
}

impl World {
    /// Something is broken by `strike` and whole again when that returns; what it answers has struck. Answers whether
    /// anything has.
    fn struck(&self, part: Part, what: String, strike: impl FnOnce() -> Option<&'static str>) -> bool {
        println!("{} {what}", self.time());
        let id = self.weather.begins(part, what);
        if self.building() {
            self.hits.count("faults while a build was under way", 1);
        }
        let hit = strike();
        self.weather.heals(id, self.ledger.ends());
        if let Some(hit) = hit {
            self.hits.count(hit, 1);
        }
        hit.is_some()
    }

    /// The workers that serve a shard, as far as they say so.
    fn owners(&self) -> Vec<&Process> {
        let http = reqwest::blocking::Client::builder().timeout(Duration::from_secs(2)).build().expect("a client");
        let serves = |process: &&Process| {
            let status = || http.get(format!("{}/v1/status", process.url()?.0)).send().ok()?.json::<Value>().ok();
            status().is_some_and(|status| status["shards"].as_array().is_some_and(|shards| !shards.is_empty()))
        };
        self.fleet.of(Role::Speed).into_iter().filter(serves).collect()
    }

    /// One deck of what strikes the processes.
    pub(super) fn strike_processes(&self, random: &mut StdRng) {
        let mut strikes = STRIKES.to_vec();
        if !self.fleet.has_disks() {
            strikes.retain(|strike| !matches!(strike, Strike::DiskFull));
        }
        let mut later = VecDeque::from(shuffled(&strikes, random));
        let mut deadline = Instant::now() + PATIENCE;
        while let Some(strike) = later.pop_front() {
            if self.watch.is_over() {
                return;
            }
            assert!(Instant::now() < deadline, "{strike:?} and {later:?} find nothing to strike");
            let role = match strike {
                Strike::Kill(role) | Strike::Pause(role) | Strike::LongPause(role) => role,
                Strike::DiskFull | Strike::Truncate | Strike::Flip => Role::Speed,
            };
            let store = matches!(strike, Strike::DiskFull | Strike::Truncate | Strike::Flip);
            // Of a store that nobody uses nobody notices anything.
            let mut all = if store { self.owners() } else { self.fleet.of(role) };
            if let Strike::DiskFull = strike {
                all.retain(|process| process.volume.is_some());
            }
            let Some(process) = all.choose(random) else {
                later.push_back(strike);
                nap(random, 200..1000);
                continue;
            };
            let what = format!("{strike:?} of {}", process.name);
            if !self.struck(process.part(), what, || strike.at(process, &self.watch, random)) {
                later.push_back(strike);
            } else {
                deadline = Instant::now() + PATIENCE;
            }
            nap(random, 0..1000);
        }
    }

    /// One deck of what strikes Kafka.
    pub(super) fn strike_log(&self, kafka: &mut Kafka, random: &mut StdRng) {
        for strike in shuffled(&ON_LOG, random) {
            if self.watch.is_over() {
                return;
            }
            let mut number = random.random_range(0..kafka.daemons().len());
            if let OnLog::KillLeader = strike {
                number = leader(&self.bootstrap, random.random_range(0..PARTITIONS)).unwrap_or(number);
            }
            let _always = self.struck(Part::Log, format!("{strike:?} of broker {}", number + 1), || {
                let broker = &mut kafka.daemons_mut()[number];
                let hit = match strike {
                    OnLog::Pause => {
                        broker.signal("STOP").expect("it can be stopped");
                        nap(random, 500..6000);
                        broker.signal("CONT").expect("it can go on");
                        "broker stopped for a moment"
                    }
                    OnLog::Restart => {
                        broker.stop().expect("it can be ended");
                        "broker ended and started again"
                    }
                    OnLog::Kill | OnLog::KillLeader => {
                        broker.kill().expect("it can be killed");
                        if let OnLog::Kill = strike { "broker killed" } else { "leader of a partition killed" }
                    }
                };
                if !matches!(strike, OnLog::Pause) {
                    nap(random, 0..4000);
                    broker.restart().expect("it can be started");
                }
                until_ready(|| kafka.wait_until_ready());
                Some(hit)
            });
            nap(random, 0..3000);
        }
    }

    /// One deck of what strikes HDFS.
    pub(super) fn strike_storage(&self, hdfs: &mut Hdfs, random: &mut StdRng) {
        for strike in shuffled(&ON_STORAGE, random) {
            if self.watch.is_over() {
                return;
            }
            let number = match strike {
                OnStorage::NameNodeKilled | OnStorage::NameNodePaused => 0,
                OnStorage::DataNodeKilled | OnStorage::DataNodePaused => random.random_range(1..hdfs.daemons().len()),
            };
            let daemon = hdfs.daemons()[number].name().to_owned();
            let _always = self.struck(Part::Storage, format!("{strike:?}: {daemon}"), || {
                let daemon = &mut hdfs.daemons_mut()[number];
                match strike {
                    OnStorage::NameNodePaused | OnStorage::DataNodePaused => {
                        daemon.signal("STOP").expect("it can be stopped");
                        nap(random, 500..6000);
                        daemon.signal("CONT").expect("it can go on");
                    }
                    OnStorage::NameNodeKilled | OnStorage::DataNodeKilled => {
                        daemon.kill().expect("it can be killed");
                        nap(random, 0..4000);
                        daemon.restart().expect("it can be started");
                    }
                }
                until_ready(|| hdfs.wait_until_ready());
                Some(match strike {
                    OnStorage::NameNodeKilled => "NameNode killed",
                    OnStorage::NameNodePaused => "NameNode stopped for a moment",
                    OnStorage::DataNodeKilled => "DataNode killed",
                    OnStorage::DataNodePaused => "DataNode stopped for a moment",
                })
            });
            nap(random, 0..3000);
        }
    }
}

impl Strike {
    /// Strikes; on return the process is as it was. Answers what has struck, if it did.
    fn at(self, process: &Process, watch: &Watch, random: &mut StdRng) -> Option<&'static str> {
        match self {
            Self::Kill(role) => {
                process.kill();
                // Others may take over meanwhile, or not.
                let most = 2 * OWNER_TIMEOUT.as_millis() as u64;
                nap(random, 0..if role == Role::Speed { most } else { 1000 });
                process.start();
                process.wait_until_up(watch);
                Some(match role {
                    Role::Batch => "batch process killed",
                    Role::Speed => "speed process killed",
                    Role::Serving => "serving process killed",
                })
            }
            Self::Pause(role) => {
                let most = OWNER_TIMEOUT.as_millis() as u64 * 2 / 3;
                pause(process, random, 200..most).then_some(match role {
                    Role::Batch => "batch process stopped for a moment",
                    Role::Speed => "speed process stopped for a moment",
                    Role::Serving => "serving process stopped for a moment",
                })
            }
            Self::LongPause(role) => {
                let least = OWNER_TIMEOUT.as_millis() as u64;
                pause(process, random, least + 1000..least * 3).then_some(match role {
                    Role::Batch => "batch process stopped for longer than owner_timeout",
                    Role::Speed => "speed process stopped for longer than owner_timeout",
                    Role::Serving => "serving process stopped for longer than owner_timeout",
                })
            }
            Self::DiskFull => {
                const FAILS: &str = "delta store failed";
                let volume = process.volume.as_ref().expect("the one with a disk of its own");
                let before = process.log().matches(FAILS).count();
                volume.fill();
                let deadline = Instant::now() + NOTICED;
                let noticed = || process.log().matches(FAILS).count() > before;
                while !noticed() && !watch.is_over() {
                    if Instant::now() > deadline {
                        // Its shards are another one's by now.
                        volume.free();
                        return None;
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                if random.random_bool(0.5) {
                    process.kill();
                    process.start();
                    nap(random, 0..1000);
                }
                volume.free();
                process.wait_until_up(watch);
                Some(DISK_FULL)
            }
            Self::Truncate | Self::Flip => {
                process.kill();
                let damaged = damage(&process.data().join("delta"), matches!(self, Self::Flip), random);
                process.start();
                process.wait_until_up(watch);
                damaged.then_some(if let Self::Flip = self {
                    "bytes of a delta store flipped"
                } else {
                    "file of a delta store truncated"
                })
            }
        }
    }
}

/// A busy machine needs more than one of its patiences.
fn until_ready(mut wait: impl FnMut() -> anyhow::Result<()>) {
    wait().or_else(|_| wait()).or_else(|_| wait()).expect("it comes back");
}

fn pause(process: &Process, random: &mut StdRng, milliseconds: std::ops::Range<u64>) -> bool {
    let was_there = process.signal("STOP");
    nap(random, milliseconds);
    was_there && process.signal("CONT")
}

/// The broker that leads `partition`, by its place among the brokers.
fn leader(bootstrap: &str, partition: i32) -> Option<usize> {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("a client");
    let metadata = consumer.fetch_metadata(Some(TOPIC), PATIENCE).expect("the log answers");
    let partitions = metadata.topics()[0].partitions();
    let leader = partitions.iter().find(|p| p.id() == partition)?.leader();
    // Broker n is the nth.
    usize::try_from(leader - 1).ok()
}

fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries {
        let entry = entry.expect("an entry");
        let metadata = entry.metadata().expect("it is there");
        if metadata.is_dir() {
            found.extend(files(&entry.path()));
        } else if metadata.len() > 0 {
            found.push((entry.path(), metadata.len()));
        }
    }
    found.sort();
    found
}

/// Flips some bits of one of the files in `folder`, or cuts it off; answers whether there was one.
fn damage(folder: &Path, flip: bool, random: &mut StdRng) -> bool {
    let files = files(folder);
    if files.is_empty() {
        return false;
    }
    let (path, length) = &files[random.random_range(0..files.len())];
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("it can be opened");
    if !flip {
        file.set_len(random.random_range(0..*length)).expect("it can be cut off");
        return true;
    }
    for _ in 0..random.random_range(1..30) {
        let at = SeekFrom::Start(random.random_range(0..*length));
        let mut byte = [0];
        file.seek(at).and_then(|_| file.read_exact(&mut byte)).expect("it can be read");
        byte[0] ^= 1 << random.random_range(0..8);
        file.seek(at).and_then(|_| file.write_all(&byte)).expect("it can be written");
    }
    true
}
