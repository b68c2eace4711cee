use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use watershed_shared::config::Config;
use watershed_shared::decode::{Decoder, RunningMaximum};
use watershed_shared::delta::{SealError, StreamDelta};
use watershed_shared::log;
use watershed_shared::offsets::{Offset, OffsetRange, PartitionId};
use watershed_shared::record::{DecodedBatch, RawBatch, RawRecord};

use super::*;
use crate::archiver::{Archiver, Losses, LossesError, Options, Reader, Source};

const CONFIG: &str = r#"
[batch]
archive_wait = "5 seconds"
[stream.numbers]
partitions = 2
format = "json"
columns = "n INT"
[view.sums]
sql = "SELECT n % 3 AS k, count(*) AS c, sum(n) AS s FROM numbers GROUP BY 1"
"#;

/// A worker that has sealed at these offsets.
#[derive(Debug)]
struct Sealed(watch::Sender<Arc<StreamDelta>>);

#[async_trait]
impl DeltaService for Sealed {
    fn watch(&self) -> watch::Receiver<Arc<StreamDelta>> {
        self.0.subscribe()
    }

    async fn seal(&self) -> Result<Cut, SealError> {
        Ok(self.0.borrow().position.clone())
    }
}

/// A log from which nothing comes any more.
#[derive(Debug)]
struct Silent;

impl Source for Silent {
    fn open(&self, _: OffsetVector) -> Box<dyn Reader> {
        Box::new(Self)
    }
}

#[async_trait]
impl Reader for Silent {
    async fn next(&mut self) -> log::Result<Arc<DecodedBatch>> {
        std::future::pending().await
    }
}

#[async_trait]
impl Losses for Silent {
    async fn record(&self, partition: PartitionId, _: Offset, _: Offset) -> Result<(), LossesError> {
        Err(format!("nothing was lost of {partition}").into())
    }

    fn passed(&self) {}
}

/// Partition 0 begins at 30 and holds records until 50; partition 1 has none left, and would go on at 9.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_partition_that_stands_at_its_origin_nothing_need_be_archived() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Storage::memory();
    let config = Config::parse(CONFIG, Path::new("/tmp"), &|_: &str| None).expect("the configuration is right");
    let stream = config.streams["numbers"].clone();
    let master = MasterDataset::open_or_create(&storage, &stream).await.unwrap();
    let batch = records(&stream, 30..50);
    let snapshot = master.snapshot().await.unwrap();
    master.append(&snapshot, &[Arc::new(batch)]).await.unwrap();

    let definitions = Definitions::new(storage.clone(), config.streams.clone());
    let (definition, _) = definitions.configured(&config.views["sums"], &BTreeMap::new()).unwrap();
    let register = Register::<ViewState>::open(&storage, "views", "sums");
    register.append(0, ViewEvent::Defined { definition: Box::new(definition) }).await.unwrap();

    let origins: OffsetVector = [(0, 30), (1, 9)].into();
    let position: OffsetVector = [(0, 50), (1, 9)].into();
    let delta = StreamDelta {
        stream: "numbers".to_owned(),
        position: position.clone(),
        origins: origins.clone(),
        log_end: position.clone(),
        oldest_pending: None,
        partitions: BTreeMap::new(),
        views: BTreeMap::new(),
        reasons: vec![],
    };
    let options = Options {
        commit_interval: Duration::from_millis(20),
        target_file_size_bytes: 1 << 20,
        first_backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(10),
    };
    let (archiver, archive) =
        Archiver::new(options, master.clone(), Arc::new(Silent), Arc::new(Silent), origins.clone());
    let shutdown = CancellationToken::new();
    let archiving = task::spawn("test archiver", archiver.run(shutdown.clone()));
    let target = BuildTarget {
        view: "sums".to_owned(),
        register: register.clone(),
        master,
        delta: Some(Arc::new(Sealed(watch::Sender::new(Arc::new(delta))))),
        archive,
        origins: watch::channel(origins).1,
    };
    let builder = Builder::new(BuilderOptions {
        storage: storage.clone(),
        history: History::open(storage.clone()).await.unwrap(),
        definitions,
        settings: config.batch.clone(),
        spill_dir: folder.path().join("spill"),
        holder: "test".to_owned(),
        targets: vec![target],
        shutdown: shutdown.clone(),
    });
    for mode in [BuildMode::Rebuild, BuildMode::Refresh, BuildMode::Rebuild] {
        let request = BuildRequest { view: "sums".to_owned(), mode, base: None, trigger: Trigger::Manual };
        let plan = builder.dry_run(&request).await.unwrap();
        assert_eq!(plan.offsets_to_read, if mode == BuildMode::Refresh { 0 } else { 20 });
        let id = builder.start(request).await.unwrap().id;
        let mut status = builder.history().watch(&id).unwrap();
        let ended = status.wait_for(|s| s.state.is_final()).await.unwrap().clone();
        assert_eq!(ended.state, BuildState::Succeeded, "{mode:?}: {:?}", ended.error);
        builder.drained().await;
    }
    let state = register.state().await.unwrap();
    let generation = state.active_generation().unwrap();
    assert_eq!(generation.cut, position);
    assert_eq!(generation.events, 20);
    let coverage = generation.runs[0].coverage.clone();
    assert_eq!(coverage.iter().collect::<Vec<_>>(), [(PartitionId(0), OffsetRange::new(Offset(30), Offset(50)))]);
    shutdown.cancel();
    archiving.await.unwrap().unwrap();
}

fn records(stream: &watershed_shared::config::StreamConfig, offsets: std::ops::Range<i64>) -> DecodedBatch {
    let record = |offset| RawRecord {
        offset: Offset(offset),
        timestamp: Some(offset),
        key: None,
        value: Some(format!("{{\"n\":{offset}}}").into()),
        headers: vec![],
    };
    let range = OffsetRange::new(Offset(offsets.start), Offset(offsets.end));
    let raw = RawBatch { partition: PartitionId(0), range, records: offsets.map(record).collect() };
    Decoder::new(stream).unwrap().decode(&raw, &mut RunningMaximum::default())
}
