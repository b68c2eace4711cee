//! A version of a master dataset: what it holds and how it is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use datafusion::prelude::{col, ident};
use futures::{StreamExt, TryStreamExt, stream};

use super::scan::{FilesTable, parts};
use super::table::TableState;
use super::{DataFile, Error, MasterDataset};
use crate::decode::RunningMaximum;
use crate::log::{Seed, Seeds, SeedsError};
use crate::mutant::{self, Mutant};
use crate::offsets::{Offset, OffsetRange, OffsetVector, PartitionId};
use crate::paths;
use crate::record::{EVENT_TIME_MAX, OFFSET, TIMESTAMP};

/// One version of a stream's master dataset. Cheap to clone; it never changes.
///
/// Every later version holds the same rows below `archived_until`, though maybe in other files. A snapshot can be read
/// for the vacuum's retention (7 days by default); a query that then misses a file (see [`super::misses_a_file`])
/// starts again on a new snapshot.
#[derive(Debug, Clone)]
pub struct MasterSnapshot {
    dataset: MasterDataset,
    pub(super) state: Arc<TableState>,
    archived_until: OffsetVector,
    /// Which topic the `txn` actions name; `None` in a new table.
    pub(super) topic_key: Option<String>,
}

impl MasterSnapshot {
    pub(super) fn new(dataset: MasterDataset, state: Arc<TableState>) -> Result<Self, Error> {
        let mut archived_until = OffsetVector::new();
        let mut topic_key: Option<String> = None;
        for (app, version) in &state.txns {
            let Some((key, partition)) = parse_app_id(app) else { continue };
            if let Some(other) = topic_key.replace(key.to_owned()).filter(|other| other != key) {
                let table = paths::stream(dataset.stream()).to_string();
                return Err(Error::TopicReplaced { table, stored: other, present: key.to_owned() });
            }
            archived_until.set(partition, Offset(*version));
        }
        Ok(Self { dataset, state, archived_until, topic_key })
    }

    /// The Delta version.
    pub fn version(&self) -> u64 {
        self.state.version
    }

    /// Up to where every record of each partition is archived: as an event, or as a dead letter, or skipped.
    /// A partition of which nothing is archived is absent.
    pub fn archived_until(&self) -> &OffsetVector {
        &self.archived_until
    }

    pub fn dataset(&self) -> &MasterDataset {
        &self.dataset
    }

    /// The files of this version, in the order of their paths.
    pub fn files(&self) -> impl Iterator<Item = &Arc<DataFile>> {
        self.state.files.values()
    }

    /// The events with `from ≤ offset < until` of every partition that `until` names, as a table.
    ///
    /// Its schema is exactly [`MasterDataset::schema`]: no view types, no `_date`. The bounds are enforced exactly.
    /// `from`: `None`, or a partition absent from it, stands for everything below `until`; a rebuild gives the stream's
    /// origins, so that a partition of which there is nothing below its cut need not be archived. A partition absent
    /// from `until` contributes nothing. Filters and projections of a query are pushed down to files, row groups and pages;
    /// files wholly within the bounds are read without any filter, and their rows are counted without being read.
    ///
    /// Rows come in no particular order, though those of one file ascend by `_offset`.
    ///
    /// # Errors
    /// [`Error::NotArchived`] if `until` lies past [`archived_until`](Self::archived_until): what the table would
    /// answer is not yet the truth about those offsets.
    pub fn scan(&self, from: Option<&OffsetVector>, until: &OffsetVector) -> Result<Arc<dyn TableProvider>, Error> {
        let mut ranges = Vec::new();
        for (partition, end) in until.iter() {
            let archived = self.archived_until.get(partition);
            let start = from.and_then(|from| from.get(partition)).unwrap_or(Offset(0));
            if start >= end {
                continue;
            }
            if archived.is_none_or(|archived| archived < end) {
                let archived = archived.map_or_else(|| "nothing".to_owned(), |offset| offset.to_string());
                return Err(Error::NotArchived { partition, until: end, archived });
            }
            ranges.push((partition, OffsetRange::new(start, end)));
        }
        let inner = &self.dataset.inner;
        let files: Vec<_> = self.files().cloned().collect();
        Ok(Arc::new(FilesTable {
            storage: inner.storage.clone(),
            path: paths::stream(&inner.stream),
            schema: Arc::clone(&inner.schema),
            parts: parts(&files, &ranges),
        }))
    }

    /// All that is archived: [`scan`](Self::scan) up to [`archived_until`](Self::archived_until).
    ///
    /// # Errors
    /// None that [`scan`](Self::scan) does not have.
    pub fn scan_archived(&self) -> Result<Arc<dyn TableProvider>, Error> {
        self.scan(None, &self.archived_until)
    }

    /// The dead letters below [`archived_until`](Self::archived_until), as a table in
    /// [`dead_letter_schema`](super::dead_letter_schema).
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn dead_letters(&self) -> Result<Arc<dyn TableProvider>, Error> {
        // Dead letters are there before the offsets that cover them: those of this version are in any later state.
        let state = self.dataset.inner.follow_dead_letters().await?;
        let files: Vec<_> = state.files.values().cloned().collect();
        let until = self.archived_until.iter().map(|(p, end)| (p, OffsetRange::new(Offset(0), end)));
        Ok(self.dataset.dead_letters_of(parts(&files, &until.collect::<Vec<_>>())))
    }

