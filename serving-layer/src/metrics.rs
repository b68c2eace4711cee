//! The serving layer's metrics, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;

use crate::serving::Serving;

const REQUESTS: &str = "watershed_serving_requests_total";
const SECONDS: &str = "watershed_serving_request_seconds";
const BUCKETS_SECONDS: [f64; 10] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0];

/// Counters of requests.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(String, u16), Histogram>>,
}

#[derive(Debug, Default, Clone)]
struct Histogram {
    buckets: [u64; BUCKETS_SECONDS.len()],
    count: u64,
    sum_seconds: f64,
}

impl Metrics {
    /// Counts one request. `route` is a pattern, not a path, so that there are few.
    pub(crate) fn request(&self, route: String, status: u16, took: Duration) {
        let mut requests = self.requests.lock();
        let histogram = requests.entry((route, status)).or_default();
        let seconds = took.as_secs_f64();
        for (bucket, bound) in histogram.buckets.iter_mut().zip(BUCKETS_SECONDS) {
            *bucket += u64::from(seconds <= bound);
        }
        histogram.count += 1;
        histogram.sum_seconds += seconds;
    }
}

impl Serving {
    /// What `/metrics` answers.
    pub(crate) fn metrics_text(&self) -> String {
        let mut out = String::new();
        let requests = self.inner.metrics.requests.lock().clone();
        head(&mut out, REQUESTS, "counter", "Requests answered, by route and status.");
        for ((route, status), histogram) in &requests {
            line(&mut out, REQUESTS, &[("route", route), ("status", &status.to_string())], histogram.count as f64);
        }
        head(&mut out, SECONDS, "histogram", "Time until a request was answered, by route and status.");
        for ((route, status), histogram) in &requests {
            let status = status.to_string();
            for (bucket, bound) in histogram.buckets.iter().zip(BUCKETS_SECONDS) {
                let labels = [("route", route.as_str()), ("status", &status), ("le", &bound.to_string())];
                line(&mut out, &format!("{SECONDS}_bucket"), &labels, *bucket as f64);
            }
            let labels = [("route", route.as_str()), ("status", status.as_str())];
            let infinite = [labels[0], labels[1], ("le", "+Inf")];
            line(&mut out, &format!("{SECONDS}_bucket"), &infinite, histogram.count as f64);
            line(&mut out, &format!("{SECONDS}_sum"), &labels, histogram.sum_seconds);
            line(&mut out, &format!("{SECONDS}_count"), &labels, histogram.count as f64);
        }
        head(&mut out, "watershed_serving_queries_running", "gauge", "Queries under way.");
        line(&mut out, "watershed_serving_queries_running", &[], self.inner.engine.under_way() as f64);
        let what = "Decoded pages of generations that are kept for lookups.";
        head(&mut out, "watershed_serving_page_cache_bytes", "gauge", what);
        line(&mut out, "watershed_serving_page_cache_bytes", &[], self.inner.pages.bytes() as f64);
        head(
            &mut out,
            "watershed_serving_ready",
            "gauge",
            "Whether every view can be answered and the process has caught up.",
        );
        line(&mut out, "watershed_serving_ready", &[], if self.ready().is_ok() { 1.0 } else { 0.0 });
        self.view_gauges(&mut out);
        self.stream_gauges(&mut out);
        self.archive_gauges(&mut out);
        for source in &self.inner.input.metrics {
            source.write(&mut out);
        }
        out
    }

