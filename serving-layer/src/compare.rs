//! Comparing answers: `verify` with a recount from the master dataset, `diff` of two generations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use datafusion::catalog::TableProvider;
use datafusion::catalog::view::ViewTable;
use serde::Serialize;
use serde_json::{Map, Value};
use watershed_shared::clock;
use watershed_shared::master::MasterSnapshot;
use watershed_shared::names::GenerationId;
use watershed_shared::offsets::{OffsetVector, Position};
use watershed_shared::view::{ErrorSink, Kind};

use crate::ask::view_failure;
use crate::encode;
use crate::engine::{Failure, Rows, gone};
use crate::error::{Code, Error, Result};
use crate::front::ViewAnswer;
use crate::merged::MergedStates;
use crate::serving::Serving;
use crate::sql::{Named, Query};

/// Differences that are listed; all are counted.
const LISTED: usize = 100;
/// Floats may differ by the order of summation.
const FLOAT_TOLERANCE: f64 = 1e-9;
/// Quantile sketches depend on how their input was split.
const SKETCH_TOLERANCE: f64 = 0.05;
/// How long until the master dataset is looked at again.
const ARCHIVE_POLL: Duration = Duration::from_millis(100);

/// What `verify` answers.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    pub view: String,
    /// At which both sides were counted.
    pub position: Position,
    pub equal: bool,
    /// Rows of the recount.
    pub groups: usize,
    pub differences: Vec<Difference>,
    pub difference_count: usize,
    /// Events on which the SQL failed: as served, and as recounted.
    pub errors: (u64, u64),
}

/// What `diff` answers.
#[derive(Debug, Clone, Serialize)]
pub struct Diff {
    pub view: String,
    pub a: Side,
    pub b: Side,
    pub equal: bool,
    pub groups: usize,
    pub differences: Vec<Difference>,
    pub difference_count: usize,
}

/// One side of a [`Diff`].
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    pub generation: GenerationId,
    pub definition: watershed_shared::names::DefinitionHash,
    /// At which it was compared.
    pub position: Position,
}

/// One row that is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    pub key: Value,
    /// As served, or of the first generation; null: there is none.
    pub left: Value,
    /// As recounted, or of the second generation; null: there is none.
    pub right: Value,
}

impl Serving {
    /// Recounts a view from the master dataset up to the position that is served now, and compares.
    ///
    /// # Errors
    /// `timeout` when the archiver does not reach the position in time.
    pub async fn verify(&self, view: &str, deadline: clock::Instant) -> Result<Verified> {
        let stream = self.view(view)?.stream.clone();
        let answer = self.at_one_position(&stream, &[view], None, deadline).await?.remove(0);
        let snapshot = self.archived(&stream, &answer.position, &answer.origins, deadline).await?;
        let served = self.all_rows(view, self.view_table(&answer).await, deadline).await?;
        let (states, sink) = recounted(&snapshot, &answer, &answer.origins, &answer.position)?;
        let states = MergedStates::new(answer.compiled.state_schema(), vec![states]);
        let truth = self.all_rows(view, self.view_over(&answer, Arc::new(states)).await, deadline).await?;
        let recounted_errors = match answer.compiled.kind() {
            Kind::Aggregate => sink.take().len() as u64,
            // What stands above the rows (LIMIT) may have ended before all were read.
            Kind::Rows => self.failing(&snapshot, &answer, deadline).await?,
        };
        let (differences, difference_count) = compare(&answer, &served, &truth)?;
        Ok(Verified {
            view: view.to_owned(),
            position: answer.position.clone(),
            equal: difference_count == 0 && answer.errors() == recounted_errors,
            groups: truth.count(),
            differences,
            difference_count,
            errors: (answer.errors(), recounted_errors),
        })
    }

    /// How many events below the answer's position the SQL fails on, counted anew.
    async fn failing(&self, snapshot: &MasterSnapshot, answer: &ViewAnswer, deadline: clock::Instant) -> Result<u64> {
        let (rows, sink) = recounted(snapshot, answer, &answer.origins, &answer.position)?;
        self.rows("recounted", rows, "SELECT count(*) FROM recounted", deadline).await?;
        Ok(sink.take().len() as u64)
    }

