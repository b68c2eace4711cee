//! For every class of view: any split, any tree of merges, a round trip of states through a file, and the answer is
//! that of the plain query.

use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::equal::{assert_close, assert_equal};
use super::fixture::*;
use crate::view::CompiledView;

/// Whether the answer has an order.
const ANY: bool = false;
const ORDERED: bool = true;

/// Each event of `events` into one of a few micro-batches; some stay empty.
fn split(events: &RecordBatch, rng: &mut StdRng) -> Vec<RecordBatch> {
    let parts = rng.random_range(1..7_usize);
    let mut indices = vec![vec![]; parts];
    for row in 0..events.num_rows() {
        indices[rng.random_range(0..parts)].push(row as u32);
    }
    indices.into_iter().map(|rows| take_record_batch(events, &UInt32Array::from(rows)).unwrap()).collect()
}

fn through_parquet(batch: &RecordBatch) -> RecordBatch {
    let mut bytes = vec![];
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).unwrap().build().unwrap();
    let batches: Vec<_> = reader.map(Result::unwrap).collect();
    let read = arrow::compute::concat_batches(&batch.schema(), &batches);
    read.unwrap()
}

/// Runs of states of `events` after random splits, round trips and merges.
async fn runs(view: &CompiledView, events: &RecordBatch, rng: &mut StdRng) -> Vec<RecordBatch> {
    let mut runs = vec![];
    for part in split(events, rng) {
        let batch = view.states(&split(&part, rng)).await.unwrap();
        assert_eq!(batch.errors, []);
        runs.push(batch.states);
    }
    for _ in 0..2 {
        let mut merged = vec![];
        while !runs.is_empty() {
            let take = rng.random_range(1..=runs.len().min(3));
            let some: Vec<_> = runs.drain(..take).collect();
            let mut run = if rng.random() { view.merge(&some).await.unwrap() } else { some[0].clone() };
            if run.num_rows() != some.iter().map(RecordBatch::num_rows).sum::<usize>() && take == 1 {
                panic!("merging one run changed its number of groups");
            }
            let skipped = if run == some[0] { &some[1..] } else { &[] };
            merged.extend(skipped.iter().cloned());
            if rng.random() {
                run = through_parquet(&run);
            }
            merged.push(run);
        }
        runs = merged;
    }
    runs
}

struct Case {
    sql: &'static str,
    /// The same for the plain query, where the SQL leaves an order open that views fix.
    plain: &'static str,
    ordered: bool,
    settings: &'static str,
    tolerance: f64,
}

fn case(sql: &'static str) -> Case {
    Case { sql, plain: sql, ordered: ANY, settings: "", tolerance: 1e-9 }
}

async fn check(case: &Case) {
    let view = compile(case.sql, case.settings);
    for seed in seeds() {
        for count in [0, 1, 200] {
            let rng = &mut StdRng::seed_from_u64(seed);
            let all = in_log_order(&events(seed + count as u64, count));
            let expected = plain(case.plain, &all).await;
            let context = format!("seed={seed} count={count}\n{}", case.sql);
            let runs = runs(&view, &all, rng).await;
            let found = served(&view, &runs, None).await;
            assert_close(&context, &found, &expected, case.ordered, case.tolerance);
            let found = view.finalize(&runs).await.unwrap();
            assert_close(&format!("finalize {context}"), &found, &expected, case.ordered, case.tolerance);
            assert_eq!(found.schema(), view.output_schema());
            if count == 0 {
                // Nothing has been read yet: there is no run at all.
                let found = served(&view, &[], None).await;
                assert_close(&format!("no runs {context}"), &found, &expected, case.ordered, case.tolerance);
                let found = view.finalize(&[]).await.unwrap();
                assert_close(&format!("finalize no runs {context}"), &found, &expected, case.ordered, case.tolerance);
            }
            // The build's path: one logical plan over all events.
            let table = table_of(&all.schema(), vec![all.clone()]);
            let (plan, sink) = view.state_plan(table).unwrap();
            let built = run(view.session(), plan).await;
            assert_eq!(sink.take(), []);
            assert!(!built.schema().fields().is_empty());
            let built = RecordBatch::try_new(view.state_schema(), built.columns().to_vec()).unwrap();
            let merged =
                run(view.session(), view.merge_plan(table_of(&view.state_schema(), vec![built])).unwrap()).await;
            let merged = RecordBatch::try_new(view.state_schema(), merged.columns().to_vec()).unwrap();
            let found = served(&view, &[merged], None).await;
            assert_close(&format!("build {context}"), &found, &expected, case.ordered, case.tolerance);
        }
    }
}

