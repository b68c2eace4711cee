//! The embedded Kafka-compatible broker: the log of a platform that has no `[kafka]` section.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use serde::{Deserialize, Serialize};
use tansu_broker::broker::Broker;
use tansu_broker::coordinator::group::administrator::Controller;
use tansu_storage::StorageContainer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::error::{Error, Result};
use super::lock::DirLock;
use crate::clock;

/// What a log filter should say of the broker's crates, which are chatty: `tansu_broker=error` and so on.
pub const QUIET_LOG_DIRECTIVES: [&str; 4] =
    ["tansu_broker=error", "tansu_storage=error", "tansu_service=error", "tansu_sans_io=error"];

const CLUSTER_ID: &str = "watershed";
const NODE_ID: i32 = 111;
const FILE: &str = "log.sqlite";
const READY_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What `data_dir/broker.json` holds while a broker runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerFile {
    pub bootstrap_servers: String,
}

impl BrokerFile {
    /// Where it stands under `data_dir`.
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("broker.json")
    }

    /// What the running broker of `data_dir` wrote; `None` when there is no such file. A broker that was killed leaves
    /// its file behind.
    pub fn read(data_dir: &Path) -> std::io::Result<Option<Self>> {
        match std::fs::read(Self::path(data_dir)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn write(&self, data_dir: &Path) -> std::io::Result<()> {
        let temporary = data_dir.join(".broker.json.tmp");
        std::fs::write(&temporary, serde_json::to_vec(self)?)?;
        std::fs::rename(temporary, Self::path(data_dir))
    }
}

/// A broker in this process, on threads of its own: SQLite blocks them, and nobody else may wait for that.
///
/// - Its records lie in `data_dir/broker/log.sqlite` and outlive a kill -9.
/// - `data_dir/broker` is locked by one process.
/// - `data_dir/broker.json` names its address as long as it runs.
/// - Transactions do not work on it; idempotent producers do.
///
/// Dropping it ends it as [`EmbeddedBroker::stop`] does, without waiting.
#[derive(Debug)]
pub struct EmbeddedBroker {
    bootstrap_servers: String,
    data_dir: PathBuf,
    stop: CancellationToken,
    /// `Some` once it has ended: why.
    ended: watch::Receiver<Option<String>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl EmbeddedBroker {
    /// Starts a broker and returns when a Kafka client can use it. `listen` with port 0 takes any free port.
    ///
    /// # Errors
    /// [`Error::DataDirInUse`], [`Error::PortInUse`], [`Error::BrokerStart`]: all say what to do.
    pub async fn start(data_dir: &Path, listen: SocketAddr) -> Result<Self> {
        let dir = data_dir.join("broker");
        let lock = DirLock::acquire(&dir)?;
        let dir = dir.canonicalize().map_err(|e| start_error(format!("cannot resolve {}: {e}", dir.display())))?;
        let storage = SqliteUrl::of(&dir)?;

        // The broker does not tell which port it got, so it is chosen here; another program can snatch it in between.
        let mut attempts = if listen.port() == 0 { 3 } else { 1 };
        let address = free_address(listen)?;
        let mut running = Running::spawn(address, storage.url.clone(), lock, storage.directory)?;
        let broker = loop {
            attempts -= 1;
            match running.ready().await {
                Ok(()) => break running,
                Err((error, Some((lock, directory)))) if attempts > 0 => {
                    tracing::debug!(%error, "the chosen port is gone, trying another");
                    running = Running::spawn(free_address(listen)?, storage.url.clone(), lock, directory)?;
                }
                Err((error, _)) => return Err(error),
            }
        };

        let file = dir.join(FILE);
        if !file.try_exists().unwrap_or(false) {
            broker.stop.cancel();
            return Err(start_error(format!(
                "it did not put its records at {}; start the program in another directory or set another data_dir",
                file.display()
            )));
        }
        let bootstrap_servers = broker.address.advertised.to_string();
        BrokerFile { bootstrap_servers: bootstrap_servers.clone() }
            .write(data_dir)
            .map_err(|e| start_error(format!("cannot write {}: {e}", BrokerFile::path(data_dir).display())))?;
        tracing::info!(%bootstrap_servers, file = %file.display(), "embedded broker is ready");
        Ok(Self {
            bootstrap_servers,
            data_dir: data_dir.to_owned(),
            stop: broker.stop.clone(),
            ended: broker.ended.clone(),
            thread: broker.into_thread(),
        })
    }

    /// `HOST:PORT`, for any Kafka client on this machine.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// Waits until the broker ends, which without [`EmbeddedBroker::stop`] it should not. Cancel safe.
    pub async fn ended(&self) -> Error {
        let mut ended = self.ended.clone();
        let detail = match ended.wait_for(Option::is_some).await {
            Ok(detail) => detail.clone().unwrap_or_default(),
            Err(_) => "its thread is gone".to_owned(),
        };
        Error::BrokerEnded { detail }
    }

    /// Ends the broker: connections are closed, what was acknowledged is on disk, the folder is free for another.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let mut ended = self.ended.clone();
        // An error means that the thread is gone already.
        ended.wait_for(Option::is_some).await.ok();
        if let Some(thread) = self.thread.take() {
            // It only has to drop its runtime, and reports its own panic.
            tokio::task::spawn_blocking(move || thread.join().ok()).await.ok();
        }
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.stop.cancel();
        let path = BrokerFile::path(&self.data_dir);
        // Only the own file: another broker may have started there since.
        let mine = BrokerFile::read(&self.data_dir).ok().flatten();
        if mine.is_some_and(|f| f.bootstrap_servers == self.bootstrap_servers)
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(%error, path = %path.display(), "cannot remove the broker's address file");
        }
    }
}

