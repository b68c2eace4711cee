//! Events that come in while something else is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};
use rdkafka::producer::Producer;
use watershed_shared::clock::Instant;

use crate::events::Shape;
use crate::kafka::{Kafka, send};

/// Records between two looks at the clock.
const BURST: u64 = 100;

/// A thread that publishes until it is stopped.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Load {
    /// Publishes records of `shape` to `topic`, so many a second, or as many as go.
    pub(crate) fn start(
        kafka: &Kafka,
        topic: &str,
        partitions: i32,
        shape: Shape,
        per_second: Option<u64>,
    ) -> Result<Self> {
        let producer = kafka.producer(&[("linger.ms", "2")])?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, topic) = (Arc::clone(&stop), topic.to_owned());
        let publish = move || {
            let started = Instant::now();
            let mut value = String::new();
            let mut i = 0;
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    // As if an hour of events were published again and again.
                    shape.write(i % 1_000_000, 1_000_000, &mut value);
                    let partition = i32::try_from(i / BURST % u64::try_from(partitions)?)?;
                    send(&producer, &topic, partition, value.as_bytes())?;
                    i += 1;
                }
                producer.poll(Duration::ZERO);
                if let Some(per_second) = per_second {
                    let due = Duration::from_secs_f64(i as f64 / per_second as f64);
                    std::thread::sleep(due.saturating_sub(started.elapsed()));
                }
            }
            producer.flush(Duration::from_secs(60))?;
            Ok(())
        };
        Ok(Self { stop, thread: std::thread::spawn(publish) })
    }

    /// Waits until the log has all that was sent.
    pub(crate) fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the load's thread panicked"))?
    }
}
