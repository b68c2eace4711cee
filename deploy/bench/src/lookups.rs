//! Point and range queries over a million groups, half of them in the delta, while events come in; and memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use datafusion::common::config::TableParquetOptions;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use watershed_shared::clock::Instant;

use crate::builds::register_events;
use crate::events::{BY_USER, Shape, scramble};
use crate::kafka::Topic;
use crate::load::Load;
use crate::platform::{Archive, Client, Platform, Setup};
use crate::report::{Row, table};
use crate::stats::{Latencies, Samples, digits};
use crate::{Bench, Outcome};

const PARTITIONS: i32 = 4;
/// Requests under way at a time, each on a connection of its own.
const CLIENTS: u64 = 4;
/// Groups of a range query.
const RANGE: u64 = 100;
/// Events a second that come in meanwhile.
const INGESTED_PER_SECOND: u64 = 10_000;

/// What one kind of request is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Point,
    Range,
}

impl Kind {
    fn filter(self, user: u64) -> String {
        match self {
            Self::Point => format!("user_id = {user}"),
            Self::Range => format!("user_id >= {user} AND user_id < {}", user + RANGE),
        }
    }
}

/// Samples of one kind of request.
#[derive(Debug, Default)]
struct Series {
    per_second: Samples,
    p50_ms: Samples,
    p99_ms: Samples,
    /// CPU-seconds that the platform took meanwhile, for all that it did, for a million requests.
    cpu_seconds: Samples,
}

impl Series {
    fn push(&mut self, latencies: &Latencies, took: Duration, cpu_seconds: f64) {
        self.per_second.push(latencies.count() as f64 / took.as_secs_f64());
        self.cpu_seconds.push(cpu_seconds * 1e6 / latencies.count() as f64);
        self.p50_ms.push(latencies.percentile_ms(50.0));
        self.p99_ms.push(latencies.percentile_ms(99.0));
    }

    fn text(&self) -> String {
        format!("p50 {} ms, p99 {} ms, {} a second", self.p50_ms, self.p99_ms, self.per_second)
    }
}

pub(crate) async fn run(bench: &Bench) -> Result<Outcome> {
    let groups = bench.size(1_000_000, 2_000);
    let half = Shape { users: groups / 2, ..Shape::default() };
    let upper = Shape { first_user: groups / 2, ..half };
    let topic = bench.kafka.create_topic("lookups", PARTITIONS).await?;
    let setup = Setup {
        bootstrap_servers: Some(bench.kafka.bootstrap_servers.clone()),
        topic: topic.name.clone(),
        partitions: PARTITIONS,
        views: vec![("by_user", BY_USER)],
        archive: Archive::On,
    };
    let platform = Platform::start(&bench.program, &setup).await?;
    let empty = platform.memory()?.now_mib;
    // Eight events a user, so that nearly each has one.
    let each = groups * 4;
    let topic = fill(topic, half, each).await?;
    platform.archived(&topic.expect_records(each)?).await?;
    platform.build("by_user", "rebuild").await?;
    let built = platform.memory()?.now_mib;
    let topic = fill(topic, upper, each).await?;
    let ends = topic.expect_records(2 * each)?;
    let counted = platform.query("SELECT count(*) AS n FROM by_user", &ends).await?;
    let counted = counted["rows"][0]["n"].as_u64().context("a count")?;
    let full = platform.memory()?;

    let merged = platform.data_dir().join("merged.parquet");
    platform.archived(&ends).await?;
    write_merged(&platform.master_files()?, &merged, counted).await?;
    let duration = Duration::from_secs(bench.size(8, 1));
    let (mut points, mut ranges, mut building, mut building_ranges) = <(Series, Series, Series, Series)>::default();
    let (mut engine_points, mut engine_ranges) = <(Series, Series)>::default();
    let load = Load::start(&bench.kafka, &topic.name, PARTITIONS, upper, Some(INGESTED_PER_SECOND))?;
    for run in 0..bench.runs {
        for (kind, idle, busy, engine) in [
            (Kind::Point, &mut points, &mut building, &mut engine_points),
            (Kind::Range, &mut ranges, &mut building_ranges, &mut engine_ranges),
        ] {
            let before = platform.cpu_seconds()?;
            let asked = ask(&platform.client(), kind, groups, duration).await?;
            let between = platform.cpu_seconds()?;
            idle.push(&asked, duration, between - before);
            let asked = while_building(&platform, kind, groups, duration).await?;
            busy.push(&asked, duration, platform.cpu_seconds()? - between);
            engine.push(&in_datafusion(&merged, kind, groups, duration).await?, duration, f64::NAN);
        }
        let cpu = format!("{} and {} CPU-s a million", points.cpu_seconds, ranges.cpu_seconds);
        let so_far = format!("points {} | ranges {} | {cpu}", points.text(), ranges.text());
        bench.progress("lookups", run, &so_far);
    }
    load.stop()?;

    let row = |what: &str, series: &Series, engine: &Series, aim: &str| Row {
        baseline: format!("DataFusion over the merged table as Parquet: {}", engine.text()),
        ratio: format!("{} of its p50", series.p50_ms.ratio(&engine.p50_ms)),
        aim: aim.to_owned(),
        cpu_seconds: series.cpu_seconds.to_string(),
        ..Row::new(what, series.text())
    };
    let during = |what: &str, busy: &Series, idle: &Series| Row {
        baseline: "the same without a rebuild".to_owned(),
        ratio: format!("{} of its p99", busy.p99_ms.ratio(&idle.p99_ms)),
        aim: "p99 ≤ 1.5".to_owned(),
        ..Row::new(what, busy.text())
    };
    let in_delta = (full.now_mib - built) * f64::from(1 << 20) / (groups as f64 / 2.0);
    let rows = [
        row("point query", &points, &engine_points, "p99 < 10 ms, ≥ 5 k a second"),
        row(&format!("range of {RANGE} keys"), &ranges, &engine_ranges, "p99 < 10 ms"),
        during("point query while the view is rebuilt again and again", &building, &points),
        during("range query while the view is rebuilt again and again", &building_ranges, &ranges),
        Row { memory: digits(empty), ..Row::new("resident memory, 0 groups", "–") },
        Row {
            memory: format!("{} ({} at most)", digits(full.now_mib), digits(full.peak_mib)),
            ..Row::new(
                format!("resident memory, {counted} groups"),
                format!("{} bytes for each group that came into the delta", digits(in_delta)),
            )
        },
    ];
    let about = format!(
        "{groups} users, half of them in the generation, half in the delta; {CLIENTS} connections ask one after the other \
         for keys drawn evenly; {INGESTED_PER_SECOND} events a second come in meanwhile, the CPU that the platform takes \
         for them is in its figure."
    );
    Ok(Outcome { name: "lookups", text: table(&about, &rows) })
}

