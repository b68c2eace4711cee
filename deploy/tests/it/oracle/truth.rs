//! The recount in plain Rust: what each view's SQL means over the generator's values.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::events::{ALLOWED_LATENESS, HOUR, Kind, MAX_AHEAD, Record, Row, decimal, rfc3339};

/// What the log holds of one partition: offset, record.
pub(crate) type Log = BTreeMap<i32, Vec<(i64, Record)>>;

/// An event with what its partition's prefix makes of it.
#[derive(Debug, Clone)]
pub(crate) struct Seen<'a> {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) row: &'a Row,
    pub(crate) late: bool,
}

/// The events below `position`, in partition and offset order.
pub(crate) fn events_below<'a>(log: &'a Log, position: &BTreeMap<i32, i64>) -> Vec<Seen<'a>> {
    let mut seen = Vec::new();
    for (partition, records) in log {
        let end = position.get(partition).copied().unwrap_or(0);
        let mut max: Option<i64> = None;
        for (offset, record) in records.iter().filter(|(o, _)| *o < end) {
            let Kind::Event(row) = &record.kind else { continue };
            let late = match (row.t, max) {
                (Some(t), Some(max)) => t < max - ALLOWED_LATENESS,
                _ => false,
            };
            seen.push(Seen { partition: *partition, offset: *offset, row, late });
            if let Some(t) = row.t
                && t <= record.timestamp * 1000 + MAX_AHEAD
            {
                max = Some(max.map_or(t, |m| m.max(t)));
            }
        }
    }
    seen
}

