//! Where an archiver's batches come from.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use watershed_shared::log;
use watershed_shared::offsets::OffsetVector;
use watershed_shared::record::DecodedBatch;

/// Opens readers of a stream's decoded batches.
pub trait Source: fmt::Debug + Send + Sync {
    /// A reader of everything at or past `from`; a partition that `from` does not name is read from its origin.
    fn open(&self, from: OffsetVector) -> Box<dyn Reader>;
}

/// # Contract
/// - The batches of a partition are contiguous, the first one begins at the reader's position.
/// - `next` is cancel safe: a dropped call has taken nothing.
/// - After an error that is not transient every further call fails.
#[async_trait]
pub trait Reader: Send {
    /// The next batch of any partition, as soon as there is one.
    async fn next(&mut self) -> log::Result<Arc<DecodedBatch>>;
}

impl Source for log::StreamFeed {
    fn open(&self, from: OffsetVector) -> Box<dyn Reader> {
        Box::new(self.reader(from))
    }
}

#[async_trait]
impl Reader for log::FeedReader {
    async fn next(&mut self) -> log::Result<Arc<DecodedBatch>> {
        log::FeedReader::next(self).await
    }
}
