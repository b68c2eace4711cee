//! Builds that other processes ask for, stop, or leave behind: what the views' registers say of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectMeta;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use watershed_shared::builds::{BuildState, BuildStatus, Trigger};
use watershed_shared::catalog::{BuildMode, BuildOutcome, Rejected, Request, ViewEvent, ViewState};
use watershed_shared::clock::{self, Instant};
use watershed_shared::names::{BuildId, GenerationId};
use watershed_shared::register::{Register, UpdateError};
use watershed_shared::storage::{self, Storage};
use watershed_shared::task;

use crate::builder::{BuildRequest, BuildTarget, Builder, RequestError};
use crate::history::{End, new_build_id, read_status, record_end, record_first, status_meta, write_status};

/// A holder that has not recorded a sign of life for this long counts as dead: its builds are ended for it.
pub const TAKE_OVER: Duration = Duration::from_secs(60);
/// Before a request that could not be taken on is tried again.
const TAKE_AGAIN: Duration = Duration::from_millis(200);
/// How often holders are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long the holder of a build that has just ended may take to record how.
const RECORDING: Duration = Duration::from_secs(5);
/// Between two looks whether it has.
const RECORDING_POLL: Duration = Duration::from_millis(200);

/// Follows one view's register for the builder of this process.
#[derive(Debug)]
pub struct Requests {
    builder: Builder,
    target: BuildTarget,
    state: watch::Receiver<Arc<ViewState>>,
    take_over: Duration,
    /// What was last seen of the records of others' builds, and since when.
    seen: BTreeMap<BuildId, (Option<Sign>, Instant)>,
}

/// What tells one record of a build's status from the next.
type Sign = (chrono::DateTime<chrono::Utc>, u64, Option<String>);

fn sign(meta: ObjectMeta) -> Sign {
    (meta.last_modified, meta.size, meta.e_tag)
}

impl Requests {
    /// `state`: the head of the register of `target`'s view.
    pub fn new(builder: Builder, target: BuildTarget, state: watch::Receiver<Arc<ViewState>>) -> Self {
        Self { builder, target, state, take_over: TAKE_OVER, seen: BTreeMap::new() }
    }

    /// With another time than [`TAKE_OVER`].
    #[must_use]
    pub fn with_take_over(self, take_over: Duration) -> Self {
        Self { take_over, ..self }
    }

