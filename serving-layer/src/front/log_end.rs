//! How far the log is: what its workers have seen of it, and what this process sees when it looks by itself.

use std::collections::BTreeMap;

use watershed_shared::delta::StreamDelta;
use watershed_shared::offsets::{OffsetVector, PartitionId};

use super::Pending;

/// The log's end, and since when a delta is not there.
///
/// A worker may have lost the log without knowing how far it has got since: then only the look of this process tells
/// that events are missing.
#[derive(Debug, Default)]
pub(super) struct LogEnd {
    /// The later of what the workers and this process have seen.
    pub(super) end: OffsetVector,
    /// When the delta was last seen at the log's end, microseconds of the wall clock.
    caught_up: BTreeMap<PartitionId, i64>,
}

impl LogEnd {
    /// Takes note of what `delta` and a look at the log say at `now`.
    pub(super) fn see(&mut self, delta: &StreamDelta, looked: &OffsetVector, now: i64) {
        self.end = delta.log_end.join(looked);
        let position = delta.origins.join(&delta.position);
        for (partition, end) in self.end.iter() {
            if position.get(partition).is_some_and(|at| at >= end) {
                self.caught_up.insert(partition, now);
            }
        }
    }

    /// The event that is missing at `delta`'s position, at `now`.
    pub(super) fn pending(&self, delta: &StreamDelta, now: i64) -> Pending {
        let position = delta.origins.join(&delta.position);
        let mut oldest = delta.oldest_pending;
        for (partition, end) in self.end.iter() {
            let at = position.get(partition);
            // What the worker knows to be missing is counted by itself.
            let knows = delta.log_end.get(partition).is_some_and(|seen| at.is_none_or(|at| at < seen));
            if knows || at.is_some_and(|at| at >= end) {
                continue;
            }
            // It came after the delta was last caught up.
            let Some(since) = self.caught_up.get(&partition) else { return Pending::Unknown };
            oldest = Some(oldest.map_or(*since, |oldest| oldest.min(*since)));
        }
        Pending::Since(oldest.unwrap_or(now))
    }
}

#[cfg(test)]
mod tests {
    use watershed_shared::delta::StreamDelta;

    use super::*;

    fn delta(position: &[(i32, i64)], log_end: &[(i32, i64)], oldest_pending: Option<i64>) -> StreamDelta {
        let vector = |pairs: &[(i32, i64)]| {
            pairs.iter().map(|(p, o)| (PartitionId(*p), watershed_shared::offsets::Offset(*o))).collect()
        };
        StreamDelta {
            stream: "s".to_owned(),
            position: vector(position),
            origins: [(0, 0), (1, 0)].into(),
            log_end: vector(log_end),
            oldest_pending,
            partitions: BTreeMap::new(),
            views: BTreeMap::new(),
            reasons: Vec::new(),
            losses: 0,
        }
    }

    #[test]
    fn what_a_worker_does_not_know_to_be_missing_is_as_old_as_when_it_was_last_caught_up() {
        let mut log = LogEnd::default();
        let still = delta(&[(0, 5), (1, 7)], &[(0, 5), (1, 7)], None);
        log.see(&still, &[(0, 5)].into(), 100);
        assert_eq!((&log.end, log.pending(&still, 130)), (&[(0, 5), (1, 7)].into(), Pending::Since(130)));
        log.see(&still, &[(0, 9), (1, 6)].into(), 200);
        assert_eq!((&log.end, log.pending(&still, 230)), (&[(0, 9), (1, 7)].into(), Pending::Since(100)));
        // Another worker knows of an older one in its own partition.
        let other = delta(&[(0, 5), (1, 7)], &[(0, 5), (1, 8)], Some(50));
        log.see(&other, &[(0, 9)].into(), 300);
        assert_eq!(log.pending(&other, 300), Pending::Since(50));
        let caught_up = delta(&[(0, 9), (1, 8)], &[(0, 9), (1, 8)], None);
        log.see(&caught_up, &[(0, 9)].into(), 400);
        assert_eq!(log.pending(&caught_up, 430), Pending::Since(430));
    }

    #[test]
    fn what_no_worker_has_read_yet_has_no_age() {
        let mut log = LogEnd::default();
        let none = delta(&[], &[], None);
        log.see(&none, &[(0, 9), (1, 0)].into(), 100);
        assert_eq!(log.pending(&none, 100), Pending::Unknown);
    }
}
