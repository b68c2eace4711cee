//! Where records go: to the log itself, or over HTTP.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use watershed_shared::config::{Config, StreamConfig};
use watershed_shared::log::{BrokerFile, LogClient, ProduceRecord, Producer};

use super::source::Record;
use super::{LineError, Offsets};
use crate::cli::PlatformArgs;
use crate::client::Client;
use crate::failure::Outcome;
use crate::table::Json;

/// Takes batches of records.
#[derive(Debug)]
pub(super) enum Sink {
    Log { producer: Producer, topic: String },
    Http { client: Client, stream: String },
}

/// The outcome of a batch, complete: what is delivered and what has an error are all its records.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) delivered: u64,
    pub(super) partitions: BTreeMap<i32, Offsets>,
    pub(super) errors: Vec<LineError>,
}

impl Sink {
    /// The topic is created as the stream declares it, unless it is there.
    pub(super) async fn to_the_log(config: &Config, stream: &StreamConfig) -> Outcome<Self> {
        let client = match &config.kafka {
            Some(kafka) => LogClient::new(kafka)?,
            None => {
                let file = BrokerFile::path(&config.data_dir);
                let found = BrokerFile::read(&config.data_dir).with_context(|| format!("read {}", file.display()))?;
                let broker = found.ok_or_else(|| {
                    anyhow!(
                        "the embedded broker of {} does not run: {} is not there; start the platform with `watershed up`",
                        config.data_dir.display(),
                        file.display()
                    )
                })?;
                LogClient::connect(&broker.bootstrap_servers)?
            }
        };
        let hint = match config.kafka {
            Some(_) => "is the cluster of [kafka] there?",
            None => "is the platform still running? start it with `watershed up`",
        };
        client
            .ensure_topic(stream)
            .await
            .with_context(|| format!("cannot reach the log at {}; {hint}", client.bootstrap_servers()))?;
        Ok(Self::Log { producer: Producer::new(&client)?, topic: stream.topic.clone() })
    }

    pub(super) fn over_http(platform: &PlatformArgs, stream: &str) -> Outcome<Self> {
        Ok(Self::Http { client: Client::new(platform)?, stream: stream.to_owned() })
    }

    /// Waits until each record is acknowledged or has failed.
    pub(super) async fn send(&self, batch: Vec<Record>) -> Sent {
        match self {
            Self::Log { producer, topic } => to_the_log(producer, topic, batch).await,
            Self::Http { client, stream } => over_http(client, stream, batch).await,
        }
    }
}

async fn to_the_log(producer: &Producer, topic: &str, batch: Vec<Record>) -> Sent {
    let lines: Vec<u64> = batch.iter().map(|record| record.line).collect();
    // They count as memory until they are acknowledged.
    let (records, _memory): (Vec<_>, Vec<_>) = batch
        .into_iter()
        .map(|record| {
            let Record { key, value, memory, .. } = record;
            let record = ProduceRecord {
                key: key.map(Bytes::from),
                value: Some(Bytes::from(value)),
                ..ProduceRecord::default()
            };
            (record, memory)
        })
        .unzip();
    match producer.produce(topic, records).await {
        Err(error) => all_failed(&lines, &format!("{:#}", anyhow::Error::from(error))),
        Ok(report) => Sent {
            delivered: report.delivered,
            partitions: report
                .partitions
                .into_iter()
                .map(|(partition, offsets)| {
                    (partition.0, Offsets { first: Some(offsets.first.0), next: offsets.next.0 })
                })
                .collect(),
            errors: report
                .errors
                .into_iter()
                .map(|error| LineError { line: lines[error.index], error: error.message })
                .collect(),
        },
    }
}

async fn over_http(client: &Client, stream: &str, batch: Vec<Record>) -> Sent {
    let lines: Vec<u64> = batch.iter().map(|record| record.line).collect();
    let mut body = Vec::new();
    for record in &batch {
        body.extend_from_slice(&record.value);
        body.push(b'\n');
    }
    let answer = client.post_records(&["v1", "streams", stream], body).await;
    let json = match answer.and_then(|answer| answer.json()) {
        Ok(json) => json,
        Err(crate::failure::Failure::Failed(error)) => return all_failed(&lines, &format!("{error:#}")),
        Err(other) => return all_failed(&lines, &format!("{other:?}")),
    };
    let accepted = json.get("accepted").and_then(Json::number).unwrap_or(0).min(lines.len() as u64);
    let mut sent = Sent { delivered: accepted, ..Sent::default() };
    if let Some(Json::Object(offsets)) = json.get("offsets") {
        for (partition, next) in offsets {
            if let (Ok(partition), Some(next)) = (partition.parse(), next.number()) {
                let next = i64::try_from(next).unwrap_or(i64::MAX);
                sent.partitions.insert(partition, Offsets { first: None, next });
            }
        }
    }
    let missing = lines.len() as u64 - accepted;
    let last = lines.last().copied().unwrap_or_default();
    for _ in 0..missing {
        let error = format!("one of the records up to line {last} was not accepted");
        sent.errors.push(LineError { line: lines[0], error });
    }
    sent
}

fn all_failed(lines: &[u64], error: &str) -> Sent {
    let errors = lines.iter().map(|line| LineError { line: *line, error: error.to_owned() }).collect();
    Sent { errors, ..Sent::default() }
}
