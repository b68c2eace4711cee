//! From a URL to a store rooted at it: the one place that knows the kinds of storage.

use std::sync::Arc;

use object_store::ObjectStore;
use url::Url;

use super::{DurableFileSystem, Error};

/// The store under `url`.
///
/// A new kind of storage is one more arm here and one more caller of the conformance suite. It must create atomically
/// without overwriting (`PutMode::Create`), make what it wrote durable before it answers, and finish multipart uploads
/// in one step.
pub(super) fn open(url: &Url) -> Result<Arc<dyn ObjectStore>, Error> {
    match url.scheme() {
        "file" => {
            let folder = url.to_file_path().map_err(|()| Error::InvalidUrl {
                url: url.clone(),
                reason: "a local folder is file:/// and an absolute path",
            })?;
            let store = DurableFileSystem::open(&folder)
                .map_err(|source| Error::Folder { folder: folder.display().to_string(), source })?;
            Ok(Arc::new(store))
        }
        "memory" => Ok(Arc::new(object_store::memory::InMemory::new())),
        // hdfs: an ObjectStore of our own over hdfs-native 0.14; s3: object_store's own with feature `aws`.
        _ => Err(Error::UnsupportedScheme { url: url.clone() }),
    }
}