    /// Takes requests on, ends builds whose claim was ended by somebody else, those of dead holders, and claims of our own that
    /// are left over, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let look = LOOK.min(self.take_over / 4);
        loop {
            let state = Arc::clone(&self.state.borrow_and_update());
            self.stop_withdrawn(&state).await;
            // SUBTLE: one that is ours and does not run was taken on when its start failed, and so did saying so.
            let open = |r: &&Request| r.holder.as_deref().is_none_or(|holder| holder == self.builder.holder());
            let request = state.requests.iter().find(open);
            if let Some(request) = request {
                self.take(request).await;
            }
            self.end_left_over(&state).await;
            self.end_abandoned(&state).await;
            // One that this process could not take on, since its last build was still ending, need not wait for long.
            let waits = request.is_some();
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.state.changed() => if changed.is_err() { return },
                () = clock::sleep(if waits { look.min(TAKE_AGAIN) } else { look }) => {}
            }
        }
    }

    /// Ends a build of this process whose claim stands there no more.
    async fn stop_withdrawn(&self, state: &ViewState) {
        let Some(running) = self.builder.running(&self.target.view) else { return };
        let claimed = self.builder.history().watch(&running).is_some_and(|status| status.borrow().cut.is_some());
        if !claimed || state.is_open(&running) {
            return;
        }
        // What is followed may be older than the claim; this is not.
        let head = match self.target.register.state().await {
            Ok(head) => head,
            Err(error) => {
                warn!(view = %self.target.view, %error, "cannot look whether a build's claim still stands");
                return;
            }
        };
        let published = head.generations.iter().any(|g| g.build == running);
        if !published && !head.is_open(&running) {
            info!(view = %self.target.view, build = %running, "the build was ended by another process");
            self.builder.stop(&running);
        }
    }

    /// Takes a request on, unless another process is quicker.
    async fn take(&self, request: &Request) {
        let (view, holder) = (&self.target.view, self.builder.holder());
        if self.builder.running(view).is_some() {
            return;
        }
        let mut taken = false;
        let decided = self.target.register.update(|state: &ViewState| {
            let now = state.requests.iter().find(|r| r.id == request.id);
            let free = now.is_some_and(|r| r.holder.is_none());
            // SUBTLE: ours already, if the answer of an earlier try was lost.
            taken = free || now.is_some_and(|r| r.holder.as_deref() == Some(holder));
            let event = ViewEvent::Taken { build: request.id.clone(), holder: holder.to_owned() };
            Ok::<_, Rejected>(free.then_some(event))
        });
        match decided.await {
            Ok(_) if taken => {}
            Ok(_) => return,
            Err(error) => {
                warn!(%view, build = %request.id, %error, "cannot take a requested build on, and try again");
                return;
            }
        }
        let (mode, base) = (request.mode, request.base);
        let build = BuildRequest {
            view: view.clone(),
            mode,
            base,
            trigger: request.trigger,
            requested: Some(request.id.clone()),
        };
        match self.builder.start(build).await {
            Ok(_) => info!(%view, build = %request.id, ?mode, "a requested build starts"),
            Err(error) => {
                warn!(%view, build = %request.id, %error, "a requested build cannot be started");
                self.end(&request.id, BuildOutcome::Failed, BuildState::Failed, error.to_string()).await;
            }
        }
    }

    /// Ends claims of this process whose builds do not run any more: the storage was away, or refused, when they ended.
    async fn end_left_over(&self, state: &ViewState) {
        let (view, us) = (&self.target.view, self.builder.holder());
        // SUBTLE: asked after `state` was read. A build runs before it claims, and until it has tried to end its claim.
        let running = self.builder.running(view);
        for build in state.builds.values().filter(|b| b.holder == us && running.as_ref() != Some(&b.id)) {
            match end_build(&self.target.register, &build.id, BuildOutcome::Failed).await {
                Ok(EndedBuild::Ended) => {}
                // `state` is older than its end.
                Ok(EndedBuild::Published(_) | EndedBuild::NotOpen) => continue,
                Err(error) => {
                    warn!(%view, build = %build.id, %error, "cannot end the claim of a build that is over");
                    continue;
                }
            }
            info!(%view, build = %build.id, "ended the claim of a build that is over");
            let why = "it ended, and could not say why".to_owned();
            self.record(&build.id, End { state: BuildState::Failed, generation: None, error: Some(why) }).await;
        }
    }

    /// Follows builds of the view that other processes run, and ends those of holders that show no sign of life.
    async fn end_abandoned(&mut self, state: &ViewState) {
        let us = self.builder.holder();
        let claimed = state.builds.values().filter(|b| b.holder != us).map(|b| (&b.id, &b.holder));
        let taken = state.requests.iter().filter_map(|r| Some((&r.id, r.holder.as_ref().filter(|h| *h != us)?)));
        let mut others: BTreeMap<BuildId, String> =
            claimed.chain(taken).map(|(id, h)| (id.clone(), h.clone())).collect();
        let history = self.builder.history();
        for status in history.list(Some(&self.target.view)) {
            if status.state.is_final() || status.holder == us {
                continue;
            }
            if let Err(error) = history.follow(&status.id).await {
                warn!(build = %status.id, %error, "cannot read how far a build is");
            } else if !state.is_open(&status.id) {
                // It has not claimed yet, or it is over and its holder did not come to say so.
                others.insert(status.id, status.holder);
            }
        }
        self.seen.retain(|id, _| others.contains_key(id));
        for (id, holder) in others {
            let sign = match status_meta(self.builder.storage(), &id).await {
                Ok(meta) => meta.map(sign),
                // A storage that does not answer shows no sign of anybody.
                Err(error) => {
                    warn!(build = %id, %error, "cannot look for the holder of a build");
                    self.seen.remove(&id);
                    continue;
                }
            };
            match self.seen.get(&id) {
                Some((known, since)) if *known == sign => {
                    if since.elapsed() >= self.take_over {
                        warn!(view = %self.target.view, build = %id, holder, "the holder of a build is gone: ending it");
                        let after = self.take_over;
                        let why = match holder.as_str() {
                            "" => "its request never reached the register of the view".to_owned(),
                            _ => format!("process {holder}, which ran it, has shown no sign of life for {after:?}"),
                        };
                        self.end(&id, BuildOutcome::Interrupted, BuildState::Interrupted, why).await;
                    }
                }
                _ => {
                    self.seen.insert(id, (sign, Instant::now()));
                }
            }
        }
    }

    async fn end(&self, id: &BuildId, outcome: BuildOutcome, state: BuildState, why: String) {
        let end = match end_build(&self.target.register, id, outcome).await {
            Ok(EndedBuild::Ended | EndedBuild::NotOpen) => End { state, generation: None, error: Some(why) },
            Ok(EndedBuild::Published(generation)) => {
                End { state: BuildState::Succeeded, generation: Some(generation), error: None }
            }
            Err(error) => {
                warn!(build = %id, %error, "cannot end a build");
                return;
            }
        };
        self.record(id, end).await;
    }

    async fn record(&self, id: &BuildId, end: End) {
        if let Err(error) = self.builder.history().end(id, end).await {
            warn!(build = %id, %error, "cannot record the end of a build");
        }
    }
}

