//! The delta: the speed layer's runs for the events at or past the cut, as the layers hand them to each other.
//!
//! A [`StreamDelta`] is one immutable snapshot of all views of a stream at one common position. Runs are shared by
//! reference, so a snapshot is a list; taking one costs nothing and nothing that happens later changes it.

mod client;
mod combine;
mod link;
pub mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::names::{DefinitionHash, RunId};
use crate::offsets::{Coverage, Cut, OffsetVector, PartitionId, Position, Side};
use crate::run::EventError;

pub use client::DeltaClient;
pub use link::{HEARTBEAT, Peer, Peers, PeersError, Progress};

/// An immutable run of the delta.
#[derive(Debug)]
pub struct DeltaRun {
    pub id: RunId,
    pub coverage: Coverage,
    /// In the view's state schema, sorted by the group key.
    pub states: RecordBatch,
    /// Events in `coverage` on which the view's SQL failed.
    pub errors: Vec<EventError>,
    pub memory_bytes: usize,
}

/// The delta of one definition of a view: exactly the events in `[from, position)`, each in one run.
///
/// It may not know every partition of the stream: one that nobody owns is absent from `position`.
#[derive(Debug, Clone)]
pub struct ViewDelta {
    pub definition: DefinitionHash,
    /// What lies below has been dropped. A partition that is absent stands at its origin.
    pub from: Cut,
    pub position: Position,
    pub runs: Vec<Arc<DeltaRun>>,
    /// It advances with all other views of the stream. If not, it replays and has a position of its own.
    pub joined: bool,
    /// Partitions that nobody keeps up now: they stand still until somebody claims them.
    pub unowned: BTreeSet<PartitionId>,
}

/// What a worker answers when asked for its runs from a cut.
#[derive(Debug, Clone)]
pub enum DeltaAnswer {
    /// The runs that hold exactly the events in `[cut, position)`.
    Runs(Vec<Arc<DeltaRun>>),
    /// The position has not reached the cut yet.
    Behind,
    /// A run straddles the cut: the worker reads that run's events again.
    NoBoundary,
    /// Events past the cut have been dropped: read the register again.
    Gone,
}

impl ViewDelta {
    /// The runs at or past `cut`. A partition that this delta does not know has none, and stands at the cut; so does one that
    /// nobody owns and that did not get there.
    pub fn from_cut(&self, cut: &Cut) -> DeltaAnswer {
        if !cut.covers(&self.from) {
            return DeltaAnswer::Gone;
        }
        let behind = |(p, at)| cut.get(p).is_some_and(|cut| at < cut) && !self.unowned.contains(&p);
        if self.position.iter().any(behind) {
            return DeltaAnswer::Behind;
        }
        let mut runs = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            match run.coverage.side(cut) {
                Side::Below => {}
                Side::AtOrPast => runs.push(Arc::clone(run)),
                Side::Straddles => return DeltaAnswer::NoBoundary,
            }
        }
        DeltaAnswer::Runs(runs)
    }
}

/// The running maximum of event time over a partition's prefix, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Maximum {
    /// Not read yet.
    #[default]
    Unknown,
    /// `None`: no event of the prefix has an event time that counts.
    Known(Option<i64>),
}

impl Maximum {
    /// Behind a decoded batch that says `event_time_max`: of the whole prefix, or nothing.
    pub fn behind_batch(event_time_max: Option<i64>) -> Self {
        event_time_max.map_or(Self::Unknown, |max| Self::Known(Some(max)))
    }

    /// What is known of a prefix from what is known of it and of a shorter one.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Known(a), Self::Known(b)) => Self::Known(a.max(b)),
            (Self::Unknown, known) | (known, Self::Unknown) => known,
        }
    }
}

/// Where a partition of the stream stands in the speed layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// In front of the position.
    pub event_time_max: Maximum,
    /// Late events and dead letters that this worker has read since then.
    pub late: u64,
    pub dead_letters: u64,
    #[serde(default)]
    pub counted_since: Option<DateTime<Utc>>,
}

/// Why a worker does not advance, or an answer from it lacks something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Stable, snake case: `catching_up`, `topic_replaced`, `offsets_lost`, `speed_stopped`, …
    pub code: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<PartitionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<i64>,
    pub message: String,
}

/// A snapshot of a stream's delta: all joined views at one position.
#[derive(Debug, Clone)]
pub struct StreamDelta {
    pub stream: String,
    /// Of all joined views.
    pub position: Position,
    /// Per partition the log's start when the stream was first seen.
    pub origins: OffsetVector,
    /// The log's last stable offsets as last seen.
    pub log_end: OffsetVector,
    /// Microseconds since the epoch: the record timestamp behind which events are known to be missing from
    /// `position`; `None` at the log's end.
    pub oldest_pending: Option<i64>,
    pub partitions: BTreeMap<PartitionId, PartitionStatus>,
    /// By view, then definition.
    pub views: BTreeMap<String, BTreeMap<DefinitionHash, Arc<ViewDelta>>>,
    /// Empty while all goes well.
    pub reasons: Vec<Reason>,
    /// How many losses the stream's register named when these runs were begun: they may lack those events, so who shows
    /// them has to know as many.
    pub losses: usize,
}

impl StreamDelta {
    pub fn view(&self, view: &str, definition: &DefinitionHash) -> Option<&Arc<ViewDelta>> {
        self.views.get(view)?.get(definition)
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let joined = self.views.values().flat_map(BTreeMap::values).all(|view| view.joined);
        Progress { position: self.position.clone(), joined }
    }
}

/// The worker cannot seal: it is stopped or stopping.
#[derive(Debug, thiserror::Error)]
#[error("the speed worker does not answer. stream=`{stream}`")]
pub struct SealError {
    pub stream: String,
}

/// The speed layer's delta of one stream, as the builder and the serving layer see it.
///
/// # Contract
/// - `watch` never goes back: positions of joined views only grow, and what one snapshot holds, the next holds in the
///   same or merged runs, unless it was dropped below the boundaries of the register's head. Only when the stream's
///   register names offsets that were lost does the worker begin again at the cuts, without them.
/// - `seal` ends the runs of all views where they stand, makes that boundary durable and answers it: each later
///   snapshot has a boundary there as long as a view's register names that cut.
#[async_trait]
pub trait DeltaService: Send + Sync + fmt::Debug {
    /// The current snapshot and those to come.
    fn watch(&self) -> watch::Receiver<Arc<StreamDelta>>;

    /// Ends all runs at the current position, and answers it. A partition is absent if who owns it did not answer.
    ///
    /// The boundary holds for at least a minute even if no register names it, so that a claim can be written.
    async fn seal(&self) -> Result<Cut, SealError>;
}
