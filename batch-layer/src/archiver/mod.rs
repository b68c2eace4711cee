//! The archiver: takes a stream's decoded batches to the master dataset.
//!
//! The table alone says where it goes on, so it has nothing to remember. Whatever goes wrong, it drops what it holds
//! and begins again from the table; what it drops is still in the log.

mod buffer;
mod losses;
mod source;

#[cfg(test)]
mod tests;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use watershed_shared::clock::{self, Instant};
use watershed_shared::config::ArchiveConfig;
use watershed_shared::log;
use watershed_shared::master::{self, AppendOutcome, Commit, MasterDataset, MasterSnapshot};
use watershed_shared::offsets::{Offset, OffsetRange, OffsetVector, PartitionId};
use watershed_shared::record::DecodedBatch;

use buffer::Buffer;
pub use losses::{Losses, LossesError};
pub use source::{Reader, Source};
pub use watershed_shared::archive::ArchiverState as State;

/// How often and how much an archiver commits.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What was read is committed after this at the latest.
    pub commit_interval: Duration,
    /// A commit also happens when this much has been read. It is counted decoded, so files come out smaller; compaction
    /// makes them large. At most twice as much is in memory.
    pub target_file_size_bytes: u64,
    /// The first wait after a failure of the storage; it doubles from one to the next.
    pub first_backoff: Duration,
    pub max_backoff: Duration,
}

impl From<&ArchiveConfig> for Options {
    fn from(config: &ArchiveConfig) -> Self {
        Self {
            commit_interval: config.commit_interval,
            target_file_size_bytes: config.target_file_size_bytes,
            first_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(30),
        }
    }
}

/// Why an archiver has stopped: to try again would be wrong, or of no use before the configuration is another one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is archived is another topic's.
    #[error("the master dataset can't be written. stream=`{stream}`")]
    Master {
        stream: String,
        #[source]
        source: Box<master::Error>,
    },
    /// The log is another one than was archived. Going on would mix the two.
    #[error("the log can't be read. stream=`{stream}`")]
    Log {
        stream: String,
        #[source]
        source: Box<log::Error>,
    },
}

/// Watches and hurries an archiver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    archived_until: watch::Receiver<OffsetVector>,
    state: watch::Receiver<State>,
    flush: watch::Sender<Vec<OffsetVector>>,
}

/// The archiver has ended before it reached the offsets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the archiver has ended. archived until=`{archived_until}`, state=`{state:?}`")]
pub struct HasEnded {
    pub archived_until: OffsetVector,
    pub state: State,
}

impl Handle {
    /// Up to where everything is archived, as this archiver last saw it; it never goes back. A partition of which nothing
    /// is archived stands at its origin if that is recorded, else it is absent.
    pub fn archived_until(&self) -> watch::Receiver<OffsetVector> {
        self.archived_until.clone()
    }

    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Asks for a commit as soon as `cut` has been read, instead of at the end of the commit interval.
    pub fn flush_to(&self, cut: &OffsetVector) {
        let cut = without_beginnings(cut);
        let archived = self.archived_until.borrow().clone();
        self.flush.send_if_modified(|wishes| {
            wishes.retain(|wish| !archived.covers(wish));
            let more = !archived.covers(&cut) && !wishes.contains(&cut);
            if more {
                // Some may never come true.
                if wishes.len() == MAX_WISHES {
                    wishes.remove(0);
                }
                wishes.push(cut);
            }
            more
        });
    }

    /// Hurries the archiver and waits until it has reached `cut`. Cancel safe.
    ///
    /// # Errors
    /// If it ended before.
    pub async fn reach(&self, cut: &OffsetVector) -> Result<(), HasEnded> {
        self.flush_to(cut);
        let cut = &without_beginnings(cut);
        let mut archived_until = self.archived_until.clone();
        let reached = archived_until.wait_for(|archived| archived.covers(cut)).await.is_ok();
        if reached {
            return Ok(());
        }
        Err(HasEnded { archived_until: self.archived_until.borrow().clone(), state: self.state.borrow().clone() })
    }
}

/// Offsets that are waited for at a time; older ones then wait for the end of the commit interval.
const MAX_WISHES: usize = 256;

/// Without the partitions that stand at offset 0: below it there is nothing to archive, so they may stay absent for ever.
fn without_beginnings(cut: &OffsetVector) -> OffsetVector {
    cut.iter().filter(|(_, offset)| *offset > Offset(0)).collect()
}

