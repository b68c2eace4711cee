//! Builds that other processes ask for, stop, or leave behind: what the views' registers say of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectMeta;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use watershed_shared::builds::BuildState;
use watershed_shared::catalog::{BuildOutcome, Rejected, Request, ViewEvent, ViewState};
use watershed_shared::clock::{self, Instant};
use watershed_shared::names::BuildId;
use watershed_shared::register::Register;
use watershed_shared::storage;

use crate::builder::{BuildRequest, BuildTarget, Builder, RequestError};
use crate::history::{read_status, status_meta, write_status};

/// A holder that has not recorded a sign of life for this long counts as dead: its builds are ended for it.
pub const TAKE_OVER: Duration = Duration::from_secs(60);
/// Before a request that could not be taken on is tried again.
const TAKE_AGAIN: Duration = Duration::from_millis(200);
/// How often holders are looked at.
const LOOK: Duration = Duration::from_secs(5);

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

    /// Takes requests on, ends builds whose claim was ended by somebody else, and ends those of dead holders, until `stop`.
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
            // It may have ended by itself.
            drop(self.builder.cancel(&running));
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

    /// Ends the builds of holders that show no sign of life.
    async fn end_abandoned(&mut self, state: &ViewState) {
        let us = self.builder.holder();
        let claimed = state.builds.values().filter(|b| b.holder != us).map(|b| (&b.id, &b.holder));
        let taken = state.requests.iter().filter_map(|r| Some((&r.id, r.holder.as_ref().filter(|h| *h != us)?)));
        let others: BTreeMap<BuildId, String> = claimed.chain(taken).map(|(id, h)| (id.clone(), h.clone())).collect();
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
                        let why = format!("process {holder}, which ran it, has shown no sign of life for {after:?}");
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
        match end_build(&self.target.register, id, outcome).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                warn!(build = %id, %error, "cannot end a build");
                return;
            }
        }
        if let Err(error) = record_end(self.builder.storage(), id, state, Some(why)).await {
            warn!(build = %id, %error, "cannot record the end of a build");
        }
    }
}

/// Ends a build in the register of its view, whoever runs it: it can't be published any more. Answers whether this call did.
///
/// # Errors
/// When the register cannot be read or written.
pub async fn end_build(
    register: &Register<ViewState>,
    id: &BuildId,
    outcome: BuildOutcome,
) -> Result<bool, RequestError> {
    let mut ended = false;
    let decided = register.update(|state: &ViewState| {
        let open = state.is_open(id);
        ended |= open;
        Ok::<_, Rejected>(open.then(|| ViewEvent::Ended { build: id.clone(), outcome }))
    });
    decided.await.map_err(|e| RequestError::Register(e.to_string()))?;
    Ok(ended)
}

/// Records how a build ended whose holder doesn't.
///
/// # Errors
/// When the storage does not answer.
pub async fn record_end(
    storage: &storage::Storage,
    id: &BuildId,
    state: BuildState,
    error: Option<String>,
) -> Result<(), storage::Error> {
    let Some(mut status) = read_status(storage, id).await?.filter(|s| !s.state.is_final()) else { return Ok(()) };
    status.state = state;
    status.error = error;
    status.finished_at = Some(clock::now());
    write_status(storage, &status).await
}
