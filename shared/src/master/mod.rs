//! The master dataset: every decoded event of a stream, immutable, in a Delta table that any Delta reader can read.
//!
//! One Delta commit adds the files of some offsets and moves, for each Kafka partition, the `txn` that says up to where
//! its records are archived. So the table alone says where an archiver goes on, and two archivers that race for the
//! same offsets can't both have them: each commits on the very version from which it read its offsets.

mod age;
mod append;
mod error;
mod file;
mod maintain;
mod prune;
mod reader;
mod scan;
mod schema;
mod snapshot;
mod sorted;
mod table;
mod write;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::prelude::{SessionConfig, SessionContext};
use tokio::sync::Mutex;

pub use age::SHORTEST_VACUUM_RETENTION;
pub use append::{AppendOutcome, Commit};
pub use error::{Error, missed_file, misses_a_file};
pub use file::DataFile;
pub use maintain::{Compaction, CompactionRule};
pub use schema::dead_letter_schema;
pub use snapshot::MasterSnapshot;

use crate::config::StreamConfig;
use crate::paths;
use crate::record::{HEADERS, event_schema};
use crate::storage::Storage;
use scan::{FilesTable, Part};
use table::{Table, TableState};

/// The master dataset of one stream and its dead letters: two Delta tables. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MasterDataset {
    inner: Arc<Inner>,
}

struct Inner {
    stream: String,
    topic: String,
    /// What the `txn` actions of this writer name: the topic's id, or its name where there is no id.
    topic_key: String,
    storage: Storage,
    schema: SchemaRef,
    event_time: Option<usize>,
    max_ahead_micros: i64,
    events: Table,
    events_state: Mutex<Arc<TableState>>,
    dead_letter_schema: SchemaRef,
    dead_letters: Table,
    dead_letters_state: Mutex<Arc<TableState>>,
    /// For the few small queries of this module's own.
    session: SessionContext,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterDataset").field("stream", &self.stream).field("storage", &self.storage).finish()
    }
}

impl MasterDataset {
    /// Opens the two tables of `stream`, or creates them, whoever else may be doing the same.
    ///
    /// # Errors
    /// [`Error::SchemaDiffers`] if the table has other columns than the stream declares.
    pub async fn open_or_create(storage: &Storage, stream: &StreamConfig) -> Result<Self, Error> {
        Self::open_for_topic(storage, stream, None).await
    }

    /// As [`open_or_create`](Self::open_or_create), for an archiver that knows the topic's id.
    ///
    /// An id must be given always or never for the same table: [`append`](Self::append) takes another one for another
    /// topic. Who only reads needs none.
    ///
    /// # Errors
    /// As [`open_or_create`](Self::open_or_create).
    pub async fn open_for_topic(
        storage: &Storage,
        stream: &StreamConfig,
        topic_id: Option<&str>,
    ) -> Result<Self, Error> {
        let [schema, dead_letter_schema] = schemas(stream);
        let event_time = stream.event_time.as_deref();
        let path = paths::stream(&stream.name);
        let events = Table::open_or_create(storage, &path, &schema, event_time).await?;
        let path = paths::dead_letters(&stream.name);
        let dead_letters = Table::open_or_create(storage, &path, &dead_letter_schema, None).await?;
        Ok(Self::of_tables(storage, stream, topic_id, events, dead_letters))
    }

    /// Opens the two tables of `stream` to read them; `None` if they have not been created. Writes nothing.
    ///
    /// # Errors
    /// As [`open_or_create`](Self::open_or_create).
    pub async fn open_existing(storage: &Storage, stream: &StreamConfig) -> Result<Option<Self>, Error> {
        let [schema, dead_letter_schema] = schemas(stream);
        let Some(events) = Table::open(storage, &paths::stream(&stream.name), &schema).await? else { return Ok(None) };
        let path = paths::dead_letters(&stream.name);
        let dead_letters = Table::open(storage, &path, &dead_letter_schema).await?;
        Ok(dead_letters.map(|letters| Self::of_tables(storage, stream, None, events, letters)))
    }

