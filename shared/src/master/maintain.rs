//! Keeping a table quick and small: checkpoints, compaction, vacuum. None of it changes a row.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use chrono::{DateTime, NaiveDate, Utc};
use deltalake_core::checkpoints::{cleanup_metadata, create_checkpoint};
use deltalake_core::kernel::{Action, Add};
use deltalake_core::logstore::parquet_reader::ParquetObjectReader;
use deltalake_core::operations::vacuum::VacuumMode;
use deltalake_core::protocol::DeltaOperation;
use deltalake_core::table::config::TablePropertiesExt;
use futures::TryStreamExt;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use serde_json::json;
use tokio::sync::Mutex;

use super::age::Written;
use super::append::checkpoint_if_due;
use super::error::from_delta;
use super::file::Stats;
use super::table::{Change, Committed, Table, TableState};
use super::write::{indexed_columns, put, writer_properties};
use super::{DataFile, Error, MasterDataset, MasterSnapshot, follow, reload, schema};
use crate::offsets::{Cut, OffsetRange, PartitionId};
use crate::storage::Storage;
use crate::{abort_point, background, clock, paths};

/// Which files may be compacted, and into what.
#[derive(Debug, Clone)]
pub struct CompactionRule {
    /// The meet of the cuts of all views that have a generation: builds read from there on, so files below are only
    /// read by rebuilds. `None`: no view has one.
    pub below: Option<Cut>,
    /// Files older than this are compacted wherever they lie.
    pub older_than: Duration,
    pub target_file_size_bytes: u64,
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compaction {
    pub files_before: usize,
    pub files_after: usize,
    pub bytes_after: u64,
}

/// Where a file's rows lie, if that is known.
fn place(file: &DataFile) -> Option<(PartitionId, Option<NaiveDate>, OffsetRange)> {
    Some((file.partition?, file.date, file.offsets?))
}

impl CompactionRule {
    fn allows(&self, file: &DataFile, now: DateTime<Utc>) -> bool {
        let Some((partition, _, offsets)) = place(file) else { return false };
        if file.size_bytes >= self.target_file_size_bytes || file.rows.is_none() {
            return false;
        }
        let below = self.below.as_ref().and_then(|cut| cut.get(partition)).is_some_and(|cut| offsets.end <= cut);
        let age = now.timestamp_millis().saturating_sub(file.created_at);
        below || u128::try_from(age).is_ok_and(|age| age >= self.older_than.as_millis())
    }

    /// Groups of files each of which should become one: same partition, same date, next to each other by offset.
    ///
    /// A group is at least twice as large as its largest file, so that a row is rewritten a logarithmic number of times.
    pub fn plan<'a>(
        &self,
        files: impl Iterator<Item = &'a Arc<DataFile>>,
        now: DateTime<Utc>,
    ) -> Vec<Vec<Arc<DataFile>>> {
        let mut small: Vec<_> = files.filter(|file| self.allows(file, now)).collect();
        small.sort_by_key(|file| place(file).map(|(partition, date, offsets)| (partition, date, offsets.start)));
        let mut groups: Vec<Vec<Arc<DataFile>>> = Vec::new();
        for next in small {
            match groups.last_mut() {
                Some(group) if self.fits(group, next) => group.push(Arc::clone(next)),
                _ => groups.push(vec![Arc::clone(next)]),
            }
        }
        groups.retain(|group| {
            let sizes = group.iter().map(|file| file.size_bytes);
            group.len() > 1 && sizes.clone().sum::<u64>() >= 2 * sizes.max().unwrap_or_default()
        });
        groups
    }

    fn fits(&self, group: &[Arc<DataFile>], next: &DataFile) -> bool {
        let (Some(last), Some(next_place)) = (group.last().and_then(|file| place(file)), place(next)) else {
            return false;
        };
        let size: u64 = group.iter().map(|file| file.size_bytes).sum();
        (last.0, last.1) == (next_place.0, next_place.1)
            && last.2.end <= next_place.2.start
            && size + next.size_bytes <= self.target_file_size_bytes
    }
}

impl MasterDataset {
    /// Rewrites small files into larger ones, each still of one `_partition` and one `_date`, group after group.
    ///
    /// Rows and offsets stay as they are, so readers and archivers take no notice. Cancel safe between groups; files of
    /// a group that was not committed are left to a full vacuum. Dead letters lie behind the same offsets, and are
    /// rewritten by the same rule.
    ///
    /// # Errors
    /// If the storage fails; groups done before stay done.
    pub async fn compact(&self, rule: &CompactionRule) -> Result<Compaction, Error> {
        let inner = &self.inner;
        let events = Rewriter {
            storage: &inner.storage,
            table: &inner.events,
            state: &inner.events_state,
            path: paths::stream(&inner.stream),
            schema: &inner.schema,
            event_time: inner.event_time,
        };
        let dead_letters = Rewriter {
            storage: &inner.storage,
            table: &inner.dead_letters,
            state: &inner.dead_letters_state,
            path: paths::dead_letters(&inner.stream),
            schema: &inner.dead_letter_schema,
            event_time: None,
        };
        let mut done = events.compact(rule).await?;
        let more = dead_letters.compact(rule).await?;
        done.files_before += more.files_before;
        done.files_after += more.files_after;
        done.bytes_after += more.bytes_after;
        Ok(done)
    }

