//! What a request is answered with when it cannot be answered: one list of codes, each with its status.

use serde::Serialize;
use warp::http::StatusCode;
use watershed_shared::offsets::{OffsetVector, Position};
use watershed_shared::paths;
use watershed_shared::run::Fault;
use watershed_shared::storage;

/// The codes of `{"error": {"code", "message"}}`. Clients match on them: none may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The SQL of a statement is wrong; the message names the place.
    BadSql,
    /// A parameter in the query string is wrong; the message names it.
    BadParameter,
    /// The body, its type or its encoding is wrong.
    BadRequest,
    /// The Kafka cluster does not let this process do it.
    Denied,
    NotFound,
    MethodNotAllowed,
    UnknownView,
    UnknownStream,
    UnknownGeneration,
    UnknownBuild,
    /// A build of the view is under way.
    AlreadyRunning,
    /// What was to be changed is over.
    Finished,
    /// The cursor to resume from is no longer kept: begin again.
    CursorGone,
    /// The body comes in an encoding that is not known.
    UnsupportedMediaType,
    /// A body or a result is larger than allowed.
    TooLarge,
    /// The body did not come in time.
    RequestTimeout,
    /// As many requests as allowed are under way: try again.
    TooManyRequests,
    /// It failed here; the log has the details.
    Internal,
    /// This process cannot do that at all.
    NotSupported,
    /// The view cannot be answered yet.
    NotReady,
    /// The storage does not answer, or refuses: what is not in memory cannot be read. Try again.
    StorageUnavailable,
    /// `min_complete` was asked for and the answer would be incomplete.
    Incomplete,
    /// The time is over; the message says the position.
    Timeout,
}

impl Code {
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadSql | Self::BadParameter | Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::NotFound | Self::UnknownView | Self::UnknownStream | Self::UnknownGeneration | Self::UnknownBuild => {
                StatusCode::NOT_FOUND
            }
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::AlreadyRunning | Self::Finished => StatusCode::CONFLICT,
            Self::CursorGone => StatusCode::GONE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotSupported => StatusCode::NOT_IMPLEMENTED,
            Self::NotReady | Self::StorageUnavailable | Self::Incomplete => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// As it stands in the body.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadSql => "bad_sql",
            Self::BadParameter => "bad_parameter",
            Self::BadRequest => "bad_request",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::UnknownView => "unknown_view",
            Self::UnknownStream => "unknown_stream",
            Self::UnknownGeneration => "unknown_generation",
            Self::UnknownBuild => "unknown_build",
            Self::AlreadyRunning => "already_running",
            Self::Finished => "finished",
            Self::CursorGone => "cursor_gone",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::TooLarge => "too_large",
            Self::RequestTimeout => "request_timeout",
            Self::TooManyRequests => "too_many_requests",
            Self::Internal => "internal",
            Self::NotSupported => "not_supported",
            Self::NotReady => "not_ready",
            Self::StorageUnavailable => "storage_unavailable",
            Self::Incomplete => "incomplete",
            Self::Timeout => "timeout",
        }
    }
}

/// Why a request is not answered, as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct Error {
    pub code: Code,
    pub message: String,
    /// Where the view stands, in a `timeout`; where the records end that were published.
    pub position: Option<Position>,
    /// What was done of the request all the same.
    pub partly: Option<Box<PartlyPublished>>,
}

/// What the log has of records that it has not taken all of, and which it does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartlyPublished {
    pub accepted: u64,
    /// Per partition the offset behind the last of them.
    pub offsets: OffsetVector,
    /// The first of the others.
    pub errors: Vec<LineError>,
}

/// A record that the log does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LineError {
    /// In the body, from 1.
    pub line: usize,
    pub error: String,
}

/// What everything behind a route answers.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), position: None, partly: None }
    }

    /// With the position that had been reached.
    pub fn at(mut self, position: Position) -> Self {
        self.position = Some(position);
        self
    }

    /// With what was done all the same.
    pub(crate) fn but(self, partly: PartlyPublished) -> Self {
        Self { position: Some(partly.offsets.clone()), partly: Some(Box::new(partly)), ..self }
    }

    pub(crate) fn bad_parameter(name: &str, message: impl std::fmt::Display) -> Self {
        Self::new(Code::BadParameter, format!("parameter `{name}`: {message}"))
    }

    pub(crate) fn internal(error: impl std::fmt::Display) -> Self {
        Self::new(Code::Internal, error.to_string())
    }

    /// Something could not be read: the storage is away, or what it has is not what was written.
    pub(crate) fn read(error: impl std::error::Error + 'static) -> Self {
        if let Some(fault) = Fault::behind(&error) {
            return Self::unreadable(fault);
        }
        if let Some(said) = storage::unavailable(&error) {
            return Self::new(Code::StorageUnavailable, said);
        }
        let causes: Vec<String> = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source())
            .map(ToString::to_string)
            .collect();
        let message = format!("what the answer is made of cannot be read: {}", causes.join(": "));
        tracing::error!("{message}");
        Self::new(Code::NotReady, message)
    }

    /// A file that a record names is missing or damaged, and stays so until somebody, or a build, puts it right.
    pub(crate) fn unreadable(fault: &Fault) -> Self {
        tracing::error!(%fault, "a file cannot be read");
        let message = match paths::view_of(fault.path()) {
            Some(view) => format!(
                "view `{view}`: {fault}; a rebuild of the view makes it anew, and is started by itself if the file \
                 belongs to the generation that answers"
            ),
            None => format!("{fault}; it is part of a master dataset, which nothing can make anew: restore it"),
        };
        Self::new(Code::NotReady, message)
    }

    /// Names the nearest of `known` when there is one that is near.
    pub(crate) fn unknown<'a>(code: Code, what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> Self {
        let nearest = known
            .map(|k| (strsim::damerau_levenshtein(k, name), k))
            .filter(|(distance, k)| *distance <= 1 + k.len().max(name.len()) / 3)
            .min();
        let hint = nearest.map(|(_, k)| format!("; did you mean `{k}`?")).unwrap_or_default();
        Self::new(code, format!("there is no {what} `{name}`{hint}"))
    }
}

#[derive(Serialize)]
struct Body<'a> {
    error: BodyError<'a>,
    #[serde(flatten)]
    partly: Option<&'a PartlyPublished>,
}

#[derive(Serialize)]
struct BodyError<'a> {
    code: Code,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<&'a Position>,
}

impl Error {
    /// The body as the contract has it.
    pub fn to_json(&self) -> String {
        let error = BodyError { code: self.code, message: &self.message, position: self.position.as_ref() };
        let partly = self.partly.as_deref();
        serde_json::to_string(&Body { error, partly }).expect("strings and numbers serialize")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_brings_up_the_nearest() {
        let known = ["events_per_hour", "users"];
        let error = Error::unknown(Code::UnknownView, "view", "event_per_hour", known.into_iter());
        assert_eq!(
            error.to_json(),
            r#"{"error":{"code":"unknown_view","message":"there is no view `event_per_hour`; did you mean `events_per_hour`?"}}"#
        );
        let error = Error::unknown(Code::UnknownView, "view", "zzzzzz", known.into_iter());
        assert_eq!(error.message, "there is no view `zzzzzz`");
    }

    #[test]
    fn the_code_in_the_body_is_the_code_in_messages() {
        for code in [Code::BadSql, Code::AlreadyRunning, Code::TooManyRequests, Code::CursorGone, Code::Timeout] {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
