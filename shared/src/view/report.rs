//! What `watershed check` tells of a view.

use serde::Serialize;

use super::definition::tables_read;
use super::plans::Shape;
use super::refuse;
use crate::columns::sql_type;

/// Whether a view keeps states of groups or the rows themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Aggregate,
    Rows,
}

/// A compiled view, described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub kind: Kind,
    pub stream: String,
    pub tables: Vec<String>,
    /// Of the view's rows.
    pub columns: Vec<ReportColumn>,
    /// The GROUP BY expressions of the aggregate whose states are kept.
    pub keys: Vec<ReportColumn>,
    pub aggregates: Vec<ReportAggregate>,
    /// The stream's columns that the view reads.
    pub reads: Vec<String>,
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReportColumn {
    pub name: String,
    /// In SQL's words.
    #[serde(rename = "type")]
    pub sql_type: String,
    pub nullable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReportAggregate {
    /// As the SQL has it.
    pub call: String,
    /// The fields of its state.
    pub state: Vec<ReportColumn>,
    /// The state grows with each value that it sees.
    pub keeps_every_value: bool,
    pub state_format: u32,
}

pub(crate) struct ReportInputs<'a> {
    pub(crate) kind: Kind,
    pub(crate) shape: &'a Shape,
    pub(crate) stream: &'a str,
    pub(crate) columns: &'a [String],
}

pub(crate) fn report(inputs: &ReportInputs<'_>) -> Report {
    let ReportInputs { kind, shape, stream, columns } = inputs;
    let describe = |f: &arrow::datatypes::Field| ReportColumn {
        name: f.name().clone(),
        sql_type: sql_type(f.data_type()),
        nullable: f.is_nullable(),
    };
    let keys = match kind {
        Kind::Aggregate => {
            shape.at_split().schema().fields()[..shape.groups.key_count()].iter().map(|f| describe(f)).collect()
        }
        Kind::Rows => vec![],
    };
    let aggregates: Vec<_> = shape
        .calls
        .iter()
        .map(|call| ReportAggregate {
            call: call.display.clone(),
            state: call.state_fields.iter().map(|f| describe(f)).collect(),
            keeps_every_value: call.keeps_values(),
            state_format: call.supported.format,
        })
        .collect();
    let mut warnings: Vec<String> = aggregates
        .iter()
        .filter(|a| a.keeps_every_value)
        .map(|a| format!("the state of {} keeps every value: it grows with each event", a.call))
        .collect();
    warnings.extend(refuse::left_open(&shape.plan));
    Report {
        kind: *kind,
        stream: (*stream).to_string(),
        tables: tables_read(&shape.plan).into_iter().collect(),
        columns: shape.plan.schema().fields().iter().map(|f| describe(f)).collect(),
        keys,
        aggregates,
        reads: columns.to_vec(),
        warnings,
    }
}
