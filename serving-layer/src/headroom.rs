//! How far the archive is from what the log drops next.

use std::collections::BTreeMap;

use watershed_shared::offsets::{Offset, OffsetVector, PartitionId};

use crate::front::StreamAnswer;

/// The alarm is raised when less than this part of what the log keeps lies behind the archive.
const LEAST_PERCENT: i64 = 20;

/// What lies between the log's start and the end of the archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headroom {
    /// Offsets of each partition that the log still has and that are archived.
    pub(crate) offsets: BTreeMap<PartitionId, i64>,
    /// What is going to be lost if nobody acts.
    pub(crate) alarm: Option<String>,
}

/// The headroom of `archived` over the log that begins at `starts`.
pub(crate) fn of(now: &StreamAnswer, archived: &OffsetVector, starts: &OffsetVector) -> Headroom {
    decide(&now.origins, archived, starts, &now.log_end)
}

/// The alarm is for logs that drop what is old (their start has moved since the origin) and for partitions of which
/// something waits to be archived.
fn decide(origins: &OffsetVector, archived: &OffsetVector, starts: &OffsetVector, ends: &OffsetVector) -> Headroom {
    let mut headroom = Headroom::default();
    let mut alarms = Vec::new();
    for (partition, start) in starts.iter() {
        let origin = origins.get(partition).unwrap_or(start);
        let until = archived.get(partition).unwrap_or(origin);
        let end = ends.get(partition).unwrap_or(until);
        let left = (until.0 - start.0).max(0);
        headroom.offsets.insert(partition, left);
        let kept = end.0 - start.0;
        if start > origin && until < end && left.saturating_mul(100) < kept.saturating_mul(LEAST_PERCENT) {
            alarms.push(alarm(partition, start, until, end));
        }
    }
    headroom.alarm = (!alarms.is_empty()).then(|| alarms.join("; "));
    headroom
}

fn alarm(partition: PartitionId, start: Offset, until: Offset, end: Offset) -> String {
    format!(
        "partition {partition}: the log begins at {start} and is archived until {until} of {end}: what is not archived is \
         about to be dropped; find out why archiving is slow, or raise the topic's retention"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(origin: i64, start: i64, archived: i64, end: i64, offsets: i64, alarm: bool) {
        let at = |o: i64| OffsetVector::from([(0, o)]);
        let found = decide(&at(origin), &at(archived), &at(start), &at(end));
        assert_eq!(found.offsets[&PartitionId(0)], offsets);
        assert_eq!(found.alarm.is_some(), alarm, "{found:?}");
    }

    #[test]
    fn the_alarm_comes_before_the_loss_and_only_where_the_log_drops_something() {
        check(0, 0, 0, 1000, 0, false);
        check(100, 100, 100, 1000, 0, false);
        check(0, 100, 1000, 1000, 900, false);
        check(0, 100, 500, 1100, 400, false);
        check(0, 100, 250, 1100, 150, true);
        check(0, 100, 50, 1100, 0, true);
    }
}
