//! Appending what was decoded: dead letters first, then events and offsets in one commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Builder, Int64Builder, ListBuilder, RecordBatch, StringBuilder, StructBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Fields, SchemaRef};
use deltalake_core::kernel::{Action, Transaction};
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use serde_json::json;

use super::age::Written;
use super::snapshot::{app_id, epoch_app_id};
use super::table::{Change, Committed};
use super::write::{Files, write};
use super::{Error, MasterDataset, MasterSnapshot, reload, schema};
use crate::mutant::{self, Mutant};
use crate::offsets::{Offset, OffsetRange, OffsetVector, PartitionId};
use crate::record::{DATE, DeadLetter, DecodedBatch};
use crate::{abort_point, clock, paths};

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppendOutcome {
    /// All of it is in the table, durably.
    Committed(Commit),
    /// Another commit came first. Nothing of the events was appended, or nobody can say: take a new snapshot and go on
    /// from its `archived_until`.
    Conflict,
    /// The batches cover no offsets.
    Nothing,
}

/// What a commit brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub version: u64,
    /// Of the table behind it.
    pub archived_until: OffsetVector,
    pub files: usize,
    pub file_bytes: u64,
    pub events: u64,
    /// Those that were not in their table before.
    pub dead_letters: u64,
}

impl MasterDataset {
    /// Appends `batches` to the table, whose version `snapshot` must still be the last one that moved their offsets.
    ///
    /// The batches of each partition must be contiguous, in order, and begin at `snapshot`'s `archived_until` (anywhere
    /// if the partition is not there: its origin). On return events, dead letters and offsets are durable. Control
    /// records, tombstones and dead letters move offsets without rows.
    ///
    /// Not cancel safe, though harmless: a dropped call may have committed, or do so later; the table tells.
    ///
    /// # Errors
    /// After an error that [is transient](Error::is_transient) the commit may have happened, or happen later: as after
    /// [`AppendOutcome::Conflict`], only a new snapshot tells.
    pub async fn append(
        &self,
        snapshot: &MasterSnapshot,
        batches: &[Arc<DecodedBatch>],
    ) -> Result<AppendOutcome, Error> {
        let inner = &self.inner;
        let ranges = contiguous(snapshot.archived_until(), batches)?;
        if ranges.is_empty() {
            return Ok(AppendOutcome::Nothing);
        }
        if let Some(stored) = snapshot.topic_key.as_ref().filter(|stored| **stored != inner.topic_key) {
            return Err(Error::TopicReplaced {
                table: paths::stream(&inner.stream).to_string(),
                stored: stored.clone(),
                present: inner.topic_key.clone(),
            });
        }
        // SUBTLE: dead letters come first. If we end here, the next archiver finds the events' offsets unmoved, decodes
        // the same records again, and skips the dead letters that their own `txn` says are there. The other way round a
        // crash would lose them.
        let letters_first = !mutant::is(Mutant::DeadLettersAfterEvents);
        let dead_letters = if letters_first { self.append_dead_letters(batches).await? } else { 0 };
        abort_point!("master.dead_letters_committed");

        let mut files = Files::new(SchemaRef::clone(&inner.schema), inner.event_time);
        let mut events = 0;
        for batch in batches {
            files.add(batch.partition, &batch.events)?;
            events += batch.events.num_rows() as u64;
        }
        let (schema, files) = files.into_files();
        let written = Written::from_now();
        let adds = write(&inner.storage, &paths::stream(&inner.stream), schema, inner.event_time, files).await?;
        abort_point!("master.files_written");

        let mut commit = Commit {
            version: snapshot.version() + 1,
            archived_until: snapshot.archived_until().clone(),
            files: adds.len(),
            file_bytes: adds.iter().map(|add| add.size.unsigned_abs()).sum(),
            events,
            dead_letters,
        };
        for (partition, range) in &ranges {
            commit.archived_until.set(*partition, range.end);
        }
        // A commit that others made meanwhile and that moved none of our offsets, as a compaction, is no conflict.
        let mut base = Arc::clone(&snapshot.state);
        loop {
            if written.is_too_long_ago() {
                return Ok(AppendOutcome::Conflict);
            }
            let adds = if mutant::is(Mutant::OffsetsBeforeData) { &[] } else { adds.as_slice() };
            let change = Change {
                actions: adds.iter().cloned().map(Action::Add).collect(),
                txns: self.txns(&ranges, batches),
                operation: append_operation(),
                note: json!({"ranges": ranges}),
            };
            match inner.events.commit(&base, change).await? {
                Committed::Done => break,
                Committed::Superseded => {
                    reload(&inner.events, &inner.events_state).await?;
                    return Ok(AppendOutcome::Conflict);
                }
                Committed::Lost => {}
            }
            let present = self.snapshot().await?;
            let unmoved = |p: &PartitionId| present.archived_until().get(*p) == snapshot.archived_until().get(*p);
            let unmoved = ranges.keys().all(unmoved) || mutant::is(Mutant::RefreshedSnapshot);
            if present.version() <= base.version || !unmoved {
                return Ok(AppendOutcome::Conflict);
            }
            commit.archived_until = present.archived_until().join(&commit.archived_until);
            base = present.state;
        }
        commit.version = base.version + 1;
        abort_point!("master.committed");
        if !letters_first {
            commit.dead_letters = self.append_dead_letters(batches).await?;
        }
        if mutant::is(Mutant::OffsetsBeforeData) {
            let actions = adds.into_iter().map(Action::Add).collect();
            let change = Change { actions, txns: vec![], operation: append_operation(), note: json!({}) };
            inner.events.commit(&self.snapshot().await?.state, change).await?;
        }
        checkpoint_if_due(&inner.events, commit.version).await;
        Ok(AppendOutcome::Committed(commit))
    }

