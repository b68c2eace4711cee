//! A total order for the part of a view above its aggregate.
//!
//! The SQL may leave open which of several rows comes first: `ORDER BY c LIMIT 3` with ties, `row_number()` over peers.
//! An answer must not depend on how its events were split into runs, so each such place gets the keys of its rows as
//! tie-break behind its own order.
//!
//! | part | what becomes of it |
//! |---|---|
//! | ORDER BY, DISTINCT ON | the keys behind its own order |
//! | LIMIT without ORDER BY | an order by the keys below it |
//! | row_number, ntile, lag, lead; ROWS frames | the keys behind the order of the window |
//! | rank, dense_rank, percent_rank, cume_dist; RANGE and GROUPS frames of sums and the like | nothing: peers are alike |
//! | first_value, last_value, nth_value, array_agg, … over RANGE and GROUPS frames | the keys where the frame stays the same; else refused |
//! | array_agg and the like in a further aggregate | the keys behind its own order |
//!
//! Keys are those of the states; behind a further aggregate or DISTINCT its own; behind a join or UNNEST also the
//! columns that it adds. Rows equal in all of these are equal in all columns, and changing places they change nothing.

use std::sync::Arc;

use arrow::row::{RowConverter, SortField};
use datafusion::common::{Column, Result, internal_err, plan_err};
use datafusion::logical_expr::expr::{AggregateFunction, NullTreatment, WindowFunction};
use datafusion::logical_expr::{
    Aggregate, AggregateUDF, Distinct, DistinctOn, Expr, Filter, Limit, LogicalPlan, Projection, Sort, SortExpr,
    SubqueryAlias, Window, WindowFrame, WindowFrameBound, WindowFrameUnits, WindowFunctionDefinition,
};

use super::split::PlanPath;
use super::states::{OrderDependence, supported};

/// A plan, and the columns of its output that no two different rows have in common.
pub(crate) struct Keyed {
    pub(crate) plan: LogicalPlan,
    pub(crate) keys: Vec<Column>,
}

/// Hidden columns that lead keys through projections.
pub(crate) fn hidden(index: usize) -> String {
    format!("__key_{index}")
}

/// `plan` with `leaf` in place of the node at the end of `path`, and each order on the path made total. `leaf` may have
/// more columns than that node; the result has those of `plan`.
///
/// # Errors
/// When a result depends on the order of peers and its SQL leaves no way to say so; the message has the function's name
/// in quotes.
pub(crate) fn totally_ordered(plan: &LogicalPlan, path: &PlanPath, leaf: Keyed) -> Result<LogicalPlan> {
    let ordered = above(plan, path, leaf)?.plan;
    with_columns_of(ordered, plan)
}

/// Whether the order of its input changes nothing about a node.
pub(crate) fn orders_nothing(node: &LogicalPlan) -> bool {
    match node {
        LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Window(_)
        | LogicalPlan::Distinct(Distinct::On(_)) => false,
        LogicalPlan::Aggregate(aggregate) => !aggregate
            .aggr_expr
            .iter()
            .any(|e| matches!(e.clone().unalias(), Expr::AggregateFunction(call) if by_order(&call.func))),
        _ => true,
    }
}

/// `plan` with the columns of `original` alone.
fn with_columns_of(plan: LogicalPlan, original: &LogicalPlan) -> Result<LogicalPlan> {
    if plan.schema().columns() == original.schema().columns() {
        return Ok(plan);
    }
    let columns = original.schema().columns().into_iter().map(Expr::Column).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?))
}

