//! Runs: immutable sorted sequences of groups with their states, covering a vector of offset ranges.
//!
//! A generation's runs are Parquet files in the storage ([`write_run`], [`RunsTable`]); the delta's are record batches,
//! which the speed layer keeps in its store ([`ipc`]).

mod bounds;
mod checked;
mod error;
mod event_errors;
mod few;
pub mod ipc;
mod meta;
mod order;
mod pages;
mod sums;
mod table;
#[cfg(test)]
mod tests;
mod upload;
mod verified;
mod write;

pub use bounds::{KeyBounds, key_bounds, key_conjunct, slice, slice_of_some};
pub use error::Error;
pub use event_errors::{
    ReadError, event_error_schema, event_errors_from_batch, event_errors_to_batch, read_event_errors,
    write_event_errors,
};
pub use meta::{EventError, RunMeta};
pub use pages::PageCache;
pub use sums::Tail;
pub use table::RunsTable;
pub use verified::Fault;
pub use write::{RunFile, RunOptions, write_run};
