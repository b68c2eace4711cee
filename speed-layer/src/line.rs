//! A line: one definition of a view in the speed layer, and what of its delta is still being replayed.

use std::collections::BTreeSet;
use std::sync::Arc;

use watershed_shared::clock::Instant;
use watershed_shared::delta::{DeltaRun, ViewDelta};
use watershed_shared::mutant::{self, Mutant};
use watershed_shared::names::{DefinitionHash, RunId};
use watershed_shared::offsets::{Cut, OffsetVector, Side};

use crate::segment::Segment;
use crate::states::ViewPlan;

/// View and definition.
pub(crate) type LineKey = (String, DefinitionHash);

/// The delta of one definition.
///
/// `whole` advances with the stream's position. What is missing below it is replayed into `fill`, apart, and put
/// under it in one step when both meet: so a view that replays holds up no other, and joins at exactly the position of
/// all.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) plan: ViewPlan,
    /// Its position is the stream's, or its own start where that lies further.
    pub(crate) whole: Segment,
    pub(crate) fill: Option<Fill>,
    /// It does not advance: its SQL could not be run.
    pub(crate) out: Option<Out>,
    /// Another one each time `whole` starts anew; what was computed for an older one is void.
    pub(crate) incarnation: u64,
    /// Runs that are being read again because a boundary divides them.
    pub(crate) resplitting: BTreeSet<RunId>,
}

/// The replay of what lies below a line.
#[derive(Debug)]
pub(crate) struct Fill {
    pub(crate) segment: Segment,
    /// The line has no older answer: the fill is what it shows.
    pub(crate) visible: bool,
    /// Of the replay that works on it.
    pub(crate) id: u64,
    /// A task works on it.
    pub(crate) started: bool,
}

impl Fill {
    pub(crate) fn new(segment: Segment, visible: bool, id: u64) -> Self {
        Self { segment, visible, id, started: false }
    }
}

#[derive(Debug)]
pub(crate) struct Out {
    pub(crate) error: String,
    pub(crate) retry_at: Instant,
}

impl Line {
    /// A line with nothing, that takes part from `position` on.
    pub(crate) fn new(plan: ViewPlan, position: &OffsetVector, origins: &OffsetVector, id: u64) -> Self {
        let from = origins.join(&plan.from);
        let whole = Segment::at(position.join(&from));
        let fill = (!from.covers(&whole.from)).then(|| Fill::new(Segment::at(from), true, id));
        Self { plan, whole, fill, out: None, incarnation: id, resplitting: BTreeSet::new() }
    }

    /// Takes over what the register says now; `id` has not been used before.
    ///
    /// Below a `from` that rose, runs are dropped; for one that fell, what is missing is replayed while the line goes
    /// on answering.
    pub(crate) fn follow(&mut self, plan: ViewPlan, position: &OffsetVector, origins: &OffsetVector, id: u64) {
        self.plan = plan;
        let from = origins.join(&self.plan.from);
        if from.covers(&self.whole.from) {
            // What a fill was for is not needed any more.
            self.fill = None;
        } else if self.fill.as_ref().is_none_or(|f| !from.covers(&f.segment.from)) {
            // SUBTLE: where the line starts past the stream's position it has no event yet. It starts lower there: what
            // lies between is still to come, and may not be replayed as well.
            self.whole.start_lower(position, &from);
            let visible = self.fill.take().is_some_and(|f| f.visible);
            if !from.covers(&self.whole.from) {
                self.fill = Some(Fill::new(Segment::at(from.meet(&self.whole.from)), visible, id));
            }
        }
        self.drop_unneeded(origins);
    }

    /// Drops the runs that lie below what the register needs. Never skips what has not been read.
    pub(crate) fn drop_unneeded(&mut self, origins: &OffsetVector) {
        let needed = origins.join(&self.plan.from);
        let until = needed.meet(&self.whole.position);
        self.whole.raise_from(&until);
        if let Some(fill) = &mut self.fill {
            let until = needed.meet(&fill.segment.position);
            fill.segment.raise_from(&until);
        }
    }

    /// Puts the fill under the whole if they meet.
    pub(crate) fn join_fill(&mut self) {
        if let Some(fill) = self.fill.take_if(|f| f.segment.position.covers(&self.whole.from)) {
            self.whole.prepend(fill.segment);
        }
    }

