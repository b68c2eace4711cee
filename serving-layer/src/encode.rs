//! Rows in the formats that a client may ask for.
//!
//! | type | JSON | CSV |
//! |---|---|---|
//! | TIMESTAMP | RFC 3339 in UTC, `"2024-10-06T12:00:00Z"` | the same |
//! | BIGINT | a number | digits |
//! | DECIMAL | a string, no digit lost | digits |
//! | VARBINARY | a base64 string | base64 |
//! | NaN, infinite | null | `NaN`, `inf` |
//! | STRUCT, LIST, MAP | object, array, object (keys as text) | their JSON |
//! | NULL | null, always present | empty |

use std::io::Write as _;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, MapArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{
    Encoder, EncoderFactory, EncoderOptions, JsonFormat, LineDelimited, NullableEncoder, Writer, WriterBuilder,
    make_encoder,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::Engine as _;

/// A format of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    NdJson,
    Csv,
    /// Arrow's IPC stream.
    Arrow,
    Parquet,
}

impl Format {
    const ALL: [Self; 5] = [Self::Json, Self::NdJson, Self::Csv, Self::Arrow, Self::Parquet];

    /// Of `?format=`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::NdJson => "ndjson",
            Self::Csv => "csv",
            Self::Arrow => "arrow",
            Self::Parquet => "parquet",
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::NdJson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }

    /// The best match of an `Accept` header; `None` when it takes none of ours.
    pub(crate) fn negotiate(accept: &str) -> Option<Self> {
        let mut best: Option<(u32, Self)> = None;
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parts.find_map(|p| p.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse::<f32>().ok());
            let quality = (quality.unwrap_or(0.0).clamp(0.0, 1.0) * 1000.0) as u32;
            let format = match media.as_str() {
                "*/*" | "application/*" | "application/json" | "" => Self::Json,
                "text/*" => Self::Csv,
                other => match Self::ALL.into_iter().find(|f| f.content_type().split(';').next() == Some(other)) {
                    Some(format) => format,
                    None => continue,
                },
            };
            if quality > 0 && best.is_none_or(|(q, _)| quality > q) {
                best = Some((quality, format));
            }
        }
        best.map(|(_, f)| f)
    }
}

/// The rows as a JSON array of objects.
///
/// # Errors
/// When a column has a type that JSON has no form for, or two columns have the same name.
pub(crate) fn json_rows(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let mut out = json::<ArrayOfRows>(schema, batches)?;
    if out.is_empty() {
        out.extend_from_slice(b"[]");
    }
    Ok(out)
}

/// The rows as `format`; JSON here is the bare array.
///
/// # Errors
/// As [`json_rows`].
pub(crate) fn rows(format: Format, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    match format {
        Format::Json => json_rows(schema, batches),
        Format::NdJson => json::<LineDelimited>(schema, batches),
        Format::Csv => csv(schema, batches),
        Format::Arrow => {
            let mut writer = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), schema)?;
            for batch in batches {
                writer.write(batch)?;
            }
            writer.finish()?;
            writer.into_inner()
        }
        Format::Parquet => {
            let mut out = Vec::new();
            let mut writer = parquet::arrow::ArrowWriter::try_new(&mut out, Arc::clone(schema), None)?;
            for batch in batches {
                writer.write(batch)?;
            }
            writer.close()?;
            Ok(out)
        }
    }
}

#[derive(Debug, Default)]
struct ArrayOfRows;

impl JsonFormat for ArrayOfRows {
    fn start_stream<W: std::io::Write>(&self, writer: &mut W) -> Result<(), ArrowError> {
        Ok(writer.write_all(b"[")?)
    }

    fn start_row<W: std::io::Write>(&self, writer: &mut W, is_first_row: bool) -> Result<(), ArrowError> {
        if !is_first_row {
            writer.write_all(b",")?;
        }
        Ok(())
    }

    fn end_stream<W: std::io::Write>(&self, writer: &mut W) -> Result<(), ArrowError> {
        Ok(writer.write_all(b"]")?)
    }
}

fn json<F: JsonFormat>(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    refuse_equal_names(schema)?;
    let mut writer: Writer<Vec<u8>, F> = WriterBuilder::new()
        .with_explicit_nulls(true)
        .with_encoder_factory(Arc::new(ContractEncoders))
        .build(Vec::new());
    for batch in batches {
        writer.write(&with_plain_timestamps(batch)?)?;
    }
    writer.finish()?;
    Ok(writer.into_inner())
}

/// An object with a name twice would lose a value in most readers.
fn refuse_equal_names(schema: &Schema) -> Result<(), ArrowError> {
    let mut names = std::collections::BTreeSet::new();
    match schema.fields().iter().find(|f| !names.insert(f.name().as_str())) {
        Some(twice) => Err(ArrowError::JsonError(format!(
            "two columns of the result are named `{}`: give one another name with AS",
            twice.name()
        ))),
        None => Ok(()),
    }
}

