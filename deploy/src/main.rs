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

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start();
    if let Err(unknown) = watershed_shared::mutant::told() {
        eprintln!("error: {unknown}");
        return ExitCode::from(2);
    }
    let format = cli.format;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
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
