//! What views may not contain, each with the reason and the place. Anything not known to be right is refused.

use std::collections::BTreeMap;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, JoinType, SchemaError};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility, WindowFunctionDefinition};
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast::{SetExpr, SetOperator, Statement as SqlStatement};
use datafusion::sql::sqlparser::keywords::Keyword;

use super::error::CompileError;
use super::place::{SqlPlace, SqlText};
use super::session::StreamTable;
use super::states::{supported, supported_names};

type Result<T> = std::result::Result<T, CompileError>;

/// The view's one SELECT.
pub(crate) fn parse(sql: &str, text: &SqlText) -> Result<Statement> {
    let mut statements = DFParser::parse_sql(sql).map_err(|e| of_engine(&e, text, &[]))?;
    let Some(first) = statements.pop_front() else {
        return Err(CompileError::new(SqlPlace::START, "the view has no SQL").with_hint("write one SELECT"));
    };
    if !statements.is_empty() {
        return Err(CompileError::new(text.second_statement(), "a view is one SELECT; a second statement begins here"));
    }
    let query = match &first {
        Statement::Statement(statement) => match statement.as_ref() {
            SqlStatement::Query(query) => query,
            _ => return Err(not_a_select(text)),
        },
        _ => return Err(not_a_select(text)),
    };
    match query.body.as_ref() {
        SetExpr::Select(_) | SetExpr::Query(_) => Ok(first),
        SetExpr::SetOperation { op, .. } => {
            let keyword = match op {
                SetOperator::Union => Keyword::UNION,
                SetOperator::Except | SetOperator::Minus => Keyword::EXCEPT,
                SetOperator::Intersect => Keyword::INTERSECT,
            };
            Err(CompileError::new(text.keyword(keyword), format!("a view is one SELECT; {op} is not supported"))
                .with_hint("write a view for each part"))
        }
        _ => Err(not_a_select(text)),
    }
}

fn not_a_select(text: &SqlText) -> CompileError {
    CompileError::new(text.start(), "a view is one SELECT; this is another statement")
}

/// An error of the engine's parser or planner, with its place and the nearest of `names`.
pub(crate) fn of_engine(error: &DataFusionError, text: &SqlText, names: &[String]) -> CompileError {
    let place = text.of_error(error);
    match error.find_root() {
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let known: Vec<_> = valid_fields.iter().map(|c| c.name.clone()).collect();
                let unknown = CompileError::new(place, format!("unknown column {}", field.name));
                match nearest(&field.name, &known) {
                    Some(name) if name != name.to_lowercase() => unknown
                        .with_hint(format!("did you mean \"{name}\"? names with capitals stand in double quotes")),
                    Some(name) => unknown.with_hint(format!("did you mean {name}?")),
                    None if known.is_empty() => unknown,
                    None => unknown.with_hint(format!("there are: {}", known.join(", "))),
                }
            }
            other => CompileError::new(place, other.to_string()),
        },
        other => {
            let message = without_prefix(&other.strip_backtrace());
            if let Some(name) = unknown_table(&message) {
                let place = text.word(&name, 0);
                let unknown = CompileError::new(place, format!("unknown stream or table {name}"));
                return match nearest(&name, names) {
                    Some(near) => unknown.with_hint(format!("did you mean {near}?")),
                    None if names.is_empty() => unknown.with_hint("declare it as [stream.NAME] or [table.NAME]"),
                    None => unknown.with_hint(format!("there are: {}", names.join(", "))),
                };
            }
            match message.split_once('\n') {
                Some((first, rest)) => CompileError::new(place, first.trim_end_matches('.')).with_hint(rest.trim()),
                None => CompileError::new(place, message),
            }
        }
    }
}

/// What refuses a plan of the engine's that cannot be built for reasons of its own.
pub(crate) fn unsupported(error: &DataFusionError, text: &SqlText) -> CompileError {
    let place = text.of_error(error);
    CompileError::new(place, without_prefix(&error.find_root().strip_backtrace()))
        .with_hint("the engine cannot plan this part of the view; write it in another way")
}

fn without_prefix(message: &str) -> String {
    let mut rest = message;
    for prefix in [
        "Error during planning: ",
        "SQL error: ",
        "Execution error: ",
        "This feature is not implemented: ",
        "Schema error: ",
    ] {
        rest = rest.strip_prefix(prefix).unwrap_or(rest);
    }
    if let Some(inner) = rest.strip_prefix("ParserError(\"").and_then(|r| r.strip_suffix("\")")) {
        rest = inner.split(" at Line:").next().unwrap_or(inner);
    }
    rest.to_string()
}

