//! The batch layer's builds as the serving layer asks for them, within one process.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use watershed_batch_layer::builder::{BuildRequest, Builder};
use watershed_serving_layer::{Builds, BuildsError, Started};
use watershed_shared::builds::{BuildState, BuildStatus, Trigger};
use watershed_shared::catalog::BuildMode;
use watershed_shared::names::{BuildId, GenerationId};

use super::{Schedules, estimate, next_times, pause, refused};

/// [`Builds`] over a [`Builder`] of this process.
#[derive(Debug)]
pub(crate) struct LocalBuilds {
    pub(crate) builder: Builder,
    pub(crate) schedules: Schedules,
}

#[async_trait]
impl Builds for LocalBuilds {
    async fn start(
        &self,
        view: &str,
        mode: BuildMode,
        trigger: Trigger,
        dry_run: bool,
    ) -> Result<Started, BuildsError> {
        let request = BuildRequest { view: view.to_owned(), mode, base: None, trigger, requested: None };
        if dry_run {
            let plan = self.builder.dry_run(&request).await.map_err(refused)?;
            return Ok(Started::Estimate(estimate(view, plan)));
        }
        Ok(Started::Build(self.builder.start(request).await.map_err(refused)?.id))
    }

    async fn list(&self, view: Option<&str>, state: Option<BuildState>) -> Result<Vec<BuildStatus>, BuildsError> {
        let mut list = self.builder.history().list(view);
        list.retain(|status| state.is_none_or(|s| status.state == s));
        Ok(list)
    }

    async fn get(&self, id: &BuildId, wait: Option<Duration>) -> Result<BuildStatus, BuildsError> {
        let unknown = || BuildsError::UnknownBuild(id.clone());
        let mut status = self.builder.history().watch(id).ok_or_else(unknown)?;
        let before = status.borrow_and_update().state;
        if let (Some(wait), false) = (wait, before.is_final()) {
            let changed = status.wait_for(|s| s.state != before);
            // Either way what is answered is the status as it is then.
            drop(tokio::time::timeout(wait, changed).await);
        }
        Ok(status.borrow().clone())
    }

    async fn cancel(&self, id: &BuildId) -> Result<BuildStatus, BuildsError> {
        self.builder.cancel(id).await.map_err(refused)
    }

    async fn activate(&self, view: &str, generation: GenerationId) -> Result<BuildId, BuildsError> {
        let request = BuildRequest {
            view: view.to_owned(),
            mode: BuildMode::Activate,
            base: Some(generation),
            trigger: Trigger::Manual,
            requested: None,
        };
        Ok(self.builder.start(request).await.map_err(refused)?.id)
    }

    async fn pause(&self, view: &str, paused: bool) -> Result<(), BuildsError> {
        let target = self.builder.targets().find(|t| t.view == view);
        pause(&target.ok_or_else(|| BuildsError::UnknownView(view.to_owned()))?.register, paused).await
    }

    async fn next_times(&self, view: &str) -> Result<Vec<(BuildMode, DateTime<Utc>)>, BuildsError> {
        Ok(next_times(&self.schedules, view))
    }
}
