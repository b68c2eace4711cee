//! What the log holds, as the generator made it, and what each event means by its place.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::events::{ALLOWED_LATENESS, Format, Kind, MAX_AHEAD, Record, Row};
use crate::harness::Client;

/// Every record that was produced: per partition, offset and record.
#[derive(Debug, Default)]
pub(crate) struct Log(BTreeMap<i32, Vec<(i64, Record)>>);

/// An event with what its partition's prefix makes of it.
#[derive(Debug, Clone)]
pub(crate) struct Seen<'a> {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) row: &'a Row,
    pub(crate) late: bool,
    /// Its event time raises the running maximum, if it is greater.
    pub(crate) counts: bool,
}

impl Log {
    /// Takes up `records`, which `produce` sends to their partitions; it answers their offsets.
    pub(crate) fn produce(
        &mut self,
        format: Format,
        records: Vec<(i32, Record)>,
        produce: impl FnOnce(&[(i32, i64, Option<Vec<u8>>)]) -> Vec<i64>,
    ) {
        let payloads: Vec<_> = records.iter().map(|(p, r)| (*p, r.timestamp, r.payload(format))).collect();
        let offsets = produce(&payloads);
        for ((partition, record), offset) in records.into_iter().zip(offsets) {
            let log = self.0.entry(partition).or_default();
            assert!(log.last().is_none_or(|(last, _)| *last < offset), "offsets ascend");
            log.push((offset, record));
        }
    }

    /// Forgets the records in `[from, to)` of each partition: the log has dropped them.
    pub(crate) fn drop_between(&mut self, from: &BTreeMap<i32, i64>, to: &BTreeMap<i32, i64>) {
        for (partition, records) in &mut self.0 {
            records.retain(|(offset, _)| *offset < from[partition] || *offset >= to[partition]);
        }
    }

    /// Behind the last record of each partition that has one.
    pub(crate) fn ends(&self) -> BTreeMap<i32, i64> {
        self.0.iter().filter_map(|(p, records)| Some((*p, records.last()?.0 + 1))).collect()
    }

    /// The events below `position`, in partition and offset order.
    pub(crate) fn seen_below<'a>(&'a self, position: &BTreeMap<i32, i64>) -> Vec<Seen<'a>> {
        let mut seen = Vec::new();
        for (partition, records) in &self.0 {
            let end = position.get(partition).copied().unwrap_or(0);
            let mut max: Option<i64> = None;
            for (offset, record) in records.iter().filter(|(o, _)| *o < end) {
                let Kind::Event(row) = &record.kind else { continue };
                let late = match (row.t, max) {
                    (Some(t), Some(max)) => t < max - ALLOWED_LATENESS,
                    _ => false,
                };
                let counts = row.t.is_some_and(|t| t <= record.timestamp * 1000 + MAX_AHEAD);
                seen.push(Seen { partition: *partition, offset: *offset, row, late, counts });
                if counts {
                    max = max.max(row.t);
                }
            }
        }
        seen
    }

    /// Fails unless the master dataset holds each event once, its dead letters each undecodable record once, and
    /// neither anything else.
    pub(crate) fn check_master_dataset(&self, client: &Client, stream: &str) {
        let all = |table: &str| -> Vec<(i64, i64)> {
            let order = "ORDER BY _partition, _offset LIMIT 1000000";
            let sql = format!("SELECT _partition, _offset FROM {table} {order}");
            let (status, body) = client.post("/v1/query", &json!({"sql": sql}));
            assert_eq!(status, 200, "{body}");
            let rows = body["rows"].as_array().expect("rows");
            let number = |r: &Value, column: &str| r[column].as_i64().expect("a number");
            rows.iter().map(|r| (number(r, "_partition"), number(r, "_offset"))).collect()
        };
        let produced = |wanted: fn(&Kind) -> bool| -> Vec<(i64, i64)> {
            let records = self.0.iter().flat_map(|(p, records)| records.iter().map(|(o, r)| (i64::from(*p), *o, r)));
            records.filter(|(_, _, r)| wanted(&r.kind)).map(|(p, o, _)| (p, o)).collect()
        };
        assert_eq!(all(stream), produced(|k| matches!(k, Kind::Event(_))), "each event once");
        let letters = all(&format!("dead_letters.{stream}"));
        assert_eq!(letters, produced(|k| matches!(k, Kind::Bad(_))), "each dead letter once");
    }
}

/// `field` of each partition in the meta of an answer.
pub(crate) fn offsets(meta: &Value, field: &str) -> BTreeMap<i32, i64> {
    let partitions = meta["partitions"].as_object().expect("partitions");
    partitions.iter().map(|(p, m)| (p.parse().expect("a number"), m[field].as_i64().expect("an offset"))).collect()
}
