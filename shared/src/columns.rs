//! The DDL of a stream's columns (`columns = """…"""`), and SQL names of types for messages.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use crate::record::timestamp_type;

/// The closed list of types, as messages show it.
pub const TYPES: &str = "BOOLEAN, INT, BIGINT, REAL, DOUBLE, DECIMAL(p, s), VARCHAR, VARBINARY, DATE, TIMESTAMP, JSON, \
                         STRUCT<…>, LIST<…>, MAP<…, …>";

/// Names of the closed list, to find the nearest.
const TYPE_NAMES: [&str; 14] = [
    "BOOLEAN",
    "INT",
    "BIGINT",
    "REAL",
    "DOUBLE",
    "DECIMAL",
    "VARCHAR",
    "VARBINARY",
    "DATE",
    "TIMESTAMP",
    "JSON",
    "STRUCT",
    "LIST",
    "MAP",
];

/// What other systems call the types of the closed list.
const SYNONYMS: [(&str, &str); 34] = [
    ("BOOL", "BOOLEAN"),
    ("INTEGER", "INT"),
    ("INT4", "INT"),
    ("INT32", "INT"),
    ("SMALLINT", "INT"),
    ("TINYINT", "INT"),
    ("LONG", "BIGINT"),
    ("INT8", "BIGINT"),
    ("INT64", "BIGINT"),
    ("FLOAT", "REAL or DOUBLE"),
    ("FLOAT4", "REAL"),
    ("FLOAT32", "REAL"),
    ("FLOAT8", "DOUBLE"),
    ("FLOAT64", "DOUBLE"),
    ("NUMERIC", "DECIMAL"),
    ("NUMBER", "DECIMAL"),
    ("STRING", "VARCHAR"),
    ("TEXT", "VARCHAR"),
    ("CHAR", "VARCHAR"),
    ("UTF8", "VARCHAR"),
    ("UUID", "VARCHAR"),
    ("BYTES", "VARBINARY"),
    ("BYTEA", "VARBINARY"),
    ("BLOB", "VARBINARY"),
    ("BINARY", "VARBINARY"),
    ("DATETIME", "TIMESTAMP"),
    ("TIMESTAMPTZ", "TIMESTAMP"),
    ("TIME", "TIMESTAMP"),
    ("JSONB", "JSON"),
    ("VARIANT", "JSON"),
    ("OBJECT", "STRUCT"),
    ("ROW", "STRUCT"),
    ("RECORD", "STRUCT"),
    ("ARRAY", "LIST"),
];

/// How deep types may nest.
const MAX_DEPTH: usize = 32;

/// The declared columns of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// In the DDL's order, in the Arrow types of [`crate::record::event_schema`].
    pub schema: SchemaRef,
    /// [Paths](column_path) of the columns and fields whose type is `JSON` (Arrow's `Utf8`).
    pub json: Vec<String>,
}

/// The DDL is wrong at this place, both from 1, within the DDL text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}, line {line}, column {column} of the columns")]
pub struct ColumnsError {
    pub message: String,
    pub line: usize,
    pub column: usize,
}

/// Reads `name TYPE [NOT NULL], …`.
///
/// Types are those of [`TYPES`], in any case. Names keep their case; those with other characters than letters, digits
/// and `_` stand in double quotes or backquotes. `NOT NULL` may also follow a field of a STRUCT, the item of a LIST
/// and the value of a MAP. A comma behind the last column is allowed, so are SQL comments.
///
/// | type | Arrow |
/// |---|---|
/// | BOOLEAN, INT, BIGINT, REAL, DOUBLE | Boolean, Int32, Int64, Float32, Float64 |
/// | DECIMAL(p, s), DECIMAL(p), DECIMAL | Decimal128(p, s), (p, 0), (38, 0) with 1 ≤ p ≤ 38, 0 ≤ s ≤ p |
/// | VARCHAR, VARBINARY, DATE | Utf8, Binary, Date32 |
/// | TIMESTAMP | microseconds, UTC |
/// | JSON | Utf8, and listed in [`Columns::json`] |
/// | STRUCT<…> | Struct |
/// | LIST<…> | List, item `element` |
/// | MAP<…, …> | Map `key_value{key, value}`; keys are of a type with exact equality (not REAL, DOUBLE, JSON, nested) |
///
/// # Errors
/// The first mistake, with its place.
pub fn parse_columns(ddl: &str) -> Result<Columns, ColumnsError> {
    let tokens = Tokenizer::new(&GenericDialect {}, ddl)
        .tokenize_with_location()
        .map_err(|e| error_at(e.location, format!("cannot read the columns: {}", e.message)))?;
    let tokens = tokens.into_iter().filter(|t| !matches!(t.token, Token::Whitespace(_))).collect();
    let mut parser = Parser { tokens, at: 0, pending_gt: 0, end: end_of(ddl), json: vec![] };
    let fields = parser.fields(&mut vec![], None)?;
    if fields.is_empty() {
        return Err(parser.error("no columns: declare at least one, as in `id VARCHAR NOT NULL`"));
    }
    Ok(Columns { schema: Arc::new(Schema::new(fields)), json: parser.json })
}

