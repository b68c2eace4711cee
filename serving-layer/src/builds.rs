//! Builds as the serving layer sees them: it starts, shows and stops them, and does not know how they are done.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use watershed_shared::builds::{BuildState, BuildStatus, Trigger};
use watershed_shared::catalog::BuildMode;
use watershed_shared::names::{BuildId, DefinitionHash, GenerationId};
use watershed_shared::offsets::Cut;

use crate::error::{Code, Error};

/// What a build would do, of `"dry_run": true`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildEstimate {
    pub view: String,
    pub mode: BuildMode,
    pub definition: Option<DefinitionHash>,
    pub base: Option<GenerationId>,
    pub cut: Cut,
    /// As offsets count them: an upper bound.
    pub events: u64,
}

/// What `start` did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    Build(BuildId),
    /// Nothing was started: it was a dry run.
    Estimate(BuildEstimate),
}

/// Why a build was not started, found or stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildsError {
    #[error("a build of view `{view}` is already running: {id}")]
    AlreadyRunning { view: String, id: BuildId },
    #[error("there is no build `{0}`")]
    UnknownBuild(BuildId),
    #[error("there is no view `{0}`")]
    UnknownView(String),
    #[error("view `{view}` has no generation {generation}")]
    UnknownGeneration { view: String, generation: GenerationId },
    #[error("build {id} is over: {state:?}")]
    Finished { id: BuildId, state: BuildState },
    /// No batch layer is reachable from this process, or the storage failed.
    #[error("{0}")]
    Unavailable(String),
}

impl From<BuildsError> for Error {
    fn from(error: BuildsError) -> Self {
        let code = match error {
            BuildsError::AlreadyRunning { .. } => Code::AlreadyRunning,
            BuildsError::UnknownBuild(_) => Code::UnknownBuild,
            BuildsError::UnknownView(_) => Code::UnknownView,
            BuildsError::UnknownGeneration { .. } => Code::UnknownGeneration,
            BuildsError::Finished { .. } => Code::Finished,
            BuildsError::Unavailable(_) => Code::NotReady,
        };
        Self::new(code, error.to_string())
    }
}

/// The batch layer's builds, wherever they run.
///
/// # Contract
/// - What `start` has answered, `get` and `list` know from then on.
/// - `activate` answers as soon as the build that brings the generation up to a fresh cut has been started.
#[async_trait]
pub trait Builds: Send + Sync + fmt::Debug {
    /// Starts a rebuild or a refresh; a refresh without a generation is a rebuild. `trigger` is recorded.
    async fn start(&self, view: &str, mode: BuildMode, trigger: Trigger, dry_run: bool)
    -> Result<Started, BuildsError>;

    /// Newest first.
    async fn list(&self, view: Option<&str>, state: Option<BuildState>) -> Result<Vec<BuildStatus>, BuildsError>;

    /// The build, at once, or as soon as its state changes or `wait` is over.
    async fn get(&self, id: &BuildId, wait: Option<Duration>) -> Result<BuildStatus, BuildsError>;

    /// Asks the build to end; what it had made is thrown away.
    async fn cancel(&self, id: &BuildId) -> Result<BuildStatus, BuildsError>;

    /// Starts the way back to (the definition of) an older generation.
    async fn activate(&self, view: &str, generation: GenerationId) -> Result<BuildId, BuildsError>;

    /// Pauses or resumes the view's schedules.
    async fn pause(&self, view: &str, paused: bool) -> Result<(), BuildsError>;

    /// When the view's schedules fire next, for `status`; `(mode, time)`.
    async fn next_times(&self, view: &str) -> Result<Vec<(BuildMode, DateTime<Utc>)>, BuildsError>;
}
