//! What is wrong with a configuration file, and where.

use std::fmt;

/// One thing that is wrong with the configuration. Serializes as `{"file", "line", "column", "message"}`.
///
/// `line` and `column` count from 1, columns in characters. A file that could not be read at all has line and column 1.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ConfigError {
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

impl std::error::Error for ConfigError {}
