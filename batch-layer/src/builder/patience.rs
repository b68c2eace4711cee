//! What a build does while the storage is away.

use std::time::Duration;

use watershed_shared::builds::BuildStatus;
use watershed_shared::clock::{self, Instant};
use watershed_shared::storage;

use super::Inner;
use super::execute::{Stopped, failed};

/// How long the storage may be away at a time: a NameNode may restart.
const STORAGE_WAIT: Duration = Duration::from_secs(300);
/// An attempt that fails after as long had a storage until then: it has gone away anew.
const WORKED: Duration = Duration::from_secs(60);
/// How often it may. What fails at the same place each time must not be tried for ever.
const MOST_TIMES: u32 = 5;
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// With a storage that goes away under a step that is then done again from its beginning.
#[derive(Debug)]
pub(super) struct Patience {
    /// The attempt that is under way.
    begun: Instant,
    /// Since the storage went away last.
    until: Option<Instant>,
    times: u32,
    backoff: Duration,
}

impl Patience {
    /// At the beginning of the first attempt.
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), until: None, times: 0, backoff: FIRST_BACKOFF }
    }

    /// Waits before `step` is tried again; the end of the build if that would not help, or has not helped for long.
    pub(super) async fn wait(
        &mut self,
        inner: &Inner,
        status: &mut BuildStatus,
        step: &str,
        error: anyhow::Error,
    ) -> Result<(), Stopped> {
        // SUBTLE: of some errors the engine's readers hand on the text alone. That reads fail just now is known all the same.
        let reads = || inner.storage.health().reads.map(|trouble| trouble.error);
        let away = storage::unavailable(error.as_ref()).or_else(reads);
        let away = away.filter(|_| !storage::needs_somebody(error.as_ref()));
        let Some(said) = away.filter(|_| self.lasts()) else { return Err(failed(step)(error)) };
        tracing::warn!(view = %status.view, build = %status.id, error = said, "a build waits for the storage");
        let before = std::mem::replace(&mut status.progress.step, format!("waiting for the storage: {said}"));
        inner.history.show(status);
        self.pause().await;
        status.progress.step = before;
        inner.history.show(status);
        Ok(())
    }

    /// Whether the step is tried again after an attempt that has just failed.
    fn lasts(&mut self) -> bool {
        let now = Instant::now();
        if self.until.is_some_and(|until| now < until) {
            return true;
        }
        let anew = self.until.is_none() || now - self.begun >= WORKED;
        if !anew || self.times == MOST_TIMES {
            return false;
        }
        self.times += 1;
        self.until = Some(now + STORAGE_WAIT);
        self.backoff = FIRST_BACKOFF;
        true
    }

    async fn pause(&mut self) {
        clock::sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
        self.begun = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long attempts of this length each go on.
    async fn goes_on(attempt: Duration, most: Duration) -> Duration {
        let started = Instant::now();
        let mut patience = Patience::new();
        loop {
            clock::sleep(attempt).await;
            if !patience.lasts() || started.elapsed() > most {
                return started.elapsed();
            }
            patience.pause().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_storage_that_stays_away_is_waited_for_once() {
        let waited = goes_on(Duration::from_secs(1), Duration::MAX).await;
        assert!(waited >= STORAGE_WAIT && waited < STORAGE_WAIT + Duration::from_secs(20), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_build_of_hours_waits_as_a_short_one_does() {
        let hours = Duration::from_secs(3 * 60 * 60);
        let mut patience = Patience::new();
        clock::sleep(hours).await;
        assert!(patience.lasts(), "the storage went away just now");
        patience.pause().await;
        assert!(patience.lasts());
        clock::sleep(hours).await;
        assert!(patience.lasts(), "and once more");
        let ended = goes_on(hours, 100 * hours).await;
        assert!(ended > 5 * hours && ended < 10 * hours, "but not for ever: {ended:?}");
    }
}