/// Archives one stream until it is told to end.
#[derive(Debug)]
pub struct Archiver {
    options: Options,
    dataset: MasterDataset,
    source: Arc<dyn Source>,
    losses: Arc<dyn Losses>,
    origins: OffsetVector,
    archived_until: watch::Sender<OffsetVector>,
    state: watch::Sender<State>,
    flush: watch::Receiver<Vec<OffsetVector>>,
    /// What failed last and has not succeeded since.
    failed: Option<Step>,
}

/// What an archiver does with the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It reads the table: a success says nothing about the others.
    Table,
    Log,
    Append,
}

/// After this long without an error a log from which nothing comes counts as readable again.
const PROBATION: Duration = Duration::from_secs(2);

/// How a turn of archiving ended.
enum Turn {
    Shutdown,
    /// Another archiver has committed what this one was about to.
    Overtaken,
    /// It is shown, and tried again.
    Failed,
    /// The log begins past what is archived.
    Lost {
        partition: PartitionId,
        low: Offset,
    },
}

impl Archiver {
    /// `origins`: where each partition began when the stream was first seen, as far as that is recorded. A partition of
    /// which nothing is archived is read from there.
    pub fn new(
        options: Options,
        dataset: MasterDataset,
        source: Arc<dyn Source>,
        losses: Arc<dyn Losses>,
        origins: OffsetVector,
    ) -> (Self, Handle) {
        let (archived_until, archived_until_receiver) = watch::channel(OffsetVector::new());
        let (state, state_receiver) = watch::channel(State::Starting);
        let (flush_sender, flush) = watch::channel(Vec::new());
        let handle = Handle { archived_until: archived_until_receiver, state: state_receiver, flush: flush_sender };
        (Self { options, dataset, source, losses, origins, archived_until, state, flush, failed: None }, handle)
    }

