//! History and progress of builds, one `builds/<id>/status.json` each. They decide nothing; a view's register does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectMeta;
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
/// How many records are looked at, or read, at the same time.
const AT_ONCE: usize = 16;
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

/// The builds that have a folder.
///
/// SUBTLE: not a listing of all files below. A file system walks it folder by folder, and however many of them are empty, one
/// call must not have to do with all.
async fn folders(storage: &Storage) -> Result<BTreeSet<BuildId>, storage::Error> {
    Ok(storage.list_folders(&paths::builds()).await?.into_iter().map(BuildId::new).collect())
}

/// What `look` finds of each of `ids`, of some at a time.
async fn of_each<T, F>(
    ids: impl IntoIterator<Item = BuildId>,
    look: impl Fn(BuildId) -> F,
) -> Result<Vec<(BuildId, T)>, storage::Error>
where
    F: Future<Output = Result<T, storage::Error>>,
{
    let looks = ids.into_iter().map(|id| {
        let found = look(id.clone());
        async move { Ok::<_, storage::Error>((id, found.await?)) }
    });
    futures::stream::iter(looks).buffered(AT_ONCE).try_collect().await
}

async fn get(storage: &Storage, id: BuildId) -> Result<Option<Bytes>, storage::Error> {
    storage.get(&paths::build_file(&id, STATUS_FILE)).await
}

/// The status in a record; `None`, with a WARN, if it does not parse.
fn parse(id: &BuildId, bytes: &[u8]) -> Option<BuildStatus> {
    let parsed = serde_json::from_slice(bytes);
    parsed.inspect_err(|error| warn!(build = %id, %error, "a build's status does not parse and is not listed")).ok()
}

/// The history as the storage has it, whoever writes it.
#[derive(Debug)]
pub struct StoredHistory {
    storage: Storage,
    /// Read again when the file is another one.
    known: AsyncMutex<BTreeMap<BuildId, (ObjectMeta, BuildStatus)>>,
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
        let storage = &self.storage;
        let look = |id: BuildId| async move { status_meta(storage, &id).await };
        let files = of_each(folders(storage).await?, look).await?;
        let files: BTreeMap<_, _> = files.into_iter().filter_map(|(id, meta)| Some((id, meta?))).collect();
        known.retain(|id, (meta, _)| files.get(id) == Some(&*meta));
        let new: Vec<BuildId> = files.keys().filter(|id| !known.contains_key(*id)).cloned().collect();
        let read = of_each(new, |id| get(storage, id)).await?;
        for (id, bytes) in read {
            if let (Some(meta), Some(status)) = (files.get(&id), bytes.and_then(|bytes| parse(&id, &bytes))) {
                known.insert(id, (meta.clone(), status));
            }
        }
        let all = known.values().rev().map(|(_, status)| status.clone());
        Ok(all.filter(|s| view.is_none_or(|v| s.view == v)).collect())
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
    let bytes = get(storage, id.clone()).await?;
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
    /// Builds that have a folder and no record: it was deleted, and the folder is to be.
    empty: Arc<Mutex<Vec<BuildId>>>,
}

impl History {
    /// Reads the history from `storage`.
    ///
    /// # Errors
    /// When the storage cannot be listed or read. A record that does not parse is left out with a WARN.
    pub async fn open(storage: Storage) -> Result<Self, storage::Error> {
        let (mut entries, mut empty) = (BTreeMap::new(), Vec::new());
        let store = &storage;
        for (id, bytes) in of_each(folders(store).await?, |id| get(store, id)).await? {
            let Some(bytes) = bytes else {
                empty.push(id);
                continue;
            };
            if let Some(status) = parse(&id, &bytes) {
                entries.insert(status.id.clone(), watch::Sender::new(status));
            }
        }
        let (entries, empty) = (Arc::new(Mutex::new(entries)), Arc::new(Mutex::new(empty)));
        Ok(Self { storage, entries, writing: Arc::default(), empty })
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
    /// after the other had nothing to do all but the last, or they would push out those that did something. With them go
    /// the folders that are empty.
    pub async fn prune(&self) {
        let mut empty = std::mem::take(&mut *self.empty.lock());
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
            match self.storage.delete(&paths::build_file(&status.id, STATUS_FILE)).await {
                Ok(()) => empty.push(status.id),
                Err(error) => warn!(build = %status.id, %error, "cannot delete an old build's status"),
            }
        }
        // SUBTLE: a folder in which somebody is about to write is not removed, or comes back with the file.
        let storage = &self.storage;
        let remove = |id: BuildId| async move { storage.remove_folder(&paths::build(&id)).await };
        let removed = of_each(empty, remove).await;
        if let Err(error) = removed {
            // The next process to start finds those that are left.
            warn!(%error, "cannot remove the folders of old builds");
        }
    }
}

#[cfg(test)]
mod tests {
    use url::Url;
    use watershed_shared::builds::Trigger;
    use watershed_shared::catalog::BuildMode;

    use super::*;

    fn skipped(number: usize) -> BuildStatus {
        let id = BuildId::new(format!("{number:03}"));
        let status = BuildStatus::new(id, "v", BuildMode::Refresh, Trigger::Schedule, "a");
        BuildStatus { state: BuildState::Skipped, ..status }
    }

    async fn listed(stored: &StoredHistory) -> Vec<String> {
        stored.list(None).await.unwrap().into_iter().map(|status| status.id.to_string()).collect()
    }

    #[tokio::test]
    async fn nothing_is_left_of_builds_that_are_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(&Url::from_directory_path(dir.path()).unwrap()).unwrap();
        let builds = dir.path().join("builds");
        // As earlier releases left them.
        for number in 900..950 {
            std::fs::create_dir_all(builds.join(number.to_string())).unwrap();
        }
        let stored = StoredHistory::new(storage.clone());
        assert_eq!(listed(&stored).await, [""; 0]);
        let history = History::open(storage.clone()).await.unwrap();
        for number in 0..5 {
            history.record(&skipped(number)).await;
        }
        assert_eq!(listed(&stored).await, ["004", "003", "002", "001", "000"]);
        history.prune().await;
        assert_eq!(listed(&stored).await, ["004"]);
        let left: Vec<_> = std::fs::read_dir(&builds).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["004"]);

        // What changes is read again, by who has read it and by who starts.
        let interrupted = BuildStatus { state: BuildState::Interrupted, ..skipped(4) };
        write_status(&storage, &interrupted).await.unwrap();
        assert_eq!(stored.list(Some("v")).await.unwrap(), std::slice::from_ref(&interrupted));
        assert_eq!(History::open(storage).await.unwrap().list(None), [interrupted]);
    }
}
