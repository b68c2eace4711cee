//! What `retain` hides, wherever the delta stands and whatever its workers know.

use serde_json::Value;
use watershed_shared::catalog::BuildMode;
use watershed_shared::offsets::{OffsetVector, PartitionId};

use crate::world::{PATIENCE, World, assert_same, position_of, rows_of};

const VIEW: &str = "recent";

/// The view at `position`, which it has reached, is what its SQL gives over the events below it, without the old groups.
async fn check(world: &World, position: &OffsetVector, when: &str) {
    let mut answers = world.serving.answers("clicks").unwrap();
    let reached = answers.wait_for(|now| now.views.get(VIEW).is_some_and(|view| view.position == *position));
    drop(tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{when}: not at {position}")));
    let (status, answer) = world.get("/v1/views/recent?limit=1000").await;
    assert_eq!(status, 200, "{when}: {answer}");
    assert_eq!(&position_of(&answer, VIEW), position, "{when}");
    let events = world.events(&OffsetVector::new(), position);
    let all = world.truth(VIEW, position).await;
    let sql = &world.config.views[VIEW].sql;
    let shown = format!("SELECT * FROM ({sql}) WHERE hour >= (SELECT max(at) - INTERVAL '12 hours' FROM clicks)");
    let shown: Vec<Value> = rows_of(&shown, &events).await;
    assert!(shown.len() < all.len(), "{when}: nothing is old enough to be hidden");
    assert_same(answer["rows"].as_array().unwrap(), &shown, when);
}

/// Nobody keeps partition 1 up any more.
fn leave(world: &World) {
    world.delta.publish(
        |views| {
            for view in views.values_mut() {
                view.unowned = [PartitionId(1)].into();
            }
        },
        world.end(),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_without_owner_stands_at_the_cut_and_the_others_go_on_past_the_archive() {
    let world = World::new(4, 600).await;
    world.advance(&[(0, 400), (1, 300)].into()).await;
    leave(&world);
    // The archive and a build pass the partition that stands still.
    world.build(VIEW, &[(0, 400), (1, 500)].into(), BuildMode::Rebuild).await;
    check(&world, &[(0, 400), (1, 500)].into(), "the build").await;
    world.advance(&[(0, 550)].into()).await;
    check(&world, &[(0, 550), (1, 500)].into(), "the others go on").await;
    let last = [(0, 600), (1, 500)].into();
    world.advance(&[(0, 600)].into()).await;
    check(&world, &last, "at the end").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_no_worker_has_shown_is_asked_of_the_master_dataset() {
    let world = World::new(5, 600).await;
    world.advance(&[(0, 450)].into()).await;
    world.build(VIEW, &[(0, 450), (1, 600)].into(), BuildMode::Rebuild).await;
    world.advance(&[(0, 460)].into()).await;
    check(&world, &[(0, 460), (1, 600)].into(), "the build").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_know_its_maxima_yet_hides_what_was_hidden() {
    let world = World::new(6, 600).await;
    let cut: OffsetVector = [(0, 500), (1, 550)].into();
    world.advance(&cut).await;
    world.build(VIEW, &cut, BuildMode::Rebuild).await;
    check(&world, &cut, "before").await;
    // Another worker takes over where everything is archived, and nothing comes.
    world.delta.partitions.lock().clear();
    world.delta.publish(|_| {}, world.end());
    world.settle().await;
    let unknown = |now: &watershed_serving_layer::StreamAnswer| now.position == cut;
    assert!(unknown(&world.serving.answers("clicks").unwrap().borrow()));
    check(&world, &cut, "after").await;
}
