//! The ingesting task: micro-batches of the stream, for all lines at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use tokio_util::sync::CancellationToken;
use watershed_shared::abort_point;
use watershed_shared::clock::{self, Instant};
use watershed_shared::config::StreamConfig;
use watershed_shared::delta::Maximum;
use watershed_shared::offsets::{OffsetRange, PartitionId};
use watershed_shared::record::{DecodedBatch, EVENT_TIME_MAX, TIMESTAMP};

use crate::board::{Computed, Progress, Ticket};
use crate::compute::{self, ReadError};
use crate::micro_batch::MicroBatch;
use crate::reasons;
use crate::source::EventReader;
use crate::worker::Shared;

const REPORTER: &str = "ingest";
/// Reports partitions without an origin.
pub(crate) const ORIGINS: &str = "origins";
/// How often the wait before another attempt doubles.
const MAX_DOUBLINGS: u32 = 4;

/// Reads the stream on from its position until `stop`.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut failures = 0;
    loop {
        let attempt = stop.run_until_cancelled(read_on(&shared, &mut failures));
        let Some(result) = attempt.await else {
            return;
        };
        let Err(error) = result else {
            continue;
        };
        tracing::warn!(stream = %shared.config.name, %error, "reading starts again from the position");
        shared.board.lock().report(REPORTER, Some(reasons::reading("the speed layer", &error)));
        let wait = backoff(shared.options.retry, failures);
        failures += 1;
        if stop.run_until_cancelled(clock::sleep(wait)).await.is_none() {
            return;
        }
    }
}

/// Before the attempt after `failures` others.
pub(crate) fn backoff(first: Duration, failures: u32) -> Duration {
    first * 2u32.pow(failures.min(MAX_DOUBLINGS))
}

/// Reads until the reader fails, or is to be opened again. Dropped at an await it has lost nothing: the board alone
/// says how far the stream is.
async fn read_on(shared: &Shared, failures: &mut u32) -> Result<(), ReadError> {
    let position = shared.board.lock().position().cloned().expect("the board has been started");
    for (p, next) in position.iter() {
        // What was stored says it, or the micro-batches; else it is asked for once.
        let known = shared.board.lock().knows_maximum(p);
        if !known {
            let maximum = shared.source.event_time_max(p, next).await?;
            shared.board.lock().restore_maximum(p, maximum);
        }
    }
    let mut reader = shared.source.open(&position).await?;
    let mut log_end = shared.source.log_end();
    // SUBTLE: what was there before the receiver was made counts as seen, and in a quiet log nothing may follow.
    log_end.mark_changed();
    let mut progress = BTreeMap::new();
    loop {
        let started = Instant::now();
        let (micro, failed) = {
            // Kept while other things happen: what it waits for may take long, as a slice of the master dataset does.
            let mut read = std::pin::pin!(next_micro_batch(shared, reader.as_mut(), &mut progress));
            loop {
                tokio::select! {
                    read = &mut read => break read,
                    () = shared.reopen.notified() => return Ok(()),
                    () = clock::sleep(shared.options.retry * 4), if *failures > 0 => {
                        // It waits without complaint: what was wrong is over, though nothing new has come.
                        shared.board.lock().report(REPORTER, None);
                        *failures = 0;
                    }
                    Ok(()) = log_end.changed() => {
                        let seen = log_end.borrow_and_update().clone();
                        shared.board.lock().see_log_end(seen);
                    }
                }
            }
        };
        if let Some(partition) = micro.unknown {
            shared.board.lock().report(ORIGINS, Some(reasons::no_origin(partition)));
        }
        if !micro.is_empty() {
            process(shared, &micro, std::mem::take(&mut progress)).await;
            *failures = 0;
            shared.board.lock().report(REPORTER, None);
        }
        if let Some(error) = failed {
            return Err(error);
        }
        throttle(shared, started).await;
    }
}

async fn next_micro_batch(
    shared: &Shared,
    reader: &mut dyn EventReader,
    progress: &mut BTreeMap<PartitionId, Progress>,
) -> (MicroBatch, Option<ReadError>) {
    let position = shared.board.lock().position().cloned().expect("the board has been started");
    let config = &shared.config;
    compute::read(reader, position, None, shared.limits(), |batch, range| note(config, progress, batch, range)).await
}

