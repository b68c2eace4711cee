//! The delta's runs as a table of states.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, make_comparator};
use arrow::compute::SortOptions;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::Result;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use watershed_shared::delta::DeltaRun;

/// Runs of states in memory, each sorted by the group key (ascending, nulls first).
///
/// A scan cuts each run down to the slice that conjuncts `key = literal`, `key < literal` and the like on a prefix of
/// the key leave, by binary search. The slice may hold rows that the filter rejects: pushdown is inexact.
#[derive(Debug)]
pub(crate) struct DeltaTable {
    schema: SchemaRef,
    key_count: usize,
    runs: Vec<Arc<DeltaRun>>,
}

/// What conjuncts say about one key column.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct KeyBounds {
    /// Inclusive or not does not matter where pushdown is inexact, but costs nothing.
    lower: Option<(ScalarValue, bool)>,
    upper: Option<(ScalarValue, bool)>,
}

impl DeltaTable {
    pub(crate) fn new(schema: SchemaRef, key_count: usize, runs: Vec<Arc<DeltaRun>>) -> Self {
        Self { schema, key_count, runs }
    }

    fn slices(&self, filters: &[Expr]) -> Vec<RecordBatch> {
        let bounds = key_bounds(&self.schema, self.key_count, filters);
        let sliced = self.runs.iter().map(|run| slice(&run.states, &bounds));
        sliced.filter(|batch| batch.num_rows() > 0).collect()
    }
}

#[async_trait]
impl TableProvider for DeltaTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let usable = |f: &&Expr| conjunct(&self.schema, self.key_count, f).is_some();
        let answer = |usable| match usable {
            true => TableProviderFilterPushDown::Inexact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(|f| answer(usable(f))).collect())
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let batches = self.slices(filters);
        Ok(MemorySourceConfig::try_new_exec(&[batches], Arc::clone(&self.schema), projection.cloned())?)
    }
}

/// The bounds that conjuncts set on the key columns: equal on a prefix, then a range on at most one more.
pub(crate) fn key_bounds(schema: &SchemaRef, key_count: usize, filters: &[Expr]) -> Vec<KeyBounds> {
    let mut all = vec![KeyBounds::default(); key_count];
    for filter in filters {
        let Some((column, operator, value)) = conjunct(schema, key_count, filter) else { continue };
        let bounds = &mut all[column];
        let inclusive = matches!(operator, Operator::Eq | Operator::GtEq | Operator::LtEq);
        if matches!(operator, Operator::Eq | Operator::Gt | Operator::GtEq) {
            tighten(&mut bounds.lower, value.clone(), inclusive, Ordering::Greater);
        }
        if matches!(operator, Operator::Eq | Operator::Lt | Operator::LtEq) {
            tighten(&mut bounds.upper, value, inclusive, Ordering::Less);
        }
    }
    let usable = all.iter().take_while(|b| b.is_point()).count();
    all.truncate((usable + 1).min(key_count));
    all
}

impl KeyBounds {
    pub(crate) fn is_point(&self) -> bool {
        match (&self.lower, &self.upper) {
            (Some((lower, true)), Some((upper, true))) => lower == upper,
            _ => false,
        }
    }
}

fn tighten(bound: &mut Option<(ScalarValue, bool)>, value: ScalarValue, inclusive: bool, tighter: Ordering) {
    let replace = match bound {
        None => true,
        Some((have, have_inclusive)) => match value.partial_cmp(have) {
            Some(Ordering::Equal) => *have_inclusive && !inclusive,
            Some(order) => order == tighter,
            None => false,
        },
    };
    if replace {
        *bound = Some((value, inclusive));
    }
}

/// `key <op> literal`, either way round, with a literal of the key's own type (coercion puts it there) that is not
/// NULL and not NaN.
fn conjunct(schema: &SchemaRef, key_count: usize, filter: &Expr) -> Option<(usize, Operator, ScalarValue)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
    let (column, operator, value) = match (left.as_ref(), right.as_ref()) {
        (Expr::Column(column), Expr::Literal(value, _)) => (column, *op, value),
        (Expr::Literal(value, _), Expr::Column(column)) => (column, op.swap()?, value),
        _ => return None,
    };
    let comparison = matches!(operator, Operator::Eq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq);
    let index = schema.index_of(&column.name).ok()?;
    let fits = index < key_count && value.data_type() == *schema.field(index).data_type() && !value.is_null();
    // SUBTLE: floats order NaN and -0.0 differently in comparison and in sorting.
    (comparison && fits && !value.data_type().is_floating()).then(|| (index, operator, value.clone()))
}

