use std::sync::Arc;
use std::time::Duration;

use arrow::array::*;
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Fields, Int32Type, Schema, SchemaRef, TimeUnit};
use arrow::row::{RowConverter, SortField};
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::datasource::MemTable;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, collect, displayable};
use datafusion::prelude::{SessionConfig, SessionContext, col, lit};
use object_store::path::Path;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use url::Url;

use super::order::SORT_OPTIONS;
use super::*;
use crate::names::{DefinitionHash, RunId};
use crate::offsets::{Coverage, Offset, PartitionId};
use crate::paths;
use crate::storage::{FaultRates, Faulty, Settings, Storage};

fn options() -> RunOptions {
    RunOptions {
        row_group_rows: 4096,
        page_rows: 512,
        ..RunOptions::new(RunId::unique(), DefinitionHash::new("d"), Coverage::new())
    }
}

fn stream(schema: &SchemaRef, batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
    let batches = futures::stream::iter(batches.into_iter().map(Ok));
    Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), batches))
}

async fn write(storage: &Storage, keys: usize, batches: &[RecordBatch]) -> Result<RunMeta, Error> {
    let options = options();
    let path = paths::run("v", &options.definition, &options.run);
    let input = stream(&batches[0].schema(), batches.to_vec());
    let file = write_run(storage, &path, input, keys, &options).await?;
    Ok(RunMeta {
        id: options.run,
        file: path.to_string(),
        size_bytes: file.size_bytes,
        tail: Some(file.tail),
        rows: file.rows,
        coverage: Coverage::new(),
        errors: 0,
        errors_file: None,
        errors_crc32: None,
    })
}

fn session(partitions: usize) -> SessionContext {
    SessionContext::new_with_config(SessionConfig::new().with_target_partitions(partitions))
}

async fn read(table: Arc<dyn TableProvider>) -> RecordBatch {
    let schema = table.schema();
    let batches = session(1).read_table(table).unwrap().collect().await.unwrap();
    concat_batches(&schema, &batches).unwrap()
}

/// Random arrays of any type that states have, with NULLs, empty lists, extremes.
fn random(rng: &mut StdRng, field: &Field, rows: usize) -> ArrayRef {
    let nulls = field.is_nullable().then(|| NullBuffer::from_iter((0..rows).map(|_| rng.random_bool(0.8))));
    let offsets = |rng: &mut StdRng| OffsetBuffer::<i32>::from_lengths((0..rows).map(|_| rng.random_range(0..4_usize)));
    let texts: Vec<String> = (0..rows).map(|_| format!("é{:x}", rng.random_range(0..10_000_u32))).collect();
    macro_rules! primitive {
        ($array:ty, $value:expr) => {{
            let values: Vec<_> = (0..rows).map(|_| $value).collect();
            Arc::new(<$array>::new(values.into(), nulls)) as ArrayRef
        }};
    }
    match field.data_type() {
        DataType::Boolean => Arc::new(BooleanArray::new((0..rows).map(|_| rng.random_bool(0.5)).collect(), nulls)),
        DataType::Int8 => primitive!(Int8Array, rng.random()),
        DataType::Int16 => primitive!(Int16Array, rng.random()),
        DataType::Int32 => primitive!(Int32Array, rng.random()),
        DataType::Int64 => primitive!(Int64Array, rng.random()),
        DataType::UInt8 => primitive!(UInt8Array, rng.random()),
        DataType::UInt32 => primitive!(UInt32Array, rng.random()),
        DataType::UInt64 => primitive!(UInt64Array, rng.random()),
        DataType::Float32 => primitive!(Float32Array, f32::from_bits(rng.random())),
        DataType::Float64 => primitive!(Float64Array, f64::from_bits(rng.random())),
        DataType::Date32 => primitive!(Date32Array, rng.random_range(-800_000..800_000)),
        DataType::Decimal128(p, s) => {
            let values: Vec<i128> = (0..rows).map(|_| rng.random_range(-(10_i128.pow(17))..10_i128.pow(17))).collect();
            Arc::new(Decimal128Array::new(values.into(), nulls).with_precision_and_scale(*p, *s).unwrap())
        }
        DataType::Decimal256(p, s) => {
            let values: Vec<_> = (0..rows).map(|_| arrow::datatypes::i256::from_i128(rng.random())).collect();
            Arc::new(Decimal256Array::new(values.into(), nulls).with_precision_and_scale(*p, *s).unwrap())
        }
        DataType::Timestamp(unit, zone) => {
            let values = Int64Array::new((0..rows).map(|_| rng.random()).collect::<Vec<_>>().into(), nulls);
            arrow::compute::cast(&values, &DataType::Timestamp(*unit, zone.clone())).unwrap()
        }
        DataType::Utf8 => {
            let texts = StringArray::from_iter_values(&texts);
            let (offsets, values, _) = texts.into_parts();
            Arc::new(StringArray::new(offsets, values, nulls))
        }
        DataType::Binary => {
            let values: Vec<Vec<u8>> = (0..rows).map(|_| vec![rng.random(); rng.random_range(0..40)]).collect();
            let (offsets, values, _) = BinaryArray::from_iter_values(values).into_parts();
            Arc::new(BinaryArray::new(offsets, values, nulls))
        }
        DataType::FixedSizeBinary(width) => {
            let values: Vec<u8> = (0..rows * *width as usize).map(|_| rng.random()).collect();
            Arc::new(FixedSizeBinaryArray::new(*width, values.into(), nulls))
        }
        DataType::List(item) => {
            let offsets = offsets(rng);
            let values = random(rng, item, *offsets.last().unwrap() as usize);
            Arc::new(ListArray::new(Arc::clone(item), offsets, values, nulls))
        }
        DataType::Struct(fields) => {
            let columns = fields.iter().map(|f| random(rng, f, rows)).collect();
            Arc::new(StructArray::new(fields.clone(), columns, nulls))
        }
        DataType::Map(entries, sorted) => {
            let offsets = offsets(rng);
            let values = random(rng, entries, *offsets.last().unwrap() as usize);
            Arc::new(MapArray::new(Arc::clone(entries), offsets, values.as_struct().clone(), nulls, *sorted))
        }
        other => panic!("no generator for {other}"),
    }
}

