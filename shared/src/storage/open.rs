//! From a URL to a store rooted at it: the one place that knows the kinds of storage.

use std::sync::Arc;

use object_store::ObjectStore;
use url::Url;

use super::hdfs::Hdfs;
use super::leftovers::Leftovers;
use super::{DurableFileSystem, Error, Settings};

/// A store, and the way to what killed writers left in it.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) leftovers: Option<Arc<dyn Leftovers>>,
}

impl Opened {
    fn new(store: impl ObjectStore + Leftovers + Clone) -> Self {
        Self { store: Arc::new(store.clone()), leftovers: Some(Arc::new(store)) }
    }
}

/// The store under `url`.
///
/// A new kind of storage is one more arm here and one more caller of the conformance suite. It must create atomically
/// without overwriting (`PutMode::Create`), make what it wrote durable before it answers, and finish multipart uploads
/// in one step.
pub(super) fn open(url: &Url, settings: Settings) -> Result<Opened, Error> {
    match url.scheme() {
        "file" => {
            let folder = url.to_file_path().map_err(|()| Error::InvalidUrl {
                url: url.clone(),
                reason: "a local folder is file:/// and an absolute path".to_owned(),
            })?;
            let store = DurableFileSystem::open(&folder)
                .map_err(|source| Error::Folder { folder: folder.display().to_string(), source })?;
            Ok(Opened::new(store))
        }
        "hdfs" => {
            // A write is some calls to the NameNode: each has a part of the time, so that it can settle what it began.
            let limit = settings.call_timeout / 3;
            Hdfs::open(url, limit).map(Opened::new).map_err(|reason| Error::InvalidUrl { url: url.clone(), reason })
        }
        "memory" => Ok(Opened { store: Arc::new(object_store::memory::InMemory::new()), leftovers: None }),
        // s3: object_store's own with feature `aws`.
        _ => Err(Error::UnsupportedScheme { url: url.clone() }),
    }
}
