//! One build, from its claim to its publication.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use watershed_shared::abort_point;
use watershed_shared::builds::{BuildState, BuildStatus, Trigger};
use watershed_shared::catalog::{Build, BuildMode, BuildOutcome, Generation, Rejected, ViewEvent, ViewState};
use watershed_shared::clock::{self, Instant};
use watershed_shared::master::MasterSnapshot;
use watershed_shared::names::GenerationId;
use watershed_shared::offsets::{Cut, Offset, OffsetVector};
use watershed_shared::register::UpdateError;
use watershed_shared::storage;

use super::decide::{self, BuildPlan};
use super::files::{self, Written};
use super::patience::Patience;
use super::{BuildTarget, Inner};

/// A worker that has not answered by then counts as none.
const SEAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at the archived offsets.
const ARCHIVE_POLL: Duration = Duration::from_millis(100);

/// Why a build ends without a generation.
#[derive(Debug)]
pub(super) enum Stopped {
    /// Somebody asked for it.
    Cancelled,
    /// There is nothing to do, or the view has moved on since.
    Skipped(String),
    /// It could not be done; nothing has changed.
    Failed(String),
}

impl Stopped {
    pub(super) fn states(&self, shutdown: bool) -> (BuildState, BuildOutcome) {
        match self {
            Self::Cancelled if shutdown => (BuildState::Interrupted, BuildOutcome::Interrupted),
            Self::Cancelled => (BuildState::Cancelled, BuildOutcome::Cancelled),
            Self::Skipped(_) => (BuildState::Skipped, BuildOutcome::Skipped),
            Self::Failed(_) => (BuildState::Failed, BuildOutcome::Failed),
        }
    }

    pub(super) fn message(&self) -> Option<String> {
        match self {
            Self::Cancelled => None,
            Self::Skipped(why) | Self::Failed(why) => Some(why.clone()),
        }
    }
}

/// An abort point that a test has armed ends the build as any failure does.
impl<E: std::error::Error> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Maps any error of a step to a failed build, saying which step, and what the storage said if it is its doing.
pub(super) fn failed<E: Into<anyhow::Error>>(step: &str) -> impl FnOnce(E) -> Stopped + '_ {
    move |error| {
        let error = error.into();
        let said = storage::unavailable(error.as_ref()).unwrap_or_else(|| error.to_string());
        Stopped::Failed(format!("{step}: {said}"))
    }
}

/// Runs the build and answers the generation that it published.
///
/// `cancel` ends it between and within steps, but not within an append to the register: one that was dropped could
/// still happen later.
pub(super) async fn execute(
    inner: &Inner,
    target: &BuildTarget,
    status: &mut BuildStatus,
    cancel: &CancellationToken,
) -> Result<GenerationId, Stopped> {
    let (plan, cut) = claim(inner, target, status).await?;
    abort_point!("claimed");
    let read = async {
        wait_for_archiver(inner, target, status, &cut).await?;
        read_events(inner, target, status, &plan, &cut).await
    };
    let made = cancel.run_until_cancelled(read).await.ok_or(Stopped::Cancelled)??;
    abort_point!("generation written");

    status.state = BuildState::Publishing;
    status.progress.step = "publishing".to_owned();
    inner.history.record(status).await;
    let generation = publish(target, status, &plan, cut, made).await?;
    abort_point!("generation published");
    Ok(generation)
}

/// What is to be published.
#[derive(Debug)]
struct Made {
    written: Written,
    /// Of the master dataset.
    delta_version: u64,
    /// How many losses it may lack.
    losses: usize,
}

async fn read_events(
    inner: &Inner,
    target: &BuildTarget,
    status: &mut BuildStatus,
    plan: &BuildPlan,
    cut: &Cut,
) -> Result<Made, Stopped> {
    status.progress.step = "reading events".to_owned();
    inner.history.show(status);
    let compiled = inner.definitions.get(&plan.definition).await.map_err(failed("compile the view"))?;
    let mut patience = Patience::new();
    loop {
        let snapshot = snapshot(inner, target, status).await?;
        // SUBTLE: after the snapshot. A loss is recorded before the archive passes it, so all that the snapshot lacks is there.
        let losses = target.stream.state().await.map_err(failed("read the stream's register"))?.losses.len();
        // Under new names each time.
        match files::write_runs(inner, target, &compiled, &snapshot, plan, cut, status).await {
            Ok(written) => return Ok(Made { written, delta_version: snapshot.version(), losses }),
            Err(error) => patience.wait(inner, status, "write runs", error).await?,
        }
    }
}

