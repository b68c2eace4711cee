//! The front of a stream: follows its delta and the registers of its views, and keeps what answers now.

mod answer;
mod decide;
mod files;
mod log_end;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use watershed_shared::abort_point;
use watershed_shared::catalog::{Generation, StreamState, ViewState};
use watershed_shared::clock;
use watershed_shared::delta::{Maximum, Reason, StreamDelta};
use watershed_shared::mutant::{self, Mutant};
use watershed_shared::names::{DefinitionHash, GenerationId};
use watershed_shared::offsets::{OffsetVector, PartitionId, Position};
use watershed_shared::run::{PageCache, RunsTable};
use watershed_shared::storage::Storage;
use watershed_shared::view::CompiledView;

pub use answer::{CATCHING_UP, PartitionMeta, REPLAYING, StreamAnswer, UNREADABLE, ViewAnswer, ViewMeta};
pub(crate) use answer::{Pending, keeps_failures_only};
use decide::{Candidate, Decision, Pair, decide};
pub(crate) use files::Files;
use log_end::LogEnd;

use crate::definitions::Definitions;
use crate::input::{LogStatus, Unreachable};

/// How long a view may stand still before its answers say so.
const STILL: chrono::Duration = chrono::Duration::seconds(5);
/// How long until a definition that could not be compiled is tried again.
const COMPILE_AGAIN: Duration = Duration::from_secs(5);

/// What a front follows.
#[derive(Debug)]
pub(crate) struct Front {
    pub stream: String,
    pub delta: watch::Receiver<Arc<StreamDelta>>,
    /// Of the stream's register.
    pub state: watch::Receiver<Arc<StreamState>>,
    pub log: watch::Receiver<LogStatus>,
    pub views: BTreeMap<String, watch::Receiver<Arc<ViewState>>>,
    pub definitions: Arc<dyn Definitions>,
    pub storage: Storage,
    pub pages: Arc<PageCache>,
    pub answers: watch::Sender<Arc<StreamAnswer>>,
}

type Compiled = (DefinitionHash, Result<Arc<CompiledView>, String>);

/// What a front has made so far.
#[derive(Debug, Default)]
struct Made {
    compiled: BTreeMap<DefinitionHash, Arc<CompiledView>>,
    failed: BTreeMap<DefinitionHash, String>,
    compiling: BTreeSet<DefinitionHash>,
    /// Opened tables of generations, so that their footers are read once.
    tables: BTreeMap<(String, GenerationId), Arc<RunsTable>>,
    start_end: Option<OffsetVector>,
    log_end: LogEnd,
}

impl Front {
    /// A channel that says: nothing can be answered yet.
    pub(crate) fn channel(stream: &str, views: impl Iterator<Item = String>) -> watch::Sender<Arc<StreamAnswer>> {
        watch::Sender::new(Arc::new(StreamAnswer {
            stream: stream.to_owned(),
            position: Position::new(),
            origins: OffsetVector::new(),
            log_end: OffsetVector::new(),
            views: BTreeMap::new(),
            unanswerable: views.map(|v| (v, "the process has just started".to_owned())).collect(),
            start_end: None,
            reasons: Vec::new(),
            late: 0,
            late_since: None,
        }))
    }

