//! A store that fails on purpose, the same way for the same seed.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use parking_lot::Mutex;

use crate::{clock, task};

/// How many of a thousand calls go wrong, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// Not done, and the error comes at once.
    pub refused: u16,
    /// Not done, reported as a timeout.
    pub lost: u16,
    /// Done, reported as a timeout.
    pub unanswered: u16,
    /// Reported as a timeout, and done a little later. Of puts, copies, renames and deletes only.
    pub late: u16,
}

impl FaultRates {
    /// `rate` of a thousand calls in each way.
    pub fn each(rate: u16) -> Self {
        Self { refused: rate, lost: rate, unanswered: rate, late: rate }
    }
}

/// Decorates a store with faults that are drawn from (seed, operation, path, how often it was called).
///
/// The outcome of a call thus depends on nothing that other tasks do at the same time.
#[derive(Debug, Clone)]
pub struct Faulty(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn ObjectStore>,
    seed: u64,
    rates: FaultRates,
    calls: Mutex<BTreeMap<(&'static str, String), u64>>,
    faults: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    Refused,
    Lost,
    Unanswered,
    Late(Duration),
}

impl Faulty {
    pub fn new(store: Arc<dyn ObjectStore>, seed: u64, rates: FaultRates) -> Self {
        let inner = Inner { store, seed, rates, calls: Mutex::default(), faults: AtomicU64::new(0) };
        Self(Arc::new(inner))
    }

    /// How many calls went wrong so far: a test that injects faults must see that they fired.
    pub fn faults(&self) -> u64 {
        self.0.faults.load(Ordering::Relaxed)
    }

    /// How often `operation` was called so far: `put`, `get`, `list`, …
    pub fn calls(&self, operation: &str) -> u64 {
        self.0.calls.lock().iter().filter(|((o, _), _)| *o == operation).map(|(_, n)| n).sum()
    }

    fn fate(&self, operation: &'static str, path: &str) -> Fate {
        let n = {
            let mut calls = self.0.calls.lock();
            let n = calls.entry((operation, path.to_owned())).or_default();
            *n += 1;
            *n
        };
        let draw = draw(self.0.seed, operation, path, n);
        let rates = self.0.rates;
        let fates = [
            (rates.refused, Fate::Refused),
            (rates.lost, Fate::Lost),
            (rates.unanswered, Fate::Unanswered),
            (rates.late, Fate::Late(Duration::from_micros((draw >> 32) % 5_000))),
        ];
        let mut rest = (draw % 1000) as u16;
        for (rate, fate) in fates {
            if rest < rate {
                self.0.faults.fetch_add(1, Ordering::Relaxed);
                return fate;
            }
            rest -= rate;
        }
        Fate::Done
    }

    /// Runs a call that changes nothing, or can't be done late.
    async fn run<T>(
        &self,
        operation: &'static str,
        path: &str,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match self.fate(operation, path) {
            Fate::Done => call.await,
            Fate::Refused => Err(fault("refused")),
            Fate::Lost => Err(fault("timed out")),
            Fate::Unanswered | Fate::Late(_) => {
                drop(call.await);
                Err(fault("timed out"))
            }
        }
    }

    /// Runs a call that may be done after it was answered.
    async fn run_write<T: Send + 'static>(
        &self,
        operation: &'static str,
        path: &str,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        match self.fate(operation, path) {
            Fate::Done => call.await,
            Fate::Refused => Err(fault("refused")),
            Fate::Lost => Err(fault("timed out")),
            Fate::Unanswered => {
                drop(call.await);
                Err(fault("timed out"))
            }
            Fate::Late(delay) => {
                task::spawn("late storage call", async move {
                    clock::sleep(delay).await;
                    drop(call.await);
                });
                Err(fault("timed out"))
            }
        }
    }

    /// A listing fails whole or not at all.
    fn run_list(
        &self,
        operation: &'static str,
        prefix: Option<&Path>,
        listed: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.fate(operation, prefix.map_or("", Path::as_ref)) {
            Fate::Done => listed,
            Fate::Refused => failed("refused"),
            Fate::Lost | Fate::Unanswered | Fate::Late(_) => failed("timed out"),
        }
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.0.store)
    }
}