macro_rules! exact {
    ($($name:ident: $sql:expr $(, $field:ident = $value:expr)*;)*) => {
        $(#[tokio::test]
        async fn $name() {
            #[allow(unused_mut)]
            let mut case = case($sql);
            $(case.$field = $value;)*
            check(&case).await;
        })*
    };
}

exact! {
    count_sum_avg_min_max:
        "SELECT k, count(*) AS events, count(i), sum(i), avg(i), min(i), max(i), sum(n), sum(d), avg(d), min(d), max(r), \
         sum(m), avg(m), min(m), max(k), min(day), max(at), sum(r), count(who['login']) FROM s GROUP BY k";
    group_by_expressions_ordinals_and_aliases:
        "SELECT date_bin(INTERVAL '10 seconds', at) AS bin, upper(k) AS u, g + 1 AS h, count(*) FROM s GROUP BY 1, u, g";
    keys_of_many_types: "SELECT k, g, i, d, r, m, b, day, at, count(*) FROM s GROUP BY k, g, i, d, r, m, b, day, at";
    a_struct_field_as_key: "SELECT who['login'] AS login, count(*) FROM s GROUP BY who['login']";
    a_list_as_key: "SELECT tags, count(*) FROM s GROUP BY tags";
    no_group_by: "SELECT count(*), sum(i), avg(d), min(k), max(m) FROM s";
    no_group_by_with_a_filter_that_nothing_passes: "SELECT count(*), sum(i) FROM s WHERE i > 5000";
    keys_alone: "SELECT k, g FROM s GROUP BY k, g";
    select_distinct: "SELECT DISTINCT k, g FROM s WHERE g > 0";
    distinct_expressions_in_order: "SELECT DISTINCT upper(k) AS u FROM s ORDER BY u NULLS FIRST", ordered = ORDERED;
    statistics:
        "SELECT g, stddev(d), stddev_pop(i), var(i), var_pop(n), corr(i, n), covar_samp(i, n), covar_pop(i, n) \
         FROM s GROUP BY g", tolerance = 1e-7;
    regressions:
        "SELECT k, regr_slope(i, n), regr_intercept(i, n), regr_count(i, n), regr_r2(i, n), regr_avgx(i, n), \
         regr_avgy(i, n), regr_sxx(i, n), regr_syy(i, n), regr_sxy(i, n) FROM s GROUP BY k", tolerance = 1e-7;
    statistics_without_group_by: "SELECT stddev(i), var(n), corr(i, n), regr_r2(i, n) FROM s", tolerance = 1e-7;
    medians_and_percentiles:
        "SELECT k, median(i), median(d), median(m), percentile_cont(0.9) WITHIN GROUP (ORDER BY i), \
         percentile_cont(n, 0.25), percentile_cont(0.3) WITHIN GROUP (ORDER BY d DESC), median(DISTINCT n) \
         FROM s GROUP BY k";
    medians_without_group_by: "SELECT median(i), percentile_cont(0.5) WITHIN GROUP (ORDER BY d) FROM s";
    hyperloglog: "SELECT k, approx_distinct(who['login']), approx_distinct(i), approx_distinct(n) FROM s GROUP BY k";
    hyperloglog_without_group_by: "SELECT approx_distinct(i), approx_distinct(k) FROM s";
    booleans_and_bits:
        "SELECT k, bool_and(b), bool_or(b), bit_and(n), bit_or(n), bit_xor(n), bit_and(i) FROM s GROUP BY k";
    distinct_inside_aggregates:
        "SELECT k, count(DISTINCT g), count(DISTINCT who['login']), sum(DISTINCT n), avg(DISTINCT d), min(DISTINCT i), \
         count(DISTINCT d), count(DISTINCT m), sum(DISTINCT m), count(DISTINCT b) FROM s GROUP BY k";
    one_distinct_aggregate_alone: "SELECT k, count(DISTINCT g) FROM s GROUP BY k";
    distinct_without_group_by: "SELECT count(DISTINCT g), count(DISTINCT k), sum(DISTINCT i) FROM s";
    filters_on_aggregates:
        "SELECT k, count(*) FILTER (WHERE g > 0), sum(i) FILTER (WHERE b), avg(d) FILTER (WHERE i > 0 AND b), \
         count(DISTINCT g) FILTER (WHERE n > 10), max(100 / n) FILTER (WHERE n <> 0), min(k) FILTER (WHERE false) \
         FROM s GROUP BY k",
        plain = "SELECT k, count(*) FILTER (WHERE g > 0), sum(i) FILTER (WHERE b), avg(d) FILTER (WHERE i > 0 AND b), \
         count(DISTINCT g) FILTER (WHERE n > 10), max(100 / CASE WHEN n <> 0 THEN n END) AS \
         \"max(Int64(100) / s.n) FILTER (WHERE s.n != Int64(0))\", min(k) FILTER (WHERE false) FROM s GROUP BY k";
    ordered_by_the_log:
        "SELECT k, array_agg(i) AS a, first_value(n) AS f, last_value(i) AS l, nth_value(n, 2) AS n2, \
         nth_value(n, -2) AS m2, string_agg(who['login'], ',') AS w, array_agg(d) AS ds FROM s GROUP BY k",
        plain = "SELECT k, array_agg(i ORDER BY _partition, _offset) AS a, first_value(n ORDER BY _partition, _offset) AS f, \
         last_value(i ORDER BY _partition, _offset) AS l, nth_value(n, 2 ORDER BY _partition, _offset) AS n2, \
         nth_value(n, -2 ORDER BY _partition, _offset) AS m2, \
         string_agg(who['login'], ',' ORDER BY _partition, _offset) AS w, \
         array_agg(d ORDER BY _partition, _offset) AS ds FROM s GROUP BY k";
    ordered_by_themselves_with_ties:
        "SELECT k, array_agg(i ORDER BY g DESC) AS a, first_value(n ORDER BY g) AS f, last_value(i ORDER BY g) AS l, \
         nth_value(n, 3 ORDER BY g) AS n3 FROM s GROUP BY k",
        plain = "SELECT k, array_agg(i ORDER BY g DESC, _partition, _offset) AS a, \
         first_value(n ORDER BY g, _partition, _offset) AS f, last_value(i ORDER BY g, _partition, _offset) AS l, \
         nth_value(n, 3 ORDER BY g, _partition, _offset) AS n3 FROM s GROUP BY k";
    strings_in_their_own_order:
        "SELECT g, string_agg(k, '+' ORDER BY n DESC NULLS LAST) AS w FROM s GROUP BY g",
        plain = "SELECT g, string_agg(k, '+' ORDER BY n DESC NULLS LAST, _partition, _offset) AS w FROM s GROUP BY g";
    ordered_without_group_by:
        "SELECT array_agg(n) AS a, first_value(i) IGNORE NULLS AS f, last_value(k) AS l, nth_value(n, 4) AS n4 FROM s",
        plain = "SELECT array_agg(n ORDER BY _partition, _offset) AS a, \
         first_value(i ORDER BY _partition, _offset) IGNORE NULLS AS f, last_value(k ORDER BY _partition, _offset) AS l, \
         nth_value(n, 4 ORDER BY _partition, _offset) AS n4 FROM s";
    ordered_within_a_subquery:
        "SELECT kk, array_agg(x) AS a FROM (SELECT upper(k) AS kk, n + 1 AS x FROM s WHERE n > 3) AS t GROUP BY kk",
        plain = "SELECT kk, array_agg(x ORDER BY _partition, _offset) AS a FROM \
         (SELECT upper(k) AS kk, n + 1 AS x, _partition, _offset FROM s WHERE n > 3) AS t GROUP BY kk";
    distinct_arrays:
        "SELECT k, array_agg(DISTINCT n) AS a, array_agg(DISTINCT g ORDER BY g DESC) AS b, \
         string_agg(DISTINCT who['login'], ';') AS c FROM s GROUP BY k",
        plain = "SELECT k, array_agg(DISTINCT n ORDER BY n NULLS LAST) AS a, array_agg(DISTINCT g ORDER BY g DESC) AS b, \
         string_agg(DISTINCT who['login'], ';' ORDER BY who['login'] NULLS LAST) AS c FROM s GROUP BY k";
    rollup: "SELECT k, g, count(*), sum(i), grouping(k) AS gk, grouping(g) AS gg FROM s GROUP BY ROLLUP (k, g)";
    cube: "SELECT k, b, g, count(*), grouping(k, b) AS gr FROM s GROUP BY CUBE (k, b, g)";
    grouping_sets: "SELECT k, g, max(i) FROM s GROUP BY GROUPING SETS ((k, g), (g), ())";
    grouping_sets_that_stand_twice: "SELECT k, count(*) FROM s GROUP BY GROUPING SETS ((k), (k), ())";
    expressions_over_aggregates_and_having:
        "SELECT upper(k) AS u, 1.0 * sum(i) / count(*) AS mean, max(i) - min(i) AS span FROM s GROUP BY k \
         HAVING count(*) > 3 AND min(i) < 0";
    windows_order_and_limit_above:
        "SELECT k, count(*) AS c, rank() OVER (ORDER BY count(*) DESC, k NULLS FIRST) AS place, \
         sum(count(*)) OVER (ORDER BY k NULLS FIRST) AS running FROM s GROUP BY k ORDER BY place, k NULLS FIRST LIMIT 3",
        ordered = ORDERED;
    limit_with_ties: "SELECT k, count(*) % 2 AS c FROM s GROUP BY k ORDER BY c DESC LIMIT 3", ordered = ORDERED,
        plain = "SELECT k, count(*) % 2 AS c FROM s GROUP BY k ORDER BY c DESC, k NULLS FIRST LIMIT 3";
    offset_with_ties_of_a_key_that_is_not_shown:
        "SELECT count(*) % 2 AS c, sum(i) AS t FROM s GROUP BY k, g ORDER BY c LIMIT 4 OFFSET 3", ordered = ORDERED,
        plain = "SELECT count(*) % 2 AS c, sum(i) AS t FROM s GROUP BY k, g \
         ORDER BY c, k NULLS FIRST, g NULLS FIRST LIMIT 4 OFFSET 3";
    limit_without_order: "SELECT k, count(*) AS c FROM s GROUP BY k LIMIT 3", ordered = ORDERED,
        plain = "SELECT k, count(*) AS c FROM s GROUP BY k ORDER BY k NULLS FIRST LIMIT 3";
    limit_without_group_by: "SELECT count(*) AS c FROM s LIMIT 3";
    limit_of_grouping_sets: "SELECT k, count(*) % 2 AS c FROM s GROUP BY ROLLUP (k) ORDER BY c LIMIT 4", ordered = ORDERED,
        plain = "SELECT k, count(*) % 2 AS c FROM s GROUP BY ROLLUP (k) \
         ORDER BY c, k NULLS FIRST, grouping(k) LIMIT 4";
    windows_that_tell_peers_apart:
        "SELECT k, g, row_number() OVER (PARTITION BY k ORDER BY count(*) % 2) AS r, ntile(3) OVER () AS q, \
         lag(g) OVER (ORDER BY count(*) % 2 DESC) AS before, lead(k, 2) OVER (PARTITION BY g) AS behind, \
         sum(count(*)) OVER (ORDER BY g ROWS BETWEEN 2 PRECEDING AND CURRENT ROW) AS moving, \
         rank() OVER (ORDER BY count(*) % 2) AS place, sum(n2) OVER (ORDER BY count(*) % 2) AS running FROM \
         (SELECT k, g, n % 2 AS n2 FROM s) GROUP BY k, g, n2",
        plain = "SELECT k, g, row_number() OVER (PARTITION BY k ORDER BY count(*) % 2, g NULLS FIRST, n2) AS r, \
         ntile(3) OVER (ORDER BY k NULLS FIRST, g NULLS FIRST, n2) AS q, \
         lag(g) OVER (ORDER BY count(*) % 2 DESC, k NULLS FIRST, g NULLS FIRST, n2) AS before, \
         lead(k, 2) OVER (PARTITION BY g ORDER BY k NULLS FIRST, n2) AS behind, \
         sum(count(*)) OVER (ORDER BY g, k NULLS FIRST, n2 ROWS BETWEEN 2 PRECEDING AND CURRENT ROW) AS moving, \
         rank() OVER (ORDER BY count(*) % 2) AS place, sum(n2) OVER (ORDER BY count(*) % 2) AS running FROM \
         (SELECT k, g, n % 2 AS n2 FROM s) GROUP BY k, g, n2";
    values_of_frames_with_ties:
        "SELECT k, g, first_value(k) OVER (ORDER BY c) AS f, last_value(g) OVER (ORDER BY c) AS l, \
         first_value(k) OVER (PARTITION BY g ORDER BY c RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS ff, \
         last_value(k) OVER (ORDER BY c GROUPS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS ll, \
         nth_value(k, 2) OVER (ORDER BY c ROWS BETWEEN 3 PRECEDING AND 3 FOLLOWING) AS n2, nth_value(g, 3) OVER () AS n3, \
         first_value(g) IGNORE NULLS OVER (ORDER BY c, g, k) AS decided, \
         array_agg(g) OVER (PARTITION BY k) AS a \
         FROM (SELECT k, g, count(*) % 2 AS c FROM s GROUP BY k, g)",
        plain = "SELECT k, g, first_value(k) OVER (ORDER BY c, k NULLS FIRST, g NULLS FIRST) AS f, \
         last_value(g) OVER (PARTITION BY c ORDER BY k NULLS FIRST, g NULLS FIRST \
           ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS l, \
         first_value(k) OVER (PARTITION BY g, c ORDER BY k NULLS FIRST) AS ff, \
         last_value(k) OVER (ORDER BY c, k NULLS FIRST, g NULLS FIRST \
           ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS ll, \
         nth_value(k, 2) OVER (ORDER BY c, k NULLS FIRST, g NULLS FIRST ROWS BETWEEN 3 PRECEDING AND 3 FOLLOWING) AS n2, \
         nth_value(g, 3) OVER (ORDER BY k NULLS FIRST, g NULLS FIRST \
           ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS n3, \
         first_value(g) IGNORE NULLS OVER (ORDER BY c, g, k) AS decided, \
         array_agg(g) OVER (PARTITION BY k ORDER BY g NULLS FIRST \
           ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS a \
         FROM (SELECT k, g, count(*) % 2 AS c FROM s GROUP BY k, g)";
    order_above_further_aggregates:
        "SELECT c, count(*) % 2 AS m, array_agg(k) AS ks, string_agg(k, '+' ORDER BY t % 2) AS w, \
         array_agg(DISTINCT t % 3) AS ts, row_number() OVER (ORDER BY count(*) % 2) AS r \
         FROM (SELECT k, g, count(*) % 5 AS c, sum(n) AS t FROM s GROUP BY k, g) GROUP BY c ORDER BY m LIMIT 3",
        ordered = ORDERED,
        plain = "SELECT c, count(*) % 2 AS m, array_agg(k ORDER BY k NULLS FIRST, g NULLS FIRST) AS ks, \
         string_agg(k, '+' ORDER BY t % 2, k NULLS FIRST, g NULLS FIRST) AS w, \
         array_agg(DISTINCT t % 3 ORDER BY t % 3) AS ts, row_number() OVER (ORDER BY count(*) % 2, c) AS r \
         FROM (SELECT k, g, count(*) % 5 AS c, sum(n) AS t FROM s GROUP BY k, g) GROUP BY c ORDER BY m, c LIMIT 3";
    distinct_on_groups: "SELECT DISTINCT ON (c) c, k, g FROM (SELECT k, g, count(*) % 5 AS c FROM s GROUP BY k, g)",
        plain = "SELECT DISTINCT ON (c) c, k, g FROM (SELECT k, g, count(*) % 5 AS c FROM s GROUP BY k, g) \
         ORDER BY c, k NULLS FIRST, g NULLS FIRST";
    distinct_in_order: "SELECT DISTINCT g, count(*) % 2 AS c FROM s GROUP BY k, g ORDER BY c LIMIT 5", ordered = ORDERED,
        plain = "SELECT DISTINCT g, count(*) % 2 AS c FROM s GROUP BY k, g ORDER BY c, g NULLS FIRST LIMIT 5";
    limit_of_a_join_above:
        "SELECT a.c, d.weight FROM (SELECT k, count(*) % 2 AS c FROM s GROUP BY k) AS a LEFT JOIN dim AS d ON a.k = d.k \
         ORDER BY a.c LIMIT 4", ordered = ORDERED,
        plain = "SELECT a.c, d.weight FROM (SELECT k, count(*) % 2 AS c FROM s GROUP BY k) AS a \
         LEFT JOIN dim AS d ON a.k = d.k ORDER BY a.c, a.k NULLS FIRST, d.name NULLS FIRST LIMIT 4";
    limit_of_unnested_lists:
        "SELECT t, c % 2 AS m FROM (SELECT unnest(array_agg(n)) AS t, count(*) AS c FROM s GROUP BY k) ORDER BY m LIMIT 5",
        ordered = ORDERED,
        plain = "SELECT t, m FROM (SELECT k, unnest(array_agg(n)) AS t, count(*) % 2 AS m FROM s GROUP BY k) \
         ORDER BY m, k NULLS FIRST, t LIMIT 5";
    rows_in_order_with_ties: "SELECT k, n % 3 AS m, _offset FROM s ORDER BY m LIMIT 7", ordered = ORDERED,
        plain = "SELECT k, n % 3 AS m, _offset FROM s ORDER BY m, _partition, _offset LIMIT 7";
    rows_with_a_limit: "SELECT k, i FROM s LIMIT 7", ordered = ORDERED,
        plain = "SELECT k, i FROM s ORDER BY _partition, _offset LIMIT 7";
    rows_in_an_order_that_is_decided:
        "SELECT k, nth_value(k, 2) OVER (PARTITION BY k, _partition ORDER BY b, _offset) AS second, \
         first_value(i) IGNORE NULLS OVER (ORDER BY b, _partition, _offset) AS f FROM s";
    rows_with_windows_and_ties:
        "SELECT k, i, row_number() OVER (PARTITION BY k ORDER BY g) AS r, lag(i) OVER () AS l FROM s",
        plain = "SELECT k, i, row_number() OVER (PARTITION BY k ORDER BY g, _partition, _offset) AS r, \
         lag(i) OVER (ORDER BY _partition, _offset) AS l FROM s";
    several_levels:
        "SELECT c, count(*) AS groups, sum(t) FROM (SELECT k, g, count(*) AS c, sum(i) AS t FROM s GROUP BY k, g) \
         GROUP BY c HAVING count(*) > 0";
    distinct_above: "SELECT DISTINCT count(*) > 10 AS many FROM s GROUP BY k, g";
    ctes: "WITH t AS (SELECT k, i * 2 AS j FROM s WHERE b), u AS (SELECT k, sum(j) AS x FROM t GROUP BY k) \
           SELECT u.k, u.x + 1 AS y FROM u WHERE u.x > 0";
    inner_join: "SELECT d.name, count(*), sum(s.i * d.weight) FROM s JOIN dim AS d ON s.k = d.k GROUP BY d.name";
    comma_join: "SELECT d.name, count(*), sum(s.i) FROM s, dim AS d WHERE s.k = d.k AND s.n > 2 GROUP BY d.name";
    left_join: "SELECT d.name, count(*), min(s.i) FROM s LEFT JOIN dim AS d ON s.k = d.k AND d.weight > 0 GROUP BY d.name";
    right_join: "SELECT d.name, count(*), min(s.i) FROM dim AS d RIGHT JOIN s ON s.k = d.k GROUP BY d.name";
    durations_as_keys: "SELECT at - _event_time_max AS behind, count(*) FROM s GROUP BY 1";
    join_using: "SELECT k, name, count(*) FROM s JOIN dim USING (k) GROUP BY k, name";
    natural_join_and_a_filter_on_both: "SELECT name, sum(n) FROM s NATURAL JOIN dim WHERE n > 1 AND weight < 2 GROUP BY name";
    two_joins: "SELECT a.name, b.weight, count(*) FROM s JOIN dim AS a ON s.k = a.k LEFT JOIN dim AS b ON s.k = b.k \
         AND b.weight = a.weight GROUP BY 1, 2";
    cross_join: "SELECT d.name, count(*) FROM s CROSS JOIN dim AS d GROUP BY d.name";
    unequal_join: "SELECT d.name, count(*) FROM s JOIN dim AS d ON s.g < d.weight GROUP BY d.name";
    semi_and_anti_joins:
        "SELECT count(*) AS c, sum(n) AS t FROM s WHERE k IN (SELECT k FROM dim WHERE weight > 0) \
         AND NOT EXISTS (SELECT 1 FROM dim WHERE dim.k = s.k AND dim.weight = 0)";
    not_in: "SELECT g, count(*) FROM s WHERE k NOT IN (SELECT k FROM dim WHERE k IS NOT NULL) GROUP BY g";
    not_in_with_a_null: "SELECT g, count(*) FROM s WHERE k NOT IN (SELECT k FROM dim) GROUP BY g";
    scalar_subquery: "SELECT k, count(*) FROM s WHERE n > (SELECT max(weight) FROM dim) GROUP BY k";
    ordered_over_a_join:
        "SELECT d.name, array_agg(s.n) AS a FROM s JOIN dim AS d ON s.k = d.k GROUP BY d.name",
        plain = "SELECT d.name, array_agg(s.n ORDER BY s._partition, s._offset) AS a FROM s JOIN dim AS d ON s.k = d.k \
         GROUP BY d.name";
    joins_above_the_aggregate:
        "SELECT d.name, a.c FROM dim AS d LEFT JOIN (SELECT k, count(*) AS c FROM s GROUP BY k) AS a ON a.k = d.k";
    nan_and_signed_zeros_as_keys:
        "SELECT CASE WHEN n % 4 = 0 THEN CAST('NaN' AS DOUBLE) WHEN n % 4 = 1 THEN -0.0 ELSE 0.0 END AS x, count(*), \
         min(i) FROM s GROUP BY 1";
    // NaN is above all numbers; the engine's own answer depends on the order of events.
    extremes_of_nan: "SELECT k, min(CASE WHEN n % 4 = 0 THEN CAST('NaN' AS DOUBLE) ELSE d END) AS x, \
         max(CASE WHEN n % 4 = 0 THEN CAST('NaN' AS DOUBLE) ELSE d END) AS y FROM s GROUP BY k",
        plain = "SELECT k, coalesce(min(CASE WHEN n % 4 <> 0 THEN d END), \
         CASE WHEN bool_or(n % 4 = 0) THEN CAST('NaN' AS DOUBLE) END) AS x, \
         CASE WHEN bool_or(n % 4 = 0) THEN CAST('NaN' AS DOUBLE) ELSE max(d) END AS y FROM s GROUP BY k";
    literals_as_arguments: "SELECT k, min(1.5), max('x'), sum(2), count(NULL), avg(3), min(CAST(NULL AS DOUBLE)), \
         array_agg(1), median(7), bool_or(true) FROM s GROUP BY k";
    subqueries_of_tables_above: "SELECT k, count(*) AS c FROM s GROUP BY k \
         HAVING count(*) > (SELECT min(weight) FROM dim) AND k IN (SELECT k FROM dim)";
    // The engine itself has no scalar subqueries in an aggregate.
    a_subquery_in_a_key: "SELECT g > (SELECT min(weight) FROM dim) AS big, count(*) AS c, \
         sum(n + (SELECT max(weight) FROM dim)) AS t FROM s GROUP BY 1",
        plain = "SELECT g > 0 AS big, count(*) AS c, sum(n + CAST(4 AS BIGINT)) AS t FROM s GROUP BY 1";
    a_correlated_subquery_of_a_table: "SELECT count(*) AS c FROM s \
         WHERE n > (SELECT max(weight) FROM dim WHERE dim.k = s.k)";
    extremes_of_floats_without_group_by: "SELECT min(d), max(d), min(r), max(r) FROM s";
    group_by_all: "SELECT k, g, count(*) FROM s GROUP BY ALL";
    having_without_group_by: "SELECT sum(i) AS t FROM s HAVING count(*) > 100";
    sums_that_wrap: "SELECT g, sum(i * 9000000000000000) AS t FROM s GROUP BY g";
    the_same_aggregate_twice: "SELECT k, count(*) AS a, count(*) AS b, sum(i) + sum(i) AS c FROM s GROUP BY k";
    casts_and_dates: "SELECT date_trunc('minute', at) AS t, CAST(at AS DATE) AS dd, extract(hour FROM at) AS h, \
         to_char(at, '%H:%M') AS c, sum(CAST(n AS DECIMAL(20, 4))) AS x FROM s GROUP BY 1, 2, 3, 4";
    ordered_over_unnest:
        "SELECT k, array_agg(tag) AS a FROM (SELECT k, unnest(tags) AS tag FROM s) GROUP BY k",
        plain = "SELECT k, array_agg(tag ORDER BY _partition, _offset) AS a \
         FROM (SELECT k, unnest(tags) AS tag, _partition, _offset FROM s) GROUP BY k";
    unnested: "SELECT tag, count(*), sum(n) FROM (SELECT unnest(tags) AS tag, n FROM s) GROUP BY tag";
    system_columns: "SELECT _partition, max(_offset), count(_event_time_max), count(*) FILTER (WHERE _late) \
         FROM s GROUP BY _partition";
    late_excluded: "SELECT k, count(*) FROM s GROUP BY k", settings = "late = \"exclude\"",
        plain = "SELECT k, count(*) FROM s WHERE NOT _late GROUP BY k";
    rows: "SELECT k, i * 2 AS j, at FROM s WHERE g > 0";
    rows_in_order: "SELECT k, n FROM s WHERE b ORDER BY n DESC, _partition, _offset LIMIT 7", ordered = ORDERED;
    rows_with_a_window: "SELECT k, n, row_number() OVER (PARTITION BY k ORDER BY _partition, _offset) AS r FROM s";
    rows_of_a_join: "SELECT s.n, d.name FROM s JOIN dim AS d ON s.k = d.k";
    all_rows: "SELECT * FROM s";
}

