//! SIGTERM and Ctrl-C.

use tokio_util::sync::CancellationToken;
use watershed_shared::task;

/// A token that SIGTERM or Ctrl-C cancels; from then on neither ends the process by itself. A second one ends it at
/// once, with status 130.
pub(crate) fn on_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let cancelled = token.clone();
    task::spawn("signals", async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if cancelled.is_cancelled() {
                eprintln!("ended at once by a second signal");
                std::process::exit(130);
            }
            cancelled.cancel();
        }
    });
    Ok(token)
}
