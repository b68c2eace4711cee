//! Builds: rebuild, refresh, activation. Claim a cut, wait for the archiver, read the events, publish.
//!
//! `protocol.md`, "A build", is the source of the rules. What is decided stands in the view's register; this module
//! only proposes, and ends whenever the head says that somebody else was quicker.

mod decide;
mod execute;
mod files;
mod patience;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use watershed_shared::background;
use watershed_shared::builds::{BuildState, BuildStatus, Trigger};
use watershed_shared::catalog::{BuildMode, BuildOutcome, Rejected, StreamState, ViewEvent, ViewState};
use watershed_shared::clock;
use watershed_shared::config::BatchConfig;
use watershed_shared::definitions::Definitions;
use watershed_shared::delta::DeltaService;
use watershed_shared::master::MasterDataset;
use watershed_shared::mutant::{self, Mutant};
use watershed_shared::names::{BuildId, GenerationId};
use watershed_shared::offsets::{Cut, OffsetVector};
use watershed_shared::register::Register;
use watershed_shared::storage::Storage;
use watershed_shared::task;

use crate::archiver;
use crate::history::{History, new_build_id};
use crate::requests::{self, EndedBuild};

pub use decide::{BuildPlan, DryRun};

/// Between two looks whether builds have ended.
const DRAIN_POLL: std::time::Duration = std::time::Duration::from_millis(20);

/// A view that can be built, with everything that its builds read and write.
#[derive(Debug, Clone)]
pub struct BuildTarget {
    pub view: String,
    pub register: Register<ViewState>,
    /// Of the stream.
    pub stream: Register<StreamState>,
    pub master: MasterDataset,
    /// `None`: no worker is known, cuts stand at the archived offsets.
    pub delta: Option<Arc<dyn DeltaService>>,
    /// Asked to commit soon when a build waits for its cut.
    pub archive: archiver::Handle,
    /// Per partition the log's start when the stream was first seen: below it there is nothing to archive or to read.
    pub origins: watch::Receiver<OffsetVector>,
}

impl BuildTarget {
    /// `cut`, with the origin of each partition that it does not name.
    fn with_origins(&self, cut: &Cut) -> Cut {
        self.origins.borrow().join(cut)
    }
}

/// Why a build was not started, or cannot be stopped.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("unknown view `{0}`")]
    UnknownView(String),
    #[error("unknown build `{0}`")]
    UnknownBuild(BuildId),
    #[error("view `{view}` has no generation {generation}")]
    UnknownGeneration { view: String, generation: GenerationId },
    #[error("build {build} of view `{view}` is already running: wait for it, or cancel it first")]
    AlreadyRunning { view: String, build: BuildId },
    #[error("build {build} has already ended ({state:?})")]
    Finished { build: BuildId, state: BuildState },
    #[error("build {build} has not begun in the process that is to run it ({holder}): cancel it there, or when it has")]
    Elsewhere { build: BuildId, holder: String },
    #[error("the view's register cannot be read or written: {0}")]
    Register(String),
    #[error("the record of a build cannot be read or written: {0}")]
    Record(String),
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    pub view: String,
    pub mode: BuildMode,
    /// The base of an activation.
    pub base: Option<GenerationId>,
    pub trigger: Trigger,
    /// The build that the view's register asks for and this process has taken on; `None`: it is asked for here.
    pub requested: Option<BuildId>,
}

/// Runs builds in this process. Cheap to clone.
///
/// At most `max_builds` run at a time, one per view; others wait as `queued`.
#[derive(Debug, Clone)]
pub struct Builder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    storage: Storage,
    history: History,
    definitions: Definitions,
    settings: BatchConfig,
    /// Where sorts and aggregations spill to.
    spill_dir: std::path::PathBuf,
    /// This process, the same after a restart on the same `data_dir`.
    holder: String,
    targets: BTreeMap<String, BuildTarget>,
    slots: Semaphore,
    running: Mutex<BTreeMap<String, Running>>,
    shutdown: CancellationToken,
}

/// A build of this process that has not ended.
#[derive(Debug)]
struct Running {
    id: BuildId,
    /// By the view's register: without the request there it must not be claimed.
    requested: bool,
    cancel: CancellationToken,
}

/// The entry of a build among those that run. It goes however the build ends: by a panic, too.
#[derive(Debug)]
struct Entry {
    inner: Arc<Inner>,
    view: String,
    id: BuildId,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let status = self.inner.history.watch(&self.id).map(|status| status.borrow().clone());
        if let Some(mut status) = status.filter(|status| !status.state.is_final()) {
            status.state = BuildState::Failed;
            status.error = Some("it ended by a bug: see the log".to_owned());
            status.finished_at = Some(clock::now());
            self.inner.history.show(&status);
        }
        self.inner.running.lock().remove(&self.view);
    }
}

/// What a [`Builder`] is made of.
#[derive(Debug)]
pub struct BuilderOptions {
    pub storage: Storage,
    pub history: History,
    pub definitions: Definitions,
    pub settings: BatchConfig,
    pub spill_dir: std::path::PathBuf,
    pub holder: String,
    pub targets: Vec<BuildTarget>,
    pub shutdown: CancellationToken,
}

