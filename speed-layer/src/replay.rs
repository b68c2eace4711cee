//! Replays: reading events again for one line, apart from the others, from the master dataset where the log no longer
//! has them. A *fill* reads what a line lacks below it, a *resplit* the events of one run that a boundary divides.

use std::sync::Arc;
use std::time::Duration;

use watershed_shared::abort_point;
use watershed_shared::clock;
use watershed_shared::delta::DeltaRun;
use watershed_shared::offsets::{Cut, OffsetVector};

use crate::board::{FillOrder, FillState, ResplitOrder};
use crate::compute::{self, ReadError};
use crate::ingest::backoff;
use crate::merge;
use crate::micro_batch::MicroBatch;
use crate::reasons;
use crate::segment::Segment;
use crate::source::EventReader;
use crate::states::StateMaker;
use crate::worker::Shared;

/// How often a replay that waits for events looks whether it is still wanted.
const LOOK_UP: Duration = Duration::from_secs(1);

/// Why an attempt ended before its end.
#[derive(Debug)]
enum Stopped {
    /// Not wanted any more.
    Unwanted,
    /// What is to be read has changed.
    Changed,
    Read(ReadError),
    View(String),
}

/// Fills a line from below until it meets what the line has, or is not wanted any more. Tries again after errors, from
/// where it stands.
pub(crate) async fn fill(shared: Arc<Shared>, order: FillOrder) {
    let reporter = format!("replay {} {}", order.key.0, order.key.1);
    let mut failures = 0;
    let _permit = shared.replays.acquire().await.expect("the semaphore is never closed");
    tracing::info!(view = %order.key.0, definition = %order.key.1, "replay begins");
    loop {
        match fill_once(&shared, &order, &mut failures).await {
            Ok(()) => break tracing::info!(view = %order.key.0, definition = %order.key.1, "replay done"),
            Err(Stopped::Unwanted) => break,
            Err(Stopped::Changed) => {}
            Err(stopped) => wait(&shared, &reporter, &order.key.0, &stopped, &mut failures).await,
        }
    }
    shared.board.lock().report(&reporter, None);
    shared.merge_wanted.notify_one();
}

async fn fill_once(shared: &Shared, order: &FillOrder, failures: &mut u32) -> Result<(), Stopped> {
    let state = || shared.board.lock().fill_state(order).ok_or(Stopped::Unwanted);
    let FillState { position, until, .. } = state()?;
    let mut reader = open(shared, &position, &until).await?;
    loop {
        let FillState { position, until: until_now, .. } = state()?;
        if until_now != until {
            return Err(Stopped::Changed);
        }
        let wanted = || state().is_ok_and(|now| now.until == until);
        let (micro, failed) = read(shared, reader.as_mut(), &position, &until, wanted).await?;
        while !micro.is_empty() {
            let now = state()?;
            if now.position != position || now.until != until {
                return Err(Stopped::Changed);
            }
            let runs = runs(&order.maker, &micro, &position, now.boundaries).await;
            // Once more where a boundary came in between.
            if shared.board.lock().advance_fill(order, &position, &micro.end, runs.map_err(Stopped::View)?) {
                abort_point!(process "speed.replayed");
                *failures = 0;
                shared.merge_wanted.notify_one();
                break;
            }
        }
        if micro.end.covers(&until) {
            return Ok(());
        }
        if let Some(error) = failed {
            return Err(Stopped::Read(error));
        }
        breathe(shared).await;
    }
}

/// Reads a run's events again and puts one run for each side of the boundaries in its place.
pub(crate) async fn resplit(shared: Arc<Shared>, order: ResplitOrder) {
    let reporter = format!("resplit {} {}", order.key.0, order.run.id);
    let mut failures = 0;
    let _permit = shared.replays.acquire().await.expect("the semaphore is never closed");
    tracing::info!(view = %order.key.0, coverage = %order.run.coverage, "a boundary divides a run: reading it again");
    let runs = loop {
        match resplit_once(&shared, &order).await {
            Ok(runs) => break Some(runs),
            Err(Stopped::Unwanted) => break None,
            Err(Stopped::Changed) => {}
            Err(stopped) => wait(&shared, &reporter, &order.key.0, &stopped, &mut failures).await,
        }
    };
    let mut board = shared.board.lock();
    board.finish_resplit(&order, runs);
    board.report(&reporter, None);
    drop(board);
    shared.work_wanted.notify_one();
}

