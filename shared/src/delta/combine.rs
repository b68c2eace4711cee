//! One delta of a stream from those of its shards.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{StreamDelta, ViewDelta};
use crate::names::DefinitionHash;
use crate::offsets::OffsetVector;

/// What is known of a shard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) delta: &'a StreamDelta,
    /// Somebody keeps it up.
    pub(super) owned: bool,
}

/// The delta of `stream` from what is known of each of its shards, whose partitions are disjoint.
///
/// A view is there with the partitions of those shards that have it. `origins`: of all partitions.
pub(super) fn combine(stream: &str, origins: &OffsetVector, shards: &[Known<'_>]) -> StreamDelta {
    let mut views: BTreeMap<String, BTreeMap<DefinitionHash, Arc<ViewDelta>>> = BTreeMap::new();
    let mut whole = StreamDelta {
        stream: stream.to_owned(),
        position: OffsetVector::new(),
        origins: origins.clone(),
        log_end: OffsetVector::new(),
        oldest_pending: shards.iter().filter_map(|known| known.delta.oldest_pending).min(),
        partitions: BTreeMap::new(),
        views: BTreeMap::new(),
        reasons: Vec::new(),
        losses: shards.iter().map(|known| known.delta.losses).max().unwrap_or(0),
    };
    for Known { delta, owned } in shards {
        whole.position = whole.position.join(&delta.position);
        whole.origins = whole.origins.join(&delta.origins);
        whole.log_end = whole.log_end.join(&delta.log_end);
        whole.partitions.extend(delta.partitions.iter().map(|(p, status)| (*p, status.clone())));
        whole.reasons.extend(delta.reasons.iter().filter(|r| !whole.reasons.contains(r)).cloned().collect::<Vec<_>>());
        for (view, definitions) in &delta.views {
            for (hash, part) in definitions {
                let part = match owned {
                    true => Arc::clone(part),
                    false => Arc::new(unowned(part)),
                };
                let whole = views.entry(view.clone()).or_default().entry(hash.clone());
                whole.and_modify(|whole| *whole = Arc::new(both(whole, &part))).or_insert(part);
            }
        }
    }
    whole.views = views;
    whole
}

fn unowned(part: &ViewDelta) -> ViewDelta {
    ViewDelta { unowned: part.position.iter().map(|(partition, _)| partition).collect(), ..part.clone() }
}

fn both(a: &ViewDelta, b: &ViewDelta) -> ViewDelta {
    ViewDelta {
        definition: a.definition.clone(),
        from: a.from.join(&b.from),
        position: a.position.join(&b.position),
        runs: a.runs.iter().chain(&b.runs).cloned().collect(),
        joined: a.joined && b.joined,
        unowned: a.unowned.union(&b.unowned).copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arrow::array::RecordBatch;
    use arrow::datatypes::Schema;

    use super::*;
    use crate::delta::{DeltaAnswer, DeltaRun};
    use crate::names::RunId;
    use crate::offsets::{Offset, OffsetRange, PartitionId};

    fn shard(partition: i32, from: i64, to: i64, pending: Option<i64>) -> StreamDelta {
        let range = OffsetRange::new(Offset(from), Offset(to));
        let run = DeltaRun {
            id: RunId::unique(),
            coverage: [(PartitionId(partition), range)].into_iter().collect(),
            states: RecordBatch::new_empty(Arc::new(Schema::empty())),
            errors: vec![],
            memory_bytes: 0,
        };
        let (from, position) = ([(partition, from)].into(), OffsetVector::from([(partition, to)]));
        let definition = DefinitionHash::new("d");
        let runs = vec![Arc::new(run)];
        let unowned = BTreeSet::new();
        let view =
            ViewDelta { definition: definition.clone(), from, position: position.clone(), runs, joined: true, unowned };
        StreamDelta {
            stream: "s".to_owned(),
            position: position.clone(),
            origins: [(partition, 0)].into(),
            log_end: position,
            oldest_pending: pending,
            partitions: BTreeMap::new(),
            views: [("v".to_owned(), [(definition, Arc::new(view))].into())].into(),
            reasons: vec![],
            losses: 0,
        }
    }

    #[test]
    fn shards_add_up_and_a_partition_without_owner_stands_at_the_cut() {
        let origins = [(0, 0), (1, 0), (2, 0)].into();
        let (a, b) = (shard(0, 5, 9, None), shard(1, 6, 8, Some(3)));
        let known = |delta, owned| Known { delta, owned };
        let whole = combine("s", &origins, &[known(&a, true), known(&b, true)]);
        assert_eq!(whole.position, [(0, 9), (1, 8)].into());
        assert_eq!(whole.origins, origins);
        assert_eq!(whole.oldest_pending, Some(3));
        let view = whole.view("v", &DefinitionHash::new("d")).unwrap();
        let runs = |cut| match view.from_cut(&cut) {
            DeltaAnswer::Runs(runs) => format!("{} runs", runs.len()),
            other => format!("{other:?}"),
        };
        assert_eq!(runs([(0, 5), (1, 6), (2, 100)].into()), "2 runs");
        assert_eq!(runs([(0, 9), (1, 6), (2, 100)].into()), "1 runs");
        assert_eq!(runs([(0, 10), (1, 6)].into()), "Behind");
        assert_eq!(runs([(0, 4), (1, 6)].into()), "Gone");
        assert_eq!(runs([(0, 7), (1, 6)].into()), "NoBoundary");
        let whole = combine("s", &origins, &[known(&a, true), known(&b, false)]);
        let view = whole.view("v", &DefinitionHash::new("d")).unwrap();
        let runs = |cut| match view.from_cut(&cut) {
            DeltaAnswer::Runs(runs) => format!("{} runs", runs.len()),
            other => format!("{other:?}"),
        };
        assert_eq!(runs([(0, 5), (1, 100)].into()), "1 runs", "what nobody keeps up stands at the cut, too");
        assert_eq!(runs([(0, 10), (1, 100)].into()), "Behind");
        let nobody = combine("s", &origins, &[]);
        assert!(nobody.position.is_empty() && nobody.views.is_empty());
    }
}
