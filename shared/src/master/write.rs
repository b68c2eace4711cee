//! Writing rows as data files: one file holds one `_partition` and one `_date`, ascending by `_offset`.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray, RecordBatch, UInt64Array};
use arrow::compute::kernels::aggregate::{max, min};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Date32Type, Int32Type, Int64Type, SchemaRef, TimeUnit, TimestampMicrosecondType};
use bytes::Bytes;
use chrono::NaiveDate;
use deltalake_core::kernel::Add;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use uuid::Uuid;

use super::Error;
use super::file::{Stats, in_common_calendar};
use crate::offsets::PartitionId;
use crate::record::{DATE, EVENT_TIME_MAX, OFFSET, TIMESTAMP};
use crate::storage::Storage;
use crate::{background, clock};

/// Rows between two places from which a reader can start.
const ROW_GROUP_ROWS: usize = 256 * 1024;
/// Files that are encoded and written at the same time.
const CONCURRENT_FILES: usize = 4;
const MICROS_PER_DAY: i64 = 86_400_000_000;

/// The rows of one file to be.
#[derive(Debug)]
pub(super) struct FileRows {
    partition: PartitionId,
    date: Option<i32>,
    /// In offset order.
    batches: Vec<RecordBatch>,
}

/// Sorts rows into files.
#[derive(Debug)]
pub(super) struct Files {
    schema: SchemaRef,
    event_time: Option<usize>,
    files: BTreeMap<(PartitionId, Option<i32>), Vec<RecordBatch>>,
}

impl Files {
    /// `event_time`: the index of the column whose date is `_date`; else, and where it is NULL, that of `_timestamp`.
    pub(super) fn new(schema: SchemaRef, event_time: Option<usize>) -> Self {
        Self { schema, event_time, files: BTreeMap::new() }
    }

    /// Adds rows of `partition`, in offset order and behind all that were added of it.
    pub(super) fn add(&mut self, partition: PartitionId, rows: &RecordBatch) -> Result<(), Error> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let dates = dates(rows, self.event_time)?;
        let mut by_date: BTreeMap<Option<i32>, Vec<u64>> = BTreeMap::new();
        for (row, date) in (0u64..).zip(&dates) {
            by_date.entry(*date).or_default().push(row);
        }
        let whole = by_date.len() == 1;
        for (date, indices) in by_date {
            let part = if whole {
                rows.clone()
            } else {
                take_record_batch(rows, &UInt64Array::from(indices)).map_err(encode_error)?
            };
            self.files.entry((partition, date)).or_default().push(part);
        }
        Ok(())
    }

    pub(super) fn into_files(self) -> (SchemaRef, Vec<FileRows>) {
        let files = self.files.into_iter();
        (self.schema, files.map(|((partition, date), batches)| FileRows { partition, date, batches }).collect())
    }
}

/// Writes `files` and returns the actions that add them to the table. On return they are durable.
///
/// `table`: its path under the storage URL. Each file gets a name that was never used before. What an unsuccessful call leaves behind only a full vacuum finds.
pub(super) async fn write(
    storage: &Storage,
    table: &Path,
    schema: SchemaRef,
    event_time: Option<usize>,
    files: Vec<FileRows>,
) -> Result<Vec<Add>, Error> {
    stream::iter(files)
        .map(|rows| {
            let schema = SchemaRef::clone(&schema);
            async move {
                let (partition, date) = (rows.partition, rows.date);
                let encoded = background::run_blocking(move || encode(schema, event_time, &rows.batches)).await;
                let (bytes, stats) = encoded.map_err(|e| Error::Encode(Box::new(e)))??;
                put(storage, table, partition, date, bytes, stats).await
            }
        })
        .buffered(CONCURRENT_FILES)
        .try_collect()
        .await
}

/// Writes one file and returns the action that adds it.
pub(super) async fn put(
    storage: &Storage,
    table: &Path,
    partition: PartitionId,
    date: Option<i32>,
    bytes: Bytes,
    stats: String,
) -> Result<Add, Error> {
    let value = date.and_then(Date32Type::to_naive_date_opt).map(|d| d.format("%Y-%m-%d").to_string());
    // The name that Hive gave to NULL, which all readers of such folders know.
    let folder = value.as_deref().unwrap_or("__HIVE_DEFAULT_PARTITION__");
    let folder = table.clone().join(format!("{DATE}={folder}"));
    let size = bytes.len();
    let name = |unique: Uuid| folder.clone().join(format!("part-{partition:05}-{unique}.zstd.parquet"));
    let path = storage.put_unique(name, bytes).await?;
    let path = path.as_ref().strip_prefix(table.as_ref()).map(|p| p.trim_start_matches('/'));
    Ok(Add {
        path: path.expect("the name lies in the table").to_owned(),
        partition_values: HashMap::from([(DATE.to_owned(), value)]),
        size: i64::try_from(size).expect("a file in memory is smaller than 2^63"),
        modification_time: clock::now().timestamp_millis(),
        data_change: true,
        stats: Some(stats),
        ..Add::default()
    })
}

