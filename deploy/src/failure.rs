//! How a command ends when it does not succeed.

use std::process::ExitCode;

use serde_json::json;
use watershed_shared::config::ConfigError;

use crate::cli::OutputFormat;

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The configuration is wrong. Exit status 2.
    Configuration(Vec<ConfigError>),
    /// The configuration is wrong, and the result, already printed, says how. Exit status 2.
    Refused,
    /// The command line does not fit the configuration, or itself. Exit status 2.
    Usage(String),
    /// It failed. Exit status 1, or 2 if it was the configuration.
    Failed(anyhow::Error),
    /// The result, already printed, is that something failed. Exit status 1.
    Negative,
}

impl Failure {
    /// Writes what is wrong to standard error; with `json`, errors of the configuration also as one document to
    /// standard output.
    pub(crate) fn report(self, format: OutputFormat) -> ExitCode {
        match self {
            Self::Configuration(errors) => {
                if format == OutputFormat::Json {
                    // Standard error has them too.
                    drop(crate::output::print(&format!("{:#}", json!({ "errors": &errors }))));
                }
                for error in &errors {
                    eprintln!("error: {error}");
                }
                ExitCode::from(2)
            }
            Self::Usage(message) => {
                eprintln!("error: {message}");
                ExitCode::from(2)
            }
            Self::Failed(error) => {
                eprintln!("error: {error:#}");
                // What librdkafka refuses only when it is to connect, such as a certificate that is not there.
                let configured = matches!(error.downcast_ref(), Some(watershed_shared::log::Error::Properties { .. }));
                if configured { ExitCode::from(2) } else { ExitCode::FAILURE }
            }
            Self::Negative => ExitCode::FAILURE,
            Self::Refused => ExitCode::from(2),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
