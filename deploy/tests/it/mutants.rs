//! Each mutant is killed by the oracle, unchanged: by the same cases that pass without it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use watershed_shared::mutant::Mutant;

use crate::harness::Broker;
use crate::oracle::case::{self, Trial};
use crate::oracle::{AT_A_TIME, SEEDS};

/// A mutant that survives so many of the oracle's seeds survives.
const CASES: u64 = SEEDS;
/// A mutant may stand still, so that nothing comes of waiting.
const PATIENCE: Duration = Duration::from_secs(20);

/// The seed that killed a mutant when it was last looked, tried first: it only saves time.
const KILLERS: &[(Mutant, u64)] = &[
    (Mutant::FailingBatch, 1),
    (Mutant::AllFiltersPushed, 1),
    (Mutant::ReplayOffByOne, 3),
    (Mutant::RedeliveredTwice, 2),
    (Mutant::DefinitionReturns, 6),
    (Mutant::CancelledPublishes, 7),
    (Mutant::LookupWithoutDelta, 7),
    (Mutant::MaximumNotSeeded, 11),
    (Mutant::RetentionByOnePartition, 15),
    (Mutant::DeadLettersAfterEvents, 48),
];

/// What became of a mutant.
#[derive(Debug)]
struct Verdict {
    killed_by: Option<u64>,
    cases: u64,
    reached: bool,
    why: String,
}

#[test]
fn the_oracle_kills_every_mutant() {
    let broker = Broker::start();
    let only = std::env::var("WATERSHED_MUTANTS").ok();
    let wanted = |m: &Mutant| only.as_ref().is_none_or(|only| only.split(',').any(|name| name == m.name()));
    let mutants: Vec<Mutant> = Mutant::ALL.iter().copied().filter(wanted).collect();
    let next = AtomicUsize::new(0);
    let survivors = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let Verdict { killed_by, cases, reached, why } = judge(*mutant, &broker);
                    let seed = killed_by.map_or_else(|| "-".to_owned(), |seed| seed.to_string());
                    let why: String = why.lines().next().unwrap_or_default().chars().take(90).collect();
                    println!("mutant | {:<26} | {seed:>4} | {cases:>5} | {why}", mutant.name());
                    if killed_by.is_none() {
                        let how = if reached { "survives" } else { "its place is never reached" };
                        survivors.lock().push((mutant.name(), how));
                    }
                }
            });
        }
    });
    assert_eq!(survivors.into_inner(), [], "mutants that the oracle does not kill");
}

/// Runs cases with `mutant` until one fails.
fn judge(mutant: Mutant, broker: &Broker) -> Verdict {
    let trial = Trial { broker, patience: PATIENCE, mutant: Some(mutant), roles: mutant.is_of_roles() };
    let first = KILLERS.iter().find(|(m, _)| *m == mutant).map(|(_, seed)| *seed);
    let others = (0..SEEDS).filter(|seed| Some(*seed) != first);
    let mut verdict = Verdict { killed_by: None, cases: 0, reached: false, why: String::new() };
    for seed in first.into_iter().chain(others).take(CASES as usize) {
        let outcome = case::run(seed, &trial);
        verdict.cases += 1;
        verdict.reached |= outcome.reached;
        // A failure of a case that did not come by the mutant's place says nothing of it.
        if let Some(why) = outcome.failure.filter(|_| outcome.reached) {
            verdict.killed_by = Some(seed);
            verdict.why = why;
            break;
        }
    }
    verdict
}
