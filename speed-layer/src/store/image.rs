//! How the delta lies in the store: runs in chunks, a manifest for each line, one record of the stream.
//!
//! | key | value |
//! |---|---|
//! | `r` view `\0` definition `\0` run `\0` chunk | a chunk of the run: errors, then states as an Arrow IPC stream |
//! | `m` view `\0` definition `\0` chunk | a chunk of the manifest: the runs of a line, with checksums |
//! | `g` chunk | a chunk of the stream's record: position, seals, running maxima |
//!
//! Every record is written in one piece with all that it names, so that the lines stand at one position. Whatever does
//! not check is left out: it is replayed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};
use watershed_shared::delta::DeltaRun;
use watershed_shared::names::{DefinitionHash, RunId};
use watershed_shared::offsets::{Coverage, Cut, OffsetVector, PartitionId};
use watershed_shared::run::{EventError, ipc};

use super::{Change, DeltaStore, MAX_VALUE_BYTES, StoreError};
use crate::line::LineKey;
use crate::segment::Segment;
use crate::states::ViewPlan;
use crate::worker::Losses;

/// Raised when the layout changes; an image of another format is replayed.
const FORMAT: u32 = 1;
/// Checksum and number of chunks, before the first chunk of a record.
const HEADER_BYTES: usize = 8;

/// A run in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) id: RunId,
    coverage: Coverage,
    rows: u64,
    errors: u64,
    size_bytes: u64,
    chunks: u32,
    crc32: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentImage {
    pub(crate) from: OffsetVector,
    pub(crate) position: OffsetVector,
    pub(crate) runs: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct LineImage {
    format: u32,
    view: String,
    definition: DefinitionHash,
    whole: SegmentImage,
    /// A replay under way, which goes on from here.
    fill: Option<SegmentImage>,
}

#[derive(Debug, Serialize, Deserialize)]
struct GroupImage {
    format: u32,
    stream: String,
    position: OffsetVector,
    seals: Vec<Cut>,
    event_time_max: BTreeMap<PartitionId, Option<i64>>,
    /// Those of which no run holds an event.
    #[serde(default)]
    losses: Losses,
}

/// What a store holds, checked.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The stream's position and what was noted with it; `None`: nothing of use.
    pub(crate) position: Option<OffsetVector>,
    pub(crate) seals: Vec<Cut>,
    pub(crate) event_time_max: BTreeMap<PartitionId, Option<i64>>,
    /// Those that were known when it was written.
    pub(crate) losses: Losses,
    pub(crate) lines: BTreeMap<LineKey, LoadedLine>,
    /// Views whose image is damaged, and what is wrong.
    pub(crate) damaged: Vec<(LineKey, String)>,
    /// Keys that nothing of the above uses.
    pub(crate) stray: Vec<Vec<u8>>,
}

impl Loaded {
    /// Whether it may hold events of a loss that was not known when it was written, or was decoded behind such events.
    pub(crate) fn goes_past_one_of(&self, losses: &Losses) -> bool {
        let Some(position) = &self.position else { return false };
        let new = losses.iter().filter(|loss| !self.losses.contains(loss));
        new.into_iter().any(|(p, range)| position.get(*p).is_some_and(|at| at > range.start))
    }

    /// Leaves nothing of use: all of it is replayed, and deleted.
    pub(crate) fn set_aside(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        for (key, line) in &lines {
            self.stray.push(line_key(key));
            self.stray.extend(line.entries.iter().flat_map(|entry| entry.keys(key)));
        }
        (self.position, self.seals, self.event_time_max) = (None, Vec::new(), BTreeMap::new());
    }
}

#[derive(Debug)]
pub(crate) struct LoadedLine {
    pub(crate) whole: Segment,
    pub(crate) fill: Option<Segment>,
    pub(crate) entries: Vec<Entry>,
}

