//! Starts builds at the times that the views' cron expressions name.

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use watershed_shared::builds::Trigger;
use watershed_shared::catalog::BuildMode;
use watershed_shared::clock;
use watershed_shared::schedule::Schedule;

use crate::builder::{BuildRequest, Builder, RequestError};

/// One schedule of one view.
#[derive(Debug)]
pub struct ScheduledBuild {
    pub view: String,
    pub mode: BuildMode,
    pub schedule: Schedule,
}

/// Starts builds of `scheduled` until `shutdown`.
///
/// A time that comes while the view is being built is skipped, as is one while its schedule is paused. Times that
/// passed while the process was down are not made up for: the next one covers them.
pub async fn run(scheduled: ScheduledBuild, builder: Builder, shutdown: CancellationToken) {
    loop {
        let now = clock::now();
        let Some(next) = scheduled.schedule.next_after(now) else { return };
        let wait = (next - now).to_std().unwrap_or_default();
        // Woken at least each minute, so that a wall clock that was set is followed.
        let nap = wait.min(std::time::Duration::from_secs(60));
        tokio::select! {
            () = clock::sleep(nap) => {}
            () = shutdown.cancelled() => return,
        }
        if nap == wait {
            trigger(&scheduled, &builder).await;
        }
    }
}

async fn trigger(scheduled: &ScheduledBuild, builder: &Builder) {
    let view = &scheduled.view;
    let target = builder.targets().find(|t| t.view == *view);
    let paused = match target {
        Some(target) => target.register.state().await.map(|s| s.paused),
        None => return,
    };
    match paused {
        Ok(true) => {
            info!(%view, "the schedule is paused");
            return;
        }
        Ok(false) => {}
        // It looks again before it claims.
        Err(error) => warn!(%view, %error, "cannot read the view's register; the build is tried all the same"),
    }
    let request = BuildRequest {
        view: view.clone(),
        mode: scheduled.mode,
        base: None,
        trigger: Trigger::Schedule,
        requested: None,
    };
    match builder.start(request).await {
        // What becomes of it is said when it ends.
        Ok(status) => debug!(%view, build = %status.id, mode = ?scheduled.mode, "a scheduled build starts"),
        Err(RequestError::AlreadyRunning { build, .. }) => {
            info!(%view, %build, "a scheduled build is skipped: another one of the view runs");
        }
        Err(error) => warn!(%view, %error, "a scheduled build could not be started"),
    }
}
