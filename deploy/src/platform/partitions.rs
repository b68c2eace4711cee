//! The partitions of a stream's topic, with the log's start of the moment in which each was first seen.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use watershed_shared::catalog::{Rejected, StreamEvent, StreamState};
use watershed_shared::clock;
use watershed_shared::config::StreamConfig;
use watershed_shared::log::LogClient;
use watershed_shared::offsets::OffsetVector;
use watershed_shared::register::Register;

/// How often a topic is looked at for new partitions.
const PARTITIONS_INTERVAL: Duration = Duration::from_secs(10);

/// Records partitions that are seen for the first time, with the log's start of this moment. Answers all origins.
pub(super) async fn see_partitions(
    client: &LogClient,
    config: &StreamConfig,
    register: &Register<StreamState>,
) -> Result<OffsetVector> {
    let topic = client.topic(&config.topic).await?;
    let lows: OffsetVector =
        client.watermarks(&config.topic).await?.into_iter().map(|(p, (low, _))| (p, low)).collect();
    let decided = register
        .update(|state: &StreamState| {
            let event = StreamEvent::Seen {
                topic: config.topic.clone(),
                topic_id: topic.topic_id.clone(),
                origins: lows.clone(),
            };
            let next = state.apply(&event)?;
            Ok::<_, Rejected>((next != *state).then_some(event))
        })
        .await
        .with_context(|| format!("record the origins of stream `{}`", config.name))?;
    let origins = decided.record().map(|r| r.state.origins.clone());
    origins.context("a stream whose topic has partitions has a record of them")
}

/// Looks for new partitions until `stop`.
pub(super) async fn follow_partitions(
    client: LogClient,
    config: StreamConfig,
    register: Register<StreamState>,
    origins: watch::Sender<OffsetVector>,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(clock::sleep(PARTITIONS_INTERVAL)).await.is_some() {
        match see_partitions(&client, &config, &register).await {
            Ok(seen) => {
                origins.send_if_modified(|known| {
                    let more = *known != seen;
                    *known = seen;
                    more
                });
            }
            Err(error) => warn!(stream = %config.name, error = format!("{error:#}"), "cannot look for new partitions"),
        }
    }
}
