//! History and progress of builds, one `builds/<id>/status.json` each. They decide nothing; a view's register does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use object_store::ObjectMeta;
use object_store::path::Path;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use watershed_shared::builds::{BuildState, BuildStatus};
use watershed_shared::clock::{self, Instant};
use watershed_shared::names::{BuildId, GenerationId};
use watershed_shared::paths;
use watershed_shared::storage::{self, Storage};

/// How many ended builds of a view are listed; older ones are deleted.
const KEPT_PER_VIEW: usize = 200;
const STATUS_FILE: &str = "status.json";
/// How often progress is recorded for other processes, while it moves.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How often a status is recorded though it has not changed; far below the time after which a holder counts as dead.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// A build's id: the time of the request, sortable, and enough randomness to be unique.
pub fn new_build_id() -> BuildId {
    let random = BuildId::unique();
    BuildId::new(format!("{}-{}", clock::now().format("%Y%m%dT%H%M%S"), &random.as_str()[..8]))
}

/// Those of `files` that are records of builds. One that does not parse is left out with a WARN.
async fn read_statuses(
    storage: &Storage,
    files: Vec<ObjectMeta>,
) -> Result<Vec<(ObjectMeta, BuildStatus)>, storage::Error> {
    let files = files.into_iter().filter(|f| f.location.filename() == Some(STATUS_FILE));
    let read: Vec<_> = futures::stream::iter(files)
        .map(|file| async move { Ok::<_, storage::Error>((storage.get(&file.location).await?, file)) })
        .buffered(8)
        .try_collect()
        .await?;
    let parsed = read.into_iter().filter_map(|(bytes, file)| match serde_json::from_slice(&bytes?) {
        Ok(status) => Some((file, status)),
        Err(error) => {
            warn!(path = %file.location, %error, "a build's status does not parse and is not listed");
            None
        }
    });
    Ok(parsed.collect())
}

/// The history as the storage has it, whoever writes it.
#[derive(Debug)]
pub struct StoredHistory {
    storage: Storage,
    /// By path; read again when the file is another one.
    known: AsyncMutex<BTreeMap<Path, (ObjectMeta, BuildStatus)>>,
}

impl StoredHistory {
    pub fn new(storage: Storage) -> Self {
        Self { storage, known: AsyncMutex::default() }
    }

    /// Newest first, of all views or of one.
    ///
    /// # Errors
    /// When the storage does not answer.
    pub async fn list(&self, view: Option<&str>) -> Result<Vec<BuildStatus>, storage::Error> {
        let mut known = self.known.lock().await;
        let files = self.storage.list(&paths::builds()).await?;
        known.retain(|path, (meta, _)| files.iter().any(|f| f.location == *path && f == meta));
        let new = files.into_iter().filter(|f| !known.contains_key(&f.location)).collect();
        let read = read_statuses(&self.storage, new).await?;
        known.extend(read.into_iter().map(|(file, status)| (file.location.clone(), (file, status))));
        let mut all: Vec<BuildStatus> = known.values().map(|(_, status)| status.clone()).collect();
        all.retain(|s| view.is_none_or(|v| s.view == v));
        all.sort_by(|a, b| b.id.cmp(&a.id));
        Ok(all)
    }

    pub fn storage(&self) -> &Storage {
        &self.storage
    }
}

/// Writes the record of a build.
///
/// # Errors
/// When the storage refuses.
pub async fn write_status(storage: &Storage, status: &BuildStatus) -> Result<(), storage::Error> {
    let bytes = serde_json::to_vec_pretty(status).expect("a status serializes");
    storage.overwrite(&paths::build_file(&status.id, STATUS_FILE), bytes.into()).await
}

/// Writes the first record of a build, unless somebody who runs it has written one.
///
/// # Errors
/// When the storage refuses.
pub async fn record_first(storage: &Storage, status: &BuildStatus) -> Result<(), storage::Error> {
    let bytes = serde_json::to_vec_pretty(status).expect("a status serializes");
    storage.create(&paths::build_file(&status.id, STATUS_FILE), bytes.into()).await.map(drop)
}

