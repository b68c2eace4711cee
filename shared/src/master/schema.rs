//! The Delta tables' schemas and properties.

use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema};
use deltalake_core::kernel::engine::arrow_conversion::{TryIntoArrow as _, TryIntoKernel as _};
use deltalake_core::kernel::{StructField, StructType};

use super::Error;
use crate::record::{DATE, EVENT_TIME_MAX, HEADERS, KEY, OFFSET, PARTITION, TIMESTAMP, timestamp_type};

/// For how long checkpoints remember which files were removed.
pub(super) const DELETED_FILE_RETENTION: &str = "delta.deletedFileRetentionDuration";
/// Commits between two checkpoints.
pub(super) const CHECKPOINT_INTERVAL: u64 = 100;

/// The schema of the dead letters of every stream, without the partition column.
pub fn dead_letter_schema(headers: DataType) -> Schema {
    Schema::new(vec![
        Field::new("topic", DataType::Utf8, false),
        Field::new(PARTITION, DataType::Int32, false),
        Field::new(OFFSET, DataType::Int64, false),
        Field::new(TIMESTAMP, timestamp_type(), true),
        Field::new(KEY, DataType::Binary, true),
        Field::new(HEADERS, headers, true),
        // NULL is possible: a decoder may refuse a tombstone.
        Field::new("value", DataType::Binary, true),
        Field::new("error", DataType::Utf8, false),
    ])
}

/// The columns of a table whose files hold `columns`: these and `_date`, by which the table is partitioned.
///
/// # Errors
/// If a column cannot be a column of a Delta table.
pub(super) fn delta_schema(table: &str, columns: &Schema) -> Result<StructType, Error> {
    let mut fields = columns.fields().to_vec();
    fields.push(Field::new(DATE, DataType::Date32, true).into());
    (&Schema::new(fields))
        .try_into_kernel()
        .map_err(|source| Error::Unstorable { table: table.to_owned(), source: Box::new(source) })
}

/// Columns that have statistics in the log: where events lie, and when they happened.
pub(super) fn indexed_columns(columns: &Schema, event_time: Option<&str>) -> Vec<String> {
    let mut names = vec![PARTITION.to_owned(), OFFSET.to_owned(), TIMESTAMP.to_owned()];
    if columns.column_with_name(EVENT_TIME_MAX).is_some() {
        names.push(EVENT_TIME_MAX.to_owned());
    }
    names.extend(event_time.map(str::to_owned));
    names
}

/// Properties of a new table. None of them is a feature that a plain reader would have to know.
pub(super) fn properties(indexed: &[String]) -> Vec<(String, String)> {
    let plain = |name: &str| name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric());
    let quoted: Vec<String> =
        indexed.iter().map(|name| if plain(name) { name.clone() } else { format!("`{name}`") }).collect();
    [
        ("delta.dataSkippingStatsColumns", quoted.join(",")),
        // For engines that don't know the property above; the system columns come first for this reason.
        ("delta.dataSkippingNumIndexedCols", "4".to_owned()),
        ("delta.checkpointInterval", CHECKPOINT_INTERVAL.to_string()),
        // A commit every few seconds: a month of log files would make every listing slow.
        ("delta.logRetentionDuration", "interval 2 days".to_owned()),
        // The shortest; a vacuum whose retention is longer makes it longer.
        (DELETED_FILE_RETENTION, "interval 7 days".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// As properties have it.
pub(super) fn interval(duration: Duration) -> String {
    format!("interval {} seconds", duration.as_secs() + u64::from(duration.subsec_nanos() > 0))
}

/// Whether a table that has `found` can be read and written as `declared`.
///
/// # Errors
/// [`Error::SchemaDiffers`] with the first column that differs.
pub(super) fn check(table: &str, declared: &StructType, found: &StructType) -> Result<(), Error> {
    let differs = |column: &str, declared: Option<&StructField>, found: Option<&StructField>| Error::SchemaDiffers {
        table: table.to_owned(),
        column: column.to_owned(),
        declared: describe(declared),
        found: describe(found),
    };
    for field in declared.fields() {
        let other = found.field(field.name());
        if other.is_none_or(|o| o.data_type() != field.data_type() || o.is_nullable() != field.is_nullable()) {
            return Err(differs(field.name(), Some(field), other));
        }
    }
    for field in found.fields() {
        if declared.field(field.name()).is_none() {
            return Err(differs(field.name(), None, Some(field)));
        }
    }
    Ok(())
}

fn describe(field: Option<&StructField>) -> String {
    let Some(field) = field else { return "no such column".to_owned() };
    let nullable = if field.is_nullable() { "" } else { " NOT NULL" };
    match field.data_type().try_into_arrow() as Result<DataType, _> {
        Ok(data_type) => format!("{data_type}{nullable}"),
        Err(_) => format!("{:?}{nullable}", field.data_type()),
    }
}
