//! Two tables of one view, gone through side by side: the engine sorts each, within its limits, and at no time more than
//! a batch of each is here.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, AsArray, LargeStringArray, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use datafusion::catalog::TableProvider;
use datafusion::common::{DataFusionError, Result as EngineResult};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::provider_as_source;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, LogicalPlanBuilder, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use datafusion::prelude::{ident, lit};
use datafusion::scalar::ScalarValue;
use futures::StreamExt;
use futures::stream::Fuse;
use serde_json::Value;

use super::Difference;
use crate::encode::{self, Format};
use crate::engine::{Failure, failure};
use crate::error::Error;

/// Differences that are listed; all are counted.
const LISTED: usize = 100;
/// Floats may differ by the order of summation.
const FLOAT_TOLERANCE: f64 = 1e-9;
/// Quantile sketches depend on how their input was split.
const SKETCH_TOLERANCE: f64 = 0.05;

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// The first [`LISTED`], by key.
    pub(super) differences: Vec<Difference>,
    pub(super) difference_count: usize,
    /// Rows of the second table.
    pub(super) right_rows: usize,
}

/// Pairs rows of equal keys (of all that is exact where there are no keys) and compares them.
pub(super) async fn compare(
    state: &SessionState,
    tables: [Arc<dyn TableProvider>; 2],
    keys: &[&str],
    sketched: &BTreeSet<String>,
) -> Result<Compared, Failure> {
    let [left, right] = tables.map(|table| sorted(table, keys, sketched));
    let (mut left, mut right) = (Side::open(state, left).await?, Side::open(state, right).await?);
    let mut compared = Compared::default();
    loop {
        left.fill().await?;
        right.fill().await?;
        let (a, b) = (left.row(), right.row());
        let order = match (a, b) {
            (None, None) => return Ok(compared),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        // Of rows without a partner the other side is empty.
        let (a, b) = (a.filter(|_| order.is_le()), b.filter(|_| order.is_ge()));
        compared.add(a, b, sketched)?;
        let (of_left, of_right) = (usize::from(a.is_some()), usize::from(b.is_some()));
        left.next += of_left;
        right.next += of_right;
        compared.right_rows += of_right;
    }
}

impl Compared {
    /// Takes up a pair, or a row without a partner: key and row.
    fn add(
        &mut self,
        a: Option<(&str, &str)>,
        b: Option<(&str, &str)>,
        sketched: &BTreeSet<String>,
    ) -> Result<(), Failure> {
        if let (Some((_, a)), Some((_, b))) = (a, b)
            && (a == b || same_row(&value(a)?, &value(b)?, sketched))
        {
            return Ok(());
        }
        self.difference_count += 1;
        if let Some((key, _)) = a.or(b)
            && self.differences.len() < LISTED
        {
            let side = |row: Option<(&str, &str)>| row.map_or(Ok(Value::Null), |(_, row)| value(row));
            self.differences.push(Difference { key: value(key)?, left: side(a)?, right: side(b)? });
        }
        Ok(())
    }
}

fn value(json: &str) -> Result<Value, Failure> {
    serde_json::from_str(json).map_err(|e| Failure::Answer(Error::internal(e)))
}

/// The table's rows as JSON behind their keys as JSON, sorted by both.
fn sorted(table: Arc<dyn TableProvider>, keys: &[&str], sketched: &BTreeSet<String>) -> EngineResult<LogicalPlan> {
    let scan = LogicalPlanBuilder::scan("compared", provider_as_source(table), None)?;
    let fields = scan.schema().as_arrow().fields().clone();
    let in_key = |field: &&Arc<Field>| match keys {
        [] => !field.data_type().is_floating() && !sketched.contains(field.name()),
        keys => keys.contains(&field.name().as_str()),
    };
    let key = fields.iter().filter(in_key).cloned().collect();
    let (key, row) = (json_object(key).alias("key"), json_object(fields).alias("row"));
    let by = [ident("key").sort(true, false), ident("row").sort(true, false)];
    scan.project([key, row])?.sort(by)?.build()
}

/// One of the two tables, at its next row.
struct Side {
    rows: Fuse<SendableRecordBatchStream>,
    batch: Option<[LargeStringArray; 2]>,
    next: usize,
}

impl Side {
    async fn open(state: &SessionState, plan: EngineResult<LogicalPlan>) -> Result<Self, Failure> {
        let rows = DataFrame::new(state.clone(), plan.map_err(failure)?).execute_stream().await.map_err(failure)?;
        Ok(Self { rows: rows.fuse(), batch: None, next: 0 })
    }

    /// Until there is a row, or there will be none.
    async fn fill(&mut self) -> Result<(), Failure> {
        while self.batch.as_ref().is_none_or(|[keys, _]| self.next == keys.len()) {
            // The old one goes before the new one comes.
            self.batch = None;
            let Some(batch) = self.rows.next().await else { return Ok(()) };
            let batch = batch.map_err(failure)?;
            self.batch = Some([0, 1].map(|column| batch.column(column).as_string::<i64>().clone()));
            self.next = 0;
        }
        Ok(())
    }

    /// Key and row.
    fn row(&self) -> Option<(&str, &str)> {
        self.batch.as_ref().map(|[keys, rows]| (keys.value(self.next), rows.value(self.next)))
    }
}

/// These columns as one JSON object.
fn json_object(fields: Fields) -> Expr {
    if fields.is_empty() {
        return lit(ScalarValue::LargeUtf8(Some("{}".to_owned())));
    }
    let columns = fields.iter().map(|field| ident(field.name())).collect();
    ScalarUDF::new_from_impl(JsonObject { fields, signature: Signature::variadic_any(Volatility::Immutable) })
        .call(columns)
}

/// Makes each row of its arguments a JSON object with these names.
#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonObject {
    fields: Fields,
    signature: Signature,
}

