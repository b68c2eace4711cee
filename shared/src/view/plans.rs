//! A view's plans: from events to states, from states to states, from states to answers.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, DFSchema, Result, ScalarValue, TableReference, internal_err, plan_err};
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams, GroupingSet, Sort};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, col, lit};

use super::evaluate::{Below, ErrorSink, GuardTable};
use super::split::{PlanPath, node_at, replace_at};
use super::states::{AggregateCall, CallInput, Form, state_function};
use super::total_order::{Keyed, hidden, orders_nothing, totally_ordered};
use crate::record;

/// The keys of a row view's rows; the last one only where an event can become several rows.
const ROW_KEYS: [&str; 3] = [record::PARTITION, record::OFFSET, "_place"];

/// How states are keyed: by output columns of the part below.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    keys: Vec<usize>,
    /// Grouping sets as positions in `keys`; the states then have `__grouping_id` as one more, hidden key.
    sets: Option<Vec<Vec<usize>>>,
    /// The columns behind the keys of a row view; `None`: an aggregate.
    rows: Option<Vec<usize>>,
}

impl Groups {
    pub(crate) fn plain(keys: Vec<usize>) -> Self {
        Self { keys, sets: None, rows: None }
    }

    pub(crate) fn sets(keys: Vec<usize>, sets: Vec<Vec<usize>>) -> Self {
        Self { keys, sets: Some(sets), rows: None }
    }

    /// A row view: `keys` are partition and offset, and the place among the rows of an event that can become several.
    pub(crate) fn rows(keys: Vec<usize>, columns: Vec<usize>) -> Self {
        Self { keys, sets: None, rows: Some(columns) }
    }

    /// Without the hidden key.
    pub(crate) fn key_count(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn has_sets(&self) -> bool {
        self.sets.is_some()
    }

    /// One of the sets is empty: the SQL has its row even over no events.
    fn has_total(&self) -> bool {
        self.sets.iter().flatten().any(Vec::is_empty)
    }

    pub(crate) fn is_rows(&self) -> bool {
        self.rows.is_some()
    }

    /// Whether the rows of a row view are numbered within their event.
    pub(crate) fn has_places(&self) -> bool {
        self.is_rows() && self.keys.len() > ROW_KEYS.len() - 1
    }
}

/// All that decides what a view's plans are.
#[derive(Debug)]
pub(crate) struct Shape {
    /// The SQL's analyzed plan.
    pub(crate) plan: LogicalPlan,
    /// To the node of `plan` that states replace.
    pub(crate) to_split: PlanPath,
    pub(crate) below: Arc<Below>,
    pub(crate) groups: Groups,
    pub(crate) calls: Vec<Arc<AggregateCall>>,
    /// The schema of events.
    pub(crate) events: SchemaRef,
    /// The key that `retain` is about.
    pub(crate) retain_key: Option<usize>,
}

pub(crate) fn key_name(index: usize) -> String {
    format!("key_{index}")
}

fn state_name(index: usize) -> String {
    format!("state_{index}")
}

fn column_name(index: usize) -> String {
    format!("column_{index}")
}

fn named(name: impl Into<String>) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

impl Shape {
    /// Keys of states, the hidden one included.
    pub(crate) fn key_count(&self) -> usize {
        self.groups.key_count() + usize::from(self.groups.has_sets())
    }

    /// The node of the SQL's plan that states replace.
    pub(crate) fn at_split(&self) -> &LogicalPlan {
        node_at(&self.plan, &self.to_split)
    }

