//! Servers that are killed, stopped, or that refuse: on an HDFS of these tests' own.

use std::collections::BTreeSet;

use tokio::sync::{Mutex, MutexGuard};
use xtask::cluster::{Cluster, Options, directory};

use super::*;
use crate::storage::{CreateOutcome, Settings, Storage};
use crate::task;

/// One cluster for all of them, one test at a time; each leaves it healthy. It ends with this process.
static CLUSTER: Mutex<Option<Cluster>> = Mutex::const_new(None);

struct Own {
    cluster: MutexGuard<'static, Option<Cluster>>,
}

/// `None` without the test command, which says what it takes.
async fn own() -> Option<Own> {
    crate::testing::real_component("WATERSHED_TEST_HDFS")?;
    let mut cluster = CLUSTER.lock().await;
    if cluster.is_none() {
        let dir = directory(&format!("faults-{}", std::process::id())).unwrap();
        *cluster = Some(Cluster::start(&dir, Options { brokers: 0, secured: false, datanodes: 2 }).unwrap());
    }
    let mut own = Own { cluster };
    own.hdfs().wait_until_ready().unwrap();
    Some(own)
}

const NAMENODE: usize = 0;

impl Own {
    fn hdfs(&mut self) -> &mut xtask::cluster::Hdfs {
        self.cluster.as_mut().and_then(Cluster::hdfs_mut).expect("it was started")
    }

    fn url(&mut self) -> Url {
        Url::parse(&format!("{}/{}", self.hdfs().url(), Uuid::new_v4().simple())).unwrap()
    }

    fn storage(&mut self) -> Storage {
        let settings = Settings { retry_for: Duration::from_secs(300), ..Settings::default() };
        Storage::open_with(&self.url(), settings).unwrap()
    }

    /// The DataNode to which this process is connected.
    fn serving(&mut self) -> usize {
        let connected = connected_ports();
        let daemons = self.hdfs().daemons();
        let port = |i: usize| daemons[i].address().rsplit(':').next().unwrap().parse().unwrap();
        let serving: Vec<usize> = (1..daemons.len()).filter(|i| connected.contains(&port(*i))).collect();
        assert_eq!(serving.len(), 1, "one DataNode serves the block: {serving:?}");
        serving[0]
    }
}

/// The remote ports of all connections of this process.
fn connected_ports() -> BTreeSet<u16> {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = links.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok()?.into_os_string().into_string().ok());
    let sockets: BTreeSet<String> =
        links.filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let established = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|l| l[3] == "01");
    established
        .filter(|line| sockets.contains(line[9]))
        .map(|line| u16::from_str_radix(line[2].rsplit(':').next().unwrap(), 16).unwrap())
        .collect()
}

/// Reads an object of one block and does something to the DataNode that serves it when the first bytes are there.
async fn read_while(own: &mut Own, fault: impl FnOnce(&mut xtask::cluster::Daemon)) -> usize {
    let storage = own.storage();
    let (path, bytes) = (Path::from("block"), noise(32 << 20));
    storage.overwrite(&path, bytes.clone()).await.unwrap();
    // Connections on which it was written end first.
    let start = Instant::now();
    let ports: Vec<u16> =
        own.hdfs().daemons()[1..].iter().map(|d| d.address().rsplit(':').next().unwrap().parse().unwrap()).collect();
    while connected_ports().iter().any(|p| ports.contains(p)) {
        assert!(start.elapsed() < PATIENCE);
        clock::sleep(Duration::from_millis(20)).await;
    }
    let mut chunks = storage.store().get(&path).await.unwrap().into_stream();
    let mut found = chunks.try_next().await.unwrap().unwrap().to_vec();
    assert!(found.len() < 1 << 20, "it has only begun");
    let serving = own.serving();
    fault(&mut own.hdfs().daemons_mut()[serving]);
    while let Some(chunk) = chunks.try_next().await.unwrap() {
        found.extend_from_slice(&chunk);
    }
    assert!(bytes == found, "{} bytes", found.len());
    serving
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_goes_on_when_the_serving_datanode_stops() {
    let Some(mut own) = own().await else { return };
    let stopped = read_while(&mut own, |datanode| datanode.signal("STOP").unwrap()).await;
    own.hdfs().daemons()[stopped].signal("CONT").unwrap();
}

/// Two DataNodes, two replicas: no pipeline can be built until the NameNode has declared the dead one dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_and_writes_outlast_a_killed_datanode() {
    let Some(mut own) = own().await else { return };
    let killed = read_while(&mut own, |datanode| datanode.kill().unwrap()).await;
    let storage = own.storage();
    let bytes = noise(3 << 20);
    let path = storage.put_unique(|id| Path::from(format!("runs/{id}")), bytes.clone()).await.unwrap();
    let record = Path::from("registers/1");
    assert_eq!(storage.create(&record, "mine".into()).await.unwrap(), CreateOutcome::Created);
    assert_eq!(storage.get(&path).await.unwrap().unwrap(), bytes);
    own.hdfs().daemons_mut()[killed].restart().unwrap();
    own.hdfs().wait_until_ready().unwrap();
    assert_eq!(storage.get(&record).await.unwrap().unwrap(), "mine");
}