impl ScalarUDFImpl for JsonObject {
    fn name(&self) -> &str {
        "json_object_of_row"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> EngineResult<DataType> {
        Ok(DataType::LargeUtf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> EngineResult<ColumnarValue> {
        let columns = args.args.iter().map(|column| column.to_array(args.number_rows));
        let columns = columns.collect::<EngineResult<Vec<_>>>()?;
        let typed = self.fields.iter().zip(&columns).map(|(field, column)| {
            field.as_ref().clone().with_data_type(column.data_type().clone()).with_nullable(true)
        });
        let schema = Arc::new(Schema::new(typed.collect::<Vec<_>>()));
        let options = RecordBatchOptions::new().with_row_count(Some(args.number_rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options)?;
        let lines = encode::rows(Format::NdJson, &schema, &[batch])?;
        let lines = std::str::from_utf8(&lines).map_err(|e| DataFusionError::External(e.into()))?;
        // JSON has no line ends of its own.
        let lines: Vec<&str> = lines.lines().collect();
        Ok(ColumnarValue::Array(Arc::new(LargeStringArray::from_iter_values(lines))))
    }
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
    use std::io::BufReader;

    use arrow::json::ReaderBuilder;
    use arrow::json::reader::infer_json_schema;
    use datafusion::datasource::MemTable;
    use datafusion::prelude::SessionContext;
    use serde_json::json;
    use watershed_shared::view::pinned_config;

    use super::*;

    /// Compares both in batches of two rows.
    async fn compared(left: &Value, right: &Value, keys: &[&str], sketched: &[&str]) -> Compared {
        let lines = |rows: &Value| rows.as_array().unwrap().iter().map(|row| format!("{row}\n")).collect::<String>();
        let (left, right) = (lines(left), lines(right));
        let (schema, _) = infer_json_schema(BufReader::new(format!("{left}{right}").as_bytes()), None).unwrap();
        let schema = Arc::new(schema);
        let table = |lines: String| {
            let batches = ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(2).build(lines.as_bytes()).unwrap();
            let batches = batches.collect::<Result<Vec<_>, _>>().unwrap();
            Arc::new(MemTable::try_new(Arc::clone(&schema), vec![batches]).unwrap()) as Arc<dyn TableProvider>
        };
        let state = SessionContext::new_with_config(pinned_config().with_batch_size(2)).state();
        let sketched = sketched.iter().map(|name| (*name).to_owned()).collect();
        compare(&state, [table(left), table(right)], keys, &sketched).await.unwrap()
    }

    async fn check(left: Value, right: Value, keys: &[&str], expected: usize) {
        let compared = compared(&left, &right, keys, &[]).await;
        assert_eq!(compared.difference_count, expected, "{compared:?}");
        assert_eq!(compared.right_rows, right.as_array().unwrap().len());
    }

    #[tokio::test]
    async fn order_and_the_last_digits_of_floats_do_not_matter() {
        let a = json!([{"k": "a", "n": 1, "f": 0.1}, {"k": "b", "n": 2, "f": 1e300}]);
        let b =
            json!([{"k": "b", "n": 2, "f": 1.000_000_000_01e300}, {"k": "a", "n": 1, "f": 0.100_000_000_000_000_2}]);
        check(a.clone(), b.clone(), &["k"], 0).await;
        check(a, b, &[], 0).await;
    }

    #[tokio::test]
    async fn a_missing_an_extra_and_a_changed_row_are_differences() {
        let a = json!([{"k": "a", "n": 1}, {"k": "b", "n": 2}, {"k": "c", "n": 3}]);
        let b = json!([{"k": "a", "n": 1}, {"k": "b", "n": 3}, {"k": "d", "n": 3}]);
        check(a, b, &["k"], 3).await;
        check(json!([{"n": 1}, {"n": 1}]), json!([{"n": 1}]), &[], 1).await;
        check(json!([{"n": 1}]), json!([]), &[], 1).await;
        check(json!([{"n": 9_007_199_254_740_993_i64}]), json!([{"n": 9_007_199_254_740_992_i64}]), &[], 2).await;
        // All that is left is not exact: they are paired in their order.
        check(json!([{"f": 0.5}, {"f": 1.5}, {"f": 2.5}]), json!([{"f": 2.5}, {"f": 0.5}, {"f": 1.5}]), &[], 0).await;
    }

    #[tokio::test]
    async fn the_first_differences_are_listed_by_key_and_all_are_counted() {
        let rows = |n: i64| Value::from_iter((1000..1500).rev().map(|k| json!({"k": k, "n": n})));
        let compared = compared(&rows(1), &rows(2), &["k"], &[]).await;
        assert_eq!((compared.difference_count, compared.differences.len()), (500, LISTED));
        let first =
            Difference { key: json!({"k": 1000}), left: json!({"k": 1000, "n": 1}), right: json!({"k": 1000, "n": 2}) };
        assert_eq!((&compared.differences[0], &compared.differences[99].key), (&first, &json!({"k": 1099})));
    }

    #[tokio::test]
    async fn only_columns_of_sketches_may_be_about_the_same() {
        let a = json!([{"n": 1000, "median": 50}, {"n": 1000, "median": 60}]);
        let b = json!([{"n": 1000, "median": 51}, {"n": 1040, "median": 60}]);
        let found = compared(&a, &b, &[], &["median"]).await;
        assert_eq!(found.difference_count, 2, "1040 is not 1000, in either direction: {found:?}");
        let a = json!([{"k": "a", "n": 1000, "median": 50}, {"k": "b", "n": 1000, "median": 60}]);
        let b = json!([{"k": "a", "n": 1000, "median": 51}, {"k": "b", "n": 1040, "median": 60}]);
        let found = compared(&a, &b, &["k"], &["median"]).await;
        assert_eq!((found.difference_count, &found.differences[0].key), (1, &json!({"k": "b"})));
    }
}
