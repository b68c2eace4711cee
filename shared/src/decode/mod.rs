//! From records to events. Both layers decode with this code, so that a record has one meaning.
//!
//! What a record means depends on its bytes, the stream's declaration and, for `_event_time_max`, on the events before it
//! in its partition; never on its neighbours in a batch. A record that cannot be decoded is a dead letter and costs no
//! other record anything.
//!
//! # Records
//!
//! | | json | csv | text | avro |
//! |---|---|---|---|---|
//! | a record is | one object | one row, its fields in the columns' order | one value of `line VARCHAR` | one record, framed as Confluent does |
//! | NULL | `null`, or the field is missing | an empty field, in quotes or not | | `null`, or the writer's schema lacks the field |
//! | unknown, or too many | unknown fields are ignored, if they are JSON | dead letter | | fields that are no columns are passed over |
//! | too few | NULL | dead letter | | NULL |
//! | tombstone | counted, skipped | counted, skipped | counted, skipped | counted, skipped |
//! | empty value | dead letter | dead letter | the empty line | dead letter |
//! | invalid UTF-8 | dead letter | dead letter | dead letter | dead letter, in a VARCHAR |
//!
//! JSON is RFC 8259, strictly: blanks (line ends among them) may stand around its tokens, nothing else may stand before or
//! behind the object. Of a field that stands twice in one object the last one counts, and each must fit; a key that stands
//! twice in a MAP makes a dead letter. Nesting is not limited. CSV is RFC 4180; a quote inside of a field
//! that does not begin with one is an ordinary character, and one line end may follow the row.
//!
//! # Values
//!
//! | type | from JSON | dead letter |
//! |---|---|---|
//! | BOOLEAN | `true`, `false` | strings, numbers |
//! | INT, BIGINT | numbers, or strings that write one, with an integer value: `7`, `1e3`, `2.0`, `"7"` | `1.5`; out of range |
//! | REAL, DOUBLE | numbers, or strings that write one; the nearest float | `"NaN"`, infinities; `1e400`: out of range |
//! | DECIMAL(p, s) | numbers, or strings that write one, exactly | more digits than s behind the point, unless 0; too large |
//! | VARCHAR | strings | numbers and the rest; half of a surrogate pair |
//! | VARBINARY | strings in base64 (standard alphabet, `=` may be missing) | the rest |
//! | DATE | strings `YYYY-MM-DD` | the rest |
//! | TIMESTAMP | strings, see below; with `epoch_units` also numbers, or strings that write one | numbers without a unit; years before 0000 and past 9999 |
//! | JSON | any value but `null`, as its own text | |
//! | STRUCT, MAP | objects; keys of a MAP as in csv | |
//! | LIST | arrays | |
//!
//! A timestamp is `YYYY-MM-DD[(T| )hh:mm[:ss[.f…]][[ ](Z|UTC|±hh[[:]mm])]]`: RFC 3339, with a blank instead of the T, without
//! seconds, without an offset (then it is UTC), or the date alone (midnight). What is finer than a microsecond is cut off, toward
//! the earlier time, of numbers too. `epoch_units` and the list of JSON columns name columns by their
//! [path](crate::columns::column_path), so that fields of structs, items of lists and values of maps can be named.
//!
//! A CSV field is read like a JSON string of that text, but BOOLEAN is `true` or `false` in any case, and
//! JSON, STRUCT, LIST and MAP are JSON in the field. Text of numbers may begin with `+` and have leading zeros.
//! Blanks around a value are not cut off.
//!
//! # Avro
//!
//! The columns are the reader's schema, without defaults; fields find their columns by name, with regard to case.
//!
//! | type | from the writer's | dead letter |
//! |---|---|---|
//! | BOOLEAN | boolean | |
//! | INT | int | long |
//! | BIGINT | int, long | |
//! | REAL | int, long, float: the nearest float | double |
//! | DOUBLE | int, long, float, double | |
//! | DECIMAL(p, s) | decimal (bytes or fixed) of any scale, exactly; strings as in JSON | digits behind the point that would have to be rounded; too large |
//! | VARCHAR | string, bytes in UTF-8, enum (its symbol), uuid (string or fixed) | symbols of more than 255 bytes |
//! | VARBINARY | bytes, string, fixed | |
//! | DATE | date, int (days); strings as in JSON | years before 0000 and past 9999 |
//! | TIMESTAMP | timestamp-millis, -micros, -nanos, local-timestamp-… as if in UTC; with `epoch_units` also int and long; strings as in JSON | numbers without a unit; years before 0000 and past 9999 |
//! | JSON | strings, or bytes, that hold JSON | the rest |
//! | STRUCT | record | |
//! | LIST | array | |
//! | MAP | map; keys as in csv | a key twice |
//!
//! A union is read by the branch that the record has: only a branch that does not fit makes a dead letter, and `null` where
//! the column is NOT NULL. Another byte than 0 before the record, an id that the registry does not know, a schema that is none,
//! bytes that are missing or left over are dead letters; a registry that does not answer is waited for.

