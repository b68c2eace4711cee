//! What answers requests at one moment. Immutable: a request works on what it took at its start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use datafusion::catalog::TableProvider;
use serde::Serialize;
use watershed_shared::catalog::{Definition, Generation};
use watershed_shared::clock;
use watershed_shared::delta::{DeltaRun, Reason};
use watershed_shared::names::{DefinitionHash, GenerationId};
use watershed_shared::offsets::{Cut, Offset, OffsetVector, PartitionId, Position};
use watershed_shared::run::{Fault, RunsTable};
use watershed_shared::view::{CompiledView, Kind};

use crate::merged::{DeltaTable, MergedStates};

use super::decide::Pair;

/// All views of a stream, as they answer now.
#[derive(Debug, Clone)]
pub struct StreamAnswer {
    pub stream: String,
    /// Where the stream's joined views stand.
    pub position: Position,
    pub origins: OffsetVector,
    pub log_end: OffsetVector,
    pub views: BTreeMap<String, Arc<ViewAnswer>>,
    /// Views that cannot be answered at all, with the reason.
    pub unanswerable: BTreeMap<String, String>,
    /// The log's end as it was at the start; `None` until the worker has seen it.
    pub start_end: Option<OffsetVector>,
    pub reasons: Vec<Reason>,
    /// Late events that the workers have read since then, for `status`.
    pub late: u64,
    pub late_since: Option<DateTime<Utc>>,
}

impl StreamAnswer {
    /// Whether every view can be answered and has reached the log's end as it was at the start.
    pub fn caught_up(&self) -> bool {
        let Some(end) = &self.start_end else { return false };
        self.unanswerable.is_empty() && self.views.values().all(|v| v.position.covers(end))
    }
}

/// The event that is known to be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pending {
    /// Its record's timestamp, microseconds.
    Since(i64),
    /// Not known how old it is.
    Unknown,
}

/// One view's answer: a generation (or none) and the delta from its cut up to a position.
#[derive(Debug, Clone)]
pub struct ViewAnswer {
    pub view: String,
    pub stream: String,
    pub compiled: Arc<CompiledView>,
    /// Of the definition.
    pub retain: Option<Duration>,
    /// Of the definition: a row view's rows are stored.
    pub(crate) materialize: bool,
    /// `None` before the first build.
    pub generation: Option<Arc<Generation>>,
    /// With the origin of each partition that no cut names.
    pub cut: Cut,
    pub position: Position,
    pub origins: OffsetVector,
    pub log_end: OffsetVector,
    pub reasons: Vec<Reason>,
    pub(crate) runs: Vec<Arc<DeltaRun>>,
    pub(crate) generation_runs: Option<Arc<RunsTable>>,
    /// The running maxima of event time at the position that the speed layer knows; what lies in front of other
    /// partitions' positions is archived.
    pub(crate) maxima: BTreeMap<PartitionId, Option<i64>>,
    pub(crate) pending: Pending,
    pub(crate) captured_at: DateTime<Utc>,
}

impl ViewAnswer {
    pub(crate) fn pair(&self) -> Pair {
        Pair {
            definition: self.compiled.definition().clone(),
            generation: self.generation_id(),
            cut: self.generation.as_ref().map(|g| g.cut.clone()).unwrap_or_default(),
        }
    }

    /// 0 before the first build.
    pub fn generation_id(&self) -> GenerationId {
        self.generation.as_ref().map(|g| g.id).unwrap_or_default()
    }

    /// Events below the position on which the view's SQL failed.
    pub fn errors(&self) -> u64 {
        let generation = self.generation.iter().flat_map(|g| &g.runs).map(|r| r.errors).sum::<u64>();
        generation + self.runs.iter().map(|r| r.errors.len() as u64).sum::<u64>()
    }

