//! The delta store on sled. Nothing that it holds is worth saving: what sled cannot open is set aside.

use std::path::{Path, PathBuf};

use watershed_shared::abort_point;

use super::{Change, DeltaStore, StoreError};

/// Bytes of pages that sled keeps in memory: the runs are in memory anyway.
const CACHE_BYTES: u64 = 32 << 20;
const TREE: &str = "delta";

/// A delta store in a folder.
#[derive(Debug)]
pub struct SledStore {
    db: sled::Db,
    tree: sled::Tree,
}

impl SledStore {
    /// Opens the store in `path`, or makes it. Blocks.
    ///
    /// A store that sled cannot open is renamed to `<path>.damaged-<n>` and replaced by an empty one.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it; when the folder can neither be opened nor set aside.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let error = match try_open(path) {
            Ok(store) => return Ok(store),
            Err(error @ StoreError::InUse(_)) => return Err(error),
            Err(error) => error,
        };
        let aside = set_aside(path).map_err(|e| StoreError::Failed(Box::new(e)))?;
        abort_point!(process "speed.set_aside");
        tracing::warn!(path = %path.display(), aside = %aside.display(), %error, "delta store damaged: set aside, replaying");
        try_open(path)
    }
}

fn try_open(path: &Path) -> Result<SledStore, StoreError> {
    let open = || -> Result<SledStore, sled::Error> {
        // Compression is off: what is worth compressing has been compressed. Commits flush by themselves.
        let db = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None).open()?;
        let tree = db.open_tree(TREE)?;
        // Damage that sled sees only when it reads is found now, while it can be set aside.
        for entry in &tree {
            entry?;
        }
        Ok(SledStore { db, tree })
    };
    // sled panics on some damages.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(open)) {
        Ok(Ok(store)) => Ok(store),
        Ok(Err(sled::Error::Io(e))) if e.to_string().contains("could not acquire lock") => {
            Err(StoreError::InUse(path.display().to_string()))
        }
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(StoreError::Failed("sled panicked".into())),
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
        let scan = || {
            for entry in &self.tree {
                let (key, value) = entry?;
                each(&key, &value);
            }
            Ok(())
        };
        caught(scan)
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        caught(|| self.tree.apply_batch(batch))
    }

    fn flush(&self) -> Result<(), StoreError> {
        caught(|| self.db.flush().map(|_| ()))
    }
}

fn caught<T>(work: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, StoreError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(StoreError::Failed("sled panicked".into())),
    }
}

fn failed(error: sled::Error) -> StoreError {
    StoreError::Failed(Box::new(error))
}