mod avro;
mod batch;
mod column;
mod csv;
mod fault;
mod number;
mod scan;
mod system;
mod time;
mod value;

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};

use self::avro::Avro;
pub use self::avro::{SchemaId, WriterSchema};
pub use self::batch::ConcatError;
use self::column::{Column, Meanings, Members, Values};
use self::fault::{Fault, Result};
use self::scan::Scanner;
use self::value::Scratch;
use crate::columns::{column_path, sql_type};
use crate::config::{EpochUnit, Format, StreamConfig};
use crate::mutant::{self, Mutant};
use crate::record::{self, DeadLetter, DecodedBatch, RawBatch, RawRecord};

/// Why a stream as it is declared cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "a text stream has the single column `line VARCHAR`: declare it, or leave the columns out. stream=`{stream}`"
    )]
    TextColumns { stream: String },
    #[error("type of column `{column}` is not one of {types}. stream=`{stream}`, type=`{data_type}`", types = crate::columns::TYPES)]
    UnsupportedType { stream: String, column: String, data_type: String },
    #[error("event_time names no column: name a TIMESTAMP column. stream=`{stream}`, event_time=`{column}`")]
    EventTimeUnknown { stream: String, column: String },
    #[error("event_time must be a TIMESTAMP column. stream=`{stream}`, event_time=`{column}`, type=`{data_type}`")]
    EventTimeType { stream: String, column: String, data_type: String },
    #[error("epoch_units names what is no TIMESTAMP column. stream=`{stream}`, column=`{column}`")]
    EpochUnits { stream: String, column: String },
    #[error("JSON columns name what is no VARCHAR of the schema. stream=`{stream}`, column=`{column}`")]
    JsonColumns { stream: String, column: String },
    #[error(
        "a CSV delimiter is one ASCII character other than a quote or a line end. stream=`{stream}`, delimiter=`{delimiter}`"
    )]
    Delimiter { stream: String, delimiter: u8 },
}

/// The greatest event time so far of one partition, in microseconds; `None` before the first event that has one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunningMaximum {
    pub event_time_max: Option<i64>,
}

impl RunningMaximum {
    /// Takes the next event of the partition; answers whether its time is ahead.
    ///
    /// An event time more than `max_ahead` past the record's `timestamp` is ahead and does not raise the maximum.
    /// Without a timestamp there is nothing to be ahead of: any event time raises it, or a topic whose records have none
    /// would never have a watermark.
    pub fn observe(&mut self, event_time: Option<i64>, timestamp: Option<i64>, max_ahead_micros: i64) -> bool {
        let Some(event_time) = event_time else { return false };
        let ahead = timestamp.is_some_and(|timestamp| event_time > timestamp.saturating_add(max_ahead_micros));
        if ahead && !mutant::is(Mutant::AheadRaisesMaximum) {
            return true;
        }
        self.event_time_max = self.event_time_max.max(Some(event_time));
        false
    }
}

/// Decodes the records of one stream.
///
/// It keeps nothing from one batch to the next but memory; what a partition has seen is in its [`RunningMaximum`].
#[derive(Debug)]
pub struct Decoder {
    schema: SchemaRef,
    format: Format,
    /// The user's columns, as one struct.
    root: Column,
    /// Its position among the user's columns.
    event_time: Option<usize>,
    max_ahead_micros: i64,
    avro: Avro,
    scratch: Scratch,
}