/// Sketches whose merge is inexact: within their error of the exact answer.
#[tokio::test]
async fn t_digests_are_within_their_error() {
    let view = compile(
        "SELECT approx_percentile_cont(0.5) WITHIN GROUP (ORDER BY n) AS p, approx_median(n) AS m, \
         approx_percentile_cont(n, 0.9, 200) AS q FROM s",
        "",
    );
    for seed in seeds() {
        let rng = &mut StdRng::seed_from_u64(seed);
        let all = events(seed, 2_000);
        let runs = runs(&view, &all, rng).await;
        let found = served(&view, &runs, None).await;
        let exact = plain("SELECT percentile_cont(n, 0.5), median(n), percentile_cont(n, 0.9) FROM s", &all).await;
        for column in 0..3 {
            let value = |b: &RecordBatch| {
                let c = arrow::compute::cast(b.column(column), &arrow::datatypes::DataType::Float64).unwrap();
                arrow::array::AsArray::as_primitive::<arrow::datatypes::Float64Type>(&c).value(0)
            };
            assert!((value(&found) - value(&exact)).abs() <= 1.0, "seed={seed} {found:?} {exact:?}");
        }
    }
}

#[tokio::test]
async fn a_filter_on_retained_groups_hides_the_old_ones_and_keeps_null() {
    let sql = "SELECT date_bin(INTERVAL '10 seconds', at) AS bin, count(*) AS c FROM s GROUP BY 1";
    let view = compile(sql, "retain = \"30 seconds\"");
    assert_eq!(view.retain_key(), Some(0));
    let all = events(5, 300);
    let states = view.states(std::slice::from_ref(&all)).await.unwrap().states;
    let bound = 1_700_000_060_000_000_i64;
    let found = served(&view, &[states], Some(bound)).await;
    let kept = format!("SELECT * FROM ({sql}) WHERE bin >= '{}' OR bin IS NULL", "2023-11-14T22:14:20Z");
    assert_equal("retain", &found, &plain(&kept, &all).await, ANY);
}

/// Compiled plans are shared: runs at the same time do not see each other's batches.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn runs_at_the_same_time_do_not_mix() {
    for sql in [
        "SELECT d.name, count(*) AS c, sum(s.i) AS t FROM dim AS d RIGHT JOIN s ON s.k = d.k GROUP BY d.name ORDER BY 2, 1 LIMIT 2",
        "SELECT g, count(*) FROM s WHERE k NOT IN (SELECT k FROM dim WHERE k IS NOT NULL) GROUP BY g",
    ] {
        let view = compile(sql, "");
        let tasks = (0..24).map(|seed| {
            let view = Arc::clone(&view);
            crate::task::spawn("test", async move {
                let all = in_log_order(&events(seed, 60));
                let states = view.states(std::slice::from_ref(&all)).await.unwrap().states;
                let merged = view.merge(&[states]).await.unwrap();
                (seed, all, view.finalize(&[merged]).await.unwrap())
            })
        });
        for done in futures::future::join_all(tasks).await {
            let (seed, all, found) = done.unwrap();
            let text = format!("seed={seed} {sql}");
            assert_equal(&text, &found, &plain(sql, &all).await, ANY);
        }
    }
}
