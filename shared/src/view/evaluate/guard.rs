//! A table of events seen through the part of a view below its aggregate: the one place where both layers evaluate it.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::datasource::provider_as_source;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::{StreamExt, TryStreamExt, stream};

use super::{Below, ErrorSink};

/// The rows of [`Below`] over a table of events.
#[derive(Debug)]
pub(crate) struct GuardTable {
    events: Arc<dyn TableProvider>,
    below: Arc<Below>,
    /// `None`: each execution brings its own, as an extension of its task context.
    sink: Option<ErrorSink>,
}

impl GuardTable {
    pub(crate) fn new(events: Arc<dyn TableProvider>, below: Arc<Below>, sink: Option<ErrorSink>) -> Self {
        Self { events, below, sink }
    }
}

#[async_trait]
impl TableProvider for GuardTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.below.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    /// A filter of a query on plain columns of the stream prunes the scan of events. Events that it rejects are then
    /// not evaluated, so not reported as failing either: the query does not want them.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| match self.below.on_events(filter) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.events.schema();
        let columns = self.below.columns.iter().map(|c| schema.index_of(c)).collect::<Result<Vec<_>, _>>()?;
        let mut plan = LogicalPlanBuilder::scan("events", provider_as_source(Arc::clone(&self.events)), Some(columns))?;
        let wanted = filters.iter().filter_map(|f| self.below.on_events(f));
        if let Some(safe) = conjunction(self.below.safe_filter.iter().cloned().chain(wanted)) {
            plan = plan.filter(safe)?;
        }
        let input = state.create_physical_plan(&plan.build()?).await?;
        let guard: Arc<dyn ExecutionPlan> = Arc::new(GuardExec::new(input, Arc::clone(&self.below), self.sink.clone()));
        let Some(projection) = projection else { return Ok(guard) };
        let schema = guard.schema();
        let columns = projection.iter().map(|&index| {
            let name = schema.field(index).name();
            (Arc::new(Column::new(name, index)) as Arc<dyn PhysicalExpr>, name.clone())
        });
        Ok(Arc::new(ProjectionExec::try_new(columns, guard)?))
    }
}

/// Runs [`Below`] over each batch of its input.
#[derive(Debug)]
struct GuardExec {
    input: Arc<dyn ExecutionPlan>,
    below: Arc<Below>,
    sink: Option<ErrorSink>,
    properties: Arc<PlanProperties>,
}

impl GuardExec {
    fn new(input: Arc<dyn ExecutionPlan>, below: Arc<Below>, sink: Option<ErrorSink>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&below.schema)),
            Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        Self { input, below, sink, properties: Arc::new(properties) }
    }

    fn with_input(&self, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input, Arc::clone(&self.below), self.sink.clone()))),
            _ => internal_err!("the guard of a view takes exactly one input"),
        }
    }
}

impl DisplayAs for GuardExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema: &Schema = &self.below.schema;
        write!(f, "GuardExec: columns={}", schema.fields().len())
    }
}

impl ExecutionPlan for GuardExec {
    fn name(&self) -> &'static str {
        "GuardExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.with_input(children)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.with_input(children)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let brought = || context.session_config().get_extension::<ErrorSink>().map(|sink| sink.as_ref().clone());
        let Some(sink) = self.sink.clone().or_else(brought) else {
            return internal_err!("a view's plan was run without a place for its events' errors");
        };
        let below = Arc::clone(&self.below);
        let rows = self
            .input
            .execute(partition, context)?
            .then(move |batch| {
                let (below, sink) = (Arc::clone(&below), sink.clone());
                async move {
                    let rows = below.rows(&batch?, &sink).await?;
                    Ok::<_, datafusion::error::DataFusionError>(stream::iter(rows.into_iter().map(Ok)))
                }
            })
            .try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.below.schema), rows)))
    }
}
