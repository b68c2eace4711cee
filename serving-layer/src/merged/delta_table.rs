//! The delta's runs as a table of states.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use watershed_shared::delta::DeltaRun;
use watershed_shared::run::{key_bounds, key_conjunct, slice};

/// Runs of states in memory, each sorted by the group key (ascending, nulls first).
///
/// A scan cuts each run down to the slice that conjuncts `key = literal`, `key < literal` and the like on a prefix of
/// the key leave, by binary search. The slice may hold rows that the filter rejects: pushdown is inexact.
#[derive(Debug)]
pub(crate) struct DeltaTable {
    schema: SchemaRef,
    key_count: usize,
    runs: Vec<Arc<DeltaRun>>,
}

impl DeltaTable {
    pub(crate) fn new(schema: SchemaRef, key_count: usize, runs: Vec<Arc<DeltaRun>>) -> Self {
        Self { schema, key_count, runs }
    }

    fn slices(&self, filters: &[Expr]) -> Vec<RecordBatch> {
        let bounds = key_bounds(&self.schema, self.key_count, filters);
        let sliced = self.runs.iter().map(|run| slice(&run.states, &bounds));
        sliced.filter(|batch| batch.num_rows() > 0).collect()
    }
}

#[async_trait]
impl TableProvider for DeltaTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let usable = |f: &&Expr| key_conjunct(&self.schema, self.key_count, f).is_some();
        let answer = |usable| match usable {
            true => TableProviderFilterPushDown::Inexact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(|f| answer(usable(f))).collect())
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let batches = self.slices(filters);
        Ok(MemorySourceConfig::try_new_exec(&[batches], Arc::clone(&self.schema), projection.cloned())?)
    }
}
