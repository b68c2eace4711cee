//! A run's file is read only if it is that run's, and in exactly the schema that is expected.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use parking_lot::Mutex;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;

use super::verified::Verified;
use super::write::RUN_ID_KEY;
use crate::names::RunId;

/// The files of a table: their paths, the ids that they must carry, and whether that was seen.
#[derive(Debug)]
pub(super) struct CheckedRuns {
    schema: SchemaRef,
    runs: Mutex<Vec<(Path, String, bool)>>,
}

impl CheckedRuns {
    pub(super) fn new(schema: SchemaRef, runs: impl Iterator<Item = (Path, RunId)>) -> Self {
        let runs = runs.map(|(path, id)| (path, id.to_string(), false)).collect();
        Self { schema, runs: Mutex::new(runs) }
    }

    pub(super) fn check(&self, path: &Path, metadata: &Arc<ParquetMetaData>) -> Result<(), ParquetError> {
        let id = {
            let runs = self.runs.lock();
            match runs.iter().find(|(p, _, _)| p == path) {
                Some((_, _, true)) => return Ok(()),
                Some((_, id, false)) => id.clone(),
                None => return Err(ParquetError::General(format!("not a file of this table. path=`{path}`"))),
            }
        };
        let stored = metadata.file_metadata().key_value_metadata().into_iter().flatten();
        let stored = stored.filter(|kv| kv.key == RUN_ID_KEY).find_map(|kv| kv.value.as_deref());
        if stored != Some(id.as_str()) {
            let stored = stored.unwrap_or("none");
            return Err(ParquetError::General(format!(
                "another run's file stands in the place of this one; restore it or rebuild the view. path=`{path}`, \
                 expected=`{id}`, found=`{stored}`"
            )));
        }
        let read = ArrowReaderMetadata::try_new(Arc::clone(metadata), ArrowReaderOptions::new())?;
        if read.schema().fields() != self.schema.fields() {
            return Err(ParquetError::General(format!(
                "a run's file has another schema than its definition; rebuild the view. path=`{path}`, \
                 expected=`{}`, found=`{}`",
                self.schema,
                read.schema()
            )));
        }
        if let Some(run) = self.runs.lock().iter_mut().find(|(p, _, _)| p == path) {
            run.2 = true;
        }
        Ok(())
    }
}

/// Readers that check a file before anything of it is decoded.
#[derive(Debug)]
pub(super) struct CheckedReaders {
    pub(super) cached: CachedParquetFileReaderFactory,
    pub(super) runs: Arc<CheckedRuns>,
    pub(super) files: Arc<Verified>,
}

impl ParquetFileReaderFactory for CheckedReaders {
    fn create_reader(
        &self,
        partition_index: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>, DataFusionError> {
        let path = file.object_meta.location.clone();
        let inner = self.cached.create_reader(partition_index, file, metadata_size_hint, metrics)?;
        Ok(Box::new(CheckedReader { inner, path, runs: Arc::clone(&self.runs), files: Arc::clone(&self.files) }))
    }
}

struct CheckedReader {
    inner: Box<dyn AsyncFileReader + Send>,
    path: Path,
    runs: Arc<CheckedRuns>,
    files: Arc<Verified>,
}

impl AsyncFileReader for CheckedReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        self.inner.get_bytes(range)
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        self.inner.get_byte_ranges(ranges)
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move {
            let metadata = match self.inner.get_metadata(options).await {
                Ok(metadata) => metadata,
                // The engine keeps only the text of what went wrong here.
                Err(error) => return Err(self.files.fault_of(&self.path).map_or(error, ParquetError::from)),
            };
            self.runs.check(&self.path, &metadata)?;
            Ok(metadata)
        }
        .boxed()
    }
}

impl fmt::Debug for CheckedReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckedReader({})", self.path)
    }
}
