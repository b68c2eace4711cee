//! Writing a run as a Parquet file.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use object_store::path::Path;
use parking_lot::Mutex;
use parquet::arrow::AsyncArrowWriter;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::arrow::arrow_writer::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::Error;
use super::order::{OrderCheck, SORT_OPTIONS, has_statistics};
use super::sums::{BLOCKS_KEY, Summing, Tail};
use super::upload::Upload;
use crate::names::{DefinitionHash, RunId};
use crate::offsets::Coverage;
use crate::storage::Storage;

/// Key of the file's metadata under which the run's id stands.
pub(super) const RUN_ID_KEY: &str = "watershed.run";

/// What is written into the file beside the states, and the sizes within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    pub run: RunId,
    pub definition: DefinitionHash,
    pub coverage: Coverage,
    /// Format of the states, for people; the definition's hash contains it.
    pub state_format: String,
    /// A point read decodes pages of one row group.
    pub row_group_rows: usize,
    /// Whichever limit is reached first ends the row group; it is what the writer keeps in memory.
    pub row_group_bytes: usize,
    pub page_rows: usize,
}

impl RunOptions {
    pub fn new(run: RunId, definition: DefinitionHash, coverage: Coverage) -> Self {
        Self {
            run,
            definition,
            coverage,
            state_format: "1".to_owned(),
            row_group_rows: 65_536,
            row_group_bytes: 32 << 20,
            page_rows: 4_096,
        }
    }

    fn properties(&self, schema: &Schema, keys: usize) -> WriterProperties {
        let metadata = vec![
            KeyValue::new(RUN_ID_KEY.to_owned(), self.run.to_string()),
            KeyValue::new("watershed.definition".to_owned(), self.definition.to_string()),
            KeyValue::new("watershed.coverage".to_owned(), self.coverage.to_string()),
            KeyValue::new("watershed.state_format".to_owned(), self.state_format.clone()),
        ];
        let keys = &schema.fields()[..keys];
        // Parquet counts leaves, so only the keys in front of the first nested one can be named.
        let sorting = keys.iter().take_while(|k| !k.data_type().is_nested()).enumerate().map(|(i, _)| SortingColumn {
            column_idx: i32::try_from(i).expect("a view has fewer keys than i32 holds"),
            descending: SORT_OPTIONS.descending,
            nulls_first: SORT_OPTIONS.nulls_first,
        });
        let mut properties = WriterProperties::builder()
            .set_created_by(concat!("watershed ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("1 is a level of zstd")))
            .set_max_row_group_row_count(Some(self.row_group_rows))
            .set_max_row_group_bytes(Some(self.row_group_bytes))
            .set_data_page_row_count_limit(self.page_rows)
            .set_write_batch_size(self.page_rows.min(512))
            .set_key_value_metadata(Some(metadata))
            .set_sorting_columns(Some(sorting.collect()))
            .set_bloom_filter_enabled(false)
            // States are seldom alike and never filtered: a dictionary would be read whole for one group.
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None);
        for key in keys {
            let column = ColumnPath::new(vec![key.name().clone()]);
            if !key.data_type().is_nested() {
                properties = properties
                    .set_column_dictionary_enabled(column.clone(), true)
                    .set_column_dictionary_page_size_limit(column.clone(), 64 << 10);
            }
            if has_statistics(key.data_type()) {
                properties = properties.set_column_statistics_enabled(column, EnabledStatistics::Page);
            }
        }
        properties.build()
    }
}

/// A run that has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunFile {
    pub size_bytes: u64,
    pub rows: u64,
    pub tail: Tail,
    /// CRC-32 of all of it.
    pub crc32: u32,
}

