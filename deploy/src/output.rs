//! Standard output, for results.

use std::io::{ErrorKind, Write};

use anyhow::Context;

use crate::failure::Outcome;

/// Writes `text` and a line break, unless it ends with one. A reader that went away early, as `head` does, has what it
/// wanted: that is no error.
pub(crate) fn print(text: &str) -> Outcome {
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    let mut out = std::io::stdout().lock();
    match write!(out, "{text}{newline}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Ok(Err(error).context("write the result")?),
        _ => Ok(()),
    }
}
