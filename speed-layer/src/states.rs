//! What the speed layer asks of a compiled view.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use watershed_shared::names::DefinitionHash;
use watershed_shared::offsets::Cut;
use watershed_shared::run::EventError;
use watershed_shared::shard::Shard;
use watershed_shared::view::CompiledView;

/// The view's SQL could not be run. It is no fault of single events: those are [`EventError`]s.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct StatesError(pub String);

/// Makes states of events, and fewer states of states.
///
/// # Contract
/// Both results are in `state_schema`, sorted by the group key, and depend on their input as a set of events alone.
#[async_trait]
pub trait StateMaker: Send + Sync + fmt::Debug {
    fn state_schema(&self) -> SchemaRef;

    /// The states of `events`, and the events on which the SQL failed, which are left out.
    ///
    /// # Errors
    /// When the engine fails.
    async fn states(&self, events: &[RecordBatch]) -> Result<(RecordBatch, Vec<EventError>), StatesError>;

    /// One run of several.
    ///
    /// # Errors
    /// When the engine fails.
    async fn merge(&self, runs: &[RecordBatch]) -> Result<RecordBatch, StatesError>;
}

#[async_trait]
impl StateMaker for CompiledView {
    fn state_schema(&self) -> SchemaRef {
        CompiledView::state_schema(self)
    }

    async fn states(&self, events: &[RecordBatch]) -> Result<(RecordBatch, Vec<EventError>), StatesError> {
        let made = CompiledView::states(self, events).await.map_err(|e| failed(&e))?;
        Ok((made.states, made.errors))
    }

    async fn merge(&self, runs: &[RecordBatch]) -> Result<RecordBatch, StatesError> {
        CompiledView::merge(self, runs).await.map_err(|e| failed(&e))
    }
}

/// With its causes: the engine's own words are in them.
fn failed(error: &dyn std::error::Error) -> StatesError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    StatesError(text)
}

/// A definition whose delta is wanted, as the register of its view says.
#[derive(Debug, Clone)]
pub struct ViewPlan {
    /// The view.
    pub name: String,
    pub definition: DefinitionHash,
    pub compiled: Arc<dyn StateMaker>,
    /// The cuts at which runs must end: of the active and the previous generation, and the open ones.
    pub boundaries: Vec<Cut>,
    /// The lowest of them that is still needed, partition by partition: what lies below may be dropped.
    pub from: Cut,
}

impl ViewPlan {
    /// The plan of a worker that knows nothing but `shard`.
    #[must_use]
    pub fn of_shard(&self, shard: Shard) -> Self {
        let boundaries = self.boundaries.iter().map(|cut| shard.restrict(cut)).collect();
        Self { boundaries, from: shard.restrict(&self.from), ..self.clone() }
    }
}