fn encode(schema: SchemaRef, event_time: Option<usize>, batches: &[RecordBatch]) -> Result<(Bytes, String), Error> {
    let mut stats = Stats::default();
    for column in indexed_columns(&schema, event_time) {
        let arrays: Vec<&dyn Array> = batches.iter().map(|b| b.column(column).as_ref()).collect();
        column_stats(&mut stats, schema.field(column).name(), schema.field(column).data_type(), &arrays);
    }
    let rows = batches.iter().map(RecordBatch::num_rows).sum();
    let mut writer = ArrowWriter::try_new(Vec::new(), SchemaRef::clone(&schema), Some(writer_properties(&schema)))
        .map_err(encode_error)?;
    for batch in batches {
        writer.write(batch).map_err(encode_error)?;
    }
    Ok((writer.into_inner().map_err(encode_error)?.into(), stats.into_json(rows)))
}

/// The columns that have statistics in the log: system columns with an order, and the event time.
pub(super) fn indexed_columns(schema: &SchemaRef, event_time: Option<usize>) -> Vec<usize> {
    let ordered = |i: &usize| {
        matches!(schema.field(*i).data_type(), DataType::Int32 | DataType::Int64 | DataType::Timestamp(..))
            && schema.field(*i).name().starts_with('_')
    };
    (0..schema.fields().len().min(4)).filter(ordered).chain(event_time).collect()
}

pub(super) fn writer_properties(schema: &SchemaRef) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).expect("3 is a level of zstd")))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_created_by(concat!("watershed ", env!("CARGO_PKG_VERSION")).to_owned());
    for column in [OFFSET, TIMESTAMP, EVENT_TIME_MAX] {
        // Nearly all of these values are different, so a dictionary is built in vain; they ascend by little.
        let column = ColumnPath::from(column);
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
    }
    // The columns up to `_offset` are flat, so its index is that of the Parquet leaf.
    if let Ok(offset) = schema.index_of(OFFSET)
        && let Ok(column_idx) = i32::try_from(offset)
    {
        let ascending = SortingColumn { column_idx, descending: false, nulls_first: false };
        properties = properties.set_sorting_columns(Some(vec![ascending]));
    }
    properties.build()
}

fn column_stats(stats: &mut Stats, name: &str, data_type: &DataType, arrays: &[&dyn Array]) {
    let nulls = arrays.iter().map(|a| a.null_count()).sum();
    match data_type {
        DataType::Int32 => {
            let bounds = min_max::<Int32Type>(arrays);
            stats.integer(name, bounds.map(|(min, max)| (i64::from(min), i64::from(max))), nulls);
        }
        DataType::Int64 => stats.integer(name, min_max::<Int64Type>(arrays), nulls),
        DataType::Date32 => stats.date(name, min_max::<Date32Type>(arrays), nulls),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            stats.timestamp(name, min_max::<TimestampMicrosecondType>(arrays), nulls);
        }
        _ => {}
    }
}

fn min_max<T: ArrowPrimitiveType>(arrays: &[&dyn Array]) -> Option<(T::Native, T::Native)>
where
    T::Native: Ord,
{
    let typed = || arrays.iter().map(|a| a.as_primitive::<T>());
    Some((typed().filter_map(min).min()?, typed().filter_map(max).max()?))
}

/// The `_date` of each row, in days. Dates that have no text of four-digit years count as none.
fn dates(rows: &RecordBatch, event_time: Option<usize>) -> Result<Vec<Option<i32>>, Error> {
    let timestamps = match rows.schema_ref().index_of(TIMESTAMP) {
        Ok(column) => days(rows.column(column)),
        Err(_) => vec![None; rows.num_rows()],
    };
    let Some(column) = event_time else { return Ok(timestamps) };
    Ok(days(rows.column(column)).into_iter().zip(timestamps).map(|(event, record)| event.or(record)).collect())
}

fn days(times: &ArrayRef) -> Vec<Option<i32>> {
    let valid =
        |days: &i32| Date32Type::to_naive_date_opt(*days).is_some_and(|date: NaiveDate| in_common_calendar(date));
    match times.data_type() {
        DataType::Date32 => times.as_primitive::<Date32Type>().iter().map(|d| d.filter(valid)).collect(),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let times: &PrimitiveArray<TimestampMicrosecondType> = times.as_primitive();
            times
                .iter()
                .map(|t| t.and_then(|t| i32::try_from(t.div_euclid(MICROS_PER_DAY)).ok()).filter(valid))
                .collect()
        }
        _ => vec![None; times.len()],
    }
}

fn encode_error(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Encode(Box::new(error))
}
