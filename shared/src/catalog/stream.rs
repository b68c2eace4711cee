//! A stream's register: origins, losses, shard ownership.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Rejected;
use crate::delta::Reason;
use crate::offsets::{Offset, OffsetRange, OffsetVector, PartitionId};

/// Offsets that the log dropped before they were archived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    pub partition: PartitionId,
    pub range: OffsetRange,
    pub found_at: DateTime<Utc>,
    /// `watershed accept-loss`: still listed, no longer a reason for an incomplete answer.
    pub accepted: bool,
}

impl Loss {
    /// What every answer of the stream says until the loss is accepted.
    pub fn reason(&self, stream: &str) -> Reason {
        let Self { partition, range, found_at, .. } = self;
        let count = range.end.0 - range.start.0;
        Reason {
            code: "offsets_lost".to_owned(),
            partition: Some(*partition),
            from: Some(range.start.0),
            to: Some(range.end.0),
            message: format!(
                "the log dropped offsets {range} of partition {partition} ({count} of them) before they were archived, \
                 found at {found_at}: no answer holds them; `watershed accept-loss {stream}` accepts that",
            ),
        }
    }
}

/// A log that was cut off at its end, behind what had been read of it: the stream stands still for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truncation {
    pub partition: PartitionId,
    /// From where the log ended to where it had been read.
    pub range: OffsetRange,
    pub found_at: DateTime<Utc>,
}

impl Truncation {
    /// What every answer of the stream says.
    pub fn reason(&self, stream: &str) -> Reason {
        let Self { partition, range, found_at } = self;
        Reason {
            code: "log_truncated".to_owned(),
            partition: Some(*partition),
            from: Some(range.start.0),
            to: Some(range.end.0),
            message: format!(
                "the log of partition {partition} was cut off at its end, found at {found_at}: offsets {range} were read and are \
                 gone, and other records have their numbers now. Stream `{stream}` stands still, so as not to mix them: declare \
                 it under another name to go on, and find out why the log lost records (an unclean leader election, \
                 `acks` below all, a lost disk)",
            ),
        }
    }
}

/// Who owns a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    pub shard: u32,
    /// Counts up by one with each owner.
    pub epoch: u64,
    pub worker: String,
    /// `host:port` of its delta service.
    pub address: Option<String>,
    /// It ended in good order and gave the shard up: anybody may claim it at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
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
        /// How many shards the stream has; the first record that says it decides.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shards: Option<u32>,
        /// How records are decoded, {key of the configuration → value}; the first record that says it decides.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        decoding: Option<BTreeMap<String, String>>,
    },
    Owned {
        ownership: Ownership,
    },
    /// The owner of this epoch gives the shard up.
    Released {
        shard: u32,
        epoch: u64,
    },
    Lost {
        loss: Loss,
    },
    LossAccepted,
    Truncated {
        truncation: Truncation,
    },
}

/// What a stream's register says, after its head.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    pub topic: Option<String>,
    pub topic_id: Option<String>,
    /// Per partition the log's start when the stream was first seen.
    pub origins: OffsetVector,
    pub owners: BTreeMap<u32, Ownership>,
    /// Fixed once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<u32>,
    /// How records are decoded, {key of the configuration → value}. Fixed once it is known: what was decoded otherwise
    /// is archived, or in a delta.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoding: Option<BTreeMap<String, String>>,
    pub losses: Vec<Loss>,
    /// The first of each partition.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub truncations: Vec<Truncation>,
}

impl StreamState {
    /// What every answer has to say.
    pub fn reasons(&self, stream: &str) -> Vec<Reason> {
        let losses = self.open_losses().map(|loss| loss.reason(stream));
        losses.chain(self.truncations.iter().map(|truncation| truncation.reason(stream))).collect()
    }

    /// Whether it is known that the log of `partition` was cut off.
    pub fn is_truncated(&self, partition: PartitionId) -> bool {
        self.truncations.iter().any(|truncation| truncation.partition == partition)
    }

    /// What is yet to be recorded as lost when the log of `partition`, archived until `archived`, begins at `low`;
    /// `None`: nothing, or all of it stands here already.
    pub fn loss(&self, partition: PartitionId, archived: Offset, low: Offset) -> Option<OffsetRange> {
        let mut start = archived;
        let mut known: Vec<OffsetRange> =
            self.losses.iter().filter(|l| l.partition == partition).map(|l| l.range).collect();
        known.sort_by_key(|range| range.start);
        for range in known {
            if range.contains(start) {
                start = range.end;
            }
        }
        (start < low).then(|| OffsetRange::new(start, low))
    }