/// Timestamps are microseconds at most and in UTC, so that they all print alike.
fn with_plain_timestamps(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let plain = |t: &DataType| matches!(t, DataType::Timestamp(_, tz) if tz.as_deref() != Some("UTC"));
    if !batch.schema().fields().iter().any(|f| plain(f.data_type())) {
        return Ok(batch.clone());
    }
    let mut fields: Vec<FieldRef> = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        match field.data_type() {
            DataType::Timestamp(unit, _) if plain(field.data_type()) => {
                let utc = DataType::Timestamp(*unit, Some("UTC".into()));
                columns.push(cast(column, &utc)?);
                fields.push(Arc::new(field.as_ref().clone().with_data_type(utc)));
            }
            _ => {
                columns.push(Arc::clone(column));
                fields.push(Arc::clone(field));
            }
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// Where the contract differs from what arrow-json does by itself.
#[derive(Debug)]
struct ContractEncoders;

impl EncoderFactory for ContractEncoders {
    fn make_default_encoder<'a>(
        &self,
        field: &'a FieldRef,
        array: &'a dyn Array,
        options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Binary => Box::new(Base64(array.as_binary::<i32>())),
            DataType::LargeBinary => Box::new(Base64(array.as_binary::<i64>())),
            DataType::BinaryView => Box::new(Base64(array.as_binary_view())),
            DataType::FixedSizeBinary(_) => Box::new(Base64(array.as_fixed_size_binary())),
            DataType::Decimal32(..)
            | DataType::Decimal64(..)
            | DataType::Decimal128(..)
            | DataType::Decimal256(..)
            | DataType::Interval(_)
            | DataType::Duration(_) => {
                Box::new(Quoted(ArrayFormatter::try_new(array, &FormatOptions::new().with_display_error(true))?))
            }
            DataType::Map(_, _) if !is_text(array.as_map().keys().data_type()) => {
                Box::new(MapByText::try_new(field, array.as_map(), options)?)
            }
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

struct Base64<A>(A);

impl<'a, A: arrow::array::ArrayAccessor<Item = &'a [u8]>> Encoder for Base64<A> {
    fn encode(&mut self, index: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend_from_slice(base64::engine::general_purpose::STANDARD.encode(self.0.value(index)).as_bytes());
        out.push(b'"');
    }
}

/// A value whose text has nothing to escape.
struct Quoted<'a>(ArrayFormatter<'a>);

impl Encoder for Quoted<'_> {
    fn encode(&mut self, index: usize, out: &mut Vec<u8>) {
        write!(out, "\"{}\"", self.0.value(index)).expect("a vector takes every byte");
    }
}

/// A map whose keys are not text: an object all the same, with the keys' JSON as names.
struct MapByText<'a> {
    map: &'a MapArray,
    keys: NullableEncoder<'a>,
    values: NullableEncoder<'a>,
}

impl<'a> MapByText<'a> {
    fn try_new(field: &'a FieldRef, map: &'a MapArray, options: &'a EncoderOptions) -> Result<Self, ArrowError> {
        let keys = make_encoder(field, map.keys(), options)?;
        let values = make_encoder(field, map.values(), options)?;
        Ok(Self { map, keys, values })
    }
}

impl Encoder for MapByText<'_> {
    fn encode(&mut self, index: usize, out: &mut Vec<u8>) {
        let offsets = self.map.value_offsets();
        out.push(b'{');
        for entry in offsets[index] as usize..offsets[index + 1] as usize {
            if entry > offsets[index] as usize {
                out.push(b',');
            }
            let mut key = Vec::new();
            self.keys.encode(entry, &mut key);
            let quoted = key.first() == Some(&b'"');
            if !quoted {
                out.push(b'"');
            }
            out.extend_from_slice(&key);
            if !quoted {
                out.push(b'"');
            }
            out.push(b':');
            if self.values.is_null(entry) {
                out.extend_from_slice(b"null");
            } else {
                self.values.encode(entry, out);
            }
        }
        out.push(b'}');
    }
}

fn csv(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    const TIMESTAMP: &str = "%Y-%m-%dT%H:%M:%S%.fZ";
    let mut out = Vec::new();
    let mut writer = arrow::csv::WriterBuilder::new()
        .with_header(true)
        .with_timestamp_tz_format(TIMESTAMP.to_owned())
        .with_timestamp_format(TIMESTAMP.to_owned())
        .build(&mut out);
    let empty = RecordBatch::new_empty(Arc::clone(schema));
    for batch in if batches.is_empty() { std::slice::from_ref(&empty) } else { batches } {
        writer.write(&flat(batch)?)?;
    }
    drop(writer);
    Ok(out)
}

