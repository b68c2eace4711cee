//! Batches that are delivered again, as a test wants them: whoever reads at least once must count once.
//!
//! Without feature `testing` nothing of it is compiled. With it `WATERSHED_REDELIVER=1` makes each second batch that
//! follows one of its partition come together with that one, and standard error says so once.

use std::sync::Arc;

use crate::record::DecodedBatch;

/// One reader's redeliveries.
#[derive(Debug, Default)]
pub struct Redeliveries {
    #[cfg(any(test, feature = "testing"))]
    armed: armed::Armed,
}

impl Redeliveries {
    /// What is delivered in place of `batch`: the same, perhaps with what was delivered before it.
    #[cfg(not(any(test, feature = "testing")))]
    #[inline(always)]
    pub fn of(&mut self, batch: Arc<DecodedBatch>) -> Arc<DecodedBatch> {
        batch
    }

    /// What is delivered in place of `batch`: the same, perhaps with what was delivered before it.
    #[cfg(any(test, feature = "testing"))]
    pub fn of(&mut self, batch: Arc<DecodedBatch>) -> Arc<DecodedBatch> {
        self.armed.of(batch)
    }
}

#[cfg(any(test, feature = "testing"))]
mod armed {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, OnceLock};

    use arrow::compute::concat_batches;

    use crate::offsets::{OffsetRange, PartitionId};
    use crate::record::DecodedBatch;

    #[derive(Debug, Default)]
    pub(super) struct Armed {
        before: BTreeMap<PartitionId, Arc<DecodedBatch>>,
    }

    impl Armed {
        pub(super) fn of(&mut self, batch: Arc<DecodedBatch>) -> Arc<DecodedBatch> {
            static TOLD: OnceLock<bool> = OnceLock::new();
            static SAID: AtomicBool = AtomicBool::new(false);
            if !*TOLD.get_or_init(|| std::env::var_os("WATERSHED_REDELIVER").is_some()) {
                return batch;
            }
            match self.before.remove(&batch.partition).filter(|before| before.range.end == batch.range.start) {
                Some(before) => {
                    if !SAID.swap(true, Ordering::Relaxed) {
                        eprintln!("batches are delivered again, as WATERSHED_REDELIVER says");
                    }
                    Arc::new(both(&before, &batch))
                }
                None => {
                    self.before.insert(batch.partition, Arc::clone(&batch));
                    batch
                }
            }
        }
    }

    /// Two batches that follow each other, as one.
    fn both(first: &DecodedBatch, second: &DecodedBatch) -> DecodedBatch {
        let events = [&first.events, &second.events];
        DecodedBatch {
            range: OffsetRange::new(first.range.start, second.range.end),
            events: concat_batches(&second.events.schema(), events).expect("batches of one stream"),
            dead_letters: first.dead_letters.iter().chain(&second.dead_letters).cloned().collect(),
            tombstones: first.tombstones + second.tombstones,
            ahead: first.ahead + second.ahead,
            ..second.clone()
        }
    }
}