impl Decoder {
    /// # Errors
    /// What is wrong with the declaration, see [`Error`].
    pub fn new(config: &StreamConfig) -> Result<Self, Error> {
        let stream = || config.name.clone();
        match config.format {
            Format::Csv { delimiter } if !delimiter.is_ascii() || matches!(delimiter, b'"' | b'\n' | b'\r') => {
                return Err(Error::Delimiter { stream: stream(), delimiter });
            }
            Format::Text => {
                let fields = config.columns.fields();
                if fields.len() != 1 || fields[0].name() != "line" || fields[0].data_type() != &DataType::Utf8 {
                    return Err(Error::TextColumns { stream: stream() });
                }
            }
            Format::Json | Format::Csv { .. } | Format::Avro(_) => {}
        }
        let event_time = config.event_time.as_ref().map(|column| {
            let (i, field) = (config.columns.column_with_name(column))
                .ok_or_else(|| Error::EventTimeUnknown { stream: stream(), column: column.clone() })?;
            if *field.data_type() != record::timestamp_type() {
                let data_type = sql_type(field.data_type());
                return Err(Error::EventTimeType { stream: stream(), column: column.clone(), data_type });
            }
            Ok(i)
        });
        Ok(Self {
            schema: record::event_schema(&config.columns),
            format: config.format.clone(),
            root: root(config)?,
            event_time: event_time.transpose()?,
            max_ahead_micros: i64::try_from(config.max_ahead.as_micros()).unwrap_or(i64::MAX),
            avro: Avro::default(),
            scratch: Scratch::default(),
        })
    }

    /// The writers' schemas of the records of `raw` that it has not learned yet; none unless the format is Avro.
    pub fn unknown_schemas(&self, raw: &RawBatch) -> BTreeSet<SchemaId> {
        match self.format {
            Format::Avro(_) => self.avro.unknown(raw.records.iter().filter_map(|record| record.value.as_deref())),
            Format::Json | Format::Csv { .. } | Format::Text => BTreeSet::new(),
        }
    }

    /// Takes note of what `id` stands for.
    pub fn learn(&mut self, id: SchemaId, schema: &WriterSchema) {
        self.avro.learn(id, schema, &self.root);
    }

    /// The schema of [`DecodedBatch::events`].
    pub fn event_schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.schema)
    }

    /// Decodes `raw`; each of its records becomes an event, a dead letter or a counted tombstone.
    ///
    /// `max`: the partition's running maximum before the first record; afterwards that behind the last one.
    ///
    /// # Panics
    /// If the records hold 2 GiB or more together: no log gives out such batches. If one of the
    /// [`unknown_schemas`](Self::unknown_schemas) was not learned before.
    pub fn decode(&mut self, raw: &RawBatch, max: &mut RunningMaximum) -> DecodedBatch {
        let bytes: usize = raw.records.iter().map(record_bytes).sum();
        assert!(bytes < i32::MAX as usize, "a batch of records holds less than 2 GiB. bytes=`{bytes}`");
        let mut rows = Vec::with_capacity(raw.records.len());
        let mut maxima = Vec::with_capacity(raw.records.len());
        let (mut dead_letters, mut tombstones, mut ahead) = (vec![], 0, 0);
        self.root.reserve(raw.records.len());
        for record in &raw.records {
            let Some(value) = &record.value else {
                tombstones += 1;
                continue;
            };
            match self.append(value) {
                Ok(()) => {
                    rows.push(record);
                    maxima.push(max.event_time_max);
                    ahead += u64::from(max.observe(self.last_event_time(), record.timestamp, self.max_ahead_micros));
                }
                Err(fault) => {
                    self.root.truncate(rows.len());
                    let error = fault.message();
                    dead_letters.push(DeadLetter { partition: raw.partition, record: record.clone(), error });
                }
            }
        }
        DecodedBatch {
            partition: raw.partition,
            range: raw.range,
            events: self.finish(raw, &rows, maxima),
            dead_letters,
            tombstones,
            ahead,
            event_time_max: max.event_time_max,
            leader_epoch: raw.leader_epoch,
        }
    }

    /// Appends one row, or leaves rubbish behind the rows that were there.
    fn append(&mut self, value: &[u8]) -> Result<()> {
        if value.is_empty() && self.format != Format::Text {
            return Err(Fault::record("the value is empty"));
        }
        if let Format::Avro(_) = self.format {
            return self.avro.append(value, &mut self.root, &mut self.scratch);
        }
        let text = std::str::from_utf8(value)
            .map_err(|e| Fault::record(format!("invalid UTF-8 at byte {}", e.valid_up_to())))?;
        match self.format {
            Format::Json => self.append_json(text),
            Format::Csv { delimiter } => self.append_csv(text, delimiter),
            Format::Text => {
                members(&mut self.root).columns[0].append_bare(text, &mut self.scratch)?;
                self.root.nulls.append_non_null();
                Ok(())
            }
            Format::Avro(_) => unreachable!("is no text"),
        }
    }

    fn append_json(&mut self, text: &str) -> Result<()> {
        let mut scanner = Scanner::new(text);
        if scanner.peek() == Some(b'{') {
            self.root.append_json(&mut scanner, &mut self.scratch)?;
            return scanner.end();
        }
        let start = scanner.start();
        scanner.skip(&mut self.scratch.stack)?;
        let value = scanner.since(start);
        scanner.end()?;
        Err(Fault::record(format!("expected a JSON object, got {}", fault::shown(value))))
    }

    fn append_csv(&mut self, text: &str, delimiter: u8) -> Result<()> {
        let Members { columns, fields, .. } = members(&mut self.root);
        let mut values = Vec::with_capacity(columns.len());
        csv::split(text, delimiter, |value| values.push(value))?;
        if values.len() != columns.len() {
            return Err(Fault::record(format!("expected {} fields, got {}", columns.len(), values.len())));
        }
        for ((column, field), value) in columns.iter_mut().zip(fields.iter()).zip(&values) {
            let appended = match value.is_empty() {
                true => column.append_missing("an empty field"),
                false => column.append_bare(value, &mut self.scratch),
            };
            appended.map_err(|fault| fault.within(field.name()))?;
        }
        self.root.nulls.append_non_null();
        Ok(())
    }

    fn last_event_time(&mut self) -> Option<i64> {
        let column = &members(&mut self.root).columns[self.event_time?];
        let Values::Timestamp { values, .. } = &column.values else { unreachable!("checked by Decoder::new") };
        let last = column.len() - 1;
        column.nulls.is_valid(last).then(|| values[last])
    }

    fn finish(&mut self, raw: &RawBatch, rows: &[&RawRecord], maxima: Vec<Option<i64>>) -> RecordBatch {
        let mut columns = system::columns(raw.partition, rows, maxima);
        columns.extend(members(&mut self.root).columns.iter_mut().map(Column::finish));
        self.root.nulls.finish();
        RecordBatch::try_new(self.event_schema(), columns).expect("the columns were made from the schema")
    }
}