fn above(plan: &LogicalPlan, path: &[usize], leaf: Keyed) -> Result<Keyed> {
    let Some((&index, rest)) = path.split_first() else { return Ok(leaf) };
    let original = plan.inputs()[index];
    let Keyed { plan: input, keys } = above(original, rest, leaf)?;
    match plan {
        LogicalPlan::Projection(projection) => project(projection, input, keys),
        LogicalPlan::Filter(filter) => {
            let plan = LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), Arc::new(input))?);
            Ok(Keyed { plan, keys })
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let positions = keys.iter().map(|key| position(key, &input)).collect::<Result<Vec<_>>>()?;
            let plan = SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?;
            let keys = positions.into_iter().map(|i| Column::from(plan.schema.qualified_field(i))).collect();
            Ok(Keyed { plan: LogicalPlan::SubqueryAlias(plan), keys })
        }
        LogicalPlan::Sort(sort) => {
            let expr = behind(&sort.expr, &keys, &input, "ORDER BY")?;
            Ok(Keyed { plan: LogicalPlan::Sort(Sort { expr, input: Arc::new(input), fetch: sort.fetch }), keys })
        }
        LogicalPlan::Limit(limit) => {
            let input = if has_order(&input) {
                input
            } else {
                let expr = behind(&[], &keys, &input, "LIMIT")?;
                if expr.is_empty() {
                    input
                } else {
                    LogicalPlan::Sort(Sort { expr, input: Arc::new(input), fetch: None })
                }
            };
            let Limit { skip, fetch, .. } = limit.clone();
            Ok(Keyed { plan: LogicalPlan::Limit(Limit { skip, fetch, input: Arc::new(input) }), keys })
        }
        LogicalPlan::Window(window) => windows(window, input, keys),
        LogicalPlan::Aggregate(aggregate) => further_aggregate(aggregate, input, &keys),
        LogicalPlan::Distinct(Distinct::All(_)) => {
            let input = with_columns_of(input, original)?;
            let keys = input.schema().columns();
            Ok(Keyed { plan: LogicalPlan::Distinct(Distinct::All(Arc::new(input))), keys })
        }
        LogicalPlan::Distinct(Distinct::On(on)) => {
            let ascending = |e: &Expr| e.clone().sort(true, true);
            let own = on.sort_expr.clone().unwrap_or_else(|| on.on_expr.iter().map(ascending).collect());
            let expr = behind(&own, &keys, &input, "DISTINCT ON")?;
            let on = DistinctOn::try_new(on.on_expr.clone(), on.select_expr.clone(), Some(expr), Arc::new(input))?;
            let keys = on.schema.columns();
            Ok(Keyed { plan: LogicalPlan::Distinct(Distinct::On(on)), keys })
        }
        other => {
            // Joins with tables, and UNNEST: a row of the input becomes several, told apart by what they add.
            let mut inputs: Vec<LogicalPlan> = other.inputs().into_iter().cloned().collect();
            let own = input.schema().columns();
            inputs[index] = input;
            let plan = other.with_new_exprs(other.expressions(), inputs)?;
            let columns = plan.schema().columns();
            let whole = keys.iter().all(|key| columns.contains(key));
            let mut found = if whole { keys } else { vec![] };
            let added = |c: &Column| !whole || !own.contains(c);
            let unnested = matches!(other, LogicalPlan::Unnest(_));
            for column in columns {
                if !found.contains(&column) && (unnested || added(&column)) {
                    found.push(column);
                }
            }
            Ok(Keyed { plan, keys: found })
        }
    }
}

fn position(key: &Column, plan: &LogicalPlan) -> Result<usize> {
    match plan.schema().columns().iter().position(|column| column == key) {
        Some(position) => Ok(position),
        None => internal_err!("a view's plan lost the key {key}"),
    }
}

/// `own`, with those of `keys` behind it that it lacks.
fn behind(own: &[SortExpr], keys: &[Column], input: &LogicalPlan, what: &str) -> Result<Vec<SortExpr>> {
    let mut order = own.to_vec();
    for key in keys {
        let column = Expr::Column(key.clone());
        if own.iter().any(|s| s.expr == column) {
            continue;
        }
        let data_type = input.schema().field(position(key, input)?).data_type();
        if !RowConverter::supports_fields(&[SortField::new(data_type.clone())]) {
            return plan_err!(
                "the answer of '{what}' depends on the order of rows, and they cannot be ordered by {} of type \
                 {data_type}",
                key.name
            );
        }
        order.push(column.sort(true, true));
    }
    Ok(order)
}

