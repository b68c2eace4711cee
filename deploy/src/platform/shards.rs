//! The speed workers of a process: one for a whole stream, or one for each shard that this process owns.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::error;
use watershed_serving_layer::Unreachable;
use watershed_shared::catalog::StreamState;
use watershed_shared::config::{SpeedConfig, StreamConfig};
use watershed_shared::delta::{DeltaService, Peers, Reason};
use watershed_shared::log::{FeedOptions, LogClient};
use watershed_shared::master::MasterDataset;
use watershed_shared::offsets::OffsetVector;
use watershed_shared::shard::Shard;
use watershed_shared::{clock, task};
use watershed_speed_layer::{
    ClaimOptions, Claims, DeltaServer, LogAndArchive, Options, SledStore, SpeedWorker, ViewPlan,
};

use super::Parts;
use super::feeds::{Archived, Feeds};
use super::plans::follow_plans;
use super::stages::{Shutdown, Stage};
use super::stream::Stream;
use super::truncations::Truncations;
use super::view::View;

/// Before a delta store that cannot be opened is tried again.
const OPEN_AGAIN: Duration = Duration::from_secs(5);

fn options(speed: &SpeedConfig) -> Options {
    Options { commit_interval: speed.commit_interval, ..Options::default() }
}

/// One worker for the whole stream, in the process that does everything.
pub(super) async fn start_worker(
    parts: &Parts<'_>,
    stream: &Stream,
    feeds: &Arc<Feeds>,
    views: &BTreeMap<String, View>,
    stage: &mut Stage,
) -> Result<Arc<dyn DeltaService>> {
    let config = stream.config.clone();
    let plans = follow_plans(&config.name, views, &parts.definitions, stage).await;
    let path = parts.config.data_dir.join("delta").join(&config.name);
    let store = tokio::task::spawn_blocking(move || SledStore::open(&path)).await??;
    let events = Arc::new(LogAndArchive::new(config.clone(), feeds.watch(), stream.master.clone()));
    let options = options(&parts.config.speed);
    let worker = SpeedWorker::new(config, plans, stream.origins.clone(), events, Arc::new(store), options)
        .with_losses(stream.state.clone());
    let delta = Arc::new(worker.handle());
    stage.tasks.push(task::spawn("speed worker", worker.run(stage.stop.clone())));
    Ok(delta)
}

/// Where others reach a delta service that listens on `listen`.
///
/// # Errors
/// If that cannot be known, or everybody could read the deltas.
pub(super) fn advertised(speed: &SpeedConfig, listen: SocketAddr) -> Result<String> {
    if !listen.ip().is_loopback() && speed.token.is_none() {
        bail!(
            "the delta service listens on {listen}, which others reach: set a `token` under [speed], the same for all processes"
        );
    }
    match &speed.advertise {
        Some(address) => Ok(address.clone()),
        None if listen.ip().is_unspecified() => {
            bail!(
                "the delta service listens on {listen}: say under [speed] how others reach it, as in advertise = \"speed-0:{}\"",
                listen.port()
            )
        }
        None => Ok(listen.to_string()),
    }
}

/// Claims shards of `stream`, and runs a worker for each that this process holds.
pub(super) async fn start_shards(
    parts: &Parts<'_>,
    stream: Stream,
    views: &BTreeMap<String, View>,
    server: &DeltaServer,
    me: (String, String),
    peers: Peers,
    shutdown: &mut Shutdown,
) -> Result<()> {
    let (worker, address) = me;
    let stage = shutdown.stage();
    let plans = follow_plans(&stream.config.name, views, &parts.definitions, stage).await;
    let speed = &parts.config.speed;
    let options = ClaimOptions {
        stream: stream.config.name.clone(),
        shards: stream.config.shards,
        claim: speed.claim.clone(),
        owner_timeout: speed.owner_timeout,
        worker,
        address,
        peers,
    };
    let claims = Claims::new(options, stream.register.clone(), stream.state.clone(), server.clone());
    let workers = Workers {
        config: stream.config.clone(),
        speed: speed.clone(),
        client: parts.client.clone(),
        feed: stream.feed_options(parts)?,
        master: stream.master.clone(),
        origins: stream.origins.clone(),
        state: stream.state.clone(),
        truncations: stream.truncations(),
        plans,
        server: server.clone(),
        folder: parts.config.data_dir.join("delta"),
    };
    stage.tasks.push(task::spawn("shards", Arc::new(workers).run(claims.held(), stage.stop.clone())));
    // Ends first: what is given up is served until the workers end.
    let stage = shutdown.stage();
    stage.tasks.push(task::spawn("claims", claims.run(stage.stop.clone())));
    Ok(())
}

/// What the workers of a stream's shards are made from.
#[derive(Debug)]
struct Workers {
    config: StreamConfig,
    speed: SpeedConfig,
    client: LogClient,
    feed: FeedOptions,
    master: MasterDataset,
    origins: watch::Receiver<OffsetVector>,
    state: watch::Receiver<Arc<StreamState>>,
    truncations: Truncations,
    plans: watch::Receiver<Arc<Vec<ViewPlan>>>,
    server: DeltaServer,
    folder: PathBuf,
}

