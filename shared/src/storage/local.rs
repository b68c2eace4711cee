//! A local folder whose writes are durable before they are answered.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use parking_lot::Mutex;
use uuid::Uuid;

use super::leftovers::{Leftovers, is_leftover};
use crate::clock;

const STORE: &str = "DurableFileSystem";

/// [`LocalFileSystem`] with writes that survive a loss of power.
///
/// An object is written to `.<name>.<unique>.tmp` beside its target, flushed to the disk, put in its place in one step
/// (a hard link for a create, which never overwrites; a rename else), and the folder is flushed: only then the call
/// returns. A crash leaves the temporary file behind; names that begin with a dot are no objects and are not listed.
#[derive(Debug, Clone)]
pub struct DurableFileSystem {
    inner: Arc<LocalFileSystem>,
    root: PathBuf,
}

impl DurableFileSystem {
    /// The folder `root`, which is created if it is missing.
    ///
    /// # Errors
    /// If it can't be created or is no folder.
    pub fn open(root: &FsPath) -> io::Result<Self> {
        create_folders(root)?;
        let root = fs::canonicalize(root)?;
        let inner = Arc::new(LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?);
        Ok(Self { inner, root })
    }

    fn target(&self, location: &Path) -> Result<PathBuf> {
        self.inner.path_to_filesystem(location)
    }
}

impl fmt::Display for DurableFileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE}({})", self.root.display())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for DurableFileSystem {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let mode = opts.mode.clone();
        if matches!(mode, PutMode::Update(_)) || !opts.attributes.is_empty() {
            // LocalFileSystem has the right words for what neither can do.
            return self.inner.put_opts(location, payload, opts).await;
        }
        let target = self.target(location)?;
        blocking(move || {
            let staged = Staged::create(&target)?;
            for chunk in payload.iter() {
                (&staged.file).write_all(chunk)?;
            }
            staged.publish(&target, &mode)
        })
        .await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        if !opts.attributes.is_empty() {
            return self.inner.put_multipart_opts(location, opts).await;
        }
        let target = self.target(location)?;
        blocking(move || {
            let staged = Mutex::new(Some(Staged::create(&target)?));
            Ok(Box::new(DurableUpload { staged: Arc::new(staged), target, offset: 0 }) as Box<dyn MultipartUpload>)
        })
        .await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        without_staged(self.inner.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        without_staged(self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut listed = self.inner.list_with_delimiter(prefix).await?;
        listed.objects.retain(|o| !is_staged(&o.location));
        Ok(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let target = self.target(to)?;
        ensure_folder(&target).await?;
        self.inner.copy_opts(from, to, options).await?;
        blocking(move || sync_folder(&target)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let target = self.target(to)?;
        ensure_folder(&target).await?;
        self.inner.rename_opts(from, to, options).await?;
        blocking(move || sync_folder(&target)).await
    }
}

/// Creates and flushes the folders above `target` before anything is put there.
async fn ensure_folder(target: &FsPath) -> Result<()> {
    let folder = target.parent().map(FsPath::to_path_buf);
    blocking(move || folder.map_or(Ok(()), |f| create_folders(&f))).await
}

/// A file that is being written beside its target. Dropped before it is published, it is removed.
#[derive(Debug)]
struct Staged {
    file: File,
    path: PathBuf,
}

impl Staged {
    fn create(target: &FsPath) -> io::Result<Self> {
        let folder = target.parent().ok_or(io::ErrorKind::InvalidFilename)?;
        let mut name = OsString::from(".");
        name.push(target.file_name().ok_or(io::ErrorKind::InvalidFilename)?);
        name.push(format!(".{}.tmp", Uuid::new_v4().simple()));
        let path = folder.join(name);
        let create = || File::create_new(&path);
        let file = match create() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_folders(folder)?;
                create()?
            }
            other => other?,
        };
        Ok(Self { file, path })
    }

    /// Flushes the file and puts it in its place.
    fn publish(self, target: &FsPath, mode: &PutMode) -> io::Result<PutResult> {
        self.file.sync_all()?;
        match mode {
            PutMode::Create => fs::hard_link(&self.path, target)?,
            PutMode::Overwrite | PutMode::Update(_) => fs::rename(&self.path, target)?,
        }
        sync_folder(target)?;
        Ok(PutResult { e_tag: None, version: None })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove; what can't be removed is never listed.
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(path = %self.path.display(), %error, "left an unfinished file behind");
        }
    }
}

#[derive(Debug)]
struct DurableUpload {
    staged: Arc<Mutex<Option<Staged>>>,
    target: PathBuf,
    offset: u64,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let offset = self.offset;
        self.offset += data.content_length() as u64;
        let staged = Arc::clone(&self.staged);
        Box::pin(blocking(move || {
            let staged = staged.lock();
            let mut file = &staged.as_ref().ok_or_else(ended)?.file;
            file.seek(SeekFrom::Start(offset))?;
            data.iter().try_for_each(|chunk| file.write_all(chunk))
        }))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let (staged, target) = (Arc::clone(&self.staged), self.target.clone());
        blocking(move || staged.lock().take().ok_or_else(ended)?.publish(&target, &PutMode::Overwrite)).await
    }

    async fn abort(&mut self) -> Result<()> {
        let staged = Arc::clone(&self.staged);
        blocking(move || staged.lock().take().map(drop).ok_or_else(ended)).await
    }
}

