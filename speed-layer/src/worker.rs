//! The speed worker of one stream: its parts, how they are put together, and how they end.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use watershed_shared::abort_point;
use watershed_shared::catalog::StreamState;
use watershed_shared::clock::Instant;
use watershed_shared::config::StreamConfig;
use watershed_shared::delta::{DeltaService, Reason, SealError, StreamDelta};
use watershed_shared::offsets::{Cut, OffsetRange, OffsetVector, PartitionId};

use crate::board::{Board, SEAL_HOLD};
use crate::commit::{self, Committer};
use crate::compute::Limits;
use crate::source::EventSource;
use crate::states::ViewPlan;
use crate::store::DeltaStore;
use crate::{follow, ingest, merger};

/// How a worker works. The defaults are right for production.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long an answer may be ahead of what is durable.
    pub commit_interval: Duration,
    /// Rows and bytes up to which a micro-batch grows while the log is ahead.
    pub batch_rows: usize,
    pub batch_bytes: usize,
    /// Between the starts of two micro-batches.
    pub batch_interval: Duration,
    /// A larger run is not merged further.
    pub max_run_bytes: usize,
    /// Ingestion waits for merges while a view has more runs.
    pub max_runs: usize,
    /// Replays at a time.
    pub replays: usize,
    /// Before something that failed is tried again, at first; it doubles up to 16 times that.
    pub retry: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            commit_interval: Duration::from_secs(1),
            batch_rows: 100_000,
            batch_bytes: 64 << 20,
            batch_interval: Duration::from_millis(2),
            max_run_bytes: 256 << 20,
            max_runs: 64,
            replays: 2,
            retry: Duration::from_millis(500),
        }
    }
}

/// What happened since the worker started.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    pub events: u64,
    pub micro_batches: u64,
    pub merges: u64,
    /// Replays from a cut that were begun.
    pub replays: u64,
    /// Runs that were read again because a boundary divided them.
    pub resplits: u64,
    pub commits: u64,
    /// Commits to the delta store that failed; they are tried again.
    pub store_errors: u64,
    /// Views whose stored image was damaged: set aside, and replayed.
    pub damaged_images: u64,
}

/// What the tasks of a worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: StreamConfig,
    pub(crate) options: Options,
    pub(crate) source: Arc<dyn EventSource>,
    pub(crate) board: Mutex<Board>,
    pub(crate) counts: Mutex<Counts>,
    /// There may be runs to merge.
    pub(crate) merge_wanted: Notify,
    /// Runs were merged.
    pub(crate) merged: Notify,
    /// There may be replays to start.
    pub(crate) work_wanted: Notify,
    /// The reader is to be opened again: partitions came.
    pub(crate) reopen: Notify,
    pub(crate) replays: Semaphore,
    pub(crate) commits: mpsc::Sender<oneshot::Sender<bool>>,
    /// The board has a position.
    pub(crate) started: CancellationToken,
    pub(crate) stopped: CancellationToken,
}

impl Shared {
    pub(crate) fn limits(&self) -> Limits {
        Limits { rows: self.options.batch_rows, bytes: self.options.batch_bytes }
    }
}

/// Keeps the delta of every view of one stream.
#[derive(Debug)]
pub struct SpeedWorker {
    shared: Arc<Shared>,
    plans: watch::Receiver<Arc<Vec<ViewPlan>>>,
    origins: watch::Receiver<OffsetVector>,
    losses: Option<watch::Receiver<Arc<StreamState>>>,
    store: Arc<dyn DeltaStore>,
    commits: Commits,
}

/// Who waits for a commit.
pub(crate) type Commits = Arc<AsyncMutex<mpsc::Receiver<oneshot::Sender<bool>>>>;

/// Offsets that the log dropped before they were archived.
pub(crate) type Losses = Vec<(PartitionId, OffsetRange)>;

/// The delta service of a [`SpeedWorker`], within the process.
#[derive(Debug, Clone)]
pub struct SpeedHandle {
    shared: Arc<Shared>,
}

impl SpeedWorker {
    /// `plans`: the definitions wanted, at all times all of them; nothing happens while there is none yet, for what the
    /// first list does not name is deleted from the store. `origins`: per partition the log's start when the stream
    /// was first seen; a partition is read once its origin is there.
    pub fn new(
        config: StreamConfig,
        plans: watch::Receiver<Arc<Vec<ViewPlan>>>,
        origins: watch::Receiver<OffsetVector>,
        source: Arc<dyn EventSource>,
        store: Arc<dyn DeltaStore>,
        options: Options,
    ) -> Self {
        let (sender, commits) = mpsc::channel(64);
        let log_end = source.log_end().borrow().clone();
        let board = Board::new(&config.name, origins.borrow().clone(), log_end);
        let shared = Shared {
            replays: Semaphore::new(options.replays),
            config,
            options,
            source,
            board: Mutex::new(board),
            counts: Mutex::default(),
            merge_wanted: Notify::new(),
            merged: Notify::new(),
            work_wanted: Notify::new(),
            reopen: Notify::new(),
            commits: sender,
            started: CancellationToken::new(),
            stopped: CancellationToken::new(),
        };
        Self {
            shared: Arc::new(shared),
            plans,
            origins,
            losses: None,
            store,
            commits: Arc::new(AsyncMutex::new(commits)),
        }
    }

