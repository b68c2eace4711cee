//! Events on which the SQL fails: left out, reported, and no neighbour with them.

use super::equal::assert_equal;
use super::fixture::*;
use crate::offsets::Offset;

/// Whatever the batches, `i = 0, 1, …` of ten numbered events: the errors are `wrong` and the answer is `plain`'s.
async fn check(sql: &str, wrong: &[i64], right: &str) {
    let view = compile(sql, "");
    let all = numbered_events(10);
    let expected = plain(right, &all).await;
    for size in [1, 2, 3, 10] {
        let mut runs = vec![];
        let mut errors = vec![];
        for start in (0..10).step_by(size) {
            let batch = view.states(&[all.slice(start, size.min(10 - start))]).await.unwrap();
            runs.push(batch.states);
            errors.extend(batch.errors);
        }
        let offsets: Vec<_> = errors.iter().map(|e| e.offset).collect();
        let wrong: Vec<_> = wrong.iter().copied().map(Offset).collect();
        assert_eq!(offsets, wrong, "size={size} {sql}\n{errors:?}");
        assert!(errors.iter().all(|e| !e.error.is_empty()));
        assert_equal(&format!("size={size} {sql}"), &served(&view, &runs, None).await, &expected, false);
    }
    let (plan, sink) = view.state_plan(table_of(&all.schema(), vec![all.clone()])).unwrap();
    run(view.session(), plan).await;
    assert_eq!(sink.take().into_iter().map(|e| e.offset.0).collect::<Vec<_>>(), wrong, "build {sql}");
}

#[tokio::test]
async fn an_argument_that_divides_by_zero() {
    check(
        "SELECT k, sum(100 / i) AS t FROM s GROUP BY k",
        &[0],
        "SELECT k, sum(100 / i) AS t FROM s WHERE i <> 0 GROUP BY k",
    )
    .await;
}

#[tokio::test]
async fn a_filter_that_divides_by_zero() {
    check(
        "SELECT count(*) AS c FROM s WHERE 10 / (i - 4) > 2",
        &[4],
        "SELECT count(*) AS c FROM s WHERE i IN (5, 6, 7)",
    )
    .await;
}

#[tokio::test]
async fn a_group_key_that_does_not_cast() {
    check(
        "SELECT CAST(CASE WHEN i % 3 = 0 THEN 'x' ELSE '7' END AS BIGINT) AS x, count(*) AS c FROM s GROUP BY 1",
        &[0, 3, 6, 9],
        "SELECT CAST('7' AS BIGINT) AS x, count(*) AS c FROM s WHERE i % 3 <> 0 GROUP BY CAST('7' AS BIGINT)",
    )
    .await;
}

#[tokio::test]
async fn what_the_sql_guards_does_not_fail() {
    for guarded in [
        "SELECT sum(1) AS c FROM s WHERE i <> 0 AND 10 / i > 0",
        "SELECT sum(1) AS c FROM s WHERE CASE WHEN i = 0 THEN false ELSE 10 / i > 0 END",
        "SELECT sum(1) FILTER (WHERE i <> 0 AND 10 / i > 0) AS c FROM s",
        // A conjunct that cannot fail is applied first, wherever it stands.
        "SELECT sum(1) AS c FROM s WHERE 10 / i > 0 AND i <> 0",
    ] {
        check(guarded, &[], "SELECT sum(1) AS c FROM s WHERE i > 0").await;
    }
    check("SELECT sum(10 / i) FILTER (WHERE i <> 0) AS c FROM s", &[], "SELECT sum(10 / nullif(i, 0)) AS c FROM s")
        .await;
}

#[tokio::test]
async fn an_event_of_several_rows_fails_as_a_whole() {
    // 'b' has two rows in dim, one with weight 0.
    let view = compile("SELECT sum(6 / d.weight) AS t FROM s JOIN dim AS d ON 'b' = d.k WHERE s.i < 2", "");
    let all = numbered_events(4);
    let batch = view.states(&[all]).await.unwrap();
    assert_eq!(batch.errors.iter().map(|e| e.offset.0).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test]
async fn rows_of_a_row_view_fail_one_by_one() {
    check("SELECT 10 / i AS x FROM s", &[0], "SELECT 10 / i AS x FROM s WHERE i <> 0").await;
}

/// Whatever the view and the batches: an event is in error exactly if it fails alone, and the answer is that over the
/// others.
#[tokio::test]
async fn no_event_depends_on_its_neighbours() {
    let views = [
        "SELECT k, count(*), sum(100 / g) FROM s WHERE 10 / (n - 3) < 5 OR i > 100 GROUP BY k",
        "SELECT k, sum(CASE WHEN g > 0 THEN 10 / (g - 1) WHEN g < 0 THEN 7 ELSE 10 / g END) AS t FROM s GROUP BY k",
        "SELECT 12 / g AS x, count(*) FROM s WHERE b AND 5 / (g + 1) > 0 OR 10 / n > 1 GROUP BY 1",
        "SELECT count(*) FROM s WHERE CAST(CASE WHEN g = 1 THEN 'one' ELSE '1' END AS INT) = 1 AND b",
        "SELECT d.name, sum(10 / (d.weight - s.g)) AS t FROM s LEFT JOIN dim AS d ON s.k = d.k GROUP BY d.name",
        "SELECT array_agg(1 / g) AS a, sum(n / g) FILTER (WHERE b) AS t FROM (SELECT g, n % 7 AS n, b FROM s WHERE 3 / n < 3)",
        "SELECT k, 1 / g AS x FROM s WHERE b OR 1 / g = 1",
        "SELECT coalesce(g, 1 / n) AS c, count(*) FROM s WHERE NOT (g = 0 AND 1 / g = 1) GROUP BY 1",
    ];
    for sql in views {
        let view = compile(sql, "");
        for seed in seeds() {
            let all = in_log_order(&events(seed, 120));
            let (mut alone, mut good) = (vec![], vec![]);
            for row in 0..all.num_rows() {
                let one = all.slice(row, 1);
                let batch = view.states(std::slice::from_ref(&one)).await.unwrap();
                if batch.errors.is_empty() {
                    good.push(batch.states);
                } else {
                    assert_eq!(batch.errors.len(), 1);
                    alone.extend(batch.errors);
                }
            }
            let expected = served(&view, &good, None).await;
            for size in [2, 7, 120] {
                let (mut errors, mut runs) = (vec![], vec![]);
                for start in (0..120).step_by(size) {
                    let batch = view.states(&[all.slice(start, size.min(120 - start))]).await.unwrap();
                    errors.extend(batch.errors);
                    runs.push(batch.states);
                }
                assert_eq!(errors, alone, "seed={seed} size={size} {sql}");
                let text = format!("seed={seed} size={size} {sql}");
                assert_equal(&text, &served(&view, &runs, None).await, &expected, false);
            }
        }
    }
}
