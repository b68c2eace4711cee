//! HDFS: a native client, without a JVM, under the care that it needs.
//!
//! | what HDFS and its client do | so here |
//! |---|---|
//! | a file is visible while it is written | each object is written under a temporary name and renamed |
//! | `rename` is one step on the NameNode, and may be told not to overwrite | it decides races |
//! | an answer can be lost | the outcome of a rename is read back |
//! | a closed file may still be in the DataNodes' memory | it is flushed to their disks first |
//! | a stopped server never answers | each call has a limit; another client follows one that was not answered |
//! | a NameNode lists a dead DataNode for a while | reads go on elsewhere; whole objects are written anew by [`Storage`](super::Storage) |

mod connection;
mod error;
mod leftovers;
mod list;
mod read;
mod staged;
#[cfg(test)]
mod tests;
mod upload;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    OBJECT_STORE_COALESCE_DEFAULT, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, RenameOptions, RenameTargetMode, Result, coalesce_ranges,
};
use url::Url;

use connection::Connection;
pub(super) use error::Failure;
use error::{Problem, STORE};
use read::File;
use staged::{BLOCK_BYTES, Content, Staged};
use upload::Upload;

/// Calls for one deletion each that are on their way at the same time.
const CONCURRENT_DELETES: usize = 10;
/// How often a file is opened that was replaced meanwhile.
const OPENINGS: usize = 4;

/// A folder of an HDFS. What it answers as done is durable; what is absent of a `delete` is [`Error::NotFound`].
///
/// An object's names are those of its folders and file. Files whose names begin with a dot are no objects: they are
/// not listed. There are no attributes, versions, or conditional updates.
#[derive(Debug, Clone)]
pub struct Hdfs {
    connection: Arc<Connection>,
    block_bytes: u64,
}

impl Hdfs {
    /// The folder of `url`: `hdfs://host:port/path`, or a name service of `$HADOOP_CONF_DIR/hdfs-site.xml` in place of
    /// host and port. Nothing is sent yet. `limit`: the time that a call to a NameNode may take.
    ///
    /// # Errors
    /// What the configuration lacks.
    pub fn open(url: &Url, limit: Duration) -> std::result::Result<Self, String> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a user is named by HADOOP_USER_NAME, not in the URL".to_owned());
        }
        let connection = Connection::new(url, limit).map_err(|error| match url.port() {
            None if error.to_string().contains("No NameNode hosts found") => format!(
                "`{}` is no name service of hdfs-site.xml in $HADOOP_CONF_DIR; a NameNode is named with its port, as in hdfs://{0}:8020",
                url.host_str().unwrap_or_default()
            ),
            _ => error.to_string(),
        })?;
        Ok(Self { connection: Arc::new(connection), block_bytes: BLOCK_BYTES })
    }

    fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.connection)
    }

    fn folder(&self) -> String {
        match self.connection.root() {
            "" => "/".to_owned(),
            root => root.to_owned(),
        }
    }

    fn not_found(&self, operation: &'static str, path: &str) -> Error {
        Failure::of(operation, &self.connection.shown(path), Problem::NotFound).into()
    }

    async fn stage(&self, target: &str) -> Result<Staged, Failure> {
        Staged::create(self.connection(), target, self.block_bytes).await
    }
}

