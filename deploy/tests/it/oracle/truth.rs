//! The views, and the recount in plain Rust: what each view's SQL means over the generator's values.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::events::{HOUR, MINUTE, Row, decimal, rfc3339};
use super::log::Seen;

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
    /// Whether the view's SQL fails on the event.
    pub(crate) fails: fn(&Seen<'_>) -> bool,
    /// It can be looked up by `k` alone.
    pub(crate) by_k: bool,
}

pub(super) const PLAIN: ViewCase =
    ViewCase { name: "", sql: "", extra: "", key: &[], truth: |_| vec![], fails: |_| false, by_k: false };

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
        key: &["k"],
        truth: by_key,
        by_k: true,
        ..PLAIN
    },
    ViewCase {
        name: "by_hour",
        sql: "SELECT date_bin(INTERVAL '1 hour', t) AS hour, b, count(*) AS n, sum(d) AS sd, count(*) FILTER (WHERE v > 0) AS pos FROM {stream} GROUP BY 1, 2",
        key: &["hour", "b"],
        truth: by_hour,
        ..PLAIN
    },
    ViewCase {
        name: "total",
        sql: "SELECT count(*) AS n, sum(v) AS sv, count(DISTINCT s) AS strings, max(t) AS newest, sum(CASE WHEN _late THEN 1 ELSE 0 END) AS late FROM {stream}",
        key: &[],
        truth: total,
        ..PLAIN
    },
    ViewCase {
        name: "big_groups",
        sql: "SELECT k % 2 AS parity, sum(v) + count(*) AS mixed FROM {stream} WHERE k IS NOT NULL GROUP BY k % 2 HAVING count(*) > 3",
        key: &["parity"],
        truth: big_groups,
        ..PLAIN
    },
    ViewCase {
        name: "rows",
        sql: "SELECT _partition, _offset, upper(s) AS s, v * 2 AS w FROM {stream} WHERE b",
        key: &["_partition", "_offset"],
        truth: rows,
        ..PLAIN
    },
    ViewCase {
        name: "failing_rows",
        sql: "SELECT _partition, _offset, 1000 / v AS q FROM {stream} WHERE b",
        key: &["_partition", "_offset"],
        truth: failing_rows,
        fails: |e| e.row.b == Some(true) && e.row.v == 0,
        ..PLAIN
    },
    ViewCase {
        name: "stored",
        sql: "SELECT _partition, _offset, k, 1000 / n AS q FROM (SELECT _partition, _offset, k, unnest([v, 7, v]) AS n FROM {stream})",
        extra: "materialize = true",
        key: &["_partition", "_offset", "q"],
        truth: stored,
        fails: |e| e.row.v == 0,
        ..PLAIN
    },
    ViewCase {
        name: "failing",
        sql: "SELECT k, sum(1000 / v) AS q, count(*) AS n FROM {stream} GROUP BY k",
        key: &["k"],
        truth: failing,
        fails: |e| e.row.v == 0,
        by_k: true,
        ..PLAIN
    },
    ViewCase {
        name: "joined",
        sql: "SELECT names.name, count(*) AS n, sum(v) AS sv FROM {stream} LEFT JOIN names ON {stream}.k = names.k GROUP BY names.name",
        key: &["name"],
        truth: joined,
        ..PLAIN
    },
    ViewCase {
        name: "levels",
        sql: "SELECT n, count(*) AS groups FROM (SELECT s, k, count(*) AS n FROM {stream} GROUP BY s, k) AS inner_counts GROUP BY n",
        key: &["n"],
        truth: levels,
        ..PLAIN
    },
    ViewCase {
        name: "ordered",
        sql: "SELECT b, first_value(v ORDER BY t DESC NULLS LAST) AS newest, array_agg(k ORDER BY v) AS ks FROM {stream} WHERE t IS NOT NULL GROUP BY b",
        key: &["b"],
        truth: ordered,
        ..PLAIN
    },
    ViewCase {
        name: "rolled",
        sql: "SELECT k, b, grouping(b) AS g, count(*) AS n, max(o.x) AS x FROM {stream} GROUP BY ROLLUP (k, b)",
        key: &["k", "b", "g", "n"],
        truth: rolled,
        ..PLAIN
    },
    ViewCase {
        name: "spread",
        sql: "SELECT s, stddev(v) AS sd, median(v) AS md, bool_or(b) AS any, bit_xor(v) AS bx, approx_distinct(v) AS ad FROM {stream} WHERE v BETWEEN -1000 AND 1000 GROUP BY s",
        key: &["s"],
        truth: spread,
        ..PLAIN
    },
    ViewCase {
        name: "filtered",
        sql: "SELECT k, count(*) AS n FROM {stream} WHERE 1000 / v > 3 AND k > 0 GROUP BY k",
        key: &["k"],
        truth: filtered,
        fails: |e| e.row.v == 0 && e.row.k.is_some_and(|k| k > 0),
        by_k: true,
        ..PLAIN
    },
    ViewCase {
        name: "recent",
        sql: "SELECT date_bin(INTERVAL '1 minute', t) AS minute, count(*) AS n, sum(v) AS sv FROM {stream} GROUP BY 1",
        extra: "retain = \"1 hour\"",
        key: &["minute"],
        truth: recent,
        ..PLAIN
    },
];

