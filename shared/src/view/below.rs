//! Compiling the part of a view below its aggregate.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::{Column, Result, TableReference, internal_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, LogicalPlanBuilder, Projection, lit};
use datafusion::optimizer::decorrelate_predicate_subquery::DecorrelatePredicateSubquery;
use datafusion::optimizer::eliminate_cross_join::EliminateCrossJoin;
use datafusion::optimizer::extract_equijoin_predicate::ExtractEquijoinPredicate;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::scalar_subquery_to_join::ScalarSubqueryToJoin;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::optimizer::{Optimizer, OptimizerRule};

use super::evaluate::{Below, SourceTable, late_function};
use super::split::{find_column, with_leaf};
use super::trace::{cannot_fail, take_safe_conjuncts, trace_down};
use crate::config::{Late, StreamConfig};
use crate::record;

/// Hidden columns that lead an event's partition and offset through the SQL's projections.
const HIDDEN_PARTITION: &str = "__event_partition";
const HIDDEN_OFFSET: &str = "__event_offset";
/// The column for the place of a row among those of its event.
const PLACE: &str = "place";

/// The stream as a view's plan sees it, with `_late` computed.
pub(crate) struct StreamLeaf<'a> {
    pub(crate) stream: &'a StreamConfig,
    pub(crate) events: SchemaRef,
    pub(crate) late: Late,
}

impl StreamLeaf<'_> {
    /// The plan that takes the place of the scan called `table`: the stored columns, `_late`, the hidden ones; without
    /// late events if the view excludes them.
    fn plan(&self, table: &TableReference) -> Result<LogicalPlan> {
        let source = provider_as_source(Arc::new(SourceTable::new(Arc::clone(&self.events))));
        let scan = LogicalPlanBuilder::scan(table.clone(), source, None)?.build()?;
        let column = |name: &str| Expr::Column(Column::new(Some(table.clone()), name));
        let late = match &self.stream.event_time {
            Some(event_time) => {
                // Without an allowed lateness no event is late.
                match self.stream.allowed_lateness {
                    Some(allowed) => {
                        late_function(allowed).call(vec![column(event_time), column(record::EVENT_TIME_MAX)])
                    }
                    None => lit(false),
                }
            }
            None => lit(false),
        };
        let mut exprs: Vec<Expr> = self.events.fields().iter().map(|f| column(f.name())).collect();
        exprs.push(late.alias_qualified(Some(table.clone()), record::LATE));
        exprs.push(column(record::PARTITION).alias(HIDDEN_PARTITION));
        exprs.push(column(record::OFFSET).alias(HIDDEN_OFFSET));
        let leaf = LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(scan))?);
        match self.late {
            Late::Include => Ok(leaf),
            Late::Exclude => {
                let on_time = Expr::Not(Box::new(column(record::LATE)));
                Ok(LogicalPlan::Filter(Filter::try_new(on_time, Arc::new(leaf))?))
            }
        }
    }
}

/// The part below while its output columns are being collected.
pub(crate) struct BelowBuilder {
    input: LogicalPlan,
    exprs: Vec<Expr>,
    /// Index of the column for the row's place, once asked for.
    place: Option<usize>,
    multiplies: bool,
}

impl BelowBuilder {
    /// `input`: the SQL's plan below the aggregate, with the scan of the stream at the end of `path`.
    pub(crate) fn new(input: &LogicalPlan, path: &[usize], leaf: &StreamLeaf<'_>) -> Result<Self> {
        let LogicalPlan::TableScan(scan) = super::split::node_at(input, path) else {
            return internal_err!("the path of a view does not end at a scan");
        };
        if scan.projection.is_some() || !scan.filters.is_empty() || scan.fetch.is_some() {
            return internal_err!("the scan of a stream is already optimized");
        }
        let hidden = [HIDDEN_PARTITION, HIDDEN_OFFSET];
        let rebuilt = with_leaf(input, path, &leaf.plan(&scan.table_name)?, &hidden)?;
        Ok(Self { input: rebuilt, exprs: vec![], place: None, multiplies: super::split::multiplies(input, path) })
    }

    /// The output column that holds `expr`.
    pub(crate) fn column(&mut self, expr: Expr) -> usize {
        let expr = expr.unalias_nested().data;
        let known = self.exprs.iter().enumerate().position(|(i, e)| *e == expr && self.place != Some(i));
        known.unwrap_or_else(|| {
            self.exprs.push(expr);
            self.exprs.len() - 1
        })
    }

    /// The schema that the SQL's expressions below the aggregate refer to.
    pub(crate) fn input(&self) -> &LogicalPlan {
        &self.input
    }

    /// The output columns that order rows as the log does: partition, offset, and, if an event can become several
    /// rows, the place among these.
    pub(crate) fn event_order(&mut self) -> Result<Vec<usize>> {
        let partition = Expr::Column(find_column(&self.input, HIDDEN_PARTITION)?);
        let offset = Expr::Column(find_column(&self.input, HIDDEN_OFFSET)?);
        let mut order = vec![self.column(partition), self.column(offset)];
        if self.multiplies {
            let place = match self.place {
                Some(place) => place,
                None => {
                    self.exprs.push(lit(0_i64));
                    self.exprs.len() - 1
                }
            };
            self.place = Some(place);
            order.push(place);
        }
        Ok(order)
    }

    fn column_name(&self, index: usize) -> String {
        if self.place == Some(index) { PLACE.to_string() } else { format!("c{index}") }
    }

