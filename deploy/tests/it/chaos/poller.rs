//! Who asks: one for each serving process, and one that goes from one to the other.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use watershed_shared::clock::Instant;

use super::fleet::{Process, Role};
use super::hits::Hits;
use super::ledger::Ledger;
use super::recount::{Recount, View, views};
use super::weather::{Ends, Part, Weather};
use super::{PATIENCE, Watch, World};
use crate::oracle::compare::assert_rows;
use crate::oracle::log::offsets;

/// Between two questions.
const PACE: Duration = Duration::from_millis(250);
/// Answers that wait until the acknowledgements of all that they hold have come.
const MAX_WAITING: usize = 60;

/// What came of a question.
pub(super) enum Asked {
    Answer(Value),
    /// An error whose code means that it may be asked again: status and body.
    Later(u16, Value),
    /// No connection, or none any more.
    Nobody(String),
}

/// Asks; an answer that no fault excuses is a failure.
pub(super) fn ask(request: reqwest::blocking::RequestBuilder) -> Asked {
    let answered = request.send().and_then(|response| {
        let status = response.status().as_u16();
        Ok((status, response.bytes()?))
    });
    match answered {
        Err(error) => Asked::Nobody(format!("{:#}", anyhow::Error::from(error))),
        Ok((status, bytes)) => {
            let body: Value = serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                panic!("{status} without JSON: {error}: {}", String::from_utf8_lossy(&bytes));
            });
            match status {
                200..300 => Asked::Answer(body),
                409 | 503 | 504 => Asked::Later(status, body),
                _ => panic!("{status} {body}"),
            }
        }
    }
}

/// A client without a limit on how long an answer takes; a process that is stopped answers when it goes on.
pub(super) fn http() -> reqwest::blocking::Client {
    reqwest::blocking::Client::builder().timeout(PATIENCE).no_proxy().build().expect("a client")
}

/// Whose faults may be the reason of `code` in an answer of the serving process of a number; `None`: nobody's ever.
fn excuse(code: &str) -> Option<fn(Part, usize) -> bool> {
    Some(match code {
        // Of an owner, or of the link to it; who takes over reads from the log and the storage.
        "no_owner" | "owner_catching_up" | "replaying" | "replay_failed" | "merge_failed" => {
            |part, number| matches!(part, Part::Speed | Part::Log | Part::Storage) || part == Part::Serving(number)
        }
        "log_unreachable" | "log_unavailable" => {
            |part, number| matches!(part, Part::Log | Part::Speed) || part == Part::Serving(number)
        }
        "catching_up" => |part, number| part == Part::Serving(number),
        "delta_store" => |part, _| part == Part::Speed,
        _ => return None,
    })
}

/// Asks one serving process for all views, again and again.
pub(super) struct Poller<'a> {
    process: &'a Process,
    ledger: &'a Ledger,
    weather: &'a Weather,
    hits: &'a Hits,
    views: Vec<View>,
    recounts: Vec<Recount>,
    /// The life of the process that answered last, and what each view answered.
    life: u64,
    last: Vec<Ends>,
    /// View, position and body.
    waiting: Vec<(usize, Ends, Value)>,
    /// Incomplete answers, by reason; and what else came instead of an answer.
    said: BTreeMap<String, u64>,
}

impl<'a> Poller<'a> {
    pub(super) fn new(process: &'a Process, world: &'a World) -> Self {
        let views = views();
        let recounts = views.iter().map(Recount::new).collect();
        let last = vec![Ends::new(); views.len()];
        let World { ledger, weather, hits, .. } = world;
        Self {
            process,
            ledger,
            weather,
            hits,
            views,
            recounts,
            life: 0,
            last,
            waiting: Vec::new(),
            said: BTreeMap::new(),
        }
    }

    /// Asks until `stop`, and then until every answer is checked.
    pub(super) fn run(mut self, stop: &Watch) -> BTreeMap<String, u64> {
        let http = http();
        while !stop.is_over() {
            let began = Instant::now();
            if self.waiting.len() < MAX_WAITING {
                self.round(&http);
            }
            self.check_known();
            rest(began);
        }
        if !stop.has_failed() {
            self.check_known();
            let left = self.waiting.first().map(|(_, position, body)| format!("{position:?} {}", body["meta"]));
            assert_eq!(left, None, "{}: past what the log holds", self.process.name);
        }
        self.said
    }

    /// Asks for each view once.
    fn round(&mut self, http: &reqwest::blocking::Client) {
        let number = self.process.number;
        let healed = self.weather.healed(number);
        let mut least: Option<Ends> = None;
        for index in 0..self.views.len() {
            let Some((url, life)) = self.process.url() else {
                let own = self.weather.excuses(number, |part| part == Part::Serving(number));
                assert!(own, "{} is away though nothing strikes it", self.process.name);
                return;
            };
            let request =
                http.get(format!("{url}/v1/views/{}?limit=1000000&timeout_ms=120000", self.views[index].name()));
            match ask(request) {
                Asked::Answer(body) => {
                    let Some(position) = self.answered(index, life, body) else { return };
                    let low = least.get_or_insert_with(|| position.clone());
                    for (partition, at) in &position {
                        let low = low.entry(*partition).or_default();
                        *low = (*low).min(*at);
                    }
                    low.retain(|partition, _| position.contains_key(partition));
                }
                Asked::Later(status, body) => {
                    let code = body["error"]["code"].as_str().unwrap_or_default().to_owned();
                    let meant = self.weather.excuses(number, |part| match code.as_str() {
                        "storage_unavailable" | "timeout" => part == Part::Storage,
                        "not_ready" => part == Part::Serving(number),
                        _ => false,
                    });
                    assert!(meant, "{}: {status} {body}; going on: {:#?}", self.process.name, self.weather.report());
                    *self.said.entry(format!("{status} {code}")).or_default() += 1;
                    return;
                }
                Asked::Nobody(why) => {
                    let own = self.weather.excuses(number, |part| part == Part::Serving(number));
                    assert!(
                        own,
                        "{} does not answer: {why}; going on: {:#?}",
                        self.process.name,
                        self.weather.report()
                    );
                    *self.said.entry("no connection".to_owned()).or_default() += 1;
                    return;
                }
            }
        }
        self.weather.seen_well(number, &healed, &least.expect("there are views"));
    }

