//! `watershed produce STREAM`.

mod csv;
mod sink;
mod source;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use watershed_shared::clock;
use watershed_shared::config::{DEFAULT_FILE, Format, StreamConfig, nearest};
use watershed_shared::record::SYSTEM_COLUMNS;

use self::sink::{Sent, Sink};
use self::source::{Item, Reading};
use crate::cli::{OutputFormat, PlatformArgs};
use crate::failure::{Failure, Outcome};
use crate::{output, shutdown};

/// Records of one call to the log; more wait for its acknowledgement.
const BATCH_RECORDS: usize = 20_000;
const BATCH_BYTES: usize = 4 << 20;
/// How many errors are listed; all are counted.
const LISTED_ERRORS: usize = 1_000;

/// Publish records to a stream as they are, and wait until the log has acknowledged each.
///
/// With a configuration that has the stream, records go straight to its log: the cluster of [kafka], or the embedded
/// broker of the platform that runs with its data_dir. Without one they go over HTTP to --url.
///
/// Prints {"stream", "read", "delivered", "failed", "partitions": {"0": {"first", "next"}}, "errors": [{"line", "error"}]};
/// the first 1,000 errors are listed. Exit status 1 if any record failed.
#[derive(Debug, Args)]
pub(crate) struct ProduceArgs {
    stream: String,
    /// A file, `-` for standard input, or `tcp://HOST:PORT`, a server that sends lines. What is compressed with gzip is
    /// decompressed.
    #[arg(long, value_name = "FILE|-|tcp://HOST:PORT", default_value = "-")]
    from: String,
    /// json: a record a line, published as it is; blank lines are skipped. text: every line, published as it is.
    /// csv: with a header, each row becomes a JSON object.
    #[arg(
        long,
        value_enum,
        default_value_t = Input::Json,
        long_help = "json: a record a line, published as it is; blank lines are skipped.\n\
                     text: every line, published as it is.\n\
                     csv: the first row names the columns, and each further row becomes a JSON object. An empty field is \
                     null. The stream's columns decide the rest: where a number is declared (INT, BIGINT, REAL, DOUBLE, \
                     DECIMAL) and the field is a plain number, it becomes one; true and false where BOOLEAN is declared; \
                     JSON where JSON, STRUCT, LIST or MAP is; all else, such as 2,499, becomes a text."
    )]
    input: Input,
    /// Between the fields of a CSV row.
    #[arg(long, value_name = "CHARACTER", default_value = ",")]
    delimiter: char,
    /// The field whose value is the record's key: records with the same key go to the same partition. Records
    /// without it have no key.
    #[arg(long, value_name = "COLUMN")]
    key: Option<String>,
    /// At most this many records a second.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Input {
    Json,
    Csv,
    Text,
}

/// What was done; printed as JSON.
#[derive(Debug, Default, Serialize)]
struct Report {
    stream: String,
    read: u64,
    delivered: u64,
    failed: u64,
    partitions: BTreeMap<i32, Offsets>,
    errors: Vec<LineError>,
}

/// The offsets of the records of one partition; others' records may lie between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Offsets {
    /// Of the first one; null over HTTP, which tells only where they end.
    first: Option<i64>,
    /// Behind the last one.
    next: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct LineError {
    /// Where the record begins, from 1.
    line: u64,
    error: String,
}

pub(crate) async fn run(args: &ProduceArgs, platform: &PlatformArgs, format: OutputFormat) -> Outcome {
    let (stream, sink) = find(args, platform).await?;
    check_arguments(args, stream.as_ref(), &sink)?;
    let reading = Reading {
        input: args.input,
        delimiter: u8::try_from(args.delimiter)
            .map_err(|_| Failure::Usage(format!("--delimiter `{}` is not an ASCII character", args.delimiter)))?,
        key: args.key.clone(),
        stream,
    };
    let items = source::start(&args.from, reading).await?;
    let report = publish(args, &sink, items, &shutdown::on_signal()?).await;
    match format {
        OutputFormat::Json => output::print(&serde_json::to_string(&report)?)?,
        OutputFormat::Text => output::print(&for_people(&report))?,
    }
    if report.failed > 0 { Err(Failure::Negative) } else { Ok(()) }
}

/// The stream as configured, if it is, and where its records go.
async fn find(args: &ProduceArgs, platform: &PlatformArgs) -> Outcome<(Option<StreamConfig>, Sink)> {
    let configured = platform.config.is_some() || std::path::Path::new(DEFAULT_FILE).try_exists()?;
    let over_http = platform.url.is_some();
    if !configured {
        return Ok((None, Sink::over_http(platform, &args.stream)?));
    }
    let mut config = platform.configuration()?;
    match config.streams.remove(&args.stream) {
        Some(stream) => {
            let sink = Sink::to_the_log(&config, &stream).await?;
            Ok((Some(stream), sink))
        }
        None if over_http => Ok((None, Sink::over_http(platform, &args.stream)?)),
        None => {
            let hint = match nearest(&args.stream, config.streams.keys().map(String::as_str)) {
                Some(nearest) => format!("; did you mean `{nearest}`?"),
                None => "; it declares none".to_owned(),
            };
            let file = config.file.display();
            Err(Failure::Usage(format!("{file} has no stream `{}`{hint}", args.stream)))
        }
    }
}