    /// `state`: the stream's register, for its losses. With each that is new the worker begins again without what it had
    /// read of those offsets: from what is stored if that lies before, else from the cuts.
    #[must_use]
    pub fn with_losses(self, state: watch::Receiver<Arc<StreamState>>) -> Self {
        Self { losses: Some(state), ..self }
    }

    pub fn handle(&self) -> SpeedHandle {
        SpeedHandle { shared: Arc::clone(&self.shared) }
    }

    /// Works until `shutdown`, then commits what it has. What fails on the way is reported in the snapshots and tried
    /// again; only a panic ends it otherwise.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let shared = self.shared;
        let wanted = shutdown.run_until_cancelled(async {
            self.plans.wait_for(|plans| !plans.is_empty()).await.ok()?;
            // Without an origin there is nothing to read, and no position to stand at.
            self.origins.wait_for(|origins| !origins.is_empty()).await.ok()?;
            Some(())
        });
        if !matches!(wanted.await, Some(Some(()))) {
            shared.stopped.cancel();
            return;
        }
        while !shutdown.is_cancelled() {
            let losses = self.losses.as_mut().map(|state| losses_of(&state.borrow_and_update())).unwrap_or_default();
            let plans = Arc::clone(&self.plans.borrow_and_update());
            {
                let mut board = shared.board.lock();
                board.add_origins(&self.origins.borrow_and_update());
                board.begin_without(losses.len());
            }
            let committer = Committer::restore(&shared, Arc::clone(&self.store), &plans, losses.clone()).await;
            shared.started.cancel();
            let stop = shutdown.child_token();
            // Also when this future is dropped.
            let _ends_with_this = stop.clone().drop_guard();
            let mut tasks = JoinSet::new();
            let (plans, origins) = (self.plans.clone(), self.origins.clone());
            tasks.spawn(named("ingest", ingest::run(Arc::clone(&shared), stop.clone())));
            tasks.spawn(named("merges", merger::run(Arc::clone(&shared), stop.clone())));
            tasks.spawn(named("follow", follow::run(Arc::clone(&shared), plans, origins, stop.clone())));
            let commits = Arc::clone(&self.commits);
            tasks.spawn(named("commits", commit::run(Arc::clone(&shared), committer, commits, stop.clone())));
            let mut begin_again = false;
            loop {
                tokio::select! {
                    ended = tasks.join_next() => {
                        let Some(ended) = ended else { break };
                        if let Err(error) = ended {
                            tracing::error!(stream = %shared.config.name, %error, "speed worker stopped");
                            shared.board.lock().report("worker", Some(crate::reasons::stopped(&error.to_string())));
                        }
                        stop.cancel();
                    }
                    () = more_losses(&mut self.losses, &losses), if !stop.is_cancelled() => {
                        tracing::warn!(stream = %shared.config.name, "offsets were lost: beginning again without them");
                        begin_again = true;
                        stop.cancel();
                    }
                }
            }
            if !begin_again {
                break;
            }
        }
        shared.stopped.cancel();
    }
}

fn losses_of(state: &StreamState) -> Losses {
    state.losses.iter().map(|loss| (loss.partition, loss.range)).collect()
}

/// Waits until the register names other losses than `known`; for ever if nobody says any more.
async fn more_losses(state: &mut Option<watch::Receiver<Arc<StreamState>>>, known: &Losses) {
    if let Some(state) = state
        && state.wait_for(|state| losses_of(state) != *known).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// A panic of one part is logged with its name, and ends the others.
async fn named(name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
    if let Err(error) = watershed_shared::task::spawn(name, part).await {
        std::panic::resume_unwind(error.into_panic());
    }
}

impl SpeedHandle {
    pub fn counts(&self) -> Counts {
        self.shared.counts.lock().clone()
    }

    /// Says in every snapshot why the worker does not advance, or takes that back. `by` names what reports it.
    pub fn report(&self, by: &str, reason: Option<Reason>) {
        self.shared.board.lock().report(by, reason);
    }
}

#[async_trait]
impl DeltaService for SpeedHandle {
    fn watch(&self) -> watch::Receiver<Arc<StreamDelta>> {
        self.shared.board.lock().watch()
    }

    async fn seal(&self) -> Result<Cut, SealError> {
        let shared = &self.shared;
        let failed = || SealError { stream: shared.config.name.clone() };
        tokio::select! {
            biased;
            () = shared.stopped.cancelled() => return Err(failed()),
            // A worker that has just been started answers in a moment.
            () = shared.started.cancelled() => {}
        }
        // The runs of all views end at the position at any time: to seal is to keep merges from crossing it.
        let cut = shared.board.lock().seal(Instant::now() + SEAL_HOLD).ok_or_else(failed)?;
        let (done, answer) = oneshot::channel();
        shared.commits.send(done).await.map_err(|_| failed())?;
        match answer.await {
            Ok(true) => {
                abort_point!(process "speed.sealed");
                Ok(cut)
            }
            Ok(false) | Err(_) => Err(failed()),
        }
    }
}