fn ended() -> io::Error {
    io::Error::other("the upload has already ended")
}

/// Creates `folder` and those above it, each flushed into its parent.
fn create_folders(folder: &FsPath) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_folders(parent)?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        other => other?,
    }
    sync_folder(folder)
}

/// Flushes the entry of `path` in its folder.
fn sync_folder(path: &FsPath) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

#[async_trait]
impl Leftovers for DurableFileSystem {
    async fn remove_older_than(&self, age: Duration) -> Result<usize> {
        let (root, newest) = (self.root.clone(), SystemTime::from(clock::now() - age));
        blocking(move || remove_leftovers(&root, newest)).await
    }

    async fn remove_folder(&self, path: &Path) -> Result<()> {
        use io::ErrorKind::{DirectoryNotEmpty, NotFound};
        let folder = self.target(path)?;
        blocking(move || match fs::remove_dir(&folder) {
            Err(error) if matches!(error.kind(), DirectoryNotEmpty | NotFound) => Ok(()),
            other => other,
        })
        .await
    }
}

/// Removes temporary files that were last written to before `newest`. What goes away meanwhile is no error.
fn remove_leftovers(folder: &FsPath, newest: SystemTime) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let one = || {
            if entry.file_type()?.is_dir() {
                return remove_leftovers(&entry.path(), newest);
            }
            if !is_leftover(&entry.file_name().to_string_lossy()) || entry.metadata()?.modified()? >= newest {
                return Ok(0);
            }
            fs::remove_file(entry.path()).map(|()| 1)
        };
        match one() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => removed += other?,
        }
    }
    Ok(removed)
}

fn is_staged(location: &Path) -> bool {
    location.filename().is_some_and(|name| name.starts_with('.') && name.ends_with(".tmp"))
}

fn without_staged(listed: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
    use futures::StreamExt;
    listed.filter(|o| std::future::ready(!o.as_ref().is_ok_and(|o| is_staged(&o.location)))).boxed()
}

/// Runs `work` where it may block. It runs to its end even if the caller does not wait for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(convert(source)),
        Err(source) => Err(Error::JoinError { source }),
    }
}

fn convert(source: io::Error) -> Error {
    let (path, kind) = (String::new(), source.kind());
    let source = Box::new(source);
    match kind {
        io::ErrorKind::AlreadyExists => Error::AlreadyExists { path, source },
        io::ErrorKind::NotFound => Error::NotFound { path, source },
        io::ErrorKind::PermissionDenied => Error::PermissionDenied { path, source },
        _ => Error::Generic { store: STORE, source },
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;

    use super::*;

    fn names(folder: &FsPath) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn nothing_is_left_beside_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = DurableFileSystem::open(&dir.path().join("a/b")).unwrap();
        let path = Path::from("x/y");
        store.put_opts(&path, "1".into(), PutMode::Create.into()).await.unwrap();
        store.put_opts(&path, "2".into(), PutMode::Create.into()).await.unwrap_err();
        store.put(&path, "3".into()).await.unwrap();
        let mut upload = store.put_multipart(&path).await.unwrap();
        upload.put_part("45".into()).await.unwrap();
        upload.abort().await.unwrap();
        drop(store.put_multipart(&path).await.unwrap());
        assert_eq!(names(&dir.path().join("a/b/x")), ["y"]);
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "3");
    }

    #[tokio::test]
    async fn a_killed_writer_leaves_nothing_that_is_listed() {
        use futures::TryStreamExt;
        let dir = tempfile::tempdir().unwrap();
        let store = DurableFileSystem::open(dir.path()).unwrap();
        let mut upload = store.put_multipart(&Path::from("f/run.parquet")).await.unwrap();
        upload.put_part("half".into()).await.unwrap();
        std::mem::forget(upload);
        assert_eq!(names(&dir.path().join("f")).len(), 1);
        assert!(store.list(None).try_collect::<Vec<_>>().await.unwrap().is_empty());
        assert!(store.list_with_delimiter(Some(&Path::from("f"))).await.unwrap().objects.is_empty());

        assert_eq!(store.remove_older_than(Duration::from_secs(3600)).await.unwrap(), 0, "its writer may live");
        store.put(&Path::from("f/x"), "1".into()).await.unwrap();
        clock::sleep(Duration::from_millis(20)).await;
        assert_eq!(store.remove_older_than(Duration::from_millis(1)).await.unwrap(), 1);
        assert_eq!(names(&dir.path().join("f")), ["x"]);
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "").unwrap();
        assert!(DurableFileSystem::open(&dir.path().join("f")).is_err());
        assert!(DurableFileSystem::open(&dir.path().join("f/g")).is_err());
    }
}