    /// Key columns first (`key_0`, …; for a row view `_partition`, `_offset`, `_place`), then one struct per aggregate
    /// (`state_0`, …), or the columns of a row view (`column_0`, …).
    pub(crate) fn state_schema(&self) -> SchemaRef {
        let below = self.below.schema();
        let column = |index: usize, name: String| below.field(index).clone().with_name(name);
        if let Some(columns) = &self.groups.rows {
            let keys = self.groups.keys.iter().zip(ROW_KEYS);
            let keys = keys.map(|(&k, name)| column(k, name.to_string()));
            let rest = columns.iter().enumerate().map(|(i, &c)| column(c, column_name(i)));
            return Arc::new(Schema::new(keys.chain(rest).collect::<Vec<_>>()));
        }
        let nullable = self.groups.has_sets();
        let mut fields: Vec<Field> = vec![];
        for (index, &key) in self.groups.keys.iter().enumerate() {
            let field = column(key, key_name(index));
            let nullable = nullable || field.is_nullable();
            fields.push(field.with_nullable(nullable));
        }
        if self.groups.has_sets() {
            let id = self.at_split().schema().field(self.groups.key_count());
            fields.push(Field::new(key_name(self.groups.key_count()), id.data_type().clone(), false));
        }
        for (index, call) in self.calls.iter().enumerate() {
            fields.push(Field::new(state_name(index), call.state_type(), false));
        }
        Arc::new(Schema::new(fields))
    }

    /// Events → states. With `sorted`, in the order of states.
    pub(crate) fn state_plan(
        &self,
        events: Arc<dyn TableProvider>,
        sink: Option<ErrorSink>,
        sorted: bool,
    ) -> Result<LogicalPlan> {
        for field in self.events.fields() {
            if !self.below.reads(field.name()) {
                continue;
            }
            match events.schema().column_with_name(field.name()) {
                Some((_, found)) if found.data_type() == field.data_type() => {}
                Some((_, found)) => {
                    return plan_err!(
                        "the events' column {} is of type {}, the view was compiled for {}",
                        field.name(),
                        found.data_type(),
                        field.data_type()
                    );
                }
                None => return plan_err!("the events lack the column {}", field.name()),
            }
        }
        let guard = Arc::new(GuardTable::new(events, Arc::clone(&self.below), sink));
        let below = self.below.schema();
        let input = |index: usize| named(below.field(index).name());
        let builder = LogicalPlanBuilder::scan("rows", provider_as_source(guard), None)?;
        let schema = self.state_schema();
        if let Some(columns) = &self.groups.rows {
            let exprs = self.groups.keys.iter().chain(columns).enumerate();
            let exprs = exprs.map(|(i, &c)| input(c).alias(schema.field(i).name()));
            return self.in_order(builder.project(exprs)?, sorted);
        }
        let keys: Vec<Expr> = self.groups.keys.iter().map(|&k| input(k)).collect();
        let group = match &self.groups.sets {
            None => keys,
            Some(sets) => {
                let sets = sets.iter().map(|s| s.iter().map(|&k| keys[k].clone()).collect()).collect();
                vec![Expr::GroupingSet(GroupingSet::GroupingSets(sets))]
            }
        };
        let calls = self.calls.iter().enumerate().map(|(index, call)| {
            let args = call.inputs.iter().map(|i| match i {
                CallInput::Literal(value) => lit(value.clone()),
                CallInput::Column(column) => input(*column),
            });
            let filter = call.filter.map(|f| Box::new(input(f)));
            aggregate_call(Form::State, call, args.collect(), filter).alias(state_name(index))
        });
        let aggregate = builder.aggregate(group, calls.collect::<Vec<_>>())?.build()?;
        let columns = aggregate.schema().columns();
        let exprs = columns.into_iter().zip(schema.fields()).map(|(c, f)| Expr::Column(c).alias(f.name()));
        self.in_order(LogicalPlanBuilder::from(aggregate.clone()).project(exprs)?, sorted)
    }

    fn in_order(&self, builder: LogicalPlanBuilder, sorted: bool) -> Result<LogicalPlan> {
        if !sorted || self.key_count() == 0 {
            return builder.build();
        }
        let schema = self.state_schema();
        let keys = schema.fields()[..self.key_count()].iter().map(|f| Sort::new(named(f.name()), true, true));
        builder.sort(keys.collect::<Vec<_>>())?.build()
    }

    fn scan_states(&self, states: Arc<dyn TableProvider>) -> Result<LogicalPlanBuilder> {
        check_schema(&states.schema(), &self.state_schema())?;
        LogicalPlanBuilder::scan("states", provider_as_source(states), None)
    }