/// Views of a text stream.
pub(crate) const TEXT_VIEWS: &[ViewCase] = &[
    ViewCase {
        name: "lines",
        sql: "SELECT line, count(*) AS n FROM {stream} GROUP BY line",
        key: &["line"],
        truth: lines,
        ..PLAIN
    },
    ViewCase {
        name: "lengths",
        sql: "SELECT _partition, count(*) AS n, sum(character_length(line)) AS characters, max(_offset) AS last FROM {stream} GROUP BY _partition",
        key: &["_partition"],
        truth: lengths,
        ..PLAIN
    },
    ViewCase {
        name: "long_lines",
        sql: "SELECT _partition, _offset, line FROM {stream} WHERE character_length(line) > 3",
        key: &["_partition", "_offset"],
        truth: long_lines,
        ..PLAIN
    },
];

pub(super) fn group<'a, K: Ord>(seen: &'a [Seen<'a>], key: impl Fn(&Row) -> K) -> BTreeMap<K, Vec<&'a Seen<'a>>> {
    let mut groups: BTreeMap<K, Vec<&Seen<'_>>> = BTreeMap::new();
    for event in seen {
        groups.entry(key(event.row)).or_default().push(event);
    }
    groups
}

pub(super) fn sum(values: impl Iterator<Item = i64>) -> Value {
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

fn failing_rows(seen: &[Seen<'_>]) -> Vec<Value> {
    let rows = seen.iter().filter(|e| e.row.b == Some(true) && e.row.v != 0);
    rows.map(|e| json!({"_partition": e.partition, "_offset": e.offset, "q": 1000 / e.row.v})).collect()
}

fn stored(seen: &[Seen<'_>]) -> Vec<Value> {
    let rows = seen.iter().filter(|e| e.row.v != 0).flat_map(|e| [e.row.v, 7, e.row.v].map(|n| (e, n)));
    rows.map(|(e, n)| json!({"_partition": e.partition, "_offset": e.offset, "k": e.row.k, "q": 1000 / n})).collect()
}

fn failing(seen: &[Seen<'_>]) -> Vec<Value> {
    let fine: Vec<_> = seen.iter().filter(|e| e.row.v != 0).cloned().collect();
    let groups = group(&fine, |r| r.k);
    groups
        .into_iter()
        .map(|(k, events)| json!({"k": k, "q": sum(events.iter().map(|e| 1000 / e.row.v)), "n": events.len()}))
        .collect()
}

fn filtered(seen: &[Seen<'_>]) -> Vec<Value> {
    let kept: Vec<_> =
        seen.iter().filter(|e| e.row.v != 0 && 1000 / e.row.v > 3 && e.row.k.is_some_and(|k| k > 0)).cloned().collect();
    group(&kept, |r| r.k).into_iter().map(|(k, events)| json!({"k": k, "n": events.len()})).collect()
}

/// Minutes from the greatest running maximum over all partitions less an hour on.
fn recent(seen: &[Seen<'_>]) -> Vec<Value> {
    let bound = seen.iter().filter(|e| e.counts).filter_map(|e| e.row.t).max().map(|max| max - HOUR);
    let minutes = group(seen, |r| r.t.map(|t| t.div_euclid(MINUTE) * MINUTE)).into_iter();
    minutes
        .filter(|(minute, _)| minute.zip(bound).is_none_or(|(minute, bound)| minute >= bound))
        .map(|(minute, events)| {
            json!({"minute": minute.map(rfc3339), "n": events.len(), "sv": sum(events.iter().map(|e| e.row.v))})
        })
        .collect()
}

fn lines(seen: &[Seen<'_>]) -> Vec<Value> {
    let groups = group(seen, Row::line).into_iter();
    groups.map(|(line, events)| json!({"line": line, "n": events.len()})).collect()
}

fn lengths(seen: &[Seen<'_>]) -> Vec<Value> {
    let mut partitions: BTreeMap<i32, (usize, usize, i64)> = BTreeMap::new();
    for event in seen {
        let (n, characters, last) = partitions.entry(event.partition).or_default();
        *n += 1;
        *characters += event.row.line().chars().count();
        *last = event.offset;
    }
    let rows = partitions.into_iter();
    rows.map(|(p, (n, characters, last))| json!({"_partition": p, "n": n, "characters": characters, "last": last}))
        .collect()
}

fn long_lines(seen: &[Seen<'_>]) -> Vec<Value> {
    let lines = seen.iter().map(|e| (e, e.row.line())).filter(|(_, line)| line.chars().count() > 3);
    lines.map(|(e, line)| json!({"_partition": e.partition, "_offset": e.offset, "line": line})).collect()
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
    // The empty grouping set has its row even over no events, as a global aggregate does.
    let all: Vec<_> = seen.iter().collect();
    rows.push(json!({"k": null, "b": null, "g": 1, "n": seen.len(), "x": max_x(&all)}));
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
