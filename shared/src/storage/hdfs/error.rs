//! What HDFS or the way to it refused, in words that say what to do.

use hdfs_native::HdfsError;
use object_store::Error as StoreError;

pub(super) const STORE: &str = "HDFS";

/// A call to HDFS that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {}. path=`{path}`, answer=`{answer}`", problem.advice())]
pub(in crate::storage) struct Failure {
    pub(super) operation: &'static str,
    pub(super) path: String,
    pub(super) problem: Problem,
    /// The first line of what the server or the client library said; the rest is a stack.
    answer: String,
}

/// Why it did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    NotFound,
    AlreadyExists,
    PermissionDenied,
    Unauthenticated,
    QuotaExceeded,
    Encrypted,
    InvalidName,
    SafeMode,
    NoActiveNameNode,
    /// Nobody listens, or a connection broke.
    Unreachable,
    TimedOut,
    TooFewDataNodes,
    DataNodeFailed,
    /// Another client's lease on the file is being taken back.
    Recovering,
    /// What is read is no longer what was opened.
    Replaced,
    Other,
}

impl Problem {
    /// What it is and what to do about it.
    fn advice(self) -> &'static str {
        match self {
            Self::NotFound => "there is no such file",
            Self::AlreadyExists => "something stands there already",
            Self::PermissionDenied => {
                "permission denied. Let HADOOP_USER_NAME name a user who may write under [storage] url, or `hdfs dfs -chown` that folder"
            }
            Self::Unauthenticated => {
                "the NameNode does not accept this user. With Kerberos, `kinit` first and let HADOOP_CONF_DIR name the cluster's configuration"
            }
            Self::QuotaExceeded => {
                "a quota of the folder is used up. Raise it with `hdfs dfsadmin -setSpaceQuota` or `-setQuota`, or delete something"
            }
            Self::Encrypted => {
                "the folder is an encryption zone, which this client can't use. Choose another [storage] url"
            }
            Self::InvalidName => "HDFS takes no such name",
            Self::SafeMode => {
                "the NameNode is in safe mode and takes no writes. It ends by itself when enough DataNodes have reported, else with `hdfs dfsadmin -safemode leave`"
            }
            Self::NoActiveNameNode => "no NameNode is active. Look at `hdfs haadmin -getAllServiceState`",
            Self::Unreachable => "the NameNode or a DataNode does not answer. Start it, or correct [storage] url",
            Self::TimedOut => "no answer in time. Look for a stopped or overloaded NameNode or DataNode",
            Self::TooFewDataNodes => {
                "too few DataNodes take new blocks. Start more or free their disks; `hdfs dfsadmin -report` lists them"
            }
            Self::DataNodeFailed => {
                "a DataNode failed in the middle. Another is chosen once the NameNode has noticed; `hdfs dfsadmin -report` lists them"
            }
            Self::Recovering => "the file is being recovered from an earlier writer. It is over within some minutes",
            Self::Replaced => "the file was replaced while it was read. Read it again",
            Self::Other => "HDFS refused",
        }
    }

    /// Whether the same call again can only end the same way until a person has done something.
    fn is_final(self) -> bool {
        matches!(
            self,
            Self::NotFound
                | Self::PermissionDenied
                | Self::Unauthenticated
                | Self::QuotaExceeded
                | Self::Encrypted
                | Self::InvalidName
        )
    }
}

impl Failure {
    pub(super) fn new(operation: &'static str, path: &str, error: &HdfsError) -> Self {
        let answer = error.to_string().lines().next().unwrap_or_default().to_owned();
        Self { operation, path: path.to_owned(), problem: problem(error), answer }
    }

    pub(super) fn of(operation: &'static str, path: &str, problem: Problem) -> Self {
        Self { operation, path: path.to_owned(), problem, answer: String::new() }
    }

    /// Whether the same call again can only end the same way until a person has done something.
    pub(in crate::storage) fn is_final(&self) -> bool {
        self.problem.is_final()
    }
}

#[cfg(any(test, feature = "testing"))]
impl From<crate::abort_point::Aborted> for Failure {
    fn from(aborted: crate::abort_point::Aborted) -> Self {
        Self { answer: aborted.to_string(), ..Self::of("go on", "", Problem::Other) }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        let (path, problem) = (failure.path.clone(), failure.problem);
        let source = Box::new(failure);
        match problem {
            Problem::NotFound => Self::NotFound { path, source },
            Problem::AlreadyExists => Self::AlreadyExists { path, source },
            Problem::PermissionDenied => Self::PermissionDenied { path, source },
            Problem::Unauthenticated => Self::Unauthenticated { path, source },
            _ => Self::Generic { store: STORE, source },
        }
    }
}

