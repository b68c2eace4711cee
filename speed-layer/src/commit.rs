//! The committing task: what the board says goes to the store, all lines in one step, some time after it was answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use watershed_shared::abort_point;
use watershed_shared::clock::{self, Instant};
use watershed_shared::names::RunId;
use watershed_shared::offsets::{Cut, OffsetVector, PartitionId};

use crate::board::{Board, SEAL_HOLD};
use crate::line::{Fill, Line, LineKey};
use crate::reasons;
use crate::segment::Segment;
use crate::states::ViewPlan;
use crate::store::{
    self, Change, DeltaStore, Entry, Loaded, SegmentImage, StoreError, encode_group, encode_line, encode_run,
};
use crate::worker::{Commits, Losses, Shared};

const REPORTER: &str = "store";
/// Runs of a commit that is larger go in before it: they mean nothing until a manifest names them.
const BATCH_BYTES: usize = 8 << 20;

/// Knows what the store holds.
#[derive(Debug)]
pub(crate) struct Committer {
    store: Arc<dyn DeltaStore>,
    stream: String,
    written: BTreeMap<LineKey, BTreeMap<RunId, Entry>>,
    /// Keys that mean nothing.
    stray: Vec<Vec<u8>>,
    /// What the runs lack.
    losses: Losses,
    /// What was committed last.
    last: Option<Summary>,
}

/// One state of the board, as it is to be stored.
#[derive(Debug)]
struct Image {
    position: OffsetVector,
    seals: Vec<Cut>,
    event_time_max: BTreeMap<PartitionId, Option<i64>>,
    lines: BTreeMap<LineKey, (Segment, Option<Segment>)>,
}

/// What tells whether there is anything to commit.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    position: OffsetVector,
    seals: Vec<Cut>,
    lines: Vec<(LineKey, OffsetVector, OffsetVector, Vec<RunId>)>,
}

impl Committer {
    /// Loads what the store holds and starts the board with it. What is damaged is replayed; so is everything if the
    /// store cannot be read, or goes past a loss without having known of it.
    pub(crate) async fn restore(
        shared: &Shared,
        store: Arc<dyn DeltaStore>,
        plans: &Arc<Vec<ViewPlan>>,
        losses: Losses,
    ) -> Self {
        let stream = shared.config.name.clone();
        let work = {
            let (store, plans, stream) = (Arc::clone(&store), Arc::clone(plans), stream.clone());
            move || store::load(store.as_ref(), &stream, &plans)
        };
        let mut loaded = match tokio::task::spawn_blocking(work).await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(error)) => {
                tracing::warn!(%stream, %error, "delta store cannot be read: replaying");
                Loaded::default()
            }
            Err(panic) => {
                tracing::error!(%stream, %panic, "delta store cannot be read: replaying");
                Loaded::default()
            }
        };
        for ((view, definition), wrong) in &loaded.damaged {
            tracing::warn!(%stream, %view, %definition, %wrong, "stored delta damaged: set aside, replaying");
        }
        shared.counts.lock().damaged_images += loaded.damaged.len() as u64;
        if loaded.goes_past_one_of(&losses) {
            tracing::warn!(%stream, "the stored delta holds events that are lost by now: replaying from the cuts");
            loaded.set_aside();
        }
        let mut board = shared.board.lock();
        board.begin_again();
        let written = start(&mut board, plans, &loaded);
        drop(board);
        Self { store, stream, written, stray: loaded.stray, losses, last: None }
    }

    /// Brings the store to `image`, durably. Blocks. After an error nothing is known to be written, and all is tried
    /// again next time.
    fn commit(&mut self, image: Image) -> Result<(), StoreError> {
        let done = self.try_commit(image);
        if let Err(StoreError::Emptied) = done {
            self.written.clear();
            self.stray.clear();
        }
        done
    }

    fn try_commit(&mut self, image: Image) -> Result<(), StoreError> {
        let mut changes: Vec<Change> = Vec::new();
        let mut bytes = 0;
        let mut written: BTreeMap<LineKey, BTreeMap<RunId, Entry>> = BTreeMap::new();
        let mut manifests: Vec<Change> = Vec::new();
        for (key, (whole, fill)) in &image.lines {
            let known = self.written.get(key);
            let mut entries: BTreeMap<RunId, Entry> = BTreeMap::new();
            for run in whole.runs.iter().chain(fill.iter().flat_map(|f| &f.runs)) {
                let entry = match known.and_then(|known| known.get(&run.id)) {
                    Some(entry) => entry.clone(),
                    None => encode_run(key, run, &mut changes)?,
                };
                bytes += run.memory_bytes;
                entries.insert(run.id.clone(), entry);
                if bytes > BATCH_BYTES {
                    self.store.apply(std::mem::take(&mut changes))?;
                    bytes = 0;
                }
            }
            let image = |segment: &Segment| SegmentImage {
                from: segment.from.clone(),
                position: segment.position.clone(),
                runs: segment.runs.iter().map(|run| entries[&run.id].clone()).collect(),
            };
            encode_line(key, image(whole), fill.as_ref().map(image), &mut manifests);
            written.insert(key.clone(), entries);
        }
        let maxima = image.event_time_max;
        encode_group(&self.stream, &image.position, image.seals, maxima, self.losses.clone(), &mut manifests);
        // What is removed comes before what is written: a stray key may be one of those.
        let mut removed: Vec<Change> = std::mem::take(&mut self.stray).into_iter().map(|key| (key, None)).collect();
        for (key, entries) in &self.written {
            let kept = written.get(key);
            if kept.is_none() {
                removed.push((store::line_key(key), None));
            }
            for (id, entry) in entries {
                if !kept.is_some_and(|kept| kept.contains_key(id)) {
                    removed.extend(entry.keys(key).into_iter().map(|key| (key, None)));
                }
            }
        }
        let put: BTreeSet<&Vec<u8>> = changes.iter().chain(&manifests).map(|(key, _)| key).collect();
        removed.retain(|(key, _)| !put.contains(key));
        let stray: Vec<Vec<u8>> = removed.iter().map(|(key, _)| key.clone()).collect();
        changes.extend(removed);
        changes.extend(manifests);
        abort_point!(process "speed.commit_begun");
        let done = self.store.apply(changes).and_then(|()| {
            abort_point!(process "speed.commit_applied");
            self.store.flush()
        });
        abort_point!(process "speed.committed");
        match done {
            Ok(()) => self.written = written,
            // SUBTLE: the outcome is open. What was to be removed is removed again, what was to be written is written
            // again, under the same keys.
            Err(_) => self.stray = stray,
        }
        done
    }
}

