//! A timeout around every call: no client of a distributed file system may hang for ever on a stopped server. How calls
//! end is taken note of.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

use super::health::{Kind, Watched};

/// Ends every call that takes longer than it may with an error, and remembers how the last ones ended.
///
/// A write that was ended may have happened, or happen later.
#[derive(Debug)]
pub struct Timed {
    inner: Arc<dyn ObjectStore>,
    limit: Duration,
    watched: Arc<Watched>,
}

impl Timed {
    pub fn new(inner: Arc<dyn ObjectStore>, limit: Duration) -> Self {
        Self { inner, limit, watched: Arc::default() }
    }

    pub(super) fn watched(&self) -> Arc<Watched> {
        Arc::clone(&self.watched)
    }

    async fn read<T>(
        &self,
        limit: Duration,
        operation: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        limited(limit, operation, call).await.noted(&self.watched, Kind::Read)
    }

    async fn write<T>(
        &self,
        limit: Duration,
        operation: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        limited(limit, operation, call).await.noted(&self.watched, Kind::Write)
    }

    fn stream<T: Send + 'static>(
        &self,
        operation: &'static str,
        kind: Kind,
        stream: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let watched = self.watched();
        limited_stream(self.limit, operation, stream).map(move |item| item.noted(&watched, kind)).boxed()
    }
}

trait Noted {
    fn noted(self, watched: &Watched, kind: Kind) -> Self;
}

impl<T> Noted for Result<T> {
    fn noted(self, watched: &Watched, kind: Kind) -> Self {
        watched.note(kind, &self);
        self
    }
}

impl fmt::Display for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// What a payload adds to the time that a call may take: a second for each MiB.
pub(super) fn allowance(bytes: u64) -> Duration {
    Duration::from_millis(bytes * 1000 / (1 << 20))
}

#[derive(Debug, thiserror::Error)]
#[error("no answer in time to {0}")]
struct Elapsed(&'static str);

pub(super) fn elapsed(operation: &'static str) -> object_store::Error {
    object_store::Error::Generic { store: "timeout", source: Box::new(Elapsed(operation)) }
}

async fn limited<T>(limit: Duration, operation: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(elapsed(operation)))
}

/// Limits the time between two items. After a timeout the stream ends.
fn limited_stream<T: Send + 'static>(
    limit: Duration,
    operation: &'static str,
    stream: BoxStream<'static, Result<T>>,
) -> BoxStream<'static, Result<T>> {
    futures::stream::unfold(Some(stream), move |stream| async move {
        let mut stream = stream?;
        match tokio::time::timeout(limit, stream.next()).await {
            Ok(Some(item)) => Some((item, Some(stream))),
            Ok(None) => None,
            Err(_) => Some((Err(elapsed(operation)), None)),
        }
    })
    // Some callers ask again after the end.
    .fuse()
    .boxed()
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for Timed {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let limit = self.limit + allowance(payload.content_length() as u64);
        self.write(limit, "put", self.inner.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let upload =
            self.write(self.limit, "begin a multipart upload", self.inner.put_multipart_opts(location, opts)).await?;
        Ok(Box::new(TimedUpload { inner: upload, limit: self.limit, bytes: 0, watched: self.watched() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let mut result = self.read(self.limit, "get", self.inner.get_opts(location, options)).await?;
        result.payload = match result.payload {
            GetResultPayload::Stream(stream) => {
                GetResultPayload::Stream(self.stream("get the next bytes", Kind::Read, stream))
            }
            file @ GetResultPayload::File(..) => file,
        };
        Ok(result)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let limit = self.limit + allowance(ranges.iter().map(|r| r.end.saturating_sub(r.start)).sum());
        self.read(limit, "get ranges", self.inner.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.stream("delete", Kind::Write, self.inner.delete_stream(locations))
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.stream("list", Kind::Read, self.inner.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.stream("list", Kind::Read, self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.read(self.limit, "list", self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.write(self.limit, "copy", self.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.write(self.limit, "rename", self.inner.rename_opts(from, to, options)).await
    }
}

#[derive(Debug)]
struct TimedUpload {
    inner: Box<dyn MultipartUpload>,
    limit: Duration,
    bytes: u64,
    watched: Arc<Watched>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MultipartUpload for TimedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let bytes = data.content_length() as u64;
        self.bytes += bytes;
        let limit = self.limit + allowance(bytes);
        let (part, watched) = (self.inner.put_part(data), Arc::clone(&self.watched));
        Box::pin(async move { limited(limit, "put a part", part).await.noted(&watched, Kind::Write) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        // A store may do all of its flushing here.
        let limit = self.limit + allowance(self.bytes);
        limited(limit, "complete a multipart upload", self.inner.complete()).await.noted(&self.watched, Kind::Write)
    }

    async fn abort(&mut self) -> Result<()> {
        limited(self.limit, "abort a multipart upload", self.inner.abort()).await.noted(&self.watched, Kind::Write)
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::{ObjectStoreExt, throttle};

    use super::*;

    #[tokio::test]
    async fn a_call_to_a_stopped_store_ends() {
        let slow = throttle::ThrottleConfig {
            wait_get_per_call: Duration::from_secs(3600),
            wait_put_per_call: Duration::from_secs(3600),
            wait_list_per_call: Duration::from_secs(3600),
            ..throttle::ThrottleConfig::default()
        };
        let store =
            Timed::new(Arc::new(throttle::ThrottledStore::new(InMemory::new(), slow)), Duration::from_millis(20));
        let path = Path::from("a");
        let start = crate::clock::Instant::now();
        assert!(store.put(&path, "x".into()).await.unwrap_err().to_string().contains("no answer in time to put"));
        assert!(store.get(&path).await.unwrap_err().to_string().contains("no answer in time"));
        assert!(store.list(None).next().await.unwrap().unwrap_err().to_string().contains("no answer in time"));
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
