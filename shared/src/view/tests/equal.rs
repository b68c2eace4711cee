//! Comparing answers: everything exactly, floats within 1e-9 relative, rows in any order unless ordered.

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::ScalarValue;

type Row = Vec<ScalarValue>;

fn rows(batch: &RecordBatch) -> Vec<Row> {
    (0..batch.num_rows())
        .map(|row| batch.columns().iter().map(|c| ScalarValue::try_from_array(c, row).unwrap()).collect())
        .collect()
}

/// Sorts by everything but the last digits of floats.
fn sort_key(row: &Row) -> Vec<String> {
    row.iter()
        .map(|value| match value {
            ScalarValue::Float64(Some(f)) => format!("{:.5e}", f + 0.0),
            ScalarValue::Float32(Some(f)) => format!("{:.3e}", f + 0.0),
            other => text(other),
        })
        .collect()
}

fn text(value: &ScalarValue) -> String {
    let array = value.to_array().unwrap();
    let options = FormatOptions::default().with_null("∅");
    ArrayFormatter::try_new(array.as_ref(), &options).unwrap().value(0).to_string()
}

fn close(left: &ScalarValue, right: &ScalarValue, tolerance: f64) -> bool {
    let near = |a: f64, b: f64| {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1e-3)
    };
    match (left, right) {
        (ScalarValue::Float64(Some(a)), ScalarValue::Float64(Some(b))) => near(*a, *b),
        (ScalarValue::Float32(Some(a)), ScalarValue::Float32(Some(b))) => near(f64::from(*a), f64::from(*b)),
        (a, b) => text(a) == text(b),
    }
}

/// # Panics
/// With `context` when the two differ.
pub(super) fn assert_equal(context: &str, found: &RecordBatch, expected: &RecordBatch, ordered: bool) {
    assert_close(context, found, expected, ordered, 1e-9);
}

pub(super) fn assert_close(context: &str, found: &RecordBatch, expected: &RecordBatch, ordered: bool, tolerance: f64) {
    let types = |b: &RecordBatch| {
        b.schema()
            .fields()
            .iter()
            .map(|f| (f.name().clone(), f.data_type().clone(), f.is_nullable()))
            .collect::<Vec<_>>()
    };
    assert_eq!(types(found), types(expected), "{context}: columns");
    let (mut left, mut right) = (rows(found), rows(expected));
    if !ordered {
        left.sort_by_cached_key(sort_key);
        right.sort_by_cached_key(sort_key);
    }
    assert_eq!(left.len(), right.len(), "{context}: rows\nfound {left:?}\nexpected {right:?}");
    for (l, r) in left.iter().zip(&right) {
        let equal = l.iter().zip(r).all(|(a, b)| close(a, b, tolerance));
        assert!(equal, "{context}\nfound    {l:?}\nexpected {r:?}");
    }
}