fn list(item: Field) -> DataType {
    DataType::List(Arc::new(item))
}

fn state_schema() -> SchemaRef {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let deep = Fields::from(vec![
        Field::new("x", DataType::Utf8, true),
        Field::new("y", list(Field::new("element", DataType::Decimal128(20, 3), true)), false),
    ]);
    let entries =
        Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Float64, true)]);
    let map = DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(entries), false)), false);
    let state = |fields: Vec<Field>| DataType::Struct(Fields::from(fields));
    Arc::new(Schema::new(vec![
        Field::new("hour", utc.clone(), true),
        Field::new("type", DataType::Utf8, true),
        Field::new("price", DataType::Decimal128(20, 3), true),
        Field::new("ok", DataType::Boolean, true),
        Field::new("day", DataType::Date32, true),
        Field::new(
            "avg",
            state(vec![Field::new("count", DataType::UInt64, false), Field::new("sum", DataType::Float64, true)]),
            false,
        ),
        Field::new("hll", state(vec![Field::new("registers", DataType::Binary, true)]), true),
        Field::new(
            "array_agg",
            state(vec![
                Field::new("values", list(Field::new("item", DataType::Struct(deep), true)), true),
                Field::new("orderings", list(Field::new_list_field(list(Field::new("item", utc, true)), true)), true),
            ]),
            true,
        ),
        Field::new(
            "more",
            state(vec![
                Field::new("i8", DataType::Int8, true),
                Field::new("i16", DataType::Int16, true),
                Field::new("i32", DataType::Int32, true),
                Field::new("u8", DataType::UInt8, true),
                Field::new("u32", DataType::UInt32, true),
                Field::new("f32", DataType::Float32, true),
                Field::new("d256", DataType::Decimal256(60, 7), true),
                Field::new("fixed", DataType::FixedSizeBinary(16), true),
                Field::new("seconds", DataType::Timestamp(TimeUnit::Second, None), true),
                Field::new("nanos", DataType::Timestamp(TimeUnit::Nanosecond, Some("+02:00".into())), true),
                Field::new("map", map, true),
            ]),
            true,
        ),
    ]))
}

/// Sorted by the first `keys` columns, each key once.
fn sorted(batch: &RecordBatch, keys: usize) -> RecordBatch {
    let columns: Vec<_> = batch.columns()[..keys]
        .iter()
        .map(|c| SortColumn { values: Arc::clone(c), options: Some(SORT_OPTIONS) })
        .collect();
    let batch = take_record_batch(batch, &lexsort_to_indices(&columns, None).unwrap()).unwrap();
    let key = |i: usize| format!("{:?}", batch.columns()[..keys].iter().map(|c| c.slice(i, 1)).collect::<Vec<_>>());
    let firsts = (0..batch.num_rows()).filter(|i| *i == 0 || key(*i) != key(i - 1));
    take_record_batch(&batch, &UInt32Array::from_iter_values(firsts.map(|i| i as u32))).unwrap()
}

fn random_states(rng: &mut StdRng, schema: &SchemaRef, keys: usize, rows: usize) -> RecordBatch {
    let columns = schema.fields().iter().map(|f| random(rng, f, rows)).collect();
    sorted(&RecordBatch::try_new(Arc::clone(schema), columns).unwrap(), keys)
}

#[tokio::test]
async fn states_of_all_types_come_back_exactly() {
    let schema = state_schema();
    for seed in 0..3 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let states = random_states(&mut rng, &schema, 5, 1_500);
        let storage = Storage::memory();
        let (a, b) = (states.slice(0, 700), states.slice(700, states.num_rows() - 700));
        let run = write(&storage, 5, &[a, b]).await.unwrap();
        assert_eq!(run.rows, states.num_rows() as u64);
        let table = RunsTable::new(&storage, Arc::clone(&schema), vec![run], 5).unwrap();
        let back = read(table).await;
        assert_eq!(back.schema(), schema);
        for (i, field) in schema.fields().iter().enumerate() {
            assert_eq!(back.column(i), states.column(i), "{}", field.name());
        }

        let bytes = ipc::encode(&states.slice(100, 300)).unwrap();
        assert_eq!(ipc::decode(&schema, &bytes).unwrap(), states.slice(100, 300));
    }
}

/// `hours` × 50 types, sorted; a count and 100 bytes of sketch each.
fn hourly(hours: i64) -> RecordBatch {
    let rows: Vec<_> = (0..hours).flat_map(|h| (0..50_i64).map(move |t| (h, t))).collect();
    let hour = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|(h, _)| h * 3_600_000_000));
    let hour = Arc::new(hour.with_timezone("UTC"));
    let name = Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, t)| format!("type{t:02}"))));
    let count = Arc::new(Int64Array::from_iter_values(rows.iter().map(|(h, t)| h * 100 + t)));
    let mut rng = StdRng::seed_from_u64(5);
    let sketch = Arc::new(BinaryArray::from_iter_values(rows.iter().map(|_| rng.random::<[u8; 32]>().repeat(3))));
    let state = StructArray::from(vec![
        (Arc::new(Field::new("count", DataType::Int64, false)), count as ArrayRef),
        (Arc::new(Field::new("sketch", DataType::Binary, false)), sketch as ArrayRef),
    ]);
    let schema = Schema::new(vec![
        Field::new("hour", hour.data_type().clone(), false),
        Field::new("type", DataType::Utf8, false),
        Field::new("state", state.data_type().clone(), false),
    ]);
    RecordBatch::try_new(Arc::new(schema), vec![hour, name, Arc::new(state)]).unwrap()
}

