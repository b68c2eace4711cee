//! Compiled plans are executed for as long as the program runs.

use super::fixture::*;
use crate::view::evaluate::EXECUTIONS;

#[tokio::test]
async fn a_compiled_plan_does_not_grow_with_its_executions() {
    let view = compile("SELECT k, count(*), sum(i) FROM s WHERE n > 3 GROUP BY k", "");
    let events = events(1, 20);
    let (mut most, mut last) = (0, 0);
    for _ in 0..2 * EXECUTIONS + 2 {
        let states = view.states(std::slice::from_ref(&events)).await.unwrap().states;
        view.merge(&[states]).await.unwrap();
        last = view.states.kept_metrics() + view.merge.kept_metrics();
        most = most.max(last);
    }
    assert!(last > 0 && last < most / 100, "{last} metrics are kept, of {most} at most");
}
