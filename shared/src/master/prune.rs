//! Which files of a table a query can't need, by the bounds that the log keeps.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Int32Array, Int64Array, TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, ScalarValue};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;

use super::file::{Bounds, DataFile};

/// The files of `files` that may hold a row for which `predicate`, over `schema`, is true.
pub(super) fn prune(
    files: Vec<Arc<DataFile>>,
    predicate: &Arc<dyn PhysicalExpr>,
    schema: &SchemaRef,
) -> Result<Vec<Arc<DataFile>>> {
    let pruning =
        PruningPredicateBuilder::new().with_file_schema(Arc::clone(schema)).try_build(Arc::clone(predicate))?;
    if pruning.always_true() {
        return Ok(files);
    }
    let keep = pruning.prune(&FileStatistics { files: &files, schema })?;
    Ok(files.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(file, _)| file).collect())
}

struct FileStatistics<'a> {
    files: &'a [Arc<DataFile>],
    schema: &'a SchemaRef,
}

impl FileStatistics<'_> {
    fn bounds(&self, column: &Column, bound: impl Fn(&Bounds) -> Option<i64>) -> Option<ArrayRef> {
        let values = self.files.iter().map(|f| f.bounds.get(column.name()).and_then(&bound));
        Some(match self.schema.field_with_name(column.name()).ok()?.data_type() {
            DataType::Int32 => Arc::new(values.map(|v| v.and_then(|v| i32::try_from(v).ok())).collect::<Int32Array>()),
            DataType::Date32 => {
                Arc::new(values.map(|v| v.and_then(|v| i32::try_from(v).ok())).collect::<Date32Array>())
            }
            DataType::Int64 => Arc::new(values.collect::<Int64Array>()),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                Arc::new(values.collect::<TimestampMicrosecondArray>().with_timezone_opt(zone.clone()))
            }
            // The log's text for other types is not used.
            _ => return None,
        })
    }
}

impl PruningStatistics for FileStatistics<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, |b| b.min)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, |b| b.max)
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let counts = self.files.iter().map(|f| f.bounds.get(column.name()).and_then(|b| b.nulls));
        Some(Arc::new(counts.collect::<UInt64Array>()))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.files.iter().map(|f| f.rows).collect::<UInt64Array>()))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
