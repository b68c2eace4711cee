//! The three forms as aggregate functions of the engine.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, GroupsAccumulator, Signature, Volatility};

use super::accumulator::FormAccumulator;
use super::call::AggregateCall;
use super::groups::FormGroupsAccumulator;

/// Which of the three functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    State,
    MergeState,
    MergeFinal,
}

/// The `form` of `call` as an aggregate function.
pub(crate) fn state_function(form: Form, call: &Arc<AggregateCall>) -> Arc<AggregateUDF> {
    let (prefix, inputs) = match form {
        Form::State => ("state", call.inputs.len()),
        Form::MergeState => ("merge_state", 1),
        Form::MergeFinal => ("merge_final", 1),
    };
    Arc::new(AggregateUDF::new_from_impl(StateFunction {
        form,
        call: Arc::clone(call),
        name: format!("{prefix}_{}", call.supported.name),
        signature: Signature::any(inputs, Volatility::Immutable),
    }))
}

#[derive(Debug)]
struct StateFunction {
    form: Form,
    call: Arc<AggregateCall>,
    name: String,
    signature: Signature,
}

impl StateFunction {
    fn result_field(&self) -> FieldRef {
        match self.form {
            Form::State | Form::MergeState => Arc::new(Field::new(&self.name, self.call.state_type(), false)),
            Form::MergeFinal => Arc::clone(&self.call.output),
        }
    }
}

/// Two functions are the same only if they are of the same call: calls capture more than names and inputs show.
impl PartialEq for StateFunction {
    fn eq(&self, other: &Self) -> bool {
        self.form == other.form && Arc::ptr_eq(&self.call, &other.call)
    }
}

impl Eq for StateFunction {}

impl Hash for StateFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.form.hash(state);
        self.name.hash(state);
        Arc::as_ptr(&self.call).hash(state);
    }
}

impl AggregateUDFImpl for StateFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.result_field().data_type().clone())
    }

    fn return_field(&self, _: &[FieldRef]) -> Result<FieldRef> {
        Ok(self.result_field())
    }

    fn is_nullable(&self) -> bool {
        self.result_field().is_nullable()
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(FormAccumulator::new(self.form, Arc::clone(&self.call))?))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[state]", args.name), self.call.state_type(), false))])
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs<'_>) -> bool {
        self.call.expr.groups_accumulator_supported()
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(FormGroupsAccumulator::new(self.form, Arc::clone(&self.call))?))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        match self.form {
            Form::State | Form::MergeState => ScalarValue::try_from(data_type),
            Form::MergeFinal => self.call.expr.fun().default_value(data_type),
        }
    }
}
