//! Reading a topic from explicit offsets, as far as it goes and for as long as it is wanted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rdkafka::Statistics;
use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::client::{LogClient, LogContext, topic_name};
use super::error::{Error, Result};
use super::native::{self, Entry, NativeError, OffsetSpec, PartitionReader, Record};
use crate::offsets::{Offset, OffsetRange, OffsetVector, PartitionId};
use crate::record::{Headers, RawBatch, RawRecord};
use crate::shard::Shard;
use crate::{clock, task};

/// Settings of a [`RawReader`].
#[derive(Debug, Clone)]
pub struct RawReaderOptions {
    /// A batch is closed when its keys and values reach this.
    pub max_batch_bytes: usize,
    pub max_batch_records: usize,
    /// How many batches wait for the reader at most.
    pub queued_batches: usize,
    /// How often the cluster is asked for new partitions and for the topic's id.
    pub refresh_interval: Duration,
    /// The id that the topic must have; `None`: the one that it has when the reader is opened. Another one ends the reader
    /// with [`Error::TopicReplaced`].
    pub topic_id: Option<String>,
    /// Only these partitions; `None`: all, also those that are added later.
    pub partitions: Option<BTreeSet<PartitionId>>,
    /// Only partitions of this shard.
    pub shard: Shard,
    /// The leader epochs in which the records in front of the positions were written, as far as they are known: a log
    /// that was cut off in between ends the reader with [`Error::LogTruncated`].
    pub leader_epochs: BTreeMap<PartitionId, i32>,
}

impl RawReaderOptions {
    /// Whether `partition` is to be read.
    pub(super) fn wants(&self, partition: PartitionId) -> bool {
        self.shard.holds(partition) && self.partitions.as_ref().is_none_or(|only| only.contains(&partition))
    }
}

impl Default for RawReaderOptions {
    fn default() -> Self {
        Self {
            max_batch_bytes: 4 << 20,
            max_batch_records: 65_536,
            queued_batches: 4,
            refresh_interval: Duration::from_secs(10),
            topic_id: None,
            partitions: None,
            shard: Shard::WHOLE,
            leader_epochs: BTreeMap::new(),
        }
    }
}

/// Whether the cluster answers. What is down comes back by itself; nothing is lost meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Connected,
    Disconnected { reason: String },
}

/// Reads a topic in order, partition by partition, without ever committing an offset.
///
/// # Contract
/// - Only committed records, each once. The ranges of a partition's batches are contiguous from where it began; control
///   records, aborted transactions and what compaction removed lie in a range without a record, so a range can advance
///   with no record at all.
/// - Batches are small when little comes and large when the log is ahead.
/// - A cluster that does not answer is waited for, for ever: see [`RawReader::health`].
/// - Partitions that are added while it runs begin at their first offset.
#[derive(Debug)]
pub struct RawReader {
    batches: mpsc::Receiver<Result<RawBatch>>,
    ended: Option<Error>,
    starts: OffsetVector,
    log_end: watch::Receiver<OffsetVector>,
    health: watch::Receiver<Health>,
    /// Ends the task that looks for new partitions; the thread ends when the channel does.
    _stop: DropGuard,
}

impl RawReader {
    /// Begins to read `topic` at `from`; a partition that `from` does not name begins at its first offset.
    ///
    /// # Errors
    /// [`Error::OffsetLost`] when `from` lies outside of the log; [`Error::UnknownTopic`]; [`Error::TopicReplaced`];
    /// [`Error::Unreachable`].
    pub async fn open(client: &LogClient, topic: &str, from: &OffsetVector, options: RawReaderOptions) -> Result<Self> {
        Self::open_reporting(client, topic, from, options, Reports::default()).await
    }

