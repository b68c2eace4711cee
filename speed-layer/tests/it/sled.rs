//! The delta store on sled: what it keeps, and what becomes of damage.

use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use watershed_shared::delta::DeltaService;
use watershed_shared::offsets::{Cut, OffsetVector, PartitionId};
use watershed_speed_layer::{SledStore, StoreError, ViewPlan};

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
