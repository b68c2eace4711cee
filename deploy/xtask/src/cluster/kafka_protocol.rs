//! As much of Kafka's protocol as it takes to ask a broker whom it knows.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const METADATA: i16 = 3;
const VERSION: i16 = 1;
const CORRELATION: i32 = 7;
const TIMEOUT: Duration = Duration::from_secs(5);

/// How many brokers the one at `address` knows to be up; fenced ones do not count.
pub(super) fn known_brokers(address: &str) -> Result<i32> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(&request())?;
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let mut body = vec![0; usize::try_from(i32::from_be_bytes(size)).context("a negative length")?];
    stream.read_exact(&mut body)?;
    brokers(&body)
}

/// Metadata for no topic.
fn request() -> Vec<u8> {
    let client = b"xtask";
    let mut body = Vec::new();
    body.extend(METADATA.to_be_bytes());
    body.extend(VERSION.to_be_bytes());
    body.extend(CORRELATION.to_be_bytes());
    body.extend((client.len() as i16).to_be_bytes());
    body.extend(client);
    body.extend(0_i32.to_be_bytes());
    let mut request = (body.len() as i32).to_be_bytes().to_vec();
    request.extend(body);
    request
}

fn brokers(body: &[u8]) -> Result<i32> {
    let number = |at: usize| -> Result<i32> {
        let bytes = body.get(at..at + 4).context("the answer ends early")?;
        Ok(i32::from_be_bytes(bytes.try_into().expect("four bytes")))
    };
    ensure!(number(0)? == CORRELATION, "the answer is to another request");
    number(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_ends_early_or_is_for_another_request_is_an_error() {
        assert_eq!(brokers(&[0, 0, 0, 7, 0, 0, 0, 3]).unwrap(), 3);
        assert_eq!(brokers(&[0, 0, 0, 7, 0]).unwrap_err().to_string(), "the answer ends early");
        assert_eq!(brokers(&[0, 0, 0, 8, 0, 0, 0, 3]).unwrap_err().to_string(), "the answer is to another request");
    }
}