/// What a build would do now, where nothing is built. `reached`: where the speed layer stands.
///
/// # Errors
/// When the register or the master dataset cannot be read, or there is no such base.
pub async fn dry_run(
    register: &Register<ViewState>,
    master: &MasterDataset,
    reached: &OffsetVector,
    origins: &OffsetVector,
    mode: BuildMode,
    base: Option<GenerationId>,
) -> Result<DryRun, RequestError> {
    let unreadable = |error: String| RequestError::Register(error);
    let head = register.state().await.map_err(|e| unreadable(e.to_string()))?;
    let plan = decide::plan(&head, mode, base).map_err(|e| unreadable(e.to_string()))?;
    let archived = master.snapshot().await.map_err(|e| unreadable(e.to_string()))?;
    let cut = reached.join(archived.archived_until()).join(&plan.base_cut);
    Ok(plan.dry_run(&origins.join(&plan.base_cut), cut, archived.archived_until()))
}

impl Builder {
    pub fn new(options: BuilderOptions) -> Self {
        let slots = Semaphore::new(options.settings.max_builds.max(1));
        let targets = options.targets.into_iter().map(|t| (t.view.clone(), t)).collect();
        Self {
            inner: Arc::new(Inner {
                storage: options.storage,
                history: options.history,
                definitions: options.definitions,
                settings: options.settings,
                spill_dir: options.spill_dir,
                holder: options.holder,
                targets,
                slots,
                running: Mutex::new(BTreeMap::new()),
                shutdown: options.shutdown,
            }),
        }
    }

    pub fn history(&self) -> &History {
        &self.inner.history
    }

    pub fn targets(&self) -> impl Iterator<Item = &BuildTarget> {
        self.inner.targets.values()
    }

    /// Ends the claims and requests that an earlier life of this process left open: their builds were interrupted. Removes what
    /// they spilled. To be called once, before the first build starts.
    ///
    /// # Errors
    /// When a register cannot be read or written.
    pub async fn recover(&self) -> Result<(), RequestError> {
        for target in self.inner.targets.values() {
            let holder = self.inner.holder.clone();
            loop {
                let mut interrupted = None;
                let decided = target
                    .register
                    .update(|state: &ViewState| {
                        let taken = state.requests.iter().filter(|r| r.holder.as_ref() == Some(&holder)).map(|r| &r.id);
                        let claimed = state.builds.values().filter(|b| b.holder == holder).map(|b| &b.id);
                        interrupted = claimed.chain(taken).next().cloned();
                        Ok::<_, Rejected>(
                            interrupted
                                .clone()
                                .map(|build| ViewEvent::Ended { build, outcome: BuildOutcome::Interrupted }),
                        )
                    })
                    .await;
                decided.map_err(|e| RequestError::Register(e.to_string()))?;
                let Some(build) = interrupted else { break };
                info!(view = %target.view, %build, "an interrupted build was recognised");
            }
        }
        for mut status in self.inner.history.list(None) {
            if !status.state.is_final() && status.holder == self.inner.holder {
                status.state = BuildState::Interrupted;
                status.error = Some("the process that ran it ended before the build did".to_owned());
                status.finished_at = Some(clock::now());
                self.inner.history.record(&status).await;
            }
        }
        let folder = self.inner.spill_dir.clone();
        let emptied = background::run_blocking(move || files::empty(&folder).map_err(|e| (folder, e))).await;
        if let Ok(Err((folder, error))) = emptied {
            warn!(folder = %folder.display(), %error, "cannot remove what interrupted builds spilled; remove it by hand");
        }
        Ok(())
    }

    /// Starts a build, and answers its first status at once. Cancel safe: it has started or not.
    ///
    /// # Errors
    /// [`RequestError::AlreadyRunning`] while one of the view runs or waits.
    pub async fn start(&self, request: BuildRequest) -> Result<BuildStatus, RequestError> {
        let target = self.target(&request.view)?.clone();
        if let Some(base) = request.base {
            let head = target.register.state().await.map_err(|e| RequestError::Register(e.to_string()))?;
            if head.generation(base).is_none() {
                return Err(RequestError::UnknownGeneration { view: request.view, generation: base });
            }
        }
        let requested = request.requested.is_some();
        let id = request.requested.unwrap_or_else(new_build_id);
        let cancel = self.inner.shutdown.child_token();
        {
            let mut running = self.inner.running.lock();
            if let Some(other) = running.get(&request.view) {
                return Err(RequestError::AlreadyRunning { view: request.view, build: other.id.clone() });
            }
            running.insert(request.view.clone(), Running { id: id.clone(), requested, cancel: cancel.clone() });
        }
        let mut status = BuildStatus::new(id.clone(), &request.view, request.mode, request.trigger, &self.inner.holder);
        status.base = request.base;
        // SUBTLE: nothing is waited for from here on. Whoever asked may hang up, and be dropped at any await.
        let entry = Entry { inner: Arc::clone(&self.inner), view: request.view, id };
        self.inner.history.show(&status);
        let builder = self.clone();
        let first = status.clone();
        task::spawn("build", async move {
            builder.inner.history.record(&status).await;
            Box::pin(builder.run(target, status, cancel)).await;
            drop(entry);
            builder.inner.history.prune().await;
        });
        Ok(first)
    }