fn unknown_table(message: &str) -> Option<String> {
    let name = message.strip_prefix("table '")?.split_once("' not found")?.0;
    Some(name.rsplit('.').next().unwrap_or(name).to_string())
}

fn nearest(name: &str, known: &[String]) -> Option<String> {
    known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(&name.to_lowercase(), &k.to_lowercase()), k))
        .filter(|(distance, k)| *distance <= 1 + k.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, k)| k.clone())
}

/// The stream that a table scan reads.
pub(crate) fn stream_of(plan: &LogicalPlan) -> Option<String> {
    let LogicalPlan::TableScan(scan) = plan else { return None };
    let provider = source_as_provider(&scan.source).ok()?;
    let any: &dyn std::any::Any = provider.as_ref();
    any.downcast_ref::<StreamTable>().map(|stream| stream.name.clone())
}

/// Refuses what no part of a view may contain.
///
/// # Errors
/// The first thing found.
pub(crate) fn everywhere(plan: &LogicalPlan, text: &SqlText, names: &[String]) -> Result<()> {
    let mut refusal = None;
    let walked = plan.apply_with_subqueries(|node| {
        let checked = node_allowed(node, text, names).and_then(|()| expressions_allowed(node, text));
        Ok(match checked {
            Ok(()) => TreeNodeRecursion::Continue,
            Err(error) => {
                refusal = Some(error);
                TreeNodeRecursion::Stop
            }
        })
    });
    match (refusal, walked) {
        (Some(error), _) => Err(error),
        (None, Ok(_)) => Ok(()),
        (None, Err(error)) => Err(unsupported(&error, text)),
    }
}

