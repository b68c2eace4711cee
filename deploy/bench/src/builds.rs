//! Rebuild and refresh, beside other engines over the same Parquet files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use watershed_shared::clock::Instant;

use crate::events::{BY_MINUTE, BY_USER, Shape};
use crate::platform::{Archive, BUILD_THREADS, Platform, Setup};
use crate::report::{Row, table};
use crate::stats::Samples;
use crate::{Bench, Outcome};

const PARTITIONS: i32 = 4;

/// A rebuild of the view by minute, and refreshes of the view by user, over one master dataset.
pub(crate) async fn run(bench: &Bench) -> Result<Outcome> {
    let count = bench.size(20_000_000, 40_000);
    let new = count / 100;
    let topic = bench.kafka.create_topic("builds", PARTITIONS).await?;
    let shape = Shape::default();
    let topic = tokio::task::spawn_blocking(move || topic.fill(shape, count).map(|()| topic)).await??;
    let setup = Setup {
        bootstrap_servers: Some(bench.kafka.bootstrap_servers.clone()),
        topic: topic.name.clone(),
        partitions: PARTITIONS,
        views: vec![("by_minute", BY_MINUTE), ("by_user", BY_USER)],
        archive: Archive::On,
    };
    let platform = Platform::start(&bench.program, &setup).await?;
    platform.archived(&topic.expect_records(count)?).await?;

    let (mut ours, mut cpu, mut datafusion, mut duckdb) = <(Samples, Samples, Samples, Samples)>::default();
    for run in 0..bench.runs {
        let before = platform.cpu_seconds()?;
        push(&mut ours, platform.build("by_minute", "rebuild").await?);
        cpu.push((platform.cpu_seconds()? - before) / (count as f64 / 1e6));
        let files = platform.master_files()?;
        push(&mut datafusion, in_datafusion(&files, count).await?);
        if let Some(python) = &bench.python {
            push(&mut duckdb, in_duckdb(python, &files, count)?);
        }
        bench.progress("builds: rebuild", run, &format!("{ours} s | {datafusion} s | {duckdb} s"));
    }

    let (mut whole, mut refreshed) = <(Samples, Samples)>::default();
    let mut have = count;
    platform.build("by_user", "rebuild").await?;
    let mut topic = topic;
    for run in 0..bench.runs {
        topic = tokio::task::spawn_blocking(move || topic.fill(shape, new).map(|()| topic)).await??;
        have += new;
        let ends = topic.expect_records(have)?;
        platform.archived(&ends).await?;
        push(&mut refreshed, platform.build("by_user", "refresh").await?);
        push(&mut whole, platform.build("by_user", "rebuild").await?);
        check(&platform, &ends, have).await?;
        bench.progress("builds: refresh", run, &format!("{refreshed} s of {whole} s"));
    }

    let million = count as f64 / 1e6;
    let rebuild = Row {
        cpu_seconds: cpu.to_string(),
        memory: format!("{:.0} at most", platform.memory()?.peak_mib),
        ..Row::new(format!("rebuild by minute, {million} M rows"), format!("{ours} s"))
    };
    let against = |name: &str, baseline: &Samples, aim: &str| Row {
        baseline: format!("{name} {baseline} s"),
        // Of speeds: more is better.
        ratio: if baseline.is_empty() { "–".to_owned() } else { baseline.ratio(&ours).to_string() },
        aim: aim.to_owned(),
        ..rebuild.clone()
    };
    let rows = [
        against("plain DataFusion, same files", &datafusion, "≥ 1.0"),
        against("DuckDB, same files", &duckdb, "report"),
        Row {
            baseline: format!("rebuild {whole} s"),
            ratio: refreshed.ratio(&whole).to_string(),
            aim: "≤ 0.05 of its time".to_owned(),
            ..Row::new(format!("refresh by user (of 1 M), {million} M old rows, 1 % new"), format!("{refreshed} s"))
        },
    ];
    let about = format!("All engines with {BUILD_THREADS} threads, over the Parquet files that the archiver wrote.");
    Ok(Outcome { name: "builds", text: table(&about, &rows) })
}

fn push(samples: &mut Samples, took: Duration) {
    samples.push(took.as_secs_f64());
}

async fn check(platform: &Platform, ends: &BTreeMap<i32, i64>, events: u64) -> Result<()> {
    let answer = platform.query("SELECT sum(events) AS n FROM by_user", ends).await?;
    ensure!(answer["rows"][0]["n"] == events, "not {events} events in {}", answer["rows"]);
    Ok(())
}

/// The view's SQL in plain DataFusion with its own defaults; the plan is part of it, as it is of a build.
async fn in_datafusion(files: &[PathBuf], events: u64) -> Result<Duration> {
    let started = Instant::now();
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(BUILD_THREADS));
    register_events(&context, files).await?;
    let batches = context.sql(BY_MINUTE).await?.collect().await?;
    let took = started.elapsed();
    let counted: i64 = batches
        .iter()
        .map(|batch| {
            let column = batch.column_by_name("events").expect("the view has it");
            let counts = arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(column);
            counts.values().iter().sum::<i64>()
        })
        .sum();
    ensure!(counted == i64::try_from(events)?, "DataFusion counts {counted} events, not {events}");
    Ok(took)
}

/// Lets `context` read the files of a master dataset as the table `events`.
pub(crate) async fn register_events(context: &SessionContext, files: &[PathBuf]) -> Result<()> {
    let paths: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let events = context.read_parquet(paths, ParquetReadOptions::default()).await?;
    context.register_table("events", events.into_view())?;
    Ok(())
}

/// The same aggregates in DuckDB; the time of the query alone.
fn in_duckdb(python: &Path, files: &[PathBuf], events: u64) -> Result<Duration> {
    const SCRIPT: &str = "
import duckdb, sys, time
files, threads = sys.argv[2:], int(sys.argv[1])
db = duckdb.connect()
db.execute(f'SET threads = {threads}')
started = time.perf_counter()
rows = db.execute('''SELECT epoch_us(ts) // 60000000 AS minute, type, count(*), sum(amount), avg(amount), min(amount),
    max(amount), approx_count_distinct(user_id) FROM read_parquet(?) GROUP BY 1, 2''', [files]).fetchall()
print(time.perf_counter() - started, sum(row[2] for row in rows))
";
    let mut command = Command::new(python);
    let output = command.args(["-c", SCRIPT, &BUILD_THREADS.to_string()]).args(files).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let failed = || format!("DuckDB: {text}{}", String::from_utf8_lossy(&output.stderr));
    let (seconds, counted) = text.trim().split_once(' ').with_context(failed)?;
    ensure!(counted == events.to_string(), "DuckDB counts {counted} events, not {events}");
    Ok(Duration::from_secs_f64(seconds.parse().with_context(failed)?))
}
