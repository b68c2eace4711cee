//! Storage: the durable objects under the storage URL, and the care that callers of an object store must take.
//!
//! A call to a store may time out or fail and have happened all the same. [`Storage`] settles what can be settled:
//! creates by reading back, reads by trying again, whole objects by writing them once more under another name.

#[cfg(test)]
pub(crate) mod conformance;
mod faulty;
mod hdfs;
mod health;
mod leftovers;
mod local;
mod open;
mod timed;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use url::Url;
use uuid::Uuid;

pub use faulty::{FaultRates, Faulty};
pub use hdfs::Hdfs;
pub use health::{Health, Trouble};
pub use local::DurableFileSystem;
pub use timed::Timed;

use crate::clock::{self, Instant};
use health::Watched;
use leftovers::Leftovers;

/// The objects under one storage URL. Cheap to clone.
///
/// All paths are relative to the URL. Objects whose names begin with a dot are leftovers of unfinished writes: they
/// are never listed.
#[derive(Clone)]
pub struct Storage {
    url: Url,
    engine_url: ObjectStoreUrl,
    store: Arc<dyn ObjectStore>,
    leftovers: Option<Arc<dyn Leftovers>>,
    watched: Arc<Watched>,
    settings: Settings,
}

/// How long calls may take and how long they are repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Of one call to the store; a call with a payload gets a second more for each MiB.
    pub call_timeout: Duration,
    /// For how long a call is tried again: long enough for HDFS to declare a DataNode dead.
    pub retry_for: Duration,
    pub first_backoff: Duration,
    pub max_backoff: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            call_timeout: Duration::from_secs(30),
            retry_for: Duration::from_secs(120),
            first_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(5),
        }
    }
}

/// What became of a create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateOutcome {
    /// The object holds the bytes of this call and is durable.
    Created,
    /// Another writer's object stands there: these are its bytes.
    Exists(Bytes),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "storage URLs begin with file:// or hdfs://, memory:// is for tests; s3:// is not supported yet. url=`{url}`"
    )]
    UnsupportedScheme { url: Url },
    #[error("not a usable storage URL: {reason}. url=`{url}`")]
    InvalidUrl { url: Url, reason: String },
    #[error("the storage folder cannot be used. Create it or change [storage] url. folder=`{folder}`")]
    Folder {
        folder: String,
        #[source]
        source: std::io::Error,
    },
    /// The write may have happened, or happen later. Read before anything else is decided.
    #[error("the write may have happened; the storage did not answer. path=`{path}`")]
    Indeterminate {
        path: Path,
        #[source]
        source: object_store::Error,
    },
    /// It did not happen, or was a read; it has been tried for [`Settings::retry_for`] where that could help.
    #[error("the storage refused to {operation}. path=`{path}`")]
    Failed {
        operation: &'static str,
        path: Path,
        #[source]
        source: object_store::Error,
    },
}

impl Storage {
    /// Opens the storage under `url`; the scheme decides of which kind it is.
    ///
    /// `memory:///` is a new, empty one with each call: clones share it.
    ///
    /// # Errors
    /// If the scheme is unknown or a local folder can't be created.
    pub fn open(url: &Url) -> Result<Self, Error> {
        Self::open_with(url, Settings::default())
    }

