//! Random schemas, values and the many ways to write them.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// A value of any column.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::decode) enum Value {
    Null,
    Boolean(bool),
    Integer(i64),
    Real(f32),
    Double(f64),
    Decimal(i128),
    Text(String),
    Bytes(Vec<u8>),
    Date(i32),
    Timestamp(i64),
    Struct(Vec<Self>),
    List(Vec<Self>),
    Map(Vec<(Self, Self)>),
}

/// The type of one column in SQL; no more than `depth` levels below it.
pub(in crate::decode) fn sql_type(rng: &mut StdRng, depth: usize) -> String {
    let scalars = if depth == 0 { 10 } else { 13 };
    match rng.random_range(0..scalars) {
        0 => "BOOLEAN".into(),
        1 => "INT".into(),
        2 => "BIGINT".into(),
        3 => "REAL".into(),
        4 => "DOUBLE".into(),
        5 => {
            let precision = rng.random_range(1..=38);
            format!("DECIMAL({precision}, {})", rng.random_range(0..=precision))
        }
        6 => "VARCHAR".into(),
        7 => "VARBINARY".into(),
        8 => "DATE".into(),
        9 => "TIMESTAMP".into(),
        10 => {
            let fields: Vec<String> = (0..rng.random_range(1..4))
                .map(|i| format!("\"f {i}\" {}{}", sql_type(rng, depth - 1), not_null(rng)))
                .collect();
            format!("STRUCT<{}>", fields.join(", "))
        }
        11 => format!("LIST<{}{}>", sql_type(rng, depth - 1), not_null(rng)),
        _ => {
            let keys = ["VARCHAR", "BIGINT", "DATE", "BOOLEAN", "DECIMAL(5, 2)", "TIMESTAMP", "INT", "VARBINARY"];
            let key = keys[rng.random_range(0..keys.len())];
            format!("MAP<{key}, {}{}>", sql_type(rng, depth - 1), not_null(rng))
        }
    }
}

fn not_null(rng: &mut StdRng) -> &'static str {
    if rng.random_bool(0.3) { " NOT NULL" } else { "" }
}

/// Columns `c0`, `c1`, …; the first one is `at TIMESTAMP`.
pub(in crate::decode) fn ddl(rng: &mut StdRng, depth: usize) -> String {
    let mut columns = vec!["at TIMESTAMP".to_owned()];
    for i in 0..rng.random_range(1..7) {
        columns.push(format!("c{i} {}{}", sql_type(rng, depth), not_null(rng)));
    }
    columns.join(", ")
}

pub(in crate::decode) fn value(rng: &mut StdRng, field: &Field) -> Value {
    if field.is_nullable() && rng.random_bool(0.2) {
        return Value::Null;
    }
    match field.data_type() {
        DataType::Boolean => Value::Boolean(rng.random()),
        DataType::Int32 => {
            Value::Integer(if rng.random() { rng.random_range(-9..9) } else { i64::from(rng.random::<i32>()) })
        }
        DataType::Int64 => Value::Integer(if rng.random() { rng.random_range(-9..9) } else { rng.random() }),
        DataType::Float32 => Value::Real(finite(rng, || f32::from_bits(0), |rng| f32::from_bits(rng.random()))),
        DataType::Float64 => Value::Double(finite(rng, || f64::from_bits(0), |rng| f64::from_bits(rng.random()))),
        DataType::Decimal128(precision, _) => {
            let limit = 10_i128.pow(u32::from(rng.random_range(1..=*precision)));
            Value::Decimal(rng.random_range(1 - limit..limit))
        }
        DataType::Utf8 => Value::Text(text(rng)),
        DataType::Binary => Value::Bytes((0..rng.random_range(0..20)).map(|_| rng.random()).collect()),
        DataType::Date32 => Value::Date(rng.random_range(-719_528..2_932_897)),
        DataType::Timestamp(_, _) => {
            let second = rng.random_range(-62_167_219_200_i64..253_402_300_800) * 1_000_000;
            Value::Timestamp(second + if rng.random() { 0 } else { rng.random_range(0..1_000_000) })
        }
        DataType::Struct(fields) => Value::Struct(fields.iter().map(|f| value(rng, f)).collect()),
        DataType::List(item) => Value::List((0..rng.random_range(0..5)).map(|_| value(rng, item)).collect()),
        DataType::Map(entries, _) => {
            let DataType::Struct(kv) = entries.data_type() else { panic!("{entries}") };
            let mut pairs: Vec<(Value, Value)> = vec![];
            for _ in 0..rng.random_range(0..14) {
                let key = value(rng, &kv[0]);
                if !pairs.iter().any(|(k, _)| *k == key) {
                    pairs.push((key, value(rng, &kv[1])));
                }
            }
            Value::Map(pairs)
        }
        other => panic!("{other}"),
    }
}

