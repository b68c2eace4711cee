//! Dimension tables: read once, copied to the storage under their content hash; every process reads the copy.

mod source;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::{CastOptions, cast_with_options, concat_batches};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SessionContext;
use datafusion::prelude::{CsvReadOptions, JsonReadOptions, ParquetReadOptions, SessionConfig};
use sha2::{Digest, Sha256};

use self::source::Ending;
use crate::columns::sql_type;
use crate::config::TableConfig;
use crate::paths;
use crate::record::timestamp_type;
use crate::storage::{self, Storage};
use crate::view::DimensionTable;

/// Why a dimension table cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("table `{table}`: cannot read {url}: {message}")]
    Read { table: String, url: String, message: String },
    #[error(
        "table `{table}`: {url} has an ending that is not known: use .csv (with a header), .json or .ndjson (an object a line), or .parquet, or one of them and .gz"
    )]
    UnknownFormat { table: String, url: String },
    #[error(
        "table `{table}`: column `{column}` has the type {data_type}, which views cannot hold: declare the table's columns"
    )]
    UnsupportedType { table: String, column: String, data_type: Box<DataType> },
    #[error("table `{table}`: column `{column}` holds what is no {data_type}: {message}")]
    Unfit { table: String, column: String, data_type: String, message: String },
    #[error("table `{table}`: the copy under content hash {hash} is missing or damaged in the storage: {message}")]
    Copy { table: String, hash: String, message: String },
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

/// Reads a table from where the configuration says it is: the same file gives the same content hash, in any process.
///
/// The types become those of the closed list of column types: strings are VARCHAR, timestamps microseconds in UTC.
///
/// # Errors
/// When the file cannot be read as what its ending says, or a column has a type outside the list.
pub async fn read(config: &TableConfig) -> Result<DimensionTable, Error> {
    let fail = |message: String| Error::Read { table: config.name.clone(), url: config.url.to_string(), message };
    let Some((ending, compressed)) = Ending::of(&config.url) else {
        return Err(Error::UnknownFormat { table: config.name.clone(), url: config.url.to_string() });
    };
    let bytes = source::fetch(config, compressed).await.map_err(fail)?;
    let batch = parse(config, ending, bytes).await.map_err(fail)?;
    table(&config.name, &normalize(&config.name, &batch, config.columns.as_ref())?)
}

/// The rows of a file in the order in which they stand there; else why not, for people.
async fn parse(config: &TableConfig, ending: Ending, bytes: Bytes) -> Result<RecordBatch, String> {
    let said = |error: DataFusionError| error.strip_backtrace();
    // SUBTLE: the content hash depends on the order of the rows. In several partitions the parts of a large file, which
    // may end within a quoted value, would be read at the same time and put together in the order of their arrival.
    let in_order = SessionConfig::new().with_target_partitions(1).with_repartition_file_scans(false);
    let context = SessionContext::new_with_config(in_order);
    let memory = Storage::memory();
    memory.register_with(&context.runtime_env());
    let name = format!("table.{}", ending.name());
    memory.create(&name.as_str().into(), bytes).await.map_err(|e| e.to_string())?;
    let url = format!("{}{name}", memory.engine_url().as_str());
    let frame = match ending {
        Ending::Csv => {
            let options = CsvReadOptions::new().has_header(true).schema_infer_max_records(10_000);
            match &config.columns {
                None => context.read_csv(url, options).await,
                // SUBTLE: a reader that is given a schema takes columns by their place, whatever the header calls them.
                Some(declared) => {
                    let header = context.read_csv(url.as_str(), options.clone()).await.map_err(said)?;
                    let schema = in_order_of(header.schema().as_arrow(), declared);
                    context.read_csv(url, options.schema(&schema)).await
                }
            }
        }
        Ending::Json => {
            let mut options = JsonReadOptions::default();
            if let Some(schema) = &config.columns {
                options = options.schema(schema);
            }
            context.read_json(url, options).await
        }
        Ending::Parquet => context.read_parquet(url, ParquetReadOptions::default()).await,
    };
    let mut frame = frame.map_err(said)?;
    if let Some(declared) = &config.columns {
        let found = frame.schema().as_arrow();
        if let Some(missing) = declared.fields().iter().find(|field| found.index_of(field.name()).is_err()) {
            return Err(no_column(missing.name(), found));
        }
        let names = declared.fields().iter().map(|field| datafusion::logical_expr::ident(field.name()));
        frame = frame.select(names).map_err(said)?;
    }
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let batches = frame.collect().await.map_err(said)?;
    concat_batches(&schema, &batches).map_err(|e| e.to_string())
}

