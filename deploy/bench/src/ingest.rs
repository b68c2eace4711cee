//! From a full log to an answer that covers all of it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use watershed_shared::clock::Instant;

use crate::baseline::{self, Consumed};
use crate::events::{BY_MINUTE, Shape};
use crate::kafka::Topic;
use crate::platform::{Archive, Platform, Setup};
use crate::report::{Row, table};
use crate::stats::Samples;
use crate::{Bench, Outcome};

const PARTITIONS: i32 = 4;

/// What reading the log to its end took the platform.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CaughtUp {
    pub(crate) events_per_second: f64,
    pub(crate) cpu_seconds_per_million: f64,
    /// `None` of a baseline, which runs in this process.
    pub(crate) peak_mib: Option<f64>,
}

/// Samples of one way to read.
#[derive(Debug, Default)]
struct Series {
    rate: Samples,
    cpu: Samples,
    peak: Samples,
}

impl Series {
    fn push(&mut self, run: CaughtUp) {
        self.rate.push(run.events_per_second / 1e6);
        self.cpu.push(run.cpu_seconds_per_million);
        if let Some(peak) = run.peak_mib {
            self.peak.push(peak);
        }
    }

    fn row(&self, what: &str, baseline: &Self, aim: &str) -> Row {
        Row {
            baseline: format!("{} M/s", baseline.rate),
            ratio: self.rate.ratio(&baseline.rate).to_string(),
            aim: aim.to_owned(),
            ..self.alone(what)
        }
    }

    fn alone(&self, what: &str) -> Row {
        Row {
            cpu_seconds: self.cpu.to_string(),
            memory: if self.peak.is_empty() { "–".to_owned() } else { format!("{} at most", self.peak) },
            ..Row::new(what, format!("{} M/s", self.rate))
        }
    }
}

/// Log → queryable, without and with the archiver, against librdkafka and `arrow-json` alone.
pub(crate) async fn run(bench: &Bench) -> Result<Outcome> {
    let count = bench.size(10_000_000, 40_000);
    let topic = filled(bench, "ingest", Shape::default(), count).await?;
    let ends = topic.expect_records(count)?;
    let (mut alone, mut held, mut archived) = (Series::default(), Series::default(), Series::default());
    for run in 0..bench.runs {
        alone.push(baseline_run(bench, &topic, &ends, count).await?);
        held.push(catch_up(bench, &topic, &ends, count, Archive::Held).await?);
        archived.push(catch_up(bench, &topic, &ends, count, Archive::On).await?);
        bench.progress("ingest", run, &format!("{} | {} | {}", alone.rate, held.rate, archived.rate));
    }
    let about = format!(
        "{count} records of {} bytes in {PARTITIONS} partitions, view by minute and type (1,200 groups).",
        crate::events::RECORD_BYTES
    );
    let rows = [
        alone.alone("librdkafka + arrow-json alone"),
        held.row("log → queryable, archiver holds what it reads", &alone, "≥ 0.8"),
        archived.row("log → queryable, archiver on", &alone, "≥ 0.5"),
    ];
    Ok(Outcome { name: "ingest", text: table(&about, &rows) })
}

/// The same with records that cannot be decoded, against the same without.
pub(crate) async fn undecodable(bench: &Bench) -> Result<Outcome> {
    let count = bench.size(5_000_000, 20_000);
    let mut topics = Vec::new();
    for percent in [0, 1, 50] {
        let shape = Shape { undecodable_percent: percent, ..Shape::default() };
        let topic = filled(bench, "undecodable", shape, count).await?;
        let ends = topic.expect_records(count)?;
        topics.push((topic, ends, shape.decodable(count), Series::default()));
    }
    for run in 0..bench.runs {
        for (topic, ends, decodable, series) in &mut topics {
            series.push(catch_up_of(bench, topic, ends, count, *decodable, Archive::On).await?);
        }
        let rates: Vec<String> = topics.iter().map(|(.., s)| s.rate.to_string()).collect();
        bench.progress("undecodable", run, &rates.join(" | "));
    }
    let none = &topics[0].3;
    let rows = [
        none.alone("log → queryable, archiver on, all decodable"),
        topics[1].3.row("the same, 1 % undecodable", none, "≥ 0.9"),
        topics[2].3.row("the same, 50 % undecodable", none, "≥ 0.3"),
    ];
    let about = format!("{count} records; those that cannot be decoded break off at the fourth of five fields.");
    Ok(Outcome { name: "undecodable", text: table(&about, &rows) })
}

