//! Reads records from a file, standard input or a socket, in a thread of its own, with bounded memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::TcpStream;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use flate2::read::MultiGzDecoder;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use watershed_shared::config::StreamConfig;

use super::{Input, LineError, csv};
use crate::failure::{Failure, Outcome};

/// Bytes of records that have been read and are not yet acknowledged; also the greatest record.
const MEMORY_BYTES: usize = 32 << 20;
/// What a record costs besides its bytes, roughly; it bounds the number of tiny ones.
const RECORD_OVERHEAD_BYTES: usize = 128;

/// How the bytes become records.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) input: Input,
    pub(super) delimiter: u8,
    pub(super) key: Option<String>,
    /// As it is configured, where that is known.
    pub(super) stream: Option<StreamConfig>,
}

/// One record. It holds its share of the memory until it is dropped.
#[derive(Debug)]
pub(super) struct Record {
    /// Where it begins, from 1.
    pub(super) line: u64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Vec<u8>,
    pub(super) memory: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(super) enum Item {
    Record(Record),
    /// A record that cannot be published.
    Wrong(LineError),
    /// The source cannot be read further. Nothing follows.
    Broken(LineError),
}

/// Opens the source and reads it in a thread; the channel closes at its end.
pub(super) async fn start(from: &str, reading: Reading) -> Outcome<mpsc::Receiver<Item>> {
    let input: Box<dyn Read + Send> = match from.strip_prefix("tcp://") {
        Some(address) => {
            let address = address.to_owned();
            let connect = tokio::task::spawn_blocking(move || {
                TcpStream::connect(&address).with_context(|| format!("connect to tcp://{address}"))
            });
            Box::new(connect.await??)
        }
        None if from == "-" => Box::new(io::stdin()),
        None => {
            let file = File::open(from).with_context(|| format!("open {from}"))?;
            if file.metadata().with_context(|| format!("read {from}"))?.is_dir() {
                return Err(Failure::Usage(format!("{from} is a folder; --from takes one file")));
            }
            Box::new(file)
        }
    };
    let (items, receiver) = mpsc::channel(1_024);
    let output = Output {
        items,
        memory: Arc::new(Semaphore::new(MEMORY_BYTES)),
        runtime: Handle::current(),
        key: reading.key.clone(),
    };
    std::thread::Builder::new()
        .name("produce-source".to_owned())
        .spawn(move || read(input, &reading, &output))
        .map_err(|error| anyhow!("cannot start a thread: {error}"))?;
    Ok(receiver)
}

/// Where records go from the thread; it waits while too many are under way.
#[derive(Debug)]
pub(super) struct Output {
    items: mpsc::Sender<Item>,
    memory: Arc<Semaphore>,
    runtime: Handle,
    key: Option<String>,
}

/// The receiver is gone.
#[derive(Debug)]
pub(super) struct Closed;

impl Output {
    pub(super) fn record(&self, line: u64, key: Option<Vec<u8>>, value: Vec<u8>) -> Result<(), Closed> {
        let size = (value.len() + key.as_ref().map_or(0, Vec::len) + RECORD_OVERHEAD_BYTES).min(MEMORY_BYTES);
        let size = u32::try_from(size).expect("at most the whole memory");
        let memory = Arc::clone(&self.memory).acquire_many_owned(size);
        let memory = self.runtime.block_on(memory).map_err(|_| Closed)?;
        self.send(Item::Record(Record { line, key, value, memory }))
    }

    pub(super) fn wrong(&self, line: u64, error: impl Into<String>) -> Result<(), Closed> {
        self.send(Item::Wrong(LineError { line, error: error.into() }))
    }

    pub(super) fn broken(&self, line: u64, error: impl Into<String>) {
        // A closed channel needs no news.
        drop(self.send(Item::Broken(LineError { line, error: error.into() })));
    }