/// Writes the states that `states` yields to a new file at `path`, a name that was never used before.
///
/// `states`: the first `keys` columns are the group key; rows in its strictly ascending order, NULL first; without keys
/// at most one row. On return the file is durable. At no time more than a row group and two parts of an upload are in
/// memory. Not cancel safe: a dropped call leaves an unfinished object, which is never listed or is collected.
///
/// # Errors
/// Nothing is left at `path` as far as the storage answers; begin again under another name.
pub async fn write_run(
    storage: &Storage,
    path: &Path,
    states: SendableRecordBatchStream,
    keys: usize,
    options: &RunOptions,
) -> Result<RunFile, Error> {
    let schema = states.schema();
    let order = OrderCheck::new(&schema, keys)?;
    let properties = options.properties(&schema, keys);
    check_kept(path, &schema, &properties)?;
    let upload = Upload::new(storage, path);
    let sums = upload.sums();
    let writer = AsyncArrowWriter::try_new(upload, schema, Some(properties))
        .map_err(|source| Error::Encode { path: path.clone(), source })?;
    let mut writer = RunWriter { path, writer, sums, order, rows: 0 };
    match writer.write_all(states).await {
        Ok(()) => {
            let sums = writer.sums.lock();
            let tail = sums.tail().expect("the pages have ended");
            let size_bytes = writer.writer.into_inner().size_bytes();
            Ok(RunFile { size_bytes, rows: writer.rows, tail, crc32: sums.whole() })
        }
        Err(error) => {
            let mut upload = writer.writer.into_inner();
            // The storage's own error says more than what Parquet made of it.
            let error = upload.take_error().unwrap_or(error);
            upload.abort().await;
            Err(error)
        }
    }
}

struct RunWriter<'a> {
    path: &'a Path,
    writer: AsyncArrowWriter<Upload>,
    sums: Arc<Mutex<Summing>>,
    order: OrderCheck,
    rows: u64,
}

impl RunWriter<'_> {
    async fn write_all(&mut self, mut states: SendableRecordBatchStream) -> Result<(), Error> {
        let schema = states.schema();
        while let Some(batch) = states.next().await {
            let batch = batch?;
            check_schema(&schema, &batch)?;
            self.order.push(&batch)?;
            self.rows += batch.num_rows() as u64;
            // In slices, so that a row group ends near its limit even if the first batch holds large states.
            for start in (0..batch.num_rows()).step_by(512) {
                let slice = batch.slice(start, 512.min(batch.num_rows() - start));
                self.writer.write(&slice).await.map_err(|source| self.encode(source))?;
            }
        }
        // What follows is the tail, and says the sums of all before it.
        self.writer.flush().await.map_err(|source| self.encode(source))?;
        let blocks = self.sums.lock().end_pages();
        self.writer.append_key_value_metadata(KeyValue::new(BLOCKS_KEY.to_owned(), blocks));
        let written = self.writer.finish().await.map_err(|source| self.encode(source))?;
        assert_eq!(u64::try_from(written.file_metadata().num_rows()).ok(), Some(self.rows), "Parquet counts all rows");
        Ok(())
    }

    fn encode(&self, source: ParquetError) -> Error {
        Error::Encode { path: self.path.clone(), source }
    }
}

fn check_schema(announced: &SchemaRef, batch: &RecordBatch) -> Result<(), Error> {
    if batch.schema_ref().fields() == announced.fields() {
        return Ok(());
    }
    Err(Error::OtherSchema { announced: announced.to_string(), found: batch.schema_ref().to_string() })
}

/// Whether a reader will get back exactly the types that are written.
fn check_kept(path: &Path, schema: &SchemaRef, properties: &WriterProperties) -> Result<(), Error> {
    let read_back = || {
        let mut file = Vec::new();
        ArrowWriter::try_new(&mut file, SchemaRef::clone(schema), Some(properties.clone()))?.close()?;
        let metadata = ArrowReaderMetadata::load(&bytes::Bytes::from(file), Default::default())?;
        Ok(SchemaRef::clone(metadata.schema()))
    };
    let read: SchemaRef = read_back().map_err(|source| Error::Encode { path: path.clone(), source })?;
    if read.fields() == schema.fields() {
        return Ok(());
    }
    Err(Error::SchemaNotKept { given: schema.to_string(), read: read.to_string() })
}
