//! What `watershed.toml` says, checked and with defaults filled in.
//!
//! `keys` lists every key with its type, default and documentation; `load` reads the file; `source` knows the places in
//! it; `env` replaces `${NAME}`; `units` reads durations and sizes.

mod env;
mod error;
mod kafka;
mod keys;
mod load;
mod reader;
mod source;
mod stream;
#[cfg(test)]
mod tests;
mod units;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use url::Url;

pub use self::env::Environment;
pub use self::error::ConfigError;
pub use self::reader::nearest;
pub use self::source::TextPlaces;
pub use self::units::{parse_duration, parse_size};

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "watershed.toml";

/// The whole configuration. Relative paths have been resolved against the file's folder.
#[derive(Debug, Clone)]
pub struct Config {
    /// As it was named, for messages.
    pub file: PathBuf,
    /// Delta store, embedded broker, caches; locked by one process.
    pub data_dir: PathBuf,
    /// `None`: the embedded broker.
    pub kafka: Option<KafkaConfig>,
    pub broker: BrokerConfig,
    /// Where the master datasets, generations and registers lie; ends with a slash.
    pub storage_url: Url,
    /// Whether the file names the storage; otherwise it lies in `data_dir`.
    pub storage_named: bool,
    pub http: HttpConfig,
    pub serving: ServingConfig,
    pub archive: ArchiveConfig,
    pub batch: BatchConfig,
    pub speed: SpeedConfig,
    pub streams: BTreeMap<String, StreamConfig>,
    pub tables: BTreeMap<String, TableConfig>,
    pub views: BTreeMap<String, ViewConfig>,
    /// Where each character of a view's `sql` stands in the file, by the view's name.
    pub sql_places: BTreeMap<String, TextPlaces>,
    /// Where the `columns` of each stream stand in the file, or the stream itself, by its name.
    pub stream_places: BTreeMap<String, Place>,
    /// Where the `url` of each dimension table stands in the file, by the table's name.
    pub table_places: BTreeMap<String, Place>,
}

impl Config {
    /// Reads the file at `path`, or [`DEFAULT_FILE`] in the current folder, or, if that is absent,
    /// [`Self::embedded_default`]. All that is wrong is returned, in the order of the file.
    pub fn load(path: Option<&Path>) -> Result<Self, Vec<ConfigError>> {
        let file = path.unwrap_or(Path::new(DEFAULT_FILE));
        let unreadable = |error: &dyn std::fmt::Display| {
            let message = format!("cannot read the configuration: {error}");
            vec![ConfigError { file: file.display().to_string(), line: 1, column: 1, message }]
        };
        let bytes = match std::fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::embedded_default());
            }
            Err(error) => return Err(unreadable(&error)),
        };
        let text = String::from_utf8(bytes).map_err(|error| unreadable(&error))?;
        let base = file.parent().unwrap_or(Path::new(""));
        load::parse(&text, &file.display().to_string(), &load::absolute(base), &|name| std::env::var(name).ok())
    }

    /// Reads `text` as a file [`DEFAULT_FILE`] in the folder `base_dir`; `env` gives the values of `${NAME}`.
    pub fn parse(text: &str, base_dir: &Path, env: &Environment<'_>) -> Result<Self, Vec<ConfigError>> {
        load::parse(text, DEFAULT_FILE, base_dir, env)
    }

    /// What an empty file in the current folder says: embedded broker, `./data`, no streams and views.
    pub fn embedded_default() -> Self {
        let base = load::absolute(Path::new("."));
        load::parse("", DEFAULT_FILE, &base, &|_| None).expect("an empty file is a configuration; a test reads one")
    }

    /// Every key with its type, default and documentation, as a configuration file.
    pub fn reference() -> String {
        keys::reference()
    }
}

/// librdkafka's own keys, handed through as they are; `bootstrap.servers` is among them.
#[derive(Clone, Default)]
pub struct KafkaConfig {
    pub properties: BTreeMap<String, String>,
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of the values some are passwords.
        f.debug_set().entries(self.properties.keys()).finish()
    }
}

#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Port 0: any free one.
    pub listen: SocketAddr,
}

#[derive(Debug, Clone)]
pub struct HttpConfig {
    pub listen: SocketAddr,
}

/// Limits of requests for rows.
#[derive(Debug, Clone)]
pub struct ServingConfig {
    /// Of all queries together.
    pub memory_limit_bytes: usize,
    /// Of one query's rows.
    pub max_result_bytes: usize,
    /// Of decoded pages that lookups keep.
    pub page_cache_bytes: usize,
    pub max_queries: usize,
    pub max_waiting: usize,
    /// Of a request that names none.
    pub timeout: Duration,
    pub max_live: usize,
    /// Of all bodies that are being published.
    pub publish_memory_bytes: usize,
}

#[derive(Debug, Clone)]
pub struct ArchiveConfig {
    pub commit_interval: Duration,
    pub target_file_size_bytes: u64,
    /// What left the table longer ago is deleted.
    pub vacuum_retention: Duration,
}

