//! What is refused, with which words and where.

use super::fixture::try_compile;

/// `sql` has a `^` before the place where the refusal must point to.
fn check(sql: &str, words: &str) {
    check_with(sql, "", words);
}

fn check_with(marked: &str, settings: &str, words: &str) {
    let at = marked.find('^').expect("a place is marked");
    let sql = marked.replacen('^', "", 1);
    let line = 1 + marked[..at].matches('\n').count();
    let column = 1 + marked[..at].rsplit('\n').next().unwrap().chars().count();
    let error = match try_compile(&sql, settings) {
        Ok(view) => panic!("accepted: {sql}\n{}", view.definition_text()),
        Err(error) => error,
    };
    let all = format!("{} ({})", error.message, error.hint.clone().unwrap_or_default());
    assert!(all.contains(words), "{sql}\nexpected: {words}\nfound: {all}");
    assert_eq!((error.line, error.column), (line, column), "{sql}\n{all}");
}

#[test]
fn unknown_names_with_the_nearest() {
    check("SELECT ^kk, count(*) FROM s GROUP BY kk", "did you mean k?");
    check("SELECT k, count(*)\nFROM s WHERE ^taggs IS NULL GROUP BY k", "did you mean tags?");
    check("SELECT count(*) FROM ^dimm", "did you mean dim?");
    check("SELECT ^uper(k), count(*) FROM s GROUP BY 1", "upper");
    check("SELECT ^summ(i) FROM s", "sum");
}

#[test]
fn other_statements() {
    check("^CREATE TABLE x AS SELECT * FROM s", "a view is one SELECT");
    check("^INSERT INTO s SELECT * FROM s", "a view is one SELECT");
    check("^EXPLAIN SELECT * FROM s", "a view is one SELECT");
    check("SELECT count(*) FROM s; ^SELECT 1", "second statement");
    check("SELECT count(*) FROM s ^UNION ALL SELECT count(*) FROM s", "UNION");
    check("SELECT k FROM s ^EXCEPT SELECT k FROM dim", "EXCEPT");
    check("^SELECT FROM s", "no columns");
    check("^VALUES (1)", "a view is one SELECT");
}

#[test]
fn more_or_less_than_one_stream() {
    check("^SELECT 1", "reads no stream");
    check("^SELECT count(*) FROM dim", "reads no stream");
    check("SELECT count(*) FROM s, ^generate_series(1, 3)", "may not read");
    check("SELECT count(*) FROM s JOIN ^other ON s.i = other.x", "more than one stream");
    check("SELECT count(*) FROM s AS a JOIN ^s AS b ON a.i = b.i", "more than once");
    check("SELECT count(*) FROM s WHERE i IN (SELECT i FROM ^s)", "more than once");
    check("SELECT count(*) FROM dim WHERE k IN (SELECT k FROM ^s)", "subquery of an expression");
    check("SELECT count(*) FROM (SELECT k FROM s ^UNION ALL SELECT k FROM dim)", "UNION");
}

#[test]
fn joins_that_do_not_distribute_over_events() {
    check("SELECT count(*) FROM dim LEFT ^JOIN s ON s.k = dim.k", "filled with NULL");
    check("SELECT count(*) FROM s RIGHT ^JOIN dim ON s.k = dim.k", "filled with NULL");
    check("SELECT count(*) FROM s FULL ^JOIN dim ON s.k = dim.k", "filled with NULL");
}

#[test]
fn the_clock_and_chance() {
    check("SELECT count(*) FROM s WHERE at > ^now()", "another value each time");
    check("SELECT k, count(*), ^now() AS t FROM s GROUP BY k", "another value each time");
    check("SELECT count(*) FROM s WHERE day = ^current_date", "another value each time");
    check("SELECT count(*) FROM s WHERE ^random() > 0.5", "another value each time");
    check("SELECT ^uuid(), count(*) FROM s GROUP BY 1", "another value each time");
    check("SELECT count(*) FROM s WHERE at > ^current_timestamp", "another value each time");
}

#[test]
fn what_depends_on_all_events_below_the_aggregate() {
    check("SELECT count(*) FROM (SELECT k FROM s ^LIMIT 3)", "LIMIT");
    check("SELECT count(*) FROM (SELECT k, row_number() ^OVER (ORDER BY i) AS r FROM s) WHERE r = 1", "window");
    check("SELECT k, array_agg(i) FROM (SELECT k, i FROM s ^ORDER BY i) GROUP BY k", "ORDER BY");
    check("SELECT ^DISTINCT ON (k) k, i FROM s ORDER BY k, i", "DISTINCT ON");
}

#[test]
fn frames_whose_result_depends_on_the_order_of_peers() {
    let over = |call: &str| format!("SELECT k, {call} FROM (SELECT k, count(*) AS c FROM s GROUP BY k)");
    let words = "depends on the order of rows that its ORDER BY leaves open";
    check(&over("^nth_value(k, 2) OVER (ORDER BY c)"), words);
    check(&over("^nth_value(k, 2) OVER (ORDER BY c)"), "all keys (k)");
    check(&over("^first_value(k) IGNORE NULLS OVER (ORDER BY c)"), words);
    check("SELECT k, ^nth_value(k, 2) OVER (ORDER BY b) AS x FROM s", "all keys (_partition, _offset)");
    check(&over("^array_agg(k) OVER (ORDER BY c)"), words);
    check(&over("^last_value(k) OVER (ORDER BY c RANGE BETWEEN 3 PRECEDING AND 1 PRECEDING)"), words);
}

#[test]
fn subqueries_that_are_no_single_value() {
    check("SELECT count(*) FROM s WHERE n > (^SELECT weight FROM dim)", "more than one row");
    check(
        "SELECT k, count(*) FROM s GROUP BY k HAVING count(*) > (^SELECT weight FROM dim LIMIT 1)",
        "more than one row",
    );
}

#[test]
fn aggregates_without_a_state() {
    check("SELECT ^any_value(i) FROM s", "any_value");
    check("SELECT k, ^corr(DISTINCT i, n) FROM s GROUP BY k", "DISTINCT");
}

#[test]
fn retain_without_a_time_key() {
    check_with("^SELECT k, count(*) FROM s GROUP BY k", "retain = \"1 day\"", "retain needs a time key");
    check_with("^SELECT k FROM s", "retain = \"1 day\"", "retain needs a time key");
    check_with("^SELECT day, count(*) FROM s GROUP BY ROLLUP (day)", "retain = \"1 day\"", "retain needs a time key");
}

#[test]
fn states_that_cannot_be_stored() {
    check("^SELECT CASE WHEN b THEN INTERVAL '1 month' END AS x, count(*) FROM s GROUP BY 1", "cannot hold");
}

#[test]
fn late_events_of_a_stream_that_has_none() {
    check_with("SELECT count(*) FROM ^other", "late = \"exclude\"", "ever late");
}
