//! Evaluation of the part of a view below its aggregate, event by event in meaning, batch by batch in fact.

mod below;
mod guard;
mod late;
mod reused;
mod source;

pub(crate) use below::Below;
pub(crate) use guard::GuardTable;
pub use late::late_function;
#[cfg(test)]
pub(crate) use reused::EXECUTIONS;
pub(crate) use reused::ReusedPlan;
pub(crate) use source::{SourceTable, run_over};

use std::sync::Arc;

use parking_lot::Mutex;

use crate::run::EventError;

/// Where the events go on which a view's SQL fails. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct ErrorSink(Arc<Mutex<Vec<EventError>>>);

impl ErrorSink {
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn push(&self, error: EventError) {
        self.0.lock().push(error);
    }

    /// Takes what has been reported so far, ordered by partition and offset. Complete once the plan has run to its end.
    ///
    /// May be called while the plan runs, so that a view that fails on every event does not gather them all.
    pub fn take(&self) -> Vec<EventError> {
        let mut errors = std::mem::take(&mut *self.0.lock());
        errors.sort_by_key(|e| (e.partition, e.offset));
        errors
    }
}
