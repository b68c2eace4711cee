//! The real source of events: the shared fetch of the log, and the master dataset for what is archived.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Int64Type, TimeUnit, TimestampMicrosecondType};
use async_trait::async_trait;
use datafusion::prelude::{SessionConfig, SessionContext};
use tokio::sync::watch;
use watershed_shared::config::StreamConfig;
use watershed_shared::delta::Maximum;
use watershed_shared::log::{self, FeedReader, Redeliveries, StreamFeed};
use watershed_shared::master::{self, MasterDataset, MasterSnapshot};
use watershed_shared::mutant::{self, Mutant};
use watershed_shared::offsets::{Offset, OffsetRange, OffsetVector, PartitionId};
use watershed_shared::record::{DecodedBatch, EVENT_TIME_MAX, OFFSET, TIMESTAMP};

use crate::source::{EventReader, EventSource, SourceError};

/// Offsets of one partition that are read from the master dataset at a time, at first; then as many as fill
/// [`SLICE_BYTES`].
const FIRST_SLICE: i64 = 16_384;
const MAX_SLICE: i64 = 1 << 20;
const SLICE_BYTES: usize = 16 << 20;

/// Reads the log through the process's shared fetch, and from the master dataset what the fetch refuses because it is
/// archived.
#[derive(Debug)]
pub struct LogAndArchive {
    /// An error ends a feed for good: then another one comes here.
    feeds: watch::Receiver<StreamFeed>,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: StreamConfig,
    master: MasterDataset,
}

impl LogAndArchive {
    pub fn new(config: StreamConfig, feeds: watch::Receiver<StreamFeed>, master: MasterDataset) -> Self {
        Self { feeds, inner: Arc::new(Inner { config, master }) }
    }
}

#[async_trait]
impl EventSource for LogAndArchive {
    async fn open(&self, from: &OffsetVector) -> Result<Box<dyn EventReader>, SourceError> {
        let feed = self.feeds.borrow().clone();
        let path = Path::Log(Box::new(feed.reader(from.clone())));
        let inner = Arc::clone(&self.inner);
        Ok(Box::new(Reader { inner, feed, position: from.clone(), path, redeliveries: Redeliveries::default() }))
    }

    fn log_end(&self) -> watch::Receiver<OffsetVector> {
        self.feeds.borrow().log_end()
    }

    async fn event_time_max(&self, partition: PartitionId, offset: Offset) -> Result<Maximum, SourceError> {
        let snapshot = self.inner.master.snapshot().await.map_err(failed)?;
        match snapshot.event_time_max_at(partition, offset).await {
            Ok(maximum) => Ok(Maximum::Known(maximum)),
            // What lies between is only in the log.
            Err(master::Error::NotArchived { .. }) => Ok(Maximum::Unknown),
            Err(error) => Err(failed(error)),
        }
    }
}

struct Reader {
    inner: Arc<Inner>,
    feed: StreamFeed,
    /// Behind what was delivered.
    position: OffsetVector,
    path: Path,
    redeliveries: Redeliveries,
}

enum Path {
    Log(Box<FeedReader>),
    Archive(Scan),
}

#[async_trait]
impl EventReader for Reader {
    async fn next(&mut self) -> Result<Arc<DecodedBatch>, SourceError> {
        loop {
            let batch = match &mut self.path {
                Path::Log(reader) => match reader.next().await {
                    Ok(batch) => batch,
                    Err(error) => {
                        self.path = Path::Archive(self.inner.archived(&self.position, error).await?);
                        continue;
                    }
                },
                Path::Archive(scan) => match scan.next(&self.inner, &self.position).await? {
                    Some(batch) => batch,
                    None => {
                        self.path = Path::Log(Box::new(self.feed.reader(self.position.clone())));
                        continue;
                    }
                },
            };
            self.position.advance(batch.partition, batch.range.end);
            return Ok(self.redeliveries.of(batch));
        }
    }
}

impl Inner {
    /// The way on from `position` after the log has refused it: through the master dataset, if that has the offsets.
    async fn archived(&self, position: &OffsetVector, error: log::Error) -> Result<Scan, SourceError> {
        let missing = match &error {
            log::Error::Archived { partition, .. } | log::Error::OffsetLost { partition, .. } => *partition,
            log::Error::TopicReplaced { .. } => return Err(SourceError::TopicReplaced(error.to_string())),
            log::Error::Denied { .. } => return Err(SourceError::Denied(error.to_string())),
            log::Error::Schemas { .. } => return Err(SourceError::Schemas(error.to_string())),
            _ => return Err(failed(error)),
        };
        let snapshot = self.master.snapshot().await.map_err(failed)?;
        let at = position.get(missing);
        if snapshot.archived_until().get(missing).is_some_and(|until| at.is_none_or(|at| at < until)) {
            return Ok(Scan { snapshot, slice: FIRST_SLICE });
        }
        match error {
            log::Error::OffsetLost { partition, wanted, low, .. } => {
                Err(SourceError::OffsetsLost { partition, wanted, lowest: low })
            }
            // It moved on between the two answers: the next attempt sees it.
            error => Err(failed(error)),
        }
    }
}