    /// Deletes files that left the tables longer ago than `retention`, and those of that age that never were in them
    /// (of commits that lost a race); then log entries that no reader needs.
    ///
    /// `retention` must exceed the time that any build or query takes. The number of deleted files.
    ///
    /// # Errors
    /// If the storage fails; what is deleted stays deleted.
    pub async fn vacuum(&self, retention: Duration) -> Result<usize, Error> {
        let inner = &self.inner;
        let events = inner.events.vacuum(inner.follow_events().await?.version, retention).await?;
        let dead_letters = inner.dead_letters.vacuum(inner.follow_dead_letters().await?.version, retention).await?;
        Ok(events + dead_letters)
    }
}

/// One of the tables, to be compacted.
struct Rewriter<'a> {
    storage: &'a Storage,
    table: &'a Table,
    state: &'a Mutex<Arc<TableState>>,
    /// Under the storage URL.
    path: Path,
    schema: &'a SchemaRef,
    event_time: Option<usize>,
}

impl Rewriter<'_> {
    async fn compact(&self, rule: &CompactionRule) -> Result<Compaction, Error> {
        let mut done = Compaction::default();
        let state = follow(self.table, self.state).await?;
        for group in rule.plan(state.files.values(), clock::now()) {
            if let Some(size) = self.compact_group(&group).await? {
                done.files_before += group.len();
                done.files_after += 1;
                done.bytes_after += size;
            }
        }
        Ok(done)
    }

    /// The new file's size; `None` if another compaction came first, or a vacuum may have.
    async fn compact_group(&self, group: &[Arc<DataFile>]) -> Result<Option<u64>, Error> {
        let written = Written::from_now();
        let add = self.rewrite(group).await?;
        abort_point!("master.compaction_written");
        let size = add.size.unsigned_abs();
        loop {
            // SUBTLE: the commit rests on a version in which all of the group is there. Two compactions of the same
            // files, or one and a deletion, can't both happen: the second finds its version taken and looks again.
            let state = follow(self.table, self.state).await?;
            if written.is_too_long_ago() || !group.iter().all(|file| state.files.contains_key(&file.path)) {
                return Ok(None);
            }
            let now = clock::now().timestamp_millis();
            let mut actions: Vec<_> = group.iter().map(|file| Action::Remove(file.removal(now))).collect();
            actions.push(Action::Add(add.clone()));
            let target_size = i64::try_from(size).unwrap_or(i64::MAX);
            let operation = DeltaOperation::Optimize { predicate: None, target_size };
            let change = Change { actions, txns: vec![], operation, note: json!({}) };
            match self.table.commit(&state, change).await? {
                Committed::Done => {
                    checkpoint_if_due(self.table, state.version + 1).await;
                    return Ok(Some(size));
                }
                Committed::Lost => {}
                Committed::Superseded => reload(self.table, self.state).await?,
            }
        }
    }

    async fn rewrite(&self, group: &[Arc<DataFile>]) -> Result<Add, Error> {
        let schema = SchemaRef::clone(self.schema);
        let encode_error = |e| Error::Encode(Box::new(e));
        let properties = writer_properties(&schema);
        let mut writer = ArrowWriter::try_new(Vec::new(), SchemaRef::clone(&schema), Some(properties))
            .map_err(|e| Error::Encode(Box::new(e)))?;
        let mut rows = 0;
        for file in group {
            let batches = self.read_file(file).await?;
            let found: usize = batches.iter().map(RecordBatch::num_rows).sum();
            if file.rows != Some(found as u64) {
                return Err(Error::Corrupt {
                    what: format!("{found} rows in file {}, the log says {:?}", file.path, file.rows),
                });
            }
            rows += found;
            let encoded = background::run_blocking(move || {
                batches.iter().try_for_each(|batch| writer.write(batch))?;
                Ok::<_, parquet::errors::ParquetError>(writer)
            });
            writer = encoded.await.map_err(|e| Error::Encode(Box::new(e)))?.map_err(encode_error)?;
        }
        let bytes = writer.into_inner().map_err(encode_error)?;
        let stats = merge_stats(&schema, self.event_time, group).into_json(rows);
        let first = group.first().expect("a group has at least two files");
        let partition = first.partition.expect("files of an unknown partition are not compacted");
        let date = first.date.map(arrow::datatypes::Date32Type::from_naive_date);
        let add = put(self.storage, &self.path, partition, date, bytes.into(), stats).await?;
        Ok(Add { data_change: false, ..add })
    }

    async fn read_file(&self, file: &DataFile) -> Result<Vec<RecordBatch>, Error> {
        let path = Path::from_iter(self.path.parts().chain(file.path.parts()));
        let reader = ParquetObjectReader::new(self.storage.store(), path).with_file_size(file.size_bytes);
        let read_error = |source| Error::Query(datafusion::error::DataFusionError::ParquetError(Box::new(source)));
        let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(read_error)?;
        if builder.schema().fields() != self.schema.fields() {
            return Err(Error::Corrupt { what: format!("other columns in file {}", file.path) });
        }
        let batches: Vec<RecordBatch> = builder.build().map_err(read_error)?.try_collect().await.map_err(read_error)?;
        // Equal but for metadata of the file.
        let same = |batch: RecordBatch| batch.with_schema(SchemaRef::clone(self.schema));
        batches.into_iter().map(same).collect::<Result<_, _>>().map_err(|e| Error::Encode(Box::new(e)))
    }
}

