//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use watershed_shared::config::Config;

use crate::commands;
use crate::failure::{Failure, Outcome};

/// Watershed: exact views over event streams, merged from a batch layer and a speed layer.
///
/// Exit status: 0 done, 1 it failed, 2 the command line or the configuration is wrong. Results go to standard output,
/// all else to standard error.
#[derive(Debug, Parser)]
#[command(name = "watershed", version, max_term_width = 120)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) platform: PlatformArgs,
    /// How results are printed: for people, or as one JSON document.
    #[arg(long, global = true, value_enum, default_value_t = OutputFormat::Text, value_name = "FORMAT")]
    pub(crate) format: OutputFormat,
}

/// Where the configuration and the running platform are.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlatformArgs {
    /// The configuration file [default: watershed.toml in the current folder, if there is one].
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The running platform [default: where the configuration's platform listens]. The bearer token is taken from
    /// the environment variable WATERSHED_TOKEN.
    #[arg(long, global = true, env = "WATERSHED_URL", value_name = "URL")]
    pub(crate) url: Option<String>,
}

impl PlatformArgs {
    /// The configuration that `-c` names, else that of the current folder, else the embedded defaults.
    pub(crate) fn configuration(&self) -> Outcome<Config> {
        Config::load(self.config.as_deref()).map_err(Failure::Configuration)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    #[value(alias = "table")]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the platform.
    Up(commands::up::Options),
    /// Run the platform on embedded defaults, fed with generated events, and show what is special about it.
    Demo(commands::demo::Options),
    /// Print every configuration key with its type, default and documentation.
    Config,
    /// Check the configuration and compile every view; nothing is started or written.
    ///
    /// Prints for each view its columns, kind, aggregates and their states, what changing over to it costs, and the next
    /// five times of its schedules. Errors have their place in the file: {"file", "line", "column", "message"}.
    Check,
    Produce(commands::produce::ProduceArgs),
    /// Run SQL against a running platform.
    Query(commands::query::QueryArgs),
    /// Start a build of a view: a rebuild from all events, or a refresh.
    Rebuild(commands::rebuild::RebuildArgs),
    /// List builds: history and progress.
    Rebuilds(commands::rebuilds::RebuildsArgs),
    /// Stop a build.
    Cancel(commands::cancel::CancelArgs),
    /// List a view's generations.
    Generations(commands::generations::GenerationsArgs),
    /// Compare two generations of a view.
    Diff(commands::diff::DiffArgs),
    /// Return a view to another generation.
    ///
    /// One of another definition pauses the schedules of the view.
    Activate(commands::activate::ActivateArgs),
    /// Record the definitions of views as they are configured, without a restart: the next builds are theirs.
    Reload(commands::reload::ReloadArgs),
    /// Recount a view from the master dataset and the log, and compare it with what is served.
    Verify(commands::verify::VerifyArgs),
    /// Accept what a stream has lost: offsets that the log dropped before they were archived.
    ///
    /// They stay listed in `status`; answers count as complete again.
    AcceptLoss(commands::accept_loss::AcceptLossArgs),
    /// Show streams, views, freshness, lag and schedules.
    Status,
}
