//! One request for rows: the answers that it reads, chosen once; the tables over them; the rows and what is true of
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::catalog::view::ViewTable;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::DataFusionError;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, ident, lit};
use serde::Serialize;
use watershed_shared::clock;
use watershed_shared::delta::Reason;
use watershed_shared::master::MasterSnapshot;
use watershed_shared::mutant::{self, Mutant};
use watershed_shared::names::GenerationId;
use watershed_shared::offsets::{Offset, OffsetVector, PartitionId};
use watershed_shared::record::{EVENT_TIME_MAX, LATE};
use watershed_shared::run::{Fault, ReadError, event_error_schema, event_errors_to_batch, read_event_errors};
use watershed_shared::view::late_function;

use crate::engine::{Engine, Failure, Rows, failure, gone};
use crate::error::{Code, Error, Result};
use crate::front::{ViewAnswer, ViewMeta, keeps_failures_only, runs_table};
use crate::merged::MergedStates;
use crate::serving::Serving;
use crate::sql::{Named, Query};

/// How often a request begins again when files are deleted under it.
const ATTEMPTS: usize = 4;

/// What a request for rows wants of the answer, whichever rows those are.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// By stream.
    pub wait_for: BTreeMap<String, OffsetVector>,
    pub deadline: clock::Instant,
    /// The view's answer is this generation's alone.
    pub generation: Option<(String, GenerationId)>,
    /// Rather no answer than an incomplete one.
    pub min_complete: bool,
}

/// `meta` of an answer.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Meta {
    pub views: BTreeMap<String, ViewMeta>,
    pub streams: BTreeMap<String, StreamMeta>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncated: Option<bool>,
}

impl Meta {
    /// # Errors
    /// `incomplete`, with the reasons, if anything that was read is.
    fn demand_complete(&self) -> Result<()> {
        let views = self.views.iter().map(|(name, meta)| ("view", name, &meta.reasons));
        let streams = self.streams.iter().map(|(name, meta)| ("stream", name, &meta.reasons));
        match views.chain(streams).find(|(_, _, reasons)| !reasons.is_empty()) {
            None => Ok(()),
            Some((what, name, reasons)) => {
                let reasons: Vec<_> = reasons.iter().map(|r| r.message.as_str()).collect();
                let message = format!("{what} `{name}` would be incomplete: {}", reasons.join("; "));
                Err(Error::new(Code::Incomplete, message))
            }
        }
    }
}

/// `meta.streams.<stream>`: a stream read directly, or its dead letters.
#[derive(Debug, Clone, Serialize)]
pub struct StreamMeta {
    /// The Delta version.
    pub version: u64,
    pub archived_until: BTreeMap<PartitionId, Offset>,
    pub complete: bool,
    pub reasons: Vec<Reason>,
}

/// Rows and what is true of them.
#[derive(Debug, Clone)]
pub struct Answer {
    pub rows: Rows,
    pub meta: Meta,
}

type Tables = Vec<(Named, Arc<dyn TableProvider>)>;

