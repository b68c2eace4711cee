//! Compiled definitions by their hash: what the configuration says now, and what a register recorded earlier.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::catalog::Definition;
use crate::clock;
use crate::config::{Place, StreamConfig, ViewConfig};
use crate::names::DefinitionHash;
use crate::storage::Storage;
use crate::tables;
use crate::view::{CompileError, CompiledView, Compiler, DimensionTable};

/// Why a recorded definition cannot be compiled here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("definition {hash} reads stream `{stream}`, which is not configured here")]
    UnknownStream { hash: DefinitionHash, stream: String },
    #[error(transparent)]
    Table(#[from] tables::Error),
    #[error("definition {hash} no longer compiles: {source}")]
    Compile { hash: DefinitionHash, source: CompileError },
    #[error(
        "definition {recorded} compiles to {compiled} here: the stream's columns or the engine's state formats have changed since it was recorded"
    )]
    Changed { recorded: DefinitionHash, compiled: DefinitionHash },
}

/// Compiles each definition once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Definitions {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    storage: Storage,
    streams: BTreeMap<String, StreamConfig>,
    compiled: Mutex<BTreeMap<DefinitionHash, Arc<CompiledView>>>,
}

impl Definitions {
    pub fn new(storage: Storage, streams: BTreeMap<String, StreamConfig>) -> Self {
        Self { inner: Arc::new(Inner { storage, streams, compiled: Mutex::new(BTreeMap::new()) }) }
    }

    /// Compiles a configured view, and answers the record of its definition.
    ///
    /// # Errors
    /// What is wrong with the SQL, and where.
    pub fn configured(
        &self,
        view: &ViewConfig,
        tables: &BTreeMap<String, DimensionTable>,
    ) -> Result<(Definition, Arc<CompiledView>), CompileError> {
        let compiled = Compiler::new(&self.inner.streams, tables)?.compile(view)?;
        let hash = compiled.definition().clone();
        let definition = Definition {
            hash: hash.clone(),
            stream: compiled.stream().to_owned(),
            sql: view.sql.clone(),
            late: view.late,
            retain: view.retain,
            materialize: view.materialize,
            // SUBTLE: those that are named, not those that the plan reads: an unused WITH has to be planned as well.
            tables: tables
                .iter()
                .filter(|(name, _)| tables::is_named_in(&view.sql, name))
                .map(|(name, table)| (name.clone(), table.content_hash.clone()))
                .collect(),
            appended_at: clock::now(),
        };
        self.inner.compiled.lock().insert(hash, Arc::clone(&compiled));
        Ok((definition, compiled))
    }

    /// The compiled view of a recorded definition, from the copies of its tables.
    ///
    /// # Errors
    /// When it cannot be compiled to the very same hash here.
    pub async fn get(&self, definition: &Definition) -> Result<Arc<CompiledView>, Error> {
        if let Some(compiled) = self.inner.compiled.lock().get(&definition.hash) {
            return Ok(Arc::clone(compiled));
        }
        let hash = definition.hash.clone();
        if !self.inner.streams.contains_key(&definition.stream) {
            return Err(Error::UnknownStream { hash, stream: definition.stream.clone() });
        }
        let mut loaded = BTreeMap::new();
        for (name, content) in &definition.tables {
            loaded.insert(name.clone(), tables::load(&self.inner.storage, name, content).await?);
        }
        let view = ViewConfig {
            name: definition.hash.as_str().to_owned(),
            sql: definition.sql.clone(),
            rebuild: None,
            refresh: None,
            timezone: chrono_tz::UTC,
            late: definition.late,
            retain: definition.retain,
            materialize: definition.materialize,
            place: Place::default(),
        };
        let compiled = Compiler::new(&self.inner.streams, &loaded)
            .and_then(|compiler| compiler.compile(&view))
            .map_err(|source| Error::Compile { hash: hash.clone(), source })?;
        if *compiled.definition() != hash {
            return Err(Error::Changed { recorded: hash, compiled: compiled.definition().clone() });
        }
        self.inner.compiled.lock().insert(hash, Arc::clone(&compiled));
        Ok(compiled)
    }
}
