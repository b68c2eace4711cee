//! Renaming the fields inside nested arrays.
//!
//! Accumulators name the fields of ordered states after physical columns (`y@3`), and disagree with their own
//! `state_fields` about names and nullability of list items. States carry the declared type, always.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, LargeListArray, ListArray, StructArray};
use arrow::datatypes::{DataType, Field};
use datafusion::common::{Result, internal_err};

/// The same values as `array`, in the type `to`, which may differ in names and nullability only.
///
/// # Errors
/// When the types differ in anything else: the engine's state is not what it declares.
pub(super) fn relabel(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    match (array.data_type(), to) {
        (DataType::List(_), DataType::List(item)) => {
            let list = array.as_list::<i32>();
            let values = relabel(list.values(), item.data_type())?;
            Ok(Arc::new(ListArray::try_new(Arc::clone(item), list.offsets().clone(), values, list.nulls().cloned())?))
        }
        (DataType::LargeList(_), DataType::LargeList(item)) => {
            let list = array.as_list::<i64>();
            let values = relabel(list.values(), item.data_type())?;
            Ok(Arc::new(LargeListArray::try_new(
                Arc::clone(item),
                list.offsets().clone(),
                values,
                list.nulls().cloned(),
            )?))
        }
        (DataType::FixedSizeList(_, n), DataType::FixedSizeList(item, m)) if n == m => {
            let list = array.as_fixed_size_list();
            let values = relabel(list.values(), item.data_type())?;
            Ok(Arc::new(FixedSizeListArray::try_new(Arc::clone(item), *n, values, list.nulls().cloned())?))
        }
        (DataType::Struct(from), DataType::Struct(fields)) if from.len() == fields.len() => {
            let structs = array.as_struct();
            let columns = structs
                .columns()
                .iter()
                .zip(fields)
                .map(|(column, field)| relabel(column, field.data_type()))
                .collect::<Result<Vec<_>>>()?;
            Ok(Arc::new(StructArray::try_new(fields.clone(), columns, structs.nulls().cloned())?))
        }
        (from, to) => internal_err!("a state is of type {from}, declared as {to}"),
    }
}

/// `field` with everything nullable inside it, so that no accumulator's NULL can contradict the schema.
pub(super) fn relaxed(field: &Field, name: &str) -> Field {
    Field::new(name, relaxed_type(field.data_type()), true)
}

fn relaxed_type(data_type: &DataType) -> DataType {
    let inner = |f: &Arc<Field>| Arc::new(relaxed(f, f.name()));
    match data_type {
        DataType::List(item) => DataType::List(inner(item)),
        DataType::LargeList(item) => DataType::LargeList(inner(item)),
        DataType::FixedSizeList(item, n) => DataType::FixedSizeList(inner(item), *n),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        other => other.clone(),
    }
}