async fn plan(context: &SessionContext, sql: &str) -> Arc<dyn ExecutionPlan> {
    context.sql(sql).await.unwrap().create_physical_plan().await.unwrap()
}

fn scan_of(plan: &Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    if plan.name() == "DataSourceExec" {
        return Arc::clone(plan);
    }
    plan.children().into_iter().map(scan_of).next().expect("a plan ends in a scan")
}

/// Rows that left the scan, and bytes that it read.
fn scanned(plan: &Arc<dyn ExecutionPlan>) -> (usize, usize) {
    let metrics = scan_of(plan).metrics().expect("a scan has metrics");
    let bytes = metrics.sum_by_name("bytes_scanned").map_or(0, |m| m.as_usize());
    (metrics.output_rows().unwrap_or(0), bytes)
}

#[tokio::test]
async fn a_point_read_touches_one_row_group_and_few_pages() {
    let storage = Storage::memory();
    let states = hourly(1_000);
    let run = write(&storage, 2, std::slice::from_ref(&states)).await.unwrap();
    let size = usize::try_from(run.size_bytes).unwrap();
    let context = session(1);
    context.register_table("runs", RunsTable::new(&storage, states.schema(), vec![run], 2).unwrap()).unwrap();
    let sql = "SELECT * FROM runs WHERE hour = TIMESTAMP '1970-01-11T04:00:00Z' AND type = 'type07'";
    for attempt in 0..2 {
        let plan = plan(&context, sql).await;
        let rows = collect(Arc::clone(&plan), context.task_ctx()).await.unwrap();
        let rows = concat_batches(&states.schema(), &rows).unwrap();
        assert_eq!(rows, states.slice(244 * 50 + 7, 1));
        let (scanned, bytes) = scanned(&plan);
        assert!(scanned <= 2 * 512, "{scanned} rows left the scan:\n{}", displayable(plan.as_ref()).indent(true));
        // The cached metadata makes the second read cheaper than the first.
        assert!(bytes < size / 20, "attempt {attempt}: {bytes} of {size} bytes were read");
    }
}

#[tokio::test]
async fn a_few_groups_are_read_from_all_runs() {
    let faulty = Faulty::new(Storage::memory().store(), 1, FaultRates::default());
    let storage = Storage::over(Url::parse("memory:///").unwrap(), Arc::new(faulty.clone()), Settings::default());
    let states = hourly(1_000);
    let runs = [states.clone(), states.slice(12_000, 500)];
    let written = [write(&storage, 2, &runs[..1]).await.unwrap(), write(&storage, 2, &runs[1..]).await.unwrap()];
    let table = RunsTable::new(&storage, states.schema(), written.to_vec(), 2).unwrap();
    let hour = |h: i64| lit(ScalarValue::TimestampMicrosecond(Some(h * 3_600_000_000), Some("UTC".into())));
    let calls = || faulty.calls("get") + faulty.calls("get ranges");
    for (filters, looked_at) in [
        (vec![col("hour").eq(hour(244)), col("type").eq(lit("type07"))], 2 * 512),
        (vec![col("hour").eq(hour(244)), col("type").gt(lit("type07")), col("type").lt_eq(lit("type40"))], 2 * 512),
        (vec![col("hour").eq(hour(239))], 2 * 512),
        (vec![col("hour").gt_eq(hour(238)), col("hour").lt(hour(242))], 2 * 512),
        (vec![col("hour").lt(hour(3))], 512),
        (vec![col("hour").gt(hour(1_200))], 0),
        (vec![col("hour").eq(hour(3)), col("type").eq(lit("none"))], 512),
    ] {
        let bounds = key_bounds(&states.schema(), 2, &filters);
        let before = calls();
        let found = table.few(&bounds, looked_at).await.unwrap().expect("no more pages are looked at than that");
        assert!(calls() - before <= 2 * 4, "metadata is read once: {}", calls() - before);
        let wanted = runs.each_ref().map(|run| slice(run, &bounds));
        let wanted = concat_batches(&states.schema(), &wanted).unwrap();
        assert_eq!(concat_batches(&states.schema(), &found).unwrap(), wanted, "{filters:?}");
    }
    let wide = key_bounds(&states.schema(), 2, &[col("hour").gt(hour(10))]);
    assert_eq!(table.few(&wide, 10_000).await.unwrap(), None);
    assert_eq!(faulty.calls("list"), 0);
}

