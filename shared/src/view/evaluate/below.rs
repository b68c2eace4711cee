//! The compiled part of a view below its aggregate: filters, joins with dimension tables, and one projection of group
//! keys, aggregate arguments, orders and filters.

use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Int32Type, Int64Type, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, DataFusionError, Result, exec_err, internal_err};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec};
use futures::FutureExt;

use super::source::{reads_source, run_over};
use super::{ErrorSink, ReusedPlan};
use crate::mutant::{self, Mutant};
use crate::offsets::{Offset, PartitionId};
use crate::record;
use crate::run::EventError;
use crate::view::trace::cannot_fail;

/// A function from events to rows, which each event enters alone: what an event yields, or whether it fails, does not
/// depend on its neighbours.
#[derive(Debug)]
pub(crate) struct Below {
    plan: ReusedPlan,
    task: Arc<TaskContext>,
    /// What it needs of the events, by name, `_partition` and `_offset` always among them.
    pub(super) columns: Vec<String>,
    /// Conjuncts over the stream's own columns that cannot fail. They are applied before the plan: an event that they
    /// reject is never in error, and scans may prune by them.
    pub(super) safe_filter: Vec<Expr>,
    /// What it yields.
    pub(super) schema: SchemaRef,
    /// For each column that it yields the column of the events that it is, if it is one unchanged.
    passed: Vec<Option<String>>,
    /// Columns of partition, offset and the place of the row among its event's, the last of which is filled in here.
    numbered: Option<[usize; 3]>,
    /// The plan keeps something of an execution that belongs to its events.
    stateful: bool,
    /// No event can make the plan fail.
    infallible: bool,
}

impl Below {
    /// `plan` reads a [`super::SourceTable`] of events and yields `schema`.
    pub(crate) fn new(
        plan: Arc<dyn ExecutionPlan>,
        task: Arc<TaskContext>,
        mut columns: Vec<String>,
        safe_filter: Vec<Expr>,
        schema: SchemaRef,
        passed: Vec<Option<String>>,
        numbered: Option<[usize; 3]>,
    ) -> Self {
        for system in [record::OFFSET, record::PARTITION] {
            if !columns.iter().any(|c| c == system) {
                columns.insert(0, system.to_string());
            }
        }
        let stateful = builds_from_stream(&plan);
        let plan = ReusedPlan::new(plan);
        Self { plan, task, columns, safe_filter, schema, passed, numbered, stateful, infallible: false }
    }

    /// `infallible`: no event can make the plan fail.
    pub(crate) fn with_infallible(self, infallible: bool) -> Self {
        Self { infallible, ..self }
    }

    pub(crate) fn can_fail(&self) -> bool {
        !self.infallible
    }

    /// What it yields.
    pub(crate) fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// `filter`, over what this yields, as a filter of the events; `None` when it can only be applied to the rows.
    ///
    /// To filter the events loses none of the rows that pass `filter`.
    pub(super) fn on_events(&self, filter: &Expr) -> Option<Expr> {
        let schema = DFSchema::try_from(Arc::clone(&self.schema)).ok()?;
        if !cannot_fail(filter, &schema) {
            return None;
        }
        let renamed = filter.clone().transform_up(|e| match &e {
            Expr::Column(column) => {
                let index = self.schema.index_of(&column.name)?;
                match &self.passed[index] {
                    Some(name) => Ok(Transformed::yes(Expr::Column(Column::new_unqualified(name)))),
                    None => exec_err!("{} is computed", column.name),
                }
            }
            _ => Ok(Transformed::no(e)),
        });
        renamed.ok().map(|t| t.data)
    }

    /// The column of the events that the output column `index` is, if it is one unchanged.
    pub(crate) fn passed(&self, index: usize) -> Option<&str> {
        self.passed[index].as_deref()
    }

    /// Whether it needs the events' column `name`.
    pub(crate) fn reads(&self, name: &str) -> bool {
        self.columns.iter().any(|c| c == name)
    }

