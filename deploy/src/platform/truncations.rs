//! A log that was cut off at its end, in the stream's register: then the stream stands still, in every process.

use std::sync::Arc;

use anyhow::Result;
use tokio::sync::watch;
use tracing::error;
use watershed_shared::catalog::{Rejected, StreamEvent, StreamState, Truncation};
use watershed_shared::clock;
use watershed_shared::log;
use watershed_shared::offsets::OffsetRange;
use watershed_shared::register::Register;

/// What a stream's register says of it.
#[derive(Debug, Clone)]
pub(super) struct Truncations {
    pub(super) topic: String,
    pub(super) register: Register<StreamState>,
    /// The state of the register's head.
    pub(super) state: watch::Receiver<Arc<StreamState>>,
}

impl Truncations {
    /// Records what `error` says, if it is of a log that was cut off. On return nobody of this process reads on.
    ///
    /// # Errors
    /// If it may not be recorded: to read on would mix two logs.
    pub(super) async fn record(&self, error: &log::Error) -> Result<()> {
        let log::Error::LogTruncated { partition, end, position, .. } = *error else { return Ok(()) };
        let range = OffsetRange::new(end, position);
        let decided = self.register.update(|state: &StreamState| {
            let truncation = Truncation { partition, range, found_at: clock::now() };
            let event = StreamEvent::Truncated { truncation };
            Ok::<_, Rejected>((!state.is_truncated(partition)).then_some(event))
        });
        decided.await?;
        self.state.clone().wait_for(|state| state.is_truncated(partition)).await?;
        error!(topic = self.topic, %partition, %range, "the log was cut off at its end: the stream stands still");
        Ok(())
    }

    /// Why nobody may read the log any more.
    pub(super) fn stop(&self) -> Option<log::Error> {
        let state = self.state.borrow();
        let first = state.truncations.first()?;
        Some(log::Error::LogTruncated {
            topic: self.topic.clone(),
            partition: first.partition,
            end: first.range.start,
            position: first.range.end,
        })
    }
}
