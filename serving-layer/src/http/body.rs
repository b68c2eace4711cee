//! Reads bodies: up to a size, as long as they come, and those of records in memory that all of them share.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use watershed_shared::clock;

use super::Request;
use super::encoding::{self, Encoding};
use crate::error::{Code, Error, Result};

/// Below this rate a body is late, once `body_timeout` is over.
const LEAST_BYTES_PER_SECOND: usize = 16 << 10;

/// Records to be published, and the memory that they are given.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) bytes: Bytes,
    /// To be kept as long as the bytes are.
    pub(super) memory: Memory,
}

/// The body of a request that publishes.
///
/// # Errors
/// `too_many_requests` when all such bodies together take all the memory that they may.
pub(super) async fn records<B: Buf>(request: &Request, body: impl Parts<B>) -> Result<Records> {
    let settings = &request.serving.inner.input.settings;
    // What can never be taken is not put off.
    let limit = settings.max_publish_bytes.min(settings.publish_memory_bytes);
    let encoding = Encoding::of(request.content_encoding.as_deref())?;
    let all = &request.serving.inner.publishing;
    let mut memory = Memory::of(all);
    let bytes = capped(body, limit, settings.body_timeout, |more| memory.grow(more)).await?;
    if encoding == Encoding::Identity {
        return Ok(Records { bytes, memory });
    }
    let mut inflated_memory = Memory::of(all);
    blocking(move || {
        let inflated = encoding::inflated(&bytes, limit, |more| inflated_memory.grow(more));
        drop((bytes, memory));
        Ok(Records { bytes: inflated?, memory: inflated_memory })
    })
    .await
}

/// The body of any other request.
pub(super) async fn small<B: Buf>(request: &Request, body: impl Parts<B>) -> Result<Bytes> {
    let settings = &request.serving.inner.input.settings;
    let limit = settings.max_body_bytes;
    let encoding = Encoding::of(request.content_encoding.as_deref())?;
    let bytes = capped(body, limit, settings.body_timeout, |_| Ok(())).await?;
    match encoding {
        Encoding::Identity => Ok(bytes),
        Encoding::Gzip => blocking(move || encoding::inflated(&bytes, limit, |_| Ok(()))).await,
    }
}

/// Does what takes time, where nobody else waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

/// A body's part of the memory of all.
#[derive(Debug)]
pub(super) struct Memory(OwnedSemaphorePermit);

impl Memory {
    fn of(all: &Arc<Semaphore>) -> Self {
        Self(Arc::clone(all).try_acquire_many_owned(0).expect("nothing can be had of any memory"))
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    /// `too_many_requests`. Nobody waits with what he has: two could wait for each other.
    fn grow(&mut self, bytes: usize) -> Result<()> {
        let more =
            u32::try_from(bytes).ok().and_then(|more| Arc::clone(self.0.semaphore()).try_acquire_many_owned(more).ok());
        match more {
            Some(more) => {
                self.0.merge(more);
                Ok(())
            }
            None => Err(Error::new(
                Code::TooManyRequests,
                "the bodies that are being published take all the memory that they may (`publish_memory` under \
                 [serving]); nothing of this one was published: try again",
            )),
        }
    }
}

/// A body as it comes.
pub(super) trait Parts<B>: Stream<Item = std::result::Result<B, warp::Error>> {}

impl<B, S: Stream<Item = std::result::Result<B, warp::Error>>> Parts<B> for S {}

/// The body, up to `limit` bytes: what is longer, or does not come, is not read to its end. `grow` is told of each part
/// before it is kept.
async fn capped<B: Buf>(
    body: impl Parts<B>,
    limit: usize,
    timeout: Duration,
    mut grow: impl FnMut(usize) -> Result<()>,
) -> Result<Bytes> {
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
        grow(part.remaining())?;
        bytes.extend_from_slice(&part.copy_to_bytes(part.remaining()));
    }
}
