//! A stream's register: origins, losses, shard ownership.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Rejected;
use crate::offsets::{OffsetRange, OffsetVector, PartitionId};

/// Offsets that the log dropped before they were archived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    pub partition: PartitionId,
    pub range: OffsetRange,
    pub found_at: DateTime<Utc>,
    /// `watershed accept-loss`: still listed, no longer a reason for an incomplete answer.
    pub accepted: bool,
}

/// Who owns a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    pub shard: u32,
    /// Counts up by one with each owner.
    pub epoch: u64,
    pub worker: String,
    /// Where its delta service answers; `None` within one process.
    pub address: Option<String>,
}

/// What a record of a stream's register decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum StreamEvent {
    /// Partitions seen for the first time, with the log's start of that moment. Those already recorded keep theirs.
    Seen {
        topic: String,
        topic_id: Option<String>,
        origins: OffsetVector,
    },
    Owned {
        ownership: Ownership,
    },
    Lost {
        loss: Loss,
    },
    LossAccepted,
}

/// What a stream's register says, after its head.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    pub topic: Option<String>,
    pub topic_id: Option<String>,
    /// Per partition the log's start when the stream was first seen.
    pub origins: OffsetVector,
    pub owners: BTreeMap<u32, Ownership>,
    pub losses: Vec<Loss>,
}

impl StreamState {
    /// The state after `event`.
    ///
    /// # Errors
    /// Why the event does not apply.
    pub fn apply(&self, event: &StreamEvent) -> Result<Self, Rejected> {
        let mut next = self.clone();
        match event {
            StreamEvent::Seen { topic, topic_id, origins } => {
                if let (Some(recorded), Some(found)) = (&self.topic_id, topic_id)
                    && recorded != found
                {
                    return Err(Rejected::TopicReplaced { recorded: recorded.clone(), found: found.clone() });
                }
                next.topic = Some(topic.clone());
                next.topic_id = next.topic_id.or_else(|| topic_id.clone());
                for (partition, origin) in origins.iter() {
                    if next.origins.get(partition).is_none() {
                        next.origins.set(partition, origin);
                    }
                }
            }
            StreamEvent::Owned { ownership } => {
                let current = self.owners.get(&ownership.shard).map_or(0, |o| o.epoch);
                if ownership.epoch != current + 1 {
                    return Err(Rejected::EpochTaken { shard: ownership.shard, epoch: current });
                }
                next.owners.insert(ownership.shard, ownership.clone());
            }
            StreamEvent::Lost { loss } => next.losses.push(loss.clone()),
            StreamEvent::LossAccepted => next.losses.iter_mut().for_each(|l| l.accepted = true),
        }
        Ok(next)
    }
}
