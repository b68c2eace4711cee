//! Columns under construction. Unlike Arrow's builders they can take back what a bad record left in them.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, Date32Array, Decimal128Array, Float32Array,
    Float64Array, Int32Array, Int64Array, ListArray, MapArray, NullBufferBuilder, StringArray, StructArray,
    TimestampMicrosecondArray,
};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Fields};

use super::fault::shown;
use crate::columns::{column_path, sql_type};
use crate::config::EpochUnit;
use crate::record::timestamp_type;

/// How a column's values are made from text, where its Arrow type alone does not say it.
pub(super) trait Meanings {
    /// Whether the VARCHAR at `path` is a JSON column.
    fn is_json(&mut self, path: &[&str]) -> bool;
    /// The unit of the TIMESTAMP at `path`, if it may come as a number.
    fn epoch_unit(&mut self, path: &[&str]) -> Option<EpochUnit>;
}

/// A column, or a field within one.
///
/// After a fault the lengths within it may differ; [`Column::truncate`] makes them agree again.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) values: Values,
    pub(super) nulls: NullBufferBuilder,
    pub(super) nullable: bool,
}

#[derive(Debug)]
pub(super) enum Values {
    Boolean(BooleanBufferBuilder),
    Int(Vec<i32>),
    BigInt(Vec<i64>),
    Real(Vec<f32>),
    Double(Vec<f64>),
    Decimal {
        values: Vec<i128>,
        precision: u8,
        scale: i8,
    },
    Varchar(Blobs),
    /// Any JSON value as its text.
    Json(Blobs),
    Varbinary(Blobs),
    Date(Vec<i32>),
    Timestamp {
        values: Vec<i64>,
        unit: Option<EpochUnit>,
    },
    Struct(Members),
    List {
        item: FieldRef,
        offsets: Vec<i32>,
        items: Box<Column>,
    },
    Map {
        entries: FieldRef,
        offsets: Vec<i32>,
        keys: Box<Column>,
        values: Box<Column>,
    },
}

/// Byte strings of any length, one behind the other.
#[derive(Debug)]
pub(super) struct Blobs {
    pub(super) data: Vec<u8>,
    offsets: Vec<i32>,
}

/// The fields of a struct.
#[derive(Debug)]
pub(super) struct Members {
    pub(super) fields: Fields,
    pub(super) columns: Vec<Column>,
    /// Which field is likely to come next: records name their fields in the same order.
    next: usize,
    /// Positions by name, where a search through all names would take longer.
    index: Option<HashMap<String, usize>>,
}

/// So many names are searched one by one.
const SEARCHED_NAMES: usize = 16;

impl Column {
    /// # Errors
    /// The first type that is not in the closed list, with its path.
    pub(super) fn new(field: &Field, meanings: &mut dyn Meanings) -> Result<Self, (String, DataType)> {
        Self::at(field, &mut vec![field.name()], meanings)
    }

