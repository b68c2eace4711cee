//! A stream's archiver and the compaction of its master dataset.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use watershed_batch_layer::archiver::{self, Archiver};
use watershed_batch_layer::compaction::{self, Compactor};
use watershed_shared::config::StreamConfig;
use watershed_shared::offsets::Cut;
use watershed_shared::{clock, task};

use super::Parts;
use super::feeds::{FeedSource, Feeds};
use super::losses::RecordedLosses;
use super::stages::Stage;
use super::stream::Stream;
use super::view::View;

/// How often the views' cuts are looked at.
const CUTS_INTERVAL: Duration = Duration::from_secs(10);

/// Archives `stream` from `feeds`, which the stage outlives.
pub(super) fn start_archiver(
    parts: &Parts<'_>,
    stream: &Stream,
    feeds: &Arc<Feeds>,
    views: &BTreeMap<String, View>,
    stage: &mut Stage,
) -> archiver::Handle {
    let options = archiver::Options::from(&parts.config.archive);
    let source = Arc::new(FeedSource(feeds.watch()));
    let losses = Arc::new(RecordedLosses {
        register: stream.register.clone(),
        state: stream.state.clone(),
        feeds: Arc::clone(feeds),
    });
    let origins = stream.origins.borrow().clone();
    let (archiver, archive) = Archiver::new(options, stream.master.clone(), source, losses, origins);
    let stop = stage.stop.clone();
    stage.tasks.push(task::spawn("archiver", async move {
        // What ends it has been logged, and shows in its state; answers go on from the speed layer.
        drop(archiver.run(stop).await);
    }));
    let cuts = least_cuts(&stream.config, views, stage);
    let compactor = Compactor::new(compaction::Options::from(&parts.config.archive), stream.master.clone(), cuts);
    stage.tasks.push(task::spawn("compaction", compactor.run(stage.stop.clone())));
    archive
}

/// The meet of the cuts of all views of the stream that have a generation.
fn least_cuts(
    stream: &StreamConfig,
    views: &BTreeMap<String, View>,
    stage: &mut Stage,
) -> watch::Receiver<Option<Cut>> {
    let states: Vec<_> = views.values().filter(|v| v.stream == stream.name).map(|v| v.state.clone()).collect();
    let least = move || {
        let cuts = states.iter().filter_map(|s| s.borrow().active_generation().map(|g| g.cut.clone()));
        cuts.reduce(|a, b| a.meet(&b))
    };
    let (sender, receiver) = watch::channel(least());
    let stop = stage.stop.clone();
    stage.tasks.push(task::spawn("least cuts", async move {
        while stop.run_until_cancelled(clock::sleep(CUTS_INTERVAL)).await.is_some() {
            sender.send_replace(least());
        }
    }));
    receiver
}
