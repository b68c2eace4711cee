//! Avro in Confluent's wire format: the byte 0, the id of the writer's schema in four bytes, the record.
//!
//! Decoding itself asks nobody: the schema of each id is [learned](Avro::learn) before. What an id means is decided
//! elsewhere, once for all (see `schemas`), so that a record has one meaning whoever decodes it and whenever.
//!
//! It writes into this crate's own columns, which can take back what a bad record left in them; the readers that there
//! are for Avro give up a whole batch, or decode each value on its own.

mod cursor;
mod plan;
mod read;
mod schema;

use std::collections::{BTreeMap, BTreeSet};

use self::cursor::Cursor;
use self::plan::Plan;
use self::read::Reader;
use self::schema::Schema;
use super::column::Column;
use super::fault::{Fault, Result};
use super::value::Scratch;

/// The id of a schema in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SchemaId(pub u32);

impl std::fmt::Display for SchemaId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What the id of a schema stands for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum WriterSchema {
    /// An Avro schema. `references` holds the named types that it refers to, each behind those that it refers to itself.
    Avro { schema: String, references: Vec<String> },
    /// A schema, but not of Avro.
    Other { schema_type: String },
    /// The registry has no such schema.
    Unknown,
}

const MAGIC: u8 = 0;
/// The magic byte and the id.
const FRAME_BYTES: usize = 5;
/// The registry's ids are positive numbers of 32 bits with a sign.
const GREATEST_ID: u32 = i32::MAX.unsigned_abs();

/// Records of writers' schemas.
#[derive(Debug, Default)]
pub(super) struct Avro {
    /// Why no record of a schema can be read, where it can't.
    writers: BTreeMap<SchemaId, Result<Plan, String>>,
}

/// What frames a record.
enum Frame<'a> {
    Record(SchemaId, &'a [u8]),
    Wrong(Box<Fault>),
}

fn frame(value: &[u8]) -> Frame<'_> {
    let (Some((magic, rest)), Some(length)) = (value.split_first(), value.len().checked_sub(FRAME_BYTES)) else {
        let text = format!(
            "truncated: {} bytes, and Confluent's wire format has {FRAME_BYTES} before the record",
            value.len()
        );
        return Frame::Wrong(Fault::record(text));
    };
    if *magic != MAGIC {
        let text = format!("not in Confluent's wire format: it begins with the byte 0x{magic:02x}, not 0x00");
        return Frame::Wrong(Fault::record(text));
    }
    let (id, record) = rest.split_at(rest.len() - length);
    Frame::Record(SchemaId(u32::from_be_bytes(id.try_into().expect("four bytes"))), record)
}

impl Avro {
    /// The ids in `values` that are yet to be learned.
    pub(super) fn unknown<'a>(&self, values: impl Iterator<Item = &'a [u8]>) -> BTreeSet<SchemaId> {
        let ids = values.filter_map(|value| match frame(value) {
            Frame::Record(id, _) if id.0 <= GREATEST_ID => Some(id),
            _ => None,
        });
        ids.filter(|id| !self.writers.contains_key(id)).collect()
    }

    /// Takes note of what `id` stands for; `root`: the stream's columns.
    pub(super) fn learn(&mut self, id: SchemaId, writer: &WriterSchema, root: &Column) {
        let plan = match writer {
            WriterSchema::Avro { schema, references } => Schema::parse(schema, references)
                .and_then(|schema| Plan::new(schema, root))
                .map_err(|why| format!("schema {id} cannot be used: {why}")),
            WriterSchema::Other { schema_type } => {
                Err(format!("schema {id} is one of {}, not of Avro", super::fault::shown(schema_type)))
            }
            WriterSchema::Unknown => Err(format!("the schema registry has no schema {id}")),
        };
        self.writers.insert(id, plan);
    }

    /// Appends one row to `root`, or leaves rubbish behind the rows that were there.
    ///
    /// # Panics
    /// If the record's schema was not learned.
    pub(super) fn append(&self, value: &[u8], root: &mut Column, scratch: &mut Scratch) -> Result<()> {
        let (id, record) = match frame(value) {
            Frame::Record(id, record) => (id, record),
            Frame::Wrong(fault) => return Err(fault),
        };
        if id.0 > GREATEST_ID {
            return Err(Fault::record(format!("there is no schema {id}: ids end with {GREATEST_ID}")));
        }
        let plan = match self.writers.get(&id).expect("the schemas of a batch are learned before it is decoded") {
            Ok(plan) => plan,
            Err(why) => return Err(Fault::record(why.clone())),
        };
        let mut reader = Reader { from: Cursor::new(record), schema: &plan.schema, scratch };
        reader.append(root, &plan.root).and_then(|()| reader.from.end()).map_err(|fault| fault.of_schema(id))
    }
}
