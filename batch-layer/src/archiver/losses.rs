//! Where an archiver records what the log dropped before it was archived.

use std::fmt;

use async_trait::async_trait;
use watershed_shared::offsets::{Offset, PartitionId};

/// Why a loss is not recorded yet.
pub type LossesError = Box<dyn std::error::Error + Send + Sync>;

/// Records losses, so that the archive passes nothing in silence.
///
/// # Contract
/// - On return of [`record`](Self::record) the loss is durable, every answer of this process says so, and no reader of
///   the stream is given any more what was read of those offsets before.
/// - To record the same loss again, or a part of it, changes nothing.
#[async_trait]
pub trait Losses: fmt::Debug + Send + Sync {
    /// The log of `partition`, archived until `archived`, begins at `low`: what lies between is lost.
    ///
    /// # Errors
    /// If it may not be recorded. The archive then must not pass it.
    async fn record(&self, partition: PartitionId, archived: Offset, low: Offset) -> Result<(), LossesError>;

    /// The archive has passed what was recorded: the stream can be read on.
    fn passed(&self);
}
