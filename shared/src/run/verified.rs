//! The files of runs as an object store: none of its readers gets a byte that is not as it was written.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::RunMeta;
use super::sums::{Sums, Tail};
use crate::storage;

/// What is wrong with a file that a register names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("file `{path}` is missing")]
    Missing { path: Path },
    #[error("file `{path}` is damaged: {what}")]
    Damaged { path: Path, what: String },
}

impl Fault {
    pub fn path(&self) -> &Path {
        match self {
            Self::Missing { path } | Self::Damaged { path, .. } => path,
        }
    }

    /// The fault that `error` comes from.
    pub fn behind<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        storage::causes(error).find_map(|cause| cause.downcast_ref())
    }
}

/// As the readers of Parquet hand it on.
impl From<Fault> for object_store::Error {
    fn from(fault: Fault) -> Self {
        let path = fault.path().to_string();
        match fault {
            Fault::Missing { .. } => Self::NotFound { path, source: Box::new(fault) },
            // Not one of those that mean that the storage is away.
            Fault::Damaged { .. } => Self::Precondition { path, source: Box::new(fault) },
        }
    }
}

/// The files of one table of runs over a store.
#[derive(Debug)]
pub(super) struct Verified {
    inner: Arc<dyn ObjectStore>,
    files: HashMap<Path, File>,
    /// What a reader came upon last, and where.
    met: Mutex<Option<(Fault, Range<u64>)>>,
}

#[derive(Debug)]
struct File {
    size_bytes: u64,
    /// `None`: it was written by a release that summed nothing up. It is read as it is.
    tail: Option<Tail>,
    sums: OnceCell<Sums>,
}

