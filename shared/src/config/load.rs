//! From the file's text to a [`Config`], with every problem collected.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use url::Url;

use super::env::Environment;
use super::keys::{self, Section};
use super::reader::{Context, Found, Reader, unknown_key};
use super::source::Source;
use super::{
    ArchiveConfig, BatchConfig, BrokerConfig, Claim, Config, ConfigError, HttpConfig, ServingConfig, SpeedConfig,
    kafka, stream, view,
};
use crate::master::SHORTEST_VACUUM_RETENTION;

/// Reads the configuration `text`; `file` is what errors call it, relative paths are relative to `base`.
pub(super) fn parse(text: &str, file: &str, base: &Path, env: &Environment<'_>) -> Result<Config, Vec<ConfigError>> {
    let source = Source::new(file.to_owned(), text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        for error in &syntax {
            source.error(error.span().map_or(0, |span| span.start), error.message());
        }
        return Err(source.into_errors());
    }
    let config = assemble(Context { source: &source, env }, document.get_ref(), base);
    match (config, source.into_errors()) {
        (Some(config), errors) if errors.is_empty() => Ok(config),
        (_, errors) => {
            assert!(!errors.is_empty(), "a configuration that could not be assembled has an error");
            Err(errors)
        }
    }
}

/// `None` only if an error has been noted.
fn assemble<'t>(context: Context<'_, 't>, document: &DeTable<'t>, base: &Path) -> Option<Config> {
    refuse_unknown_sections(context, document);
    let section = |section: &'static Section| {
        let (at, table) = table_of(context, document, section.name);
        let reader = Reader::new(context, section, None, at, table);
        reader.refuse_unknown();
        reader
    };
    let top = Reader::new(context, &keys::TOP, None, 0, Some(document));
    let data_dir = top.parsed("data_dir", |text| match text {
        "" => Err("an empty path"),
        path => Ok(base.join(path)),
    });
    let kafka = document.contains_key("kafka").then(|| {
        let (at, table) = table_of(context, document, "kafka");
        kafka::kafka(&Reader::new(context, &keys::KAFKA, None, at, table), table)
    });
    let broker = section(&keys::BROKER).parsed("listen", address).map(|listen| (listen.at, listen.value));
    let storage_url = match document.contains_key("storage") {
        true => section(&keys::STORAGE).parsed("url", |text| storage_url(text, base)).map(|found| found.value),
        false => data_dir.as_ref().and_then(|dir| Url::from_directory_path(absolute(&dir.value).join("storage")).ok()),
    };
    let http = section(&keys::HTTP).parsed("listen", address);
    if let (Some((_, broker)), Some(http), false) = (&broker, &http, document.contains_key("kafka"))
        && http.value.port() != 0
        && *broker == http.value
    {
        context.source.error(http.at, format!("`listen`: the embedded broker listens on {broker} already"));
    }
    let serving = serving(&section(&keys::SERVING));
    let archive = archive(&section(&keys::ARCHIVE));
    let batch = batch(&section(&keys::BATCH));
    let speed = speed(context, &section(&keys::SPEED));

    let streams = named(context, document, &keys::STREAM, |reader, name| {
        let columns = if reader.is_given("columns") { reader.raw("columns") } else { None };
        let columns = columns.map_or(reader.at, |value| value.span().start);
        stream::stream(reader, name).map(|stream| (stream, columns))
    });
    let tables = named(context, document, &keys::TABLE, |reader, name| stream::table(reader, name, base));
    let views = named(context, document, &keys::VIEW, view::view);
    refuse_clashes(context, document);

    let placed = |(name, at): (&String, usize)| (name.clone(), context.source.place(at));
    let stream_places = streams.iter().map(|(name, (_, at))| placed((name, *at))).collect();
    let streams = streams.into_iter().map(|(name, (stream, _))| (name, stream)).collect();
    let table_places = tables.iter().map(|(name, (_, at))| placed((name, *at))).collect();
    let tables = tables.into_iter().map(|(name, (table, _))| (name, table)).collect();
    let mut sql_places = BTreeMap::new();
    let views = views
        .into_iter()
        .map(|(name, (view, places))| {
            sql_places.insert(name.clone(), places);
            (name, view)
        })
        .collect();
    Some(Config {
        file: PathBuf::from(&context.source.file),
        data_dir: absolute(&data_dir?.value),
        kafka: match kafka {
            Some(kafka) => Some(kafka?),
            None => None,
        },
        broker: BrokerConfig { listen: broker?.1 },
        storage_url: storage_url?,
        storage_named: document.contains_key("storage"),
        http: HttpConfig { listen: http?.value },
        serving: serving?,
        archive: archive?,
        batch: batch?,
        speed: speed?,
        streams,
        tables,
        views,
        sql_places,
        stream_places,
        table_places,
    })
}

