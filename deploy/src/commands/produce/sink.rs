//! Where records go: to the log itself, or over HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use watershed_shared::clock;
use watershed_shared::config::{Config, StreamConfig};
use watershed_shared::log::{BrokerFile, LogClient, ProduceRecord, Producer};

use super::source::Record;
use super::{LineError, Offsets};
use crate::cli::PlatformArgs;
use crate::client::{Answered, Client};
use crate::failure::{Failure, Outcome};
use crate::table::Json;

/// How long a platform that has its hands full is asked again, and how often.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

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
    let (body, started) = (Bytes::from(body), clock::Instant::now());
    let answer = loop {
        let answer = client.post_records(&["v1", "streams", stream], body.clone()).await;
        match &answer {
            // Nothing of it was published.
            Err(Failure::Failed(error))
                if error.downcast_ref().is_some_and(|Answered { code, .. }| code == "too_many_requests")
                    && started.elapsed() < PATIENCE =>
            {
                clock::sleep(PAUSE).await;
            }
            _ => break answer,
        }
    };
    match answer.and_then(|answer| answer.json()) {
        Ok(answer) => told(&lines, &answer, "the platform has not accepted it"),
        Err(Failure::Failed(error)) => match error.downcast_ref() {
            Some(answered @ Answered { document, .. }) => told(&lines, document, &answered.to_string()),
            None => all_failed(&lines, &format!("{error:#}")),
        },
        Err(other) => all_failed(&lines, &format!("{other:?}")),
    }
}

/// What the platform's answer, be it an error, says of the records that begin on `lines`: each was a line of the request.
/// Of those that it has not accepted and does not list, `reason` is all that is known.
fn told(lines: &[u64], answer: &Json, reason: &str) -> Sent {
    let mut sent = Sent::default();
    if let Some(Json::Object(offsets)) = answer.get("offsets") {
        for (partition, next) in offsets {
            if let (Ok(partition), Some(next)) = (partition.parse(), next.number()) {
                let next = i64::try_from(next).unwrap_or(i64::MAX);
                sent.partitions.insert(partition, Offsets { first: None, next });
            }
        }
    }
    let listed = answer.get("errors").and_then(Json::list).unwrap_or_default().iter().filter_map(|error| {
        let place = usize::try_from(error.get("line")?.number()?).ok()?.checked_sub(1)?;
        Some(LineError { line: *lines.get(place)?, error: error.get("error")?.text()?.to_owned() })
    });
    sent.errors.extend(listed.take(lines.len()));
    let accepted = answer.get("accepted").and_then(Json::number).unwrap_or(0);
    let accepted = usize::try_from(accepted).unwrap_or(usize::MAX).min(lines.len() - sent.errors.len());
    sent.delivered = accepted as u64;
    let unlisted = lines.len() - sent.errors.len() - accepted;
    match accepted {
        0 => {
            let known: BTreeSet<u64> = sent.errors.iter().map(|error| error.line).collect();
            sent.errors.extend(failed(lines.iter().filter(|line| !known.contains(line)), reason));
        }
        // Which of them it is, is not said.
        _ => sent
            .errors
            .extend(failed(std::iter::repeat_n(&lines[0], unlisted), &format!("from this line on: {reason}"))),
    }
    sent
}

fn all_failed(lines: &[u64], error: &str) -> Sent {
    Sent { errors: failed(lines.iter(), error).collect(), ..Sent::default() }
}

fn failed<'a>(lines: impl Iterator<Item = &'a u64>, error: &str) -> impl Iterator<Item = LineError> {
    lines.map(|line| LineError { line: *line, error: error.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answer: &str, delivered: u64, next: Option<i64>, errors: &[(u64, &str)]) {
        let sent = told(&[1, 3, 4], &serde_json::from_str(answer).unwrap(), "no");
        assert_eq!(sent.delivered, delivered, "{answer}");
        assert_eq!(sent.partitions.get(&0).map(|offsets| offsets.next), next, "{answer}");
        let found: Vec<_> = sent.errors.iter().map(|error| (error.line, error.error.as_str())).collect();
        assert_eq!(found, errors, "{answer}");
    }

    #[test]
    fn every_record_is_delivered_or_has_an_error_on_its_line() {
        check(r#"{"accepted": 3, "offsets": {"0": 7}}"#, 3, Some(7), &[]);
        let error = r#""error": {"code": "too_large", "message": "line 2"}"#;
        let partly = r#""accepted": 2, "offsets": {"0": 6}, "errors": [{"line": 2, "error": "large"}]"#;
        check(&format!("{{{error}, {partly}}}"), 2, Some(6), &[(3, "large")]);
        check(&format!("{{{error}}}"), 0, None, &[(1, "no"), (3, "no"), (4, "no")]);
        let listed = r#""accepted": 0, "errors": [{"line": 3, "error": "large"}, {"line": 9, "error": "none"}]"#;
        check(&format!("{{{error}, {listed}}}"), 0, None, &[(4, "large"), (1, "no"), (3, "no")]);
        check(r#"{"accepted": 2, "offsets": {}}"#, 2, None, &[(1, "from this line on: no")]);
    }
}
