//! Compiled views on a worker: their answer from each cut is that of the same view over the events themselves.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use watershed_shared::config::Config;
use watershed_shared::delta::{DeltaAnswer, DeltaService, StreamDelta};
use watershed_shared::offsets::{Cut, OffsetVector, PartitionId};
use watershed_shared::view::{CompiledView, Compiler};
use watershed_speed_layer::{DeltaStore, MemoryStore, Options, ViewPlan};

use crate::world::{Log, Running, moment, options};

const CONFIG: &str = r#"
[stream.s]
columns = "key BIGINT NOT NULL, value BIGINT NOT NULL"

[view.sums]
sql = "SELECT key % 50 AS k, count(*) AS n, sum(value) AS s, avg(value) AS a, min(value), max(key) FROM s GROUP BY 1"

[view.whole]
sql = "SELECT count(*) AS n, approx_distinct(key) AS d, count(DISTINCT value) AS v FROM s"

[view.ordered]
sql = "SELECT value % 7 AS k, first_value(key) AS f, array_agg(key) FILTER (WHERE key < 40) AS l FROM s GROUP BY 1"

[view.failing]
sql = "SELECT 100 / (value % 10) AS q, count(*) AS n FROM s GROUP BY 1"

[view.rows]
sql = "SELECT key, value, _offset FROM s WHERE value > 80"

[view.above]
sql = "SELECT k, n FROM (SELECT key AS k, count(*) AS n FROM s GROUP BY 1) WHERE n > 3 ORDER BY n DESC, k LIMIT 20"
"#;

fn views() -> BTreeMap<String, Arc<CompiledView>> {
    let config = Config::parse(CONFIG, Path::new("/"), &|_| None).unwrap();
    let compiler = Compiler::new(&config.streams, &BTreeMap::new()).unwrap();
    config.views.iter().map(|(name, view)| (name.clone(), compiler.compile(view).unwrap())).collect()
}

async fn finished(view: &CompiledView, states: &[RecordBatch]) -> Vec<String> {
    let rows = view.finalize(states).await.unwrap();
    let text = pretty_format_batches(&[rows]).unwrap().to_string();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

struct World {
    seed: u64,
    random: StdRng,
    log: Log,
    views: BTreeMap<String, Arc<CompiledView>>,
    cuts: Vec<Cut>,
    plans: watch::Sender<Arc<Vec<ViewPlan>>>,
}

impl World {
    fn publish(&self) {
        let from = self.cuts[0].clone();
        let plan = |(name, view): (&String, &Arc<CompiledView>)| ViewPlan {
            name: name.clone(),
            definition: view.definition().clone(),
            compiled: Arc::<CompiledView>::clone(view),
            boundaries: self.cuts.clone(),
            from: from.clone(),
        };
        self.plans.send_replace(Arc::new(self.views.iter().map(plan).collect()));
    }

    async fn check(&self, delta: &StreamDelta) {
        for (name, view) in &self.views {
            let found = delta.view(name, view.definition()).expect("it is wanted");
            for cut in &self.cuts {
                let DeltaAnswer::Runs(runs) = found.from_cut(cut) else {
                    panic!("seed {}: {name} does not answer from {cut}", self.seed);
                };
                let states: Vec<_> = runs.iter().map(|run| run.states.clone()).collect();
                let expected = view.states(&self.log.events(cut, &found.position)).await.unwrap();
                let (found, expected_rows) = (finished(view, &states).await, finished(view, &[expected.states]).await);
                assert_eq!(found, expected_rows, "seed {}: {name} from {cut}", self.seed);
                let mut errors: Vec<_> = runs.iter().flat_map(|run| run.errors.clone()).collect();
                errors.sort_by_key(|e| (e.partition, e.offset));
                assert_eq!(errors, expected.errors, "seed {}: {name} from {cut}", self.seed);
            }
        }
    }
}

async fn run(seed: u64) {
    println!("seed {seed}");
    let origins: OffsetVector = [(0, 0), (1, 0)].into();
    let log = Log::new(seed, &origins);
    let plans = watch::Sender::new(Arc::new(vec![]));
    let mut world =
        World { seed, random: StdRng::seed_from_u64(seed), log, views: views(), cuts: vec![Cut::new()], plans };
    world.publish();
    let origins = watch::Sender::new(origins);
    let mut store = Arc::new(MemoryStore::default());
    let options = Options { batch_rows: 300, ..options() };
    let start = |world: &World, store: Arc<dyn DeltaStore>| {
        Running::start(&world.log, &world.plans, &origins, store, options.clone())
    };
    let mut running = start(&world, Arc::<MemoryStore>::clone(&store));
    for n in 0..12 {
        for p in 0..2 {
            let count = world.random.random_range(0..300);
            world.log.append(PartitionId(p), count, &mut world.random);
        }
        moment().await;
        if n % 3 == 2 {
            world.cuts.push(running.handle.seal().await.unwrap());
            world.publish();
        }
        if n == 7 {
            world.cuts.remove(0);
            world.publish();
        }
        if n % 5 == 4 {
            let crashed = Arc::new(store.crashed());
            running.stop().await;
            store = crashed;
            running = start(&world, Arc::<MemoryStore>::clone(&store));
        }
    }
    let end = world.log.end();
    let all = world.views.len();
    let done = |d: &StreamDelta| {
        let mut views = d.views.values().flat_map(BTreeMap::values);
        d.position == end && d.views.len() == all && views.all(|v| v.joined)
    };
    let delta = running.until("caught up", done).await;
    assert_eq!(delta.reasons, vec![]);
    world.check(&delta).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compiled_views_answer_from_each_cut_as_over_the_events() {
    for seed in 1..=3 {
        run(seed).await;
    }
}