/// The master dataset as it is now, or when the storage is back.
async fn snapshot(inner: &Inner, target: &BuildTarget, status: &mut BuildStatus) -> Result<MasterSnapshot, Stopped> {
    let mut patience = Patience::new();
    loop {
        match target.master.snapshot().await {
            Ok(snapshot) => return Ok(snapshot),
            Err(error) => patience.wait(inner, status, "open the master dataset", error.into()).await?,
        }
    }
}

/// Seals, and appends the claim.
async fn claim(inner: &Inner, target: &BuildTarget, status: &mut BuildStatus) -> Result<(BuildPlan, Cut), Stopped> {
    status.progress.step = "claiming the cut".to_owned();
    inner.history.show(status);
    let head = target.register.state().await.map_err(failed("read the view's register"))?;
    let plan = decide::plan(&head, status.mode, status.base).map_err(failed("choose what to build"))?;
    let archived = target.master.snapshot().await.map_err(failed("open the master dataset"))?;
    if status.trigger == Trigger::Schedule && plan.mode == BuildMode::Refresh {
        let seen = target.delta.as_ref().map(|d| d.watch().borrow().position.clone()).unwrap_or_default();
        if plan.base_cut.covers(&seen.join(archived.archived_until())) {
            return Err(Stopped::Skipped("nothing new since the last generation".to_owned()));
        }
    }
    let sealed = match &target.delta {
        Some(delta) => match tokio::time::timeout(SEAL_TIMEOUT, delta.seal()).await {
            Ok(Ok(cut)) => cut,
            Ok(Err(_)) | Err(_) => OffsetVector::new(),
        },
        None => OffsetVector::new(),
    };
    abort_point!("sealed");
    let cut = choose_cut(&sealed, archived.archived_until(), &plan.base_cut);

    let (mode, base) = (status.mode, status.base);
    let id = status.id.clone();
    let holder = inner.holder.clone();
    let requested = inner.running.lock().get(&target.view).is_some_and(|r| r.id == id && r.requested);
    let scheduled = status.trigger == Trigger::Schedule;
    let mut moved = None;
    let mut withdrawn = false;
    let decided = target
        .register
        .update(|state: &ViewState| {
            let claimed = state.builds.values().any(|b| b.id == id);
            withdrawn = requested && !claimed && !state.requests.iter().any(|r| r.id == id);
            if withdrawn {
                return Ok(None);
            }
            if scheduled && state.paused {
                moved = Some("the schedule is paused".to_owned());
                return Ok(None);
            }
            if let Some(other) = state.builds.get(&plan.definition.hash).filter(|b| scheduled && b.id != id) {
                moved = Some(format!("{} has claimed build {} already", other.holder, other.id));
                return Ok(None);
            }
            let now = decide::plan(state, mode, base)?;
            if now.definition.hash != plan.definition.hash || now.base != plan.base {
                moved = Some("the view was changed while the build was starting".to_owned());
                return Ok(None);
            }
            Ok::<_, Rejected>(Some(ViewEvent::Claimed {
                build: Box::new(Build {
                    id: id.clone(),
                    mode: plan.mode,
                    definition: plan.definition.hash.clone(),
                    base: plan.base,
                    cut: cut.clone(),
                    holder: holder.clone(),
                    claimed_at: clock::now(),
                }),
            }))
        })
        .await;
    decided.map_err(failed("claim the build"))?;
    if withdrawn {
        return Err(Stopped::Cancelled);
    }
    if let Some(why) = moved {
        return Err(Stopped::Skipped(why));
    }
    status.mode = plan.mode;
    status.definition = Some(plan.definition.hash.clone());
    status.base = plan.base;
    status.cut = Some(cut.clone());
    status.progress.events_total = decide::offsets_between(&target.with_origins(&plan.base_cut), &cut);
    inner.history.record(status).await;
    Ok((plan, cut))
}

