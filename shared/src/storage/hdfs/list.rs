//! Listings in the order of their paths.

use std::collections::VecDeque;
use std::sync::Arc;

use chrono::DateTime;
use futures::TryStreamExt;
use futures::stream::{self, BoxStream, StreamExt};
use hdfs_native::client::FileStatus;
use object_store::path::Path;
use object_store::{ObjectMeta, Result};

use super::connection::Connection;
use super::error::{Failure, Problem};

/// What stands in one folder.
#[derive(Debug)]
enum Entry {
    Folder(FileStatus),
    File(FileStatus),
}

impl Entry {
    /// Sorts entries of one folder as the paths of all objects below them are sorted.
    fn key(&self) -> String {
        match self {
            Self::Folder(status) => format!("{}/", status.path),
            Self::File(status) => status.path.clone(),
        }
    }
}

/// The entries of `folder` in the order of the objects' paths; none if there is no such folder.
async fn entries(connection: &Connection, folder: &str) -> Result<VecDeque<Entry>, Failure> {
    let listing = connection.call("list the folder", folder, async |client| Ok(client.list_status_iter(folder, false)));
    let listing = listing.await?;
    let mut found = Vec::new();
    // Page by page: each has the time of a call.
    loop {
        let next = connection.call("list the folder", folder, async |_| listing.next().await.transpose()).await;
        match next {
            Ok(None) => break,
            // The listing of a file is the file.
            Ok(Some(status)) if status.path == folder || status.path.trim_end_matches('/') == folder => {}
            Ok(Some(status)) if status.isdir => found.push(Entry::Folder(status)),
            Ok(Some(status)) => found.push(Entry::File(status)),
            // It went away, or never was.
            Err(failure) if failure.problem == Problem::NotFound => return Ok(VecDeque::new()),
            Err(failure) => return Err(failure),
        }
    }
    found.sort_by_cached_key(Entry::key);
    Ok(found.into())
}

/// All files below `folder`, those whose names begin with a dot too, in the order of their paths.
pub(super) fn files(connection: Arc<Connection>, folder: String) -> BoxStream<'static, Result<FileStatus, Failure>> {
    struct Walk {
        connection: Arc<Connection>,
        start: Option<String>,
        /// The innermost folder last.
        open: Vec<VecDeque<Entry>>,
    }
    let walk = Walk { connection, start: Some(folder), open: vec![] };
    stream::try_unfold(walk, |mut walk| async move {
        if let Some(folder) = walk.start.take() {
            walk.open.push(entries(&walk.connection, &folder).await?);
        }
        while let Some(folder) = walk.open.last_mut() {
            match folder.pop_front() {
                None => drop(walk.open.pop()),
                Some(Entry::File(status)) => return Ok(Some((status, walk))),
                Some(Entry::Folder(status)) => walk.open.push(entries(&walk.connection, &status.path).await?),
            }
        }
        Ok(None)
    })
    .boxed()
}

/// All objects below `prefix` whose paths are greater than `offset`, in order.
pub(super) fn objects(
    connection: Arc<Connection>,
    prefix: Option<&Path>,
    offset: Option<&Path>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let (folder, offset) = (folder(&connection, prefix), offset.cloned());
    let root = connection.root().to_owned();
    files(connection, folder)
        .map_err(object_store::Error::from)
        .try_filter_map(move |status| {
            let wanted = (!is_hidden(&status)).then(|| meta(&root, &status)).transpose();
            let wanted = wanted.map(|m| m.filter(|m| offset.as_ref().is_none_or(|offset| m.location > *offset)));
            std::future::ready(wanted)
        })
        .boxed()
}

/// The objects and the folders directly in `prefix`.
pub(super) async fn folder_of(connection: &Connection, prefix: Option<&Path>) -> Result<(Vec<ObjectMeta>, Vec<Path>)> {
    let (mut objects, mut folders) = (vec![], vec![]);
    for entry in entries(connection, &folder(connection, prefix)).await? {
        match entry {
            Entry::Folder(status) => folders.push(location(connection.root(), &status.path)?),
            Entry::File(status) if !is_hidden(&status) => objects.push(meta(connection.root(), &status)?),
            Entry::File(_) => {}
        }
    }
    Ok((objects, folders))
}

fn folder(connection: &Connection, prefix: Option<&Path>) -> String {
    match prefix {
        Some(prefix) if !prefix.as_ref().is_empty() => connection.absolute(prefix.as_ref()),
        _ if connection.root().is_empty() => "/".to_owned(),
        _ => connection.root().to_owned(),
    }
}

/// Leftovers of unfinished writes, of this and of other clients.
fn is_hidden(status: &FileStatus) -> bool {
    status.path.rsplit('/').next().is_some_and(|name| name.starts_with('.'))
}

fn location(root: &str, path: &str) -> Result<Path> {
    Ok(Path::parse(path.strip_prefix(root).unwrap_or(path))?)
}

pub(super) fn meta(root: &str, status: &FileStatus) -> Result<ObjectMeta> {
    let milliseconds = i64::try_from(status.modification_time).unwrap_or(i64::MAX);
    Ok(ObjectMeta {
        location: location(root, &status.path)?,
        last_modified: DateTime::from_timestamp_millis(milliseconds).unwrap_or_default(),
        size: status.length as u64,
        e_tag: Some(format!("{:x}-{:x}", status.modification_time, status.length)),
        version: None,
    })
}
