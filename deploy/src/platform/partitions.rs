//! The partitions of a stream's topic, with the log's start of the moment in which each was first seen.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use watershed_serving_layer::{LogStatus, Unreachable};
use watershed_shared::catalog::{Rejected, StreamEvent, StreamState};
use watershed_shared::clock;
use watershed_shared::config::StreamConfig;
use watershed_shared::log::{self, LogClient};
use watershed_shared::offsets::OffsetVector;
use watershed_shared::register::Register;

/// How often a topic is looked at for new partitions, and for what it has dropped.
const PARTITIONS_INTERVAL: Duration = Duration::from_secs(10);

/// A topic as it was seen, or as the stream's register has it.
#[derive(Debug)]
pub(super) struct Seen {
    /// The one that the stream was declared with.
    pub(super) topic_id: Option<String>,
    pub(super) origins: OffsetVector,
    /// The log's start of now; empty if the topic is not there.
    pub(super) starts: OffsetVector,
    /// The log's end of now; empty if the topic is not there.
    pub(super) ends: OffsetVector,
}

/// Looks at the topic, and creates it for a stream that has not seen it yet.
///
/// A topic that is gone, another one by now, or denied to the user stops its stream but not the others: the answers say
/// so, and the register says where the stream stands. A stream that has never seen its topic has nothing to stand on.
///
/// # Errors
/// If the cluster does not answer, or refuses.
pub(super) async fn open_topic(
    client: &LogClient,
    config: &StreamConfig,
    register: &Register<StreamState>,
) -> Result<Seen> {
    let known = register.state().await.with_context(|| format!("read the register of stream `{}`", config.name))?;
    if known.topic_id.is_none() {
        client.ensure_topic(config).await?;
    }
    if !config.accept_compacted && client.is_compacted(&config.topic).await? == Some(true) {
        bail!(
            "topic `{topic}` has cleanup.policy=compact: its log drops records of any age, so that what is not archived in \
             time is missing, and nothing tells so. Set the topic's cleanup.policy to delete, or `accept_compacted = true` \
             under [stream.{stream}]",
            topic = config.topic,
            stream = config.name,
        );
    }
    if let Some(shards) = known.shards.filter(|shards| *shards != config.shards) {
        bail!(
            "the stream has {shards} shards since it was first started, and the configuration says {}: set `shards = {shards}` \
             under [stream.{}], or declare a new stream",
            config.shards,
            config.name,
        );
    }
    refuse_other_decoding(&known, config)?;
    match see_partitions(client, config, register).await {
        Ok(seen) => Ok(seen),
        Err(stopped) if known.topic_id.is_some() && stands_still(&stopped) => {
            error!(stream = %config.name, error = format!("{stopped:#}"), "the stream stands still");
            Ok(Seen {
                topic_id: known.topic_id,
                origins: known.origins,
                starts: OffsetVector::new(),
                ends: OffsetVector::new(),
            })
        }
        Err(error) => Err(error),
    }
}

/// What was decoded in another way is archived, or in a delta: answers would mix the two.
fn refuse_other_decoding(known: &StreamState, config: &StreamConfig) -> Result<()> {
    let Some(recorded) = &known.decoding else { return Ok(()) };
    let configured = config.decoding();
    let keys: BTreeSet<&String> = recorded.keys().chain(configured.keys()).collect();
    let Some(key) = keys.into_iter().find(|key| recorded.get(*key) != configured.get(*key)) else { return Ok(()) };
    let said = |value: Option<&String>| value.map_or_else(|| "not given".to_owned(), |value| format!("`{value}`"));
    bail!(
        "`{key}` of stream `{stream}` is {was} since it was first started, and the configuration says {is}: its records would \
         be decoded in two ways. Set it back under [stream.{stream}], or declare a new stream",
        stream = config.name,
        was = said(recorded.get(key)),
        is = said(configured.get(key)),
    );
}

fn is_unreachable(error: &anyhow::Error) -> bool {
    error.downcast_ref::<log::Error>().is_some_and(log::Error::is_transient)
}

/// Whether it is the topic of one stream that is in the way, not the cluster.
fn stands_still(error: &anyhow::Error) -> bool {
    use log::Error::{Denied, TopicReplaced, UnknownTopic};
    matches!(error.downcast_ref(), Some(TopicReplaced { .. } | UnknownTopic { .. } | Denied { .. }))
}

/// Records partitions that are seen for the first time, with the log's start of this moment.
async fn see_partitions(client: &LogClient, config: &StreamConfig, register: &Register<StreamState>) -> Result<Seen> {
    let topic = client.topic(&config.topic).await?;
    let watermarks = client.watermarks(&config.topic).await?;
    let starts: OffsetVector = watermarks.iter().map(|(p, (low, _))| (*p, *low)).collect();
    let ends = watermarks.iter().map(|(p, (_, high))| (*p, *high)).collect();
    let mut replaced = None;
    let decided = register
        .update(|state: &StreamState| {
            let event = StreamEvent::Seen {
                topic: config.topic.clone(),
                topic_id: topic.topic_id.clone(),
                origins: starts.clone(),
                shards: Some(config.shards),
                decoding: Some(config.decoding()),
            };
            let next = match state.apply(&event) {
                Err(Rejected::TopicReplaced { recorded, found }) => {
                    replaced =
                        Some(log::Error::TopicReplaced { topic: config.topic.clone(), expected: recorded, found });
                    return Ok(None);
                }
                applied => applied?,
            };
            Ok::<_, Rejected>((next != *state).then_some(event))
        })
        .await
        .with_context(|| format!("record the origins of stream `{}`", config.name))?;
    if let Some(replaced) = replaced {
        return Err(replaced.into());
    }
    let state = decided.record().context("a stream whose topic has partitions has a record of them")?;
    // Another process may have been the first, with another configuration.
    refuse_other_decoding(&state.state, config)?;
    let StreamState { topic_id, origins, .. } = state.state.clone();
    Ok(Seen { topic_id, origins, starts, ends })
}

/// Looks for new partitions and for the log's start, until `stop`.
///
/// `reachable`: in a process that does not read the log this look alone tells whether a broker answers.
pub(super) async fn follow_partitions(
    client: LogClient,
    config: StreamConfig,
    register: Register<StreamState>,
    origins: watch::Sender<OffsetVector>,
    log: Arc<watch::Sender<LogStatus>>,
    reachable: bool,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(clock::sleep(PARTITIONS_INTERVAL)).await.is_some() {
        match see_partitions(&client, &config, &register).await {
            Ok(seen) => {
                origins.send_if_modified(|known| {
                    let more = *known != seen.origins;
                    *known = seen.origins;
                    more
                });
                log.send_if_modified(|log| {
                    let moved =
                        log.starts != seen.starts || log.ends != seen.ends || reachable && log.unreachable.is_some();
                    log.starts = seen.starts;
                    log.ends = seen.ends;
                    log.unreachable = log.unreachable.take().filter(|_| !reachable);
                    moved
                });
            }
            Err(error) => {
                warn!(stream = %config.name, error = format!("{error:#}"), "cannot look at the topic");
                if reachable && is_unreachable(&error) {
                    log.send_modify(|log| {
                        let since = log.unreachable.take().map_or_else(clock::now, |known| known.since);
                        log.unreachable = Some(Unreachable { since, reason: format!("{error:#}") });
                    });
                }
            }
        }
    }
}
