//! Registers: what has been decided, as create-only numbered records; whoever creates the next number has decided.
//!
//! Records lie in `registers/<kind>/<name>/<number>.json`, the number with twenty digits, from 1, without a hole. Each
//! record holds its event and the whole state after it, so the head alone is enough.

mod append;
mod follow;
mod record;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

pub use append::{AppendError, AppendOutcome, Update, UpdateError};
pub use record::Record;

use crate::paths;
use crate::storage::{self, Storage};

/// What a register's events fold to.
///
/// # Contract
/// - `apply` is pure: any process folds the same events to the same state.
/// - `Default` is the state of a register without a record.
/// - Both types keep their JSON form readable for ever: fields may be added with a default.
/// - An event carries its own identity (a build's id, an ownership's epoch) where it may not be applied twice: a writer
///   whose append ends in [`Error::Indeterminate`] decides again from the state.
pub trait RegisterState: Serialize + DeserializeOwned + Clone + Default + fmt::Debug + Send + Sync + 'static {
    type Event: Serialize + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static;
    type Rejected: std::error::Error + Send + Sync + 'static;

    /// The state after `event`, or why the event does not apply.
    fn apply(&self, event: &Self::Event) -> Result<Self, Self::Rejected>;
}

/// The handle of one register. Clones share what they know of the head.
pub struct Register<S: RegisterState>(Arc<Inner<S>>);

struct Inner<S: RegisterState> {
    storage: Storage,
    kind: String,
    name: String,
    options: Options,
    known: Mutex<Option<Known<S>>>,
    /// An append of this process: followers need not wait for their next poll.
    appended: Notify,
}

/// Who writes, and how much is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Written into each record, for people.
    pub writer: String,
    /// Records that pruning leaves; less than [`MIN_KEPT`] counts as that.
    pub keep: u64,
}

/// Pruning never leaves fewer records, so that a writer or reader that pauses finds its place again.
pub const MIN_KEPT: u64 = 1_000;

impl Default for Options {
    fn default() -> Self {
        Self { writer: format!("process {}", std::process::id()), keep: MIN_KEPT }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The append may have happened; what would tell has been pruned since. Read the head and decide from its state.
    #[error("the append may have happened, over a thousand others followed before it was answered. record=`{path}`")]
    Indeterminate { path: Path },
    /// Nothing is decided on a register that can't be read.
    #[error("the register has an unreadable record: {reason}. Restore it from a copy of the storage. record=`{path}`")]
    Corrupt { path: Path, reason: String },
    #[error(
        "the record was written by a newer release, with format {version}. Run that release here too. record=`{path}`"
    )]
    NewerVersion { path: Path, version: String },
    #[error("the register's records have disappeared from the storage. Restore them or restart. folder=`{folder}`")]
    Vanished { folder: Path },
}

/// A record that was the head at some time, with the first bytes of its file, which hold its number and id.
struct Known<S: RegisterState> {
    record: Arc<Record<S>>,
    start: Bytes,
}

impl<S: RegisterState> Register<S> {
    /// The register `name` of `kind`. Reads nothing yet; a register without a record need not exist.
    pub fn open(storage: &Storage, kind: &str, name: &str) -> Self {
        Self::open_with(storage, kind, name, Options::default())
    }

