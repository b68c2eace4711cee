//! Values from Avro's bytes into columns.

use std::fmt::Write;

use super::cursor::Cursor;
use super::plan::{Field, Read};
use super::schema::{Kind, Schema, TypeId};
use crate::config::EpochUnit;
use crate::decode::column::{Column, Values, to_offset};
use crate::decode::fault::{Fault, Result, quoted};
use crate::decode::time::{epoch_micros, is_date};
use crate::decode::value::Scratch;

/// How deep what no column wants may nest.
const MAX_DEPTH: usize = 256;

/// Reads the values of one record.
pub(super) struct Reader<'a, 'b> {
    pub(super) from: Cursor<'a>,
    pub(super) schema: &'b Schema,
    pub(super) scratch: &'b mut Scratch,
}

impl Reader<'_, '_> {
    /// Appends the next value to `column`, or leaves rubbish behind the rows that were there.
    pub(super) fn append(&mut self, column: &mut Column, read: &Read) -> Result<()> {
        self.from.step()?;
        match read {
            Read::Null => return column.append_missing("null"),
            Read::Union(branches) => {
                let branch = self.from.index("branch of a union", branches.len())?;
                return self.append(column, &branches[branch]);
            }
            Read::Mismatch(got) => {
                return Err(Fault::value(format!(
                    "expected {}, but the writer's schema has {got}",
                    column.type_name()
                )));
            }
            Read::Struct { fields, missing } => self.append_record(column, fields, missing)?,
            Read::List(item) => self.append_array(column, item)?,
            Read::Map(value) => self.append_map(column, value)?,
            Read::Text => {
                let text = utf8(column, self.from.bytes()?)?;
                return column.append_bare(text, self.scratch);
            }
            Read::Bytes if matches!(column.values, Values::Json(_)) => {
                let text = utf8(column, self.from.bytes()?)?;
                return column.append_bare(text, self.scratch);
            }
            scalar => self.push(column, scalar)?,
        }
        column.nulls.append_non_null();
        Ok(())
    }

    fn append_record(&mut self, column: &mut Column, fields: &[Field], missing: &[usize]) -> Result<()> {
        let Values::Struct(members) = &mut column.values else { unreachable!("planned for a struct") };
        for field in fields {
            match field {
                Field::Skip(id) => self.skip(*id, 0)?,
                Field::Into { column, read } => self
                    .append(&mut members.columns[*column], read)
                    .map_err(|fault| fault.within(members.fields[*column].name()))?,
            }
        }
        for column in missing {
            members.columns[*column]
                .append_missing("nothing: the writer's schema has no such field")
                .map_err(|fault| fault.within(members.fields[*column].name()))?;
        }
        Ok(())
    }

    fn append_array(&mut self, column: &mut Column, item: &Read) -> Result<()> {
        let Values::List { offsets, items, .. } = &mut column.values else { unreachable!("planned for a list") };
        loop {
            let (count, _) = self.from.block()?;
            if count == 0 {
                break;
            }
            for _ in 0..count {
                self.append(items, item).map_err(|fault| fault.within("element"))?;
            }
        }
        offsets.push(to_offset(items.len()));
        Ok(())
    }

    fn append_map(&mut self, column: &mut Column, value: &Read) -> Result<()> {
        let Values::Map { offsets, keys, values, .. } = &mut column.values else { unreachable!("planned for a map") };
        let start = keys.len();
        loop {
            let (count, _) = self.from.block()?;
            if count == 0 {
                break;
            }
            for _ in 0..count {
                let key = utf8(keys, self.from.bytes()?).and_then(|key| keys.append_bare(key, self.scratch));
                key.map_err(|fault| fault.within("key"))?;
                self.append(values, value).map_err(|fault| fault.within("value"))?;
            }
        }
        offsets.push(to_offset(keys.len()));
        if keys.has_duplicate(start) {
            return Err(Fault::value(format!("expected {}, got a key twice", column.type_name())));
        }
        Ok(())
    }