    /// Archives until `shutdown`; then commits once more what it holds, unless that takes long.
    ///
    /// Failures are waited out, for ever, with a growing pause; [`Handle::state`] shows them. What is not archived stays
    /// in the log; what the log drops all the same is recorded as lost, and only then passed.
    ///
    /// # Errors
    /// What must not be tried again: [`Error`]. The state then is [`State::Stopped`].
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        let result = self.archive(&shutdown).await;
        self.state.send_replace(match &result {
            Ok(()) => State::Ended,
            Err(error) => {
                let error = chain(error);
                tracing::error!(stream = self.dataset.stream(), error, "archiving has stopped");
                State::Stopped { at: clock::now(), error }
            }
        });
        result
    }

    async fn archive(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        let mut backoff = self.options.first_backoff;
        loop {
            let before = self.archived_until.borrow().clone();
            let mut turn = self.turn(shutdown).await?;
            if let Turn::Lost { partition, low } = turn {
                turn = match self.pass(partition, low).await? {
                    Some(failed) => failed,
                    None => continue,
                };
            }
            match turn {
                Turn::Shutdown => return Ok(()),
                Turn::Overtaken => {
                    self.state.send_replace(State::Standby);
                    if !self.stand_by(shutdown).await? {
                        return Ok(());
                    }
                }
                Turn::Lost { .. } => unreachable!("what is lost has been passed, or that failed"),
                Turn::Failed => {
                    if *self.archived_until.borrow() != before {
                        backoff = self.options.first_backoff;
                    }
                    if !pause(backoff, shutdown).await {
                        return Ok(());
                    }
                    backoff = (backoff * 2).min(self.options.max_backoff);
                }
            }
        }
    }

    /// Records as lost what lies between the end of what is archived and the log's start, then moves the table past it,
    /// so that it goes on. `None` when that is done.
    async fn pass(&mut self, partition: PartitionId, low: Offset) -> Result<Option<Turn>, Error> {
        let snapshot = match self.dataset.snapshot().await {
            Ok(snapshot) => snapshot,
            Err(error) => return self.master_failed(Step::Table, error).map(Some),
        };
        let archived = snapshot.archived_until().get(partition).or_else(|| self.origins.get(partition));
        let archived = archived.unwrap_or(Offset(0));
        if archived >= low {
            // Another archiver has passed it; what failed here still has to begin anew.
            self.losses.passed();
            clock::sleep(self.options.first_backoff).await;
            return Ok(None);
        }
        if let Err(error) = self.losses.record(partition, archived, low).await {
            return Ok(Some(self.fails(Step::Log, true, format!("cannot record lost offsets: {}", chain(&*error)))));
        }
        let range = OffsetRange::new(archived, low);
        tracing::error!(
            stream = self.dataset.stream(), %partition, %range,
            "the log dropped offsets before they were archived: recorded as lost"
        );
        let hole = DecodedBatch {
            partition,
            range,
            events: RecordBatch::new_empty(Arc::clone(self.dataset.schema())),
            dead_letters: vec![],
            tombstones: 0,
            ahead: 0,
            event_time_max: None,
            leader_epoch: None,
        };
        match self.dataset.append(&snapshot, &[Arc::new(hole)]).await {
            Ok(AppendOutcome::Committed(commit)) => self.committed(&commit),
            // The next turn sees where it stands.
            Ok(AppendOutcome::Nothing | AppendOutcome::Conflict) => {}
            Err(error) => return self.master_failed(Step::Append, error).map(Some),
        }
        self.losses.passed();
        Ok(None)
    }

    /// Looks on while another archiver moves the table; `false` on shutdown.
    async fn stand_by(&self, shutdown: &CancellationToken) -> Result<bool, Error> {
        loop {
            if !pause(self.options.commit_interval, shutdown).await {
                return Ok(false);
            }
            // A failure is the next turn's to report.
            match self.dataset.snapshot().await {
                Ok(snapshot) if self.advance(snapshot.archived_until()) => {}
                Ok(_) | Err(_) => return Ok(true),
            }
        }
    }

    /// Opens the table and archives from where it ends.
    async fn turn(&mut self, shutdown: &CancellationToken) -> Result<Turn, Error> {
        let snapshot = match self.dataset.snapshot().await {
            Ok(snapshot) => snapshot,
            Err(error) => return self.master_failed(Step::Table, error),
        };
        self.reached(&snapshot);
        // Below its origin a partition has nothing to archive.
        self.advance(&self.origins);
        // What is archived, and the origins of what is not.
        let from = self.origins.iter().filter(|(p, _)| snapshot.archived_until().get(*p).is_none());
        let from: OffsetVector = from.chain(snapshot.archived_until().iter()).collect();
        let mut reader = self.source.open(from.clone());
        let mut snapshot = snapshot;
        let mut buffer = Buffer::new(from);
        loop {
            match self.fill(&mut buffer, reader.as_mut(), shutdown).await {
                Filled::Due => {}
                Filled::Shutdown => {
                    self.last_commit(&snapshot, buffer).await;
                    return Ok(Turn::Shutdown);
                }
                Filled::Failed(error) => return self.read_failed(error, &snapshot, buffer).await,
            }
            // While one buffer is written and committed, the next one fills.
            let mut next = buffer.behind();
            let mut failed = None;
            let outcome = {
                let mut append = pin!(self.dataset.append(&snapshot, buffer.batches()));
                loop {
                    let room = failed.is_none() && next.bytes() < self.options.target_file_size_bytes;
                    tokio::select! {
                        outcome = &mut append => break outcome,
                        read = reader.next(), if room => match read.and_then(|batch| next.push(batch, Instant::now())) {
                            Ok(()) => {}
                            Err(error) => failed = Some(error),
                        },
                    }
                }
            };
            match outcome {
                Ok(AppendOutcome::Committed(commit)) => self.committed(&commit),
                Ok(AppendOutcome::Nothing) => {}
                Ok(AppendOutcome::Conflict) => return Ok(Turn::Overtaken),
                Err(error) => return self.master_failed(Step::Append, error),
            }
            snapshot = match self.dataset.snapshot().await {
                Ok(snapshot) => snapshot,
                Err(error) => return self.master_failed(Step::Table, error),
            };
            buffer = next;
            if let Some(error) = failed {
                return self.read_failed(error, &snapshot, buffer).await;
            }
        }
    }

    /// The log fails; what was read before it did is committed, since the log may not have it any more.
    async fn read_failed(
        &mut self,
        error: log::Error,
        snapshot: &MasterSnapshot,
        buffer: Buffer,
    ) -> Result<Turn, Error> {
        if !matches!(error, log::Error::Archived { .. }) {
            self.last_commit(snapshot, buffer).await;
        }
        self.log_failed(error)
    }

    /// Reads until a commit is due.
    async fn fill(&mut self, buffer: &mut Buffer, reader: &mut dyn Reader, shutdown: &CancellationToken) -> Filled {
        loop {
            let asked = self.flush.borrow_and_update().iter().any(|wish| buffer.completes(wish));
            let deadline = buffer.since().map(|since| since + self.options.commit_interval);
            if buffer.bytes() >= self.options.target_file_size_bytes
                || deadline.is_some_and(|deadline| deadline <= Instant::now())
                || asked
            {
                return Filled::Due;
            }
            tokio::select! {
                () = shutdown.cancelled() => return Filled::Shutdown,
                // Handles may all be gone; then nobody asks.
                Ok(()) = self.flush.changed() => {}
                read = reader.next() => {
                    if let Err(error) = read.and_then(|batch| buffer.push(batch, Instant::now())) {
                        return Filled::Failed(error);
                    }
                    self.read();
                }
                () = clock::sleep(PROBATION), if self.failed == Some(Step::Log) => self.read(),
                () = until(deadline) => {}
            }
        }
    }

    /// One attempt at what is held when the end comes. If it does not succeed it is read again by whoever goes on.
    async fn last_commit(&mut self, snapshot: &MasterSnapshot, buffer: Buffer) {
        const GRACE: Duration = Duration::from_secs(10);
        if !buffer.is_empty() {
            match tokio::time::timeout(GRACE, self.dataset.append(snapshot, buffer.batches())).await {
                Ok(Ok(AppendOutcome::Committed(commit))) => self.committed(&commit),
                Ok(Ok(AppendOutcome::Nothing | AppendOutcome::Conflict)) => {}
                Ok(Err(error)) => {
                    let error = chain(&error);
                    tracing::info!(stream = self.dataset.stream(), error, "ended without a last commit");
                }
                Err(_) => tracing::info!(stream = self.dataset.stream(), "ended without a last commit: no time"),
            }
        }
    }

    fn committed(&mut self, commit: &Commit) {
        let Commit { version, files, events, dead_letters, .. } = commit;
        tracing::debug!(stream = self.dataset.stream(), version, files, events, dead_letters, "archived");
        self.advance(&commit.archived_until);
        self.healthy();
    }

    fn reached(&mut self, snapshot: &MasterSnapshot) {
        let moved = self.advance(snapshot.archived_until());
        if moved || self.failed.is_none_or(|failed| failed == Step::Table) {
            self.healthy();
        }
    }

    /// Something came from the log, or nothing for so long that it counts as readable.
    fn read(&mut self) {
        if self.failed == Some(Step::Log) {
            self.healthy();
        }
    }

    /// Whether anything is new.
    fn advance(&self, archived_until: &OffsetVector) -> bool {
        self.archived_until.send_if_modified(|known| {
            let joined = known.join(archived_until);
            let moved = joined != *known;
            *known = joined;
            moved
        })
    }

    fn healthy(&mut self) {
        self.failed = None;
        self.state.send_if_modified(|state| {
            if let State::Retrying { since, .. } = state {
                tracing::info!(stream = self.dataset.stream(), %since, "archiving goes on");
            }
            let changed = *state != State::Healthy;
            *state = State::Healthy;
            changed
        });
    }

    /// Shows a failure, and logs it once. `act`: it hardly goes away before somebody has acted.
    fn fails(&mut self, step: Step, act: bool, error: String) -> Turn {
        self.failed = Some(step);
        let stream = self.dataset.stream();
        self.state.send_modify(|state| match state {
            State::Retrying { error: known, .. } if *known == error => {}
            _ => {
                match act {
                    true => tracing::error!(stream, error, "archiving fails and is tried again: somebody must act"),
                    false => tracing::warn!(stream, error, "archiving fails, trying again"),
                }
                let since = match state {
                    State::Retrying { since, .. } => *since,
                    _ => clock::now(),
                };
                *state = State::Retrying { since, error };
            }
        });
        Turn::Failed
    }

    fn master_failed(&mut self, step: Step, source: master::Error) -> Result<Turn, Error> {
        if source.is_final() {
            return Err(Error::Master { stream: self.dataset.stream().to_owned(), source: Box::new(source) });
        }
        Ok(self.fails(step, !source.is_transient(), chain(&source)))
    }

    fn log_failed(&mut self, source: log::Error) -> Result<Turn, Error> {
        match source {
            log::Error::Archived { .. } => Ok(Turn::Overtaken),
            log::Error::OffsetLost { partition, wanted, low, .. } if wanted < low => Ok(Turn::Lost { partition, low }),
            // Another log than the archived one, or one that was cut off at its end: to go on would mix the two.
            log::Error::TopicReplaced { .. }
            | log::Error::LogTruncated { .. }
            | log::Error::OffsetLost { .. }
            | log::Error::OffsetBackwards { .. } => {
                Err(Error::Log { stream: self.dataset.stream().to_owned(), source: Box::new(source) })
            }
            // The feed was ended to be renewed.
            source => {
                let act = !source.is_transient() && !matches!(source, log::Error::Shutdown);
                Ok(self.fails(Step::Log, act, chain(&source)))
            }
        }
    }
}

enum Filled {
    Due,
    Shutdown,
    Failed(log::Error),
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits; `false` if the end came first.
async fn pause(duration: Duration, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        () = shutdown.cancelled() => false,
        () = clock::sleep(duration) => true,
    }
}

/// An error with all its sources, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