    /// As [`RawReader::open`], reporting where somebody listens already.
    pub(super) async fn open_reporting(
        client: &LogClient,
        topic: &str,
        from: &OffsetVector,
        mut options: RawReaderOptions,
        reports: Reports,
    ) -> Result<Self> {
        let info = client.topic(topic).await?;
        check_id(topic, options.topic_id.as_deref(), info.topic_id.as_deref())?;
        let topic_id = options.topic_id.take().or(info.topic_id);
        options.topic_id.clone_from(&topic_id);
        let marks = settled_marks(client, topic, from, &options).await?;
        let starts = decide_starts(topic, &marks, from, &options)?;

        let Reports { log_end: log_end_tx, health: health_tx } = reports;
        log_end_tx
            .send_replace(marks.iter().filter(|(p, _)| options.wants(**p)).map(|(p, (_, high))| (*p, *high)).collect());
        health_tx.send_replace(Health::Connected);
        let (log_end, health) = (log_end_tx.subscribe(), health_tx.subscribe());
        let (sender, batches) = mpsc::channel(options.queued_batches.max(1));
        let (commands_tx, commands) = std_mpsc::sync_channel(64);

        let context = ReaderContext::default();
        let mut config = client.reader_config();
        config.set("statistics.interval.ms", "1000");
        let consumer = config.create_with_context(context.clone()).map_err(Error::properties)?;
        let mut reader = PartitionReader::new(consumer, &topic_name(topic)?, POLL_ENTRIES)
            .map_err(|e| Error::client("read the topic", e.text))?;
        let mut positions = BTreeMap::new();
        let mut behind = Vec::new();
        for (partition, offset) in &starts {
            positions.insert(*partition, *offset);
            let wanted = from.get(*partition).is_some_and(|from| from == *offset && from > Offset(0));
            match options.leader_epochs.get(partition).filter(|_| wanted) {
                Some(epoch) => behind.push((*partition, *offset, *epoch)),
                None => reader.start(*partition, *offset).map_err(|e| Error::client("read the topic", e.text))?,
            }
        }
        if !behind.is_empty() {
            let name = topic_name(topic)?;
            let start = move || reader.start_behind(&name, &behind, EXPLAIN_TIMEOUT).map(|()| reader);
            let started = tokio::task::spawn_blocking(start).await.map_err(|e| Error::client("read the topic", e))?;
            reader = started.map_err(|e| client.error("read the topic".to_owned(), e))?;
        }
        let thread = ReaderThread {
            topic: topic.to_owned(),
            topic_id,
            context,
            reader,
            positions,
            open: BTreeMap::new(),
            ready: VecDeque::new(),
            failed: None,
            sender,
            commands,
            log_end: log_end_tx,
            health: health_tx,
            max_bytes: options.max_batch_bytes,
            max_records: options.max_batch_records,
        };
        std::thread::Builder::new()
            .name("log-reader".to_owned())
            .spawn(move || thread.run())
            .map_err(|e| Error::client("start a reader's thread", e))?;

        let stop = CancellationToken::new();
        let known = starts.keys().copied().collect();
        let refresh = refresh(client.clone(), topic.to_owned(), options, known, commands_tx, stop.clone());
        // It ends with the reader, or after it has sent its last word.
        drop(task::spawn("log-refresh", refresh));
        Ok(Self {
            batches,
            ended: None,
            starts: starts.into_iter().collect(),
            log_end,
            health,
            _stop: stop.drop_guard(),
        })
    }

    /// The next batch of any partition. Cancel safe.
    ///
    /// # Errors
    /// The one that ended the reader, again at each call. What had been read before it is returned first.
    pub async fn next(&mut self) -> Result<RawBatch> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        let error = match self.batches.recv().await {
            Some(Ok(batch)) => return Ok(batch),
            Some(Err(error)) => error,
            None => Error::client("read the topic", "the reader's thread has ended"),
        };
        self.ended = Some(error.clone());
        Err(error)
    }

    /// Where the partitions began that were there when it was opened.
    pub fn starts(&self) -> &OffsetVector {
        &self.starts
    }

    /// The last stable offset of each partition as last seen: refreshed at the end of a partition and each second.
    pub fn log_end(&self) -> watch::Receiver<OffsetVector> {
        self.log_end.clone()
    }

    /// Whether the cluster answers.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }
}

/// Where a reader reports to.
#[derive(Debug, Clone)]
pub(super) struct Reports {
    pub(super) log_end: watch::Sender<OffsetVector>,
    pub(super) health: watch::Sender<Health>,
}

impl Default for Reports {
    fn default() -> Self {
        Self { log_end: watch::Sender::new(OffsetVector::new()), health: watch::Sender::new(Health::Connected) }
    }
}

/// Entries taken from librdkafka with one call.
const POLL_ENTRIES: usize = 8192;
/// How long the thread waits for an entry before it looks at everything else.
const POLL_WAIT: Duration = Duration::from_millis(100);

/// How long a reader that ends asks the cluster why.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often, and after how long, a log is looked at again that ends before what was read of it.
const LOOKS: usize = 4;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