/// Sorted states with NULL, and some that are large, whose keys are read first.
#[tokio::test]
async fn any_few_groups_are_those_of_the_states_in_memory() {
    let storage = Storage::memory();
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut keys: Vec<(Option<i64>, Option<String>)> = (0..rng.random_range(1..6_000))
            .map(|_| {
                let number = rng.random_bool(0.95).then(|| rng.random_range(0..40));
                (number, rng.random_bool(0.95).then(|| format!("{:03}", rng.random_range(0..400))))
            })
            .collect();
        keys.sort();
        keys.dedup();
        let large = if rng.random_bool(0.5) { 1_200 } else { 8 };
        let state = BinaryArray::from_iter_values(keys.iter().map(|_| {
            let mut value = vec![0; large];
            rng.fill_bytes(&mut value);
            value
        }));
        let columns: Vec<(&str, ArrayRef, bool)> = vec![
            ("n", Arc::new(keys.iter().map(|k| k.0).collect::<Int64Array>()), true),
            ("s", Arc::new(keys.iter().map(|k| k.1.clone()).collect::<StringArray>()), true),
            ("state", Arc::new(state), false),
        ];
        let states = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let run = write(&storage, 2, std::slice::from_ref(&states)).await.unwrap();
        let room = [0, 100_000, 64 << 20][rng.random_range(0..3)];
        let pages = PageCache::new(room);
        let table = RunsTable::with_pages(&storage, states.schema(), vec![run], 2, &pages).unwrap();
        for _ in 0..20 {
            let number = rng.random_range(-1..41_i64);
            let text = format!("{:03}", rng.random_range(0..400));
            let filters = match rng.random_range(0..5) {
                0 => vec![col("n").eq(lit(number)), col("s").eq(lit(text))],
                1 => vec![col("n").eq(lit(number)), col("s").lt_eq(lit(text))],
                2 => vec![col("n").eq(lit(number)), col("s").gt(lit(text))],
                3 => vec![col("n").lt(lit(number))],
                _ => vec![col("n").gt_eq(lit(number)), col("n").lt(lit(number + 3))],
            };
            let bounds = key_bounds(&states.schema(), 2, &filters);
            let found = table.few(&bounds, usize::MAX).await.unwrap().unwrap();
            let found = concat_batches(&states.schema(), &found).unwrap();
            assert_eq!(found, slice(&states, &bounds), "seed {seed}, {filters:?}");
            // Once more, of what is kept.
            let kept = table.few_at_hand(&bounds, usize::MAX);
            assert!(kept.is_some() || large > 8 || room < 64 << 20, "seed {seed}, {filters:?}");
            if let Some(kept) = kept {
                assert_eq!(concat_batches(&states.schema(), &kept).unwrap(), found, "seed {seed}, {filters:?}");
            }
            assert!(pages.bytes() <= room);
        }
        drop(table);
        assert_eq!(pages.bytes(), 0, "they go with their table");
    }
}

#[tokio::test]
async fn a_page_is_read_once_while_it_is_kept() {
    let faulty = Faulty::new(Storage::memory().store(), 1, FaultRates::default());
    let storage = Storage::over(Url::parse("memory:///").unwrap(), Arc::new(faulty.clone()), Settings::default());
    let states = hourly(1_000);
    let run = write(&storage, 2, std::slice::from_ref(&states)).await.unwrap();
    let calls = || faulty.calls("get") + faulty.calls("get ranges");
    let hour = |h: i64| lit(ScalarValue::TimestampMicrosecond(Some(h * 3_600_000_000), Some("UTC".into())));
    let bounds = |h: i64| key_bounds(&states.schema(), 2, &[col("hour").eq(hour(h))]);
    for (room, reads_again) in [(64 << 20, false), (0, true)] {
        let pages = PageCache::new(room);
        let table = RunsTable::with_pages(&storage, states.schema(), vec![run.clone()], 2, &pages).unwrap();
        assert_eq!(table.few_at_hand(&bounds(240), 10_000), None, "nothing has been read");
        table.few(&bounds(240), 10_000).await.unwrap().unwrap();
        let before = calls();
        // Another group of the same page.
        let found = table.few(&bounds(241), 10_000).await.unwrap().unwrap();
        assert_eq!(concat_batches(&states.schema(), &found).unwrap(), slice(&states, &bounds(241)));
        assert_eq!(calls() > before, reads_again);
        assert_eq!(table.few_at_hand(&bounds(241), 10_000).is_none(), reads_again);
        assert_eq!(table.few_at_hand(&bounds(900), 10_000), None, "a page that has not been read");
        assert_eq!(table.few_at_hand(&bounds(1_900), 10_000), Some(vec![]), "the index says that there is none");
    }
}

#[tokio::test]
async fn the_metadata_of_a_file_is_read_once() {
    let faulty = Faulty::new(Storage::memory().store(), 1, FaultRates::default());
    let storage = Storage::over(Url::parse("memory:///").unwrap(), Arc::new(faulty.clone()), Settings::default());
    let states = hourly(100);
    let run = write(&storage, 2, std::slice::from_ref(&states)).await.unwrap();
    let context = session(1);
    let calls = || faulty.calls("get") + faulty.calls("get ranges") + faulty.calls("list");
    let mut needed = Vec::new();
    for _ in 0..3 {
        let before = calls();
        let table = RunsTable::new(&storage, states.schema(), vec![run.clone()], 2).unwrap();
        context.deregister_table("runs").unwrap();
        context.register_table("runs", table).unwrap();
        let sql = "SELECT type FROM runs WHERE type = 'none of them'";
        assert!(context.sql(sql).await.unwrap().collect().await.unwrap().iter().all(|b| b.num_rows() == 0));
        needed.push(calls() - before);
    }
    assert!(needed[0] > 0, "{needed:?}");
    assert_eq!(needed[1..], [0, 0], "a filter that excludes all needs nothing but cached metadata");
    assert_eq!(faulty.calls("list"), 0);
}