/// Adds the chunks of a run to `changes`.
///
/// # Errors
/// When the states cannot be encoded.
pub(crate) fn encode_run(key: &LineKey, run: &DeltaRun, changes: &mut Vec<Change>) -> Result<Entry, StoreError> {
    let errors = serde_json::to_vec(&run.errors).map_err(|e| StoreError::Failed(Box::new(e)))?;
    let length = u32::try_from(errors.len()).map_err(|e| StoreError::Failed(Box::new(e)))?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(errors);
    bytes.extend(ipc::encode(&run.states).map_err(|e| StoreError::Failed(Box::new(e)))?);
    let prefix = run_prefix(key, &run.id);
    let mut chunks = 0;
    for chunk in bytes.chunks(MAX_VALUE_BYTES) {
        changes.push((chunk_key(&prefix, chunks), Some(chunk.to_vec())));
        chunks += 1;
    }
    Ok(Entry {
        id: run.id.clone(),
        coverage: run.coverage.clone(),
        rows: run.states.num_rows() as u64,
        errors: run.errors.len() as u64,
        size_bytes: bytes.len() as u64,
        chunks,
        crc32: crc32fast::hash(&bytes),
    })
}

/// Adds the line's manifest to `changes`.
pub(crate) fn encode_line(key: &LineKey, whole: SegmentImage, fill: Option<SegmentImage>, changes: &mut Vec<Change>) {
    let image = LineImage { format: FORMAT, view: key.0.clone(), definition: key.1.clone(), whole, fill };
    encode_record(&line_prefix(key), &image, changes);
}

/// Adds the stream's record to `changes`.
pub(crate) fn encode_group(
    stream: &str,
    position: &OffsetVector,
    seals: Vec<Cut>,
    event_time_max: BTreeMap<PartitionId, Option<i64>>,
    losses: Losses,
    changes: &mut Vec<Change>,
) {
    let (stream, position) = (stream.to_owned(), position.clone());
    encode_record(b"g\0", &GroupImage { format: FORMAT, stream, position, seals, event_time_max, losses }, changes);
}

impl Entry {
    /// The keys of the run's chunks.
    pub(crate) fn keys(&self, key: &LineKey) -> Vec<Vec<u8>> {
        let prefix = run_prefix(key, &self.id);
        (0..self.chunks).map(|n| chunk_key(&prefix, n)).collect()
    }
}

/// The key of the first chunk of a line's manifest: with it removed there is no manifest.
pub(crate) fn line_key(key: &LineKey) -> Vec<u8> {
    chunk_key(&line_prefix(key), 0)
}

fn run_prefix(key: &LineKey, run: &RunId) -> Vec<u8> {
    format!("r\0{}\0{}\0{}\0", key.0, key.1, run).into_bytes()
}

fn line_prefix(key: &LineKey) -> Vec<u8> {
    format!("m\0{}\0{}\0", key.0, key.1).into_bytes()
}

fn chunk_key(prefix: &[u8], n: u32) -> Vec<u8> {
    [prefix, &n.to_be_bytes()].concat()
}

fn encode_record<T: Serialize>(prefix: &[u8], record: &T, changes: &mut Vec<Change>) {
    let json = serde_json::to_vec(record).expect("records have string keys");
    let chunks = (json.len() + HEADER_BYTES).div_ceil(MAX_VALUE_BYTES);
    let mut bytes = crc32fast::hash(&json).to_le_bytes().to_vec();
    bytes.extend(u32::try_from(chunks).expect("a manifest has far fewer chunks").to_le_bytes());
    bytes.extend(json);
    for (n, chunk) in (0..).zip(bytes.chunks(MAX_VALUE_BYTES)) {
        changes.push((chunk_key(prefix, n), Some(chunk.to_vec())));
    }
}

type Values = BTreeMap<Vec<u8>, Vec<u8>>;

fn decode_record<T: for<'a> Deserialize<'a>>(
    values: &Values,
    prefix: &[u8],
    used: &mut BTreeSet<Vec<u8>>,
) -> Result<T, String> {
    let key = chunk_key(prefix, 0);
    let mut bytes = values.get(&key).ok_or("there is no record")?.clone();
    if bytes.len() < HEADER_BYTES {
        return Err("the record has no header".to_owned());
    }
    used.insert(key);
    let json = bytes.split_off(HEADER_BYTES);
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (crc32, chunks) = (word(0), word(4));
    let mut json = json;
    for n in 1..chunks {
        let key = chunk_key(prefix, n);
        json.extend(values.get(&key).ok_or_else(|| format!("chunk {n} of the record is missing"))?);
        used.insert(key);
    }
    if crc32fast::hash(&json) != crc32 {
        return Err("the record's checksum is wrong".to_owned());
    }
    serde_json::from_slice(&json).map_err(|e| e.to_string())
}

