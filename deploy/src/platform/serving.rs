//! The serving layer, with what it asks of the others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::Bytes;
use watershed_serving_layer::{
    Ingest, IngestError, Published, Serving, ServingInput, Settings, StreamInput, ViewInput, serve,
};
use watershed_shared::catalog::Definition;
use watershed_shared::definitions::Definitions;
use watershed_shared::log::{ProduceRecord, Producer};
use watershed_shared::task;
use watershed_shared::view::{CompiledView, DimensionTable};

use super::Parts;
use super::stages::Stage;
use super::stream::Stream;
use super::view::View;
use crate::builds::LocalBuilds;

pub(super) async fn start_serving(
    parts: &Parts<'_>,
    builds: LocalBuilds,
    tables: BTreeMap<String, DimensionTable>,
    streams: BTreeMap<String, Stream>,
    views: BTreeMap<String, View>,
    stage: &mut Stage,
) -> Result<SocketAddr> {
    let topics = streams.values().map(|s| (s.config.name.clone(), s.config.topic.clone())).collect();
    let ingest = LogIngest { producer: Producer::new(&parts.client)?, topics };
    let stream_inputs = streams.into_iter().map(|(name, s)| {
        let input = StreamInput {
            config: s.config,
            delta: s.delta,
            master: s.master,
            register: s.register,
            state: s.state,
            archiver: s.archive.state(),
            archived_until: s.archive.archived_until(),
            log: s.log,
        };
        (name, input)
    });
    let view_inputs =
        views.into_iter().map(|(name, v)| (name, ViewInput { config: v.config, stream: v.stream, register: v.state }));
    let serving = Serving::new(ServingInput {
        storage: parts.storage.clone(),
        streams: stream_inputs.collect(),
        views: view_inputs.collect(),
        tables,
        definitions: Arc::new(RecordedDefinitions(parts.definitions.clone())),
        builds: Arc::new(builds),
        ingest: Arc::new(ingest),
        metrics: Vec::new(),
        settings: Settings::default(),
    })
    .context("start the serving layer")?;
    let following = serving.clone();
    let stop = stage.stop.clone();
    stage.tasks.push(task::spawn("serving", async move { following.run(stop).await }));
    let listen = parts.config.http.listen;
    let (address, server) = serve(serving, listen, stage.stop.clone()).await.with_context(|| {
        format!("cannot listen on {listen} for HTTP: stop the other program or set another `listen` under [http]")
    })?;
    stage.tasks.push(task::spawn("http", server));
    Ok(address)
}

/// Definitions as the registers recorded them.
#[derive(Debug)]
struct RecordedDefinitions(Definitions);

#[async_trait]
impl watershed_serving_layer::Definitions for RecordedDefinitions {
    async fn compiled(&self, _view: &str, definition: &Definition) -> Result<Arc<CompiledView>, String> {
        self.0.get(definition).await.map_err(|e| e.to_string())
    }
}

/// Publishes to the log.
#[derive(Debug)]
struct LogIngest {
    producer: Producer,
    /// By stream.
    topics: BTreeMap<String, String>,
}

#[async_trait]
impl Ingest for LogIngest {
    async fn publish(&self, stream: &str, records: Vec<Bytes>) -> Result<Published, IngestError> {
        let refused = |reason: String| IngestError { stream: stream.to_owned(), reason };
        let topic = self.topics.get(stream).ok_or_else(|| refused("the stream is not configured".to_owned()))?;
        let records = records.into_iter().map(|value| ProduceRecord { value: Some(value), ..ProduceRecord::default() });
        let report = self.producer.produce(topic, records.collect()).await.map_err(|e| refused(e.to_string()))?;
        Ok(Published {
            accepted: report.delivered,
            next: report.partitions.iter().map(|(p, produced)| (*p, produced.next)).collect(),
            failed: report.errors.into_iter().map(|e| (e.index, e.message)).collect(),
        })
    }
}
