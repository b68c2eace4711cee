//! The delta store: an image of the delta that can be lost at any time.

mod image;
mod memory;
mod on_sled;

pub(crate) use image::{Entry, Loaded, SegmentImage, encode_group, encode_line, encode_run, line_key, load};
pub use memory::MemoryStore;
pub use on_sled::SledStore;

/// Larger values leak in sled.
pub(crate) const MAX_VALUE_BYTES: usize = 64 * 1024;

/// The store failed. What was to be written may have been written, wholly or not at all.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("the delta store is in use by another process. path=`{0}`")]
    InUse(String),
    /// What was written is gone: it was damaged, and is set aside. Write everything again.
    #[error("the delta store was damaged, and is empty now")]
    Emptied,
    /// It may be able to write again at any time: try again.
    #[error("{0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// One change of a [`DeltaStore`]: keys with their new values; without one the key is removed.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// An ordered map from keys to small values.
///
/// # Contract
/// - `apply` is atomic: after a crash all of it is there or nothing. Changes are recovered in the order in which they
///   were applied: if one is there, all those before it are.
/// - After `flush` has returned all that was applied before it survives a crash.
/// - It blocks. Values come back as they were written, or damaged: the caller checks.
pub trait DeltaStore: Send + Sync + std::fmt::Debug {
    /// Everything, in the order of the keys.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn scan(&self, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError>;

    /// # Errors
    /// When the store cannot be written; the outcome is open.
    fn apply(&self, changes: Vec<Change>) -> Result<(), StoreError>;

    /// # Errors
    /// When the store cannot be written.
    fn flush(&self) -> Result<(), StoreError>;
}