/// Writers race for the numbers of a register while the NameNode dies and comes back: whatever was answered is true.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn creates_have_one_winner_though_the_namenode_is_killed() {
    const NUMBERS: u64 = 60;
    let Some(mut own) = own().await else { return };
    let storage = own.storage();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let storage = storage.clone();
            task::spawn("writer", async move {
                let mut won = BTreeSet::new();
                for number in 0..NUMBERS {
                    let mine = Bytes::from(format!("{writer} wrote {number}"));
                    match storage.create(&Path::from(format!("r/{number:020}")), mine.clone()).await.unwrap() {
                        CreateOutcome::Created => assert!(won.insert(number)),
                        CreateOutcome::Exists(other) => assert_ne!(other, mine),
                    }
                }
                won
            })
        })
        .collect();
    let probe = Hdfs::open(storage.url(), Duration::from_secs(10)).unwrap();
    for kills in 1..=2 {
        let start = Instant::now();
        while probe.head(&Path::from(format!("r/{:020}", kills * 20))).await.is_err() {
            assert!(start.elapsed() < PATIENCE, "they go on");
            clock::sleep(Duration::from_millis(1)).await;
        }
        own.hdfs().daemons_mut()[NAMENODE].kill().unwrap();
        let error = probe.head(&"r".into()).await.unwrap_err().to_string();
        assert!(error.contains("does not answer. Start it, or correct [storage] url"), "{error}");
        own.hdfs().daemons_mut()[NAMENODE].restart().unwrap();
    }
    let mut won = BTreeSet::new();
    for writer in writers {
        for number in writer.await.unwrap() {
            assert!(won.insert(number), "{number} was won twice");
        }
    }
    assert_eq!(won, (0..NUMBERS).collect());
    own.hdfs().wait_until_ready().unwrap();
    assert_eq!(storage.list(&"r".into()).await.unwrap().len() as u64, NUMBERS);
    no_temporary_file_stays(&probe).await;
}

/// No temporary file of a lost or interrupted create stays while its writer lives.
async fn no_temporary_file_stays(store: &Hdfs) {
    let start = Instant::now();
    while let Some(hidden) = names(store).await.iter().find(|n| n.contains("/.")) {
        assert!(start.elapsed() < PATIENCE, "{hidden}");
        clock::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_namenode_ends_no_call_for_ever_and_another_connection_follows() {
    let Some(mut own) = own().await else { return };
    let store = Hdfs::open(&own.url(), Duration::from_secs(2)).unwrap();
    store.put(&"x".into(), "1".into()).await.unwrap();
    own.hdfs().daemons()[NAMENODE].signal("STOP").unwrap();
    let head = store.head(&"x".into()).await;
    let create = create(&store, "y", &noise(9)).await;
    own.hdfs().daemons()[NAMENODE].signal("CONT").unwrap();
    for error in [head.unwrap_err(), create.unwrap_err()] {
        assert!(error.to_string().contains("no answer in time"), "{error}");
    }
    own.hdfs().wait_until_ready().unwrap();
    assert_eq!(store.get(&"x".into()).await.unwrap().bytes().await.unwrap(), "1");
    let start = Instant::now();
    while names(&store).await != ["x"] {
        assert!(start.elapsed() < PATIENCE, "what was created late is removed: {:?}", names(&store).await);
        clock::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_wait_for_the_end_of_safe_mode_and_a_used_up_quota_refuses_at_once() {
    let Some(mut own) = own().await else { return };
    let storage = own.storage();
    let path = Path::from("registers/1");
    storage.overwrite(&"x".into(), "1".into()).await.unwrap();
    own.hdfs().dfsadmin(&["-safemode", "enter"]).unwrap();
    let error = storage.store().put(&path, "1".into()).await.unwrap_err().to_string();
    assert!(
        error.contains("is in safe mode and takes no writes") && error.contains("dfsadmin -safemode leave"),
        "{error}"
    );
    assert_eq!(storage.get(&"x".into()).await.unwrap().unwrap(), "1", "reads go on");
    let waiting = {
        let (storage, path) = (storage.clone(), path.clone());
        task::spawn("waiting writer", async move { storage.create(&path, "1".into()).await.unwrap() })
    };
    own.hdfs().dfsadmin(&["-safemode", "leave"]).unwrap();
    assert_eq!(waiting.await.unwrap(), CreateOutcome::Created);

    let folder = storage.url().path().to_owned();
    own.hdfs().dfsadmin(&["-setQuota", "6", &folder]).unwrap();
    let mut refused = None;
    for i in 0..10 {
        match storage.create(&Path::from(format!("many/{i}")), "1".into()).await {
            Ok(created) => assert_eq!(created, CreateOutcome::Created),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let error = format!("{:#}", anyhow::Error::from(refused.expect("six names are too few")));
    assert!(error.contains("a quota of the folder is used up") && error.contains("-setQuota"), "{error}");
}
