//! Which pair of generation and delta answers: decided from facts alone.

use std::sync::Arc;

use watershed_shared::delta::{DeltaAnswer, DeltaRun, ViewDelta};
use watershed_shared::names::{DefinitionHash, GenerationId};
use watershed_shared::offsets::{Cut, Offset, OffsetRange, OffsetVector, PartitionId, Position};

/// A definition with one of its generations (0: none, the delta from the origin).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub definition: DefinitionHash,
    pub generation: GenerationId,
    pub cut: Cut,
}

/// A pair that could answer, with what the speed layer has for it now.
#[derive(Debug)]
pub(crate) struct Candidate<'a> {
    pub pair: Pair,
    pub delta: Option<&'a ViewDelta>,
}

/// What answers from now on.
#[derive(Debug)]
pub(crate) enum Decision {
    /// The candidate of this index with these runs: exactly the events below `position`.
    Serve { candidate: usize, position: Position, runs: Vec<Arc<DeltaRun>> },
    /// The first candidate's generation alone: there is no delta for it yet, and nothing that has answered lies past it.
    CutOnly { position: Position },
    /// What answered before, as it stands: nothing else has reached its position.
    Keep,
}

/// Decides which pair answers.
///
/// `candidates`: the register's active pair first, then the one that answers now, then the previous one. `last`: the
/// position last answered, `None` in a process that has not answered yet. `origins`: where absent partitions stand.
///
/// | delta from the candidate's cut | its position | outcome |
/// |---|---|---|
/// | runs | at or past `last` everywhere | this candidate |
/// | runs | below `last` somewhere | next candidate |
/// | behind, no boundary, gone, none | | next candidate |
/// | no candidate left, first one's cut at or past `last` | | its generation alone |
/// | else | | as before |
///
/// The first table row is what makes a position never go back; that a candidate's runs follow its cut without hole or
/// overlap up to the position is checked here once more, since a wrong answer would be silent.
pub(crate) fn decide(candidates: &[Candidate<'_>], last: Option<&Position>, origins: &OffsetVector) -> Decision {
    let reaches = |position: &Position| last.is_none_or(|last| position.covers(last));
    for (index, candidate) in candidates.iter().enumerate() {
        let Some(delta) = candidate.delta else { continue };
        let cut = &candidate.pair.cut;
        let answer = match delta.from_cut(cut) {
            // A delta that begins at an origin that the cut does not name begins where the cut does.
            DeltaAnswer::Gone => delta.from_cut(&origins.join(cut)),
            answer => answer,
        };
        let DeltaAnswer::Runs(runs) = answer else { continue };
        let from = origins.join(cut);
        let position = from.join(&delta.position);
        if !reaches(&position) {
            continue;
        }
        if let Err(error) = exact(&runs, &from, &position) {
            tracing::error!(
                definition = %candidate.pair.definition, generation = %candidate.pair.generation, %cut, %error,
                "the delta's runs do not fit the cut: not served"
            );
            continue;
        }
        return Decision::Serve { candidate: index, position, runs };
    }
    match candidates.first().map(|c| origins.join(&c.pair.cut)) {
        Some(position) if reaches(&position) => Decision::CutOnly { position },
        _ => Decision::Keep,
    }
}

/// Runs that do not follow each other, or do not begin at the cut or end at the position.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("partition {partition}: {found} where offset {expected} is next")]
pub(crate) struct Misfit {
    partition: PartitionId,
    expected: Offset,
    /// Empty, at the position: no run reaches it.
    found: OffsetRange,
}

/// Whether each event from `from` to `position` lies in exactly one run.
fn exact(runs: &[Arc<DeltaRun>], from: &OffsetVector, position: &Position) -> Result<(), Misfit> {
    let mut ranges: Vec<(PartitionId, OffsetRange)> = runs.iter().flat_map(|run| run.coverage.iter()).collect();
    ranges.sort_by_key(|(partition, range)| (*partition, range.start));
    // Where the runs of each partition end, one behind the other.
    let mut reached = from.clone();
    let ends = position.iter().map(|(partition, end)| (partition, OffsetRange::new(end, end)));
    for (partition, found) in ranges.into_iter().chain(ends) {
        let expected = reached.get(partition).unwrap_or(found.start);
        if found.start != expected || position.get(partition).is_none_or(|end| found.end > end) {
            return Err(Misfit { partition, expected, found });
        }
        reached.set(partition, found.end);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arrow::array::RecordBatch;
    use arrow::datatypes::Schema;
    use watershed_shared::names::RunId;

    use super::*;

    fn run(ranges: &[(i32, i64, i64)]) -> Arc<DeltaRun> {
        let coverage =
            ranges.iter().map(|(p, s, e)| (PartitionId(*p), OffsetRange::new(Offset(*s), Offset(*e)))).collect();
        let states = RecordBatch::new_empty(Arc::new(Schema::empty()));
        Arc::new(DeltaRun { id: RunId::unique(), coverage, states, errors: Vec::new(), memory_bytes: 0 })
    }

    fn delta(from: &[(i32, i64)], position: &[(i32, i64)], runs: Vec<Arc<DeltaRun>>) -> ViewDelta {
        let vector = |v: &[(i32, i64)]| v.iter().map(|(p, o)| (PartitionId(*p), Offset(*o))).collect();
        ViewDelta {
            definition: DefinitionHash::new("d"),
            from: vector(from),
            position: vector(position),
            runs,
            joined: true,
            unowned: BTreeSet::new(),
        }
    }

    fn pair(generation: u64, cut: &[(i32, i64)]) -> Pair {
        Pair {
            definition: DefinitionHash::new("d"),
            generation: GenerationId(generation),
            cut: cut.iter().map(|(p, o)| (PartitionId(*p), Offset(*o))).collect(),
        }
    }

    fn check(candidates: &[Candidate<'_>], last: Option<OffsetVector>, expected: &str) {
        let origins = [(0, 0)].into();
        let found = match decide(candidates, last.as_ref(), &origins) {
            Decision::Serve { candidate, position, runs } => format!("{candidate} at {position}, {} runs", runs.len()),
            Decision::CutOnly { position } => format!("cut only at {position}"),
            Decision::Keep => "keep".to_owned(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn the_new_pair_answers_when_its_delta_has_reached_the_last_answer() {
        let now = delta(&[(0, 5)], &[(0, 20)], vec![run(&[(0, 5, 10)]), run(&[(0, 10, 20)])]);
        let new = || Candidate { pair: pair(2, &[(0, 10)]), delta: Some(&now) };
        check(&[new()], Some([(0, 20)].into()), "0 at {0: 20}, 1 runs");
        check(&[new()], None, "0 at {0: 20}, 1 runs");
        check(&[new()], Some([(0, 21)].into()), "keep");
    }

    #[test]
    fn the_old_pair_goes_on_while_a_run_straddles_the_new_cut() {
        let now = delta(&[(0, 5)], &[(0, 20)], vec![run(&[(0, 5, 20)])]);
        let new = Candidate { pair: pair(2, &[(0, 10)]), delta: Some(&now) };
        let old = Candidate { pair: pair(1, &[(0, 5)]), delta: Some(&now) };
        check(&[new, old], Some([(0, 18)].into()), "1 at {0: 20}, 1 runs");
    }

    #[test]
    fn without_a_delta_the_generation_answers_alone_unless_that_goes_back() {
        let new = || Candidate { pair: pair(2, &[(0, 10)]), delta: None };
        check(&[new()], None, "cut only at {0: 10}");
        check(&[new()], Some([(0, 10)].into()), "cut only at {0: 10}");
        check(&[new()], Some([(0, 11)].into()), "keep");
    }

    #[test]
    fn a_delta_that_replays_below_the_last_answer_waits() {
        let replaying = delta(&[(0, 5)], &[(0, 8)], vec![run(&[(0, 5, 8)])]);
        let same = Candidate { pair: pair(1, &[(0, 5)]), delta: Some(&replaying) };
        check(&[same], Some([(0, 20)].into()), "keep");
    }

    #[test]
    fn before_the_first_build_the_delta_begins_at_the_origin() {
        let now = delta(&[(0, 0)], &[(0, 7)], vec![run(&[(0, 0, 7)])]);
        check(&[Candidate { pair: pair(0, &[]), delta: Some(&now) }], None, "0 at {0: 7}, 1 runs");
        check(&[Candidate { pair: pair(0, &[]), delta: None }], None, "cut only at {0: 0}");
    }

    #[test]
    fn runs_that_count_an_event_twice_are_not_served() {
        let now = delta(&[(0, 0)], &[(0, 7)], vec![run(&[(0, 0, 5)]), run(&[(0, 4, 7)])]);
        check(&[Candidate { pair: pair(0, &[]), delta: Some(&now) }], Some([(0, 7)].into()), "keep");
    }

    #[test]
    fn runs_that_lack_an_event_are_not_served() {
        let lacking: [&[(i64, i64)]; 4] = [&[(0, 3), (4, 7)], &[(1, 7)], &[(0, 6)], &[]];
        for ranges in lacking {
            let now = delta(&[(0, 0)], &[(0, 7)], ranges.iter().map(|(s, e)| run(&[(0, *s, *e)])).collect());
            check(&[Candidate { pair: pair(0, &[]), delta: Some(&now) }], Some([(0, 7)].into()), "keep");
        }
    }
}
