//! Runs as a table for the engine.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use chrono::DateTime;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, DataFusionError, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use futures::future::try_join_all;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use tokio::sync::OnceCell;

use super::bounds::KeyBounds;
use super::checked::{CheckedReaders, CheckedRuns};
use super::few::RunIndex;
use super::order::{SORT_OPTIONS, has_statistics};
use super::pages::PageCache;
use super::verified::Verified;
use super::{Error, Fault, RunMeta};
use crate::storage::Storage;

/// With more runs than this several share a partition of the scan, which then has no order.
const MAX_ORDERED_RUNS: usize = 64;

/// Read from a file's end at once: the footer and page index of a run of some million groups.
pub(super) const METADATA_SIZE_HINT: usize = 64 << 10;

/// The states of a list of runs, as one table.
///
/// Groups stand in it once per run that has them. The runs' names and sizes are known, so a scan neither lists nor looks up;
/// a file's metadata is read once and kept in the engine's cache. Row groups and pages that a filter on the keys
/// excludes are not read. Each partition of the scan is sorted by the keys, NULL first.
///
/// The schema given is the one that each file must have, exactly: another type, a missing column, a file of another
/// run under the name are errors, never cast or filled up. A missing file, and one that is not as it was written, is a
/// [`Fault`].
#[derive(Debug)]
pub struct RunsTable {
    storage: Storage,
    schema: SchemaRef,
    runs: Vec<(Path, RunMeta)>,
    keys: usize,
    readers: Arc<CheckedRuns>,
    files: Arc<Verified>,
    /// Of each run, read when it is first asked for a few groups.
    indexes: Vec<OnceCell<RunIndex>>,
    pages: Arc<PageCache>,
}

impl RunsTable {
    /// The first `keys` columns of `schema` are the group key.
    ///
    /// # Errors
    /// If a run's path is none, or there are fewer columns than keys.
    pub fn new(storage: &Storage, schema: SchemaRef, runs: Vec<RunMeta>, keys: usize) -> Result<Arc<Self>, Error> {
        Self::with_pages(storage, schema, runs, keys, &PageCache::new(0))
    }

