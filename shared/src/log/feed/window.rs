//! The window of decoded batches that the readers of a stream share. It decides; it waits for nobody and reads nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::log::error::Error;
use crate::offsets::{Offset, OffsetVector, PartitionId};
use crate::record::DecodedBatch;

/// Names an attached reader.
pub(super) type ReaderId = u64;

/// The newest batches of a stream, in the order in which they came, and where each attached reader stands in it.
///
/// - Of each partition it holds `[oldest, next)` without a hole.
/// - It holds at most `limit` bytes, and one batch; what the fastest reader has not read yet is never evicted.
/// - Only a quarter of `limit` is read ahead of the fastest reader, so that the others have room to be slower.
#[derive(Debug)]
pub(super) struct Window {
    limit: usize,
    entries: VecDeque<Entry>,
    /// The sequence number of `entries[0]`.
    first: u64,
    bytes: usize,
    partitions: BTreeMap<PartitionId, Fetched>,
    /// The sequence number that each attached reader looks at next.
    cursors: BTreeMap<ReaderId, u64>,
}

#[derive(Debug)]
struct Entry {
    batch: Arc<DecodedBatch>,
    bytes: usize,
}

/// How far a partition has been fetched.
#[derive(Debug, Clone, Copy)]
struct Fetched {
    start: Start,
    oldest: Offset,
    next: Offset,
}

/// Where the fetch of a partition began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) offset: Offset,
    /// The running maximum in front of it, in microseconds.
    pub(super) event_time_max: Option<i64>,
    /// Nothing of the partition lies before: a position that does not name it stands here.
    pub(super) is_origin: bool,
}

/// What a reader does next.
#[derive(Debug)]
pub(super) enum Step {
    Deliver(Arc<DecodedBatch>),
    /// Nothing is new.
    Wait,
    /// What it needs has left the window: it is detached and reads for itself.
    FellOut,
}

