//! What the tests of a master dataset share, and the tests by subject.

mod crashes;
mod identity;
mod maintenance;
mod races;
mod reading;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::*;
use crate::config::{Format, StreamConfig};
use crate::offsets::{Offset, OffsetRange, OffsetVector, PartitionId};
use crate::record::{DeadLetter, DecodedBatch, RawRecord, timestamp_type};
use crate::storage::Storage;

const DAY: i64 = 86_400_000_000;

fn stream(columns: Vec<Field>) -> StreamConfig {
    StreamConfig {
        name: "github".to_owned(),
        topic: "github".to_owned(),
        partitions: 4,
        replication: 1,
        shards: 1,
        format: Format::Json,
        event_time: Some("at".to_owned()),
        allowed_lateness: None,
        max_ahead: Duration::from_secs(86_400),
        columns: Arc::new(Schema::new(columns)),
        json_columns: vec![],
        accept_compacted: false,
        epoch_units: Default::default(),
    }
}

/// `n INT, at TIMESTAMP`.
fn small_stream() -> StreamConfig {
    stream(vec![Field::new("n", DataType::Int32, true), Field::new("at", timestamp_type(), true)])
}

/// Events of [`small_stream`] at every offset of the range; `n` is the offset, `at` as given, as the `_timestamp`.
fn events(partition: i32, range: std::ops::Range<i64>, at: impl Fn(i64) -> Option<i64>) -> DecodedBatch {
    events_at(partition, OffsetRange::new(Offset(range.start), Offset(range.end)), &range.collect::<Vec<_>>(), at)
}

/// As [`events`], with rows at some offsets of the range only.
fn events_at(partition: i32, range: OffsetRange, offsets: &[i64], at: impl Fn(i64) -> Option<i64>) -> DecodedBatch {
    let schema = event_schema(&small_stream().columns);
    let times: TimestampMicrosecondArray = offsets.iter().map(|o| at(*o)).collect();
    let times: ArrayRef = Arc::new(times.with_timezone("UTC"));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![partition; offsets.len()])),
        Arc::new(Int64Array::from(offsets.to_vec())),
        Arc::clone(&times),
        new_null_array(&timestamp_type(), offsets.len()),
        new_null_array(&DataType::Binary, offsets.len()),
        new_null_array(schema.field(5).data_type(), offsets.len()),
        Arc::new(offsets.iter().map(|o| i32::try_from(*o).ok()).collect::<Int32Array>()),
        times,
    ];
    DecodedBatch {
        partition: PartitionId(partition),
        range,
        events: RecordBatch::try_new(schema, columns).unwrap(),
        dead_letters: vec![],
        tombstones: 0,
        ahead: 0,
        event_time_max: None,
        leader_epoch: None,
    }
}

fn dead_letter(partition: i32, offset: i64) -> DeadLetter {
    DeadLetter {
        partition: PartitionId(partition),
        record: RawRecord {
            offset: Offset(offset),
            timestamp: Some(offset),
            key: None,
            value: Some("{".into()),
            headers: vec![("trace".to_owned(), Some("1".into())), ("empty".to_owned(), None)],
        },
        error: format!("not JSON at {offset}"),
    }
}

async fn append(dataset: &MasterDataset, batches: Vec<DecodedBatch>) -> Commit {
    let batches: Vec<_> = batches.into_iter().map(Arc::new).collect();
    match dataset.append(&dataset.snapshot().await.unwrap(), &batches).await.unwrap() {
        AppendOutcome::Committed(commit) => commit,
        other => panic!("{other:?}"),
    }
}

async fn collect(table: Arc<dyn TableProvider>) -> Vec<RecordBatch> {
    SessionContext::new().read_table(table).unwrap().collect().await.unwrap()
}

async fn sql(table: Arc<dyn TableProvider>, query: &str) -> Vec<RecordBatch> {
    let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
    session.register_table("t", table).unwrap();
    session.sql(query).await.unwrap().collect().await.unwrap()
}

/// Partition and offset of every row, sorted: with repetitions if there are any.
async fn offsets(table: Arc<dyn TableProvider>) -> Vec<(i32, i64)> {
    let mut rows = Vec::new();
    for batch in collect(table).await {
        let partitions = batch.column_by_name("_partition").unwrap().as_primitive::<Int32Type>().clone();
        let offsets = batch.column_by_name("_offset").unwrap().as_primitive::<Int64Type>().clone();
        rows.extend(partitions.values().iter().copied().zip(offsets.values().iter().copied()));
    }
    rows.sort_unstable();
    rows
}

fn pairs(partition: i32, range: std::ops::Range<i64>) -> Vec<(i32, i64)> {
    range.map(|offset| (partition, offset)).collect()
}

fn file_storage(folder: &tempfile::TempDir) -> Storage {
    Storage::open(&url::Url::from_directory_path(folder.path()).unwrap()).unwrap()
}

/// What the library itself reads of the table, with nothing of ours: version, files, rows.
async fn as_plain_delta_reader(dataset: &MasterDataset) -> (u64, Vec<String>, usize) {
    let version = dataset.snapshot().await.unwrap().version();
    let table = dataset.inner.events.at_version(version).await.unwrap();
    let mut paths: Vec<_> = table.snapshot().unwrap().log_data().iter().map(|f| f.path().into_owned()).collect();
    paths.sort();
    let provider = table.table_provider().await.unwrap();
    let rows = collect(provider).await.iter().map(RecordBatch::num_rows).sum();
    (version, paths, rows)
}

fn schema_of(stream: &StreamConfig) -> SchemaRef {
    event_schema(&stream.columns)
}