/// Reads what a version of the master dataset has, slice by slice of offsets, so that each slice can be put in order.
struct Scan {
    snapshot: MasterSnapshot,
    /// Offsets that the next slice takes.
    slice: i64,
}

impl Scan {
    /// The next batch behind `position`; `None` at the end of what is archived. Cancel safe: a slice that was not
    /// finished is read again.
    async fn next(&mut self, inner: &Inner, position: &OffsetVector) -> Result<Option<Arc<DecodedBatch>>, SourceError> {
        // The partition that is furthest behind, so that they advance together.
        let behind = |(p, at): (PartitionId, Offset)| {
            let until = self.snapshot.archived_until().get(p).filter(|until| at < *until)?;
            Some((p, OffsetRange::new(at, until)))
        };
        let Some((partition, rest)) =
            position.iter().filter_map(behind).max_by_key(|(p, rest)| (rest.end.0 - rest.start.0, *p))
        else {
            return Ok(None);
        };
        let end = Offset(rest.end.0.min(rest.start.0 + self.slice));
        let range = OffsetRange::new(rest.start, end);
        let events = inner.read(&self.snapshot, partition, range).await.map_err(failed)?;
        let bytes = events.get_array_memory_size().max(1);
        self.slice = match bytes {
            _ if bytes < SLICE_BYTES / 2 => (self.slice * 2).min(MAX_SLICE),
            _ if bytes > SLICE_BYTES * 2 => (self.slice / 2).max(1),
            _ => self.slice,
        };
        let event_time_max = inner.maximum_behind(&events);
        Ok(Some(Arc::new(DecodedBatch {
            partition,
            range,
            events,
            dead_letters: vec![],
            tombstones: 0,
            ahead: 0,
            event_time_max,
            leader_epoch: None,
        })))
    }
}

impl Inner {
    /// The events of `partition` in `range`, in order.
    async fn read(
        &self,
        snapshot: &MasterSnapshot,
        partition: PartitionId,
        range: OffsetRange,
    ) -> Result<RecordBatch, master::Error> {
        let high = i64::from(mutant::is(Mutant::ReplayOffByOne));
        let from = [(partition, Offset(range.start.0 + high))].into_iter().collect();
        let until = [(partition, range.end)].into_iter().collect();
        let table = snapshot.scan(Some(&from), &until)?;
        let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        let batches = session.read_table(table)?.collect().await?;
        let schema = self.master.schema();
        let batches: Vec<RecordBatch> = batches
            .into_iter()
            .map(|batch| RecordBatch::try_new(Arc::clone(schema), batch.columns().to_vec()))
            .collect::<Result<_, _>>()
            .map_err(|e| master::Error::Query(e.into()))?;
        let events = concat_batches(schema, &batches).map_err(|e| master::Error::Query(e.into()))?;
        in_order(events).map_err(|e| master::Error::Query(e.into()))
    }

    /// The running maximum behind the last event; `None` if there is none.
    fn maximum_behind(&self, events: &RecordBatch) -> Option<i64> {
        let last = events.num_rows().checked_sub(1)?;
        let micros = |name: &str| micros(events.column_by_name(name)?, last);
        let time = self.config.event_time.as_deref().and_then(micros);
        let max_ahead = i64::try_from(self.config.max_ahead.as_micros()).unwrap_or(i64::MAX);
        let ahead = |time: i64| micros(TIMESTAMP).is_some_and(|record| time > record.saturating_add(max_ahead));
        micros(EVENT_TIME_MAX).max(time.filter(|time| !ahead(*time)))
    }
}

fn micros(column: &ArrayRef, row: usize) -> Option<i64> {
    let is_time = matches!(column.data_type(), DataType::Timestamp(TimeUnit::Microsecond, _));
    (is_time && column.is_valid(row)).then(|| column.as_primitive::<TimestampMicrosecondType>().value(row))
}

/// Ascending by offset: rows of one file come so, but the files of a slice in any order.
fn in_order(events: RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let offsets = events.column_by_name(OFFSET).expect("event batches have the system columns");
    if offsets.as_primitive::<Int64Type>().values().is_sorted() {
        return Ok(events);
    }
    let by = arrow::compute::SortColumn { values: Arc::clone(offsets), options: None };
    let indices: UInt32Array = lexsort_to_indices(&[by], None)?;
    take_record_batch(&events, &indices)
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> SourceError {
    SourceError::Failed(Box::new(error))
}
