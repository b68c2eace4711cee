//! A micro-batch: what was read in one go, cut exactly at the position and at boundaries.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use watershed_shared::mutant::{self, Mutant};
use watershed_shared::offsets::{Coverage, Cut, Offset, OffsetRange, OffsetVector, PartitionId};
use watershed_shared::record::{DecodedBatch, OFFSET};

/// A batch does not follow what was read before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Discontinuity {
    #[error("offsets are missing. partition=`{partition}`, expected=`{expected}`, got=`{got}`")]
    Hole { partition: PartitionId, expected: Offset, got: Offset },
}

/// Consecutive events of one partition.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) partition: PartitionId,
    /// Never empty; it may hold no event.
    pub(crate) range: OffsetRange,
    /// Those in `range`, ascending by offset.
    pub(crate) events: RecordBatch,
}

impl Part {
    /// What of it lies in `range`. Copies nothing.
    pub(crate) fn slice(&self, range: OffsetRange) -> Self {
        let offsets = self
            .events
            .column_by_name(OFFSET)
            .expect("event batches have the system columns")
            .as_primitive::<Int64Type>()
            .values();
        let start = offsets.partition_point(|o| *o < range.start.0);
        let end = offsets.partition_point(|o| *o < range.end.0);
        Self { partition: self.partition, range, events: self.events.slice(start, end - start) }
    }
}

/// Parts that follow a position without hole or overlap.
#[derive(Debug)]
pub(crate) struct MicroBatch {
    pub(crate) parts: Vec<Part>,
    /// The position behind them.
    pub(crate) end: OffsetVector,
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
    /// A partition that the position does not name: it cannot be read before its origin is recorded. Then another
    /// reader begins there.
    pub(crate) unknown: Option<PartitionId>,
}

impl MicroBatch {
    /// An empty one at `position`, which names every partition that may come.
    pub(crate) fn at(position: OffsetVector) -> Self {
        Self { parts: Vec::new(), end: position, rows: 0, bytes: 0, unknown: None }
    }

    /// Adds what of `batch` lies at or past the end, and below `until` where that names the partition.
    ///
    /// | batch | outcome |
    /// |---|---|
    /// | begins at the end | added |
    /// | begins below the end (redelivery, overlap) | what lies past the end is added |
    /// | begins past the end | [`Discontinuity::Hole`], nothing added |
    /// | of a partition without origin | nothing added |
    ///
    /// Returns the range that was added; `None` if there was nothing new.
    pub(crate) fn push(
        &mut self,
        batch: &DecodedBatch,
        until: Option<&OffsetVector>,
    ) -> Result<Option<OffsetRange>, Discontinuity> {
        let partition = batch.partition;
        let Some(expected) = self.end.get(partition) else {
            self.unknown = Some(partition);
            return Ok(None);
        };
        let end = match until {
            Some(until) => until.get(partition).unwrap_or(expected).min(batch.range.end),
            None => batch.range.end,
        };
        if end <= expected {
            return Ok(None);
        }
        if batch.range.start > expected {
            return Err(Discontinuity::Hole { partition, expected, got: batch.range.start });
        }
        let range = OffsetRange::new(expected, end);
        let whole = Part { partition, range: batch.range, events: batch.events.clone() };
        let part = match batch.range == range {
            true => whole,
            false if mutant::is(Mutant::RedeliveredTwice) => Part { range, ..whole },
            false => whole.slice(range),
        };
        self.rows += part.events.num_rows();
        self.bytes += part.events.get_array_memory_size();
        self.end.set(partition, end);
        self.parts.push(part);
        Ok(Some(range))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }
}

/// Events that one run is made of.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Wholly on one side of each boundary.
    pub(crate) coverage: Coverage,
    pub(crate) events: Vec<RecordBatch>,
}

