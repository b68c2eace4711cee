//! Crashes between two durable steps, and storages that don't answer.

use object_store::ObjectStore;

use super::*;
use crate::abort_point::{AbortPoint, Aborted, scope};
use crate::storage::{FaultRates, Faulty, Settings};

fn with_dead_letters() -> Vec<Arc<DecodedBatch>> {
    let mut batch = events_at(0, OffsetRange::new(Offset(0), Offset(6)), &[0, 1, 3, 4], Some);
    batch.dead_letters = vec![dead_letter(0, 2), dead_letter(0, 5)];
    vec![Arc::new(batch)]
}

/// Crashes at `point`, starts again from the table as an archiver does, and looks.
async fn crash_at(point: &'static str, committed: bool) {
    let folder = tempfile::tempdir().unwrap();
    let storage = file_storage(&folder);
    let dataset = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    let snapshot = dataset.snapshot().await.unwrap();
    let armed = AbortPoint::first(point);
    let crashed = scope(vec![armed.clone()], dataset.append(&snapshot, &with_dead_letters())).await;
    assert!(matches!(crashed, Err(Error::Aborted(Aborted(p))) if p == point), "{crashed:?}");
    assert!(armed.fired());
    drop(dataset);

    let dataset = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    let snapshot = dataset.snapshot().await.unwrap();
    let expected: OffsetVector = if committed { [(0, 6)].into() } else { OffsetVector::new() };
    assert_eq!(*snapshot.archived_until(), expected, "{point}");
    if !committed {
        let AppendOutcome::Committed(_) = dataset.append(&snapshot, &with_dead_letters()).await.unwrap() else {
            panic!("nobody else commits")
        };
    }
    let snapshot = dataset.snapshot().await.unwrap();
    assert_eq!(offsets(snapshot.scan_archived().unwrap()).await, [(0, 0), (0, 1), (0, 3), (0, 4)], "{point}");
    assert_eq!(offsets(dataset.dead_letters().await.unwrap()).await, [(0, 2), (0, 5)], "{point}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letter_file_written_but_not_committed() {
    crash_at("master.dead_letter_files_written", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_only() {
    crash_at("master.dead_letters_committed", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_written_but_not_committed() {
    crash_at("master.files_written", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commit_done_but_not_seen() {
    crash_at("master.committed", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commit_sent_but_not_answered() {
    // The second commit is that of the events; the first one is of the dead letters.
    let folder = tempfile::tempdir().unwrap();
    let storage = file_storage(&folder);
    let dataset = MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    let snapshot = dataset.snapshot().await.unwrap();
    for (nth, committed) in [(1, OffsetVector::new()), (1, [(0, 6)].into())] {
        let armed = AbortPoint::nth("master.commit_sent", nth);
        scope(vec![armed.clone()], dataset.append(&snapshot, &with_dead_letters())).await.unwrap_err();
        assert!(armed.fired());
        let snapshot = dataset.snapshot().await.unwrap();
        assert_eq!(*snapshot.archived_until(), committed);
        // They stand in their table, and are told of once the offsets that cover them are committed.
        let seen: &[(i32, i64)] = if committed.is_empty() { &[] } else { &[(0, 2), (0, 5)] };
        assert_eq!(offsets(snapshot.dead_letters().await.unwrap()).await, seen);
        assert_eq!(offsets(dataset.dead_letters().await.unwrap()).await, [(0, 2), (0, 5)]);
    }
    assert_eq!(dataset.append(&snapshot, &with_dead_letters()).await.unwrap(), AppendOutcome::Conflict);
    let snapshot = dataset.snapshot().await.unwrap();
    assert_eq!(offsets(snapshot.scan_archived().unwrap()).await, [(0, 0), (0, 1), (0, 3), (0, 4)]);
    assert_eq!(offsets(dataset.dead_letters().await.unwrap()).await, [(0, 2), (0, 5)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_faulty_storage_costs_time_only() {
    let settings = Settings { first_backoff: Duration::from_millis(1), ..Settings::default() };
    let mut faults = 0;
    for seed in 0..6 {
        eprintln!("seed {seed}");
        let memory: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
        let url = url::Url::parse("memory:///").unwrap();
        let faulty = Faulty::new(Arc::clone(&memory), seed, FaultRates::each(20));
        let storage = Storage::over(url.clone(), Arc::new(faulty.clone()), settings);
        let healthy = Storage::over(url, memory, settings);
        let until = 600;
        let mut dataset = None;
        loop {
            let Some(open) = &dataset else {
                match MasterDataset::open_or_create(&storage, &small_stream()).await {
                    Ok(open) => dataset = Some(open),
                    Err(error) => assert!(error.is_transient(), "seed {seed}: {error:?}"),
                }
                continue;
            };
            let snapshot = match open.snapshot().await {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    assert!(error.is_transient(), "seed {seed}: {error:?}");
                    continue;
                }
            };
            let start = snapshot.archived_until().get(PartitionId(0)).map_or(0, |o| o.0);
            if start == until {
                break;
            }
            let mut batch = events(0, start..(start + 17).min(until), Some);
            let last = batch.range.end.0 - 1;
            batch.events = batch.events.slice(0, batch.events.num_rows() - 1);
            batch.dead_letters = vec![dead_letter(0, last)];
            if let Err(error) = open.append(&snapshot, &[Arc::new(batch)]).await {
                assert!(error.is_transient(), "seed {seed}: {error:?}");
            }
        }
        faults += faulty.faults();
        let dataset = MasterDataset::open_or_create(&healthy, &small_stream()).await.unwrap();
        let mut all = offsets(dataset.snapshot().await.unwrap().scan_archived().unwrap()).await;
        all.extend(offsets(dataset.dead_letters().await.unwrap()).await);
        all.sort_unstable();
        assert_eq!(all, pairs(0, 0..until), "seed {seed}");
    }
    assert!(faults > 20, "{faults} faults are too few to have tested anything");
}