/// Copies the table's content to the storage under its content hash. A copy that is there already is left alone.
///
/// # Errors
/// When the storage cannot be written.
pub async fn store(storage: &Storage, table: &DimensionTable) -> Result<(), Error> {
    let bytes = content(table)?;
    storage.create(&paths::table(&table.name, &table.content_hash), bytes.into()).await?;
    Ok(())
}

/// Reads the copy with this content hash.
///
/// # Errors
/// When it is missing, or its content no longer has that hash.
pub async fn load(storage: &Storage, name: &str, hash: &str) -> Result<DimensionTable, Error> {
    let damaged = |message: String| Error::Copy { table: name.to_owned(), hash: hash.to_owned(), message };
    let bytes = storage.get(&paths::table(name, hash)).await?.ok_or_else(|| damaged("not found".to_owned()))?;
    if hash_of(&bytes) != hash {
        return Err(damaged("its content has another hash".to_owned()));
    }
    let reader = StreamReader::try_new(&*bytes, None).map_err(|e| damaged(e.to_string()))?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|e| damaged(e.to_string()))?;
    Ok(DimensionTable { name: name.to_owned(), content_hash: hash.to_owned(), schema, batches })
}

/// Whether `sql` may read the table: its name stands there as a word.
pub fn is_named_in(sql: &str, table: &str) -> bool {
    sql.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word.eq_ignore_ascii_case(table))
}

fn table(name: &str, batch: &RecordBatch) -> Result<DimensionTable, Error> {
    let mut table = DimensionTable {
        name: name.to_owned(),
        content_hash: String::new(),
        schema: batch.schema(),
        batches: vec![batch.clone()],
    };
    table.content_hash = hash_of(&content(&table)?);
    Ok(table)
}

/// An Arrow IPC stream of one batch: the same rows give the same bytes.
fn content(table: &DimensionTable) -> Result<Vec<u8>, Error> {
    let encode = || -> Result<Vec<u8>, ArrowError> {
        let batch = concat_batches(&table.schema, &table.batches)?;
        let mut writer = StreamWriter::try_new(Vec::new(), &table.schema)?;
        writer.write(&batch)?;
        writer.into_inner()
    };
    encode().map_err(|e| Error::Copy {
        table: table.name.clone(),
        hash: table.content_hash.clone(),
        message: e.to_string(),
    })
}

fn hash_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The batch in the declared types, else in the nearest of the closed list.
fn normalize(table: &str, batch: &RecordBatch, declared: Option<&SchemaRef>) -> Result<RecordBatch, Error> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    let schema = batch.schema();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        let wanted = match declared.and_then(|d| d.field_with_name(field.name()).ok()) {
            Some(declared) => declared.data_type().clone(),
            None => nearest(field.data_type()).ok_or_else(|| Error::UnsupportedType {
                table: table.to_owned(),
                column: field.name().clone(),
                data_type: Box::new(field.data_type().clone()),
            })?,
        };
        // SUBTLE: the other kind of cast makes NULL of what does not fit.
        let options = CastOptions { safe: false, ..CastOptions::default() };
        let cast = cast_with_options(column, &wanted, &options).map_err(|error| Error::Unfit {
            table: table.to_owned(),
            column: field.name().clone(),
            data_type: sql_type(&wanted),
            message: error.to_string(),
        })?;
        let nullable = cast.null_count() > 0 || field.is_nullable();
        fields.push(Field::new(field.name(), wanted, nullable));
        columns.push(cast);
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("built from its own columns"))
}

