//! The system columns of event batches.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Int32Array, Int64Array, ListArray, NullBufferBuilder, StringArray, StructArray,
    TimestampMicrosecondArray, new_null_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Schema};

use super::column::{Blobs, to_offset};
use crate::offsets::PartitionId;
use crate::record::{HEADERS, RawRecord, event_schema};

/// The columns of [`crate::record::SYSTEM_COLUMNS`] for `rows`, the records that became events.
pub(super) fn columns(partition: PartitionId, rows: &[&RawRecord], maxima: Vec<Option<i64>>) -> Vec<ArrayRef> {
    let timestamps = TimestampMicrosecondArray::from_iter(rows.iter().map(|r| r.timestamp)).with_timezone("UTC");
    let maxima = TimestampMicrosecondArray::from(maxima).with_timezone("UTC");
    vec![
        Arc::new(Int32Array::from_value(partition.0, rows.len())),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.offset.0))),
        Arc::new(without_nulls(timestamps)),
        Arc::new(without_nulls(maxima)),
        keys(rows),
        headers(rows),
    ]
}

/// A bitmap that says nothing is not worth its bytes.
fn without_nulls(array: TimestampMicrosecondArray) -> TimestampMicrosecondArray {
    let (data_type, values, nulls) = array.into_parts();
    let nulls = nulls.filter(|n| n.null_count() > 0);
    TimestampMicrosecondArray::new(values, nulls).with_data_type(data_type)
}

fn keys(rows: &[&RawRecord]) -> ArrayRef {
    let values = blobs(rows.iter().map(|r| r.key.as_deref()));
    Arc::new(BinaryArray::new(values.0, values.1, values.2))
}

fn headers(rows: &[&RawRecord]) -> ArrayRef {
    let schema = event_schema(&Schema::empty());
    let list = schema.field_with_name(HEADERS).expect("one of the system columns").data_type();
    if rows.iter().all(|r| r.headers.is_empty()) {
        return new_null_array(list, rows.len());
    }
    let DataType::List(item) = list else { unreachable!("headers are a list") };
    let DataType::Struct(fields) = item.data_type() else { unreachable!("a header is a struct") };
    let all = || rows.iter().flat_map(|r| &r.headers);
    let names = blobs(all().map(|(name, _)| Some(name.as_bytes())));
    let values = blobs(all().map(|(_, value)| value.as_deref()));
    let pairs: Vec<ArrayRef> = vec![
        Arc::new(StringArray::new(names.0, names.1, names.2)),
        Arc::new(BinaryArray::new(values.0, values.1, values.2)),
    ];
    let mut offsets = vec![0];
    let mut nulls = NullBufferBuilder::new(rows.len());
    let mut count = 0;
    for row in rows {
        count += row.headers.len();
        offsets.push(to_offset(count));
        nulls.append(!row.headers.is_empty());
    }
    let pairs = StructArray::new(fields.clone(), pairs, None);
    Arc::new(ListArray::new(Arc::clone(item), OffsetBuffer::new(offsets.into()), Arc::new(pairs), nulls.finish()))
}

fn blobs<'a>(
    values: impl Iterator<Item = Option<&'a [u8]>>,
) -> (OffsetBuffer<i32>, arrow::buffer::Buffer, Option<NullBuffer>) {
    let mut blobs = Blobs::new();
    let mut nulls = NullBufferBuilder::new(0);
    for value in values {
        blobs.push(value.unwrap_or_default());
        nulls.append(value.is_some());
    }
    let (offsets, data) = blobs.finish();
    (offsets, data, nulls.finish())
}
