//! Waiting for a condition, in steps that are counted: a machine that sleeps or is busy waits longer, never shorter.

use std::time::Duration;

use anyhow::{Result, bail};

const STEP: Duration = Duration::from_millis(50);
/// Some two minutes on a quiet machine; a start takes seconds.
const STEPS: usize = 2400;

/// Asks `ready` until it answers `Some`; its error ends the waiting.
pub(super) fn until<T>(what: &str, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    for _ in 0..STEPS {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        std::thread::sleep(STEP);
    }
    bail!("{what}: not within {} seconds", (STEP * STEPS as u32).as_secs())
}
