//! One aggregate call of a view, with all that its three forms need.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, StructArray};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::AggregateUDF;
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};

use super::float_order::{integer_for, to_floats, to_integers};
use super::relabel::{relabel, relaxed};
use super::{OrderDependence, Supported};

/// What one input of the `state` form is: a literal as the SQL has it, or a column of the part below the aggregate.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum CallInput {
    Literal(ScalarValue),
    Column(usize),
}

/// One aggregate call: the engine's function with its literals, input types, ORDER BY, DISTINCT and null treatment, as
/// captured when the view was compiled.
///
/// The captured expressions refer to a schema of the call's own (`c0`, `c1`, …), so that names inside ordered states do
/// not depend on what else the view computes.
#[derive(Debug)]
pub(crate) struct AggregateCall {
    pub(crate) supported: &'static Supported,
    /// As the SQL has it, for reports.
    pub(crate) display: String,
    /// The inputs of the `state` form: arguments, then ORDER BY expressions, as the accumulators expect them.
    pub(crate) inputs: Vec<CallInput>,
    /// Column of the part below that holds the FILTER's outcome.
    pub(crate) filter: Option<usize>,
    pub(crate) distinct: bool,
    /// Fields of the state's struct.
    pub(crate) state_fields: Fields,
    /// Type and nullability of the call's result.
    pub(crate) output: FieldRef,
    pub(super) expr: AggregateFunctionExpr,
    pub(super) sort_options: Vec<SortOptions>,
    /// `min` or `max` of floats: the accumulator works on the integers of [`super::float_order`].
    ordered_floats: bool,
}

/// The ingredients of an [`AggregateCall`].
pub(crate) struct CallParts {
    pub(crate) supported: &'static Supported,
    pub(crate) display: String,
    pub(crate) function: Arc<AggregateUDF>,
    pub(crate) args: Vec<CallInput>,
    pub(crate) order: Vec<(CallInput, SortOptions)>,
    pub(crate) filter: Option<usize>,
    pub(crate) distinct: bool,
    pub(crate) ignore_nulls: bool,
    pub(crate) output: FieldRef,
}

impl AggregateCall {
    /// Captures a call whose column inputs are those of `below`.
    ///
    /// # Errors
    /// When the engine has no accumulator for these arguments.
    pub(crate) fn new(parts: CallParts, below: &Schema) -> Result<Self> {
        let CallParts { supported, display, function, args, order, filter, distinct, ignore_nulls, output } = parts;
        let ordered_floats = matches!(supported.name, "min" | "max") && integer_for(output.data_type()).is_some();
        let inner_type = |data_type: &DataType| match integer_for(data_type) {
            Some(integer) if ordered_floats => integer,
            _ => data_type.clone(),
        };
        let mut own: Vec<FieldRef> = vec![];
        let mut positions = HashMap::new();
        let mut physical = |input: &CallInput| -> Arc<dyn PhysicalExpr> {
            match input {
                CallInput::Literal(value) if ordered_floats => Arc::new(Literal::new(integer_value(value))),
                CallInput::Literal(value) => Arc::new(Literal::new(value.clone())),
                CallInput::Column(index) => {
                    let position = *positions.entry(*index).or_insert_with(|| {
                        let field = below.field(*index).clone().with_name(format!("c{}", own.len()));
                        let inner = inner_type(field.data_type());
                        own.push(Arc::new(field.with_data_type(inner)));
                        own.len() - 1
                    });
                    Arc::new(Column::new(&format!("c{position}"), position))
                }
            }
        };
        let arg_exprs: Vec<_> = args.iter().map(&mut physical).collect();
        let order_exprs: Vec<_> = order
            .iter()
            .map(|(input, options)| PhysicalSortExpr { expr: physical(input), options: *options })
            .collect();
        let expr = AggregateExprBuilder::new(function, arg_exprs)
            .schema(Arc::new(Schema::new(own)))
            .order_by(order_exprs)
            .alias("state")
            .with_distinct(distinct)
            .with_ignore_nulls(ignore_nulls)
            .build()?;
        let mut state_fields = state_fields(&expr)?;
        if ordered_floats {
            let as_float = |f: &FieldRef| f.as_ref().clone().with_data_type(output.data_type().clone());
            state_fields = state_fields.iter().map(as_float).collect();
        }
        if *expr.field().data_type() != inner_type(output.data_type()) {
            return exec_err!("{display} is of type {}, expected {}", expr.field().data_type(), output.data_type());
        }
        let sort_options = order.iter().map(|(_, options)| *options).collect();
        let inputs = args.into_iter().chain(order.into_iter().map(|(input, _)| input)).collect();
        let call = Self {
            supported,
            display,
            inputs,
            filter,
            distinct,
            state_fields,
            output,
            expr,
            sort_options,
            ordered_floats,
        };
        // An accumulator that cannot be made, or that contradicts its own state fields, is found here, not in service.
        let mut probe = call.expr.create_accumulator()?;
        call.pack_scalars(probe.state()?)?;
        probe.evaluate()?;
        Ok(call)
    }

