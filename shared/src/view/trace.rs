//! Following expressions down a plan, and moving the conjuncts that cannot fail to its bottom.

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, Result, not_impl_err};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Expr, ExprSchemable, Filter, LogicalPlan, Operator};

use super::split::replace_at;
use crate::mutant::{self, Mutant};

/// `expr`, which is over the output of `plan`, as an expression over the output of the node at the end of `path`;
/// `None` when something on the way computes it otherwise than event by event from there.
pub(crate) fn trace_down(expr: &Expr, plan: &LogicalPlan, path: &[usize]) -> Option<Expr> {
    let Some((&index, rest)) = path.split_first() else { return Some(expr.clone()) };
    let inputs = plan.inputs();
    let input = *inputs.get(index)?;
    let below = match plan {
        LogicalPlan::Filter(_) | LogicalPlan::Sort(_) => expr.clone(),
        LogicalPlan::SubqueryAlias(alias) => replace_columns(expr, |column| {
            let position = alias.schema.maybe_index_of_column(column)?;
            Some(Expr::Column(Column::from(input.schema().qualified_field(position))))
        })?,
        LogicalPlan::Projection(projection) => replace_columns(expr, |column| {
            let position = projection.schema.maybe_index_of_column(column)?;
            Some(projection.expr[position].clone().unalias_nested().data)
        })?,
        LogicalPlan::Join(_) => replace_columns(expr, |column| {
            input.schema().maybe_index_of_column(column)?;
            Some(Expr::Column(column.clone()))
        })?,
        _ => return None,
    };
    trace_down(&below, input, rest)
}

/// `expr` with each column replaced; `None` when one has no replacement.
fn replace_columns(expr: &Expr, replace: impl Fn(&Column) -> Option<Expr>) -> Option<Expr> {
    expr.clone()
        .transform_up(|e| match &e {
            Expr::Column(column) => match replace(column) {
                Some(replacement) => Ok(Transformed::yes(replacement)),
                None => not_impl_err!("no replacement"),
            },
            Expr::OuterReferenceColumn(..) | Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => {
                not_impl_err!("no replacement")
            }
            _ => Ok(Transformed::no(e)),
        })
        .ok()
        .map(|t| t.data)
}

/// Takes the conjuncts that cannot fail and are over the stream's own columns out of the filters on `path`.
///
/// Returns the plan without them, and them, over the scan's columns without qualifier.
pub(crate) fn take_safe_conjuncts(plan: LogicalPlan, path: &[usize]) -> Result<(LogicalPlan, Vec<Expr>)> {
    let mut safe = vec![];
    let stripped = strip(plan, path, &mut safe)?;
    Ok((stripped, safe))
}

fn strip(plan: LogicalPlan, path: &[usize], safe: &mut Vec<Expr>) -> Result<LogicalPlan> {
    let Some((&index, rest)) = path.split_first() else { return Ok(plan) };
    let scan = super::split::node_at(&plan, path);
    let scan_schema = scan.schema().as_ref().clone();
    let mut kept = vec![];
    if let LogicalPlan::Filter(filter) = &plan {
        for conjunct in split_conjunction_owned(filter.predicate.clone()) {
            match trace_down(&conjunct, &filter.input, rest)
                .filter(|e| cannot_fail(e, &scan_schema) || mutant::is(Mutant::AllFiltersPushed))
            {
                Some(traced) => safe.push(without_qualifiers(&traced)?),
                None => kept.push(conjunct),
            }
        }
    }
    let child = (*plan.inputs()[index]).clone();
    let child = strip(child, rest, safe)?;
    match (&plan, conjunction(kept)) {
        (LogicalPlan::Filter(_), None) => Ok(child),
        (LogicalPlan::Filter(_), Some(predicate)) => {
            Ok(LogicalPlan::Filter(Filter::try_new(predicate, std::sync::Arc::new(child))?))
        }
        _ => replace_at(&plan, &[index], child),
    }
}

fn without_qualifiers(expr: &Expr) -> Result<Expr> {
    Ok(expr
        .clone()
        .transform_up(|e| {
            Ok(match e {
                Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
                other => Transformed::no(other),
            })
        })?
        .data)
}

/// Whether no value of its columns can make `expr` fail.
pub(crate) fn cannot_fail(expr: &Expr, schema: &DFSchema) -> bool {
    let safe = |e: &Expr| cannot_fail(e, schema);
    match expr {
        Expr::Column(_) | Expr::Literal(_, _) => true,
        Expr::Alias(alias) => safe(&alias.expr),
        Expr::Not(e)
        | Expr::IsNull(e)
        | Expr::IsNotNull(e)
        | Expr::IsTrue(e)
        | Expr::IsFalse(e)
        | Expr::IsUnknown(e)
        | Expr::IsNotTrue(e)
        | Expr::IsNotFalse(e)
        | Expr::IsNotUnknown(e) => safe(e),
        Expr::BinaryExpr(binary) => {
            let compares = matches!(
                binary.op,
                Operator::Eq
                    | Operator::NotEq
                    | Operator::Lt
                    | Operator::LtEq
                    | Operator::Gt
                    | Operator::GtEq
                    | Operator::IsDistinctFrom
                    | Operator::IsNotDistinctFrom
                    | Operator::And
                    | Operator::Or
            );
            compares && safe(&binary.left) && safe(&binary.right)
        }
        Expr::Between(between) => safe(&between.expr) && safe(&between.low) && safe(&between.high),
        Expr::InList(list) => safe(&list.expr) && list.list.iter().all(safe),
        Expr::Like(like) => {
            like.escape_char.is_none() && safe(&like.expr) && matches!(*like.pattern, Expr::Literal(_, _))
        }
        Expr::Cast(cast) => {
            let from = cast.expr.get_type(schema);
            safe(&cast.expr) && from.is_ok_and(|from| widens(&from, cast.field.data_type()))
        }
        Expr::ScalarFunction(call) => call.func.name() == "late" && call.args.iter().all(safe),
        _ => false,
    }
}

/// Whether every value of `from` has one in `to`.
fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType::{Float32, Float64, Int8, Int16, Int32, Int64, LargeUtf8, Utf8};
    matches!(
        (from, to),
        (Int8, Int16 | Int32 | Int64 | Float32 | Float64)
            | (Int16, Int32 | Int64 | Float32 | Float64)
            | (Int32, Int64 | Float32 | Float64)
            | (Int64, Float64)
            | (Float32, Float64)
            | (Utf8, LargeUtf8)
    ) || from == to
}