    fn view_gauges(&self, out: &mut String) {
        let metas = || {
            let now = watershed_shared::clock::now();
            let answers =
                self.inner.answers.values().flat_map(|a| a.borrow().views.values().cloned().collect::<Vec<_>>());
            answers.map(move |answer| (answer.meta(now), answer)).collect::<Vec<_>>()
        };
        let metas = metas();
        let mut gauge = |name: &str, help: &str, value: &dyn Fn(&crate::front::ViewMeta) -> Option<f64>| {
            head(out, name, "gauge", help);
            for (meta, answer) in &metas {
                if let Some(value) = value(meta) {
                    line(out, name, &[("view", &answer.view)], value);
                }
            }
        };
        gauge("watershed_serving_view_lag_seconds", "Age of the oldest event that the view's answer lacks.", &|m| {
            m.lag_seconds
        });
        gauge("watershed_serving_view_complete", "Whether the view's answer is complete.", &|m| {
            Some(f64::from(u8::from(m.complete)))
        });
        gauge("watershed_serving_view_generation", "The generation that answers.", &|m| Some(m.generation.0 as f64));
        gauge("watershed_serving_view_errors", "Events in the answer's range on which the view's SQL failed.", &|m| {
            Some(m.errors as f64)
        });
    }

    fn stream_gauges(&self, out: &mut String) {
        let answers: Vec<_> = self.inner.answers.values().map(|a| std::sync::Arc::clone(&a.borrow())).collect();
        for (name, help) in [
            ("watershed_serving_stream_position", "The next offset that the stream's views do not include."),
            ("watershed_serving_stream_log_end", "The log's last stable offset as last seen."),
        ] {
            head(out, name, "gauge", help);
            for answer in &answers {
                let vector = if name.ends_with("position") { &answer.position } else { &answer.log_end };
                for (partition, offset) in vector.iter() {
                    line(
                        out,
                        name,
                        &[("stream", &answer.stream), ("partition", &partition.to_string())],
                        offset.0 as f64,
                    );
                }
            }
        }
    }
}

const ARCHIVER: &str = "watershed_archive_archiver_state";
const STORAGE: &str = "watershed_storage_failing";
const HEADROOM: &str = "watershed_archive_headroom_offsets";
const LOST: &str = "watershed_archive_lost_offsets_total";
const UNREACHABLE: &str = "watershed_log_unreachable";

impl Serving {
    fn archive_gauges(&self, out: &mut String) {
        let streams = &self.inner.input.streams;
        head(out, ARCHIVER, "gauge", "1 for the state in which the stream's archiver is.");
        for (name, stream) in streams {
            line(out, ARCHIVER, &[("stream", name), ("state", stream.archiver.borrow().name())], 1.0);
        }
        head(out, STORAGE, "gauge", "1 while reads from the storage, or writes to it, fail.");
        let health = self.inner.input.storage.health();
        for (calls, trouble) in [("reads", &health.reads), ("writes", &health.writes)] {
            line(out, STORAGE, &[("calls", calls)], f64::from(u8::from(trouble.is_some())));
        }
        head(out, HEADROOM, "gauge", "Archived offsets that the log still has: at 0 the next ones it drops are lost.");
        for (name, stream) in streams {
            let now = std::sync::Arc::clone(&self.inner.answers[name].borrow());
            let (archived, starts) = (stream.archived_until.borrow().clone(), stream.log.borrow().starts.clone());
            for (partition, offsets) in crate::headroom::of(&now, &archived, &starts).offsets {
                let partition = partition.to_string();
                line(out, HEADROOM, &[("stream", name), ("partition", &partition)], offsets as f64);
            }
        }
        head(out, LOST, "counter", "Offsets that the log dropped before they were archived, accepted ones included.");
        for (name, stream) in streams {
            let losses = stream.state.borrow().losses.clone();
            let lost: i64 = losses.iter().map(|loss| loss.range.end.0 - loss.range.start.0).sum();
            line(out, LOST, &[("stream", name)], lost as f64);
        }
        head(out, UNREACHABLE, "gauge", "1 while no broker of the stream's log answers.");
        for (name, stream) in streams {
            let away = stream.log.borrow().unreachable.is_some();
            line(out, UNREACHABLE, &[("stream", name)], f64::from(u8::from(away)));
        }
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string takes every text");
}

fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    writeln!(out, "{name}{labels} {value}").expect("a string takes every text");
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
