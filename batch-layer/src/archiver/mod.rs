//! The archiver: takes a stream's decoded batches to the master dataset.
//!
//! The table alone says where it goes on, so it has nothing to remember. Whatever goes wrong, it drops what it holds
//! and begins again from the table; what it drops is still in the log.

mod buffer;
mod source;

#[cfg(test)]
mod tests;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use watershed_shared::clock::{self, Instant};
use watershed_shared::config::ArchiveConfig;
use watershed_shared::log;
use watershed_shared::master::{self, AppendOutcome, Commit, MasterDataset, MasterSnapshot};
use watershed_shared::offsets::{Offset, OffsetVector, PartitionId};

use buffer::Buffer;
pub use source::{Reader, Source};

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

/// How an archiver does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It has not read from the table yet.
    Starting,
    Healthy,
    /// Another archiver of the same stream commits; this one looks on and takes over when that one stops.
    Standby,
    /// It tries again by itself, for ever. Nothing is lost: the log keeps what is not archived.
    Failing {
        since: DateTime<Utc>,
        error: String,
    },
    /// It does not go on until somebody has acted.
    Stopped {
        at: DateTime<Utc>,
        error: String,
    },
    /// It was told to end.
    Ended,
}

/// Why an archiver has stopped: it takes somebody to act.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Records were dropped by the log before they were archived.
    #[error(
        "the log dropped records before they were archived; nothing is passed over in silence, so archiving has stopped. \
         stream=`{stream}`, partition=`{partition}`, archived until=`{archived_until}`, log begins at=`{low}`"
    )]
    Lost { stream: String, partition: PartitionId, archived_until: Offset, low: Offset },
    #[error("the master dataset can't be written. stream=`{stream}`")]
    Master {
        stream: String,
        #[source]
        source: Box<master::Error>,
    },
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
    flush: watch::Sender<OffsetVector>,
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
        self.flush.send_if_modified(|wanted| {
            let joined = wanted.join(&cut);
            let more = joined != *wanted;
            *wanted = joined;
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
    origins: OffsetVector,
    archived_until: watch::Sender<OffsetVector>,
    state: watch::Sender<State>,
    flush: watch::Receiver<OffsetVector>,
    /// The last append failed, so that reading the table says nothing about writing it.
    append_failed: bool,
}

/// How a turn of archiving ended.
enum Turn {
    Shutdown,
    /// Another archiver has committed what this one was about to.
    Overtaken,
    /// May go away by itself.
    Failed(String),
}

impl Archiver {
    /// `origins`: where each partition began when the stream was first seen, as far as that is recorded. A partition of
    /// which nothing is archived is read from there.
    pub fn new(
        options: Options,
        dataset: MasterDataset,
        source: Arc<dyn Source>,
        origins: OffsetVector,
    ) -> (Self, Handle) {
        let (archived_until, archived_until_receiver) = watch::channel(OffsetVector::new());
        let (state, state_receiver) = watch::channel(State::Starting);
        let (flush_sender, flush) = watch::channel(OffsetVector::new());
        let handle = Handle { archived_until: archived_until_receiver, state: state_receiver, flush: flush_sender };
        (Self { options, dataset, source, origins, archived_until, state, flush, append_failed: false }, handle)
    }

    /// Archives until `shutdown`; then commits once more what it holds, unless that takes long.
    ///
    /// Failures of the storage are waited out, for ever; [`Handle::state`] shows them. What is not archived stays in
    /// the log.
    ///
    /// # Errors
    /// What somebody must act upon: [`Error`]. The state then is [`State::Stopped`].
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
            match self.turn(shutdown).await? {
                Turn::Shutdown => return Ok(()),
                Turn::Overtaken => {
                    self.state.send_replace(State::Standby);
                    if !self.stand_by(shutdown).await? {
                        return Ok(());
                    }
                }
                Turn::Failed(error) => {
                    if *self.archived_until.borrow() != before {
                        backoff = self.options.first_backoff;
                    }
                    self.fails(error);
                    if !pause(backoff, shutdown).await {
                        return Ok(());
                    }
                    backoff = (backoff * 2).min(self.options.max_backoff);
                }
            }
        }
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
            Err(error) => return self.master_failed(error),
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
                Err(error) => {
                    self.append_failed = true;
                    return self.master_failed(error);
                }
            }
            snapshot = match self.dataset.snapshot().await {
                Ok(snapshot) => snapshot,
                Err(error) => return self.master_failed(error),
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
            let wanted = self.flush.borrow_and_update().clone();
            let deadline = buffer.since().map(|since| since + self.options.commit_interval);
            if buffer.bytes() >= self.options.target_file_size_bytes
                || deadline.is_some_and(|deadline| deadline <= Instant::now())
                || buffer.completes(&wanted)
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
                }
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
        self.append_failed = false;
        self.advance(&commit.archived_until);
        self.healthy();
    }

    fn reached(&mut self, snapshot: &MasterSnapshot) {
        let moved = self.advance(snapshot.archived_until());
        self.append_failed &= !moved;
        if !self.append_failed {
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

    fn healthy(&self) {
        self.state.send_if_modified(|state| {
            if let State::Failing { since, .. } = state {
                tracing::info!(stream = self.dataset.stream(), %since, "archiving goes on");
            }
            let changed = *state != State::Healthy;
            *state = State::Healthy;
            changed
        });
    }

    fn fails(&self, error: String) {
        self.state.send_modify(|state| match state {
            State::Failing { error: known, .. } => *known = error,
            _ => {
                tracing::warn!(stream = self.dataset.stream(), error, "archiving fails, trying again");
                *state = State::Failing { since: clock::now(), error };
            }
        });
    }

    fn master_failed(&self, source: master::Error) -> Result<Turn, Error> {
        if source.is_transient() {
            return Ok(Turn::Failed(chain(&source)));
        }
        Err(Error::Master { stream: self.dataset.stream().to_owned(), source: Box::new(source) })
    }

    fn log_failed(&self, source: log::Error) -> Result<Turn, Error> {
        let stream = self.dataset.stream().to_owned();
        match source {
            log::Error::Archived { .. } => Ok(Turn::Overtaken),
            log::Error::OffsetLost { partition, wanted, low, .. } if wanted < low => {
                Err(Error::Lost { stream, partition, archived_until: wanted, low })
            }
            source if source.is_transient() => Ok(Turn::Failed(chain(&source))),
            source => Err(Error::Log { stream, source: Box::new(source) }),
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
