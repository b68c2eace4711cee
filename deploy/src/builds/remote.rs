//! Builds that other processes run: asked for, followed and stopped through the storage.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use watershed_batch_layer::builder::dry_run;
use watershed_batch_layer::history::{StoredHistory, new_build_id, read_status, write_status};
use watershed_batch_layer::requests::{end_build, record_end};
use watershed_serving_layer::{Builds, BuildsError, Started};
use watershed_shared::builds::{BuildState, BuildStatus, Trigger};
use watershed_shared::catalog::{BuildMode, BuildOutcome, Rejected, Request, ViewEvent, ViewState};
use watershed_shared::clock;
use watershed_shared::delta::DeltaService;
use watershed_shared::master::MasterDataset;
use watershed_shared::names::{BuildId, GenerationId};
use watershed_shared::offsets::OffsetVector;
use watershed_shared::register::{Register, UpdateError};
use watershed_shared::storage;

use super::{Schedules, estimate, next_times, pause, refused};

/// Between two looks at a build that is waited for.
const POLL: Duration = Duration::from_millis(200);

/// What is known of a view that others build.
#[derive(Debug)]
pub(crate) struct RemoteTarget {
    pub(crate) register: Register<ViewState>,
    pub(crate) master: MasterDataset,
    pub(crate) delta: Arc<dyn DeltaService>,
    pub(crate) origins: tokio::sync::watch::Receiver<OffsetVector>,
}

/// [`Builds`] by whichever batch process takes them on.
#[derive(Debug)]
pub(crate) struct RemoteBuilds {
    pub(crate) history: StoredHistory,
    /// By view.
    pub(crate) targets: BTreeMap<String, RemoteTarget>,
    pub(crate) schedules: Schedules,
}

fn unavailable(error: storage::Error) -> BuildsError {
    BuildsError::Unavailable(format!("{:#}", anyhow::Error::from(error)))
}

impl RemoteBuilds {
    fn target(&self, view: &str) -> Result<&RemoteTarget, BuildsError> {
        self.targets.get(view).ok_or_else(|| BuildsError::UnknownView(view.to_owned()))
    }

    /// Appends the request; its first status is there before.
    async fn request(
        &self,
        view: &str,
        mode: BuildMode,
        base: Option<GenerationId>,
        trigger: Trigger,
    ) -> Result<BuildId, BuildsError> {
        let target = self.target(view)?;
        let id = new_build_id();
        let mut status = BuildStatus::new(id.clone(), view, mode, trigger, "");
        status.base = base;
        status.progress.step = "waiting for a batch process".to_owned();
        write_status(self.history.storage(), &status).await.map_err(unavailable)?;
        let request = Request { id: id.clone(), mode, base, requested_at: status.requested_at, trigger, holder: None };
        let decided = target.register.update(|state: &ViewState| {
            // Ours, if the answer of an earlier try was lost.
            let there = state.is_open(&id) || state.generations.iter().any(|g| g.build == id);
            Ok::<_, Rejected>((!there).then(|| ViewEvent::Requested { request: request.clone() }))
        });
        let error = match decided.await {
            Ok(_) => return Ok(id),
            Err(UpdateError::Rejected(Rejected::AlreadyRunning(other))) => {
                BuildsError::AlreadyRunning { view: view.to_owned(), id: other }
            }
            Err(UpdateError::Rejected(Rejected::UnknownGeneration(generation))) => {
                BuildsError::UnknownGeneration { view: view.to_owned(), generation }
            }
            Err(error) => BuildsError::Unavailable(error.to_string()),
        };
        status.state = BuildState::Skipped;
        status.error = Some(error.to_string());
        status.finished_at = Some(clock::now());
        if let Err(error) = write_status(self.history.storage(), &status).await {
            tracing::warn!(build = %id, %error, "cannot record that a build was refused");
        }
        Err(error)
    }

    async fn status(&self, id: &BuildId) -> Result<BuildStatus, BuildsError> {
        let status = read_status(self.history.storage(), id).await.map_err(unavailable)?;
        status.ok_or_else(|| BuildsError::UnknownBuild(id.clone()))
    }
}

#[async_trait]
impl Builds for RemoteBuilds {
    async fn start(&self, view: &str, mode: BuildMode, trigger: Trigger, dry: bool) -> Result<Started, BuildsError> {
        if dry {
            let RemoteTarget { register, master, delta, origins } = self.target(view)?;
            let reached = delta.watch().borrow().position.clone();
            let origins = origins.borrow().clone();
            let plan = dry_run(register, master, &reached, &origins, mode, None).await.map_err(refused)?;
            return Ok(Started::Estimate(estimate(view, plan)));
        }
        Ok(Started::Build(self.request(view, mode, None, trigger).await?))
    }

    async fn list(&self, view: Option<&str>, state: Option<BuildState>) -> Result<Vec<BuildStatus>, BuildsError> {
        let mut list = self.history.list(view).await.map_err(unavailable)?;
        list.retain(|status| state.is_none_or(|s| status.state == s));
        Ok(list)
    }

    async fn get(&self, id: &BuildId, wait: Option<Duration>) -> Result<BuildStatus, BuildsError> {
        let first = self.status(id).await?;
        let Some(wait) = wait.filter(|_| !first.state.is_final()) else { return Ok(first) };
        let deadline = clock::Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(clock::Instant::now());
            clock::sleep(left.min(POLL)).await;
            let now = self.status(id).await?;
            if now.state != first.state || left.is_zero() {
                return Ok(now);
            }
        }
    }

    async fn cancel(&self, id: &BuildId) -> Result<BuildStatus, BuildsError> {
        let status = self.status(id).await?;
        let finished = |state| BuildsError::Finished { id: id.clone(), state };
        if status.state.is_final() {
            return Err(finished(status.state));
        }
        let target = self.target(&status.view)?;
        if end_build(&target.register, id, BuildOutcome::Cancelled).await.map_err(refused)? {
            // Who runs it records its end too; nobody may.
            record_end(self.history.storage(), id, BuildState::Cancelled, None).await.map_err(unavailable)?;
            return self.status(id).await;
        }
        Err(finished(self.status(id).await?.state))
    }

    async fn activate(&self, view: &str, generation: GenerationId) -> Result<BuildId, BuildsError> {
        self.request(view, BuildMode::Activate, Some(generation), Trigger::Manual).await
    }

    async fn pause(&self, view: &str, paused: bool) -> Result<(), BuildsError> {
        pause(&self.target(view)?.register, paused).await
    }

    async fn next_times(&self, view: &str) -> Result<Vec<(BuildMode, DateTime<Utc>)>, BuildsError> {
        Ok(next_times(&self.schedules, view))
    }
}
