//! Removes what writers that were killed left behind in the storage.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use watershed_shared::clock;
use watershed_shared::storage::Storage;

/// How often, and how old leftovers are that nobody can be writing to any more.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Collects at once and then every day, until `shutdown`. Several at once are harmless.
///
/// A failure costs nothing but size: it is logged, and the next turn makes up for it.
pub async fn collect(storage: Storage, shutdown: CancellationToken) {
    loop {
        match shutdown.run_until_cancelled(storage.remove_leftovers(DAY)).await {
            None => return,
            Some(Ok(0)) => {}
            Some(Ok(files)) => tracing::info!(files, "removed what killed writers left behind"),
            Some(Err(error)) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot remove what killed writers left behind, trying again tomorrow"
            ),
        }
        if shutdown.run_until_cancelled(clock::sleep(DAY)).await.is_none() {
            return;
        }
    }
}
