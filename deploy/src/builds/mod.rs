//! The batch layer's builds as the serving layer asks for them.

mod local;
mod remote;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use watershed_batch_layer::builder::{DryRun, RequestError};
use watershed_serving_layer::{BuildEstimate, BuildsError};
use watershed_shared::catalog::{BuildMode, Rejected, ViewEvent, ViewState};
use watershed_shared::clock;
use watershed_shared::config::Config;
use watershed_shared::register::Register;
use watershed_shared::schedule::Schedule;

pub(crate) use local::LocalBuilds;
pub(crate) use remote::{RemoteBuilds, RemoteTarget};

/// By view.
pub(crate) type Schedules = BTreeMap<String, Vec<(BuildMode, Schedule)>>;

/// The schedules of all views.
///
/// # Errors
/// If an expression is wrong.
pub(crate) fn schedules(config: &Config) -> Result<Schedules> {
    let mut schedules = Schedules::new();
    for view in config.views.values() {
        for (mode, expression) in [(BuildMode::Rebuild, &view.rebuild), (BuildMode::Refresh, &view.refresh)] {
            if let Some(expression) = expression {
                let schedule = Schedule::parse(expression, view.timezone)
                    .with_context(|| format!("the schedule of view `{}`", view.name))?;
                schedules.entry(view.name.clone()).or_default().push((mode, schedule));
            }
        }
    }
    Ok(schedules)
}

fn next_times(schedules: &Schedules, view: &str) -> Vec<(BuildMode, DateTime<Utc>)> {
    let now = clock::now();
    let of_view = schedules.get(view).into_iter().flatten();
    of_view.filter_map(|(mode, s)| Some((*mode, s.next_after(now)?))).collect()
}

async fn pause(register: &Register<ViewState>, paused: bool) -> Result<(), BuildsError> {
    let decided = register.update(|state: &ViewState| {
        Ok::<_, Rejected>((state.paused != paused).then_some(ViewEvent::Paused { paused }))
    });
    decided.await.map(drop).map_err(|e| BuildsError::Unavailable(e.to_string()))
}

fn estimate(view: &str, plan: DryRun) -> BuildEstimate {
    BuildEstimate {
        view: view.to_owned(),
        mode: plan.mode,
        definition: Some(plan.definition),
        base: plan.base,
        cut: plan.cut,
        events: plan.offsets_to_read,
    }
}

fn refused(error: RequestError) -> BuildsError {
    match error {
        RequestError::UnknownView(view) => BuildsError::UnknownView(view),
        RequestError::UnknownBuild(id) => BuildsError::UnknownBuild(id),
        RequestError::UnknownGeneration { view, generation } => BuildsError::UnknownGeneration { view, generation },
        RequestError::AlreadyRunning { view, build } => BuildsError::AlreadyRunning { view, id: build },
        RequestError::Finished { build, state } => BuildsError::Finished { id: build, state },
        RequestError::Elsewhere { .. } | RequestError::Register(_) | RequestError::Record(_) => {
            BuildsError::Unavailable(error.to_string())
        }
    }
}