    /// The losses that nobody has accepted.
    pub fn open_losses(&self) -> impl Iterator<Item = &Loss> {
        self.losses.iter().filter(|loss| !loss.accepted)
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// Why the event does not apply.
    pub fn apply(&self, event: &StreamEvent) -> Result<Self, Rejected> {
        let mut next = self.clone();
        match event {
            StreamEvent::Seen { topic, topic_id, origins, shards, decoding } => {
                if let (Some(recorded), Some(found)) = (&self.topic_id, topic_id)
                    && recorded != found
                {
                    return Err(Rejected::TopicReplaced { recorded: recorded.clone(), found: found.clone() });
                }
                next.topic = Some(topic.clone());
                next.topic_id = next.topic_id.or_else(|| topic_id.clone());
                next.shards = next.shards.or(*shards);
                next.decoding = next.decoding.or_else(|| decoding.clone());
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
            StreamEvent::Released { shard, epoch } => match next.owners.get_mut(shard) {
                Some(owner) if owner.epoch == *epoch => owner.released = true,
                other => {
                    let current = other.map_or(0, |o| o.epoch);
                    return Err(Rejected::EpochTaken { shard: *shard, epoch: current });
                }
            },
            StreamEvent::Lost { loss } => next.losses.push(loss.clone()),
            StreamEvent::Truncated { truncation } => next.truncations.push(truncation.clone()),
            StreamEvent::LossAccepted => next.losses.iter_mut().for_each(|l| l.accepted = true),
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_has_one_owner_per_epoch_and_only_that_one_gives_it_up() {
        let owned = |epoch, worker: &str| StreamEvent::Owned {
            ownership: Ownership { shard: 1, epoch, worker: worker.to_owned(), address: None, released: false },
        };
        let released = |epoch| StreamEvent::Released { shard: 1, epoch };
        let first = StreamState::default().apply(&owned(1, "a")).unwrap();
        assert_eq!(first.apply(&owned(1, "b")), Err(Rejected::EpochTaken { shard: 1, epoch: 1 }));
        let second = first.apply(&released(1)).unwrap().apply(&owned(2, "b")).unwrap();
        assert!(first.apply(&released(1)).unwrap().owners[&1].released && !second.owners[&1].released);
        assert_eq!(second.apply(&released(1)), Err(Rejected::EpochTaken { shard: 1, epoch: 2 }), "it came too late");
    }

    #[test]
    fn a_log_that_was_cut_off_is_a_reason_for_good() {
        let range = OffsetRange::new(Offset(10), Offset(15));
        let truncation = Truncation { partition: PartitionId(1), range, found_at: DateTime::<Utc>::UNIX_EPOCH };
        let state = StreamState::default().apply(&StreamEvent::Truncated { truncation }).unwrap();
        assert!(state.is_truncated(PartitionId(1)) && !state.is_truncated(PartitionId(0)));
        let accepted = state.apply(&StreamEvent::LossAccepted).unwrap();
        let reasons = accepted.reasons("s");
        assert_eq!((reasons.len(), reasons[0].code.as_str()), (1, "log_truncated"));
        assert_eq!((reasons[0].from, reasons[0].to), (Some(10), Some(15)));
    }

    #[test]
    fn the_number_of_shards_is_decided_once() {
        let seen = |shards| StreamEvent::Seen {
            topic: "t".to_owned(),
            topic_id: None,
            origins: OffsetVector::new(),
            shards,
            decoding: None,
        };
        let state = StreamState::default().apply(&seen(None)).unwrap().apply(&seen(Some(2))).unwrap();
        assert_eq!(state.apply(&seen(Some(3))).unwrap().shards, Some(2));
    }

    #[test]
    fn a_loss_is_recorded_once_whoever_finds_it_and_however_it_grows() {
        let p = PartitionId(0);
        let range = |start, end| OffsetRange::new(Offset(start), Offset(end));
        let mut state = StreamState::default();
        assert_eq!(state.loss(p, Offset(100), Offset(100)), None);
        let found = state.loss(p, Offset(100), Offset(250)).unwrap();
        assert_eq!(found, range(100, 250));
        let loss = Loss { partition: p, range: found, found_at: DateTime::<Utc>::UNIX_EPOCH, accepted: false };
        state = state.apply(&StreamEvent::Lost { loss }).unwrap();
        assert_eq!(state.loss(p, Offset(100), Offset(250)), None, "another archiver found the same");
        assert_eq!(state.loss(p, Offset(100), Offset(270)), Some(range(250, 270)), "the log dropped more meanwhile");
        assert_eq!(state.loss(p, Offset(300), Offset(310)), Some(range(300, 310)));
        assert_eq!(state.loss(PartitionId(1), Offset(100), Offset(250)), Some(range(100, 250)));
        assert_eq!(state.open_losses().count(), 1);
        state = state.apply(&StreamEvent::LossAccepted).unwrap();
        assert_eq!(state.open_losses().count(), 0);
        assert_eq!(state.losses.len(), 1, "it stays listed");
    }
}