    /// As [`open`](Self::open), under another name for the writer.
    pub fn open_with(storage: &Storage, kind: &str, name: &str, options: Options) -> Self {
        Self(Arc::new(Inner {
            storage: storage.clone(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            options: Options { keep: options.keep.max(MIN_KEPT), ..options },
            known: Mutex::new(None),
            appended: Notify::new(),
        }))
    }

    /// The names of all registers of `kind` that have a record.
    ///
    /// # Errors
    /// If the storage can't be listed.
    pub async fn names(storage: &Storage, kind: &str) -> Result<Vec<String>, Error> {
        let folder = Path::from_iter(["registers", kind]);
        Ok(storage.list_folders(&folder).await?)
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The head: the record with the highest number; `None` while there is none.
    ///
    /// It was the head at some moment of this call. When nothing was appended since the last call this reads the
    /// beginning of one file and looks for another; only the first call lists. Cancel safe.
    ///
    /// # Errors
    /// If the storage can't be read, or a record is not readable: it is never skipped.
    pub async fn head(&self) -> Result<Option<Arc<Record<S>>>, Error> {
        Ok(self.find_head().await?.map(|head| head.record))
    }

    /// The state after the head; the default state while there is no record. As [`head`](Self::head) otherwise.
    ///
    /// # Errors
    /// As [`head`](Self::head).
    pub async fn state(&self) -> Result<S, Error> {
        Ok(self.head().await?.map(|record| record.state.clone()).unwrap_or_default())
    }

    async fn find_head(&self) -> Result<Option<Known<S>>, Error> {
        let known = self.0.known.lock().clone();
        if let Some(known) = &known
            && let Some(head) = self.walk(known).await?
        {
            return Ok(Some(self.remember(head)));
        }
        let least = known.map_or(0, |k| k.record.number);
        // Each further turn means that everything just listed was pruned before it was read.
        for _ in 0..100 {
            let Some(number) = self.highest().await? else { break };
            if number < least {
                break;
            }
            if let Some(found) = self.read(number).await?
                && let Some(head) = self.walk(&found).await?
            {
                return Ok(Some(self.remember(head)));
            }
        }
        if least > 0 {
            return Err(Error::Vanished { folder: paths::register(&self.0.kind, &self.0.name) });
        }
        Ok(None)
    }

    /// Goes from a record that was the head once to the head; `None` if `from` has been pruned.
    async fn walk(&self, from: &Known<S>) -> Result<Option<Known<S>>, Error> {
        let mut last = from.clone();
        while let Some(next) = self.read(last.record.number + 1).await? {
            last = next;
        }
        // SUBTLE: a number that is absent may have been pruned, and a record found may be that of a writer who paused,
        // was overtaken by a thousand others and then created a number that had been pruned. Neither can be the case
        // if `from` itself is still there with its own id: records are deleted in ascending order, so nothing above
        // `from` had been deleted when it was read. This look must therefore come last.
        Ok(self.is_there(from).await?.then_some(last))
    }

    /// Whether the record's file still is the one that was read.
    async fn is_there(&self, known: &Known<S>) -> Result<bool, Error> {
        let path = self.path(known.record.number);
        Ok(self.0.storage.get_start(&path, record::START).await?.is_some_and(|start| start == known.start))
    }

    async fn read(&self, number: u64) -> Result<Option<Known<S>>, Error> {
        let path = self.path(number);
        let Some(bytes) = self.0.storage.get(&path).await? else { return Ok(None) };
        Ok(Some(Known { record: Arc::new(record::decode(&path, number, &bytes)?), start: record::start(&bytes) }))
    }

    async fn highest(&self) -> Result<Option<u64>, Error> {
        Ok(self.numbers().await?.last().copied())
    }

    /// The numbers of all files in the folder, in ascending order.
    async fn numbers(&self) -> Result<Vec<u64>, Error> {
        let listed = self.0.storage.list(&paths::register(&self.0.kind, &self.0.name)).await?;
        Ok(listed.iter().filter_map(|o| paths::record_number(&o.location)).collect())
    }

    fn path(&self, number: u64) -> Path {
        paths::record(&self.0.kind, &self.0.name, number)
    }

    /// Keeps the higher of the known head and `head`, and returns `head`.
    fn remember(&self, head: Known<S>) -> Known<S> {
        let mut known = self.0.known.lock();
        if known.as_ref().is_none_or(|k| k.record.number < head.record.number) {
            *known = Some(head.clone());
        }
        head
    }
}

impl<S: RegisterState> Clone for Register<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: RegisterState> Clone for Known<S> {
    fn clone(&self) -> Self {
        Self { record: Arc::clone(&self.record), start: self.start.clone() }
    }
}

impl<S: RegisterState> fmt::Debug for Register<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Register({}/{} in {:?})", self.0.kind, self.0.name, self.0.storage)
    }
}
