//! The one order of states: by their key columns, ascending, NULL first, floats in total order.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use datafusion::common::{Result, internal_err};

/// `batches`, which have `schema`, as one batch sorted by its first `key_count` columns. Rows of equal keys keep their
/// order.
pub(crate) fn sorted(schema: &SchemaRef, batches: &[RecordBatch], key_count: usize) -> Result<RecordBatch> {
    let all = concat_batches(schema, batches)?;
    if key_count == 0 || all.num_rows() < 2 {
        return Ok(all);
    }
    let fields = schema.fields()[..key_count].iter().map(|f| SortField::new(f.data_type().clone())).collect();
    let rows = RowConverter::new(fields)?.convert_columns(&all.columns()[..key_count])?;
    let Ok(count) = u32::try_from(all.num_rows()) else {
        return internal_err!("too many states for one batch: {}", all.num_rows());
    };
    let mut order: Vec<u32> = (0..count).collect();
    // Batches often come sorted already: then this is one pass, and nothing is copied.
    if order.is_sorted_by_key(|&i| rows.row(i as usize)) {
        return Ok(all);
    }
    order.sort_by(|&a, &b| rows.row(a as usize).cmp(&rows.row(b as usize)));
    let order = UInt32Array::from(order);
    let columns = all.columns().iter().map(|c| Ok(take(c.as_ref(), &order, None)?)).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(all.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}