    /// As [`Self::new`]; what [`few`](Self::few) decodes is kept in `pages`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_pages(
        storage: &Storage,
        schema: SchemaRef,
        runs: Vec<RunMeta>,
        keys: usize,
        pages: &Arc<PageCache>,
    ) -> Result<Arc<Self>, Error> {
        if keys > schema.fields().len() {
            return Err(Error::TooFewColumns { keys, columns: schema.fields().len() });
        }
        let runs = runs
            .into_iter()
            .map(|run| match Path::parse(&run.file) {
                Ok(path) => Ok((path, run)),
                Err(source) => Err(Error::Store { path: Path::from(run.file.as_str()), source: source.into() }),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let files = runs.iter().map(|(path, run)| (path.clone(), run.id.clone()));
        let readers = Arc::new(CheckedRuns::new(SchemaRef::clone(&schema), files));
        let files = Arc::new(Verified::new(storage.store(), runs.iter()));
        let indexes = runs.iter().map(|_| OnceCell::new()).collect();
        let pages = Arc::clone(pages);
        Ok(Arc::new(Self { storage: storage.clone(), schema, runs, keys, readers, files, indexes, pages }))
    }

    /// What is wrong with one of the files, as a reader has found or [`look`](Self::look) has.
    pub fn fault(&self) -> Option<Fault> {
        self.files.fault()
    }

    /// Looks whether all files are there and as long as they were written, and once more at what a reader came upon.
    ///
    /// # Errors
    /// The storage does not answer: nothing is known then.
    pub async fn look(&self) -> Result<Option<Fault>, object_store::Error> {
        self.files.look().await
    }

    /// The files as they are read: nothing that is not as it was written.
    fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.files) as _
    }

    /// Whether statistics of the files can tell that a filter excludes rows.
    fn can_prune(&self, filter: &Expr) -> bool {
        let columns = filter.column_refs();
        !columns.is_empty()
            && !filter.is_volatile()
            && columns.iter().all(|column| {
                self.schema.fields()[..self.keys]
                    .iter()
                    .any(|key| *key.name() == column.name && has_statistics(key.data_type()))
            })
    }

    /// The groups of each run within `bounds`, read without a plan: it costs what they and the rest of their pages cost.
    /// `None` if that takes a look at more than `max_rows` groups of one run.
    ///
    /// `bounds`: of the first key columns; points, then anything on at most one more. The batches are sorted each; a
    /// group stands in as many of them as runs have it.
    ///
    /// # Errors
    /// As a scan's.
    pub async fn few(&self, bounds: &[KeyBounds], max_rows: usize) -> Result<Option<Vec<RecordBatch>>> {
        let reads = self.runs.iter().zip(&self.indexes).map(async |((path, run), index)| {
            let open = || {
                let check = |metadata: &_| self.readers.check(path, metadata);
                RunIndex::open(self.store(), path, run.size_bytes, (&self.schema, self.keys), &self.pages, check)
            };
            index.get_or_try_init(open).await?.read(bounds, max_rows).await
        });
        let read = try_join_all(reads).await.map_err(|e| DataFusionError::ParquetError(Box::new(e)))?;
        Ok(read.into_iter().collect::<Option<Vec<_>>>().map(|batches| batches.concat()))
    }

    /// As [`few`](Self::few), without waiting: `None` also when anything would have to be read or decoded for it.
    pub fn few_at_hand(&self, bounds: &[KeyBounds], max_rows: usize) -> Option<Vec<RecordBatch>> {
        let reads = self.indexes.iter().map(|index| index.get()?.at_hand(bounds, max_rows));
        Some(reads.collect::<Option<Vec<_>>>()?.concat())
    }

    /// `filter` only leaves out row groups and pages.
    fn source(
        &self,
        runtime: &Arc<RuntimeEnv>,
        partitions: usize,
        projection: Option<&Vec<usize>>,
        filter: Option<Arc<dyn PhysicalExpr>>,
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if self.runs.is_empty() {
            let schema = match projection {
                Some(projection) => Arc::new(self.schema.project(projection)?),
                None => self.schema(),
            };
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        self.storage.register_with(runtime);
        let cached = CachedParquetFileReaderFactory::new(self.store(), runtime.cache_manager.get_file_metadata_cache());
        let factory = CheckedReaders { cached, runs: Arc::clone(&self.readers), files: Arc::clone(&self.files) };
        let mut source = ParquetSource::new(self.schema())
            .with_parquet_file_reader_factory(Arc::new(factory))
            .with_metadata_size_hint(METADATA_SIZE_HINT)
            .with_enable_page_index(true)
            .with_bloom_filter_on_read(false);
        if let Some(filter) = filter {
            source = source.with_predicate(filter);
        }
        let config = FileScanConfigBuilder::new(self.storage.engine_url().clone(), Arc::new(source))
            .with_file_groups(self.groups(partitions))
            .with_statistics(self.statistics())
            .with_output_ordering(self.ordering().into_iter().collect())
            .with_limit(limit)
            .with_projection_indices(projection.cloned())?
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    fn file(path: &Path, run: &RunMeta) -> PartitionedFile {
        // The cache of metadata compares size and time; a run never changes, so the time may be any.
        PartitionedFile::new_from_meta(ObjectMeta {
            location: path.clone(),
            last_modified: DateTime::UNIX_EPOCH,
            size: run.size_bytes,
            e_tag: None,
            version: None,
        })
    }

    /// One run per partition keeps the order of the keys.
    fn groups(&self, partitions: usize) -> Vec<FileGroup> {
        let groups = if self.runs.len() <= MAX_ORDERED_RUNS { self.runs.len() } else { partitions.max(1) };
        let mut files = vec![Vec::new(); groups];
        for (i, (path, run)) in self.runs.iter().enumerate() {
            files[i % groups].push(Self::file(path, run));
        }
        files.into_iter().map(FileGroup::new).collect()
    }

    fn ordering(&self) -> Option<LexOrdering> {
        if self.runs.len() > MAX_ORDERED_RUNS {
            return None;
        }
        LexOrdering::new(
            self.schema.fields()[..self.keys]
                .iter()
                .enumerate()
                .map(|(i, key)| PhysicalSortExpr::new(Arc::new(Column::new(key.name(), i)), SORT_OPTIONS)),
        )
    }

    fn statistics(&self) -> Statistics {
        // Inexact, so that no answer comes from these numbers alone without a look at the files.
        let mut statistics = Statistics::new_unknown(&self.schema);
        let rows: u64 = self.runs.iter().map(|(_, run)| run.rows).sum();
        let bytes: u64 = self.runs.iter().map(|(_, run)| run.size_bytes).sum();
        statistics.num_rows = Precision::Inexact(usize::try_from(rows).unwrap_or(usize::MAX));
        statistics.total_byte_size = Precision::Inexact(usize::try_from(bytes).unwrap_or(usize::MAX));
        statistics
    }
}

#[async_trait]
impl TableProvider for RunsTable {
    fn schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(filters
            .iter()
            .map(|filter| match self.can_prune(filter) {
                // Whole pages are left out, so the filter is applied once more above.
                true => TableProviderFilterPushDown::Inexact,
                false => TableProviderFilterPushDown::Unsupported,
            })
            .collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let filter = conjunction(filters.iter().filter(|f| self.can_prune(f)).cloned());
        let filter = match filter {
            Some(filter) => Some(state.create_physical_expr(filter, &DFSchema::try_from(self.schema())?)?),
            None => None,
        };
        self.source(state.runtime_env(), state.config().target_partitions(), projection, filter, limit)
    }
}
