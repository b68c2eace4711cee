//! The views, and their truth as it grows: plain Rust over the generator's values, each event counted once.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::ledger::Ledger;
use super::weather::Ends;
use crate::oracle::events::{decimal, rfc3339};
use crate::oracle::log::{Prefix, Seen};
use crate::oracle::truth::{VIEWS, ViewCase};

/// A view, with what counts it again.
pub(crate) struct View {
    pub(crate) case: ViewCase,
    /// Further keys in the configuration.
    pub(crate) extra: &'static str,
    pub(crate) late: bool,
    tally: fn() -> Box<dyn Tally>,
}

/// Four views of the stream: two that are built on request, one by its schedules that leaves late events out, and rows.
pub(crate) fn views() -> Vec<View> {
    let case = |name: &str| *VIEWS.iter().find(|case| case.name == name).expect("the oracle has it");
    let scheduled = "late = \"exclude\"\nrefresh = \"*/15 * * * * *\"\nrebuild = \"40 * * * * *\"";
    let some_rows = ViewCase {
        name: "some_rows",
        sql: "SELECT _partition, _offset, upper(s) AS s, v * 2 AS w FROM {stream} WHERE b AND v % 50 = 0",
        truth: |seen| tallied(Box::new(SomeRows::default()), seen),
        ..case("rows")
    };
    vec![
        View { case: case("by_key"), extra: "", late: true, tally: || Box::new(ByKey::default()) },
        View {
            case: ViewCase { name: "on_time", ..case("by_key") },
            extra: scheduled,
            late: false,
            tally: || Box::new(ByKey::default()),
        },
        View { case: case("total"), extra: "", late: true, tally: || Box::new(Total::default()) },
        View { case: some_rows, extra: "", late: true, tally: || Box::new(SomeRows::default()) },
    ]
}

impl View {
    pub(crate) fn name(&self) -> &'static str {
        self.case.name
    }

    pub(crate) fn config(&self, stream: &str) -> String {
        let ViewCase { name, sql, .. } = self.case;
        format!("[view.{name}]\nsql = \"\"\"{}\"\"\"\n{}\n", sql.replace("{stream}", stream), self.extra)
    }
}

/// What a view makes of the events so far.
trait Tally: Send {
    fn add(&mut self, event: &Seen<'_>);
    fn rows(&self) -> Vec<Value>;
}

fn tallied(mut tally: Box<dyn Tally>, seen: &[Seen<'_>]) -> Vec<Value> {
    seen.iter().for_each(|event| tally.add(event));
    tally.rows()
}

/// The truth of a view at a position that mostly goes forward.
pub(crate) struct Recount {
    late: bool,
    fresh: fn() -> Box<dyn Tally>,
    tally: Box<dyn Tally>,
    position: Ends,
    prefixes: BTreeMap<i32, Prefix>,
}

impl Recount {
    pub(crate) fn new(view: &View) -> Self {
        let (tally, position, prefixes) = ((view.tally)(), Ends::new(), BTreeMap::new());
        Self { late: view.late, fresh: view.tally, tally, position, prefixes }
    }

    /// The rows over exactly the events below `position`, which the ledger knows.
    pub(crate) fn at(&mut self, position: &Ends, ledger: &Ledger) -> Vec<Value> {
        let back = |(p, at): (&i32, &i64)| position.get(p).is_none_or(|to| to < at);
        if self.position.iter().any(back) {
            // Another process answers.
            (self.tally, self.position, self.prefixes) = ((self.fresh)(), Ends::new(), BTreeMap::new());
        }
        for (partition, to) in position {
            let from = self.position.insert(*partition, *to).unwrap_or(0);
            let prefix = self.prefixes.entry(*partition).or_default();
            ledger.each(*partition, from, *to, |offset, record| {
                if let Some(event) = prefix.see(*partition, offset, record).filter(|e| self.late || !e.late) {
                    self.tally.add(&event);
                }
            });
        }
        self.tally.rows()
    }
}

#[derive(Default)]
struct ByKey(BTreeMap<Option<i32>, Key>);

#[derive(Default)]
struct Key {
    events: u64,
    texts: u64,
    sum: i64,
    floats: u64,
    float_sum: f64,
    least: Option<String>,
    most: Option<i64>,
}

impl Tally for ByKey {
    fn add(&mut self, event: &Seen<'_>) {
        let key = self.0.entry(event.row.k).or_default();
        key.events += 1;
        key.sum = key.sum.wrapping_add(event.row.v);
        key.most = key.most.max(event.row.d);
        if let Some(float) = event.row.f {
            key.floats += 1;
            key.float_sum += float;
        }
        if let Some(text) = &event.row.s {
            key.texts += 1;
            if key.least.as_ref().is_none_or(|least| text < least) {
                key.least = Some(text.clone());
            }
        }
    }

    fn rows(&self) -> Vec<Value> {
        let rows = self.0.iter().map(|(k, key)| {
            json!({
                "k": k, "n": key.events, "ns": key.texts, "sv": key.sum,
                "af": (key.floats > 0).then(|| key.float_sum / key.floats as f64),
                "lo": key.least, "hi": key.most.map(decimal),
            })
        });
        rows.collect()
    }
}

#[derive(Default)]
struct Total {
    events: u64,
    sum: i64,
    strings: BTreeSet<String>,
    newest: Option<i64>,
    late: u64,
}

impl Tally for Total {
    fn add(&mut self, event: &Seen<'_>) {
        self.events += 1;
        self.sum = self.sum.wrapping_add(event.row.v);
        self.strings.extend(event.row.s.clone());
        self.newest = self.newest.max(event.row.t);
        self.late += u64::from(event.late);
    }

    fn rows(&self) -> Vec<Value> {
        // A sum over no events is NULL.
        let some = self.events > 0;
        vec![json!({
            "n": self.events, "sv": some.then_some(self.sum), "strings": self.strings.len(),
            "newest": self.newest.map(rfc3339), "late": some.then_some(self.late),
        })]
    }
}

#[derive(Default)]
struct SomeRows(Vec<Value>);

impl Tally for SomeRows {
    fn add(&mut self, event: &Seen<'_>) {
        let row = event.row;
        if row.b == Some(true) && row.v % 50 == 0 {
            let s = row.s.as_ref().map(|s| s.to_uppercase());
            self.0.push(json!({"_partition": event.partition, "_offset": event.offset, "s": s, "w": row.v * 2}));
        }
    }

    fn rows(&self) -> Vec<Value> {
        self.0.clone()
    }
}
