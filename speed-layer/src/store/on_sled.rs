//! The delta store on sled. Nothing that it holds is worth saving: what sled cannot open is set aside.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use watershed_shared::abort_point;

use super::{Change, DeltaStore, StoreError};

/// Bytes of pages that sled keeps in memory: the runs are in memory anyway.
const CACHE_BYTES: u64 = 32 << 20;
const TREE: &str = "delta";

/// What a commit may take at once, generously: with less room than that a failure is no damage.
const ROOM_BYTES: usize = 1 << 20;

/// A delta store in a folder.
///
/// SUBTLE: once a write has failed, as on a full disk, sled answers everything with that error for ever. So a store that
/// has failed is closed, and opened again by the next call.
#[derive(Debug)]
pub struct SledStore {
    path: PathBuf,
    /// `None` after a failure.
    opened: Mutex<Option<Opened>>,
}

#[derive(Debug)]
struct Opened {
    db: sled::Db,
    tree: sled::Tree,
}

impl SledStore {
    /// Opens the store in `path`, or makes it. Blocks.
    ///
    /// A store that sled cannot open is renamed to `<path>.damaged-<n>` and replaced by an empty one, unless there is no
    /// room on the disk: it may be whole.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it; when the folder can neither be opened nor set aside.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let (opened, _) = open_or_set_aside(path)?;
        Ok(Self { path: path.to_owned(), opened: Mutex::new(Some(opened)) })
    }

    /// Runs `work`, on a store that is opened again if it has failed before.
    fn with<T>(&self, work: impl FnOnce(&Opened) -> Result<T, sled::Error>) -> Result<T, StoreError> {
        let mut opened = self.opened.lock();
        if opened.is_none() {
            let (again, emptied) = open_or_set_aside(&self.path)?;
            *opened = Some(again);
            if emptied {
                return Err(StoreError::Emptied);
            }
            tracing::info!(path = %self.path.display(), "the delta store, which had failed, is open again");
        }
        let store = opened.as_ref().expect("it was opened above");
        let result = caught(|| work(store));
        if result.is_err() {
            *opened = None;
        }
        result
    }
}

/// Opens the store in `path`; also answers whether it had to be replaced by an empty one.
fn open_or_set_aside(path: &Path) -> Result<(Opened, bool), StoreError> {
    let error = match try_open(path) {
        Ok(store) => return Ok((store, false)),
        Err(error @ StoreError::InUse(_)) => return Err(error),
        Err(error) => error,
    };
    if let Some(Err(full)) = path.parent().map(has_room) {
        return Err(StoreError::Failed(Box::new(full)));
    }
    let aside = set_aside(path).map_err(|e| StoreError::Failed(Box::new(e)))?;
    abort_point!(process "speed.set_aside");
    tracing::warn!(path = %path.display(), aside = %aside.display(), %error, "delta store damaged: set aside, replaying");
    Ok((try_open(path)?, true))
}

fn has_room(folder: &Path) -> std::io::Result<()> {
    let probe = folder.join(format!(".room-{}", std::process::id()));
    let outcome = std::fs::write(&probe, vec![0; ROOM_BYTES]);
    // If it was not even made there is nothing to remove.
    drop(std::fs::remove_file(&probe));
    outcome
}

fn try_open(path: &Path) -> Result<Opened, StoreError> {
    let open = || -> Result<Opened, sled::Error> {
        // Compression is off: what is worth compressing has been compressed. Commits flush by themselves.
        let db = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None).open()?;
        let tree = db.open_tree(TREE)?;
        // Damage that sled sees only when it reads is found now, while it can be set aside.
        for entry in &tree {
            entry?;
        }
        Ok(Opened { db, tree })
    };
    // sled panics on some damages.
    match caught(open) {
        Err(error) if error.to_string().contains("could not acquire lock") => {
            Err(StoreError::InUse(path.display().to_string()))
        }
        result => result,
    }
}

fn set_aside(path: &Path) -> std::io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for n in 1.. {
        let aside = path.with_file_name(format!("{name}.damaged-{n}"));
        if !aside.try_exists()? {
            std::fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    unreachable!("some number is free")
}

impl DeltaStore for SledStore {
    fn scan(&self, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
        self.with(|store| {
            for entry in &store.tree {
                let (key, value) = entry?;
                each(&key, &value);
            }
            Ok(())
        })
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.with(|store| store.tree.apply_batch(batch))
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.with(|store| store.db.flush().map(|_| ()))
    }
}

fn caught<T>(work: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, StoreError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| StoreError::Failed(Box::new(error))),
        Err(_) => Err(StoreError::Failed("sled panicked".into())),
    }
}
