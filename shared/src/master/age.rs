//! For how long files that no commit names may still be committed.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::clock::{self, Instant};

/// The least that a vacuum spares files which no version names: they may be on their way into one.
pub const SHORTEST_VACUUM_RETENTION: Duration = Duration::from_secs(60 * 60);
/// Older files are not committed. The rest of the time is for the commit itself.
const LONGEST_WAY: Duration = SHORTEST_VACUUM_RETENTION.checked_div(2).expect("2 is not 0");

/// When the files of a commit began to be written.
///
/// SUBTLE: a process may be stopped between writing and committing for as long as it likes, and a vacuum then takes its
/// files for those of a lost race. A vacuum that deletes anything commits first, so who was stopped finds its version
/// taken and asks here before it tries the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    /// Stands still while the machine is suspended.
    clock: Instant,
    /// Can be set.
    wall: DateTime<Utc>,
}

impl Written {
    pub(super) fn from_now() -> Self {
        Self { clock: Instant::now(), wall: clock::now() }
    }

    /// Whether the files may have been vacuumed before a commit names them.
    pub(super) fn is_too_long_ago(&self) -> bool {
        let by_wall = (clock::now() - self.wall).to_std().unwrap_or_default();
        self.clock.elapsed().max(by_wall) >= LONGEST_WAY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn either_clock_ages_files() {
        let written = Written::from_now();
        assert!(!written.is_too_long_ago());
        clock::sleep(LONGEST_WAY - Duration::from_secs(1)).await;
        assert!(!written.is_too_long_ago());
        clock::sleep(Duration::from_secs(1)).await;
        assert!(written.is_too_long_ago());

        let set_back = Written { wall: clock::now() + chrono::Duration::days(1), ..Written::from_now() };
        assert!(!set_back.is_too_long_ago());
        let suspended = Written { wall: clock::now() - LONGEST_WAY, ..Written::from_now() };
        assert!(suspended.is_too_long_ago());
    }
}