    /// A view from one of its generations alone: its position is the cut.
    pub(crate) fn alone(
        view: &str,
        now: &StreamAnswer,
        compiled: Arc<CompiledView>,
        definition: &Definition,
        generation: Arc<Generation>,
        generation_runs: Option<Arc<RunsTable>>,
    ) -> Self {
        let cut = now.origins.join(&generation.cut);
        Self {
            view: view.to_owned(),
            stream: now.stream.clone(),
            compiled,
            retain: definition.retain,
            materialize: definition.materialize,
            generation: Some(generation),
            position: cut.clone(),
            cut,
            origins: now.origins.clone(),
            log_end: now.log_end.clone(),
            reasons: now.reasons.clone(),
            runs: Vec::new(),
            generation_runs,
            maxima: BTreeMap::new(),
            pending: Pending::Unknown,
            captured_at: clock::now(),
        }
    }

    /// The stored states of this answer: those of the generation's runs and of the delta's.
    pub(crate) fn stored_states(&self) -> MergedStates {
        let schema = self.compiled.state_schema();
        let mut parts: Vec<Arc<dyn TableProvider>> = self.generation_states().into_iter().collect();
        parts.push(Arc::new(self.delta_states()));
        MergedStates::new(schema, parts)
    }

    /// What is wrong with a file of the generation, as a reader has found.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.generation_runs.as_ref().and_then(|runs| runs.fault())
    }

    /// The generation's states alone; `None` where none are stored.
    pub(crate) fn generation_states(&self) -> Option<Arc<dyn TableProvider>> {
        self.generation_runs.clone().map(|runs| runs as Arc<dyn TableProvider>)
    }

    /// The delta's states alone.
    pub(crate) fn delta_states(&self) -> DeltaTable {
        DeltaTable::new(self.compiled.state_schema(), self.compiled.key_count(), self.runs.clone())
    }

    /// Whether what lies below the cut is not stored but read from the master dataset: a row view's rows.
    pub(crate) fn reads_master(&self) -> bool {
        self.generation.is_some() && keeps_failures_only(&self.compiled, self.materialize)
    }

    /// What stands under `meta.views`.
    pub fn meta(&self, now: DateTime<Utc>) -> ViewMeta {
        let log_end = self.log_end.join(&self.position);
        let partitions = self.position.iter().map(|(partition, position)| {
            let batch_until = self.cut.get(partition).unwrap_or(position);
            let log_end = log_end.get(partition).unwrap_or(position);
            (partition, PartitionMeta { batch_until, position, log_end })
        });
        let lag_seconds = if self.position.covers(&self.log_end) {
            Some(0.0)
        } else {
            match self.pending {
                Pending::Since(micros) => Some(((now.timestamp_micros() - micros).max(0) as f64) / 1e6),
                Pending::Unknown => None,
            }
        };
        ViewMeta {
            definition: self.compiled.definition().clone(),
            generation: self.generation_id(),
            built_at: self.generation.as_ref().map(|g| g.published_at),
            complete: self.reasons.is_empty(),
            reasons: self.reasons.clone(),
            partitions: partitions.collect(),
            lag_seconds,
            errors: self.errors(),
        }
    }
}

/// Whether the runs of a view's generations hold nothing but the events on which its SQL fails.
pub(crate) fn keeps_failures_only(compiled: &CompiledView, materialize: bool) -> bool {
    compiled.kind() == Kind::Rows && !materialize
}

/// The reason of a process that has just started.
pub const CATCHING_UP: &str = "catching_up";
/// The reason of a view whose delta is being built again.
pub const REPLAYING: &str = "replaying";

/// The reason of a generation of which a file is missing or damaged.
pub const UNREADABLE: &str = "generation_unreadable";

/// `meta.views.<view>`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ViewMeta {
    pub definition: DefinitionHash,
    pub generation: GenerationId,
    #[serde(serialize_with = "rfc3339")]
    pub built_at: Option<DateTime<Utc>>,
    pub complete: bool,
    pub reasons: Vec<Reason>,
    pub partitions: BTreeMap<PartitionId, PartitionMeta>,
    /// The age of the oldest event not yet included; null when it is not known.
    pub lag_seconds: Option<f64>,
    pub errors: u64,
}

/// `meta.views.<view>.partitions.<partition>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PartitionMeta {
    pub batch_until: Offset,
    pub position: Offset,
    pub log_end: Offset,
}

/// RFC 3339 with `Z`, as all timestamps of the interface.
fn rfc3339<S: serde::Serializer>(at: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.serialize_str(&at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)),
        None => serializer.serialize_none(),
    }
}
