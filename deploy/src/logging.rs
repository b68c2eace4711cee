//! Logs, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use watershed_shared::log::QUIET_LOG_DIRECTIVES;

/// What others log of what is expected, or is told once by whoever asked for it: a table that is not there yet, each
/// call that the storage refuses.
const EXPECTED: &str = "buoyant_kernel::snapshot::builder=off,deltalake_core::logstore=off,hdfs_native=error";

/// Starts logging: warnings, or what `RUST_LOG` says.
pub(crate) fn start() {
    let quiet = || EnvFilter::new(format!("warn,{EXPECTED},{}", QUIET_LOG_DIRECTIVES.join(",")));
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| quiet());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    subscriber.init();
}
