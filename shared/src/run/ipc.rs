//! Record batches as bytes, for the speed layer's store: a checksum and an Arrow IPC stream of one batch.

use std::io::Cursor;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

/// Bytes in front of the stream: its CRC-32, little-endian.
const CHECKSUM_BYTES: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// Set it aside and read the events again.
    #[error("the bytes of a run are damaged: {0}")]
    Damaged(&'static str),
    #[error("a run has another schema than its definition. expected=`{expected}`, found=`{found}`")]
    OtherSchema { expected: String, found: String },
    #[error("cannot encode or decode a run")]
    Arrow(#[from] ArrowError),
}

/// The bytes of `batch`; what a slice leaves out of its buffers is not among them.
///
/// # Errors
/// If a column has a type that IPC does not know.
pub fn encode(batch: &RecordBatch) -> Result<Vec<u8>, IpcError> {
    let mut bytes = vec![0; CHECKSUM_BYTES];
    let mut writer = StreamWriter::try_new(&mut bytes, batch.schema_ref())?;
    writer.write(batch)?;
    writer.finish()?;
    drop(writer);
    let checksum = crc32fast::hash(&bytes[CHECKSUM_BYTES..]);
    bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

/// The batch that [`encode`] was given, in exactly `schema`.
///
/// # Errors
/// If the bytes are not those that were encoded, or the batch has another schema.
pub fn decode(schema: &SchemaRef, bytes: &[u8]) -> Result<RecordBatch, IpcError> {
    let (checksum, stream) = bytes.split_first_chunk::<CHECKSUM_BYTES>().ok_or(IpcError::Damaged("too short"))?;
    if crc32fast::hash(stream) != u32::from_le_bytes(*checksum) {
        return Err(IpcError::Damaged("the checksum differs"));
    }
    let mut reader = StreamReader::try_new(Cursor::new(stream), None)?;
    if reader.schema().fields() != schema.fields() {
        let (expected, found) = (schema.to_string(), reader.schema().to_string());
        return Err(IpcError::OtherSchema { expected, found });
    }
    let batch = reader.next().ok_or(IpcError::Damaged("there is no batch"))??;
    if reader.next().is_some() {
        return Err(IpcError::Damaged("there is more than one batch"));
    }
    Ok(batch.with_schema(SchemaRef::clone(schema))?)
}
