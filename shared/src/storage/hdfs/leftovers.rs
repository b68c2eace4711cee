//! What writers that were killed left behind.

use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use object_store::Result;
use object_store::path::Path;

use super::error::Problem;
use super::{Hdfs, list};
use crate::clock;
use crate::storage::leftovers::{Leftovers, is_leftover};

#[async_trait]
impl Leftovers for Hdfs {
    async fn remove_older_than(&self, age: Duration) -> Result<usize> {
        // Both are read off clocks, of two machines: `age` is much more than these are apart.
        let newest = clock::now() - age;
        let newest = u64::try_from(newest.timestamp_millis()).unwrap_or(0);
        let mut removed = 0;
        let mut files = list::files(self.connection(), self.folder());
        while let Some(status) = files.try_next().await? {
            let name = status.path.rsplit('/').next().unwrap_or_default();
            if is_leftover(name) && status.modification_time < newest {
                let path = status.path.as_str();
                // Also ends the lease of the writer, if it still has one.
                self.connection()
                    .call("remove the file", path, async |client| client.delete(path, false).await)
                    .await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    async fn remove_folder(&self, path: &Path) -> Result<()> {
        let folder = self.connection().absolute(path.as_ref());
        let call = async |client: hdfs_native::Client| client.delete(&folder, false).await;
        match self.connection().call("remove the folder", &folder, call).await {
            Ok(_) => Ok(()),
            // It is not there, or not empty.
            Err(failure) if failure.problem == Problem::NotFound => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }
}
