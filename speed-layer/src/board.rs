//! The board: all that a speed worker knows of its stream. The tasks compute apart and write here in short steps, and
//! each step that changes an answer publishes one snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use watershed_shared::clock::{self, Instant};
use watershed_shared::delta::{DeltaRun, Maximum, PartitionStatus, Reason, StreamDelta, ViewDelta};
use watershed_shared::mutant::{self, Mutant};
use watershed_shared::names::{DefinitionHash, RunId};
use watershed_shared::offsets::{Cut, OffsetVector, PartitionId};

use crate::line::{Line, LineKey, straddles};
use crate::states::{StateMaker, ViewPlan};

/// What a worker knows, and has published.
#[derive(Debug)]
pub(crate) struct Board {
    stream: String,
    origins: OffsetVector,
    /// Of the stream: all lines advance with it. `None` until the first definition is known.
    position: Option<OffsetVector>,
    lines: BTreeMap<LineKey, Line>,
    /// Snapshots of lines that have not changed since.
    shown: BTreeMap<LineKey, Arc<ViewDelta>>,
    seals: Vec<Seal>,
    partitions: BTreeMap<PartitionId, Progress>,
    log_end: OffsetVector,
    /// By what reports them.
    reasons: BTreeMap<String, Reason>,
    /// How many losses the register named at the start.
    losses: usize,
    next_id: u64,
    sender: watch::Sender<Arc<StreamDelta>>,
}

/// A boundary that holds though no register may name it yet.
#[derive(Debug, Clone)]
pub(crate) struct Seal {
    pub(crate) cut: Cut,
    pub(crate) until: Instant,
}

/// What was seen of a partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    pub(crate) status: PartitionStatus,
    /// The timestamp of the last record behind the position, microseconds.
    pub(crate) last_timestamp: Option<i64>,
    /// When the position was last known to be at the log's end, microseconds of the wall clock.
    caught_up_at: Option<i64>,
}

/// What is to be computed of a micro-batch for one line.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    pub(crate) key: LineKey,
    pub(crate) incarnation: u64,
    pub(crate) maker: Arc<dyn StateMaker>,
    pub(crate) from: OffsetVector,
    pub(crate) boundaries: Vec<Cut>,
}

/// What was computed for a ticket: the runs, or why there are none.
#[derive(Debug)]
pub(crate) struct Computed {
    pub(crate) ticket: Ticket,
    pub(crate) runs: Result<Vec<Arc<DeltaRun>>, String>,
}

/// A replay that is to be started: `key`'s fill `id`, from `from` to `until`.
#[derive(Debug, Clone)]
pub(crate) struct FillOrder {
    pub(crate) key: LineKey,
    pub(crate) id: u64,
    pub(crate) maker: Arc<dyn StateMaker>,
}

/// A run that a boundary divides: its events are to be read again.
#[derive(Debug, Clone)]
pub(crate) struct ResplitOrder {
    pub(crate) key: LineKey,
    pub(crate) run: Arc<DeltaRun>,
    pub(crate) maker: Arc<dyn StateMaker>,
}

/// Runs to be merged.
#[derive(Debug, Clone)]
pub(crate) struct MergeOrder {
    pub(crate) key: LineKey,
    pub(crate) maker: Arc<dyn StateMaker>,
    pub(crate) inputs: Vec<Arc<DeltaRun>>,
}

/// Where a fill stands.
#[derive(Debug)]
pub(crate) struct FillState {
    pub(crate) position: OffsetVector,
    pub(crate) until: OffsetVector,
    pub(crate) boundaries: Vec<Cut>,
}

