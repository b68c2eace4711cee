//! `min` and `max` of floats, in total order.
//!
//! The engine compares floats partially: a NaN gives way to whatever comes next, so that its `min` and `max` depend on
//! the order of events. Views order floats as their keys do, through integers that compare alike: -0 below 0, NaN above
//! everything. States and results hold the floats themselves.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, PrimitiveArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int32Type, Int64Type};

/// The integer type that stands for floats of `data_type`; `None`: it is no float, or none that columns can have.
pub(super) fn integer_for(data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Float32 => Some(DataType::Int32),
        DataType::Float64 => Some(DataType::Int64),
        _ => None,
    }
}

/// Integers that compare as the floats of `array` do; anything else as it is.
pub(super) fn to_integers(array: &ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Float32 => {
            let floats = array.as_primitive::<Float32Type>();
            let keys: PrimitiveArray<Int32Type> = floats.unary(|f| flip32(canonical32(f).to_bits().cast_signed()));
            Arc::new(keys)
        }
        DataType::Float64 => {
            let floats = array.as_primitive::<Float64Type>();
            let keys: PrimitiveArray<Int64Type> = floats.unary(|f| flip64(canonical64(f).to_bits().cast_signed()));
            Arc::new(keys)
        }
        _ => Arc::clone(array),
    }
}

/// The way back.
pub(super) fn to_floats(array: &ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Int32 => {
            let keys = array.as_primitive::<Int32Type>();
            let floats: PrimitiveArray<Float32Type> = keys.unary(|k| f32::from_bits(flip32(k).cast_unsigned()));
            Arc::new(floats)
        }
        DataType::Int64 => {
            let keys = array.as_primitive::<Int64Type>();
            let floats: PrimitiveArray<Float64Type> = keys.unary(|k| f64::from_bits(flip64(k).cast_unsigned()));
            Arc::new(floats)
        }
        _ => Arc::clone(array),
    }
}

/// One NaN for all, so that none is below the numbers.
fn canonical32(f: f32) -> f32 {
    if f.is_nan() { f32::NAN.abs() } else { f }
}

fn canonical64(f: f64) -> f64 {
    if f.is_nan() { f64::NAN.abs() } else { f }
}

/// Its own inverse: negative numbers count downwards in their bits.
fn flip32(bits: i32) -> i32 {
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

fn flip64(bits: i64) -> i64 {
    bits ^ ((bits >> 63).cast_unsigned() >> 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::Float64Array;

    #[test]
    fn integers_compare_as_floats_in_total_order() {
        let floats = [f64::NEG_INFINITY, -1e300, -1.5, -0.0, 0.0, 1e-300, 2.0, f64::INFINITY, f64::NAN];
        let array: ArrayRef = Arc::new(Float64Array::from(floats.to_vec()));
        let keys = to_integers(&array);
        assert!(keys.as_primitive::<Int64Type>().values().is_sorted());
        let back = to_floats(&keys);
        let bits =
            |a: &ArrayRef| a.as_primitive::<Float64Type>().values().iter().map(|f| f.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(&array));
        assert_eq!(
            to_integers(&(Arc::new(Float64Array::from(vec![-f64::NAN])) as ArrayRef)).as_ref(),
            keys.slice(8, 1).as_ref()
        );
    }
}
