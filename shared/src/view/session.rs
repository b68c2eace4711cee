//! The session in which views are planned and run, with every setting that could change an answer pinned.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{SessionConfig, SessionContext};

/// Rows per batch inside plans; pinned, since sketches depend on how values are grouped.
const BATCH_SIZE_ROWS: usize = 8192;

/// The settings in which views are compiled. A layer may raise `target_partitions`; anything else is part of what a
/// view means.
pub fn pinned_config() -> SessionConfig {
    let mut config = SessionConfig::new().with_target_partitions(1).with_batch_size(BATCH_SIZE_ROWS);
    let options = config.options_mut();
    options.execution.time_zone = Some("UTC".to_string());
    options.execution.parquet.schema_force_view_types = false;
    options.execution.planning_concurrency = 1;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.collect_spans = true;
    // An ORDER BY below an aggregate is refused, not dropped without a word.
    options.sql_parser.enable_subquery_sort_elimination = false;
    // Plans are compiled once and run many times: nothing may be learned in one run and kept for the next.
    options.optimizer.enable_dynamic_filter_pushdown = false;
    options.optimizer.enable_join_dynamic_filter_pushdown = false;
    options.optimizer.enable_topk_dynamic_filter_pushdown = false;
    options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    options.optimizer.enable_physical_uncorrelated_scalar_subquery = false;
    config
}

/// A context of its own with [`pinned_config`] and the engine's functions.
pub(crate) fn pinned_session() -> SessionContext {
    SessionContext::new_with_config(pinned_config())
}

/// A stream as the planner sees it: columns without data.
#[derive(Debug)]
pub(crate) struct StreamTable {
    pub(crate) name: String,
    schema: SchemaRef,
}

impl StreamTable {
    pub(crate) fn new(name: &str, schema: SchemaRef) -> Self {
        Self { name: name.to_string(), schema }
    }
}

#[async_trait]
impl TableProvider for StreamTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        _: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan_err!("the stream {} cannot be scanned while a view is compiled", self.name)
    }
}
