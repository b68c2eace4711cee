//! Aggregate states: from each aggregate call of a view come three functions that wrap the original one's accumulators.
//!
//! | function | from → to |
//! |---|---|
//! | `state` | events → one struct column of states |
//! | `merge_state` | states → fewer states |
//! | `merge_final` | states → the call's result |
//!
//! To the engine all three are plain, order-insensitive aggregates without DISTINCT: whatever the SQL said about
//! DISTINCT, ORDER BY, literal arguments and null treatment is captured in the [`AggregateCall`], since the merging
//! forms have none of it among their inputs, and since the engine would rewrite a visible DISTINCT
//! (`single_distinct_aggregation_to_group_by`).

mod accumulator;
mod call;
mod float_order;
mod function;
mod groups;
mod relabel;
mod supported;

pub(crate) use call::CallParts;
pub(crate) use call::{AggregateCall, CallInput};
pub(crate) use function::{Form, state_function};
pub(crate) use supported::{OrderDependence, Supported, names as supported_names, supported};