/// What the broker's thread holds for its lifetime and gives back when it could not listen.
type Held = (DirLock, Option<std::fs::File>);

/// A broker's thread, perhaps not ready yet.
struct Running {
    address: Address,
    stop: CancellationToken,
    ended: watch::Receiver<Option<String>>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// What was held comes back here when the thread ends before it served anyone.
    given_back: std::sync::mpsc::Receiver<Held>,
}

impl Running {
    fn spawn(address: Address, storage: Url, lock: DirLock, directory: Option<std::fs::File>) -> Result<Self> {
        let stop = CancellationToken::new();
        let (ended_tx, ended) = watch::channel(None);
        let (give_back, given_back) = std::sync::mpsc::sync_channel(1);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("embedded-broker")
            .enable_all()
            .build()
            .map_err(|e| start_error(format!("cannot start its threads: {e}")))?;
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("embedded-broker".to_owned())
            .spawn(move || {
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    runtime.block_on(async {
                        tokio::select! {
                            biased;
                            () = stopped.cancelled() => Ok(()),
                            served = serve(address, storage) => served,
                        }
                    })
                }));
                runtime.shutdown_timeout(STOP_TIMEOUT);
                let why = match outcome {
                    Ok(Ok(())) => "it was stopped".to_owned(),
                    Ok(Err(e)) => e,
                    Err(_) => "it panicked".to_owned(),
                };
                if let Err(returned) = give_back.try_send((lock, directory)) {
                    drop(returned);
                }
                ended_tx.send_replace(Some(why));
            })
            .map_err(|e| start_error(format!("cannot start its thread: {e}")))?;
        Ok(Self { address, stop, ended, thread: Some(thread), given_back })
    }

    /// Waits until a client gets an answer.
    async fn ready(&self) -> std::result::Result<(), (Error, Option<Held>)> {
        let deadline = clock::Instant::now() + READY_TIMEOUT;
        let servers = self.address.advertised.to_string();
        loop {
            if let Some(why) = self.ended.borrow().clone() {
                let error = start_error(format!("{why} (listening on {servers})"));
                return Err((error, self.given_back.try_recv().ok()));
            }
            let probe = servers.clone();
            let answered = tokio::task::spawn_blocking(move || answers(&probe)).await;
            if matches!(answered, Ok(true)) {
                return Ok(());
            }
            if clock::Instant::now() > deadline {
                self.stop.cancel();
                let error = start_error(format!("no answer on {servers} within {} s", READY_TIMEOUT.as_secs()));
                return Err((error, None));
            }
            clock::sleep(Duration::from_millis(20)).await;
        }
    }

    fn into_thread(mut self) -> Option<std::thread::JoinHandle<()>> {
        self.thread.take()
    }
}

async fn serve(address: Address, storage: Url) -> std::result::Result<(), String> {
    let url = |a: SocketAddr| Url::parse(&format!("tcp://{a}")).map_err(|e| e.to_string());
    let mut broker = Broker::<Controller<StorageContainer>, StorageContainer>::builder()
        .node_id(NODE_ID)
        .cluster_id(CLUSTER_ID)
        .incarnation_id(uuid::Uuid::new_v4())
        .advertised_listener(url(address.advertised)?)
        .listener(url(address.bind)?)
        .storage(storage)
        .silent(true)
        .build()
        .await
        .map_err(|e| e.to_string())?;
    broker.serve(clock::Instant::now()).await.map_err(|e| e.to_string())
}