/// Names a column or a field within one: the parts joined by `.`; a part that itself holds a dot or a double quote
/// stands in double quotes. The item of a list is `element`, a map's sides are `key` and `value`.
pub fn column_path<S: AsRef<str>>(parts: &[S]) -> String {
    let mut path = String::new();
    for (i, part) in parts.iter().map(AsRef::as_ref).enumerate() {
        if i > 0 {
            path.push('.');
        }
        if part.contains(['.', '"']) {
            path.push('"');
            path.push_str(&part.replace('"', "\"\""));
            path.push('"');
        } else {
            path.push_str(part);
        }
    }
    path
}

/// The SQL name of `data_type`; a type that is not in the closed list is given as Arrow names it.
pub fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Float32 => "REAL".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Decimal128(p, s) => format!("DECIMAL({p}, {s})"),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "VARCHAR".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "VARBINARY".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Timestamp(_, _) => "TIMESTAMP".into(),
        DataType::Struct(fields) => {
            let mut text = String::from("STRUCT<");
            for (i, field) in fields.iter().enumerate() {
                if i > 0 {
                    text.push_str(", ");
                }
                sql_name(&mut text, field.name());
                text.push(' ');
                text.push_str(&sql_nullable_type(field));
            }
            text.push('>');
            text
        }
        DataType::List(item) => format!("LIST<{}>", sql_nullable_type(item)),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(kv) if kv.len() == 2 => {
                format!("MAP<{}, {}>", sql_type(kv[0].data_type()), sql_nullable_type(&kv[1]))
            }
            other => other.to_string(),
        },
        other => other.to_string(),
    }
}

fn sql_nullable_type(field: &Field) -> String {
    let mut text = sql_type(field.data_type());
    if !field.is_nullable() {
        text.push_str(" NOT NULL");
    }
    text
}

fn sql_name(text: &mut String, name: &str) {
    let plain =
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && name.starts_with(|c: char| !c.is_ascii_digit());
    if plain {
        text.push_str(name);
    } else {
        write!(text, "\"{}\"", name.replace('"', "\"\"")).expect("writing to a string cannot fail");
    }
}

struct Parser {
    tokens: Vec<TokenWithSpan>,
    at: usize,
    /// `>` left of a `>>` or `>>>` whose first ones have been taken.
    pending_gt: usize,
    end: Location,
    json: Vec<String>,
}

impl Parser {
    /// `name type [NOT NULL], …` up to the end, or to the `>` of a struct, which is not taken.
    fn fields(&mut self, path: &mut Vec<String>, struct_at: Option<Location>) -> Result<Fields, ColumnsError> {
        let mut fields: Vec<Field> = vec![];
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        loop {
            if self.peek().is_none() || (struct_at.is_some() && self.at_gt()) {
                break;
            }
            let at = self.location();
            let name = self.name(fields.is_empty() && struct_at.is_none())?;
            if name.is_empty() {
                return Err(error_at(at, "a column's name may not be empty".into()));
            }
            if struct_at.is_none() && name.starts_with('_') {
                return Err(error_at(
                    at,
                    format!("column `{name}` begins with `_`: such names are the system's own, choose another one"),
                ));
            }
            // Delta compares names without regard to case, so two that differ in case alone could not be stored.
            if let Some(first) = seen.insert(name.to_lowercase(), name.clone()) {
                let message = if first == name {
                    format!("column `{name}` is declared twice")
                } else {
                    format!("columns `{first}` and `{name}` differ in case only: choose different names")
                };
                return Err(error_at(at, message));
            }
            path.push(name);
            let data_type = self.data_type(path)?;
            let nullable = self.nullable()?;
            let name = path.pop().expect("pushed above");
            fields.push(Field::new(name, data_type, nullable));
            if !self.take(&Token::Comma) {
                break;
            }
        }
        match struct_at {
            None => {
                if self.peek().is_some() {
                    return Err(self.expected("`,` or the end"));
                }
            }
            Some(at) if fields.is_empty() => return Err(error_at(at, "a STRUCT needs at least one field".into())),
            Some(_) => {}
        }
        Ok(fields.into())
    }