    fn at<'a>(
        field: &'a Field,
        path: &mut Vec<&'a str>,
        meanings: &mut dyn Meanings,
    ) -> Result<Self, (String, DataType)> {
        let values = match field.data_type() {
            DataType::Boolean => Values::Boolean(BooleanBufferBuilder::new(0)),
            DataType::Int32 => Values::Int(vec![]),
            DataType::Int64 => Values::BigInt(vec![]),
            DataType::Float32 => Values::Real(vec![]),
            DataType::Float64 => Values::Double(vec![]),
            DataType::Decimal128(p @ 1..=38, s) if u8::try_from(*s).is_ok_and(|s| s <= *p) => {
                Values::Decimal { values: vec![], precision: *p, scale: *s }
            }
            DataType::Utf8 if meanings.is_json(path) => Values::Json(Blobs::new()),
            DataType::Utf8 => Values::Varchar(Blobs::new()),
            DataType::Binary => Values::Varbinary(Blobs::new()),
            DataType::Date32 => Values::Date(vec![]),
            t if *t == timestamp_type() => Values::Timestamp { values: vec![], unit: meanings.epoch_unit(path) },
            DataType::Struct(fields) => {
                let columns = fields.iter().map(|f| Self::within(f, path, meanings)).collect::<Result<_, _>>()?;
                Values::Struct(Members::new(fields.clone(), columns))
            }
            DataType::List(item) => Values::List {
                items: Box::new(Self::within(item, path, meanings)?),
                item: Arc::clone(item),
                offsets: vec![0],
            },
            DataType::Map(entries, false) => match entries.data_type() {
                DataType::Struct(kv) if kv.len() == 2 && is_exact(kv[0].data_type()) => Values::Map {
                    keys: Box::new(Self::within(&kv[0], path, meanings)?),
                    values: Box::new(Self::within(&kv[1], path, meanings)?),
                    entries: Arc::clone(entries),
                    offsets: vec![0],
                },
                _ => return Err((column_path(path), field.data_type().clone())),
            },
            other => return Err((column_path(path), other.clone())),
        };
        Ok(Self { values, nulls: NullBufferBuilder::new(0), nullable: field.is_nullable() })
    }

    fn within<'a>(
        inner: &'a Field,
        path: &mut Vec<&'a str>,
        meanings: &mut dyn Meanings,
    ) -> Result<Self, (String, DataType)> {
        path.push(inner.name());
        let column = Self::at(inner, path, meanings);
        path.pop();
        column
    }

    /// A struct of `columns`, which are those of `fields`.
    pub(super) fn of_struct(fields: Fields, columns: Vec<Self>) -> Self {
        let values = Values::Struct(Members::new(fields, columns));
        Self { values, nulls: NullBufferBuilder::new(0), nullable: false }
    }

    pub(super) fn len(&self) -> usize {
        self.nulls.len()
    }

    /// The SQL name of its type, for messages.
    pub(super) fn type_name(&self) -> String {
        match &self.values {
            Values::Boolean(_) => "BOOLEAN".into(),
            Values::Int(_) => "INT".into(),
            Values::BigInt(_) => "BIGINT".into(),
            Values::Real(_) => "REAL".into(),
            Values::Double(_) => "DOUBLE".into(),
            Values::Decimal { precision, scale, .. } => format!("DECIMAL({precision}, {scale})"),
            Values::Varchar(_) => "VARCHAR".into(),
            Values::Json(_) => "JSON".into(),
            Values::Varbinary(_) => "VARBINARY".into(),
            Values::Date(_) => "DATE".into(),
            Values::Timestamp { .. } => "TIMESTAMP".into(),
            Values::Struct(members) => shown(&sql_type(&DataType::Struct(members.fields.clone()))),
            Values::List { item, .. } => shown(&sql_type(&DataType::List(Arc::clone(item)))),
            Values::Map { entries, .. } => shown(&sql_type(&DataType::Map(Arc::clone(entries), false))),
        }
    }

    /// Appends NULL whether the column is nullable or not: beneath a NULL struct, what is NOT NULL is NULL too.
    pub(super) fn append_null(&mut self) {
        match &mut self.values {
            Values::Boolean(values) => values.append(false),
            Values::Int(values) | Values::Date(values) => values.push(0),
            Values::BigInt(values) | Values::Timestamp { values, .. } => values.push(0),
            Values::Real(values) => values.push(0.0),
            Values::Double(values) => values.push(0.0),
            Values::Decimal { values, .. } => values.push(0),
            Values::Varchar(blobs) | Values::Json(blobs) | Values::Varbinary(blobs) => blobs.close(),
            Values::Struct(members) => members.columns.iter_mut().for_each(Self::append_null),
            Values::List { offsets, .. } | Values::Map { offsets, .. } => {
                offsets.push(*offsets.last().expect("begins with 0"));
            }
        }
        self.nulls.append_null();
    }

    /// Takes back all rows from `len` on, whole or not.
    pub(super) fn truncate(&mut self, len: usize) {
        self.nulls.truncate(len);
        match &mut self.values {
            Values::Boolean(values) => values.truncate(len),
            Values::Int(values) | Values::Date(values) => values.truncate(len),
            Values::BigInt(values) | Values::Timestamp { values, .. } => values.truncate(len),
            Values::Real(values) => values.truncate(len),
            Values::Double(values) => values.truncate(len),
            Values::Decimal { values, .. } => values.truncate(len),
            Values::Varchar(blobs) | Values::Json(blobs) | Values::Varbinary(blobs) => blobs.truncate(len),
            Values::Struct(members) => members.columns.iter_mut().for_each(|c| c.truncate(len)),
            Values::List { offsets, items, .. } => {
                offsets.truncate(len + 1);
                items.truncate(to_usize(*offsets.last().expect("begins with 0")));
            }
            Values::Map { offsets, keys, values, .. } => {
                offsets.truncate(len + 1);
                let entries = to_usize(*offsets.last().expect("begins with 0"));
                keys.truncate(entries);
                values.truncate(entries);
            }
        }
    }

    /// Makes room for `rows` more at the top.
    pub(super) fn reserve(&mut self, rows: usize) {
        match &mut self.values {
            Values::Boolean(values) => values.reserve(rows),
            Values::Int(values) | Values::Date(values) => values.reserve(rows),
            Values::BigInt(values) | Values::Timestamp { values, .. } => values.reserve(rows),
            Values::Real(values) => values.reserve(rows),
            Values::Double(values) => values.reserve(rows),
            Values::Decimal { values, .. } => values.reserve(rows),
            Values::Varchar(blobs) | Values::Json(blobs) | Values::Varbinary(blobs) => blobs.offsets.reserve(rows),
            Values::Struct(members) => members.columns.iter_mut().for_each(|c| c.reserve(rows)),
            Values::List { offsets, .. } | Values::Map { offsets, .. } => offsets.reserve(rows),
        }
    }

    /// The array of all rows; the column is empty then.
    pub(super) fn finish(&mut self) -> ArrayRef {
        let nulls = self.nulls.finish();
        match &mut self.values {
            Values::Boolean(values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Int(values) => Arc::new(Int32Array::new(scalars(values), nulls)),
            Values::Date(values) => Arc::new(Date32Array::new(scalars(values), nulls)),
            Values::BigInt(values) => Arc::new(Int64Array::new(scalars(values), nulls)),
            Values::Real(values) => Arc::new(Float32Array::new(scalars(values), nulls)),
            Values::Double(values) => Arc::new(Float64Array::new(scalars(values), nulls)),
            Values::Timestamp { values, .. } => {
                Arc::new(TimestampMicrosecondArray::new(scalars(values), nulls).with_timezone("UTC"))
            }
            Values::Decimal { values, precision, scale } => Arc::new(
                Decimal128Array::new(scalars(values), nulls)
                    .with_precision_and_scale(*precision, *scale)
                    .expect("checked when the decoder was made"),
            ),
            Values::Varchar(blobs) | Values::Json(blobs) => {
                let (offsets, data) = blobs.finish();
                Arc::new(StringArray::new(offsets, data, nulls))
            }
            Values::Varbinary(blobs) => {
                let (offsets, data) = blobs.finish();
                Arc::new(BinaryArray::new(offsets, data, nulls))
            }
            Values::Struct(members) => {
                let columns = members.columns.iter_mut().map(Self::finish).collect();
                Arc::new(StructArray::new(members.fields.clone(), columns, nulls))
            }
            Values::List { item, offsets, items } => {
                Arc::new(ListArray::new(Arc::clone(item), take_offsets(offsets), items.finish(), nulls))
            }
            Values::Map { entries, offsets, keys, values } => {
                let DataType::Struct(fields) = entries.data_type() else { unreachable!("checked by Column::new") };
                let kv = StructArray::new(fields.clone(), vec![keys.finish(), values.finish()], None);
                Arc::new(MapArray::new(Arc::clone(entries), take_offsets(offsets), kv, nulls, false))
            }
        }
    }

    /// Whether two of the rows from `start` on are equal. For keys of maps: scalar, without NULL.
    pub(super) fn has_duplicate(&self, start: usize) -> bool {
        fn any<T: Ord + Copy>(keys: &[T]) -> bool {
            // Small maps are the rule.
            if keys.len() <= 8 {
                return keys.iter().enumerate().any(|(i, key)| keys[..i].contains(key));
            }
            let mut sorted = keys.to_vec();
            sorted.sort_unstable();
            sorted.windows(2).any(|w| w[0] == w[1])
        }
        match &self.values {
            Values::Boolean(values) => any(&(start..self.len()).map(|i| values.get_bit(i)).collect::<Vec<_>>()),
            Values::Int(values) | Values::Date(values) => any(&values[start..]),
            Values::BigInt(values) | Values::Timestamp { values, .. } => any(&values[start..]),
            Values::Decimal { values, .. } => any(&values[start..]),
            Values::Varchar(blobs) | Values::Json(blobs) | Values::Varbinary(blobs) => {
                any(&(start..self.len()).map(|i| blobs.get(i)).collect::<Vec<_>>())
            }
            Values::Real(_) | Values::Double(_) | Values::Struct(_) | Values::List { .. } | Values::Map { .. } => {
                unreachable!("checked when the decoder was made")
            }
        }
    }
}