    /// Compares two generations at the higher cut (the side behind is brought there), or each as it was stored.
    ///
    /// # Errors
    /// `unknown_generation`; `timeout`.
    pub async fn diff(
        &self,
        view: &str,
        a: GenerationId,
        b: GenerationId,
        as_stored: bool,
        deadline: clock::Instant,
    ) -> Result<Diff> {
        let (left, right) = (self.generation(view, a).await?, self.generation(view, b).await?);
        if left.compiled.output_schema() != right.compiled.output_schema() {
            let message = format!("generations {a} and {b} of view `{view}` have other columns and cannot be compared");
            return Err(Error::new(Code::BadRequest, message));
        }
        let higher = left.cut.join(&right.cut);
        let mut rows = Vec::new();
        let mut sides = Vec::new();
        for answer in [&left, &right] {
            let position = if as_stored { answer.cut.clone() } else { higher.clone() };
            let at = ViewAnswer { position: position.clone(), ..answer.as_ref().clone() };
            let table = if position == answer.cut {
                self.view_table(answer).await
            } else {
                let snapshot = self.archived(&answer.stream, &position, &answer.origins, deadline).await?;
                let from = if answer.reads_master() { &answer.origins } else { &answer.cut };
                let (missing, _) = recounted(&snapshot, answer, from, &position)?;
                let mut parts: Vec<Arc<dyn TableProvider>> = answer.generation_states().into_iter().collect();
                parts.push(missing);
                self.view_over(&at, Arc::new(MergedStates::new(answer.compiled.state_schema(), parts))).await
            };
            rows.push(self.all_rows(view, table, deadline).await?);
            sides.push(Side {
                generation: answer.generation_id(),
                definition: answer.compiled.definition().clone(),
                position,
            });
        }
        let (differences, difference_count) = compare(&left, &rows[0], &rows[1])?;
        let (b, a) = (sides.pop().expect("two sides"), sides.pop().expect("two sides"));
        Ok(Diff {
            view: view.to_owned(),
            a,
            b,
            equal: difference_count == 0,
            groups: rows[1].count(),
            differences,
            difference_count,
        })
    }

    /// A snapshot of the master dataset that has reached `position`.
    pub(crate) async fn archived(
        &self,
        stream: &str,
        position: &Position,
        origins: &OffsetVector,
        deadline: clock::Instant,
    ) -> Result<MasterSnapshot> {
        loop {
            let snapshot = self.stream(stream)?.master.snapshot().await.map_err(Error::read)?;
            let archived = origins.join(snapshot.archived_until());
            if archived.covers(position) {
                return Ok(snapshot);
            }
            if clock::Instant::now() >= deadline {
                let message = format!("stream `{stream}` is archived up to {archived}, not yet up to {position}");
                return Err(Error::new(Code::Timeout, message).at(archived));
            }
            clock::sleep(ARCHIVE_POLL).await;
        }
    }

    async fn all_rows(
        &self,
        view: &str,
        table: std::result::Result<Arc<dyn TableProvider>, Failure>,
        deadline: clock::Instant,
    ) -> Result<Rows> {
        let sql = format!("SELECT * FROM \"{}\"", view.replace('"', "\"\""));
        self.rows(view, table.map_err(answered)?, &sql, deadline).await
    }

    /// What `sql` gives over the one table `name`, in its turn among the queries.
    async fn rows(
        &self,
        name: &str,
        table: Arc<dyn TableProvider>,
        sql: &str,
        deadline: clock::Instant,
    ) -> Result<Rows> {
        let engine = &self.inner.engine;
        let state = engine.session(vec![(Named::Plain(name.to_owned()), table)]);
        let plan = Query::parse(sql)?.plan(&state).await?;
        let rows = async {
            let turn = engine.turn().await?;
            engine.collect(turn, state, plan).await.map_err(answered)
        };
        tokio::time::timeout_at(deadline, rows).await.map_err(|_| late())?
    }
}

fn late() -> Error {
    Error::new(Code::Timeout, "the comparison took longer than its timeout_ms")
}

fn answered(failure: Failure) -> Error {
    match failure {
        Failure::Answer(error) => error,
        Failure::FileGone(error) => gone(&error),
    }
}

/// The states of the events in `[from, until)`, read anew.
fn recounted(
    snapshot: &MasterSnapshot,
    answer: &ViewAnswer,
    from: &OffsetVector,
    until: &OffsetVector,
) -> Result<(Arc<dyn TableProvider>, ErrorSink)> {
    let events = snapshot.scan(Some(from), until).map_err(Error::internal)?;
    let planned = answer.compiled.rows_plan(events).map_err(view_failure);
    let (plan, sink) = planned.map_err(|failure| match failure {
        Failure::Answer(error) => error,
        Failure::FileGone(error) => gone(&error),
    })?;
    Ok((Arc::new(ViewTable::new(plan, None)), sink))
}

/// The rows that differ, up to the number that is listed, and how many there are.
fn compare(answer: &ViewAnswer, left: &Rows, right: &Rows) -> Result<(Vec<Difference>, usize)> {
    let keys: Vec<&str> = answer.compiled.key_columns().iter().map(|(name, _)| name.as_str()).collect();
    let sketched = answer.compiled.sketched_columns();
    Ok(differences(&values(left)?, &values(right)?, &keys, sketched))
}

fn values(rows: &Rows) -> Result<Vec<Value>> {
    let bytes = encode::json_rows(&rows.schema, &rows.batches).map_err(Error::internal)?;
    serde_json::from_slice(&bytes).map_err(Error::internal)
}

