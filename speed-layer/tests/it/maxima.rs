//! The running maxima in front of a worker's position, as its snapshots have them.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use watershed_shared::delta::{DeltaService, Maximum, StreamDelta};
use watershed_shared::offsets::{Cut, OffsetVector, PartitionId};
use watershed_speed_layer::{DeltaStore, MemoryStore};

use crate::world::{Log, Running, Sums, options, plan};

const PARTITION: PartitionId = PartitionId(0);

fn maximum(delta: &StreamDelta) -> Maximum {
    delta.partitions.get(&PARTITION).map_or(Maximum::Unknown, |status| status.event_time_max)
}

/// Starts a worker on a log of 100 events and more, its view from `cut` on.
fn start(log: &Log, cut: Cut, store: &Arc<MemoryStore>) -> Running {
    let sums = Sums { modulus: 7, broken: Arc::default() };
    let plans = watch::Sender::new(Arc::new(vec![plan("a", &sums, vec![cut.clone()], cut)]));
    let origins = watch::Sender::new([(0, 0)].into());
    Running::start(log, &plans, &origins, Arc::clone(store) as Arc<dyn DeltaStore>, options())
}

fn log() -> Log {
    let origins: OffsetVector = [(0, 0)].into();
    let log = Log::new(3, &origins);
    log.append(PARTITION, 100, &mut StdRng::seed_from_u64(3));
    log
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_maximum_is_unknown_until_it_is_read_and_then_said_though_nothing_comes() {
    let log = log();
    log.maximum.send_replace(None);
    let running = start(&log, log.end(), &Arc::default());
    let at_end = |delta: &StreamDelta| delta.position == log.end() && !delta.views.is_empty();
    let delta = running.until("at the cut", at_end).await;
    assert_eq!(maximum(&delta), Maximum::Unknown);
    log.maximum.send_replace(Some(Maximum::Known(Some(9))));
    let delta = running.until("known", |delta| maximum(delta) != Maximum::Unknown).await;
    assert_eq!((maximum(&delta), &delta.position), (Maximum::Known(Some(9)), &log.end()));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_maximum_holds_where_it_was_stored_and_nowhere_else() {
    let log = log();
    let store = Arc::<MemoryStore>::default();
    log.maximum.send_replace(Some(Maximum::Known(Some(5))));
    let running = start(&log, Cut::new(), &store);
    let stored = log.end();
    running.until("at the end", |delta| delta.position == stored).await;
    assert_eq!(running.handle.seal().await.unwrap(), stored);
    running.stop().await;

    // Nobody says it any more but the store.
    log.maximum.send_replace(None);
    let running = start(&log, Cut::new(), &store);
    let delta = running.until("restored", |delta| delta.position == stored && !delta.views.is_empty()).await;
    assert_eq!(maximum(&delta), Maximum::Known(Some(5)));
    running.stop().await;

    // A build passed what was stored while the worker was down.
    log.append(PARTITION, 50, &mut StdRng::seed_from_u64(4));
    let running = start(&log, log.end(), &store);
    let delta = running.until("at the cut", |delta| delta.position == log.end() && !delta.views.is_empty()).await;
    assert_eq!(maximum(&delta), Maximum::Unknown);
    log.maximum.send_replace(Some(Maximum::Known(Some(8))));
    let delta = running.until("known", |delta| maximum(delta) != Maximum::Unknown).await;
    assert_eq!(maximum(&delta), Maximum::Known(Some(8)));
    running.stop().await;
}