/// The columns of a file's header, each as it is declared; what is not declared as text.
fn in_order_of(header: &Schema, declared: &Schema) -> Schema {
    let of_header = |field: &Arc<Field>| match declared.index_of(field.name()) {
        Ok(index) => Arc::clone(&declared.fields()[index]),
        Err(_) => Arc::new(Field::new(field.name(), DataType::Utf8, true)),
    };
    Schema::new(header.fields().iter().map(of_header).collect::<Vec<_>>())
}

fn no_column(name: &str, found: &Schema) -> String {
    let names: Vec<String> = found.fields().iter().map(|field| format!("`{}`", field.name())).collect();
    format!("it has no column `{name}`, only {}", names.join(", "))
}

fn nearest(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Boolean | DataType::Int32 | DataType::Int64 | DataType::Float32 | DataType::Float64 => {
            data_type.clone()
        }
        DataType::Date32 | DataType::Decimal128(_, _) => data_type.clone(),
        DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::Date64 => DataType::Date32,
        DataType::Timestamp(TimeUnit::Second | TimeUnit::Millisecond | TimeUnit::Microsecond, _) => timestamp_type(),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => timestamp_type(),
        DataType::Null => DataType::Utf8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::Int64Type;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use parquet::arrow::ArrowWriter;
    use url::Url;

    use super::*;

    fn config(dir: &std::path::Path, file: &str, columns: &[(&str, DataType)]) -> TableConfig {
        let fields: Vec<Field> = columns.iter().map(|(name, t)| Field::new(*name, t.clone(), true)).collect();
        let url = Url::from_file_path(dir.join(file)).unwrap();
        TableConfig { name: "t".to_owned(), url, columns: Some(Arc::new(Schema::new(fields))) }
    }

    /// As [`config`], with the columns of the file.
    fn undeclared(dir: &std::path::Path, file: &str) -> TableConfig {
        TableConfig { columns: None, ..config(dir, file, &[]) }
    }

    /// Large enough that the engine would read it in parts, with line breaks that end no row all over.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_large_file_has_its_rows_in_order_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let row = |n: i64| format!("{n},\"{}\"\n", "a line\n".repeat(40));
        let text = std::iter::once("n,text\n".to_owned()).chain((0..8_000).map(row)).collect::<String>();
        assert!(text.len() > 2 << 20);
        std::fs::write(dir.path().join("t.csv"), &text).unwrap();
        let json: String = (0..60_000).map(|n| format!("{{\"n\": {n}, \"text\": \"some text\"}}\n")).collect();
        std::fs::write(dir.path().join("t.json"), json).unwrap();
        for (file, rows) in [("t.csv", 8_000), ("t.json", 60_000)] {
            let first = read(&undeclared(dir.path(), file)).await.unwrap();
            let numbers = first.batches[0].column_by_name("n").unwrap().as_primitive::<Int64Type>();
            assert!(numbers.values().iter().copied().eq(0..rows), "{file}");
            let again = read(&undeclared(dir.path(), file)).await.unwrap();
            assert_eq!(again.content_hash, first.content_hash, "{file}");
        }
    }

    #[tokio::test]
    async fn a_compressed_file_has_the_content_of_the_plain_one() {
        let dir = tempfile::tempdir().unwrap();
        let n = Arc::new(Int64Array::from(vec![1, 2])) as _;
        let batch = RecordBatch::try_from_iter_with_nullable([("n", n, true)]).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        let files: [(&str, Vec<u8>); 4] = [
            ("t.csv", b"n\n1\n2\n".to_vec()),
            ("t.json", b"{\"n\": 1}\n{\"n\": 2}\n".to_vec()),
            ("t.part.ndjson", b"{\"n\": 1}\n{\"n\": 2}\n".to_vec()),
            ("t.parquet", writer.into_inner().unwrap()),
        ];
        for (file, bytes) in files {
            std::fs::write(dir.path().join(file), &bytes).unwrap();
            let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
            compressed.write_all(&bytes).unwrap();
            std::fs::write(dir.path().join(format!("{file}.gz")), compressed.finish().unwrap()).unwrap();
            for columns in [&[][..], &[("n", DataType::Int64)]] {
                let of = |file: &str| TableConfig {
                    columns: (!columns.is_empty()).then(|| config(dir.path(), file, columns).columns).flatten(),
                    ..config(dir.path(), file, columns)
                };
                let plain = read(&of(file)).await.unwrap();
                assert_eq!(plain.batches[0].column(0).as_primitive::<Int64Type>().values(), &[1, 2], "{file}");
                let found = read(&of(&format!("{file}.gz"))).await.unwrap();
                assert_eq!(found.content_hash, plain.content_hash, "{file}");
            }
        }
        std::fs::write(dir.path().join("t.csv.gz"), "n\n1\n").unwrap();
        let error = read(&undeclared(dir.path(), "t.csv.gz")).await.unwrap_err().to_string();
        assert!(error.contains("t.csv.gz: not gzip: "), "{error}");
        let error = read(&undeclared(dir.path(), "none.csv")).await.unwrap_err().to_string();
        assert!(error.contains("none.csv: No such file"), "{error}");
    }

    #[tokio::test]
    async fn a_table_on_a_real_hdfs_is_read() {
        let Some(storage) = crate::storage::conformance::hdfs_storage() else { return };
        let on_hdfs = |file: &str| TableConfig {
            name: "t".to_owned(),
            url: format!("{}/{file}", storage.url()).parse().unwrap(),
            columns: None,
        };
        storage.create(&"lists/t.csv".into(), "n\n1\n2\n".into()).await.unwrap();
        let table = read(&on_hdfs("lists/t.csv")).await.unwrap();
        assert_eq!(table.batches[0].column(0).as_primitive::<Int64Type>().values(), &[1, 2]);
        let error = read(&on_hdfs("lists/none.csv")).await.unwrap_err().to_string();
        assert!(error.ends_with("none.csv: there is no such file"), "{error}");
    }

    #[tokio::test]
    async fn declared_columns_are_found_by_the_names_of_the_header() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("t.csv"), "name,more,code\nZurich,1,ZRH\nGeneva,2,GVA\n").unwrap();
        let columns = [("code", DataType::Utf8), ("name", DataType::Utf8)];
        let table = read(&config(dir.path(), "t.csv", &columns)).await.unwrap();
        let names: Vec<_> = table.schema.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(names, ["code", "name"]);
        assert_eq!(table.batches[0].column(0).as_string::<i32>().value(0), "ZRH");
        assert_eq!(table.batches[0].column(1).as_string::<i32>().value(1), "Geneva");
        let missing = config(dir.path(), "t.csv", &[("kode", DataType::Utf8)]);
        let error = read(&missing).await.unwrap_err().to_string();
        assert!(error.ends_with("it has no column `kode`, only `name`, `more`, `code`"), "{error}");
    }

    #[tokio::test]
    async fn a_value_that_does_not_fit_its_declared_type_is_an_error_not_null() {
        let dir = tempfile::tempdir().unwrap();
        let n = Arc::new(Int64Array::from(vec![1, 5_000_000_000])) as _;
        let batch = RecordBatch::try_from_iter([("n", n)]).unwrap();
        let file = std::fs::File::create(dir.path().join("t.parquet")).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let error = read(&config(dir.path(), "t.parquet", &[("n", DataType::Int32)])).await.unwrap_err().to_string();
        assert!(error.contains("column `n` holds what is no INT") && error.contains("5000000000"), "{error}");
        let wide = read(&config(dir.path(), "t.parquet", &[("n", DataType::Int64)])).await.unwrap();
        assert_eq!(wide.batches[0].num_rows(), 2);
    }
}
