//! Publishing records over HTTP.

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use watershed_shared::log::{ProduceError, ProduceRecord, Producer};
use watershed_shared::offsets::OffsetVector;

/// What the log made of records that were published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// Records that the log has.
    pub accepted: u64,
    /// Per partition the offset behind the last of them.
    pub next: OffsetVector,
    /// Records that it does not have, in the order of the request.
    pub failed: Vec<ProduceError>,
}

/// The log does not take records now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the log does not take records. stream=`{stream}`, reason=`{reason}`")]
pub struct IngestError {
    pub stream: String,
    pub reason: String,
}

/// Publishes records of a stream.
///
/// # Contract
/// When `publish` answers, the log has acknowledged (`acks=all`) each record that is not in `failed`.
#[async_trait]
pub trait Ingest: Send + Sync + fmt::Debug {
    /// `records`: one value each, published as they are, without a key.
    async fn publish(&self, stream: &str, records: Vec<Bytes>) -> Result<Published, IngestError>;

    /// The greatest record that is handed on; a topic may take less.
    fn max_record_bytes(&self) -> usize;
}

/// Publishes through the log's producer, into the topics of the streams.
#[derive(Debug, Clone)]
pub struct LogIngest {
    producer: Producer,
    topics: BTreeMap<String, String>,
}

impl LogIngest {
    /// `topics`: by stream.
    pub fn new(producer: Producer, topics: BTreeMap<String, String>) -> Self {
        Self { producer, topics }
    }
}

#[async_trait]
impl Ingest for LogIngest {
    async fn publish(&self, stream: &str, records: Vec<Bytes>) -> Result<Published, IngestError> {
        let fail = |reason: String| IngestError { stream: stream.to_owned(), reason };
        let topic = self.topics.get(stream).ok_or_else(|| fail("it is not a stream of this process".to_owned()))?;
        let records = records.into_iter().map(|value| ProduceRecord { value: Some(value), ..ProduceRecord::default() });
        let report = self.producer.produce(topic, records.collect()).await.map_err(|e| fail(e.to_string()))?;
        Ok(Published {
            accepted: report.delivered,
            next: report.partitions.iter().map(|(partition, produced)| (*partition, produced.next)).collect(),
            failed: report.errors,
        })
    }

    fn max_record_bytes(&self) -> usize {
        self.producer.max_record_bytes()
    }
}
