//! Bounds on the group key, and the slice that they leave of sorted states.

use std::cmp::Ordering;

use arrow::array::{Array, ArrayRef, RecordBatch, make_comparator};
use arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use super::order::SORT_OPTIONS;

/// What conjuncts say about one key column. They are true of no NULL; without conjuncts any value will do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeyBounds {
    /// With whether the value itself is within.
    lower: Option<(ScalarValue, bool)>,
    upper: Option<(ScalarValue, bool)>,
}

impl KeyBounds {
    /// Adds `key <operator> value`, where the operator is `=`, `<`, `<=`, `>` or `>=`.
    ///
    /// `value`: of exactly the key's type, neither NULL nor a float.
    pub fn narrow(&mut self, operator: Operator, value: ScalarValue) {
        let inclusive = matches!(operator, Operator::Eq | Operator::GtEq | Operator::LtEq);
        if matches!(operator, Operator::Eq | Operator::Gt | Operator::GtEq) {
            tighten(&mut self.lower, value.clone(), inclusive, Ordering::Greater);
        }
        if matches!(operator, Operator::Eq | Operator::Lt | Operator::LtEq) {
            tighten(&mut self.upper, value, inclusive, Ordering::Less);
        }
    }

    /// One value is left.
    pub fn is_point(&self) -> bool {
        match (&self.lower, &self.upper) {
            (Some((lower, true)), Some((upper, true))) => lower == upper,
            _ => false,
        }
    }

    /// There are no conjuncts.
    pub fn is_open(&self) -> bool {
        self.lower.is_none() && self.upper.is_none()
    }

    /// Whether a zone of rows, whose least and greatest values stand in these columns, may hold a value within. NULL
    /// there means that nothing is known.
    pub(super) fn overlaps<'a>(&self, mins: &'a ArrayRef, maxes: &'a ArrayRef) -> impl Fn(usize) -> bool + use<'a> {
        let comparator = |zones: &ArrayRef, bound: &Option<(ScalarValue, bool)>| {
            let probe = bound.as_ref()?.0.to_array().ok()?;
            make_comparator(zones, &probe, SORT_OPTIONS).ok()
        };
        let (least, greatest) = (comparator(mins, &self.upper), comparator(maxes, &self.lower));
        move |zone| {
            let above = least.as_ref().is_some_and(|order| mins.is_valid(zone) && order(zone, 0).is_gt());
            let below = greatest.as_ref().is_some_and(|order| maxes.is_valid(zone) && order(zone, 0).is_lt());
            !above && !below
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

/// The bounds that conjuncts set on the key columns: equal on a prefix, then a range on at most one more. Other
/// filters are passed over.
pub fn key_bounds(schema: &SchemaRef, key_count: usize, filters: &[Expr]) -> Vec<KeyBounds> {
    let mut all = vec![KeyBounds::default(); key_count];
    for filter in filters {
        let Some((column, operator, value)) = key_conjunct(schema, key_count, filter) else { continue };
        all[column].narrow(operator, value);
    }
    let usable = all.iter().take_while(|b| b.is_point()).count();
    all.truncate((usable + 1).min(key_count));
    all
}

/// `key <op> literal`, either way round, with a literal of the key's own type (coercion puts it there) that is not
/// NULL and not NaN.
pub fn key_conjunct(schema: &SchemaRef, key_count: usize, filter: &Expr) -> Option<(usize, Operator, ScalarValue)> {
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
///
/// `bounds`: points on a prefix of the key, then anything on at most one more column; what follows is not looked at.
pub fn slice(states: &RecordBatch, bounds: &[KeyBounds]) -> RecordBatch {
    let (from, to) = within(states, bounds);
    states.slice(from, to - from)
}

/// As [`slice`]; `None` where no row is left, which is known without making a batch of none.
pub fn slice_of_some(states: &RecordBatch, bounds: &[KeyBounds]) -> Option<RecordBatch> {
    let (from, to) = within(states, bounds);
    (from < to).then(|| states.slice(from, to - from))
}

/// The rows `[from, to)` that [`slice`] leaves.
pub(super) fn within(states: &RecordBatch, bounds: &[KeyBounds]) -> (usize, usize) {
    let (mut from, mut to) = (0, states.num_rows());
    for (column, bounds) in states.columns().iter().zip(bounds) {
        match (&bounds.lower, &bounds.upper) {
            (Some((value, inclusive)), _) => {
                let below = |order| order == Ordering::Less || (!inclusive && order == Ordering::Equal);
                let Some(first) = search(column, from, to, value, below) else { break };
                from = first;
            }
            // NULL comes first, and no comparison is true of it.
            (None, Some(_)) => from = partition_point(from, to, |row| column.is_null(row)),
            (None, None) => {}
        }
        if from == to {
            break;
        }
        if let Some((value, inclusive)) = &bounds.upper {
            let within = |order| order == Ordering::Less || (*inclusive && order == Ordering::Equal);
            let Some(end) = search(column, from, to, value, within) else { break };
            to = end;
        }
        if !bounds.is_point() {
            break;
        }
    }
    (from, to)
}

/// The first row in `[from, to)` for which `before` (of the order of the row's value to `value`) no longer holds.
fn search(
    column: &ArrayRef,
    from: usize,
    to: usize,
    value: &ScalarValue,
    before: impl Fn(Ordering) -> bool,
) -> Option<usize> {
    let probe = value.to_array().ok()?;
    let compare = make_comparator(column, &probe, SORT_OPTIONS).ok()?;
    Some(partition_point(from, to, |row| before(compare(row, 0))))
}

fn partition_point(from: usize, to: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (from, to);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
        // NULL is not less than anything.
        check(&[col("k").lt_eq(lit("a"))], 2..3);
        check(&[col("k").gt(lit("a")), col("k").lt(lit("a"))], 3..3);
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