    /// The running maximum of event time before `offset`: what decoding from there on starts with. `None`: no event
    /// at a lower offset has an event time that counts.
    ///
    /// It is the larger of the two times of the archived row with the greatest lower offset, whose own event time
    /// counts only if it is not more than the stream's `max_ahead` past its `_timestamp`. Statistics lead to the end of
    /// one file.
    ///
    /// # Errors
    /// [`Error::NotArchived`] if not everything below `offset` is archived.
    pub async fn event_time_max_at(&self, partition: PartitionId, offset: Offset) -> Result<Option<i64>, Error> {
        if self.archived_until.get(partition).is_none() || offset <= Offset(0) {
            // No row of it was ever archived, or none can lie below.
            return Ok(None);
        }
        // The last row of a file stands at the end of its range, so no row before it can be the one.
        let last_row = |file: &Arc<DataFile>| {
            let range = file.offsets.filter(|range| range.end <= offset && file.partition == Some(partition))?;
            Some(Offset(range.end.0 - 1))
        };
        let from: OffsetVector = self.files().filter_map(last_row).max().map(|o| (partition, o)).into_iter().collect();
        let until: OffsetVector = [(partition, offset)].into_iter().collect();
        let inner = &self.dataset.inner;
        let mut columns = vec![ident(TIMESTAMP), ident(EVENT_TIME_MAX)];
        if let Some(event_time) = inner.event_time {
            columns.push(ident(inner.schema.field(event_time).name()));
        }
        columns.push(ident(OFFSET));
        let rows = inner
            .session
            .read_table(self.scan(Some(&from), &until)?)?
            .select(columns)?
            .sort(vec![col(OFFSET).sort(false, false)])?
            .limit(0, Some(1))?
            .collect()
            .await?;
        let Some(row) = rows.iter().find(|batch| batch.num_rows() > 0) else { return Ok(None) };
        let event_time = inner.event_time.and_then(|_| micros(row, 2));
        let mut maximum = RunningMaximum { event_time_max: micros(row, 1) };
        maximum.observe(event_time, micros(row, 0), inner.max_ahead_micros);
        Ok(maximum.event_time_max)
    }

    /// The epoch of the leader that wrote what lies in front of the end of what is archived; `None` if it is not known.
    fn leader_epoch(&self, partition: PartitionId) -> Option<i32> {
        let epoch = self.state.txns.get(&epoch_app_id(self.topic_key.as_deref()?, partition)).copied()?;
        i32::try_from(epoch).ok().filter(|epoch| *epoch >= 0)
    }

    /// Where decoding goes on in each partition of which something is archived.
    ///
    /// # Errors
    /// If the table can't be read.
    pub async fn resume(&self) -> Result<BTreeMap<PartitionId, Seed>, Error> {
        let partitions: Vec<_> = self.archived_until.iter().collect();
        stream::iter(partitions)
            .map(|(partition, archived_until)| async move {
                let event_time_max = match mutant::is(Mutant::MaximumNotSeeded) {
                    true => None,
                    false => self.event_time_max_at(partition, archived_until).await?,
                };
                let leader_epoch = self.leader_epoch(partition);
                Ok((partition, Seed { archived_until, event_time_max, leader_epoch }))
            })
            .buffer_unordered(8)
            .try_collect()
            .await
    }
}

/// Partitions of which nothing is archived are left out: they are decoded from the log's start on.
#[async_trait]
impl Seeds for MasterDataset {
    async fn resume(&self) -> Result<BTreeMap<PartitionId, Seed>, SeedsError> {
        Ok(self.snapshot().await?.resume().await?)
    }
}

fn micros(batch: &RecordBatch, column: usize) -> Option<i64> {
    let array = batch.column(column);
    if array.is_null(0) {
        return None;
    }
    // An event time is a TIMESTAMP: the decoder refuses any other.
    array.as_primitive_opt::<TimestampMicrosecondType>().map(|times| times.value(0))
}

/// The application of a partition's `txn`.
pub(super) fn app_id(topic_key: &str, partition: PartitionId) -> String {
    format!("watershed/{topic_key}/{partition}")
}

/// The application whose `txn` has the leader epoch of what lies in front of a partition's; -1 where it is not known.
pub(super) fn epoch_app_id(topic_key: &str, partition: PartitionId) -> String {
    format!("watershed-leader-epoch/{topic_key}/{partition}")
}

fn parse_app_id(app: &str) -> Option<(&str, PartitionId)> {
    let (key, partition) = app.strip_prefix("watershed/")?.rsplit_once('/')?;
    Some((key, PartitionId(partition.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applications_name_topic_and_partition() {
        let app = app_id("a/b", PartitionId(12));
        assert_eq!(parse_app_id(&app), Some(("a/b", PartitionId(12))));
        assert_eq!(parse_app_id("watershed-compaction"), None);
        assert_eq!(parse_app_id("another/app/1"), None);
        assert_eq!(parse_app_id(&epoch_app_id("a/b", PartitionId(12))), None);
    }
}
