//! The data files of a table and what the log says about their rows.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate};
use deltalake_core::kernel::{Add, Remove};
use object_store::path::Path;
use serde_json::{Map, Value, json};

use super::Error;
use crate::offsets::{Offset, OffsetRange, PartitionId};
use crate::record::{DATE, OFFSET, PARTITION};

/// A data file that is part of a table's version.
#[derive(Debug, Clone)]
pub struct DataFile {
    /// As the log names it.
    pub(super) add: Add,
    /// Relative to the table.
    pub path: Path,
    pub size_bytes: u64,
    /// `None` when whoever wrote it kept no statistics.
    pub rows: Option<u64>,
    /// The partition of all its rows. `None`: not known, or more than one; another engine has rewritten it.
    pub partition: Option<PartitionId>,
    /// Behind `start` and before `end` there is no row; `None`: not known.
    pub offsets: Option<OffsetRange>,
    /// The `_date` of all its rows.
    pub date: Option<NaiveDate>,
    /// Milliseconds since the epoch.
    pub created_at: i64,
    /// Bounds of the columns that have statistics.
    pub(super) bounds: BTreeMap<String, Bounds>,
}

/// Bounds of a column's values in one file, both inclusive, possibly wider than the values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub min: Option<i64>,
    pub max: Option<i64>,
    pub nulls: Option<u64>,
}

impl DataFile {
    /// # Errors
    /// If the log says of the file what no file of ours can have.
    pub(super) fn new(add: Add) -> Result<Self, Error> {
        let corrupt = |what: &str| Error::Corrupt { what: format!("{what} of file {}", add.path) };
        if add.deletion_vector.is_some() {
            return Err(corrupt("a deletion vector"));
        }
        let path = Path::parse(&add.path).map_err(|_| corrupt("the path"))?;
        let size_bytes = u64::try_from(add.size).map_err(|_| corrupt("the size"))?;
        let stats: Value = match &add.stats {
            Some(text) => serde_json::from_str(text).map_err(|_| corrupt("the statistics"))?,
            None => Value::Null,
        };
        let bounds = parse_bounds(&stats);
        let partition = match bounds.get(PARTITION) {
            Some(Bounds { min: Some(min), max: Some(max), .. }) if min == max => {
                Some(PartitionId(i32::try_from(*min).map_err(|_| corrupt("the partition"))?))
            }
            _ => None,
        };
        let offsets = match bounds.get(OFFSET) {
            Some(Bounds { min: Some(min), max: Some(max), .. }) if min <= max => {
                Some(OffsetRange::new(Offset(*min), Offset(max.saturating_add(1))))
            }
            _ => None,
        };
        let date = match add.partition_values.get(DATE) {
            Some(Some(text)) => Some(NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| corrupt("the date"))?),
            Some(None) | None => None,
        };
        let rows = stats.get("numRecords").and_then(Value::as_u64);
        Ok(Self { path, size_bytes, rows, partition, offsets, date, created_at: add.modification_time, bounds, add })
    }

    /// Whether it may hold a row of `partition` in `range`.
    pub fn may_hold(&self, partition: PartitionId, range: OffsetRange) -> bool {
        self.partition.is_none_or(|p| p == partition)
            && self.offsets.is_none_or(|o| o.start < range.end && range.start < o.end)
    }

    /// The action that takes the file out of the table without any change of its rows: they stand elsewhere.
    pub(super) fn removal(&self, at_millis: i64) -> Remove {
        Remove {
            path: self.add.path.clone(),
            data_change: false,
            deletion_timestamp: Some(at_millis),
            extended_file_metadata: Some(true),
            partition_values: Some(self.add.partition_values.clone()),
            size: Some(self.add.size),
            ..Remove::default()
        }
    }
}

fn parse_bounds(stats: &Value) -> BTreeMap<String, Bounds> {
    let empty = Map::new();
    let part = |name: &str| stats.get(name).and_then(Value::as_object).unwrap_or(&empty);
    let (min, max, nulls) = (part("minValues"), part("maxValues"), part("nullCount"));
    nulls
        .keys()
        .chain(min.keys())
        .map(|column| {
            let bounds = Bounds {
                min: min.get(column).and_then(parse_value),
                // Other engines cut timestamps off at milliseconds; the greatest value may lie up to one past it.
                max: max.get(column).and_then(|v| {
                    let widen = if v.as_str().is_some_and(|t| t.len() > 10) { 999 } else { 0 };
                    parse_value(v).map(|max| max.saturating_add(widen))
                }),
                nulls: nulls.get(column).and_then(Value::as_u64),
            };
            (column.clone(), bounds)
        })
        .collect()
}

