//! What can go wrong with a view: when it is compiled, and when it runs.

use datafusion::common::DataFusionError;
use serde::Serialize;

use super::place::SqlPlace;

/// Why a view's SQL is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct CompileError {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// In the SQL text, from 1.
    pub line: usize,
    /// In the SQL text, from 1.
    pub column: usize,
}

impl CompileError {
    pub(crate) fn new(place: SqlPlace, message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, line: place.line, column: place.column }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Why a compiled view could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine failed: memory, storage, or a value that an aggregate itself refuses.
    #[error("the view's plan failed. view=`{view}`")]
    Engine {
        view: String,
        #[source]
        source: DataFusionError,
    },
    /// Events or states are not in the schema that the view was compiled for. They come from another definition, or
    /// are damaged: do not use them.
    #[error("columns do not fit the view: {detail}. view=`{view}`")]
    Mismatch { view: String, detail: String },
}