impl Workers {
    /// Runs a worker for each shard in `held`, until `stop`.
    async fn run(self: Arc<Self>, mut held: watch::Receiver<BTreeMap<u32, u64>>, stop: CancellationToken) {
        let mut running: BTreeMap<u32, (CancellationToken, JoinHandle<()>)> = BTreeMap::new();
        loop {
            let wanted = held.borrow_and_update().clone();
            for (_, (stop, worker)) in running.extract_if(.., |number, _| !wanted.contains_key(number)) {
                stop.cancel();
                // A panic has been reported by the task itself.
                drop(worker.await);
            }
            for number in wanted.into_keys() {
                running.entry(number).or_insert_with(|| {
                    let stop = stop.child_token();
                    let shard = Shard { number, of: self.config.shards };
                    let worker = Arc::clone(&self).keep(shard, stop.clone());
                    (stop, task::spawn("shard", worker))
                });
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = held.changed() => if changed.is_err() { stop.cancelled().await },
            }
        }
        for (_, worker) in running.into_values() {
            drop(worker.await);
        }
    }

    /// Runs the worker of `shard`; a store that cannot be opened is tried again.
    async fn keep(self: Arc<Self>, shard: Shard, stop: CancellationToken) {
        while let Err(failed) = self.work(shard, &stop).await {
            error!(stream = %self.config.name, %shard, error = format!("{failed:#}"), "a shard cannot be served, and is tried again");
            if stop.run_until_cancelled(clock::sleep(OPEN_AGAIN)).await.is_none() {
                return;
            }
        }
    }

    async fn work(&self, shard: Shard, stop: &CancellationToken) -> Result<()> {
        let name = &self.config.name;
        let path = match shard {
            Shard::WHOLE => self.folder.join(name),
            Shard { number, of } => self.folder.join(format!("{name}-{number}-of-{of}")),
        };
        let store =
            tokio::task::spawn_blocking(move || SledStore::open(&path)).await?.context("open the delta store")?;
        let truncations = self.truncations.clone();
        let seeds = Arc::new(Archived {
            master: self.master.clone(),
            origins: self.origins.clone(),
            truncations: truncations.clone(),
        });
        let mut feed = self.feed.clone();
        feed.raw.shard = shard;
        let ended = CancellationToken::new();
        let _ends_with_this = ended.clone().drop_guard();
        let feeds = Feeds::start(self.client.clone(), self.config.clone(), seeds, feed, truncations, ended.clone());
        let feeds = Arc::new(feeds);
        let keeping = task::spawn("keep feed", Arc::clone(&feeds).keep());
        let (origins, follow_origins) = mapped(self.origins.clone(), ended.clone(), move |o| shard.restrict(o));
        let of_shard =
            move |plans: &Arc<Vec<ViewPlan>>| Arc::new(plans.iter().map(|plan| plan.of_shard(shard)).collect());
        let (plans, follow_plans) = mapped(self.plans.clone(), ended.clone(), of_shard);
        let events = Arc::new(LogAndArchive::new(self.config.clone(), feeds.watch(), self.master.clone()));
        let store = Arc::new(store);
        let worker = SpeedWorker::new(self.config.clone(), plans, origins, events, store, options(&self.speed))
            .with_losses(self.state.clone());
        let handle = worker.handle();
        self.server.offer(name, shard, Arc::new(handle.clone()));
        let say = move |away: Option<Unreachable>| handle.report("log", away.map(|away| log_unreachable(shard, &away)));
        let watching = task::spawn("watch the log", feeds.watch_health(say));
        let worker = worker.run(stop.clone());
        tokio::join!(
            async {
                worker.await;
                self.server.withdraw(name, shard);
                ended.cancel();
            },
            follow_origins,
            follow_plans
        );
        drop(keeping.await);
        drop(watching.await);
        Ok(())
    }
}

/// Others may reach the log while this worker does not: its partitions stand still.
fn log_unreachable(shard: Shard, away: &Unreachable) -> Reason {
    let Unreachable { since, reason } = away;
    let message = format!(
        "the log does not answer the speed worker of shard {shard} since {since}, so its partitions stand still: {reason}"
    );
    Reason { code: "log_unreachable".to_owned(), partition: None, from: None, to: None, message }
}

/// What `source` says, through `map`, and the future that follows it until `stop`.
fn mapped<A: Send + Sync, B: Send + Sync>(
    mut source: watch::Receiver<A>,
    stop: CancellationToken,
    map: impl Fn(&A) -> B,
) -> (watch::Receiver<B>, impl Future<Output = ()>) {
    let (sender, receiver) = watch::channel(map(&source.borrow_and_update()));
    let follow = async move {
        while let Some(Ok(())) = stop.run_until_cancelled(source.changed()).await {
            sender.send_replace(map(&source.borrow_and_update()));
        }
    };
    (receiver, follow)
}