impl Window {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            entries: VecDeque::new(),
            first: 0,
            bytes: 0,
            partitions: BTreeMap::new(),
            cursors: BTreeMap::new(),
        }
    }

    /// Forgets everything and begins anew.
    pub(super) fn begin(&mut self, starts: impl IntoIterator<Item = (PartitionId, Start)>) {
        self.first += self.entries.len() as u64;
        self.entries.clear();
        self.bytes = 0;
        self.cursors.clear();
        let fetched = |s: Start| Fetched { start: s, oldest: s.offset, next: s.offset };
        self.partitions = starts.into_iter().map(|(p, s)| (p, fetched(s))).collect();
    }

    /// Whether another batch is wanted: a reader is attached, and the fastest has read nearly everything.
    pub(super) fn has_room(&self) -> bool {
        let Some(fastest) = self.fastest() else { return false };
        let unread: usize = self.entries.iter().skip(self.index(fastest)).map(|e| e.bytes).sum();
        unread <= self.limit / 4
    }

    fn fastest(&self) -> Option<u64> {
        self.cursors.values().copied().max()
    }

    fn index(&self, sequence: u64) -> usize {
        usize::try_from(sequence.saturating_sub(self.first)).unwrap_or(usize::MAX)
    }

    /// Adds the next batch of its partition; a partition that is new begins with it.
    pub(super) fn push(&mut self, batch: DecodedBatch) {
        let start = Start { offset: batch.range.start, event_time_max: None, is_origin: true };
        let fetched = self.partitions.entry(batch.partition).or_insert(Fetched {
            start,
            oldest: start.offset,
            next: start.offset,
        });
        assert_eq!(fetched.next, batch.range.start, "the batches of a partition are contiguous");
        fetched.next = batch.range.end;
        // Arrow's own bookkeeping outweighs the values when a batch has but a few rows.
        let bytes = batch.memory_size() + batch.events.num_columns() * 256;
        self.bytes += bytes;
        self.entries.push_back(Entry { batch: Arc::new(batch), bytes });
        let needed_from = self.fastest().unwrap_or(u64::MAX);
        while self.bytes > self.limit && self.first < needed_from {
            let Some(evicted) = self.entries.pop_front() else { break };
            self.first += 1;
            self.bytes -= evicted.bytes;
            if let Some(fetched) = self.partitions.get_mut(&evicted.batch.partition) {
                fetched.oldest = evicted.batch.range.end;
            }
        }
    }

    /// Gives `position` a place in every partition of the window that it does not name.
    ///
    /// # Errors
    /// [`Error::Archived`] if such a partition has events before the window's beginning.
    pub(super) fn adopt(&self, position: &mut OffsetVector) -> Result<(), Error> {
        for (partition, fetched) in &self.partitions {
            if position.get(*partition).is_some() {
                continue;
            }
            if !fetched.start.is_origin {
                let archived_until = fetched.start.offset;
                return Err(Error::Archived { partition: *partition, wanted: None, archived_until });
            }
            position.set(*partition, fetched.start.offset);
        }
        Ok(())
    }

    /// Attaches `reader` at `position` if the window has everything from there on.
    ///
    /// # Errors
    /// As [`Window::adopt`].
    pub(super) fn attach(&mut self, reader: ReaderId, position: &mut OffsetVector) -> Result<bool, Error> {
        self.adopt(position)?;
        let holds = |(p, f): (&PartitionId, &Fetched)| position.get(*p).is_some_and(|o| o >= f.oldest);
        let attached = self.partitions.iter().all(holds);
        if attached {
            self.cursors.insert(reader, self.first);
        }
        Ok(attached)
    }

    /// Attaches a reader that had fallen out, if it would not fall out again at once: what it has yet to read must fill
    /// no more than half of the window.
    ///
    /// # Errors
    /// As [`Window::adopt`].
    pub(super) fn rejoin(&mut self, reader: ReaderId, position: &mut OffsetVector) -> Result<bool, Error> {
        self.adopt(position)?;
        let mut ahead = self.bytes;
        for entry in &self.entries {
            if ahead <= self.limit / 2 {
                break;
            }
            let range = entry.batch.range;
            if position.get(entry.batch.partition).is_none_or(|o| o < range.end) {
                return Ok(false);
            }
            ahead -= entry.bytes;
        }
        self.attach(reader, position)
    }

    pub(super) fn detach(&mut self, reader: ReaderId) {
        self.cursors.remove(&reader);
    }

    /// Where the fetch of the partition began.
    pub(super) fn start(&self, partition: PartitionId) -> Option<Start> {
        self.partitions.get(&partition).map(|f| f.start)
    }

    /// How far the partition has been fetched.
    pub(super) fn next(&self, partition: PartitionId) -> Option<Offset> {
        self.partitions.get(&partition).map(|f| f.next)
    }

    /// What `reader`, which stands at `position`, does next. What it has read already is passed over.
    ///
    /// # Errors
    /// As [`Window::adopt`].
    pub(super) fn step(&mut self, reader: ReaderId, position: &mut OffsetVector) -> Result<Step, Error> {
        let Some(mut cursor) = self.cursors.get(&reader).copied() else { return Ok(Step::FellOut) };
        if cursor < self.first {
            self.detach(reader);
            return Ok(Step::FellOut);
        }
        while let Some(entry) = self.entries.get(self.index(cursor)) {
            let batch = &entry.batch;
            if position.get(batch.partition).is_none() {
                self.adopt(position)?;
            }
            let at = position.get(batch.partition).unwrap_or(batch.range.start);
            if at < batch.range.start {
                self.detach(reader);
                return Ok(Step::FellOut);
            }
            cursor += 1;
            if at < batch.range.end {
                let batch = match at == batch.range.start {
                    true => Arc::clone(batch),
                    false => Arc::new(DecodedBatch::clone(batch).split_at(at).1),
                };
                self.cursors.insert(reader, cursor);
                return Ok(Step::Deliver(batch));
            }
        }
        self.cursors.insert(reader, cursor);
        Ok(Step::Wait)
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