impl Members {
    fn new(fields: Fields, columns: Vec<Column>) -> Self {
        let index = || fields.iter().enumerate().map(|(i, field)| (field.name().clone(), i)).collect();
        Self { index: (fields.len() > SEARCHED_NAMES).then(index), fields, columns, next: 0 }
    }

    /// The position of the field that is named `name`.
    #[inline]
    pub(super) fn find(&mut self, name: &str) -> Option<usize> {
        let count = self.fields.len();
        let i = if self.next < count && self.fields[self.next].name() == name {
            self.next
        } else if let Some(index) = &self.index {
            *index.get(name)?
        } else {
            self.fields.iter().position(|field| field.name() == name)?
        };
        self.next = i + 1;
        if self.next >= count {
            self.next = 0;
        }
        Some(i)
    }
}

impl Blobs {
    pub(super) fn new() -> Self {
        Self { data: vec![], offsets: vec![0] }
    }

    #[inline]
    pub(super) fn push(&mut self, value: &[u8]) {
        self.data.extend_from_slice(value);
        self.close();
    }

    /// Ends the value whose bytes have been put behind `data`.
    #[inline]
    pub(super) fn close(&mut self) {
        self.offsets.push(to_offset(self.data.len()));
    }

    pub(super) fn finish(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        let mut data = std::mem::take(&mut self.data);
        // Doubling leaves up to half of it unused, for as long as the batch lives.
        if data.capacity() - data.len() > data.len() / 4 {
            data.shrink_to_fit();
        }
        (take_offsets(&mut self.offsets), Buffer::from_vec(data))
    }

