//! `watershed up`: runs the platform until SIGTERM or Ctrl-C.

use anyhow::{Result, bail};
use tokio_util::sync::CancellationToken;
use watershed_shared::config::Config;

use crate::platform::Platform;

/// Which layers a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    All,
    Batch,
    Speed,
    Serving,
}

/// What `up` was asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which layers to run in this process.
    #[arg(long, value_enum, default_value_t = Role::All)]
    role: Role,
}

/// Runs until `shutdown`, or until a part fails that cannot go on.
pub(crate) async fn run(config: &Config, options: Options, shutdown: CancellationToken) -> Result<()> {
    if options.role != Role::All {
        bail!("only `--role all` is built so far: every layer in one process");
    }
    let platform = Platform::start(config).await?;
    eprintln!("watershed is up: http://{}, Kafka at {}", platform.http, platform.bootstrap_servers);
    let outcome = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        error = platform.failed() => Err(error),
    };
    platform.stop().await;
    outcome
}
