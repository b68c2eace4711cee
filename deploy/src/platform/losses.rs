//! Losses as the archiver finds them, in the stream's register.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use watershed_batch_layer::archiver::{self, LossesError};
use watershed_shared::catalog::{Loss, Rejected, StreamEvent, StreamState};
use watershed_shared::offsets::{Offset, PartitionId};
use watershed_shared::register::Register;
use watershed_shared::{abort_point, clock};

use super::feeds::Feeds;

/// Records losses in a stream's register.
#[derive(Debug)]
pub(super) struct RecordedLosses {
    pub(super) register: Register<StreamState>,
    /// The state of the register's head.
    pub(super) state: watch::Receiver<Arc<StreamState>>,
    pub(super) feeds: Arc<Feeds>,
}

#[async_trait]
impl archiver::Losses for RecordedLosses {
    async fn record(&self, partition: PartitionId, archived: Offset, low: Offset) -> Result<(), LossesError> {
        self.register
            .update(|state: &StreamState| {
                let range = state.loss(partition, archived, low);
                let loss = range.map(|range| Loss { partition, range, found_at: clock::now(), accepted: false });
                Ok::<_, Rejected>(loss.map(|loss| StreamEvent::Lost { loss }))
            })
            .await?;
        abort_point!("loss recorded");
        // SUBTLE: the archive passes the loss only when whoever answers has heard of it, so no answer lacks the events
        // without saying so. And what the present feed holds was decoded with their event times: it ends here, so that
        // what follows the loss is decoded alike for the archive and for the workers.
        let mut state = self.state.clone();
        state.wait_for(|state| state.loss(partition, archived, low).is_none()).await?;
        self.feeds.end();
        Ok(())
    }

    fn passed(&self) {
        self.feeds.renew();
    }
}