fn finite<T: Into<f64> + Copy>(rng: &mut StdRng, zero: impl Fn() -> T, any: impl Fn(&mut StdRng) -> T) -> T {
    (0..10).map(|_| any(rng)).find(|f| Into::<f64>::into(*f).is_finite()).unwrap_or_else(zero)
}

fn text(rng: &mut StdRng) -> String {
    const PIECES: [&str; 16] =
        ["a", "B7", " ", "\"", "\\", "/", "\n", "\r", "\t", "\0", "\u{1f}", "é", "日本", "😀", ",", "twelve bytes"];
    (0..rng.random_range(0..7)).map(|_| PIECES[rng.random_range(0..PIECES.len())]).collect()
}

/// Writes a scalar as a CSV field or a map's key has it.
pub(in crate::decode) fn bare(rng: &mut StdRng, field: &Field, value: &Value) -> String {
    match value {
        Value::Boolean(b) => {
            if rng.random_bool(0.1) {
                b.to_string().to_uppercase()
            } else {
                b.to_string()
            }
        }
        Value::Text(text) => text.clone(),
        Value::Bytes(bytes) => match rng.random() {
            true => BASE64_STANDARD.encode(bytes),
            false => BASE64_STANDARD_NO_PAD.encode(bytes),
        },
        Value::Date(days) => date(*days).to_string(),
        Value::Timestamp(micros) => timestamp(rng, *micros),
        Value::Struct(_) | Value::List(_) | Value::Map(_) => {
            let mut text = String::new();
            write_json(rng, field, value, &mut text);
            text
        }
        _ => number(rng, field, value),
    }
}

fn number(rng: &mut StdRng, field: &Field, value: &Value) -> String {
    match value {
        Value::Integer(n) => match rng.random_range(0..10) {
            0 => format!("{n}.0"),
            1 if *n != 0 => format!("{n}0e-1"),
            2 if n % 100 == 0 => format!("{}E+2", n / 100),
            _ => n.to_string(),
        },
        Value::Real(f) => {
            if rng.random() {
                format!("{f}")
            } else {
                format!("{f:e}")
            }
        }
        Value::Double(f) => {
            if rng.random() {
                format!("{f}")
            } else {
                format!("{f:e}")
            }
        }
        Value::Decimal(n) => {
            let DataType::Decimal128(_, scale) = field.data_type() else { panic!("{field}") };
            let scale = usize::try_from(*scale).unwrap();
            if rng.random_bool(0.2) {
                return format!("{n}e-{scale}");
            }
            let digits = format!("{:0>1$}", n.unsigned_abs(), scale + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            let sign = if *n < 0 { "-" } else { "" };
            if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
        }
        other => panic!("{other:?}"),
    }
}

fn date(days: i32) -> chrono::NaiveDate {
    chrono::NaiveDate::from_num_days_from_ce_opt(days + 719_163).unwrap()
}

/// One of the ways to write a timestamp; digits past the sixth must change nothing.
fn timestamp(rng: &mut StdRng, micros: i64) -> String {
    let offset_minutes = if rng.random() { 0 } else { rng.random_range(-14 * 60..=14 * 60) };
    let local = chrono::DateTime::from_timestamp_micros(micros + offset_minutes * 60_000_000).unwrap().naive_utc();
    // Near the ends of the years that can be written, local time may be in a year that cannot.
    let (local, offset_minutes) = match (0..=9999).contains(&chrono::Datelike::year(&local)) {
        true => (local, offset_minutes),
        false => (chrono::DateTime::from_timestamp_micros(micros).unwrap().naive_utc(), 0),
    };
    let between = ["T", "t", " "][rng.random_range(0..3)];
    let mut text = format!("{}{between}{}", local.date(), local.format("%H:%M:%S"));
    let fraction = micros.rem_euclid(1_000_000);
    if fraction != 0 || rng.random() {
        text.push_str(&format!(".{fraction:06}"));
        for _ in 0..rng.random_range(0..8) {
            text.push(char::from(rng.random_range(b'0'..=b'9')));
        }
    }
    let (sign, hours, minutes) =
        (if offset_minutes < 0 { '-' } else { '+' }, offset_minutes.abs() / 60, offset_minutes.abs() % 60);
    text.push_str(&match rng.random_range(0..4) {
        0 if offset_minutes == 0 => String::new(),
        1 if offset_minutes == 0 => "Z".into(),
        2 => format!("{sign}{hours:02}{minutes:02}"),
        _ => format!("{sign}{hours:02}:{minutes:02}"),
    });
    text
}

pub(in crate::decode) fn write_json(rng: &mut StdRng, field: &Field, value: &Value, out: &mut String) {
    match (value, field.data_type()) {
        (Value::Null, _) => out.push_str("null"),
        (Value::Boolean(b), _) => out.push_str(&b.to_string()),
        (Value::Struct(values), DataType::Struct(fields)) => object(rng, fields, values, out),
        (Value::List(values), DataType::List(item)) => {
            out.push('[');
            for (i, value) in values.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                write_json(rng, item, value, out);
            }
            out.push(']');
        }
        (Value::Map(pairs), DataType::Map(entries, _)) => {
            let DataType::Struct(kv) = entries.data_type() else { panic!("{entries}") };
            out.push('{');
            for (i, (key, value)) in pairs.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                let key = bare(rng, &kv[0], key);
                string(rng, &key, out);
                out.push(':');
                write_json(rng, &kv[1], value, out);
            }
            out.push('}');
        }
        (Value::Integer(_) | Value::Real(_) | Value::Double(_) | Value::Decimal(_), _) => {
            let number = number(rng, field, value);
            if rng.random_bool(0.2) { string(rng, &number, out) } else { out.push_str(&number) }
        }
        _ => {
            let text = bare(rng, field, value);
            string(rng, &text, out);
        }
    }
}