/// Reads what a store holds for `plans`, and checks all of it. Blocks.
///
/// # Errors
/// When the store itself cannot be read.
pub(crate) fn load(store: &dyn DeltaStore, stream: &str, plans: &[ViewPlan]) -> Result<Loaded, StoreError> {
    let mut values = Values::new();
    store.scan(&mut |key, value| {
        values.insert(key.to_vec(), value.to_vec());
    })?;
    let mut used = BTreeSet::new();
    let mut loaded = Loaded::default();
    let group: Result<GroupImage, String> = decode_record(&values, b"g\0", &mut used);
    match group {
        Ok(group) if group.format == FORMAT && group.stream == stream => {
            for plan in plans {
                let key = (plan.name.clone(), plan.definition.clone());
                if !values.contains_key(&line_key(&key)) {
                    continue;
                }
                match load_line(&values, &key, plan, &group.position) {
                    Ok((line, line_keys)) => {
                        used.extend(line_keys);
                        loaded.lines.insert(key, line);
                    }
                    Err(wrong) => loaded.damaged.push((key, wrong)),
                }
            }
            loaded.position = Some(group.position);
            loaded.seals = group.seals;
            loaded.event_time_max = group.event_time_max;
            loaded.losses = group.losses;
        }
        Ok(_) => used.clear(),
        Err(wrong) => {
            if !values.is_empty() {
                loaded.damaged.push(((String::new(), DefinitionHash::new("")), wrong));
            }
            used.clear();
        }
    }
    loaded.stray = values.into_keys().filter(|key| !used.contains(key)).collect();
    Ok(loaded)
}

fn load_line(
    values: &Values,
    key: &LineKey,
    plan: &ViewPlan,
    position: &OffsetVector,
) -> Result<(LoadedLine, BTreeSet<Vec<u8>>), String> {
    let mut used = BTreeSet::new();
    let image: LineImage = decode_record(values, &line_prefix(key), &mut used)?;
    if image.format != FORMAT || image.view != key.0 || image.definition != key.1 {
        return Err(format!("the manifest is of another view, or format {}", image.format));
    }
    let mut entries = Vec::new();
    let mut segment = |image: SegmentImage| {
        let mut runs = Vec::new();
        for entry in image.runs {
            runs.push(load_run(values, key, plan, &entry, &mut used)?);
            entries.push(entry);
        }
        let segment = Segment { from: image.from, position: image.position, runs };
        segment.check()?;
        Ok::<_, String>(segment)
    };
    let whole = segment(image.whole)?;
    let fill = image.fill.map(&mut segment).transpose()?;
    if !position.join(&whole.from).covers(&whole.position) {
        return Err(format!("the view is ahead of the stream. view=`{}`, stream=`{position}`", whole.position));
    }
    Ok((LoadedLine { whole, fill, entries }, used))
}

fn load_run(
    values: &Values,
    key: &LineKey,
    plan: &ViewPlan,
    entry: &Entry,
    used: &mut BTreeSet<Vec<u8>>,
) -> Result<Arc<DeltaRun>, String> {
    let wrong = |what: &str| format!("run {}: {what}", entry.id);
    let mut bytes = Vec::new();
    for chunk in entry.keys(key) {
        bytes.extend(values.get(&chunk).ok_or_else(|| wrong("a chunk is missing"))?);
        used.insert(chunk);
    }
    if bytes.len() as u64 != entry.size_bytes || crc32fast::hash(&bytes) != entry.crc32 {
        return Err(wrong("the checksum is wrong"));
    }
    let (errors, states) = decode_run(&bytes, plan).map_err(|e| wrong(&e))?;
    if states.num_rows() as u64 != entry.rows || errors.len() as u64 != entry.errors {
        return Err(wrong("the number of rows is wrong"));
    }
    let mut run = crate::segment::new_run(entry.coverage.clone(), states, errors);
    Arc::get_mut(&mut run).expect("nobody else has it yet").id = entry.id.clone();
    Ok(run)
}

fn decode_run(bytes: &[u8], plan: &ViewPlan) -> Result<(Vec<EventError>, RecordBatch), String> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or("it is cut off")?;
    let length = u32::from_le_bytes(*length) as usize;
    let (errors, states) = rest.split_at_checked(length).ok_or("it is cut off")?;
    let errors = serde_json::from_slice(errors).map_err(|e| e.to_string())?;
    let states = ipc::decode(&plan.compiled.state_schema(), states).map_err(|e| e.to_string())?;
    Ok((errors, states))
}