/// Pairs rows of equal keys (of all that is exact where there are no keys) and compares them.
fn differences(
    left: &[Value],
    right: &[Value],
    keys: &[&str],
    sketched: &BTreeSet<String>,
) -> (Vec<Difference>, usize) {
    let mut pairs: BTreeMap<String, [Vec<&Value>; 2]> = BTreeMap::new();
    for (side, rows) in [left, right].into_iter().enumerate() {
        for row in rows {
            pairs.entry(key(row, keys, sketched).to_string()).or_default()[side].push(row);
        }
    }
    let (mut listed, mut count) = (Vec::new(), 0);
    for [mut left, mut right] in pairs.into_values() {
        left.sort_by_cached_key(|v| v.to_string());
        right.sort_by_cached_key(|v| v.to_string());
        for index in 0..left.len().max(right.len()) {
            let (a, b) = (left.get(index).copied(), right.get(index).copied());
            let same = matches!((a, b), (Some(a), Some(b)) if same_row(a, b, sketched));
            if same {
                continue;
            }
            count += 1;
            if listed.len() < LISTED {
                let key = key(a.or(b).expect("one of the two is there"), keys, sketched);
                listed.push(Difference {
                    key,
                    left: a.cloned().unwrap_or_default(),
                    right: b.cloned().unwrap_or_default(),
                });
            }
        }
    }
    (listed, count)
}

fn key(row: &Value, keys: &[&str], sketched: &BTreeSet<String>) -> Value {
    let Value::Object(columns) = row else { return Value::Null };
    let chosen = columns.iter().filter(|(name, value)| match keys {
        [] => !value.is_f64() && !sketched.contains(name.as_str()),
        keys => keys.contains(&name.as_str()),
    });
    Value::Object(chosen.map(|(n, v)| (n.clone(), v.clone())).collect::<Map<_, _>>())
}

fn same_row(a: &Value, b: &Value, sketched: &BTreeSet<String>) -> bool {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return a == b };
    let tolerance = |name: &String| if sketched.contains(name) { SKETCH_TOLERANCE } else { FLOAT_TOLERANCE };
    a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| alike(a, b, tolerance(name))))
}

fn alike(a: &Value, b: &Value, tolerance: f64) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) if x.is_f64() || y.is_f64() || tolerance > FLOAT_TOLERANCE => {
            let (x, y) = (x.as_f64().unwrap_or(f64::NAN), y.as_f64().unwrap_or(f64::NAN));
            x == y || (x - y).abs() <= tolerance * x.abs().max(y.abs()) || (x - y).abs() < f64::MIN_POSITIVE
        }
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(a, b)| alike(a, b, tolerance))
        }
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(n, a)| y.get(n).is_some_and(|b| alike(a, b, tolerance)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(left: Value, right: Value, keys: &[&str], expected: usize) {
        let (listed, count) = differences(left.as_array().unwrap(), right.as_array().unwrap(), keys, &BTreeSet::new());
        assert_eq!(count, expected, "{listed:?}");
    }

    #[test]
    fn order_and_the_last_digits_of_floats_do_not_matter() {
        let a = json!([{"k": "a", "n": 1, "f": 0.1}, {"k": "b", "n": 2, "f": 1e300}]);
        let b =
            json!([{"k": "b", "n": 2, "f": 1.000_000_000_01e300}, {"k": "a", "n": 1, "f": 0.100_000_000_000_000_2}]);
        check(a.clone(), b.clone(), &["k"], 0);
        check(a, b, &[], 0);
    }

    #[test]
    fn a_missing_an_extra_and_a_changed_row_are_differences() {
        let a = json!([{"k": "a", "n": 1}, {"k": "b", "n": 2}, {"k": "c", "n": 3}]);
        let b = json!([{"k": "a", "n": 1}, {"k": "b", "n": 3}, {"k": "d", "n": 3}]);
        check(a, b, &["k"], 3);
        check(json!([{"n": 1}, {"n": 1}]), json!([{"n": 1}]), &[], 1);
        check(json!([{"n": 9_007_199_254_740_993_i64}]), json!([{"n": 9_007_199_254_740_992_i64}]), &[], 2);
    }

    #[test]
    fn only_columns_of_sketches_may_be_about_the_same() {
        let a = json!([{"n": 1000, "median": 50}, {"n": 1000, "median": 60}]);
        let b = json!([{"n": 1000, "median": 51}, {"n": 1040, "median": 60}]);
        let sketched = BTreeSet::from(["median".to_owned()]);
        let (listed, count) = differences(a.as_array().unwrap(), b.as_array().unwrap(), &[], &sketched);
        assert_eq!(count, 2, "1040 is not 1000, in either direction: {listed:?}");
        let a = json!([{"k": "a", "n": 1000, "median": 50}, {"k": "b", "n": 1000, "median": 60}]);
        let b = json!([{"k": "a", "n": 1000, "median": 51}, {"k": "b", "n": 1040, "median": 60}]);
        let (listed, count) = differences(a.as_array().unwrap(), b.as_array().unwrap(), &["k"], &sketched);
        assert_eq!((count, &listed[0].key), (1, &json!({"k": "b"})));
    }
}
