//! What developers' tasks and tests share: real Kafka and HDFS for as long as somebody holds them.

pub mod cluster;
mod host;

pub use host::{cache_dir, install_openssl, run};