/// An object in any order of fields, with fields that nobody knows, and some that stand twice.
pub(in crate::decode) fn object(
    rng: &mut StdRng,
    fields: &arrow::datatypes::Fields,
    values: &[Value],
    out: &mut String,
) {
    let mut members: Vec<String> = vec![];
    let mut order: Vec<usize> = (0..fields.len()).collect();
    if rng.random_bool(0.3) {
        order.shuffle(rng);
    }
    for i in order {
        if values[i] == Value::Null && rng.random() {
            continue;
        }
        let mut member = |value: &Value| {
            let mut text = String::new();
            string(rng, fields[i].name(), &mut text);
            text.push_str(if rng.random_bool(0.1) { " : " } else { ":" });
            write_json(rng, &fields[i], value, &mut text);
            text
        };
        let text = member(&values[i]);
        if rng.random_bool(0.05) {
            let earlier = value(rng, &fields[i]);
            let mut text = format!("\"{}\":", fields[i].name());
            write_json(rng, &fields[i], &earlier, &mut text);
            members.push(text);
        }
        members.push(text);
        if rng.random_bool(0.1) {
            let mut text = String::from("\"unknown\":");
            json(rng, 2, &mut text);
            members.push(text);
        }
    }
    let comma = if rng.random_bool(0.1) { " ,\n" } else { "," };
    out.push('{');
    out.push_str(&members.join(comma));
    out.push('}');
}

/// A JSON string; some characters as escapes.
fn string(rng: &mut StdRng, text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' if rng.random() => out.push_str("\\n"),
            '/' if rng.random() => out.push_str("\\/"),
            c if c < ' ' || rng.random_bool(0.05) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Any JSON value.
pub(in crate::decode) fn json(rng: &mut StdRng, depth: usize, out: &mut String) {
    match rng.random_range(0..if depth == 0 { 5 } else { 7 }) {
        0 => out.push_str("null"),
        1 => out.push_str("true"),
        2 => out.push_str(&rng.random::<i64>().to_string()),
        3 => out.push_str(&format!("{:e}", rng.random::<f64>())),
        4 => {
            let text = text(rng);
            string(rng, &text, out);
        }
        5 => {
            out.push('[');
            for i in 0..rng.random_range(0..4) {
                out.push_str(if i > 0 { ", " } else { "" });
                json(rng, depth - 1, out);
            }
            out.push(']');
        }
        _ => {
            out.push('{');
            for i in 0..rng.random_range(0..4) {
                out.push_str(if i > 0 { "," } else { "" });
                let name = text(rng);
                string(rng, &name, out);
                out.push(':');
                json(rng, depth - 1, out);
            }
            out.push('}');
        }
    }
}

/// The value in row `row` of `array`.
pub(in crate::decode) fn read(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    let all = |array: &dyn Array| (0..array.len()).map(|i| read(array, i)).collect::<Vec<_>>();
    match array.data_type() {
        DataType::Boolean => Value::Boolean(array.as_boolean().value(row)),
        DataType::Int32 => Value::Integer(array.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => Value::Integer(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => Value::Real(array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => Value::Double(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(_, _) => Value::Decimal(array.as_primitive::<Decimal128Type>().value(row)),
        DataType::Utf8 => Value::Text(array.as_string::<i32>().value(row).to_owned()),
        DataType::Binary => Value::Bytes(array.as_binary::<i32>().value(row).to_vec()),
        DataType::Date32 => Value::Date(array.as_primitive::<Date32Type>().value(row)),
        DataType::Timestamp(_, _) => Value::Timestamp(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        DataType::Struct(_) => {
            Value::Struct(array.as_struct().columns().iter().map(|c| read(c.as_ref(), row)).collect())
        }
        DataType::List(_) => Value::List(all(array.as_list::<i32>().value(row).as_ref())),
        DataType::Map(_, _) => {
            let entries = array.as_map().value(row);
            Value::Map(all(entries.column(0).as_ref()).into_iter().zip(all(entries.column(1).as_ref())).collect())
        }
        other => panic!("{other}"),
    }
}