    /// Pushes a value that is not NULL; the plan has seen to it that it fits the column's type.
    fn push(&mut self, column: &mut Column, read: &Read) -> Result<()> {
        let from = &mut self.from;
        match (read, &mut column.values) {
            (Read::Boolean, Values::Boolean(values)) => values.append(from.boolean()?),
            (Read::Int, Values::Int(values)) => values.push(from.int()?),
            (Read::Int, Values::BigInt(values)) => values.push(from.int()?.into()),
            #[allow(clippy::cast_precision_loss, reason = "the nearest one, as Avro promotes")]
            (Read::Int, Values::Real(values)) => values.push(from.int()? as f32),
            (Read::Int, Values::Double(values)) => values.push(from.int()?.into()),
            (Read::Int, Values::Date(values)) => {
                let days = from.int()?;
                if !is_date(days) {
                    return Err(out_of_range(column, &format!("day {days}")));
                }
                values.push(days);
            }
            (Read::Long, Values::BigInt(values)) => values.push(from.long()?),
            #[allow(clippy::cast_precision_loss, reason = "the nearest one, as Avro promotes")]
            (Read::Long, Values::Real(values)) => values.push(from.long()? as f32),
            #[allow(clippy::cast_precision_loss, reason = "the nearest one, as Avro promotes")]
            (Read::Long, Values::Double(values)) => values.push(from.long()? as f64),
            (Read::Float, Values::Real(values)) => values.push(from.float()?),
            (Read::Float, Values::Double(values)) => values.push(from.float()?.into()),
            (Read::Double, Values::Double(values)) => values.push(from.double()?),
            (Read::Bytes, Values::Varbinary(blobs)) => blobs.push(from.bytes()?),
            (Read::Fixed(size), Values::Varbinary(blobs)) => blobs.push(from.take(*size)?),
            (Read::Bytes, Values::Varchar(_)) => {
                let bytes = from.bytes()?;
                utf8(column, bytes)?;
                let Values::Varchar(blobs) = &mut column.values else { unreachable!("matched above") };
                blobs.push(bytes);
            }
            (Read::Uuid, Values::Varchar(blobs)) => {
                from.grow(36)?;
                blobs.push(uuid(from.take(16)?).as_bytes());
            }
            (Read::Enum(symbols), Values::Varchar(blobs)) => {
                let symbol = symbols[from.index("symbol of an enum", symbols.len())?].as_bytes();
                from.grow(symbol.len())?;
                blobs.push(symbol);
            }
            (Read::Epoch(unit), Values::Timestamp { values, .. }) => {
                let number = from.long()?;
                match epoch_micros(number, *unit) {
                    Ok(micros) => values.push(micros),
                    Err(_) => return Err(out_of_range(column, &format!("{number} {}", word(*unit)))),
                }
            }
            (Read::Decimal { size, scale: written }, Values::Decimal { values, precision, scale }) => {
                let bytes = match size {
                    Some(size) => from.take(*size)?,
                    None => from.bytes()?,
                };
                let scale = u32::try_from(*scale).expect("checked when the decoder was made");
                match decimal(bytes, *written, scale, *precision) {
                    Ok(value) => values.push(value),
                    Err(reason) => {
                        return Err(Fault::value(format!("expected {}: {reason}", column.type_name())));
                    }
                }
            }
            _ => unreachable!("the plan pairs no other types"),
        }
        Ok(())
    }

    /// Passes over a value that no column wants.
    fn skip(&mut self, id: TypeId, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Fault::record(format!("the Avro record nests deeper than {MAX_DEPTH}")));
        }
        self.from.step()?;
        match &self.schema.get(id).kind {
            Kind::Null => {}
            Kind::Boolean => {
                self.from.boolean()?;
            }
            Kind::Int => {
                self.from.int()?;
            }
            Kind::Long => {
                self.from.long()?;
            }
            Kind::Float => {
                self.from.take(4)?;
            }
            Kind::Double => {
                self.from.take(8)?;
            }
            Kind::Bytes | Kind::String => {
                self.from.bytes()?;
            }
            Kind::Fixed(size) => {
                self.from.take(*size)?;
            }
            Kind::Enum(symbols) => {
                self.from.index("symbol of an enum", symbols.len())?;
            }
            Kind::Union(branches) => {
                let branch = self.from.index("branch of a union", branches.len())?;
                self.skip(branches[branch], depth + 1)?;
            }
            Kind::Record(fields) => {
                for (_, field) in fields {
                    self.skip(*field, depth + 1)?;
                }
            }
            Kind::Array(item) => self.skip_blocks(false, *item, depth)?,
            Kind::Map(value) => self.skip_blocks(true, *value, depth)?,
            Kind::Unfinished => unreachable!("finished when the schema has been read"),
        }
        Ok(())
    }

    /// `keyed`: each item has a key before it.
    fn skip_blocks(&mut self, keyed: bool, item: TypeId, depth: usize) -> Result<()> {
        loop {
            match self.from.block()? {
                (0, _) => return Ok(()),
                (_, Some(size)) => {
                    self.from.take(size)?;
                }
                (count, None) => {
                    for _ in 0..count {
                        if keyed {
                            self.from.bytes()?;
                        }
                        self.skip(item, depth + 1)?;
                    }
                }
            }
        }
    }
}