    fn truncate(&mut self, len: usize) {
        self.offsets.truncate(len + 1);
        self.data.truncate(to_usize(*self.offsets.last().expect("begins with 0")));
    }

    fn get(&self, i: usize) -> &[u8] {
        &self.data[to_usize(self.offsets[i])..to_usize(self.offsets[i + 1])]
    }
}

/// Whether a map may have keys of this type: equal keys must be told exactly.
fn is_exact(key: &DataType) -> bool {
    !key.is_nested() && !key.is_floating()
}

/// Arrow's 32-bit offsets hold: a value takes no more room in a column than in its record, and the records of a batch
/// have less than 2 GiB together (checked by `Decoder::decode`).
pub(super) fn to_offset(len: usize) -> i32 {
    i32::try_from(len).expect("a batch holds less than 2 GiB")
}

pub(super) fn to_usize(offset: i32) -> usize {
    usize::try_from(offset).expect("offsets are not negative")
}

fn scalars<T: arrow::datatypes::ArrowNativeType>(values: &mut Vec<T>) -> ScalarBuffer<T> {
    std::mem::take(values).into()
}

fn take_offsets(offsets: &mut Vec<i32>) -> OffsetBuffer<i32> {
    OffsetBuffer::new(std::mem::replace(offsets, vec![0]).into())
}
