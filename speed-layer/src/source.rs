//! Where the events of a stream come from, as the speed layer sees it.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use watershed_shared::delta::Maximum;
use watershed_shared::offsets::{Offset, OffsetVector, PartitionId};
use watershed_shared::record::DecodedBatch;

/// Why events cannot be read on. Everything is tried again, from the position; the kind decides what is reported.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Neither the log nor the master dataset has these offsets. The archiver records the loss; then the master
    /// dataset has passed them.
    #[error("the log no longer has these offsets. partition=`{partition}`, wanted=`{wanted}`, lowest=`{lowest}`")]
    OffsetsLost { partition: PartitionId, wanted: Offset, lowest: Offset },
    /// The topic is another one than the stream was declared with.
    #[error("the topic was replaced: declare it as a new stream. {0}")]
    TopicReplaced(String),
    /// The cluster does not let the user read. It is tried again: somebody may grant it.
    #[error("{0}")]
    Denied(String),
    /// What the records were written with is not to be had now: the schema registry is away.
    #[error("{0}")]
    Schemas(String),
    #[error("{0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The events of one stream from any position: those that are archived from the master dataset, the others from the log.
///
/// # Contract
/// A reader that is opened at `from` delivers each partition's offsets from there on, contiguous and in order; the
/// partitions interleave as they like. What lies below the delivered range of a partition is never delivered, apart
/// from redeliveries, which the reader's user cuts off.
#[async_trait]
pub trait EventSource: Send + Sync + fmt::Debug + 'static {
    /// `from` names every partition that has an origin.
    ///
    /// # Errors
    /// When the events at `from` cannot be had now.
    async fn open(&self, from: &OffsetVector) -> Result<Box<dyn EventReader>, SourceError>;

    /// The log's last stable offsets as last seen.
    fn log_end(&self) -> watch::Receiver<OffsetVector>;

    /// The running maximum of event time in front of `offset`; unknown where not all of that is archived.
    ///
    /// # Errors
    /// When it cannot be had now.
    async fn event_time_max(&self, partition: PartitionId, offset: Offset) -> Result<Maximum, SourceError>;
}

/// A position in the events of a stream that moves on with each batch.
#[async_trait]
pub trait EventReader: Send {
    /// Waits for the next batch. Cancel safe.
    ///
    /// # Errors
    /// The reader is of no use afterwards: open another one.
    async fn next(&mut self) -> Result<Arc<DecodedBatch>, SourceError>;
}
