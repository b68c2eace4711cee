//! What an archiver has read and not yet committed.

use std::sync::Arc;

use watershed_shared::clock::Instant;
use watershed_shared::log;
use watershed_shared::offsets::OffsetVector;
use watershed_shared::record::DecodedBatch;

/// Contiguous batches of each partition, from where the table ends.
#[derive(Debug)]
pub(super) struct Buffer {
    /// Behind the last batch of each partition.
    position: OffsetVector,
    batches: Vec<Arc<DecodedBatch>>,
    bytes: u64,
    since: Option<Instant>,
}

impl Buffer {
    pub(super) fn new(position: OffsetVector) -> Self {
        Self { position, batches: Vec::new(), bytes: 0, since: None }
    }

    /// An empty one that goes on where this one ends.
    pub(super) fn behind(&self) -> Self {
        Self::new(self.position.clone())
    }

    /// Adds the next batch of its partition.
    ///
    /// # Errors
    /// If it is not the next one.
    pub(super) fn push(&mut self, batch: Arc<DecodedBatch>, now: Instant) -> log::Result<()> {
        let range = batch.range;
        if let Some(expected) = self.position.get(batch.partition).filter(|expected| *expected != range.start) {
            return Err(log::Error::OffsetBackwards {
                topic: "(decoded batches)".to_owned(),
                partition: batch.partition,
                expected,
                found: range.start,
            });
        }
        self.position.set(batch.partition, range.end);
        if range.is_empty() {
            return Ok(());
        }
        self.bytes += batch.memory_size() as u64;
        self.since.get_or_insert(now);
        self.batches.push(batch);
        Ok(())
    }

    pub(super) fn batches(&self) -> &[Arc<DecodedBatch>] {
        &self.batches
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// In memory.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When the first batch came.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Whether with these batches, and not without them, all below `wanted` is archived.
    pub(super) fn completes(&self, wanted: &OffsetVector) -> bool {
        let open = |batch: &Arc<DecodedBatch>| wanted.is_past(batch.partition, batch.range.start);
        self.position.covers(wanted) && self.batches.iter().any(open)
    }
}