/// For a partition with an owner what it answered, else the archived offset; never below the base's cut.
fn choose_cut(sealed: &OffsetVector, archived: &OffsetVector, base: &Cut) -> Cut {
    let mut cut = sealed.clone();
    for (partition, until) in archived.iter() {
        if sealed.get(partition).is_none() {
            cut.set(partition, until);
        }
    }
    cut.join(base)
}

async fn wait_for_archiver(
    inner: &Inner,
    target: &BuildTarget,
    status: &mut BuildStatus,
    cut: &Cut,
) -> Result<(), Stopped> {
    status.progress.step = "waiting for the archiver".to_owned();
    inner.history.show(status);
    let deadline = Instant::now() + inner.settings.archive_wait;
    loop {
        let archived = snapshot(inner, target, status).await?;
        // A partition whose cut is its origin has nothing to archive and may be absent there.
        let reached = target.with_origins(archived.archived_until());
        let at = |p| reached.get(p).unwrap_or(Offset(0));
        let missing: Vec<_> = cut.iter().filter(|(p, next)| at(*p) < *next).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let (partition, next) = missing[0];
            return Err(Stopped::Failed(format!(
                "the archiver did not reach the cut within archive_wait ({:?}): partition {partition} is archived until {}, the cut is {next}",
                inner.settings.archive_wait,
                at(partition),
            )));
        }
        target.archive.flush_to(cut);
        clock::sleep(ARCHIVE_POLL).await;
    }
}

async fn publish(
    target: &BuildTarget,
    status: &BuildStatus,
    plan: &BuildPlan,
    cut: Cut,
    made: Made,
) -> Result<GenerationId, Stopped> {
    let mut published = None;
    let decided = target
        .register
        .update(|state: &ViewState| {
            let held = state.builds.get(&plan.definition.hash).is_some_and(|b| b.id == status.id);
            if !held {
                // SUBTLE: no claim and a generation of ours means that this very publication has happened, and only
                // its answer was lost.
                published = state.generations.iter().find(|g| g.build == status.id).map(|g| g.id);
                return match published {
                    Some(_) => Ok(None),
                    None => Err(Rejected::ClaimLost(status.id.clone())),
                };
            }
            let generation = Generation {
                id: state.next_generation(),
                definition: plan.definition.hash.clone(),
                cut: cut.clone(),
                runs: made.written.runs.clone(),
                build: status.id.clone(),
                mode: plan.mode,
                base: plan.base,
                delta_version: made.delta_version,
                events: made.written.events,
                losses: made.losses,
                published_at: clock::now(),
            };
            published = Some(generation.id);
            Ok(Some(ViewEvent::Published { generation: Box::new(generation) }))
        })
        .await;
    match decided {
        Ok(_) => Ok(published.expect("the closure has run, and set it wherever it did not fail")),
        // Whoever ended the claim did so before the publication.
        Err(UpdateError::Decision(Rejected::ClaimLost(_))) => Err(Stopped::Cancelled),
        Err(error) => Err(Stopped::Failed(format!("publish: {error}"))),
    }
}

/// Ends the claim of a build that stopped. Answers the generation if it has published after all: it was stopped, or
/// lost its storage, between the publication and the answer.
pub(super) async fn end_claim(
    target: &BuildTarget,
    status: &BuildStatus,
    outcome: BuildOutcome,
) -> Option<GenerationId> {
    let mut published = None;
    let decided = target
        .register
        .update(|state: &ViewState| {
            published = state.generations.iter().find(|g| g.build == status.id).map(|g| g.id);
            let held = state.is_open(&status.id);
            Ok::<_, Rejected>(held.then(|| ViewEvent::Ended { build: status.id.clone(), outcome }))
        })
        .await;
    if let Err(error) = decided {
        tracing::warn!(view = %status.view, build = %status.id, %error, "cannot end the claim of a build that stopped");
    }
    published
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cut_is_what_the_owner_sealed_else_the_archived_offset_and_never_below_the_base() {
        let cut = choose_cut(&[(0, 5)].into(), &[(0, 9), (1, 7)].into(), &[(0, 4), (1, 8)].into());
        assert_eq!(cut, [(0, 5), (1, 8)].into());
    }
}