    /// Adds the dead letters of `batches` that are not in their table yet; the number of those that were not.
    async fn append_dead_letters(&self, batches: &[Arc<DecodedBatch>]) -> Result<u64, Error> {
        let inner = &self.inner;
        if batches.iter().all(|batch| batch.dead_letters.is_empty()) {
            return Ok(0);
        }
        loop {
            let state = inner.follow_dead_letters().await?;
            let mut missing: BTreeMap<PartitionId, Vec<&DeadLetter>> = BTreeMap::new();
            for letter in batches.iter().flat_map(|batch| &batch.dead_letters) {
                let next = state.txns.get(&app_id(&inner.topic_key, letter.partition)).copied();
                if next.is_none_or(|next| letter.record.offset.0 >= next) {
                    missing.entry(letter.partition).or_default().push(letter);
                }
            }
            if missing.is_empty() {
                return Ok(0);
            }
            let mut files = Files::new(SchemaRef::clone(&inner.dead_letter_schema), None);
            let mut txns = Vec::new();
            let mut count = 0;
            for (partition, letters) in &missing {
                files.add(*partition, &dead_letter_rows(&inner.dead_letter_schema, &inner.topic, letters)?)?;
                let last = letters.iter().map(|letter| letter.record.offset.0).max().unwrap_or_default();
                txns.push(transaction(&inner.topic_key, *partition, Offset(last + 1)));
                count += letters.len() as u64;
            }
            let (schema, files) = files.into_files();
            let table = paths::dead_letters(&inner.stream);
            let adds = write(&inner.storage, &table, schema, None, files).await?;
            abort_point!("master.dead_letter_files_written");
            let actions = adds.into_iter().map(Action::Add).collect();
            let change = Change { actions, txns, operation: append_operation(), note: json!({}) };
            match inner.dead_letters.commit(&state, change).await? {
                Committed::Done => {
                    let version = state.version + 1;
                    checkpoint_if_due(&inner.dead_letters, version).await;
                    return Ok(count);
                }
                // Another archiver has some of them, or all: what is there is skipped.
                Committed::Lost => {}
                Committed::Superseded => reload(&inner.dead_letters, &inner.dead_letters_state).await?,
            }
        }
    }

    /// The offsets, and the leader epoch in front of each.
    fn txns(&self, ranges: &BTreeMap<PartitionId, OffsetRange>, batches: &[Arc<DecodedBatch>]) -> Vec<Transaction> {
        let key = &self.inner.topic_key;
        let low = i64::from(mutant::is(Mutant::TxnOffByOne));
        let offsets = ranges.iter().map(|(p, range)| transaction(key, *p, Offset(range.end.0 - low)));
        let last = |p| batches.iter().rev().find(move |batch| batch.partition == p && !batch.range.is_empty());
        let epochs = ranges.keys().map(|p| {
            let epoch = last(*p).and_then(|batch| batch.leader_epoch).map_or(-1, i64::from);
            Transaction::new_with_last_update(epoch_app_id(key, *p), epoch, Some(clock::now().timestamp_millis()))
        });
        offsets.chain(epochs).collect()
    }
}

