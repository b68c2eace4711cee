//! Why a worker does not advance, in the words that every answer shows.

use watershed_shared::delta::Reason;
use watershed_shared::offsets::PartitionId;

use crate::compute::ReadError;
use crate::micro_batch::Discontinuity;
use crate::source::SourceError;

fn reason(code: &str, message: String) -> Reason {
    Reason { code: code.to_owned(), partition: None, from: None, to: None, message }
}

/// A part of the worker ended by itself.
pub(crate) fn stopped(error: &str) -> Reason {
    reason("speed_stopped", format!("the speed worker has stopped; restart the process: {error}"))
}

/// What keeps the store from taking what there is. Answers are not affected.
pub(crate) fn store(error: &str) -> Reason {
    reason("delta_store", format!("the delta store fails, and is tried again; a restart would replay: {error}"))
}

/// What keeps `what` from reading on.
pub(crate) fn reading(what: &str, error: &ReadError) -> Reason {
    let message = format!("{what} cannot read on, and tries again: {error}");
    match error {
        ReadError::Source(SourceError::OffsetsLost { partition, wanted, lowest }) => Reason {
            partition: Some(*partition),
            from: Some(wanted.0),
            to: Some(lowest.0),
            ..reason("offsets_lost", message)
        },
        ReadError::Source(SourceError::TopicReplaced(_)) => reason("topic_replaced", message),
        ReadError::Source(SourceError::Denied(_)) => reason("log_denied", message),
        ReadError::Source(SourceError::Schemas(_)) => reason("schema_registry_unavailable", message),
        ReadError::Source(SourceError::Failed(_)) => reason("log_unavailable", message),
        ReadError::Discontinuity(Discontinuity::Hole { partition, expected, got }) => Reason {
            partition: Some(*partition),
            from: Some(expected.0),
            to: Some(got.0),
            ..reason("offsets_missing", message)
        },
    }
}

/// A merge failed: answers are right, but take longer.
pub(crate) fn merging(view: &str, error: &str) -> Reason {
    reason("merge_failed", format!("runs of view {view} cannot be merged, which is tried again: {error}"))
}

/// A replay failed.
pub(crate) fn replaying(view: &str, error: &str) -> Reason {
    reason("replay_failed", format!("view {view} cannot be replayed, which is tried again: {error}"))
}

/// A partition is not read yet.
pub(crate) fn no_origin(partition: PartitionId) -> Reason {
    let message = format!("the origin of partition {partition} is not recorded in the stream's register yet");
    Reason { partition: Some(partition), ..reason("no_origin", message) }
}
