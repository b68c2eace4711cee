//! The only place that reads a clock. Everything runs on tokio's clock, so that a test with paused time owns it;
//! the wall clock is only ever shown or stored, it never decides what an answer holds.

use std::time::Duration;

pub use tokio::time::Instant;

/// The wall clock in UTC, for records that people read and for schedules.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> chrono::DateTime<chrono::Utc> {
    chrono::Utc::now()
}

/// Waits on tokio's clock. Cancel safe.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}
