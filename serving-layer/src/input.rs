//! What a serving layer is made of.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::sync::watch;
use watershed_shared::archive::ArchiverState;
use watershed_shared::catalog::{StreamState, ViewState};
use watershed_shared::config::{StreamConfig, ViewConfig};
use watershed_shared::delta::{DeltaService, Reason};
use watershed_shared::master::MasterDataset;
use watershed_shared::offsets::OffsetVector;
use watershed_shared::register::Register;
use watershed_shared::storage::Storage;
use watershed_shared::view::DimensionTable;

use crate::builds::Builds;
use crate::definitions::Definitions;
use crate::engine::QuerySettings;
use crate::ingest::Ingest;
use crate::server::GRACE;

/// The components of a serving layer.
#[derive(Debug)]
pub struct ServingInput {
    pub storage: Storage,
    pub streams: BTreeMap<String, StreamInput>,
    pub views: BTreeMap<String, ViewInput>,
    /// As they may be named in statements.
    pub tables: BTreeMap<String, DimensionTable>,
    pub definitions: Arc<dyn Definitions>,
    pub builds: Arc<dyn Builds>,
    pub ingest: Arc<dyn Ingest>,
    /// Where producers find the log, for `status`.
    pub kafka: KafkaAddress,
    /// Of the other layers in this process, for `/metrics`.
    pub metrics: Vec<Arc<dyn MetricsSource>>,
    pub settings: Settings,
}

/// A stream to serve.
#[derive(Debug)]
pub struct StreamInput {
    pub config: StreamConfig,
    pub delta: Arc<dyn DeltaService>,
    pub master: MasterDataset,
    /// Where losses are accepted.
    pub register: Register<StreamState>,
    /// The state of the register's head.
    pub state: watch::Receiver<Arc<StreamState>>,
    pub archiver: watch::Receiver<ArchiverState>,
    /// `None`: it runs in another process.
    pub archiving: Option<Arc<dyn Archiving>>,
    /// As the archiver last saw it.
    pub archived_until: watch::Receiver<OffsetVector>,
    pub log: watch::Receiver<LogStatus>,
}

impl StreamInput {
    /// Why what is read from the master dataset alone lacks something, or does not advance.
    pub(crate) fn archive_reasons(&self, stream: &str) -> Vec<Reason> {
        let mut reasons = self.state.borrow().reasons(stream);
        reasons.extend(self.archiver.borrow().reason());
        reasons
    }
}

/// The archiver of a stream, where it runs in this process.
pub trait Archiving: Send + Sync + fmt::Debug {
    /// Asks for a commit as soon as everything below `until` has been read.
    fn hurry(&self, until: &OffsetVector);
}

/// Where Kafka clients reach the log.
#[derive(Debug, Clone, Serialize)]
pub struct KafkaAddress {
    pub bootstrap_servers: String,
    /// The broker runs in this process.
    pub embedded: bool,
}

/// What is known of a stream's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogStatus {
    /// The first offset that it still has of each partition, as last seen.
    pub starts: OffsetVector,
    /// Its end, as last looked at: streams that a view reads know it better.
    pub ends: OffsetVector,
    /// `None` while it answers, or for a moment does not.
    pub unreachable: Option<Unreachable>,
}

/// No broker answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreachable {
    pub since: DateTime<Utc>,
    pub reason: String,
}

/// A view to serve.
#[derive(Debug)]
pub struct ViewInput {
    pub config: ViewConfig,
    pub stream: String,
    /// The state of the head of the view's register.
    pub register: watch::Receiver<Arc<ViewState>>,
}

/// Appends metrics in Prometheus' text format.
pub trait MetricsSource: Send + Sync + fmt::Debug {
    fn write(&self, out: &mut String);
}

/// What may be set.
#[derive(Debug, Clone)]
pub struct Settings {
    pub query: QuerySettings,
    /// Of a body of `POST /v1/streams/{stream}`.
    pub max_publish_bytes: usize,
    /// Of all such bodies together, as far as they have come, from when they come until the log has them.
    pub publish_memory_bytes: usize,
    /// Of any other body.
    pub max_body_bytes: usize,
    /// How long a body may take, besides what it takes at the least rate that is accepted.
    pub body_timeout: Duration,
    /// How long requests under way may take when the process is to end.
    pub grace: Duration,
    /// How long `/readyz` may wait for the process to have caught up.
    pub ready_timeout: Duration,
    /// Connections to `live` at a time.
    pub max_live: usize,
    /// Between two deltas of a live view, at least.
    pub live_interval: Duration,
    /// Of `live`, when nothing happens.
    pub heartbeat: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            query: QuerySettings::default(),
            max_publish_bytes: 64 << 20,
            publish_memory_bytes: 256 << 20,
            max_body_bytes: 1 << 20,
            body_timeout: Duration::from_secs(30),
            grace: GRACE,
            ready_timeout: Duration::from_secs(300),
            max_live: 64,
            live_interval: Duration::from_millis(500),
            heartbeat: Duration::from_secs(15),
        }
    }
}
