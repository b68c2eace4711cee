//! From a view's SQL to a compiled view.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::catalog::MemTable;
use datafusion::common::{Column, DataFusionError, Result, plan_err};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::expr::{AggregateFunction, Case, GroupingSet, NullTreatment};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::utils::grouping_set_to_exprlist;
use datafusion::logical_expr::{Aggregate, Distinct, Expr, LogicalPlan, SortExpr};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::prelude::SessionContext;
use parquet::arrow::ArrowSchemaConverter;

use super::below::{BelowBuilder, BuiltBelow, StreamLeaf};
use super::definition::{DefinitionInputs, definition};
use super::error::CompileError;
use super::place::SqlText;
use super::plans::{Groups, Shape};
use super::report::{Kind, ReportInputs, report};
use super::session::{StreamTable, pinned_session};
use super::split::{Split, SplitKind, node_at, split};
use super::states::{AggregateCall, CallInput, CallParts, OrderDependence};
use super::trace::{cannot_fail, trace_down};
use super::{CompiledView, refuse};
use crate::config::{Late, StreamConfig, ViewConfig};
use crate::record;

/// A dimension table as both layers read it: the copy under its content hash.
#[derive(Debug, Clone)]
pub struct DimensionTable {
    pub name: String,
    /// Of its content; a part of the definition of each view that reads it.
    pub content_hash: String,
    pub schema: SchemaRef,
    pub batches: Vec<RecordBatch>,
}

/// Compiles views over the given streams and tables.
pub struct Compiler {
    streams: BTreeMap<String, StreamConfig>,
    table_hashes: BTreeMap<String, String>,
    names: Vec<String>,
    context: SessionContext,
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Compiler {
    /// # Errors
    /// When a table's batches are not in its schema, or a stream and a table have one name.
    pub fn new(
        streams: &BTreeMap<String, StreamConfig>,
        tables: &BTreeMap<String, DimensionTable>,
    ) -> Result<Self, CompileError> {
        Self::try_new(streams, tables)
            .map_err(|e| CompileError::new(super::place::SqlPlace::START, e.find_root().strip_backtrace()))
    }

    fn try_new(streams: &BTreeMap<String, StreamConfig>, tables: &BTreeMap<String, DimensionTable>) -> Result<Self> {
        let context = pinned_session();
        for (name, stream) in streams {
            let mut fields = record::event_schema(&stream.columns).fields().to_vec();
            fields.push(Arc::new(Field::new(record::LATE, DataType::Boolean, false)));
            let table = StreamTable::new(name, Arc::new(Schema::new(fields)));
            context.register_table(datafusion::common::TableReference::bare(name.as_str()), Arc::new(table))?;
        }
        let mut table_hashes = BTreeMap::new();
        for (name, table) in tables {
            if streams.contains_key(name) {
                return plan_err!("{name} is both a stream and a table");
            }
            let provider = MemTable::try_new(Arc::clone(&table.schema), vec![table.batches.clone()])?;
            context.register_table(datafusion::common::TableReference::bare(name.as_str()), Arc::new(provider))?;
            table_hashes.insert(name.clone(), table.content_hash.clone());
        }
        let names = streams.keys().chain(tables.keys()).cloned().collect();
        Ok(Self { streams: streams.clone(), table_hashes, names, context })
    }

    /// Compiles one view. Does no I/O.
    ///
    /// # Errors
    /// Why the view is refused, with the place in its SQL.
    pub fn compile(&self, config: &ViewConfig) -> Result<Arc<CompiledView>, CompileError> {
        let text = SqlText::new(&config.sql);
        let statement = refuse::parse(&config.sql, &text)?;
        let state = self.context.state();
        let plan = futures::executor::block_on(state.statement_to_plan(statement))
            .and_then(|plan| state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {}))
            .map_err(|e| refuse::of_engine(&e, &text, &self.names))?;
        refuse::everywhere(&plan, &text, &self.names)?;
        if plan.schema().fields().is_empty() {
            return Err(CompileError::new(text.start(), "the view has no columns").with_hint("select at least one"));
        }
        let stream = refuse::one_stream(&plan, &text)?;
        let stream = &self.streams[&stream];
        let split = split(&plan, &stream.name, &text)?;
        self.assemble(config, stream, plan, &split, &text, &state)
    }