fn failed<T: Send + 'static>(what: &'static str) -> BoxStream<'static, Result<T>> {
    futures::stream::once(async move { Err(fault(what)) }).boxed()
}

fn fault(what: &'static str) -> Error {
    Error::Generic { store: "Faulty", source: what.into() }
}

/// FNV-1a over all that the outcome depends on, mixed by SplitMix64.
fn draw(seed: u64, operation: &str, path: &str, n: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in operation.bytes().chain([0]).chain(path.bytes()).chain([0]).chain(n.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut z = (hash ^ seed).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let (store, path) = (Arc::clone(&self.0.store), location.clone());
        self.run_write("put", location.as_ref(), async move { store.put_opts(&path, payload, opts).await }).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let begin = self.0.store.put_multipart_opts(location, opts);
        let inner = self.run("begin multipart", location.as_ref(), begin).await?;
        Ok(Box::new(FaultyUpload { faulty: self.clone(), path: location.as_ref().to_owned(), inner }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.run("get", location.as_ref(), self.0.store.get_opts(location, options)).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.run("get ranges", location.as_ref(), self.0.store.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let faulty = self.clone();
        locations
            .and_then(move |path| {
                let faulty = faulty.clone();
                async move {
                    let (store, target) = (Arc::clone(&faulty.0.store), path.clone());
                    faulty.run_write("delete", path.as_ref(), async move { store.delete(&target).await }).await?;
                    Ok(path)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.run_list("list", prefix, self.0.store.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.run_list("list with offset", prefix, self.0.store.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let path = prefix.map_or("", Path::as_ref);
        self.run("list with delimiter", path, self.0.store.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let (store, source, target) = (Arc::clone(&self.0.store), from.clone(), to.clone());
        self.run_write("copy", to.as_ref(), async move { store.copy_opts(&source, &target, options).await }).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let (store, source, target) = (Arc::clone(&self.0.store), from.clone(), to.clone());
        self.run_write("rename", to.as_ref(), async move { store.rename_opts(&source, &target, options).await }).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    faulty: Faulty,
    path: String,
    inner: Box<dyn MultipartUpload>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (faulty, path, part) = (self.faulty.clone(), self.path.clone(), self.inner.put_part(data));
        Box::pin(async move { faulty.run("put part", &path, part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.faulty.run("complete multipart", &self.path, self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.faulty.run("abort multipart", &self.path, self.inner.abort()).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::PutMode;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn every_fate_occurs_and_the_same_seed_gives_the_same_fates() {
        let mut runs = Vec::new();
        for _ in 0..2 {
            let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let store = Faulty::new(Arc::clone(&inner), 7, FaultRates::each(200));
            let mut seen = Vec::new();
            for i in 0..200 {
                let path = Path::from(format!("{i}"));
                let answered = store.put_opts(&path, "x".into(), PutMode::Create.into()).await;
                seen.push((answered.map_err(|e| e.to_string()).err(), inner.head(&path).await.is_ok()));
            }
            let done = seen.iter().filter(|(_, there)| *there).count();
            let late = async {
                while inner.list(None).count().await <= done {
                    clock::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), late).await.expect("some puts must be done late");
            for wanted in
                [(None, true), (Some("refused"), false), (Some("timed out"), false), (Some("timed out"), true)]
            {
                assert!(
                    seen.iter().any(|(e, there)| *there == wanted.1
                        && e.is_none() == wanted.0.is_none()
                        && e.as_deref().unwrap_or("").contains(wanted.0.unwrap_or(""))),
                    "{wanted:?}"
                );
            }
            assert!(store.faults() > 100);
            runs.push(seen.into_iter().map(|(e, _)| e).collect::<Vec<_>>());
        }
        assert_eq!(runs[0], runs[1]);
    }
}