fn check_id(topic: &str, expected: Option<&str>, found: Option<&str>) -> Result<()> {
    match (expected, found) {
        (Some(expected), Some(found)) if expected != found => Err(Error::TopicReplaced {
            topic: topic.to_owned(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// The marks of all partitions, once none of them ends before `from`, or that has been so for a while: a leader that was
/// elected a moment ago can lag behind what others have read of the one before it.
pub(super) async fn settled_marks(
    client: &LogClient,
    topic: &str,
    from: &OffsetVector,
    options: &RawReaderOptions,
) -> Result<BTreeMap<PartitionId, (Offset, Offset)>> {
    let mut looks = 1;
    loop {
        let marks = client.watermarks(topic).await?;
        let ends_before =
            |(p, from): (PartitionId, Offset)| options.wants(p) && marks.get(&p).is_some_and(|(_, high)| *high < from);
        if looks >= LOOKS || !from.iter().any(ends_before) {
            return Ok(marks);
        }
        looks += 1;
        clock::sleep(LOOK_AGAIN).await;
    }
}

/// Where each partition begins.
fn decide_starts(
    topic: &str,
    marks: &BTreeMap<PartitionId, (Offset, Offset)>,
    from: &OffsetVector,
    options: &RawReaderOptions,
) -> Result<BTreeMap<PartitionId, Offset>> {
    // A partition that the topic does not have is an empty one: it can only be read from 0.
    let named = from.iter().map(|(p, _)| (p, (Offset(0), Offset(0))));
    let mut all: BTreeMap<_, _> = named.collect();
    all.extend(marks.iter().map(|(p, m)| (*p, *m)));
    let mut starts = BTreeMap::new();
    for (partition, (low, high)) in all.into_iter().filter(|(p, _)| options.wants(*p)) {
        let start = from.get(partition).unwrap_or(low);
        if high < start && marks.contains_key(&partition) {
            return Err(Error::LogTruncated { topic: topic.to_owned(), partition, end: high, position: start });
        }
        if start < low || high < start {
            return Err(Error::OffsetLost { topic: topic.to_owned(), partition, wanted: start, low, high });
        }
        if marks.contains_key(&partition) {
            starts.insert(partition, start);
        }
    }
    Ok(starts)
}

/// What the looking task tells the thread.
enum Command {
    Start(PartitionId, Offset),
    Fail(Error),
}

/// Looks for new partitions and for a topic that was replaced, until `stop`.
async fn refresh(
    client: LogClient,
    topic: String,
    options: RawReaderOptions,
    mut known: BTreeSet<PartitionId>,
    commands: std_mpsc::SyncSender<Command>,
    stop: CancellationToken,
) {
    let mut missing = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = clock::sleep(options.refresh_interval) => {}
        }
        let found = tokio::select! {
            () = stop.cancelled() => return,
            found = look(&client, &topic, &options, &known) => found,
        };
        let fail = match found {
            Ok(new) => {
                missing = 0;
                for (partition, offset) in new {
                    tracing::info!(topic, %partition, %offset, "reading a new partition");
                    known.insert(partition);
                    if commands.try_send(Command::Start(partition, offset)).is_err() {
                        // Full: its turn comes with the next look.
                        known.remove(&partition);
                    }
                }
                continue;
            }
            // A cluster that restarts can say so for a moment.
            Err(Error::UnknownTopic { .. }) if missing < 2 => {
                missing += 1;
                continue;
            }
            Err(e @ (Error::UnknownTopic { .. } | Error::TopicReplaced { .. })) => e,
            Err(error) => {
                tracing::debug!(topic, %error, "cannot look for new partitions");
                continue;
            }
        };
        // The thread has ended if nobody takes it.
        commands.send(Command::Fail(fail)).ok();
        return;
    }
}

/// Partitions that are not in `known`, with their first offsets.
async fn look(
    client: &LogClient,
    topic: &str,
    options: &RawReaderOptions,
    known: &BTreeSet<PartitionId>,
) -> Result<Vec<(PartitionId, Offset)>> {
    let info = client.topic(topic).await?;
    check_id(topic, options.topic_id.as_deref(), info.topic_id.as_deref())?;
    let wanted = |p: &PartitionId| !known.contains(p) && options.wants(*p);
    if !info.partition_ids().any(|p| wanted(&p)) {
        return Ok(Vec::new());
    }
    let marks = client.watermarks(topic).await?;
    Ok(marks.into_iter().filter(|(p, _)| wanted(p)).map(|(p, (low, _))| (p, low)).collect())
}

/// The thread that polls librdkafka. It ends when nobody receives any more, or with an error as its last word.
struct ReaderThread {
    topic: String,
    topic_id: Option<String>,
    context: ReaderContext,
    reader: PartitionReader<ReaderContext>,
    /// The next offset of each partition.
    positions: BTreeMap<PartitionId, Offset>,
    open: BTreeMap<PartitionId, Builder>,
    /// Full batches, older than what is open.
    ready: VecDeque<RawBatch>,
    failed: Option<Error>,
    sender: mpsc::Sender<Result<RawBatch>>,
    commands: std_mpsc::Receiver<Command>,
    log_end: watch::Sender<OffsetVector>,
    health: watch::Sender<Health>,
    max_bytes: usize,
    max_records: usize,
}

/// Nobody receives any more.
struct Gone;

impl ReaderThread {
    fn run(mut self) {
        while !self.sender.is_closed() {
            self.obey();
            self.listen();
            let wait = if self.open.is_empty() { POLL_WAIT } else { Duration::ZERO };
            let got = self.poll(wait);
            let failed = self.failed.take();
            if self.hand_over(got == 0 || failed.is_some()).is_err() {
                return;
            }
            if let Some(error) = failed {
                tracing::debug!(topic = self.topic, %error, "the reader ends");
                // Nobody receives any more if it fails.
                self.sender.blocking_send(Err(error)).ok();
                return;
            }
        }
    }

    fn obey(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Start(partition, offset) => {
                    if let Err(e) = self.reader.start(partition, offset) {
                        self.failed = Some(Error::client("read a new partition", e.text));
                        return;
                    }
                    self.positions.insert(partition, offset);
                }
                Command::Fail(error) => self.failed = Some(error),
            }
        }
    }

    /// Serves the client's own events: errors, statistics, log lines.
    fn listen(&mut self) {
        for _ in 0..16 {
            match self.reader.client().poll(Duration::ZERO) {
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    self.failed = Some(Error::client("read the topic", code));
                }
                Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AllBrokersDown))) => self.disconnected(),
                Some(_) => {}
                None => break,
            }
        }
        let Some(statistics) = self.context.statistics.lock().take() else { return };
        let Some(topic) = statistics.topics.get(&self.topic) else { return };
        let up = |node: i32| {
            statistics.brokers.values().any(|b| b.nodeid == node && matches!(b.state.as_str(), "UP" | "UPDATE"))
        };
        let mut connected = true;
        let mut ends = self.log_end.borrow().clone();
        for partition in self.positions.keys() {
            let Some(of) = topic.partitions.get(&partition.0) else {
                connected = false;
                continue;
            };
            connected &= up(of.leader);
            if of.ls_offset >= 0 {
                ends.advance(*partition, Offset(of.ls_offset));
            }
        }
        self.tell_ends(ends);
        if connected {
            self.health.send_if_modified(|h| std::mem::replace(h, Health::Connected) != Health::Connected);
        } else {
            self.disconnected();
        }
    }

    fn disconnected(&self) {
        let trouble = self.context.log.trouble();
        let reason = trouble.map_or_else(|| "a partition has no leader".to_owned(), |trouble| trouble.to_string());
        let now = Health::Disconnected { reason };
        self.health.send_if_modified(|h| {
            let changed = *h != now;
            *h = now;
            changed
        });
    }

    fn tell_ends(&self, ends: OffsetVector) {
        self.log_end.send_if_modified(|known| {
            let changed = *known != ends;
            *known = ends;
            changed
        });
    }

    fn poll(&mut self, wait: Duration) -> usize {
        let Self { reader, positions, open, ready, failed, topic, max_bytes, max_records, .. } = self;
        let mut ends: Vec<(PartitionId, Offset)> = Vec::new();
        let mut refused: Option<(PartitionId, Offset, NativeError)> = None;
        let got = reader.poll(wait, |entry| {
            // What lies behind an error is not looked at: the ranges must not pass over it.
            if failed.is_some() || refused.is_some() {
                return;
            }
            let (partition, offset) = match &entry {
                Entry::Record(r) => (r.partition, r.offset),
                Entry::End { partition, offset } => (*partition, *offset),
                Entry::Failed { partition, offset, error } => {
                    if !is_transient(error.code) {
                        refused = Some((*partition, *offset, error.clone()));
                    }
                    return;
                }
            };
            let Some(position) = positions.get_mut(&partition) else { return };
            if offset < *position {
                let topic = topic.clone();
                *failed = Some(Error::OffsetBackwards { topic, partition, expected: *position, found: offset });
                return;
            }
            match entry {
                Entry::Record(record) => {
                    let builder = open.entry(partition).or_insert_with(|| Builder::new(partition, *position));
                    builder.push(&record);
                    *position = builder.end;
                    if builder.bytes.len() >= *max_bytes || builder.items.len() >= *max_records {
                        ready.extend(open.remove(&partition).map(Builder::finish));
                    }
                }
                _ => {
                    ends.push((partition, offset));
                    if offset > *position {
                        open.entry(partition).or_insert_with(|| Builder::new(partition, *position)).pass(offset);
                        *position = offset;
                    }
                }
            }
        });
        if let Some((partition, offset, error)) = refused {
            self.failed = Some(self.explain(partition, offset, &error));
        }
        if !ends.is_empty() {
            let mut known = self.log_end.borrow().clone();
            for (partition, offset) in ends {
                known.advance(partition, offset);
            }
            self.tell_ends(known);
        }
        got
    }

    /// Sends what is there: full batches in any case, open ones when there is room, or `all` when nothing better is to be done.
    fn hand_over(&mut self, all: bool) -> Result<(), Gone> {
        while let Some(batch) = self.ready.pop_front() {
            self.sender.blocking_send(Ok(batch)).map_err(|_| Gone)?;
        }
        while let Some(partition) = self.open.keys().next().copied() {
            let permit = match self.sender.try_reserve() {
                Ok(permit) => Some(permit),
                Err(mpsc::error::TrySendError::Full(())) if all => None,
                Err(mpsc::error::TrySendError::Full(())) => return Ok(()),
                Err(mpsc::error::TrySendError::Closed(())) => return Err(Gone),
            };
            let Some(batch) = self.open.remove(&partition).map(Builder::finish) else { return Ok(()) };
            match permit {
                Some(permit) => permit.send(Ok(batch)),
                None => self.sender.blocking_send(Ok(batch)).map_err(|_| Gone)?,
            }
        }
        Ok(())
    }

    fn explain(&self, partition: PartitionId, offset: Offset, error: &NativeError) -> Error {
        match error.code {
            Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET | Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => {
                let wanted = self.positions.get(&partition).copied().unwrap_or(offset);
                if let Err(replaced) = self.check_topic() {
                    return replaced;
                }
                let topic = self.topic.clone();
                if let Some(end) = truncated_at(&error.text) {
                    return Error::LogTruncated { topic, partition, end: end.min(wanted), position: wanted };
                }
                let (low, high) = self.bounds(partition, wanted).unwrap_or((Offset(-1), Offset(-1)));
                match (Offset(0)..wanted).contains(&high) {
                    true => Error::LogTruncated { topic, partition, end: high, position: wanted },
                    false => Error::OffsetLost { topic, partition, wanted, low, high },
                }
            }
            Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
            | Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION => Error::UnknownTopic { topic: self.topic.clone() },
            _ => Error::refused(format!("read partition {partition} of the topic `{}`", self.topic), error),
        }
    }

    /// Whether it is still the same topic, as far as the cluster answers.
    fn check_topic(&self) -> Result<()> {
        let name = topic_name(&self.topic)?;
        match native::describe_topic(self.reader.client(), &name, EXPLAIN_TIMEOUT) {
            Ok(Some(found)) => check_id(&self.topic, self.topic_id.as_deref(), found.topic_id.as_deref()),
            Ok(None) => Err(Error::UnknownTopic { topic: self.topic.clone() }),
            Err(_) => Ok(()),
        }
    }

    /// First and last stable offset, that of a leader which has caught up with `wanted` if there is one; `None` if the
    /// cluster does not answer.
    fn bounds(&self, partition: PartitionId, wanted: Offset) -> Option<(Offset, Offset)> {
        let count = usize::try_from(partition.0).ok()? + 1;
        let topic = topic_name(&self.topic).ok()?;
        let list = |spec| {
            let listed = native::list_offsets(self.reader.client(), &topic, count, spec, EXPLAIN_TIMEOUT);
            listed.ok().and_then(|offsets| offsets.get(&partition).copied())
        };
        for _ in 1..LOOKS {
            let (low, high) = (list(OffsetSpec::Earliest)?, list(OffsetSpec::Latest)?);
            if wanted <= high {
                return Some((low, high));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Some((list(OffsetSpec::Earliest)?, list(OffsetSpec::Latest)?))
    }
}

/// Where the log ends now, in what librdkafka says when it finds that it was cut off.
fn truncated_at(text: &str) -> Option<Offset> {
    let is_truncation = text.contains("truncation detected") || text.contains("No epoch found");
    let (_, end) = text.split_once("broker end offset is ").filter(|_| is_truncation)?;
    let number: String = end.chars().take_while(|c| c.is_ascii_digit() || *c == '-').collect();
    // -1: it has no epoch as old as that, so nothing of it is left.
    number.parse().ok().map(|end: i64| Offset(end.max(0)))
}

/// Whether librdkafka goes on by itself after `code`. Unknown ones end the reader: it is restarted, and nothing is skipped.
fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::RD_KAFKA_RESP_ERR__TRANSPORT
            | Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN
            | Code::RD_KAFKA_RESP_ERR__RESOLVE
            | Code::RD_KAFKA_RESP_ERR__TIMED_OUT
            | Code::RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE
            | Code::RD_KAFKA_RESP_ERR__WAIT_COORD
            | Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT
            | Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE
            | Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION
            | Code::RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE
            | Code::RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE
            | Code::RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION
            | Code::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR
            | Code::RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH
            | Code::RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH
            | Code::RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE
    )
}

