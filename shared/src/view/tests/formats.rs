//! Golden states: what an earlier build wrote stays readable, and goes on counting.
//!
//! When this fails after an engine upgrade, the state of the named view has changed. Raise the `format` of its aggregates
//! in `states/supported.rs` (generations are then rebuilt), or keep reading the old layout; then write the files anew
//! with `WATERSHED_GOLDEN=write`.

use std::fs::File;
use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;

use super::equal::assert_close;
use super::fixture::*;

const VIEWS: &[(&str, &str)] = &[
    (
        "counts",
        "SELECT g, count(*), count(i), sum(i), sum(n), sum(d), sum(m), avg(i), avg(d), avg(m) FROM s GROUP BY g",
    ),
    (
        "extremes",
        "SELECT g, min(i), max(d), min(k), max(at), min(day), bool_and(b), bool_or(b), bit_and(n), bit_or(i), bit_xor(i) FROM s GROUP BY g",
    ),
    (
        "moments",
        "SELECT g, stddev(d), stddev_pop(i), var(i), var_pop(n), corr(i, n), covar_samp(i, n), covar_pop(i, n) FROM s GROUP BY g",
    ),
    (
        "regressions",
        "SELECT b, regr_slope(i, n), regr_intercept(i, n), regr_count(i, n), regr_r2(i, n), regr_avgx(i, n), regr_avgy(i, n), regr_sxx(i, n), regr_syy(i, n), regr_sxy(i, n) FROM s GROUP BY b",
    ),
    ("sketches", "SELECT approx_distinct(i), approx_distinct(k) FROM s"),
    (
        "values",
        "SELECT b, median(i), percentile_cont(0.9) WITHIN GROUP (ORDER BY d), count(DISTINCT k), sum(DISTINCT n), array_agg(DISTINCT g) FROM s GROUP BY b",
    ),
    (
        "ordered",
        "SELECT b, array_agg(i), first_value(n), last_value(k), string_agg(k, ','), nth_value(n, 2) FROM s GROUP BY b",
    ),
    ("digests", "SELECT approx_percentile_cont(n, 0.5), approx_median(n) FROM s"),
    ("sets", "SELECT k, b, count(*) FROM s GROUP BY ROLLUP (k, b)"),
    ("rows", "SELECT k, at, 10 / n AS x FROM s WHERE g > 0"),
    ("places", "SELECT i, t FROM (SELECT i, unnest(tags) AS t FROM s)"),
    ("keys", "SELECT k, g, i, d, r, m, b, day, at FROM s GROUP BY k, g, i, d, r, m, b, day, at"),
];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("src/view/tests/formats/v1/{name}.arrow"))
}

fn write(name: &str, batch: &RecordBatch) {
    std::fs::create_dir_all(path(name).parent().unwrap()).unwrap();
    let mut writer = FileWriter::try_new(File::create(path(name)).unwrap(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
}

fn read(name: &str) -> RecordBatch {
    let file = File::open(path(name)).unwrap_or_else(|e| panic!("{}: {e}", path(name).display()));
    FileReader::try_new(file, None).unwrap().next().unwrap().unwrap()
}

#[tokio::test]
async fn states_of_earlier_builds_go_on_counting() {
    let writing = std::env::var("WATERSHED_GOLDEN").is_ok_and(|v| v == "write");
    if writing {
        write("events", &in_log_order(&events(11, 80)));
    }
    let all = read("events");
    let (old, new) = (all.slice(0, 40), all.slice(40, 40));
    for (name, sql) in VIEWS {
        let view = compile(sql, "");
        if writing {
            write(name, &view.states(std::slice::from_ref(&old)).await.unwrap().states);
        }
        let stored = read(name);
        assert_eq!(stored.schema(), view.state_schema(), "{name}");
        let fresh = view.states(std::slice::from_ref(&new)).await.unwrap().states;
        let found = view.finalize(&[stored, fresh]).await.unwrap();
        let once = view.states(std::slice::from_ref(&all)).await.unwrap().states;
        let expected = view.finalize(&[once]).await.unwrap();
        let tolerance = if *name == "digests" { 0.05 } else { 1e-9 };
        assert_close(name, &found, &expected, false, tolerance);
    }
}