/// Starts the board with what was loaded. Answers what of it is in use.
fn start(board: &mut Board, plans: &[ViewPlan], loaded: &Loaded) -> BTreeMap<LineKey, BTreeMap<RunId, Entry>> {
    let mut lines = Vec::new();
    let mut written = BTreeMap::new();
    let origins = board.origins().clone();
    for plan in plans {
        let key = (plan.name.clone(), plan.definition.clone());
        let (Some(found), Some(position)) = (loaded.lines.get(&key), &loaded.position) else {
            continue;
        };
        let position = origins.join(position);
        let mut line = Line::new(plan.clone(), &position, &origins, 0);
        let normal = |s: &Segment| Segment {
            from: origins.join(&s.from),
            position: origins.join(&s.position),
            runs: s.runs.clone(),
        };
        let whole = normal(&found.whole);
        line.fill = None;
        if whole.position == position.join(&whole.from) {
            line.whole = whole;
            line.fill = found.fill.as_ref().map(|f| Fill::new(normal(f), true, 0));
        } else {
            // It had left the others: it goes on as a replay.
            line.whole = Segment::at(position.clone());
            line.fill = Some(Fill::new(found.fill.as_ref().map_or(whole, normal), true, 0));
        }
        lines.push(line);
        let entries = found.entries.iter().map(|e| (e.id.clone(), e.clone())).collect();
        written.insert(key, entries);
    }
    for cut in &loaded.seals {
        board.hold(cut.clone(), Instant::now() + SEAL_HOLD);
    }
    board.start(plans, lines, loaded.position.clone(), &loaded.event_time_max);
    written
}

/// Commits each interval, and at once when asked, until `stop`; then once more.
pub(crate) async fn run(shared: Arc<Shared>, mut committer: Committer, asked: Commits, stop: CancellationToken) {
    // Nobody else listens: the one before has ended.
    let mut asked = asked.lock().await;
    let mut waiting: Vec<oneshot::Sender<bool>> = Vec::new();
    loop {
        let mut last = false;
        tokio::select! {
            () = stop.cancelled() => last = true,
            Some(seal) = asked.recv() => waiting.push(seal),
            () = clock::sleep(shared.options.commit_interval) => {}
        }
        while let Ok(seal) = asked.try_recv() {
            waiting.push(seal);
        }
        let done;
        (committer, done) = commit(&shared, committer).await;
        for seal in waiting.drain(..) {
            // Who asked may have gone.
            let _gone = seal.send(done);
        }
        if last {
            return;
        }
    }
}

async fn commit(shared: &Shared, mut committer: Committer) -> (Committer, bool) {
    let Some(image) = image(&shared.board.lock()) else {
        return (committer, false);
    };
    let summary = image.summary();
    if committer.last.as_ref() == Some(&summary) {
        return (committer, true);
    }
    let work = move || {
        let result = committer.commit(image);
        (committer, result)
    };
    let (mut committer, result) = tokio::task::spawn_blocking(work).await.expect("the store catches its own panics");
    let ok = result.is_ok();
    match result {
        Ok(()) => {
            committer.last = Some(summary);
            shared.counts.lock().commits += 1;
            shared.board.lock().report(REPORTER, None);
        }
        Err(error) => {
            committer.last = None;
            tracing::warn!(stream = %shared.config.name, %error, "delta store failed: trying again");
            shared.counts.lock().store_errors += 1;
            shared.board.lock().report(REPORTER, Some(reasons::store(&error.to_string())));
        }
    }
    (committer, ok)
}

fn image(board: &Board) -> Option<Image> {
    let lines = board.lines().iter().map(|(key, line)| {
        let fill = line.fill.as_ref().filter(|f| f.visible).map(|f| f.segment.clone());
        (key.clone(), (line.whole.clone(), fill))
    });
    Some(Image {
        position: board.position()?.clone(),
        seals: board.seals().iter().map(|s| s.cut.clone()).collect(),
        event_time_max: board.maxima(),
        lines: lines.collect(),
    })
}

impl Image {
    fn summary(&self) -> Summary {
        let line = |(key, (whole, fill)): (&LineKey, &(Segment, Option<Segment>))| {
            let runs = whole.runs.iter().chain(fill.iter().flat_map(|f| &f.runs)).map(|run| run.id.clone()).collect();
            let filled = fill.as_ref().map(|f| f.position.clone()).unwrap_or_default();
            (key.clone(), whole.from.clone(), filled, runs)
        };
        Summary {
            position: self.position.clone(),
            seals: self.seals.clone(),
            lines: self.lines.iter().map(line).collect(),
        }
    }
}
