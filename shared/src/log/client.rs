//! The connection to a Kafka cluster: topics, their ids, their offsets; and the settings that readers and producers share.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use super::error::{Error, Result};
use super::native::{self, NativeError, OffsetSpec};
use crate::config::{KafkaConfig, StreamConfig};
use crate::offsets::{Offset, PartitionId};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// More than a client says during one request.
const MOST_EVENTS: usize = 64;
/// Between two questions to a partition whose leader isn't settled.
const LEADER_RETRY: Duration = Duration::from_millis(100);

/// A topic as the cluster has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    pub name: String,
    /// How many partitions it has: `0..partitions`.
    pub partitions: i32,
    /// Kafka's own text form; `None` on clusters before Kafka 2.8, which have none.
    pub topic_id: Option<String>,
}

impl TopicInfo {
    pub fn partition_ids(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..self.partitions).map(PartitionId)
    }
}

/// A client of one Kafka cluster. Cheap to clone; nothing connects before the first call.
#[derive(Clone)]
pub struct LogClient {
    inner: Arc<Inner>,
}

struct Inner {
    properties: BTreeMap<String, String>,
    timeout: Duration,
    consumer: BaseConsumer<LogContext>,
    context: LogContext,
}

impl std::fmt::Debug for LogClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The properties hold passwords.
        f.debug_struct("LogClient").field("bootstrap_servers", &self.bootstrap_servers()).finish_non_exhaustive()
    }
}

impl LogClient {
    /// Takes every property as librdkafka's own.
    ///
    /// # Errors
    /// [`Error::Properties`] when librdkafka refuses one.
    pub fn new(config: &KafkaConfig) -> Result<Self> {
        Self::with_timeout(config, DEFAULT_TIMEOUT)
    }

    /// As [`LogClient::new`]; each request to the cluster fails after `timeout`.
    pub fn with_timeout(config: &KafkaConfig, timeout: Duration) -> Result<Self> {
        let properties = config.properties.clone();
        let context = LogContext::default();
        let consumer = reader_config(&properties).create_with_context(context.clone()).map_err(Error::properties)?;
        Ok(Self { inner: Arc::new(Inner { properties, timeout, consumer, context }) })
    }

    /// A client of an embedded broker, or of any that needs no further property.
    pub fn connect(bootstrap_servers: &str) -> Result<Self> {
        let properties = [("bootstrap.servers".to_owned(), bootstrap_servers.to_owned())].into();
        Self::new(&KafkaConfig { properties })
    }

    pub fn bootstrap_servers(&self) -> &str {
        let properties = &self.inner.properties;
        let servers = properties.get("bootstrap.servers").or_else(|| properties.get("metadata.broker.list"));
        servers.map_or("", String::as_str)
    }

    pub(super) fn properties(&self) -> &BTreeMap<String, String> {
        &self.inner.properties
    }

    /// The stream's topic; creates it with the stream's partitions and replication when it is missing. An existing
    /// topic keeps its own. Idempotent.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::CreateTopic`] when the cluster refuses it.
    pub async fn ensure_topic(&self, stream: &StreamConfig) -> Result<TopicInfo> {
        if let Some(topic) = self.describe(&stream.topic).await? {
            return Ok(topic);
        }
        self.create_topic(&stream.topic, stream.partitions, stream.replication).await?;
        // A cluster of several brokers takes a moment to tell all of them.
        for _ in 0..50 {
            if let Some(topic) = self.describe(&stream.topic).await? {
                return Ok(topic);
            }
            crate::clock::sleep(Duration::from_millis(100)).await;
        }
        Err(Error::UnknownTopic { topic: stream.topic.clone() })
    }

    /// Whether the log keeps only the last record of each key of the topic: it then drops records of any age.
    ///
    /// `None`: the cluster does not tell, or not this user.
    ///
    /// # Errors
    /// [`Error::Properties`].
    pub async fn is_compacted(&self, topic: &str) -> Result<Option<bool>> {
        let options = AdminOptions::new().request_timeout(Some(self.inner.timeout));
        let admin = self.admin()?;
        let described = match admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await {
            Ok(described) => described.into_iter().next(),
            Err(error) => {
                tracing::debug!(topic, %error, "the topic's configuration is not told");
                None
            }
        };
        let Some(Ok(resource)) = described else { return Ok(None) };
        // A cluster that does not name it has never been told to compact.
        let policy = resource.entries.iter().find(|entry| entry.name == "cleanup.policy");
        let policy = policy.and_then(|entry| entry.value.as_deref()).unwrap_or_default();
        Ok(Some(policy.split(',').any(|part| part.trim() == "compact")))
    }

    fn admin(&self) -> Result<AdminClient<LogContext>> {
        let admin = self.base_config().create_with_context(self.inner.context.clone());
        admin.map_err(Error::properties)
    }