impl Verified {
    pub(super) fn new<'a>(inner: Arc<dyn ObjectStore>, runs: impl Iterator<Item = &'a (Path, RunMeta)>) -> Self {
        let file = |run: &RunMeta| File { size_bytes: run.size_bytes, tail: run.tail, sums: OnceCell::new() };
        let files = runs.map(|(path, run)| (path.clone(), file(run))).collect();
        Self { inner, files, met: Mutex::new(None) }
    }

    /// What a reader came upon, unless it has been found mended since.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.met.lock().as_ref().map(|(fault, _)| fault.clone())
    }

    /// What a reader of this file came upon, as readers hand it on.
    pub(super) fn fault_of(&self, path: &Path) -> Option<object_store::Error> {
        self.fault().filter(|fault| fault.path() == path).map(Into::into)
    }

    /// Looks whether all files are there and as long as they were, and once more at what a reader came upon.
    ///
    /// # Errors
    /// The storage does not answer: nothing is known then.
    pub(super) async fn look(&self) -> Result<Option<Fault>> {
        let before = self.met.lock().clone();
        let mut found = None;
        for (path, file) in &self.files {
            found = match self.inner.head(path).await {
                Ok(meta) if meta.size == file.size_bytes => continue,
                Ok(meta) => Some((other_length(path, meta.size, file.size_bytes), 0..file.size_bytes)),
                Err(object_store::Error::NotFound { .. }) => Some((missing(path), 0..file.size_bytes)),
                Err(error) => return Err(error),
            };
            break;
        }
        if let (None, Some((Fault::Damaged { path, .. }, range))) = (&found, &before) {
            match self.ranges(path, std::slice::from_ref(range)).await {
                Ok(_) => {}
                Err(error) if Fault::behind(&error).is_some() => return Ok(self.fault()),
                Err(error) => return Err(error),
            }
        }
        let mut met = self.met.lock();
        // What a reader has come upon meanwhile stays.
        if found.is_some() || *met == before {
            *met = found;
        }
        Ok(met.as_ref().map(|(fault, _)| fault.clone()))
    }

    async fn ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let Some(file) = self.files.get(path) else { return self.inner.get_ranges(path, ranges).await };
        let Some(tail) = file.tail else { return self.read(path, file, ranges).await };
        let sums = file.sums.get_or_try_init(|| self.open(path, file, tail)).await?;
        // Neighbours are read at once.
        let mut wanted: Vec<Range<usize>> = ranges.iter().map(|range| sums.parts(range)).collect();
        wanted.retain(|parts| !parts.is_empty());
        wanted.sort_by_key(|parts| parts.start);
        let mut spans: Vec<Range<usize>> = Vec::new();
        for parts in wanted {
            match spans.last_mut() {
                Some(span) if parts.start <= span.end => span.end = span.end.max(parts.end),
                _ => spans.push(parts),
            }
        }
        let reads: Vec<Range<u64>> = spans.iter().map(|span| sums.bytes(span)).collect();
        let read = self.read(path, file, &reads).await?;
        for (span, bytes) in spans.iter().zip(&read) {
            if let Some(bad) = sums.damaged(span, bytes) {
                let what =
                    format!("bytes {} to {} have another checksum than they were written with", bad.start, bad.end);
                return Err(self.met(Fault::Damaged { path: path.clone(), what }, bad));
            }
        }
        let cut = |range: &Range<u64>| {
            let found = reads.iter().zip(&read).find(|(span, _)| span.start <= range.start && range.end <= span.end);
            found.map_or_else(Bytes::new, |(span, bytes)| {
                let at = |offset: u64| usize::try_from(offset - span.start).expect("it was read");
                bytes.slice(at(range.start)..at(range.end))
            })
        };
        Ok(ranges.iter().map(cut).collect())
    }

    /// Reads what the file's end says of the rest.
    async fn open(&self, path: &Path, file: &File, tail: Tail) -> Result<Sums> {
        let range = file.size_bytes.saturating_sub(tail.size_bytes)..file.size_bytes;
        let read = self.read(path, file, std::slice::from_ref(&range)).await?;
        let damaged = |what| self.met(Fault::Damaged { path: path.clone(), what }, range.clone());
        Sums::read(&read[0], tail, file.size_bytes).map_err(damaged)
    }

    /// As the storage has them. That a file is missing or has another length is a fault of its own.
    async fn read(&self, path: &Path, file: &File, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let all = || 0..file.size_bytes;
        let error = match self.inner.get_ranges(path, ranges).await {
            Ok(read) => {
                let whole = read.len() == ranges.len()
                    && read.iter().zip(ranges).all(|(bytes, range)| bytes.len() as u64 == range.end - range.start);
                if whole {
                    return Ok(read);
                }
                let what = "the storage has fewer bytes of it than were written".to_owned();
                return Err(self.met(Fault::Damaged { path: path.clone(), what }, all()));
            }
            Err(object_store::Error::NotFound { .. }) => return Err(self.met(missing(path), all())),
            Err(error) => error,
        };
        // A range beyond the end is refused in as many ways as there are stores.
        match self.inner.head(path).await {
            Ok(meta) if meta.size != file.size_bytes => {
                Err(self.met(other_length(path, meta.size, file.size_bytes), all()))
            }
            Ok(_) | Err(_) => Err(error),
        }
    }

    fn met(&self, fault: Fault, range: Range<u64>) -> object_store::Error {
        *self.met.lock() = Some((fault.clone(), range));
        fault.into()
    }
}

fn missing(path: &Path) -> Fault {
    Fault::Missing { path: path.clone() }
}

fn other_length(path: &Path, found: u64, written: u64) -> Fault {
    Fault::Damaged { path: path.clone(), what: format!("it has {found} bytes, {written} were written") }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for Verified {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let Some(file) = self.files.get(location).filter(|_| !options.head) else {
            return self.inner.get_opts(location, options).await;
        };
        let range = match &options.range {
            None => 0..file.size_bytes,
            Some(range) => range
                .as_range(file.size_bytes)
                .map_err(|source| object_store::Error::Generic { store: "run", source: Box::new(source) })?,
        };
        let bytes = self.ranges(location, std::slice::from_ref(&range)).await?.remove(0);
        let meta = ObjectMeta {
            location: location.clone(),
            last_modified: chrono::DateTime::UNIX_EPOCH,
            size: file.size_bytes,
            e_tag: None,
            version: None,
        };
        let payload = GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes: object_store::Attributes::default() })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}
