//! What struck, how often: chaos that misses proves nothing.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// All that every run must see at least once.
pub(super) const WANTED: &[&str] = &[
    "batch process killed",
    "speed process killed",
    "serving process killed",
    "batch process stopped for a moment",
    "speed process stopped for a moment",
    "serving process stopped for a moment",
    "batch process stopped for longer than owner_timeout",
    "speed process stopped for longer than owner_timeout",
    "serving process stopped for longer than owner_timeout",
    DISK_FULL,
    "file of a delta store truncated",
    "bytes of a delta store flipped",
    "broker killed",
    "leader of a partition killed",
    "broker ended and started again",
    "broker stopped for a moment",
    "NameNode killed",
    "NameNode stopped for a moment",
    "DataNode killed",
    "DataNode stopped for a moment",
    "faults while a build was under way",
    "rebuilds on request",
    "refreshes on request",
    "activations",
    "cancelled builds",
    "builds by a schedule",
    "changes of the owner of a shard",
    "answers checked",
    "answers to who changed replicas with wait_for",
];

/// Wanted where a small disk can be mounted.
pub(super) const DISK_FULL: &str = "disk of a delta store full";

/// How often each thing happened.
#[derive(Debug, Default)]
pub(crate) struct Hits(Mutex<BTreeMap<&'static str, u64>>);

impl Hits {
    pub(super) fn count(&self, what: &'static str, times: u64) {
        debug_assert!(WANTED.contains(&what), "{what} is not in the list of what is wanted");
        *self.0.lock().entry(what).or_default() += times;
    }

    /// One line for each thing.
    pub(super) fn report(&self) -> String {
        let hits = self.0.lock();
        WANTED.iter().map(|what| format!("{:>8} {what}\n", hits.get(what).copied().unwrap_or(0))).collect()
    }

    pub(super) fn missing(&self) -> Vec<&'static str> {
        let hits = self.0.lock();
        WANTED.iter().copied().filter(|what| hits.get(what).is_none_or(|times| *times == 0)).collect()
    }
}
