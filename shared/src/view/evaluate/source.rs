//! A table whose batches come with the execution, so that one compiled physical plan runs over any batches, and over
//! several at the same time.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_err, project_schema};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions,
};

use super::ErrorSink;

/// The batches of one execution, handed over as an extension of its task context.
#[derive(Debug)]
pub(crate) struct SourceBatches(pub(crate) Vec<RecordBatch>);

/// The table that stands for [`SourceBatches`].
#[derive(Debug)]
pub(crate) struct SourceTable {
    schema: SchemaRef,
}

impl SourceTable {
    pub(crate) fn new(schema: SchemaRef) -> Self {
        Self { schema }
    }
}

#[async_trait]
impl TableProvider for SourceTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(SourceExec::new(project_schema(&self.schema, projection)?)))
    }
}

/// Yields the columns of its schema, found by name, of each of the execution's [`SourceBatches`].
#[derive(Debug)]
pub(crate) struct SourceExec {
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl SourceExec {
    fn new(schema: SchemaRef) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { schema, properties: Arc::new(properties) }
    }

    fn conform(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let schema = batch.schema_ref();
        let columns = self
            .schema
            .fields()
            .iter()
            .map(|field| match schema.column_with_name(field.name()) {
                Some((index, _)) => Ok(Arc::clone(batch.column(index))),
                None => internal_err!("a source batch lacks the column {}", field.name()),
            })
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}

impl DisplayAs for SourceExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SourceExec: columns={}", self.schema.fields().len())
    }
}

impl ExecutionPlan for SourceExec {
    fn name(&self) -> &'static str {
        "SourceExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(batches) = context.session_config().get_extension::<SourceBatches>() else {
            return internal_err!("a compiled plan was run without source batches. partition={partition}");
        };
        let batches = batches.0.iter().map(|batch| self.conform(batch)).collect::<Result<Vec<_>>>()?;
        Ok(Box::pin(MemoryStream::try_new(batches, Arc::clone(&self.schema), None)?))
    }

    /// Declared enormous: the planner then builds hash tables from the dimension tables and probes with the stream, so
    /// that a table is hashed once for all batches and rows of one event stay together.
    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = Precision::Inexact(1 << 40);
        statistics.total_byte_size = Precision::Inexact(1 << 48);
        Ok(Arc::new(statistics))
    }
}

/// Runs a compiled one-partition `plan` over `batches`, with `sink` for events that fail.
pub(crate) async fn run_over(
    plan: &Arc<dyn ExecutionPlan>,
    base: &TaskContext,
    batches: Vec<RecordBatch>,
    sink: Option<ErrorSink>,
) -> Result<Vec<RecordBatch>> {
    let mut config = base.session_config().clone().with_extension(Arc::new(SourceBatches(batches)));
    if let Some(sink) = sink {
        config = config.with_extension(Arc::new(sink));
    }
    let context = TaskContext::new(
        None,
        base.session_id(),
        config,
        HashMap::new(),
        HashMap::new(),
        HashMap::new(),
        HashMap::new(),
        base.runtime_env(),
    );
    if plan.properties().partitioning.partition_count() != 1 {
        return internal_err!("a compiled plan has {} partitions", plan.properties().partitioning.partition_count());
    }
    datafusion::physical_plan::common::collect(plan.execute(0, Arc::new(context))?).await
}

/// Whether any node of `plan` is a [`SourceExec`].
pub(super) fn reads_source(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.downcast_ref::<SourceExec>().is_some() || plan.children().into_iter().any(reads_source)
}