/// Writes a checkpoint of every hundredth version. Without it reading only takes longer, so a failure is no more than
/// a warning: the next one makes up for it.
pub(super) async fn checkpoint_if_due(table: &super::Table, version: u64) {
    if !version.is_multiple_of(schema::CHECKPOINT_INTERVAL) {
        return;
    }
    if let Err(error) = table.checkpoint(version).await {
        tracing::warn!(table = table.name, version, error = &error as &dyn std::error::Error, "no checkpoint written");
    }
}

fn transaction(topic_key: &str, partition: PartitionId, next: Offset) -> Transaction {
    Transaction::new_with_last_update(app_id(topic_key, partition), next.0, Some(clock::now().timestamp_millis()))
}

fn append_operation() -> DeltaOperation {
    DeltaOperation::Write { mode: SaveMode::Append, partition_by: Some(vec![DATE.to_owned()]), predicate: None }
}

/// The range that `batches` cover of each partition, without those that cover nothing.
///
/// # Errors
/// [`Error::NotContiguous`] if they leave a hole behind `archived_until` or each other, or overlap.
fn contiguous(
    archived_until: &OffsetVector,
    batches: &[Arc<DecodedBatch>],
) -> Result<BTreeMap<PartitionId, OffsetRange>, Error> {
    let mut ranges: BTreeMap<PartitionId, OffsetRange> = BTreeMap::new();
    for batch in batches {
        let expected = ranges.get(&batch.partition).map(|r| r.end).or_else(|| archived_until.get(batch.partition));
        if let Some(expected) = expected.filter(|expected| *expected != batch.range.start) {
            return Err(Error::NotContiguous { partition: batch.partition, expected, found: batch.range.start });
        }
        let range = ranges.entry(batch.partition).or_insert(batch.range);
        range.end = batch.range.end;
    }
    ranges.retain(|_, range| !range.is_empty());
    Ok(ranges)
}

fn dead_letter_rows(schema: &SchemaRef, topic: &str, letters: &[&DeadLetter]) -> Result<RecordBatch, Error> {
    let mut topics = StringBuilder::new();
    let mut partitions = Int32Builder::new();
    let mut offsets = Int64Builder::new();
    let mut timestamps = TimestampMicrosecondBuilder::new().with_timezone("UTC");
    let mut keys = BinaryBuilder::new();
    let DataType::List(item) = schema.field(5).data_type() else { unreachable!("headers are a list") };
    let DataType::Struct(header) = item.data_type() else { unreachable!("a header is a struct") };
    let mut headers = ListBuilder::new(header_builder(header)).with_field(Arc::clone(item));
    let mut values = BinaryBuilder::new();
    let mut errors = StringBuilder::new();
    for letter in letters {
        let record = &letter.record;
        topics.append_value(topic);
        partitions.append_value(letter.partition.0);
        offsets.append_value(record.offset.0);
        timestamps.append_option(record.timestamp);
        keys.append_option(record.key.as_deref());
        for (name, value) in &record.headers {
            let header = headers.values();
            header.field_builder::<StringBuilder>(0).expect("the first field is text").append_value(name);
            header.field_builder::<BinaryBuilder>(1).expect("the second is bytes").append_option(value.as_deref());
            header.append(true);
        }
        // As in events: a record without headers has NULL.
        headers.append(!record.headers.is_empty());
        values.append_option(record.value.as_deref());
        errors.append_value(&letter.error);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(topics.finish()),
        Arc::new(partitions.finish()),
        Arc::new(offsets.finish()),
        Arc::new(timestamps.finish()),
        Arc::new(keys.finish()),
        Arc::new(headers.finish()),
        Arc::new(values.finish()),
        Arc::new(errors.finish()),
    ];
    RecordBatch::try_new(SchemaRef::clone(schema), columns).map_err(|e| Error::Encode(Box::new(e)))
}

fn header_builder(fields: &Fields) -> StructBuilder {
    StructBuilder::new(fields.clone(), vec![Box::new(StringBuilder::new()), Box::new(BinaryBuilder::new())])
}
