//! As much of Kafka's protocol as it takes to ask a broker whom it knows, and to tell it who may do what.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const METADATA: i16 = 3;
const METADATA_VERSION: i16 = 1;
const CORRELATION: i32 = 7;
const TIMEOUT: Duration = Duration::from_secs(5);

/// How many brokers the one at `address` knows to be up; fenced ones do not count.
pub(super) fn known_brokers(address: &str) -> Result<i32> {
    // For no topic.
    ask(address, METADATA, METADATA_VERSION, &0_i32.to_be_bytes())?.int(0)
}

/// Sends a request to the broker at `address`; answers what follows the header.
pub(super) fn ask(address: &str, api: i16, version: i16, body: &[u8]) -> Result<Answer> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(&request(api, version, body))?;
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let mut answer = vec![0; usize::try_from(i32::from_be_bytes(size)).context("a negative length")?];
    stream.read_exact(&mut answer)?;
    Answer::of(answer)
}

fn request(api: i16, version: i16, body: &[u8]) -> Vec<u8> {
    let mut request = Vec::new();
    request.extend(api.to_be_bytes());
    request.extend(version.to_be_bytes());
    request.extend(CORRELATION.to_be_bytes());
    put_text(&mut request, "xtask");
    request.extend(body);
    let mut framed = (request.len() as i32).to_be_bytes().to_vec();
    framed.extend(request);
    framed
}

/// A text as Kafka's protocol has it: its length in two bytes, then itself.
pub(super) fn put_text(body: &mut Vec<u8>, text: &str) {
    body.extend((text.len() as i16).to_be_bytes());
    body.extend(text.as_bytes());
}

/// What a broker answers, without length and header.
#[derive(Debug)]
pub(super) struct Answer(Vec<u8>);

impl Answer {
    fn of(mut answer: Vec<u8>) -> Result<Self> {
        let header = Self(answer.clone());
        ensure!(header.int(0)? == CORRELATION, "the answer is to another request");
        Ok(Self(answer.split_off(4)))
    }

    pub(super) fn int(&self, at: usize) -> Result<i32> {
        self.bytes(at).map(i32::from_be_bytes)
    }

    pub(super) fn short(&self, at: usize) -> Result<i16> {
        self.bytes(at).map(i16::from_be_bytes)
    }

    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let bytes = self.0.get(at..at + N).context("the answer ends early")?;
        Ok(bytes.try_into().expect("as many as asked for"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(answer: &[u8]) -> Result<i32> {
        Answer::of(answer.to_vec())?.int(0)
    }

    #[test]
    fn an_answer_that_ends_early_or_is_for_another_request_is_an_error() {
        assert_eq!(first(&[0, 0, 0, 7, 0, 0, 0, 3]).unwrap(), 3);
        assert_eq!(first(&[0, 0, 0, 7, 0]).unwrap_err().to_string(), "the answer ends early");
        assert_eq!(first(&[0, 0]).unwrap_err().to_string(), "the answer ends early");
        assert_eq!(first(&[0, 0, 0, 8, 0, 0, 0, 3]).unwrap_err().to_string(), "the answer is to another request");
    }
}