    /// The rows of `events`, in the order of their events. Events on which the plan fails go to `sink`, all others
    /// count.
    ///
    /// SUBTLE: a batch that succeeds stands for each of its events, since the engine evaluates each expression on a
    /// superset of the rows on which it would be evaluated were each event alone (short circuits of AND, OR and CASE
    /// skip a row, or all rows when none needs it). The converse does not hold, so a batch that fails is halved until
    /// the events that fail alone are found.
    ///
    /// # Errors
    /// Only those that are not an event's: memory, storage, a broken plan.
    pub(super) async fn rows(&self, events: &RecordBatch, sink: &ErrorSink) -> Result<Vec<RecordBatch>> {
        let mut rows = vec![];
        let mut todo = vec![(0, events.num_rows())];
        let mut proven = false;
        while let Some((start, len)) = todo.pop() {
            if len == 0 {
                continue;
            }
            match self.run(events.slice(start, len)).await {
                Ok(batches) => rows.extend(batches),
                Err(error) if !of_the_event(&error) => return Err(error),
                Err(error) if mutant::is(Mutant::FailingBatch) => {
                    for row in start..start + len {
                        sink.push(event_error(events, row, &error)?);
                    }
                }
                Err(error) if len == 1 && !proven => {
                    // What fails without any event fails because of a table, or of the plan itself.
                    self.run(events.slice(0, 0)).await?;
                    proven = true;
                    sink.push(event_error(events, start, &error)?);
                }
                Err(error) if len == 1 => sink.push(event_error(events, start, &error)?),
                Err(_) => {
                    let half = len / 2;
                    todo.push((start + half, len - half));
                    todo.push((start, half));
                }
            }
        }
        match self.numbered {
            Some(columns) => self.number(rows, columns),
            None => Ok(rows),
        }
    }

    async fn run(&self, events: RecordBatch) -> Result<Vec<RecordBatch>> {
        let plan = self.plan.once()?;
        let plan = if self.stateful { reset_plan_states(plan)? } else { plan };
        // A value that makes a kernel panic must cost its event, not the worker that meets it again after each restart.
        let run = AssertUnwindSafe(run_over(&plan, &self.task, vec![events], None)).catch_unwind();
        let batches = match run.await {
            Ok(batches) => batches?,
            Err(panic) => return exec_err!("the evaluation panicked: {}", panic_message(panic.as_ref())),
        };
        batches
            .into_iter()
            .filter(|b| b.num_rows() > 0)
            .map(|b| {
                let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(b.num_rows()));
                Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), b.columns().to_vec(), &options)?)
            })
            .collect()
    }

    /// Fills in the place of each row among those of its event: the tie-break when an event yields several rows.
    ///
    /// SUBTLE: some joins interleave the rows of neighbouring events, each event's own rows in one order always.
    fn number(&self, rows: Vec<RecordBatch>, [partition, offset, place]: [usize; 3]) -> Result<Vec<RecordBatch>> {
        if rows.is_empty() {
            return Ok(rows);
        }
        let rows = concat_batches(&self.schema, &rows)?;
        let partitions = rows.column(partition).as_primitive::<Int32Type>().values();
        let offsets = rows.column(offset).as_primitive::<Int64Type>().values();
        let mut next: HashMap<(i32, i64), i64> = HashMap::with_capacity(rows.num_rows());
        let places = partitions.iter().zip(offsets).map(|(partition, offset)| {
            let next = next.entry((*partition, *offset)).or_default();
            *next += 1;
            *next - 1
        });
        let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
        columns[place] = Arc::new(Int64Array::from_iter_values(places));
        Ok(vec![RecordBatch::try_new(Arc::clone(&self.schema), columns)?])
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Whether `error` tells of the event's values, rather than of the machine. The part below reads memory only, so what is
/// left to the machine is little; that the plan works without events is checked apart.
fn of_the_event(error: &DataFusionError) -> bool {
    !matches!(
        error.find_root(),
        DataFusionError::ResourcesExhausted(_) | DataFusionError::IoError(_) | DataFusionError::ObjectStore(_)
    )
}

fn event_error(events: &RecordBatch, row: usize, error: &DataFusionError) -> Result<EventError> {
    let (Some(partitions), Some(offsets)) =
        (events.column_by_name(record::PARTITION), events.column_by_name(record::OFFSET))
    else {
        return internal_err!("events lack {} or {}", record::PARTITION, record::OFFSET);
    };
    Ok(EventError {
        partition: PartitionId(partitions.as_primitive::<Int32Type>().value(row)),
        offset: Offset(offsets.as_primitive::<Int64Type>().value(row)),
        error: error.find_root().strip_backtrace(),
    })
}

/// Whether a join gathers the stream's side before it begins: what it gathered would stay for the next batch.
fn builds_from_stream(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let gathers = plan.downcast_ref::<HashJoinExec>().is_some()
        || plan.downcast_ref::<NestedLoopJoinExec>().is_some()
        || plan.downcast_ref::<CrossJoinExec>().is_some();
    if gathers && plan.children().first().is_some_and(|left| reads_source(left)) {
        return true;
    }
    plan.children().into_iter().any(builds_from_stream)
}