/// Whether a Kafka client gets the cluster's metadata from `servers`. Blocks.
fn answers(servers: &str) -> bool {
    // A plain connection first: a client takes its time over a refused one.
    let Ok(address) = servers.parse() else { return false };
    if std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
        return false;
    }
    let client: rdkafka::error::KafkaResult<BaseConsumer> =
        rdkafka::ClientConfig::new().set("bootstrap.servers", servers).set("log_level", "0").create();
    client.and_then(|c| c.fetch_metadata(None, Duration::from_secs(2))).is_ok()
}

/// Where the broker listens, and what it tells its clients to connect to.
#[derive(Debug, Clone, Copy)]
struct Address {
    bind: SocketAddr,
    advertised: SocketAddr,
}

/// `listen`, with a port that was free a moment ago.
fn free_address(listen: SocketAddr) -> Result<Address> {
    let probe = TcpListener::bind(listen).map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => Error::PortInUse { listen },
        _ => start_error(format!("cannot listen on {listen}, see `[broker] listen`: {e}")),
    })?;
    let bind = probe.local_addr().map_err(|e| start_error(format!("cannot listen on {listen}: {e}")))?;
    let mut advertised = bind;
    if bind.ip().is_unspecified() {
        // It must be an address that clients can reach: those on this machine.
        advertised.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    Ok(Address { bind, advertised })
}

fn start_error(detail: String) -> Error {
    Error::BrokerStart { detail }
}

/// The storage URL that makes the broker open `dir/log.sqlite`.
struct SqliteUrl {
    url: Url,
    /// Kept open when the URL goes through its descriptor.
    directory: Option<std::fs::File>,
}

impl SqliteUrl {
    /// SUBTLE: the broker joins the URL's path to the current directory, even an absolute one, without decoding it.
    /// 1. A URL without authority and leading slash (`sqlite:../../srv/x`) keeps its `..`, so the path can climb to the
    ///    root first. Any other form of URL drops them.
    /// 2. Characters that a URL would escape cannot be in it. Then the path goes through the descriptor of the folder.
    fn of(dir: &Path) -> Result<Self> {
        let cwd =
            std::env::current_dir().map_err(|e| start_error(format!("cannot tell the current directory: {e}")))?;
        let up = "../".repeat(cwd.components().filter(|c| matches!(c, Component::Normal(_))).count());
        let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.,+=@~".contains(c);
        match dir.to_str().filter(|d| d.chars().all(plain)) {
            Some(path) => Self::parse(&format!("{up}{}/{FILE}", path.trim_start_matches('/')), None),
            None => {
                let directory =
                    std::fs::File::open(dir).map_err(|e| start_error(format!("cannot open {}: {e}", dir.display())))?;
                let fd = std::os::fd::AsRawFd::as_raw_fd(&directory);
                Self::parse(&format!("{up}proc/self/fd/{fd}/{FILE}"), Some(directory))
            }
        }
    }

    fn parse(path: &str, directory: Option<std::fs::File>) -> Result<Self> {
        // A current directory of "/" leaves no `..`, and then no leading slash either: still an opaque path.
        let url = Url::parse(&format!("sqlite:{path}")).map_err(|e| start_error(format!("{path}: {e}")))?;
        Ok(Self { url, directory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    #[tokio::test]
    async fn the_broker_says_where_it_is_until_it_stops() {
        let dir = tempfile::tempdir().unwrap();
        let broker = EmbeddedBroker::start(dir.path(), ANY).await.unwrap();
        let said = BrokerFile::read(dir.path()).unwrap().unwrap();
        assert_eq!(said.bootstrap_servers, broker.bootstrap_servers());
        assert!(said.bootstrap_servers.starts_with("127.0.0.1:"));
        assert!(dir.path().join("broker").join(FILE).try_exists().unwrap());
        let address: SocketAddr = said.bootstrap_servers.parse().unwrap();

        let error = EmbeddedBroker::start(dir.path(), ANY).await.unwrap_err();
        assert!(matches!(error, Error::DataDirInUse { .. }), "{error}");

        let other = tempfile::tempdir().unwrap();
        let error = EmbeddedBroker::start(other.path(), address).await.unwrap_err();
        assert!(matches!(error, Error::PortInUse { listen } if listen == address), "{error}");
        assert!(error.to_string().contains(&address.port().to_string()), "{error}");

        broker.stop().await;
        assert_eq!(BrokerFile::read(dir.path()).unwrap(), None);
        let again = EmbeddedBroker::start(dir.path(), address).await.unwrap();
        assert_eq!(again.bootstrap_servers(), address.to_string());
        again.stop().await;
    }

    #[tokio::test]
    async fn a_folder_with_any_name_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("Añada 50% #1?");
        let broker = EmbeddedBroker::start(&odd, ANY).await.unwrap();
        assert!(odd.join("broker").join(FILE).try_exists().unwrap());
        broker.stop().await;
    }
}
