//! The three forms over a [`GroupsAccumulator`]: all groups at once.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::compute::filter;
use datafusion::common::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};

use super::call::AggregateCall;
use super::function::Form;

/// A groups accumulator of the engine behind one of the three forms.
pub(super) struct FormGroupsAccumulator {
    form: Form,
    call: Arc<AggregateCall>,
    inner: Box<dyn GroupsAccumulator>,
}

impl FormGroupsAccumulator {
    pub(super) fn new(form: Form, call: Arc<AggregateCall>) -> Result<Self> {
        let inner = call.expr.create_groups_accumulator()?;
        Ok(Self { form, call, inner })
    }

    fn packed_state(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let state = self.inner.state(emit_to)?;
        self.call.pack(&state)
    }
}

impl fmt::Debug for FormGroupsAccumulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of groups of {}", self.form, self.call.display)
    }
}

impl GroupsAccumulator for FormGroupsAccumulator {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        match (self.form, opt_filter) {
            (Form::State, _) => {
                self.inner.update_batch(&self.call.inward(values), group_indices, opt_filter, total_num_groups)
            }
            (Form::MergeState | Form::MergeFinal, None) => {
                let states = self.call.unpack(&values[0])?;
                self.inner.merge_batch(&states, group_indices, total_num_groups)
            }
            (Form::MergeState | Form::MergeFinal, Some(keep)) => {
                let states = filter(values[0].as_ref(), keep)?;
                let kept: Vec<_> = group_indices
                    .iter()
                    .zip(keep.iter())
                    .filter_map(|(group, keep)| keep.unwrap_or(false).then_some(*group))
                    .collect();
                self.inner.merge_batch(&self.call.unpack(&states)?, &kept, total_num_groups)
            }
        }
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        match self.form {
            Form::State | Form::MergeState => self.packed_state(emit_to),
            Form::MergeFinal => Ok(self.call.outward(self.inner.evaluate(emit_to)?)),
        }
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.packed_state(emit_to)?])
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        let states = self.call.unpack(&values[0])?;
        self.inner.merge_batch(&states, group_indices, total_num_groups)
    }

    fn convert_to_state(&self, values: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        match (self.form, opt_filter) {
            // Each row as a group of its own. The engine's own conversions forget that some calls have literal and
            // ORDER BY inputs (percentile_cont).
            (Form::State, _) => {
                let rows = values.first().map_or(0, |v| v.len());
                let groups: Vec<usize> = (0..rows).collect();
                let mut single = Self::new(self.form, Arc::clone(&self.call))?;
                single.update_batch(values, &groups, opt_filter, rows)?;
                Ok(vec![single.packed_state(EmitTo::All)?])
            }
            // A row of states is already a state: the identity.
            (Form::MergeState | Form::MergeFinal, None) => Ok(vec![Arc::clone(&values[0])]),
            (Form::MergeState | Form::MergeFinal, Some(_)) => {
                datafusion::common::internal_err!("a merging form of {} was given a filter", self.call.display)
            }
        }
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }
}