/// The table at `name` and where its name stands; a value that is no table is noted.
fn table_of<'t, 'd>(
    context: Context<'_, 't>,
    document: &'d DeTable<'t>,
    name: &str,
) -> (usize, Option<&'d DeTable<'t>>) {
    match document.get_key_value(name) {
        None => (0, None),
        Some((key, value)) => {
            let table = value.get_ref().as_table();
            if table.is_none() {
                context.source.error(key.span().start, format!("`{name}` must be a section: write [{name}]"));
            }
            (key.span().start, table)
        }
    }
}

fn refuse_unknown_sections(context: Context<'_, '_>, document: &DeTable<'_>) {
    let known = || keys::TOP.keys.iter().map(|key| key.name).chain(keys::SECTIONS.iter().map(|s| s.name));
    for (key, value) in document {
        let name = key.get_ref().as_ref();
        if name.is_empty() || !known().any(|known| known == name) {
            let at = key.span().start;
            if value.get_ref().is_table() {
                let sections = keys::SECTIONS.iter().map(|s| s.name).filter(|name| !name.is_empty());
                let nearest = super::reader::nearest(name, sections).unwrap_or_default();
                context.source.error(at, format!("unknown section [{name}]; did you mean [{nearest}]?"));
            } else {
                let keys = keys::TOP.keys.iter().map(|key| key.name);
                context.source.error(at, unknown_key(name, "the top of the file", keys));
            }
        }
    }
}

