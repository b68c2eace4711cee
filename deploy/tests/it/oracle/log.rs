//! What the log holds, as the generator made it, and what each event means by its place.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde_json::{Value, json};

use super::events::{ALLOWED_LATENESS, Format, Kind, MAX_AHEAD, Record, Row, decimal, rfc3339};
use crate::harness::Client;

/// Every record that was produced: per partition, offset and record.
#[derive(Debug, Default)]
pub(crate) struct Log {
    records: BTreeMap<i32, Vec<(i64, Record)>>,
    /// Of all of them.
    format: Option<Format>,
}

/// An event with what its partition's prefix makes of it.
#[derive(Debug, Clone)]
pub(crate) struct Seen<'a> {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) row: &'a Row,
    pub(crate) late: bool,
    /// The running maximum before it.
    max: Option<i64>,
    /// Of the record, milliseconds.
    timestamp: i64,
    /// Its event time raises the running maximum, if it is greater.
    pub(crate) counts: bool,
}

/// What the events before it make of the next event of a partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prefix {
    max: Option<i64>,
}

impl Prefix {
    /// Goes on by one record; answers its event, if it is one.
    pub(crate) fn see<'a>(&mut self, partition: i32, offset: i64, record: &'a Record) -> Option<Seen<'a>> {
        let Kind::Event(row) = &record.kind else { return None };
        let late = match (row.t, self.max) {
            (Some(t), Some(max)) => t < max - ALLOWED_LATENESS,
            _ => false,
        };
        let (max, timestamp) = (self.max, record.timestamp);
        let counts = row.t.is_some_and(|t| t <= timestamp * 1000 + MAX_AHEAD);
        if counts {
            self.max = self.max.max(row.t);
        }
        Some(Seen { partition, offset, row, late, max, timestamp, counts })
    }
}

impl Log {
    /// Takes up `records`, which `produce` sends to their partitions; it answers their offsets.
    pub(crate) fn produce(
        &mut self,
        format: Format,
        records: Vec<(i32, Record)>,
        produce: impl FnOnce(&[(i32, i64, Option<Vec<u8>>)]) -> Vec<i64>,
    ) {
        self.format = Some(format);
        let payloads: Vec<_> = records.iter().map(|(p, r)| (*p, r.timestamp, r.payload(format))).collect();
        let offsets = produce(&payloads);
        for ((partition, record), offset) in records.into_iter().zip(offsets) {
            self.push(partition, offset, record);
        }
    }

    /// Takes up one record behind those of its partition.
    pub(crate) fn push(&mut self, partition: i32, offset: i64, record: Record) {
        let log = self.records.entry(partition).or_default();
        assert!(log.last().is_none_or(|(last, _)| *last < offset), "offsets ascend");
        log.push((offset, record));
    }

    /// Forgets the records in `[from, to)` of each partition: the log has dropped them.
    pub(crate) fn drop_between(&mut self, from: &BTreeMap<i32, i64>, to: &BTreeMap<i32, i64>) {
        for (partition, records) in &mut self.records {
            records.retain(|(offset, _)| *offset < from[partition] || *offset >= to[partition]);
        }
    }

    /// Behind the last record of each partition that has one.
    pub(crate) fn ends(&self) -> BTreeMap<i32, i64> {
        self.records.iter().filter_map(|(p, records)| Some((*p, records.last()?.0 + 1))).collect()
    }

