//! The vocabulary of Watershed: what two or more layers name. It knows none of the layers.

pub mod abort_point;
pub mod archive;
pub mod background;
pub mod builds;
pub mod catalog;
pub mod clock;
pub mod columns;
pub mod config;
pub mod decode;
pub mod definitions;
pub mod delta;
pub mod log;
pub mod master;
pub mod mutant;
pub mod names;
pub mod offsets;
pub mod paths;
pub mod record;
pub mod register;
pub mod run;
pub mod schedule;
pub mod schemas;
pub mod shard;
pub mod storage;
pub mod tables;
pub mod task;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod view;