#[tokio::test]
async fn the_order_of_the_keys_is_known_to_the_engine() {
    let storage = Storage::memory();
    let states = hourly(60);
    let mut runs = Vec::new();
    for (from, to) in [(0, 2_000), (500, 2_500), (1_000, 3_000)] {
        runs.push(write(&storage, 2, &[states.slice(from, to - from)]).await.unwrap());
    }
    let context = session(2);
    context.register_table("runs", RunsTable::new(&storage, states.schema(), runs, 2).unwrap()).unwrap();
    let sql =
        "SELECT hour, type, count(*) AS n, sum(state['count']) AS c FROM runs GROUP BY hour, type ORDER BY hour, type";
    let plan = plan(&context, sql).await;
    let shown = displayable(plan.as_ref()).indent(true).to_string();
    assert!(!shown.contains("SortExec") && shown.contains("ordering_mode=Sorted"), "{shown}");
    let rows = collect(plan, context.task_ctx()).await.unwrap();
    let rows = concat_batches(&rows[0].schema(), &rows).unwrap();
    assert_eq!(rows.num_rows(), 3_000);
    let n = rows.column(2).as_primitive::<arrow::datatypes::Int64Type>();
    assert!(
        (0..3_000)
            .all(|i| n.value(i) == i64::from(i < 2_000) + i64::from((500..2_500).contains(&i)) + i64::from(i >= 1_000))
    );
}

#[tokio::test]
async fn many_runs_and_none_can_be_read() {
    let storage = Storage::memory();
    let states = hourly(80);
    let mut runs = Vec::new();
    for hour in 0..80 {
        runs.push(write(&storage, 2, &[states.slice(hour * 50, 50)]).await.unwrap());
    }
    let context = session(3);
    context.register_table("runs", RunsTable::new(&storage, states.schema(), runs, 2).unwrap()).unwrap();
    context.register_table("none", RunsTable::new(&storage, states.schema(), vec![], 2).unwrap()).unwrap();
    for (sql, wanted) in [
        ("SELECT count(*) FROM runs", 4_000),
        ("SELECT count(*) FROM runs WHERE type = 'type03'", 80),
        ("SELECT sum(state['count']) FROM runs WHERE hour < TIMESTAMP '1970-01-01T01:00:00Z'", 49 * 50 / 2),
        ("SELECT count(*) FROM none", 0),
        ("SELECT count(type) FROM none WHERE type = 'type03'", 0),
        ("SELECT count(*) FROM (SELECT * FROM runs LIMIT 7)", 7),
    ] {
        let rows = context.sql(sql).await.unwrap().collect().await.unwrap();
        let found = rows[0].column(0).as_primitive::<arrow::datatypes::Int64Type>().value(0);
        assert_eq!(found, wanted, "{sql}");
    }
}

/// Whatever is pruned, the answer is that of a table in memory.
#[tokio::test]
async fn filters_answer_as_over_a_table_in_memory() {
    let schema = Arc::new(Schema::new(vec![
        Field::new("f", DataType::Float64, true),
        Field::new("s", DataType::Utf8, true),
        Field::new("i", DataType::Int32, true),
        Field::new("d", DataType::Decimal128(10, 2), true),
        Field::new("b", DataType::Binary, true),
        Field::new("v", DataType::Int64, true),
    ]));
    let mut pruned = 0;
    for seed in 0..3 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let rows = 4_000;
        let specials = [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1.5];
        let f = Float64Array::from_iter((0..rows).map(|_| match rng.random_range(0..10) {
            0 => None,
            1..4 => Some(specials[rng.random_range(0..specials.len())]),
            _ => Some(f64::from(rng.random_range(-5..5))),
        }));
        let long = "z".repeat(100);
        let s = StringArray::from_iter((0..rows).map(|_| match rng.random_range(0..6) {
            0 => None,
            1 => Some(format!("{long}{}", rng.random_range(0..9))),
            _ => Some(format!("{}", rng.random_range(0..300))),
        }));
        let i = Int32Array::from_iter((0..rows).map(|_| rng.random_bool(0.9).then(|| rng.random_range(-100..100))));
        let d = Decimal128Array::from_iter(
            (0..rows).map(|_| rng.random_bool(0.9).then(|| rng.random_range(-9_999..9_999))),
        );
        let b = BinaryArray::from_iter((0..rows).map(|_| rng.random_bool(0.9).then(|| vec![rng.random::<u8>(); 2])));
        let v = random(&mut rng, schema.field(5), rows);
        let order: Vec<usize> = match seed {
            0 => vec![0, 1, 2, 3, 4],
            1 => vec![1, 3, 0, 2, 4],
            _ => vec![3, 2, 1, 4, 0],
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(f),
            Arc::new(s),
            Arc::new(i),
            Arc::new(d.with_precision_and_scale(10, 2).unwrap()),
            Arc::new(b),
            v,
        ];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
        let batch = batch.project(&[order.clone(), vec![5]].concat()).unwrap();
        let states = sorted(&batch, 5);
        let storage = Storage::memory();
        let half = states.num_rows() / 2;
        let runs = vec![
            write(&storage, 5, &[states.slice(0, half)]).await.unwrap(),
            write(&storage, 5, &[states.slice(half, states.num_rows() - half)]).await.unwrap(),
        ];
        let context = session(2);
        context.register_table("runs", RunsTable::new(&storage, states.schema(), runs, 5).unwrap()).unwrap();
        let memory = MemTable::try_new(states.schema(), vec![vec![states.clone()]]).unwrap();
        context.register_table("memory", Arc::new(memory)).unwrap();
        let fields = schema.fields().iter().map(|f| SortField::new(f.data_type().clone())).collect();
        let converter = RowConverter::new(fields).unwrap();
        for _ in 0..40 {
            let filter = (0..rng.random_range(1..3)).map(|_| random_filter(&mut rng)).collect::<Vec<_>>();
            let filter = filter.join(if rng.random_bool(0.7) { " AND " } else { " OR " });
            let mut answers = Vec::new();
            for table in ["runs", "memory"] {
                let sql = format!("SELECT f, s, i, d, b, v FROM {table} WHERE {filter}");
                let plan = plan(&context, &sql).await;
                let rows = collect(Arc::clone(&plan), context.task_ctx()).await.unwrap();
                if table == "runs" {
                    pruned += usize::from(scanned(&plan).0 < states.num_rows());
                }
                let rows = concat_batches(&plan.schema(), &rows).unwrap();
                let rows = converter.convert_columns(rows.columns()).unwrap();
                let mut lines: Vec<_> = rows.iter().map(|row| row.as_ref().to_vec()).collect();
                lines.sort();
                answers.push(lines);
            }
            assert!(
                answers[0] == answers[1],
                "seed {seed}: {} rows instead of {}: {filter}",
                answers[0].len(),
                answers[1].len()
            );
        }
    }
    assert!(pruned > 5, "pruning must take place: {pruned}");
}

