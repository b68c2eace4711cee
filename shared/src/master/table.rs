//! A Delta table as a log of versions: opening, following, committing.
//!
//! Reading a version from its checkpoint is deltalake's work. From there on the versions are followed one by one, so
//! that looking for a new one costs two small reads, and a commit is one create of exactly the next version: whoever
//! creates it has decided, and all that a commit rests on is known when it is made.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, Schema};
use bytes::Bytes;
use datafusion::error::DataFusionError;
use deltalake_core::kernel::transaction::{CommitData, TransactionError};
use deltalake_core::kernel::{Action, Add, LogicalFileView, Metadata, Protocol, StructType, Transaction, new_metadata};
use deltalake_core::logstore::parquet_reader::ParquetObjectReader;
use deltalake_core::logstore::{CommitOrBytes, LogStoreRef, StorageConfig, default_logstore, get_actions};
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::{DeltaTable, DeltaTableError};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use super::error::{from_commit, from_delta};
use super::file::DataFile;
use super::sorted::Sorted;
use super::{Error, schema};
use crate::abort_point;
use crate::record::DATE;
use crate::storage::Storage;

/// One Delta table. It holds no version: see [`TableState`].
#[derive(Debug)]
pub(super) struct Table {
    /// For messages: its path under the storage URL.
    pub(super) name: String,
    /// Rooted at the table.
    pub(super) store: Arc<dyn ObjectStore>,
    log_store: LogStoreRef,
    /// `_date` included.
    declared: StructType,
}

/// A version of a table.
#[derive(Debug, Clone, Default)]
pub(super) struct TableState {
    pub(super) version: u64,
    pub(super) files: BTreeMap<Path, Arc<DataFile>>,
    /// By application.
    pub(super) txns: BTreeMap<String, i64>,
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Committed {
    /// It is the version after the one that it rests on.
    Done,
    /// Another commit is. Nothing was changed: follow the log and decide again.
    Lost,
    /// Nobody can say, since a later checkpoint stands already. Load the table anew and decide again.
    Superseded,
}

/// What a commit changes.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) actions: Vec<Action>,
    pub(super) txns: Vec<Transaction>,
    pub(super) operation: DeltaOperation,
    /// For people who read the log.
    pub(super) note: Value,
}

impl Table {
    /// Opens the table at `path`, or creates it, whoever else may be doing the same. Also reads its present version.
    ///
    /// # Errors
    /// [`Error::SchemaDiffers`], [`Error::Protocol`] if the table that is there can't be used.
    pub(super) async fn open_or_create(
        storage: &Storage,
        path: &Path,
        columns: &Schema,
        event_time: Option<&str>,
    ) -> Result<(Self, TableState), Error> {
        let table = Self::at(storage, path, columns)?;
        if let Some(state) = table.load_if_there().await? {
            return Ok((table, state));
        }
        table.create(storage, columns, event_time).await?;
        match table.load_if_there().await? {
            Some(state) => Ok((table, state)),
            None => Err(Error::Corrupt { what: format!("no table after its creation at {path}") }),
        }
    }

    /// Opens the table at `path` and reads its present version; `None` if there is none. Writes nothing.
    ///
    /// # Errors
    /// As [`open_or_create`](Self::open_or_create).
    pub(super) async fn open(
        storage: &Storage,
        path: &Path,
        columns: &Schema,
    ) -> Result<Option<(Self, TableState)>, Error> {
        let table = Self::at(storage, path, columns)?;
        Ok(table.load_if_there().await?.map(|state| (table, state)))
    }

