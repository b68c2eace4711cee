//! `_late`: whether an event lies below its partition's running maximum minus the allowed lateness.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use crate::mutant::{self, Mutant};
use crate::{clock, record};

/// `late(event_time, _event_time_max) → BOOLEAN`, never NULL: without an event time or a running maximum nothing is
/// late. Saturates, so that it cannot fail.
pub fn late_function(allowed_lateness: Duration) -> Arc<ScalarUDF> {
    let micros = i64::try_from(allowed_lateness.as_micros()).unwrap_or(i64::MAX);
    let signature = Signature::exact(vec![record::timestamp_type(), record::timestamp_type()], Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(Late { allowed_micros: micros, signature }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Late {
    allowed_micros: i64,
    signature: Signature,
}

impl ScalarUDFImpl for Late {
    fn name(&self) -> &str {
        "late"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn return_field_from_args(
        &self,
        _: datafusion::logical_expr::ReturnFieldArgs<'_>,
    ) -> Result<arrow::datatypes::FieldRef> {
        Ok(Arc::new(arrow::datatypes::Field::new(self.name(), DataType::Boolean, false)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [event_time, maximum] = arrays.as_slice() else {
            return exec_err!("late takes two arguments, got {}", arrays.len());
        };
        let event_time = event_time.as_primitive::<TimestampMicrosecondType>();
        let maximum = maximum.as_primitive::<TimestampMicrosecondType>();
        let late: BooleanArray = (0..event_time.len())
            .map(|row| {
                if mutant::is(Mutant::LateByClock) {
                    let now = clock::now().timestamp_micros();
                    return Some(event_time.is_valid(row) && event_time.value(row) < now - self.allowed_micros);
                }
                let known = event_time.is_valid(row) && maximum.is_valid(row);
                Some(known && event_time.value(row) < maximum.value(row).saturating_sub(self.allowed_micros))
            })
            .collect();
        Ok(ColumnarValue::Array(Arc::new(late)))
    }
}