/// Waits out the rest of the interval, and while merges are far behind.
async fn throttle(shared: &Shared, started: Instant) {
    let rest = shared.options.batch_interval.saturating_sub(started.elapsed());
    if !rest.is_zero() {
        clock::sleep(rest).await;
    }
    loop {
        let merged = shared.merged.notified();
        {
            let board = shared.board.lock();
            if board.most_runs() <= shared.options.max_runs || board.next_merge(shared.options.max_run_bytes).is_none()
            {
                return;
            }
        }
        // A merge that fails must not stop ingestion for good.
        if tokio::time::timeout(Duration::from_secs(1), merged).await.is_err() {
            return;
        }
    }
}

/// Computes the micro-batch for every line and moves the stream on, with all of them at once.
async fn process(shared: &Shared, micro: &MicroBatch, progress: BTreeMap<PartitionId, Progress>) {
    let mut computed: Vec<Computed> = Vec::new();
    let mut missing: Vec<Ticket> = shared.board.lock().tickets();
    loop {
        for ticket in missing {
            let maker = Arc::clone(&ticket.maker);
            let runs = compute::runs(maker.as_ref(), &micro.parts, &ticket.from, &ticket.boundaries).await;
            if let Err(error) = &runs {
                tracing::error!(view = %ticket.key.0, definition = %ticket.key.1, %error, "view cannot be run");
            }
            computed.push(Computed { ticket, runs });
        }
        let retry_at = Instant::now() + shared.options.retry * 10;
        missing = shared.board.lock().advance(&micro.end, &mut computed, &progress, retry_at);
        if missing.is_empty() {
            break;
        }
    }
    abort_point!(process "speed.advanced");
    {
        let mut counts = shared.counts.lock();
        counts.events += micro.rows as u64;
        counts.micro_batches += 1;
    }
    shared.merge_wanted.notify_one();
}

/// Notes what of `batch` lies in `range`.
fn note(
    config: &StreamConfig,
    progress: &mut BTreeMap<PartitionId, Progress>,
    batch: &DecodedBatch,
    range: OffsetRange,
) {
    let seen = progress.entry(batch.partition).or_default();
    if range.end == batch.range.end {
        seen.status.event_time_max = seen.status.event_time_max.join(Maximum::behind_batch(batch.event_time_max));
    }
    let dead = batch.dead_letters.iter().filter(|d| range.contains(d.record.offset));
    seen.status.dead_letters += dead.count() as u64;
    let whole =
        crate::micro_batch::Part { partition: batch.partition, range: batch.range, events: batch.events.clone() };
    let events = if range == batch.range { whole.events } else { whole.slice(range).events };
    seen.status.late += late(config, &events);
    seen.last_timestamp = seen.last_timestamp.max(last_timestamp(&events));
}

fn last_timestamp(events: &RecordBatch) -> Option<i64> {
    let column = microseconds(events, TIMESTAMP)?;
    arrow::compute::max(column.as_primitive::<TimestampMicrosecondType>())
}

/// Events below the running maximum minus the allowed lateness.
fn late(config: &StreamConfig, events: &RecordBatch) -> u64 {
    let Some(lateness) = config.allowed_lateness else {
        return 0;
    };
    let times = config.event_time.as_ref().and_then(|name| microseconds(events, name));
    let (Some(times), Some(maximum)) = (times, microseconds(events, EVENT_TIME_MAX)) else {
        return 0;
    };
    let lateness = i64::try_from(lateness.as_micros()).unwrap_or(i64::MAX);
    let times = times.as_primitive::<TimestampMicrosecondType>();
    let maximum = maximum.as_primitive::<TimestampMicrosecondType>();
    let late = |(time, max): (Option<i64>, Option<i64>)| {
        time.zip(max).is_some_and(|(time, max)| time < max.saturating_sub(lateness))
    };
    times.iter().zip(maximum.iter()).filter(|pair| late(*pair)).count() as u64
}

fn microseconds<'a>(events: &'a RecordBatch, name: &str) -> Option<&'a dyn Array> {
    let column = events.column_by_name(name)?;
    matches!(column.data_type(), DataType::Timestamp(TimeUnit::Microsecond, _)).then_some(column.as_ref())
}
