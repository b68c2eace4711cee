//! What a build writes, and what is collected when no record names it any longer.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result};
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use tracing::warn;
use watershed_shared::background;
use watershed_shared::builds::BuildStatus;
use watershed_shared::catalog::{Definition, Rejected, ViewEvent, ViewState};
use watershed_shared::clock;
use watershed_shared::master::MasterSnapshot;
use watershed_shared::mutant::{self, Mutant};
use watershed_shared::names::{GenerationId, RunId};
use watershed_shared::offsets::{Coverage, Cut, Offset, OffsetRange, PartitionId};
use watershed_shared::paths;
use watershed_shared::run::{
    self, EventError, RunMeta, RunOptions, RunsTable, event_errors_from_batch, read_event_errors, write_event_errors,
    write_run,
};
use watershed_shared::view::{CompiledView, Kind, pinned_config};

use super::decide::{self, BuildPlan};
use super::{BuildTarget, Inner};

/// How many generations of a view stay listed, those that are needed besides.
const KEPT_GENERATIONS: usize = 20;
/// A file that no record names may belong to a build that has not published yet, unless it is older than this.
const ORPHAN_AGE: Duration = Duration::from_secs(6 * 3600);
/// A thread has memory for some tens of batches; rows of states of a few hundred bytes are common.
const BATCH_SHARE_BYTES: usize = 32 << 10;
const MIN_BATCH_ROWS: usize = 128;
/// Between two looks at how far a plan has come.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// The runs of a generation, all durable.
#[derive(Debug)]
pub(super) struct Written {
    /// Those of the base that stay, then the new one.
    pub(super) runs: Vec<RunMeta>,
    /// Events that were read.
    pub(super) events: u64,
}

/// Reads the events between the base's cut and `cut`, and writes their run; merges it with the base's newest runs where
/// that keeps their number logarithmic.
pub(super) async fn write_runs(
    inner: &Inner,
    target: &BuildTarget,
    compiled: &Arc<CompiledView>,
    snapshot: &MasterSnapshot,
    plan: &BuildPlan,
    cut: &Cut,
    status: &mut BuildStatus,
) -> Result<Written> {
    let mut runs = plan.base_runs.clone();
    let keeps = Keeps::of(compiled, &plan.definition);
    if keeps == Keeps::Failures && !compiled.can_fail() {
        // Its generation is its cut: rows below it are served from the master dataset, and none of them fails.
        return Ok(Written { runs, events: 0 });
    }
    // A row view's base from before failing events were kept lacks them.
    let base_cut = if keeps == Keeps::Failures && runs.is_empty() { &Cut::new() } else { &plan.base_cut };
    // SUBTLE: with the origins, since of a partition that stands at its origin nothing need be archived.
    let from = target.with_origins(base_cut);
    let coverage = coverage_between(&from, cut);
    if coverage.is_empty() && !runs.is_empty() {
        return Ok(Written { runs, events: 0 });
    }
    let context = context(inner)?;
    let from = if mutant::is(Mutant::RefreshFromCut) && plan.base.is_some() { cut.clone() } else { from };
    let low = i64::from(mutant::is(Mutant::CutOffByOne));
    let until: Cut = cut.iter().map(|(p, next)| (p, Offset((next.0 - low).max(0)))).collect();
    let events = snapshot.scan(Some(&from), &until)?;
    let (states, errors) = match keeps {
        Keeps::States => compiled.state_plan(events)?,
        Keeps::Failures => compiled.rows_plan(events)?,
    };
    let written =
        write(inner, target, &context, states, compiled, &plan.definition, coverage, keeps, Some(status)).await?;
    let (mut run, events) = written;
    attach_errors(inner, target, &plan.definition, &mut run, errors.take()).await?;
    runs.push(run);

    let rows: Vec<u64> = runs.iter().map(|r| r.rows + r.errors).collect();
    let count = decide::runs_to_merge(&rows);
    if count > 1 {
        let merged = merge(inner, target, &context, compiled, &plan.definition, &runs[runs.len() - count..]).await?;
        runs.truncate(runs.len() - count);
        runs.push(merged);
    }
    Ok(Written { runs, events })
}

/// What the runs of a view hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeps {
    /// Its states, or its rows.
    States,
    /// Nothing but the events on which the SQL fails: the rows below the cut are served from the master dataset.
    Failures,
}

impl Keeps {
    fn of(compiled: &CompiledView, definition: &Definition) -> Self {
        if compiled.kind() == Kind::Rows && !definition.materialize { Self::Failures } else { Self::States }
    }
}