    fn projection(&self) -> Result<LogicalPlan> {
        let exprs =
            self.exprs.iter().enumerate().map(|(i, e)| e.clone().alias(self.column_name(i))).collect::<Vec<_>>();
        Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(self.input.clone()))?))
    }

    /// Compiles what has been collected.
    pub(crate) async fn build(mut self, state: &SessionState) -> Result<BuiltBelow> {
        let numbered = match self.place {
            Some(place) => {
                let order = self.event_order()?;
                Some([order[0], order[1], place])
            }
            None => None,
        };
        if self.exprs.is_empty() {
            // A batch of no columns carries its row count badly.
            self.exprs.push(lit(true));
        }
        let top = self.projection()?;
        let schema: SchemaRef = Arc::new(top.schema().as_arrow().clone());
        let simplified = optimize(top, vec![Arc::new(SimplifyExpressions::new())], state)?;
        let path = match path_to_source(&simplified) {
            Some(path) => path,
            None => return internal_err!("a view's plan lost its stream"),
        };
        let passed = passed_columns(&simplified, &path);
        let (stripped, safe_filter) = take_safe_conjuncts(simplified, &path)?;
        let optimized = optimize(
            stripped,
            vec![
                Arc::new(DecorrelatePredicateSubquery::new()),
                Arc::new(ScalarSubqueryToJoin::new()),
                Arc::new(ExtractEquijoinPredicate::new()),
                Arc::new(EliminateCrossJoin::new()),
                Arc::new(SimplifyExpressions::new()),
                Arc::new(OptimizeProjections::new()),
            ],
            state,
        )?;
        let Some(path) = path_to_source(&optimized) else {
            return internal_err!("a view's plan lost its stream");
        };
        let mut columns: Vec<String> = match super::split::node_at(&optimized, &path) {
            LogicalPlan::TableScan(scan) => scan.projected_schema.fields().iter().map(|f| f.name().clone()).collect(),
            _ => return internal_err!("the path of a view does not end at a scan"),
        };
        for conjunct in &safe_filter {
            for column in conjunct.column_refs() {
                if !columns.contains(&column.name) {
                    columns.push(column.name.clone());
                }
            }
        }
        columns.sort();
        let uses_late = uses_late(&optimized, &safe_filter)?;
        let plan = state.query_planner().create_physical_plan(&optimized, state).await?;
        let types = |s: &SchemaRef| s.fields().iter().map(|f| f.data_type().clone()).collect::<Vec<DataType>>();
        let (found, declared) = (types(&plan.schema()), types(&schema));
        if found != declared {
            return internal_err!("the part below the aggregate yields {found:?}, declared {declared:?}");
        }
        let below = Below::new(plan, state.task_ctx(), columns.clone(), safe_filter, schema, passed, numbered)
            .with_infallible(infallible(&optimized));
        Ok(BuiltBelow { below: Arc::new(below), columns, uses_late })
    }
}

/// The compiled part below, and what it reads.
pub(crate) struct BuiltBelow {
    pub(crate) below: Arc<Below>,
    /// The stream's stored columns that decide about the result, sorted.
    pub(crate) columns: Vec<String>,
    /// `_late` does too.
    pub(crate) uses_late: bool,
}

fn optimize(
    plan: LogicalPlan,
    rules: Vec<Arc<dyn OptimizerRule + Send + Sync>>,
    state: &SessionState,
) -> Result<LogicalPlan> {
    Optimizer::with_rules(rules).optimize(plan, state, |_, _| {})
}

/// For each column of `plan` the column of the scan at the end of `path` that it is, if it is one unchanged.
fn passed_columns(plan: &LogicalPlan, path: &[usize]) -> Vec<Option<String>> {
    let passed = |column: Column| match trace_down(&Expr::Column(column), plan, path)? {
        Expr::Column(column) => Some(column.name),
        _ => None,
    };
    plan.schema().columns().into_iter().map(passed).collect()
}

/// Whether no event can make `plan` fail: only filters and projections of expressions that cannot.
fn infallible(plan: &LogicalPlan) -> bool {
    let here = match plan {
        LogicalPlan::TableScan(_) | LogicalPlan::SubqueryAlias(_) => true,
        LogicalPlan::Projection(projection) => {
            projection.expr.iter().all(|e| cannot_fail(e, projection.input.schema()))
        }
        LogicalPlan::Filter(filter) => cannot_fail(&filter.predicate, filter.input.schema()),
        _ => false,
    };
    here && plan.inputs().into_iter().all(infallible)
}

fn path_to_source(plan: &LogicalPlan) -> Option<Vec<usize>> {
    if let LogicalPlan::TableScan(scan) = plan {
        let provider = source_as_provider(&scan.source).ok()?;
        let any: &dyn std::any::Any = provider.as_ref();
        return any.is::<SourceTable>().then(Vec::new);
    }
    plan.inputs().into_iter().enumerate().find_map(|(index, input)| {
        let mut path = path_to_source(input)?;
        path.insert(0, index);
        Some(path)
    })
}

fn uses_late(plan: &LogicalPlan, safe_filter: &[Expr]) -> Result<bool> {
    use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
    let is_late = |e: &Expr| Ok(matches!(e, Expr::ScalarFunction(call) if call.func.name() == "late"));
    let mut found = false;
    for conjunct in safe_filter {
        found |= conjunct.exists(is_late)?;
    }
    plan.apply(|node| {
        node.apply_expressions(|expr| {
            found |= expr.exists(is_late)?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(found)
}
