//! The oracle: whatever happens to a worker, what it answers from each cut is what the log says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use watershed_shared::delta::{DeltaAnswer, DeltaService, StreamDelta};
use watershed_shared::offsets::{Cut, Offset, OffsetVector, PartitionId};
use watershed_speed_layer::{DeltaStore, MemoryStore, Options, ViewPlan};

use crate::world::{Brief, Log, PATIENCE, Running, Sums, check_cut, moment, options, plan};

/// One view as its register would have it.
struct View {
    sums: Sums,
    cuts: Vec<Cut>,
}

struct World {
    seed: u64,
    random: StdRng,
    log: Log,
    origins: watch::Sender<OffsetVector>,
    plans: watch::Sender<Arc<Vec<ViewPlan>>>,
    views: BTreeMap<String, View>,
    store: Arc<MemoryStore>,
    running: Running,
    /// Positions of joined views, by view and definition; they never go back while a worker lives.
    reached: BTreeMap<(String, String), OffsetVector>,
    made: usize,
    options: Options,
}

fn plans_of(views: &BTreeMap<String, View>) -> Arc<Vec<ViewPlan>> {
    let plan = |(name, view): (&String, &View)| {
        let from = view.cuts.iter().cloned().reduce(|a, b| a.meet(&b)).unwrap_or_default();
        plan(name, &view.sums, view.cuts.clone(), from)
    };
    Arc::new(views.iter().map(plan).collect())
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let partitions = random.random_range(1..4);
        let origins: OffsetVector =
            (0..partitions).map(|p| (PartitionId(p), Offset(random.random_range(0..3) * 7))).collect();
        let log = Log::new(seed, &origins);
        let views = BTreeMap::new();
        let plans = watch::Sender::new(plans_of(&views));
        let origins = watch::Sender::new(origins);
        let store = Arc::new(MemoryStore::default());
        let options = Options { batch_rows: random.random_range(50..5_000), ..options() };
        let running = Running::start(&log, &plans, &origins, Arc::<MemoryStore>::clone(&store), options.clone());
        let reached = BTreeMap::new();
        let mut world = Self { seed, random, log, origins, plans, views, store, running, reached, made: 0, options };
        world.define();
        world.publish();
        world
    }

    fn publish(&self) {
        self.plans.send_replace(plans_of(&self.views));
    }

    fn define(&mut self) {
        self.made += 1;
        let sums = Sums { modulus: self.random.random_range(1..400), broken: Arc::default() };
        let mut cuts = vec![Cut::new()];
        if self.random.random_ratio(1, 3) {
            cuts = vec![self.random_cut()];
        }
        self.views.insert(format!("v{}", self.made), View { sums, cuts });
    }

    /// Somewhere between the origin and a little past the log's end.
    fn random_cut(&mut self) -> Cut {
        let origins = self.origins.borrow().clone();
        let end = self.log.end();
        let mut cut = Cut::new();
        for (p, origin) in origins.iter() {
            if self.random.random_ratio(9, 10) {
                cut.set(p, Offset(self.random.random_range(origin.0..=end.get(p).unwrap().0 + 20)));
            }
        }
        cut
    }

    fn view(&mut self) -> Option<&mut View> {
        let n = self.random.random_range(0..self.views.len().max(1));
        self.views.values_mut().nth(n)
    }

    async fn restart(&mut self, crash: bool, damage: bool) {
        let crashed = Arc::new(self.store.crashed());
        if crash {
            self.store = crashed;
        }
        let store: Arc<dyn DeltaStore> = Arc::<MemoryStore>::clone(&self.store);
        if damage {
            let random = &mut self.random;
            self.store.damage(|map| {
                for _ in 0..random.random_range(1..4) {
                    let n = random.random_range(0..map.len().max(1));
                    let Some(key) = map.keys().nth(n).cloned() else { return };
                    let value = map.get_mut(&key).unwrap();
                    match random.random_range(0..3) {
                        0 => drop(map.remove(&key)),
                        1 => value.truncate(value.len() / 2),
                        _ => {
                            let at = random.random_range(0..value.len());
                            value[at] ^= 1 << random.random_range(0..8);
                        }
                    }
                }
            });
        }
        let next = Running::start(&self.log, &self.plans, &self.origins, store, self.options.clone());
        std::mem::replace(&mut self.running, next).stop().await;
        self.reached.clear();
    }

    async fn step(&mut self) {
        match self.random.random_range(0..40) {
            0..14 => {
                for p in 0..self.origins.borrow().len() {
                    let count = self.random.random_range(0..600);
                    self.log.append(PartitionId(i32::try_from(p).unwrap()), count, &mut self.random);
                }
            }
            14 | 15 if self.views.len() < 5 => {
                self.define();
                self.publish();
            }
            16 if self.views.len() > 1 => {
                let n = self.random.random_range(0..self.views.len());
                let name = self.views.keys().nth(n).cloned().unwrap();
                self.views.remove(&name);
                self.publish();
            }
            17..20 => {
                // A build claims the sealed cut.
                if let Ok(cut) = self.running.handle.seal().await {
                    self.check_sealed(&cut);
                    if let Some(view) = self.view() {
                        view.cuts.push(cut);
                    }
                    self.publish();
                }
            }
            20 | 21 => {
                // A build whose worker did not answer.
                let cut = self.random_cut();
                if let Some(view) = self.view() {
                    view.cuts.push(cut);
                }
                self.publish();
            }
            22..25 => {
                // The lowest cut is not needed any more.
                if let Some(view) = self.view()
                    && view.cuts.len() > 1
                {
                    view.cuts.remove(0);
                }
                self.publish();
            }
            25 => {
                let n = self.random.random_range(0..5);
                if let Some(view) = self.view()
                    && view.cuts.len() > 1
                {
                    let n = n % view.cuts.len();
                    view.cuts.remove(n);
                }
                self.publish();
            }
            26 => {
                // A rollback.
                let cut = self.random_cut();
                if let Some(view) = self.view() {
                    view.cuts.insert(0, cut);
                }
                self.publish();
            }
            27 => {
                let broken = self.random.random();
                if let Some(view) = self.view() {
                    view.sums.broken.store(broken, Ordering::Relaxed);
                }
            }
            28 => {
                let failing = self.random.random();
                self.store.set_failing(failing);
            }
            29 => {
                let hostile = self.random.random();
                self.log.hostile.store(hostile, Ordering::Relaxed);
            }
            30 => self.restart(false, false).await,
            31 => self.restart(true, false).await,
            32 => self.restart(true, true).await,
            33 if self.origins.borrow().len() < 4 => {
                let p = PartitionId(i32::try_from(self.origins.borrow().len()).unwrap());
                let mut random = self.random.clone();
                self.log.add_partition(p, Offset(3));
                self.log.append(p, random.random_range(0..50), &mut random);
                self.origins.send_modify(|o| o.set(p, Offset(3)));
            }
            _ => {
                for _ in 0..self.random.random_range(0..30) {
                    moment().await;
                }
            }
        }
        self.check();
    }

    /// What was sealed is a boundary from now on, of every view that has reached it.
    fn check_sealed(&self, cut: &Cut) {
        let delta = self.running.snapshot();
        for view in delta.views.values().flat_map(BTreeMap::values).filter(|v| v.joined) {
            if cut.covers(&view.from) {
                let answer = view.from_cut(cut);
                assert!(
                    matches!(answer, DeltaAnswer::Runs(_)),
                    "seed {}: sealed at {cut}: {answer:?}\n{:?}",
                    self.seed,
                    Brief(&delta)
                );
            }
        }
    }

    fn check(&mut self) {
        let delta = self.running.snapshot();
        for plan in &**self.plans.borrow() {
            let sums = &self.views[&plan.name].sums;
            for cut in plan.boundaries.iter().chain([&plan.from]) {
                check_cut(&self.log, sums, plan, &delta, cut, self.seed);
            }
        }
        for (name, view) in delta.views.iter().flat_map(|(n, v)| v.values().map(move |v| (n, v))) {
            let origins = &delta.origins;
            assert!(origins.join(&view.position).covers(&origins.join(&view.from)));
            if view.joined {
                assert_eq!(view.position, delta.position, "seed {}: {:?}", self.seed, Brief(&delta));
                let key = (name.clone(), view.definition.to_string());
                let reached = self.reached.entry(key).or_default();
                assert!(view.position.covers(reached), "seed {}: went back", self.seed);
                *reached = view.position.clone();
            }
        }
    }

    fn settled(&self, delta: &StreamDelta) -> bool {
        let all = |plan: &ViewPlan| {
            delta.view(&plan.name, &plan.definition).is_some_and(|view| {
                // A cut past the log's end is never reached.
                let reached = |cut: &&Cut| self.log.end().covers(cut);
                let cuts = plan.boundaries.iter().chain([&plan.from]).filter(reached);
                let answers = cuts.map(|cut| view.from_cut(cut)).all(|a| matches!(a, DeltaAnswer::Runs(_)));
                view.joined && answers
            })
        };
        delta.position == self.log.end() && self.plans.borrow().iter().all(all)
    }

    async fn settle(&mut self) {
        self.store.set_failing(false);
        self.log.hostile.store(false, Ordering::Relaxed);
        for view in self.views.values_mut() {
            view.sums.broken.store(false, Ordering::Relaxed);
            // The log must be able to reach each cut.
            view.cuts.retain(|cut| self.log.end().covers(cut));
        }
        self.publish();
        self.running.until(&format!("seed {}: settled", self.seed), |delta| self.settled(delta)).await;
        self.check();
    }
}

