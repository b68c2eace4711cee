//! Named tasks: a task that panics is reported with its name, never lost in silence.

use std::future::Future;

use futures::FutureExt;
use tokio::task::JoinHandle;
use tracing::Instrument;

/// Spawns `future` on the current runtime under `name`.
///
/// A panic is logged as an ERROR with the name and then resumed, so that the handle shows it too.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn spawn<T>(name: &'static str, future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T>
where
    T: Send + 'static,
{
    let guarded = async move {
        match std::panic::AssertUnwindSafe(future).catch_unwind().await {
            Ok(value) => value,
            Err(panic) => {
                tracing::error!(task = name, "task panicked");
                std::panic::resume_unwind(panic)
            }
        }
    };
    tokio::spawn(guarded.instrument(tracing::info_span!("task", name)))
}
