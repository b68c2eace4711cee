//! Keeps master datasets in large files and deletes what left them long ago.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use watershed_shared::clock::{self, Instant};
use watershed_shared::config::ArchiveConfig;
use watershed_shared::master::{CompactionRule, MasterDataset};
use watershed_shared::offsets::Cut;

/// How often a table is looked after, and by what rule.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub interval: Duration,
    /// Files older than this are compacted wherever the views' cuts lie.
    pub older_than: Duration,
    pub target_file_size_bytes: u64,
    pub vacuum_interval: Duration,
    pub vacuum_retention: Duration,
}

impl From<&ArchiveConfig> for Options {
    fn from(config: &ArchiveConfig) -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        Self {
            interval: Duration::from_secs(10 * 60),
            older_than: day,
            target_file_size_bytes: config.target_file_size_bytes,
            vacuum_interval: day,
            vacuum_retention: config.vacuum_retention,
        }
    }
}

/// Looks after the master dataset of one stream.
#[derive(Debug)]
pub struct Compactor {
    options: Options,
    dataset: MasterDataset,
    /// The meet of the cuts of all views of the stream that have a generation; `None`: none has.
    cuts: watch::Receiver<Option<Cut>>,
}

impl Compactor {
    pub fn new(options: Options, dataset: MasterDataset, cuts: watch::Receiver<Option<Cut>>) -> Self {
        Self { options, dataset, cuts }
    }

    /// Compacts and vacuums until `shutdown`. Several at once are harmless: the slower one's work is thrown away.
    ///
    /// A failure costs nothing but size: it is logged, and the next turn makes up for it.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut vacuumed = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = clock::sleep(self.options.interval) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.turn(&mut vacuumed) => {}
            }
        }
    }

    async fn turn(&self, vacuumed: &mut Option<Instant>) {
        let rule = CompactionRule {
            below: self.cuts.borrow().clone(),
            older_than: self.options.older_than,
            target_file_size_bytes: self.options.target_file_size_bytes,
        };
        let stream = self.dataset.stream();
        match self.dataset.compact(&rule).await {
            Ok(done) if done.files_before > 0 => {
                tracing::info!(stream, before = done.files_before, after = done.files_after, "compacted");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    stream,
                    error = &error as &dyn std::error::Error,
                    "compaction failed, trying again later"
                );
            }
        }
        if vacuumed.is_some_and(|at| at.elapsed() < self.options.vacuum_interval) {
            return;
        }
        match self.dataset.vacuum(self.options.vacuum_retention).await {
            Ok(files) => {
                *vacuumed = Some(Instant::now());
                tracing::debug!(stream, files, "vacuumed");
            }
            Err(error) => {
                tracing::warn!(stream, error = &error as &dyn std::error::Error, "vacuum failed, trying again later");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};
    use watershed_shared::config::{Format, StreamConfig};
    use watershed_shared::decode::{Decoder, RunningMaximum};
    use watershed_shared::offsets::{Offset, OffsetRange, PartitionId};
    use watershed_shared::record::{RawBatch, RawRecord};
    use watershed_shared::storage::Storage;
    use watershed_shared::task;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn files_below_the_cuts_become_one() {
        let stream = StreamConfig {
            name: "lines".to_owned(),
            topic: "lines".to_owned(),
            partitions: 1,
            replication: 1,
            shards: 1,
            format: Format::Text,
            event_time: None,
            allowed_lateness: None,
            max_ahead: Duration::ZERO,
            columns: Arc::new(Schema::new(vec![Field::new("line", DataType::Utf8, false)])),
            json_columns: vec![],
            accept_compacted: false,
            epoch_units: BTreeMap::new(),
        };
        let dataset = MasterDataset::open_or_create(&Storage::memory(), &stream).await.unwrap();
        let mut decoder = Decoder::new(&stream).unwrap();
        for offset in 0..6 {
            let record = RawRecord {
                offset: Offset(offset),
                timestamp: Some(0),
                key: None,
                value: Some("a".into()),
                headers: vec![],
            };
            let range = OffsetRange::new(Offset(offset), Offset(offset + 1));
            let raw = RawBatch { partition: PartitionId(0), range, records: vec![record], leader_epoch: None };
            let batch = Arc::new(decoder.decode(&raw, &mut RunningMaximum::default()));
            dataset.append(&dataset.snapshot().await.unwrap(), &[batch]).await.unwrap();
        }
        let options = Options {
            interval: Duration::from_millis(5),
            older_than: Duration::from_secs(86_400),
            target_file_size_bytes: 1 << 20,
            vacuum_interval: Duration::from_secs(86_400),
            vacuum_retention: Duration::from_secs(86_400),
        };
        let (cuts, watched) = watch::channel(None);
        let shutdown = CancellationToken::new();
        let compactor = Compactor::new(options, dataset.clone(), watched);
        let running = task::spawn("test compactor", compactor.run(shutdown.clone()));
        clock::sleep(Duration::from_millis(100)).await;
        assert_eq!(dataset.snapshot().await.unwrap().files().count(), 6, "no view has a generation");
        cuts.send_replace(Some([(0, 4)].into()));
        let started = Instant::now();
        while dataset.snapshot().await.unwrap().files().count() > 3 {
            assert!(started.elapsed() < Duration::from_secs(60));
            clock::sleep(Duration::from_millis(5)).await;
        }
        shutdown.cancel();
        running.await.unwrap();
        let rows: Vec<_> = dataset.snapshot().await.unwrap().files().map(|f| f.rows.unwrap()).collect();
        assert_eq!((rows.len(), rows.iter().sum::<u64>()), (3, 6));
    }
}
