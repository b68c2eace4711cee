//! A compiled plan that is executed again and again.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use parking_lot::Mutex;

/// A plan is renewed after so many executions. Seldom, since then the tables that it joins are hashed anew.
pub(crate) const EXECUTIONS: usize = 1024;
/// As many where nothing is lost by it.
const FEW_EXECUTIONS: usize = 64;

/// A plan for any number of executions, also at the same time.
///
/// SUBTLE: the engine keeps the metrics of each execution in the plan, for as long as the plan lives: some kilobytes each
/// time, hundreds of times a second. So it must not live as long as the view.
#[derive(Debug)]
pub(crate) struct ReusedPlan {
    plan: Mutex<(Arc<dyn ExecutionPlan>, usize)>,
    /// How often it is executed before it is renewed; 0: each execution has a plan of its own.
    executions: usize,
}

/// Nodes that keep nothing of one execution for the next one but its metrics.
const STATELESS: [&str; 5] = ["AggregateExec", "ProjectionExec", "FilterExec", "CoalesceBatchesExec", "SourceExec"];

impl ReusedPlan {
    pub(crate) fn new(plan: Arc<dyn ExecutionPlan>) -> Self {
        Self { plan: Mutex::new((plan, 0)), executions: EXECUTIONS }
    }

    /// A plan of any nodes: sorts and joins keep things from one execution to the next unless it is renewed for each.
    pub(crate) fn resetting(plan: Arc<dyn ExecutionPlan>) -> Self {
        let executions = if is_stateless(&plan) { FEW_EXECUTIONS } else { 0 };
        Self { executions, ..Self::new(plan) }
    }

    /// The plan, for one execution.
    pub(crate) fn once(&self) -> Result<Arc<dyn ExecutionPlan>> {
        let mut reused = self.plan.lock();
        let (plan, executions) = &mut *reused;
        if self.executions == 0 {
            let plan = Arc::clone(plan);
            drop(reused);
            return reset_plan_states(plan);
        }
        if *executions == self.executions {
            *plan = reset_plan_states(Arc::clone(plan))?;
            *executions = 0;
        }
        *executions += 1;
        Ok(Arc::clone(plan))
    }

    /// How many metrics of executions it keeps.
    #[cfg(test)]
    pub(crate) fn kept_metrics(&self) -> usize {
        fn kept(plan: &Arc<dyn ExecutionPlan>) -> usize {
            let own = plan.metrics().map_or(0, |metrics| metrics.iter().count());
            own + plan.children().into_iter().map(kept).sum::<usize>()
        }
        kept(&self.plan.lock().0)
    }
}

fn is_stateless(plan: &Arc<dyn ExecutionPlan>) -> bool {
    STATELESS.contains(&plan.name()) && plan.children().into_iter().all(is_stateless)
}