    fn at(storage: &Storage, path: &Path, columns: &Schema) -> Result<Self, Error> {
        let declared = schema::delta_schema(path.as_ref(), columns)?;
        let root: Arc<dyn ObjectStore> = Arc::new(Sorted(storage.store()));
        let store: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(Arc::clone(&root), path.clone()));
        // The library finds a table by the path of a URL in a store. It gets our store, which is rooted at the storage
        // URL, and a URL whose scheme has no meaning to it: whatever the storage is, nothing is opened beside it.
        let location = Url::parse(&format!("watershed://storage/{path}/")).expect("a path makes a URL");
        let log_store = default_logstore(Arc::clone(&store), root, &location, &StorageConfig::default());
        Ok(Self { name: path.to_string(), store, log_store, declared })
    }

    /// Creates version 0; it is no error if another has.
    async fn create(&self, storage: &Storage, columns: &Schema, event_time: Option<&str>) -> Result<(), Error> {
        let protocol: Protocol = serde_json::from_value(json!({"minReaderVersion": 1, "minWriterVersion": 2}))
            .expect("the oldest protocol is one");
        let properties = schema::properties(&schema::indexed_columns(columns, event_time));
        let metadata =
            new_metadata(&self.declared, [DATE], properties).map_err(|source| from_delta(&self.name)(source.into()))?;
        let location = storage.url().join(&format!("{}/", self.name)).unwrap_or_else(|_| storage.url().clone());
        let operation = DeltaOperation::Create {
            mode: SaveMode::ErrorIfExists,
            location,
            protocol: protocol.clone(),
            metadata: metadata.clone(),
        };
        let actions = vec![Action::Protocol(protocol), Action::Metadata(metadata)];
        let bytes = self.encode(Change { actions, txns: vec![], operation, note: json!({}) })?;
        self.put_commit(0, bytes).await.map(|_| ())
    }

    /// The present version, from the last checkpoint on.
    pub(super) async fn load(&self) -> Result<TableState, Error> {
        self.load_if_there().await?.ok_or_else(|| Error::Corrupt { what: format!("no table at {}", self.name) })
    }

    async fn load_if_there(&self) -> Result<Option<TableState>, Error> {
        let mut table = DeltaTable::new(Arc::clone(&self.log_store));
        match table.load().await {
            Ok(()) => {}
            Err(DeltaTableError::NotATable(_)) => return Ok(None),
            Err(error) => return Err(from_delta(&self.name)(error)),
        }
        let snapshot = table.snapshot().map_err(from_delta(&self.name))?;
        self.check_protocol(snapshot.protocol())?;
        self.check_metadata(snapshot.metadata())?;
        let mut files = BTreeMap::new();
        for file in snapshot.log_data().iter() {
            let file = DataFile::new(active(&file))?;
            files.insert(file.path.clone(), Arc::new(file));
        }
        let version = snapshot.version();
        let txns = self.load_txns(version).await?;
        Ok(Some(TableState { version, files, txns }))
    }

    /// The `txn` of every application at `version`. The library reads one application only, at the same cost.
    async fn load_txns(&self, version: u64) -> Result<BTreeMap<String, i64>, Error> {
        let log: Vec<_> = self.store.list(Some(&Path::from("_delta_log"))).try_collect().await?;
        let mut checkpoints: BTreeMap<u64, (usize, Vec<&object_store::ObjectMeta>)> = BTreeMap::new();
        for object in &log {
            if let Some((at, parts)) = object.location.filename().and_then(checkpoint_name)
                && at <= version
            {
                let entry = checkpoints.entry(at).or_insert((parts, vec![]));
                entry.1.push(object);
            }
        }
        let mut txns = BTreeMap::new();
        let mut next = 0;
        if let Some((at, (_, parts))) = checkpoints.iter().rev().find(|(_, (count, parts))| *count == parts.len()) {
            for part in parts {
                self.read_checkpoint_txns(part, &mut txns).await?;
            }
            next = at + 1;
        }
        for version in next..=version {
            let actions = self.read_commit(version).await?;
            // Cleaned up while we read: the next attempt finds a later checkpoint.
            let actions = actions.ok_or_else(|| Error::Delta {
                table: self.name.clone(),
                source: Box::new(DeltaTableError::InvalidVersion(version)),
            })?;
            for action in actions {
                if let Action::Txn(txn) = action {
                    txns.insert(txn.app_id, txn.version);
                }
            }
        }
        Ok(txns)
    }

    async fn read_checkpoint_txns(
        &self,
        part: &object_store::ObjectMeta,
        txns: &mut BTreeMap<String, i64>,
    ) -> Result<(), Error> {
        let failed = |source| Error::Query(DataFusionError::ParquetError(Box::new(source)));
        let reader = ParquetObjectReader::new(Arc::clone(&self.store), part.location.clone()).with_file_size(part.size);
        let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(failed)?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), ["txn.appId", "txn.version"]);
        let mut batches = builder.with_projection(mask).build().map_err(failed)?;
        while let Some(batch) = batches.try_next().await.map_err(failed)? {
            let Some(txn) = batch.column_by_name("txn") else { continue };
            let txn = txn.as_struct();
            let (Some(apps), Some(versions)) = (txn.column_by_name("appId"), txn.column_by_name("version")) else {
                continue;
            };
            let apps = arrow::compute::cast(apps, &arrow::datatypes::DataType::Utf8)
                .map_err(|e| Error::Encode(Box::new(e)))?;
            let (apps, versions) = (apps.as_string::<i32>(), versions.as_primitive::<Int64Type>());
            for row in (0..txn.len()).filter(|row| txn.is_valid(*row) && apps.is_valid(*row)) {
                txns.insert(apps.value(row).to_owned(), versions.value(row));
            }
        }
        Ok(())
    }

    /// The present version, starting from `state`; `None` if that is still it.
    pub(super) async fn follow(&self, state: &TableState) -> Result<Option<TableState>, Error> {
        let mut next: Option<TableState> = None;
        loop {
            let at = next.as_ref().unwrap_or(state).version;
            let Some(actions) = self.read_commit(at + 1).await? else {
                if self.last_checkpoint().await?.is_some_and(|checkpoint| checkpoint > at) {
                    // SUBTLE: the next version existed and was cleaned up: this process has slept for days.
                    return self.load().await.map(Some);
                }
                return Ok(next);
            };
            let state = next.get_or_insert_with(|| state.clone());
            self.apply(state, actions)?;
            state.version = at + 1;
        }
    }

    fn apply(&self, state: &mut TableState, actions: Vec<Action>) -> Result<(), Error> {
        for action in actions {
            match action {
                Action::Add(add) => {
                    let file = DataFile::new(add)?;
                    state.files.insert(file.path.clone(), Arc::new(file));
                }
                Action::Remove(remove) => {
                    let path = Path::parse(&remove.path)
                        .map_err(|_| Error::Corrupt { what: format!("the path of file {}", remove.path) })?;
                    state.files.remove(&path);
                }
                Action::Txn(txn) => {
                    state.txns.insert(txn.app_id, txn.version);
                }
                Action::Metadata(metadata) => self.check_metadata(&metadata)?,
                Action::Protocol(protocol) => self.check_protocol(&protocol)?,
                Action::Cdc(_) | Action::CommitInfo(_) | Action::DomainMetadata(_) => {}
            }
        }
        Ok(())
    }

    async fn read_commit(&self, version: u64) -> Result<Option<Vec<Action>>, Error> {
        let bytes = self.log_store.read_commit_entry(version).await.map_err(from_delta(&self.name))?;
        bytes.map(|bytes| get_actions(version, &bytes).map_err(from_delta(&self.name))).transpose()
    }

    /// The version of the last checkpoint, as far as the hint knows.
    async fn last_checkpoint(&self) -> Result<Option<u64>, Error> {
        let bytes = match self.store.get(&Path::from("_delta_log/_last_checkpoint")).await {
            Ok(found) => found.bytes().await?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let hint: Option<Value> = serde_json::from_slice(&bytes).ok();
        Ok(hint.and_then(|hint| hint.get("version")?.as_u64()))
    }

    /// Commits `change` as the version after `state`'s, or not at all.
    ///
    /// # Errors
    /// After an error the commit may have happened, or happen later: only a new state tells.
    pub(super) async fn commit(&self, state: &TableState, change: Change) -> Result<Committed, Error> {
        let version = state.version + 1;
        let bytes = self.encode(change)?;
        let created = self.put_commit(version, bytes).await?;
        if created != Committed::Done {
            return Ok(created);
        }
        abort_point!("master.commit_sent");
        if self.last_checkpoint().await?.is_some_and(|checkpoint| checkpoint >= version) {
            // SUBTLE: either others were quick and our version is part of that checkpoint, or this process has slept
            // until its version had been used and cleaned up, and then our entry counts for nobody. The table tells.
            return Ok(Committed::Superseded);
        }
        Ok(Committed::Done)
    }

    fn encode(&self, change: Change) -> Result<Bytes, Error> {
        let metadata = HashMap::from([
            ("clientVersion".to_owned(), json!(concat!("watershed.", env!("CARGO_PKG_VERSION")))),
            ("isBlindAppend".to_owned(), json!(matches!(change.operation, DeltaOperation::Write { .. }))),
            // Also what tells this commit from every other one.
            ("watershed".to_owned(), json!({"id": Uuid::new_v4(), "note": change.note})),
        ]);
        CommitData::new(change.actions, change.operation, metadata, change.txns)
            .get_bytes()
            .map_err(from_commit(&self.name))
    }

    /// Creates the log entry of `version`, durably, and settles what an error leaves open.
    async fn put_commit(&self, version: u64, bytes: Bytes) -> Result<Committed, Error> {
        let entry = CommitOrBytes::LogBytes(bytes.clone());
        let source = match self.log_store.write_commit_entry(version, entry, Uuid::new_v4()).await {
            Ok(()) => return Ok(Committed::Done),
            Err(source) => source,
        };
        // SUBTLE: a call that is replayed below us can meet its own entry, so "exists" is no answer either.
        match self.log_store.read_commit_entry(version).await.map_err(from_delta(&self.name))? {
            Some(found) if found == bytes => Ok(Committed::Done),
            Some(_) => Ok(Committed::Lost),
            None if matches!(source, TransactionError::VersionAlreadyExists(_)) => Ok(Committed::Lost),
            None => Err(from_commit(&self.name)(source)),
        }
    }

    fn check_protocol(&self, protocol: &Protocol) -> Result<(), Error> {
        // From reader version 2 on there are column mapping and deletion vectors: files don't say all about rows.
        if protocol.min_reader_version() > 1 {
            return Err(Error::Protocol { table: self.name.clone(), protocol: format!("{protocol:?}") });
        }
        Ok(())
    }

    fn check_metadata(&self, metadata: &Metadata) -> Result<(), Error> {
        let corrupt = || Error::Corrupt { what: format!("the metadata of {}", self.name) };
        let value = serde_json::to_value(metadata).map_err(|_| corrupt())?;
        let text = value.get("schemaString").and_then(Value::as_str).ok_or_else(corrupt)?;
        let found: StructType = serde_json::from_str(text).map_err(|_| corrupt())?;
        schema::check(&self.name, &self.declared, &found)?;
        if metadata.partition_columns() != [DATE] {
            return Err(Error::SchemaDiffers {
                table: self.name.clone(),
                column: DATE.to_owned(),
                declared: format!("partitioned by {DATE}"),
                found: format!("partitioned by {}", metadata.partition_columns().join(", ")),
            });
        }
        Ok(())
    }

    /// The library's own view of the table at `version`, for its maintenance operations.
    pub(super) async fn at_version(&self, version: u64) -> Result<DeltaTable, Error> {
        let mut table = DeltaTable::new(Arc::clone(&self.log_store));
        table.load_version(version).await.map_err(from_delta(&self.name))?;
        Ok(table)
    }
}