    /// Leaves the others after its SQL could not be run. What it has is kept, and shown.
    pub(crate) fn leave(&mut self, error: String, retry_at: Instant) {
        self.out = Some(Out { error, retry_at });
    }

    /// Takes part again, from `position` on; what it missed is replayed.
    pub(crate) fn rejoin(&mut self, position: &OffsetVector, origins: &OffsetVector, id: u64) {
        if self.out.take().is_none() {
            return;
        }
        self.incarnation = id;
        let start = Segment::at(position.join(&origins.join(&self.plan.from)));
        match &mut self.fill {
            // `whole` is not contiguous with what comes now, and the fill goes on to the new start.
            Some(fill) if fill.visible => self.whole = start,
            // The stream has not moved on meanwhile.
            _ if self.whole.position == start.from => {}
            _ => {
                let segment = std::mem::replace(&mut self.whole, start);
                self.fill = Some(Fill::new(segment, true, id));
            }
        }
        self.join_fill();
    }

    /// Whether it is complete from its `from` to the stream's `position`.
    pub(crate) fn joined(&self, position: &OffsetVector) -> bool {
        self.out.is_none() && !self.fill.as_ref().is_some_and(|f| f.visible) && position.covers(&self.whole.from)
    }

    /// What of it answers.
    pub(crate) fn shown(&self) -> &Segment {
        match &self.fill {
            Some(fill) if fill.visible => &fill.segment,
            _ => &self.whole,
        }
    }

    pub(crate) fn snapshot(&self, position: &OffsetVector, origins: &OffsetVector) -> ViewDelta {
        let shown = self.shown();
        let mut runs = shown.runs.clone();
        if mutant::is(Mutant::DroppedBeforeSwap) {
            // Runs that are not listed at all would be missed: serving looks for holes.
            for run in &mut runs {
                if self.plan.boundaries.iter().any(|cut| run.coverage.side(cut) == Side::Below) {
                    let (states, coverage) = (run.states.slice(0, 0), run.coverage.clone());
                    *run = Arc::new(DeltaRun { id: run.id.clone(), coverage, states, errors: vec![], memory_bytes: 0 });
                }
            }
        }
        ViewDelta {
            definition: self.plan.definition.clone(),
            // A cut that does not name a partition stands at its origin: so does this.
            from: shown.from.iter().filter(|(p, o)| origins.get(*p) != Some(*o)).collect(),
            position: shown.position.clone(),
            runs,
            joined: self.joined(position),
            unowned: BTreeSet::new(),
        }
    }

    /// Where its runs must end: `held` beside what the register names.
    pub(crate) fn boundaries(&self, held: &[Cut]) -> Vec<Cut> {
        let mut boundaries = self.plan.boundaries.clone();
        boundaries.push(self.plan.from.clone());
        boundaries.extend_from_slice(held);
        boundaries.sort_by(|a, b| a.iter().cmp(b.iter()));
        boundaries.dedup();
        boundaries
    }

    /// Runs of what answers that a boundary divides, and that nobody reads again yet.
    pub(crate) fn divided(&self, boundaries: &[Cut]) -> Vec<Arc<DeltaRun>> {
        let segments = [Some(&self.whole), self.fill.as_ref().map(|f| &f.segment)];
        segments
            .into_iter()
            .flatten()
            .flat_map(|s| &s.runs)
            .filter(|run| !self.resplitting.contains(&run.id) && straddles(run, boundaries))
            .cloned()
            .collect()
    }

    /// The segment that holds all of `inputs`.
    pub(crate) fn holding(&mut self, inputs: &[RunId]) -> Option<&mut Segment> {
        if self.whole.holds(inputs) {
            return Some(&mut self.whole);
        }
        self.fill.as_mut().map(|f| &mut f.segment).filter(|s| s.holds(inputs))
    }
}

pub(crate) fn straddles(run: &DeltaRun, boundaries: &[Cut]) -> bool {
    !mutant::is(Mutant::MergeAcrossBoundary) && boundaries.iter().any(|b| run.coverage.side(b) == Side::Straddles)
}
