//! Merges generation and delta behind HTTP. Knows how neither was made.
//!
//! A [`front`](Serving::run) per stream follows the speed layer's snapshots and the registers of the stream's views and
//! keeps one immutable answer: for each view a generation, the delta's runs from its cut, and the position. A request
//! takes that answer once and works on nothing else.

mod ask;
mod builds;
mod compare;
mod definitions;
mod encode;
mod engine;
mod error;
mod front;
mod headroom;
mod http;
mod ingest;
mod input;
mod lookup;
mod merged;
mod metrics;
mod server;
mod serving;
mod sql;

pub use ask::{Answer, Meta, StreamMeta};
pub use builds::{BuildEstimate, Builds, BuildsError, Started};
pub use compare::{Diff, Difference, Verified};
pub use definitions::Definitions;
pub use engine::{QuerySettings, Rows};
pub use error::{Code, Error, LineError, PartlyPublished};
pub use front::{CATCHING_UP, PartitionMeta, REPLAYING, StreamAnswer, UNREADABLE, ViewAnswer, ViewMeta};
pub use http::{ROUTES, routes};
pub use ingest::{Ingest, IngestError, LogIngest, Published};
pub use input::{
    Archiving, KafkaAddress, LogStatus, MetricsSource, ServingInput, Settings, StreamInput, Unreachable, ViewInput,
};
pub use server::{GRACE, serve, serve_routes};
pub use serving::Serving;
