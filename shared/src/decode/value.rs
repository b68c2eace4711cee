//! Values from their text into columns: the table of `decode` in code.

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::column::{Column, Values, to_offset};
use super::fault::{Fault, Result, quoted, shown};
use super::number::{Digits, NumberFault, is_number, parse_scaled, parse_short};
use super::scan::Scanner;
use super::time::{TimeFault, parse_date, parse_epoch, parse_timestamp};

/// The standard alphabet; `=` at the end may be left out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Memory that one decoder uses again and again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    text: String,
    /// What the scanner has still to close.
    pub(super) stack: Vec<u8>,
}

/// How a text stood in its record, which decides what it may mean and how messages show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A JSON number.
    Number,
    /// A JSON string.
    Str,
    /// A CSV field, or the key of a map: without a type of its own.
    Bare,
}

/// Why a text does not fit; empty when the type alone says it.
type Reason = &'static str;

impl Column {
    /// Appends the JSON value that is next in `scanner`.
    pub(super) fn append_json(&mut self, scanner: &mut Scanner<'_>, scratch: &mut Scratch) -> Result<()> {
        let next = scanner.peek();
        if next == Some(b'n') {
            scanner.literal("null")?;
            return self.append_missing("null");
        }
        if let Values::Json(blobs) = &mut self.values {
            let start = scanner.start();
            scanner.skip(&mut scratch.stack)?;
            blobs.push(scanner.since(start).as_bytes());
            self.nulls.append_non_null();
            return Ok(());
        }
        match (next, &mut self.values) {
            (Some(b'"'), values) => {
                let string = scanner.string()?;
                let Ok(text) = string.unescape(&mut scratch.text) else {
                    return Err(self.mismatch(Source::Str, string.raw, "half of a surrogate pair is no character"));
                };
                if let Values::Varchar(blobs) = values {
                    blobs.push(text.as_bytes());
                    self.nulls.append_non_null();
                    return Ok(());
                }
                self.append_scalar(Source::Str, text)
            }
            (Some(b'-' | b'0'..=b'9'), _) => {
                let number = scanner.number()?;
                self.append_scalar(Source::Number, number)
            }
            (Some(b'{'), Values::Struct(_)) => self.append_object(scanner, scratch),
            (Some(b'{'), Values::Map { .. }) => self.append_map(scanner, scratch),
            (Some(b'['), Values::List { .. }) => self.append_list(scanner, scratch),
            (Some(b't'), Values::Boolean(values)) => {
                scanner.literal("true")?;
                values.append(true);
                self.nulls.append_non_null();
                Ok(())
            }
            (Some(b'f'), Values::Boolean(values)) => {
                scanner.literal("false")?;
                values.append(false);
                self.nulls.append_non_null();
                Ok(())
            }
            (next, _) => {
                // What isn't JSON is told as such, whatever the column's type.
                scanner.skip(&mut scratch.stack)?;
                let got = match next {
                    Some(b'{') => "an object",
                    Some(b'[') => "an array",
                    Some(b't') => "true",
                    _ => "false",
                };
                Err(Fault::value(format!("expected {}, got {got}", self.type_name())))
            }
        }
    }

    /// Appends what a CSV field or the key of a map stands for.
    pub(super) fn append_bare(&mut self, text: &str, scratch: &mut Scratch) -> Result<()> {
        match &mut self.values {
            Values::Varchar(blobs) => {
                blobs.push(text.as_bytes());
                self.nulls.append_non_null();
                Ok(())
            }
            Values::Struct(_) | Values::List { .. } | Values::Map { .. } | Values::Json(_) => {
                let mut scanner = Scanner::new(text);
                self.append_json(&mut scanner, scratch)?;
                scanner.end()
            }
            _ => self.append_scalar(Source::Bare, text),
        }
    }

