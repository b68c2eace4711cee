//! Builds run the same plans in many partitions: partial and final steps, partial steps that give up, small batches.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::catalog::MemTable;
use datafusion::prelude::SessionContext;

use super::equal::assert_close;
use super::fixture::*;
use crate::view::pinned_config;

const VIEWS: &[&str] = &[
    "SELECT k, count(*), sum(i), avg(d), min(k), max(m), stddev(i), approx_distinct(n) FROM s GROUP BY k",
    "SELECT n, i, count(*), sum(m), min(d), count(DISTINCT g) FROM s GROUP BY n, i",
    "SELECT n, array_agg(i), first_value(k), last_value(d), nth_value(i, 2), string_agg(k, ',') FROM s GROUP BY n",
    "SELECT n, median(d), percentile_cont(0.9) WITHIN GROUP (ORDER BY i), bool_and(b), bit_xor(i) FROM s GROUP BY n",
    "SELECT k, b, count(*), grouping(k) FROM s GROUP BY CUBE (k, b)",
    "SELECT count(*), sum(n), array_agg(n), count(DISTINCT k) FROM s WHERE n > 3",
    "SELECT d.name, sum(s.n), array_agg(s.n) FROM s JOIN dim AS d ON s.k = d.k GROUP BY d.name",
    "SELECT DISTINCT k, g FROM s",
    "SELECT k, n FROM s WHERE b",
];

/// `partitions` partitions; with `give_up`, partial aggregation stops after the first batch.
fn session(partitions: usize, give_up: bool) -> SessionContext {
    let mut config = pinned_config().with_target_partitions(partitions).with_batch_size(16);
    if give_up {
        config.options_mut().execution.skip_partial_aggregation_probe_rows_threshold = 1;
        config.options_mut().execution.skip_partial_aggregation_probe_ratio_threshold = 0.0;
    }
    SessionContext::new_with_config(config)
}

#[tokio::test]
async fn any_number_of_partitions_gives_the_same_answer() {
    for sql in VIEWS {
        let view = compile(sql, "");
        for seed in seeds() {
            let all = in_log_order(&events(seed, 400));
            let once = view.states(std::slice::from_ref(&all)).await.unwrap().states;
            let expected = view.finalize(&[once]).await.unwrap();
            for (partitions, give_up) in [(1, false), (4, false), (4, true)] {
                let context = session(partitions, give_up);
                let parts: Vec<Vec<RecordBatch>> =
                    (0..4).map(|p| (0..10).map(|b| all.slice(p * 100 + b * 10, 10)).collect()).collect();
                let table = Arc::new(MemTable::try_new(all.schema(), parts).unwrap());
                let (plan, sink) = view.state_plan(table).unwrap();
                let states = run(&context, plan).await;
                assert_eq!(sink.take(), []);
                let states = RecordBatch::try_new(view.state_schema(), states.columns().to_vec()).unwrap();
                let text = format!("seed={seed} partitions={partitions} give_up={give_up} {sql}");
                let sorted =
                    crate::view::sort::sorted(&states.schema(), std::slice::from_ref(&states), view.key_count());
                let keys = |b: &RecordBatch| b.columns()[..view.key_count()].to_vec();
                assert_eq!(keys(&sorted.unwrap()), keys(&states), "{text}");
                // Many small runs, merged and served in many partitions.
                let runs: Vec<Vec<RecordBatch>> = vec![
                    vec![view.states(&[all.slice(0, 150)]).await.unwrap().states],
                    vec![view.states(&[all.slice(150, 50)]).await.unwrap().states],
                    vec![view.states(&[all.slice(200, 200)]).await.unwrap().states],
                ];
                let table = Arc::new(MemTable::try_new(view.state_schema(), runs).unwrap());
                let found = run(&context, view.served_plan(table, None).unwrap()).await;
                let found = RecordBatch::try_new(view.output_schema(), found.columns().to_vec()).unwrap();
                assert_close(&text, &found, &expected, false, 1e-9);
                let built = view.finalize(&[states]).await.unwrap();
                assert_close(&text, &built, &expected, false, 1e-9);
            }
        }
    }
}
