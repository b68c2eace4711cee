//! What can go wrong with a master dataset.

use deltalake_core::DeltaTableError;
use deltalake_core::kernel::transaction::TransactionError;

use crate::offsets::{Offset, PartitionId};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is decided: a commit may have happened. Take a new snapshot and go on from what it says.
    #[error("the storage of the master dataset failed")]
    Storage(#[from] object_store::Error),
    /// Nothing was committed.
    #[error("a file of the master dataset could not be stored")]
    Store(#[from] crate::storage::Error),
    /// As [`Error::Storage`].
    #[error("the Delta table could not be read. table=`{table}`")]
    Delta {
        table: String,
        #[source]
        source: Box<DeltaTableError>,
    },
    /// The table was written under other columns. Declare those, or declare a new stream under another name.
    #[error(
        "the table has other columns than the stream declares; declare the stream's columns as the table has them, or \
         declare a new stream. table=`{table}`, column=`{column}`, declared=`{declared}`, table has=`{found}`"
    )]
    SchemaDiffers { table: String, column: String, declared: String, found: String },
    #[error("a declared column can't be stored in a Delta table. table=`{table}`")]
    Unstorable {
        table: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another program has switched on a feature that this one does not have.
    #[error("the table needs Delta features that Watershed does not have. table=`{table}`, protocol=`{protocol}`")]
    Protocol { table: String, protocol: String },
    /// The table holds the events of a topic that was deleted and created again.
    #[error(
        "the table holds events of another topic of this name; declare a new stream for the present topic. \
         table=`{table}`, table's topic=`{stored}`, present topic=`{present}`"
    )]
    TopicReplaced { table: String, stored: String, present: String },
    /// A hole in the offsets, or offsets twice.
    #[error(
        "a batch does not begin where the last one ended. partition=`{partition}`, expected=`{expected}`, begins=`{found}`"
    )]
    NotContiguous { partition: PartitionId, expected: Offset, found: Offset },
    #[error("not archived yet. partition=`{partition}`, until=`{until}`, archived until=`{archived}`")]
    NotArchived { partition: PartitionId, until: Offset, archived: String },
    #[error("the table's log says what it can't say: {what}")]
    Corrupt { what: String },
    #[error("a file of the master dataset could not be written")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the master dataset could not be read")]
    Query(#[from] datafusion::error::DataFusionError),
    #[cfg(any(test, feature = "testing"))]
    #[error(transparent)]
    Aborted(#[from] crate::abort_point::Aborted),
}

impl Error {
    /// Whether to try again would be wrong, however often.
    pub fn is_final(&self) -> bool {
        match self {
            Self::TopicReplaced { .. } => true,
            #[cfg(any(test, feature = "testing"))]
            Self::Aborted(_) => true,
            _ => false,
        }
    }

    /// Whether the same may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Storage(_) | Self::Store(_) | Self::Delta { .. } | Self::Query(_) => {
                !crate::storage::needs_somebody(self)
            }
            Self::NotArchived { .. } => true,
            Self::SchemaDiffers { .. }
            | Self::Unstorable { .. }
            | Self::Protocol { .. }
            | Self::TopicReplaced { .. }
            | Self::NotContiguous { .. }
            | Self::Corrupt { .. }
            | Self::Encode(_) => false,
            #[cfg(any(test, feature = "testing"))]
            Self::Aborted(_) => false,
        }
    }
}

/// Whether a query failed since a file is gone: its snapshot is older than the vacuum's retention.
///
/// Take a new snapshot and start the query again: any later version has the same rows below the same offsets.
pub fn misses_a_file(error: &datafusion::error::DataFusionError) -> bool {
    missed_file(error).is_some()
}

/// The file that is gone, of an error that [`misses_a_file`].
pub fn missed_file<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a str> {
    crate::storage::causes(error).find_map(|cause| match cause.downcast_ref() {
        Some(object_store::Error::NotFound { path, .. }) => Some(path.as_str()),
        _ => None,
    })
}

pub(super) fn from_delta(table: &str) -> impl Fn(DeltaTableError) -> Error + '_ {
    |source| match source {
        DeltaTableError::ObjectStore { source } => Error::Storage(source),
        source => Error::Delta { table: table.to_owned(), source: Box::new(source) },
    }
}

pub(super) fn from_commit(table: &str) -> impl Fn(TransactionError) -> Error + '_ {
    |source| from_delta(table)(source.into())
}
