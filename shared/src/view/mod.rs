//! Views: the SQL of a view, compiled once for both layers, and the aggregate states that it keeps.
//!
//! A view's plan is split at the *lowest* aggregate on its stream's path:
//!
//! ```text
//! the rest of the SQL                      when serving          served_plan
//!   merge_final(states) GROUP BY keys      when serving          served_plan
//!     merge_state(states) GROUP BY keys    when runs are merged  merge, merge_plan
//!       state(rows) GROUP BY keys          over events           states, state_plan
//!         guard: filters, joins, arguments over events           (evaluate)
//! ```
//!
//! This module does no I/O and knows no clock: what a view says of an event depends on the event alone.
//!
//! Aggregates that overflow: `sum` of BIGINT and of DECIMAL(38) wraps around as the engine's does, equally in every
//! split, since addition modulo 2^n does not care for order. `avg` of DECIMAL fails when its result does not fit; that
//! shows as an error of the query, at whichever layer, since only the final division can fail.

mod below;
mod compile;
mod definition;
mod error;
mod evaluate;
mod place;
mod plans;
mod refuse;
mod report;
mod session;
mod sort;
mod split;
mod states;
#[cfg(test)]
mod tests;
mod total_order;
mod trace;

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, DataFusionError, Result as EngineResult};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::prelude::SessionContext;

pub use compile::{Compiler, DimensionTable};
pub use definition::Definition;
pub use error::{CompileError, Error};
pub use evaluate::{ErrorSink, late_function};
pub use report::{Kind, Report, ReportAggregate, ReportColumn};
pub use session::pinned_config;

use crate::names::DefinitionHash;
use crate::run::EventError;
use evaluate::{ReusedPlan, SourceTable, run_over};
use plans::Shape;
use states::AggregateCall;

pub type Result<T> = std::result::Result<T, Error>;

/// The states of some events.
#[derive(Debug, Clone)]
pub struct StateBatch {
    /// In [`CompiledView::state_schema`], one row per group, sorted by the key columns (ascending, NULL first).
    pub states: RecordBatch,
    /// The events that are left out since the SQL fails on them, ordered by partition and offset.
    pub errors: Vec<EventError>,
}

/// A view, compiled. Immutable; all its methods may run at the same time.
pub struct CompiledView {
    name: String,
    stream: String,
    kind: Kind,
    definition: Definition,
    report: Report,
    shape: Shape,
    state_schema: SchemaRef,
    output_schema: SchemaRef,
    key_columns: Vec<(String, usize)>,
    sketched_columns: BTreeSet<String>,
    context: SessionContext,
    task: Arc<TaskContext>,
    /// Compiled once, run with new batches each time.
    states: ReusedPlan,
    merge: ReusedPlan,
    finalize: ReusedPlan,
}

impl std::fmt::Debug for CompiledView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompiledView")
            .field("name", &self.name)
            .field("definition", &self.definition.hash)
            .finish_non_exhaustive()
    }
}

