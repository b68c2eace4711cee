use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::storage::{FaultRates, Faulty, Settings};
use crate::{clock, task};
use serde::{Deserialize, Serialize};

/// Counts each writer's events and notices one that is missing, doubled or out of order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ledger {
    count: u64,
    next: BTreeMap<u32, u64>,
    violations: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    writer: u32,
    sequence: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the ledger is closed")]
struct Closed;

impl RegisterState for Ledger {
    type Event = Entry;
    type Rejected = Closed;

    fn apply(&self, event: &Entry) -> Result<Self, Closed> {
        if event.sequence == u64::MAX {
            return Err(Closed);
        }
        let mut next = self.clone();
        next.count += 1;
        let expected = next.next.entry(event.writer).or_default();
        if event.sequence == *expected {
            *expected += 1;
        } else {
            next.violations.push(event.clone());
        }
        Ok(next)
    }
}

fn entry(writer: u32, sequence: u64) -> Entry {
    Entry { writer, sequence }
}

fn register(storage: &Storage) -> Register<Ledger> {
    Register::open(storage, "ledgers", "main")
}

fn faulty(inner: &Storage, seed: u64, rates: FaultRates) -> (Faulty, Storage) {
    let faulty = Faulty::new(inner.store(), seed, rates);
    let settings = Settings {
        retry_for: Duration::from_secs(60),
        first_backoff: Duration::from_micros(100),
        max_backoff: Duration::from_millis(2),
        ..Settings::default()
    };
    (faulty.clone(), Storage::over(inner.url().clone(), Arc::new(faulty), settings))
}

async fn append_many(register: &Register<Ledger>, writer: u32, count: u64) {
    let mut next = register.head().await.unwrap().map_or(0, |h| h.state.next.get(&writer).copied().unwrap_or(0));
    for _ in 0..count {
        register.update(|_| Ok::<_, Infallible>(Some(entry(writer, next)))).await.unwrap();
        next += 1;
    }
}

#[tokio::test]
async fn a_register_begins_empty_and_other_processes_see_what_was_appended() {
    let storage = Storage::memory();
    let mine = register(&storage);
    assert!(mine.head().await.unwrap().is_none());
    let AppendOutcome::Appended(first) = mine.append(0, entry(1, 0)).await.unwrap() else { panic!("lost") };
    assert_eq!((first.number, first.kept_from, first.state.count), (1, 1, 1));
    let other = register(&storage);
    assert_eq!(other.head().await.unwrap().unwrap(), first);
    assert!(matches!(other.append(0, entry(2, 0)).await.unwrap(), AppendOutcome::Lost));
    assert!(matches!(other.append(1, entry(2, 0)).await.unwrap(), AppendOutcome::Appended(_)));
    assert_eq!(mine.head().await.unwrap().unwrap().number, 2);
    assert_eq!(Register::<Ledger>::names(&storage, "ledgers").await.unwrap(), ["main"]);
    assert!(Register::<Ledger>::names(&storage, "none").await.unwrap().is_empty());
}

#[tokio::test]
async fn update_decides_from_the_head_or_not_at_all() {
    let storage = Storage::memory();
    let mine = register(&storage);
    let once = |s: &Ledger| Ok::<_, Infallible>((s.count == 0).then(|| entry(1, 0)));
    assert!(matches!(mine.update(once).await.unwrap(), Update::Appended(r) if r.number == 1));
    assert!(matches!(mine.update(once).await.unwrap(), Update::Unchanged(Some(r)) if r.number == 1));
    let refused = mine.update(|_| Err::<Option<Entry>, _>("no")).await.unwrap_err();
    assert!(matches!(refused, UpdateError::Decision("no")));
    let rejected = mine.update(|_| Ok::<_, Infallible>(Some(entry(1, u64::MAX)))).await.unwrap_err();
    assert!(matches!(rejected, UpdateError::Rejected(Closed)));
    assert_eq!(mine.head().await.unwrap().unwrap().number, 1, "nothing was written");
}

#[tokio::test]
async fn an_unchanged_head_is_found_without_a_list() {
    let (faulty, storage) = faulty(&Storage::memory(), 1, FaultRates::default());
    append_many(&register(&storage), 1, 3).await;
    let reader = register(&storage);
    reader.head().await.unwrap();
    let (lists, gets) = (faulty.calls("list"), faulty.calls("get"));
    for _ in 0..10 {
        assert_eq!(reader.head().await.unwrap().unwrap().number, 3);
    }
    assert_eq!(faulty.calls("list"), lists);
    assert_eq!(faulty.calls("get"), gets + 20);
}