    /// Appends NULL if the column has it; `got` says what stood there.
    #[inline]
    pub(super) fn append_missing(&mut self, got: &str) -> Result<()> {
        if !self.nullable {
            return Err(Fault::value(format!("expected {} NOT NULL, got {got}", self.type_name())));
        }
        self.append_null();
        Ok(())
    }

    fn append_object(&mut self, scanner: &mut Scanner<'_>, scratch: &mut Scratch) -> Result<()> {
        let row = self.len();
        let Values::Struct(members) = &mut self.values else { unreachable!("asked by the caller") };
        let mut set = 0;
        let mut more = scanner.take(b'{') && !scanner.take(b'}');
        while more {
            let key = scanner.key()?;
            // A name that is no text cannot be a declared one.
            let found = key.unescape(&mut scratch.text).ok().and_then(|name| members.find(name));
            match found {
                None => scanner.skip(&mut scratch.stack)?,
                Some(i) => {
                    let column = &mut members.columns[i];
                    if column.len() > row {
                        // A field twice in one object: the last one counts.
                        column.truncate(row);
                        set -= 1;
                    }
                    column.append_json(scanner, scratch).map_err(|f| f.within(members.fields[i].name()))?;
                    set += 1;
                }
            }
            more = scanner.more(b'}')?;
        }
        if set < members.columns.len() {
            for (column, field) in members.columns.iter_mut().zip(&members.fields) {
                if column.len() == row {
                    column.append_missing("nothing: the field is missing").map_err(|f| f.within(field.name()))?;
                }
            }
        }
        self.nulls.append_non_null();
        Ok(())
    }

    fn append_list(&mut self, scanner: &mut Scanner<'_>, scratch: &mut Scratch) -> Result<()> {
        let Values::List { offsets, items, .. } = &mut self.values else { unreachable!("asked by the caller") };
        let mut more = scanner.take(b'[') && !scanner.take(b']');
        while more {
            items.append_json(scanner, scratch).map_err(|f| f.within("element"))?;
            more = scanner.more(b']')?;
        }
        offsets.push(to_offset(items.len()));
        self.nulls.append_non_null();
        Ok(())
    }

    fn append_map(&mut self, scanner: &mut Scanner<'_>, scratch: &mut Scratch) -> Result<()> {
        let Values::Map { offsets, keys, values, .. } = &mut self.values else { unreachable!("asked by the caller") };
        let start = keys.len();
        let mut more = scanner.take(b'{') && !scanner.take(b'}');
        while more {
            let raw = scanner.key()?;
            let mut text = std::mem::take(&mut scratch.text);
            let key = match raw.unescape(&mut text) {
                Ok(key) => keys.append_bare(key, scratch),
                Err(_) => Err(keys.mismatch(Source::Bare, raw.raw, "half of a surrogate pair is no character")),
            };
            scratch.text = text;
            key.map_err(|f| f.within("key"))?;
            values.append_json(scanner, scratch).map_err(|f| f.within("value"))?;
            more = scanner.more(b'}')?;
        }
        if keys.has_duplicate(start) {
            return Err(Fault::value(format!("expected {}, got a key twice", self.type_name())));
        }
        offsets.push(to_offset(keys.len()));
        self.nulls.append_non_null();
        Ok(())
    }

    /// Appends what `text` says, if the type can come from `source`.
    #[inline]
    fn append_scalar(&mut self, source: Source, text: &str) -> Result<()> {
        match self.push_scalar(source, text) {
            Ok(()) => {
                self.nulls.append_non_null();
                Ok(())
            }
            Err(reason) => Err(self.mismatch(source, text, reason)),
        }
    }

