//! `watershed check`.

mod cost;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use watershed_shared::clock;
use watershed_shared::config::{Config, ConfigError, DEFAULT_FILE, Late, Place};
use watershed_shared::master::Error as MasterError;
use watershed_shared::tables;
use watershed_shared::view::{CompileError, CompiledView, Compiler, DimensionTable};

use self::cost::Costs;
use self::report::{CheckReport, StreamReport, TableReport, ViewReport};
use crate::cli::{OutputFormat, PlatformArgs};
use crate::failure::{Failure, Outcome};
use crate::output;

/// Checks the configuration and compiles every view; reads dimension tables and, for the cost of changes and whether the
/// columns of streams are still theirs, registers and master datasets; writes nothing.
pub(crate) async fn run(platform: &PlatformArgs, format: OutputFormat) -> Outcome {
    if platform.config.is_none() && !Path::new(DEFAULT_FILE).try_exists()? {
        return Err(Failure::Usage(format!("there is no {DEFAULT_FILE} here; name a configuration with -c")));
    }
    let config = platform.configuration()?;
    let report = check(&config).await;
    match format {
        OutputFormat::Json => output::print(&serde_json::to_string_pretty(&report)?)?,
        OutputFormat::Text => output::print(&report.for_people())?,
    }
    for error in &report.errors {
        eprintln!("error: {error}");
    }
    if report.errors.is_empty() { Ok(()) } else { Err(Failure::Refused) }
}

async fn check(config: &Config) -> CheckReport {
    let mut report = CheckReport {
        file: config.file.display().to_string(),
        streams: config.streams.values().map(StreamReport::of).collect(),
        ..CheckReport::default()
    };
    let mut tables: BTreeMap<String, DimensionTable> = BTreeMap::new();
    let mut unread: BTreeSet<&str> = BTreeSet::new();
    for (name, table) in &config.tables {
        match tables::read(table).await {
            Ok(read) => {
                report.tables.push(TableReport::of(table, &read));
                tables.insert(name.clone(), read);
            }
            Err(error) => {
                unread.insert(name);
                let place = config.table_places.get(name).cloned().unwrap_or_default();
                report.errors.push(config_error(config, &place, format!("{:#}", anyhow::Error::from(error))));
            }
        }
    }
    let compiler = match Compiler::new(&config.streams, &tables) {
        Ok(compiler) => compiler,
        Err(error) => {
            report.errors.push(config_error(config, &Place { line: 1, column: 1 }, message_of(&error)));
            return report;
        }
    };
    let costs = Costs::open(config);
    let archived = costs.archived(config).await;
    for (name, found) in &archived {
        match found {
            Ok(_) => {}
            Err(error @ (MasterError::SchemaDiffers { .. } | MasterError::Protocol { .. })) => {
                let place = config.stream_places.get(name).cloned().unwrap_or_default();
                report.errors.push(config_error(config, &place, format!("stream `{name}`: {error}")));
            }
            // That it cannot be looked at now is said of its views.
            Err(error) => tracing::debug!(stream = name, %error, "the master dataset was not looked at"),
        }
    }
    for (name, view) in &config.views {
        match compiler.compile(view) {
            Ok(compiled) => {
                let mut described = ViewReport::of(view, &compiled, clock::now());
                described.report.warnings.extend(unmet(config, view.late, &compiled));
                let archived = archived.get(compiled.stream()).and_then(|found| found.as_ref().ok());
                described.change = costs.of(name, &compiled, archived).await;
                report.views.push(described);
            }
            // Of a view that joins a table that could not be read this says nothing.
            Err(error) if unread.iter().any(|table| tables::is_named_in(&view.sql, table)) => {
                tracing::debug!(view = name, %error, "not compiled: a table that it names could not be read");
            }
            Err(error) => {
                let place = match config.sql_places.get(name) {
                    Some(places) => places.place(error.line, error.column),
                    None => view.place.clone(),
                };
                report.errors.push(config_error(config, &place, format!("view `{name}`: {}", message_of(&error))));
            }
        }
    }
    report.errors.sort_by_key(|error| (error.line, error.column));
    report
}

fn config_error(config: &Config, place: &Place, message: String) -> ConfigError {
    ConfigError { file: config.file.display().to_string(), line: place.line, column: place.column, message }
}

fn message_of(error: &CompileError) -> String {
    match &error.hint {
        Some(hint) => format!("{}; {hint}", error.message),
        None => error.message.clone(),
    }
}

/// What the view asks for and its stream does not give.
fn unmet(config: &Config, late: Late, compiled: &CompiledView) -> Option<String> {
    let stream = config.streams.get(compiled.stream())?;
    (late == Late::Exclude && stream.allowed_lateness.is_none())
        .then(|| format!("late = \"exclude\" leaves out nothing: stream `{}` has no allowed_lateness", stream.name))
}