fn project(projection: &Projection, input: LogicalPlan, keys: Vec<Column>) -> Result<Keyed> {
    let mut exprs = projection.expr.clone();
    let positions: Vec<usize> = keys
        .into_iter()
        .enumerate()
        .map(|(index, key)| {
            let key = Expr::Column(key);
            let known = projection.expr.iter().position(|e| e.clone().unalias_nested().data == key);
            known.unwrap_or_else(|| {
                exprs.push(key.alias(hidden(index)));
                exprs.len() - 1
            })
        })
        .collect();
    let projection = Projection::try_new(exprs, Arc::new(input))?;
    let keys = positions.into_iter().map(|i| Column::from(projection.schema.qualified_field(i))).collect();
    Ok(Keyed { plan: LogicalPlan::Projection(projection), keys })
}

/// Whether a Sort orders the rows of `plan`.
fn has_order(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Sort(_) => true,
        LogicalPlan::Projection(p) => has_order(&p.input),
        LogicalPlan::SubqueryAlias(a) => has_order(&a.input),
        LogicalPlan::Filter(f) => has_order(&f.input),
        LogicalPlan::Limit(l) => has_order(&l.input),
        _ => false,
    }
}

fn further_aggregate(aggregate: &Aggregate, input: LogicalPlan, keys: &[Column]) -> Result<Keyed> {
    let mut calls = vec![];
    for expr in &aggregate.aggr_expr {
        let (qualifier, name) = expr.qualified_name();
        calls.push(match expr.clone().unalias() {
            Expr::AggregateFunction(call) if by_order(&call.func) => {
                let call = Expr::AggregateFunction(aggregate_in_order(call, keys, &input)?);
                call.alias_qualified(qualifier, name)
            }
            _ => expr.clone(),
        });
    }
    let plan = Aggregate::try_new(Arc::new(input), aggregate.group_expr.clone(), calls)?;
    let keys = plan.schema.columns().into_iter().take(plan.schema.fields().len() - plan.aggr_expr.len()).collect();
    Ok(Keyed { plan: LogicalPlan::Aggregate(plan), keys })
}

/// Whether the result of the aggregate depends on the order of its input. Of those that no state is known of it may.
fn by_order(function: &AggregateUDF) -> bool {
    match supported(function.name()) {
        Some(known) => known.order != OrderDependence::None,
        None => !function.supports_within_group_clause(),
    }
}

fn aggregate_in_order(mut call: AggregateFunction, keys: &[Column], input: &LogicalPlan) -> Result<AggregateFunction> {
    if call.params.distinct {
        // Distinct values come in their own order unless the SQL gives one.
        if call.params.order_by.is_empty() {
            call.params.order_by = call.params.args.first().map(|a| a.clone().sort(true, false)).into_iter().collect();
        }
        return Ok(call);
    }
    call.params.order_by = behind(&call.params.order_by, keys, input, call.func.name())?;
    Ok(call)
}

fn windows(window: &Window, input: LogicalPlan, keys: Vec<Column>) -> Result<Keyed> {
    let mut unchanged = vec![];
    // The engine wants one order for all calls of a node.
    let mut changed: Vec<(WindowFunction, Vec<Expr>)> = vec![];
    for expr in &window.window_expr {
        let (qualifier, name) = expr.qualified_name();
        let in_order = match expr.clone().unalias() {
            Expr::WindowFunction(call) => window_in_order(*call, &keys, &input)?,
            _ => None,
        };
        let Some(call) = in_order else {
            unchanged.push(expr.clone());
            continue;
        };
        let named = Expr::WindowFunction(Box::new(call.clone())).alias_qualified(qualifier, name);
        let same = |c: &WindowFunction| {
            c.params.partition_by == call.params.partition_by && c.params.order_by == call.params.order_by
        };
        match changed.iter_mut().find(|(c, _)| same(c)) {
            Some((_, exprs)) => exprs.push(named),
            None => changed.push((call, vec![named])),
        }
    }
    let mut plan = input;
    for exprs in std::iter::once(unchanged).chain(changed.into_iter().map(|(_, exprs)| exprs)) {
        if !exprs.is_empty() {
            plan = LogicalPlan::Window(Window::try_new(exprs, Arc::new(plan))?);
        }
    }
    Ok(Keyed { plan, keys })
}