fn members(root: &mut Column) -> &mut Members {
    let Values::Struct(members) = &mut root.values else { unreachable!("made as a struct") };
    members
}

fn record_bytes(record: &RawRecord) -> usize {
    let len = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    // One for each record and header bounds the number of rows, too.
    let headers: usize = record.headers.iter().map(|(key, value)| 1 + key.len() + len(value)).sum();
    1 + len(&record.key) + len(&record.value) + headers
}

/// The user's columns as one struct, with what their declaration adds to their Arrow types.
fn root(config: &StreamConfig) -> Result<Column, Error> {
    let stream = || config.name.clone();
    let mut declared = Declared {
        json: config.json_columns.iter().map(|path| (path.as_str(), false)).collect(),
        units: config.epoch_units.iter().map(|(path, unit)| (path.as_str(), (*unit, false))).collect(),
    };
    let mut columns = vec![];
    for field in config.columns.fields() {
        let column = Column::new(field, &mut declared).map_err(|(column, data_type)| Error::UnsupportedType {
            stream: stream(),
            column,
            data_type: sql_type(&data_type),
        })?;
        columns.push(column);
    }
    if let Some((column, _)) = declared.json.iter().find(|(_, used)| !**used) {
        return Err(Error::JsonColumns { stream: stream(), column: (*column).to_owned() });
    }
    if let Some((column, _)) = declared.units.iter().find(|(_, (_, used))| !used) {
        return Err(Error::EpochUnits { stream: stream(), column: (*column).to_owned() });
    }
    Ok(Column::of_struct(config.columns.fields().clone(), columns))
}

/// The declarations beside the types, by path, and whether a column has used them.
struct Declared<'a> {
    json: BTreeMap<&'a str, bool>,
    units: BTreeMap<&'a str, (EpochUnit, bool)>,
}

impl Meanings for Declared<'_> {
    fn is_json(&mut self, path: &[&str]) -> bool {
        let Some(used) = named(&mut self.json, path) else { return false };
        *used = true;
        true
    }

    fn epoch_unit(&mut self, path: &[&str]) -> Option<EpochUnit> {
        let (unit, used) = named(&mut self.units, path)?;
        *used = true;
        Some(*unit)
    }
}

/// What is declared of the column at `path`; a top-level column may also go by its bare name, whatever characters it has.
fn named<'d, T>(declared: &'d mut BTreeMap<&str, T>, path: &[&str]) -> Option<&'d mut T> {
    let quoted = column_path(path);
    let name = match path {
        [name] if !declared.contains_key(quoted.as_str()) => *name,
        _ => quoted.as_str(),
    };
    declared.get_mut(name)
}

#[cfg(test)]
mod tests;
