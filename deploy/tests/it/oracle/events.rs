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

/// How records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Csv,
    /// Of a row only its [`Row::line`].
    Text,
}

impl Format {
    /// As the configuration names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Text => "text",
        }
    }
}

/// One record as it goes to the log.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    /// The record's timestamp, milliseconds.
    pub(crate) timestamp: i64,
}

impl Record {
    pub(crate) fn payload(&self, format: Format) -> Option<Vec<u8>> {
        match &self.kind {
            Kind::Event(row) => Some(match format {
                Format::Json => row.json().to_string().into_bytes(),
                Format::Csv => row.csv().into_bytes(),
                Format::Text => row.line().into_bytes(),
            }),
            Kind::Bad(bytes) => Some(bytes.clone()),
            Kind::Tombstone => None,
        }
    }
}

impl Row {
    /// The columns in their order; text in quotes, since anything may stand in it.
    fn csv(&self) -> String {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let fields = [
            self.k.map(|k| k.to_string()),
            self.s.as_deref().map(quoted),
            Some(self.v.to_string()),
            self.d.map(decimal),
            self.f.map(|f| json!(f).to_string()),
            self.b.map(|b| b.to_string()),
            self.t.map(rfc3339),
            Some(quoted(&json!({"x": self.x, "l": self.l}).to_string())),
        ];
        fields.map(Option::unwrap_or_default).join(",")
    }

    /// What a record of a text stream holds of it.
    pub(crate) fn line(&self) -> String {
        format!("{}{}", self.s.as_deref().unwrap_or_default(), self.k.map(|k| k.to_string()).unwrap_or_default())
    }

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

const BAD_JSON: &[&[u8]] = &[
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
const BAD_CSV: &[&[u8]] = &[
    b"",
    b"1,a,many,,,,,",
    b"1,a,,,,,,",
    b"1,a,1,,,,,,",
    b"1,\"a,1,,,,,",
    b"1,\"a\"b,1,,,,,",
    b"1,a,1,,,,,\n1,a,1,,,,,",
    b"1,\xff,1,,,,,",
    b"1,a,1,,,,,{",
];
const BAD_TEXT: &[&[u8]] = &[b"\xff", b"a \xc3"];

/// Makes records whose event time goes forward in leaps, with late ones, ones without, and clocks that are wrong.
#[derive(Debug)]
pub(crate) struct Generator {
    random: StdRng,
    now: i64,
    partitions: i32,
    format: Format,
    pub(crate) bad_percent: u32,
}

impl Generator {
    pub(crate) fn new(seed: u64, partitions: i32, format: Format) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let bad_percent = [0, 2, 10, 50][random.random_range(0..4)];
        Self { random, now: START, partitions, format, bad_percent }
    }

    /// A record, and the partition that it goes to.
    pub(crate) fn placed(&mut self) -> (i32, Record) {
        (self.random.random_range(0..self.partitions), self.record())
    }

    fn record(&mut self) -> Record {
        let r = &mut self.random;
        self.now += match r.random_range(0..20) {
            0 => r.random_range(0..HOUR),
            _ => r.random_range(0..MINUTE / 2),
        };
        let timestamp = self.now / 1000;
        if r.random_range(0..100) < self.bad_percent {
            let bad = match self.format {
                Format::Json => BAD_JSON,
                Format::Csv => BAD_CSV,
                Format::Text => BAD_TEXT,
            };
            let kind = match r.random_range(0..10) {
                9 => Kind::Tombstone,
                i => Kind::Bad(bad[i % bad.len()].to_vec()),
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
                // An empty field of CSV is NULL.
                1 if self.format == Format::Csv => None,
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
