//! One reader of a stream: from the window as long as it keeps up, else from a fetch of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::Shared;
use super::side::SideReader;
use super::window::{ReaderId, Step};
use crate::log::error::{Error, Result};
use crate::log::raw::settled_marks;
use crate::offsets::{Offset, OffsetVector, PartitionId};
use crate::record::DecodedBatch;

/// Reads a stream's decoded batches from a position on, each partition contiguously. Which path a batch takes cannot be
/// told from its content.
///
/// Many readers share one fetch; none waits for another. Dropping the last one ends the fetch.
#[derive(Debug)]
pub struct FeedReader {
    shared: Arc<Shared>,
    id: ReaderId,
    /// The next offset of each partition; partitions are added as they are seen.
    position: OffsetVector,
    /// The running maximum at `position`, where a batch has told it.
    maxima: BTreeMap<PartitionId, Option<i64>>,
    path: Path,
    changes: watch::Receiver<u64>,
    failed: Option<Error>,
}

#[derive(Debug)]
enum Path {
    /// Has not read anything yet.
    New,
    Window,
    Side(SideReader),
}

impl FeedReader {
    pub(super) fn new(shared: Arc<Shared>, from: OffsetVector) -> Self {
        let (id, changes) = shared.register();
        Self { shared, id, position: from, maxima: BTreeMap::new(), path: Path::New, changes, failed: None }
    }

    /// The next offset of each partition that it will return.
    pub fn position(&self) -> &OffsetVector {
        &self.position
    }

    /// Whether it reads for itself, since it fell behind the shared window.
    pub fn is_detached(&self) -> bool {
        matches!(self.path, Path::Side(_))
    }

    /// The next batch of any partition; it begins where the one before it ended. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Archived`] if the position lies below the end of the master dataset; else what ended the fetch. Each
    /// again at every call.
    pub async fn next(&mut self) -> Result<Arc<DecodedBatch>> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let shared = Arc::clone(&self.shared);
        let next = tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => Err(Error::Shutdown),
            next = self.read() => next,
        };
        match next {
            Ok(batch) => {
                // Nothing is awaited from here on, so a batch that was taken is always returned.
                let expected = self.position.get(batch.partition);
                if expected.is_some_and(|o| o != batch.range.start) {
                    let error = Error::client("read the stream", format!("expected {expected:?}, got {}", batch.range));
                    self.failed = Some(error.clone());
                    return Err(error);
                }
                self.position.set(batch.partition, batch.range.end);
                self.maxima.insert(batch.partition, batch.event_time_max);
                Ok(batch)
            }
            Err(error) => {
                if let Error::LogTruncated { .. } = error {
                    // Nobody reads on: the next offsets are not those of the events that somebody waits for.
                    self.shared.fail(&error);
                }
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    async fn read(&mut self) -> Result<Arc<DecodedBatch>> {
        loop {
            self.changes.borrow_and_update();
            match &mut self.path {
                Path::New => {
                    let joined = self.shared.join(self.id, &mut self.position)?;
                    match joined {
                        None => self.changed().await?,
                        Some(true) => {
                            self.check_ahead().await?;
                            self.path = Path::Window;
                        }
                        Some(false) => self.leave(),
                    }
                }
                Path::Window => {
                    let (step, failed) = self.shared.step(self.id, &mut self.position)?;
                    match step {
                        Step::Deliver(batch) => return Ok(batch),
                        Step::Wait => match failed {
                            Some(error) => return Err(error),
                            None => self.changed().await?,
                        },
                        Step::FellOut => self.leave(),
                    }
                }
                Path::Side(side) => {
                    if self.shared.rejoin(self.id, &mut self.position)? {
                        self.path = Path::Window;
                        continue;
                    }
                    return match side.batches.recv().await {
                        Some(batch) => batch.map(Arc::new),
                        None => Err(Error::client("read the stream", "the reader's own fetch has ended")),
                    };
                }
            }
        }
    }

    fn leave(&mut self) {
        tracing::debug!(stream = self.shared.config.name, position = %self.position, "a reader reads for itself");
        self.path = Path::Side(SideReader::spawn(Arc::clone(&self.shared), self.position.clone(), self.maxima.clone()));
    }

    async fn changed(&mut self) -> Result<()> {
        self.changes.changed().await.map_err(|_| Error::Shutdown)
    }

    /// A position past the log's end would wait for offsets that belong to other events.
    async fn check_ahead(&self) -> Result<()> {
        if !self.shared.is_ahead(&self.position) {
            return Ok(());
        }
        let topic = &self.shared.config.topic;
        let marks = match settled_marks(&self.shared.client, topic, &self.position, &self.shared.raw).await {
            Ok(marks) => marks,
            Err(e) => {
                self.shared.detach(self.id);
                return Err(e);
            }
        };
        for (partition, wanted) in self.position.iter() {
            let (low, high) = marks.get(&partition).copied().unwrap_or((Offset(0), Offset(0)));
            if wanted > high && marks.contains_key(&partition) {
                self.shared.detach(self.id);
                return Err(Error::LogTruncated { topic: topic.clone(), partition, end: high, position: wanted });
            }
            if wanted > high {
                self.shared.detach(self.id);
                return Err(Error::OffsetLost { topic: topic.clone(), partition, wanted, low, high });
            }
        }
        Ok(())
    }
}

impl Drop for FeedReader {
    fn drop(&mut self) {
        self.shared.unregister(self.id);
    }
}
