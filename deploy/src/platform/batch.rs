//! The batch layer's builds and their schedules.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use watershed_batch_layer::builder::{BuildTarget, Builder, BuilderOptions};
use watershed_batch_layer::history::History;
use watershed_batch_layer::scheduler::{self, ScheduledBuild};
use watershed_shared::catalog::BuildMode;
use watershed_shared::config::Config;
use watershed_shared::schedule::Schedule;
use watershed_shared::task;

use super::Parts;
use super::stages::Stage;
use super::stream::Stream;
use super::view::View;
use crate::builds::LocalBuilds;

pub(super) async fn start_builds(
    parts: &Parts<'_>,
    holder: String,
    streams: &BTreeMap<String, Stream>,
    views: &BTreeMap<String, View>,
    stage: &mut Stage,
) -> Result<LocalBuilds> {
    let history = History::open(parts.storage.clone()).await.context("read the history of builds")?;
    let targets = views.iter().map(|(name, view)| {
        let stream = &streams[&view.stream];
        BuildTarget {
            view: name.clone(),
            register: view.register.clone(),
            master: stream.master.clone(),
            delta: Some(Arc::clone(&stream.delta)),
            archive: stream.archive.clone(),
            origins: stream.origins.clone(),
        }
    });
    let builder = Builder::new(BuilderOptions {
        storage: parts.storage.clone(),
        history,
        definitions: parts.definitions.clone(),
        settings: parts.config.batch.clone(),
        spill_dir: parts.config.data_dir.join("spill"),
        holder,
        targets: targets.collect(),
        shutdown: stage.stop.clone(),
    });
    builder.recover().await.context("look for interrupted builds")?;
    let schedules = schedules(parts.config)?;
    for (view, of_view) in &schedules {
        for (mode, schedule) in of_view {
            let scheduled = ScheduledBuild { view: view.clone(), mode: *mode, schedule: schedule.clone() };
            let run = scheduler::run(scheduled, builder.clone(), stage.stop.clone());
            stage.tasks.push(task::spawn("scheduler", run));
        }
    }
    let (draining, stop) = (builder.clone(), stage.stop.clone());
    stage.tasks.push(task::spawn("builds", async move {
        stop.cancelled().await;
        draining.drained().await;
    }));
    Ok(LocalBuilds { builder, schedules })
}

fn schedules(config: &Config) -> Result<BTreeMap<String, Vec<(BuildMode, Schedule)>>> {
    let mut schedules: BTreeMap<String, Vec<_>> = BTreeMap::new();
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
