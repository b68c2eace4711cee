//! Functions whose result is as long as one of their arguments says: they are asked how long before they make it.
//!
//! The engine counts the memory of its operators, not that of functions; these few could take all of it in one call, in
//! which no query can be cancelled.

use std::sync::Arc;

use arrow::array::{Array, Int64Array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

/// What stands for an element of a list.
const ELEMENT_BYTES: i128 = 8;

/// How long a function's results are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Length {
    /// The first argument, as often as the second says.
    Repeated,
    /// As many characters as the second argument says.
    Padded,
    /// As many elements as the argument of this index says.
    Elements(usize),
    /// From the first to the second argument, in steps of the third.
    Range,
}

const FUNCTIONS: [(&str, Length); 7] = [
    ("repeat", Length::Repeated),
    ("lpad", Length::Padded),
    ("rpad", Length::Padded),
    ("array_repeat", Length::Elements(1)),
    ("array_resize", Length::Elements(1)),
    ("range", Length::Range),
    ("generate_series", Length::Range),
];

/// Puts the bounded functions in the place of the engine's own, which they call.
pub(super) fn register(state: &mut SessionState, max_bytes: usize) -> Result<()> {
    for (name, length) in FUNCTIONS {
        if let Some(inner) = state.scalar_functions().get(name).map(Arc::clone) {
            state.register_udf(Arc::new(ScalarUDF::new_from_impl(Bounded { inner, length, max_bytes })))?;
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    length: Length,
    /// Of the results of one call.
    max_bytes: usize,
}

impl Bounded {
    fn check(&self, args: &ScalarFunctionArgs) -> Result<()> {
        let single = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if single { 1 } else { args.number_rows };
        let numbers = |index: usize| numbers(args.args.get(index), rows);
        let bytes = match self.length {
            Length::Repeated => {
                let lengths = lengths(args.args.first(), rows)?;
                sum(numbers(1)?.as_ref(), |row, n| i128::from(n.max(0)) * lengths.get(row).copied().unwrap_or(0))
            }
            Length::Padded => sum(numbers(1)?.as_ref(), |_, n| i128::from(n.max(0))),
            Length::Elements(index) => sum(numbers(index)?.as_ref(), |_, n| i128::from(n.max(0)) * ELEMENT_BYTES),
            Length::Range => {
                let (first, second, steps) = (numbers(0)?, numbers(1)?, numbers(2)?);
                // `range(n)` begins at 0.
                let (starts, ends) = if second.is_some() { (first, second) } else { (None, first) };
                let at = |values: &Option<Int64Array>, row: usize, default: i64| match values {
                    Some(values) if values.is_valid(row) => values.value(row),
                    _ => default,
                };
                sum(ends.as_ref(), |row, end| {
                    let step = i128::from(at(&steps, row, 1)).abs().max(1);
                    (i128::from(end) - i128::from(at(&starts, row, 0))).abs() / step * ELEMENT_BYTES
                })
            }
        };
        if bytes > i128::try_from(self.max_bytes).unwrap_or(i128::MAX) {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "`{}` would make {bytes} bytes at once, and a result may have {} (`max_result` under [serving])",
                self.inner.name(),
                self.max_bytes
            )));
        }
        Ok(())
    }
}

/// The argument as numbers; `None` where it is not there or no number.
fn numbers(argument: Option<&ColumnarValue>, rows: usize) -> Result<Option<Int64Array>> {
    let Some(argument) = argument.filter(|a| a.data_type().is_numeric()) else { return Ok(None) };
    let options = CastOptions { safe: true, ..CastOptions::default() };
    let cast = cast_with_options(&argument.to_array(rows)?, &DataType::Int64, &options)?;
    Ok(cast.as_any().downcast_ref::<Int64Array>().cloned())
}

/// How many bytes each of the texts has.
fn lengths(argument: Option<&ColumnarValue>, rows: usize) -> Result<Vec<i128>> {
    let Some(argument) = argument else { return Ok(Vec::new()) };
    if let ColumnarValue::Scalar(scalar) = argument {
        let length = scalar.try_as_str().flatten().map_or(0, |text| text.len() as i128);
        return Ok(vec![length; rows]);
    }
    let array = arrow::compute::cast(&argument.to_array(rows)?, &DataType::LargeUtf8)?;
    let texts = array.as_any().downcast_ref::<arrow::array::LargeStringArray>();
    Ok(texts.map(|texts| texts.iter().map(|t| t.map_or(0, |t| t.len() as i128)).collect()).unwrap_or_default())
}

fn sum(numbers: Option<&Int64Array>, bytes: impl Fn(usize, i64) -> i128) -> i128 {
    let Some(numbers) = numbers else { return 0 };
    let rows = (0..numbers.len()).filter(|row| numbers.is_valid(*row));
    rows.fold(0, |sum: i128, row| sum.saturating_add(bytes(row, numbers.value(row))))
}

/// All but the check is the engine's own.
impl ScalarUDFImpl for Bounded {
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.check(&args)?;
        self.inner.invoke_with_args(args)
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn is_strict(&self) -> bool {
        self.inner.inner().is_strict()
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.inner.simplify(args, info)
    }

    fn short_circuits(&self) -> bool {
        self.inner.short_circuits()
    }

    fn evaluate_bounds(&self, input: &[&Interval]) -> Result<Interval> {
        self.inner.evaluate_bounds(input)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.inner.output_ordering(inputs)
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.inner.preserves_lex_ordering(inputs)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}
