//! Runs as a table for the engine.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use chrono::DateTime;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, ScalarValue, Statistics, plan_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::expressions::{BinaryExpr, Column, IsNullExpr, Literal};
use datafusion::physical_expr::utils::conjunction_opt;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExecBuilder;
use object_store::ObjectMeta;
use object_store::path::Path;

use super::checked::{CheckedReaders, CheckedRuns};
use super::order::{SORT_OPTIONS, has_statistics};
use super::{Error, RunMeta};
use crate::storage::Storage;

/// With more runs than this several share a partition of the scan, which then has no order.
const MAX_ORDERED_RUNS: usize = 64;

/// Read from a file's end at once: the footer and page index of a run of some million groups.
const METADATA_SIZE_HINT: usize = 64 << 10;

/// The states of a list of runs, as one table.
///
/// Groups stand in it once per run that has them. The runs' names and sizes are known, so a scan neither lists nor looks up;
/// a file's metadata is read once and kept in the engine's cache. Row groups and pages that a filter on the keys
/// excludes are not read. Each partition of the scan is sorted by the keys, NULL first.
///
/// The schema given is the one that each file must have, exactly: another type, a missing column, a file of another
/// run under the name are errors, never cast or filled up.
#[derive(Debug)]
pub struct RunsTable {
    storage: Storage,
    schema: SchemaRef,
    runs: Vec<(Path, RunMeta)>,
    keys: usize,
    readers: Arc<CheckedRuns>,
}

impl RunsTable {
    /// The first `keys` columns of `schema` are the group key.
    ///
    /// # Errors
    /// If a run's path is none, or there are fewer columns than keys.
    pub fn new(storage: &Storage, schema: SchemaRef, runs: Vec<RunMeta>, keys: usize) -> Result<Arc<Self>, Error> {
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
        Ok(Arc::new(Self { storage: storage.clone(), schema, runs, keys, readers }))
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

    /// A plan that yields the rows whose key columns equal these values by SQL's `=` (-0.0 equals 0.0), where NULL equals
    /// NULL; a key column that is not named may have any. It is made without the planner: a lookup costs what it reads.
    ///
    /// `key`: indices of key columns and values of exactly their types. The rows have the columns of `projection`, in
    /// its order; a partition per run, in no order.
    ///
    /// # Errors
    /// If a column is no key, or a value has another type.
    pub fn lookup(
        &self,
        runtime: &Arc<RuntimeEnv>,
        projection: &[usize],
        key: &[(usize, ScalarValue)],
    ) -> Result<Arc<dyn ExecutionPlan>> {
        for (column, value) in key {
            if *column >= self.keys || value.data_type() != *self.schema.field(*column).data_type() {
                return plan_err!("not a value of a key column. column=`{column}`, value=`{value:?}`");
            }
        }
        let equals = |index: usize, column: usize, value: &ScalarValue| -> Arc<dyn PhysicalExpr> {
            let column = Arc::new(Column::new(self.schema.field(column).name(), index));
            match value.is_null() {
                true => Arc::new(IsNullExpr::new(column)),
                false => Arc::new(BinaryExpr::new(column, Operator::Eq, Arc::new(Literal::new(value.clone())))),
            }
        };
        let prunable = key.iter().filter(|(column, _)| has_statistics(self.schema.field(*column).data_type()));
        let pruning = conjunction_opt(prunable.map(|(column, value)| equals(*column, *column, value)));
        // The columns wanted, then those that only the filter needs.
        let mut read = projection.to_vec();
        let mut exact = Vec::with_capacity(key.len());
        for (column, value) in key {
            let index = read.iter().position(|c| c == column).unwrap_or_else(|| {
                read.push(*column);
                read.len() - 1
            });
            exact.push(equals(index, *column, value));
        }
        let scan = self.source(runtime, 1, Some(&read), pruning, None)?;
        match conjunction_opt(exact) {
            None => Ok(scan),
            Some(exact) => {
                let wanted = (0..projection.len()).collect();
                Ok(Arc::new(FilterExecBuilder::new(exact, scan).apply_projection(Some(wanted))?.build()?))
            }
        }
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
        let cached =
            CachedParquetFileReaderFactory::new(self.storage.store(), runtime.cache_manager.get_file_metadata_cache());
        let factory = CheckedReaders { cached, runs: Arc::clone(&self.readers) };
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
