//! Builds as history and clients see them. They decide nothing; a view's register does.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::catalog::BuildMode;
use crate::clock;
use crate::names::{BuildId, DefinitionHash, GenerationId};
use crate::offsets::Cut;

/// The states of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildState {
    Queued,
    Running,
    Publishing,
    /// Ready to publish, waiting for an operator. Not used yet.
    Held,
    Succeeded,
    Failed,
    Cancelled,
    Skipped,
    Interrupted,
}

impl BuildState {
    /// Whether the build is over.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running | Self::Publishing | Self::Held)
    }
}

/// What started a build.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    #[default]
    Manual,
    Schedule,
    /// A file of the generation that answers is missing or damaged.
    Repair,
}

impl Trigger {
    /// Whether a person asked for it.
    pub fn is_manual(&self) -> bool {
        *self == Self::Manual
    }
}

/// How far a build is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it does: `queued`, `claiming the cut`, `waiting for the archiver`, `reading events`, `publishing`.
    pub step: String,
    pub events_read: u64,
    /// Events between the base's cut and the cut, as offsets count them; an upper bound.
    pub events_total: u64,
    /// Written to disk for want of memory, and read again.
    #[serde(default)]
    pub spilled_bytes: u64,
}

/// One build, as history knows it; the body of `GET /v1/rebuilds/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildStatus {
    pub id: BuildId,
    pub view: String,
    pub mode: BuildMode,
    pub state: BuildState,
    pub trigger: Trigger,
    pub progress: Progress,
    pub definition: Option<DefinitionHash>,
    pub base: Option<GenerationId>,
    pub cut: Option<Cut>,
    pub generation: Option<GenerationId>,
    pub error: Option<String>,
    pub requested_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    /// The process that runs it.
    pub holder: String,
}

impl BuildStatus {
    /// Whether a schedule asked for it, and there was nothing to do: of several in a row the last says it all.
    pub fn had_nothing_to_do(&self) -> bool {
        self.trigger == Trigger::Schedule && self.state == BuildState::Skipped
    }

    pub fn new(id: BuildId, view: &str, mode: BuildMode, trigger: Trigger, holder: &str) -> Self {
        Self {
            id,
            view: view.to_owned(),
            mode,
            state: BuildState::Queued,
            trigger,
            progress: Progress { step: "queued".to_owned(), ..Progress::default() },
            definition: None,
            base: None,
            cut: None,
            generation: None,
            error: None,
            requested_at: clock::now(),
            started_at: None,
            finished_at: None,
            holder: holder.to_owned(),
        }
    }
}