    fn send(&self, item: Item) -> Result<(), Closed> {
        self.items.blocking_send(item).map_err(|_| Closed)
    }
}

fn read(input: Box<dyn Read + Send>, reading: &Reading, output: &Output) {
    let mut buffered = BufReader::with_capacity(1 << 16, input);
    let zipped = match buffered.fill_buf() {
        Ok(first) => first.starts_with(&[0x1f, 0x8b]),
        Err(error) => return output.broken(1, format!("cannot read: {error}")),
    };
    let mut plain: Box<dyn BufRead> = match zipped {
        true => Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(buffered))),
        false => Box::new(buffered),
    };
    // The receiver is gone only when nobody wants more.
    let _closed = match reading.input {
        Input::Csv => csv::read(plain, reading, output),
        Input::Json | Input::Text => lines(&mut plain, reading.input, output),
    };
}

/// A record a line.
fn lines(input: &mut dyn BufRead, kind: Input, output: &Output) -> Result<(), Closed> {
    let mut number = 0;
    loop {
        let line = match next_line(input, MEMORY_BYTES) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) => {
                output.broken(number + 1, format!("cannot read: {error}"));
                return Ok(());
            }
        };
        number += 1;
        match line {
            Line::TooLong => output.wrong(number, format!("the line is longer than {MEMORY_BYTES} bytes"))?,
            Line::Whole(line) if kind == Input::Json && line.trim_ascii().is_empty() => {}
            Line::Whole(line) => {
                let key = output.key.as_deref().and_then(|key| json_key(&line, key));
                output.record(number, key, line)?;
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// Without its line break.
    Whole(Vec<u8>),
    /// It has been skipped.
    TooLong,
}

/// The next line; never holds more than `limit` bytes of it.
fn next_line(input: &mut dyn BufRead, limit: usize) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    let mut too_long = false;
    let mut began = false;
    loop {
        let chunk = match input.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if chunk.is_empty() && !began {
            return Ok(None);
        }
        began = true;
        let newline = chunk.iter().position(|byte| *byte == b'\n');
        let ended = newline.is_some() || chunk.is_empty();
        let part = &chunk[..newline.unwrap_or(chunk.len())];
        too_long |= line.len() + part.len() > limit;
        if !too_long {
            line.extend_from_slice(part);
        }
        let consumed = newline.map_or(chunk.len(), |at| at + 1);
        input.consume(consumed);
        if ended {
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            return Ok(Some(if too_long { Line::TooLong } else { Line::Whole(line) }));
        }
    }
}

/// The member `key` of the JSON object `line`: a text without its quotes, another value as it is written. `None` if it
/// is missing or null, or the line is no object; such a record is published all the same, since the platform keeps it
/// as a dead letter.
fn json_key(line: &[u8], key: &str) -> Option<Vec<u8>> {
    let members: std::collections::HashMap<String, &RawValue> = serde_json::from_slice(line).ok()?;
    let value = members.get(key)?.get();
    match serde_json::from_str::<serde_json::Value>(value).ok()? {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text.into_bytes()),
        _ => Some(value.as_bytes().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8], limit: usize) -> Vec<Line> {
        // A tiny buffer, so that lines span several.
        let mut input = BufReader::with_capacity(3, text);
        std::iter::from_fn(|| next_line(&mut input, limit).expect("memory can be read")).collect()
    }

    #[test]
    fn lines_end_at_line_breaks_and_at_the_end() {
        let whole = |text: &str| Line::Whole(text.as_bytes().to_vec());
        assert_eq!(all(b"", 9), []);
        assert_eq!(all(b"a\n\nlonger\r\nend", 9), [whole("a"), whole(""), whole("longer"), whole("end")]);
        assert_eq!(all(b"\n", 9), [whole("")]);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_the_next_one_is_read() {
        assert_eq!(all(b"0123456789\nab\n", 9), [Line::TooLong, Line::Whole(b"ab".to_vec())]);
    }

    #[test]
    fn keys_of_json_lines() {
        let key = |line: &str| json_key(line.as_bytes(), "k").map(|key| String::from_utf8(key).expect("UTF-8"));
        assert_eq!(key(r#"{"a": 1, "k": "x\"y"}"#).as_deref(), Some("x\"y"));
        assert_eq!(key(r#"{"k": 12345678901234567890123}"#).as_deref(), Some("12345678901234567890123"));
        assert_eq!(key(r#"{"k": {"a": 1}}"#).as_deref(), Some(r#"{"a": 1}"#));
        assert_eq!(key(r#"{"k": null}"#), None);
        assert_eq!(key("{}"), None);
        assert_eq!(key("no JSON"), None);
    }
}
