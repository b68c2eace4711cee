//! The log: Kafka, or the embedded broker, and reading it exactly.
//!
//! [`EmbeddedBroker`] is the log of a platform without a `[kafka]` section. [`LogClient`] speaks to a cluster, [`Producer`] writes,
//! [`RawReader`] reads a topic from explicit offsets, [`StreamFeed`] fetches and decodes a stream once for all of a process.

mod broker;
mod client;
mod error;
mod feed;
mod lock;
mod native;
mod producer;
mod raw;
mod redelivery;

pub use broker::{BrokerFile, EmbeddedBroker, QUIET_LOG_DIRECTIVES};
pub use client::{LogClient, TopicInfo};
pub use error::{Error, Result};
pub use feed::{FeedOptions, FeedReader, Seed, Seeds, SeedsError, StreamFeed};
pub use lock::DirLock;
pub use producer::{ProduceError, ProduceErrorKind, ProduceRecord, ProduceReport, Produced, Producer};
pub use raw::{Health, RawReader, RawReaderOptions};
pub use redelivery::Redeliveries;

#[cfg(test)]
mod tests;
