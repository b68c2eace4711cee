//! Builds that other processes run: asked for, followed and stopped through the storage.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use watershed_batch_layer::builder::dry_run;
use watershed_batch_layer::history::{StoredHistory, read_status};
use watershed_batch_layer::requests::{self, requested};
use watershed_serving_layer::{Builds, BuildsError, Started};
use watershed_shared::builds::{BuildState, BuildStatus, Trigger};
use watershed_shared::catalog::{BuildMode, ViewState};
use watershed_shared::clock;
use watershed_shared::delta::DeltaService;
use watershed_shared::master::MasterDataset;
use watershed_shared::names::{BuildId, GenerationId};
use watershed_shared::offsets::OffsetVector;
use watershed_shared::register::Register;
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

    async fn ask(
        &self,
        view: &str,
        mode: BuildMode,
        base: Option<GenerationId>,
        trigger: Trigger,
    ) -> Result<BuildId, BuildsError> {
        let register = &self.target(view)?.register;
        requests::ask(self.history.storage(), register, mode, base, trigger).await.map_err(refused)
    }

    /// As it is recorded, else as it is asked for: whoever asked may have been killed before it recorded that.
    async fn status(&self, id: &BuildId) -> Result<BuildStatus, BuildsError> {
        if let Some(status) = read_status(self.history.storage(), id).await.map_err(unavailable)? {
            return Ok(status);
        }
        for (view, target) in &self.targets {
            let state = target.register.state().await.map_err(|e| BuildsError::Unavailable(e.to_string()))?;
            if let Some(request) = state.requests.iter().find(|r| r.id == *id) {
                return Ok(requested(view, request));
            }
        }
        Err(BuildsError::UnknownBuild(id.clone()))
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
        Ok(Started::Build(self.ask(view, mode, None, trigger).await?))
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
        if status.state.is_final() {
            return Err(BuildsError::Finished { id: id.clone(), state: status.state });
        }
        let register = &self.target(&status.view)?.register;
        requests::cancel(self.history.storage(), register, status).await.map_err(refused)
    }

    async fn activate(&self, view: &str, generation: GenerationId) -> Result<BuildId, BuildsError> {
        self.ask(view, BuildMode::Activate, Some(generation), Trigger::Manual).await
    }

    async fn pause(&self, view: &str, paused: bool) -> Result<(), BuildsError> {
        pause(&self.target(view)?.register, paused).await
    }

    async fn next_times(&self, view: &str) -> Result<Vec<(BuildMode, DateTime<Utc>)>, BuildsError> {
        Ok(next_times(&self.schedules, view))
    }
}
