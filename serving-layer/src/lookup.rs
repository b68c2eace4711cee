//! Lookups by all key values: compiled once per view, without planning SQL for each request.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, ident, lit};
use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr as SqlExpr, Ident, Value as SqlValue};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use watershed_shared::clock;
use watershed_shared::mutant::{self, Mutant};

use crate::ask::{Answer, Ask, Meta};
use crate::engine::{Engine, Failure, Rows, failure};
use crate::error::{Code, Error, Result};
use crate::front::ViewAnswer;
use crate::merged::{key_bounds, slice};
use crate::serving::Serving;
use crate::sql::Select;

impl Serving {
    /// Answers `where` that names all of the view's keys, each equal to a literal; `None`: it is another request, to
    /// be answered by SQL.
    pub(crate) async fn lookup(&self, view: &str, select: &Select, ask: &Ask) -> Result<Option<Answer>> {
        let Some(filter) = &select.filter else { return Ok(None) };
        if select.columns.is_some() || select.order.is_some() || select.limit == Some(0) || ask.generation.is_some() {
            return Ok(None);
        }
        let Some(equalities) = equalities(filter) else { return Ok(None) };
        let stream = &self.view(view)?.stream;
        let wait_for = ask.wait_for.get(stream);
        let answer = self.at_one_position(stream, &[view], wait_for, ask.deadline).await?.remove(0);
        // What hides groups needs the position's bound: that is SQL's.
        if answer.retain.is_some() || answer.reads_master() {
            return Ok(None);
        }
        let Some(keys) = key_values(&answer, &equalities) else { return Ok(None) };
        let meta = answer.meta(clock::now());
        if ask.min_complete && !meta.complete {
            return Ok(None);
        }
        let _turn = Engine::until(ask.deadline, self.inner.engine.turn()).await?;
        let task = self.inner.engine.task();
        let found = self.inner.engine.on_threads("lookup", async move { find(&answer, keys, task).await });
        let found = tokio::time::timeout_at(ask.deadline, found).await;
        let rows = match found.map_err(|_| Error::new(Code::Timeout, "the lookup took longer than its timeout_ms"))? {
            Ok(rows) => rows,
            Err(Failure::Answer(error)) => return Err(error),
            // The general way begins again with another answer.
            Err(Failure::FileGone(_)) => return Ok(None),
        };
        let meta = Meta { views: [(view.to_owned(), meta)].into_iter().collect(), ..Meta::default() };
        Ok(Some(Answer { rows, meta }))
    }
}

/// The group with these key values, finished.
async fn find(
    answer: &ViewAnswer,
    keys: Vec<ScalarValue>,
    task: Arc<TaskContext>,
) -> std::result::Result<Rows, Failure> {
    let schema = answer.compiled.state_schema();
    let filters: Vec<Expr> =
        keys.iter().zip(schema.fields()).map(|(value, key)| ident(key.name()).eq(lit(value.clone()))).collect();
    let bounds = key_bounds(&schema, keys.len(), &filters);
    let mut states: Vec<RecordBatch> = answer.runs.iter().map(|run| slice(&run.states, &bounds)).collect();
    if mutant::is(Mutant::LookupWithoutDelta) {
        states.clear();
    }
    if let Some(runs) = &answer.generation_runs {
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        let key: Vec<(usize, ScalarValue)> = keys.into_iter().enumerate().collect();
        let plan = runs.lookup(&task.runtime_env(), &all, &key).map_err(failure)?;
        states.extend(datafusion::physical_plan::collect(plan, task).await.map_err(failure)?);
    }
    states.retain(|batch| batch.num_rows() > 0);
    let output = answer.compiled.output_schema();
    let batches = match states.is_empty() {
        true => Vec::new(),
        false => vec![answer.compiled.finalize(&states).await.map_err(crate::ask::view_failure)?],
    };
    Ok(Rows { schema: output, batches })
}

/// The value of each key, when `equalities` names exactly all of them once, by literals that mean one value of the
/// key's type.
fn key_values(answer: &ViewAnswer, equalities: &[(String, SqlValue)]) -> Option<Vec<ScalarValue>> {
    let columns = answer.compiled.key_columns();
    let count = answer.compiled.key_count();
    if count == 0 || equalities.len() != count {
        return None;
    }
    let schema: SchemaRef = answer.compiled.state_schema();
    let mut values: Vec<Option<ScalarValue>> = vec![None; count];
    for (name, literal) in equalities {
        let (_, key) = columns.iter().find(|(column, _)| column == name)?;
        let value = typed(literal, schema.field(*key).data_type())?;
        if values[*key].replace(value).is_some() {
            return None;
        }
    }
    values.into_iter().collect()
}

/// The literal as a value of the type, where no coercion could mean anything else.
fn typed(literal: &SqlValue, data_type: &DataType) -> Option<ScalarValue> {
    match (literal, data_type) {
        (SqlValue::SingleQuotedString(text), DataType::Utf8) => Some(ScalarValue::Utf8(Some(text.clone()))),
        (SqlValue::SingleQuotedString(text), DataType::Timestamp(TimeUnit::Microsecond, _) | DataType::Date32) => {
            ScalarValue::try_from_string(text.clone(), data_type).ok()
        }
        (SqlValue::Number(text, false), DataType::Int32) => text.parse().ok().map(|n| ScalarValue::Int32(Some(n))),
        (SqlValue::Number(text, false), DataType::Int64) => text.parse().ok().map(|n| ScalarValue::Int64(Some(n))),
        (SqlValue::Boolean(value), DataType::Boolean) => Some(ScalarValue::Boolean(Some(*value))),
        _ => None,
    }
}

/// `column = literal` and so on, all of them; `None` when there is anything else.
fn equalities(filter: &str) -> Option<Vec<(String, SqlValue)>> {
    let mut parser = Parser::new(&GenericDialect {}).try_with_sql(filter).ok()?;
    let parsed = parser.parse_expr().ok()?;
    if parser.peek_token().token != Token::EOF {
        return None;
    }
    let mut found = Vec::new();
    collect(&parsed, &mut found)?;
    Some(found)
}

fn collect(expr: &SqlExpr, found: &mut Vec<(String, SqlValue)>) -> Option<()> {
    match expr {
        SqlExpr::Nested(inner) => collect(inner, found),
        SqlExpr::BinaryOp { left, op: BinaryOperator::And, right } => {
            collect(left, found)?;
            collect(right, found)
        }
        SqlExpr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
            let (name, value) = match (left.as_ref(), right.as_ref()) {
                (SqlExpr::Identifier(name), SqlExpr::Value(value)) => (name, value),
                (SqlExpr::Value(value), SqlExpr::Identifier(name)) => (name, value),
                _ => return None,
            };
            found.push((normalized(name), value.value.clone()));
            Some(())
        }
        _ => None,
    }
}

/// As SQL takes names: lowercase unless quoted.
fn normalized(name: &Ident) -> String {
    match name.quote_style {
        Some(_) => name.value.clone(),
        None => name.value.to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_conjunctions_of_equalities_are_lookups() {
        let found = equalities("Type = 'a''b' AND (1 = \"N\")").unwrap();
        assert_eq!(found[0], ("type".to_owned(), SqlValue::SingleQuotedString("a'b".into())));
        assert_eq!(found[1], ("N".to_owned(), SqlValue::Number("1".into(), false)));
        for other in
            ["a > 1", "a = 1 OR b = 2", "a = b", "a = 1) UNION", "NOT a = 1", "a = -1", "f(a) = 1", "a = 1 --\n AND"]
        {
            assert_eq!(equalities(other), None, "{other}");
        }
    }
}
