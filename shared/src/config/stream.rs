//! `[stream.NAME]` and `[table.NAME]`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use toml::de::DeValue;
use url::Url;

use super::load::path_url;
use super::reader::{Reader, nearest};
use super::{EpochUnit, Format, SchemaRegistryConfig, StreamConfig, TableConfig};
use crate::columns::{Columns, parse_columns};

pub(super) fn stream(reader: &Reader<'_, '_, '_>, name: &str) -> Option<StreamConfig> {
    let topic = topic(reader, name);
    let partitions = reader.number("partitions", 1..=10_000);
    let replication = reader.number("replication", 1..=1_000);
    let shards = reader.number("shards", 1..=1_024);
    if let (Some(shards), Some(partitions)) = (&shards, &partitions)
        && reader.is_given("partitions")
        && shards.value > partitions.value
    {
        let (shards_n, partitions_n) = (shards.value, partitions.value);
        let partitions_s = if partitions_n == 1 { "" } else { "s" };
        reader.error(
            shards.at,
            format!(
                "`shards`: {shards_n} shards, but {partitions_n} partition{partitions_s}; a shard needs one of its own"
            ),
        );
    }
    let format = format(reader);
    let columns = match &format {
        // Without the format it is open what the columns should be.
        None => None,
        Some(Format::Text) => text_columns(reader),
        Some(_) => columns(reader, "columns"),
    };
    let event_time = columns.as_ref().and_then(|columns| event_time(reader, columns));
    let allowed_lateness = reader
        .is_given("allowed_lateness")
        .then(|| {
            if !reader.is_given("event_time") {
                let at = reader.raw("allowed_lateness").map_or(0, |value| value.span().start);
                reader.error(at, "`allowed_lateness` needs `event_time`, the column by which events are late");
            }
            reader.duration("allowed_lateness", Duration::ZERO)
        })
        .flatten();
    let max_ahead = reader.duration("max_ahead", Duration::ZERO);
    let accept_compacted = reader.boolean("accept_compacted");
    let epoch_units = columns.as_ref().map(|columns| epoch_units(reader, columns));
    let columns = columns?;
    Some(StreamConfig {
        name: name.to_owned(),
        topic: topic?,
        partitions: i32::try_from(partitions?.value).expect("within its bounds"),
        replication: i32::try_from(replication?.value).expect("within its bounds"),
        shards: u32::try_from(shards?.value).expect("within its bounds"),
        format: format?,
        event_time,
        allowed_lateness,
        max_ahead: max_ahead?,
        accept_compacted: accept_compacted?,
        columns: columns.schema,
        json_columns: columns.json,
        epoch_units: epoch_units?,
    })
}

/// The table, and the byte offset of its URL.
pub(super) fn table(reader: &Reader<'_, '_, '_>, name: &str, base: &Path) -> Option<(TableConfig, usize)> {
    let url = reader.parsed("url", |text| match text.contains("://") {
        true => Url::parse(text).map_err(|error| format!("`{text}` is not a URL: {error}")),
        false if text.is_empty() => Err("an empty path".to_owned()),
        false => path_url(&base.join(text)),
    });
    if let Some(url) = &url {
        const ENDINGS: [&str; 5] = [".csv", ".json", ".ndjson", ".jsonl", ".parquet"];
        const SCHEMES: [&str; 2] = ["file", "hdfs"];
        if url.value.scheme() == "s3" {
            reader.error(url.at, "`url`: `s3://` is not there yet: use file:// or hdfs://");
        } else if !SCHEMES.contains(&url.value.scheme()) {
            reader.error(url.at, format!("`url`: `{}://` is none of file://, hdfs://", url.value.scheme()));
        } else if !ENDINGS.iter().any(|ending| url.value.path().trim_end_matches(".gz").ends_with(ending)) {
            reader.error(
                url.at,
                format!("`url`: the file's name must end with one of {} (or that and .gz)", ENDINGS.join(", ")),
            );
        }
    }
    let columns = match reader.is_given("columns") {
        true => Some(columns(reader, "columns")?.schema),
        false => None,
    };
    let url = url?;
    Some((TableConfig { name: name.to_owned(), url: url.value, columns }, url.at))
}

/// Kafka's own rule for topic names.
fn topic(reader: &Reader<'_, '_, '_>, stream: &str) -> Option<String> {
    if !reader.is_given("topic") {
        return Some(stream.to_owned());
    }
    let parse = |text: &str| {
        let valid = (1..=249).contains(&text.len())
            && !matches!(text, "." | "..")
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        let message = "is not the name of a topic: it has letters, digits, `.`, `_` and `-`, at most 249 characters";
        if valid { Ok(text.to_owned()) } else { Err(format!("`{text}` {message}")) }
    };
    reader.parsed("topic", parse).map(|found| found.value)
}

fn format(reader: &Reader<'_, '_, '_>) -> Option<Format> {
    let choices = [("json", "json"), ("csv", "csv"), ("text", "text"), ("avro", "avro")];
    let found = reader.choice("format", &choices)?;
    let format = found.value;
    let delimiter = reader.parsed("delimiter", |text| match text.as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(*byte),
        _ => Err(format!("`{text}` is not one ASCII character other than a quote or a line break")),
    });
    const KEYS: [(&str, &str); 4] = [
        ("delimiter", "csv"),
        ("schema_registry", "avro"),
        ("schema_registry_user", "avro"),
        ("schema_registry_password", "avro"),
    ];
    for (key, only) in KEYS {
        if format != only && reader.is_given(key) {
            let at = reader.raw(key).map_or(0, |value| value.span().start);
            reader.error(at, format!("`{key}` is only for format = \"{only}\"; this stream has format = \"{format}\""));
        }
    }
    Some(match format {
        "csv" => Format::Csv { delimiter: delimiter?.value },
        "text" => Format::Text,
        "avro" => Format::Avro(schema_registry(reader, found.at)?),
        _ => Format::Json,
    })
}

