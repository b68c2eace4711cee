//! What can go wrong with the log, and what the caller does next.

use std::net::SocketAddr;
use std::path::PathBuf;

use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::error::KafkaError;

use super::native::NativeError;
use crate::offsets::{Offset, PartitionId};

/// An error of the log. It is `Clone`, since one failed fetch is told to every reader of a stream, again and again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Another process holds the folder. End it, or choose another `data_dir`.
    #[error(
        "the data directory is in use by another process; stop it or set another `data_dir`. path=`{path}`, holder=`{holder}`",
        path = path.display()
    )]
    DataDirInUse { path: PathBuf, holder: String },
    /// Something listens there already. Stop it, or choose another port.
    #[error(
        "the port of the embedded broker is in use; stop what listens there, set another port in `[broker] listen`, \
         or port 0 for any free one. listen=`{listen}`"
    )]
    PortInUse { listen: SocketAddr },
    /// The embedded broker did not start, or what it needs of the file system is missing.
    #[error("the embedded broker cannot start. detail=`{detail}`")]
    BrokerStart { detail: String },
    /// The embedded broker ended by itself.
    #[error("the embedded broker has ended. detail=`{detail}`")]
    BrokerEnded { detail: String },
    /// librdkafka refuses the `[kafka]` section.
    #[error("a property of the [kafka] section is not valid. detail=`{detail}`")]
    Properties { detail: String },
    /// No broker answered in time. It may come back: try again.
    #[error(
        "no Kafka broker answered within {waited_seconds} s; is it running, and is `bootstrap_servers` right? \
         bootstrap_servers=`{servers}`, detail=`{detail}`"
    )]
    Unreachable { servers: String, waited_seconds: u64, detail: String },
    /// The brokers answer, and refuse who asks. Nothing goes on before the login is another one, here or there.
    #[error(
        "the Kafka cluster refuses the login of [kafka]: check `security.protocol`, `sasl.mechanism`, `sasl.username` and \
         `sasl.password`. bootstrap_servers=`{servers}`, detail=`{detail}`"
    )]
    Login { servers: String, detail: String },
    /// The two sides have no encrypted connection. Nothing goes on before one of them is configured otherwise.
    #[error(
        "no TLS connection to the Kafka cluster: check `security.protocol` and `ssl.ca.location`, the certificates by which \
         brokers are trusted, of [kafka]. bootstrap_servers=`{servers}`, detail=`{detail}`"
    )]
    Tls { servers: String, detail: String },
    /// The topic does not exist.
    #[error("the topic does not exist on the Kafka cluster. topic=`{topic}`")]
    UnknownTopic { topic: String },
    /// A topic of the same name, but with another id: what was read before came from another topic.
    #[error(
        "the topic was deleted and created again; declare it as a new stream. topic=`{topic}`, expected_id=`{expected}`, found_id=`{found}`"
    )]
    TopicReplaced { topic: String, expected: String, found: String },
    /// The cluster refuses to create the topic.
    #[error(
        "the topic cannot be created; create it by hand or change `partitions` and `replication` of the stream. topic=`{topic}`, detail=`{detail}`"
    )]
    CreateTopic { topic: String, detail: String },
    /// The log no longer has (or has not yet) the offset from which to read. Read what is missing from the master
    /// dataset, or record the loss.
    #[error(
        "the log does not have the wanted offset. topic=`{topic}`, partition=`{partition}`, wanted=`{wanted}`, low=`{low}`, high=`{high}`"
    )]
    OffsetLost { topic: String, partition: PartitionId, wanted: Offset, low: Offset, high: Offset },
    /// The log gave an offset twice or out of order.
    #[error(
        "the log's offsets went backwards. topic=`{topic}`, partition=`{partition}`, expected=`{expected}`, found=`{found}`"
    )]
    OffsetBackwards { topic: String, partition: PartitionId, expected: Offset, found: Offset },
    /// The log was cut off at its end, behind what had been read: an unclean leader election, or a broker that lost its
    /// disk. The offsets from `end` on are, or will be, those of other records.
    #[error(
        "the log was cut off at its end (an unclean leader election, or a broker that lost its disk): offsets [{end}, {position}) of \
         partition {partition} were read and are gone, and other records get their numbers; what was counted stays, to go on \
         declare the stream under another name. topic=`{topic}`"
    )]
    LogTruncated { topic: String, partition: PartitionId, end: Offset, position: Offset },
    /// The wanted offsets are archived: read them from the master dataset, then go on from `archived_until`.
    /// `wanted` is `None` when the position does not name the partition, so stands at its origin.
    #[error(
        "the wanted offset lies below the archived one; read it from the master dataset. partition=`{partition}`, \
         wanted=`{}`, archived_until=`{archived_until}`", wanted.map_or_else(|| "origin".to_owned(), |o| o.to_string())
    )]
    Archived { partition: PartitionId, wanted: Option<Offset>, archived_until: Offset },
    /// The user of the `[kafka]` section may not do this. Grant it; it is tried again meanwhile.
    #[error(
        "the Kafka cluster denies this to the user of the [kafka] section; grant it DESCRIBE and READ on the stream's \
         topic (WRITE to publish, CREATE where the topic does not exist yet). operation=`{operation}`, detail=`{detail}`"
    )]
    Denied { operation: String, detail: String },
    /// The broker refuses for good (no permission, damaged data, …).
    #[error("the Kafka client failed. operation=`{operation}`, detail=`{detail}`")]
    Client { operation: String, detail: String },
    /// Where the master dataset ends could not be learnt.
    #[error("the end of the master dataset is not known. stream=`{stream}`, detail=`{detail}`")]
    Seeds { stream: String, detail: String },
    /// The stream's configuration has no decoder.
    #[error("the stream cannot be decoded. stream=`{stream}`, detail=`{detail}`")]
    Decoder { stream: String, detail: String },
    /// What the records were written with cannot be told now. It may be soon: try again.
    #[error("a writer's schema is not to be had: {detail}. stream=`{stream}`")]
    Schemas { stream: String, detail: String },
    /// The part was told to end.
    #[error("the log reader has been shut down")]
    Shutdown,
}

/// Short for results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(super) fn client(operation: impl Into<String>, detail: impl ToString) -> Self {
        Self::Client { operation: operation.into(), detail: detail.to_string() }
    }

    /// What a broker has refused, or the client itself.
    pub(super) fn refused(operation: impl Into<String>, error: &NativeError) -> Self {
        let (operation, detail) = (operation.into(), error.text.clone());
        match error.code {
            Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
            | Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED
            | Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED
            | Code::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED => Self::Denied { operation, detail },
            _ => Self::Client { operation, detail },
        }
    }

    /// What librdkafka says when it refuses a configuration.
    pub(super) fn properties(error: KafkaError) -> Self {
        let detail = match error {
            // Not the whole error: it repeats the value, which may be a secret.
            KafkaError::ClientConfig(_, description, key, _) => format!("`{key}`: {description}"),
            other => other.to_string(),
        };
        Self::Properties { detail }
    }

    /// Whether nothing but the connection is in the way, so that trying the same again later can succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Login { .. } | Self::Tls { .. } | Self::Schemas { .. })
    }
}
