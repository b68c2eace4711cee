//! The lock that keeps a folder to one process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use crate::clock;

/// An exclusive lock on a folder, held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
    path: PathBuf,
}

impl DirLock {
    /// Creates `dir` if it is missing and locks it by `dir/lock`.
    ///
    /// # Errors
    /// [`Error::DataDirInUse`] with the holder as it described itself; [`Error::BrokerStart`] when the folder cannot be
    /// created or written.
    pub fn acquire(dir: &Path) -> Result<Self> {
        let refused = |what: &str, e: std::io::Error| Error::BrokerStart {
            detail: format!("cannot {what} {}: {e}", dir.display()),
        };
        std::fs::create_dir_all(dir).map_err(|e| refused("create", e))?;
        let path = dir.join("lock");
        // Not truncated: until the lock is ours the content tells who holds it.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| refused("write to", e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
                let holder = if known { holder.trim().to_owned() } else { "unknown".to_owned() };
                return Err(Error::DataDirInUse { path: dir.to_owned(), holder });
            }
            Err(TryLockError::Error(e)) => return Err(refused("lock", e)),
        }
        let program = std::env::args().next().unwrap_or_default();
        let holder = format!("process {} ({program}) since {}", std::process::id(), clock::now().to_rfc3339());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{holder}"))
            .map_err(|e| refused("write to", e))?;
        Ok(Self { _file: file, path })
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirLock::acquire(dir.path()).unwrap();
        let error = DirLock::acquire(dir.path()).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::DataDirInUse { .. }), "{message}");
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        drop(held);
        DirLock::acquire(dir.path()).unwrap();
    }
}
