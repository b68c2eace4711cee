//! What is recorded of a run.

use serde::{Deserialize, Serialize};

use super::Tail;
use crate::names::RunId;
use crate::offsets::{Coverage, Offset, PartitionId};

/// A run of a generation, as a view's register names it. The file is durable before any record names it, and never
/// changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunMeta {
    pub id: RunId,
    /// Path under the storage URL.
    pub file: String,
    pub size_bytes: u64,
    /// Against which the file is checked; runs of older releases have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<Tail>,
    /// Groups in the run.
    pub rows: u64,
    /// The offsets whose events it counts.
    pub coverage: Coverage,
    /// Events in `coverage` on which the view's SQL failed, left out of the states.
    pub errors: u64,
    /// Parquet of `_partition, _offset, error`, path under the storage URL; `None` when there are none.
    pub errors_file: Option<String>,
    /// CRC-32 of that file; those of older releases have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors_crc32: Option<u32>,
}

/// An event on which a view's SQL fails: it is left out of the view and listed in `view_errors.<view>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventError {
    pub partition: PartitionId,
    pub offset: Offset,
    pub error: String,
}
