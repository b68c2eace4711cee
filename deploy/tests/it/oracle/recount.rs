//! More views: orders with ties, grouping sets, statistics of pairs, sequences.
//!
//! Where their SQL leaves an order open, the keys decide.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::log::Seen;
use super::truth::{PLAIN, ViewCase, group, sum};

pub(crate) const MORE_VIEWS: &[ViewCase] = &[
    ViewCase {
        name: "ranked",
        sql: "SELECT k, n, row_number() OVER (ORDER BY n % 2) AS place, rank() OVER (ORDER BY n % 2) AS peers, lag(k) OVER (PARTITION BY n % 2 ORDER BY k > 1) AS before, sum(n) OVER (ORDER BY n % 2 ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS two, last_value(k) OVER (ORDER BY n % 2) AS last FROM (SELECT k, count(*) AS n FROM {stream} GROUP BY k) AS g",
        key: &["k"],
        truth: ranked,
        ..PLAIN
    },
    ViewCase {
        name: "top",
        sql: "SELECT s, k, count(*) AS n FROM {stream} GROUP BY s, k ORDER BY n DESC LIMIT 4 OFFSET 1",
        key: &["s", "k"],
        truth: top,
        ..PLAIN
    },
    ViewCase {
        name: "first_rows",
        sql: "SELECT k, b, _partition, _offset FROM {stream} ORDER BY k DESC LIMIT 5",
        key: &["_partition", "_offset"],
        truth: first_rows,
        ..PLAIN
    },
    ViewCase {
        name: "numbered_rows",
        sql: "SELECT _partition, _offset, row_number() OVER (PARTITION BY k ORDER BY b) AS place FROM {stream} WHERE v > 0",
        key: &["_partition", "_offset"],
        truth: numbered_rows,
        ..PLAIN
    },
    ViewCase {
        name: "cubed",
        sql: "SELECT k, b, grouping(k, b) AS g, count(*) AS n, min(v) AS lo FROM {stream} GROUP BY CUBE (k, b)",
        key: &["k", "b", "g"],
        truth: cubed,
        ..PLAIN
    },
    ViewCase {
        name: "sets",
        sql: "SELECT s, b, grouping(s, b) AS g, sum(v) AS sv FROM {stream} GROUP BY GROUPING SETS ((s), (b))",
        key: &["s", "b", "g"],
        truth: sets,
        ..PLAIN
    },
    ViewCase {
        name: "related",
        sql: "SELECT b, var(v) AS vs, var_pop(v) AS vp, covar_samp(v, f) AS cs, covar_pop(v, f) AS cp, corr(v, f) AS c, regr_slope(f, v) AS slope, regr_intercept(f, v) AS at_zero, regr_r2(f, v) AS r2, regr_count(f, v) AS n FROM {stream} WHERE v BETWEEN -1000 AND 1000 AND f IS NOT NULL GROUP BY b HAVING count(*) > 5",
        key: &["b"],
        truth: related,
        ..PLAIN
    },
    ViewCase {
        name: "sequences",
        sql: "SELECT b, percentile_cont(0.25) WITHIN GROUP (ORDER BY f) AS quarter, string_agg(s, '|' ORDER BY v DESC) AS w, nth_value(k, 2 ORDER BY t DESC) AS second, last_value(v) AS last FROM {stream} GROUP BY b",
        key: &["b"],
        truth: sequences,
        ..PLAIN
    },
    ViewCase {
        name: "distinct",
        sql: "SELECT DISTINCT k, b FROM {stream} WHERE v > 0",
        key: &["k", "b"],
        truth: distinct,
        ..PLAIN
    },
];