    /// What a build would do now, without doing it.
    ///
    /// # Errors
    /// As [`Builder::start`], without `AlreadyRunning`.
    pub async fn dry_run(&self, request: &BuildRequest) -> Result<DryRun, RequestError> {
        let target = self.target(&request.view)?;
        let reached = target.delta.as_ref().map(|d| d.watch().borrow().position.clone()).unwrap_or_default();
        let origins = target.origins.borrow().clone();
        dry_run(&target.register, &target.master, &reached, &origins, request.mode, request.base).await
    }

    /// Cancels a build, whoever runs it: it is not published any more, and ends as `cancelled`.
    ///
    /// # Errors
    /// When there is no such build, it has ended, or was published; when another process has it and has not begun; when the
    /// view's register cannot be read or written: then it may go on.
    pub async fn cancel(&self, id: &BuildId) -> Result<BuildStatus, RequestError> {
        let watched = self.inner.history.watch(id).ok_or_else(|| RequestError::UnknownBuild(id.clone()))?;
        let status = watched.borrow().clone();
        let finished = |state| RequestError::Finished { build: id.clone(), state };
        if status.state.is_final() {
            return Err(finished(status.state));
        }
        if mutant::is(Mutant::CancelledPublishes) {
            return Ok(status);
        }
        let register = &self.target(&status.view)?.register;
        // SUBTLE: first here, then in the register. A claim that is not there yet when the register is read is followed by a look
        // at the token; one that is there is ended, or was published.
        if !self.stop(id) {
            let cancelled = requests::cancel(&self.inner.storage, register, status).await;
            if let Err(error) = self.inner.history.follow(id).await {
                warn!(build = %id, %error, "cannot read how a build ended");
            }
            return cancelled;
        }
        match requests::end_build(register, id, BuildOutcome::Cancelled).await? {
            EndedBuild::Published(_) => Err(finished(BuildState::Succeeded)),
            EndedBuild::Ended | EndedBuild::NotOpen => Ok(watched.borrow().clone()),
        }
    }

    /// Stops a build of this process wherever it can be; a publication is not stopped. Answers whether it runs.
    pub(crate) fn stop(&self, id: &BuildId) -> bool {
        let running = self.inner.running.lock();
        let build = running.values().find(|r| r.id == *id);
        build.inspect(|build| build.cancel.cancel()).is_some()
    }

    /// The build of this process that `view` has.
    pub(crate) fn running(&self, view: &str) -> Option<BuildId> {
        self.inner.running.lock().get(view).map(|running| running.id.clone())
    }

    pub(crate) fn holder(&self) -> &str {
        &self.inner.holder
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.inner.storage
    }

    /// Waits until no build of this process runs.
    pub async fn drained(&self) {
        while !self.inner.running.lock().is_empty() {
            clock::sleep(DRAIN_POLL).await;
        }
    }

    fn target(&self, view: &str) -> Result<&BuildTarget, RequestError> {
        self.inner.targets.get(view).ok_or_else(|| RequestError::UnknownView(view.to_owned()))
    }

    async fn run(&self, target: BuildTarget, mut status: BuildStatus, cancel: CancellationToken) {
        let slot = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            slot = self.inner.slots.acquire() => Some(slot.expect("the semaphore is never closed")),
        };
        let outcome = match slot {
            Some(_slot) => {
                status.state = BuildState::Running;
                status.started_at = Some(clock::now());
                self.inner.history.record(&status).await;
                execute::execute(&self.inner, &target, &mut status, &cancel).await
            }
            None => Err(execute::Stopped::Cancelled),
        };
        let outcome = match outcome {
            Ok(generation) => Ok(generation),
            Err(stopped) => {
                let (state, outcome) = stopped.states(self.inner.shutdown.is_cancelled());
                execute::end_claim(&target, &status, outcome).await.ok_or((state, stopped.message()))
            }
        };
        status.finished_at = Some(clock::now());
        match outcome {
            Ok(generation) => {
                info!(view = %status.view, build = %status.id, %generation, "published a generation");
                status.state = BuildState::Succeeded;
                status.generation = Some(generation);
                status.progress.step = "done".to_owned();
                files::collect(&self.inner, &target).await;
            }
            Err((state, error)) => {
                status.state = state;
                status.error = error;
                let error = status.error.as_deref().unwrap_or_default();
                if status.had_nothing_to_do() {
                    debug!(view = %status.view, build = %status.id, why = error, "a scheduled build was skipped");
                } else {
                    warn!(view = %status.view, build = %status.id, ?state, error, "a build ended without a generation");
                }
            }
        }
        self.inner.history.record(&status).await;
    }
}
