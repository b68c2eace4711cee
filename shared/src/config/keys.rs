//! Every key of the configuration: type, default and documentation in this one place. The reader takes its defaults
//! from here and [`reference`] prints it.

use std::fmt::Write as _;

/// A section, `[name]` or, where it is `named`, `[name.NAME]`.
#[derive(Debug)]
pub(super) struct Section {
    /// Empty for the keys above the first section.
    pub(super) name: &'static str,
    pub(super) named: bool,
    pub(super) doc: &'static str,
    pub(super) keys: &'static [Key],
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// What its value is, for people.
    kind: &'static str,
    pub(super) value: Value,
    doc: &'static str,
}

#[derive(Debug)]
pub(super) enum Value {
    /// The default as it would stand in the file.
    Default(&'static str),
    /// Without it there is nothing to do; the text is an example as it would stand in the file.
    Required(&'static str),
    /// May be left out; the text is an example as it would stand in the file.
    Optional(&'static str),
}

impl Key {
    /// The default as the text or number that it is, without TOML's quotes.
    pub(super) fn default_text(&self) -> Option<&'static str> {
        match self.value {
            Value::Default(text) => Some(text.trim_matches('"')),
            Value::Required(_) | Value::Optional(_) => None,
        }
    }
}

const fn key(name: &'static str, kind: &'static str, value: Value, doc: &'static str) -> Key {
    Key { name, kind, value, doc }
}

use Value::{Default, Optional, Required};

pub(super) static TOP: Section = Section {
    name: "",
    named: false,
    doc: "Texts may hold ${NAME}, replaced from the environment ($${NAME} stands for the text ${NAME}); numbers then stand in\nquotes. Relative paths are relative to this file.",
    keys: &[key(
        "data_dir",
        "path",
        Default("\"data\""),
        "Delta store, embedded broker, caches; locked by one process.",
    )],
};

pub(super) static KAFKA: Section = Section {
    name: "kafka",
    named: false,
    doc: "The Kafka cluster. Without this section: an embedded Kafka-compatible broker in the same process.\nAny further key is handed to librdkafka as it is: \"security.protocol\" = \"SASL_SSL\",\n\"sasl.mechanism\" = \"SCRAM-SHA-512\", \"sasl.username\", \"sasl.password\" = \"${KAFKA_PASSWORD}\", \"ssl.ca.location\".\nTLS and SCRAM are in builds with `--features tls`.",
    keys: &[key(
        "bootstrap_servers",
        "text",
        Required("\"localhost:9092\""),
        "Some of the cluster's brokers, as HOST:PORT, separated by commas.",
    )],
};

pub(super) static BROKER: Section = Section {
    name: "broker",
    named: false,
    doc: "The embedded broker.",
    keys: &[key(
        "listen",
        "address",
        Default("\"127.0.0.1:9092\""),
        "Where Kafka clients reach it. Port 0: any free one; shown by `up`, `status` and in data_dir/broker.json.",
    )],
};

pub(super) static STORAGE: Section = Section {
    name: "storage",
    named: false,
    doc: "Where the master datasets, generations and registers lie. Without this section: data_dir/storage.",
    keys: &[key(
        "url",
        "URL",
        Required("\"file:///srv/watershed\""),
        "file:///PATH or hdfs://HOST:PORT/PATH; s3:// is not there yet.",
    )],
};

pub(super) static HTTP: Section = Section {
    name: "http",
    named: false,
    doc: "The HTTP interface and the console.",
    keys: &[key("listen", "address", Default("\"127.0.0.1:8080\""), "Port 0: any free one; shown by `up`.")],
};

pub(super) static SERVING: Section = Section {
    name: "serving",
    named: false,
    doc: "How requests for rows are answered.",
    keys: &[
        key(
            "memory_limit",
            "size",
            Default("\"1 GiB\""),
            "Of all queries together; what needs more spills to disk where it can, else it is answered 413.",
        ),
        key(
            "max_result",
            "size",
            Default("\"256 MiB\""),
            "Of one query's rows, in memory; larger ones are answered 413.",
        ),
        key(
            "page_cache",
            "size",
            Default("\"256 MiB\""),
            "Of decoded pages of generations that lookups by key have read, kept for further ones; \"0 B\" keeps none.",
        ),
        key("max_queries", "number", Default("16"), "Queries that run at the same time; further ones wait."),
        key(
            "max_waiting",
            "number",
            Default("256"),
            "Queries that wait at the same time; further ones are answered 429.",
        ),
        key("timeout", "duration", Default("\"30 seconds\""), "Of a request that names no timeout_ms."),
        key(
            "max_live",
            "number",
            Default("64"),
            "Connections to live views at the same time; further ones are answered 429.",
        ),
        key(
            "publish_memory",
            "size",
            Default("\"256 MiB\""),
            "Of all bodies together that are being published over HTTP; further ones are answered 429.",
        ),
    ],
};

pub(super) static ARCHIVE: Section = Section {
    name: "archive",
    named: false,
    doc: "How the log is copied into the master datasets.",
    keys: &[
        key("commit_interval", "duration", Default("\"10 seconds\""), "How often what was read is committed."),
        key("target_file_size", "size", Default("\"128 MiB\""), "Files are closed and compacted at about this size."),
        key(
            "vacuum_retention",
            "duration",
            Default("\"7 days\""),
            "Files that left the table longer ago are deleted; longer than any build or query takes.",
        ),
    ],
};

pub(super) static BATCH: Section = Section {
    name: "batch",
    named: false,
    doc: "Rebuilds and refreshes.",
    keys: &[
        key("memory_limit", "size", Default("\"4 GiB\""), "Of all builds together; what needs more spills to disk."),
        key("threads", "number", Default("1"), "Of one build."),
        key("max_builds", "number", Default("1"), "Builds that run at the same time; further ones wait."),
        key(
            "archive_wait",
            "duration",
            Default("\"10 minutes\""),
            "How long a build waits for the archiver to reach its cut before it fails and changes nothing.",
        ),
    ],
};

pub(super) static SPEED: Section = Section {
    name: "speed",
    named: false,
    doc: "The speed layer.",
    keys: &[
        key(
            "listen",
            "address",
            Default("\"127.0.0.1:8081\""),
            "Of the delta service, only with separate roles; workers are found through the stream's register.",
        ),
        key(
            "claim",
            "\"auto\" or list of shards",
            Default("\"auto\""),
            "Which shards this worker owns: \"auto\", those that nobody else serves, or fixed ones: [0, 1]. \"${NAME}\" from the\nenvironment may be auto or shards, as in 0,1.",
        ),
        key(
            "advertise",
            "HOST:PORT",
            Optional("\"speed-0.speed:8081\""),
            "Where other processes reach the delta service. Default: the address on which it listens.",
        ),
        key(
            "token",
            "text",
            Optional("\"secret\""),
            "What the delta service asks for and the other processes say; needed unless it listens on loopback only.",
        ),
        key(
            "owner_timeout",
            "duration",
            Default("\"10 seconds\""),
            "With claim = \"auto\": a worker claims a shard whose owner has not answered it for this long.",
        ),
        key(
            "commit_interval",
            "duration",
            Default("\"1 second\""),
            "How far answers may be ahead of what is durable in the delta store; after a crash that much is read again.",
        ),
        key("window", "size", Default("\"64 MiB\""), "Decoded batches that a stream keeps for all its readers."),
    ],
};

pub(super) static STREAM: Section = Section {
    name: "stream",
    named: true,
    doc: "A stream: a Kafka topic with declared columns.",
    keys: &[
        key("topic", "text", Optional("\"example\""), "The Kafka topic. Default: the stream's name."),
        key("partitions", "number", Default("1"), "When the topic is created; an existing topic keeps its own."),
        key("replication", "number", Default("1"), "When the topic is created."),
        key(
            "shards",
            "number",
            Default("1"),
            "Sets of partitions that one speed worker owns together; fixed once the stream has been started.",
        ),
        key("format", "json | csv | text | avro", Default("\"json\""), "How a record's value is read."),
        key(
            "delimiter",
            "character",
            Default("\",\""),
            "Between fields, only with format = \"csv\"; \"\\t\" for a tab.",
        ),
        key(
            "schema_registry",
            "URL",
            Optional("\"http://localhost:8081\""),
            "Only with format = \"avro\", which needs it: the registry (Confluent's API) that has the schemas of the records. The\ncertificates by which https:// is trusted are the system's, or those of $SSL_CERT_FILE.",
        ),
        key("schema_registry_user", "text", Optional("\"watershed\""), "Of the registry (basic authentication)."),
        key("schema_registry_password", "text", Optional("\"secret\""), "Of the registry's user."),
        key("event_time", "column", Optional("\"at\""), "The TIMESTAMP column that holds the event time."),
        key(
            "allowed_lateness",
            "duration",
            Optional("\"10 minutes\""),
            "Events further below their partition's greatest event time are late. Needs event_time.",
        ),
        key(
            "max_ahead",
            "duration",
            Default("\"1 day\""),
            "Event times further ahead of their record's timestamp move no watermark.",
        ),
        key(
            "accept_compacted",
            "boolean",
            Default("false"),
            "Whether a topic with cleanup.policy=compact is read all the same. Its log drops records of any age: what it dropped before it\nwas archived is in no answer, and nothing tells that it was there.",
        ),
        key(
            "epoch_units",
            "table",
            Optional("{ at = \"milliseconds\" }"),
            "The unit of TIMESTAMP columns that come as numbers: seconds, milliseconds, microseconds or nanoseconds.",
        ),
        key(
            "columns",
            "columns",
            Required("\"id VARCHAR NOT NULL, at TIMESTAMP\""),
            "The columns, `name TYPE [NOT NULL]`, separated by commas. Types: BOOLEAN, INT, BIGINT, REAL, DOUBLE, DECIMAL(p, s), VARCHAR,\nVARBINARY, DATE, TIMESTAMP, JSON, STRUCT<name TYPE, …>, LIST<TYPE>, MAP<TYPE, TYPE>. Not with format = \"text\".",
        ),
    ],
};

pub(super) static TABLE: Section = Section {
    name: "table",
    named: true,
    doc: "A dimension table that views may join.",
    keys: &[
        key(
            "url",
            "URL or path",
            Required("\"file:///srv/languages.csv\""),
            "A CSV file with a header (.csv), newline-delimited JSON (.json, .ndjson, .jsonl) or Parquet (.parquet), each also with .gz; file:// or hdfs://.",
        ),
        key(
            "columns",
            "columns",
            Optional("\"name VARCHAR, year INT\""),
            "Declared columns. Default: those of the file.",
        ),
    ],
};

pub(super) static VIEW: Section = Section {
    name: "view",
    named: true,
    doc: "A view: one SQL query over one stream and dimension tables.",
    keys: &[
        key("sql", "SQL", Required("\"SELECT count(*) AS events FROM example\""), "The query."),
        key("rebuild", "cron", Optional("\"0 3 * * *\""), "When to recompute it from the whole master dataset."),
        key("refresh", "cron", Optional("\"*/5 * * * *\""), "When to fold in what was archived since."),
        key(
            "timezone",
            "time zone",
            Default("\"UTC\""),
            "Of the schedules only: an IANA name such as \"Europe/Madrid\".",
        ),
        key("late", "include | exclude", Default("\"include\""), "Whether late events count."),
        key(
            "retain",
            "duration",
            Optional("\"90 days\""),
            "Groups older than this are dropped, by event time of the view's time key.",
        ),
        key("materialize", "boolean", Default("false"), "Whether a view without an aggregate stores its rows."),
    ],
};

/// All sections in the order of the reference.
pub(super) static SECTIONS: [&Section; 12] =
    [&TOP, &KAFKA, &BROKER, &STORAGE, &HTTP, &ARCHIVE, &BATCH, &SPEED, &SERVING, &STREAM, &TABLE, &VIEW];

/// The whole reference as a configuration file: what has a default stands there with it, the rest is commented out.
pub(super) fn reference() -> String {
    let mut out = String::new();
    for section in SECTIONS {
        let optional_section = section.named || section.keys.iter().any(|key| matches!(key.value, Required(_)));
        let comment = |out: &mut String, text: &str| {
            for line in text.lines() {
                let _infallible = writeln!(out, "# {line}");
            }
        };
        comment(&mut out, section.doc);
        let mark = if optional_section { "#" } else { "" };
        if !section.name.is_empty() {
            let name = if section.named { ".example" } else { "" };
            let _infallible = writeln!(out, "{mark}[{}{name}]", section.name);
        } else {
            out.push('\n');
        }
        for key in section.keys {
            comment(&mut out, key.doc);
            let (note, mark, value) = match key.value {
                Default(text) => ("", mark, text),
                Required(text) => (", required", mark, text),
                Optional(text) => (", optional", "#", text),
            };
            let _infallible = writeln!(out, "{mark}{} = {value}  # {}{note}", key.name, key.kind);
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}