/// The action that added a file, as the library's replay knows it.
fn active(file: &LogicalFileView) -> Add {
    Add {
        path: file.path().into_owned(),
        partition_values: file.partition_values_map(),
        size: file.size(),
        modification_time: file.modification_time(),
        data_change: true,
        stats: file.stats(),
        deletion_vector: file.deletion_vector_descriptor(),
        ..Add::default()
    }
}

/// Version and number of parts of a checkpoint file, by its name.
fn checkpoint_name(name: &str) -> Option<(u64, usize)> {
    let mut words = name.strip_suffix(".parquet")?.split('.');
    let version = words.next().filter(|digits| digits.len() == 20)?.parse().ok()?;
    if words.next()? != "checkpoint" {
        return None;
    }
    match (words.next(), words.next(), words.next()) {
        (None, ..) => Some((version, 1)),
        (Some(_), Some(parts), None) => Some((version, parts.parse().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_known_by_their_names() {
        assert_eq!(checkpoint_name("00000000000000000099.checkpoint.parquet"), Some((99, 1)));
        let part = "00000000000000000099.checkpoint.0000000001.0000000003.parquet";
        assert_eq!(checkpoint_name(part), Some((99, 3)));
        for other in ["00000000000000000099.json", "_last_checkpoint", "part-0.parquet", "0.checkpoint.parquet"] {
            assert_eq!(checkpoint_name(other), None, "{other}");
        }
    }
}
