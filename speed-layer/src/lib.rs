//! Keeps the delta of every view of a stream. Knows neither the batch nor the serving layer.
//!
//! Micro-batches become runs, runs merge in the background, and each step publishes one snapshot with all views at one
//! position. What is in memory answers; the store is an image of it that saves a replay. Everything else is a replay:
//! a new definition, a lost or damaged store, a boundary that comes too late.

mod board;
mod claims;
mod commit;
mod compute;
mod follow;
mod ingest;
mod line;
mod log_and_archive;
mod merge;
mod merger;
mod micro_batch;
mod reasons;
mod replay;
mod segment;
mod service;
mod source;
mod states;
mod store;
mod worker;

pub use claims::{ClaimOptions, Claims};
pub use log_and_archive::LogAndArchive;
pub use micro_batch::Discontinuity;
pub use service::DeltaServer;
pub use source::{EventReader, EventSource, SourceError};
pub use states::{StateMaker, StatesError, ViewPlan};
pub use store::{Change, DeltaStore, MemoryStore, SledStore, StoreError};
pub use worker::{Counts, Options, SpeedHandle, SpeedWorker};