/// Integers as they are, dates as days, timestamps as microseconds; nothing else is used.
fn parse_value(value: &Value) -> Option<i64> {
    match value {
        Value::Number(n) => n.as_i64(),
        Value::String(text) if text.len() == 10 => {
            let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
            Some(i64::from(arrow::datatypes::Date32Type::from_naive_date(date)))
        }
        Value::String(text) => DateTime::parse_from_rfc3339(text).ok().map(|t| t.timestamp_micros()),
        _ => None,
    }
}

/// Statistics of a file in Delta's own form.
#[derive(Debug, Default)]
pub(super) struct Stats {
    min: Map<String, Value>,
    max: Map<String, Value>,
    nulls: Map<String, Value>,
}

impl Stats {
    pub(super) fn integer(&mut self, column: &str, min_max: Option<(i64, i64)>, nulls: usize) {
        self.add(column, min_max.map(|(min, max)| (json!(min), json!(max))), nulls);
    }

    pub(super) fn date(&mut self, column: &str, min_max: Option<(i32, i32)>, nulls: usize) {
        let text = |days: i32| {
            let date = arrow::datatypes::Date32Type::to_naive_date_opt(days)?;
            in_common_calendar(date).then(|| json!(date.format("%Y-%m-%d").to_string()))
        };
        self.add(column, min_max.and_then(|(min, max)| Some((text(min)?, text(max)?))), nulls);
    }

    /// Microseconds; they are widened to whole milliseconds, which every reader understands alike.
    pub(super) fn timestamp(&mut self, column: &str, min_max: Option<(i64, i64)>, nulls: usize) {
        let text = |millis: i64| {
            let time = DateTime::from_timestamp_millis(millis)?;
            in_common_calendar(time.date_naive()).then(|| json!(time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()))
        };
        let bounds = min_max.and_then(|(min, max)| {
            let ceiling = max.div_euclid(1000) + i64::from(max.rem_euclid(1000) > 0);
            Some((text(min.div_euclid(1000))?, text(ceiling)?))
        });
        self.add(column, bounds, nulls);
    }

    fn add(&mut self, column: &str, min_max: Option<(Value, Value)>, nulls: usize) {
        self.nulls.insert(column.to_owned(), json!(nulls));
        if let Some((min, max)) = min_max {
            self.min.insert(column.to_owned(), min);
            self.max.insert(column.to_owned(), max);
        }
    }

    pub(super) fn into_json(self, rows: usize) -> String {
        json!({"numRecords": rows, "minValues": self.min, "maxValues": self.max, "nullCount": self.nulls}).to_string()
    }
}

/// Dates of four-digit years: the only ones whose text every reader of the log takes.
pub(super) fn in_common_calendar(date: NaiveDate) -> bool {
    use chrono::Datelike;
    (1..=9999).contains(&date.year())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_timestamps_are_never_narrower_than_the_values() {
        for (min, max) in [(0, 0), (-1, 1), (1_700_000_000_123_456, 1_700_000_000_123_457), (-1_999, -1_001)] {
            let mut stats = Stats::default();
            stats.timestamp("t", Some((min, max)), 3);
            let bounds = parse_bounds(&serde_json::from_str(&stats.into_json(5)).unwrap())["t"];
            assert!(bounds.min.unwrap() <= min && max <= bounds.max.unwrap(), "{min} {max} {bounds:?}");
            assert_eq!(bounds.nulls, Some(3));
        }
    }

    #[test]
    fn times_that_no_reader_understands_have_no_bounds() {
        let mut stats = Stats::default();
        stats.timestamp("t", Some((0, i64::MAX)), 0);
        stats.date("d", Some((i32::MIN, 0)), 0);
        let bounds = parse_bounds(&serde_json::from_str(&stats.into_json(2)).unwrap());
        assert_eq!(bounds["t"], Bounds { min: None, max: None, nulls: Some(0) });
        assert_eq!(bounds["d"], Bounds { min: None, max: None, nulls: Some(0) });
    }
}
