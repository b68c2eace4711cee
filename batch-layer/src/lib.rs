//! Archives streams, rebuilds and refreshes views. Knows neither the speed nor the serving layer.

pub mod archiver;
pub mod builder;
pub mod compaction;
pub mod history;
pub mod leftovers;
pub mod requests;
pub mod scheduler;
