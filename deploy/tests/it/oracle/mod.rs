//! The oracle: random streams in every format, views, orders, bad and late records, rebuilds, refreshes, cancels,
//! activations, changed definitions, restarts, kills and aborts at named points. At each step the served answer at its
//! position equals the recount in plain Rust over exactly the events below it, and no position goes back; once input
//! stops the position gets to the end, and every answer is complete.
//!
//! `WATERSHED_SEEDS=17..18` replays; a failure prints its seed and its steps.

pub(crate) mod case;
pub(crate) mod compare;
mod coverage;
pub(crate) mod events;
pub(crate) mod log;
mod recount;
mod subject;
pub(crate) mod truth;
mod view;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use self::case::Trial;
use self::coverage::Coverage;
use crate::harness::Broker;

/// The seeds of the test command.
pub(crate) const SEEDS: u64 = 200;
/// Cases that run at the same time: they wait more than they compute.
pub(crate) const AT_A_TIME: usize = 6;
/// Of the cases whose roles are processes of their own: each is five of them.
const ROLE_SEEDS: u64 = 12;
const ROLES_AT_A_TIME: usize = 3;
/// No step may take longer; it is far above what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn the_served_answer_is_the_sql_over_exactly_the_events_below_its_position() {
    let coverage = run_all(seeds(SEEDS), AT_A_TIME, false);
    if std::env::var_os("WATERSHED_SEEDS").is_none() {
        assert_eq!(coverage.missing(), Vec::<&str>::new(), "the oracle never saw these");
    }
}

/// Two batch processes, two speed workers, one that serves; each of them may end at any time.
#[test]
fn with_each_role_in_processes_of_its_own_it_is_the_same() {
    let coverage = run_all(seeds(ROLE_SEEDS), ROLES_AT_A_TIME, true);
    if std::env::var_os("WATERSHED_SEEDS").is_none() {
        assert_eq!(coverage.missing_roles(), Vec::<&str>::new(), "the oracle never saw these");
    }
}

fn run_all(seeds: std::ops::Range<u64>, at_a_time: usize, roles: bool) -> Coverage {
    let broker = Broker::start();
    let trial = Trial { broker: &broker, patience: PATIENCE, mutant: None, roles };
    let next = AtomicU64::new(seeds.start);
    let (coverage, failure) = (Mutex::new(Coverage::default()), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while failure.lock().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = case::run(seed, &trial);
                    coverage.lock().add(&outcome.coverage);
                    if let Some(why) = outcome.failure {
                        failure.lock().get_or_insert((seed, why));
                    }
                }
            });
        }
    });
    if let Some((seed, why)) = failure.into_inner() {
        panic!("the oracle failed; replay with WATERSHED_SEEDS={seed}..{}\n{why}", seed + 1);
    }
    let coverage = coverage.into_inner();
    println!(
        "oracle{}: {} seeds\n{}",
        if roles { " of roles" } else { "" },
        seeds.end - seeds.start,
        coverage.report()
    );
    coverage
}

fn seeds(unless_told: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("WATERSHED_SEEDS") else { return 0..unless_told };
    let (from, to) = text.split_once("..").expect("WATERSHED_SEEDS=from..to");
    from.parse().expect("a number")..to.parse().expect("a number")
}
