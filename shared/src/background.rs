//! Work that may take its time, on threads that give way to all others: builds, and encoding for the master dataset.
//!
//! SUBTLE: on a machine with as many such threads as cores, an event would otherwise wait behind them for tens of
//! milliseconds on its way to an answer, and so would the answer.

use std::future::Future;
use std::sync::LazyLock;

use thread_priority::{ThreadPriority, ThreadPriorityValue, set_current_thread_priority};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

/// Niceness 9 on Linux: an eighth of the processor's time that a thread at 0 gets, when both want it.
const PRIORITY: u8 = 23;

/// One for the process, as its cores are; it lives as long as the process.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let give_way = || {
        let value = ThreadPriorityValue::try_from(PRIORITY).expect("it is below the greatest value");
        if let Err(error) = set_current_thread_priority(ThreadPriority::Crossplatform(value)) {
            // It works as well, and disturbs more.
            tracing::debug!(%error, "a background thread keeps its priority");
        }
    };
    let mut builder = Builder::new_multi_thread();
    let builder = builder.enable_all().thread_name("background").on_thread_start(give_way);
    builder.build().expect("the system gives the process a few more threads at its first background work")
});

/// Runs `future`, and all that it spawns, in the background. Dropping the call ends it at its next await.
///
/// # Errors
/// It panicked.
pub async fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Result<T, JoinError> {
    AbortOnDropHandle::new(RUNTIME.spawn(future)).await
}

/// Runs `work`, which keeps a thread busy, in the background. Dropping the call does not end it.
///
/// # Errors
/// It panicked.
pub async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    RUNTIME.spawn_blocking(work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn background_threads_are_nicer_than_others() {
        // Of `/proc/thread-self/stat`, counted behind the name in parentheses.
        let niceness = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse::<i32>().unwrap()
        };
        let here = niceness();
        let background = [run(async move { niceness() }).await.unwrap(), run_blocking(niceness).await.unwrap()];
        // Whoever runs this may have been told to be nice, too.
        assert_eq!(background, [9.max(here); 2]);
        assert_eq!(niceness(), here);
    }

    #[tokio::test]
    async fn a_panic_ends_the_work_and_no_more() {
        let told: fn() = || panic!("as told");
        let panics = [run(async move { told() }).await, run_blocking(told).await];
        for panic in panics {
            assert_eq!(panic.unwrap_err().into_panic().downcast_ref::<&str>(), Some(&"as told"));
        }
        run(async {}).await.unwrap();
    }

    #[tokio::test]
    async fn a_dropped_call_ends_its_work() {
        let (alive, mut ended) = tokio::sync::oneshot::channel::<()>();
        let work = run(async move {
            std::future::pending::<()>().await;
            drop(alive);
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), work).await.is_err());
        (&mut ended).await.unwrap_err();
    }
}