fn random_filter(rng: &mut StdRng) -> String {
    let n: i32 = rng.random_range(-100..100);
    let comparison = ["=", "<", "<=", ">", ">=", "<>"][rng.random_range(0..6)];
    match rng.random_range(0..12) {
        0 => format!("f {comparison} {}", n / 20),
        1 => format!("f {comparison} 'NaN'::double"),
        2 => format!("f {comparison} 1e300"),
        3 => format!("s {comparison} '{}'", n.abs()),
        4 => format!("s {comparison} '{}5'", "z".repeat(100)),
        5 => format!("s LIKE '{}%'", n.abs() / 10),
        6 => format!("i {comparison} {n}"),
        7 => format!("i IN ({n}, {}, NULL)", n + 1),
        8 => format!("d BETWEEN {n}.5 AND {}", n + 3),
        9 => format!("{} IS NULL", ["f", "s", "i", "d"][rng.random_range(0..4)]),
        10 => format!("b {comparison} X'{:02x}{:02x}'", n.abs(), n.abs()),
        _ => format!("NOT (i > {n} OR d IS NULL)"),
    }
}

#[tokio::test]
async fn what_is_not_sorted_or_of_another_schema_is_not_written() {
    let storage = Storage::memory();
    let states = hourly(20);
    let (a, b) = (states.slice(0, 500), states.slice(500, 500));
    for (batches, row) in [
        (vec![b.clone(), a.clone()], 500),
        (vec![a.clone(), a.slice(499, 1)], 500),
        (vec![a.clone(), concat_batches(&a.schema(), &[b.slice(7, 2), b.slice(0, 7)]).unwrap()], 502),
    ] {
        let error = write(&storage, 2, &batches).await.unwrap_err();
        assert!(matches!(error, Error::NotSorted { row: r } if r == row), "{error}");
    }
    let error = write(&storage, 0, &[a.slice(0, 2)]).await.unwrap_err();
    assert!(matches!(error, Error::NotSorted { .. }), "without keys there is one group: {error}");
    write(&storage, 0, &[a.slice(0, 1)]).await.unwrap();
    let error = write(&storage, 2, &[a.clone(), a.project(&[0, 1]).unwrap()]).await.unwrap_err();
    assert!(matches!(error, Error::OtherSchema { .. }), "{error}");
    let error = write(&storage, 9, std::slice::from_ref(&a)).await.unwrap_err();
    assert!(matches!(error, Error::TooFewColumns { .. }), "{error}");
    assert_eq!(storage.list(&Path::from("views")).await.unwrap().len(), 1, "nothing is left of what failed");
}