    fn name(&mut self, first: bool) -> Result<String, ColumnsError> {
        match self.peek() {
            Some(Token::Word(word)) if matches!(word.quote_style, None | Some('"' | '`')) => {
                let name = word.value.clone();
                self.at += 1;
                Ok(name)
            }
            Some(Token::SingleQuotedString(name)) => {
                let message = format!("names stand in double quotes: write \"{name}\"");
                Err(self.error(&message))
            }
            _ => Err(self.expected(if first { "a column's name" } else { "a name" })),
        }
    }

    fn data_type(&mut self, path: &mut Vec<String>) -> Result<DataType, ColumnsError> {
        let at = self.location();
        if path.len() > MAX_DEPTH {
            return Err(error_at(at, format!("types nest deeper than {MAX_DEPTH}")));
        }
        let Some(Token::Word(word)) = self.peek() else {
            return Err(self.expected(&format!("the type of `{}`, one of {TYPES}", column_path(path))));
        };
        let (written, quoted) = (word.value.clone(), word.quote_style.is_some());
        let name = written.to_uppercase();
        if quoted || !TYPE_NAMES.contains(&name.as_str()) {
            return Err(error_at(at, unknown_type(&written, &name)));
        }
        self.at += 1;
        let data_type = match name.as_str() {
            "BOOLEAN" => DataType::Boolean,
            "INT" => DataType::Int32,
            "BIGINT" => DataType::Int64,
            "REAL" => DataType::Float32,
            "DOUBLE" => DataType::Float64,
            "DECIMAL" => return self.decimal(),
            "VARCHAR" => DataType::Utf8,
            "VARBINARY" => DataType::Binary,
            "DATE" => DataType::Date32,
            "TIMESTAMP" => timestamp_type(),
            "JSON" => {
                self.json.push(column_path(path));
                DataType::Utf8
            }
            "STRUCT" => {
                self.lt("STRUCT<name TYPE, …>")?;
                let fields = self.fields(path, Some(at))?;
                self.gt()?;
                DataType::Struct(fields)
            }
            "LIST" => {
                self.lt("LIST<TYPE>")?;
                let item = self.nested("element", path)?;
                self.gt()?;
                DataType::List(Arc::new(item))
            }
            _ => return self.map(path),
        };
        if self.peek() == Some(&Token::LParen) {
            return Err(self.error(&format!("{name} takes no length or precision: leave the parentheses out")));
        }
        Ok(data_type)
    }

    fn nested(&mut self, name: &str, path: &mut Vec<String>) -> Result<Field, ColumnsError> {
        path.push(name.into());
        let data_type = self.data_type(path)?;
        let nullable = self.nullable()?;
        path.pop();
        Ok(Field::new(name, data_type, nullable))
    }

    fn map(&mut self, path: &mut Vec<String>) -> Result<DataType, ColumnsError> {
        self.lt("MAP<TYPE, TYPE>")?;
        let at = self.location();
        let json = self.json.len();
        let key = self.nested("key", path)?;
        let exact = !matches!(key.data_type(), DataType::Float32 | DataType::Float64) && !key.data_type().is_nested();
        if !exact || self.json.len() > json {
            return Err(error_at(
                at,
                format!("a MAP's key may not be {}: use VARCHAR or another type with exact equality", {
                    if self.json.len() > json { "JSON".into() } else { sql_type(key.data_type()) }
                }),
            ));
        }
        if !self.take(&Token::Comma) {
            return Err(self.expected("`,` and the type of the MAP's values"));
        }
        let value = self.nested("value", path)?;
        self.gt()?;
        let entries = DataType::Struct(vec![key.with_nullable(false), value].into());
        Ok(DataType::Map(Arc::new(Field::new("key_value", entries, false)), false))
    }