    async fn create_topic(&self, topic: &str, partitions: i32, replication: i32) -> Result<()> {
        let refused = |detail: String| Error::CreateTopic { topic: topic.to_owned(), detail };
        let admin = self.admin()?;
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication));
        let options = AdminOptions::new().request_timeout(Some(self.inner.timeout));
        let results = match admin.create_topics([&new], &options).await {
            Ok(results) => results,
            Err(KafkaError::AdminOp(code)) => return Err(self.creation_error(topic, code, refused)),
            Err(e) => return Err(refused(e.to_string())),
        };
        match results.into_iter().next() {
            Some(Ok(_)) | Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
            Some(Err((_, code))) => Err(self.creation_error(topic, code, refused)),
            None => Err(refused("the cluster gave no answer".to_owned())),
        }
    }

    fn creation_error(&self, topic: &str, code: RDKafkaErrorCode, other: impl Fn(String) -> Error) -> Error {
        let detail = code.to_string();
        match code {
            RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::RequestTimedOut
            | RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::AllBrokersDown => self.unreachable(detail),
            RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed => {
                Error::Denied { operation: format!("create the topic `{topic}`"), detail }
            }
            _ => other(detail),
        }
    }

    fn unreachable(&self, detail: String) -> Error {
        let servers = self.bootstrap_servers().to_owned();
        // What the connection said last tells more than that nothing came.
        match self.inner.context.trouble() {
            Some(Trouble { kind: TroubleKind::Login, text }) => Error::Login { servers, detail: text },
            Some(Trouble { kind: TroubleKind::Tls, text }) => Error::Tls { servers, detail: text },
            known => Error::Unreachable {
                servers,
                waited_seconds: self.inner.timeout.as_secs(),
                detail: known.map_or(detail, |trouble| trouble.text),
            },
        }
    }

    /// The topic as it is now.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`], [`Error::Unreachable`].
    pub async fn topic(&self, topic: &str) -> Result<TopicInfo> {
        self.describe(topic).await?.ok_or_else(|| Error::UnknownTopic { topic: topic.to_owned() })
    }

    async fn describe(&self, topic: &str) -> Result<Option<TopicInfo>> {
        let name = topic_name(topic)?;
        let operation = format!("describe the topic `{topic}`");
        let described = self.blocking(operation, move |c, timeout| native::describe_topic(c, &name, timeout)).await?;
        Ok(described.map(|d| TopicInfo {
            name: topic.to_owned(),
            partitions: i32::try_from(d.partitions).expect("partition numbers are i32"),
            topic_id: d.topic_id,
        }))
    }

    /// The first offset and the last stable offset (the next one that a committed record can get) of each partition.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`], [`Error::Unreachable`].
    pub async fn watermarks(&self, topic: &str) -> Result<BTreeMap<PartitionId, (Offset, Offset)>> {
        let info = self.topic(topic).await?;
        let count = usize::try_from(info.partitions).expect("a count is not negative");
        let name = topic_name(topic)?;
        self.blocking(format!("list the offsets of the topic `{topic}`"), move |c, timeout| {
            // The low ones first: if the log is cut in between they are too low, never above the high ones.
            let list = |spec| once_led(timeout, || native::list_offsets(c, &name, count, spec, timeout));
            let low = list(OffsetSpec::Earliest)?;
            let high = list(OffsetSpec::Latest)?;
            Ok(low.into_iter().filter_map(|(p, low)| high.get(&p).map(|h| (p, (low, (*h).max(low))))).collect())
        })
        .await
    }

    /// Runs `request` on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: String,
        request: impl FnOnce(&BaseConsumer<LogContext>, Duration) -> std::result::Result<T, NativeError> + Send + 'static,
    ) -> Result<T> {
        let client = self.clone();
        let run = move || {
            let inner = &client.inner;
            let outcome = request(&inner.consumer, inner.timeout);
            // Its log lines and errors wait in the main queue until somebody polls; each takes a poll, which does not say
            // whether there was one.
            for _ in 0..MOST_EVENTS {
                drop(inner.consumer.poll(Duration::ZERO));
            }
            if outcome.is_ok() {
                inner.context.forget();
            }
            outcome.map_err(|e| client.error(operation, e))
        };
        match tokio::task::spawn_blocking(run).await {
            Ok(outcome) => outcome,
            Err(e) => Err(Error::client("ask the cluster", e)),
        }
    }

    pub(super) fn error(&self, operation: String, e: NativeError) -> Error {
        match e.code {
            Code::RD_KAFKA_RESP_ERR__TIMED_OUT
            | Code::RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE
            | Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT
            | Code::RD_KAFKA_RESP_ERR__TRANSPORT
            | Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN
            | Code::RD_KAFKA_RESP_ERR__RESOLVE
            | Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE
            | Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION
            | Code::RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE
            | Code::RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION => self.unreachable(e.text),
            _ => Error::refused(operation, &e),
        }
    }

    /// What every client of the cluster is made from: the user's properties.
    pub(super) fn base_config(&self) -> ClientConfig {
        base_config(&self.inner.properties)
    }

    /// What a reader is made from.
    pub(super) fn reader_config(&self) -> ClientConfig {
        reader_config(&self.inner.properties)
    }
}