impl CompiledView {
    async fn new(
        name: String,
        stream: String,
        kind: Kind,
        definition: Definition,
        report: Report,
        shape: Shape,
        context: SessionContext,
    ) -> EngineResult<Self> {
        let state_schema = shape.state_schema();
        let output_schema: SchemaRef = Arc::new(shape.plan.schema().as_arrow().clone());
        let events: Arc<dyn TableProvider> = Arc::new(SourceTable::new(Arc::clone(&shape.events)));
        let source: Arc<dyn TableProvider> = Arc::new(SourceTable::new(Arc::clone(&state_schema)));
        let state = context.state();
        let physical = async |plan: LogicalPlan| state.create_physical_plan(&plan).await;
        let states = ReusedPlan::new(physical(shape.state_plan(events, None, false)?).await?);
        let merge = ReusedPlan::new(physical(shape.merge_plan(Arc::clone(&source), false)?).await?);
        let finalize = ReusedPlan::resetting(physical(shape.served_plan(source, None)?).await?);
        let key_columns = key_columns(&shape);
        let sketched_columns = sketched_columns(&shape);
        let task = context.task_ctx();
        Ok(Self {
            name,
            stream,
            kind,
            definition,
            report,
            shape,
            state_schema,
            output_schema,
            key_columns,
            sketched_columns,
            context,
            task,
            states,
            merge,
            finalize,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The one stream that the view reads.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the SQL may fail on some event, so that events have to be read to know on which.
    pub fn can_fail(&self) -> bool {
        self.shape.below.can_fail()
    }

    /// Names all that decides the view's answer.
    pub fn definition(&self) -> &DefinitionHash {
        &self.definition.hash
    }

    /// The dimension tables that the view reads.
    pub fn tables(&self) -> BTreeSet<String> {
        definition::tables_read(&self.shape.plan)
    }

    /// What [`Self::definition`] is the hash of.
    pub fn definition_text(&self) -> &str {
        &self.definition.text
    }

    /// Key columns first (`key_0`, …), then one struct of states per aggregate (`state_0`, …). With grouping sets the
    /// last key is the hidden `__grouping_id`.
    ///
    /// A row view's are `_partition`, `_offset` and, when a join or UNNEST can make several rows of an event, `_place`,
    /// the row's number among them; then its columns below windows, ORDER BY and LIMIT (`column_0`, …).
    pub fn state_schema(&self) -> SchemaRef {
        Arc::clone(&self.state_schema)
    }

    /// Whether a group's states are a few numbers or texts, which take microseconds to finish: no sketches, no values
    /// that were gathered.
    pub fn has_small_states(&self) -> bool {
        let states = &self.state_schema.fields()[self.key_count()..];
        states.iter().all(|state| is_small(state.data_type()))
    }

    /// How many of [`Self::state_schema`]'s columns are keys; 0: one group, the whole stream.
    pub fn key_count(&self) -> usize {
        self.shape.key_count()
    }

    /// The view's columns, named and typed as the SQL's.
    pub fn output_schema(&self) -> SchemaRef {
        Arc::clone(&self.output_schema)
    }

    /// For `watershed check`.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The output columns that are exactly a group key, as (name, index of the key column in the states).
    ///
    /// A filter on these may be answered by [`Self::finalize`] of the states with these keys alone. Empty when what
    /// stands above the aggregate relates groups to each other (windows, LIMIT, DISTINCT, further aggregates), when
    /// there are grouping sets, and for row views.
    pub fn key_columns(&self) -> &[(String, usize)] {
        &self.key_columns
    }

    /// The names of the output columns that quantile sketches decide: they depend on how events were split into runs,
    /// within the sketch's error. Of a column that is computed across groups it is not known, so it is one if the view
    /// has any sketch.
    pub fn sketched_columns(&self) -> &BTreeSet<String> {
        &self.sketched_columns
    }

    /// The key column of the states that `retain` is about; groups whose key lies below the bound are hidden by
    /// [`Self::served_plan`], and may be dropped. NULL keys stay.
    pub fn retain_key(&self) -> Option<usize> {
        self.shape.retain_key
    }

    /// A session with all functions and the pinned settings, in which the plans may run.
    pub fn session(&self) -> &SessionContext {
        &self.context
    }

    /// The states of `events`, which are in [`crate::record::event_schema`], in any order and number of batches.
    ///
    /// # Errors
    /// Never because of what an event holds: such events are in [`StateBatch::errors`].
    pub async fn states(&self, events: &[RecordBatch]) -> Result<StateBatch> {
        self.check(events, &self.shape.events)?;
        let sink = ErrorSink::new();
        let plan = self.states.once().map_err(|e| self.engine(e))?;
        let batches =
            run_over(&plan, &self.task, events.to_vec(), Some(sink.clone())).await.map_err(|e| self.engine(e))?;
        Ok(StateBatch { states: self.in_order(&batches)?, errors: sink.take() })
    }

    /// One sorted run of states out of several, each in [`Self::state_schema`].
    pub async fn merge(&self, runs: &[RecordBatch]) -> Result<RecordBatch> {
        self.check(runs, &self.state_schema)?;
        if self.kind == Kind::Rows {
            return self.in_order(runs);
        }
        let plan = self.merge.once().map_err(|e| self.engine(e))?;
        let batches = run_over(&plan, &self.task, runs.to_vec(), None).await.map_err(|e| self.engine(e))?;
        self.in_order(&batches)
    }

    /// The view over `states` alone, through a plan compiled once: for a few groups, without planning.
    ///
    /// Applies no `retain` bound; the caller leaves out states below it.
    pub async fn finalize(&self, states: &[RecordBatch]) -> Result<RecordBatch> {
        self.check(states, &self.state_schema)?;
        let plan = self.finalize.once().map_err(|e| self.engine(e))?;
        let batches = run_over(&plan, &self.task, states.to_vec(), None).await.map_err(|e| self.engine(e))?;
        let batches = self.conform(&batches, &self.output_schema)?;
        arrow::compute::concat_batches(&self.output_schema, &batches).map_err(|e| self.engine(e.into()))
    }

    /// Events → states, sorted by key: a logical plan for builds, and where it puts the events on which the SQL fails.
    ///
    /// `events` has at least the columns of [`crate::record::event_schema`] that the view reads.
    pub fn state_plan(&self, events: Arc<dyn TableProvider>) -> Result<(LogicalPlan, ErrorSink)> {
        self.state_plan_in(events, true)
    }

    /// As [`Self::state_plan`], in no order: a row view's rows, for serving.
    pub fn rows_plan(&self, events: Arc<dyn TableProvider>) -> Result<(LogicalPlan, ErrorSink)> {
        self.state_plan_in(events, false)
    }

    fn state_plan_in(&self, events: Arc<dyn TableProvider>, sorted: bool) -> Result<(LogicalPlan, ErrorSink)> {
        let sink = ErrorSink::new();
        let plan = self.shape.state_plan(events, Some(sink.clone()), sorted).map_err(|e| self.engine(e))?;
        Ok((plan, sink))
    }

    /// States → fewer states, sorted by key.
    pub fn merge_plan(&self, states: Arc<dyn TableProvider>) -> Result<LogicalPlan> {
        self.shape.merge_plan(states, true).map_err(|e| self.engine(e))
    }

    /// The whole view over a table of states: what a generation and a delta hold together.
    ///
    /// Filters on group keys reach the scan of `states`; aggregates that a query does not use are not read.
    /// `retain_bound`: the greatest running maximum over all partitions at the position minus `retain`, in
    /// microseconds; ignored when the view has no `retain`.
    pub fn served_plan(&self, states: Arc<dyn TableProvider>, retain_bound: Option<i64>) -> Result<LogicalPlan> {
        self.shape.served_plan(states, retain_bound).map_err(|e| self.engine(e))
    }

    fn in_order(&self, batches: &[RecordBatch]) -> Result<RecordBatch> {
        let batches = self.conform(batches, &self.state_schema)?;
        sort::sorted(&self.state_schema, &batches, self.key_count()).map_err(|e| self.engine(e))
    }

    /// `batches` under `schema`, which they must fit.
    fn conform(&self, batches: &[RecordBatch], schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
        batches
            .iter()
            .map(|b| {
                let options = RecordBatchOptions::new().with_row_count(Some(b.num_rows()));
                RecordBatch::try_new_with_options(Arc::clone(schema), b.columns().to_vec(), &options)
                    .map_err(|e| self.mismatch(e.to_string()))
            })
            .collect()
    }

    fn check(&self, batches: &[RecordBatch], schema: &SchemaRef) -> Result<()> {
        for batch in batches {
            if batch.schema_ref() != schema {
                plans::check_schema(batch.schema_ref(), schema).map_err(|e| self.mismatch(e.strip_backtrace()))?;
            }
        }
        Ok(())
    }

    fn engine(&self, source: DataFusionError) -> Error {
        Error::Engine { view: self.name.clone(), source }
    }

    fn mismatch(&self, detail: String) -> Error {
        Error::Mismatch { view: self.name.clone(), detail }
    }
}

fn is_small(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(fields) => fields.iter().all(|field| is_small(field.data_type())),
        DataType::Utf8 | DataType::Utf8View => true,
        other => other.is_primitive() || *other == DataType::Boolean,
    }
}

/// See [`CompiledView::key_columns`].
fn key_columns(shape: &Shape) -> Vec<(String, usize)> {
    if shape.groups.is_rows() || shape.groups.has_sets() {
        return vec![];
    }
    let group_wise = (0..shape.to_split.len()).all(|depth| {
        matches!(
            split::node_at(&shape.plan, &shape.to_split[..depth]),
            LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_)
        ) || matches!(
            split::node_at(&shape.plan, &shape.to_split[..depth]),
            LogicalPlan::Sort(sort) if sort.fetch.is_none()
        )
    });
    if !group_wise {
        return vec![];
    }
    let aggregate = shape.at_split().schema();
    let key_of = |name: &str, column: Expr| {
        let traced = trace::trace_down(&column, &shape.plan, &shape.to_split)?;
        let Expr::Column(column) = traced else { return None };
        let key = aggregate.maybe_index_of_column(&column)?;
        (key < shape.key_count()).then(|| (name.to_string(), key))
    };
    shape
        .plan
        .schema()
        .iter()
        .filter_map(|(qualifier, field)| {
            key_of(field.name(), Expr::Column(Column::new(qualifier.cloned(), field.name())))
        })
        .collect()
}

/// See [`CompiledView::sketched_columns`].
fn sketched_columns(shape: &Shape) -> BTreeSet<String> {
    let is_sketch = |call: &AggregateCall| matches!(call.supported.name, "approx_percentile_cont" | "approx_median");
    if !shape.calls.iter().any(|call| is_sketch(call)) {
        return BTreeSet::new();
    }
    let aggregate = shape.at_split().schema();
    let sketched = |column: &Column| {
        let call = aggregate.maybe_index_of_column(column)?.checked_sub(shape.key_count())?;
        shape.calls.get(call).filter(|call| is_sketch(call))
    };
    let columns = shape.plan.schema().iter().filter(|(qualifier, field)| {
        let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
        let traced = trace::trace_down(&column, &shape.plan, &shape.to_split);
        traced.is_none_or(|expr| expr.column_refs().into_iter().any(|column| sketched(column).is_some()))
    });
    columns.map(|(_, field)| field.name().clone()).collect()
}
