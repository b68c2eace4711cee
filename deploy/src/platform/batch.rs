//! The batch layer's builds and their schedules, and the process that has nothing but the batch layer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use watershed_batch_layer::archiver;
use watershed_batch_layer::builder::{BuildTarget, Builder, BuilderOptions};
use watershed_batch_layer::history::History;
use watershed_batch_layer::requests::Requests;
use watershed_batch_layer::scheduler::{self, ScheduledBuild};
use watershed_shared::archive::ArchiverState;
use watershed_shared::delta::{DeltaService, Peers};
use watershed_shared::task;

use super::Parts;
use super::archive::start_archiver;
use super::health::{Gauge, Health, bind, serve_health};
use super::stages::{Shutdown, Stage};
use super::stream::Stream;
use super::view::View;
use crate::builds::schedules;

/// Builds, on schedule and on request.
pub(super) async fn start_builds(
    parts: &Parts<'_>,
    streams: &BTreeMap<String, Stream>,
    archives: &BTreeMap<String, archiver::Handle>,
    deltas: &BTreeMap<String, Arc<dyn DeltaService>>,
    views: &BTreeMap<String, View>,
    stage: &mut Stage,
) -> Result<Builder> {
    let history = History::open(parts.storage.clone()).await.context("read the history of builds")?;
    let targets = views.iter().map(|(name, view)| {
        let stream = &streams[&view.stream];
        BuildTarget {
            view: name.clone(),
            register: view.register.clone(),
            stream: stream.register.clone(),
            master: stream.master.clone(),
            delta: Some(Arc::clone(&deltas[&view.stream])),
            archive: archives[&view.stream].clone(),
            origins: stream.origins.clone(),
        }
    });
    let builder = Builder::new(BuilderOptions {
        storage: parts.storage.clone(),
        history: history.clone(),
        definitions: parts.definitions.clone(),
        settings: parts.config.batch.clone(),
        spill_dir: parts.config.data_dir.join("spill"),
        holder: parts.holder.clone(),
        targets: targets.collect(),
        shutdown: stage.stop.clone(),
    });
    builder.recover().await.context("look for interrupted builds")?;
    let recording = history.keep_recording(parts.holder.clone(), stage.stop.clone());
    stage.tasks.push(task::spawn("record builds", recording));
    for target in builder.targets() {
        let state = views[&target.view].state.clone();
        let requests = Requests::new(builder.clone(), target.clone(), state);
        stage.tasks.push(task::spawn("requested builds", requests.run(stage.stop.clone())));
    }
    for (view, of_view) in schedules(parts.config)? {
        for (mode, schedule) in of_view {
            let scheduled = ScheduledBuild { view: view.clone(), mode, schedule };
            let run = scheduler::run(scheduled, builder.clone(), stage.stop.clone());
            stage.tasks.push(task::spawn("scheduler", run));
        }
    }
    let (draining, stop) = (builder.clone(), stage.stop.clone());
    stage.tasks.push(task::spawn("builds", async move {
        stop.cancelled().await;
        draining.drained().await;
    }));
    Ok(builder)
}

/// Starts a process that archives and builds; others keep the deltas and serve.
pub(super) async fn start(
    parts: &Parts<'_>,
    streams: BTreeMap<String, Stream>,
    views: BTreeMap<String, View>,
    shutdown: &mut Shutdown,
) -> Result<SocketAddr> {
    let peers = Peers::new(parts.config.speed.token.clone())?;
    let mut archives = BTreeMap::new();
    let mut deltas = BTreeMap::new();
    for (name, stream) in &streams {
        let feeds = stream.feed(parts, shutdown.stage())?;
        let stage = shutdown.stage();
        archives.insert(name.clone(), start_archiver(parts, stream, &feeds, &views, stage));
        deltas.insert(name.clone(), stream.follow_delta(&peers, stage));
    }
    let builder = start_builds(parts, &streams, &archives, &deltas, &views, shutdown.stage()).await?;
    let listener = bind(parts.config.http.listen, "http").await?;
    let address = listener.local_addr()?;
    let stage = shutdown.stage();
    let health = Arc::new(Batch { archives, builder });
    let server = serve_health(listener, health, None, stage.stop.clone());
    stage.tasks.push(task::spawn("http", server));
    Ok(address)
}

#[derive(Debug)]
struct Batch {
    archives: BTreeMap<String, archiver::Handle>,
    builder: Builder,
}

impl Health for Batch {
    fn ready(&self) -> Result<(), String> {
        let stopped = self.archives.iter().filter_map(|(stream, archive)| match &*archive.state().borrow() {
            ArchiverState::Starting => Some(format!("the archiver of stream `{stream}` has just started")),
            ArchiverState::Stopped { error, .. } => Some(format!("archiving stream `{stream}` has stopped: {error}")),
            _ => None,
        });
        let stopped: Vec<String> = stopped.collect();
        if stopped.is_empty() { Ok(()) } else { Err(stopped.join("; ")) }
    }

    fn status(&self) -> Value {
        let streams = self.archives.iter().map(|(stream, archive)| {
            json!({
                "name": stream,
                "archiver": *archive.state().borrow(),
                "archived_until": *archive.archived_until().borrow(),
            })
        });
        let running = self.builder.history().list(None).into_iter().filter(|build| !build.state.is_final());
        json!({
            "role": "batch",
            "streams": streams.collect::<Vec<_>>(),
            "rebuilds": running.collect::<Vec<_>>(),
        })
    }

    fn gauges(&self) -> Vec<Gauge> {
        let states = self.archives.iter().map(|(stream, archive)| {
            (format!("stream=\"{stream}\",state=\"{}\"", archive.state().borrow().name()), 1.0)
        });
        let mut until = Vec::new();
        for (stream, archive) in &self.archives {
            for (partition, offset) in archive.archived_until().borrow().iter() {
                until.push((format!("stream=\"{stream}\",partition=\"{partition}\""), offset.0 as f64));
            }
        }
        vec![
            Gauge {
                name: "watershed_archive_archiver_state",
                help: "1 for the state in which the stream's archiver is.",
                values: states.collect(),
            },
            Gauge {
                name: "watershed_archive_archived_until",
                help: "The next offset that is not archived yet.",
                values: until,
            },
        ]
    }
}
