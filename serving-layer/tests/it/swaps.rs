//! Swaps of generations and deltas under requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use watershed_shared::catalog::BuildMode;
use watershed_shared::offsets::{Offset, OffsetVector};

use crate::world::{ORIGINS, PLAIN, World, assert_same, position_of};

/// A random vector between two.
fn between(random: &mut StdRng, from: &OffsetVector, to: &OffsetVector) -> OffsetVector {
    let from = OffsetVector::from(ORIGINS).join(from);
    to.iter().map(|(p, end)| (p, Offset(random.random_range(from.get(p).unwrap().0..=end.0)))).collect()
}

async fn run(seed: u64) {
    println!("seed {seed}");
    let world = Arc::new(World::new(seed, 120).await);
    let done = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut readers = Vec::new();
    for view in PLAIN {
        let (world, done, answered) = (Arc::clone(&world), Arc::clone(&done), Arc::clone(&answered));
        readers.push(watershed_shared::task::spawn("reader", async move {
            let mut last = OffsetVector::new();
            loop {
                let ending = done.load(Ordering::Relaxed);
                let (status, answer) = world.get(&format!("/v1/views/{view}")).await;
                assert_eq!(status, 200, "seed {seed}: {view}: {answer}");
                let position = position_of(&answer, view);
                assert!(position.covers(&last), "seed {seed}: {view} went back from {last} to {position}");
                let expected = world.truth(view, &position).await;
                assert_same(
                    answer["rows"].as_array().unwrap(),
                    &expected,
                    &format!("seed {seed}: {view} at {position}"),
                );
                last = position;
                answered.fetch_add(1, Ordering::Relaxed);
                if ending {
                    return last;
                }
            }
        }));
    }
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..25 {
        let view = PLAIN[random.random_range(0..PLAIN.len())];
        let position = OffsetVector::from(ORIGINS).join(&world.delta.position());
        match random.random_range(0..10) {
            0..4 => world.advance(&between(&mut random, &position, world.end())).await,
            4..6 => {
                let newest =
                    world.registers[view].borrow().active_generation().map(|g| g.cut.clone()).unwrap_or_default();
                let mode = if random.random() { BuildMode::Rebuild } else { BuildMode::Refresh };
                // SUBTLE: a cut needs a boundary in the delta: the position is one.
                let cut = if newest == position { continue } else { position };
                world.build(view, &cut, mode).await;
            }
            6..8 => world.merge(view, random.random_range(0..4)).await,
            8 => world.collect(view).await,
            _ => {
                let cut = world.registers[view].borrow().active_generation().map(|g| g.cut.clone()).unwrap_or_default();
                world.lose(view, &cut);
                tokio::task::yield_now().await;
                let half = between(&mut random, &cut, &position);
                world.replay(view, &half).await;
                world.replay(view, &position).await;
            }
        }
        tokio::task::yield_now().await;
    }
    world.advance(world.end()).await;
    world.settle().await;
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        assert_eq!(&reader.await.unwrap(), world.end(), "seed {seed}: the last answer has everything");
    }
    assert!(answered.load(Ordering::Relaxed) >= 2 * PLAIN.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_the_truth_at_their_position_whatever_is_swapped() {
    let seeds: Vec<u64> = match std::env::var("WATERSHED_SEEDS") {
        Ok(seeds) => seeds.split(',').map(|s| s.parse().expect("seeds are numbers")).collect(),
        Err(_) => (0..4).collect(),
    };
    for seed in seeds {
        run(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_replays_answers_as_before_until_it_is_back() {
    let world = World::new(5, 60).await;
    let half: OffsetVector = [(0, 30), (1, 40)].into();
    world.advance(&half).await;
    world.build("per_who", &[(0, 30), (1, 40)].into(), BuildMode::Rebuild).await;
    let there: OffsetVector = [(0, 45), (1, 50)].into();
    world.advance(&there).await;
    world.settle().await;
    let (_, before) = world.get("/v1/views/per_who").await;
    world.lose("per_who", &half);
    watershed_shared::clock::sleep(std::time::Duration::from_millis(50)).await;
    let (status, during) = world.get("/v1/views/per_who").await;
    assert_eq!(status, 200);
    assert_eq!(position_of(&during, "per_who"), there);
    assert_same(during["rows"].as_array().unwrap(), before["rows"].as_array().unwrap(), "as before");
    // The others go on; a statement over both waits for the one, and says so.
    world.advance(world.end()).await;
    world.replay("per_who", &[(0, 46), (1, 50)].into()).await;
    // Only once the front has seen the others at the end are they ahead of the one.
    let (status, others) =
        world.get("/v1/views/totals?wait_for=%7B%220%22%3A60%2C%221%22%3A67%7D&timeout_ms=60000").await;
    assert_eq!((status, position_of(&others, "totals")), (200, world.end().clone()));
    let sql = r#"{"sql": "SELECT (SELECT sum(events) FROM per_who) AS a, (SELECT events FROM totals) AS b", "timeout_ms": 100}"#;
    let (status, error) = world.request("POST", "/v1/query", sql).await;
    assert_eq!(status, 504, "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("`per_who` is behind"), "{error}");
    world.replay("per_who", world.end()).await;
    let (status, answer) = world.request("POST", "/v1/query", &sql.replace("100", "60000")).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["rows"][0]["a"], 120);
    assert_eq!(answer["rows"][0]["b"], 120);
}
