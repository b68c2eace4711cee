//! The three forms over an [`Accumulator`]: one group at a time.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{SortColumn, lexsort_to_indices, take};
use arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::Accumulator;

use super::call::{AggregateCall, CallInput};
use super::function::Form;

/// An accumulator of the engine behind one of the three forms.
pub(super) struct FormAccumulator {
    form: Form,
    call: Arc<AggregateCall>,
    inner: Box<dyn Accumulator>,
}

impl FormAccumulator {
    pub(super) fn new(form: Form, call: Arc<AggregateCall>) -> Result<Self> {
        let inner = call.expr.create_accumulator()?;
        Ok(Self { form, call, inner })
    }

    fn packed_state(&mut self) -> Result<ScalarValue> {
        let mut state = self.inner.state()?;
        if self.call.needs_sorted_input() {
            state = bounded(&self.call, state)?;
        }
        self.call.pack_scalars(state)
    }

    fn merge(&mut self, states: &ArrayRef) -> Result<()> {
        self.inner.merge_batch(&self.call.unpack(states)?)
    }
}

impl fmt::Debug for FormAccumulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {}", self.form, self.call.display)
    }
}

impl Accumulator for FormAccumulator {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        match self.form {
            Form::State if self.call.needs_sorted_input() => {
                // The accumulator wants all its input in order. A batch, sorted, goes into an accumulator of its own,
                // whose state is then merged: merging keeps the order.
                let mut partial = self.call.expr.create_accumulator()?;
                partial.update_batch(&sorted(&self.call, values)?)?;
                let states = partial.state()?.iter().map(ScalarValue::to_array).collect::<Result<Vec<_>>>()?;
                self.inner.merge_batch(&states)
            }
            Form::State => self.inner.update_batch(&self.call.inward(values)),
            Form::MergeState | Form::MergeFinal => self.merge(&values[0]),
        }
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        match self.form {
            Form::State | Form::MergeState => self.packed_state(),
            Form::MergeFinal => self.call.outward_scalar(self.inner.evaluate()?),
        }
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.packed_state()?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.merge(&states[0])
    }
}

/// `values` (arguments, then ORDER BY columns) in the call's order.
fn sorted(call: &AggregateCall, values: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    let first_order = values.len() - call.sort_options.len();
    let columns: Vec<_> = values[first_order..]
        .iter()
        .zip(&call.sort_options)
        .map(|(values, options)| SortColumn { values: Arc::clone(values), options: Some(*options) })
        .collect();
    let indices = lexsort_to_indices(&columns, None)?;
    values.iter().map(|v| Ok(take(v.as_ref(), &indices, None)?)).collect()
}

/// The state of `nth_value` cut down to the n values that can still matter; merging alone keeps them all.
fn bounded(call: &AggregateCall, state: Vec<ScalarValue>) -> Result<Vec<ScalarValue>> {
    let Some(CallInput::Literal(ScalarValue::Int64(Some(n)))) = call.inputs.get(1) else {
        return exec_err!("the position in {} is not a literal", call.display);
    };
    let keep = usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX);
    state
        .into_iter()
        .map(|scalar| {
            let DataType::List(item) = scalar.data_type() else { return Ok(scalar) };
            let array = scalar.to_array()?;
            let list = array.as_list::<i32>();
            if list.is_null(0) || list.value(0).len() <= keep {
                return Ok(scalar);
            }
            let values = list.value(0);
            let start = if *n > 0 { 0 } else { values.len() - keep };
            let kept = values.slice(start, keep);
            let list = ListArray::try_new(item, OffsetBuffer::from_lengths([keep]), kept, None)?;
            Ok(ScalarValue::List(Arc::new(list)))
        })
        .collect()
}