/// The rows of `states` (sorted by its first columns) within `bounds`; all of them where there is no order to search by.
pub(crate) fn slice(states: &RecordBatch, bounds: &[KeyBounds]) -> RecordBatch {
    let (mut from, mut to) = (0, states.num_rows());
    for (column, bounds) in states.columns().iter().zip(bounds) {
        if let Some((value, inclusive)) = &bounds.lower {
            let below = |order| order == Ordering::Less || (!inclusive && order == Ordering::Equal);
            let Some(first) = partition_point(column, from, to, value, below) else { break };
            from = first;
        }
        if let Some((value, inclusive)) = &bounds.upper {
            let within = |order| order == Ordering::Less || (*inclusive && order == Ordering::Equal);
            let Some(end) = partition_point(column, from, to, value, within) else { break };
            to = end;
        }
        if !bounds.is_point() {
            break;
        }
    }
    states.slice(from, to - from)
}

/// The first row in `[from, to)` for which `before` (of the order of the row's value to `value`) no longer holds.
fn partition_point(
    column: &ArrayRef,
    from: usize,
    to: usize,
    value: &ScalarValue,
    before: impl Fn(Ordering) -> bool,
) -> Option<usize> {
    let probe = value.to_array().ok()?;
    let compare = make_comparator(column, &probe, SortOptions { descending: false, nulls_first: true }).ok()?;
    let (mut low, mut high) = (from, to);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(compare(middle, 0)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Some(low)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::prelude::{col, lit};

    use super::*;

    fn states(rows: &[(Option<&str>, i32)]) -> RecordBatch {
        let schema = Schema::new(vec![Field::new("k", DataType::Utf8, true), Field::new("n", DataType::Int32, false)]);
        let keys: StringArray = rows.iter().map(|r| r.0).collect();
        let numbers: Int32Array = rows.iter().map(|r| Some(r.1)).collect();
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(keys), Arc::new(numbers)]).unwrap()
    }

    fn check(filters: &[Expr], expected: std::ops::Range<usize>) {
        let states = states(&[
            (None, 1),
            (None, 4),
            (Some("a"), 1),
            (Some("b"), 1),
            (Some("b"), 2),
            (Some("b"), 5),
            (Some("c"), 0),
        ]);
        let bounds = key_bounds(&states.schema(), 2, filters);
        let expected = states.slice(expected.start, expected.end - expected.start);
        assert_eq!(slice(&states, &bounds), expected, "{filters:?}");
    }

    #[test]
    fn bounds_on_a_prefix_of_the_key_leave_a_slice() {
        check(&[], 0..7);
        check(&[col("k").eq(lit("b"))], 3..6);
        check(&[col("k").eq(lit("b")), col("n").gt(lit(1))], 4..6);
        check(&[col("k").eq(lit("b")), lit(5).gt(col("n"))], 3..5);
        check(&[col("k").eq(lit("b")), col("n").eq(lit(2))], 4..5);
        check(&[col("k").gt(lit("a"))], 3..7);
        check(&[col("k").gt_eq(lit("a")), col("k").lt(lit("c"))], 2..6);
        check(&[col("k").lt_eq(lit("a"))], 0..3);
        check(&[col("k").eq(lit("aa"))], 3..3);
        check(&[col("k").eq(lit("a")), col("k").eq(lit("c"))], 6..6);
    }

    #[test]
    fn what_is_no_bound_on_a_prefix_leaves_everything() {
        check(&[col("n").eq(lit(1))], 0..7);
        check(&[col("k").eq(lit("b")).or(col("k").eq(lit("c")))], 0..7);
        check(&[col("k").gt(lit(ScalarValue::Utf8(None)))], 0..7);
        check(&[col("k").gt(col("n"))], 0..7);
    }
}
