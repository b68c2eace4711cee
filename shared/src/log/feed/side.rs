//! A reader that fell out of the window, or begins before it, reads for itself until it has caught up.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::decoding::Decoding;
use super::{Shared, open_patiently};
use crate::log::error::{Error, Result};
use crate::log::raw::Reports;
use crate::offsets::{Offset, OffsetVector, PartitionId};
use crate::record::DecodedBatch;
use crate::task;

/// A reader's own fetch. Dropping it ends it.
#[derive(Debug)]
pub(super) struct SideReader {
    pub(super) batches: mpsc::Receiver<Result<DecodedBatch>>,
    _stop: DropGuard,
}

impl SideReader {
    /// Begins at `position`. `maxima` holds the running maximum there of those partitions where it is known; the others are decoded from
    /// where the master dataset ends.
    pub(super) fn spawn(
        shared: Arc<Shared>,
        position: OffsetVector,
        maxima: BTreeMap<PartitionId, Option<i64>>,
    ) -> Self {
        let (sender, batches) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let read = async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                outcome = read(&shared, &position, maxima, &sender) => {
                    if let Err(error) = outcome {
                        // Nobody wants to know if it fails.
                        sender.send(Err(error)).await.ok();
                    }
                }
            }
        };
        drop(task::spawn("feed-side-reader", read));
        Self { batches, _stop: stop.drop_guard() }
    }
}

/// Where to begin to decode, for positions whose running maximum is not known.
struct Beginning {
    /// Names the partitions to be decoded from a known place; the others from their first offset.
    from: OffsetVector,
    maxima: BTreeMap<PartitionId, Option<i64>>,
}

async fn begin(
    shared: &Shared,
    position: &OffsetVector,
    maxima: BTreeMap<PartitionId, Option<i64>>,
) -> Result<Beginning> {
    let mut beginning = Beginning { from: OffsetVector::new(), maxima };
    let unknown = position.iter().any(|(p, _)| !beginning.maxima.contains_key(&p));
    let seeds = if unknown { shared.seeds().await? } else { BTreeMap::new() };
    for (partition, wanted) in position.iter() {
        if beginning.maxima.contains_key(&partition) {
            beginning.from.set(partition, wanted);
            continue;
        }
        // The newest place that is not past what is wanted. The archived one can have moved on while a slow reader waited;
        // the one where the shared fetch began has not.
        let archived = seeds.get(&partition).map(|s| (s.archived_until, s.event_time_max));
        let begun = shared.state.lock().window.start(partition).map(|s| (s.offset, s.event_time_max));
        let best = [archived, begun].into_iter().flatten().filter(|(o, _)| *o <= wanted).max_by_key(|(o, _)| *o);
        match (best, archived) {
            (Some((offset, event_time_max)), _) => {
                beginning.from.set(partition, offset);
                beginning.maxima.insert(partition, event_time_max);
            }
            (None, Some((archived_until, _))) => {
                return Err(Error::Archived { partition, wanted: Some(wanted), archived_until });
            }
            // Nothing is archived: it begins with the log.
            (None, None) => {}
        }
    }
    Ok(beginning)
}

async fn read(
    shared: &Shared,
    position: &OffsetVector,
    maxima: BTreeMap<PartitionId, Option<i64>>,
    sender: &mpsc::Sender<Result<DecodedBatch>>,
) -> Result<()> {
    let Beginning { from, maxima } = begin(shared, position, maxima).await?;
    let mut decoding = Decoding::new(&shared.config, shared.schemas.as_ref(), maxima)?;
    // What it sees of the log's end is of no interest: the shared fetch reports that.
    let mut raw = match open_patiently(shared, &from, shared.raw.clone(), &Reports::default()).await {
        Err(lost @ Error::OffsetLost { .. }) => return Err(archived_or(shared, lost).await),
        opened => opened?,
    };
    for (partition, wanted) in position.iter() {
        let is_read = shared.raw.wants(partition);
        let low = raw.starts().get(partition).unwrap_or(Offset(0));
        let high = raw.log_end().borrow().get(partition).unwrap_or(Offset(0));
        if is_read && (wanted < low || high < wanted) {
            let topic = shared.config.topic.clone();
            return Err(archived_or(shared, Error::OffsetLost { topic, partition, wanted, low, high }).await);
        }
    }
    loop {
        let batch = match raw.next().await {
            Err(lost @ Error::OffsetLost { .. }) => return Err(archived_or(shared, lost).await),
            next => next?,
        };
        let decoded;
        (decoding, decoded) = decoding.decode(batch).await?;
        // Of what was decoded only for the running maximum nothing is passed on.
        let decoded = match position.get(decoded.partition) {
            Some(wanted) if decoded.range.end <= wanted => continue,
            Some(wanted) if decoded.range.start < wanted => decoded.split_at(wanted).1,
            _ => decoded,
        };
        if sender.send(Ok(decoded)).await.is_err() {
            return Ok(());
        }
    }
}

/// What the log dropped may be in the master dataset: then that is to be read.
async fn archived_or(shared: &Shared, lost: Error) -> Error {
    let Error::OffsetLost { partition, wanted, .. } = &lost else { return lost };
    match shared.seeds().await {
        Ok(seeds) => match seeds.get(partition) {
            Some(seed) if *wanted < seed.archived_until => {
                Error::Archived { partition: *partition, wanted: Some(*wanted), archived_until: seed.archived_until }
            }
            _ => lost,
        },
        Err(_) => lost,
    }
}