/// What cannot work is refused before anything is published.
fn check_arguments(args: &ProduceArgs, stream: Option<&StreamConfig>, sink: &Sink) -> Outcome {
    let refuse = |message: String| Err(Failure::Usage(message));
    if let Some(StreamConfig { format: Format::Avro(_), name, .. }) = stream {
        return refuse(format!(
            "stream `{name}` has format = \"avro\", and lines are no Avro records: publish with a Kafka client and the Avro \
             serializer of its schema registry"
        ));
    }
    if args.input == Input::Csv
        && let Some(StreamConfig { format: format @ (Format::Csv { .. } | Format::Text), name, .. }) = stream
    {
        let format = if *format == Format::Text { "text" } else { "csv" };
        return refuse(format!(
            "--input csv makes JSON objects of the rows, but stream `{name}` has format = \"{format}\": publish its lines \
             as they are with --input text, or declare format = \"json\""
        ));
    }
    let Some(key) = &args.key else { return Ok(()) };
    if args.input == Input::Text {
        return refuse("--key needs records with fields: --input json or csv".to_owned());
    }
    if matches!(sink, Sink::Http { .. }) {
        return refuse("--key needs the log itself: give the configuration that has the stream with -c".to_owned());
    }
    if let Some(stream) = stream
        && stream.columns.field_with_name(key).is_err()
    {
        let columns = stream.columns.fields().iter().map(|field| field.name().as_str());
        let columns = columns.filter(|name| !SYSTEM_COLUMNS.contains(name));
        let nearest = nearest(key, columns).map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
        return refuse(format!("stream `{}` has no column `{key}`{nearest}", stream.name));
    }
    Ok(())
}

/// Publishes all items; stops early, with a report of what was done, on Ctrl-C, SIGTERM, or when the log takes nothing any more.
async fn publish(
    args: &ProduceArgs,
    sink: &Sink,
    mut items: mpsc::Receiver<Item>,
    interrupted: &CancellationToken,
) -> Report {
    let mut report = Report { stream: args.stream.clone(), ..Report::default() };
    let bar = progress_bar(args);
    let started = clock::Instant::now();
    let batch_limit = match args.rate {
        Some(rate) => (rate as usize / 20).clamp(1, BATCH_RECORDS),
        None => BATCH_RECORDS,
    };
    loop {
        let first = tokio::select! {
            item = items.recv() => item,
            () = interrupted.cancelled() => {
                eprintln!("interrupted: what has been read until now was published");
                None
            }
        };
        let Some(first) = first else { break };
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        // What is there already goes along; what is not yet is not waited for.
        while let Some(item) = next {
            match item {
                Item::Record(record) => {
                    report.read += 1;
                    bytes += record.value.len();
                    batch.push(record);
                }
                Item::Wrong(error) => {
                    report.read += 1;
                    report.fail(error);
                }
                Item::Broken(error) => report.fail(error),
            }
            next = if batch.len() < batch_limit && bytes < BATCH_BYTES { items.try_recv().ok() } else { None };
        }
        if batch.is_empty() {
            continue;
        }
        let (lines, size) = (batch.iter().map(|record| record.line).collect::<Vec<_>>(), batch.len());
        let sent = sink.send(batch).await;
        let nothing = sent.delivered == 0;
        report.add(sent);
        bar.set_position(report.delivered);
        if nothing {
            let last = lines.last().copied().unwrap_or_default();
            // One record alone may be at fault itself: too large, for example.
            if size > 1 {
                eprintln!("error: nothing was taken any more; stopped after line {last}");
                break;
            }
        }
        if let Some(rate) = args.rate {
            let due = started + Duration::from_secs_f64(report.read as f64 / f64::from(rate));
            clock::sleep(due.saturating_duration_since(clock::Instant::now())).await;
        }
    }
    bar.finish_and_clear();
    report
}

impl Report {
    fn fail(&mut self, error: LineError) {
        self.failed += 1;
        if self.errors.len() < LISTED_ERRORS {
            self.errors.push(error);
        }
    }

    fn add(&mut self, sent: Sent) {
        self.delivered += sent.delivered;
        for (partition, offsets) in sent.partitions {
            let known = self.partitions.entry(partition).or_insert(offsets);
            known.next = known.next.max(offsets.next);
        }
        sent.errors.into_iter().for_each(|error| self.fail(error));
    }
}

fn for_people(report: &Report) -> String {
    let Report { stream, read, delivered, failed, .. } = report;
    let mut out = format!("{stream}: {read} read, {delivered} delivered, {failed} failed\n");
    if !report.partitions.is_empty() {
        let rows: Vec<Vec<String>> = report
            .partitions
            .iter()
            .map(|(partition, offsets)| {
                let first = offsets.first.map_or_else(|| "unknown".to_owned(), |first| first.to_string());
                vec![partition.to_string(), first, offsets.next.to_string()]
            })
            .collect();
        out.push_str(&crate::table::text_table(&["partition", "first", "next"], &rows));
    }
    for error in &report.errors {
        out.push_str(&format!("line {}: {}\n", error.line, error.error));
    }
    let unlisted = failed.saturating_sub(report.errors.len() as u64);
    if unlisted > 0 {
        out.push_str(&format!("and {unlisted} more errors\n"));
    }
    out
}

fn progress_bar(args: &ProduceArgs) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if !std::io::stderr().is_terminal() || args.from == "-" {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {human_pos} records delivered, {per_sec}") {
        bar.set_style(style);
    }
    bar
}
