//! What has been decided: the states that the registers of views and streams fold to.
//!
//! Everything here is pure: an event either applies to a state or is rejected with the reason. The registers make the
//! sequence of events one that all processes agree on.

mod stream;
mod view;

pub use stream::{Loss, Ownership, StreamEvent, StreamState, Truncation};
pub use view::{Build, BuildMode, BuildOutcome, Definition, Generation, Request, ViewEvent, ViewState};

/// Why an event does not apply to the state that it was decided for. Read the head and decide again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("the definition is not in the view's register. definition=`{0}`")]
    UnknownDefinition(crate::names::DefinitionHash),
    #[error("the generation is not in the view's register. generation=`{0}`")]
    UnknownGeneration(crate::names::GenerationId),
    #[error("a build of this definition is already running. build=`{0}`")]
    AlreadyRunning(crate::names::BuildId),
    #[error("the build no longer holds its claim. build=`{0}`")]
    ClaimLost(crate::names::BuildId),
    #[error("the cut lies below the base's. cut=`{cut}`, base=`{base}`")]
    CutBelowBase { cut: crate::offsets::Cut, base: crate::offsets::Cut },
    #[error("the generation is still needed. generation=`{0}`")]
    InUse(crate::names::GenerationId),
    #[error("the ownership epoch has been taken. shard=`{shard}`, epoch=`{epoch}`")]
    EpochTaken { shard: u32, epoch: u64 },
    #[error("the stream's topic was replaced. recorded=`{recorded}`, found=`{found}`")]
    TopicReplaced { recorded: String, found: String },
}

impl crate::register::RegisterState for ViewState {
    type Event = ViewEvent;
    type Rejected = Rejected;

    fn apply(&self, event: &ViewEvent) -> Result<Self, Rejected> {
        Self::apply(self, event)
    }
}

impl crate::register::RegisterState for StreamState {
    type Event = StreamEvent;
    type Rejected = Rejected;

    fn apply(&self, event: &StreamEvent) -> Result<Self, Rejected> {
        Self::apply(self, event)
    }
}
