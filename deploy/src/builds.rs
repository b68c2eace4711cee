//! The batch layer's builds as the serving layer asks for them, within one process.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use watershed_batch_layer::builder::{BuildRequest, Builder, RequestError};
use watershed_serving_layer::{BuildEstimate, Builds, BuildsError, Started};
use watershed_shared::builds::{BuildState, BuildStatus, Trigger};
use watershed_shared::catalog::{BuildMode, Rejected, ViewEvent, ViewState};
use watershed_shared::clock;
use watershed_shared::names::{BuildId, GenerationId};
use watershed_shared::schedule::Schedule;

/// [`Builds`] over a [`Builder`] of this process.
#[derive(Debug)]
pub(crate) struct LocalBuilds {
    pub(crate) builder: Builder,
    /// By view.
    pub(crate) schedules: BTreeMap<String, Vec<(BuildMode, Schedule)>>,
}

#[async_trait]
impl Builds for LocalBuilds {
    async fn start(&self, view: &str, mode: BuildMode, dry_run: bool) -> Result<Started, BuildsError> {
        let request = BuildRequest { view: view.to_owned(), mode, base: None, trigger: Trigger::Manual };
        if dry_run {
            let plan = self.builder.dry_run(&request).await.map_err(refused)?;
            return Ok(Started::Estimate(BuildEstimate {
                view: view.to_owned(),
                mode: plan.mode,
                definition: Some(plan.definition),
                base: plan.base,
                cut: plan.cut,
                events: plan.offsets_to_read,
            }));
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
        self.builder.cancel(id).map_err(refused)
    }

    async fn activate(&self, view: &str, generation: GenerationId) -> Result<BuildId, BuildsError> {
        let request = BuildRequest {
            view: view.to_owned(),
            mode: BuildMode::Activate,
            base: Some(generation),
            trigger: Trigger::Manual,
        };
        Ok(self.builder.start(request).await.map_err(refused)?.id)
    }

    async fn pause(&self, view: &str, paused: bool) -> Result<(), BuildsError> {
        let target = self.builder.targets().find(|t| t.view == view);
        let target = target.ok_or_else(|| BuildsError::UnknownView(view.to_owned()))?;
        let decided = target
            .register
            .update(|state: &ViewState| {
                Ok::<_, Rejected>((state.paused != paused).then_some(ViewEvent::Paused { paused }))
            })
            .await;
        decided.map(drop).map_err(|e| BuildsError::Unavailable(e.to_string()))
    }

    async fn next_times(&self, view: &str) -> Result<Vec<(BuildMode, DateTime<Utc>)>, BuildsError> {
        let now = clock::now();
        let schedules = self.schedules.get(view).into_iter().flatten();
        Ok(schedules.filter_map(|(mode, s)| Some((*mode, s.next_after(now)?))).collect())
    }
}

fn refused(error: RequestError) -> BuildsError {
    match error {
        RequestError::UnknownView(view) => BuildsError::UnknownView(view),
        RequestError::UnknownBuild(id) => BuildsError::UnknownBuild(id),
        RequestError::UnknownGeneration { view, generation } => BuildsError::UnknownGeneration { view, generation },
        RequestError::AlreadyRunning { view, build } => BuildsError::AlreadyRunning { view, id: build },
        RequestError::Finished { build, state } => BuildsError::Finished { id: build, state },
        RequestError::Elsewhere { .. } | RequestError::Register(_) => BuildsError::Unavailable(error.to_string()),
    }
}
