//! Runs plans: beside the HTTP front, within limits of memory, time and number.

mod bounded;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider};
use datafusion::catalog::{CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::DataFusionError;
use datafusion::dataframe::DataFrame;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use futures::StreamExt;
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use watershed_shared::clock;
use watershed_shared::master;
use watershed_shared::run::Fault;
use watershed_shared::storage::{self, Storage};
use watershed_shared::view::pinned_config;

use crate::error::{Code, Error, Result};
use crate::sql::{self, DEAD_LETTERS, Named, VIEW_ERRORS};

/// Limits of queries.
#[derive(Debug, Clone)]
pub struct QuerySettings {
    /// Of all queries together; what needs more spills to disk where it can.
    pub memory_limit_bytes: usize,
    /// Of one result.
    pub max_result_bytes: usize,
    /// Of decoded pages of generations that lookups keep.
    pub page_cache_bytes: usize,
    /// Under way at a time; others wait.
    pub max_concurrent: usize,
    /// Waiting at a time; others are answered 429.
    pub max_waiting: usize,
    /// Threads beside those of the HTTP front; 0: the caller's own runtime (in simulations).
    pub threads: usize,
    /// Of a request that names no `timeout_ms`.
    pub timeout: Duration,
}

impl Default for QuerySettings {
    fn default() -> Self {
        Self {
            memory_limit_bytes: 1 << 30,
            max_result_bytes: 256 << 20,
            page_cache_bytes: 256 << 20,
            max_concurrent: 16,
            max_waiting: 256,
            threads: std::thread::available_parallelism().map_or(2, |n| n.get().min(8)),
            timeout: Duration::from_secs(30),
        }
    }
}

/// The right to run. Whatever does the work holds it to its end, also when nobody waits for it any longer.
pub(crate) type Turn = Arc<OwnedSemaphorePermit>;

/// Rows, in memory.
#[derive(Debug, Clone)]
pub struct Rows {
    pub schema: SchemaRef,
    pub batches: Vec<RecordBatch>,
}

impl Rows {
    /// How many.
    pub fn count(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

#[derive(Debug)]
pub(crate) struct Engine {
    settings: QuerySettings,
    base: SessionState,
    /// `None`: the caller's.
    runtime: Option<Runtime>,
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Why a plan gave no rows.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A file of the storage was deleted under the plan: take a new answer and begin again.
    FileGone(DataFusionError),
    /// For the client.
    Answer(Error),
}

impl Engine {
    /// # Errors
    /// When the engine's threads or its folder for spilling cannot be had.
    pub(crate) fn new(storage: &Storage, settings: QuerySettings) -> std::io::Result<Self> {
        let pool = Arc::new(FairSpillPool::new(settings.memory_limit_bytes));
        let environment: Arc<RuntimeEnv> =
            RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().map_err(std::io::Error::other)?;
        storage.register_with(&environment);
        let mut base = SessionStateBuilder::new()
            .with_config(pinned_config())
            .with_runtime_env(environment)
            .with_default_features()
            .build();
        bounded::register(&mut base, settings.max_result_bytes).map_err(std::io::Error::other)?;
        let runtime = match settings.threads {
            0 => None,
            threads => Some(
                tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(threads)
                    .thread_name("watershed-query")
                    .enable_all()
                    .build()?,
            ),
        };
        Ok(Self {
            running: Arc::new(Semaphore::new(settings.max_concurrent)),
            waiting: AtomicUsize::new(0),
            settings,
            base,
            runtime,
        })
    }

    /// Queries under way, for metrics.
    pub(crate) fn under_way(&self) -> usize {
        self.settings.max_concurrent - self.running.available_permits()
    }

    /// A turn to run; waits for one while not too many do.
    ///
    /// # Errors
    /// `too_many_requests`.
    pub(crate) async fn turn(&self) -> Result<Turn> {
        if let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() {
            return Ok(Arc::new(permit));
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.settings.max_waiting {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::new(Code::TooManyRequests, "too many queries are waiting: try again"));
        }
        let _leave = Leave(&self.waiting);
        Ok(Arc::new(Arc::clone(&self.running).acquire_owned().await.expect("the semaphore is never closed")))
    }

    /// A state with exactly these tables.
    pub(crate) fn session(&self, tables: Vec<(Named, Arc<dyn TableProvider>)>) -> SessionState {
        let schemas = ["public", DEAD_LETTERS, VIEW_ERRORS].map(|name| (name, Arc::new(MemorySchemaProvider::new())));
        for (named, table) in tables {
            let (schema, name) = match named {
                Named::Plain(name) => (0, name),
                Named::DeadLetters(name) => (1, name),
                Named::ViewErrors(name) => (2, name),
            };
            schemas[schema].1.register_table(name, table).expect("each table is named once");
        }
        let catalog = MemoryCatalogProvider::new();
        for (name, schema) in schemas {
            catalog.register_schema(name, schema).expect("a memory catalog takes schemas");
        }
        let catalogs = MemoryCatalogProviderList::new();
        let name = self.base.config_options().catalog.default_catalog.clone();
        catalogs.register_catalog(name, Arc::new(catalog));
        let mut state = self.base.clone();
        state.register_catalog_list(Arc::new(catalogs));
        // What `now()` means, wherever it stands in the statement.
        state.mark_start_execution();
        state
    }

    /// Runs on the engine's threads. Dropping the future ends the work at its next await.
    pub(crate) async fn on_threads<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let handle = match &self.runtime {
            Some(runtime) => {
                let _guard = runtime.enter();
                watershed_shared::task::spawn(name, work)
            }
            None => watershed_shared::task::spawn(name, work),
        };
        let mut handle = AbortOnDrop(handle);
        match (&mut handle.0).await {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Plans and runs `plan`, and collects its rows. Dropping the future ends the work at its next batch; `turn` is given
    /// back when it has ended.
    pub(crate) async fn collect(
        &self,
        turn: Turn,
        state: SessionState,
        plan: LogicalPlan,
    ) -> std::result::Result<Rows, Failure> {
        let max_bytes = self.settings.max_result_bytes;
        let work = async move {
            let _turn = turn;
            collect(state, plan, max_bytes).await
        };
        self.on_threads("query", work).await
    }

    /// Ends `work` at `deadline`.
    ///
    /// # Errors
    /// `timeout`.
    pub(crate) async fn until<T>(deadline: clock::Instant, work: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout_at(deadline, work).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(Code::Timeout, "the query took longer than its timeout_ms")),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SUBTLE: a runtime that is dropped where one runs panics.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn collect(state: SessionState, plan: LogicalPlan, max_bytes: usize) -> std::result::Result<Rows, Failure> {
    let mut stream = DataFrame::new(state, plan).execute_stream().await.map_err(failure)?;
    let schema = stream.schema();
    let (mut batches, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(failure)?;
        bytes += batch.get_array_memory_size();
        if bytes > max_bytes {
            let message =
                format!("the result has more than {max_bytes} bytes: ask for less with where, columns or LIMIT");
            return Err(Failure::Answer(Error::new(Code::TooLarge, message)));
        }
        if batch.num_rows() > 0 {
            batches.push(batch);
        }
    }
    Ok(Rows { schema, batches })
}

/// What an error of the engine means to a client.
pub(crate) fn failure(error: DataFusionError) -> Failure {
    if master::misses_a_file(&error) {
        return Failure::FileGone(error);
    }
    if let Some(fault) = Fault::behind(&error) {
        return Failure::Answer(Error::unreadable(fault));
    }
    if let Some(said) = storage::unavailable(&error) {
        return Failure::Answer(Error::new(Code::StorageUnavailable, said));
    }
    let code = match error.find_root() {
        DataFusionError::ResourcesExhausted(_) => Code::TooLarge,
        // No statement makes one: a file of the master dataset, or of an older release, is not as it was written.
        root if is_undecodable(root) => {
            tracing::error!(%error, "a file cannot be decoded");
            let message = format!("a file that the statement reads is damaged: {}", sql::message(&error));
            return Failure::Answer(Error::new(Code::NotReady, message));
        }
        // What the statement's own expressions came upon: a division by zero, a cast that does not fit.
        DataFusionError::ArrowError(..)
        | DataFusionError::Execution(_)
        | DataFusionError::Plan(_)
        | DataFusionError::SchemaError(..)
        | DataFusionError::NotImplemented(_)
        | DataFusionError::SQL(..) => Code::BadSql,
        _ => Code::Internal,
    };
    if code == Code::Internal {
        tracing::error!(%error, "a query failed");
    }
    Failure::Answer(Error::new(code, sql::message(&error)))
}

fn is_undecodable(root: &DataFusionError) -> bool {
    match root {
        DataFusionError::ParquetError(_) => true,
        DataFusionError::ArrowError(error, _) => matches!(error.as_ref(), ArrowError::ParquetError(_)),
        _ => false,
    }
}

/// What a file was not there for, as its reader says.
pub(crate) fn gone(error: &DataFusionError) -> Error {
    let path = master::missed_file(error).unwrap_or_default().into();
    Error::unreadable(Fault::behind(error).unwrap_or(&Fault::Missing { path }))
}
