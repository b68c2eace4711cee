//! Puts the layers together, all in one process or those of one role: the only place that knows all of them.

mod archive;
mod batch;
mod feeds;
mod health;
mod losses;
mod partitions;
mod plans;
mod register;
mod serving;
mod shards;
mod speed;
mod stages;
mod stream;
mod tables;
mod truncations;
mod view;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tracing::info;
use watershed_batch_layer::leftovers;
use watershed_shared::config::{Config, KafkaConfig};
use watershed_shared::definitions::Definitions;
use watershed_shared::log::{DirLock, EmbeddedBroker, LogClient};
use watershed_shared::storage::Storage;
use watershed_shared::task;
use watershed_shared::view::DimensionTable;

use self::stages::Shutdown;
use self::stream::Stream;
use self::tables::Tables;
use self::view::{Configured, View};
pub(crate) use self::view::{Outcome, Superseded, reload};
use crate::builds;
use crate::client::HttpFile;
use crate::commands::up::Role;

/// The layers of one process.
#[derive(Debug)]
pub(crate) struct Platform {
    /// Where it answers: the serving layer, or what tells how the process does.
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
    /// The name of this process, the same after a restart on the same `data_dir`.
    holder: String,
}

impl Platform {
    /// Starts the layers of `role`; on return HTTP answers, though perhaps not yet that it is ready.
    ///
    /// # Errors
    /// What could not be started, and what to do about it.
    pub(crate) async fn start(config: &Config, role: Role) -> Result<Self> {
        if role != Role::All {
            refuse_own(config, role)?;
        }
        let lock = DirLock::acquire(&config.data_dir)?;
        let holder = holder(&config.data_dir)?;
        let broker = match &config.kafka {
            Some(_) => None,
            None => Some(EmbeddedBroker::start(&config.data_dir, config.broker.listen).await?),
        };
        let client = LogClient::new(&kafka(config, broker.as_ref())?)?;
        let storage = Storage::open(&config.storage_url).context("open the storage")?;
        let definitions = Definitions::new(storage.clone(), config.streams.clone());
        let parts = Parts { config, client, storage, definitions, holder };
        let mut shutdown = Shutdown::default();

        let mut tables = Tables::open(config, &parts.storage, role).await?;
        let mut views = BTreeMap::new();
        let follow = shutdown.stage();
        if matches!(role, Role::All | Role::Batch) {
            let collect = leftovers::collect(parts.storage.clone(), follow.stop.clone());
            follow.tasks.push(task::spawn("collect leftovers", collect));
        }
        let mut configured = Vec::new();
        for view in config.views.values() {
            configured.push(Configured::compile(&parts.storage, &parts.definitions, view, &mut tables).await?);
        }
        let mut streams = BTreeMap::new();
        for stream in config.streams.values() {
            let opened = Stream::open(&parts, stream, role != Role::Serving, follow).await;
            let opened = opened.with_context(|| format!("start stream `{}`", stream.name))?;
            streams.insert(stream.name.clone(), opened);
        }
        // Once nothing of the configuration can be refused any more.
        for view in configured {
            let view = view.follow(follow).await?;
            views.insert(view.config.name.clone(), view);
        }
        let http = match role {
            Role::All => all(&parts, tables.for_queries(&views).await?, streams, views, &mut shutdown).await?,
            Role::Batch => batch::start(&parts, streams, views, &mut shutdown).await?,
            Role::Speed => speed::start(&parts, streams, views, &mut shutdown).await?,
            Role::Serving => {
                let tables = tables.for_queries(&views).await?;
                serving::start(&parts, tables, streams, views, &mut shutdown).await?
            }
        };

        let http_file = HttpFile::path(&config.data_dir);
        let url = HttpFile { url: format!("http://{http}") };
        std::fs::write(&http_file, serde_json::to_vec(&url)?)
            .with_context(|| format!("write {}", http_file.display()))?;
        info!(%http, ?role, "watershed is up");
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

/// Every layer in this process: they hand each other what they have.
async fn all(
    parts: &Parts<'_>,
    tables: BTreeMap<String, DimensionTable>,
    streams: BTreeMap<String, Stream>,
    views: BTreeMap<String, View>,
    shutdown: &mut Shutdown,
) -> Result<SocketAddr> {
    let mut archives = BTreeMap::new();
    let mut deltas = BTreeMap::new();
    for (name, stream) in &streams {
        let feeds = stream.feed(parts, shutdown.stage())?;
        archives.insert(name.clone(), archive::start_archiver(parts, stream, &feeds, &views, shutdown.stage()));
        let delta = shards::start_worker(parts, stream, &feeds, &views, shutdown.stage()).await;
        let delta = delta.with_context(|| format!("start the speed worker of stream `{name}`"))?;
        deltas.insert(name.clone(), delta);
    }
    let builder = batch::start_builds(parts, &streams, &archives, &deltas, &views, shutdown.stage()).await?;
    let builds = builds::LocalBuilds { builder, schedules: builds::schedules(parts.config)? };
    let archives = archives.into_iter().map(|(name, archive)| {
        let (state, archived_until) = (archive.state(), archive.archived_until());
        let watched = serving::Archive { state, archived_until, archiver: Some(archive) };
        (name, watched)
    });
    let archives = archives.collect();
    serving::start_serving(parts, Box::new(builds), tables, streams, archives, deltas, views, shutdown.stage()).await
}

/// What one process has for itself can't be what several share.
fn refuse_own(config: &Config, role: Role) -> Result<()> {
    let file = config.file.display();
    if config.kafka.is_none() {
        bail!(
            "--role {role}: separate processes share a Kafka, and the embedded broker belongs to one process. Name the \
             brokers in {file}: [kafka] bootstrap_servers = \"HOST:PORT\""
        );
    }
    if !config.storage_named {
        bail!(
            "--role {role}: separate processes share the storage, and without [storage] it lies in this process's data_dir. \
             Name it in {file}: [storage] url = \"hdfs://HOST:PORT/PATH\", or file:///PATH on one machine"
        );
    }
    Ok(())
}

/// The name under which this process claims builds and shards: the same after a restart on the same `data_dir`.
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
