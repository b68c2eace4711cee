//! Where a view is split: the path from its plan's root to the stream, and the lowest aggregate on it.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result, internal_err};
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, Projection, SubqueryAlias};

use super::error::CompileError;
use super::place::SqlText;
use super::refuse;

/// The way from the root of a plan to its stream's scan: which input to take at each node.
pub(crate) type PlanPath = Vec<usize>;

/// A view's plan, split at the lowest aggregate on the stream's path.
#[derive(Debug)]
pub(crate) struct Split {
    pub(crate) kind: SplitKind,
    /// From the root to the node that states replace: the aggregate, or the topmost row-wise node of a row view.
    pub(crate) to_split: PlanPath,
    /// From the topmost node below the states to the stream's scan.
    pub(crate) below: PlanPath,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SplitKind {
    Aggregate,
    Distinct,
    Rows,
}

/// The path to the only scan of a stream that is not in a subquery's expression.
fn path_to_stream(plan: &LogicalPlan) -> Option<PlanPath> {
    if refuse::stream_of(plan).is_some() {
        return Some(vec![]);
    }
    plan.inputs().into_iter().enumerate().find_map(|(index, input)| {
        let mut path = path_to_stream(input)?;
        path.insert(0, index);
        Some(path)
    })
}

/// The node at the end of `path`.
pub(crate) fn node_at<'a>(plan: &'a LogicalPlan, path: &[usize]) -> &'a LogicalPlan {
    path.iter().fold(plan, |node, &index| node.inputs()[index])
}

/// Finds the split of `plan`, which reads `stream` exactly once.
///
/// # Errors
/// What on the path does not let events pass one by one.
pub(crate) fn split(plan: &LogicalPlan, stream: &str, text: &SqlText) -> std::result::Result<Split, CompileError> {
    let Some(path) = path_to_stream(plan) else {
        return Err(CompileError::new(
            text.word(stream, 0),
            format!("the stream {stream} is read in a subquery of an expression"),
        )
        .with_hint("read the stream in FROM, and tables in subqueries"));
    };
    let node = |depth: usize| node_at(plan, &path[..depth]);
    let stream_depth = path.len();
    let aggregate = (0..stream_depth)
        .rev()
        .find(|&depth| matches!(node(depth), LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_)));
    let (kind, split_depth, below_depth) = match aggregate {
        Some(depth) => {
            let kind = match node(depth) {
                LogicalPlan::Distinct(_) => SplitKind::Distinct,
                _ => SplitKind::Aggregate,
            };
            (kind, depth, depth + 1)
        }
        None => {
            let row_wise = |depth: usize| {
                !matches!(node(depth), LogicalPlan::Window(_) | LogicalPlan::Sort(_) | LogicalPlan::Limit(_))
            };
            let depth = (0..stream_depth).rev().find(|&depth| !row_wise(depth)).map_or(0, |depth| depth + 1);
            (SplitKind::Rows, depth, depth)
        }
    };
    for (depth, &child) in path.iter().enumerate().skip(below_depth) {
        refuse::below_aggregate(node(depth), child, stream, text)?;
    }
    for depth in 0..split_depth {
        refuse::above_aggregate(node(depth), stream, text)?;
    }
    Ok(Split { kind, to_split: path[..split_depth].to_vec(), below: path[below_depth..].to_vec() })
}

/// `plan` with the node at the end of `path` replaced by one of the same schema.
pub(crate) fn replace_at(plan: &LogicalPlan, path: &[usize], replacement: LogicalPlan) -> Result<LogicalPlan> {
    let Some((&index, rest)) = path.split_first() else { return Ok(replacement) };
    let mut replacement = Some(replacement);
    let mut position = 0;
    let replaced = plan.clone().map_children(|child| {
        let here = position == index;
        position += 1;
        match replacement.take_if(|_| here) {
            Some(plan) => Ok(Transformed::yes(replace_at(&child, rest, plan)?)),
            None => Ok(Transformed::no(child)),
        }
    })?;
    if replacement.is_some() {
        return internal_err!("a view's plan lost the path to its aggregate");
    }
    Ok(replaced.data)
}

/// `plan` with `leaf` in place of the scan at the end of `path`. `hidden` columns of the leaf are led through all
/// projections, so that they are still there at the top.
pub(crate) fn with_leaf(
    plan: &LogicalPlan,
    path: &[usize],
    leaf: &LogicalPlan,
    hidden: &[&str],
) -> Result<LogicalPlan> {
    let Some((&index, rest)) = path.split_first() else { return Ok(leaf.clone()) };
    let mut inputs: Vec<LogicalPlan> = plan.inputs().into_iter().cloned().collect();
    inputs[index] = with_leaf(&inputs[index], rest, leaf, hidden)?;
    match plan {
        LogicalPlan::Projection(projection) => {
            let input = inputs.swap_remove(0);
            let mut exprs = projection.expr.clone();
            for name in hidden {
                exprs.push(Expr::Column(find_column(&input, name)?));
            }
            Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let input = Arc::new(inputs.swap_remove(0));
            Ok(LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(input, alias.alias.clone())?))
        }
        LogicalPlan::Filter(filter) => {
            let input = Arc::new(inputs.swap_remove(0));
            Ok(LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), input)?))
        }
        other => other.with_new_exprs(other.expressions(), inputs),
    }
}

/// The column called `name`, whatever its qualifier.
pub(crate) fn find_column(plan: &LogicalPlan, name: &str) -> Result<Column> {
    match plan.schema().iter().find(|(_, field)| field.name() == name) {
        Some((qualifier, field)) => Ok(Column::new(qualifier.cloned(), field.name())),
        None => internal_err!("a view's plan lost the column {name}"),
    }
}

/// Whether an event can become several rows on the `path` through `plan`.
pub(crate) fn multiplies(plan: &LogicalPlan, path: &[usize]) -> bool {
    (0..path.len()).any(|depth| matches!(node_at(plan, &path[..depth]), LogicalPlan::Join(_) | LogicalPlan::Unnest(_)))
}
