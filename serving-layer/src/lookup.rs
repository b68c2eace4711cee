//! Lookups of a few groups by their keys: compiled once per view, without planning SQL for each request.

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Operator;
use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr as SqlExpr, Ident, UnaryOperator, Value as SqlValue};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use watershed_shared::clock;
use watershed_shared::mutant::{self, Mutant};
use watershed_shared::run::{KeyBounds, slice_of_some};

use crate::ask::{Answer, Ask, Meta};
use crate::engine::{Engine, Failure, Rows, failure};
use crate::error::{Code, Error, Result};
use crate::front::ViewAnswer;
use crate::serving::Serving;
use crate::sql::Select;

/// Groups' states that are merged by the compiled plan at most; more are SQL's, which spills.
const MAX_STATES: usize = 2_000;
/// Groups of one run that may have to be looked at for that.
const MAX_LOOKED_AT: usize = 32_768;

/// States that are finished by who asks, without a hand-over to the engine's threads; and their bytes, where states are
/// sketches or values that were gathered.
const MAX_AT_HAND: usize = 256;
const MAX_AT_HAND_BYTES: usize = 256 << 10;

/// `column <operator> literal`.
type Comparison = (String, Operator, SqlValue);

impl Serving {
    /// Answers `where` that compares the view's keys with literals so that few groups are left: equal on a prefix of
    /// them, a range on at most one more. `None`: it is another request, to be answered by SQL.
    pub(crate) async fn lookup(&self, view: &str, select: &Select, ask: &Ask) -> Result<Option<Answer>> {
        let Some(filter) = &select.filter else { return Ok(None) };
        if select.columns.is_some() || select.order.is_some() || select.limit == Some(0) || ask.generation.is_some() {
            return Ok(None);
        }
        let Some(comparisons) = comparisons(filter) else { return Ok(None) };
        let stream = &self.view(view)?.stream;
        let wait_for = ask.wait_for.get(stream);
        let answer = self.at_one_position(stream, &[view], wait_for, ask.deadline).await?.remove(0);
        // What hides groups needs the position's bound: that is SQL's.
        if answer.retain.is_some() || answer.reads_master() {
            return Ok(None);
        }
        let Some(bounds) = bounds(&answer, &comparisons) else { return Ok(None) };
        let meta = answer.meta(clock::now());
        if ask.min_complete && !meta.complete {
            return Ok(None);
        }
        let turn = Engine::until(ask.deadline, self.inner.engine.turn()).await?;
        let at_hand = at_hand(&answer, &bounds);
        let found = async move {
            match at_hand {
                // Less work than to hand it over to another thread.
                Some(states) => finish(&answer, &states).await.map(Some),
                None => {
                    let found = async move {
                        let _turn = turn;
                        find(&answer, &bounds).await
                    };
                    self.inner.engine.on_threads("lookup", found).await
                }
            }
        };
        let found = tokio::time::timeout_at(ask.deadline, found).await;
        let mut rows =
            match found.map_err(|_| Error::new(Code::Timeout, "the lookup took longer than its timeout_ms"))? {
                Ok(Some(rows)) => rows,
                Err(Failure::Answer(error)) => return Err(error),
                // The general way begins again with another answer.
                Ok(None) | Err(Failure::FileGone(_)) => return Ok(None),
            };
        if let Some(limit) = select.limit {
            rows.batches.iter_mut().for_each(|batch| *batch = batch.slice(0, batch.num_rows().min(limit)));
        }
        let meta = Meta { views: [(view.to_owned(), meta)].into_iter().collect(), ..Meta::default() };
        Ok(Some(Answer { rows, meta }))
    }
}

/// The states within these bounds, when they are in memory, and so few and small that they are finished in no time.
fn at_hand(answer: &ViewAnswer, bounds: &[KeyBounds]) -> Option<Vec<RecordBatch>> {
    let generation = match &answer.generation_runs {
        Some(runs) => runs.few_at_hand(bounds, MAX_LOOKED_AT)?,
        None => Vec::new(),
    };
    let states = with_delta(answer, bounds, generation);
    let quick =
        count(&states) <= MAX_AT_HAND && (answer.compiled.has_small_states() || bytes(&states) <= MAX_AT_HAND_BYTES);
    quick.then_some(states)
}

/// The groups within these bounds, finished, in one batch at most; `None` if they are not few.
async fn find(answer: &ViewAnswer, bounds: &[KeyBounds]) -> std::result::Result<Option<Rows>, Failure> {
    let generation = match &answer.generation_runs {
        Some(runs) => match runs.few(bounds, MAX_LOOKED_AT).await.map_err(failure)? {
            Some(states) => states,
            None => return Ok(None),
        },
        None => Vec::new(),
    };
    let states = with_delta(answer, bounds, generation);
    if count(&states) > MAX_STATES {
        return Ok(None);
    }
    finish(answer, &states).await.map(Some)
}