    /// As [`open`](Self::open), with other timeouts.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(url: &Url, settings: Settings) -> Result<Self, Error> {
        let opened = open::open(url, settings)?;
        Ok(Self { leftovers: opened.leftovers, ..Self::over(url.clone(), opened.store, settings) })
    }

    /// A storage over any store that is rooted at `url`: for decorated stores in tests.
    pub fn over(url: Url, store: Arc<dyn ObjectStore>, settings: Settings) -> Self {
        // One URL per instance: two instances with the same paths never meet in an engine's registry or caches.
        let engine_url = ObjectStoreUrl::parse(format!("watershed://{}/", Uuid::new_v4().simple()))
            .expect("a scheme and a host of letters and digits");
        let store = Timed::new(store, settings.call_timeout);
        let watched = store.watched();
        Self { url, engine_url, store: Arc::new(store), leftovers: None, watched, settings }
    }

    /// A new, empty storage in memory.
    pub fn memory() -> Self {
        let url = Url::parse("memory:///").expect("a constant URL");
        Self::over(url, Arc::new(object_store::memory::InMemory::new()), Settings::default())
    }

    pub fn url(&self) -> &Url {
        &self.url
    }

    /// How the last calls ended, of this and all its clones.
    pub fn health(&self) -> Health {
        self.watched.health()
    }

    /// The store itself, rooted at the storage URL, with a timeout around every call.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    /// The name under which [`register_with`](Self::register_with) makes this storage known to an engine.
    pub fn engine_url(&self) -> &ObjectStoreUrl {
        &self.engine_url
    }

    /// Makes this storage known to an engine under [`engine_url`](Self::engine_url). Idempotent.
    pub fn register_with(&self, runtime: &RuntimeEnv) {
        drop(runtime.register_object_store(self.engine_url.as_ref(), self.store()));
    }

    /// Creates the object at `path` if there is none; on return it is durable.
    ///
    /// After any error the object is read back and compared: the same bytes are this call's own, so `bytes` must hold
    /// an id of the writer, or be such that any writer of the same bytes may count as this one.
    /// Not cancel safe: a dropped call may still have happened, or happen later.
    ///
    /// | the store says | the object is | outcome |
    /// |---|---|---|
    /// | done | | [`CreateOutcome::Created`] |
    /// | any error | `bytes` | [`CreateOutcome::Created`] |
    /// | any error | something else | [`CreateOutcome::Exists`] |
    /// | any error | absent | tried again |
    /// | any error | unreadable for `retry_for` | [`Error::Indeterminate`] |
    pub async fn create(&self, path: &Path, bytes: Bytes) -> Result<CreateOutcome, Error> {
        let mut backoff = Backoff::start(self.settings);
        loop {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let source = match self.store.put_opts(path, bytes.clone().into(), options).await {
                Ok(_) => return Ok(CreateOutcome::Created),
                Err(source) => source,
            };
            match self.get(path).await {
                Ok(Some(found)) if found == bytes => return Ok(CreateOutcome::Created),
                Ok(Some(found)) => return Ok(CreateOutcome::Exists(found)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%path, %error, "cannot settle a create");
                    return Err(Error::Indeterminate { path: path.clone(), source });
                }
            }
            if is_final(&source) {
                return Err(Error::Failed { operation: "create", path: path.clone(), source });
            }
            if !backoff.wait().await {
                return Err(Error::Indeterminate { path: path.clone(), source });
            }
        }
    }

    /// Writes `bytes` under a name that was never used before and returns it; on return the object is durable.
    ///
    /// Each attempt takes another name from `name`, since an attempt that failed may hold its own for a while.
    /// What unsuccessful attempts leave behind is named by no record and is collected like any other leftover.
    pub async fn put_unique(&self, name: impl Fn(Uuid) -> Path, bytes: Bytes) -> Result<Path, Error> {
        let mut backoff = Backoff::start(self.settings);
        loop {
            let path = name(Uuid::new_v4());
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let source = match self.store.put_opts(&path, bytes.clone().into(), options).await {
                Ok(_) => return Ok(path),
                Err(source) => source,
            };
            if let Err(error) = self.store.delete(&path).await
                && !matches!(error, object_store::Error::NotFound { .. })
            {
                tracing::debug!(%path, %error, "left an unfinished object behind");
            }
            if is_final(&source) && !matches!(source, object_store::Error::AlreadyExists { .. })
                || !backoff.wait().await
            {
                return Err(Error::Failed { operation: "write", path, source });
            }
        }
    }

    /// Writes `bytes` at `path` whatever stands there. Readers see the old or the new object, never a mixture.
    ///
    /// Only for what decides nothing, such as the progress of a build: the order of two overwrites is open.
    pub async fn overwrite(&self, path: &Path, bytes: Bytes) -> Result<(), Error> {
        self.retry("overwrite", path, || async {
            self.store.put_opts(path, bytes.clone().into(), PutOptions::default()).await.map(drop)
        })
        .await
    }

    /// Reads the object; `None` if there is none.
    pub async fn get(&self, path: &Path) -> Result<Option<Bytes>, Error> {
        self.retry("read", path, || async { absent_as_none(self.read(path, GetOptions::default()).await) }).await
    }

    /// Reads at most the first `length` bytes of the object; `None` if there is none.
    pub async fn get_start(&self, path: &Path, length: u64) -> Result<Option<Bytes>, Error> {
        self.retry("read", path, || async {
            let options = GetOptions { range: Some(GetRange::Bounded(0..length)), ..GetOptions::default() };
            absent_as_none(self.read(path, options).await)
        })
        .await
    }

    /// Size and times of the object; `None` if there is none.
    pub async fn head(&self, path: &Path) -> Result<Option<ObjectMeta>, Error> {
        self.retry("look up", path, || async { absent_as_none(self.store.head(path).await) }).await
    }

    /// All objects below `prefix` in the order of their paths, without those whose names begin with a dot.
    pub async fn list(&self, prefix: &Path) -> Result<Vec<ObjectMeta>, Error> {
        let mut found: Vec<ObjectMeta> =
            self.retry("list", prefix, || async { self.store.list(Some(prefix)).try_collect().await }).await?;
        found.retain(|o| o.location.filename().is_some_and(|name| !name.starts_with('.')));
        found.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(found)
    }

    /// Names of the folders directly below `prefix`, sorted.
    pub async fn list_folders(&self, prefix: &Path) -> Result<Vec<String>, Error> {
        let listed = self.retry("list", prefix, || self.store.list_with_delimiter(Some(prefix))).await?;
        let mut names: Vec<String> =
            listed.common_prefixes.iter().filter_map(|p| p.filename().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }

    /// Deletes the object. It is no error if there is none.
    pub async fn delete(&self, path: &Path) -> Result<(), Error> {
        self.retry("delete", path, || async { absent_as_none(self.store.delete(path).await).map(drop) }).await
    }

    /// Removes the folder at `path` unless there is something in it. Where folders are nothing but parts of names there is
    /// none. It is no error if there is none.
    ///
    /// Many empty folders make listings slow: who deletes the last object of a folder that is not used again removes it.
    pub async fn remove_folder(&self, path: &Path) -> Result<(), Error> {
        let Some(leftovers) = &self.leftovers else { return Ok(()) };
        self.retry("remove the folder", path, || leftovers.remove_folder(path)).await
    }

    /// Removes what writers that were killed longer ago than `age` left behind; answers how many files.
    ///
    /// `age` must be much more than any writer takes and clocks differ: a day.
    pub async fn remove_leftovers(&self, age: Duration) -> Result<usize, Error> {
        let Some(leftovers) = &self.leftovers else { return Ok(0) };
        self.retry("remove leftovers", &Path::default(), || leftovers.remove_older_than(age)).await
    }

    async fn read(&self, path: &Path, options: GetOptions) -> object_store::Result<Bytes> {
        let result = self.store.get_opts(path, options).await?;
        tokio::time::timeout(self.settings.call_timeout + timed::allowance(result.meta.size), result.bytes())
            .await
            .unwrap_or_else(|_| Err(timed::elapsed("read the bytes of")))
    }

    /// Repeats an idempotent `call` while that may help.
    async fn retry<T, F>(&self, operation: &'static str, path: &Path, call: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut backoff = Backoff::start(self.settings);
        loop {
            match call().await {
                Ok(value) => return Ok(value),
                Err(source) if is_final(&source) => {
                    return Err(Error::Failed { operation, path: path.clone(), source });
                }
                Err(source) => {
                    tracing::debug!(%path, operation, error = %source, "storage call failed");
                    if !backoff.wait().await {
                        return Err(Error::Failed { operation, path: path.clone(), source });
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({})", self.url)
    }
}

/// Waits that double, until the time for retries is over.
#[derive(Debug)]
struct Backoff {
    until: Instant,
    next: Duration,
    max: Duration,
}

impl Backoff {
    fn start(settings: Settings) -> Self {
        Self { until: Instant::now() + settings.retry_for, next: settings.first_backoff, max: settings.max_backoff }
    }

    /// Waits; `false`, at once, when the time is over.
    async fn wait(&mut self) -> bool {
        if Instant::now() + self.next > self.until {
            return false;
        }
        clock::sleep(self.next).await;
        self.next = (self.next * 2).min(self.max);
        true
    }
}

/// Whether the same call again can only give the same error.
fn is_final(error: &object_store::Error) -> bool {
    use object_store::Error;
    matches!(
        error,
        Error::NotFound { .. }
            | Error::InvalidPath { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::Precondition { .. }
            | Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::UnknownConfigurationKey { .. }
    ) || matches!(error, Error::Generic { source, .. } if source.downcast_ref::<hdfs::Failure>().is_some_and(|f| f.is_final()))
}

/// What a storage said that did not do what it was asked for, be it away or closed to this user; `None` if `error` comes
/// from something else.
pub fn unavailable(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    use object_store::Error;
    let mut causes = causes(error).filter_map(|cause| cause.downcast_ref::<Error>());
    let said = causes.find(|error| {
        matches!(error, Error::Generic { .. } | Error::PermissionDenied { .. } | Error::Unauthenticated { .. })
    })?;
    Some(std::error::Error::source(said).map_or_else(|| said.to_string(), ToString::to_string))
}

/// Whether an error comes from a storage that goes on refusing until a person has acted: permissions, quotas.
pub fn needs_somebody(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).filter_map(|cause| cause.downcast_ref()).any(|error: &object_store::Error| match error {
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => true,
        object_store::Error::Generic { .. } => is_final(error),
        _ => false,
    })
}

/// An error, its source, and so on.
pub(crate) fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

fn absent_as_none<T>(result: object_store::Result<T>) -> object_store::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