fn ranked(seen: &[Seen<'_>]) -> Vec<Value> {
    let mut groups: Vec<(Option<i32>, usize)> = group(seen, |r| r.k).into_iter().map(|(k, e)| (k, e.len())).collect();
    groups.sort_by_key(|(k, n)| (n % 2, *k));
    let row = |(at, (k, n)): (usize, &(Option<i32>, usize))| {
        let parity = n % 2;
        let of_peers: Vec<_> = groups.iter().filter(|(_, n)| n % 2 == parity).map(|(k, _)| *k).collect();
        // `k > 1` ascends with NULL behind.
        let mut by_size = of_peers.clone();
        by_size.sort_by_key(|k| (k.is_none(), k.map(|k| k > 1), *k));
        let mine = by_size.iter().position(|other| other == k).expect("it is there");
        json!({
            "k": k, "n": n, "place": at + 1,
            "peers": groups.iter().filter(|(_, n)| n % 2 < parity).count() + 1,
            "before": mine.checked_sub(1).and_then(|before| by_size[before]),
            "two": n + at.checked_sub(1).map_or(0, |before| groups[before].1),
            "last": of_peers.last().expect("itself at least"),
        })
    };
    groups.iter().enumerate().map(row).collect()
}

fn top(seen: &[Seen<'_>]) -> Vec<Value> {
    let mut groups: Vec<_> = group(seen, |r| (r.s.clone(), r.k)).into_iter().map(|(key, e)| (key, e.len())).collect();
    groups.sort_by_key(|(key, n)| (Reverse(*n), key.clone()));
    groups.into_iter().skip(1).take(4).map(|((s, k), n)| json!({"s": s, "k": k, "n": n})).collect()
}

/// NULL comes first where an order descends.
fn first_rows(seen: &[Seen<'_>]) -> Vec<Value> {
    let mut rows: Vec<_> = seen.iter().collect();
    rows.sort_by_key(|e| (e.row.k.is_some(), Reverse(e.row.k), e.partition, e.offset));
    rows.truncate(5);
    let row = |e: &Seen<'_>| json!({"k": e.row.k, "b": e.row.b, "_partition": e.partition, "_offset": e.offset});
    rows.into_iter().map(row).collect()
}

fn numbered_rows(seen: &[Seen<'_>]) -> Vec<Value> {
    let positive: Vec<_> = seen.iter().filter(|e| e.row.v > 0).cloned().collect();
    let partitions = group(&positive, |r| r.k).into_values();
    let number = |mut events: Vec<&Seen<'_>>| -> Vec<Value> {
        events.sort_by_key(|e| (e.row.b.is_none(), e.row.b, e.partition, e.offset));
        let numbered = events.into_iter().zip(1..);
        numbered.map(|(e, n)| json!({"_partition": e.partition, "_offset": e.offset, "place": n})).collect()
    };
    partitions.flat_map(number).collect()
}

fn cubed(seen: &[Seen<'_>]) -> Vec<Value> {
    let row = |k: Option<i32>, b: Option<bool>, g: u8, events: &[&Seen<'_>]| json!({"k": k, "b": b, "g": g, "n": events.len(), "lo": events.iter().map(|e| e.row.v).min()});
    let all: Vec<_> = seen.iter().collect();
    let mut rows = vec![row(None, None, 3, &all)];
    rows.extend(group(seen, |r| (r.k, r.b)).iter().map(|((k, b), events)| row(*k, *b, 0, events)));
    rows.extend(group(seen, |r| r.k).iter().map(|(k, events)| row(*k, None, 1, events)));
    rows.extend(group(seen, |r| r.b).iter().map(|(b, events)| row(None, *b, 2, events)));
    rows
}

fn sets(seen: &[Seen<'_>]) -> Vec<Value> {
    let total = |events: &[&Seen<'_>]| sum(events.iter().map(|e| e.row.v));
    let by_s = group(seen, |r| r.s.clone()).into_iter();
    let by_s = by_s.map(|(s, events)| json!({"s": s, "b": null, "g": 1, "sv": total(&events)}));
    let by_b = group(seen, |r| r.b).into_iter();
    by_s.chain(by_b.map(|(b, events)| json!({"s": null, "b": b, "g": 2, "sv": total(&events)}))).collect()
}

fn related(seen: &[Seen<'_>]) -> Vec<Value> {
    let small: Vec<_> =
        seen.iter().filter(|e| (-1000..=1000).contains(&e.row.v) && e.row.f.is_some()).cloned().collect();
    let groups = group(&small, |r| r.b).into_iter().filter(|(_, events)| events.len() > 5);
    let rows = groups.map(|(b, events)| {
        let pairs: Vec<(f64, f64)> = events.iter().filter_map(|e| Some((e.row.v as f64, e.row.f?))).collect();
        let n = pairs.len() as f64;
        let (x, y) = (pairs.iter().map(|p| p.0).sum::<f64>() / n, pairs.iter().map(|p| p.1).sum::<f64>() / n);
        let products = |f: fn(f64, f64) -> f64| pairs.iter().map(|p| f(p.0 - x, p.1 - y)).sum::<f64>();
        let (xx, yy, xy) = (products(|x, _| x * x), products(|_, y| y * y), products(|x, y| x * y));
        let (slope, c) = (xy / xx, xy / (xx.sqrt() * yy.sqrt()));
        json!({
            "b": b, "vs": xx / (n - 1.0), "vp": xx / n, "cs": xy / (n - 1.0), "cp": xy / n, "c": c,
            "slope": slope, "at_zero": y - slope * x, "r2": c * c, "n": pairs.len(),
        })
    });
    rows.collect()
}

fn sequences(seen: &[Seen<'_>]) -> Vec<Value> {
    let rows = group(seen, |r| r.b).into_iter().map(|(b, mut events)| {
        let mut floats: Vec<f64> = events.iter().filter_map(|e| e.row.f).collect();
        floats.sort_by(f64::total_cmp);
        let quarter = (!floats.is_empty()).then(|| {
            let at = (floats.len() - 1) as f64 * 0.25;
            let (below, above) = (floats[at.floor() as usize], floats[at.ceil() as usize]);
            below + (above - below) * at.fract()
        });
        let last = events.last().expect("a group has events").row.v;
        events.sort_by_key(|e| (Reverse(e.row.v), e.partition, e.offset));
        let strings: Vec<&str> = events.iter().filter_map(|e| e.row.s.as_deref()).collect();
        // NULL comes first where an order descends.
        events.sort_by_key(|e| (e.row.t.is_some(), Reverse(e.row.t), e.partition, e.offset));
        json!({
            "b": b, "quarter": quarter, "w": (!strings.is_empty()).then(|| strings.join("|")),
            "second": events.get(1).and_then(|e| e.row.k), "last": last,
        })
    });
    rows.collect()
}

fn distinct(seen: &[Seen<'_>]) -> Vec<Value> {
    let pairs: BTreeSet<_> = seen.iter().filter(|e| e.row.v > 0).map(|e| (e.row.k, e.row.b)).collect();
    pairs.into_iter().map(|(k, b)| json!({"k": k, "b": b})).collect()
}