    fn assemble(
        &self,
        config: &ViewConfig,
        stream: &StreamConfig,
        plan: LogicalPlan,
        split: &Split,
        text: &SqlText,
        state: &SessionState,
    ) -> Result<Arc<CompiledView>, CompileError> {
        let unsupported = |e: DataFusionError| refuse::unsupported(&e, text);
        event_time(config, stream, text)?;
        let events = record::event_schema(&stream.columns);
        let leaf = StreamLeaf { stream, events: Arc::clone(&events), late: config.late };
        let at_split = node_at(&plan, &split.to_split);
        let input = match split.kind {
            SplitKind::Aggregate | SplitKind::Distinct => at_split.inputs()[0],
            SplitKind::Rows => at_split,
        };
        let mut below = BelowBuilder::new(input, &split.below, &leaf).map_err(unsupported)?;
        let lowest = match (at_split, split.kind) {
            (LogicalPlan::Aggregate(aggregate), SplitKind::Aggregate) => {
                lowest_aggregate(aggregate, &mut below, text, state)?
            }
            (LogicalPlan::Distinct(Distinct::All(input)), SplitKind::Distinct) => {
                let keys = columns_of(input).into_iter().map(|c| below.column(c)).collect();
                Lowest { groups: Groups::plain(keys), calls: vec![] }
            }
            (LogicalPlan::Distinct(Distinct::On(_)), _) => {
                return Err(CompileError::new(
                    text.keyword(datafusion::sql::sqlparser::keywords::Keyword::DISTINCT),
                    "DISTINCT ON over the events is not supported",
                )
                .with_hint("use first_value(… ORDER BY …) with GROUP BY"));
            }
            _ => {
                let keys = below.event_order().map_err(unsupported)?;
                let columns = columns_of(at_split).into_iter().map(|c| below.column(c)).collect();
                Lowest { groups: Groups::rows(keys, columns), calls: vec![] }
            }
        };
        let BuiltBelow { below, columns, uses_late } =
            futures::executor::block_on(below.build(state)).map_err(unsupported)?;
        let mut calls = vec![];
        for parts in lowest.calls {
            let place = text.call(&[parts.supported.name]);
            let call = AggregateCall::new(parts, &below.schema()).map_err(|e| CompileError {
                line: place.line,
                column: place.column,
                ..refuse::unsupported(&e, text)
            })?;
            calls.push(Arc::new(call));
        }
        let kind = if split.kind == SplitKind::Rows { Kind::Rows } else { Kind::Aggregate };
        let time_key = time_key(config, stream, at_split, &lowest.groups, split, text)?;
        let shape = Shape {
            plan,
            to_split: split.to_split.clone(),
            below,
            groups: lowest.groups,
            calls,
            events,
            retain_key: time_key,
        };
        storable(&shape, text)?;
        shape.check_order().map_err(|e| refuse::open_order(&e, text))?;
        let report = report(&ReportInputs { kind, shape: &shape, stream: &stream.name, columns: &columns });
        let definition = definition(&DefinitionInputs {
            shape: &shape,
            config,
            stream,
            columns: &columns,
            uses_late,
            tables: &self.table_hashes,
        });
        futures::executor::block_on(CompiledView::new(
            config.name.clone(),
            stream.name.clone(),
            kind,
            definition,
            report,
            shape,
            self.context.clone(),
        ))
        .map(Arc::new)
        .map_err(unsupported)
    }
}

/// Checks what `_late` is computed from.
fn event_time(config: &ViewConfig, stream: &StreamConfig, text: &SqlText) -> Result<(), CompileError> {
    let StreamConfig { name, event_time, allowed_lateness, columns, .. } = stream;
    if let Some(event_time) = event_time {
        let found = columns.field_with_name(event_time).map(|f| f.data_type().clone());
        if found.ok() != Some(record::timestamp_type()) {
            let message = format!("event_time of the stream {name} is no TIMESTAMP column. event_time=`{event_time}`");
            return Err(CompileError::new(text.word(name, 0), message));
        }
    }
    if config.late == Late::Exclude && (event_time.is_none() || allowed_lateness.is_none()) {
        let message = format!("late = \"exclude\", but no event of the stream {name} is ever late");
        return Err(CompileError::new(text.word(name, 0), message)
            .with_hint(format!("give [stream.{name}] event_time and allowed_lateness, or remove late")));
    }
    Ok(())
}

