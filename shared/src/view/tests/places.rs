//! Row views in which a join or UNNEST makes several rows of one event.

use datafusion::common::ScalarValue;

use super::fixture::*;

/// Whatever the batches: a row that a join or UNNEST makes has one key, the same on every path.
#[tokio::test]
async fn rows_of_one_event_are_told_apart_by_their_place() {
    for sql in [
        "SELECT k, t FROM (SELECT k, unnest(tags) AS t FROM s)",
        "SELECT s.k, d.name, s.n FROM s LEFT JOIN dim AS d ON s.k = d.k",
        "SELECT d.name, s.i FROM s JOIN dim AS d ON d.weight > s.g",
    ] {
        let view = compile(sql, "materialize = true");
        assert_eq!(view.key_count(), 3, "{sql}");
        let all = in_log_order(&events(5, 100));
        let once = view.states(std::slice::from_ref(&all)).await.unwrap().states;
        let keys = |row: usize| {
            let key = |column: usize| ScalarValue::try_from_array(once.column(column), row).unwrap();
            [key(0), key(1), key(2)]
        };
        let ascending = (1..once.num_rows()).all(|row| keys(row - 1).partial_cmp(&keys(row)).unwrap().is_lt());
        assert!(ascending, "{sql}: {once:?}");
        for size in [1, 7, 30] {
            let mut runs = vec![];
            for start in (0..100).step_by(size) {
                runs.push(view.states(&[all.slice(start, size.min(100 - start))]).await.unwrap().states);
            }
            assert_eq!(view.merge(&runs).await.unwrap(), once, "size={size} {sql}");
        }
        let (plan, _) = view.state_plan(table_of(&all.schema(), vec![all.clone()])).unwrap();
        assert_eq!(run(view.session(), plan).await, once, "build {sql}");
    }
}