impl Table {
    pub(super) async fn checkpoint(&self, version: u64) -> Result<(), Error> {
        let table = self.at_version(version).await?;
        create_checkpoint(&table, None).await.map_err(from_delta(&self.name))
    }

    async fn vacuum(&self, version: u64, retention: Duration) -> Result<usize, Error> {
        let mut table = self.at_version(version).await?;
        // SUBTLE: checkpoints forget removals that are older than this property says. A file whose removal is forgotten
        // looks as if it never was in the table, and its age then counts from its creation.
        let remembered =
            table.snapshot().map_err(from_delta(&self.name))?.table_config().deleted_file_retention_duration();
        if remembered < retention {
            let properties = HashMap::from([(schema::DELETED_FILE_RETENTION.to_owned(), schema::interval(retention))]);
            table = table.set_tbl_properties().with_properties(properties).await.map_err(from_delta(&self.name))?;
        }
        let retention = chrono::Duration::from_std(retention).unwrap_or(chrono::Duration::MAX);
        // The retention is ours to choose: a longer property in the table is only what other engines go by.
        let vacuum = table
            .vacuum()
            .with_retention_period(retention)
            .with_mode(VacuumMode::Full)
            .with_enforce_retention_duration(false);
        let (table, metrics) = vacuum.await.map_err(from_delta(&self.name))?;
        cleanup_metadata(&table, None).await.map_err(from_delta(&self.name))?;
        Ok(metrics.files_deleted.len())
    }
}

/// Bounds over all rows of `group`, as wide as the widest.
fn merge_stats(schema: &SchemaRef, event_time: Option<usize>, group: &[Arc<DataFile>]) -> Stats {
    let mut stats = Stats::default();
    for column in indexed_columns(schema, event_time) {
        let field = schema.field(column);
        let bounds: Vec<_> = group.iter().filter_map(|file| file.bounds.get(field.name())).collect();
        let nulls = bounds.iter().map(|b| b.nulls).sum::<Option<u64>>().and_then(|n| usize::try_from(n).ok());
        let Some(nulls) = nulls.filter(|_| bounds.len() == group.len()) else { continue };
        // A file without bounds holds NULLs only, or values whose bounds have no text: only its rows tell which.
        let all_null = |file: &&Arc<DataFile>| file.bounds.get(field.name()).is_some_and(|b| b.nulls == file.rows);
        let bounded: Vec<_> =
            group.iter().filter(|f| !all_null(f)).filter_map(|f| f.bounds.get(field.name())).collect();
        let min = bounded.iter().map(|b| b.min).collect::<Option<Vec<_>>>().and_then(|m| m.into_iter().min());
        let max = bounded.iter().map(|b| b.max).collect::<Option<Vec<_>>>().and_then(|m| m.into_iter().max());
        let min_max = min.zip(max);
        match field.data_type() {
            DataType::Int32 | DataType::Int64 => stats.integer(field.name(), min_max, nulls),
            DataType::Date32 => {
                let days = |(min, max)| Some((i32::try_from(min).ok()?, i32::try_from(max).ok()?));
                stats.date(field.name(), min_max.and_then(days), nulls);
            }
            _ => stats.timestamp(field.name(), min_max, nulls),
        }
    }
    stats
}

impl MasterSnapshot {
    /// How many files are smaller than `bytes`: what a compaction could be for.
    pub fn small_files(&self, bytes: u64) -> usize {
        self.files().filter(|file| file.size_bytes < bytes).count()
    }
}
