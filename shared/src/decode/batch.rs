//! Cutting decoded batches at offsets and joining adjacent ones.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};

use crate::offsets::{Offset, OffsetRange, PartitionId};
use crate::record::{DecodedBatch, EVENT_TIME_MAX, OFFSET};

/// Why batches cannot be joined. All but `TooLarge` are mistakes of the caller: offsets would be lost or doubled.
#[derive(Debug, thiserror::Error)]
pub enum ConcatError {
    #[error("no batches to join")]
    Nothing,
    #[error("batches of different partitions cannot be joined. partitions=`{0}`, `{1}`")]
    Partitions(PartitionId, PartitionId),
    /// A hole or an overlap.
    #[error("batches are not adjacent. ranges=`{0}`, `{1}`")]
    NotAdjacent(OffsetRange, OffsetRange),
    /// The stream's columns changed between them.
    #[error("batches have different columns. ranges=`{0}`, `{1}`")]
    Columns(OffsetRange, OffsetRange),
    /// A column would exceed Arrow's 2 GiB: join fewer.
    #[error("cannot join batches")]
    Arrow(#[from] arrow::error::ArrowError),
}

impl DecodedBatch {
    /// The part below `offset` and the part from it on. An `offset` outside of the range leaves one part empty, at that end.
    ///
    /// The rows are shared, not copied. Only the sums of `tombstones` and `ahead` are kept exactly: a batch does not
    /// know where they lie, so all of them go with the first part, or with the second when the first has an empty range.
    pub fn split_at(self, offset: Offset) -> (Self, Self) {
        let at = Offset(offset.0.clamp(self.range.start.0, self.range.end.0));
        let offsets = self.events.column_by_name(OFFSET).expect("event batches have `_offset`");
        let row = offsets.as_primitive::<Int64Type>().values().partition_point(|o| *o < at.0);
        let event_time_max = if row == self.events.num_rows() {
            self.event_time_max
        } else {
            // Nothing but events raises the maximum, so the first event from `offset` on holds what it was before.
            let maxima = self.events.column_by_name(EVENT_TIME_MAX).expect("event batches have `_event_time_max`");
            let maxima = maxima.as_primitive::<TimestampMicrosecondType>();
            maxima.is_valid(row).then(|| maxima.value(row))
        };
        let mut dead_letters = self.dead_letters;
        let later = dead_letters.split_off(dead_letters.partition_point(|d| d.record.offset < at));
        let first = OffsetRange::new(self.range.start, at);
        let (counts_first, counts_second) = match first.is_empty() {
            true => ((0, 0), (self.tombstones, self.ahead)),
            false => ((self.tombstones, self.ahead), (0, 0)),
        };
        let below = Self {
            partition: self.partition,
            range: first,
            events: self.events.slice(0, row),
            dead_letters,
            tombstones: counts_first.0,
            ahead: counts_first.1,
            event_time_max,
            leader_epoch: self.leader_epoch.filter(|_| at == self.range.end),
        };
        let from = Self {
            partition: self.partition,
            range: OffsetRange::new(at, self.range.end),
            events: self.events.slice(row, self.events.num_rows() - row),
            dead_letters: later,
            tombstones: counts_second.0,
            ahead: counts_second.1,
            event_time_max: self.event_time_max,
            leader_epoch: self.leader_epoch,
        };
        (below, from)
    }

    /// Joins batches of one partition, each of which begins where the one before it ends.
    ///
    /// # Errors
    /// [`ConcatError`]; nothing is lost in silence.
    pub fn concat(batches: impl IntoIterator<Item = Self>) -> Result<Self, ConcatError> {
        let mut batches = batches.into_iter();
        let mut joined = batches.next().ok_or(ConcatError::Nothing)?;
        let schema = joined.events.schema();
        let mut events: Vec<RecordBatch> = vec![joined.events];
        for next in batches {
            if next.partition != joined.partition {
                return Err(ConcatError::Partitions(joined.partition, next.partition));
            }
            if next.range.start != joined.range.end {
                return Err(ConcatError::NotAdjacent(joined.range, next.range));
            }
            if next.events.schema_ref() != &schema {
                return Err(ConcatError::Columns(joined.range, next.range));
            }
            joined.range.end = next.range.end;
            joined.dead_letters.extend(next.dead_letters);
            joined.tombstones += next.tombstones;
            joined.ahead += next.ahead;
            joined.event_time_max = next.event_time_max;
            joined.leader_epoch = match next.range.is_empty() {
                true => joined.leader_epoch,
                false => next.leader_epoch,
            };
            events.push(next.events);
        }
        events.retain(|batch| batch.num_rows() > 0);
        joined.events = match events.len() {
            0 => RecordBatch::new_empty(schema),
            1 => events.pop().expect("one"),
            _ => concat_batches(&schema, &events)?,
        };
        Ok(joined)
    }

    /// Bytes that its rows and dead letters take. Of memory that it shares with another part of a split batch it counts what
    /// its own rows use, so that the parts have about the size of the whole.
    pub fn memory_size(&self) -> usize {
        let rows: usize = self.events.columns().iter().map(|c| rows_size(c.as_ref())).sum();
        let dead_letters: usize = self.dead_letters.iter().map(dead_letter_size).sum();
        size_of::<Self>() + rows + dead_letters
    }
}

fn rows_size(array: &dyn Array) -> usize {
    array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size())
}

fn dead_letter_size(dead: &crate::record::DeadLetter) -> usize {
    let record = &dead.record;
    let bytes = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    let headers: usize = record.headers.iter().map(|(key, value)| size_of_val(key) + key.len() + bytes(value)).sum();
    size_of_val(dead) + dead.error.len() + bytes(&record.key) + bytes(&record.value) + headers
}
