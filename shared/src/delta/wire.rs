//! The delta service on the wire: snapshots with the runs that the other side lacks.
//!
//! A connection carries frames: the length of a header (4 bytes), the length of a body (8 bytes), both little-endian, the
//! header as JSON, the body. The header is a snapshot that names its runs by id; the body holds the runs that this
//! connection has not carried yet, each as an Arrow IPC stream of one batch of states and, if there are any, another one of
//! the events that failed. Nothing in the header grows with the events. A frame without a header is a heartbeat.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{DeltaRun, PartitionStatus, Reason, StreamDelta, ViewDelta};
use crate::names::{DefinitionHash, RunId};
use crate::offsets::{Coverage, Cut, OffsetVector, PartitionId, Position};
use crate::run::{EventError, event_error_schema, event_errors_from_batch, event_errors_to_batch};

/// Lengths in front of a header.
const LENGTHS: usize = 4 + 8;
/// A longer header, or a body longer than [`MAX_BODY`], is no frame of this protocol.
const MAX_HEADER: usize = 256 << 20;
const MAX_BODY: u64 = 64 << 30;
/// Failed events in one batch: their texts together stay far below what one column holds.
const ERRORS_A_BATCH: usize = 65_536;

/// What came is not what this release understands.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("no frame of the delta service: {0}. Run the same release on all processes")]
    Frame(String),
    #[error("a header of the delta service cannot be read: {0}. Run the same release on all processes")]
    Header(#[from] serde_json::Error),
    #[error("a run of the delta service cannot be read: {0}")]
    Run(#[from] ArrowError),
    #[error("the delta service names run {0}, which it has not sent")]
    UnknownRun(RunId),
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    stream: String,
    position: Position,
    origins: OffsetVector,
    log_end: OffsetVector,
    oldest_pending: Option<i64>,
    partitions: BTreeMap<PartitionId, PartitionStatus>,
    views: BTreeMap<String, BTreeMap<DefinitionHash, HeaderView>>,
    reasons: Vec<Reason>,
    losses: usize,
    /// Those in the body, in its order.
    runs: Vec<HeaderRun>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HeaderView {
    from: Cut,
    position: Position,
    joined: bool,
    runs: Vec<RunId>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HeaderRun {
    id: RunId,
    coverage: Coverage,
    /// Of its states in the body.
    bytes: u64,
    /// Of its failed events behind them; 0: there are none.
    error_bytes: u64,
}

/// One direction of a connection: the side that has the runs.
#[derive(Debug, Default)]
pub struct Encoder {
    sent: BTreeSet<RunId>,
}

impl Encoder {
    /// A frame that shows that the sender lives.
    pub fn heartbeat() -> Bytes {
        Bytes::from_static(&[0; LENGTHS])
    }

    /// `delta` as the parts of one frame, in order.
    ///
    /// # Errors
    /// If a run can't be written; the connection is of no use any more.
    pub fn frame(&mut self, delta: &StreamDelta) -> Result<Vec<Bytes>, WireError> {
        let mut named = BTreeSet::new();
        let (mut runs, mut body) = (Vec::new(), Vec::new());
        let mut views: BTreeMap<String, BTreeMap<DefinitionHash, HeaderView>> = BTreeMap::new();
        for (view, definitions) in &delta.views {
            for (hash, shown) in definitions {
                for run in &shown.runs {
                    if named.insert(run.id.clone()) && !self.sent.contains(&run.id) {
                        let states = ipc(&run.states.schema(), [run.states.clone()])?;
                        let errors = run.errors.chunks(ERRORS_A_BATCH).map(event_errors_to_batch);
                        let errors = match run.errors.is_empty() {
                            true => Bytes::new(),
                            false => ipc(&event_error_schema(), errors)?,
                        };
                        runs.push(HeaderRun {
                            id: run.id.clone(),
                            coverage: run.coverage.clone(),
                            bytes: states.len() as u64,
                            error_bytes: errors.len() as u64,
                        });
                        body.extend([states, errors]);
                    }
                }
                let header = HeaderView {
                    from: shown.from.clone(),
                    position: shown.position.clone(),
                    joined: shown.joined,
                    runs: shown.runs.iter().map(|run| run.id.clone()).collect(),
                };
                views.entry(view.clone()).or_default().insert(hash.clone(), header);
            }
        }
        let header = serde_json::to_vec(&Header {
            stream: delta.stream.clone(),
            position: delta.position.clone(),
            origins: delta.origins.clone(),
            log_end: delta.log_end.clone(),
            oldest_pending: delta.oldest_pending,
            partitions: delta.partitions.clone(),
            views,
            reasons: delta.reasons.clone(),
            losses: delta.losses,
            runs,
        })?;
        // What is not named any more is forgotten by the other side too.
        self.sent = named;
        let mut lengths = BytesMut::with_capacity(LENGTHS);
        lengths.put_u32_le(u32::try_from(header.len()).map_err(|_| WireError::Frame("too many runs".to_owned()))?);
        lengths.put_u64_le(body.iter().map(|bytes| bytes.len() as u64).sum());
        Ok([lengths.freeze(), Bytes::from(header)].into_iter().chain(body).collect())
    }
}

fn ipc(schema: &Schema, batches: impl IntoIterator<Item = RecordBatch>) -> Result<Bytes, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
    for batch in batches {
        writer.write(&batch)?;
    }
    writer.finish()?;
    Ok(Bytes::from(writer.into_inner()?))
}

/// One message of a connection.
#[derive(Debug, Clone)]
pub enum Message {
    Heartbeat,
    Snapshot(Arc<StreamDelta>),
}

/// The other direction: the side that lacks the runs.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    runs: BTreeMap<RunId, Arc<DeltaRun>>,
}

impl Decoder {
    /// Takes what came, however it was divided.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message; `None`: more has to come first.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub fn message(&mut self) -> Result<Option<Message>, WireError> {
        let Some(mut lengths) = self.buffer.get(..LENGTHS) else { return Ok(None) };
        let (header, body) = (lengths.get_u32_le() as usize, lengths.get_u64_le());
        if header > MAX_HEADER || body > MAX_BODY {
            return Err(WireError::Frame(format!("a header of {header} bytes and a body of {body}")));
        }
        let whole = LENGTHS + header + body as usize;
        if self.buffer.len() < whole {
            self.buffer.reserve(whole - self.buffer.len());
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(whole).freeze();
        frame.advance(LENGTHS);
        if header == 0 {
            return Ok(Some(Message::Heartbeat));
        }
        let header: Header = serde_json::from_slice(&frame.split_to(header))?;
        self.snapshot(header, frame).map(|delta| Some(Message::Snapshot(Arc::new(delta))))
    }

    fn snapshot(&mut self, header: Header, mut body: Bytes) -> Result<StreamDelta, WireError> {
        let mut known = std::mem::take(&mut self.runs);
        for run in header.runs {
            if run.bytes.saturating_add(run.error_bytes) > body.len() as u64 {
                return Err(WireError::Frame(format!("run {} is cut off", run.id)));
            }
            let states = read_ipc(&body.split_to(run.bytes as usize))?;
            let errors = read_errors(&body.split_to(run.error_bytes as usize))?;
            let memory_bytes = states.get_array_memory_size();
            let (id, coverage) = (run.id, run.coverage);
            let run = DeltaRun { id: id.clone(), coverage, states, errors, memory_bytes };
            known.insert(id, Arc::new(run));
        }
        let mut views: BTreeMap<String, BTreeMap<DefinitionHash, Arc<ViewDelta>>> = BTreeMap::new();
        for (view, definitions) in header.views {
            for (definition, shown) in definitions {
                let mut runs = Vec::with_capacity(shown.runs.len());
                for id in shown.runs {
                    let run = known.get(&id).cloned().ok_or_else(|| WireError::UnknownRun(id.clone()))?;
                    self.runs.insert(id, Arc::clone(&run));
                    runs.push(run);
                }
                let (from, position, joined) = (shown.from, shown.position, shown.joined);
                let unowned = BTreeSet::new();
                let delta = ViewDelta { definition: definition.clone(), from, position, runs, joined, unowned };
                views.entry(view.clone()).or_default().insert(definition, Arc::new(delta));
            }
        }
        Ok(StreamDelta {
            stream: header.stream,
            position: header.position,
            origins: header.origins,
            log_end: header.log_end,
            oldest_pending: header.oldest_pending,
            partitions: header.partitions,
            views,
            reasons: header.reasons,
            losses: header.losses,
        })
    }
}

fn read_ipc(bytes: &[u8]) -> Result<RecordBatch, WireError> {
    let mut reader = StreamReader::try_new(bytes, None)?;
    reader.next().transpose()?.ok_or_else(|| WireError::Frame("a run without a batch".to_owned()))
}

fn read_errors(bytes: &[u8]) -> Result<Vec<EventError>, WireError> {
    let mut errors = Vec::new();
    if !bytes.is_empty() {
        for batch in StreamReader::try_new(bytes, None)? {
            errors.extend(event_errors_from_batch(&batch?)?);
        }
    }
    Ok(errors)
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field};

    use super::*;
    use crate::delta::Maximum;
    use crate::offsets::{Offset, OffsetRange};

    fn run(id: &str, start: i64, end: i64) -> Arc<DeltaRun> {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let states = RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(start..end))]).unwrap();
        let coverage = [(PartitionId(0), OffsetRange::new(Offset(start), Offset(end)))].into_iter().collect();
        let error = EventError { partition: PartitionId(0), offset: Offset(start), error: "by zero".to_owned() };
        Arc::new(DeltaRun { id: RunId::new(id), coverage, memory_bytes: 0, states, errors: vec![error] })
    }

    fn delta(runs: &[Arc<DeltaRun>]) -> StreamDelta {
        let end = runs.iter().fold(OffsetVector::new(), |end, run| end.join(&run.coverage.end()));
        let definition = DefinitionHash::new("d");
        let from = [(0, 3)].into();
        let view = ViewDelta {
            definition: definition.clone(),
            from,
            position: end.clone(),
            runs: runs.to_vec(),
            joined: true,
            unowned: BTreeSet::new(),
        };
        let counted_since = chrono::DateTime::from_timestamp_micros(9);
        let status =
            PartitionStatus { event_time_max: Maximum::Known(Some(7)), late: 1, dead_letters: 2, counted_since };
        let none = PartitionStatus { event_time_max: Maximum::Known(None), ..PartitionStatus::default() };
        let unknown = PartitionStatus::default();
        let partitions = [(PartitionId(0), status), (PartitionId(1), none), (PartitionId(2), unknown)];
        StreamDelta {
            stream: "s".to_owned(),
            position: end.clone(),
            origins: [(0, 0)].into(),
            log_end: end,
            oldest_pending: Some(9),
            partitions: partitions.into(),
            views: [("v".to_owned(), [(definition, Arc::new(view))].into())].into(),
            reasons: vec![Reason {
                code: "catching_up".to_owned(),
                partition: None,
                from: None,
                to: Some(4),
                message: "soon".to_owned(),
            }],
            losses: 3,
        }
    }

    /// As text, with the states: snapshots have no equality.
    fn shown(delta: &StreamDelta) -> String {
        let runs: Vec<_> = delta.views["v"].values().flat_map(|v| &v.runs).map(|r| (&r.id, &r.states)).collect();
        let errors: Vec<_> =
            delta.views["v"].values().flat_map(|v| &v.runs).map(|r| (&r.coverage, &r.errors)).collect();
        let view = delta.views["v"].values().map(|v| (&v.from, &v.position, v.joined)).collect::<Vec<_>>();
        format!(
            "{runs:?} {errors:?} {view:?} {:?} {:?} {:?}",
            delta.position,
            delta.partitions,
            (&delta.reasons, delta.losses)
        )
    }

    #[test]
    fn a_snapshot_arrives_however_it_is_divided_and_a_run_is_sent_once() {
        let first = [run("a", 3, 5), run("b", 5, 9)];
        let second = [Arc::clone(&first[0]), run("c", 5, 12)];
        for piece in [1, 7, usize::MAX] {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
            let mut sizes = Vec::new();
            for runs in [&first, &second, &second] {
                let mut frame = encoder.frame(&delta(runs)).unwrap().concat();
                sizes.push(frame.len());
                frame.extend_from_slice(&Encoder::heartbeat());
                let mut messages = Vec::new();
                for bytes in frame.chunks(piece.min(frame.len())) {
                    decoder.push(bytes);
                    while let Some(message) = decoder.message().unwrap() {
                        messages.push(message);
                    }
                }
                let [Message::Snapshot(found), Message::Heartbeat] = &messages[..] else { panic!("{messages:?}") };
                assert_eq!(shown(found), shown(&delta(runs)));
            }
            assert!(sizes[2] < sizes[1] && sizes[1] < sizes[0], "what was sent is not sent again: {sizes:?}");
        }
    }

    #[test]
    fn the_header_does_not_grow_with_the_events_that_fail() {
        let failing = |count: i64| {
            let error = |i| EventError { partition: PartitionId(0), offset: Offset(i), error: format!("{i} by zero") };
            let mut failing = run("a", 0, 10);
            Arc::get_mut(&mut failing).unwrap().errors = (0..count).map(error).collect();
            delta(&[failing, run("b", 10, 11)])
        };
        let header = |count| Encoder::default().frame(&failing(count)).unwrap()[1].len();
        let many = ERRORS_A_BATCH as i64 * 2 + 7;
        assert!(header(many) < header(1) + 20, "{} after {}", header(many), header(1));
        for count in [0, 1, many] {
            let mut decoder = Decoder::default();
            decoder.push(&Encoder::default().frame(&failing(count)).unwrap().concat());
            let Some(Message::Snapshot(found)) = decoder.message().unwrap() else { panic!("a snapshot was sent") };
            assert!(shown(&found) == shown(&failing(count)), "{count} errors arrive as they were");
        }
    }

    #[test]
    fn what_is_not_of_this_protocol_is_refused() {
        let mut decoder = Decoder::default();
        decoder.push(b"HTTP/1.1 502 Bad Gateway");
        assert!(matches!(decoder.message(), Err(WireError::Frame(_))));
        // A run that this connection has carried is known to this connection alone.
        let mut encoder = Encoder::default();
        encoder.frame(&delta(&[run("a", 3, 5)])).unwrap();
        let mut other = Decoder::default();
        other.push(&encoder.frame(&delta(&[run("a", 3, 5)])).unwrap().concat());
        assert!(matches!(other.message(), Err(WireError::UnknownRun(_))));
    }
}
