//! JSON for people: tables with aligned columns.

use std::fmt;
use std::io::IsTerminal;

use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent};
use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};

/// A JSON value whose objects keep their order, and whose numbers are shown as they came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Boolean(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// The member `key` of an object.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(members) => members.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => number.as_u64(),
            _ => None,
        }
    }

    pub(crate) fn list(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    fn is_object(&self) -> bool {
        matches!(self, Self::Object(_))
    }
}

/// Compact JSON; a text at the top stands without quotes.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn nested(value: &Json, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match value {
                Json::Text(text) => write!(f, "{}", serde_json::Value::from(text.as_str())),
                other => other.fmt(f),
            }
        }
        match self {
            Self::Null => f.write_str("NULL"),
            Self::Boolean(flag) => flag.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    nested(item, f)?;
                }
                f.write_str("]")
            }
            Self::Object(members) => {
                f.write_str("{")?;
                for (index, (name, value)) in members.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    write!(f, "{}: ", serde_json::Value::from(name.as_str()))?;
                    nested(value, f)?;
                }
                f.write_str("}")
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Boolean(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Number(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(Json::Number(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(serde_json::Number::from_f64(value).map_or(Json::Null, Json::Number))
            }

            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Json::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
                let mut object = Vec::new();
                while let Some(member) = members.next_entry()? {
                    object.push(member);
                }
                Ok(Json::Object(object))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Stands for the first letter of a dimmed NULL until the columns are aligned; one column wide, in no one's data.
const DIM_NULL: &str = "\u{f8ff}ULL";

/// The rows as a table with a head. The columns are those of all rows in the order in which they appear; `first` names
/// those that come first, if they are there. Numbers stand at the right.
pub(crate) fn rows_table(rows: &[Json], first: &[&str]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    let members = || rows.iter().filter_map(|row| if let Json::Object(members) = row { Some(members) } else { None });
    let mut seen = std::collections::BTreeSet::new();
    for (name, _) in members().flatten() {
        if seen.insert(name.as_str()) {
            columns.push(name);
        }
    }
    columns.sort_by_key(|column| first.iter().position(|name| name == column).unwrap_or(first.len()));
    let mut table = new_table();
    table.set_header(&columns);
    for row in rows {
        table.add_row(columns.iter().map(|column| cell(row.get(column).unwrap_or(&Json::Null))));
    }
    for (index, name) in columns.iter().enumerate() {
        let numbers = rows.iter().filter_map(|row| row.get(name)).all(|v| matches!(v, Json::Number(_) | Json::Null));
        if let (true, Some(column)) = (numbers && !rows.is_empty(), table.column_mut(index)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    finish(table)
}

/// Any document: plain members as lines, lists and nested objects as tables under their names.
pub(crate) fn document(value: &Json) -> String {
    let Json::Object(members) = value else {
        return match value {
            Json::List(rows) if rows.iter().all(Json::is_object) => rows_table(rows, &[]),
            other => format!("{other}\n"),
        };
    };
    let (plain, nested): (Vec<_>, Vec<_>) = members.iter().partition(|(_, value)| !is_tabular(value));
    let mut out = String::new();
    let width = plain.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in plain {
        out.push_str(&format!("{name:<width$}  {value}\n"));
    }
    for (name, value) in nested {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!("{name}\n"));
        match value {
            Json::List(rows) => out.push_str(&rows_table(rows, &[])),
            Json::Object(named) => {
                let rows: Vec<Json> = named.iter().map(|(name, value)| with_name(name, value)).collect();
                out.push_str(&rows_table(&rows, &["name"]));
            }
            _ => {}
        }
    }
    out
}

/// Whether it is shown as a table: a list of objects, or an object of objects.
fn is_tabular(value: &Json) -> bool {
    match value {
        Json::List(items) => !items.is_empty() && items.iter().all(Json::is_object),
        Json::Object(members) => !members.is_empty() && members.iter().all(|(_, value)| value.is_object()),
        _ => false,
    }
}

fn with_name(name: &str, value: &Json) -> Json {
    let mut members = vec![("name".to_owned(), Json::Text(name.to_owned()))];
    if let Json::Object(rest) = value {
        members.extend(rest.iter().filter(|(name, _)| name != "name").cloned());
    }
    Json::Object(members)
}

/// A table of plain texts.
pub(crate) fn text_table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = new_table();
    table.set_header(header);
    table.add_rows(rows);
    finish(table)
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_style(TableComponent::HeaderLines, '─').set_style(TableComponent::MiddleHeaderIntersections, '─');
    table
}

fn cell(value: &Json) -> String {
    match value {
        Json::Null => DIM_NULL.to_owned(),
        // Control characters would break the lines of a table, or the terminal.
        other => other.to_string().chars().flat_map(escaped).collect(),
    }
}

fn escaped(character: char) -> Vec<char> {
    if character.is_control() { character.escape_default().collect() } else { vec![character] }
}

fn finish(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let null = if std::io::stdout().is_terminal() { "\u{1b}[2mNULL\u{1b}[0m" } else { "NULL" };
    let lines = table.lines().map(|line| line.trim_end().replace(DIM_NULL, null));
    lines.map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn rows_become_aligned_columns_in_their_order() {
        let rows =
            json(r#"[{"type": "Push", "events": 1200, "z": null}, {"type": "Watch\n", "events": 7, "z": [1, "a"]}]"#);
        let text = rows_table(rows.list().expect("a list"), &[]);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["type", "events", "z"]);
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["Push", "1200", "NULL"]);
        assert!(lines[3].contains("Watch\\n") && lines[3].ends_with(r#"[1, "a"]"#), "{text}");
        // Numbers end in one column.
        assert_eq!(lines[2].find("1200").map(|at| at + 4), lines[3].find(" 7 ").map(|at| at + 2), "{text}");
    }

    #[test]
    fn documents_become_lines_and_tables() {
        let text = document(&json(
            r#"{"url": "x", "views": {"v": {"lag": 1}, "w": {"lag": 2}}, "streams": [{"name": "s"}], "none": []}"#,
        ));
        assert!(text.starts_with("url   x\nnone  []\n\nviews\n"), "{text}");
        assert!(text.contains("\nstreams\n"), "{text}");
        let row = text.lines().find(|line| line.contains('w')).expect("a row");
        assert!(text.lines().any(|line| line.split_whitespace().eq(["w", "2"])), "{row}");
    }
}
