//! One command, one file.

pub(crate) mod accept_loss;
pub(crate) mod activate;
pub(crate) mod cancel;
pub(crate) mod check;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod generations;
pub(crate) mod produce;
pub(crate) mod query;
pub(crate) mod rebuild;
pub(crate) mod rebuilds;
pub(crate) mod reload;
pub(crate) mod status;
pub(crate) mod up;
pub(crate) mod verify;

use watershed_shared::config::Config;

use crate::cli::{Cli, Command, OutputFormat};
use crate::client::{Answer, Client};
use crate::failure::Outcome;
use crate::table::Json;
use crate::{output, shutdown, table};

/// Runs the command.
pub(crate) async fn run(cli: Cli) -> Outcome {
    let (platform, format) = (cli.platform, cli.format);
    match cli.command {
        Command::Up(options) => {
            let config = platform.configuration()?;
            Ok(up::run(&config, options, shutdown::on_signal()?).await?)
        }
        Command::Demo(options) => Ok(demo::run(options, format, shutdown::on_signal()?).await?),
        Command::Config => output::print(&Config::reference()),
        Command::Check => check::run(&platform, format).await,
        Command::Produce(args) => produce::run(&args, &platform, format).await,
        Command::Query(args) => query::run(&args, &Client::new(&platform)?, format).await,
        Command::Rebuild(args) => rebuild::run(&args, &Client::new(&platform)?, format).await,
        Command::Rebuilds(args) => rebuilds::run(&args, &Client::new(&platform)?, format).await,
        Command::Cancel(args) => cancel::run(&args, &Client::new(&platform)?, format).await,
        Command::Generations(args) => generations::run(&args, &Client::new(&platform)?, format).await,
        Command::Diff(args) => diff::run(&args, &Client::new(&platform)?, format).await,
        Command::Activate(args) => activate::run(&args, &Client::new(&platform)?, format).await,
        Command::Reload(args) => reload::run(&args, &platform.configuration()?, format).await,
        Command::Verify(args) => verify::run(&args, &Client::new(&platform)?, format).await,
        Command::AcceptLoss(args) => accept_loss::run(&args, &Client::new(&platform)?, format).await,
        Command::Status => status::run(&Client::new(&platform)?, format).await,
    }
}

/// Prints the answer: as it came for programs, as `render` has it for people.
fn print(answer: &Answer, format: OutputFormat, render: impl FnOnce(&Json) -> String) -> Outcome {
    match format {
        OutputFormat::Json => output::print(&answer.text),
        OutputFormat::Text => output::print(&render(&answer.json()?)),
    }
}

/// The list `name` of the answer as a table, each of its items by `row`, or `none` where it is empty.
fn list_table(answer: &Json, name: &str, none: &str, row: impl Fn(&Json) -> Vec<(&'static str, Json)>) -> String {
    let object = |item| Json::Object(row(item).into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
    match answer.get(name).and_then(Json::list).unwrap_or_default() {
        [] => format!("{none}\n"),
        items => table::rows_table(&items.iter().map(object).collect::<Vec<_>>(), &[]),
    }
}

fn field(of: &Json, name: &str) -> Json {
    of.get(name).cloned().unwrap_or(Json::Null)
}

/// `0: 120, 1: 7`.
fn offsets(vector: Option<&Json>) -> Json {
    let Some(Json::Object(members)) = vector else { return Json::Null };
    Json::Text(members.iter().map(|(p, o)| format!("{p}: {o}")).collect::<Vec<_>>().join(", "))
}

/// The time in the field `name` to the second.
fn time(of: &Json, name: &str) -> Json {
    let Some(text) = of.get(name).and_then(Json::text) else { return Json::Null };
    let seconds = text.split_once('.').map_or(text.to_owned(), |(seconds, _)| format!("{seconds}Z"));
    Json::Text(seconds)
}

/// As much of a hash as tells it from another one.
fn short(of: &Json, name: &str) -> Json {
    let text = of.get(name).and_then(Json::text);
    text.map_or(Json::Null, |text| Json::Text(text.chars().take(12).collect()))
}
