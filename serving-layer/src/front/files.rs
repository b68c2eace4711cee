//! The files of the generations that answer: looked after, and made anew by a rebuild when one is missing or damaged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use watershed_shared::builds::Trigger;
use watershed_shared::catalog::{BuildMode, ViewState};
use watershed_shared::clock::{self, Instant};
use watershed_shared::names::GenerationId;

use super::StreamAnswer;
use crate::builds::{Builds, BuildsError};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// How long until a rebuild that changed nothing is started once more, at first; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const MAX_PAUSE: Duration = Duration::from_secs(3600);

type Followed = (watch::Receiver<Arc<StreamAnswer>>, watch::Receiver<Arc<ViewState>>);

/// Looks after the files of each view's generation.
#[derive(Debug)]
pub(crate) struct Files {
    views: BTreeMap<String, (Followed, Looked)>,
    builds: Arc<dyn Builds>,
}

/// What has been seen and done about one view.
#[derive(Debug, Default)]
struct Looked {
    /// Whose files were all there.
    whole: Option<GenerationId>,
    /// The generation that is known to be unreadable: once by a look, then by another.
    broken: Option<GenerationId>,
    /// When the last rebuild was started, and how long until the next may be.
    rebuilt: Option<(Instant, Duration)>,
}

impl Files {
    pub(crate) fn new(views: BTreeMap<String, Followed>, builds: Arc<dyn Builds>) -> Self {
        let views = views.into_iter().map(|(name, followed)| (name, (followed, Looked::default()))).collect();
        Self { views, builds }
    }

    /// Looks until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(clock::sleep(LOOK)).await.is_some() {
            for (view, (followed, looked)) in &mut self.views {
                if shutdown.run_until_cancelled(look(view, followed, looked, self.builds.as_ref())).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// Looks at a generation that has not been looked at yet, and at one that a reader could not read.
async fn look(view: &str, (answers, register): &mut Followed, looked: &mut Looked, builds: &dyn Builds) {
    let Some(answer) = answers.borrow().views.get(view).map(Arc::clone) else { return };
    let (Some(runs), id) = (&answer.generation_runs, answer.generation_id()) else { return };
    if looked.whole == Some(id) && runs.fault().is_none() {
        return;
    }
    let fault = match runs.look().await {
        Ok(None) => {
            *looked = Looked { whole: Some(id), rebuilt: looked.rebuilt.take(), ..Looked::default() };
            return;
        }
        Ok(Some(fault)) => fault,
        Err(error) => {
            tracing::debug!(view, %error, "cannot look at a generation's files");
            return;
        }
    };
    if looked.broken != Some(id) {
        tracing::error!(view, generation = %id, %fault, "a file of the generation that answers cannot be read");
        // A storage that has just come back may not know all of its files yet: the next look decides.
        looked.broken = Some(id);
        return;
    }
    // One that no longer is the active one is replaced anyway.
    let due = looked.rebuilt.is_none_or(|(at, pause)| at.elapsed() >= pause);
    if register.borrow().generation != id || !due {
        return;
    }
    match builds.start(view, BuildMode::Rebuild, Trigger::Repair, false).await {
        Ok(started) => tracing::warn!(view, generation = %id, ?started, "rebuilds the view by itself"),
        Err(BuildsError::AlreadyRunning { .. }) => return,
        Err(error) => tracing::error!(view, %error, "cannot rebuild a view whose generation cannot be read"),
    }
    let pause = looked.rebuilt.map_or(FIRST_PAUSE, |(_, pause)| (pause * 2).min(MAX_PAUSE));
    looked.rebuilt = Some((Instant::now(), pause));
}
