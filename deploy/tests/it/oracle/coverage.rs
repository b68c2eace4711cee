//! What the oracle has seen: a test that never gets to the interesting cases proves nothing.

use std::collections::BTreeMap;

/// All that a run of the test command must see at least once.
const WANTED: &[&str] = &[
    "answers",
    "answers with both parts non-empty",
    "answers before the first build",
    "answers while a build ran",
    "answers during a swap",
    "answers after a restart",
    "answers after a kill",
    "answers after an abort at a named point",
    "answers after a replay",
    "answers after batches came again",
    "answers after the delta store was set aside",
    "answers after an activation",
    "answers after a change of the definition",
    "answers by a superseded definition",
    "lookups by key",
    "lookups by range",
    "cancelled builds",
    "superseded definitions that stayed away",
    "json streams",
    "csv streams",
    "text streams",
    "late events",
    "dead letters",
    "events on which a view failed",
];

/// And with each role in processes of its own.
const OF_ROLES: &[&str] = &[
    "answers",
    "answers with both parts non-empty",
    "answers after a batch process was replaced",
    "answers after a worker was replaced",
    "answers after a serving process was replaced",
];

/// How often each thing was seen.
#[derive(Debug, Default)]
pub(crate) struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    pub(crate) fn count(&mut self, what: &'static str, times: u64) {
        debug_assert!(
            WANTED.contains(&what) || OF_ROLES.contains(&what),
            "{what} is not in the list of what is wanted"
        );
        *self.0.entry(what).or_default() += times;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (what, times) in &other.0 {
            self.count(what, *times);
        }
    }

    /// One line for each thing.
    pub(crate) fn report(&self) -> String {
        let all = WANTED.iter().chain(OF_ROLES.iter().filter(|what| !WANTED.contains(what)));
        all.map(|what| format!("{:>8} {what}\n", self.0.get(what).copied().unwrap_or(0))).collect()
    }

    /// What was never seen of the roles.
    pub(crate) fn missing_roles(&self) -> Vec<&'static str> {
        self.missing_of(OF_ROLES)
    }

    /// What was never seen.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        self.missing_of(WANTED)
    }

    fn missing_of(&self, wanted: &[&'static str]) -> Vec<&'static str> {
        wanted.iter().copied().filter(|what| self.0.get(what).is_none_or(|times| *times == 0)).collect()
    }
}