    /// Follows until `shutdown`. When the speed layer is gone, what was answered last stays, with the reason.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut made = Made::default();
        let mut compilations: FuturesUnordered<BoxFuture<'static, Compiled>> = FuturesUnordered::new();
        let mut speed_stopped = false;
        loop {
            let delta = Arc::clone(&self.delta.borrow_and_update());
            let states: BTreeMap<String, Arc<ViewState>> =
                self.views.iter_mut().map(|(view, r)| (view.clone(), Arc::clone(&r.borrow_and_update()))).collect();
            self.compile_missing(&states, &mut made, &compilations);
            let last = Arc::clone(&self.answers.borrow());
            let known_losses = self.state.borrow().losses.len();
            // SUBTLE: last of all. A loss is recorded before a delta or a generation can lack its events, so whatever was
            // taken above does not lack them without the reason.
            let mut reasons = delta.reasons.clone();
            reasons.extend(self.stream_reasons(speed_stopped));
            made.log_end.see(&delta, &self.log.borrow().ends, clock::now().timestamp_micros());
            let next = self.next(&last, &delta, &states, &mut made, &reasons, known_losses);
            let swapped = next.views.iter().any(|(view, answer)| {
                last.views.get(view).is_some_and(|last| last.generation_id() != answer.generation_id())
            });
            self.answers.send_replace(Arc::new(next));
            if swapped {
                abort_point!(process "serving.swapped");
            }

            let changed = self.views.values_mut().map(|receiver| Box::pin(receiver.changed()));
            let any_register = async {
                // A register whose follower has ended never changes again.
                let mut changed: FuturesUnordered<_> = changed.collect();
                while let Some(result) = changed.next().await {
                    if result.is_ok() {
                        return;
                    }
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = self.delta.changed(), if !speed_stopped => speed_stopped = changed.is_err(),
                () = any_register => {}
                Ok(()) = self.state.changed() => {}
                Ok(()) = self.log.changed() => {}
                Some((hash, result)) = compilations.next(), if !compilations.is_empty() => made.compiled(hash, result),
                // What stands still must come to say so.
                () = clock::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    /// Starts what has to be compiled and is not yet.
    fn compile_missing(
        &self,
        states: &BTreeMap<String, Arc<ViewState>>,
        made: &mut Made,
        compilations: &FuturesUnordered<BoxFuture<'static, Compiled>>,
    ) {
        for (view, state) in states {
            let previous = state.previous.as_ref().map(|(d, _)| d);
            for hash in state.active.iter().chain(previous) {
                let Some(definition) = state.definitions.get(hash).cloned() else { continue };
                if made.compiled.contains_key(hash) || !made.compiling.insert(hash.clone()) {
                    continue;
                }
                let (definitions, view, hash) = (Arc::clone(&self.definitions), view.clone(), hash.clone());
                let again = made.failed.contains_key(&hash);
                compilations.push(Box::pin(async move {
                    if again {
                        clock::sleep(COMPILE_AGAIN).await;
                    }
                    let compiled = definitions.compiled(&view, &definition).await;
                    if let Err(error) = &compiled {
                        tracing::error!(%view, definition = %hash, %error, "a recorded definition cannot be compiled");
                    }
                    (hash, compiled)
                }));
            }
        }
    }

    /// What every answer of the stream has to say, beside what the speed layer says.
    fn stream_reasons(&mut self, speed_stopped: bool) -> Vec<Reason> {
        let reason =
            |code: &str, message| Reason { code: code.to_owned(), partition: None, from: None, to: None, message };
        let mut reasons = self.state.borrow_and_update().reasons(&self.stream);
        if let Some(Unreachable { since, reason: why }) = &self.log.borrow_and_update().unreachable {
            let message = format!("the log does not answer since {since}, so nobody can tell what is missing: {why}");
            reasons.push(reason("log_unreachable", message));
        }
        if speed_stopped {
            let message = format!("the speed layer of stream `{}` has stopped", self.stream);
            reasons.push(reason("speed_stopped", message));
        }
        reasons
    }

    /// What answers after `last`.
    fn next(
        &self,
        last: &StreamAnswer,
        delta: &StreamDelta,
        states: &BTreeMap<String, Arc<ViewState>>,
        made: &mut Made,
        reasons: &[Reason],
        known_losses: usize,
    ) -> StreamAnswer {
        let log_end = &made.log_end.end;
        // Not before workers have seen the log: without them nothing is going to be reached.
        if made.start_end.is_none() && delta.origins.iter().all(|(p, _)| delta.log_end.get(p).is_some()) {
            made.start_end = (!delta.log_end.is_empty()).then(|| log_end.clone());
        }
        let mut next = StreamAnswer {
            stream: self.stream.clone(),
            // A worker that begins again without what was lost stands lower for a while.
            position: delta.origins.join(&delta.position).join(&last.position),
            origins: delta.origins.clone(),
            log_end: log_end.clone(),
            views: BTreeMap::new(),
            unanswerable: BTreeMap::new(),
            start_end: made.start_end.clone(),
            reasons: reasons.to_vec(),
            late: delta.partitions.values().map(|p| p.late).sum(),
            late_since: delta.partitions.values().filter_map(|p| p.counted_since).min(),
        };
        for (view, state) in states {
            match self.view(view, last.views.get(view), delta, state, made, known_losses) {
                Ok(mut answer) => {
                    answer.reasons = self.reasons(reasons, &answer, made.start_end.as_ref());
                    next.views.insert(view.clone(), Arc::new(answer));
                }
                Err(why) => {
                    next.unanswerable.insert(view.clone(), why);
                }
            }
        }
        let listed = |view: &String, id: &GenerationId| {
            let served = next.views.get(view).is_some_and(|v| v.generation_id() == *id);
            served || states.get(view).is_some_and(|s| s.generation(*id).is_some())
        };
        made.tables.retain(|(view, id), _| listed(view, id));
        next
    }

    fn view(
        &self,
        view: &str,
        last: Option<&Arc<ViewAnswer>>,
        delta: &StreamDelta,
        state: &ViewState,
        made: &mut Made,
        known_losses: usize,
    ) -> Result<ViewAnswer, String> {
        let active = state.active.as_ref().ok_or("its definition has not been recorded yet")?;
        let pair = |definition: &DefinitionHash, generation: GenerationId| Pair {
            definition: definition.clone(),
            generation,
            cut: state.generation(generation).map(|g| g.cut.clone()).unwrap_or_default(),
        };
        let mut pairs = vec![pair(active, state.generation)];
        match (last, &state.previous) {
            (Some(last), _) => pairs.push(last.pair()),
            (None, Some((definition, generation))) => pairs.push(pair(definition, *generation)),
            (None, None) => {}
        }
        pairs.dedup();
        // What another process built without lost events waits until it is known here that they are lost.
        pairs.retain(|p| state.generation(p.generation).is_none_or(|g| g.losses <= known_losses));
        let pairs_wait = pairs.is_empty();
        // What cannot be compiled cannot answer; the pair that answers now is compiled.
        let compiled = |pair: &Pair| match last {
            Some(last) if last.compiled.definition() == &pair.definition => Some(Arc::clone(&last.compiled)),
            _ => made.compiled.get(&pair.definition).map(Arc::clone),
        };
        let compilable: Vec<(Pair, Arc<CompiledView>)> =
            pairs.into_iter().filter_map(|p| compiled(&p).map(|c| (p, c))).collect();
        let candidates: Vec<Candidate<'_>> = compilable
            .iter()
            .map(|(pair, _)| Candidate {
                pair: pair.clone(),
                delta: delta.view(view, &pair.definition).map(|d| d.as_ref()),
            })
            .collect();
        if candidates.is_empty() {
            return Err(match made.failed.get(active) {
                Some(error) => format!("its definition cannot be compiled: {error}"),
                None if pairs_wait => "its stream lost events, and which ones is being read".to_owned(),
                None => "its definition is being compiled".to_owned(),
            });
        }
        let decision = decide(&candidates, last.map(|l| &l.position), &delta.origins);
        let (chosen, position, runs, alone) = match decision {
            Decision::Serve { candidate, position, runs } => (candidate, position, runs, false),
            Decision::CutOnly { position } => (0, position, Vec::new(), true),
            Decision::Keep => {
                let last = last.expect("only what has answered can be kept");
                let mut kept = last.as_ref().clone();
                if kept.position.covers(&kept.log_end) {
                    kept.captured_at = clock::now();
                }
                if matches!(kept.pending, Pending::Unknown) {
                    kept.pending = Pending::Since(kept.captured_at.timestamp_micros());
                }
                kept.log_end = made.log_end.end.clone();
                return Ok(kept);
            }
        };
        let (pair, compiled) = &compilable[chosen];
        let generation = match last.and_then(|l| l.generation.as_ref()).filter(|g| g.id == pair.generation) {
            Some(generation) => Some(Arc::clone(generation)),
            None => state.generation(pair.generation).map(|g| Arc::new(g.clone())),
        };
        let (retain, materialize) = match last {
            Some(last) if last.compiled.definition() == &pair.definition => (last.retain, last.materialize),
            _ => state.definitions.get(&pair.definition).map_or((None, false), |d| (d.retain, d.materialize)),
        };
        let table = match &generation {
            Some(generation) if !keeps_failures_only(compiled, materialize) => {
                self.table(view, generation, compiled, made)
            }
            _ => Ok(None),
        };
        let generation_runs = match (table, last) {
            (Ok(table), _) => table,
            (Err(error), Some(last)) => {
                tracing::error!(view, %error, "stays with the answer before");
                return Ok(last.as_ref().clone());
            }
            (Err(error), None) => return Err(error),
        };
        let now = clock::now();
        let at_stream = position == delta.origins.join(&delta.position);
        let position = if mutant::is(Mutant::PositionAhead) { position.join(&made.log_end.end) } else { position };
        Ok(ViewAnswer {
            view: view.to_owned(),
            stream: self.stream.clone(),
            compiled: Arc::clone(compiled),
            generation_runs,
            cut: delta.origins.join(&pair.cut),
            generation,
            retain,
            materialize,
            origins: delta.origins.clone(),
            maxima: maxima(delta, &position),
            log_end: made.log_end.end.clone(),
            reasons: Vec::new(),
            runs,
            pending: match at_stream {
                true => made.log_end.pending(delta, now.timestamp_micros()),
                false => Pending::Unknown,
            },
            // An answer that stays where it was is as old as when it came there.
            captured_at: match last {
                Some(last) if alone && last.position == position => last.captured_at,
                _ => now,
            },
            position,
        })
    }

    /// The generation's runs.
    fn table(
        &self,
        view: &str,
        generation: &Generation,
        compiled: &CompiledView,
        made: &mut Made,
    ) -> Result<Option<Arc<RunsTable>>, String> {
        if generation.runs.is_empty() {
            return Ok(None);
        }
        let key = (view.to_owned(), generation.id);
        if let Some(table) = made.tables.get(&key) {
            return Ok(Some(Arc::clone(table)));
        }
        let table = runs_table(&self.storage, &self.pages, generation, compiled)?;
        made.tables.insert(key, Arc::clone(&table));
        Ok(Some(table))
    }

    fn reasons(&self, stream: &[Reason], answer: &ViewAnswer, start_end: Option<&OffsetVector>) -> Vec<Reason> {
        let mut reasons = stream.to_vec();
        if let Some(fault) = answer.fault() {
            reasons.push(Reason {
                code: UNREADABLE.to_owned(),
                partition: None,
                from: None,
                to: None,
                message: format!("generation {}: {fault}; the view is being rebuilt", answer.generation_id()),
            });
        }
        match start_end {
            None => reasons.push(Reason {
                code: CATCHING_UP.to_owned(),
                partition: None,
                from: None,
                to: None,
                message: "the process has just started and has not seen the log's end yet".to_owned(),
            }),
            Some(end) => {
                let below = |p, end| answer.position.get(p).is_none_or(|at| at < end);
                reasons.extend(end.iter().filter(|(p, end)| below(*p, *end)).map(|(partition, end)| Reason {
                    code: CATCHING_UP.to_owned(),
                    partition: Some(partition),
                    from: answer.position.get(partition).map(|o| o.0),
                    to: Some(end.0),
                    message: "the process has not yet reached the log's end as it was at the start".to_owned(),
                }));
            }
        }
        let behind = !answer.position.covers(&answer.log_end);
        if behind && clock::now() - answer.captured_at > STILL && !reasons.iter().any(|r| r.code == CATCHING_UP) {
            reasons.push(Reason {
                code: REPLAYING.to_owned(),
                partition: None,
                from: None,
                to: None,
                message: format!(
                    "the delta of view `{}` is being built again; the answer stands still until it is there",
                    answer.view
                ),
            });
        }
        reasons
    }
}

/// The running maxima in front of `position` that are known where `delta` stands: it may stand elsewhere in a partition
/// that nobody keeps up, or that a view replays.
fn maxima(delta: &StreamDelta, position: &Position) -> BTreeMap<PartitionId, Option<i64>> {
    let stands = delta.origins.join(&delta.position);
    let known = |(p, at)| match delta.partitions.get(&p)?.event_time_max {
        Maximum::Known(max) if stands.get(p) == Some(at) => Some((p, max)),
        _ => None,
    };
    position.iter().filter_map(known).collect()
}

/// A generation's runs as a table of states.
///
/// # Errors
/// When what the register says of its runs makes no sense.
pub(crate) fn runs_table(
    storage: &Storage,
    pages: &Arc<PageCache>,
    generation: &Generation,
    compiled: &CompiledView,
) -> Result<Arc<RunsTable>, String> {
    let (schema, keys) = (compiled.state_schema(), compiled.key_count());
    let table = RunsTable::with_pages(storage, schema, generation.runs.clone(), keys, pages);
    table.map_err(|e| format!("generation {} cannot be read: {e}", generation.id))
}

impl Made {
    fn compiled(&mut self, hash: DefinitionHash, result: Result<Arc<CompiledView>, String>) {
        self.compiling.remove(&hash);
        match result {
            Ok(compiled) => {
                self.failed.remove(&hash);
                self.compiled.insert(hash, compiled);
            }
            Err(error) => {
                self.failed.insert(hash, error);
            }
        }
    }
}
