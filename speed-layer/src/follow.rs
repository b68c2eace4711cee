//! The following task: it takes over what the registers say, and starts the replays that follow from it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use watershed_shared::clock::{self, Instant};
use watershed_shared::offsets::OffsetVector;

use crate::ingest::ORIGINS;
use crate::replay;
use crate::states::ViewPlan;
use crate::worker::Shared;

/// Follows `plans` and `origins` until `stop`. Replays end with it.
pub(crate) async fn run(
    shared: Arc<Shared>,
    mut plans: watch::Receiver<Arc<Vec<ViewPlan>>>,
    mut origins: watch::Receiver<OffsetVector>,
    stop: CancellationToken,
) {
    let mut replays = JoinSet::new();
    let mut plans_open = true;
    let mut origins_open = true;
    loop {
        start_replays(&shared, &mut replays);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = plans.changed(), if plans_open => {
                plans_open = changed.is_ok();
                let wanted = Arc::clone(&plans.borrow_and_update());
                shared.board.lock().follow(&wanted);
                // Boundaries that dissolved may have kept runs apart.
                shared.merge_wanted.notify_one();
            }
            changed = origins.changed(), if origins_open => {
                origins_open = changed.is_ok();
                {
                    let mut board = shared.board.lock();
                    board.add_origins(&origins.borrow_and_update());
                    board.report(ORIGINS, None);
                }
                shared.reopen.notify_one();
            }
            () = shared.work_wanted.notified() => {}
            Some(ended) = replays.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(stream = %shared.config.name, %error, "replay ended by itself");
                }
            }
            () = clock::sleep(shared.options.retry) => {
                let now = Instant::now();
                let mut board = shared.board.lock();
                board.expire_seals(now);
                board.rejoin(now);
                shared.merge_wanted.notify_one();
            }
        }
    }
}

fn start_replays(shared: &Arc<Shared>, replays: &mut JoinSet<()>) {
    let (fills, resplits) = {
        let mut board = shared.board.lock();
        (board.take_fills(), board.take_resplits())
    };
    {
        let mut counts = shared.counts.lock();
        counts.replays += fills.len() as u64;
        counts.resplits += resplits.len() as u64;
    }
    for order in fills {
        replays.spawn(replay::fill(Arc::clone(shared), order));
    }
    for order in resplits {
        replays.spawn(replay::resplit(Arc::clone(shared), order));
    }
}
