//! The definition of a view: all that decides its answer, as a canonical text and its hash.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};
use sha2::{Digest, Sha256};

use super::plans::Shape;
use super::refuse::stream_of;
use crate::config::{Late, StreamConfig, ViewConfig};
use crate::names::DefinitionHash;

/// What a definition is made of.
pub(crate) struct DefinitionInputs<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) config: &'a ViewConfig,
    pub(crate) stream: &'a StreamConfig,
    /// The stream's columns that the view reads.
    pub(crate) columns: &'a [String],
    pub(crate) uses_late: bool,
    /// {table → content hash}
    pub(crate) tables: &'a BTreeMap<String, String>,
}

/// A view's definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// One fact a line, for people who wonder why two definitions differ.
    pub text: String,
    /// SHA-256 of the text.
    pub hash: DefinitionHash,
}

/// Whitespace, comments and the case of keywords do not enter it, as the plan does not show them; neither do columns
/// that the view does not read.
pub(crate) fn definition(inputs: &DefinitionInputs<'_>) -> Definition {
    let DefinitionInputs { shape, config, stream, columns, uses_late, tables } = inputs;
    let mut lines = vec!["watershed view definition 1".to_string(), shape.plan.display_indent().to_string()];
    lines.extend(cut_short(&shape.plan));
    for field in shape.plan.schema().fields() {
        lines.push(format!("output {} {} {}", field.name(), field.data_type(), nullability(field.is_nullable())));
    }
    lines.push(format!("stream {}", stream.name));
    for name in columns.iter() {
        if let Ok(field) = shape.events.field_with_name(name) {
            lines.push(format!("reads {name} {} {}", field.data_type(), nullability(field.is_nullable())));
        }
    }
    if *uses_late {
        let lateness = stream.allowed_lateness.map(|l| l.as_micros());
        lines.push(format!("late is below {:?} by {lateness:?} microseconds", stream.event_time));
    }
    if config.late == Late::Exclude {
        lines.push("late events excluded".to_string());
    }
    if let Some(retain) = config.retain {
        lines.push(format!("retains {} microseconds of key {:?}", retain.as_micros(), shape.retain_key));
    }
    for table in tables_read(&shape.plan) {
        lines.push(format!("table {table} {}", tables.get(&table).map_or("", String::as_str)));
    }
    for call in &shape.calls {
        lines.push(format!("state {} {}", call.supported.name, call.supported.format));
    }
    if shape.groups.is_rows() && config.materialize {
        lines.push("rows stored".to_string());
    }
    if shape.groups.has_places() {
        lines.push("state place 1".to_string());
    }
    let text = lines.join("\n");
    let hash = DefinitionHash::new(hex(&Sha256::digest(text.as_bytes())));
    Definition { text, hash }
}

fn nullability(nullable: bool) -> &'static str {
    if nullable { "NULL" } else { "NOT NULL" }
}

/// Rows of VALUES that the text of a plan shows.
const ROWS_SHOWN: usize = 5;
/// Bytes of a binary literal that the text of a plan shows.
const BYTES_SHOWN: usize = 10;

/// What the text of `plan` leaves out: the end of long VALUES and of long binary literals, subqueries included.
fn cut_short(plan: &LogicalPlan) -> Vec<String> {
    let mut lines = Vec::new();
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Values(values) = node
            && values.values.len() > ROWS_SHOWN
        {
            for row in &values.values {
                let row: Vec<String> = row.iter().map(ToString::to_string).collect();
                lines.push(format!("values ({})", row.join(", ")));
            }
        }
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::Literal(
                    ScalarValue::Binary(Some(bytes))
                    | ScalarValue::LargeBinary(Some(bytes))
                    | ScalarValue::BinaryView(Some(bytes))
                    | ScalarValue::FixedSizeBinary(_, Some(bytes)),
                    _,
                ) = expr
                    && bytes.len() > BYTES_SHOWN
                {
                    lines.push(format!("literal {}", hex(bytes)));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    debug_assert!(walked.is_ok(), "the closure does not fail");
    lines
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}

/// The names of the dimension tables that `plan` reads, subqueries included.
pub(crate) fn tables_read(plan: &LogicalPlan) -> BTreeSet<String> {
    let mut tables = BTreeSet::new();
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && stream_of(node).is_none()
        {
            tables.insert(scan.table_name.table().to_string());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok(), "the closure does not fail");
    tables
}
