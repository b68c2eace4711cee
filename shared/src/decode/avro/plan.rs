//! What of a writer's schema goes into which column: Avro's schema resolution, worked out once for each schema.

use super::schema::{Kind, Logical, Schema, TypeId};
use crate::config::EpochUnit;
use crate::decode::column::{Column, Values};

/// How to read records of one schema.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) schema: Schema,
    pub(super) root: Read,
}

/// How a value of the writer becomes one of a column. What does not fit is an error only where a value is met: of a
/// union another branch may fit.
#[derive(Debug)]
pub(super) enum Read {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    /// A string or bytes, as they are.
    Bytes,
    /// A string that writes the value, as in JSON.
    Text,
    Fixed(usize),
    /// 16 bytes, written as text.
    Uuid,
    /// SUBTLE: a symbol can be longer than what stands for it in the record, and a column has room for 2 GiB. So symbols are
    /// at most [`LONGEST_SYMBOL`] bytes long; batches of the log have 4 MiB and one record more, which grows by less than
    /// the cursor's room.
    Enum(Vec<String>),
    Decimal {
        /// `None`: with the length before it.
        size: Option<usize>,
        scale: u32,
    },
    Epoch(EpochUnit),
    Struct {
        fields: Vec<Field>,
        /// Of the columns, those that the writer has nothing for.
        missing: Vec<usize>,
    },
    List(Box<Self>),
    Map(Box<Self>),
    Union(Vec<Self>),
    /// The value does not fit: what the writer's schema has.
    Mismatch(String),
}

/// A field of the writer's record.
#[derive(Debug)]
pub(super) enum Field {
    Into { column: usize, read: Read },
    Skip(TypeId),
}

const LONGEST_SYMBOL: usize = 255;
/// Of one plan: a schema that refers to itself in many ways unfolds along a deep column.
const MOST_PARTS: usize = 100_000;

impl Plan {
    /// For records of `schema` into `root`, the struct of the stream's columns.
    ///
    /// # Errors
    /// Why no record of this schema can be read.
    pub(super) fn new(schema: Schema, root: &Column) -> Result<Self, String> {
        let mut planner = Planner { schema: &schema, parts: 0 };
        let read = planner.read(schema.root(), root)?;
        if let Read::Mismatch(_) = read {
            return Err(format!("it is of type {}, not a record", schema.describe(schema.root())));
        }
        Ok(Self { schema, root: read })
    }
}

struct Planner<'a> {
    schema: &'a Schema,
    parts: usize,
}

impl Planner<'_> {
    fn read(&mut self, id: TypeId, column: &Column) -> Result<Read, String> {
        self.parts += 1;
        if self.parts > MOST_PARTS {
            return Err(format!("it unfolds to more than {MOST_PARTS} parts"));
        }
        let of_type = self.schema.get(id);
        let read = match (&of_type.kind, &column.values) {
            (Kind::Null, _) => Read::Null,
            (Kind::Union(branches), _) => {
                Read::Union(branches.iter().map(|branch| self.read(*branch, column)).collect::<Result<_, _>>()?)
            }
            (Kind::Record(fields), Values::Struct(members)) => {
                let mut missing: Vec<usize> = (0..members.columns.len()).collect();
                let mut reads = vec![];
                for (name, of_field) in fields {
                    match members.fields.iter().position(|field| field.name() == name) {
                        None => reads.push(Field::Skip(*of_field)),
                        Some(i) => {
                            missing.retain(|column| *column != i);
                            let read = self.read(*of_field, &members.columns[i])?;
                            reads.push(Field::Into { column: i, read });
                        }
                    }
                }
                Read::Struct { fields: reads, missing }
            }
            (Kind::Array(item), Values::List { items, .. }) => Read::List(Box::new(self.read(*item, items)?)),
            (Kind::Map(value), Values::Map { values, .. }) => Read::Map(Box::new(self.read(*value, values)?)),
            (Kind::Enum(symbols), Values::Varchar(_)) if symbols.iter().all(|s| s.len() <= LONGEST_SYMBOL) => {
                Read::Enum(symbols.clone())
            }
            _ => self.scalar(id, &column.values),
        };
        Ok(read)
    }

    /// Avro's promotions: int → long → float → double, string ↔ bytes; and of the types that Avro has no name for, those
    /// that mean the same.
    fn scalar(&self, id: TypeId, into: &Values) -> Read {
        let of_type = self.schema.get(id);
        match (&of_type.kind, of_type.logical, into) {
            (Kind::Boolean, _, Values::Boolean(_)) => Read::Boolean,
            (
                Kind::Int,
                _,
                Values::Int(_) | Values::BigInt(_) | Values::Real(_) | Values::Double(_) | Values::Date(_),
            ) => Read::Int,
            (Kind::Long, _, Values::BigInt(_) | Values::Real(_) | Values::Double(_)) => Read::Long,
            (Kind::Float, _, Values::Real(_) | Values::Double(_)) => Read::Float,
            (Kind::Double, _, Values::Double(_)) => Read::Double,
            (Kind::Bytes | Kind::Fixed(_), Some(Logical::Decimal { scale }), Values::Decimal { .. }) => {
                Read::Decimal { size: fixed_size(&of_type.kind), scale }
            }
            (Kind::String | Kind::Bytes, _, Values::Varchar(_) | Values::Varbinary(_) | Values::Json(_)) => Read::Bytes,
            (Kind::String, _, Values::Date(_) | Values::Timestamp { .. } | Values::Decimal { .. }) => Read::Text,
            (Kind::Fixed(_), Some(Logical::Uuid), Values::Varchar(_)) => Read::Uuid,
            (Kind::Fixed(size), _, Values::Varbinary(_)) => Read::Fixed(*size),
            (Kind::Long, Some(Logical::TimestampMillis), Values::Timestamp { .. }) => {
                Read::Epoch(EpochUnit::Milliseconds)
            }
            (Kind::Long, Some(Logical::TimestampMicros), Values::Timestamp { .. }) => {
                Read::Epoch(EpochUnit::Microseconds)
            }
            (Kind::Long, Some(Logical::TimestampNanos), Values::Timestamp { .. }) => {
                Read::Epoch(EpochUnit::Nanoseconds)
            }
            (Kind::Int | Kind::Long, None | Some(Logical::Other), Values::Timestamp { unit: Some(unit), .. }) => {
                Read::Epoch(*unit)
            }
            _ => Read::Mismatch(self.schema.describe(id)),
        }
    }
}

fn fixed_size(kind: &Kind) -> Option<usize> {
    match kind {
        Kind::Fixed(size) => Some(*size),
        _ => None,
    }
}