#[tokio::test]
async fn a_type_that_parquet_would_change_is_not_written() {
    let seconds = Time32SecondArray::from(vec![1]);
    let dictionary: DictionaryArray<Int32Type> = vec!["a"].into_iter().collect();
    let zoned = TimestampSecondArray::from(vec![1]).with_timezone("UTC");
    let columns: Vec<(&str, ArrayRef)> =
        vec![("a", Arc::new(seconds)), ("b", Arc::new(dictionary)), ("c", Arc::new(zoned))];
    for (name, column) in columns {
        let storage = Storage::memory();
        let states = RecordBatch::try_from_iter([(name, Arc::clone(&column))]).unwrap();
        match write(&storage, 1, std::slice::from_ref(&states)).await {
            Ok(run) => assert_eq!(read(RunsTable::new(&storage, states.schema(), vec![run], 1).unwrap()).await, states),
            Err(error) => assert!(matches!(error, Error::SchemaNotKept { .. } | Error::Encode { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_file_that_is_not_the_run_is_an_error_never_cast() {
    let storage = Storage::memory();
    let states = hourly(4);
    let run = write(&storage, 2, std::slice::from_ref(&states)).await.unwrap();
    let other = write(&storage, 2, std::slice::from_ref(&states)).await.unwrap();
    let with_type = |i: usize, t: DataType| {
        let mut fields: Vec<_> = states.schema().fields().iter().map(|f| f.as_ref().clone()).collect();
        fields[i] = Field::new(fields[i].name(), t, false);
        Arc::new(Schema::new(fields))
    };
    let mut more: Vec<_> = states.schema().fields().iter().cloned().collect();
    more.push(Arc::new(Field::new("more", DataType::Int64, true)));
    let missing = RunMeta { file: "views/v/d/none.parquet".to_owned(), ..run.clone() };
    let short = RunMeta { size_bytes: run.size_bytes - 10, ..run.clone() };
    let swapped = RunMeta { file: other.file.clone(), size_bytes: other.size_bytes, tail: other.tail, ..run.clone() };
    for (case, schema, run, message) in [
        ("binary for text", with_type(1, DataType::Binary), &run, "another schema"),
        (
            "another unit",
            with_type(0, DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))),
            &run,
            "another schema",
        ),
        ("a column more", Arc::new(Schema::new(more)), &run, "another schema"),
        ("another run", states.schema(), &swapped, "another run's file"),
        ("no file", states.schema(), &missing, "none.parquet"),
        ("too short", states.schema(), &short, "Parquet error"),
    ] {
        let table = RunsTable::new(&storage, schema, vec![run.clone()], 2).unwrap();
        let error = session(1).read_table(table).unwrap().collect().await.unwrap_err().to_string();
        assert!(error.contains(message), "{case}: {error}");
    }
}

/// Reads the whole table, through the engine.
async fn rows(table: &Arc<RunsTable>) -> Result<Vec<RecordBatch>, datafusion::error::DataFusionError> {
    session(1).read_table(Arc::clone(table) as _).unwrap().collect().await
}

#[tokio::test]
async fn no_flipped_bit_is_ever_part_of_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(&Url::from_directory_path(dir.path()).unwrap()).unwrap();
    let states = hourly(200);
    let run = write(&storage, 2, std::slice::from_ref(&states)).await.unwrap();
    let file = dir.path().join(&run.file);
    let written = std::fs::read(&file).unwrap();
    let table = |run: &RunMeta| RunsTable::new(&storage, states.schema(), vec![run.clone()], 2).unwrap();
    assert_eq!(read(table(&run)).await, states);
    let mut rng = StdRng::seed_from_u64(7);
    let last = written.len() - 1;
    let places = [0, 4, last - 4, last].into_iter().chain((0..36).map(|_| rng.random_range(0..written.len())));
    for place in places.collect::<Vec<_>>() {
        let mut damaged = written.clone();
        damaged[place] ^= 1 << rng.random_range(0..8);
        std::fs::write(&file, &damaged).unwrap();
        // Both ways to read it.
        let few = table(&run).few(&[KeyBounds::default()], usize::MAX).await;
        let few = few.expect_err(&format!("byte {place} of {}", written.len()));
        assert!(Fault::behind(&few).is_some(), "byte {place}: {few}");
        let table = table(&run);
        let error = rows(&table).await.expect_err(&format!("byte {place} of {}", written.len()));
        let fault = Fault::behind(&error).unwrap_or_else(|| panic!("byte {place}: {error}"));
        assert!(matches!(fault, Fault::Damaged { path, .. } if path.as_ref() == run.file), "{fault}");
        assert_eq!(table.fault().as_ref(), Some(fault));
        assert_eq!(table.look().await.unwrap().as_ref(), Some(fault), "it still is");
        std::fs::write(&file, &written).unwrap();
        assert_eq!(table.look().await.unwrap(), None, "it was restored");
        assert_eq!(table.fault(), None);
        assert_eq!(rows(&table).await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), states.num_rows());
    }
    // What an older release wrote has no sums and is read as it is.
    let old: RunMeta = {
        let mut json = serde_json::to_value(&run).unwrap();
        json.as_object_mut().unwrap().remove("tail").unwrap();
        serde_json::from_value(json).unwrap()
    };
    assert_eq!(old.tail, None);
    assert_eq!(read(table(&old)).await, states);
}

#[tokio::test]
async fn a_missing_or_shorter_file_is_known_as_one() {
    let storage = Storage::memory();
    let states = hourly(20);
    let run = write(&storage, 2, std::slice::from_ref(&states)).await.unwrap();
    let path = Path::from(run.file.as_str());
    let bytes = storage.get(&path).await.unwrap().unwrap();
    let table = RunsTable::new(&storage, states.schema(), vec![run.clone()], 2).unwrap();
    assert_eq!(table.look().await.unwrap(), None);
    storage.delete(&path).await.unwrap();
    let missing = Fault::Missing { path: path.clone() };
    let error = rows(&table).await.unwrap_err();
    assert_eq!(Fault::behind(&error), Some(&missing), "{error}");
    assert!(crate::master::misses_a_file(&error), "{error}");
    assert_eq!(table.look().await.unwrap(), Some(missing));
    storage.create(&path, bytes.slice(..bytes.len() / 2)).await.unwrap();
    let error = rows(&table).await.unwrap_err();
    assert!(matches!(Fault::behind(&error), Some(Fault::Damaged { .. })), "{error}");
    let looked = table.look().await.unwrap().unwrap().to_string();
    assert!(looked.contains(&format!("it has {} bytes, {} were written", bytes.len() / 2, bytes.len())), "{looked}");
}

#[tokio::test]
async fn a_run_of_many_parts_is_durable_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(&Url::from_directory_path(dir.path()).unwrap()).unwrap();
    a_run_of_many_parts_is_durable(&storage).await;
    assert_eq!(std::fs::read_dir(dir.path().join("views/v/d")).unwrap().count(), 1, "no temporary file is left");
}

#[tokio::test]
async fn a_run_of_many_parts_is_durable_on_a_real_hdfs() {
    let Some(storage) = crate::storage::conformance::hdfs_storage() else { return };
    a_run_of_many_parts_is_durable(&storage).await;
    assert_eq!(storage.remove_leftovers(Duration::ZERO).await.unwrap(), 0, "no temporary file is left");
}

async fn a_run_of_many_parts_is_durable(storage: &Storage) {
    let mut rng = StdRng::seed_from_u64(1);
    let keys = Int64Array::from_iter_values(0..24_000);
    let values = BinaryArray::from_iter_values((0..24_000).map(|_| rng.random::<[u8; 32]>().map(|b| [b; 32]).concat()));
    let mut noise = vec![0; 20 << 20];
    rng.fill_bytes(&mut noise);
    let noise = BinaryArray::from_iter_values(noise.chunks(noise.len() / 24_000).take(24_000));
    let columns: Vec<(&str, ArrayRef)> = vec![("k", Arc::new(keys)), ("v", Arc::new(values)), ("n", Arc::new(noise))];
    let states = RecordBatch::try_from_iter(columns).unwrap();
    let run = write(storage, 1, std::slice::from_ref(&states)).await.unwrap();
    assert!(run.size_bytes > 20 << 20);
    let listed = storage.list(&Path::from("")).await.unwrap();
    assert_eq!(
        listed.iter().map(|o| (o.location.to_string(), o.size)).collect::<Vec<_>>(),
        [(run.file.clone(), run.size_bytes)]
    );
    assert_eq!(read(RunsTable::new(storage, states.schema(), vec![run], 1).unwrap()).await, states);
}

#[tokio::test]
async fn a_run_is_written_whole_or_not_at_all_on_a_faulty_storage() {
    let states = hourly(40);
    let settings = Settings {
        retry_for: Duration::from_secs(5),
        first_backoff: Duration::from_micros(100),
        max_backoff: Duration::from_millis(1),
        ..Settings::default()
    };
    let mut outcomes = (0, 0);
    for seed in 0..12 {
        let inner = Storage::memory();
        let faulty = Faulty::new(inner.store(), seed, FaultRates { refused: 100, lost: 100, unanswered: 100, late: 0 });
        let storage = Storage::over(inner.url().clone(), Arc::new(faulty), settings);
        let batches: Vec<_> = if seed % 2 == 0 {
            vec![states.clone()]
        } else {
            // More than a part.
            let mut rng = StdRng::seed_from_u64(seed);
            let mut big = vec![0; 9 << 20];
            rng.fill_bytes(&mut big);
            let values = BinaryArray::from_iter_values(big.chunks(1 << 20));
            let keys = Int64Array::from_iter_values(0..9);
            let columns: Vec<(&str, ArrayRef)> = vec![("k", Arc::new(keys)), ("v", Arc::new(values))];
            vec![RecordBatch::try_from_iter(columns).unwrap()]
        };
        match write(&storage, 1 + usize::from(seed % 2 == 0), &batches).await {
            Ok(run) => {
                outcomes.0 += 1;
                let table = RunsTable::new(&inner, batches[0].schema(), vec![run], 1).unwrap();
                assert_eq!(read(table).await, batches[0], "seed {seed}");
            }
            Err(error) => {
                outcomes.1 += 1;
                assert!(matches!(error, Error::Store { .. } | Error::Storage(_)), "seed {seed}: {error}");
            }
        }
    }
    assert!(outcomes.0 >= 6 && outcomes.1 > 0, "a small run is tried again, a large one may fail: {outcomes:?}");
}

#[tokio::test]
async fn errors_of_events_are_a_file_beside_the_run() {
    let storage = Storage::memory();
    let error = |p, o, text: &str| EventError { partition: PartitionId(p), offset: Offset(o), error: text.to_owned() };
    let errors = vec![error(1, 5, "b"), error(0, 9, "division by zero"), error(0, 3, "é")];
    let options = options();
    let path = paths::run_errors("v", &options.definition, &options.run);
    let file = write_event_errors(&storage, &path, errors.clone(), &options).await.unwrap();
    let meta = RunMeta {
        id: options.run.clone(),
        file: path.to_string(),
        size_bytes: file.size_bytes,
        tail: Some(file.tail),
        rows: file.rows,
        coverage: Coverage::new(),
        errors: 0,
        errors_file: None,
        errors_crc32: None,
    };
    let back = read(RunsTable::new(&storage, event_error_schema(), vec![meta.clone()], 2).unwrap()).await;
    let sorted = vec![errors[2].clone(), errors[1].clone(), errors[0].clone()];
    assert_eq!(back, event_errors_to_batch(&sorted));
    let run = RunMeta { errors_file: Some(path.to_string()), errors_crc32: Some(file.crc32), ..meta };
    assert_eq!(read_event_errors(&storage, &run).await.unwrap(), [back]);
    let other = RunMeta { errors_crc32: Some(file.crc32 ^ 1), ..run.clone() };
    assert!(matches!(read_event_errors(&storage, &other).await, Err(ReadError::Fault(Fault::Damaged { .. }))));
    let none = RunMeta { errors_file: Some("views/v/d/none".to_owned()), ..run };
    assert!(matches!(read_event_errors(&storage, &none).await, Err(ReadError::Fault(Fault::Missing { .. }))));
    let twice = vec![errors[0].clone(), errors[0].clone()];
    let path = Path::from("views/v/d/twice");
    assert!(matches!(write_event_errors(&storage, &path, twice, &options).await, Err(Error::NotSorted { row: 1 })));
}

#[test]
fn damaged_bytes_are_noticed() {
    let states = hourly(1);
    let bytes = ipc::encode(&states).unwrap();
    assert_eq!(ipc::decode(&states.schema(), &bytes).unwrap(), states);
    let empty = states.slice(0, 0);
    assert_eq!(ipc::decode(&states.schema(), &ipc::encode(&empty).unwrap()).unwrap(), empty);
    let other = states.project(&[0, 1]).unwrap().schema();
    assert!(matches!(ipc::decode(&other, &bytes), Err(ipc::IpcError::OtherSchema { .. })));
    for cut in [0, 3, 4, 100, bytes.len() - 1] {
        assert!(matches!(ipc::decode(&states.schema(), &bytes[..cut]), Err(ipc::IpcError::Damaged(_))), "{cut}");
    }
    for i in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[i] ^= 0x10;
        assert!(matches!(ipc::decode(&states.schema(), &damaged), Err(ipc::IpcError::Damaged(_))), "{i}");
    }
    let slice = ipc::encode(&hourly(100).slice(0, 50)).unwrap();
    assert!(slice.len() < bytes.len() + 500, "a slice leaves out the rest: {} {}", slice.len(), bytes.len());
}