    /// The events below `position`, in partition and offset order.
    pub(crate) fn seen_below<'a>(&'a self, position: &BTreeMap<i32, i64>) -> Vec<Seen<'a>> {
        let mut seen = Vec::new();
        for (partition, records) in &self.records {
            let end = position.get(partition).copied().unwrap_or(0);
            let mut prefix = Prefix::default();
            let below = records.iter().filter(|(o, _)| *o < end);
            seen.extend(below.filter_map(|(offset, record)| prefix.see(*partition, *offset, record)));
        }
        seen
    }

    /// Fails unless the master dataset holds each event once, with its values, its dead letters each undecodable record
    /// once, with its bytes and why, and neither anything else.
    pub(crate) fn check_master_dataset(&self, client: &Client, stream: &str) {
        let text = self.format == Some(Format::Text);
        let columns = if text { "line" } else { "_event_time_max, k, s, v, d, CAST(f AS VARCHAR) AS f, b, t, o" };
        let mut found = rows_of(client, stream, &format!("_timestamp, {columns}"));
        for row in &mut found {
            // Reading JSON may round floats; this does not.
            let float = row["f"].as_str().map(|f| f.parse::<f64>().expect("a float"));
            if let Some(float) = float {
                row["f"] = json!(float);
            }
        }
        let events = self.seen_below(&self.ends());
        let expected: Vec<Value> = events.iter().map(|event| event.archived(text)).collect();
        assert_same_rows(stream, &found, &expected);

        let letters = format!("dead_letters.{stream}");
        let mut found = rows_of(client, &letters, "_timestamp, topic, value, error");
        for letter in &mut found {
            let error = letter["error"].take();
            assert!(error.as_str().is_some_and(|e| !e.is_empty()), "{letters}: no error says why: {letter}");
        }
        let records = self.records.iter().flat_map(|(p, records)| records.iter().map(move |(o, r)| (p, o, r)));
        let expected: Vec<Value> = records
            .filter_map(|(partition, offset, record)| {
                let Kind::Bad(bytes) = &record.kind else { return None };
                Some(json!({
                    "_partition": partition, "_offset": offset, "_timestamp": rfc3339(record.timestamp * 1000),
                    "topic": stream, "value": base64::engine::general_purpose::STANDARD.encode(bytes), "error": null,
                }))
            })
            .collect();
        assert_same_rows(&letters, &found, &expected);
    }
}

impl Seen<'_> {
    /// The event's row in the master dataset.
    fn archived(&self, text: bool) -> Value {
        let Row { k, s, v, d, f, b, t, x, l } = self.row;
        let mut row = json!({
            "_partition": self.partition, "_offset": self.offset, "_timestamp": rfc3339(self.timestamp * 1000),
        });
        let values = match text {
            true => json!({"line": self.row.line()}),
            false => json!({
                "_event_time_max": self.max.map(rfc3339), "k": k, "s": s, "v": v, "d": d.map(decimal), "f": f, "b": b,
                "t": t.map(rfc3339), "o": {"x": x, "l": l},
            }),
        };
        let (Value::Object(row_fields), Value::Object(values)) = (&mut row, values) else { unreachable!("objects") };
        row_fields.extend(values);
        row
    }
}

/// `columns` of the rows of `table`, with their places, in the order of the log.
fn rows_of(client: &Client, table: &str, columns: &str) -> Vec<Value> {
    let order = "ORDER BY _partition, _offset LIMIT 1000000";
    let sql = format!("SELECT _partition, _offset, {columns} FROM {table} {order}");
    let (status, body) = client.post("/v1/query", &json!({"sql": sql}));
    assert_eq!(status, 200, "{body}");
    body["rows"].as_array().expect("rows").clone()
}

/// Each of `expected` once, in its order, and nothing else.
fn assert_same_rows(table: &str, found: &[Value], expected: &[Value]) {
    let places = |rows: &[Value]| -> Vec<(i64, i64)> {
        let number = |r: &Value, column: &str| r[column].as_i64().expect("a number");
        rows.iter().map(|r| (number(r, "_partition"), number(r, "_offset"))).collect()
    };
    assert_eq!(places(found), places(expected), "{table}: each once");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected, "{table}");
    }
}

/// `field` of each partition in the meta of an answer.
pub(crate) fn offsets(meta: &Value, field: &str) -> BTreeMap<i32, i64> {
    let partitions = meta["partitions"].as_object().expect("partitions");
    partitions.iter().map(|(p, m)| (p.parse().expect("a number"), m[field].as_i64().expect("an offset"))).collect()
}