/// A batch in the making. All keys and values lie in one buffer, which the records share.
struct Builder {
    partition: PartitionId,
    start: Offset,
    end: Offset,
    bytes: BytesMut,
    items: Vec<Item>,
    leader_epoch: Option<i32>,
}

struct Item {
    offset: Offset,
    timestamp: Option<i64>,
    key_end: Option<usize>,
    value_end: Option<usize>,
    headers: Headers,
}

impl Builder {
    fn new(partition: PartitionId, start: Offset) -> Self {
        Self { partition, start, end: start, bytes: BytesMut::new(), items: Vec::new(), leader_epoch: None }
    }

    fn push(&mut self, record: &Record<'_>) {
        let mut put = |data: Option<&[u8]>| {
            data.map(|data| {
                self.bytes.extend_from_slice(data);
                self.bytes.len()
            })
        };
        let key_end = put(record.key);
        let value_end = put(record.value);
        let mut headers = Vec::new();
        record.headers(|name, value| headers.push((name, value.map(Bytes::copy_from_slice))));
        let timestamp = record.timestamp_millis.and_then(|millis| millis.checked_mul(1000));
        self.items.push(Item { offset: record.offset, timestamp, key_end, value_end, headers });
        self.end = Offset(record.offset.0 + 1);
        self.leader_epoch = record.leader_epoch;
    }

