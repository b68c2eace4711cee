//! Checkpoints, compaction, vacuum.

use deltalake_core::table::config::TablePropertiesExt;
use object_store::ObjectStoreExt;

use super::*;
use crate::abort_point::{AbortPoint, scope};
use crate::clock;
use crate::paths;
use crate::storage::conformance::hdfs_storage;

fn everything() -> CompactionRule {
    CompactionRule { below: None, older_than: Duration::ZERO, target_file_size_bytes: 1 << 20 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_holds_all_that_a_reader_needs() {
    let folder = tempfile::tempdir().unwrap();
    let storage = file_storage(&folder);
    let dataset = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    append(&dataset, vec![events(1, 0..1, |_| None)]).await;
    for offset in 0..104 {
        append(&dataset, vec![events(0, offset..offset + 1, |o| Some(o % 3 * DAY))]).await;
    }
    let log = paths::stream("github").join("_delta_log");
    assert!(storage.head(&log.clone().join("_last_checkpoint")).await.unwrap().is_some());
    // All before it may be cleaned up.
    for version in 0..100 {
        storage.delete(&log.clone().join(format!("{version:020}.json"))).await.unwrap();
    }
    let reopened = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    let snapshot = reopened.snapshot().await.unwrap();
    assert_eq!(snapshot.version(), 105);
    assert_eq!(*snapshot.archived_until(), [(0, 104), (1, 1)].into());
    assert_eq!(offsets(snapshot.scan_archived().unwrap()).await, [pairs(0, 0..104), pairs(1, 0..1)].concat());
    for file in snapshot.files() {
        assert_eq!(file.rows, Some(1));
        assert_eq!(file.offsets, dataset.snapshot().await.unwrap().state.files[&file.path].offsets);
        assert_eq!(file.date, dataset.snapshot().await.unwrap().state.files[&file.path].date);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_slept_through_a_clean_up_reads_the_table_anew() {
    let storage = Storage::memory();
    let sleeper = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    let old = sleeper.snapshot().await.unwrap();
    let dataset = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    for offset in 0..101 {
        append(&dataset, vec![events(0, offset..offset + 1, |_| None)]).await;
    }
    let log = paths::stream("github").join("_delta_log");
    for version in 0..100 {
        storage.delete(&log.clone().join(format!("{version:020}.json"))).await.unwrap();
    }
    // Its version is free again, and nobody would ever see a commit there.
    let outcome = sleeper.append(&old, &[Arc::new(events(0, 0..7, |_| None))]).await.unwrap();
    assert_eq!(outcome, AppendOutcome::Conflict);
    let snapshot = sleeper.snapshot().await.unwrap();
    assert_eq!((snapshot.version(), snapshot.archived_until()), (101, &[(0, 101)].into()));
    assert_eq!(offsets(snapshot.scan_archived().unwrap()).await, pairs(0, 0..101));

    let third = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    assert_eq!(offsets(third.snapshot().await.unwrap().scan_archived().unwrap()).await, pairs(0, 0..101));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_keeps_rows_partitions_and_statistics() {
    let storage = Storage::memory();
    let dataset = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    for i in 0..10 {
        append(&dataset, vec![events(0, i * 5..i * 5 + 5, |o| Some(o % 2 * DAY + o)), events(1, i..i + 1, |_| None)])
            .await;
    }
    let before = dataset.snapshot().await.unwrap();
    let all = [pairs(0, 0..50), pairs(1, 0..10)].concat();
    let done = dataset.compact(&everything()).await.unwrap();
    assert_eq!((done.files_before, done.files_after), (30, 3));

    let after = dataset.snapshot().await.unwrap();
    assert_eq!(after.files().count(), 3);
    assert_eq!(after.archived_until(), before.archived_until());
    assert_eq!(offsets(after.scan_archived().unwrap()).await, all);
    assert_eq!(offsets(before.scan_archived().unwrap()).await, all, "the old version's files are still there");
    for cut in 0..50 {
        let found = offsets(after.scan(Some(&[(0, cut)].into()), &[(0, 50)].into()).unwrap()).await;
        assert_eq!(found, pairs(0, cut..50));
    }
    for file in after.files() {
        assert!(file.partition.is_some() && file.offsets.is_some() && file.rows.is_some(), "{file:?}");
        if file.partition == Some(PartitionId(0)) {
            let bounds = file.bounds["at"];
            let day = i64::from(file.date.unwrap() == chrono::NaiveDate::from_ymd_opt(1970, 1, 2).unwrap());
            assert!(bounds.min.unwrap() <= day * DAY + 1 && bounds.max.unwrap() < day * DAY + 10_000, "{bounds:?}");
        }
    }
    assert_eq!(as_plain_delta_reader(&dataset).await.2, 60);
    assert_eq!(dataset.compact(&everything()).await.unwrap(), Compaction::default(), "there is nothing left to do");
    let reopened = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    assert_eq!(offsets(reopened.snapshot().await.unwrap().scan_archived().unwrap()).await, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_files_below_all_cuts_or_old_ones_are_compacted() {
    let dataset = MasterDataset::open_or_create(&Storage::memory(), &small_stream()).await.unwrap();
    for i in 0..8 {
        append(&dataset, vec![events(0, i * 5..i * 5 + 5, |_| None)]).await;
    }
    let files: Vec<_> = dataset.snapshot().await.unwrap().files().cloned().collect();
    let rule = |below: Option<i64>, older_than, target_file_size_bytes| CompactionRule {
        below: below.map(|cut| [(0, cut)].into()),
        older_than,
        target_file_size_bytes,
    };
    let day = Duration::from_secs(86_400);
    let now = clock::now();
    let sizes =
        |rule: CompactionRule, now| -> Vec<usize> { rule.plan(files.iter(), now).iter().map(Vec::len).collect() };
    assert!(sizes(rule(None, day, 1 << 20), now).is_empty());
    assert_eq!(sizes(rule(Some(24), day, 1 << 20), now), [4]);
    assert_eq!(sizes(rule(Some(24), day, 1 << 20), now + chrono::Duration::days(2)), [8]);
    let one = files[0].size_bytes;
    assert_eq!(
        sizes(rule(None, Duration::ZERO, one * 3 + 100), now),
        [3, 3, 2],
        "no file becomes larger than the target"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn compactions_and_archivers_that_race_lose_and_repeat_nothing() {
    compactions_and_archivers_race(Storage::memory(), 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn compactions_and_archivers_race_and_a_vacuum_cleans_up_on_a_real_hdfs() {
    let Some(storage) = hdfs_storage() else { return };
    compactions_and_archivers_race(storage.clone(), 15).await;
    let dataset = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    dataset.compact(&everything()).await.unwrap();
    assert!(dataset.vacuum(Duration::ZERO).await.unwrap() > 20);
    assert_eq!(offsets(dataset.snapshot().await.unwrap().scan_archived().unwrap()).await, pairs(0, 0..35));
}

async fn compactions_and_archivers_race(storage: Storage, appends: i64) {
    let dataset = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    for i in 0..20 {
        append(&dataset, vec![events(0, i..i + 1, |_| None)]).await;
    }
    let mut tasks = vec![];
    for _ in 0..3 {
        let storage = storage.clone();
        tasks.push(crate::task::spawn("test compaction", async move {
            let dataset = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
            for _ in 0..5 {
                dataset.compact(&everything()).await.unwrap();
            }
        }));
    }
    let end = 20 + appends;
    for i in 20..end {
        append(&dataset, vec![events(0, i..i + 1, |_| None)]).await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(offsets(dataset.snapshot().await.unwrap().scan_archived().unwrap()).await, pairs(0, 0..end));
    assert_eq!(as_plain_delta_reader(&dataset).await.2, usize::try_from(end).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vacuum_deletes_what_no_version_in_use_names() {
    let folder = tempfile::tempdir().unwrap();
    let storage = file_storage(&folder);
    let dataset = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    for i in 0..5 {
        let mut batch = events(0, i..i + 1, |_| Some(0));
        batch.dead_letters = if i == 2 { vec![dead_letter(0, 2)] } else { vec![] };
        append(&dataset, vec![batch]).await;
    }
    // One that lost its race.
    let snapshot = dataset.snapshot().await.unwrap();
    let batches = [Arc::new(events(0, 5..6, |_| Some(0)))];
    scope(vec![AbortPoint::first("master.files_written")], dataset.append(&snapshot, &batches)).await.unwrap_err();
    let old = dataset.snapshot().await.unwrap();
    dataset.compact(&everything()).await.unwrap();
    let register = object_store::path::Path::from("registers/streams/github/00000000000000000001.json");
    storage.store().put(&register, "{}".into()).await.unwrap();

    let parquet = || async {
        let files = storage.list(&paths::stream("github")).await.unwrap();
        files.iter().filter(|f| f.location.filename().unwrap().starts_with("part-")).count()
    };
    assert_eq!(parquet().await, 7);
    assert_eq!(dataset.vacuum(Duration::from_secs(7 * 86_400)).await.unwrap(), 0);
    assert_eq!(parquet().await, 7);
    clock::sleep(Duration::from_millis(20)).await;
    assert_eq!(dataset.vacuum(Duration::ZERO).await.unwrap(), 6);
    assert_eq!(parquet().await, 1);
    assert!(storage.head(&register).await.unwrap().is_some());

    let snapshot = dataset.snapshot().await.unwrap();
    assert_eq!(offsets(snapshot.scan_archived().unwrap()).await, pairs(0, 0..5));
    assert_eq!(offsets(dataset.dead_letters().await.unwrap()).await, pairs(0, 2..3));
    append(&dataset, vec![events(0, 5..6, |_| Some(0))]).await;
    let session = SessionContext::new();
    let error = session.read_table(old.scan_archived().unwrap()).unwrap().collect().await.unwrap_err();
    assert!(misses_a_file(&error), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_compacted_as_events_are() {
    let dataset = MasterDataset::open_or_create(&Storage::memory(), &small_stream()).await.unwrap();
    for i in 0..6 {
        let mut batch = events(0, i..i + 1, |_| None);
        batch.dead_letters = vec![dead_letter(0, i)];
        append(&dataset, vec![batch]).await;
    }
    let old = dataset.dead_letters().await.unwrap();
    let rule = CompactionRule { below: Some([(0, 4)].into()), older_than: Duration::from_secs(86_400), ..everything() };
    let done = dataset.compact(&rule).await.unwrap();
    assert_eq!((done.files_before, done.files_after), (8, 2), "four of each table lie below the cut");
    assert_eq!(dataset.inner.follow_dead_letters().await.unwrap().files.len(), 3);
    assert_eq!(offsets(dataset.dead_letters().await.unwrap()).await, pairs(0, 0..6));
    assert_eq!(offsets(old).await, pairs(0, 0..6), "its files are still there");
    assert_eq!(dataset.dead_letter_count().await.unwrap(), Some(6));

    let mut batch = events(0, 6..7, |_| None);
    batch.dead_letters = vec![dead_letter(0, 5), dead_letter(0, 6)];
    append(&dataset, vec![batch]).await;
    assert_eq!(offsets(dataset.dead_letters().await.unwrap()).await, pairs(0, 0..7), "none is there twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removals_are_remembered_for_as_long_as_their_files_are_kept() {
    let dataset = MasterDataset::open_or_create(&Storage::memory(), &small_stream()).await.unwrap();
    append(&dataset, vec![events(0, 0..1, |_| None)]).await;
    let remembered = async || {
        let version = dataset.snapshot().await.unwrap().version();
        let table = dataset.inner.events.at_version(version).await.unwrap();
        (version, table.snapshot().unwrap().table_config().deleted_file_retention_duration())
    };
    let day = Duration::from_secs(86_400);
    let before = remembered().await;
    dataset.vacuum(day).await.unwrap();
    assert_eq!(remembered().await, before, "the property may be longer");
    for _ in 0..2 {
        dataset.vacuum(30 * day).await.unwrap();
        assert_eq!(remembered().await, (before.0 + 1, 30 * day));
    }
    append(&dataset, vec![events(0, 1..2, |_| None)]).await;
    assert_eq!(offsets(dataset.snapshot().await.unwrap().scan_archived().unwrap()).await, pairs(0, 0..2));
}