fn utf8<'a>(column: &Column, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| {
        let shown = quoted(&String::from_utf8_lossy(bytes));
        Fault::value(format!(
            "expected {}, got {shown}: invalid UTF-8 at byte {} of it",
            column.type_name(),
            e.valid_up_to()
        ))
    })
}

#[cold]
fn out_of_range(column: &Column, got: &str) -> Box<Fault> {
    Fault::value(format!("expected {}, got {got}: out of range, years 0000 to 9999 can be kept", column.type_name()))
}

fn word(unit: EpochUnit) -> &'static str {
    match unit {
        EpochUnit::Seconds => "seconds",
        EpochUnit::Milliseconds => "milliseconds",
        EpochUnit::Microseconds => "microseconds",
        EpochUnit::Nanoseconds => "nanoseconds",
    }
}

/// As RFC 9562 writes it.
fn uuid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
    }
    text
}

/// The unscaled value of `bytes`, a two's complement with `written` digits behind the point, with `scale` of them.
fn decimal(bytes: &[u8], written: u32, scale: u32, precision: u8) -> Result<i128, &'static str> {
    const TOO_LARGE: &str = "the number is out of range";
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    let skipped = bytes.len().saturating_sub(16);
    let (sign, digits) = bytes.split_at(skipped);
    if digits.is_empty() {
        return Err("the number has no bytes");
    }
    if sign.iter().any(|byte| *byte != fill) || (skipped > 0 && (digits[0] & 0x80 != 0) != negative) {
        return Err(TOO_LARGE);
    }
    let mut all = [fill; 16];
    all[16 - digits.len()..].copy_from_slice(digits);
    let number = i128::from_be_bytes(all);
    let number = if written <= scale {
        10_i128.checked_pow(scale - written).and_then(|factor| number.checked_mul(factor)).ok_or(TOO_LARGE)?
    } else {
        // A power that does not fit is greater than any number, so only 0 is a multiple of it.
        let factor = 10_i128.checked_pow(written - scale);
        let whole = factor.map_or(number == 0, |factor| number % factor == 0);
        if !whole {
            return Err("the number has too many digits behind the point, it would have to be rounded");
        }
        factor.map_or(0, |factor| number / factor)
    };
    if number.unsigned_abs() >= 10_u128.pow(precision.into()) { Err(TOO_LARGE) } else { Ok(number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_rescaled_exactly_or_not_at_all() {
        assert_eq!(decimal(&[0x04, 0xd2], 2, 2, 6), Ok(1234));
        assert_eq!(decimal(&[0xfb, 0x2e], 2, 2, 6), Ok(-1234));
        assert_eq!(decimal(&[0xff; 40], 2, 2, 6), Ok(-1));
        assert_eq!(decimal(&[0x04, 0xd2], 2, 4, 6), Ok(123_400));
        assert_eq!(
            decimal(&[0x04, 0xd2], 3, 2, 6),
            Err("the number has too many digits behind the point, it would have to be rounded")
        );
        assert_eq!(decimal(&[0x04, 0xce], 1, 0, 6), Ok(123));
        assert_eq!(decimal(&[0], 4_000_000, 0, 6), Ok(0));
        let too_large = Err("the number is out of range");
        assert_eq!(decimal(&[0x04, 0xd2], 0, 4, 6), too_large);
        assert_eq!(decimal(&[0x7f; 17], 0, 0, 38), too_large);
        let mut negative_in_sixteen = vec![0];
        negative_in_sixteen.extend([0xff; 16]);
        assert_eq!(decimal(&negative_in_sixteen, 0, 0, 38), too_large);
        assert_eq!(decimal(&[1], 0, 4_000_000, 38), too_large);
        assert_eq!(decimal(&[], 0, 0, 38), Err("the number has no bytes"));
    }

    #[test]
    fn a_uuid_is_written_in_five_groups() {
        let bytes: Vec<u8> = (0..16).map(|i| i * 17).collect();
        assert_eq!(uuid(&bytes), "00112233-4455-6677-8899-aabbccddeeff");
    }
}
