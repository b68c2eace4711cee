//! What `watershed check` found.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use watershed_shared::columns::sql_type;
use watershed_shared::config::{ConfigError, Format, StreamConfig, TableConfig, ViewConfig};
use watershed_shared::schedule::Schedule;
use watershed_shared::view::{CompiledView, DimensionTable, Report};

use crate::table::text_table;

/// How many times of a schedule are shown.
const NEXT_TIMES: usize = 5;

#[derive(Debug, Default, Serialize)]
pub(super) struct CheckReport {
    pub(super) file: String,
    pub(super) errors: Vec<ConfigError>,
    pub(super) streams: Vec<StreamReport>,
    pub(super) tables: Vec<TableReport>,
    pub(super) views: Vec<ViewReport>,
}

#[derive(Debug, Serialize)]
pub(super) struct StreamReport {
    name: String,
    topic: String,
    format: &'static str,
    partitions: i32,
    shards: u32,
    event_time: Option<String>,
    columns: Vec<ColumnReport>,
}

#[derive(Debug, Serialize)]
pub(super) struct TableReport {
    name: String,
    url: String,
    rows: usize,
    columns: Vec<ColumnReport>,
}

#[derive(Debug, Serialize)]
struct ColumnReport {
    name: String,
    #[serde(rename = "type")]
    sql_type: String,
    nullable: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct ViewReport {
    name: String,
    definition: String,
    /// Kind, columns, keys, aggregates and their states, and what the view reads.
    #[serde(flatten)]
    pub(super) report: Report,
    /// The keys, by the names of the view's columns where these are keys.
    #[serde(skip)]
    grouped_by: Vec<String>,
    pub(super) change: Change,
    schedules: Vec<ScheduleReport>,
}

#[derive(Debug, Serialize)]
struct ScheduleReport {
    mode: &'static str,
    cron: String,
    timezone: &'static str,
    /// The next times, in UTC.
    next: Vec<DateTime<Utc>>,
}

/// What the next start means for a view.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    pub(super) kind: ChangeKind,
    /// Events that a rebuild reads of what is archived now, as offsets count them; the log may hold more.
    pub(super) events: Option<u64>,
    /// Why it is not known.
    pub(super) reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ChangeKind {
    /// It has never run.
    New,
    Unchanged,
    /// Another definition answers until a rebuild of this one has been published.
    Changed,
    /// It is the configured definition already; its first generation is still to come.
    Building,
    /// It was replaced by another one and returns only on request.
    Superseded,
    Unknown,
}

impl Change {
    pub(super) fn of(kind: ChangeKind) -> Self {
        Self { kind, events: None, reason: None }
    }

    fn for_people(&self) -> String {
        let events = match self.events {
            Some(events) => format!("all events, about {events} by now"),
            None => "all events".to_owned(),
        };
        match self.kind {
            ChangeKind::New => format!("new: its first build reads {events}"),
            ChangeKind::Unchanged => "unchanged".to_owned(),
            ChangeKind::Changed => {
                format!("changed: a rebuild reads {events}; until it is published the old definition answers")
            }
            ChangeKind::Building => {
                format!("changed already: its first build reads {events}; until then the old one answers")
            }
            ChangeKind::Superseded => {
                "superseded: an earlier definition of this view; it returns by `activate` or `reload --apply` only"
                    .to_owned()
            }
            ChangeKind::Unknown => format!("unknown: {}", self.reason.as_deref().unwrap_or_default()),
        }
    }
}

impl StreamReport {
    pub(super) fn of(stream: &StreamConfig) -> Self {
        Self {
            name: stream.name.clone(),
            topic: stream.topic.clone(),
            format: match stream.format {
                Format::Json => "json",
                Format::Csv { .. } => "csv",
                Format::Text => "text",
                Format::Avro(_) => "avro",
            },
            partitions: stream.partitions,
            shards: stream.shards,
            event_time: stream.event_time.clone(),
            columns: columns(&stream.columns, &stream.json_columns),
        }
    }
}

impl TableReport {
    pub(super) fn of(config: &TableConfig, table: &DimensionTable) -> Self {
        Self {
            name: config.name.clone(),
            url: config.url.to_string(),
            rows: table.batches.iter().map(arrow::array::RecordBatch::num_rows).sum(),
            columns: columns(&table.schema, &[]),
        }
    }
}

fn columns(schema: &arrow::datatypes::Schema, json: &[String]) -> Vec<ColumnReport> {
    let describe = |field: &arrow::datatypes::Field| {
        let path = watershed_shared::columns::column_path(&[field.name()]);
        let sql_type = if json.contains(&path) { "JSON".to_owned() } else { sql_type(field.data_type()) };
        ColumnReport { name: field.name().clone(), sql_type, nullable: field.is_nullable() }
    };
    schema.fields().iter().map(|field| describe(field)).collect()
}

impl ViewReport {
    pub(super) fn of(view: &ViewConfig, compiled: &CompiledView, now: DateTime<Utc>) -> Self {
        let schedule = |mode, cron: &Option<String>| {
            let cron = cron.clone()?;
            let schedule = Schedule::parse(&cron, view.timezone).expect("checked when the configuration was read");
            let times = std::iter::successors(schedule.next_after(now), |time| schedule.next_after(*time));
            Some(ScheduleReport { mode, cron, timezone: view.timezone.name(), next: times.take(NEXT_TIMES).collect() })
        };
        Self {
            name: view.name.clone(),
            definition: compiled.definition().to_string(),
            report: compiled.report().clone(),
            grouped_by: compiled
                .report()
                .keys
                .iter()
                .enumerate()
                .map(|(index, key)| {
                    let column = compiled.key_columns().iter().find(|(_, key)| *key == index);
                    column.map_or(&key.name, |(name, _)| name).clone()
                })
                .collect(),
            change: Change::of(ChangeKind::Unknown),
            schedules: [schedule("rebuild", &view.rebuild), schedule("refresh", &view.refresh)]
                .into_iter()
                .flatten()
                .collect(),
        }
    }

