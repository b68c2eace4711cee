//! What a stream's feed needs of the master dataset, and the archiver of the feed.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use watershed_batch_layer::archiver;
use watershed_shared::log::{self, Seed, Seeds, SeedsError, StreamFeed};
use watershed_shared::master::MasterDataset;
use watershed_shared::offsets::{OffsetVector, PartitionId};
use watershed_shared::record::DecodedBatch;

/// Where decoding begins: behind what is archived, else at the recorded origin.
pub(super) struct Archived {
    pub(super) master: MasterDataset,
    pub(super) origins: watch::Receiver<OffsetVector>,
}

#[async_trait]
impl Seeds for Archived {
    async fn resume(&self) -> Result<BTreeMap<PartitionId, Seed>, SeedsError> {
        let snapshot = self.master.snapshot().await?;
        let archived = snapshot.resume().await?;
        let origins = self.origins.borrow().clone();
        let mut seeds: BTreeMap<PartitionId, Seed> =
            origins.iter().map(|(p, o)| (p, Seed { archived_until: o, event_time_max: None })).collect();
        seeds.extend(archived);
        Ok(seeds)
    }
}

/// The archiver's batches come from the stream's shared feed.
#[derive(Debug)]
pub(super) struct FeedSource(pub(super) StreamFeed);

impl archiver::Source for FeedSource {
    fn open(&self, from: OffsetVector) -> Box<dyn archiver::Reader> {
        Box::new(FeedBatches(self.0.reader(from)))
    }
}

struct FeedBatches(log::FeedReader);

#[async_trait]
impl archiver::Reader for FeedBatches {
    async fn next(&mut self) -> log::Result<Arc<DecodedBatch>> {
        self.0.next().await
    }
}
