//! `POST /v1/streams/{stream}`.

use bytes::Bytes;
use serde::Serialize;
use warp::http::StatusCode;
use warp::reply::Response;
use watershed_shared::config::Format;
use watershed_shared::log::{ProduceError, ProduceErrorKind};
use watershed_shared::offsets::OffsetVector;

use super::body::Records;
use super::params::Params;
use super::{Request, reply};
use crate::error::{Code, Error, LineError, PartlyPublished, Result};

/// How many records are listed that the log does not have; `accepted` counts those that it has.
const LISTED_ERRORS: usize = 1_000;

#[derive(Serialize)]
struct Accepted {
    accepted: u64,
    offsets: OffsetVector,
}

pub(super) async fn publish(request: Request, stream: String, body: Records) -> Result<Response> {
    Params::parse(&request.query, &[])?;
    let format = &request.serving.stream(&stream)?.config.format;
    if matches!(format, Format::Avro(_)) {
        let message = format!(
            "stream `{stream}` has format = \"avro\", and lines are no Avro records: publish with a Kafka client and the Avro \
             serializer of its schema registry"
        );
        return Err(Error::new(Code::BadRequest, message));
    }
    let blank_lines = *format == Format::Text;
    let ingest = &request.serving.inner.input.ingest;
    let Records { bytes, memory } = body;
    let (places, records) = lines(&bytes, blank_lines);
    let limit = ingest.max_record_bytes();
    if let Some((place, record)) = places.iter().zip(&records).find(|(_, record)| record.len() > limit) {
        let message = format!(
            "line {place} has {} bytes, and a record may have {limit} (`\"message.max.bytes\"` in [kafka]); nothing was \
             published",
            record.len()
        );
        return Err(Error::new(Code::TooLarge, message));
    }
    let published = ingest.publish(&stream, records).await;
    drop((bytes, memory));
    let published = published.map_err(|e| Error::new(Code::NotReady, e.to_string()))?;
    if let Some(first) = published.failed.first() {
        let message = format!(
            "the log has {} of {} records; the first that it does not have is on line {}: {}",
            published.accepted,
            places.len(),
            places[first.index],
            first.message
        );
        let code = match first.kind {
            ProduceErrorKind::TooLarge | ProduceErrorKind::BatchTooLarge => Code::TooLarge,
            ProduceErrorKind::Denied => Code::Denied,
            ProduceErrorKind::Failed => Code::NotReady,
        };
        let of_line = |e: &ProduceError| LineError { line: places[e.index], error: e.message.clone() };
        let errors = published.failed.iter().take(LISTED_ERRORS).map(of_line).collect();
        let partly = PartlyPublished { accepted: published.accepted, offsets: published.next, errors };
        return Err(Error::new(code, message).but(partly));
    }
    Ok(reply::json(StatusCode::OK, &Accepted { accepted: published.accepted, offsets: published.next }))
}

/// One record a line, as it is, without its end, and on which line it is. What follows the last end is a record only if
/// there is something. Blank lines are none, as for `watershed produce`, unless they are what the stream consists of.
fn lines(body: &Bytes, blank_lines: bool) -> (Vec<usize>, Vec<Bytes>) {
    let (mut places, mut lines) = (Vec::new(), Vec::new());
    let (mut start, mut line) = (0, 0);
    while start < body.len() {
        let end = body[start..].iter().position(|b| *b == b'\n').map_or(body.len(), |i| start + i);
        let text = &body[start..end];
        let text_end = if text.last() == Some(&b'\r') { end - 1 } else { end };
        line += 1;
        if blank_lines || !text.trim_ascii().is_empty() {
            places.push(line);
            lines.push(body.slice(start..text_end));
        }
        start = end + 1;
    }
    (places, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_record() {
        let check = |body: &'static str, blank_lines, places: &[usize], expected: &[&str]| {
            let (on, found) = lines(&Bytes::from_static(body.as_bytes()), blank_lines);
            assert_eq!(found, expected.iter().map(|e| Bytes::copy_from_slice(e.as_bytes())).collect::<Vec<_>>());
            assert_eq!(on, places);
        };
        check("", false, &[], &[]);
        check("a", false, &[1], &["a"]);
        check("a\r\nb\n", false, &[1, 2], &["a", "b"]);
        check("a\n\nb\n \r\n\n", false, &[1, 3], &["a", "b"]);
        check("a\n\nb\n", true, &[1, 2, 3], &["a", "", "b"]);
    }
}