/// Reads each `[section.NAME]` with `read`; those that fail are left out, their errors noted.
fn named<'s, 't, T>(
    context: Context<'s, 't>,
    document: &DeTable<'t>,
    section: &'static Section,
    read: impl Fn(&Reader<'s, 't, '_>, &str) -> Option<T>,
) -> BTreeMap<String, T> {
    let (_, tables) = table_of(context, document, section.name);
    let mut found = BTreeMap::new();
    for (key, value) in tables.into_iter().flatten() {
        let name = key.get_ref().as_ref();
        let at = key.span().start;
        let Some(table) = value.get_ref().as_table() else {
            let kind = section.name;
            context.source.error(at, format!("`{name}` stands in [{kind}]; a {kind} has a name: [{kind}.NAME]"));
            continue;
        };
        if let Err(error) = check_name(section.name, name) {
            context.source.error(at, error);
        }
        let reader = Reader::new(context, section, Some(name), at, Some(table));
        reader.refuse_unknown();
        if let Some(value) = read(&reader, name) {
            found.insert(name.to_owned(), value);
        }
    }
    found
}

/// Names of streams, tables and views become folders, topics, and SQL names that need no quotes.
fn check_name(kind: &str, name: &str) -> Result<(), String> {
    const RESERVED: [&str; 6] =
        ["dead_letters", "view_errors", "information_schema", "pg_catalog", "public", "watershed"];
    let letters = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if RESERVED.contains(&name) {
        return Err(format!("`{name}` is a name of Watershed's own; choose another for the {kind}"));
    }
    if letters && name.len() <= 100 {
        return Ok(());
    }
    let proposal: String =
        name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(100).collect();
    let topic = match (kind, name) {
        ("stream", name) if !name.is_empty() => format!(" with topic = \"{name}\""),
        _ => String::new(),
    };
    let hint = match proposal.starts_with(|c: char| c.is_ascii_lowercase()) {
        true => format!("; for example [{kind}.{proposal}]{topic}"),
        false => String::new(),
    };
    Err(format!(
        "`{name}` cannot name a {kind}: a name has lower-case letters a-z, digits and _, begins with a letter and has at most 100 characters{hint}"
    ))
}

/// Streams, tables and views share one name space, that of SQL.
fn refuse_clashes(context: Context<'_, '_>, document: &DeTable<'_>) {
    let mut names: Vec<(usize, &str, &str)> = Vec::new();
    for kind in ["stream", "table", "view"] {
        let named = document.get(kind).and_then(|value| value.get_ref().as_table());
        names.extend(named.into_iter().flatten().map(|(key, _)| (key.span().start, kind, key.get_ref().as_ref())));
    }
    names.sort_unstable();
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    for (at, kind, name) in names {
        match first.get(name) {
            None => {
                first.insert(name, kind);
            }
            Some(other) => {
                let message = format!("`{name}` names a {other} already; choose another name for the {kind}");
                context.source.error(at, message);
            }
        }
    }
}

fn serving(reader: &Reader<'_, '_, '_>) -> Option<ServingConfig> {
    let memory_limit_bytes = reader.size("memory_limit", 16 << 20);
    let max_result_bytes = reader.size("max_result", 1 << 10);
    let page_cache_bytes = reader.size("page_cache", 0);
    let max_queries = reader.number("max_queries", 1..=65_536);
    let max_waiting = reader.number("max_waiting", 0..=1_048_576);
    let timeout = reader.duration("timeout", Duration::from_millis(1));
    let max_live = reader.number("max_live", 0..=1_048_576);
    // The largest body, as it comes and inflated.
    let publish_memory_bytes = reader.size("publish_memory", 128 << 20);
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    let count = |number: Found<i64>| usize::try_from(number.value).expect("within its bounds");
    Some(ServingConfig {
        memory_limit_bytes: bytes(memory_limit_bytes?),
        max_result_bytes: bytes(max_result_bytes?),
        page_cache_bytes: bytes(page_cache_bytes?),
        max_queries: count(max_queries?),
        max_waiting: count(max_waiting?),
        timeout: timeout?,
        max_live: count(max_live?),
        publish_memory_bytes: bytes(publish_memory_bytes?),
    })
}

fn archive(reader: &Reader<'_, '_, '_>) -> Option<ArchiveConfig> {
    let commit_interval = reader.duration("commit_interval", Duration::from_millis(1));
    let target_file_size_bytes = reader.size("target_file_size", 1 << 10);
    let vacuum_retention = reader.duration("vacuum_retention", SHORTEST_VACUUM_RETENTION);
    Some(ArchiveConfig {
        commit_interval: commit_interval?,
        target_file_size_bytes: target_file_size_bytes?,
        vacuum_retention: vacuum_retention?,
    })
}

fn batch(reader: &Reader<'_, '_, '_>) -> Option<BatchConfig> {
    let memory_limit_bytes = reader.size("memory_limit", 16 << 20);
    let threads = reader.number("threads", 1..=1_024);
    let max_builds = reader.number("max_builds", 1..=1_024);
    let archive_wait = reader.duration("archive_wait", Duration::ZERO);
    Some(BatchConfig {
        memory_limit_bytes: usize::try_from(memory_limit_bytes?).unwrap_or(usize::MAX),
        threads: usize::try_from(threads?.value).expect("within its bounds"),
        max_builds: usize::try_from(max_builds?.value).expect("within its bounds"),
        archive_wait: archive_wait?,
    })
}

fn speed(context: Context<'_, '_>, reader: &Reader<'_, '_, '_>) -> Option<SpeedConfig> {
    let listen = reader.parsed("listen", address);
    let claim = claim(context, reader);
    let advertise = optional(reader, "advertise", |text| match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not of the form HOST:PORT")),
    });
    let token = optional(reader, "token", |text| match text.trim() {
        "" => Err("an empty token"),
        token => Ok(token.to_owned()),
    });
    let owner_timeout = reader.duration("owner_timeout", Duration::from_millis(100));
    let commit_interval = reader.duration("commit_interval", Duration::ZERO);
    let window = reader.size("window", 1 << 20);
    Some(SpeedConfig {
        listen: listen?.value,
        claim: claim?,
        advertise: advertise?,
        token: token?,
        owner_timeout: owner_timeout?,
        commit_interval: commit_interval?,
        window_bytes: usize::try_from(window?).unwrap_or(usize::MAX),
    })
}

