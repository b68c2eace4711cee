//! `watershed up`: runs the platform until SIGTERM or Ctrl-C.

use std::fmt;

use anyhow::Result;
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

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Batch => "batch",
            Self::Speed => "speed",
            Self::Serving => "serving",
        })
    }
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
    let platform = Platform::start(config, options.role).await?;
    let kafka = &platform.bootstrap_servers;
    match options.role {
        Role::All => eprintln!("watershed is up: http://{}, Kafka at {kafka}", platform.http),
        role => eprintln!("watershed {role} is up: http://{}, Kafka at {kafka}", platform.http),
    }
    let outcome = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        error = platform.failed() => Err(error),
    };
    platform.stop().await;
    outcome
}
