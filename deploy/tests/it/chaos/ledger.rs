//! The independent count of what the log has acknowledged: which record stands at which offset.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::weather::Ends;
use super::{PATIENCE, Watch};
use crate::oracle::events::Record;
use crate::oracle::log::Log;

/// The header that tells a record from all others.
pub(super) const ID: &str = "id";

/// A record with its number.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) id: u64,
    pub(super) partition: i32,
    pub(super) record: Record,
}

/// By partition: what stands at each offset, as far as it is acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    partitions: Mutex<BTreeMap<i32, Partition>>,
    /// Whether these reached the log, and where, only the log can say: with what was answered instead of an offset.
    unknown: Mutex<BTreeMap<u64, (Sent, String)>>,
}

#[derive(Debug, Default)]
struct Partition {
    slots: Vec<Option<(u64, Record)>>,
    /// All offsets below are known.
    known: usize,
}

impl Partition {
    fn put(&mut self, offset: i64, id: u64, record: Record) {
        let index = usize::try_from(offset).expect("no offset is negative");
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        let before = self.slots[index].replace((id, record));
        assert!(before.is_none(), "offset {offset} was acknowledged twice: {before:?}, then {id}");
        while self.slots.get(self.known).is_some_and(Option::is_some) {
            self.known += 1;
        }
    }
}

impl Ledger {
    pub(super) fn acknowledged(&self, sent: Sent, offset: i64) {
        self.partitions.lock().entry(sent.partition).or_default().put(offset, sent.id, sent.record);
    }

    /// An error whose outcome is open, or an acknowledgement that does not say where the record stands: that of a batch
    /// which was sent again since the first acknowledgement was lost.
    pub(super) fn without_offset(&self, sent: Sent, said: String) {
        self.unknown.lock().insert(sent.id, (sent, said));
    }

    /// How many were acknowledged.
    pub(crate) fn len(&self) -> usize {
        self.partitions.lock().values().map(|p| p.slots.iter().flatten().count()).sum()
    }

    /// Behind what is acknowledged without a hole.
    pub(crate) fn ends(&self) -> Ends {
        self.partitions.lock().iter().map(|(p, partition)| (*p, partition.known as i64)).collect()
    }

    /// Whether it is known what stands at each offset below `position`.
    pub(crate) fn knows(&self, position: &Ends) -> bool {
        let partitions = self.partitions.lock();
        position.iter().all(|(p, end)| *end <= partitions.get(p).map_or(0, |known| known.known as i64))
    }

    /// Shows the records of one partition in `[from, to)`, which are known.
    pub(crate) fn each(&self, partition: i32, from: i64, to: i64, mut see: impl FnMut(i64, &Record)) {
        let partitions = self.partitions.lock();
        for offset in from..to {
            let (_, record) = partitions[&partition].slots[offset as usize].as_ref().expect("it is known");
            see(offset, record);
        }
    }

    /// Looks for records without an offset in the log, with a plain consumer, until `stop`: what stands behind all that
    /// is known. The answers past it can only be checked then.
    pub(super) fn look_for_unknown(&self, bootstrap: &str, topic: &str, stop: &Watch) {
        let consumer = consumer(bootstrap);
        while !stop.is_over() {
            std::thread::sleep(Duration::from_millis(200));
            let partitions: BTreeSet<i32> = self.unknown.lock().values().map(|(sent, _)| sent.partition).collect();
            for partition in partitions {
                let next = self.ends().get(&partition).copied().unwrap_or(0);
                let mut from = TopicPartitionList::new();
                from.add_partition_offset(topic, partition, Offset::Offset(next)).expect("an offset");
                consumer.assign(&from).expect("it is assigned");
                // Not there yet, or the log does not answer: later.
                let Some(Ok(message)) = consumer.poll(Duration::from_secs(2)) else { continue };
                if message.offset() == next && message.partition() == partition {
                    self.place(id_of(&message), next);
                }
            }
        }
    }

    /// The log says where the record `id` stands; nothing happens if its acknowledgement is still to come.
    fn place(&self, id: u64, offset: i64) {
        let Some((sent, said)) = self.unknown.lock().remove(&id) else { return };
        println!("record {id} is at {}/{offset}, which only the log says: {said}", sent.partition);
        self.acknowledged(sent, offset);
    }

    /// Reads the whole topic with a plain consumer: each acknowledged record stands where it was said to, once, and
    /// nothing stands there that was not sent. Settles what became of records without an offset.
    ///
    /// Nothing may be sent any more.
    pub(crate) fn settle(&self, bootstrap: &str, topic: &str, partitions: i32) {
        let consumer = consumer(bootstrap);
        for partition in 0..partitions {
            let (low, high) = consumer.fetch_watermarks(topic, partition, PATIENCE).expect("the log answers");
            assert_eq!(low, 0, "the log of partition {partition} begins later");
            let mut from = TopicPartitionList::new();
            from.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
            consumer.assign(&from).expect("it is assigned");
            for offset in 0..high {
                let message = consumer.poll(PATIENCE).expect("the log answers").expect("a record");
                assert_eq!((message.partition(), message.offset()), (partition, offset), "the log has a hole");
                let id = id_of(&message);
                self.place(id, offset);
                let known = self.partitions.lock();
                let slot = known.get(&partition).and_then(|p| p.slots.get(offset as usize)?.as_ref());
                assert_eq!(slot.map(|(id, _)| *id), Some(id), "at {partition}/{offset} stands another record");
            }
            let end = self.ends().get(&partition).copied().unwrap_or(0);
            assert_eq!(end, high, "the log of partition {partition} lacks acknowledged records");
        }
        for (id, (_, said)) in &*self.unknown.lock() {
            println!("record {id} never reached the log: {said}");
        }
    }

    /// As the oracle counts it; everything must be settled.
    pub(crate) fn to_log(&self) -> Log {
        let mut log = Log::default();
        for (partition, known) in &*self.partitions.lock() {
            for (offset, slot) in known.slots.iter().enumerate() {
                let (_, record) = slot.as_ref().expect("it is known");
                log.push(*partition, offset as i64, record.clone());
            }
        }
        log
    }
}

fn consumer(bootstrap: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("group.id", "ledger").set("enable.auto.commit", "false");
    config.create().expect("a consumer")
}

fn id_of(message: &BorrowedMessage<'_>) -> u64 {
    let header = message.headers().expect("headers").get(0);
    assert_eq!(header.key, ID);
    u64::from_be_bytes(header.value.expect("a number").try_into().expect("eight bytes"))
}