/// A session with the build's share of memory, which spills to disk beyond it.
fn context(inner: &Inner) -> Result<SessionContext> {
    fs::create_dir_all(&inner.spill_dir)
        .with_context(|| format!("create the folder for spilling, {}", inner.spill_dir.display()))?;
    let share = share(inner);
    let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![inner.spill_dir.clone()]));
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(share)))
        .with_disk_manager_builder(disk)
        .build_arc()?;
    inner.storage.register_with(&runtime);
    let threads = inner.settings.threads.max(1);
    let config = within(pinned_config().with_target_partitions(threads), share / threads);
    Ok(SessionContext::new_with_config_rt(config, runtime))
}

/// Removes all that is in the folder for spilling: killed processes leave it there. Not the folder, which may be a link.
pub(super) fn empty(spill_dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(spill_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Of the memory of all builds.
fn share(inner: &Inner) -> usize {
    inner.settings.memory_limit_bytes / inner.settings.max_builds.max(1)
}

/// With batches, and with what a sort sets aside for merging what it spilled, in proportion to the `bytes` of a thread:
/// the engine's own are so large that under a low limit nothing would be left to sort in.
fn within(config: SessionConfig, bytes: usize) -> SessionConfig {
    let rows = (bytes / BATCH_SHARE_BYTES).clamp(MIN_BATCH_ROWS, config.batch_size().max(MIN_BATCH_ROWS));
    let aside = config.options().execution.sort_spill_reservation_bytes.min(bytes / 8);
    config.with_batch_size(rows).with_sort_spill_reservation_bytes(aside)
}

/// What to do about a plan that needs more memory than it may have; other errors as they are.
fn explained(error: run::Error, inner: &Inner) -> anyhow::Error {
    let engine = match &error {
        run::Error::States(engine) => engine.find_root(),
        _ => return error.into(),
    };
    if !matches!(engine, DataFusionError::ResourcesExhausted(_)) {
        return error.into();
    }
    tracing::debug!(%engine, "a build's memory does not do");
    let (bytes, threads) = (share(inner), inner.settings.threads.max(1));
    anyhow::anyhow!(
        "the memory of a build does not do, though it spills to disk: raise [batch] memory_limit, or lower [batch] \
         threads or max_builds. memory of a build=`{bytes} bytes`, threads=`{threads}`"
    )
}

/// Runs `plan`, whose output is sorted states (in any order if they are not kept), into a run's file. Answers the run
/// and the events that were read.
#[expect(clippy::too_many_arguments, reason = "all of them are inputs of one step")]
async fn write(
    inner: &Inner,
    target: &BuildTarget,
    context: &SessionContext,
    plan: LogicalPlan,
    compiled: &CompiledView,
    definition: &Definition,
    coverage: Coverage,
    keeps: Keeps,
    status: Option<&mut BuildStatus>,
) -> Result<(RunMeta, u64)> {
    let physical = context.state().create_physical_plan(&plan).await?;
    let id = RunId::unique();
    let options = RunOptions::new(id.clone(), definition.hash.clone(), coverage.clone());
    let path = paths::run(&target.view, &definition.hash, &id);
    let (running, task, storage, keys) =
        (Arc::clone(&physical), context.task_ctx(), inner.storage.clone(), compiled.key_count());
    let file = path.clone();
    let writing = background::run(async move {
        let stream = execute_stream(running, task)?;
        let stream: SendableRecordBatchStream = match keeps {
            Keeps::States => stream,
            Keeps::Failures => {
                let schema = stream.schema();
                Box::pin(RecordBatchStreamAdapter::new(schema, stream.map_ok(|batch| batch.slice(0, 0))))
            }
        };
        write_run(&storage, &file, stream, keys, &options).await
    });
    tokio::pin!(writing);
    let mut status = status;
    let file = loop {
        tokio::select! {
            file = &mut writing => break file.context("the plan panicked")?.map_err(|e| explained(e, inner))?,
            () = clock::sleep(PROGRESS_INTERVAL) => {
                if let Some(status) = status.as_deref_mut() {
                    status.progress.events_read = events_read(physical.as_ref());
                    inner.history.show(status);
                }
            }
        }
    };
    let events = events_read(physical.as_ref());
    if let Some(status) = status {
        status.progress.events_read = events;
        status.progress.spilled_bytes = spilled_bytes(physical.as_ref());
    }
    let run = RunMeta {
        id,
        file: path.to_string(),
        size_bytes: file.size_bytes,
        tail: Some(file.tail),
        rows: file.rows,
        coverage,
        errors: 0,
        errors_file: None,
        errors_crc32: None,
    };
    Ok((run, events))
}

fn spilled_bytes(plan: &dyn ExecutionPlan) -> u64 {
    let here = plan.metrics().and_then(|m| m.spilled_bytes()).unwrap_or(0) as u64;
    here + plan.children().iter().map(|c| spilled_bytes(c.as_ref())).sum::<u64>()
}

/// Rows that the plan's leaves have given so far.
fn events_read(plan: &dyn ExecutionPlan) -> u64 {
    let children = plan.children();
    if children.is_empty() {
        return plan.metrics().and_then(|m| m.output_rows()).unwrap_or(0) as u64;
    }
    // A join's build side is a dimension table: the events are on the side with more rows.
    children.iter().map(|c| events_read(c.as_ref())).max().unwrap_or(0)
}

async fn merge(
    inner: &Inner,
    target: &BuildTarget,
    context: &SessionContext,
    compiled: &CompiledView,
    definition: &Definition,
    runs: &[RunMeta],
) -> Result<RunMeta> {
    let mut coverage = Coverage::new();
    let mut errors = Vec::new();
    for run in runs {
        for (partition, range) in run.coverage.iter() {
            coverage.add(partition, range).map_err(|(a, b)| {
                anyhow::anyhow!("runs of one generation leave a hole or overlap in partition {partition}: {a}, {b}")
            })?;
        }
        errors.extend(read_errors(inner, run).await?);
    }
    let table = RunsTable::new(&inner.storage, compiled.state_schema(), runs.to_vec(), compiled.key_count())?;
    let plan = compiled.merge_plan(table)?;
    let (mut run, _) = write(inner, target, context, plan, compiled, definition, coverage, Keeps::States, None).await?;
    attach_errors(inner, target, definition, &mut run, errors).await?;
    Ok(run)
}

/// The offsets between two cuts; a partition that `from` lacks begins at 0, below its origin there is nothing.
fn coverage_between(from: &Cut, until: &Cut) -> Coverage {
    let range = |p: PartitionId, end: Offset| OffsetRange::new(from.get(p).unwrap_or(Offset(0)).min(end), end);
    until.iter().map(|(p, end)| (p, range(p, end))).collect()
}

/// Writes the events on which the SQL failed beside the run.
async fn attach_errors(
    inner: &Inner,
    target: &BuildTarget,
    definition: &Definition,
    run: &mut RunMeta,
    errors: Vec<EventError>,
) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    let path = paths::run_errors(&target.view, &definition.hash, &run.id);
    let options = RunOptions::new(run.id.clone(), definition.hash.clone(), run.coverage.clone());
    run.errors = errors.len() as u64;
    let file = write_event_errors(&inner.storage, &path, errors, &options).await?;
    run.errors_file = Some(path.to_string());
    run.errors_crc32 = Some(file.crc32);
    Ok(())
}

async fn read_errors(inner: &Inner, run: &RunMeta) -> Result<Vec<EventError>> {
    let mut errors = Vec::new();
    for batch in read_event_errors(&inner.storage, run).await? {
        errors.extend(event_errors_from_batch(&batch)?);
    }
    Ok(errors)
}

/// Takes old generations from the list, and deletes files that no generation names.
///
/// A file goes only after the generation that named it went at an earlier collection, so that readers have had at
/// least the time between two builds. What fails is tried again at the next one.
pub(super) async fn collect(inner: &Inner, target: &BuildTarget) {
    if let Err(error) = try_collect(inner, target).await {
        warn!(view = %target.view, error = format!("{error:#}"), "cannot collect old files of a view");
    }
}

async fn try_collect(inner: &Inner, target: &BuildTarget) -> Result<()> {
    // SUBTLE: files first, from a head read before the list: what is published in between is young.
    let listed = inner.storage.list(&paths::view(&target.view)).await?;
    let state = target.register.state().await?;
    let named: BTreeSet<&str> = state
        .generations
        .iter()
        .flat_map(|g| &g.runs)
        .flat_map(|r| std::iter::once(r.file.as_str()).chain(r.errors_file.as_deref()))
        .collect();
    let oldest = clock::now() - chrono::Duration::from_std(ORPHAN_AGE).expect("hours fit");
    for file in listed {
        if !named.contains(file.location.as_ref()) && file.last_modified < oldest {
            inner.storage.delete(&file.location).await?;
        }
    }
    target.register.update(|state: &ViewState| Ok::<_, Rejected>(to_retire(state))).await?;
    Ok(())
}

/// The oldest generations beyond those that are kept or needed.
fn to_retire(state: &ViewState) -> Option<ViewEvent> {
    let needed = state.needed_generations();
    let excess = state.generations.len().saturating_sub(KEPT_GENERATIONS);
    let old = state.generations.iter().take(excess).map(|g| g.id);
    let generations: Vec<GenerationId> = old.filter(|id| !needed.contains(id)).collect();
    (!generations.is_empty()).then_some(ViewEvent::Retired { generations })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_begins_at_the_base_or_at_the_log_s_start() {
        let coverage = coverage_between(&[(0, 5)].into(), &[(0, 7), (1, 3)].into());
        assert_eq!(coverage.get(PartitionId(0)), Some(OffsetRange::new(Offset(5), Offset(7))));
        assert_eq!(coverage.get(PartitionId(1)), Some(OffsetRange::new(Offset(0), Offset(3))));
        assert!(coverage_between(&[(0, 5)].into(), &[(0, 5)].into()).is_empty());
    }
}
