//! The bytes of a dimension table, from where the configuration says it is.

use std::io::Read;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use object_store::path::Path;
use url::Url;

use crate::config::TableConfig;
use crate::storage::{self, Storage};

/// What a table's file ends with, before `.gz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Csv,
    Json,
    Parquet,
}

impl Ending {
    /// Of the file's name, and whether the file is compressed; `None` if it is none of these.
    pub(super) fn of(url: &Url) -> Option<(Self, bool)> {
        let path = url.path();
        let (name, compressed) = path.strip_suffix(".gz").map_or((path, false), |name| (name, true));
        let ending = match name.rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
            "csv" => Self::Csv,
            "json" | "ndjson" | "jsonl" => Self::Json,
            "parquet" => Self::Parquet,
            _ => return None,
        };
        Some((ending, compressed))
    }

    /// What the engine's reader wants a file's name to end with.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Parquet => "parquet",
        }
    }
}

/// The file's bytes, out of their compression. A storage that is away is waited for like any other.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) async fn fetch(config: &TableConfig, compressed: bool) -> Result<Bytes, String> {
    let url = config.url.clone();
    let bytes = match url.scheme() {
        "hdfs" => in_storage(&url).await?,
        _ => {
            let path = url.to_file_path().map_err(|()| "not a path of this machine".to_owned())?;
            tokio::fs::read(&path).await.map_err(|error| error.to_string())?.into()
        }
    };
    if !compressed {
        return Ok(bytes);
    }
    let inflate = move || {
        let mut inflated = Vec::new();
        MultiGzDecoder::new(&*bytes).read_to_end(&mut inflated).map(|_| inflated)
    };
    match tokio::task::spawn_blocking(inflate).await {
        Ok(Ok(inflated)) => Ok(inflated.into()),
        Ok(Err(error)) => Err(format!("not gzip: {error}")),
        Err(panicked) => Err(panicked.to_string()),
    }
}

async fn in_storage(url: &Url) -> Result<Bytes, String> {
    let mut root = url.clone();
    root.set_path("/");
    let path = Path::from_url_path(url.path()).map_err(|error| error.to_string())?;
    let found = Storage::open(&root).map_err(said)?.get(&path).await.map_err(said)?;
    found.ok_or_else(|| "there is no such file".to_owned())
}

/// The error with its causes.
fn said(error: storage::Error) -> String {
    let causes: Vec<String> = storage::causes(&error).map(ToString::to_string).collect();
    causes.join(": ")
}
