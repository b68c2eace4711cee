//! `POST /v1/streams/{stream}`.

use bytes::Bytes;
use serde::Serialize;
use warp::http::StatusCode;
use warp::reply::Response;
use watershed_shared::log::ProduceErrorKind;
use watershed_shared::offsets::OffsetVector;

use super::params::Params;
use super::{Request, reply};
use crate::error::{Code, Error, Result};

#[derive(Serialize)]
struct Accepted {
    accepted: u64,
    offsets: OffsetVector,
}

pub(super) async fn publish(request: Request, stream: String, body: Bytes) -> Result<Response> {
    Params::parse(&request.query, &[])?;
    request.serving.stream(&stream)?;
    let records = lines(&body);
    let count = records.len();
    let published = request.serving.inner.input.ingest.publish(&stream, records).await;
    let published = published.map_err(|e| Error::new(Code::NotReady, e.to_string()))?;
    if let Some(first) = published.failed.first() {
        let message = format!(
            "the log has {} of {count} records; the first that it does not have is on line {}: {}",
            published.accepted,
            first.index + 1,
            first.message
        );
        let code = match first.kind {
            ProduceErrorKind::TooLarge | ProduceErrorKind::BatchTooLarge => Code::TooLarge,
            ProduceErrorKind::Denied => Code::Denied,
            ProduceErrorKind::Failed => Code::NotReady,
        };
        return Err(Error::new(code, message).at(published.next));
    }
    Ok(reply::json(StatusCode::OK, &Accepted { accepted: published.accepted, offsets: published.next }))
}

/// One record a line, as it is, without its end. What follows the last end is a record only if there is something.
fn lines(body: &Bytes) -> Vec<Bytes> {
    let mut lines = Vec::new();
    let mut start = 0;
    while start < body.len() {
        let end = body[start..].iter().position(|b| *b == b'\n').map_or(body.len(), |i| start + i);
        let text = &body[start..end];
        let text_end = if text.last() == Some(&b'\r') { end - 1 } else { end };
        lines.push(body.slice(start..text_end));
        start = end + 1;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_record() {
        let check = |body: &'static str, expected: &[&str]| {
            let found = lines(&Bytes::from_static(body.as_bytes()));
            assert_eq!(found, expected.iter().map(|e| Bytes::copy_from_slice(e.as_bytes())).collect::<Vec<_>>());
        };
        check("", &[]);
        check("a", &["a"]);
        check("a\r\nb\n", &["a", "b"]);
        check("a\n\nb", &["a", "", "b"]);
    }
}