/// Linearizable append: exactly once, without a hole, in real-time order; with pruning under way, and with one writer
/// who pauses while two thousand others append.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_agree_whatever_the_storage_reports() {
    for seed in 0..3 {
        println!("seed {seed}");
        let memory = Storage::memory();
        let (faults, storage) = faulty(&memory, seed, FaultRates::each(15));
        let answered = Arc::new(AtomicU64::new(0));
        let writers = (0..6_u32).map(|writer| {
            // Two writers share one process.
            let (register, answered) = (register(&storage), Arc::clone(&answered));
            task::spawn("writer", async move {
                for sequence in 0..400 {
                    let before = answered.load(Ordering::SeqCst);
                    let update = register.update(|_| Ok::<_, Infallible>(Some(entry(writer, sequence)))).await.unwrap();
                    let Update::Appended(record) = update else { panic!("nothing was decided") };
                    assert!(record.number > before, "an append that began later stands later");
                    answered.fetch_max(record.number, Ordering::SeqCst);
                }
            })
        });
        let writers: Vec<_> = writers.collect();
        let reader = {
            let (register, answered) = (register(&storage), Arc::clone(&answered));
            task::spawn("reader", async move {
                let mut last = 0;
                while last < 2_300 {
                    let before = answered.load(Ordering::SeqCst);
                    let head = register.head().await.unwrap().map_or(0, |h| {
                        assert!(h.state.count == h.number && h.state.violations.is_empty(), "{h:?}");
                        h.number
                    });
                    assert!(head >= before.max(last), "what was answered stays visible");
                    last = head;
                    clock::sleep(Duration::from_millis(2)).await;
                }
            })
        };
        let paused = {
            let (register, answered) = (register(&storage), Arc::clone(&answered));
            task::spawn("paused writer", async move {
                while answered.load(Ordering::SeqCst) < 20 {
                    clock::sleep(Duration::from_millis(1)).await;
                }
                let stale = register.find_head().await.unwrap();
                while answered.load(Ordering::SeqCst) < 2_100 {
                    clock::sleep(Duration::from_millis(5)).await;
                }
                register.append_to(stale, entry(99, 0)).await
            })
        };
        for writer in writers {
            writer.await.unwrap();
        }
        reader.await.unwrap();
        let outcome = paused.await.unwrap();
        // It can't know whether its event was in a record that is gone, so it isn't told that it was appended.
        assert!(
            matches!(outcome, Ok(AppendOutcome::Lost) | Err(AppendError::Register(Error::Indeterminate { .. }))),
            "{outcome:?}"
        );

        let head = register(&memory).head().await.unwrap().unwrap();
        assert_eq!((head.number, head.state.count), (2_400, 2_400));
        assert_eq!(head.state.violations, []);
        assert_eq!(head.state.next, (0..6).map(|w| (w, 400)).collect(), "the paused writer's event is in no state");
        let numbers = register(&memory).numbers().await.unwrap();
        assert!(head.kept_from > 1_000);
        let kept: Vec<_> = numbers.into_iter().filter(|n| *n >= head.kept_from).collect();
        assert!(kept.len() >= 1_000 && kept.into_iter().eq(head.kept_from..=head.number));
        assert!(faults.faults() > 500, "the faults must fire");
    }
}