    fn of_tables(
        storage: &Storage,
        stream: &StreamConfig,
        topic_id: Option<&str>,
        (events, events_state): (Table, TableState),
        (dead_letters, dead_letters_state): (Table, TableState),
    ) -> Self {
        let [schema, dead_letter_schema] = schemas(stream);
        let event_time = stream.event_time.as_deref().and_then(|name| schema.index_of(name).ok());
        let inner = Inner {
            stream: stream.name.clone(),
            topic: stream.topic.clone(),
            topic_key: topic_id.unwrap_or(&stream.topic).to_owned(),
            storage: storage.clone(),
            schema,
            event_time,
            max_ahead_micros: i64::try_from(stream.max_ahead.as_micros()).unwrap_or(i64::MAX),
            events,
            events_state: Mutex::new(Arc::new(events_state)),
            dead_letter_schema,
            dead_letters,
            dead_letters_state: Mutex::new(Arc::new(dead_letters_state)),
            session: SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1)),
        };
        Self { inner: Arc::new(inner) }
    }

    pub fn stream(&self) -> &str {
        &self.inner.stream
    }

    /// [`event_schema`] of the stream: what [`MasterSnapshot::scan`] gives.
    pub fn schema(&self) -> &SchemaRef {
        &self.inner.schema
    }

    /// All that stand in their table, also those of offsets that an archiver is just about to commit.
    #[cfg(test)]
    async fn dead_letters(&self) -> Result<Arc<dyn TableProvider>, Error> {
        let files = self.inner.follow_dead_letters().await?.files.values().cloned().collect();
        Ok(self.dead_letters_of(vec![Part { files, only: None }]))
    }

    fn dead_letters_of(&self, parts: Vec<Part>) -> Arc<dyn TableProvider> {
        Arc::new(FilesTable {
            storage: self.inner.storage.clone(),
            path: paths::dead_letters(&self.inner.stream),
            schema: SchemaRef::clone(&self.inner.dead_letter_schema),
            parts,
        })
    }

    /// How many dead letters are archived, by the statistics of the files; `None` when one of them has none.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn dead_letter_count(&self) -> Result<Option<u64>, Error> {
        let state = self.inner.follow_dead_letters().await?;
        Ok(state.files.values().map(|file| file.rows).sum())
    }

    /// The present version. Two small reads when nothing is new.
    pub async fn snapshot(&self) -> Result<MasterSnapshot, Error> {
        let state = self.inner.follow_events().await?;
        MasterSnapshot::new(self.clone(), state)
    }
}

/// Of events and of dead letters.
fn schemas(stream: &StreamConfig) -> [SchemaRef; 2] {
    let events = event_schema(&stream.columns);
    let headers = events.field_with_name(HEADERS).expect("every event schema has the system columns");
    let dead_letters = Arc::new(dead_letter_schema(headers.data_type().clone()));
    [events, dead_letters]
}

impl Inner {
    async fn follow_events(&self) -> Result<Arc<TableState>, Error> {
        follow(&self.events, &self.events_state).await
    }

    async fn follow_dead_letters(&self) -> Result<Arc<TableState>, Error> {
        follow(&self.dead_letters, &self.dead_letters_state).await
    }
}

async fn follow(table: &Table, known: &Mutex<Arc<TableState>>) -> Result<Arc<TableState>, Error> {
    let mut known = known.lock().await;
    if let Some(state) = table.follow(&known).await? {
        *known = Arc::new(state);
    }
    Ok(Arc::clone(&known))
}

/// Reads the whole table anew.
async fn reload(table: &Table, known: &Mutex<Arc<TableState>>) -> Result<(), Error> {
    let mut known = known.lock().await;
    *known = Arc::new(table.load().await?);
    Ok(())
}