/// Repeats `request` for some `timeout` while a partition has no leader, or the broker that was asked isn't or doesn't
/// know yet that it is: a topic that was just created, a broker that came or went.
fn once_led<T>(
    timeout: Duration,
    mut request: impl FnMut() -> std::result::Result<T, NativeError>,
) -> std::result::Result<T, NativeError> {
    let mut left = timeout.as_millis() / LEADER_RETRY.as_millis();
    loop {
        match request() {
            Err(NativeError {
                code: Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE | Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
                ..
            }) if left > 0 => {
                left -= 1;
                std::thread::sleep(LEADER_RETRY);
            }
            outcome => return outcome,
        }
    }
}

pub(super) fn topic_name(topic: &str) -> Result<CString> {
    native::c_string(topic).ok_or_else(|| Error::UnknownTopic { topic: topic.escape_default().to_string() })
}

fn base_config(properties: &BTreeMap<String, String>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", "watershed");
    // One section serves producers and consumers; each ignores the other's properties.
    config.set("log_level", "4");
    for (key, value) in properties {
        config.set(key, value);
    }
    config
}

fn reader_config(properties: &BTreeMap<String, String>) -> ClientConfig {
    let mut config = base_config(properties);
    for (key, value) in [
        // A fetch is answered as soon as there is anything, and waits at most this long.
        ("fetch.wait.max.ms", "100"),
        ("fetch.error.backoff.ms", "100"),
        // Of a full queue: by default a second, in which the reader empties it and has nothing to do.
        ("fetch.queue.backoff.ms", "10"),
        ("queued.max.messages.kbytes", "32768"),
        ("queued.min.messages", "200000"),
        ("reconnect.backoff.max.ms", "2000"),
        // A broker that hangs is noticed by this; a fetch is answered within the wait above.
        ("socket.timeout.ms", "15000"),
        ("statistics.interval.ms", "0"),
    ] {
        if !properties.contains_key(key) {
            config.set(key, value);
        }
    }
    // Exactness hangs on these: they are not the user's.
    for (key, value) in [
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("isolation.level", "read_committed"),
        ("auto.offset.reset", "error"),
        ("enable.partition.eof", "true"),
        ("check.crcs", "true"),
        ("allow.auto.create.topics", "false"),
    ] {
        config.set(key, value);
    }
    // Reading is by explicit offsets, never as a member of a group.
    config.remove("group.id");
    config.remove("group.instance.id");
    config
}

/// Takes what librdkafka says: log lines go to `tracing`, what is wrong with the connections is kept.
#[derive(Debug, Clone, Default)]
pub(super) struct LogContext {
    trouble: Arc<Mutex<Option<Trouble>>>,
}

/// What a connection said last.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) kind: TroubleKind,
    pub(super) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TroubleKind {
    Network,
    Login,
    Tls,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.kind {
            TroubleKind::Network => "",
            TroubleKind::Login => "the cluster refuses the login of [kafka]: ",
            TroubleKind::Tls => "no TLS connection, see `security.protocol` and `ssl.ca.location` of [kafka]: ",
        })?;
        f.write_str(&self.text)
    }
}

impl LogContext {
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().clone()
    }

    /// All is well again.
    ///
    /// SUBTLE: not at the start of a request: librdkafka says the same of the same broker but twice a minute.
    fn forget(&self) {
        *self.trouble.lock() = None;
    }
}

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client reports");
        let kind = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed) => TroubleKind::Login,
            Some(RDKafkaErrorCode::SSL) => TroubleKind::Tls,
            // Where the other side only hangs up, as a listener without TLS does.
            _ if reason.contains("SSL handshake failed") => TroubleKind::Tls,
            _ => TroubleKind::Network,
        };
        let mut trouble = self.trouble.lock();
        // That all brokers are down follows upon what is wrong with each, and says less.
        if trouble.is_none() || error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *trouble = Some(Trouble { kind, text: reason.to_owned() });
        }
    }
}

impl ConsumerContext for LogContext {}

/// librdkafka logs each lost connection as an error, though it comes back by itself: what must be acted on is an
/// [`Error`] or shows in a reader's health. So its lines are for debugging.
pub(super) fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    tracing::debug!(target: "librdkafka", ?level, facility, "{message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: Code) -> NativeError {
        NativeError { code, text: format!("{code:?}") }
    }

    /// Answers `errors` one after another, then their number.
    fn ask(timeout: Duration, errors: &[Code]) -> std::result::Result<usize, Code> {
        let mut asked = 0;
        let outcome = once_led(timeout, || {
            asked += 1;
            errors.get(asked - 1).map_or(Ok(asked), |code| Err(error(*code)))
        });
        outcome.map_err(|e| e.code)
    }

    #[test]
    fn a_partition_without_a_leader_is_asked_again() {
        let (none, moved) =
            (Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE, Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION);
        assert_eq!(ask(DEFAULT_TIMEOUT, &[none, moved]), Ok(3));
        assert_eq!(ask(LEADER_RETRY, &[none, moved, none]), Err(moved), "it ends after the timeout");
        let other = Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
        assert_eq!(ask(DEFAULT_TIMEOUT, &[other]), Err(other), "no other error is repeated");
    }
}