    /// The states to be served. Where the SQL has a row over no events, they are never none: those of no events, which
    /// change nothing in a merge, are always among them.
    fn scan_served(&self, states: Arc<dyn TableProvider>) -> Result<LogicalPlanBuilder> {
        let scan = self.scan_states(states)?;
        if !self.groups.has_total() {
            return Ok(scan);
        }
        let nothing = Arc::new(EmptyTable::new(Arc::clone(&self.events)));
        scan.union(self.state_plan(nothing, Some(ErrorSink::new()), false)?)
    }

    fn merged(&self, builder: LogicalPlanBuilder, form: Form) -> Result<LogicalPlanBuilder> {
        let keys: Vec<Expr> = (0..self.key_count()).map(|k| col(key_name(k))).collect();
        let calls = self.calls.iter().enumerate().map(|(index, call)| {
            let state = col(state_name(index));
            aggregate_call(form, call, vec![state], None).alias(state_name(index))
        });
        builder.aggregate(keys, calls.collect::<Vec<_>>())
    }

    /// States → fewer states, in the order of states.
    pub(crate) fn merge_plan(&self, states: Arc<dyn TableProvider>, sorted: bool) -> Result<LogicalPlan> {
        let scan = self.scan_states(states)?;
        if self.groups.is_rows() {
            return self.in_order(scan, sorted);
        }
        let merged = self.merged(scan, Form::MergeState)?.build()?;
        let columns = merged.schema().columns();
        let schema = self.state_schema();
        let exprs = columns.into_iter().zip(schema.fields()).map(|(c, f)| Expr::Column(c).alias(f.name()));
        self.in_order(LogicalPlanBuilder::from(merged.clone()).project(exprs)?, sorted)
    }

    /// States → the view's rows. `retain_bound`: groups whose time key lies below it (microseconds) are hidden.
    pub(crate) fn served_plan(&self, states: Arc<dyn TableProvider>, retain_bound: Option<i64>) -> Result<LogicalPlan> {
        let mut scan = self.scan_served(states)?;
        if let (Some(key), Some(bound)) = (self.retain_key, retain_bound) {
            scan = scan.filter(self.retained(key, bound)?)?;
        }
        let (first, merged) = match self.groups.is_rows() {
            true => (self.key_count(), scan.build()?),
            false => (0, self.merged(scan, Form::MergeFinal)?.build()?),
        };
        let mut columns = merged.schema().columns();
        let rest = columns.split_off(first);
        let keys = columns.into_iter().map(Expr::Column).collect();
        self.in_total_order(merged, keys, rest)
    }

    /// Checks that all that depends on the order of rows above the states has one.
    ///
    /// # Errors
    /// See [`totally_ordered`].
    pub(crate) fn check_order(&self) -> Result<()> {
        let at_split = self.at_split().clone();
        let keys = if self.groups.is_rows() { vec![lit(0_i64); self.key_count()] } else { vec![] };
        let columns = at_split.schema().columns();
        self.in_total_order(at_split, keys, columns).map(|_| ())
    }