/// What decides which rows of a window's partition a call sees, and in which order.
#[derive(Debug, PartialEq, Eq)]
enum Peers {
    /// Peers are alike to it.
    Alike,
    /// The keys belong behind its order; with this frame.
    Apart(WindowFrame),
    /// All peers of the row, in the order of the keys.
    Only,
    /// With the keys behind its order the frame would be another one.
    Open,
}

/// The call with a total order; `None`: it needs none, or has one.
fn window_in_order(mut call: WindowFunction, keys: &[Column], input: &LogicalPlan) -> Result<Option<WindowFunction>> {
    let params = &call.params;
    let in_it = |key: &Column| {
        let key = Expr::Column(key.clone());
        params.partition_by.contains(&key) || params.order_by.iter().any(|s| s.expr == key)
    };
    if keys.iter().all(in_it) {
        return Ok(None);
    }
    let name = call.fun.name().to_string();
    match peers(&call) {
        Peers::Alike => return Ok(None),
        Peers::Apart(frame) => {
            call.params.order_by = behind(&call.params.order_by, keys, input, &name)?;
            call.params.window_frame = frame;
        }
        Peers::Only => {
            let own = std::mem::take(&mut call.params.order_by);
            call.params.partition_by.extend(own.into_iter().map(|s| s.expr));
            call.params.order_by = behind(&[], keys, input, &name)?;
            call.params.window_frame = WindowFrame::new(None);
        }
        Peers::Open => {
            let unit = call.params.window_frame.units;
            let names: Vec<&str> = keys.iter().map(|k| k.name.as_str()).filter(|n| !n.starts_with("__")).collect();
            let keys =
                if names.is_empty() { "all keys".to_owned() } else { format!("all keys ({})", names.join(", ")) };
            return plan_err!(
                "'{name}' depends on the order of rows that its ORDER BY leaves open, and its {unit} frame takes them \
                 together; give a ROWS frame, or an ORDER BY with {keys}"
            );
        }
    }
    Ok(Some(call))
}

fn peers(call: &WindowFunction) -> Peers {
    let frame = &call.params.window_frame;
    let unbounded = WindowFrameBound::is_unbounded;
    let whole = unbounded(&frame.start_bound) && unbounded(&frame.end_bound);
    let rows = frame.units == WindowFrameUnits::Rows;
    let of_the_whole = || Peers::Apart(WindowFrame::new(None));
    match &call.fun {
        WindowFunctionDefinition::AggregateUDF(f) => match (by_order(f), whole) {
            (false, true) => Peers::Alike,
            (true, true) => of_the_whole(),
            (_, false) if rows => Peers::Apart(frame.clone()),
            (false, false) => Peers::Alike,
            (true, false) => Peers::Open,
        },
        WindowFunctionDefinition::WindowUDF(f) => match f.name() {
            "rank" | "dense_rank" | "percent_rank" | "cume_dist" => Peers::Alike,
            // No frame changes their result.
            "row_number" | "ntile" | "lag" | "lead" => Peers::Apart(WindowFrame::new(Some(true))),
            _ if rows => Peers::Apart(frame.clone()),
            _ if whole => of_the_whole(),
            // Leaving out NULL, the other end of the frame counts too.
            _ if call.params.null_treatment == Some(NullTreatment::IgnoreNulls) => Peers::Open,
            name => match (name, &frame.start_bound, &frame.end_bound) {
                // The frame holds the row itself: its first row is that of the partition.
                ("first_value", start, WindowFrameBound::CurrentRow | WindowFrameBound::Following(_))
                    if unbounded(start) =>
                {
                    of_the_whole()
                }
                ("last_value", WindowFrameBound::CurrentRow | WindowFrameBound::Preceding(_), end)
                    if unbounded(end) =>
                {
                    of_the_whole()
                }
                // Its first or last row is that of the row's peers.
                ("first_value", WindowFrameBound::CurrentRow, _) | ("last_value", _, WindowFrameBound::CurrentRow) => {
                    Peers::Only
                }
                _ => Peers::Open,
            },
        },
    }
}