/// The races of creates themselves are decided by a NameNode, and every loser's temporary file is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_agree_on_a_real_hdfs() {
    let Some(storage) = crate::storage::conformance::hdfs_storage() else { return };
    let (faults, unreliable) = faulty(&storage, 4, FaultRates::each(15));
    let writers = (0..4_u32).map(|writer| {
        let register = register(&unreliable);
        task::spawn("writer", async move { append_many(&register, writer, 25).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let head = register(&storage).head().await.unwrap().unwrap();
    assert_eq!((head.number, head.state.count), (100, 100));
    assert_eq!(head.state.violations, []);
    assert_eq!(head.state.next, (0..4).map(|w| (w, 25)).collect());
    assert!(faults.faults() > 0, "the faults must fire");
}

#[tokio::test]
async fn a_stray_record_below_the_kept_ones_deceives_nobody() {
    let storage = Storage::memory();
    let writer = register(&storage);
    append_many(&writer, 1, 5).await;
    let (paused_reader, paused_writer) = (register(&storage), register(&storage));
    paused_reader.head().await.unwrap();
    let stale = paused_writer.find_head().await.unwrap();
    append_many(&writer, 1, 2_000).await;
    assert!(storage.get(&paths::record("ledgers", "main", 6)).await.unwrap().is_none(), "number 6 is pruned");

    let outcome = paused_writer.append_to(stale, entry(2, 0)).await;
    assert!(matches!(outcome, Err(AppendError::Register(Error::Indeterminate { .. }))), "{outcome:?}");
    assert!(storage.get(&paths::record("ledgers", "main", 6)).await.unwrap().is_some(), "it stands there now");

    for reader in [&paused_reader, &paused_writer, &register(&storage)] {
        let head = reader.head().await.unwrap().unwrap();
        assert_eq!((head.number, head.state.count), (2_005, 2_005));
        assert!(!head.state.next.contains_key(&2));
    }
    append_many(&writer, 1, 200).await;
    assert!(storage.get(&paths::record("ledgers", "main", 6)).await.unwrap().is_none(), "and is collected");
}

#[tokio::test]
async fn a_writer_that_pauses_behind_its_create_is_not_told_that_it_lost() {
    let storage = Storage::memory();
    let (paused, others) = (register(&storage), register(&storage));
    append_many(&others, 1, 5).await;
    let head = paused.find_head().await.unwrap();
    let AppendOutcome::Appended(_) = paused.append_to(head.clone(), entry(2, 0)).await.unwrap() else { panic!("lost") };
    let mine = paused.read(6).await.unwrap().unwrap();
    // As if the answer to the create came only now.
    append_many(&others, 1, 900).await;
    assert!(paused.settle(head.as_ref(), &mine, true).await.unwrap());
    append_many(&others, 1, 1_200).await;
    assert!(matches!(paused.settle(head.as_ref(), &mine, true).await, Err(Error::Indeterminate { .. })));
    // The predecessor is pruned, the record itself is not.
    let kept_from = others.head().await.unwrap().unwrap().kept_from;
    let kept = paused.read(kept_from).await.unwrap().unwrap();
    assert!(paused.settle(head.as_ref(), &kept, true).await.unwrap());
}

#[tokio::test]
async fn an_unreadable_record_is_an_error_and_never_skipped() {
    let cases = [
        ("", "unreadable record"),
        ("{\"version\":\"1\",\"number\":4", "unreadable record"),
        ("{\"version\":\"2\",\"anything\":1}", "newer release, with format 2"),
        ("{\"number\":4}", "missing field `version`"),
    ];
    for (content, message) in cases {
        let storage = Storage::memory();
        let known = register(&storage);
        append_many(&known, 1, 3).await;
        storage.overwrite(&paths::record("ledgers", "main", 4), content.into()).await.unwrap();
        for reader in [&known, &register(&storage)] {
            let error = reader.head().await.unwrap_err().to_string();
            assert!(error.contains(message) && error.contains("00000004.json"), "{error}");
            reader.append(3, entry(1, 3)).await.unwrap_err();
        }
    }
    let storage = Storage::memory();
    append_many(&register(&storage), 1, 1).await;
    let copy = storage.get(&paths::record("ledgers", "main", 1)).await.unwrap().unwrap();
    storage.overwrite(&paths::record("ledgers", "main", 2), copy).await.unwrap();
    let error = register(&storage).head().await.unwrap_err().to_string();
    assert!(error.contains("says that its number is 1"), "{error}");
}

#[tokio::test]
async fn records_that_disappear_are_an_error() {
    let storage = Storage::memory();
    let reader = register(&storage);
    append_many(&reader, 1, 2).await;
    for number in 1..=2 {
        storage.delete(&paths::record("ledgers", "main", number)).await.unwrap();
    }
    assert!(matches!(reader.head().await, Err(Error::Vanished { .. })));
    assert!(register(&storage).head().await.unwrap().is_none(), "a new process begins anew");
}

#[tokio::test]
async fn a_follower_sees_own_appends_at_once_and_others_after_a_poll() {
    let storage = Storage::memory();
    let (mine, other) = (register(&storage), register(&storage));
    let mut slow = mine.watch(Duration::from_secs(3600)).await.unwrap();
    let mut quick = mine.watch(Duration::from_millis(5)).await.unwrap();
    assert!(slow.borrow().is_none());
    clock::sleep(Duration::from_millis(20)).await;
    append_many(&mine, 1, 1).await;
    tokio::time::timeout(Duration::from_secs(10), slow.changed()).await.unwrap().unwrap();
    assert_eq!(slow.borrow_and_update().as_ref().unwrap().number, 1);
    append_many(&other, 2, 3).await;
    let third = quick.wait_for(|h| h.as_ref().is_some_and(|h| h.number == 4));
    tokio::time::timeout(Duration::from_secs(10), third).await.unwrap().unwrap();
    assert!(!slow.has_changed().unwrap());
}

#[test]
fn a_record_of_a_first_release_stays_readable() {
    let text = r#"{"version":"1","number":7,"id":"6d5f1a8e-64c1-4a3c-9c11-000000000007","at":"2026-01-02T03:04:05Z",
        "writer":"w","kept_from":1,"event":{"writer":3,"sequence":0},"state":{"count":7,"next":{"3":1},"violations":[]},
        "added_later":true}"#;
    let record: Record<Ledger> = record::decode(&Path::from("x"), 7, text.as_bytes()).unwrap();
    assert_eq!((record.event, record.state.next[&3]), (entry(3, 0), 1));
}

#[tokio::test]
async fn the_id_lies_within_the_start_of_the_file() {
    let storage = Storage::memory();
    append_many(&register(&storage), 1, 1).await;
    let bytes = storage.get(&paths::record("ledgers", "main", 1)).await.unwrap().unwrap();
    let text = std::str::from_utf8(&bytes).unwrap();
    let end = text.find("\",\"at\"").unwrap() + "18446744073709551615".len();
    assert!(end < record::START as usize, "{end}");
}

/// Serde reads tagged content through a buffer, in which keys that are numbers are texts.
#[test]
fn offsets_survive_within_tagged_events() {
    use crate::catalog::StreamEvent;
    let event = StreamEvent::Seen {
        topic: "t".into(),
        topic_id: None,
        origins: [(0, 5), (3, 7)].into(),
        shards: None,
        decoding: None,
    };
    let text = serde_json::to_string(&event).unwrap();
    assert_eq!(serde_json::from_str::<StreamEvent>(&text).unwrap(), event);
}
