//! The generator's typed events: the truth, of which the records are only the text.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

/// Microseconds since the epoch of the first event times: 2024-03-01T00:00:00Z.
pub(crate) const START: i64 = 1_709_251_200_000_000;
pub(crate) const MINUTE: i64 = 60_000_000;
pub(crate) const HOUR: i64 = 60 * MINUTE;
pub(crate) const DAY: i64 = 24 * HOUR;

/// The columns of the streams that the oracle makes.
pub(crate) const COLUMNS: &str = "k INT, s VARCHAR, v BIGINT NOT NULL, d DECIMAL(12, 2), f DOUBLE, b BOOLEAN, t TIMESTAMP, o STRUCT<x BIGINT, l LIST<BIGINT>>";
pub(crate) const ALLOWED_LATENESS: i64 = 10 * MINUTE;
pub(crate) const MAX_AHEAD: i64 = DAY;

/// The typed values of one event.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) k: Option<i32>,
    pub(crate) s: Option<String>,
    pub(crate) v: i64,
    /// In hundredths.
    pub(crate) d: Option<i64>,
    pub(crate) f: Option<f64>,
    pub(crate) b: Option<bool>,
    /// Event time, microseconds.
    pub(crate) t: Option<i64>,
    pub(crate) x: Option<i64>,
    pub(crate) l: Vec<i64>,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Event(Row),
    Bad(Vec<u8>),
    Tombstone,
}

/// One record as it goes to the log.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    /// The record's timestamp, milliseconds.
    pub(crate) timestamp: i64,
}

impl Record {
    pub(crate) fn payload(&self) -> Option<Vec<u8>> {
        match &self.kind {
            Kind::Event(row) => Some(row.json().to_string().into_bytes()),
            Kind::Bad(bytes) => Some(bytes.clone()),
            Kind::Tombstone => None,
        }
    }
}

impl Row {
    fn json(&self) -> Value {
        let mut object = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                object.insert(name.to_owned(), value);
            }
        };
        put("k", self.k.map(|k| json!(k)));
        put("s", self.s.as_ref().map(|s| json!(s)));
        put("v", Some(json!(self.v)));
        put("d", self.d.map(|d| json!(decimal(d))));
        put("f", self.f.map(|f| json!(f)));
        put("b", self.b.map(|b| json!(b)));
        put("t", self.t.map(|t| json!(rfc3339(t))));
        put("o", Some(json!({"x": self.x, "l": self.l, "unknown": "ignored"})));
        Value::Object(object)
    }
}

/// Hundredths as the contract writes decimals.
pub(crate) fn decimal(hundredths: i64) -> String {
    let sign = if hundredths < 0 { "-" } else { "" };
    let abs = hundredths.unsigned_abs();
    format!("{sign}{}.{:02}", abs / 100, abs % 100)
}

/// As the contract writes timestamps: a second's fraction with as many digits as it needs, in threes.
pub(crate) fn rfc3339(micros: i64) -> String {
    let time = chrono::DateTime::from_timestamp_micros(micros).expect("in range");
    time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

/// Makes records whose event time goes forward in leaps, with late ones, ones without, and clocks that are wrong.
#[derive(Debug)]
pub(crate) struct Generator {
    random: StdRng,
    now: i64,
    pub(crate) bad_percent: u32,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let bad_percent = [0, 2, 10, 50][random.random_range(0..4)];
        Self { random, now: START, bad_percent }
    }

    pub(crate) fn record(&mut self) -> Record {
        let r = &mut self.random;
        self.now += match r.random_range(0..20) {
            0 => r.random_range(0..HOUR),
            _ => r.random_range(0..MINUTE / 2),
        };
        let timestamp = self.now / 1000;
        if r.random_range(0..100) < self.bad_percent {
            let bad: [&[u8]; 9] = [
                b"{\"v\": 1",
                b"not json",
                b"{\"v\": \"many\"}",
                b"{\"k\": 1}",
                b"",
                b"{\"v\":1}{\"v\":2}",
                b"[1]",
                b"{\"v\": 1, \"s\": \"\xff\"}",
                b"{\"v\": null}",
            ];
            let kind = match r.random_range(0..10) {
                9 => Kind::Tombstone,
                i => Kind::Bad(bad[i].to_vec()),
            };
            return Record { kind, timestamp };
        }
        let t = match r.random_range(0..40) {
            0 => None,
            1 => Some(self.now + 3 * 365 * DAY),
            2..7 => Some(self.now - r.random_range(0..2 * HOUR)),
            7 => Some(self.now - r.random_range(0..3 * DAY)),
            _ => Some(self.now + r.random_range(0..1_000_000)),
        };
        let row = Row {
            k: if r.random_bool(0.1) { None } else { Some(r.random_range(-3..6)) },
            s: match r.random_range(0..10) {
                0 => None,
                1 => Some(String::new()),
                2 => Some("Ünï \"cødé\"\n\\".to_owned()),
                n => Some(format!("s{}", n % 4)),
            },
            v: match r.random_range(0..12) {
                0 => 0,
                1 => 9_007_199_254_740_993,
                _ => r.random_range(-1000..1000),
            },
            d: if r.random_bool(0.2) { None } else { Some(r.random_range(-100_000..100_000)) },
            f: if r.random_bool(0.2) { None } else { Some(f64::from(r.random_range(-1000..1000)) / 7.0) },
            b: if r.random_bool(0.3) { None } else { Some(r.random_bool(0.5)) },
            t,
            x: if r.random_bool(0.3) { None } else { Some(r.random_range(0..4)) },
            l: (0..r.random_range(0..3)).map(i64::from).collect(),
        };
        Record { kind: Kind::Event(row), timestamp }
    }
}