async fn fill(topic: Topic, shape: Shape, count: u64) -> Result<Topic> {
    tokio::task::spawn_blocking(move || topic.fill(shape, count).map(|()| topic)).await?
}

/// Asks over and over for `duration`.
async fn ask(client: &Client, kind: Kind, groups: u64, duration: Duration) -> Result<Latencies> {
    let client = client.clone();
    repeat(kind, groups, duration, move |filter| {
        let client = client.clone();
        async move {
            let body = client.text("by_user", &[("where", &filter)]).await?;
            ensure!(body.starts_with("{\"rows\":"), "no rows where {filter}: {body}");
            Ok(())
        }
    })
    .await
}

/// [`CLIENTS`] ask one request after the other, for keys drawn evenly.
async fn repeat<F: Future<Output = Result<()>> + Send>(
    kind: Kind,
    groups: u64,
    duration: Duration,
    request: impl Fn(String) -> F + Clone + Send + Sync + 'static,
) -> Result<Latencies> {
    let until = Instant::now() + duration;
    let clients = (0..CLIENTS).map(|number| {
        let request = request.clone();
        watershed_shared::task::spawn("client", async move {
            let mut latencies = Latencies::default();
            let mut next = scramble(number);
            while Instant::now() < until {
                next = scramble(next);
                let started = Instant::now();
                request(kind.filter(next % (groups - RANGE))).await?;
                latencies.push(started.elapsed());
            }
            anyhow::Ok(latencies)
        })
    });
    let mut all = Latencies::default();
    for client in clients.collect::<Vec<_>>() {
        all.extend(client.await??);
    }
    Ok(all)
}

/// The same while one rebuild follows the other.
async fn while_building(platform: &Platform, kind: Kind, groups: u64, duration: Duration) -> Result<Latencies> {
    let done = Arc::new(AtomicBool::new(false));
    let (client, finished) = (platform.client(), Arc::clone(&done));
    let builds = watershed_shared::task::spawn("rebuilds", async move {
        loop {
            client.build("by_user", "rebuild").await?;
            if finished.load(Ordering::Relaxed) {
                return anyhow::Ok(());
            }
        }
    });
    let latencies = ask(&platform.client(), kind, groups, duration).await;
    done.store(true, Ordering::Relaxed);
    builds.await??;
    latencies
}

/// The same through SQL in this process, as a program would that has the merged table at hand.
async fn in_datafusion(merged: &Path, kind: Kind, groups: u64, duration: Duration) -> Result<Latencies> {
    let context = table_at(merged).await?;
    repeat(kind, groups, duration, move |filter| {
        let context = context.clone();
        async move {
            context.sql(&format!("SELECT * FROM merged WHERE {filter}")).await?.collect().await?;
            Ok(())
        }
    })
    .await
}

/// The view's rows as plain DataFusion makes them of the master dataset, in one file, sorted, with row groups and pages
/// as small as a run's.
async fn write_merged(master: &[PathBuf], to: &Path, groups: u64) -> Result<()> {
    let context = SessionContext::new();
    register_events(&context, master).await?;
    let rows = context.sql(&format!("{BY_USER} ORDER BY user_id")).await?;
    let mut parquet = TableParquetOptions::default();
    parquet.global.max_row_group_size = 65_536;
    parquet.global.data_page_row_count_limit = 4_096;
    let options = DataFrameWriteOptions::new().with_single_file_output(true);
    rows.write_parquet(&to.display().to_string(), options, Some(parquet)).await?;
    let written = table_at(to).await?.table("merged").await?.count().await?;
    ensure!(written as u64 == groups, "DataFusion finds {written} groups, the platform {groups}");
    Ok(())
}

async fn table_at(merged: &Path) -> Result<SessionContext> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    let path = merged.display().to_string();
    context.register_parquet("merged", &path, ParquetReadOptions::default()).await?;
    Ok(context)
}
