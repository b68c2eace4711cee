//! The `watershed` program: the command line, and the platform put together from its layers.

mod builds;
mod cli;
mod client;
mod commands;
mod failure;
mod logging;
mod output;
mod platform;
mod shutdown;
mod table;

use std::process::ExitCode;

use clap::Parser;

use self::cli::Cli;

/// Threads for tasks, even on fewer cores. A task that is busy for some milliseconds, as one with a micro-batch is, holds up
/// all that waits for its thread; threads pass each other.
const MIN_THREADS: usize = 4;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start();
    if let Err(unknown) = watershed_shared::mutant::told() {
        eprintln!("error: {unknown}");
        return ExitCode::from(2);
    }
    let format = cli.format;
    let threads = std::thread::available_parallelism().map_or(MIN_THREADS, |cores| cores.get().max(MIN_THREADS));
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(commands::run(cli));
    // A reader of standard input may be blocked for ever; nobody waits for it.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(format),
    }
}