/// The platform with its own broker: published and read at the same time, by the same process.
pub(crate) async fn embedded(bench: &Bench) -> Result<Outcome> {
    let count = bench.size(500_000, 20_000);
    let mut series = Series::default();
    for run in 0..bench.runs {
        let setup = setup(None, "events".to_owned(), Archive::On);
        let platform = Platform::start(&bench.program, &setup).await?;
        let kafka = crate::kafka::Kafka { bootstrap_servers: platform.embedded_broker()? };
        let topic = Topic::existing(kafka, "events", PARTITIONS);
        let (cpu, started) = (platform.cpu_seconds()?, Instant::now());
        let ends = tokio::task::spawn_blocking(move || {
            topic.fill(Shape::default(), count)?;
            topic.expect_records(count)
        });
        let ends = ends.await??;
        covering(&platform, &ends, count).await?;
        let seconds = started.elapsed().as_secs_f64();
        series.push(CaughtUp {
            events_per_second: count as f64 / seconds,
            cpu_seconds_per_million: (platform.cpu_seconds()? - cpu) / (count as f64 / 1e6),
            peak_mib: Some(platform.memory()?.peak_mib),
        });
        bench.progress("embedded", run, &series.rate.to_string());
    }
    let about = format!("{count} records published to the embedded broker and read from it at the same time.");
    let rows = [series.alone("published → queryable, embedded broker, archiver on")];
    Ok(Outcome { name: "embedded", text: table(&about, &rows) })
}

async fn filled(bench: &Bench, name: &str, shape: Shape, count: u64) -> Result<Topic> {
    let topic = bench.kafka.create_topic(name, PARTITIONS).await?;
    tokio::task::spawn_blocking(move || topic.fill(shape, count).map(|()| topic)).await?
}

fn setup(bootstrap_servers: Option<String>, topic: String, archive: Archive) -> Setup {
    Setup { bootstrap_servers, topic, partitions: PARTITIONS, views: vec![("by_minute", BY_MINUTE)], archive }
}

async fn baseline_run(bench: &Bench, topic: &Topic, ends: &BTreeMap<i32, i64>, count: u64) -> Result<CaughtUp> {
    let (servers, name, ends) = (bench.kafka.bootstrap_servers.clone(), topic.name.clone(), ends.clone());
    let consumed = tokio::task::spawn_blocking(move || baseline::consume_and_decode(&servers, &name, &ends)).await??;
    let Consumed { took, cpu_seconds } = consumed;
    Ok(CaughtUp {
        events_per_second: count as f64 / took.as_secs_f64(),
        cpu_seconds_per_million: cpu_seconds / (count as f64 / 1e6),
        peak_mib: None,
    })
}

async fn catch_up(
    bench: &Bench,
    topic: &Topic,
    ends: &BTreeMap<i32, i64>,
    count: u64,
    archive: Archive,
) -> Result<CaughtUp> {
    catch_up_of(bench, topic, ends, count, count, archive).await
}

/// Starts a platform on a full log and waits for an answer that covers it.
///
/// The whole of it counts, from the start of the process on: what it reads ahead before it answers is work, too. With
/// the archiver on the CPU-seconds are those until everything is archived.
async fn catch_up_of(
    bench: &Bench,
    topic: &Topic,
    ends: &BTreeMap<i32, i64>,
    count: u64,
    decodable: u64,
    archive: Archive,
) -> Result<CaughtUp> {
    let servers = Some(bench.kafka.bootstrap_servers.clone());
    let started = Instant::now();
    let platform = Platform::start(&bench.program, &setup(servers, topic.name.clone(), archive)).await?;
    covering(&platform, ends, decodable).await?;
    let seconds = started.elapsed().as_secs_f64();
    if archive == Archive::On {
        platform.archived(ends).await?;
    }
    Ok(CaughtUp {
        events_per_second: count as f64 / seconds,
        cpu_seconds_per_million: platform.cpu_seconds()? / (count as f64 / 1e6),
        peak_mib: Some(platform.memory()?.peak_mib),
    })
}

/// Asks for an answer at or past `ends`, and checks it.
async fn covering(platform: &Platform, ends: &BTreeMap<i32, i64>, events: u64) -> Result<()> {
    let answer = platform.query("SELECT sum(events) AS n FROM by_minute", ends).await?;
    let counted = answer["rows"][0]["n"].as_u64().with_context(|| format!("a count in {answer}"))?;
    ensure!(counted == events, "the answer counts {counted} events, not {events}");
    Ok(())
}
