//! Rows of a CSV file as JSON objects.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use arrow::datatypes::DataType;
use serde_json::value::RawValue;
use watershed_shared::columns::column_path;
use watershed_shared::config::StreamConfig;

use super::source::{Closed, Output, Reading};

/// More bytes than this within one row: a quote that is never closed.
const ROW_LIMIT_BYTES: usize = 16 << 20;

/// What a field becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Boolean,
    /// JSON, and what is written in it: structs, lists, maps.
    Json,
}

/// Reads all rows; the first names the columns.
pub(super) fn read(input: Box<dyn BufRead>, reading: &Reading, output: &Output) -> Result<(), Closed> {
    let left = Rc::new(Cell::new(ROW_LIMIT_BYTES));
    let limited = Limited { inner: input, left: Rc::clone(&left) };
    let mut rows = ::csv::ReaderBuilder::new().delimiter(reading.delimiter).from_reader(limited);
    let header = match rows.headers() {
        Ok(header) => header.clone(),
        Err(error) => {
            output.broken(1, format!("the header: {error}"));
            return Ok(());
        }
    };
    let names: Vec<&str> = header.iter().map(|name| name.trim_start_matches('\u{feff}')).collect();
    if let Some(problem) = wrong_header(&names) {
        output.broken(1, problem);
        return Ok(());
    }
    let key = match reading.key.as_deref().map(|key| (key, names.iter().position(|name| *name == key))) {
        Some((key, None)) => {
            output.broken(1, format!("the header has no column `{key}`"));
            return Ok(());
        }
        other => other.and_then(|(_, index)| index),
    };
    let kinds: Vec<Kind> = names.iter().map(|name| kind(name, reading.stream.as_ref())).collect();
    let mut row = ::csv::StringRecord::new();
    loop {
        left.set(ROW_LIMIT_BYTES);
        let line = rows.position().line();
        match rows.read_record(&mut row) {
            Ok(false) => return Ok(()),
            Ok(true) => {
                let line = row.position().map_or(line, ::csv::Position::line);
                let key = key.and_then(|index| row.get(index)).filter(|key| !key.is_empty());
                let key = key.map(|key| key.as_bytes().to_vec());
                output.record(line, key, object(&names, &kinds, &row).into_bytes())?;
            }
            Err(error) => match error.kind() {
                ::csv::ErrorKind::UnequalLengths { expected_len, len, pos } => {
                    let line = pos.as_ref().map_or(line, ::csv::Position::line);
                    output.wrong(line, format!("the row has {len} fields, the header {expected_len}"))?;
                }
                ::csv::ErrorKind::Utf8 { pos, .. } => {
                    output.wrong(pos.as_ref().map_or(line, ::csv::Position::line), "the row is not UTF-8")?;
                }
                _ => {
                    output.broken(line, format!("cannot read: {error}"));
                    return Ok(());
                }
            },
        }
    }
}

fn wrong_header(names: &[&str]) -> Option<String> {
    let mut seen = std::collections::BTreeSet::new();
    names.iter().enumerate().find_map(|(index, name)| match *name {
        "" => Some(format!("the header has no name for column {}", index + 1)),
        name if !seen.insert(name) => Some(format!("the header names `{name}` twice")),
        _ => None,
    })
}

/// By the stream's column of that name. Without one the platform ignores the field.
fn kind(name: &str, stream: Option<&StreamConfig>) -> Kind {
    let Some(stream) = stream else { return Kind::Text };
    let Ok(field) = stream.columns.field_with_name(name) else { return Kind::Text };
    match field.data_type() {
        _ if stream.json_columns.contains(&column_path(&[name])) => Kind::Json,
        data_type if data_type.is_numeric() => Kind::Number,
        DataType::Boolean => Kind::Boolean,
        data_type if data_type.is_nested() => Kind::Json,
        _ => Kind::Text,
    }
}

fn object(names: &[&str], kinds: &[Kind], row: &::csv::StringRecord) -> String {
    let mut out = String::with_capacity(row.as_slice().len() * 2);
    for (index, ((name, kind), field)) in names.iter().zip(kinds).zip(row).enumerate() {
        out.push(if index == 0 { '{' } else { ',' });
        out.push_str(&quoted(name));
        out.push(':');
        match kind {
            _ if field.is_empty() => out.push_str("null"),
            Kind::Number if is_json(field) && field.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
                out.push_str(field);
            }
            Kind::Boolean if matches!(field, "true" | "false") => out.push_str(field),
            Kind::Json if is_json(field) => out.push_str(field),
            _ => out.push_str(&quoted(field)),
        }
    }
    out.push('}');
    out
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Whether `text` is one JSON value and nothing else around it.
fn is_json(text: &str) -> bool {
    text.trim() == text && serde_json::from_str::<&RawValue>(text).is_ok()
}

/// Ends with an error when a row has used up what is `left`.
struct Limited {
    inner: Box<dyn BufRead>,
    left: Rc<Cell<usize>>,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            return Err(io::Error::other(format!(
                "a row is longer than {ROW_LIMIT_BYTES} bytes; is a quote not closed?"
            )));
        }
        let read = self.inner.read(buffer)?;
        self.left.set(self.left.get().saturating_sub(read));
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use watershed_shared::config::Config;

    use super::*;

    #[test]
    fn the_streams_columns_decide_what_a_field_becomes() {
        let text = r#"
            [stream.s]
            columns = """n BIGINT, price DOUBLE, ok BOOLEAN, "Rating (of 5)" VARCHAR, tags LIST<VARCHAR>, "any thing" JSON"""
        "#;
        let config = Config::parse(text, Path::new("/"), &|_| None).expect("a configuration");
        let names = ["n", "price", "ok", "Rating (of 5)", "tags", "any thing", "other"];
        let kinds = names.map(|name| kind(name, Some(&config.streams["s"])));
        let check = |row: [&str; 7], expected: &str| {
            assert_eq!(object(&names, &kinds, &::csv::StringRecord::from(row.to_vec())), expected);
        };
        check(
            ["14", "4.10", "true", "4.1", "[\"a\"]", "{\"a\": 1}", "1"],
            r#"{"n":14,"price":4.10,"ok":true,"Rating (of 5)":"4.1","tags":["a"],"any thing":{"a": 1},"other":"1"}"#,
        );
        check(
            ["2,499", "007", "yes", "two\n\"lines\"", "a", "a", ""],
            r#"{"n":"2,499","price":"007","ok":"yes","Rating (of 5)":"two\n\"lines\"","tags":"a","any thing":"a","other":null}"#,
        );
        check(
            ["", "-1e3", "", "", "", "", " 1"],
            r#"{"n":null,"price":-1e3,"ok":null,"Rating (of 5)":null,"tags":null,"any thing":null,"other":" 1"}"#,
        );
        check(
            [" 1", "true", "\"true\"", "null", "[", "17", "x"],
            r#"{"n":" 1","price":"true","ok":"\"true\"","Rating (of 5)":"null","tags":"[","any thing":17,"other":"x"}"#,
        );
    }

    #[test]
    fn headers_need_distinct_names() {
        assert_eq!(wrong_header(&["a", "b"]), None);
        assert_eq!(wrong_header(&["a", ""]).as_deref(), Some("the header has no name for column 2"));
        assert_eq!(wrong_header(&["a", "a"]).as_deref(), Some("the header names `a` twice"));
    }
}
