//! The events on which a view's SQL failed, as a file beside the run.

use std::sync::Arc;

use arrow::array::{AsArray, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Error, EventError, Fault, RunFile, RunMeta, RunOptions, write_run};
use crate::offsets::{Offset, PartitionId};
use crate::storage::{self, Storage};

/// `_partition, _offset, error`; the first two are the key.
pub fn event_error_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("_partition", DataType::Int32, false),
        Field::new("_offset", DataType::Int64, false),
        Field::new("error", DataType::Utf8, false),
    ]))
}

/// In [`event_error_schema`], in the order given.
pub fn event_errors_to_batch(errors: &[EventError]) -> RecordBatch {
    let partitions = Int32Array::from_iter_values(errors.iter().map(|e| e.partition.0));
    let offsets = Int64Array::from_iter_values(errors.iter().map(|e| e.offset.0));
    let texts = StringArray::from_iter_values(errors.iter().map(|e| &e.error));
    RecordBatch::try_new(event_error_schema(), vec![Arc::new(partitions), Arc::new(offsets), Arc::new(texts)])
        .expect("three columns of the schema's types and one length")
}

/// What [`event_errors_to_batch`] was given.
///
/// # Errors
/// If the batch has other columns.
pub fn event_errors_from_batch(batch: &RecordBatch) -> Result<Vec<EventError>, ArrowError> {
    let batch = RecordBatch::try_new(event_error_schema(), batch.columns().to_vec())?;
    let partitions = batch.column(0).as_primitive::<Int32Type>().values();
    let offsets = batch.column(1).as_primitive::<Int64Type>().values();
    let texts = batch.column(2).as_string::<i32>();
    let error = |((partition, offset), text): ((&i32, &i64), Option<&str>)| EventError {
        partition: PartitionId(*partition),
        offset: Offset(*offset),
        error: text.unwrap_or_default().to_owned(),
    };
    Ok(partitions.iter().zip(offsets).zip(texts).map(error).collect())
}

/// Writes the errors of a run to a new file, in the order of partitions and offsets; on return it is durable.
///
/// # Errors
/// As [`write_run`]; also if an event stands there twice.
pub async fn write_event_errors(
    storage: &Storage,
    path: &Path,
    mut errors: Vec<EventError>,
    options: &RunOptions,
) -> Result<RunFile, Error> {
    errors.sort_by_key(|e| (e.partition, e.offset));
    let batch = event_errors_to_batch(&errors);
    let stream = RecordBatchStreamAdapter::new(event_error_schema(), futures::stream::iter([Ok(batch)]));
    write_run(storage, path, Box::pin(stream), 2, options).await
}

/// Why the errors of a run cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Reads what [`write_event_errors`] has written of a run; nothing if it has no errors.
///
/// # Errors
/// [`ReadError::Fault`] when the file is missing or not as it was written.
pub async fn read_event_errors(storage: &Storage, run: &RunMeta) -> Result<Vec<RecordBatch>, ReadError> {
    let Some(file) = &run.errors_file else { return Ok(Vec::new()) };
    let path = Path::from(file.as_str());
    let Some(bytes) = storage.get(&path).await? else { return Err(Fault::Missing { path }.into()) };
    let damaged = |what: String| Fault::Damaged { path: path.clone(), what };
    if run.errors_crc32.is_some_and(|written| crc32fast::hash(&bytes) != written) {
        return Err(damaged("it has another checksum than it was written with".to_owned()).into());
    }
    let read = || {
        let batches = ParquetRecordBatchReaderBuilder::try_new(bytes)?.build()?;
        batches.map(|batch| RecordBatch::try_new(event_error_schema(), batch?.columns().to_vec())).collect()
    };
    let read: Result<_, ArrowError> = read();
    Ok(read.map_err(|error| damaged(error.to_string()))?)
}
