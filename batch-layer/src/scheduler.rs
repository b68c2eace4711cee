//! Starts builds at the times that the views' cron expressions name.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use watershed_shared::builds::Trigger;
use watershed_shared::catalog::BuildMode;
use watershed_shared::clock;
use watershed_shared::schedule::Schedule;

use crate::builder::{BuildRequest, Builder, RequestError};

/// Between two looks at the wall clock: it may be set meanwhile.
const NAP: Duration = Duration::from_secs(60);
/// A clock that goes back by less is being corrected: times that were built do not come again. One that goes back by
/// more was wrong: its times are new ones.
const CORRECTION: chrono::Duration = chrono::Duration::minutes(5);

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
/// passed while the process was down are not made up for: the next one covers them. Of those that passed while it
/// slept, or was kept from looking, one is.
pub async fn run(scheduled: ScheduledBuild, builder: Builder, shutdown: CancellationToken) {
    let mut times = Times::new(&scheduled.schedule, clock::now());
    loop {
        match times.look(&scheduled.schedule, clock::now()) {
            Look::Wait(wait) => {
                if shutdown.run_until_cancelled(clock::sleep(wait)).await.is_none() {
                    return;
                }
            }
            Look::Build => trigger(&scheduled, &builder).await,
            Look::Over => return,
        }
    }
}

/// The time that is waited for.
#[derive(Debug)]
struct Times {
    next: Option<DateTime<Utc>>,
    /// What the clock said when it was chosen.
    chosen_at: DateTime<Utc>,
}

/// What a look at the clock says.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// Look again after this time, or earlier.
    Wait(Duration),
    /// The time has come, once.
    Build,
    /// No time is to come.
    Over,
}

impl Times {
    fn new(schedule: &Schedule, now: DateTime<Utc>) -> Self {
        Self { next: schedule.next_after(now), chosen_at: now }
    }

    fn look(&mut self, schedule: &Schedule, now: DateTime<Utc>) -> Look {
        if now < self.chosen_at - CORRECTION {
            *self = Self::new(schedule, now);
        }
        let Some(next) = self.next else { return Look::Over };
        match (next - now).to_std() {
            Ok(wait) if !wait.is_zero() => Look::Wait(wait.min(NAP)),
            Ok(_) | Err(_) => {
                *self = Self::new(schedule, now);
                Look::Build
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What looks at these times of a day say, at a schedule of 03:00 that was started at 02:00.
    fn looks(times: &[&str]) -> Vec<Look> {
        let at = |time: &&str| format!("2024-10-{time}Z").parse::<DateTime<Utc>>().expect("a time");
        let schedule = Schedule::parse("0 3 * * *", chrono_tz::UTC).expect("a schedule");
        let mut waited_for = Times::new(&schedule, at(&"06T02:00:00"));
        times.iter().map(|time| waited_for.look(&schedule, at(time))).collect()
    }

    fn wait(milliseconds: u64) -> Look {
        Look::Wait(Duration::from_millis(milliseconds))
    }

    #[test]
    fn a_time_comes_once_also_for_a_clock_that_is_behind_at_waking() {
        let found = looks(&["06T02:58:59", "06T02:59:59.999", "06T03:00:00", "06T02:59:59.990", "07T03:00:00.001"]);
        assert_eq!(found, [wait(60_000), wait(1), Look::Build, wait(60_000), Look::Build]);
    }

    #[test]
    fn a_time_at_which_the_process_slept_comes_at_waking() {
        assert_eq!(
            looks(&["06T02:58:59.500", "06T03:00:07", "06T03:00:07"]),
            [wait(60_000), Look::Build, wait(60_000)]
        );
        assert_eq!(looks(&["09T12:00:00", "09T12:00:00"]), [Look::Build, wait(60_000)], "of several, one");
    }

    #[test]
    fn a_clock_that_was_far_ahead_is_followed_back() {
        let found = looks(&["30T03:00:00", "06T02:59:58", "06T03:00:00", "06T02:57:00", "06T03:00:00", "07T03:00:00"]);
        assert_eq!(found, [Look::Build, wait(2_000), Look::Build, wait(60_000), wait(60_000), Look::Build]);
    }
}