/// Checks that states of `shape` can be sorted and written to a file.
fn storable(shape: &Shape, text: &SqlText) -> Result<(), CompileError> {
    let schema = shape.state_schema();
    let refused =
        |what: String| Err(CompileError::new(text.start(), what).with_hint("cast it to a type that columns can have"));
    for field in &schema.fields()[..shape.key_count()] {
        if !RowConverter::supports_fields(&[SortField::new(field.data_type().clone())]) {
            return refused(format!("cannot group by a value of type {}", field.data_type()));
        }
    }
    for field in schema.fields() {
        let alone = Schema::new(vec![Arc::clone(field)]);
        if ArrowSchemaConverter::new().convert(&alone).is_err() || holds_interval(field.data_type()) {
            return refused(format!("states cannot hold a value of type {}", field.data_type()));
        }
    }
    Ok(())
}

/// The Parquet writer takes a schema with intervals, and fails on the first batch.
fn holds_interval(data_type: &DataType) -> bool {
    match data_type {
        DataType::Interval(_) => true,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            holds_interval(item.data_type())
        }
        DataType::Struct(fields) => fields.iter().any(|f| holds_interval(f.data_type())),
        DataType::Map(entries, _) => holds_interval(entries.data_type()),
        _ => false,
    }
}

/// The lowest aggregate in terms of the output columns of the part below.
struct Lowest {
    groups: Groups,
    calls: Vec<CallParts>,
}

fn columns_of(plan: &LogicalPlan) -> Vec<Expr> {
    plan.schema().columns().into_iter().map(Expr::Column).collect()
}

fn lowest_aggregate(
    aggregate: &Aggregate,
    below: &mut BelowBuilder,
    text: &SqlText,
    state: &SessionState,
) -> Result<Lowest, CompileError> {
    let unsupported = |e: DataFusionError| refuse::unsupported(&e, text);
    let groups = match aggregate.group_expr.as_slice() {
        [Expr::GroupingSet(set)] => {
            let keys: Vec<Expr> =
                grouping_set_to_exprlist(&aggregate.group_expr).map_err(unsupported)?.into_iter().cloned().collect();
            let sets = grouping_sets(set, &keys);
            Groups::sets(keys.into_iter().map(|k| below.column(k)).collect(), sets)
        }
        plain => Groups::plain(plain.iter().map(|k| below.column(k.clone())).collect()),
    };
    let first_call = aggregate.schema.fields().len() - aggregate.aggr_expr.len();
    let mut calls = vec![];
    for (index, expr) in aggregate.aggr_expr.iter().enumerate() {
        let Expr::AggregateFunction(call) = expr.clone().unalias() else {
            return Err(CompileError::new(text.start(), format!("not an aggregate call: {expr}")));
        };
        let output = Arc::clone(&aggregate.schema.fields()[first_call + index]);
        calls.push(call_parts(&call, output, below, text, state)?);
    }
    Ok(Lowest { groups, calls })
}

/// The grouping sets as positions among the keys.
fn grouping_sets(set: &GroupingSet, keys: &[Expr]) -> Vec<Vec<usize>> {
    let position = |e: &Expr| keys.iter().position(|k| k == e).expect("the keys are all the set's expressions");
    match set {
        GroupingSet::GroupingSets(sets) => sets.iter().map(|s| s.iter().map(position).collect()).collect(),
        GroupingSet::Rollup(exprs) => {
            (0..=exprs.len()).rev().map(|n| exprs[..n].iter().map(position).collect()).collect()
        }
        GroupingSet::Cube(exprs) => (0..1_usize << exprs.len())
            .rev()
            .map(|mask| {
                exprs
                    .iter()
                    .enumerate()
                    .filter(|(bit, _)| mask >> (exprs.len() - 1 - bit) & 1 == 1)
                    .map(|(_, e)| position(e))
                    .collect()
            })
            .collect(),
    }
}