    fn for_people(&self) -> String {
        let kind = serde_json::to_value(self.report.kind).ok();
        let kind = kind.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
        let mut out = format!("view {} ({kind}) of stream {}", self.name, self.report.stream);
        if !self.report.tables.is_empty() {
            out.push_str(&format!(", with tables {}", self.report.tables.join(", ")));
        }
        out.push('\n');
        let null = |nullable| if nullable { "" } else { "NOT NULL" }.to_owned();
        let rows: Vec<Vec<String>> = self
            .report
            .columns
            .iter()
            .map(|column| vec![column.name.clone(), column.sql_type.clone(), null(column.nullable)])
            .collect();
        out.push_str(&indented(&text_table(&["column", "type", ""], &rows)));
        if !self.report.keys.is_empty() {
            out.push_str(&format!("  grouped by {}\n", self.grouped_by.join(", ")));
        }
        if !self.report.aggregates.is_empty() {
            let rows: Vec<Vec<String>> = self
                .report
                .aggregates
                .iter()
                .map(|aggregate| {
                    let state: Vec<String> =
                        aggregate.state.iter().map(|field| format!("{} {}", field.name, field.sql_type)).collect();
                    vec![aggregate.call.clone(), state.join(", ")]
                })
                .collect();
            out.push_str(&indented(&text_table(&["aggregate", "state"], &rows)));
        }
        out.push_str(&format!("  change     {}\n", self.change.for_people()));
        for schedule in &self.schedules {
            let next: Vec<String> =
                schedule.next.iter().map(|time| time.to_rfc3339_opts(SecondsFormat::Secs, true)).collect();
            let ScheduleReport { mode, cron, timezone, .. } = schedule;
            out.push_str(&format!("  {mode:<9}  {cron} ({timezone}): {}\n", next.join(", ")));
        }
        for warning in self.report.warnings.iter() {
            out.push_str(&format!("  warning    {warning}\n"));
        }
        out
    }
}

impl CheckReport {
    pub(super) fn for_people(&self) -> String {
        let mut out = String::new();
        for stream in &self.streams {
            let StreamReport { name, topic, format, partitions, shards, columns, .. } = stream;
            let columns = columns.len();
            out.push_str(&format!(
                "stream {name}: topic {topic}, {format}, {columns} columns, {partitions} partitions in {shards} shards\n"
            ));
        }
        for table in &self.tables {
            let TableReport { name, url, rows, columns } = table;
            out.push_str(&format!("table {name}: {rows} rows, {} columns, {url}\n", columns.len()));
        }
        for view in &self.views {
            out.push('\n');
            out.push_str(&view.for_people());
        }
        let verdict = match self.errors.len() {
            0 => "is right".to_owned(),
            1 => "has 1 error".to_owned(),
            errors => format!("has {errors} errors"),
        };
        out.push_str(&format!("\n{} {verdict}\n", self.file));
        out
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