async fn resplit_once(shared: &Shared, order: &ResplitOrder) -> Result<Vec<Arc<DeltaRun>>, Stopped> {
    let coverage = &order.run.coverage;
    let mut segment = Segment::at(coverage.iter().map(|(p, range)| (p, range.start)).collect());
    let until = coverage.end();
    let mut reader = open(shared, &segment.position, &until).await?;
    while segment.position != until {
        let boundaries = shared.board.lock().resplit_boundaries(order).ok_or(Stopped::Unwanted)?;
        let wanted = || shared.board.lock().resplit_boundaries(order).is_some();
        let (micro, failed) = read(shared, reader.as_mut(), &segment.position, &until, wanted).await?;
        let runs = runs(&order.maker, &micro, &segment.position, boundaries.clone()).await;
        segment.append(runs.map_err(Stopped::View)?, &micro.end);
        // What is read again grows no longer than what it replaces.
        while let Some(inputs) = merge::pick(&segment.runs, &boundaries, shared.options.max_run_bytes) {
            let ids: Vec<_> = inputs.iter().map(|run| run.id.clone()).collect();
            let merged = compute::merge(Arc::clone(&order.maker), inputs).await.map_err(Stopped::View)?;
            segment.replace(&ids, vec![merged]);
        }
        if let Some(error) = failed
            && segment.position != until
        {
            return Err(Stopped::Read(error));
        }
        breathe(shared).await;
    }
    Ok(segment.runs)
}

/// Opens a reader at `position`; partitions with nothing left to read below `until` are read where the stream stands,
/// which costs nothing.
async fn open(shared: &Shared, position: &OffsetVector, until: &OffsetVector) -> Result<Box<dyn EventReader>, Stopped> {
    let mut from = shared.board.lock().position().cloned().unwrap_or_default();
    for (p, next) in position.iter() {
        if until.get(p).is_some_and(|until| next < until) {
            from.set(p, next);
        }
    }
    shared.source.open(&from).await.map_err(|e| Stopped::Read(e.into()))
}

/// The next micro-batch, as long as `wanted`.
async fn read(
    shared: &Shared,
    reader: &mut dyn EventReader,
    position: &OffsetVector,
    until: &OffsetVector,
    wanted: impl Fn() -> bool,
) -> Result<(MicroBatch, Option<ReadError>), Stopped> {
    // Other partitions are none of this replay's business: their batches end where they begin.
    let mut known = shared.board.lock().position().cloned().unwrap_or_default();
    for (p, next) in position.iter() {
        known.set(p, next);
    }
    let (mut micro, failed) = {
        let mut read = std::pin::pin!(compute::read(reader, known, Some(until), shared.limits(), |_, _| {}));
        loop {
            match tokio::time::timeout(LOOK_UP, &mut read).await {
                Ok(read) => break read,
                Err(_) if wanted() => {}
                Err(_) => return Err(Stopped::Changed),
            }
        }
    };
    micro.end = position.iter().filter_map(|(p, _)| micro.end.get(p).map(|end| (p, end))).collect();
    Ok((micro, failed))
}

async fn runs(
    maker: &Arc<dyn StateMaker>,
    micro: &MicroBatch,
    from: &OffsetVector,
    boundaries: Vec<Cut>,
) -> Result<Vec<Arc<DeltaRun>>, String> {
    let (maker, parts, from) = (Arc::clone(maker), micro.parts.clone(), from.clone());
    compute::apart(async move { compute::runs(maker.as_ref(), &parts, &from, &boundaries).await }).await
}

/// Replays yield to what is at the end of the log.
async fn breathe(shared: &Shared) {
    clock::sleep(shared.options.batch_interval.min(Duration::from_millis(1))).await;
}

async fn wait(shared: &Shared, reporter: &str, view: &str, stopped: &Stopped, failures: &mut u32) {
    let reason = match stopped {
        Stopped::Unwanted | Stopped::Changed => return,
        Stopped::Read(error) => reasons::reading(&format!("the replay of view {view}"), error),
        Stopped::View(error) => reasons::replaying(view, error),
    };
    tracing::warn!(reason = %reason.message, "replay starts again from where it stands");
    shared.board.lock().report(reporter, Some(reason));
    clock::sleep(backoff(shared.options.retry, *failures)).await;
    *failures += 1;
}
