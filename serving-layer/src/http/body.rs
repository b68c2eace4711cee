//! Reads bodies: up to a size, and as long as they come.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use watershed_shared::clock;

use super::{Request, encoding};
use crate::error::{Code, Error, Result};

/// Below this rate a body is late, once `body_timeout` is over.
const LEAST_BYTES_PER_SECOND: usize = 16 << 10;

/// The body of a request that publishes.
pub(super) async fn records<B: Buf>(request: &Request, body: impl Parts<B>) -> Result<Bytes> {
    let settings = &request.serving.inner.input.settings;
    let limit = settings.max_publish_bytes;
    let bytes = capped(body, limit, settings.body_timeout).await?;
    encoding::decoded(request.content_encoding.as_deref(), bytes, limit)
}

/// The body of any other request.
pub(super) async fn small<B: Buf>(request: &Request, body: impl Parts<B>) -> Result<Bytes> {
    let settings = &request.serving.inner.input.settings;
    let limit = settings.max_body_bytes;
    let bytes = capped(body, limit, settings.body_timeout).await?;
    encoding::decoded(request.content_encoding.as_deref(), bytes, limit)
}

/// A body as it comes.
pub(super) trait Parts<B>: Stream<Item = std::result::Result<B, warp::Error>> {}

impl<B, S: Stream<Item = std::result::Result<B, warp::Error>>> Parts<B> for S {}

/// The body, up to `limit` bytes: what is longer, or does not come, is not read to its end.
async fn capped<B: Buf>(body: impl Parts<B>, limit: usize, timeout: Duration) -> Result<Bytes> {
    let started = clock::Instant::now();
    let mut bytes = BytesMut::new();
    let mut body = std::pin::pin!(body);
    loop {
        let due = started + timeout + Duration::from_secs((bytes.len() / LEAST_BYTES_PER_SECOND) as u64);
        let Ok(part) = tokio::time::timeout_at(due, body.next()).await else {
            let (seconds, rate) = (started.elapsed().as_secs_f64(), LEAST_BYTES_PER_SECOND >> 10);
            let message = format!(
                "the body is not complete: {} bytes of it have come in {seconds:.1} seconds, and it must come at {rate} \
                 KiB/s or faster",
                bytes.len(),
            );
            return Err(Error::new(Code::RequestTimeout, message));
        };
        let Some(part) = part else { return Ok(bytes.freeze()) };
        let mut part = part.map_err(|e| Error::new(Code::BadRequest, format!("the body cannot be read: {e}")))?;
        if bytes.len() + part.remaining() > limit {
            return Err(Error::new(Code::TooLarge, format!("the body has more than {limit} bytes")));
        }
        bytes.extend_from_slice(&part.copy_to_bytes(part.remaining()));
    }
}
