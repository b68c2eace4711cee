//! History and progress of builds, one `builds/<id>/status.json` each. They decide nothing; a view's register does.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::warn;
use watershed_shared::builds::BuildStatus;
use watershed_shared::clock;
use watershed_shared::names::BuildId;
use watershed_shared::paths;
use watershed_shared::storage::{self, Storage};

/// How many ended builds of a view are listed; older ones are deleted.
const KEPT_PER_VIEW: usize = 200;
const STATUS_FILE: &str = "status.json";

/// A build's id: the time of the request, sortable, and enough randomness to be unique.
pub fn new_build_id() -> BuildId {
    let random = BuildId::unique();
    BuildId::new(format!("{}-{}", clock::now().format("%Y%m%dT%H%M%S"), &random.as_str()[..8]))
}

/// The builds that this process knows, each with its latest status.
///
/// What `get` answers for a finished build has been recorded durably, or a WARN says why not.
#[derive(Debug, Clone)]
pub struct History {
    storage: Storage,
    entries: Arc<Mutex<BTreeMap<BuildId, watch::Sender<BuildStatus>>>>,
}

impl History {
    /// Reads the history from `storage`.
    ///
    /// # Errors
    /// When the storage cannot be listed or read. A record that does not parse is left out with a WARN.
    pub async fn open(storage: Storage) -> Result<Self, storage::Error> {
        let files = storage.list(&paths::builds()).await?;
        let read = futures::stream::iter(files.into_iter().filter(|f| f.location.filename() == Some(STATUS_FILE)))
            .map(|file| {
                let storage = storage.clone();
                async move { Ok::<_, storage::Error>((storage.get(&file.location).await?, file.location)) }
            })
            .buffered(8)
            .try_collect::<Vec<_>>()
            .await?;
        let mut entries = BTreeMap::new();
        for (bytes, path) in read {
            let Some(bytes) = bytes else { continue };
            match serde_json::from_slice::<BuildStatus>(&bytes) {
                Ok(status) => {
                    entries.insert(status.id.clone(), watch::Sender::new(status));
                }
                Err(error) => warn!(%path, %error, "a build's status does not parse and is not listed"),
            }
        }
        Ok(Self { storage, entries: Arc::new(Mutex::new(entries)) })
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

    /// Shows `status` and records it durably.
    ///
    /// History decides nothing, so a storage that fails costs a WARN, not the build.
    pub async fn record(&self, status: &BuildStatus) {
        let bytes = serde_json::to_vec_pretty(status).expect("a status serializes");
        if let Err(error) = self.storage.overwrite(&paths::build_file(&status.id, STATUS_FILE), bytes.into()).await {
            warn!(build = %status.id, %error, "cannot record a build's state");
        }
        self.show(status);
    }

    /// Deletes the oldest ended builds of each view beyond what is kept.
    pub async fn prune(&self) {
        let mut per_view: BTreeMap<String, usize> = BTreeMap::new();
        for status in self.list(None) {
            let count = per_view.entry(status.view.clone()).or_default();
            *count += 1;
            if *count <= KEPT_PER_VIEW || !status.state.is_final() {
                continue;
            }
            self.entries.lock().remove(&status.id);
            if let Err(error) = self.storage.delete(&paths::build_file(&status.id, STATUS_FILE)).await {
                warn!(build = %status.id, %error, "cannot delete an old build's status");
            }
        }
    }
}
