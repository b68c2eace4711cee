//! A subquery in the place of a value gives one row, or none, which is NULL; more is an error.
//!
//! The engine joins it: with more rows it would answer more rows. One that runs it apart and counts says of a column that
//! is never NULL that it can't be for no row either.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field, FieldRef, UInt64Type};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Expr, LogicalPlan, LogicalPlanBuilder, Signature, Volatility,
};

/// The plan, in which each subquery that stands for a value gives one row or fails.
pub(super) fn checked(plan: LogicalPlan) -> Result<LogicalPlan> {
    let plan = plan.transform_up_with_subqueries(|node| {
        node.map_expressions(|expr| {
            expr.transform_up(|expr| match expr {
                // One that refers to the row around it is refused by the engine unless it is an aggregate.
                Expr::ScalarSubquery(subquery)
                    if subquery.outer_ref_columns.is_empty()
                        && subquery.subquery.schema().fields().len() == 1
                        && subquery.subquery.max_rows().is_none_or(|rows| rows > 1) =>
                {
                    let single = Arc::new(single(subquery.subquery.as_ref().clone())?);
                    Ok(Transformed::yes(Expr::ScalarSubquery(subquery.with_plan(single))))
                }
                other => Ok(Transformed::no(other)),
            })
        })
    })?;
    Ok(plan.data)
}

fn single(plan: LogicalPlan) -> Result<LogicalPlan> {
    let (qualifier, field) = plan.schema().qualified_field(0);
    let (name, column) = (field.name().clone(), Expr::from((qualifier, field)));
    let single = AggregateUDF::new_from_impl(Single { signature: Signature::any(1, Volatility::Immutable) });
    let value = single.call(vec![column]).alias(name);
    LogicalPlanBuilder::from(plan).aggregate(Vec::<Expr>::new(), vec![value])?.build()
}

/// The value of the only row.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Single {
    signature: Signature,
}

impl AggregateUDFImpl for Single {
    fn name(&self) -> &str {
        "single_row"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(arg_types[0].clone())
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Seen { rows: 0, value: ScalarValue::try_from(args.return_field.data_type())? }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let value = args.return_field.as_ref().clone().with_name("value").with_nullable(true);
        Ok(vec![Arc::new(Field::new("rows", DataType::UInt64, false)), Arc::new(value)])
    }
}

#[derive(Debug)]
struct Seen {
    rows: u64,
    value: ScalarValue,
}

impl Seen {
    fn add(&mut self, rows: u64, values: &ArrayRef, at: usize) -> Result<()> {
        self.rows += rows;
        if self.rows > 1 {
            return Err(DataFusionError::Execution(
                "a subquery in the place of a value gave more than one row".to_owned(),
            ));
        }
        if rows > 0 {
            self.value = ScalarValue::try_from_array(values, at)?;
        }
        Ok(())
    }
}

impl Accumulator for Seen {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.add(values[0].len() as u64, &values[0], 0)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(self.value.clone())
    }

    fn size(&self) -> usize {
        size_of_val(self) - size_of_val(&self.value) + self.value.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::UInt64(Some(self.rows)), self.value.clone()])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let rows = states[0].as_primitive::<UInt64Type>();
        (0..rows.len()).try_for_each(|at| self.add(rows.value(at), &states[1], at))
    }
}
