//! What is in a storage and is no object: files under temporary names that killed writers left behind, and empty folders.

use std::time::Duration;

use async_trait::async_trait;
use object_store::Result;
use object_store::path::Path;

/// A kind of storage that writes under temporary names, into folders.
#[async_trait]
pub(super) trait Leftovers: std::fmt::Debug + Send + Sync {
    /// Removes temporary files that were last written to longer ago than `age`; answers how many.
    ///
    /// `age` must be much more than any writer takes and clocks differ: a day.
    async fn remove_older_than(&self, age: Duration) -> Result<usize>;

    /// Removes the folder at `path` unless there is something in it, or it is not there.
    async fn remove_folder(&self, path: &Path) -> Result<()>;
}

/// Whether a file of this name is one: `.<name>.<unique>.tmp`, where `unique` has 32 hexadecimal digits.
pub(super) fn is_leftover(name: &str) -> bool {
    let unique =
        name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")).and_then(|name| name.rsplit_once('.'));
    unique.is_some_and(|(name, unique)| {
        !name.is_empty() && unique.len() == 32 && unique.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_own_are_leftovers() {
        assert!(is_leftover(".a.parquet.0123456789abcdef0123456789abcdef.tmp"));
        for other in ["a.0123456789abcdef0123456789abcdef.tmp", ".hidden.tmp.0", ".hidden.tmp", ".x.0123.tmp", ".tmp"] {
            assert!(!is_leftover(other), "{other}");
        }
    }
}
