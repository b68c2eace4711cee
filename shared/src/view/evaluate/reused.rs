//! A compiled plan that is executed again and again.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use parking_lot::Mutex;

/// A plan is renewed after so many executions. Seldom, since then the tables that it joins are hashed anew.
pub(crate) const EXECUTIONS: usize = 1024;

/// A plan for any number of executions, also at the same time.
///
/// SUBTLE: the engine keeps the metrics of each execution in the plan, for as long as the plan lives: some kilobytes each
/// time, hundreds of times a second. So it must not live as long as the view.
#[derive(Debug)]
pub(crate) struct ReusedPlan(Mutex<(Arc<dyn ExecutionPlan>, usize)>);

impl ReusedPlan {
    pub(crate) fn new(plan: Arc<dyn ExecutionPlan>) -> Self {
        Self(Mutex::new((plan, 0)))
    }

    /// The plan, for one execution.
    pub(crate) fn once(&self) -> Result<Arc<dyn ExecutionPlan>> {
        let mut reused = self.0.lock();
        let (plan, executions) = &mut *reused;
        if *executions == EXECUTIONS {
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
        kept(&self.0.lock().0)
    }
}
