//! From a record that the log has acknowledged to an answer that covers it.

use std::time::Duration;

use anyhow::{Result, ensure};
use rdkafka::producer::FutureRecord;
use watershed_shared::clock::{self, Instant};

use crate::events::{BY_MINUTE, Shape};
use crate::load::Load;
use crate::platform::{Archive, Platform, Setup};
use crate::report::{Row, table};
use crate::stats::{Latencies, Samples};
use crate::{Bench, Outcome};

const PARTITIONS: i32 = 4;
/// Between two probes.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// The group that is asked for; there are events of it all the time.
const FILTER: &str = "minute = '2024-10-06T00:30:00Z' AND type = 'type-03'";

pub(crate) async fn run(bench: &Bench) -> Result<Outcome> {
    let seconds = bench.size(10, 2);
    let (mut rates, mut p50, mut p99, mut worst) = <(Samples, Samples, Samples, Samples)>::default();
    for run in 0..bench.runs {
        let topic = bench.kafka.create_topic("latency", PARTITIONS).await?;
        let setup = Setup {
            bootstrap_servers: Some(bench.kafka.bootstrap_servers.clone()),
            topic: topic.name.clone(),
            partitions: PARTITIONS,
            views: vec![("by_minute", BY_MINUTE)],
            archive: Archive::On,
        };
        let platform = Platform::start(&bench.program, &setup).await?;
        let highest = highest_rate(bench, &platform, &topic.name, seconds).await?;
        let ends = topic.ends()?;
        platform.archived(&ends).await?;
        platform.query("SELECT sum(events) AS n FROM by_minute", &ends).await?;
        let load = Load::start(&bench.kafka, &topic.name, PARTITIONS, Shape::default(), Some(highest / 2))?;
        clock::sleep(Duration::from_secs(2)).await;
        let latencies = probe(bench, &platform, &topic.name, seconds).await?;
        load.stop()?;
        rates.push(highest as f64 / 2e6);
        p50.push(latencies.percentile_ms(50.0));
        p99.push(latencies.percentile_ms(99.0));
        worst.push(latencies.percentile_ms(100.0));
        bench.progress("latency", run, &format!("{rates} M/s: p50 {p50} ms, p99 {p99} ms"));
    }
    let rows = [Row {
        aim: "p99 < 50 ms".to_owned(),
        ..Row::new(
            format!("acknowledged → an answer that covers it, at {rates} M/s"),
            format!("p50 {p50} ms, p99 {p99} ms, worst {worst} ms"),
        )
    }];
    let about = "The rate is half of what the platform reads while the producer, on the same cores, sends as fast as it \
         can; a separate connection publishes a record each 20 ms, waits for its acknowledgement, then asks with `wait_for`.";
    Ok(Outcome { name: "latency", text: table(about, &rows) })
}

/// Events a second that the platform reads while a producer on the same machine sends as many as it can.
async fn highest_rate(bench: &Bench, platform: &Platform, topic: &str, seconds: u64) -> Result<u64> {
    // A quick run must not leave much to be read.
    let cap = bench.quick.then_some(5_000);
    let load = Load::start(&bench.kafka, topic, PARTITIONS, Shape::default(), cap)?;
    let mut before = 0;
    let patience = Instant::now() + Duration::from_secs(60);
    while before == 0 {
        ensure!(Instant::now() < patience, "the platform reads nothing of topic {topic}");
        clock::sleep(Duration::from_millis(200)).await;
        before = platform.position().await?.values().sum();
    }
    let started = Instant::now();
    clock::sleep(Duration::from_secs(seconds)).await;
    let after: i64 = platform.position().await?.values().sum();
    let read = u64::try_from(after - before)? as f64 / started.elapsed().as_secs_f64();
    load.stop()?;
    ensure!(read > 0.0, "the platform stands still at {after} records");
    Ok(read as u64)
}

async fn probe(bench: &Bench, platform: &Platform, topic: &str, seconds: u64) -> Result<Latencies> {
    let producer = bench.kafka.probe_producer()?;
    let client = platform.client();
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut latencies = Latencies::default();
    let (mut value, mut number) = (String::new(), 0);
    while Instant::now() < until {
        Shape::default().write(500_000 + number, 1_000_000, &mut value);
        let partition = i32::try_from(number)? % PARTITIONS;
        let record = FutureRecord::<(), String>::to(topic).partition(partition).payload(&value);
        let sent = producer.send(record, Duration::from_secs(10)).await.map_err(|(error, _)| error)?;
        let acknowledged = Instant::now();
        let wait_for = format!("{{\"{}\":{}}}", sent.partition, sent.offset + 1);
        client.text("by_minute", &[("where", FILTER), ("wait_for", &wait_for)]).await?;
        latencies.push(acknowledged.elapsed());
        number += 1;
        clock::sleep(PROBE_INTERVAL).await;
    }
    Ok(latencies)
}
