//! What the log and the decoding cost alone: librdkafka's batch consumer and `arrow-json`, and nothing else.
//!
//! Tuned like the platform's own reader: entries are taken by the thousand from one queue for all partitions, and decoded
//! straight from librdkafka's memory into batches of [`BATCH_ROWS`].

use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow_json::ReaderBuilder;
use rdkafka::ClientConfig;
use rdkafka::bindings as sys;
use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::consumer::{BaseConsumer, Consumer};
use watershed_shared::clock::Instant;

use crate::usage;

/// Rows of one record batch. Tried: 1,024 to 65,536; the middle is fastest by a little.
const BATCH_ROWS: usize = 8192;
const POLL_ENTRIES: usize = 8192;

/// What reading a topic to its end took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Consumed {
    pub(crate) took: Duration,
    pub(crate) cpu_seconds: f64,
}

/// Reads `topic` from its beginning to `ends` and decodes every record. Blocks.
pub(crate) fn consume_and_decode(servers: &str, topic: &str, ends: &BTreeMap<i32, i64>) -> Result<Consumed> {
    let cpu = usage::cpu_seconds(std::process::id())?;
    let started = Instant::now();
    let mut decoder = ReaderBuilder::new(schema()).with_batch_size(BATCH_ROWS).build_decoder()?;
    let mut rows = 0;
    let wanted: i64 = ends.values().sum();
    read(servers, topic, ends, |value| {
        let mut rest = value;
        while !rest.is_empty() {
            let taken = decoder.decode(rest)?;
            rest = &rest[taken..];
            if taken == 0 || decoder.len() == BATCH_ROWS {
                rows += decoder.flush()?.map_or(0, |batch| batch.num_rows());
            }
        }
        Ok(())
    })?;
    rows += decoder.flush()?.map_or(0, |batch| batch.num_rows());
    ensure!(rows as i64 == wanted, "decoded {rows} rows of {wanted} records");
    Ok(Consumed { took: started.elapsed(), cpu_seconds: usage::cpu_seconds(std::process::id())? - cpu })
}

/// The stream's columns, as Arrow has them.
fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("type", DataType::Utf8, true),
        Field::new("user_id", DataType::Int64, true),
        Field::new("amount", DataType::Float64, true),
        Field::new("note", DataType::Utf8, true),
    ]))
}

/// Calls `each` with every value of the topic up to `ends`.
fn read(
    servers: &str,
    topic: &str,
    ends: &BTreeMap<i32, i64>,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut config = ClientConfig::new();
    for (key, value) in [
        ("bootstrap.servers", servers),
        ("fetch.wait.max.ms", "100"),
        ("queued.max.messages.kbytes", "65536"),
        ("fetch.queue.backoff.ms", "10"),
        ("queued.min.messages", "200000"),
        ("fetch.message.max.bytes", "4194304"),
        ("check.crcs", "true"),
    ] {
        config.set(key, value);
    }
    let consumer: BaseConsumer = config.create().context("make a consumer")?;
    let name = CString::new(topic)?;
    let mut left: i64 = ends.values().sum();
    let mut messages: Vec<*mut sys::rd_kafka_message_t> = vec![std::ptr::null_mut(); POLL_ENTRIES];
    // SAFETY: client, topic and queue live to the end of the block and are given back in the reverse order; every
    // message is looked at and destroyed once. Nothing between panics or returns early.
    unsafe {
        let client = consumer.client().native_ptr();
        let handle = sys::rd_kafka_topic_new(client, name.as_ptr(), std::ptr::null_mut());
        let queue = sys::rd_kafka_queue_new(client);
        for partition in ends.keys() {
            sys::rd_kafka_consume_start_queue(handle, *partition, 0, queue);
        }
        let mut outcome = Ok(());
        while left > 0 && outcome.is_ok() {
            let got = sys::rd_kafka_consume_batch_queue(queue, 100, messages.as_mut_ptr(), POLL_ENTRIES);
            for message in &messages[..usize::try_from(got).unwrap_or(0)] {
                let seen = &**message;
                if seen.err == Code::RD_KAFKA_RESP_ERR_NO_ERROR && !seen.payload.is_null() && outcome.is_ok() {
                    outcome = each(std::slice::from_raw_parts(seen.payload.cast::<u8>(), seen.len));
                    left -= 1;
                }
                sys::rd_kafka_message_destroy(*message);
            }
        }
        for partition in ends.keys() {
            sys::rd_kafka_consume_stop(handle, *partition);
        }
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_topic_destroy(handle);
        outcome
    }
}
