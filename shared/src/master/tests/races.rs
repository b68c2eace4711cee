//! Writers that race.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::storage::conformance::hdfs_storage;
use crate::task;

/// Archives `until` with commits of random size, as an archiver does; the number of lost races.
async fn archive(dataset: MasterDataset, until: i64, seed: u64) -> u32 {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut lost = 0;
    loop {
        let snapshot = dataset.snapshot().await.unwrap();
        let mut batches = vec![];
        for partition in 0..2 {
            let start = snapshot.archived_until().get(PartitionId(partition)).map_or(0, |o| o.0);
            let end = (start + rng.random_range(1..200)).min(until);
            if start < end {
                // Every tenth record is a dead letter.
                let range = OffsetRange::new(Offset(start), Offset(end));
                let (dead, good): (Vec<i64>, Vec<i64>) = (start..end).partition(|o| o % 10 == 3);
                let mut batch = events_at(partition, range, &good, Some);
                batch.dead_letters = dead.into_iter().map(|o| dead_letter(partition, o)).collect();
                batches.push(Arc::new(batch));
            }
        }
        match dataset.append(&snapshot, &batches).await.unwrap() {
            AppendOutcome::Committed(commit) => {
                let events: usize = batches.iter().map(|b| b.events.num_rows()).sum();
                assert_eq!(commit.events, events as u64);
            }
            AppendOutcome::Conflict => lost += 1,
            AppendOutcome::Nothing => return lost,
        }
    }
}

async fn each_offset_once(storage: Storage, until: i64) -> u32 {
    let mut archivers = vec![];
    for seed in 0..3 {
        let storage = storage.clone();
        archivers.push(task::spawn("test archiver", async move {
            let dataset = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
            archive(dataset, until, seed).await
        }));
    }
    let mut lost = 0;
    for archiver in archivers {
        lost += archiver.await.unwrap();
    }
    let dataset = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    let snapshot = dataset.snapshot().await.unwrap();
    assert_eq!(*snapshot.archived_until(), [(0, until), (1, until)].into());
    let all = [pairs(0, 0..until), pairs(1, 0..until)].concat();
    let (dead, good): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, o)| o % 10 == 3);
    assert_eq!(offsets(snapshot.scan_archived().unwrap()).await, good);
    assert_eq!(offsets(dataset.dead_letters().await.unwrap()).await, dead);
    let (_, _, rows) = as_plain_delta_reader(&dataset).await;
    assert_eq!(rows, good.len());
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_archivers_archive_each_offset_once() {
    let folder = tempfile::tempdir().unwrap();
    let lost = each_offset_once(file_storage(&folder), 5_000).await;
    assert!(lost > 0, "they must have raced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_archivers_archive_each_offset_once_in_memory() {
    assert!(each_offset_once(Storage::memory(), 5_000).await > 0, "they must have raced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_archivers_archive_each_offset_once_on_a_real_hdfs() {
    let Some(storage) = hdfs_storage() else { return };
    one_creates_the_table(storage.clone()).await;
    assert!(each_offset_once(storage, 3_000).await > 0, "they must have raced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_many_creates_the_table() {
    one_creates_the_table(Storage::memory()).await;
}

async fn one_creates_the_table(storage: Storage) {
    let mut openers = vec![];
    for _ in 0..8 {
        let storage = storage.clone();
        openers.push(task::spawn("test opener", async move {
            MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap().snapshot().await.unwrap().version()
        }));
    }
    for opener in openers {
        assert_eq!(opener.await.unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_rests_on_the_snapshot_of_its_offsets() {
    let storage = Storage::memory();
    let a = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    let b = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    let (of_a, of_b) = (a.snapshot().await.unwrap(), b.snapshot().await.unwrap());
    let batch = |p, end| vec![Arc::new(events(p, 0..end, |_| None))];
    assert!(matches!(a.append(&of_a, &batch(0, 5)).await.unwrap(), AppendOutcome::Committed(_)));
    assert_eq!(b.append(&of_b, &batch(0, 5)).await.unwrap(), AppendOutcome::Conflict);
    // Another partition's offsets were not moved: the same snapshot still holds for them.
    let AppendOutcome::Committed(commit) = b.append(&of_b, &batch(1, 3)).await.unwrap() else { panic!("a conflict") };
    assert_eq!((commit.version, commit.archived_until), (2, [(0, 5), (1, 3)].into()));
    assert_eq!(
        offsets(a.snapshot().await.unwrap().scan_archived().unwrap()).await,
        [pairs(0, 0..5), pairs(1, 0..3)].concat()
    );
}