async fn run(seed: u64, steps: usize) {
    let mut world = World::new(seed);
    for n in 0..steps {
        world.step().await;
        if n % 60 == 59 {
            world.settle().await;
        }
    }
    world.settle().await;
    let World { running, .. } = world;
    running.stop().await;
}

fn seeds() -> Vec<u64> {
    match std::env::var("WATERSHED_SEEDS") {
        Ok(seeds) => seeds.split(',').map(|s| s.trim().parse().expect("a seed is a number")).collect(),
        Err(_) => (1..=4).collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_is_what_the_log_says() {
    for seed in seeds() {
        println!("WATERSHED_SEEDS={seed}");
        tokio::time::timeout(10 * PATIENCE, run(seed, 180)).await.expect("it ends");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_runs_stays_logarithmic() {
    let origins: OffsetVector = [(0, 0), (1, 0)].into();
    let log = Log::new(7, &origins);
    let mut random = StdRng::seed_from_u64(7);
    let sums = Sums { modulus: 500, broken: Arc::default() };
    let plans = watch::Sender::new(Arc::new(vec![plan("v", &sums, vec![Cut::new()], Cut::new())]));
    let origins = watch::Sender::new(origins);
    let options = Options { batch_rows: 40, batch_interval: Duration::ZERO, ..options() };
    let running = Running::start(&log, &plans, &origins, Arc::new(MemoryStore::default()), options.clone());
    for _ in 0..400 {
        log.append(PartitionId(random.random_range(0..2)), 100, &mut random);
        moment().await;
        let most = running.snapshot().views.values().flat_map(BTreeMap::values).map(|v| v.runs.len()).max();
        assert!(most.unwrap_or(0) <= options.max_runs + 1, "{most:?} runs");
    }
    let end = log.end();
    let done = running.until("merged", |d| d.position == end && d.views["v"].values().all(|v| v.runs.len() < 12)).await;
    assert!(running.handle.counts().micro_batches > 300);
    assert!(check_cut(&log, &sums, &plans.borrow()[0], &done, &Cut::new(), 7));
    running.stop().await;
}