/// Asks whichever process builds for a build of the view that `register` decides about.
///
/// Cancel safe: a call that is dropped goes on.
///
/// # Errors
/// [`RequestError::AlreadyRunning`] while the view has a build or another request; when there is no such base; when the
/// register cannot be read or written.
pub async fn ask(
    storage: &Storage,
    register: &Register<ViewState>,
    mode: BuildMode,
    base: Option<GenerationId>,
    trigger: Trigger,
) -> Result<BuildId, RequestError> {
    let request = Request { id: new_build_id(), mode, base, requested_at: clock::now(), trigger, holder: None };
    let (storage, register) = (storage.clone(), register.clone());
    // Who asks may hang up at any time.
    let asking = task::spawn("ask for a build", async move {
        let decided = register.update(|state: &ViewState| {
            // Ours, if the answer of an earlier try was lost.
            let there = state.is_open(&request.id) || state.generations.iter().any(|g| g.build == request.id);
            Ok::<_, Rejected>((!there).then(|| ViewEvent::Requested { request: request.clone() }))
        });
        let view = register.name().to_owned();
        match decided.await {
            Ok(_) => {}
            Err(UpdateError::Rejected(Rejected::AlreadyRunning(build))) => {
                return Err(RequestError::AlreadyRunning { view, build });
            }
            Err(UpdateError::Rejected(Rejected::UnknownGeneration(generation))) => {
                return Err(RequestError::UnknownGeneration { view, generation });
            }
            Err(error) => return Err(RequestError::Register(error.to_string())),
        }
        // SUBTLE: after the request, which decides. The other way round, one that was never appended would stay listed.
        if let Err(error) = record_first(&storage, &requested(&view, &request)).await {
            warn!(view, build = %request.id, %error, "cannot record that a build is asked for");
        }
        Ok(request.id)
    });
    asking.await.map_err(|panic| RequestError::Register(panic.to_string()))?
}

/// The status of a build that no process has taken on.
pub fn requested(view: &str, request: &Request) -> BuildStatus {
    let mut status = BuildStatus::new(request.id.clone(), view, request.mode, request.trigger, "");
    status.base = request.base;
    status.requested_at = request.requested_at;
    status.progress.step = "waiting for a batch process".to_owned();
    status
}

/// Cancels a build that does not run in this process by the register of its view: it can't be published any more. Answers
/// its status, of which `known` is a former one.
///
/// # Errors
/// [`RequestError::Finished`] when it has ended, or was published; [`RequestError::Elsewhere`] when the process that is to
/// run it has not begun; when the register or the record cannot be read or written.
pub async fn cancel(
    storage: &Storage,
    register: &Register<ViewState>,
    known: BuildStatus,
) -> Result<BuildStatus, RequestError> {
    let id = &known.id;
    let finished = |state| RequestError::Finished { build: id.clone(), state };
    match end_build(register, id, BuildOutcome::Cancelled).await? {
        EndedBuild::Ended => return record_cancelled(storage, &known).await,
        EndedBuild::Published(_) => return Err(finished(BuildState::Succeeded)),
        EndedBuild::NotOpen => {}
    }
    let deadline = Instant::now() + RECORDING;
    loop {
        let status = read_status(storage, id).await.map_err(unreadable)?.unwrap_or_else(|| known.clone());
        if status.state.is_final() {
            return Err(finished(status.state));
        }
        // The request was withdrawn, or never came: nobody else will end it.
        if status.holder.is_empty() {
            return record_cancelled(storage, &known).await;
        }
        if Instant::now() >= deadline {
            return Err(RequestError::Elsewhere { build: id.clone(), holder: status.holder });
        }
        clock::sleep(RECORDING_POLL).await;
    }
}

async fn record_cancelled(storage: &Storage, known: &BuildStatus) -> Result<BuildStatus, RequestError> {
    // Who runs it records its end too; nobody may.
    if let Some(status) = record_end(storage, &known.id, &End::cancelled()).await.map_err(unreadable)? {
        return Ok(status);
    }
    let status = End::cancelled().of(known.clone());
    write_status(storage, &status).await.map_err(unreadable)?;
    Ok(status)
}

fn unreadable(error: storage::Error) -> RequestError {
    RequestError::Record(format!("{:#}", anyhow::Error::from(error)))
}

/// What a view's register says of a build that is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBuild {
    /// This call has ended it: it can't be published any more.
    Ended,
    Published(GenerationId),
    /// It has neither claimed nor is it asked for: it is over, or has not begun.
    NotOpen,
}

/// Ends a build in the register of its view, whoever runs it.
///
/// # Errors
/// When the register cannot be read or written.
pub async fn end_build(
    register: &Register<ViewState>,
    id: &BuildId,
    outcome: BuildOutcome,
) -> Result<EndedBuild, RequestError> {
    let mut found = EndedBuild::NotOpen;
    let decided = register.update(|state: &ViewState| {
        let published = state.generations.iter().find(|g| g.build == *id);
        // SUBTLE: as of the last head that is looked at. At an earlier one it may have been open, and published by the next.
        found = match published {
            Some(generation) => EndedBuild::Published(generation.id),
            None if state.is_open(id) => EndedBuild::Ended,
            None => EndedBuild::NotOpen,
        };
        let event = ViewEvent::Ended { build: id.clone(), outcome };
        Ok::<_, Rejected>((found == EndedBuild::Ended).then_some(event))
    });
    decided.await.map_err(|e| RequestError::Register(e.to_string()))?;
    Ok(found)
}