    /// Takes up an answer; its position if it is complete.
    fn answered(&mut self, index: usize, life: u64, body: Value) -> Option<Ends> {
        let number = self.process.number;
        let name = self.views[index].name();
        let meta = &body["meta"]["views"][name];
        let position = offsets(meta, "position");
        if life != self.life {
            self.life = life;
            self.last = vec![Ends::new(); self.views.len()];
        }
        let before = &self.last[index];
        let back = before.iter().find(|(p, before)| position.get(p).is_none_or(|now| now < *before));
        let who = &self.process.name;
        assert_eq!(back, None, "{who}: {name} went back from {before:?} to {position:?}: {meta}");
        self.last[index].clone_from(&position);
        let complete = meta["complete"] == true;
        let reasons = meta["reasons"].as_array().expect("reasons");
        assert_eq!(complete, reasons.is_empty(), "{who}: {name}: {meta}");
        for reason in reasons {
            let code = reason["code"].as_str().expect("a code");
            let excuse = excuse(code);
            let excused = excuse.is_some_and(|part| self.weather.excuses(number, |p| part(p, number)));
            assert!(excused, "{who}: {name}: no fault excuses {reason}; going on: {:#?}", self.weather.report());
            *self.said.entry(code.to_owned()).or_default() += 1;
        }
        self.waiting.push((index, position.clone(), body));
        complete.then_some(position)
    }

    /// Compares the answers all of whose events are known with the truth.
    fn check_known(&mut self) {
        while let Some((_, position, _)) = self.waiting.first() {
            if !self.ledger.knows(position) {
                return;
            }
            let (index, position, body) = self.waiting.remove(0);
            compare(&self.views[index], &mut self.recounts[index], &position, &body, self.ledger, &self.process.name);
            self.hits.count("answers checked", 1);
        }
    }
}

/// The answer is the truth at the position that it names.
pub(super) fn compare(view: &View, recount: &mut Recount, position: &Ends, body: &Value, ledger: &Ledger, who: &str) {
    let meta = &body["meta"]["views"][view.name()];
    for (partition, cut) in offsets(meta, "batch_until") {
        assert!(cut <= position[&partition], "{who}: {}: a position lies below its cut: {meta}", view.name());
    }
    assert_eq!(meta["errors"], json!(0), "{who}: {}: no event fails: {meta}", view.name());
    let truth = recount.at(position, ledger);
    assert_rows(&view.case, &body["rows"], &truth, &format!("{who} at {position:?}, meta {meta}"));
}

/// As long as the last question took: on a small machine questions without a pause leave nothing for builds.
fn rest(began: Instant) {
    std::thread::sleep(PACE.max(began.elapsed()));
}

/// A client that goes from one serving process to the other, each time with `wait_for` what it has seen.
pub(super) fn wander(world: &World, stop: &Watch) {
    let (http, views) = (http(), views());
    let serving = world.fleet.of(Role::Serving);
    let mut recounts: Vec<Recount> = views.iter().map(Recount::new).collect();
    let mut seen = Ends::new();
    let mut turn = 0;
    let mut began = Instant::now();
    while !stop.is_over() {
        turn += 1;
        let (process, index) = (serving[turn % serving.len()], turn / serving.len() % views.len());
        let view = &views[index];
        rest(began);
        began = Instant::now();
        let fair = world.weather.fair();
        let Some((url, _)) = process.url() else { continue };
        let wanted: BTreeMap<String, i64> = seen.iter().map(|(p, o)| (p.to_string(), *o)).collect();
        let wanted = serde_json::to_string(&wanted).expect("a map serializes");
        let request = http.get(format!("{url}/v1/views/{}?limit=1000000&timeout_ms=120000", view.name()));
        match ask(request.query(&[("wait_for", wanted)])) {
            Asked::Answer(body) => {
                let position = offsets(&body["meta"]["views"][view.name()], "position");
                let back = seen.iter().find(|(p, seen)| position.get(p).is_none_or(|now| now < *seen));
                let meta = &body["meta"];
                assert_eq!(back, None, "{} answers from before {seen:?} in spite of wait_for: {meta}", process.name);
                seen.clone_from(&position);
                if stop.waits_until(|| world.ledger.knows(&position)) {
                    compare(view, &mut recounts[index], &position, &body, &world.ledger, &process.name);
                    world.hits.count("answers to who changed replicas with wait_for", 1);
                }
            }
            Asked::Later(status, body) => {
                let fair = world.weather.fair_since(fair);
                assert!(!fair, "{}: {status} {body} though nothing strikes", process.name);
            }
            Asked::Nobody(why) => {
                let fair = world.weather.fair_since(fair);
                assert!(!fair, "{} does not answer though nothing strikes: {why}", process.name);
            }
        }
    }
}
