//! The JSON form of a record.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Error, RegisterState};

/// The format that this release writes. Formats that it reads: this one.
const VERSION: &str = "1";

/// Version, number and id, which come first in the file, lie within this many bytes.
pub(super) const START: u64 = 112;

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Record<S: RegisterState> {
    /// From 1, without a hole.
    pub number: u64,
    /// Of this record, new with each attempt to write one.
    pub id: Uuid,
    /// The writer's wall clock, for people.
    pub at: DateTime<Utc>,
    pub writer: String,
    /// Numbers below it are or will be deleted.
    pub kept_from: u64,
    pub event: S::Event,
    /// After the event.
    pub state: S,
}

#[derive(Serialize)]
struct Stored<'a, S: RegisterState> {
    version: &'a str,
    number: u64,
    id: Uuid,
    at: DateTime<Utc>,
    writer: &'a str,
    kept_from: u64,
    event: &'a S::Event,
    state: &'a S,
}

// Read by itself, not as a tag of the record: serde reads tagged content through a buffer in which map keys that are
// numbers don't come back.
#[derive(Deserialize)]
struct Version {
    version: String,
}

pub(super) fn encode<S: RegisterState>(path: &Path, record: &Record<S>) -> Result<Bytes, Error> {
    let stored = Stored {
        version: VERSION,
        number: record.number,
        id: record.id,
        at: record.at,
        writer: &record.writer,
        kept_from: record.kept_from,
        event: &record.event,
        state: &record.state,
    };
    let corrupt = |reason: String| Error::Corrupt { path: path.clone(), reason };
    let bytes = serde_json::to_vec(&stored).map_err(|e| corrupt(format!("it has no JSON form: {e}")))?;
    // What nobody could read must not be decided: a record is written only if it reads back.
    decode::<S>(path, record.number, &bytes)?;
    Ok(bytes.into())
}

pub(super) fn decode<S: RegisterState>(path: &Path, number: u64, bytes: &[u8]) -> Result<Record<S>, Error> {
    let corrupt = |reason: String| Error::Corrupt { path: path.clone(), reason };
    let Version { version } = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    if version != VERSION {
        return Err(Error::NewerVersion { path: path.clone(), version });
    }
    let record: Record<S> = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    if record.number != number {
        return Err(corrupt(format!("it says that its number is {}", record.number)));
    }
    if record.kept_from == 0 || record.kept_from > number {
        return Err(corrupt(format!("kept_from is {}", record.kept_from)));
    }
    Ok(record)
}

/// The part of a record's file that tells it from any other record.
pub(super) fn start(bytes: &Bytes) -> Bytes {
    bytes.slice(..bytes.len().min(START as usize))
}