    #[inline]
    fn push_scalar(&mut self, source: Source, text: &str) -> Result<(), Reason> {
        match &mut self.values {
            Values::Int(values) => values.push(i32::try_from(integer(text)?).map_err(|_| OUT_OF_RANGE)?),
            Values::BigInt(values) => values.push(integer(text)?),
            Values::Real(values) => values.push(real(text)?),
            Values::Double(values) => values.push(double(text)?),
            Values::Decimal { values, precision, scale } => values.push(decimal(text, *precision, *scale)?),
            Values::Timestamp { values, unit: Some(unit) } if source == Source::Number || is_number(text) => {
                values.push(parse_epoch(text, *unit).map_err(time_reason)?);
            }
            Values::Timestamp { values, unit } if source != Source::Number => {
                let timestamp = parse_timestamp(text);
                if unit.is_none() && timestamp.is_err() && is_number(text) {
                    return Err(NO_UNIT);
                }
                values.push(timestamp.map_err(time_reason)?);
            }
            Values::Timestamp { .. } => return Err(NO_UNIT),
            Values::Date(values) if source != Source::Number => {
                values.push(parse_date(text).ok_or("write YYYY-MM-DD")?)
            }
            Values::Varbinary(blobs) if source != Source::Number => {
                BASE64.decode_vec(text, &mut blobs.data).map_err(|_| "not base64")?;
                blobs.close();
            }
            Values::Boolean(values) if source == Source::Bare => {
                let value = text.eq_ignore_ascii_case("true");
                if !value && !text.eq_ignore_ascii_case("false") {
                    return Err("");
                }
                values.append(value);
            }
            Values::Boolean(_)
            | Values::Date(_)
            | Values::Varbinary(_)
            | Values::Varchar(_)
            | Values::Json(_)
            | Values::Struct(_)
            | Values::List { .. }
            | Values::Map { .. } => return Err(""),
        }
        Ok(())
    }

    #[cold]
    fn mismatch(&self, source: Source, text: &str, reason: Reason) -> Box<Fault> {
        let got = match source {
            Source::Number => format!("number {}", shown(text)),
            Source::Str => format!("string {}", quoted(text)),
            Source::Bare => quoted(text),
        };
        let colon = if reason.is_empty() { "" } else { ": " };
        Fault::value(format!("expected {}, got {got}{colon}{reason}", self.type_name()))
    }
}

const OUT_OF_RANGE: Reason = "out of range";
const NO_UNIT: Reason = "a number needs its unit, declare it in the stream's epoch_units";

#[inline]
fn integer(text: &str) -> Result<i64, Reason> {
    if let Some(number) = parse_short(text) {
        return Ok(number);
    }
    let number = parse_scaled(text, 0, Digits::MustFit).map_err(|fault| match fault {
        NumberFault::NotANumber => "",
        NumberFault::Inexact => "not an integer",
        NumberFault::TooLarge => OUT_OF_RANGE,
    })?;
    i64::try_from(number).map_err(|_| OUT_OF_RANGE)
}

/// The nearest one; `parse` alone would take `inf` and `nan`, too.
fn double(text: &str) -> Result<f64, Reason> {
    if !is_number(text) {
        return Err("");
    }
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or(OUT_OF_RANGE)
}

fn real(text: &str) -> Result<f32, Reason> {
    if !is_number(text) {
        return Err("");
    }
    text.parse().ok().filter(|number: &f32| number.is_finite()).ok_or(OUT_OF_RANGE)
}

fn decimal(text: &str, precision: u8, scale: i8) -> Result<i128, Reason> {
    let number = parse_scaled(text, scale.into(), Digits::MustFit).map_err(|fault| match fault {
        NumberFault::NotANumber => "",
        NumberFault::Inexact => "too many digits behind the point, it would have to be rounded",
        NumberFault::TooLarge => OUT_OF_RANGE,
    })?;
    if number.unsigned_abs() >= 10_u128.pow(precision.into()) { Err(OUT_OF_RANGE) } else { Ok(number) }
}

fn time_reason(fault: TimeFault) -> Reason {
    match fault {
        TimeFault::NotATime => "write it as RFC 3339, like 2024-10-06T12:00:00Z",
        TimeFault::OutOfRange => "out of range, years 0000 to 9999 can be kept",
    }
}
