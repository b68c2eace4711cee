//! Classic bugs, as switches in the shipped code: a test that does not notice one of them proves too little.
//!
//! [`is`] stands where the bug would be. Without feature `testing` it is `false`, and nothing of it is compiled. With it
//! `WATERSHED_MUTANT=name` switches one on for the whole process, and standard error says when the code first comes by.

macro_rules! mutants {
    ($($mutant:ident = $name:literal: $about:literal,)*) => {
        /// A bug that can be switched on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutant {
            $(#[doc = $about] $mutant,)*
        }

        impl Mutant {
            pub const ALL: &[Self] = &[$(Self::$mutant),*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$mutant => $name),* }
            }

            /// What goes wrong with it.
            pub fn about(self) -> &'static str {
                match self { $(Self::$mutant => $about),* }
            }
        }
    };
}

mutants! {
    CutOffByOne = "cut_off_by_one": "a build reads one offset less than its cut says",
    RefreshFromCut = "refresh_from_cut": "a refresh reads from its own cut on, instead of from its base's",
    MergedTwice = "merged_twice": "a merge of the delta counts its first run twice",
    RedeliveredTwice = "redelivered_twice": "a redelivered batch is counted again",
    MergeAcrossBoundary = "merge_across_boundary": "merges of the delta cross the boundaries of cuts",
    DroppedBeforeSwap = "dropped_before_swap": "the delta's groups below a claimed cut are dropped before its generation answers",
    ReplayOffByOne = "replay_off_by_one": "a replay from the master dataset starts one offset too high",
    RefreshedSnapshot = "refreshed_snapshot": "the archiver commits on a refreshed snapshot, whoever has moved the offsets",
    OffsetsBeforeData = "offsets_before_data": "offsets are committed to the master dataset before their events",
    TxnOffByOne = "txn_off_by_one": "the offsets that a commit names lie one too low, so that the next one repeats an event",
    DeadLettersAfterEvents = "dead_letters_after_events": "dead letters are committed after the events' offsets",
    MaximumNotSeeded = "maximum_not_seeded": "decoding goes on behind what is archived without the running maximum",
    AheadRaisesMaximum = "ahead_raises_maximum": "an event time far ahead of its record raises the running maximum",
    LateByClock = "late_by_clock": "late is what lies before the clock of the process, not before the running maximum",
    AllFiltersPushed = "all_filters_pushed": "filters that can fail are pushed into scans",
    FailingBatch = "failing_batch": "an event on which a view fails takes its batch with it",
    RetentionByClock = "retention_by_clock": "retention counts from the clock of the process",
    RetentionByOnePartition = "retention_by_one_partition": "retention counts from one partition's running maximum",
    OtherDefinition = "other_definition": "the states of another definition of the view are taken for its own",
    DefinitionReturns = "definition_returns": "a superseded definition comes back by a restart",
    CancelledPublishes = "cancelled_publishes": "a cancelled build publishes",
    PositionAhead = "position_ahead": "an answer's position is the log's end, whatever it holds",
    WaitForEarly = "wait_for_early": "wait_for answers at once",
    LookupWithoutDelta = "lookup_without_delta": "a lookup by key reads the generation alone",
}

impl Mutant {
    /// Whether it takes several processes, so that only a platform whose roles have each their own shows it.
    pub fn is_of_roles(self) -> bool {
        // One process has one archiver for a stream.
        matches!(self, Self::RefreshedSnapshot)
    }
}

/// `WATERSHED_MUTANT` does not name a mutant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("WATERSHED_MUTANT names no mutant: give one of {known}. got=`{name}`", known = names())]
pub struct Unknown {
    pub name: String,
}

fn names() -> String {
    Mutant::ALL.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ")
}

impl std::str::FromStr for Mutant {
    type Err = Unknown;

    fn from_str(name: &str) -> Result<Self, Unknown> {
        Self::ALL.iter().copied().find(|m| m.name() == name).ok_or_else(|| Unknown { name: name.to_owned() })
    }
}

#[cfg(any(test, feature = "testing"))]
pub use armed::{assert_noticed, is, told};

/// Whether the process is to have this bug: never without feature `testing`.
#[cfg(not(any(test, feature = "testing")))]
#[inline(always)]
pub const fn is(_: Mutant) -> bool {
    false
}

/// Which bug the process is to have: none without feature `testing`.
///
/// # Errors
/// None without feature `testing`.
#[cfg(not(any(test, feature = "testing")))]
pub const fn told() -> Result<Option<Mutant>, Unknown> {
    Ok(None)
}

#[cfg(any(test, feature = "testing"))]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::{Mutant, Unknown};

    /// Which bug the process is to have.
    ///
    /// # Errors
    /// When `WATERSHED_MUTANT` names none: a test that asks for an unknown one would pass for nothing.
    pub fn told() -> Result<Option<Mutant>, Unknown> {
        static TOLD: OnceLock<Result<Option<Mutant>, Unknown>> = OnceLock::new();
        TOLD.get_or_init(|| std::env::var("WATERSHED_MUTANT").ok().map(|name| name.parse()).transpose()).clone()
    }

    /// Whether the process is to have this bug. Says once that its place was reached.
    pub fn is(mutant: Mutant) -> bool {
        static REACHED: AtomicBool = AtomicBool::new(false);
        if told() != Ok(Some(mutant)) {
            return false;
        }
        if !REACHED.swap(true, Ordering::Relaxed) {
            eprintln!("mutant {} reached", mutant.name());
        }
        true
    }

    /// Fails unless `test`, another test of the same executable, comes by the place of `mutant` and fails with it.
    pub fn assert_noticed(mutant: Mutant, test: &str) {
        let this = std::env::current_exe().expect("the path of the test");
        let mut command = std::process::Command::new(this);
        command.args(["--exact", test, "--nocapture"]).env("WATERSHED_MUTANT", mutant.name());
        let output = command.output().expect("the test can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!("mutant {} reached", mutant.name())), "{test} does not get there:\n{said}");
        assert!(!output.status.success(), "{test} passes with mutant {}", mutant.name());
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_mutant_is_found_by_its_name_and_an_unknown_name_lists_them() {
            for mutant in Mutant::ALL {
                assert_eq!(mutant.name().parse(), Ok(*mutant));
            }
            let unknown = "cut_off_by_two".parse::<Mutant>().unwrap_err().to_string();
            assert!(unknown.contains("cut_off_by_one, refresh_from_cut") && unknown.ends_with("got=`cut_off_by_two`"));
        }
    }
}