/// The record of a build; `None` if there is none, or none that can be read.
///
/// # Errors
/// When the storage does not answer.
pub async fn read_status(storage: &Storage, id: &BuildId) -> Result<Option<BuildStatus>, storage::Error> {
    let bytes = storage.get(&paths::build_file(id, STATUS_FILE)).await?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// How a build ended that its holder does not end.
#[derive(Debug, Clone)]
pub struct End {
    pub state: BuildState,
    pub generation: Option<GenerationId>,
    pub error: Option<String>,
}

impl End {
    pub fn cancelled() -> Self {
        Self { state: BuildState::Cancelled, generation: None, error: None }
    }

    pub(crate) fn of(&self, status: BuildStatus) -> BuildStatus {
        let Self { state, generation, error } = self.clone();
        BuildStatus { state, generation, error, finished_at: Some(clock::now()), ..status }
    }
}

/// Records an end, unless there is one already. Answers the record; `None` if there is none.
///
/// # Errors
/// When the storage does not answer.
pub async fn record_end(storage: &Storage, id: &BuildId, end: &End) -> Result<Option<BuildStatus>, storage::Error> {
    let Some(status) = read_status(storage, id).await? else { return Ok(None) };
    if status.state.is_final() {
        return Ok(Some(status));
    }
    let status = end.of(status);
    write_status(storage, &status).await?;
    Ok(Some(status))
}

/// What tells the record of a build from an earlier one.
///
/// # Errors
/// When the storage does not answer.
pub async fn status_meta(storage: &Storage, id: &BuildId) -> Result<Option<ObjectMeta>, storage::Error> {
    storage.head(&paths::build_file(id, STATUS_FILE)).await
}

/// The builds that this process knows, each with its latest status.
///
/// What `get` answers for a finished build has been recorded durably, or a WARN says why not.
#[derive(Debug, Clone)]
pub struct History {
    storage: Storage,
    entries: Arc<Mutex<BTreeMap<BuildId, watch::Sender<BuildStatus>>>>,
    /// One at a time, so that what is written last is the newest.
    writing: Arc<AsyncMutex<()>>,
}

impl History {
    /// Reads the history from `storage`.
    ///
    /// # Errors
    /// When the storage cannot be listed or read. A record that does not parse is left out with a WARN.
    pub async fn open(storage: Storage) -> Result<Self, storage::Error> {
        let files = storage.list(&paths::builds()).await?;
        let read = read_statuses(&storage, files).await?;
        let entries = read.into_iter().map(|(_, status)| (status.id.clone(), watch::Sender::new(status))).collect();
        Ok(Self { storage, entries: Arc::new(Mutex::new(entries)), writing: Arc::default() })
    }

    /// Newest first, of all views or of one.
    pub fn list(&self, view: Option<&str>) -> Vec<BuildStatus> {
        let entries = self.entries.lock();
        let all = entries.values().rev().map(|e| e.borrow().clone());
        all.filter(|s| view.is_none_or(|v| s.view == v)).collect()
    }

    /// The status now and as it changes; `None`: there is no such build.
    pub fn watch(&self, id: &BuildId) -> Option<watch::Receiver<BuildStatus>> {
        self.entries.lock().get(id).map(watch::Sender::subscribe)
    }

    fn known(&self, id: &BuildId) -> Option<BuildStatus> {
        self.entries.lock().get(id).map(|entry| entry.borrow().clone())
    }

    /// Shows `status` to those who watch, without a record: progress within a state.
    pub fn show(&self, status: &BuildStatus) {
        let mut entries = self.entries.lock();
        match entries.get(&status.id) {
            Some(entry) => {
                entry.send_replace(status.clone());
            }
            None => {
                entries.insert(status.id.clone(), watch::Sender::new(status.clone()));
            }
        }
    }

    /// Shows `status` and records it durably. An end is shown when it is recorded.
    ///
    /// History decides nothing, so a storage that fails costs a WARN, not the build.
    pub async fn record(&self, status: &BuildStatus) {
        if !status.state.is_final() {
            self.show(status);
        }
        let writing = self.writing.lock().await;
        if let Err(error) = write_status(&self.storage, status).await {
            warn!(build = %status.id, %error, "cannot record a build's state");
        }
        self.show(status);
        drop(writing);
    }

    /// Records how a build ended that its holder does not end, and shows it. An end that is recorded or known stays.
    ///
    /// # Errors
    /// When the storage does not answer.
    pub async fn end(&self, id: &BuildId, end: End) -> Result<(), storage::Error> {
        let _writing = self.writing.lock().await;
        let known = self.known(id);
        // Of one that ended here, and could not say so, more is known than that.
        if let Some(ended) = known.as_ref().filter(|status| status.state.is_final()) {
            return write_status(&self.storage, ended).await;
        }
        let recorded = record_end(&self.storage, id, &end).await?;
        if let Some(status) = recorded.or_else(|| known.map(|status| end.of(status))) {
            self.show(&status);
        }
        Ok(())
    }

    /// Shows what is recorded of a build that another process runs.
    ///
    /// # Errors
    /// When the storage does not answer.
    pub async fn follow(&self, id: &BuildId) -> Result<(), storage::Error> {
        if let Some(status) = read_status(&self.storage, id).await? {
            self.show(&status);
        }
        Ok(())
    }

    /// Records the progress of `holder`'s builds until `stop`, for other processes: as it moves, and now and then to show
    /// that who runs them lives.
    pub async fn keep_recording(self, holder: String, stop: CancellationToken) {
        let mut recorded: BTreeMap<BuildId, (BuildStatus, Instant)> = BTreeMap::new();
        while stop.run_until_cancelled(clock::sleep(PROGRESS_INTERVAL)).await.is_some() {
            let under_way = |s: &BuildStatus| !s.state.is_final() && s.holder == holder;
            let open: Vec<_> = self.list(None).into_iter().filter(|s| under_way(s)).collect();
            recorded.retain(|id, _| open.iter().any(|s| s.id == *id));
            for status in open {
                let known = recorded.get(&status.id);
                if known.is_some_and(|(known, at)| *known == status && at.elapsed() < SIGN_OF_LIFE) {
                    continue;
                }
                let _writing = self.writing.lock().await;
                // It may have ended meanwhile.
                let Some(now) = self.watch(&status.id).map(|w| w.borrow().clone()).filter(under_way) else { continue };
                if let Err(error) = write_status(&self.storage, &now).await {
                    warn!(build = %now.id, %error, "cannot record a build's progress");
                }
                recorded.insert(now.id.clone(), (now, Instant::now()));
            }
        }
    }

    /// Deletes the oldest ended builds of each view beyond what is kept; and of scheduled builds of one mode that one
    /// after the other had nothing to do all but the last, or they would push out those that did something.
    pub async fn prune(&self) {
        let mut kept: BTreeMap<String, (usize, BuildStatus)> = BTreeMap::new();
        for status in self.list(None) {
            let newer = kept.get(&status.view);
            let repeated = newer.is_some_and(|(_, newer)| {
                newer.had_nothing_to_do() && status.had_nothing_to_do() && newer.mode == status.mode
            });
            let count = newer.map_or(0, |(count, _)| *count);
            if !status.state.is_final() || (count < KEPT_PER_VIEW && !repeated) {
                kept.insert(status.view.clone(), (count + 1, status));
                continue;
            }
            self.entries.lock().remove(&status.id);
            if let Err(error) = self.storage.delete(&paths::build_file(&status.id, STATUS_FILE)).await {
                warn!(build = %status.id, %error, "cannot delete an old build's status");
            }
        }
    }
}