    /// Up to `offset` there is nothing but control records and holes.
    fn pass(&mut self, offset: Offset) {
        self.end = offset;
        // A control record may be of a later leader, which nothing tells.
        self.leader_epoch = None;
    }

    fn finish(self) -> RawBatch {
        let bytes = self.bytes.freeze();
        let mut at = 0;
        let mut take = |end: Option<usize>| {
            end.map(|end| {
                let slice = bytes.slice(at..end);
                at = end;
                slice
            })
        };
        let record = |item: Item| {
            let key = take(item.key_end);
            let value = take(item.value_end);
            RawRecord { offset: item.offset, timestamp: item.timestamp, key, value, headers: item.headers }
        };
        let records = self.items.into_iter().map(record).collect();
        let range = OffsetRange::new(self.start, self.end);
        RawBatch { partition: self.partition, range, records, leader_epoch: self.leader_epoch }
    }
}

/// Takes what librdkafka says to a reader.
#[derive(Debug, Clone, Default)]
struct ReaderContext {
    log: LogContext,
    /// The newest, until the thread takes it.
    statistics: Arc<Mutex<Option<Statistics>>>,
}

impl ClientContext for ReaderContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        *self.statistics.lock() = Some(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(error, reason);
    }
}

impl ConsumerContext for ReaderContext {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_librdkafka_says_of_a_cut_tells_where_the_log_ends() {
        let cut = "Partition log truncation detected at offset 15 (leader epoch 0): broker end offset is 10 (offset leader \
                   epoch 0). Reset to INVALID.: Local: Partition log truncation detected (broker 2)";
        assert_eq!(truncated_at(cut), Some(Offset(10)));
        let older = "No epoch found less or equal to offset 15 (leader epoch 0): broker end offset is -1 (offset leader \
                     epoch -1). Reset using configured policy.";
        assert_eq!(truncated_at(older), Some(Offset(0)));
        assert_eq!(truncated_at("Broker: Offset out of range (broker 1)"), None);
    }
}
