//! Reading a file while DataNodes come and go.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use hdfs_native::HdfsError;
use hdfs_native::client::FileStatus;
use hdfs_native::file::FileReader;

use super::connection::Connection;
use super::error::{Failure, Problem};
use crate::clock;

/// How often reading goes on with the locations of that moment before it gives up, and how long it waits before.
const RESUMPTIONS: u32 = 4;
/// How long the first DataNodes may take for the next bytes; each time twice as long, up to the limit of a call. One that
/// has stopped answering costs no more than that: the NameNode may name another first.
const FIRST_PATIENCE: Duration = Duration::from_secs(4);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);

/// A file that was opened: where its blocks are.
#[derive(Clone)]
pub(super) struct File {
    connection: Arc<Connection>,
    path: String,
    reader: Arc<FileReader>,
}

type Chunks = BoxStream<'static, Result<Bytes, HdfsError>>;

impl File {
    pub(super) async fn open(connection: Arc<Connection>, path: String) -> Result<Self, Failure> {
        let reader = connection.call("open the file", &path, async |client| client.read(&path).await).await?;
        Ok(Self { connection, path, reader: Arc::new(reader) })
    }

    pub(super) fn length(&self) -> u64 {
        self.reader.file_length() as u64
    }

    /// The bytes of `range`, which must lie in the file.
    pub(super) async fn bytes(&self, range: Range<u64>) -> Result<Bytes, Failure> {
        let mut bytes = BytesMut::with_capacity(usize::try_from(range.end - range.start).unwrap_or(0));
        let mut chunks = self.clone().stream(range, None);
        while let Some(chunk) = chunks.try_next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// The bytes of `range`, which must lie in the file, as they come.
    ///
    /// When the DataNodes of a block fail, reading goes on where it was with those that the NameNode names then.
    /// `opened`: what the file was; another one in its place is not mixed into it.
    pub(super) fn stream(
        self,
        range: Range<u64>,
        opened: Option<FileStatus>,
    ) -> BoxStream<'static, Result<Bytes, Failure>> {
        let reading = Reading { file: self, opened, range, chunks: None, failures: 0 };
        stream::try_unfold(
            reading,
            |mut reading| async move { Ok(reading.next().await?.map(|chunk| (chunk, reading))) },
        )
        .boxed()
    }

    fn chunks(&self, range: &Range<u64>) -> Chunks {
        let index = |offset| usize::try_from(offset).expect("a file's length fits into usize");
        self.reader.read_range_stream(index(range.start), index(range.end - range.start)).boxed()
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("path", &self.path).finish_non_exhaustive()
    }
}

struct Reading {
    file: File,
    opened: Option<FileStatus>,
    /// What is still to come.
    range: Range<u64>,
    chunks: Option<Chunks>,
    /// Since the last bytes.
    failures: u32,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if self.range.is_empty() {
                return Ok(None);
            }
            let connection = Arc::clone(&self.file.connection);
            let chunks = self.chunks.get_or_insert_with(|| self.file.chunks(&self.range));
            let limit = connection.limit().min(FIRST_PATIENCE * 2_u32.pow(self.failures));
            let failure = match connection.within(limit, "read the file", &self.file.path, chunks.try_next()).await {
                Ok(Some(chunk)) => {
                    self.range.start += chunk.len() as u64;
                    self.failures = 0;
                    return Ok(Some(chunk));
                }
                Ok(None) => Failure::of("read the file", &connection.shown(&self.file.path), Problem::DataNodeFailed),
                Err(failure) => failure,
            };
            self.chunks = None;
            self.failures += 1;
            if self.failures > RESUMPTIONS || failure.is_final() {
                return Err(failure);
            }
            tracing::debug!(error = %failure, "reading goes on with other DataNodes");
            clock::sleep(FIRST_BACKOFF * 2_u32.pow(self.failures - 1)).await;
            self.reopen().await?;
        }
    }

    async fn reopen(&mut self) -> Result<(), Failure> {
        let connection = Arc::clone(&self.file.connection);
        let file = match File::open(Arc::clone(&connection), self.file.path.clone()).await {
            Ok(file) => file,
            // The NameNode may be the one that is away: the next turn counts and waits.
            Err(failure) if !failure.is_final() => return Ok(()),
            Err(failure) => return Err(failure),
        };
        let same = match &self.opened {
            Some(opened) => match connection.status(&self.file.path).await {
                Ok(Some(now)) => now.modification_time == opened.modification_time && now.length == opened.length,
                Ok(None) => false,
                Err(failure) => return if failure.is_final() { Err(failure) } else { Ok(()) },
            },
            None => file.length() == self.file.length(),
        };
        if !same {
            let path = connection.shown(&self.file.path);
            return Err(Failure::of("read the file", &path, Problem::Replaced));
        }
        self.file = file;
        Ok(())
    }
}
