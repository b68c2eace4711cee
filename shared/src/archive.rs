//! How a stream's archiver does, as the layers tell each other.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::delta::Reason;

/// How an archiver does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ArchiverState {
    /// It has not read from the table yet.
    Starting,
    Healthy,
    /// Another archiver of the same stream commits; this one looks on and takes over when that one stops.
    Standby,
    /// It tries again by itself, for ever. Nothing is lost as long as the log keeps what is not archived.
    Retrying {
        since: DateTime<Utc>,
        error: String,
    },
    /// It does not go on in this process: somebody has to act first.
    Stopped {
        at: DateTime<Utc>,
        error: String,
    },
    /// It was told to end.
    Ended,
    /// It runs in another process.
    Elsewhere,
}

impl ArchiverState {
    /// In one word, as `status` and the metrics have it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Standby => "standby",
            Self::Retrying { .. } => "retrying",
            Self::Stopped { .. } => "stopped",
            Self::Ended => "ended",
            Self::Elsewhere => "elsewhere",
        }
    }

    /// Why what is read from the master dataset alone does not advance; `None` while it does.
    pub fn reason(&self) -> Option<Reason> {
        let (code, message) = match self {
            Self::Retrying { since, error } => {
                ("archive_retrying", format!("archiving fails since {since} and is tried again: {error}"))
            }
            Self::Stopped { at, error } => ("archive_stopped", format!("archiving has stopped at {at}: {error}")),
            Self::Starting | Self::Healthy | Self::Standby | Self::Ended | Self::Elsewhere => return None,
        };
        Some(Reason { code: code.to_owned(), partition: None, from: None, to: None, message })
    }
}
