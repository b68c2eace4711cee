//! The merging task: it keeps the number of runs logarithmic, apart from ingestion.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use watershed_shared::abort_point;
use watershed_shared::clock;

use crate::worker::Shared;
use crate::{compute, reasons};

const REPORTER: &str = "merges";

/// Merges what there is to merge until `stop`.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let order = shared.board.lock().next_merge(shared.options.max_run_bytes);
        let Some(order) = order else {
            if stop.run_until_cancelled(shared.merge_wanted.notified()).await.is_none() {
                return;
            }
            continue;
        };
        let merge = compute::merge(Arc::clone(&order.maker), order.inputs.clone());
        let Some(merged) = stop.run_until_cancelled(merge).await else {
            return;
        };
        abort_point!(process "speed.merged");
        match merged {
            Ok(run) => {
                let mut board = shared.board.lock();
                if board.replace(&order, run) {
                    shared.counts.lock().merges += 1;
                }
                board.report(REPORTER, None);
            }
            Err(error) => {
                tracing::error!(view = %order.key.0, definition = %order.key.1, %error, "runs cannot be merged");
                shared.board.lock().report(REPORTER, Some(reasons::merging(&order.key.0, &error)));
                if stop.run_until_cancelled(clock::sleep(shared.options.retry * 10)).await.is_none() {
                    return;
                }
            }
        }
        shared.merged.notify_waiters();
    }
}