impl Serving {
    /// # Errors
    /// As the contract's codes say.
    pub(crate) async fn ask(&self, query: &Query, ask: &Ask) -> Result<Answer> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.attempt(query, ask).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Answer(error)) => return Err(error),
                // Nothing has been sent: with the answer of now, which names files that are there, it can be.
                Err(Failure::FileGone(error)) if attempt < ATTEMPTS => {
                    tracing::debug!(%error, "a file was deleted under a query: it begins again");
                    clock::sleep(std::time::Duration::from_millis(20 << attempt)).await;
                }
                Err(Failure::FileGone(error)) => return Err(gone(&error)),
            }
        }
    }

    async fn attempt(&self, query: &Query, ask: &Ask) -> std::result::Result<Answer, Failure> {
        let (tables, meta, unknown) = self.tables(query, ask).await?;
        if ask.min_complete {
            meta.demand_complete()?;
        }
        let engine = &self.inner.engine;
        // After what may have been a long wait for a position: who waits takes nobody's turn.
        let turn = Engine::until(ask.deadline, engine.turn()).await?;
        let state = engine.session(tables);
        let query = query.clone();
        let plan_state = state.clone();
        let planning = Arc::clone(&turn);
        let planned = engine.on_threads("plan", async move {
            let _turn = planning;
            query.plan(&plan_state).await
        });
        let plan = Engine::until(ask.deadline, planned).await.map_err(|error| match unknown {
            Some(unknown) if error.code == Code::BadSql => {
                let place = error.message.find(" at Line").map(|at| error.message[at..].to_owned());
                Error::new(Code::BadSql, format!("{unknown}{}", place.unwrap_or_default()))
            }
            _ => error,
        })?;
        let collected = tokio::time::timeout_at(ask.deadline, engine.collect(turn, state, plan)).await;
        let late = || {
            let mut error = Error::new(Code::Timeout, "the query took longer than its timeout_ms");
            error.position =
                meta.views.values().next().map(|m| m.partitions.iter().map(|(p, m)| (*p, m.position)).collect());
            Failure::Answer(error)
        };
        let rows = collected.map_err(|_| late())??;
        Ok(Answer { rows, meta })
    }

    /// The tables that the statement names, over answers chosen now; what is true of them; and what to say of a name
    /// that is nobody's.
    async fn tables(&self, query: &Query, ask: &Ask) -> std::result::Result<(Tables, Meta, Option<String>), Failure> {
        let input = &self.inner.input;
        let named = query.tables()?;
        let mut archived: BTreeSet<&str> = BTreeSet::new();
        let (mut tables, mut meta, mut unknown): (Tables, Meta, _) = (Vec::new(), Meta::default(), None);
        let mut views: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        // A stream and its dead letters are read at one position.
        let mut snapshots: BTreeMap<&str, MasterSnapshot> = BTreeMap::new();
        for name in &named {
            if let Named::Plain(stream) | Named::DeadLetters(stream) = name
                && input.streams.contains_key(stream)
                && !snapshots.contains_key(stream.as_str())
            {
                self.wait_for_archive(stream, ask).await?;
                archived.insert(stream);
                let snapshot = input.streams[stream].master.snapshot().await.map_err(Error::read)?;
                meta.streams.insert(stream.clone(), self.about(stream, &snapshot)?);
                snapshots.insert(stream, snapshot);
            }
            match name {
                Named::Plain(view) | Named::ViewErrors(view) if input.views.contains_key(view) => {
                    views.entry(&input.views[view].stream).or_default().insert(view);
                }
                Named::Plain(stream) if input.streams.contains_key(stream) => {
                    tables.push((name.clone(), self.stream_table(stream, &snapshots[stream.as_str()])?));
                }
                Named::Plain(table) if input.tables.contains_key(table) => {
                    let table = &input.tables[table];
                    let rows =
                        MemTable::try_new(Arc::clone(&table.schema), vec![table.batches.clone()]).map_err(failure)?;
                    tables.push((name.clone(), Arc::new(rows)));
                }
                Named::DeadLetters(stream) if input.streams.contains_key(stream) => {
                    let letters = snapshots[stream.as_str()].dead_letters().await.map_err(Error::read)?;
                    tables.push((name.clone(), letters));
                }
                other => unknown = Some(self.unknown_table(other)),
            }
        }
        for (stream, wanted) in &ask.wait_for {
            self.check_wait(stream, wanted)?;
            if archived.contains(stream.as_str()) {
                continue;
            }
            match self.is_followed(stream) {
                true => drop(views.entry(stream).or_default()),
                // Nobody reads it but the archiver.
                false => self.wait_for_archive(stream, ask).await?,
            }
        }
        for (stream, of_stream) in views {
            let of_stream: Vec<&str> = of_stream.into_iter().collect();
            let answers = match &ask.generation {
                Some((view, generation)) => vec![self.generation(view, *generation).await?],
                None => self.at_one_position(stream, &of_stream, ask.wait_for.get(stream), ask.deadline).await?,
            };
            for answer in answers {
                meta.views.insert(answer.view.clone(), answer.meta(clock::now()));
                if named.contains(&Named::Plain(answer.view.clone())) {
                    tables.push((Named::Plain(answer.view.clone()), self.view_table(&answer).await?));
                }
                if named.contains(&Named::ViewErrors(answer.view.clone())) {
                    tables.push((Named::ViewErrors(answer.view.clone()), self.errors_table(&answer).await?));
                }
            }
        }
        Ok((tables, meta, unknown))
    }

    /// Waits until what the request wants to see of a stream is in its master dataset.
    async fn wait_for_archive(&self, stream: &str, ask: &Ask) -> Result<()> {
        let Some(wanted) = ask.wait_for.get(stream) else { return Ok(()) };
        self.check_wait(stream, wanted)?;
        let input = self.stream(stream)?;
        if let Some(archiving) = &input.archiving {
            archiving.hurry(wanted);
        }
        let origins = input.state.borrow().origins.clone();
        self.archived(stream, wanted, &origins, ask.deadline).await?;
        Ok(())
    }

    fn unknown_table(&self, named: &Named) -> String {
        let input = &self.inner.input;
        let (what, name, known): (_, _, Vec<&String>) = match named {
            Named::Plain(name) => (
                "view, stream or table",
                name,
                input.views.keys().chain(input.streams.keys()).chain(input.tables.keys()).collect(),
            ),
            Named::DeadLetters(name) => ("stream", name, input.streams.keys().collect()),
            Named::ViewErrors(name) => ("view", name, input.views.keys().collect()),
        };
        Error::unknown(Code::BadSql, what, name, known.into_iter().map(String::as_str)).message
    }

    /// The answer of one generation alone.
    pub(crate) async fn generation(&self, view: &str, id: GenerationId) -> Result<Arc<ViewAnswer>> {
        let input = self.view(view)?;
        let state = Arc::clone(&input.register.borrow());
        let unknown = || Error::new(Code::UnknownGeneration, format!("view `{view}` has no generation {id}"));
        let generation = state.generation(id).ok_or_else(unknown)?;
        let definition = state.definitions.get(&generation.definition).ok_or_else(unknown)?;
        let compiled = self.inner.input.definitions.compiled(view, definition).await;
        let compiled =
            compiled.map_err(|e| Error::new(Code::NotReady, format!("generation {id} cannot be read: {e}")))?;
        let runs = match generation.runs.is_empty() || keeps_failures_only(&compiled, definition.materialize) {
            true => None,
            false => {
                let (storage, pages) = (&self.inner.input.storage, &self.inner.pages);
                Some(runs_table(storage, pages, generation, &compiled).map_err(Error::internal)?)
            }
        };
        let now = self.now(&input.stream)?;
        Ok(Arc::new(ViewAnswer::alone(view, &now, compiled, definition, Arc::new(generation.clone()), runs)))
    }

    /// The view as this answer has it.
    pub(crate) async fn view_table(&self, answer: &ViewAnswer) -> std::result::Result<Arc<dyn TableProvider>, Failure> {
        let states = self.states(answer).await?;
        self.view_over(answer, states).await
    }

    /// The view over these states, at the answer's position.
    pub(crate) async fn view_over(
        &self,
        answer: &ViewAnswer,
        states: Arc<dyn TableProvider>,
    ) -> std::result::Result<Arc<dyn TableProvider>, Failure> {
        let bound = self.retain_bound(answer).await?;
        let plan = answer.compiled.served_plan(states, bound).map_err(view_failure)?;
        Ok(Arc::new(ViewTable::new(plan, None)))
    }

    /// All states below the answer's position.
    async fn states(&self, answer: &ViewAnswer) -> std::result::Result<Arc<dyn TableProvider>, Failure> {
        if !answer.reads_master() {
            return Ok(Arc::new(answer.stored_states()));
        }
        let snapshot = self.stream(&answer.stream)?.master.snapshot().await.map_err(Error::read)?;
        let events = snapshot.scan(Some(&answer.origins), &answer.cut).map_err(Error::internal)?;
        let (below, _errors) = answer.compiled.rows_plan(events).map_err(view_failure)?;
        let parts: Vec<Arc<dyn TableProvider>> =
            vec![Arc::new(ViewTable::new(below, None)), Arc::new(answer.delta_states())];
        Ok(Arc::new(MergedStates::new(answer.compiled.state_schema(), parts)))
    }

    /// Below which groups are hidden: the greatest running maximum at the position minus `retain`.
    pub(crate) async fn retain_bound(&self, answer: &ViewAnswer) -> Result<Option<i64>> {
        let Some(retain) = answer.retain else { return Ok(None) };
        let mut maxima = answer.maxima.clone();
        let unknown: Vec<_> = answer.position.iter().filter(|(partition, _)| !maxima.contains_key(partition)).collect();
        if !unknown.is_empty() {
            let snapshot = self.stream(&answer.stream)?.master.snapshot().await.map_err(Error::read)?;
            for (partition, offset) in unknown {
                maxima.insert(partition, snapshot.event_time_max_at(partition, offset).await.map_err(Error::read)?);
            }
        }
        let mut maxima = maxima.into_values().flatten();
        let max = if mutant::is(Mutant::RetentionByOnePartition) { maxima.next() } else { maxima.max() };
        let max = if mutant::is(Mutant::RetentionByClock) { Some(clock::now().timestamp_micros()) } else { max };
        let retain = i64::try_from(retain.as_micros()).unwrap_or(i64::MAX);
        Ok(max.map(|max| max.saturating_sub(retain)))
    }

    /// What is true of a snapshot; asked after it was taken: what it lacks has been recorded before.
    fn about(&self, stream: &str, snapshot: &MasterSnapshot) -> Result<StreamMeta> {
        let reasons = self.stream(stream)?.archive_reasons(stream);
        Ok(StreamMeta {
            version: snapshot.version(),
            archived_until: snapshot.archived_until().iter().collect(),
            complete: reasons.is_empty(),
            reasons,
        })
    }

    /// A stream's archived part, with the computed column.
    fn stream_table(
        &self,
        stream: &str,
        snapshot: &MasterSnapshot,
    ) -> std::result::Result<Arc<dyn TableProvider>, Failure> {
        let config = &self.stream(stream)?.config;
        let (event_time, lateness) = (config.event_time.as_deref(), config.allowed_lateness);
        let events = snapshot.scan_archived().map_err(Error::internal)?;
        // The views' own function: an operator of the engine is not nullable in plans and nullable when it runs.
        let late = match (event_time, lateness) {
            (Some(event_time), Some(lateness)) => {
                late_function(lateness).call(vec![ident(event_time), ident(EVENT_TIME_MAX)])
            }
            _ => lit(false),
        };
        let mut columns: Vec<Expr> = events.schema().fields().iter().map(|f| ident(f.name())).collect();
        let system = events.schema().index_of(EVENT_TIME_MAX).map_or(0, |i| i + 1);
        columns.insert(system, late.alias(LATE));
        let plan = LogicalPlanBuilder::scan(stream, provider_as_source(events), None)
            .and_then(|b| b.project(columns)?.build())
            .map_err(failure)?;
        Ok(Arc::new(ViewTable::new(plan, None)))
    }

    /// `_partition, _offset, error` of the events on which the view's SQL failed, below the answer's position.
    async fn errors_table(&self, answer: &ViewAnswer) -> std::result::Result<Arc<dyn TableProvider>, Failure> {
        let schema = event_error_schema();
        let mut batches = Vec::new();
        for run in answer.generation.iter().flat_map(|g| &g.runs) {
            batches.extend(match read_event_errors(&self.inner.input.storage, run).await {
                Ok(read) => read,
                Err(ReadError::Fault(fault @ Fault::Missing { .. })) => {
                    let gone = object_store::Error::from(fault);
                    return Err(Failure::FileGone(DataFusionError::ObjectStore(Box::new(gone))));
                }
                Err(ReadError::Fault(fault)) => return Err(Error::unreadable(&fault).into()),
                Err(ReadError::Storage(error)) => return Err(Error::read(error).into()),
            });
        }
        batches.extend(answer.runs.iter().map(|run| event_errors_to_batch(&run.errors)));
        Ok(Arc::new(MemTable::try_new(schema, vec![batches]).map_err(failure)?))
    }
}

pub(crate) fn view_failure(error: watershed_shared::view::Error) -> Failure {
    match error {
        watershed_shared::view::Error::Engine { source, .. } => failure(source),
        other => Failure::Answer(Error::internal(other)),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Answer(error)
    }
}
