//! Decoding off the async threads, in order per partition.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::config::StreamConfig;
use crate::decode::{Decoder, RunningMaximum};
use crate::log::error::{Error, Result};
use crate::offsets::PartitionId;
use crate::record::{DecodedBatch, RawBatch, RawRecord};
use crate::schemas::Schemas;

/// Batches up to these sizes are decoded in less time than it takes to hand them to another thread and back, while all
/// threads are busy: at the log's end they are what is waited for.
const FEW_RECORDS: usize = 512;
const FEW_BYTES: usize = 64 << 10;

/// A decoder with the running maximum of each partition.
#[derive(Debug)]
pub(super) struct Decoding {
    decoder: Decoder,
    stream: String,
    /// What a decoder of Avro learns from.
    schemas: Option<Schemas>,
    maxima: BTreeMap<PartitionId, RunningMaximum>,
}

impl Decoding {
    /// `maxima`: the running maximum in front of the first record that will be decoded, in microseconds.
    pub(super) fn new(
        config: &StreamConfig,
        schemas: Option<&Schemas>,
        maxima: impl IntoIterator<Item = (PartitionId, Option<i64>)>,
    ) -> Result<Self> {
        let decoder =
            Decoder::new(config).map_err(|e| Error::Decoder { stream: config.name.clone(), detail: e.to_string() })?;
        let maxima = maxima.into_iter().map(|(p, event_time_max)| (p, RunningMaximum { event_time_max })).collect();
        Ok(Self { decoder, stream: config.name.clone(), schemas: schemas.cloned(), maxima })
    }

    /// Decodes the next batch of its partition; a large one on a thread that may be busy for a while.
    ///
    /// # Errors
    /// [`Error::Schemas`] if what a writer's schema is cannot be told now.
    pub(super) async fn decode(mut self, raw: RawBatch) -> Result<(Self, DecodedBatch)> {
        self.learn(&raw).await?;
        if is_small(&raw) {
            let decoded = self.decode_here(&raw);
            return Ok((self, decoded));
        }
        let decode = move || {
            let decoded = self.decode_here(&raw);
            (self, decoded)
        };
        tokio::task::spawn_blocking(decode).await.map_err(|e| Error::client("decode a batch", e))
    }

    async fn learn(&mut self, raw: &RawBatch) -> Result<()> {
        let unknown = self.decoder.unknown_schemas(raw);
        if unknown.is_empty() {
            return Ok(());
        }
        let failed = |detail: String| Error::Schemas { stream: self.stream.clone(), detail };
        let schemas = self.schemas.as_ref().ok_or_else(|| failed("this reader has no schema registry".to_owned()))?;
        let settled = schemas.settle(unknown).await.map_err(|e| failed(e.to_string()))?;
        for (id, schema) in settled {
            self.decoder.learn(id, &schema);
        }
        Ok(())
    }

    fn decode_here(&mut self, raw: &RawBatch) -> DecodedBatch {
        let maximum = self.maxima.entry(raw.partition).or_default();
        let mut decoded = self.decoder.decode(raw, maximum);
        // A dead letter shares the memory of the whole batch that it came in, so it would keep that alive.
        for dead in &mut decoded.dead_letters {
            unshare(&mut dead.record);
        }
        decoded
    }
}

fn is_small(raw: &RawBatch) -> bool {
    let bytes = |record: &RawRecord| record.value.as_ref().map_or(0, Bytes::len);
    raw.records.len() <= FEW_RECORDS && raw.records.iter().map(bytes).sum::<usize>() <= FEW_BYTES
}

fn unshare(record: &mut RawRecord) {
    for bytes in [&mut record.key, &mut record.value].into_iter().flatten() {
        *bytes = Bytes::copy_from_slice(bytes);
    }
}
