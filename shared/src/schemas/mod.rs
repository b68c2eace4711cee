//! What the ids of writers' schemas stand for: asked of the registry once, recorded under the storage for good.
//!
//! # Why it is recorded
//! A record must be decoded to the same event, or the same dead letter, by every process and at every time: the archiver, the
//! workers of the speed layer, a replay. Ids are said to be immutable, but what a registry answers isn't: it says 404 of a
//! schema that is registered (or reaches that replica) a moment later, it can be set up anew and give the same ids to other
//! schemas. So the first answer to an id is a decision: a create-only record of the stream, which all processes read before
//! they ask the registry, also the one that lost the race to write it. With that the log can be decoded without the
//! registry, too.
//!
//! | the registry | then |
//! |---|---|
//! | has the schema | recorded |
//! | says that there is no such schema, for [`Settings::unknown_after`] | recorded as unknown: its records are dead letters |
//! | does not answer, refuses the login, or is no registry | [`Error`]: nothing is decided, try again |

mod registry;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use self::registry::{Answer, Registry};
use crate::clock::{self, Instant};
use crate::config::SchemaRegistryConfig;
use crate::decode::{SchemaId, WriterSchema};
use crate::paths;
use crate::storage::{self, CreateOutcome, Storage};

/// The kind of the records among the registers. Each is created once, under the schema's id as its number.
const SCHEMAS: &str = "schemas";
/// The format that this release writes, and the one that it reads.
const VERSION: &str = "1";
/// Ids that are looked up at the same time.
const AT_A_TIME: usize = 8;

/// Why it cannot be told now what an id stands for. Nothing was decided: try again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is down, or not the registry that it is thought to be.
    #[error("the schema registry does not answer: {detail}. schema_registry=`{url}`")]
    Registry { url: String, detail: String },
    #[error("a schema cannot be recorded or read. schema=`{id}`")]
    Storage {
        id: SchemaId,
        #[source]
        source: storage::Error,
    },
    /// Somebody changed it. Restore it; if it is deleted, the registry is asked again.
    #[error("the record of a schema is damaged: {reason}. path=`{path}`")]
    Damaged { path: Path, reason: String },
    #[error("the client of the schema registry cannot be made: {0}")]
    Client(String),
}

/// How a registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Of one request.
    pub timeout: Duration,
    /// How long a registry must say that it has no such schema: what was registered elsewhere may be on its way to it.
    pub unknown_after: Duration,
    /// Between two questions after the same id.
    pub ask_again: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            unknown_after: Duration::from_secs(10),
            ask_again: Duration::from_millis(500),
        }
    }
}

/// The writers' schemas of one stream.
#[derive(Debug, Clone)]
pub struct Schemas {
    storage: Storage,
    stream: String,
    registry: Registry,
    settings: Settings,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Recorded {
    version: String,
    id: SchemaId,
    schema: WriterSchema,
}

impl Schemas {
    /// # Errors
    /// If there can be no HTTP client.
    pub fn new(
        storage: &Storage,
        stream: &str,
        registry: &SchemaRegistryConfig,
        settings: Settings,
    ) -> Result<Self, Error> {
        let registry = Registry::new(registry, settings.timeout)?;
        Ok(Self { storage: storage.clone(), stream: stream.to_owned(), registry, settings })
    }

    /// What each of `ids` stands for, now and for ever. Cancel safe.
    ///
    /// # Errors
    /// If that is open for one of them.
    pub async fn settle(&self, ids: BTreeSet<SchemaId>) -> Result<BTreeMap<SchemaId, WriterSchema>, Error> {
        let settle = |id| async move { Ok::<_, Error>((id, self.settle_one(id).await?)) };
        futures::stream::iter(ids).map(settle).buffer_unordered(AT_A_TIME).try_collect().await
    }

    async fn settle_one(&self, id: SchemaId) -> Result<WriterSchema, Error> {
        let path = paths::record(SCHEMAS, &self.stream, id.0.into());
        if let Some(found) = self.recorded(id, &path).await? {
            return Ok(found);
        }
        let begun = Instant::now();
        let schema = loop {
            match self.registry.schema(id).await? {
                Answer::Found(schema) => break schema,
                Answer::Unknown if begun.elapsed() >= self.settings.unknown_after => break WriterSchema::Unknown,
                Answer::Unknown => clock::sleep(self.settings.ask_again).await,
            }
            // Another process may have been answered otherwise.
            if let Some(found) = self.recorded(id, &path).await? {
                return Ok(found);
            }
        };
        let recorded = Recorded { version: VERSION.to_owned(), id, schema };
        // Who writes the same bytes has decided the same.
        let bytes = serde_json::to_vec(&recorded).expect("texts and numbers have a JSON form");
        let created = self.storage.create(&path, bytes.into()).await.map_err(|source| Error::Storage { id, source })?;
        match created {
            CreateOutcome::Created => {
                if recorded.schema == WriterSchema::Unknown {
                    tracing::error!(
                        stream = self.stream,
                        schema = %id,
                        "the schema registry has no such schema: its records are dead letters from now on"
                    );
                }
                Ok(recorded.schema)
            }
            CreateOutcome::Exists(bytes) => read(id, &path, &bytes),
        }
    }

    async fn recorded(&self, id: SchemaId, path: &Path) -> Result<Option<WriterSchema>, Error> {
        let found = self.storage.get(path).await.map_err(|source| Error::Storage { id, source })?;
        found.map(|bytes| read(id, path, &bytes)).transpose()
    }
}

fn read(id: SchemaId, path: &Path, bytes: &Bytes) -> Result<WriterSchema, Error> {
    let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
    let recorded: Recorded = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
    if recorded.version != VERSION {
        return Err(damaged(format!("its version is {}, this program reads {VERSION}", recorded.version)));
    }
    if recorded.id != id {
        return Err(damaged(format!("it is of schema {}", recorded.id)));
    }
    Ok(recorded.schema)
}