    fn decimal(&mut self) -> Result<DataType, ColumnsError> {
        if !self.take(&Token::LParen) {
            return Ok(DataType::Decimal128(38, 0));
        }
        let precision = self.integer("DECIMAL's precision", 1, 38)?;
        let mut scale = 0;
        if self.take(&Token::Comma) {
            scale = self.integer("DECIMAL's scale (at most its precision)", 0, precision)?;
        }
        if !self.take(&Token::RParen) {
            return Err(self.expected("`)`"));
        }
        Ok(DataType::Decimal128(precision, i8::try_from(scale).expect("at most 38")))
    }

    fn integer(&mut self, what: &str, least: u8, most: u8) -> Result<u8, ColumnsError> {
        let parsed = match self.peek() {
            Some(Token::Number(digits, false)) => digits.parse::<u8>().ok().filter(|n| (least..=most).contains(n)),
            _ => None,
        };
        let Some(number) = parsed else {
            return Err(self.expected(&format!("{what}, {least} to {most}")));
        };
        self.at += 1;
        Ok(number)
    }

    /// `NOT NULL`, `NULL` or nothing.
    fn nullable(&mut self) -> Result<bool, ColumnsError> {
        if self.take_word("NOT") {
            if !self.take_word("NULL") {
                return Err(self.expected("NULL behind NOT"));
            }
            return Ok(false);
        }
        self.take_word("NULL");
        Ok(true)
    }

    fn lt(&mut self, shape: &str) -> Result<(), ColumnsError> {
        if self.take(&Token::Lt) { Ok(()) } else { Err(self.expected(&format!("`<`, as in {shape}"))) }
    }

    fn at_gt(&self) -> bool {
        self.pending_gt > 0 || matches!(self.peek(), Some(Token::Gt | Token::ShiftRight))
    }

    /// Takes one `>`; the tokenizer gives `>>` as one token.
    fn gt(&mut self) -> Result<(), ColumnsError> {
        if self.pending_gt > 0 {
            self.pending_gt -= 1;
            if self.pending_gt == 0 {
                self.at += 1;
            }
            return Ok(());
        }
        match self.peek() {
            Some(Token::Gt) => self.at += 1,
            Some(Token::ShiftRight) => self.pending_gt = 1,
            _ => return Err(self.expected("`,` or `>`")),
        }
        Ok(())
    }

    fn take(&mut self, token: &Token) -> bool {
        let taken = self.pending_gt == 0 && self.peek() == Some(token);
        self.at += usize::from(taken);
        taken
    }

    fn take_word(&mut self, keyword: &str) -> bool {
        let taken = self.pending_gt == 0
            && matches!(self.peek(), Some(Token::Word(w)) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(keyword));
        self.at += usize::from(taken);
        taken
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|t| &t.token)
    }

    fn location(&self) -> Location {
        self.tokens.get(self.at).map_or(self.end, |t| t.span.start)
    }

    fn error(&self, message: &str) -> ColumnsError {
        error_at(self.location(), message.into())
    }

    fn expected(&self, what: &str) -> ColumnsError {
        match self.peek() {
            Some(token) => self.error(&format!("expected {what}, found `{token}`")),
            None => self.error(&format!("expected {what}, found the end")),
        }
    }
}

fn unknown_type(written: &str, name: &str) -> String {
    if let Some((_, use_instead)) = SYNONYMS.iter().find(|(synonym, _)| *synonym == name) {
        return format!("unknown type `{written}`: use {use_instead}");
    }
    let nearest = TYPE_NAMES.iter().map(|t| (strsim::damerau_levenshtein(t, name), t)).min();
    match nearest {
        Some((distance, t)) if distance <= 2 && distance < name.len() => {
            format!("unknown type `{written}`: did you mean {t}? The types are {TYPES}")
        }
        _ => format!("unknown type `{written}`: the types are {TYPES}"),
    }
}

fn error_at(at: Location, message: String) -> ColumnsError {
    let place = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).max(1);
    ColumnsError { message, line: place(at.line), column: place(at.column) }
}

/// The place behind the last character that is not blank.
fn end_of(ddl: &str) -> Location {
    let text = ddl.trim_end();
    let line = text.matches('\n').count() + 1;
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Location { line: line as u64, column: column as u64 }
}

#[cfg(test)]
mod tests;