/// Columns that CSV has no form for, as their JSON.
fn flat(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let options = EncoderOptions::default().with_explicit_nulls(true).with_encoder_factory(Arc::new(ContractEncoders));
    let mut fields: Vec<FieldRef> = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let binary = matches!(
            column.data_type(),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_)
        );
        if !binary && !column.data_type().is_nested() {
            fields.push(Arc::clone(field));
            columns.push(Arc::clone(column));
            continue;
        }
        let mut encoder = make_encoder(field, column, &options)?;
        let texts: StringArray = (0..column.len())
            .map(|row| {
                (!encoder.is_null(row)).then(|| {
                    let mut text = Vec::new();
                    encoder.encode(row, &mut text);
                    let text = String::from_utf8(text).expect("JSON is UTF-8");
                    if binary { text.trim_matches('"').to_owned() } else { text }
                })
            })
            .collect();
        fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
        columns.push(Arc::new(texts));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BinaryArray, Decimal128Array, Float64Array, Int32Array, Int32Builder, Int64Array, ListArray, MapBuilder,
        StringBuilder, StructArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::Int32Type;

    use super::*;

    fn batch() -> RecordBatch {
        let mut map = MapBuilder::new(None, Int32Builder::new(), StringBuilder::new());
        map.keys().append_value(7);
        map.values().append_value("x\"y");
        map.append(true).unwrap();
        map.append(false).unwrap();
        let inner: ArrayRef = Arc::new(Int32Array::from(vec![None, Some(2)]));
        let columns: Vec<(&str, ArrayRef)> = vec![
            (
                "at",
                Arc::new(TimestampMicrosecondArray::from(vec![Some(1_728_216_000_000_000), None]).with_timezone("UTC")),
            ),
            ("big", Arc::new(Int64Array::from(vec![i64::MAX, -1]))),
            ("f", Arc::new(Float64Array::from(vec![f64::NAN, 1.5]))),
            (
                "price",
                Arc::new(Decimal128Array::from(vec![Some(-1205), None]).with_precision_and_scale(10, 2).unwrap()),
            ),
            ("bytes", Arc::new(BinaryArray::from_vec(vec![b"\x00\xff", b""]))),
            ("s", Arc::new(StructArray::from(vec![(Arc::new(Field::new("a", DataType::Int32, true)), inner)]))),
            ("l", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), None]), None]))),
            ("m", Arc::new(map.finish())),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
    }

    #[test]
    fn json_is_as_the_contract_says() {
        let batch = batch();
        let text = String::from_utf8(json_rows(&batch.schema(), &[batch]).unwrap()).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"[{"at":"2024-10-06T12:00:00Z","big":9223372036854775807,"f":null,"price":"-12.05","bytes":"AP8=","s":{"a":null},"l":[1,null],"m":{"7":"x\"y"}},"#,
                r#"{"at":null,"big":-1,"f":1.5,"price":null,"bytes":"","s":{"a":2},"l":null,"m":null}]"#
            )
        );
    }

    #[test]
    fn no_rows_are_an_empty_array() {
        let batch = batch();
        assert_eq!(json_rows(&batch.schema(), &[]).unwrap(), b"[]");
        assert_eq!(json_rows(&batch.schema(), &[batch.slice(0, 0)]).unwrap(), b"[]");
        assert_eq!(rows(Format::NdJson, &batch.schema(), &[]).unwrap(), b"");
    }

    #[test]
    fn csv_keeps_nested_values_as_their_json() {
        let batch = batch();
        let text = String::from_utf8(rows(Format::Csv, &batch.schema(), &[batch]).unwrap()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "at,big,f,price,bytes,s,l,m");
        assert_eq!(
            lines[1],
            r#"2024-10-06T12:00:00Z,9223372036854775807,NaN,-12.05,AP8=,"{""a"":null}","[1,null]","{""7"":""x\""y""}""#
        );
        assert_eq!(lines[2], r#",-1,1.5,,,"{""a"":2}",,"#);
    }

    #[test]
    fn arrow_and_parquet_come_back_as_they_went() {
        let batch = batch();
        let bytes = rows(Format::Arrow, &batch.schema(), std::slice::from_ref(&batch)).unwrap();
        let back: Vec<_> = arrow::ipc::reader::StreamReader::try_new(bytes.as_slice(), None)
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(back.len(), 1);
        assert_eq!(format!("{:?}", back[0].columns()), format!("{:?}", batch.columns()));
        let bytes = rows(Format::Parquet, &batch.schema(), std::slice::from_ref(&batch)).unwrap();
        assert_eq!(&bytes[..4], b"PAR1");
    }

    #[test]
    fn equal_names_are_refused() {
        let column: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        let field = Field::new("a", DataType::Int32, true);
        let schema = Arc::new(Schema::new(vec![field.clone(), field]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::clone(&column), column]).unwrap();
        assert!(json_rows(&schema, &[batch]).unwrap_err().to_string().contains("two columns"));
    }

    #[test]
    fn accept_picks_the_best_of_ours() {
        let cases = [
            ("*/*", Some(Format::Json)),
            ("text/csv", Some(Format::Csv)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Some(Format::Json)),
            ("application/json;q=0.5, application/vnd.apache.arrow.stream", Some(Format::Arrow)),
            ("image/png", None),
            ("text/csv;q=0", None),
        ];
        for (accept, expected) in cases {
            assert_eq!(Format::negotiate(accept), expected, "{accept}");
        }
    }
}