/// A text that may be left out; `None` only if an error has been noted.
fn optional<E: std::fmt::Display>(
    reader: &Reader<'_, '_, '_>,
    name: &str,
    parse: impl Fn(&str) -> Result<String, E>,
) -> Option<Option<String>> {
    match reader.is_given(name) {
        true => reader.parsed(name, parse).map(|found| Some(found.value)),
        false => Some(None),
    }
}

fn claim(context: Context<'_, '_>, reader: &Reader<'_, '_, '_>) -> Option<Claim> {
    let Some(value) = reader.raw("claim") else { return Some(Claim::Auto) };
    if let DeValue::Array(shards) = value.get_ref() {
        let number = |shard: &Spanned<DeValue<'_>>| match shard.get_ref() {
            DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        let mut owned = BTreeSet::new();
        for shard in shards {
            match number(shard) {
                Some(number) if owned.insert(number) => {}
                Some(number) => {
                    context.source.error(shard.span().start, format!("`claim`: shard {number} stands twice"))
                }
                None => {
                    context
                        .source
                        .error(shard.span().start, "`claim`: a shard is a number from 0, as in claim = [0, 1]");
                }
            }
        }
        if owned.is_empty() {
            context.source.error(value.span().start, "`claim`: names no shard; write \"auto\" or shards, as in [0, 1]");
        }
        return Some(Claim::Shards(owned));
    }
    let text = reader.text("claim")?;
    let shards: Option<BTreeSet<u32>> = text.value.split(',').map(|shard| shard.trim().parse().ok()).collect();
    match shards {
        _ if text.value == "auto" => Some(Claim::Auto),
        // As other numbers from the environment, in quotes.
        Some(shards) if text.substituted => Some(Claim::Shards(shards)),
        _ => {
            let neither = format!("`claim`: `{}` is neither \"auto\" nor a list of shards, as in [0, 1]", text.value);
            context.source.error(text.span.start, neither);
            None
        }
    }
}

/// `HOST:PORT` with an IP address, or `localhost`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let ip = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    ip.parse().map_err(|_| format!("`{text}` is not an address such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080"))
}

fn storage_url(text: &str, base: &Path) -> Result<Url, String> {
    let url = match text.contains("://") {
        true => Url::parse(text).map_err(|error| format!("`{text}` is not a URL: {error}"))?,
        false if text.is_empty() => return Err("an empty URL".to_owned()),
        false => path_url(&base.join(text))?,
    };
    match url.scheme() {
        "file" if url.host_str().is_some_and(|host| !host.is_empty()) => Err(format!(
            "`{text}` names a host; a path has three slashes: file:///{}",
            text.trim_start_matches("file://")
        )),
        "file" => Ok(()),
        "hdfs" if url.host_str().is_some_and(|host| !host.is_empty()) => Ok(()),
        "hdfs" => Err(format!("`{text}` lacks the NameNode, as in hdfs://localhost:9000/watershed")),
        "s3" => Err("`s3://` is not there yet: use file:// or hdfs://".to_owned()),
        other => Err(format!("`{other}://` is none of the storages file://, hdfs://")),
    }?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("`{text}` must be a folder, without `?` and `#`"));
    }
    let mut url = url;
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// The `file://` URL of a path.
pub(super) fn path_url(path: &Path) -> Result<Url, String> {
    Url::from_file_path(absolute(path)).map_err(|()| format!("`{}` is not a path that a URL can hold", path.display()))
}

/// `path` from the root, without `.` and `..`; it takes no look at the disk.
pub(super) fn absolute(path: &Path) -> PathBuf {
    let path = match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    };
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut short = PathBuf::new();
    for component in whole.components() {
        match component {
            std::path::Component::ParentDir => {
                short.pop();
            }
            other => short.push(other),
        }
    }
    short
}