fn problem(error: &HdfsError) -> Problem {
    match error {
        HdfsError::RPCError(class, message) | HdfsError::FatalRPCError(class, message) => answered(class, message),
        HdfsError::IOError(error) if error.kind() == std::io::ErrorKind::TimedOut => Problem::TimedOut,
        HdfsError::IOError(_) => Problem::Unreachable,
        HdfsError::AlreadyExists(message) if message.contains("because this file is already being created") => {
            Problem::Recovering
        }
        HdfsError::AlreadyExists(_) => Problem::AlreadyExists,
        HdfsError::FileNotFound(_) | HdfsError::IsADirectoryError(_) => Problem::NotFound,
        HdfsError::InvalidPath(_) => Problem::InvalidName,
        HdfsError::DataTransferError(_) | HdfsError::ChecksumError | HdfsError::BlocksNotFound(_) => {
            Problem::DataNodeFailed
        }
        HdfsError::UnsupportedFeature(message) if message.contains("encryption zone") => Problem::Encrypted,
        HdfsError::SASLError(_) | HdfsError::GSSAPIError(..) | HdfsError::NoSASLMechanism => Problem::Unauthenticated,
        _ => Problem::Other,
    }
}

/// By the class of the exception that the NameNode answered with.
fn answered(class: &str, message: &str) -> Problem {
    let name = class.rsplit(['.', '$']).next().unwrap_or(class);
    match name {
        "FileNotFoundException" | "PathIsNotEmptyDirectoryException" => Problem::NotFound,
        "FileAlreadyExistsException" => Problem::AlreadyExists,
        "AccessControlException" => Problem::PermissionDenied,
        "AuthorizationException" | "SaslException" | "GSSException" | "InvalidToken" => Problem::Unauthenticated,
        "NSQuotaExceededException" | "DSQuotaExceededException" | "QuotaByStorageTypeExceededException" => {
            Problem::QuotaExceeded
        }
        "InvalidPathException" | "ParentNotDirectoryException" | "PathComponentTooLongException" => {
            Problem::InvalidName
        }
        "SafeModeException" => Problem::SafeMode,
        // A NameNode that has just started says "try again", and why.
        "RetriableException" if message.contains("SafeModeException") => Problem::SafeMode,
        "StandbyException" => Problem::NoActiveNameNode,
        "RecoveryInProgressException" | "AlreadyBeingCreatedException" | "LeaseExpiredException" => Problem::Recovering,
        _ if message.contains("safe mode") => Problem::SafeMode,
        _ if message.contains("could only be") && message.contains("minReplication") => Problem::TooFewDataNodes,
        _ => Problem::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(class: &str, message: &str) -> (Problem, String) {
        let error = HdfsError::RPCError(class.to_owned(), format!("{message}\n\tat org.apache.hadoop.Some.java"));
        let failure = Failure::new("create the file", "/w/x", &error);
        (failure.problem, StoreError::from(failure).to_string())
    }

    #[test]
    fn answers_of_the_name_node_say_what_to_do() {
        let cases = [
            ("org.apache.hadoop.hdfs.server.namenode.SafeModeException", "", Problem::SafeMode, "-safemode leave"),
            ("org.apache.hadoop.security.AccessControlException", "", Problem::PermissionDenied, "HADOOP_USER_NAME"),
            ("org.apache.hadoop.hdfs.protocol.DSQuotaExceededException", "", Problem::QuotaExceeded, "-setSpaceQuota"),
            ("org.apache.hadoop.ipc.StandbyException", "", Problem::NoActiveNameNode, "haadmin"),
            ("org.apache.hadoop.hdfs.protocol.RecoveryInProgressException", "", Problem::Recovering, "earlier writer"),
            (
                "java.io.IOException",
                "File /x could only be written to 0 of the 1 minReplication nodes.",
                Problem::TooFewDataNodes,
                "-report",
            ),
            (
                "org.apache.hadoop.fs.FSLimitException$PathComponentTooLongException",
                "",
                Problem::InvalidName,
                "no such name",
            ),
            ("java.io.FileNotFoundException", "File does not exist: /x", Problem::NotFound, "no such file"),
        ];
        for (class, text, wanted, hint) in cases {
            let (problem, shown) = message(class, text);
            assert_eq!(problem, wanted, "{class}");
            assert!(shown.contains(hint) && shown.contains("/w/x") && shown.contains("create the file"), "{shown}");
            assert!(!shown.contains("Some.java"), "{shown}");
        }
    }
}
