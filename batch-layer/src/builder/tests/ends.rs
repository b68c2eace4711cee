//! Builds that end in another way than they should: whatever happens, the view can be built again, and nobody is told
//! another end than the register's.

use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use url::Url;
use watershed_shared::storage::Settings;

use super::*;
use crate::requests::ask;

const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(60);

/// A store that keeps writes waiting which are below a path, while the test wants it.
#[derive(Debug, Clone)]
struct Gate {
    store: Arc<dyn ObjectStore>,
    shut: watch::Sender<Option<ObjectPath>>,
}

impl Gate {
    fn new() -> Self {
        Self { store: Arc::new(InMemory::new()), shut: watch::Sender::new(None) }
    }

    /// A write is given up after a second, and tried again for so long.
    fn storage(&self, retry_for: Duration) -> Storage {
        let (call_timeout, backoff) = (Duration::from_secs(1), Duration::from_millis(20));
        let settings = Settings { call_timeout, retry_for, first_backoff: backoff, max_backoff: backoff };
        Storage::over(Url::parse("memory:///").unwrap(), Arc::new(self.clone()), settings)
    }

    /// The same objects, without the gate.
    fn beside(&self) -> Storage {
        Storage::over(Url::parse("memory:///").unwrap(), Arc::clone(&self.store), Settings::default())
    }

    fn shut(&self, below: &str) {
        self.shut.send_replace(Some(below.into()));
    }

    fn open(&self) {
        self.shut.send_replace(None);
    }
}

impl std::fmt::Display for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gate({})", self.store)
    }
}

#[async_trait]
impl ObjectStore for Gate {
    async fn put_opts(&self, to: &ObjectPath, bytes: PutPayload, opts: PutOptions) -> object_store::Result<PutResult> {
        let mut shut = self.shut.subscribe();
        let passes = |shut: &Option<ObjectPath>| !shut.as_ref().is_some_and(|below| to.prefix_matches(below));
        drop(shut.wait_for(passes).await.expect("the gate is there"));
        self.store.put_opts(to, bytes, opts).await
    }

    async fn put_multipart_opts(
        &self,
        to: &ObjectPath,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(to, opts).await
    }

    async fn get_opts(&self, from: &ObjectPath, options: GetOptions) -> object_store::Result<GetResult> {
        self.store.get_opts(from, options).await
    }

