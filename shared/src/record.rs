//! Records as the log gives them, and events as everything behind the decoder sees them.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;

use crate::offsets::{Offset, OffsetRange, PartitionId};

/// `INT NOT NULL`: the Kafka partition.
pub const PARTITION: &str = "_partition";
/// `BIGINT NOT NULL`: the Kafka offset.
pub const OFFSET: &str = "_offset";
/// `TIMESTAMP`: the record's timestamp, NULL when it has none.
pub const TIMESTAMP: &str = "_timestamp";
/// `TIMESTAMP`: the running maximum, the greatest event time at lower offsets of the partition (NULL: none).
pub const EVENT_TIME_MAX: &str = "_event_time_max";
/// `BOOLEAN`, computed in plans, never stored: `event_time < _event_time_max - allowed_lateness`.
pub const LATE: &str = "_late";
/// `VARBINARY`: the record's key.
pub const KEY: &str = "_key";
/// `LIST<STRUCT<key VARCHAR, value VARBINARY>>`: the record's headers, NULL when it has none.
pub const HEADERS: &str = "_headers";
/// `DATE`, only in the Delta table: its partition column.
pub const DATE: &str = "_date";

/// Every system column of an event batch, in order; the user's columns follow.
pub const SYSTEM_COLUMNS: [&str; 6] = [PARTITION, OFFSET, TIMESTAMP, EVENT_TIME_MAX, KEY, HEADERS];

/// Microseconds in UTC: the one timestamp type.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The schema of event batches: the system columns that are stored, then `user` in its order.
///
/// Lists name their item `element` and maps their entries `key_value{key, value}`, as Delta does, so that
/// decode → table → scan is the identity.
pub fn event_schema(user: &Schema) -> SchemaRef {
    let header = DataType::Struct(
        vec![Field::new("key", DataType::Utf8, true), Field::new("value", DataType::Binary, true)].into(),
    );
    let system = [
        Field::new(PARTITION, DataType::Int32, false),
        Field::new(OFFSET, DataType::Int64, false),
        Field::new(TIMESTAMP, timestamp_type(), true),
        Field::new(EVENT_TIME_MAX, timestamp_type(), true),
        Field::new(KEY, DataType::Binary, true),
        Field::new(HEADERS, DataType::List(Arc::new(Field::new("element", header, true))), true),
    ];
    let mut fields: Vec<Arc<Field>> = system.into_iter().map(Arc::new).collect();
    fields.extend(user.fields().iter().cloned());
    Arc::new(Schema::new(fields))
}

/// Headers of one record, in their order.
pub type Headers = Vec<(String, Option<Bytes>)>;

/// One record of the log, undecoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecord {
    pub offset: Offset,
    /// Microseconds since the epoch; `None` when the record has no timestamp.
    pub timestamp: Option<i64>,
    pub key: Option<Bytes>,
    /// `None`: a tombstone.
    pub value: Option<Bytes>,
    pub headers: Headers,
}

/// Consecutive records of one partition.
///
/// `range` is what the log has been read over: control records and holes that compaction or aborted transactions
/// leave lie in it without a record. `records` are in offset order, each within `range`.
#[derive(Debug, Clone)]
pub struct RawBatch {
    pub partition: PartitionId,
    pub range: OffsetRange,
    pub records: Vec<RawRecord>,
    /// The epoch of the leader that wrote what ends at the end of `range`; `None` if that is not known.
    pub leader_epoch: Option<i32>,
}

/// A record that could not be decoded, kept whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub partition: PartitionId,
    pub record: RawRecord,
    /// What is wrong, with the column and the value where there is one.
    pub error: String,
}

/// What a [`RawBatch`] decodes to. It covers exactly the same range.
#[derive(Debug, Clone)]
pub struct DecodedBatch {
    pub partition: PartitionId,
    pub range: OffsetRange,
    /// In [`event_schema`], ascending by offset.
    pub events: RecordBatch,
    /// Ascending by offset.
    pub dead_letters: Vec<DeadLetter>,
    /// Tombstones, skipped.
    pub tombstones: u64,
    /// Events whose time lies more than `max_ahead` past their record's timestamp; they do not raise the running maximum.
    pub ahead: u64,
    /// The running maximum behind the last record, in microseconds.
    pub event_time_max: Option<i64>,
    /// As in the [`RawBatch`].
    pub leader_epoch: Option<i32>,
}
