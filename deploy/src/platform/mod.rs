//! Puts the layers together in one process: the only place that knows all of them.

mod batch;
mod feeds;
mod losses;
mod partitions;
mod plans;
mod register;
mod serving;
mod stages;
mod stream;
mod view;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tracing::info;
use watershed_shared::config::{Config, KafkaConfig};
use watershed_shared::definitions::Definitions;
use watershed_shared::log::{DirLock, EmbeddedBroker, LogClient};
use watershed_shared::storage::Storage;
use watershed_shared::tables;
use watershed_shared::view::DimensionTable;

use self::stages::Shutdown;
use self::stream::Stream;
use self::view::View;
use crate::client::HttpFile;

/// Every layer in one process.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) http: SocketAddr,
    pub(crate) bootstrap_servers: String,
    shutdown: Shutdown,
    http_file: PathBuf,
    broker: Option<EmbeddedBroker>,
    _lock: DirLock,
}

/// What all parts are made from.
struct Parts<'a> {
    config: &'a Config,
    client: LogClient,
    storage: Storage,
    definitions: Definitions,
}

impl Platform {
    /// Starts every layer; on return HTTP answers, though perhaps not yet that it is ready.
    ///
    /// # Errors
    /// What could not be started, and what to do about it.
    pub(crate) async fn start(config: &Config) -> Result<Self> {
        let lock = DirLock::acquire(&config.data_dir)?;
        let holder = holder(&config.data_dir)?;
        let broker = match &config.kafka {
            Some(_) => None,
            None => Some(EmbeddedBroker::start(&config.data_dir, config.broker.listen).await?),
        };
        let client = LogClient::new(&kafka(config, broker.as_ref())?)?;
        let storage = Storage::open(&config.storage_url).context("open the storage")?;
        let definitions = Definitions::new(storage.clone(), config.streams.clone());
        let parts = Parts { config, client, storage, definitions };
        let mut shutdown = Shutdown::default();

        let tables = dimension_tables(&parts).await?;
        let mut views = BTreeMap::new();
        let follow = shutdown.stage();
        for view in config.views.values() {
            views.insert(view.name.clone(), View::open(&parts, view, &tables, follow).await?);
        }
        let mut streams = BTreeMap::new();
        for stream in config.streams.values() {
            let started = Stream::start(&parts, stream, &views, &mut shutdown).await;
            let started = started.with_context(|| format!("start stream `{}`", stream.name))?;
            streams.insert(stream.name.clone(), started);
        }
        let builds = batch::start_builds(&parts, holder, &streams, &views, shutdown.stage()).await?;
        let http = serving::start_serving(&parts, builds, tables, streams, views, shutdown.stage()).await?;

        let http_file = HttpFile::path(&config.data_dir);
        let url = HttpFile { url: format!("http://{http}") };
        std::fs::write(&http_file, serde_json::to_vec(&url)?)
            .with_context(|| format!("write {}", http_file.display()))?;
        info!(%http, "watershed is up");
        let bootstrap_servers = parts.client.bootstrap_servers().to_owned();
        Ok(Self { http, bootstrap_servers, shutdown, http_file, broker, _lock: lock })
    }

    /// Waits for a part to fail without which nothing goes on. Cancel safe.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        match &self.broker {
            Some(broker) => broker.ended().await.into(),
            None => std::future::pending().await,
        }
    }

    /// Stops HTTP first, then builds, then what makes events durable, then the log.
    pub(crate) async fn stop(self) {
        drop(std::fs::remove_file(&self.http_file));
        self.shutdown.run().await;
        if let Some(broker) = self.broker {
            broker.stop().await;
        }
    }
}

/// The name under which this process claims builds: the same after a restart on the same `data_dir`.
fn holder(data_dir: &Path) -> Result<String> {
    let file = data_dir.join("process.id");
    match std::fs::read_to_string(&file) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        Ok(_) | Err(_) => {
            let id = watershed_shared::names::BuildId::unique().to_string();
            std::fs::write(&file, &id).with_context(|| format!("write {}", file.display()))?;
            Ok(id)
        }
    }
}

fn kafka(config: &Config, broker: Option<&EmbeddedBroker>) -> Result<KafkaConfig> {
    if let Some(kafka) = &config.kafka {
        return Ok(kafka.clone());
    }
    let broker = broker.context("without [kafka] there is an embedded broker")?;
    let properties = [("bootstrap.servers".to_owned(), broker.bootstrap_servers().to_owned())];
    Ok(KafkaConfig { properties: properties.into() })
}

/// Reads the dimension tables and copies them to the storage under their content hash.
async fn dimension_tables(parts: &Parts<'_>) -> Result<BTreeMap<String, DimensionTable>> {
    let mut read = BTreeMap::new();
    for table in parts.config.tables.values() {
        let content = tables::read(table).await?;
        tables::store(&parts.storage, &content).await?;
        read.insert(table.name.clone(), content);
    }
    Ok(read)
}