fn call_parts(
    call: &AggregateFunction,
    output: Arc<Field>,
    below: &mut BelowBuilder,
    text: &SqlText,
    state: &SessionState,
) -> Result<CallParts, CompileError> {
    let unsupported = |e: DataFusionError| refuse::unsupported(&e, text);
    let params = &call.params;
    let supported = refuse::aggregate(call.func.name(), call.func.aliases(), params.distinct, text)?;
    let schema = Arc::clone(below.input().schema());
    let simplifier = ExprSimplifier::new(
        SimplifyContext::builder()
            .with_schema(Arc::clone(&schema))
            .with_config_options(Arc::clone(state.config_options()))
            .build(),
    );
    // An argument is evaluated only for events that the FILTER lets through; the engine would evaluate it for all.
    let guarded = |expr: Expr| match &params.filter {
        Some(filter) if !cannot_fail(&expr, &schema) => {
            Expr::Case(Case::new(None, vec![(filter.clone(), Box::new(expr))], None))
        }
        _ => expr,
    };
    let mut input = |expr: &Expr| -> Result<CallInput, CompileError> {
        let expr = expr.clone().unalias_nested().data;
        let constant = expr.column_refs().is_empty();
        let simple = if constant { simplifier.simplify(expr.clone()).map_err(unsupported)? } else { expr.clone() };
        Ok(match simple {
            Expr::Literal(value, _) => CallInput::Literal(value),
            _ => CallInput::Column(below.column(guarded(expr))),
        })
    };
    let args = params.args.iter().map(&mut input).collect::<Result<Vec<_>, _>>()?;
    let mut order = vec![];
    for SortExpr { expr, asc, nulls_first } in &params.order_by {
        order.push((input(expr)?, SortOptions { descending: !asc, nulls_first: *nulls_first }));
    }
    let within_group = call.func.supports_within_group_clause();
    if supported.order == OrderDependence::None && !within_group {
        // ORDER BY in a call whose result does not depend on it.
        order.clear();
    }
    if supported.order != OrderDependence::None {
        if params.distinct {
            // Distinct values have no place in the log; they come in their own order unless the SQL gives one.
            if order.is_empty() {
                order.push((args[0].clone(), SortOptions { descending: false, nulls_first: false }));
            }
        } else {
            let log_order = below.event_order().map_err(unsupported)?;
            order.extend(log_order.into_iter().map(|c| (CallInput::Column(c), SortOptions::default())));
        }
    }
    let filter = params.filter.as_ref().map(|f| below.column(f.as_ref().clone()));
    Ok(CallParts {
        supported,
        display: Expr::AggregateFunction(call.clone()).schema_name().to_string(),
        function: Arc::clone(&call.func),
        args,
        order,
        filter,
        distinct: params.distinct,
        ignore_nulls: params.null_treatment == Some(NullTreatment::IgnoreNulls),
        output,
    })
}

/// The group key that `retain` is about: the one time key, or the one that comes from the event time if there are
/// several.
fn time_key(
    config: &ViewConfig,
    stream: &StreamConfig,
    at_split: &LogicalPlan,
    groups: &Groups,
    split: &Split,
    text: &SqlText,
) -> Result<Option<usize>, CompileError> {
    if config.retain.is_none() {
        return Ok(None);
    }
    let refused = |why: &str| {
        Err(CompileError::new(text.start(), format!("retain needs a time key: {why}"))
            .with_hint("group by date_bin or date_trunc of the event time, or remove retain"))
    };
    if split.kind == SplitKind::Rows {
        return refused("the view has no GROUP BY");
    }
    if groups.has_sets() {
        return refused("with ROLLUP, CUBE or GROUPING SETS the totals would contain what is hidden");
    }
    let is_time = |t: &DataType| matches!(t, DataType::Timestamp(_, _) | DataType::Date32);
    let fields: &Fields = at_split.schema().fields();
    let times: Vec<usize> = (0..groups.key_count()).filter(|&k| is_time(fields[k].data_type())).collect();
    match times.as_slice() {
        [] => refused("no key of the GROUP BY is a TIMESTAMP or DATE"),
        [one] => Ok(Some(*one)),
        several => {
            let of_event_time = |key: &usize| {
                let Some(event_time) = &stream.event_time else { return false };
                let expr = match at_split {
                    LogicalPlan::Aggregate(aggregate) => aggregate.group_expr[*key].clone(),
                    other => Expr::Column(Column::from(other.schema().qualified_field(*key))),
                };
                let input = at_split.inputs()[0];
                trace_down(&expr, input, &split.below)
                    .is_some_and(|traced| traced.column_refs().iter().any(|c| c.name == *event_time))
            };
            match several.iter().filter(|k| of_event_time(k)).collect::<Vec<_>>().as_slice() {
                [one] => Ok(Some(**one)),
                _ => refused("several keys of the GROUP BY are times"),
            }
        }
    }
}
