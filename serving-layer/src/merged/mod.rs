//! Generation and delta as one table of states.

mod delta_table;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;

pub(crate) use delta_table::DeltaTable;

/// All of several tables of one schema: a generation's runs and a delta's.
///
/// Filters and projections reach each of them, so that a query on some keys reads those keys alone.
#[derive(Debug)]
pub(crate) struct MergedStates {
    schema: SchemaRef,
    parts: Vec<Arc<dyn TableProvider>>,
}

impl MergedStates {
    /// # Panics
    /// Without parts.
    pub(crate) fn new(schema: SchemaRef, parts: Vec<Arc<dyn TableProvider>>) -> Self {
        assert!(!parts.is_empty(), "a table of states has at least its delta");
        Self { schema, parts }
    }
}

#[async_trait]
impl TableProvider for MergedStates {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let mut merged = vec![TableProviderFilterPushDown::Unsupported; filters.len()];
        for part in &self.parts {
            for (merged, part) in merged.iter_mut().zip(part.supports_filters_pushdown(filters)?) {
                if part != TableProviderFilterPushDown::Unsupported {
                    *merged = TableProviderFilterPushDown::Inexact;
                }
            }
        }
        Ok(merged)
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut scans = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            // A part takes only the filters that it said it can use.
            let refs: Vec<&Expr> = filters.iter().collect();
            let support = part.supports_filters_pushdown(&refs)?;
            let taken = filters.iter().zip(support).filter(|(_, s)| *s != TableProviderFilterPushDown::Unsupported);
            let taken: Vec<Expr> = taken.map(|(f, _)| f.clone()).collect();
            scans.push(part.scan(state, projection, &taken, None).await?);
        }
        match scans.len() {
            1 => Ok(scans.remove(0)),
            _ => UnionExec::try_new(scans),
        }
    }
}