fn node_allowed(node: &LogicalPlan, text: &SqlText, names: &[String]) -> Result<()> {
    match node {
        LogicalPlan::TableScan(scan) if !names.iter().any(|n| n == scan.table_name.table()) => {
            let name = scan.table_name.table();
            let function = name.split('(').next().unwrap_or(name);
            Err(CompileError::new(text.call(&[function]), format!("a view may not read {name}"))
                .with_hint("FROM may name one stream and tables"))
        }
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::Window(_)
        | LogicalPlan::Aggregate(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Join(_)
        | LogicalPlan::Union(_)
        | LogicalPlan::TableScan(_)
        | LogicalPlan::EmptyRelation(_)
        | LogicalPlan::Subquery(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Values(_)
        | LogicalPlan::Distinct(_)
        | LogicalPlan::Unnest(_) => Ok(()),
        LogicalPlan::RecursiveQuery(_) => {
            Err(CompileError::new(text.keyword(Keyword::RECURSIVE), "a view may not be recursive"))
        }
        other => Err(CompileError::new(
            text.start(),
            format!("a view may not contain this: {}", other.display().to_string().trim()),
        )),
    }
}

fn expressions_allowed(node: &LogicalPlan, text: &SqlText) -> Result<()> {
    let mut refusal = None;
    let walked = node.apply_expressions(|expr| {
        expr.apply(|e| {
            Ok(match expression_allowed(e, text) {
                Ok(()) => TreeNodeRecursion::Continue,
                Err(error) => {
                    refusal = Some(error);
                    TreeNodeRecursion::Stop
                }
            })
        })
        .map(|_| TreeNodeRecursion::Continue)
    });
    match (refusal, walked) {
        (Some(error), _) => Err(error),
        (None, Ok(_)) => Ok(()),
        (None, Err(error)) => Err(unsupported(&error, text)),
    }
}

fn expression_allowed(expr: &Expr, text: &SqlText) -> Result<()> {
    let immutable = |name: &str, aliases: &[String], volatility: Volatility| {
        if volatility == Volatility::Immutable {
            return Ok(());
        }
        let mut names = vec![name];
        names.extend(aliases.iter().map(String::as_str));
        // The parser turns these words into calls of other names.
        match name {
            "now" => names.extend(["current_timestamp", "localtimestamp"]),
            "current_date" => names.push("today"),
            _ => {}
        }
        Err(CompileError::new(
            text.call(&names),
            format!("{name} gives another value each time: a view's answer must depend on its events alone"),
        )
        .with_hint("use the event's own time, or filter when querying the view"))
    };
    match expr {
        Expr::ScalarFunction(call) => {
            immutable(call.func.name(), call.func.aliases(), call.func.signature().volatility)
        }
        Expr::HigherOrderFunction(call) => Err(CompileError::new(
            text.call(&[call.func.name()]),
            format!("a view may not use the function {}", call.func.name()),
        )),
        Expr::AggregateFunction(call) => {
            immutable(call.func.name(), call.func.aliases(), call.func.signature().volatility)
        }
        Expr::WindowFunction(call) => match &call.fun {
            WindowFunctionDefinition::AggregateUDF(f) => immutable(f.name(), f.aliases(), f.signature().volatility),
            WindowFunctionDefinition::WindowUDF(f) => immutable(f.name(), f.aliases(), f.signature().volatility),
        },
        Expr::Alias(_)
        | Expr::Column(_)
        | Expr::Literal(_, _)
        | Expr::BinaryExpr(_)
        | Expr::Like(_)
        | Expr::SimilarTo(_)
        | Expr::Not(_)
        | Expr::IsNotNull(_)
        | Expr::IsNull(_)
        | Expr::IsTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsUnknown(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNotFalse(_)
        | Expr::IsNotUnknown(_)
        | Expr::Negative(_)
        | Expr::Between(_)
        | Expr::Case(_)
        | Expr::Cast(_)
        | Expr::TryCast(_)
        | Expr::InList(_)
        | Expr::Exists(_)
        | Expr::InSubquery(_)
        | Expr::GroupingSet(_)
        | Expr::OuterReferenceColumn(_, _)
        | Expr::Unnest(_) => Ok(()),
        // Planned as a join: more than one row would multiply events.
        Expr::ScalarSubquery(subquery) if at_most_one_row(&subquery.subquery) => Ok(()),
        Expr::ScalarSubquery(_) => Err(CompileError::new(
            text.word("select", 1),
            "a subquery that stands for a value may give more than one row",
        )
        .with_hint("aggregate it, as in (SELECT max(x) FROM t)")),
        Expr::Placeholder(p) => {
            Err(CompileError::new(text.word(&p.id, 0), format!("a view has no parameters, but there is {}", p.id)))
        }
        other => Err(CompileError::new(text.start(), format!("a view may not contain the expression {other}"))),
    }
}

/// Whether the shape of `plan` alone says so.
fn at_most_one_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Projection(p) => at_most_one_row(&p.input),
        LogicalPlan::Filter(f) => at_most_one_row(&f.input),
        LogicalPlan::SubqueryAlias(a) => at_most_one_row(&a.input),
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.is_empty(),
        LogicalPlan::EmptyRelation(_) => true,
        _ => false,
    }
}

/// The scans of streams in the whole of `plan`, subqueries included: {stream → how often}.
pub(crate) fn streams_read(plan: &LogicalPlan) -> BTreeMap<String, usize> {
    let mut streams = BTreeMap::new();
    let walked = plan.apply_with_subqueries(|node| {
        if let Some(name) = stream_of(node) {
            *streams.entry(name).or_insert(0) += 1;
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok(), "the closure does not fail");
    streams
}

/// The one stream of the view, read exactly once.
pub(crate) fn one_stream(plan: &LogicalPlan, text: &SqlText) -> Result<String> {
    let streams = streams_read(plan);
    let mut names = streams.iter();
    match (names.next(), names.next()) {
        (None, _) => {
            Err(CompileError::new(text.start(), "the view reads no stream")
                .with_hint("FROM must name exactly one stream"))
        }
        (Some((first, _)), Some((second, _))) => {
            let place = text.word(second, 0);
            let first_place = text.word(first, 0);
            let later =
                if (place.line, place.column) > (first_place.line, first_place.column) { place } else { first_place };
            Err(CompileError::new(later, format!("the view reads more than one stream: {first} and {second}"))
                .with_hint("a view reads exactly one stream; join views when querying"))
        }
        (Some((name, 1)), None) => Ok(name.clone()),
        (Some((name, _)), None) => {
            Err(CompileError::new(text.word(name, 1), format!("the view reads the stream {name} more than once"))
                .with_hint("joins, unions and subqueries of a stream with itself are not supported"))
        }
    }
}

/// Refuses a `node` on the stream's path below its aggregate through which events do not pass one by one.
///
/// `child`: which of its inputs the stream is in.
pub(crate) fn below_aggregate(node: &LogicalPlan, child: usize, stream: &str, text: &SqlText) -> Result<()> {
    match node {
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::TableScan(_)
        | LogicalPlan::Unnest(_) => Ok(()),
        LogicalPlan::Join(join) => {
            let left = child == 0;
            let distributes = match join.join_type {
                JoinType::Inner => true,
                JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => left,
                JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => !left,
                JoinType::Full => false,
            };
            if distributes {
                return Ok(());
            }
            Err(CompileError::new(
                text.keyword(Keyword::JOIN),
                format!(
                    "the stream {stream} stands on the side of the {} join that is filled with NULL",
                    join.join_type
                ),
            )
            .with_hint(format!(
                "rows without an event cannot be known before the stream ends: put {stream} on the side that is kept"
            )))
        }
        LogicalPlan::Window(_) => Err(CompileError::new(
            text.keyword(Keyword::OVER),
            "a window function over the events, below the aggregate",
        )
        .with_hint("window functions may stand above the aggregate")),
        LogicalPlan::Limit(_) => {
            Err(CompileError::new(text.keyword(Keyword::LIMIT), "a LIMIT of the events, below the aggregate")
                .with_hint("which events it keeps depends on their order; LIMIT may stand above the aggregate"))
        }
        LogicalPlan::Sort(_) => Err(CompileError::new(
            text.keyword(Keyword::ORDER),
            "an ORDER BY of the events, below the aggregate, has no effect",
        )
        .with_hint("put ORDER BY into the aggregate call, or at the end")),
        LogicalPlan::Union(_) => Err(CompileError::new(
            text.keyword(Keyword::UNION),
            format!("a UNION of the stream {stream} with something else"),
        )
        .with_hint("write a view for each part")),
        other => Err(CompileError::new(
            text.start(),
            format!("events do not pass one by one through {}", other.display().to_string().trim()),
        )),
    }
}

/// Refuses what may not stand on the stream's path above its aggregate.
pub(crate) fn above_aggregate(node: &LogicalPlan, stream: &str, text: &SqlText) -> Result<()> {
    match node {
        LogicalPlan::Union(_) => below_aggregate(node, 0, stream, text),
        _ => Ok(()),
    }
}

/// Refuses an aggregate that views cannot keep as a state, or not with DISTINCT.
pub(crate) fn aggregate(
    name: &str,
    aliases: &[String],
    distinct: bool,
    text: &SqlText,
) -> Result<&'static super::states::Supported> {
    let mut names = vec![name];
    names.extend(aliases.iter().map(String::as_str));
    let Some(known) = supported(name) else {
        let known: Vec<String> = supported_names().map(str::to_string).collect();
        return Err(CompileError::new(text.call(&names), format!("views cannot keep the aggregate {name} as a state"))
            .with_hint(format!("there are: {}", known.join(", "))));
    };
    if distinct && !known.distinct {
        return Err(CompileError::new(text.call(&names), format!("views cannot keep {name} of DISTINCT values")));
    }
    Ok(known)
}

/// What refuses a part above the aggregate whose result would depend on how rows happen to come.
pub(crate) fn open_order(error: &DataFusionError, text: &SqlText) -> CompileError {
    let message = without_prefix(&error.find_root().strip_backtrace());
    match message.split_once("; ") {
        Some((what, hint)) => CompileError::new(text.of_error(error), what).with_hint(hint),
        None => CompileError::new(text.of_error(error), message),
    }
}

/// What a report says of orders that the SQL leaves open, and the view decides by keys.
pub(crate) fn left_open(plan: &LogicalPlan) -> Vec<String> {
    let mut found = vec![];
    let walked = plan.apply(|node| {
        match node {
            LogicalPlan::Limit(limit) if !matches!(limit.input.as_ref(), LogicalPlan::Sort(_)) => {
                found.push("LIMIT without ORDER BY keeps the first rows by their keys".to_string());
            }
            LogicalPlan::Window(window) => {
                for expr in &window.window_expr {
                    if let Expr::WindowFunction(call) = expr
                        && call.params.order_by.is_empty()
                        && matches!(call.fun, WindowFunctionDefinition::WindowUDF(_))
                    {
                        found.push(format!("{} without ORDER BY takes rows by their keys", call.fun.name()));
                    }
                }
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok(), "the closure does not fail");
    found
}