    /// The part of the SQL above the states over `columns` of `served`, which stand for those of the node that states
    /// replace. `row_keys`: the keys of a row view's rows.
    fn in_total_order(&self, served: LogicalPlan, row_keys: Vec<Expr>, columns: Vec<Column>) -> Result<LogicalPlan> {
        let original = self.at_split().schema();
        let named = |(column, (qualifier, field)): (Column, (Option<&TableReference>, &Arc<Field>))| {
            Expr::Column(column).alias_qualified(qualifier.cloned(), field.name())
        };
        let exprs: Vec<Expr> = columns.into_iter().zip(original.iter()).map(named).collect();
        let renamed = LogicalPlanBuilder::from(served.clone()).project(exprs.clone())?.build()?;
        check_replacement(renamed.schema(), original)?;
        if (0..self.to_split.len()).all(|depth| orders_nothing(node_at(&self.plan, &self.to_split[..depth]))) {
            return replace_at(&self.plan, &self.to_split, renamed);
        }
        let shown = renamed.schema().columns();
        let leaf = if let Some(columns) = &self.groups.rows {
            // Keys that the SQL has too are known to it by their names.
            let (mut exprs, mut keys) = (exprs, vec![]);
            for (index, (key, expr)) in self.groups.keys.iter().zip(row_keys).enumerate() {
                let passed = self.below.passed(*key);
                let same = |column: &usize| column == key || (passed.is_some() && self.below.passed(*column) == passed);
                keys.push(match columns.iter().position(same) {
                    Some(at) => shown[at].clone(),
                    None => {
                        exprs.push(expr.alias(hidden(index)));
                        Column::new_unqualified(hidden(index))
                    }
                });
            }
            Keyed { plan: LogicalPlanBuilder::from(served).project(exprs)?.build()?, keys }
        } else {
            Keyed { plan: renamed, keys: shown.into_iter().take(self.key_count()).collect() }
        };
        let plan = totally_ordered(&self.plan, &self.to_split, leaf)?;
        check_replacement(plan.schema(), self.plan.schema())?;
        Ok(plan)
    }

    /// The filter that hides groups older than the bound; a group without a time stays.
    fn retained(&self, key: usize, bound: i64) -> Result<Expr> {
        let schema = self.state_schema();
        let at_least = |unit_micros: i64| bound.div_euclid(unit_micros) + i64::from(bound.rem_euclid(unit_micros) != 0);
        let bound = match schema.field(key).data_type() {
            DataType::Timestamp(TimeUnit::Second, tz) => {
                ScalarValue::TimestampSecond(Some(at_least(1_000_000)), tz.clone())
            }
            DataType::Timestamp(TimeUnit::Millisecond, tz) => {
                ScalarValue::TimestampMillisecond(Some(at_least(1_000)), tz.clone())
            }
            DataType::Timestamp(TimeUnit::Microsecond, tz) => {
                ScalarValue::TimestampMicrosecond(Some(bound), tz.clone())
            }
            DataType::Timestamp(TimeUnit::Nanosecond, tz) => {
                ScalarValue::TimestampNanosecond(Some(bound.saturating_mul(1_000)), tz.clone())
            }
            DataType::Date32 => {
                let days = at_least(86_400_000_000).clamp(i64::from(i32::MIN), i64::from(i32::MAX));
                ScalarValue::Date32(i32::try_from(days).ok())
            }
            other => return internal_err!("the time key is of type {other}"),
        };
        let key = col(key_name(key));
        let recent = key.clone().gt_eq(lit(bound));
        Ok(if schema.field(self.retain_key.unwrap_or(0)).is_nullable() { recent.or(key.is_null()) } else { recent })
    }
}

fn aggregate_call(form: Form, call: &Arc<AggregateCall>, args: Vec<Expr>, filter: Option<Box<Expr>>) -> Expr {
    Expr::AggregateFunction(AggregateFunction {
        func: state_function(form, call),
        params: AggregateFunctionParams { args, distinct: false, filter, order_by: vec![], null_treatment: None },
    })
}

/// # Errors
/// When `found` is not exactly `declared`, metadata apart.
pub(crate) fn check_schema(found: &Schema, declared: &Schema) -> Result<()> {
    let same =
        found.fields().len() == declared.fields().len()
            && found.fields().iter().zip(declared.fields()).all(|(f, d)| {
                f.name() == d.name() && f.data_type() == d.data_type() && f.is_nullable() == d.is_nullable()
            });
    if same {
        return Ok(());
    }
    plan_err!("the states have the columns {found}, the view's are {declared}")
}

fn check_replacement(found: &DFSchema, original: &DFSchema) -> Result<()> {
    let describe = |s: &DFSchema| -> Vec<(Option<TableReference>, String, DataType, bool)> {
        s.iter().map(|(q, f)| (q.cloned(), f.name().clone(), f.data_type().clone(), f.is_nullable())).collect()
    };
    let (found, original) = (describe(found), describe(original));
    if found == original { Ok(()) } else { internal_err!("merged states give {found:?}, the SQL gives {original:?}") }
}
