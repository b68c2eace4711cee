//! The way of a file into the storage, part after part, in little memory.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt};
use parking_lot::Mutex;
use parquet::arrow::async_writer::AsyncFileWriter;
use parquet::errors::ParquetError;

use super::Error;
use super::sums::Summing;
use crate::storage::{CreateOutcome, Storage};

/// All parts but the last have this size.
const PART_BYTES: usize = 8 << 20;

/// One object that is being written under a name that nobody else uses.
///
/// It appears as a whole when it is complete and is then durable. One that fits into a part is created as one call and
/// tried again while that may help; a longer one is not, since its earlier parts are no longer there.
#[derive(Debug)]
pub(super) struct Upload {
    storage: Storage,
    path: Path,
    buffer: BytesMut,
    parts: Option<Box<dyn MultipartUpload>>,
    written: u64,
    /// Shared with who writes the file's footer.
    sums: Arc<Mutex<Summing>>,
    /// What stopped the upload; [`AsyncFileWriter`] can only hand on its text.
    error: Option<Error>,
}

impl Upload {
    pub(super) fn new(storage: &Storage, path: &Path) -> Self {
        Self {
            storage: storage.clone(),
            path: path.clone(),
            buffer: BytesMut::new(),
            parts: None,
            written: 0,
            sums: Arc::default(),
            error: None,
        }
    }

    /// Bytes taken so far.
    pub(super) fn size_bytes(&self) -> u64 {
        self.written
    }

    pub(super) fn sums(&self) -> Arc<Mutex<Summing>> {
        Arc::clone(&self.sums)
    }

    pub(super) fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }

    async fn push(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.written += bytes.len() as u64;
        self.sums.lock().push(&bytes);
        self.buffer.extend_from_slice(&bytes);
        while self.buffer.len() > PART_BYTES {
            let part = self.buffer.split_to(PART_BYTES).freeze();
            self.put_part(part).await?;
        }
        Ok(())
    }

    async fn put_part(&mut self, part: Bytes) -> Result<(), Error> {
        let failed = |source| Error::Store { path: self.path.clone(), source };
        let parts = match &mut self.parts {
            Some(parts) => parts,
            None => self.parts.insert(self.storage.store().put_multipart(&self.path).await.map_err(failed)?),
        };
        parts.put_part(part.into()).await.map_err(failed)
    }

    async fn finish(&mut self) -> Result<(), Error> {
        let rest = self.buffer.split().freeze();
        if self.parts.is_none() {
            return match self.storage.create(&self.path, rest).await? {
                CreateOutcome::Created => Ok(()),
                CreateOutcome::Exists(_) => {
                    let source = object_store::Error::AlreadyExists {
                        path: self.path.to_string(),
                        source: "the name of a run is used once".into(),
                    };
                    Err(Error::Store { path: self.path.clone(), source })
                }
            };
        }
        if !rest.is_empty() {
            self.put_part(rest).await?;
        }
        let parts = self.parts.as_mut().expect("the case without parts has returned");
        let Err(source) = parts.complete().await else {
            self.parts = None;
            return Ok(());
        };
        // It appears as a whole or not at all, and nobody else writes under this name.
        if self.storage.head(&self.path).await?.is_some_and(|found| found.size == self.written) {
            self.parts = None;
            return Ok(());
        }
        Err(Error::Store { path: self.path.clone(), source })
    }

    /// Gives up: an unfinished file would keep its lease, or its space, for a long time.
    pub(super) async fn abort(mut self) {
        if let Some(mut parts) = self.parts.take()
            && let Err(error) = parts.abort().await
        {
            tracing::debug!(path = %self.path, %error, "cannot abort an upload");
        }
        // A create or completion that was not answered may have happened.
        if let Err(error) = self.storage.store().delete(&self.path).await
            && !matches!(error, object_store::Error::NotFound { .. })
        {
            tracing::debug!(path = %self.path, %error, "left an unfinished run behind");
        }
    }

    fn keep(&mut self, result: Result<(), Error>) -> Result<(), ParquetError> {
        result.map_err(|error| {
            let text = error.to_string();
            self.error = Some(error);
            ParquetError::General(text)
        })
    }
}

impl AsyncFileWriter for Upload {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), ParquetError>> {
        async move {
            let result = self.push(bytes).await;
            self.keep(result)
        }
        .boxed()
    }

    fn complete(&mut self) -> BoxFuture<'_, Result<(), ParquetError>> {
        async move {
            let result = self.finish().await;
            self.keep(result)
        }
        .boxed()
    }
}