/// Cuts `parts` at `from` and at each of `boundaries`: one piece for each combination of sides. What lies below `from`
/// is left out. Pieces that lie below a boundary come first.
pub(crate) fn split(parts: &[Part], from: &OffsetVector, boundaries: &[Cut]) -> Vec<Piece> {
    let mut pieces: BTreeMap<Vec<bool>, Piece> = BTreeMap::new();
    for part in parts {
        let OffsetRange { start, end } = part.range;
        let start = from.get(part.partition).map_or(start, |f| f.max(start));
        if start >= end {
            continue;
        }
        let mut at: Vec<Offset> =
            boundaries.iter().filter_map(|b| b.get(part.partition)).filter(|o| start < *o && *o < end).collect();
        at.extend([start, end]);
        at.sort_unstable();
        at.dedup();
        for ends in at.windows(2) {
            let range = OffsetRange::new(ends[0], ends[1]);
            let sides = boundaries.iter().map(|b| !b.is_past(part.partition, range.start)).collect();
            let piece = pieces.entry(sides).or_insert_with(|| Piece { coverage: Coverage::new(), events: Vec::new() });
            piece.coverage.add(part.partition, range).expect("the parts of a micro-batch follow each other");
            let part = if range == part.range { part.clone() } else { part.slice(range) };
            if part.events.num_rows() > 0 {
                piece.events.push(part.events);
            }
        }
    }
    pieces.into_values().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};
    use watershed_shared::offsets::Side;

    use super::*;

    fn batch(partition: i32, start: i64, end: i64, offsets: &[i64]) -> DecodedBatch {
        let schema = Arc::new(Schema::new(vec![Field::new(OFFSET, DataType::Int64, false)]));
        let column = Arc::new(Int64Array::from(offsets.to_vec()));
        DecodedBatch {
            partition: PartitionId(partition),
            range: OffsetRange::new(Offset(start), Offset(end)),
            events: RecordBatch::try_new(schema, vec![column]).unwrap(),
            dead_letters: vec![],
            tombstones: 0,
            ahead: 0,
            event_time_max: None,
            leader_epoch: None,
        }
    }

    fn rows(part: &RecordBatch) -> Vec<i64> {
        part.column(0).as_primitive::<Int64Type>().values().to_vec()
    }

    #[test]
    fn redeliveries_are_cut_and_holes_are_errors() {
        let mut micro = MicroBatch::at([(0, 5)].into());
        assert_eq!(micro.push(&batch(0, 2, 5, &[2, 4]), None), Ok(None));
        assert!(micro.push(&batch(0, 3, 8, &[3, 5, 7]), None).unwrap().is_some());
        assert_eq!(rows(&micro.parts[0].events), [5, 7]);
        assert!(matches!(micro.push(&batch(0, 9, 10, &[9]), None), Err(Discontinuity::Hole { .. })));
        assert_eq!(micro.push(&batch(1, 0, 10, &[9]), None), Ok(None));
        assert_eq!(micro.unknown, Some(PartitionId(1)));
        assert_eq!(micro.end, [(0, 8)].into());
        assert!(micro.push(&batch(0, 8, 20, &[8, 12, 15]), Some(&[(0, 13)].into())).unwrap().is_some());
        assert_eq!(rows(&micro.parts[1].events), [8, 12]);
        assert_eq!(micro.end, [(0, 13)].into());
    }

    #[test]
    fn a_micro_batch_is_cut_exactly_at_boundaries() {
        let mut micro = MicroBatch::at([(0, 0), (1, 0)].into());
        micro.push(&batch(0, 0, 10, &[0, 3, 5, 9]), None).unwrap();
        micro.push(&batch(1, 0, 4, &[1, 2]), None).unwrap();
        let boundaries: Vec<Cut> = vec![[(0, 5), (1, 4)].into(), [(0, 9), (1, 20)].into()];
        let pieces = split(&micro.parts, &[(0, 1), (1, 0)].into(), &boundaries);
        let found: Vec<(String, Vec<i64>)> =
            pieces.iter().map(|p| (p.coverage.to_string(), p.events.iter().flat_map(rows).collect())).collect();
        assert_eq!(
            found,
            [
                ("{0: [1, 5), 1: [0, 4)}".to_owned(), vec![3, 1, 2]),
                ("{0: [5, 9)}".to_owned(), vec![5]),
                ("{0: [9, 10)}".to_owned(), vec![9]),
            ]
        );
        for piece in &pieces {
            assert!(boundaries.iter().all(|b| piece.coverage.side(b) != Side::Straddles));
        }
    }
}
