//! One view of a case: what is configured, what may answer, what has answered.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::compare::assert_rows;
use super::log::{Log, offsets};
use super::truth::ViewCase;

/// The definitions that a view goes between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Variant {
    /// The view as it stands in the list.
    Whole,
    /// With `late = "exclude"`: the same states, of fewer events.
    OnTime,
}

impl Variant {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Whole => Self::OnTime,
            Self::OnTime => Self::Whole,
        }
    }
}

/// A view, and what is known of its register.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) case: ViewCase,
    /// What the file says.
    pub(crate) written: Variant,
    /// What the register asks for: the definition appended last, or activated since.
    pub(crate) configured: Variant,
    /// Those that the register knows.
    known: BTreeSet<Variant>,
    /// Those that may answer now: more than one only while a build is under way, or was when the process died.
    possible: BTreeSet<Variant>,
    /// That of the generation that answered last for sure, and that of the one before it.
    active: Variant,
    previous: Option<Variant>,
    hashes: BTreeMap<String, Variant>,
    /// The greatest position that an answer of the running process had.
    answered: BTreeMap<i32, i64>,
    pub(crate) building: Option<String>,
    /// An answer of the running process did not say `catching_up`: none may any longer.
    pub(crate) caught_up: bool,
}

impl View {
    pub(crate) fn new(case: ViewCase, first: Variant) -> Self {
        Self {
            case,
            written: first,
            configured: first,
            known: BTreeSet::from([first]),
            possible: BTreeSet::from([first]),
            active: first,
            previous: None,
            hashes: BTreeMap::new(),
            answered: BTreeMap::new(),
            building: None,
            caught_up: false,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.case.name
    }

    /// More than one of its definitions stand in the register.
    pub(crate) fn has_changed(&self) -> bool {
        self.known.len() > 1
    }

    /// The hash of one of its definitions is known.
    pub(crate) fn has_answered(&self) -> bool {
        !self.hashes.is_empty()
    }

    pub(crate) fn config(&self, stream: &str) -> String {
        let late = match self.written {
            Variant::Whole => "",
            Variant::OnTime => "late = \"exclude\"",
        };
        let ViewCase { name, sql, extra, .. } = self.case;
        format!("[view.{name}]\nsql = \"\"\"{}\"\"\"\n{extra}\n{late}\n", sql.replace("{stream}", stream))
    }

    /// A process has started. Answers whether a superseded definition is in its configuration: it stays away.
    pub(crate) fn started(&mut self) -> bool {
        self.asked_elsewhere();
        self.building = None;
        if self.known.insert(self.written) {
            self.configured = self.written;
        }
        self.configured != self.written
    }

    /// Another process answers from now on: only `wait_for` says that it is as far as the one before.
    pub(crate) fn asked_elsewhere(&mut self) {
        self.answered.clear();
        self.caught_up = false;
    }

    /// A process that answers for the first time takes the generation before the active one where the workers have a
    /// delta for that one only: after a worker was replaced, say.
    pub(crate) fn may_fall_back(&mut self) {
        self.possible.extend(self.previous);
    }

    /// A build of the configured definition may publish from now on.
    pub(crate) fn build_begins(&mut self) {
        self.possible.insert(self.configured);
    }

    /// The generation of a build answers.
    pub(crate) fn build_answers(&mut self) {
        if self.active != self.configured {
            self.previous = Some(std::mem::replace(&mut self.active, self.configured));
        }
        self.possible = BTreeSet::from([self.configured]);
    }

    /// A generation of this definition was activated, and answers.
    pub(crate) fn activated(&mut self, definition: &str) {
        self.configured = self.variant(definition);
        self.build_answers();
    }

    pub(crate) fn may_become(&mut self, definition: &str) {
        let variant = self.variant(definition);
        self.possible.insert(variant);
    }

    /// Which of the definitions has this hash. A new hash is that of the one whose hash is not known yet.
    fn variant(&mut self, hash: &str) -> Variant {
        if let Some(variant) = self.hashes.get(hash) {
            return *variant;
        }
        let named: BTreeSet<Variant> = self.hashes.values().copied().collect();
        let unnamed: Vec<Variant> = self.known.difference(&named).copied().collect();
        assert_eq!(unnamed.len(), 1, "{}: an unknown definition {hash}; known are {:?}", self.name(), self.hashes);
        self.hashes.insert(hash.to_owned(), unnamed[0]);
        unnamed[0]
    }

    /// Compares an answer with the truth at its position; of one with a filter only `wanted` rows of the truth.
    pub(crate) fn compare(&mut self, log: &Log, body: &Value, wanted: &dyn Fn(&Value) -> bool, context: &str) -> Found {
        let name = self.name();
        let meta = &body["meta"]["views"][name];
        let position = offsets(meta, "position");
        let cut = offsets(meta, "batch_until");
        let ends = log.ends();
        for (partition, next) in &position {
            assert!(cut[partition] <= *next, "{name}: a position lies below its cut: {meta}");
            let end = ends.get(partition).copied().unwrap_or(0);
            assert!(*next <= end, "{name}: a position lies past the log's end {end}: {meta}");
        }
        for (partition, before) in &self.answered {
            let now = position.get(partition).copied().unwrap_or(0);
            assert!(now >= *before, "{name}: partition {partition} went back from {before} to {now}: {meta}");
        }
        self.answered.clone_from(&position);
        let variant = self.variant(meta["definition"].as_str().expect("a hash"));
        assert!(self.possible.contains(&variant), "{name}: {variant:?} answers, not {:?}: {meta}", self.possible);

        let mut seen = log.seen_below(&position);
        let late = seen.iter().filter(|e| e.late).count() as u64;
        if variant == Variant::OnTime {
            seen.retain(|e| !e.late);
        }
        let mut truth = (self.case.truth)(&seen);
        truth.retain(|row| wanted(row));
        let context = format!("{context}, {variant:?} at {position:?}, meta {meta}");
        assert_rows(&self.case, &body["rows"], &truth, &context);
        let failed = seen.iter().filter(|e| (self.case.fails)(e)).count() as u64;
        assert_eq!(meta["errors"].as_u64(), Some(failed), "{name}: events in error; {context}");
        let below = cut.values().any(|offset| *offset > 0);
        let generation = meta["generation"].as_u64().expect("a number");
        Found {
            generation,
            late,
            failed,
            both_parts: generation > 0 && below && cut != position,
            superseded: variant != self.configured,
        }
    }
}

/// What an answer held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) generation: u64,
    pub(crate) late: u64,
    pub(crate) failed: u64,
    pub(crate) both_parts: bool,
    /// Another definition is configured.
    pub(crate) superseded: bool,
}
