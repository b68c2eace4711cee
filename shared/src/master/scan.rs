//! Files of a Delta table, between two offset vectors, as a table of the query engine.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, DFSchema, ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{binary, col, lit};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::physical_plan::union::UnionExec;
use object_store::ObjectMeta;
use object_store::path::Path;

use super::file::DataFile;
use super::prune::prune;
use super::reader::Readers;
use crate::offsets::{OffsetRange, PartitionId};
use crate::record::{OFFSET, PARTITION};
use crate::storage::Storage;

/// The rows of some files, of each partition those in its range.
///
/// Files that lie in their range as a whole are read as they are; the rows of files that straddle an end are filtered.
/// Filters of the query only leave out files, row groups and pages: the engine evaluates them again.
pub(super) struct FilesTable {
    pub(super) storage: Storage,
    /// Of the table, under the storage URL.
    pub(super) path: Path,
    /// What the files hold.
    pub(super) schema: SchemaRef,
    pub(super) parts: Vec<Part>,
}

/// Files that are read in the same way.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) files: Vec<Arc<DataFile>>,
    /// Only these of their rows; `None`: all of them.
    pub(super) only: Option<(PartitionId, OffsetRange)>,
}

/// Sorts `files` into parts, so that each row of `partition` in its range is read exactly once, and no other row.
pub(super) fn parts(files: &[Arc<DataFile>], ranges: &[(PartitionId, OffsetRange)]) -> Vec<Part> {
    let mut whole = Vec::new();
    let mut parts = Vec::new();
    for (partition, range) in ranges.iter().filter(|(_, range)| !range.is_empty()) {
        let mut straddling = Vec::new();
        for file in files.iter().filter(|f| f.may_hold(*partition, *range)) {
            let inside = file.partition == Some(*partition)
                && file.offsets.is_some_and(|o| range.start <= o.start && o.end <= range.end);
            if inside { &mut whole } else { &mut straddling }.push(Arc::clone(file));
        }
        if !straddling.is_empty() {
            parts.push(Part { files: straddling, only: Some((*partition, *range)) });
        }
    }
    if !whole.is_empty() {
        parts.push(Part { files: whole, only: None });
    }
    parts
}

impl fmt::Debug for FilesTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: usize = self.parts.iter().map(|p| p.files.len()).sum();
        f.debug_struct("FilesTable").field("path", &self.path).field("files", &files).finish()
    }
}

#[async_trait]
impl TableProvider for FilesTable {
    fn schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.storage.register_with(state.runtime_env());
        let wanted: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let filter = match conjunction(filters.iter().cloned()) {
            Some(expr) => Some(state.create_physical_expr(expr, &DFSchema::try_from(SchemaRef::clone(&self.schema))?)?),
            None => None,
        };
        let mut inputs = Vec::new();
        for part in &self.parts {
            inputs.extend(self.part(state, part, &wanted, filter.as_ref(), limit)?);
        }
        match inputs.len() {
            0 => Ok(Arc::new(EmptyExec::new(Arc::new(self.schema.project(&wanted)?)))),
            1 => Ok(inputs.remove(0)),
            _ => UnionExec::try_new(inputs),
        }
    }
}