#[derive(Debug, Clone)]
pub struct BatchConfig {
    pub memory_limit_bytes: usize,
    pub threads: usize,
    pub max_builds: usize,
    /// How long a build waits for the archiver to reach its cut.
    pub archive_wait: Duration,
}

#[derive(Debug, Clone)]
pub struct SpeedConfig {
    pub listen: SocketAddr,
    pub claim: Claim,
    /// `host:port` for other processes; `None`: where it listens.
    pub advertise: Option<String>,
    /// Of the delta service.
    pub token: Option<String>,
    /// How long an owner may be silent before its shard is claimed.
    pub owner_timeout: Duration,
    /// How long an answer may be ahead of what is durable in the delta store.
    pub commit_interval: Duration,
    /// Bytes of decoded batches that a stream's shared window holds.
    pub window_bytes: usize,
}

/// Which shards a speed worker owns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Claim {
    /// Those whose owner does not answer.
    #[default]
    Auto,
    /// These of every stream.
    Shards(BTreeSet<u32>),
}

/// `[stream.NAME]`.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    pub name: String,
    pub topic: String,
    /// When the topic is created; an existing topic keeps its own.
    pub partitions: i32,
    pub replication: i32,
    pub shards: u32,
    pub format: Format,
    /// The user's column that holds the event time.
    pub event_time: Option<String>,
    pub allowed_lateness: Option<Duration>,
    pub max_ahead: Duration,
    /// A topic that the cluster compacts will do: then the master dataset alone is the truth.
    pub accept_compacted: bool,
    /// The user's columns, in order, in the Arrow types of [`crate::record::event_schema`].
    pub columns: SchemaRef,
    /// Columns whose values are any JSON value, kept as text (type `JSON`).
    pub json_columns: Vec<String>,
    /// `epoch_units = { created_at = "milliseconds" }`: the unit of TIMESTAMP columns that come as numbers.
    pub epoch_units: BTreeMap<String, EpochUnit>,
}

impl StreamConfig {
    /// All besides the columns' types that decides what a record is decoded to, and its running maximum:
    /// {key of the configuration → value}, those that are not given left out.
    pub fn decoding(&self) -> BTreeMap<String, String> {
        let mut keys = BTreeMap::new();
        let mut put = |key: &str, value: String| drop(keys.insert(key.to_owned(), value));
        match &self.format {
            Format::Json => put("format", "json".to_owned()),
            Format::Csv { delimiter } => {
                put("format", "csv".to_owned());
                put("delimiter", char::from(*delimiter).to_string());
            }
            Format::Text => put("format", "text".to_owned()),
            // Another URL may well be the same registry; what an id stands for is settled elsewhere, once.
            Format::Avro(_) => put("format", "avro".to_owned()),
        }
        if let Some(event_time) = &self.event_time {
            put("event_time", event_time.clone());
            put("max_ahead", format!("{} microseconds", self.max_ahead.as_micros()));
        }
        for column in &self.json_columns {
            put(&format!("columns.{column}"), "JSON".to_owned());
        }
        for (column, unit) in &self.epoch_units {
            put(&format!("epoch_units.{column}"), format!("{unit:?}").to_lowercase());
        }
        keys
    }
}

/// The unit of a timestamp that comes as a number since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EpochUnit {
    Seconds,
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

/// How a record's value is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// One object a record.
    Json,
    /// One row a record, fields in the columns' order.
    Csv { delimiter: u8 },
    /// The single column `line VARCHAR`.
    Text,
    /// Avro in Confluent's wire format, the writers' schemas in a registry.
    Avro(SchemaRegistryConfig),
}

/// A schema registry that keeps to Confluent's API.
#[derive(Clone, PartialEq, Eq)]
pub struct SchemaRegistryConfig {
    /// Ends with a slash; without user and password.
    pub url: Url,
    pub user: Option<String>,
    pub password: Option<String>,
}

impl fmt::Debug for SchemaRegistryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the password.
        f.debug_struct("SchemaRegistryConfig")
            .field("url", &self.url.as_str())
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// `[table.NAME]`: a dimension table that views may join.
#[derive(Debug, Clone)]
pub struct TableConfig {
    pub name: String,
    /// A CSV (with a header), newline-delimited JSON or Parquet file.
    pub url: Url,
    /// Declared columns; `None`: those of the file.
    pub columns: Option<SchemaRef>,
}

/// `[view.NAME]`.
#[derive(Debug, Clone)]
pub struct ViewConfig {
    pub name: String,
    pub sql: String,
    /// Cron expressions as the user wrote them; checked.
    pub rebuild: Option<String>,
    pub refresh: Option<String>,
    /// Of the schedules only.
    pub timezone: chrono_tz::Tz,
    pub late: Late,
    /// Groups older than this are dropped, by event time of the view's time key.
    pub retain: Option<Duration>,
    /// A row view that stores its rows.
    pub materialize: bool,
    /// Where the view and its `sql` stand in the file, for messages.
    pub place: Place,
}

/// Whether late events count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Late {
    #[default]
    Include,
    Exclude,
}

/// A place in the configuration file, both from 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}
