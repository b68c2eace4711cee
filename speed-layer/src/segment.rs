//! A segment: the runs of one definition between two vectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use watershed_shared::abort_point;
use watershed_shared::delta::DeltaRun;
use watershed_shared::names::RunId;
use watershed_shared::offsets::{Coverage, Cut, OffsetRange, OffsetVector, PartitionId, Side};
use watershed_shared::run::EventError;

/// The events in `[from, position)`, each in exactly one run.
///
/// Runs stand in the order of the log: a run's range of a partition lies behind those of all runs before it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Segment {
    pub(crate) from: OffsetVector,
    /// Never below `from`.
    pub(crate) position: OffsetVector,
    pub(crate) runs: Vec<Arc<DeltaRun>>,
}

impl Segment {
    /// Nothing, at `position`.
    pub(crate) fn at(position: OffsetVector) -> Self {
        Self { from: position.clone(), position, runs: Vec::new() }
    }

    /// Adds runs that together cover exactly what lies between the position and `end` (above `from`).
    pub(crate) fn append(&mut self, runs: Vec<Arc<DeltaRun>>, end: &OffsetVector) {
        self.runs.extend(runs);
        self.position = self.position.join(end);
        self.debug_check();
    }

    /// Puts what ends where this begins before it.
    pub(crate) fn prepend(&mut self, lower: Self) {
        debug_assert_eq!(lower.position, self.from);
        let mut runs = lower.runs;
        runs.append(&mut self.runs);
        self.runs = runs;
        self.from = lower.from;
        self.debug_check();
    }

    /// Drops the runs below `to`. Does nothing while a run straddles it.
    ///
    /// `from` rises to `to`, and the position with it where it is lower: the caller sees to it that what lies between
    /// is not read. Returns whether anything changed.
    pub(crate) fn raise_from(&mut self, to: &OffsetVector) -> bool {
        let from = self.from.join(to);
        if from == self.from || self.straddled(&from) {
            return false;
        }
        abort_point!(process "speed.not_dropped");
        self.runs.retain(|run| run.coverage.side(&from) == Side::AtOrPast);
        self.position = self.position.join(&from);
        self.from = from;
        abort_point!(process "speed.dropped");
        self.debug_check();
        true
    }

    /// Where it starts past `reached` it holds nothing yet: there it starts at `to` instead, if that is lower, but not
    /// below `reached`.
    pub(crate) fn start_lower(&mut self, reached: &OffsetVector, to: &OffsetVector) {
        for (p, from) in self.from.clone().iter() {
            let lowest = reached.get(p).max(to.get(p)).unwrap_or(from);
            if reached.get(p).is_some_and(|reached| reached < from) && lowest < from {
                self.from.set(p, lowest);
                self.position.set(p, lowest);
            }
        }
        self.debug_check();
    }

    pub(crate) fn straddled(&self, cut: &Cut) -> bool {
        self.runs.iter().any(|run| run.coverage.side(cut) == Side::Straddles)
    }

    pub(crate) fn holds(&self, inputs: &[RunId]) -> bool {
        inputs.iter().all(|id| self.runs.iter().any(|run| run.id == *id))
    }

    /// Puts `outputs` in the place of the last of `inputs`. They must cover the same.
    pub(crate) fn replace(&mut self, inputs: &[RunId], outputs: Vec<Arc<DeltaRun>>) {
        let last = self.runs.iter().rposition(|run| inputs.contains(&run.id)).expect("the inputs are there");
        let kept = self.runs[..=last].iter().filter(|run| !inputs.contains(&run.id)).count();
        self.runs.retain(|run| !inputs.contains(&run.id));
        self.runs.splice(kept..kept, outputs);
        self.debug_check();
    }

    /// Whether the runs cover exactly `[from, position)`.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut reached: BTreeMap<PartitionId, OffsetRange> = BTreeMap::new();
        let mut ranges: Vec<(PartitionId, OffsetRange)> = self.runs.iter().flat_map(|r| r.coverage.iter()).collect();
        ranges.sort_by_key(|(p, r)| (*p, r.start));
        for (p, range) in ranges {
            let have = reached.entry(p).or_insert(OffsetRange::new(range.start, range.start));
            if have.end != range.start {
                return Err(format!("partition {p}: {have} is followed by {range}"));
            }
            have.end = range.end;
        }
        for (p, next) in self.position.iter() {
            let from = self.from.get(p).ok_or_else(|| format!("partition {p} has a position, no start"))?;
            let have = reached.remove(&p).unwrap_or(OffsetRange::new(next, next));
            if have.end != next || have.start != from {
                return Err(format!("partition {p}: runs cover {have}, the segment [{from}, {next})"));
            }
        }
        match reached.first_key_value() {
            Some((p, range)) => Err(format!("partition {p}: runs cover {range}, there is no position")),
            None => Ok(()),
        }
    }

    #[track_caller]
    fn debug_check(&self) {
        if cfg!(debug_assertions)
            && let Err(wrong) = self.check()
        {
            panic!("invariant 1: a segment does not hold each event once: {wrong}");
        }
    }
}

/// A new run.
pub(crate) fn new_run(coverage: Coverage, states: RecordBatch, errors: Vec<EventError>) -> Arc<DeltaRun> {
    let memory_bytes = states_size_bytes(&states) + errors.iter().map(|e| e.error.len() + 32).sum::<usize>();
    Arc::new(DeltaRun { id: RunId::unique(), coverage, states, errors, memory_bytes })
}

/// The union of the coverages; `None` if they leave a hole.
pub(crate) fn joined_coverage<'a>(coverages: impl Iterator<Item = &'a Coverage>) -> Option<Coverage> {
    let mut ranges: Vec<(PartitionId, OffsetRange)> = coverages.flat_map(Coverage::iter).collect();
    ranges.sort_by_key(|(p, range)| (*p, range.start));
    let mut joined = Coverage::new();
    for (p, range) in ranges {
        joined.add(p, range).ok()?;
    }
    Some(joined)
}

/// Bytes that the rows take, whatever else their buffers hold.
fn states_size_bytes(states: &RecordBatch) -> usize {
    let size = |column: &arrow::array::ArrayRef| {
        column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
    };
    states.columns().iter().map(size).sum()
}
