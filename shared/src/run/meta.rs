//! What is recorded of a run.

use serde::{Deserialize, Serialize};

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
    /// Groups in the run.
    pub rows: u64,
    /// The offsets whose events it counts.
    pub coverage: Coverage,
    /// Events in `coverage` on which the view's SQL failed, left out of the states.
    pub errors: u64,
    /// Parquet of `_partition, _offset, error`, path under the storage URL; `None` when there are none.
    pub errors_file: Option<String>,
}

/// An event on which a view's SQL fails: it is left out of the view and listed in `view_errors.<view>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventError {
    pub partition: PartitionId,
    pub offset: Offset,
    pub error: String,
}