impl FilesTable {
    fn part(
        &self,
        state: &dyn Session,
        part: &Part,
        wanted: &[usize],
        filter: Option<&Arc<dyn PhysicalExpr>>,
        limit: Option<usize>,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let bounds = part.only.map(|(partition, range)| self.bounds(&self.schema, partition, range)).transpose()?;
        let predicate = match (bounds, filter) {
            (Some(bounds), Some(filter)) => Some(binary(bounds, Operator::And, Arc::clone(filter), &self.schema)?),
            (bounds, filter) => bounds.or_else(|| filter.cloned()),
        };
        let files = match &predicate {
            Some(predicate) => prune(part.files.clone(), predicate, &self.schema)?,
            None => part.files.clone(),
        };
        if files.is_empty() {
            return Ok(None);
        }
        let Some((partition, range)) = part.only else {
            return Ok(Some(self.source(state, &files, wanted, predicate, limit)?));
        };
        // The columns of the bounds are read too, behind the wanted ones.
        let mut columns = wanted.to_vec();
        for name in [PARTITION, OFFSET] {
            let column = self.schema.index_of(name)?;
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        let source = self.source(state, &files, &columns, predicate, None)?;
        let exact = self.bounds(&source.schema(), partition, range)?;
        let kept =
            FilterExecBuilder::new(exact, source).apply_projection(Some((0..wanted.len()).collect()))?.build()?;
        Ok(Some(Arc::new(kept)))
    }

    /// `_partition = p AND _offset >= start AND _offset < end`, over `schema`.
    fn bounds(&self, schema: &SchemaRef, partition: PartitionId, range: OffsetRange) -> Result<Arc<dyn PhysicalExpr>> {
        let offset = || col(OFFSET, schema);
        let same = binary(col(PARTITION, schema)?, Operator::Eq, lit(partition.0), schema)?;
        let from = binary(offset()?, Operator::GtEq, lit(range.start.0), schema)?;
        let until = binary(offset()?, Operator::Lt, lit(range.end.0), schema)?;
        binary(binary(same, Operator::And, from, schema)?, Operator::And, until, schema)
    }

    fn source(
        &self,
        state: &dyn Session,
        files: &[Arc<DataFile>],
        columns: &[usize],
        predicate: Option<Arc<dyn PhysicalExpr>>,
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let options = datafusion::common::config::TableParquetOptions {
            global: state.config_options().execution.parquet.clone(),
            ..Default::default()
        };
        let readers = Readers::new(&self.storage, state.runtime_env());
        let mut source = ParquetSource::new(SchemaRef::clone(&self.schema))
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(Arc::new(readers));
        if let Some(predicate) = predicate {
            source = source.with_predicate(predicate);
        }
        let groups = balance(files, state.config().target_partitions());
        let groups = groups.into_iter().map(|g| FileGroup::new(g.iter().map(|f| self.partitioned(f)).collect()));
        let config = FileScanConfigBuilder::new(self.storage.engine_url().clone(), Arc::new(source))
            .with_file_groups(groups.collect())
            .with_statistics(self.statistics(files))
            .with_projection_indices(Some(columns.to_vec()))?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    fn partitioned(&self, file: &DataFile) -> PartitionedFile {
        let location = Path::from_iter(self.path.parts().chain(file.path.parts()));
        let last_modified = chrono::DateTime::from_timestamp_millis(file.created_at).unwrap_or_default();
        PartitionedFile::new_from_meta(ObjectMeta {
            location,
            last_modified,
            size: file.size_bytes,
            e_tag: None,
            version: None,
        })
        .with_statistics(Arc::new(self.statistics(std::slice::from_ref(&Arc::new(file.clone())))))
    }

    /// The number of rows, and the bounds of `_partition` and `_offset`: what the log knows exactly.
    fn statistics(&self, files: &[Arc<DataFile>]) -> Statistics {
        let rows = files.iter().map(|f| f.rows).sum::<Option<u64>>().and_then(|n| usize::try_from(n).ok());
        let bytes = usize::try_from(files.iter().map(|f| f.size_bytes).sum::<u64>()).unwrap_or(usize::MAX);
        let column = |name: &str| {
            let bounds = files.iter().map(|f| f.bounds.get(name).and_then(|b| Some((b.min?, b.max?))));
            let bounds = bounds.collect::<Option<Vec<_>>>().filter(|b| !b.is_empty());
            let exact = |value: Option<i64>| match value {
                Some(v) if name == PARTITION => {
                    i32::try_from(v).map_or(Precision::Absent, |v| Precision::Exact(ScalarValue::Int32(Some(v))))
                }
                Some(v) => Precision::Exact(ScalarValue::Int64(Some(v))),
                None => Precision::Absent,
            };
            ColumnStatistics {
                null_count: Precision::Exact(0),
                min_value: exact(bounds.as_ref().and_then(|b| b.iter().map(|(min, _)| *min).min())),
                max_value: exact(bounds.as_ref().and_then(|b| b.iter().map(|(_, max)| *max).max())),
                ..ColumnStatistics::new_unknown()
            }
        };
        let column_statistics = self
            .schema
            .fields()
            .iter()
            .map(|field| match field.name().as_str() {
                name @ (PARTITION | OFFSET) => column(name),
                _ => ColumnStatistics::new_unknown(),
            })
            .collect();
        Statistics {
            num_rows: rows.map_or(Precision::Absent, Precision::Exact),
            total_byte_size: Precision::Inexact(bytes),
            column_statistics,
        }
    }
}

/// At most `count` groups of about the same size; within a group files keep their order.
fn balance(files: &[Arc<DataFile>], count: usize) -> Vec<Vec<&DataFile>> {
    let mut groups: Vec<(u64, Vec<&DataFile>)> = vec![(0, vec![]); count.clamp(1, files.len().max(1))];
    for file in files {
        if let Some((size, group)) = groups.iter_mut().min_by_key(|(size, _)| *size) {
            *size += file.size_bytes.max(1);
            group.push(file);
        }
    }
    groups.into_iter().map(|(_, group)| group).filter(|group| !group.is_empty()).collect()
}