/// The delta's states within these bounds, and the generation's.
fn with_delta(answer: &ViewAnswer, bounds: &[KeyBounds], generation: Vec<RecordBatch>) -> Vec<RecordBatch> {
    let mut states: Vec<RecordBatch> =
        answer.runs.iter().filter_map(|run| slice_of_some(&run.states, bounds)).collect();
    if mutant::is(Mutant::LookupWithoutDelta) {
        states.clear();
    }
    states.extend(generation);
    states
}

async fn finish(answer: &ViewAnswer, states: &[RecordBatch]) -> std::result::Result<Rows, Failure> {
    let output = answer.compiled.output_schema();
    let batches = match states.is_empty() {
        true => Vec::new(),
        false => vec![answer.compiled.finalize(states).await.map_err(crate::ask::view_failure)?],
    };
    Ok(Rows { schema: output, batches })
}

fn count(states: &[RecordBatch]) -> usize {
    states.iter().map(RecordBatch::num_rows).sum()
}

/// Of these rows alone, not of all that their buffers hold.
fn bytes(states: &[RecordBatch]) -> usize {
    let columns = states.iter().flat_map(RecordBatch::columns);
    // What cannot tell its size is not known to be small.
    columns.map(|column| column.to_data().get_slice_memory_size().unwrap_or(usize::MAX)).fold(0, usize::saturating_add)
}

/// What `comparisons` leave of the keys, when that is one slice of sorted states, exactly: each names a key and a
/// literal that means one value of the key's type.
fn bounds(answer: &ViewAnswer, comparisons: &[Comparison]) -> Option<Vec<KeyBounds>> {
    let columns = answer.compiled.key_columns();
    let schema: SchemaRef = answer.compiled.state_schema();
    let mut bounds = vec![KeyBounds::default(); answer.compiled.key_count()];
    for (name, operator, literal) in comparisons {
        let (_, key) = columns.iter().find(|(column, _)| column == name)?;
        bounds[*key].narrow(*operator, typed(literal, schema.field(*key).data_type())?);
    }
    let points = bounds.iter().take_while(|key| key.is_point()).count();
    let used = (points + 1).min(bounds.len());
    let rest = bounds.split_off(used);
    (bounds.first().is_some_and(|first| !first.is_open()) && rest.iter().all(KeyBounds::is_open)).then_some(bounds)
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

/// The comparisons of a conjunction of them; `None` when there is anything else.
fn comparisons(filter: &str) -> Option<Vec<Comparison>> {
    let mut parser = Parser::new(&GenericDialect {}).try_with_sql(filter).ok()?;
    let parsed = parser.parse_expr().ok()?;
    if parser.peek_token().token != Token::EOF {
        return None;
    }
    let mut found = Vec::new();
    collect(&parsed, &mut found)?;
    Some(found)
}

fn collect(expr: &SqlExpr, found: &mut Vec<Comparison>) -> Option<()> {
    match expr {
        SqlExpr::Nested(inner) => collect(inner, found),
        SqlExpr::BinaryOp { left, op: BinaryOperator::And, right } => {
            collect(left, found)?;
            collect(right, found)
        }
        SqlExpr::BinaryOp { left, op, right } => {
            let operator = match op {
                BinaryOperator::Eq => Operator::Eq,
                BinaryOperator::Lt => Operator::Lt,
                BinaryOperator::LtEq => Operator::LtEq,
                BinaryOperator::Gt => Operator::Gt,
                BinaryOperator::GtEq => Operator::GtEq,
                _ => return None,
            };
            let (name, operator, value) = match (left.as_ref(), right.as_ref()) {
                (SqlExpr::Identifier(name), value) => (name, operator, literal(value)?),
                (value, SqlExpr::Identifier(name)) => (name, operator.swap()?, literal(value)?),
                _ => return None,
            };
            found.push((normalized(name), operator, value));
            Some(())
        }
        _ => None,
    }
}

fn literal(expr: &SqlExpr) -> Option<SqlValue> {
    match expr {
        SqlExpr::Value(value) => Some(value.value.clone()),
        SqlExpr::UnaryOp { op: UnaryOperator::Minus, expr } => match literal(expr)? {
            SqlValue::Number(digits, long) if !digits.starts_with('-') => {
                Some(SqlValue::Number(format!("-{digits}"), long))
            }
            _ => None,
        },
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
    fn only_conjunctions_of_comparisons_are_lookups() {
        let found = comparisons("Type = 'a''b' AND (1 = \"N\")").unwrap();
        assert_eq!(found[0], ("type".to_owned(), Operator::Eq, SqlValue::SingleQuotedString("a'b".into())));
        assert_eq!(found[1], ("N".to_owned(), Operator::Eq, SqlValue::Number("1".into(), false)));
        let found = comparisons("a > 1 AND -2 >= a").unwrap();
        assert_eq!([found[0].1, found[1].1], [Operator::Gt, Operator::LtEq]);
        assert_eq!(found[1].2, SqlValue::Number("-2".into(), false));
        for other in
            ["a <> 1", "a = 1 OR b = 2", "a = b", "a = 1) UNION", "NOT a = 1", "a = - -1", "f(a) = 1", "a = 1 --\n AND"]
        {
            assert_eq!(comparisons(other), None, "{other}");
        }
    }
}