impl fmt::Display for Hdfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE}({})", self.connection.shown(self.connection.root()))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for Hdfs {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let overwrite = match opts.mode {
            PutMode::Overwrite => true,
            PutMode::Create => false,
            PutMode::Update(_) => return Err(unsupported("put_opts with an update")),
        };
        refuse_attributes(&opts.attributes)?;
        let target = self.connection.absolute(location.as_ref());
        let mut staged = self.stage(&target).await?;
        for chunk in &payload {
            staged.write(chunk.clone()).await?;
        }
        staged.publish(&target, overwrite, Content::Bytes(&payload)).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        refuse_attributes(&opts.attributes)?;
        let target = self.connection.absolute(location.as_ref());
        Ok(Box::new(Upload::new(self.stage(&target).await?, target)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let path = self.connection.absolute(location.as_ref());
        let result = |meta: ObjectMeta, range: Range<u64>, bytes: BoxStream<'static, Result<Bytes>>| GetResult {
            payload: GetResultPayload::Stream(bytes),
            meta,
            range,
            attributes: Attributes::default(),
        };
        for _ in 0..OPENINGS {
            let status = self.connection.status(&path);
            let (status, file) = if options.head {
                (status.await?, None)
            } else {
                let (status, file) = futures::join!(status, File::open(self.connection(), path.clone()));
                let status = status?;
                // What is absent, or a folder, can't be opened either.
                (status.clone(), if status.is_some() { Some(file?) } else { None })
            };
            let Some(status) = status else { return Err(self.not_found("read the file", &path)) };
            let meta = list::meta(self.connection.root(), &status)?;
            options.check_preconditions(&meta)?;
            let range = match &options.range {
                Some(range) => range.as_range(meta.size).map_err(|e| generic(Box::new(e)))?,
                None => 0..meta.size,
            };
            let Some(file) = file else { return Ok(result(meta, range, futures::stream::empty().boxed())) };
            if file.length() == meta.size {
                let bytes = file.stream(range.clone(), Some(status)).map_err(Error::from).boxed();
                return Ok(result(meta, range, bytes));
            }
            // Another file came in its place between the two calls, or somebody is writing to it.
        }
        Err(Failure::of("read the file", &self.connection.shown(&path), Problem::Replaced).into())
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let path = self.connection.absolute(location.as_ref());
        let file = &File::open(self.connection(), path).await?;
        let length = file.length();
        if let Some(range) = ranges.iter().find(|r| r.start > r.end || r.start > length) {
            return Err(generic(format!("bytes {range:?} of a file of {length}. path=`{location}`").into()));
        }
        let fetch = |range: Range<u64>| async move { Ok(file.bytes(range.start..range.end.min(length)).await?) };
        coalesce_ranges(ranges, fetch, OBJECT_STORE_COALESCE_DEFAULT).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .map(move |location| {
                let store = store.clone();
                async move {
                    let location = location?;
                    let path = store.connection.absolute(location.as_ref());
                    // An empty folder would be deleted too: it means nothing here.
                    let call = async |client: hdfs_native::Client| client.delete(&path, false).await;
                    match store.connection.call("delete the file", &path, call).await? {
                        true => Ok(location),
                        false => Err(store.not_found("delete the file", &path)),
                    }
                }
            })
            .buffered(CONCURRENT_DELETES)
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        list::objects(self.connection(), prefix, None)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        list::objects(self.connection(), prefix, Some(offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let (objects, common_prefixes) = list::folder_of(&self.connection, prefix).await?;
        Ok(ListResult { common_prefixes, objects })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let target = self.connection.absolute(to.as_ref());
        let source = File::open(self.connection(), self.connection.absolute(from.as_ref())).await?;
        let range = 0..source.length();
        let mut bytes = source.stream(range, None);
        let mut staged = self.stage(&target).await?;
        while let Some(chunk) = bytes.try_next().await? {
            staged.write(chunk).await?;
        }
        staged.publish(&target, options.mode == CopyMode::Overwrite, Content::Length).await?;
        Ok(())
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        const OPERATION: &str = "rename the file";
        let (source, target) = (self.connection.absolute(from.as_ref()), self.connection.absolute(to.as_ref()));
        let Some(before) = self.connection.status(&source).await? else {
            return Err(self.not_found(OPERATION, &source));
        };
        let folder = target.rsplit_once('/').map_or("", |(folder, _)| folder);
        if !folder.is_empty() {
            let make = async |client: hdfs_native::Client| client.mkdirs(folder, 0o755, true).await;
            self.connection.call("create the folder", folder, make).await?;
        }
        let overwrite = options.target_mode == RenameTargetMode::Overwrite;
        let rename = async |client: hdfs_native::Client| client.rename(&source, &target, overwrite).await;
        let Err(failure) = self.connection.call(OPERATION, &target, rename).await else { return Ok(()) };
        // A renamed file keeps its length and its time.
        let same = |found: &hdfs_native::client::FileStatus| {
            found.length == before.length && found.modification_time == before.modification_time
        };
        match (self.connection.status(&source).await, self.connection.status(&target).await) {
            (Ok(None), Ok(Some(found))) if same(&found) => Ok(()),
            _ => Err(failure.into()),
        }
    }
}

fn generic(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Generic { store: STORE, source }
}

fn unsupported(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: STORE.to_owned() }
}

fn refuse_attributes(attributes: &Attributes) -> Result<()> {
    if attributes.is_empty() { Ok(()) } else { Err(unsupported("attributes")) }
}
