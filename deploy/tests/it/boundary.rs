//! The boundary scenario, where systems that draw the line through event time lose or repeat events: days of events, a
//! rebuild, late events for each day, the same rebuild again, a clock in 2030, a refresh, a kill. The answer is asked
//! at every step, and without pause by a poller during every swap, and is the truth each time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Broker, Running};
use crate::oracle::events::{COLUMNS, DAY, Format, HOUR, Kind, MINUTE, Record, Row, START, rfc3339};
use crate::oracle::log::{Log, Seen, offsets};

const STREAM: &str = "days";
const PATIENCE: Duration = Duration::from_secs(120);
const VIEWS: [&str; 3] = ["all_events", "on_time", "recent"];

#[test]
fn the_boundary_between_batch_and_speed_loses_and_repeats_nothing() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().unwrap();
    let config = config(&broker);
    let mut scenario = Scenario {
        running: Some(Running::start(&config, dir.path())),
        broker: &broker,
        log: Log::default(),
        clock: START,
    };

    // Three days of events, one each ten minutes.
    let days: Vec<_> = (0..3 * 24 * 6).map(|i| i * 10 * MINUTE).collect();
    scenario.produce(&days, 0);
    scenario.ask("three days");
    scenario.build_under_load("rebuild");
    // Late events for each day, after the boundary has passed them.
    let late: Vec<_> = (0..3).flat_map(|day| (0..20).map(move |i| day * DAY + i * MINUTE)).collect();
    scenario.produce(&late, 3 * DAY);
    scenario.ask("late events");
    scenario.build_under_load("rebuild");
    scenario.produce(&late, 3 * DAY + HOUR);
    scenario.build_under_load("rebuild");
    scenario.build_under_load("rebuild");
    // One clock in 2030.
    scenario.produce(&[6 * 366 * DAY], 3 * DAY + 2 * HOUR);
    scenario.ask("a clock in 2030");
    let on_time: Vec<_> = (0..30).map(|i| 3 * DAY + 2 * HOUR + i * MINUTE).collect();
    scenario.produce(&on_time, 3 * DAY + 2 * HOUR);
    scenario.ask("events after the clock in 2030");
    scenario.build_under_load("refresh");
    scenario.produce(&on_time, 3 * DAY + 3 * HOUR);
    scenario.running.take().unwrap().kill();
    scenario.running = Some(Running::start(&config, dir.path()));
    scenario.ask("after a kill");
    scenario.build_under_load("refresh");
    scenario.build_under_load("rebuild");
    scenario.running.take().unwrap().stop();
}

struct Scenario<'a> {
    running: Option<Running>,
    broker: &'a Broker,
    log: Log,
    clock: i64,
}

impl Scenario<'_> {
    /// Produces one event for each of `times` (since the start), recorded at `at` or when they happened if that is later.
    fn produce(&mut self, times: &[i64], at: i64) {
        let mut records = Vec::new();
        for (i, time) in times.iter().enumerate() {
            let honest = if *time > 1000 * DAY { 0 } else { *time };
            self.clock = self.clock.max(START + at.max(honest));
            let row = Row {
                k: Some((i % 5) as i32),
                s: None,
                v: i as i64,
                d: None,
                f: None,
                b: None,
                t: Some(START + time),
                x: None,
                l: Vec::new(),
            };
            records.push(((i % 2) as i32, Record { kind: Kind::Event(row), timestamp: self.clock / 1000 }));
        }
        let broker = self.broker;
        self.log.produce(Format::Json, records, |payloads| broker.produce(STREAM, payloads));
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the platform runs")
    }

    fn ask(&self, step: &str) {
        let ends = self.log.ends();
        for view in VIEWS {
            let body = self.running().client().view_waiting(view, &ends, PATIENCE);
            self.check(view, &body, step);
        }
    }

    /// Builds every view while a poller asks without pause.
    fn build_under_load(&self, mode: &str) {
        let stop = Arc::new(AtomicBool::new(false));
        let url = self.running().client().url().to_owned();
        let poller = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let http = reqwest::blocking::Client::new();
                let mut answers = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    for view in VIEWS {
                        let response = http.get(format!("{url}/v1/views/{view}")).send().expect("an answer");
                        let status = response.status();
                        let body: Value = response.json().expect("JSON");
                        assert!(status.is_success(), "a request failed during a swap: {status} {body}");
                        answers.push((view, body));
                    }
                }
                answers
            })
        };
        for view in VIEWS {
            let id = self.running().client().build(view, mode).expect("no other build runs");
            let status = self.running().client().wait_build(&id, PATIENCE);
            assert_eq!(status["state"], "succeeded", "{mode} of {view}: {status}");
            self.running().client().view_when(view, PATIENCE, |meta| meta["generation"] == status["generation"]);
        }
        stop.store(true, Ordering::Relaxed);
        let answers = poller.join().expect("the poller saw no failure");
        assert!(answers.len() > VIEWS.len(), "the poller asked during the builds");
        for (view, body) in &answers {
            self.check(view, body, &format!("during a {mode}"));
        }
        self.ask(&format!("after a {mode}"));
    }

    fn check(&self, view: &str, body: &Value, step: &str) {
        let meta = &body["meta"]["views"][view];
        let seen = self.log.seen_below(&offsets(meta, "position"));
        let mut truth = match view {
            "on_time" => by_hour(seen.iter().filter(|e| !e.late)),
            _ => by_hour(seen.iter()),
        };
        if view == "recent" {
            // The greatest running maximum at the position, less a day; the clock in 2030 does not raise it.
            let honest = seen.iter().filter_map(|e| e.row.t).filter(|t| *t < START + 1000 * DAY).max();
            truth.retain(|hour, _| honest.is_none_or(|max| *hour >= max - DAY));
        }
        let served: BTreeMap<String, (i64, i64)> = body["rows"]
            .as_array()
            .expect("rows")
            .iter()
            .map(|r| (r["hour"].as_str().unwrap().to_owned(), (r["n"].as_i64().unwrap(), r["sv"].as_i64().unwrap())))
            .collect();
        let truth: BTreeMap<String, (i64, i64)> = truth.into_iter().map(|(h, c)| (rfc3339(h), c)).collect();
        assert_eq!(served, truth, "{view} {step}: {meta}");
        assert_eq!(meta["complete"], json!(true), "{view} {step}: {meta}");
    }
}

fn by_hour<'a>(seen: impl Iterator<Item = &'a Seen<'a>>) -> BTreeMap<i64, (i64, i64)> {
    let mut hours: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for event in seen {
        let Some(t) = event.row.t else { continue };
        let (n, sum) = hours.entry(t.div_euclid(HOUR) * HOUR).or_default();
        *n += 1;
        *sum += event.row.v;
    }
    hours
}

fn config(broker: &Broker) -> String {
    let sql = "SELECT date_bin(INTERVAL '1 hour', t) AS hour, count(*) AS n, sum(v) AS sv FROM days GROUP BY 1";
    let beginning = broker.config("200 ms", "");
    format!(
        r#"
{beginning}
[stream.days]
partitions = 2
format = "json"
event_time = "t"
allowed_lateness = "10 minutes"
columns = """{COLUMNS}"""
[view.all_events]
sql = "{sql}"
[view.on_time]
sql = "{sql}"
late = "exclude"
[view.recent]
sql = "{sql}"
retain = "1 day"
"#
    )
}