    async fn get_ranges(&self, from: &ObjectPath, ranges: &[std::ops::Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.store.get_ranges(from, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        self.store.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> object_store::Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> object_store::Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

fn request(mode: BuildMode, trigger: Trigger) -> BuildRequest {
    BuildRequest { view: "sums".to_owned(), mode, base: None, trigger, requested: None }
}

fn rebuild() -> BuildRequest {
    request(BuildMode::Rebuild, Trigger::Manual)
}

async fn when(history: &History, id: &BuildId, holds: impl Fn(&BuildStatus) -> bool) -> BuildStatus {
    let mut status = history.watch(id).expect("it is listed");
    let found = tokio::time::timeout(PATIENCE, status.wait_for(|status| holds(status))).await;
    found.expect("it comes to that").unwrap().clone()
}

async fn ended(builder: &Builder, id: &BuildId) -> BuildStatus {
    let status = when(builder.history(), id, |status| status.state.is_final()).await;
    tokio::time::timeout(PATIENCE, builder.drained()).await.expect("nothing runs any more");
    status
}

async fn rebuilds(builder: &Builder) {
    let id = builder.start(rebuild()).await.unwrap().id;
    let status = ended(builder, &id).await;
    assert_eq!(status.state, BuildState::Succeeded, "{:?}", status.error);
}

/// A worker that is sealed nowhere, by a bug.
#[derive(Debug)]
struct Panics(Arc<dyn DeltaService>);

#[async_trait]
impl DeltaService for Panics {
    fn watch(&self) -> watch::Receiver<Arc<StreamDelta>> {
        self.0.watch()
    }

    async fn seal(&self) -> Result<Cut, SealError> {
        panic!("as a test wants it")
    }
}

impl World {
    async fn claimed_by(&self, holder: &str, id: &BuildId) {
        let definition = self.register.state().await.unwrap().configured.unwrap();
        let build = Build {
            id: id.clone(),
            mode: BuildMode::Rebuild,
            definition,
            base: None,
            cut: self.position.clone(),
            holder: holder.to_owned(),
            claimed_at: clock::now(),
        };
        let claimed = ViewEvent::Claimed { build: Box::new(build) };
        self.register.update(|_: &ViewState| Ok::<_, Rejected>(Some(claimed.clone()))).await.unwrap();
        self.runs_in(holder, id).await;
    }

    /// Records that the process runs a build.
    async fn runs_in(&self, holder: &str, id: &BuildId) {
        let mut status = BuildStatus::new(id.clone(), "sums", BuildMode::Rebuild, Trigger::Manual, holder);
        status.state = BuildState::Running;
        write_status(&self.storage, &status).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_goes_on_when_who_asked_for_it_hangs_up() {
    let gate = Gate::new();
    let world = World::on(gate.storage(PATIENCE)).await;
    let builder = world.builder("a").await;
    gate.shut("builds");
    drop(tokio::time::timeout(Duration::from_millis(20), builder.start(rebuild())).await);
    let listed = builder.history().list(None);
    assert_eq!(listed.len(), 1, "it has been started: {listed:?}");
    gate.open();
    assert_eq!(ended(&builder, &listed[0].id).await.state, BuildState::Succeeded);
    rebuilds(&builder).await;
    world.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_panics_leaves_the_view_to_the_next_one() {
    let mut world = World::new().await;
    let delta = world.target.delta.take().expect("a delta");
    world.target.delta = Some(Arc::new(Panics(delta)));
    let builder = world.builder("a").await;
    let id = builder.start(rebuild()).await.unwrap().id;
    let status = ended(&builder, &id).await;
    assert_eq!((status.state, status.error.as_deref()), (BuildState::Failed, Some("it ended by a bug: see the log")));
    builder.start(rebuild()).await.unwrap();
    world.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_whole_though_who_made_it_hangs_up() {
    let gate = Gate::new();
    let world = World::on(gate.storage(PATIENCE)).await;
    gate.shut("");
    let asking = ask(&world.storage, &world.register, BuildMode::Rebuild, None, Trigger::Manual);
    drop(tokio::time::timeout(Duration::from_millis(20), asking).await);
    gate.open();
    let id = world.until(|state| !state.requests.is_empty()).await.requests[0].id.clone();
    let builder = world.builder("a").await;
    world.follow(&builder, HOUR).await;
    let state = world.until(|state| !state.generations.is_empty()).await;
    assert_eq!(state.generations[0].build, id);
    assert_eq!(ended(&builder, &id).await.state, BuildState::Succeeded);
    world.shutdown.cancel();
}

/// A build that waits for the archiver, until events up to 60 are archived.
async fn waiting(gate: &Gate, retry_for: Duration) -> (World, Builder, BuildId) {
    let mut world = World::on(gate.storage(retry_for)).await;
    world.config.batch.archive_wait = HOUR;
    let delta = world.target.delta.take().expect("a delta");
    let position: OffsetVector = [(0, 60), (1, 9)].into();
    let ahead = StreamDelta { position, ..StreamDelta::clone(&delta.watch().borrow()) };
    world.target.delta = Some(Arc::new(Sealed(watch::Sender::new(Arc::new(ahead)))));
    let builder = world.builder("a").await;
    let id = builder.start(rebuild()).await.unwrap().id;
    when(builder.history(), &id, |status| status.progress.step == "waiting for the archiver").await;
    (world, builder, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_could_not_be_ended_is_ended_later() {
    let gate = Gate::new();
    let (world, builder, id) = waiting(&gate, Duration::ZERO).await;
    gate.shut("");
    assert!(builder.stop(&id));
    let status = ended(&builder, &id).await;
    assert_eq!(status.state, BuildState::Cancelled);
    assert!(world.register.state().await.unwrap().is_open(&id), "it could say so");

    gate.open();
    world.follow(&builder, Duration::from_millis(100)).await;
    world.until(|state| !state.is_open(&id)).await;
    let start = clock::Instant::now();
    while read_status(&world.storage, &id).await.unwrap().as_ref() != Some(&status) {
        assert!(start.elapsed() < PATIENCE, "its end is recorded as it was");
        clock::sleep(Duration::from_millis(5)).await;
    }
    world.shutdown.cancel();
}

/// A build that waits in its publication for the gate to open.
async fn publishing(gate: &Gate) -> (World, Builder, BuildId) {
    let (world, builder, id) = waiting(gate, PATIENCE).await;
    gate.shut("registers");
    let snapshot = world.target.master.snapshot().await.unwrap();
    let batch = records(&world.config.streams["numbers"], 50..60);
    world.target.master.append(&snapshot, &[Arc::new(batch)]).await.unwrap();
    when(builder.history(), &id, |status| status.state == BuildState::Publishing).await;
    (world, builder, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_is_cancelled_while_it_is_published_ends_as_is_said() {
    let gate = Gate::new();
    let (world, builder, id) = publishing(&gate).await;
    let cancelling = builder.cancel(&id);
    tokio::pin!(cancelling);
    // It has begun; what it writes waits, too.
    let at_once = tokio::time::timeout(Duration::from_millis(20), &mut cancelling).await;
    gate.open();
    let status = ended(&builder, &id).await;
    let last = world.register.state().await.unwrap().last_generation;
    let said = match at_once {
        Ok(said) => said,
        Err(_) => cancelling.await,
    };
    match said {
        Ok(_) => assert_eq!((status.state, last), (BuildState::Cancelled, GenerationId(0))),
        Err(RequestError::Finished { state, .. }) => {
            assert_eq!((state, status.state, last), (BuildState::Succeeded, BuildState::Succeeded, GenerationId(1)));
        }
        Err(error) => panic!("{error}"),
    }
    world.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_another_process_cancels_while_it_is_published_is_cancelled() {
    let gate = Gate::new();
    let (world, builder, id) = publishing(&gate).await;
    let beside = gate.beside();
    let register = Register::<ViewState>::open(&beside, "views", "sums");
    let known = read_status(&beside, &id).await.unwrap().unwrap();
    let cancelled = requests::cancel(&beside, &register, known).await.unwrap();
    assert_eq!(cancelled.state, BuildState::Cancelled);
    gate.open();
    let status = ended(&builder, &id).await;
    assert_eq!((status.state, status.error), (BuildState::Cancelled, None));
    assert_eq!(register.state().await.unwrap().last_generation, GenerationId(0));
    world.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_of_a_process_that_is_gone_ends_in_the_list_of_the_others() {
    let world = World::new().await;
    let (claimed, waiting) = (BuildId::new("1-claimed"), BuildId::new("2-waiting"));
    world.claimed_by("gone", &claimed).await;
    world.runs_in("gone", &waiting).await;
    let builder = world.builder("a").await;
    world.follow(&builder, Duration::from_millis(100)).await;
    for id in [&claimed, &waiting] {
        assert_eq!(ended(&builder, id).await.state, BuildState::Interrupted);
    }
    assert!(!world.register.state().await.unwrap().is_open(&claimed));
    rebuilds(&builder).await;
    world.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_of_another_process_is_followed_and_cancelled() {
    let world = World::new().await;
    let (first, second) = (BuildId::new("1-first"), BuildId::new("2-second"));
    world.runs_in("b", &first).await;
    world.claimed_by("b", &second).await;
    let builder = world.builder("a").await;
    let cancelled = builder.cancel(&second).await.unwrap();
    assert_eq!(cancelled.state, BuildState::Cancelled);
    assert!(!world.register.state().await.unwrap().is_open(&second));
    assert_eq!(ended(&builder, &second).await, cancelled);
    assert!(matches!(builder.cancel(&second).await, Err(RequestError::Finished { .. })));

    let mut succeeded = read_status(&world.storage, &first).await.unwrap().unwrap();
    succeeded.state = BuildState::Succeeded;
    write_status(&world.storage, &succeeded).await.unwrap();
    world.follow(&builder, HOUR).await;
    assert_eq!(ended(&builder, &first).await, succeeded);
    world.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_never_came_is_no_build_for_ever() {
    let world = World::new().await;
    let id = BuildId::new("lost");
    let status = BuildStatus::new(id, "sums", BuildMode::Rebuild, Trigger::Manual, "");
    write_status(&world.storage, &status).await.unwrap();
    let cancelled = requests::cancel(&world.storage, &world.register, status).await.unwrap();
    assert_eq!(cancelled.state, BuildState::Cancelled);
    world.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_that_is_paused_meanwhile_does_not_build() {
    let world = World::new().await;
    let paused = ViewEvent::Paused { paused: true };
    world.register.update(|_: &ViewState| Ok::<_, Rejected>(Some(paused.clone()))).await.unwrap();
    let builder = world.builder("a").await;
    let id = builder.start(request(BuildMode::Rebuild, Trigger::Schedule)).await.unwrap().id;
    let status = ended(&builder, &id).await;
    assert_eq!((status.state, status.error.as_deref()), (BuildState::Skipped, Some("the schedule is paused")));
    rebuilds(&builder).await;
    world.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_killed_processes_spilled_is_removed() {
    let world = World::new().await;
    let spill = world.folder.path().join("spill");
    let builder = world.builder("a").await;
    builder.recover().await.unwrap();
    std::fs::create_dir_all(spill.join("datafusion-a/b")).unwrap();
    std::fs::write(spill.join("datafusion-a/b/x"), "spilled").unwrap();
    std::fs::write(spill.join("y"), "spilled").unwrap();
    builder.recover().await.unwrap();
    assert_eq!(std::fs::read_dir(&spill).unwrap().count(), 0);
    world.shutdown.cancel();
}