    /// The state's one struct type.
    pub(crate) fn state_type(&self) -> DataType {
        DataType::Struct(self.state_fields.clone())
    }

    /// Whether a state holds every value that it has seen.
    pub(crate) fn keeps_values(&self) -> bool {
        self.supported.keeps_values || (self.distinct && !matches!(self.supported.name, "min" | "max"))
    }

    pub(super) fn needs_sorted_input(&self) -> bool {
        self.supported.order == OrderDependence::OrderedInput
    }

    /// The call's inputs as the accumulator takes them.
    pub(super) fn inward(&self, values: &[ArrayRef]) -> Vec<ArrayRef> {
        match self.ordered_floats {
            true => values.iter().map(to_integers).collect(),
            false => values.to_vec(),
        }
    }

    /// The call's results as the accumulator gives them.
    pub(super) fn outward(&self, results: ArrayRef) -> ArrayRef {
        if self.ordered_floats { to_floats(&results) } else { results }
    }

    pub(super) fn outward_scalar(&self, result: ScalarValue) -> Result<ScalarValue> {
        if !self.ordered_floats {
            return Ok(result);
        }
        ScalarValue::try_from_array(&self.outward(result.to_array()?), 0)
    }

    /// One struct per group out of the accumulator's state columns.
    pub(super) fn pack(&self, columns: &[ArrayRef]) -> Result<ArrayRef> {
        if columns.len() != self.state_fields.len() {
            return exec_err!(
                "{} has {} state columns, declared {}",
                self.display,
                columns.len(),
                self.state_fields.len()
            );
        }
        let columns = columns
            .iter()
            .zip(&self.state_fields)
            .map(|(column, field)| relabel(&self.outward(Arc::clone(column)), field.data_type()))
            .collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(StructArray::try_new(self.state_fields.clone(), columns, None)?))
    }

    pub(super) fn pack_scalars(&self, state: Vec<ScalarValue>) -> Result<ScalarValue> {
        let columns = state.iter().map(ScalarValue::to_array).collect::<Result<Vec<_>>>()?;
        let packed = self.pack(&columns)?;
        ScalarValue::try_from_array(&packed, 0)
    }

    /// The accumulator's state columns out of a column of structs.
    pub(super) fn unpack(&self, states: &ArrayRef) -> Result<Vec<ArrayRef>> {
        let Some(structs) = states.as_any().downcast_ref::<StructArray>() else {
            return exec_err!("states of {} are of type {}, expected a struct", self.display, states.data_type());
        };
        if structs.num_columns() != self.state_fields.len() {
            return exec_err!(
                "states of {} have {} columns, expected {}",
                self.display,
                structs.num_columns(),
                self.state_fields.len()
            );
        }
        if arrow::array::Array::null_count(structs) > 0 {
            return exec_err!("a state of {} is NULL", self.display);
        }
        // Accumulators look at the names in their ordering columns nowhere; types are checked by relabelling.
        let columns = structs
            .columns()
            .iter()
            .zip(&self.state_fields)
            .map(|(column, field)| relabel(column, field.data_type()))
            .collect::<Result<Vec<_>>>()?;
        Ok(self.inward(&columns))
    }
}

fn integer_value(value: &ScalarValue) -> ScalarValue {
    let integer = |v: &ScalarValue| ScalarValue::try_from_array(&to_integers(&v.to_array()?), 0);
    integer(value).unwrap_or_else(|_| value.clone())
}

/// The engine's state fields, nullable throughout, named by what stands in brackets (`state[count]` → `count`).
fn state_fields(expr: &AggregateFunctionExpr) -> Result<Fields> {
    let mut fields: Vec<Field> = vec![];
    for field in expr.state_fields()? {
        let name = field.name();
        let short = name.rsplit_once('[').map_or(name.as_str(), |(_, rest)| rest.trim_end_matches(']')).to_string();
        let unique =
            if fields.iter().any(|f| *f.name() == short) { format!("{short}_{}", fields.len()) } else { short };
        fields.push(relaxed(&field, &unique));
    }
    Ok(fields.into())
}
