//! The delta store on sled: what it keeps, and what becomes of damage.

use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use watershed_shared::delta::DeltaService;
use watershed_shared::offsets::{Cut, OffsetVector, PartitionId};
use watershed_speed_layer::{DeltaStore, SledStore, StoreError, ViewPlan};

use crate::world::{Log, Running, Sums, check_cut, options, plan};

struct Setup {
    log: Log,
    random: StdRng,
    sums: Sums,
    plans: watch::Sender<Arc<Vec<ViewPlan>>>,
    origins: watch::Sender<OffsetVector>,
}

fn setup(seed: u64) -> Setup {
    let origins: OffsetVector = [(0, 0), (1, 5)].into();
    let log = Log::new(seed, &origins);
    let sums = Sums { modulus: 499, broken: Arc::default() };
    let plans = watch::Sender::new(Arc::new(vec![
        plan("a", &sums, vec![Cut::new()], Cut::new()),
        plan("b", &sums, vec![[(0, 300)].into()], [(0, 300)].into()),
    ]));
    let random = StdRng::seed_from_u64(seed);
    Setup { log, random, sums, plans, origins: watch::Sender::new(origins) }
}

impl Setup {
    fn append(&mut self, count: usize) {
        self.log.append(PartitionId(0), count, &mut self.random);
        self.log.append(PartitionId(1), count, &mut self.random);
    }

    fn start(&self, path: &Path) -> Running {
        // sled lets go of its lock a moment after it has been dropped.
        let store = (0..1_000).find_map(|_| match SledStore::open(path) {
            Ok(store) => Some(store),
            Err(StoreError::InUse(_)) => {
                std::thread::sleep(std::time::Duration::from_millis(50));
                None
            }
            Err(e) => panic!("{e}"),
        });
        Running::start(&self.log, &self.plans, &self.origins, Arc::new(store.expect("it is let go")), options())
    }

    async fn check(&self, running: &Running) {
        let end = self.log.end();
        let done = |d: &watershed_shared::delta::StreamDelta| {
            let views: Vec<_> = d.views.values().flat_map(|v| v.values()).collect();
            d.position == end && views.len() == 2 && views.iter().all(|v| v.joined)
        };
        let delta = running.until("caught up", done).await;
        for plan in &**self.plans.borrow() {
            assert!(check_cut(&self.log, &self.sums, plan, &delta, &plan.from, 0));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_from_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("delta");
    let mut setup = setup(1);
    let running = setup.start(&path);
    setup.append(30_000);
    setup.check(&running).await;
    let cut = running.handle.seal().await.unwrap();
    assert_eq!(cut, setup.log.end());
    running.stop().await;

    setup.append(100);
    let running = setup.start(&path);
    setup.check(&running).await;
    let counts = running.handle.counts();
    assert_eq!((counts.replays, counts.damaged_images, counts.events), (0, 0, 200));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_locked_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("delta");
    let _open = SledStore::open(&path).unwrap();
    assert!(matches!(SledStore::open(&path), Err(StoreError::InUse(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_and_cut_off_files_are_replayed() {
    let mut replays = 0;
    for seed in 1..=10 {
        println!("seed {seed}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("delta");
        let mut setup = setup(seed);
        setup.append(5_000);
        let running = setup.start(&path);
        setup.check(&running).await;
        running.stop().await;
        damage(&path, &mut StdRng::seed_from_u64(seed));
        setup.append(500);
        let running = setup.start(&path);
        setup.check(&running).await;
        replays += u64::from(running.handle.counts().events > 1_000) + running.handle.counts().replays;
        running.stop().await;
    }
    assert!(replays > 0, "no damage was ever found");
}

fn damage(path: &Path, random: &mut StdRng) {
    let mut files: Vec<_> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.is_file());
    files.sort();
    let file = &files[random.random_range(0..files.len())];
    let mut bytes = std::fs::read(file).unwrap();
    if bytes.is_empty() {
        return;
    }
    if random.random() {
        bytes.truncate(random.random_range(0..bytes.len()));
    } else {
        for _ in 0..200 {
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
        }
    }
    std::fs::write(file, bytes).unwrap();
}

/// Where the test below finds a small disk, once it has started itself again to have one.
const DISK: &str = "WATERSHED_TEST_DISK";

#[test]
fn a_store_whose_disk_was_full_is_used_again_once_there_is_room() {
    let Some(disk) = std::env::var_os(DISK) else { return with_a_small_disk() };
    let disk = Path::new(&disk);
    let path = disk.join("delta");
    let store = SledStore::open(&path).unwrap();
    let value = |n: u8| vec![n; 60_000];
    let write = |n: u8| store.apply(vec![(vec![n], Some(value(n)))]).and_then(|()| store.flush());
    write(0).unwrap();
    let filler = disk.join("filler");
    // The last of it fails: then there is no room left.
    std::fs::write(&filler, vec![1; 64 << 20]).unwrap_err();
    let mut failed = None;
    for n in 1..100 {
        if let Err(error) = write(n) {
            failed = Some((n, error));
            break;
        }
    }
    let (first, error) = failed.expect("there is no room");
    assert!(matches!(error, StoreError::Failed(_)), "{error}");
    write(first).expect_err("there is still no room");

    std::fs::remove_file(&filler).unwrap();
    // sled lets go of its files a moment after it has been dropped.
    let again = (0..1_000).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        write(first).ok()
    });
    again.expect("it is used again");
    let check = |store: &SledStore| {
        let mut found = Vec::new();
        store.scan(&mut |key, value| found.push((key.to_vec(), value.to_vec()))).unwrap();
        let wanted: Vec<(Vec<u8>, Vec<u8>)> = (0..=first).map(|n| (vec![n], value(n))).collect();
        assert!(found == wanted, "of {} values {} are there", wanted.len(), found.len());
    };
    check(&store);
    let aside = std::fs::read_dir(disk).unwrap().count();
    assert_eq!(aside, 1, "a full disk is no damage: nothing was set aside");
}

/// Runs the test above where a folder is a disk of its own, which nobody else sees.
fn with_a_small_disk() {
    let folder = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=16m disk \"$0\" || exit 77; exec \"$@\"";
    let test = "sled::a_store_whose_disk_was_full_is_used_again_once_there_is_room";
    let mut again = std::process::Command::new("unshare");
    again.args(["--mount", "sh", "-c", script]).arg(folder.path()).arg(std::env::current_exe().unwrap());
    let ended = again.args(["--exact", test, "--nocapture"]).env(DISK, folder.path()).status();
    match ended.map(|status| status.code()) {
        Ok(Some(0)) => {}
        Ok(Some(1 | 77)) => println!("left out: nothing can be mounted here (it takes root, or CAP_SYS_ADMIN)"),
        other => panic!("it ended with {other:?}"),
    }
}