impl Board {
    pub(crate) fn new(stream: &str, origins: OffsetVector, log_end: OffsetVector) -> Self {
        let empty = StreamDelta {
            stream: stream.to_owned(),
            position: origins.clone(),
            origins: origins.clone(),
            log_end: log_end.clone(),
            oldest_pending: None,
            partitions: BTreeMap::new(),
            views: BTreeMap::new(),
            reasons: vec![],
            losses: 0,
        };
        Self {
            stream: stream.to_owned(),
            origins,
            position: None,
            lines: BTreeMap::new(),
            shown: BTreeMap::new(),
            seals: Vec::new(),
            partitions: BTreeMap::new(),
            log_end,
            reasons: BTreeMap::new(),
            losses: 0,
            next_id: 1,
            sender: watch::Sender::new(Arc::new(empty)),
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<StreamDelta>> {
        self.sender.subscribe()
    }

    pub(crate) fn position(&self) -> Option<&OffsetVector> {
        self.position.as_ref()
    }

    pub(crate) fn origins(&self) -> &OffsetVector {
        &self.origins
    }

    pub(crate) fn lines(&self) -> &BTreeMap<LineKey, Line> {
        &self.lines
    }

    pub(crate) fn seals(&self) -> &[Seal] {
        &self.seals
    }

    /// The running maxima behind the position, where they are known.
    pub(crate) fn maxima(&self) -> BTreeMap<PartitionId, Option<i64>> {
        let known = |(p, seen): (&PartitionId, &Progress)| match seen.status.event_time_max {
            Maximum::Known(max) => Some((*p, max)),
            Maximum::Unknown => None,
        };
        self.partitions.iter().filter_map(known).collect()
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Origins of partitions seen since.
    pub(crate) fn add_origins(&mut self, origins: &OffsetVector) {
        for (p, origin) in origins.iter() {
            if self.origins.get(p).is_some() {
                continue;
            }
            self.origins.set(p, origin);
            let vectors = self.lines.values_mut().flat_map(|line| {
                let fill = line.fill.as_mut().map(|f| &mut f.segment);
                [Some(&mut line.whole), fill].into_iter().flatten()
            });
            for segment in vectors {
                segment.from.advance(p, origin);
                segment.position.advance(p, origin);
            }
            if let Some(position) = &mut self.position {
                position.advance(p, origin);
            }
            self.shown.clear();
        }
    }

    /// What comes lacks the first `losses` that the register names.
    pub(crate) fn begin_without(&mut self, losses: usize) {
        self.losses = losses;
    }

    /// Forgets what was read, before another start: what is shown stays until then.
    pub(crate) fn begin_again(&mut self) {
        self.position = None;
        self.lines.clear();
        self.partitions.clear();
        self.reasons.clear();
    }

    /// Starts with `lines` and the running maxima that were stored at `position`, or with none.
    ///
    /// The stream's position becomes the lowest at which a stored line stands, after what no register needs any more
    /// has been dropped; with none stored, the lowest that a register needs. What a line lacks below it is replayed.
    pub(crate) fn start(
        &mut self,
        plans: &[ViewPlan],
        stored: Vec<Line>,
        position: Option<OffsetVector>,
        maxima: &BTreeMap<PartitionId, Option<i64>>,
    ) {
        let mut lines: BTreeMap<LineKey, Line> = BTreeMap::new();
        for mut line in stored {
            if line.fill.is_none() {
                let needed = self.origins.join(&line.plan.from);
                line.whole.raise_from(&needed);
            }
            lines.insert((line.plan.name.clone(), line.plan.definition.clone()), line);
        }
        let lowest = |vectors: Vec<OffsetVector>| vectors.into_iter().reduce(|a, b| a.meet(&b));
        let start = match &position {
            Some(position) if !lines.is_empty() => {
                let reached = lines.values().map(|l| position.join(&l.whole.from)).collect();
                lowest(reached).unwrap_or_else(|| position.clone())
            }
            _ => lowest(plans.iter().map(|p| self.origins.join(&p.from)).collect())
                .unwrap_or_else(|| self.origins.clone()),
        };
        let start = self.origins.join(&start);
        // SUBTLE: a cut may have passed what was stored, and then the maximum there is too low.
        let stored = self.origins.join(&position.unwrap_or_default());
        for (p, maximum) in maxima.iter().filter(|(p, _)| start.get(**p) == stored.get(**p)) {
            self.partitions.entry(*p).or_default().status.event_time_max = Maximum::Known(*maximum);
        }
        self.position = Some(start);
        self.lines = lines;
        self.follow(plans);
    }

    /// Takes over what the registers say now.
    pub(crate) fn follow(&mut self, plans: &[ViewPlan]) {
        let Some(position) = self.position.clone() else {
            return;
        };
        let origins = self.origins.clone();
        self.lines.retain(|(view, definition), _| {
            plans.iter().any(|plan| plan.name == *view && plan.definition == *definition)
        });
        for plan in plans {
            let id = self.id();
            match self.lines.get_mut(&(plan.name.clone(), plan.definition.clone())) {
                Some(line) => line.follow(plan.clone(), &position, &origins, id),
                None => {
                    let line = Line::new(plan.clone(), &position, &origins, id);
                    self.lines.insert((plan.name.clone(), plan.definition.clone()), line);
                }
            }
        }
        self.shown.clear();
        self.publish();
    }

    /// Holds a boundary at the position until `until`; `None` before the start.
    pub(crate) fn seal(&mut self, until: Instant) -> Option<Cut> {
        let cut = self.position.clone()?;
        self.hold(cut.clone(), until);
        Some(cut)
    }

    pub(crate) fn hold(&mut self, cut: Cut, until: Instant) {
        match self.seals.iter_mut().find(|s| s.cut == cut) {
            Some(seal) => seal.until = seal.until.max(until),
            None => self.seals.push(Seal { cut, until }),
        }
    }

    /// Lets seals go whose time has passed.
    pub(crate) fn expire_seals(&mut self, now: Instant) {
        self.seals.retain(|s| s.until > now);
    }

    fn held(&self) -> Vec<Cut> {
        self.seals.iter().map(|s| s.cut.clone()).collect()
    }

    /// What is to be computed of the next micro-batch, for all lines that take part.
    pub(crate) fn tickets(&self) -> Vec<Ticket> {
        let held = self.held();
        self.lines
            .iter()
            .filter(|(_, line)| line.out.is_none())
            .map(|(key, line)| Ticket {
                key: key.clone(),
                incarnation: line.incarnation,
                maker: Arc::clone(&line.plan.compiled),
                from: line.whole.from.clone(),
                boundaries: line.boundaries(&held),
            })
            .collect()
    }

    /// Moves the stream on to `end` with what was computed for the lines: all at once, or not at all.
    ///
    /// Answers the tickets that are still to be computed, because definitions or boundaries came in between: then
    /// nothing has happened, and `computed` holds what is still good.
    pub(crate) fn advance(
        &mut self,
        end: &OffsetVector,
        computed: &mut Vec<Computed>,
        progress: &BTreeMap<PartitionId, Progress>,
        retry_at: Instant,
    ) -> Vec<Ticket> {
        let current = self.tickets();
        computed.retain(|c| {
            current.iter().any(|t| {
                let same = t.key == c.ticket.key && t.incarnation == c.ticket.incarnation && t.from == c.ticket.from;
                same && c.runs.as_ref().map_or(true, |runs| !runs.iter().any(|r| straddles(r, &t.boundaries)))
            })
        });
        let missing: Vec<Ticket> =
            current.into_iter().filter(|t| !computed.iter().any(|c| c.ticket.key == t.key)).collect();
        if !missing.is_empty() {
            return missing;
        }
        for Computed { ticket, runs } in computed.drain(..) {
            let line = self.lines.get_mut(&ticket.key).expect("tickets are of lines that are there");
            match runs {
                Ok(runs) => line.whole.append(runs, end),
                Err(error) => line.leave(error, retry_at),
            }
            line.drop_unneeded(&self.origins);
            self.shown.remove(&ticket.key);
        }
        // SUBTLE: a partition may have come since the micro-batch was read; it stands at its origin.
        self.position = self.position.take().map(|position| position.join(end));
        for (p, seen) in progress {
            let known = self.partitions.entry(*p).or_default();
            known.status.event_time_max = known.status.event_time_max.join(seen.status.event_time_max);
            known.status.counted_since.get_or_insert_with(clock::now);
            known.status.late += seen.status.late;
            known.status.dead_letters += seen.status.dead_letters;
            known.last_timestamp = known.last_timestamp.max(seen.last_timestamp);
        }
        self.publish();
        vec![]
    }

    /// Replays that nobody works on yet. Marks them as started.
    pub(crate) fn take_fills(&mut self) -> Vec<FillOrder> {
        let mut orders = Vec::new();
        for (key, line) in &mut self.lines {
            if let Some(fill) = line.fill.as_mut().filter(|f| !f.started) {
                fill.started = true;
                orders.push(FillOrder { key: key.clone(), id: fill.id, maker: Arc::clone(&line.plan.compiled) });
            }
        }
        orders
    }

    /// Where the fill stands; `None` if it is not wanted any more.
    pub(crate) fn fill_state(&self, order: &FillOrder) -> Option<FillState> {
        let line = self.lines.get(&order.key)?;
        let fill = line.fill.as_ref().filter(|f| f.id == order.id)?;
        Some(FillState {
            position: fill.segment.position.clone(),
            until: line.whole.from.clone(),
            boundaries: line.boundaries(&self.held()),
        })
    }

    /// Moves a fill from `start` on to `end`. Answers whether it took the runs: not if a boundary came in between, or the
    /// fill is not wanted any more or stands elsewhere.
    pub(crate) fn advance_fill(
        &mut self,
        order: &FillOrder,
        start: &OffsetVector,
        end: &OffsetVector,
        runs: Vec<Arc<DeltaRun>>,
    ) -> bool {
        let held = self.held();
        let Some(line) = self.lines.get_mut(&order.key) else {
            return false;
        };
        let boundaries = line.boundaries(&held);
        let Some(fill) = line.fill.as_mut().filter(|f| f.id == order.id && f.segment.position == *start) else {
            return false;
        };
        if runs.iter().any(|r| straddles(r, &boundaries)) || !line.whole.from.covers(end) {
            return false;
        }
        fill.segment.append(runs, end);
        line.join_fill();
        line.drop_unneeded(&self.origins);
        self.shown.remove(&order.key);
        self.publish();
        true
    }

    /// Lines that left and may try again now.
    pub(crate) fn rejoin(&mut self, now: Instant) {
        let Some(position) = self.position.clone() else {
            return;
        };
        let origins = self.origins.clone();
        let due: Vec<LineKey> = self
            .lines
            .iter()
            .filter(|(_, l)| l.out.as_ref().is_some_and(|o| o.retry_at <= now))
            .map(|(k, _)| k.clone())
            .collect();
        for key in due {
            let (id, another) = (self.id(), self.id());
            if let Some(line) = self.lines.get_mut(&key) {
                line.rejoin(&position, &origins, id);
                line.follow(line.plan.clone(), &position, &origins, another);
            }
            self.shown.remove(&key);
        }
        self.publish();
    }

    /// Runs that a boundary divides and that nobody reads again yet. Marks them.
    pub(crate) fn take_resplits(&mut self) -> Vec<ResplitOrder> {
        let held = self.held();
        let mut orders = Vec::new();
        for (key, line) in &mut self.lines {
            let boundaries = line.boundaries(&held);
            for run in line.divided(&boundaries) {
                line.resplitting.insert(run.id.clone());
                orders.push(ResplitOrder { key: key.clone(), run, maker: Arc::clone(&line.plan.compiled) });
            }
        }
        orders
    }

    /// The boundaries at which a run that is read again is to be split; `None` if it is not wanted any more.
    pub(crate) fn resplit_boundaries(&self, order: &ResplitOrder) -> Option<Vec<Cut>> {
        let line = self.lines.get(&order.key)?;
        let boundaries = line.boundaries(&self.held());
        let id = std::slice::from_ref(&order.run.id);
        let there = line.whole.holds(id) || line.fill.as_ref().is_some_and(|f| f.segment.holds(id));
        (there && straddles(&order.run, &boundaries)).then_some(boundaries)
    }

    /// Ends a resplit: with the runs that take the place of the divided one, or without.
    ///
    /// Runs that yet another boundary divides by now are read again in their turn.
    pub(crate) fn finish_resplit(&mut self, order: &ResplitOrder, runs: Option<Vec<Arc<DeltaRun>>>) {
        let Some(line) = self.lines.get_mut(&order.key) else {
            return;
        };
        line.resplitting.remove(&order.run.id);
        let id = std::slice::from_ref(&order.run.id);
        if let Some(runs) = runs
            && let Some(segment) = line.holding(id)
        {
            segment.replace(id, runs);
            line.drop_unneeded(&self.origins);
            self.shown.remove(&order.key);
            self.publish();
        }
    }

    /// The next merge, of the line with the most runs.
    pub(crate) fn next_merge(&self, max_run_bytes: usize) -> Option<MergeOrder> {
        let held = self.held();
        let mut lines: Vec<_> = self.lines.iter().collect();
        lines.sort_by_key(|(_, line)| std::cmp::Reverse(line.whole.runs.len()));
        lines.into_iter().find_map(|(key, line)| {
            let mut boundaries = line.boundaries(&held);
            if mutant::is(Mutant::MergeAcrossBoundary) {
                boundaries.clear();
            }
            let segments = [Some(&line.whole), line.fill.as_ref().map(|f| &f.segment)];
            let inputs =
                segments.into_iter().flatten().find_map(|s| crate::merge::pick(&s.runs, &boundaries, max_run_bytes))?;
            Some(MergeOrder { key: key.clone(), maker: Arc::clone(&line.plan.compiled), inputs })
        })
    }

    /// Puts `merged` in the place of its inputs, if they are all still there and no boundary has come between them.
    pub(crate) fn replace(&mut self, order: &MergeOrder, merged: Arc<DeltaRun>) -> bool {
        let held = self.held();
        let Some(line) = self.lines.get_mut(&order.key) else {
            return false;
        };
        if straddles(&merged, &line.boundaries(&held)) {
            return false;
        }
        let inputs: Vec<RunId> = order.inputs.iter().map(|r| r.id.clone()).collect();
        let Some(segment) = line.holding(&inputs) else {
            return false;
        };
        segment.replace(&inputs, vec![merged]);
        self.shown.remove(&order.key);
        self.publish();
        true
    }

    /// The greatest number of runs of a line.
    pub(crate) fn most_runs(&self) -> usize {
        self.lines.values().map(|l| l.whole.runs.len()).max().unwrap_or(0)
    }

    pub(crate) fn see_log_end(&mut self, log_end: OffsetVector) {
        self.log_end = self.log_end.join(&log_end);
        self.publish();
    }

    /// The running maximum in front of the position, from where it was kept.
    pub(crate) fn restore_maximum(&mut self, partition: PartitionId, event_time_max: Maximum) {
        let status = &mut self.partitions.entry(partition).or_default().status;
        let before = status.event_time_max;
        status.event_time_max = before.join(event_time_max);
        if status.event_time_max != before {
            self.publish();
        }
    }

    pub(crate) fn knows_maximum(&self, partition: PartitionId) -> bool {
        let known = |seen: &Progress| seen.status.event_time_max != Maximum::Unknown;
        self.partitions.get(&partition).is_some_and(known)
    }

    /// Reports, or takes back, why not all goes well. `by` names what reports it.
    pub(crate) fn report(&mut self, by: &str, reason: Option<Reason>) {
        let changed = match reason {
            Some(reason) => self.reasons.insert(by.to_owned(), reason.clone()) != Some(reason),
            None => self.reasons.remove(by).is_some(),
        };
        if changed {
            self.publish();
        }
    }

    fn publish(&mut self) {
        let position = self.position.clone().unwrap_or_else(|| self.origins.clone());
        self.note_caught_up(&position);
        let mut views: BTreeMap<String, BTreeMap<DefinitionHash, Arc<ViewDelta>>> = BTreeMap::new();
        let mut reasons: Vec<Reason> = self.reasons.values().cloned().collect();
        for (key, line) in &self.lines {
            let shown =
                self.shown.entry(key.clone()).or_insert_with(|| Arc::new(line.snapshot(&position, &self.origins)));
            views.entry(key.0.clone()).or_default().insert(key.1.clone(), Arc::clone(shown));
            reasons.extend(line.out.as_ref().map(|out| Reason {
                code: "view_failed".to_owned(),
                partition: None,
                from: None,
                to: None,
                message: format!("the speed layer cannot run view {}, and tries again: {}", key.0, out.error),
            }));
        }
        self.sender.send_replace(Arc::new(StreamDelta {
            stream: self.stream.clone(),
            oldest_pending: self.oldest_pending(&position),
            position,
            origins: self.origins.clone(),
            log_end: self.log_end.clone(),
            partitions: self.partitions.iter().map(|(p, s)| (*p, s.status.clone())).collect(),
            views,
            reasons,
            losses: self.losses,
        }));
    }

    fn note_caught_up(&mut self, position: &OffsetVector) {
        let now = clock::now().timestamp_micros();
        for (p, end) in self.log_end.iter() {
            if position.get(p).is_some_and(|at| at >= end) {
                self.partitions.entry(p).or_default().caught_up_at = Some(now);
            }
        }
    }

    /// What is missing in a partition came after the last record that is there, and after it was last caught up.
    fn oldest_pending(&self, position: &OffsetVector) -> Option<i64> {
        self.log_end
            .iter()
            .filter(|(p, end)| position.get(*p).or(self.origins.get(*p)).is_none_or(|at| at < *end))
            .map(|(p, _)| {
                let seen = self.partitions.get(&p);
                seen.and_then(|s| s.last_timestamp.max(s.caught_up_at)).unwrap_or(0)
            })
            .min()
    }
}

/// How long a seal holds by itself.
pub(crate) const SEAL_HOLD: Duration = Duration::from_secs(60);