/// `format_at`: where the stream says that it needs one.
fn schema_registry(reader: &Reader<'_, '_, '_>, format_at: usize) -> Option<SchemaRegistryConfig> {
    if !reader.is_given("schema_registry") {
        let message = "`format`: an avro stream needs the registry that has the schemas of its records, as in \
                       `schema_registry = \"http://localhost:8081\"`";
        reader.error(format_at, message);
        return None;
    }
    let url = reader.parsed("schema_registry", registry_url);
    let text = |key: &str| {
        if !reader.is_given(key) {
            return Some(None);
        }
        reader.parsed(key, |text| Ok::<_, String>(text.to_owned())).map(|found| Some(found.value))
    };
    let (user, password) = (text("schema_registry_user"), text("schema_registry_password"));
    if let (Some(None), Some(Some(_))) = (&user, &password) {
        let at = reader.raw("schema_registry_password").map_or(0, |value| value.span().start);
        reader.error(at, "`schema_registry_password` needs `schema_registry_user`");
        return None;
    }
    Some(SchemaRegistryConfig { url: url?.value, user: user?, password: password? })
}

fn registry_url(text: &str) -> Result<Url, String> {
    let mut url = Url::parse(text).map_err(|error| format!("`{text}` is not a URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("`{}://` is none of http://, https://", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("user and password stand in `schema_registry_user` and `schema_registry_password`".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("the registry's URL has no `?` and no `#`".to_owned());
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

fn text_columns(reader: &Reader<'_, '_, '_>) -> Option<Columns> {
    if reader.is_given("columns") {
        let at = reader.raw("columns").map_or(0, |value| value.span().start);
        reader.error(at, "`columns`: a text stream has the single column `line VARCHAR`; leave `columns` out");
        return None;
    }
    let line = Field::new("line", DataType::Utf8, true);
    Some(Columns { schema: Arc::new(Schema::new(vec![line])), json: Vec::new() })
}

/// The columns that `key` declares; an error within them is placed where it stands in the file.
fn columns(reader: &Reader<'_, '_, '_>, key: &str) -> Option<Columns> {
    let text = reader.text(key)?;
    match parse_columns(&text.value) {
        Ok(columns) => Some(columns),
        Err(error) => {
            reader.error_at(text.places.place(error.line, error.column), format!("`{key}`: {}", error.message));
            None
        }
    }
}

fn event_time(reader: &Reader<'_, '_, '_>, columns: &Columns) -> Option<String> {
    if !reader.is_given("event_time") {
        return None;
    }
    let parse = |text: &str| timestamp_column(&columns.schema, text).map(|()| text.to_owned());
    reader.parsed("event_time", parse).map(|found| found.value)
}

/// Whether `name` is a column of type TIMESTAMP; if not, why, and the nearest that is.
fn timestamp_column(schema: &SchemaRef, name: &str) -> Result<(), String> {
    let is_timestamp = |field: &Field| matches!(field.data_type(), DataType::Timestamp(..));
    let problem = match schema.field_with_name(name) {
        Ok(field) if is_timestamp(field) => return Ok(()),
        Ok(field) => format!("column `{name}` is {}, not TIMESTAMP", crate::columns::sql_type(field.data_type())),
        Err(_) => format!("there is no column `{name}`"),
    };
    let timestamps = schema.fields().iter().filter(|field| is_timestamp(field)).map(|field| field.name().as_str());
    match nearest(name, timestamps) {
        Some(nearest) => Err(format!("{problem}; did you mean `{nearest}`?")),
        None => Err(format!("{problem}; no column of the stream is a TIMESTAMP")),
    }
}

fn epoch_units(reader: &Reader<'_, '_, '_>, columns: &Columns) -> BTreeMap<String, EpochUnit> {
    const UNITS: [(&str, EpochUnit); 4] = [
        ("seconds", EpochUnit::Seconds),
        ("milliseconds", EpochUnit::Milliseconds),
        ("microseconds", EpochUnit::Microseconds),
        ("nanoseconds", EpochUnit::Nanoseconds),
    ];
    let mut units = BTreeMap::new();
    let Some(value) = reader.raw("epoch_units") else { return units };
    let DeValue::Table(table) = value.get_ref() else {
        reader.error(
            value.span().start,
            "`epoch_units` must be a table, as in epoch_units = { created_at = \"milliseconds\" }",
        );
        return units;
    };
    for (key, unit) in table {
        let column = key.get_ref().as_ref();
        if let Err(error) = timestamp_column(&columns.schema, column) {
            reader.error(key.span().start, format!("`epoch_units`: {error}"));
        }
        let text = unit.get_ref().as_str().map(|text| reader.substituted(text, &unit.span()).value);
        match text.as_deref().and_then(|text| UNITS.iter().find(|(word, _)| *word == text)) {
            Some((_, unit)) => {
                units.insert(column.to_owned(), *unit);
            }
            None => {
                let words: Vec<&str> = UNITS.iter().map(|(word, _)| *word).collect();
                let found = text.map_or_else(|| unit.get_ref().type_str().to_owned(), |text| format!("`{text}`"));
                let message = format!("`epoch_units`: {found} is none of {}", words.join(", "));
                reader.error(unit.span().start, message);
            }
        }
    }
    units
}