/// A view and its recount.
#[derive(Clone, Copy)]
pub(crate) struct ViewCase {
    pub(crate) name: &'static str,
    /// `{stream}` stands for the stream.
    pub(crate) sql: &'static str,
    /// Further keys of the view.
    pub(crate) extra: &'static str,
    /// Columns that tell rows apart.
    pub(crate) key: &'static [&'static str],
    pub(crate) truth: fn(&[Seen<'_>]) -> Vec<Value>,
}

impl std::fmt::Debug for ViewCase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Every class of view. The dimension table `names` is `k, name` for k in 0..4.
pub(crate) const VIEWS: &[ViewCase] = &[
    ViewCase {
        name: "by_key",
        sql: "SELECT k, count(*) AS n, count(s) AS ns, sum(v) AS sv, avg(f) AS af, min(s) AS lo, max(d) AS hi FROM {stream} GROUP BY k",
        extra: "",
        key: &["k"],
        truth: by_key,
    },
    ViewCase {
        name: "by_hour",
        sql: "SELECT date_bin(INTERVAL '1 hour', t) AS hour, b, count(*) AS n, sum(d) AS sd, count(*) FILTER (WHERE v > 0) AS pos FROM {stream} GROUP BY 1, 2",
        extra: "",
        key: &["hour", "b"],
        truth: by_hour,
    },
    ViewCase {
        name: "not_late",
        sql: "SELECT date_bin(INTERVAL '1 hour', t) AS hour, b, count(*) AS n, sum(d) AS sd, count(*) FILTER (WHERE v > 0) AS pos FROM {stream} GROUP BY 1, 2",
        extra: "late = \"exclude\"",
        key: &["hour", "b"],
        truth: |seen| by_hour(&seen.iter().filter(|e| !e.late).cloned().collect::<Vec<_>>()),
    },
    ViewCase {
        name: "total",
        sql: "SELECT count(*) AS n, sum(v) AS sv, count(DISTINCT s) AS strings, max(t) AS newest, sum(CASE WHEN _late THEN 1 ELSE 0 END) AS late FROM {stream}",
        extra: "",
        key: &[],
        truth: total,
    },
    ViewCase {
        name: "big_groups",
        sql: "SELECT k % 2 AS parity, sum(v) + count(*) AS mixed FROM {stream} WHERE k IS NOT NULL GROUP BY k % 2 HAVING count(*) > 3",
        extra: "",
        key: &["parity"],
        truth: big_groups,
    },
    ViewCase {
        name: "rows",
        sql: "SELECT _partition, _offset, upper(s) AS s, v * 2 AS w FROM {stream} WHERE b",
        extra: "",
        key: &["_partition", "_offset"],
        truth: rows,
    },
    ViewCase {
        name: "failing",
        sql: "SELECT k, sum(1000 / v) AS q, count(*) AS n FROM {stream} GROUP BY k",
        extra: "",
        key: &["k"],
        truth: failing,
    },
    ViewCase {
        name: "joined",
        sql: "SELECT names.name, count(*) AS n, sum(v) AS sv FROM {stream} LEFT JOIN names ON {stream}.k = names.k GROUP BY names.name",
        extra: "",
        key: &["name"],
        truth: joined,
    },
    ViewCase {
        name: "levels",
        sql: "SELECT n, count(*) AS groups FROM (SELECT s, k, count(*) AS n FROM {stream} GROUP BY s, k) AS inner_counts GROUP BY n",
        extra: "",
        key: &["n"],
        truth: levels,
    },
    ViewCase {
        name: "ordered",
        sql: "SELECT b, first_value(v ORDER BY t DESC NULLS LAST) AS newest, array_agg(k ORDER BY v) AS ks FROM {stream} WHERE t IS NOT NULL GROUP BY b",
        extra: "",
        key: &["b"],
        truth: ordered,
    },
    ViewCase {
        name: "rolled",
        sql: "SELECT k, b, grouping(b) AS g, count(*) AS n, max(o.x) AS x FROM {stream} GROUP BY ROLLUP (k, b)",
        extra: "",
        key: &["k", "b", "g", "n"],
        truth: rolled,
    },
    ViewCase {
        name: "spread",
        sql: "SELECT s, stddev(v) AS sd, median(v) AS md, bool_or(b) AS any, bit_xor(v) AS bx, approx_distinct(v) AS ad FROM {stream} WHERE v BETWEEN -1000 AND 1000 GROUP BY s",
        extra: "",
        key: &["s"],
        truth: spread,
    },
];

fn group<'a, K: Ord>(seen: &'a [Seen<'a>], key: impl Fn(&Row) -> K) -> BTreeMap<K, Vec<&'a Seen<'a>>> {
    let mut groups: BTreeMap<K, Vec<&Seen<'_>>> = BTreeMap::new();
    for event in seen {
        groups.entry(key(event.row)).or_default().push(event);
    }
    groups
}

fn sum(values: impl Iterator<Item = i64>) -> Value {
    values.map(Some).reduce(|a, b| a.zip(b).map(|(a, b)| a.wrapping_add(b))).flatten().map_or(Value::Null, |s| json!(s))
}

fn by_key(seen: &[Seen<'_>]) -> Vec<Value> {
    let rows = group(seen, |r| r.k).into_iter().map(|(k, events)| {
        let floats: Vec<f64> = events.iter().filter_map(|e| e.row.f).collect();
        let mean = (!floats.is_empty()).then(|| floats.iter().sum::<f64>() / floats.len() as f64);
        json!({
            "k": k, "n": events.len(), "ns": events.iter().filter(|e| e.row.s.is_some()).count(),
            "sv": sum(events.iter().map(|e| e.row.v)), "af": mean,
            "lo": events.iter().filter_map(|e| e.row.s.clone()).min(),
            "hi": events.iter().filter_map(|e| e.row.d).max().map(decimal),
        })
    });
    rows.collect()
}

fn by_hour(seen: &[Seen<'_>]) -> Vec<Value> {
    let rows = group(seen, |r| (r.t.map(|t| t.div_euclid(HOUR) * HOUR), r.b)).into_iter().map(|((hour, b), events)| {
        let decimals: Vec<i64> = events.iter().filter_map(|e| e.row.d).collect();
        json!({
            "hour": hour.map(rfc3339), "b": b, "n": events.len(),
            "sd": (!decimals.is_empty()).then(|| decimal(decimals.iter().sum())),
            "pos": events.iter().filter(|e| e.row.v > 0).count(),
        })
    });
    rows.collect()
}

fn total(seen: &[Seen<'_>]) -> Vec<Value> {
    let strings: BTreeSet<_> = seen.iter().filter_map(|e| e.row.s.as_ref()).collect();
    vec![json!({
        "n": seen.len(), "sv": sum(seen.iter().map(|e| e.row.v)), "strings": strings.len(),
        "newest": seen.iter().filter_map(|e| e.row.t).max().map(rfc3339),
        "late": sum(seen.iter().map(|e| i64::from(e.late))),
    })]
}

fn big_groups(seen: &[Seen<'_>]) -> Vec<Value> {
    let keyed: Vec<_> = seen.iter().filter(|e| e.row.k.is_some()).cloned().collect();
    let groups = group(&keyed, |r| r.k.map(|k| k % 2));
    let large = groups.into_iter().filter(|(_, events)| events.len() > 3);
    large
        .map(|(parity, events)| {
            json!({"parity": parity, "mixed": events.iter().map(|e| e.row.v).sum::<i64>() + events.len() as i64})
        })
        .collect()
}

fn rows(seen: &[Seen<'_>]) -> Vec<Value> {
    let rows = seen.iter().filter(|e| e.row.b == Some(true));
    rows.map(|e| json!({"_partition": e.partition, "_offset": e.offset, "s": e.row.s.as_ref().map(|s| s.to_uppercase()), "w": e.row.v * 2}))
        .collect()
}

fn failing(seen: &[Seen<'_>]) -> Vec<Value> {
    let fine: Vec<_> = seen.iter().filter(|e| e.row.v != 0).cloned().collect();
    let groups = group(&fine, |r| r.k);
    groups
        .into_iter()
        .map(|(k, events)| json!({"k": k, "q": sum(events.iter().map(|e| 1000 / e.row.v)), "n": events.len()}))
        .collect()
}

fn joined(seen: &[Seen<'_>]) -> Vec<Value> {
    let name = |r: &Row| r.k.filter(|k| (0..4).contains(k)).map(|k| format!("name {k}"));
    let groups = group(seen, name);
    groups
        .into_iter()
        .map(|(name, events)| json!({"name": name, "n": events.len(), "sv": sum(events.iter().map(|e| e.row.v))}))
        .collect()
}

fn levels(seen: &[Seen<'_>]) -> Vec<Value> {
    let mut counts: BTreeMap<usize, u64> = BTreeMap::new();
    for events in group(seen, |r| (r.s.clone(), r.k)).values() {
        *counts.entry(events.len()).or_default() += 1;
    }
    counts.into_iter().map(|(n, groups)| json!({"n": n, "groups": groups})).collect()
}

fn ordered(seen: &[Seen<'_>]) -> Vec<Value> {
    let timed: Vec<_> = seen.iter().filter(|e| e.row.t.is_some()).cloned().collect();
    let groups = group(&timed, |r| r.b);
    let rows = groups.into_iter().map(|(b, mut events)| {
        events.sort_by_key(|e| (std::cmp::Reverse(e.row.t), e.partition, e.offset));
        let newest = events[0].row.v;
        events.sort_by_key(|e| (e.row.v, e.partition, e.offset));
        json!({"b": b, "newest": newest, "ks": events.iter().map(|e| e.row.k).collect::<Vec<_>>()})
    });
    rows.collect()
}

fn rolled(seen: &[Seen<'_>]) -> Vec<Value> {
    let max_x = |events: &[&Seen<'_>]| events.iter().filter_map(|e| e.row.x).max();
    let mut rows = Vec::new();
    for ((k, b), events) in group(seen, |r| (r.k, r.b)) {
        rows.push(json!({"k": k, "b": b, "g": 0, "n": events.len(), "x": max_x(&events)}));
    }
    for (k, events) in group(seen, |r| r.k) {
        rows.push(json!({"k": k, "b": null, "g": 1, "n": events.len(), "x": max_x(&events)}));
    }
    // An empty grouping set over no rows gives no row in DataFusion, unlike a global aggregate.
    if !seen.is_empty() {
        let all: Vec<_> = seen.iter().collect();
        rows.push(json!({"k": null, "b": null, "g": 1, "n": seen.len(), "x": max_x(&all)}));
    }
    rows
}

fn spread(seen: &[Seen<'_>]) -> Vec<Value> {
    let small: Vec<_> = seen.iter().filter(|e| (-1000..=1000).contains(&e.row.v)).cloned().collect();
    let rows = group(&small, |r| r.s.clone()).into_iter().map(|(s, events)| {
        let mut values: Vec<i64> = events.iter().map(|e| e.row.v).collect();
        values.sort_unstable();
        let n = values.len();
        let mean = values.iter().sum::<i64>() as f64 / n as f64;
        let squares: f64 = values.iter().map(|v| (*v as f64 - mean).powi(2)).sum();
        let deviation = (n > 1).then(|| (squares / (n - 1) as f64).sqrt());
        let median = (values[(n - 1) / 2] + values[n / 2]) as f64 / 2.0;
        let flags: Vec<bool> = events.iter().filter_map(|e| e.row.b).collect();
        let distinct: BTreeSet<_> = values.iter().collect();
        json!({
            "s": s, "sd": deviation, "md": median, "any": (!flags.is_empty()).then(|| flags.iter().any(|b| *b)),
            "bx": values.iter().fold(0, |a, b| a ^ b), "ad": distinct.len(),
        })
    });
    rows.collect()
}
