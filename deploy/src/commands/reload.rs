//! `watershed reload`: the configured definitions, without a restart.

use clap::Args;
use serde::Serialize;
use serde_json::json;
use watershed_shared::config::Config;

use crate::cli::OutputFormat;
use crate::failure::{Failure, Outcome as CommandOutcome};
use crate::output;
use crate::platform::{Outcome, Superseded, reload};

#[derive(Debug, Args)]
pub(crate) struct ReloadArgs {
    /// The views [default: all].
    view: Vec<String>,
    /// Also those that another definition has replaced earlier: they do not come back by themselves.
    #[arg(long, requires = "view")]
    apply: bool,
}

#[derive(Debug, Serialize)]
struct Reloaded<'a> {
    view: &'a str,
    definition: String,
    outcome: Outcome,
}

/// Records the definitions of views as they are configured. Needs no running platform; one that runs takes them from
/// the storage.
pub(crate) async fn run(args: &ReloadArgs, config: &Config, format: OutputFormat) -> CommandOutcome {
    if let Some(unknown) = args.view.iter().find(|name| !config.views.contains_key(*name)) {
        let known: Vec<&str> = config.views.keys().map(String::as_str).collect();
        let file = config.file.display();
        return Err(Failure::Usage(format!("{file} has no view `{unknown}`; it has: {}", known.join(", "))));
    }
    let superseded = if args.apply { Superseded::Returns } else { Superseded::StaysAway };
    let mut reloaded = Vec::new();
    for view in config.views.values().filter(|view| args.view.is_empty() || args.view.contains(&view.name)) {
        let (definition, outcome) = reload(config, view, superseded).await?;
        reloaded.push(Reloaded { view: &view.name, definition: definition.to_string(), outcome });
    }
    match format {
        OutputFormat::Json => output::print(&format!("{:#}", json!({ "views": &reloaded })))?,
        OutputFormat::Text => {
            for Reloaded { view, outcome, .. } in &reloaded {
                output::print(&match outcome {
                    Outcome::Unchanged => format!("{view}: unchanged\n"),
                    Outcome::Recorded => format!("{view}: recorded; it answers once it is built\n"),
                    Outcome::Superseded => format!(
                        "{view}: another definition has replaced it earlier; --apply {view} takes it back, as does \
                         activating one of its generations\n"
                    ),
                })?;
            }
        }
    }
    let all = reloaded.iter().all(|view| view.outcome != Outcome::Superseded);
    if all { Ok(()) } else { Err(Failure::Negative) }
}
