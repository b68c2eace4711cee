use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use object_store::path::Path;
use parquet::errors::ParquetError;

use crate::storage;

/// Why a run was not written. What was written of it is deleted or will be collected; write it again under another name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan that yields the states failed.
    #[error(transparent)]
    States(#[from] DataFusionError),
    #[error("the states are not in the strictly ascending order of their keys. row=`{row}`")]
    NotSorted { row: u64 },
    #[error("the states have fewer columns than keys. keys=`{keys}`, columns=`{columns}`")]
    TooFewColumns { keys: usize, columns: usize },
    #[error(
        "the states do not have the schema that they were announced with. announced=`{announced}`, found=`{found}`"
    )]
    OtherSchema { announced: String, found: String },
    /// Parquet would give back another type than it was given.
    #[error("the states' schema does not survive Parquet. given=`{given}`, read=`{read}`")]
    SchemaNotKept { given: String, read: String },
    #[error("cannot encode the run. path=`{path}`")]
    Encode {
        path: Path,
        #[source]
        source: ParquetError,
    },
    #[error("cannot compare the keys of the states")]
    Keys(#[source] ArrowError),
    #[error("cannot store the run. path=`{path}`")]
    Store {
        path: Path,
        #[source]
        source: object_store::Error,
    },
    #[error(transparent)]
    Storage(#[from] storage::Error),
}
