//! A file that is being written beside its target.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hdfs_native::file::FileWriter;
use hdfs_native::{HdfsError, WriteOptions};
use object_store::PutPayload;
use uuid::Uuid;

use super::connection::Connection;
use super::error::{Failure, Problem};
use super::read::File;
use crate::storage::timed::allowance;
use crate::{abort_point, clock, task};

/// Blocks of the files that are written here: known, so that each is flushed to the disks before the next is begun.
pub(super) const BLOCK_BYTES: u64 = 128 << 20;
/// How often the removal of a temporary file is tried when an answer depends on it.
const REMOVALS: u32 = 3;
/// How often when none does: for some minutes, as long as a NameNode may be away. The rest is collected when it is old.
const BACKGROUND_REMOVALS: u32 = 30;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// A file under `.<name>.<unique>.tmp` beside its target: nobody else knows its name.
///
/// Dropped before it was published, it is removed in the background. What a killed process leaves behind is no object
/// and is collected later.
pub(super) struct Staged {
    connection: Arc<Connection>,
    path: String,
    writer: Option<FileWriter>,
    written: u64,
    block_bytes: u64,
    /// Nothing is there any more.
    gone: bool,
}

/// What stands at the target if the publication happened.
#[derive(Debug)]
pub(super) enum Content<'a> {
    Bytes(&'a PutPayload),
    /// As many bytes as were written, under a name that is used once.
    Length,
}

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removal {
    Removed,
    Absent,
}

impl Staged {
    pub(super) async fn create(connection: Arc<Connection>, target: &str, block_bytes: u64) -> Result<Self, Failure> {
        let (folder, name) = target.rsplit_once('/').unwrap_or(("", target));
        let path = format!("{folder}/.{name}.{}.tmp", Uuid::new_v4().simple());
        // Before the call: one that timed out may still create the file.
        let mut staged = Self { connection, path, writer: None, written: 0, block_bytes, gone: false };
        let options = WriteOptions::default().block_size(block_bytes);
        let path = staged.path.as_str();
        let created =
            staged.connection.call("create the file", path, async |client| client.create(path, &options).await).await;
        staged.writer = Some(created?);
        Ok(staged)
    }

    pub(super) async fn write(&mut self, mut bytes: Bytes) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let room = self.block_bytes - self.written % self.block_bytes;
            let now = bytes.split_to(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            let length = now.len() as u64;
            let limit = self.connection.limit() + allowance(length);
            let writer = self.writer.as_mut().expect("it is taken away by publish only");
            self.connection.within(limit, "write the file", &self.path, writer.write_bytes(now)).await?;
            self.written += length;
            if self.written.is_multiple_of(self.block_bytes) {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Makes the present block durable on the disks of all its DataNodes.
    async fn flush(&mut self) -> Result<(), Failure> {
        let writer = self.writer.as_mut().expect("it is taken away by publish only");
        let flush = async {
            match writer.hsync().await {
                // Its client can't; such a file is as durable as its closing makes it.
                Err(HdfsError::OperationFailed(reason)) if reason.contains("erasure-coded") => Ok(()),
                other => other,
            }
        };
        let limit = self.connection.limit() + allowance(self.written.min(self.block_bytes));
        self.connection.within(limit, "flush the file", &self.path, flush).await
    }

    /// Flushes and closes the file and puts it in its place in one step.
    ///
    /// After any error the outcome is read back. An error that remains: it did not happen, unless the NameNode does
    /// not answer for long.
    pub(super) async fn publish(mut self, target: &str, overwrite: bool, content: Content<'_>) -> Result<(), Failure> {
        if !self.written.is_multiple_of(self.block_bytes) {
            self.flush().await?;
        }
        let mut writer = self.writer.take().expect("it is taken away here only");
        self.connection.within(self.connection.limit(), "close the file", &self.path, writer.close()).await?;
        abort_point!("hdfs.staged");
        let path = self.path.as_str();
        let renamed = self
            .connection
            .call("put the file in its place", target, async |client| client.rename(path, target, overwrite).await)
            .await;
        let failure = match renamed {
            Ok(()) => {
                self.gone = true;
                return Ok(());
            }
            Err(failure) => failure,
        };
        // SUBTLE: a rename that was not answered may be done, or done later. Only we know the temporary name: once it
        // is removed, the rename did not happen and can't any more. If there is nothing to remove, it has happened, or
        // somebody else removed the file, or an earlier try of ours did: the target tells.
        match self.remove().await {
            Ok(Removal::Absent) if self.is_at(target, content).await? => Ok(()),
            Ok(_) => Err(failure),
            Err(error) => {
                tracing::debug!(%error, "cannot settle a rename");
                Err(failure)
            }
        }
    }

    async fn is_at(&self, target: &str, content: Content<'_>) -> Result<bool, Failure> {
        let Some(status) = self.connection.status(target).await? else { return Ok(false) };
        if status.length as u64 != self.written {
            return Ok(false);
        }
        match content {
            Content::Length => Ok(true),
            Content::Bytes(payload) => {
                let found = File::open(Arc::clone(&self.connection), target.to_owned()).await?;
                let found = found.bytes(0..self.written).await?;
                Ok(payload.iter().flatten().eq(found.iter()))
            }
        }
    }

    /// Removes the file; an error if that remains open.
    pub(super) async fn discard(mut self) -> Result<(), Failure> {
        self.writer = None;
        self.remove().await.map(drop)
    }

    async fn remove(&mut self) -> Result<Removal, Failure> {
        let mut backoff = FIRST_BACKOFF;
        let mut tries = 1;
        loop {
            match remove(&self.connection, &self.path).await {
                Ok(removal) => {
                    self.gone = true;
                    return Ok(removal);
                }
                Err(failure) if failure.is_final() || tries == REMOVALS => return Err(failure),
                Err(_) => {}
            }
            clock::sleep(backoff).await;
            backoff *= 2;
            tries += 1;
        }
    }
}

async fn remove(connection: &Connection, path: &str) -> Result<Removal, Failure> {
    let removed = connection.call("remove the file", path, async |client| client.delete(path, false).await).await;
    match removed {
        Ok(true) => Ok(Removal::Removed),
        Ok(false) => Ok(Removal::Absent),
        Err(failure) if failure.problem == Problem::NotFound => Ok(Removal::Absent),
        Err(failure) => Err(failure),
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.gone || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        // An open file would keep its lease for as long as this process writes anything.
        let (connection, path) = (Arc::clone(&self.connection), std::mem::take(&mut self.path));
        task::spawn("remove an unfinished file", async move {
            let mut backoff = FIRST_BACKOFF;
            for _ in 0..BACKGROUND_REMOVALS {
                match remove(&connection, &path).await {
                    Ok(_) => return,
                    Err(failure) if failure.is_final() => break,
                    Err(_) => {}
                }
                clock::sleep(backoff).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
            tracing::debug!(path, "left an unfinished file behind");
        });
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged").field("path", &self.path).field("written", &self.written).finish_non_exhaustive()
    }
}
