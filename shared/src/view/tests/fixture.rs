//! A stream, random events of it, and the plain query to compare with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::MemTable;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::prelude::SessionContext;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::config::{Config, StreamConfig, ViewConfig};
use crate::record;
use crate::view::session::pinned_session;
use crate::view::{CompileError, CompiledView, Compiler, DimensionTable};

const STREAMS: &str = r#"
[stream.s]
event_time = "at"
allowed_lateness = "10 seconds"
columns = """
  at TIMESTAMP, k VARCHAR, g INT, i BIGINT, n INT NOT NULL, d DOUBLE, r REAL, m DECIMAL(12, 2), b BOOLEAN, day DATE,
  tags LIST<VARCHAR>, who STRUCT<login VARCHAR>
"""
[stream.other]
columns = "x BIGINT"
"#;

pub(super) fn streams() -> BTreeMap<String, StreamConfig> {
    Config::parse(STREAMS, Path::new("/"), &|_| None).unwrap().streams
}

/// `dim(k, name, weight)` with a key that stands twice and one that no event has.
pub(super) fn tables() -> BTreeMap<String, DimensionTable> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Utf8, true),
        Field::new("name", DataType::Utf8, true),
        Field::new("weight", DataType::Int64, true),
    ]));
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![
            Arc::new(StringArray::from(vec![Some("a"), Some("b"), Some("b"), None, Some("zz")])),
            Arc::new(StringArray::from(vec!["Anna", "Bert", "Berta", "Nobody", "Zoe"])),
            Arc::new(Int64Array::from(vec![Some(1), Some(2), Some(0), Some(4), None])),
        ],
    )
    .unwrap();
    let table = DimensionTable { name: "dim".into(), content_hash: "c0ffee".into(), schema, batches: vec![batch] };
    BTreeMap::from([("dim".to_string(), table)])
}

pub(super) fn view_config(sql: &str, settings: &str) -> ViewConfig {
    let text = format!("{STREAMS}\n[view.v]\nsql = '''{sql}'''\n{settings}\n");
    let parsed = Config::parse(&text, Path::new("/"), &|_| None).unwrap();
    parsed.views["v"].clone()
}

pub(super) fn try_compile(sql: &str, settings: &str) -> Result<Arc<CompiledView>, CompileError> {
    Compiler::new(&streams(), &tables()).unwrap().compile(&view_config(sql, settings))
}

pub(super) fn compile(sql: &str, settings: &str) -> Arc<CompiledView> {
    try_compile(sql, settings).unwrap_or_else(|e| panic!("{sql}\n{e:?}"))
}

pub(super) fn event_schema() -> SchemaRef {
    record::event_schema(&streams()["s"].columns)
}

/// The seed of this run: `WATERSHED_SEED`, or a fixed one; printed by the caller upon failure.
pub(super) fn seeds() -> Vec<u64> {
    match std::env::var("WATERSHED_SEED") {
        Ok(seed) => vec![seed.parse().expect("WATERSHED_SEED is a number")],
        Err(_) => vec![1, 2],
    }
}

fn maybe<T>(rng: &mut StdRng, value: impl FnOnce(&mut StdRng) -> T) -> Option<T> {
    if rng.random_ratio(1, 8) { None } else { Some(value(rng)) }
}

/// `count` random events of three partitions, each partition's offsets ascending with holes.
pub(super) fn events(seed: u64, count: usize) -> RecordBatch {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut next = [0_i64; 3];
    let mut maximum: [Option<i64>; 3] = [None; 3];
    let (mut partition, mut offset, mut seen_max) = (vec![], vec![], vec![]);
    let (mut at, mut k, mut g, mut i, mut n) = (vec![], vec![], vec![], vec![], vec![]);
    let (mut d, mut r, mut m, mut b, mut day, mut login) = (vec![], vec![], vec![], vec![], vec![], vec![]);
    let mut tags = ListBuilder::new(StringBuilder::new()).with_field(Field::new("element", DataType::Utf8, true));
    for _ in 0..count {
        let p = rng.random_range(0..3_usize);
        next[p] += rng.random_range(1..3);
        partition.push(p as i32);
        offset.push(next[p]);
        let time = maybe(rng, |rng| 1_700_000_000_000_000 + rng.random_range(0..100_000_000_i64));
        seen_max.push(maximum[p]);
        maximum[p] = maximum[p].max(time);
        at.push(time);
        k.push(maybe(rng, |rng| ["a", "b", "c", "", "ü"][rng.random_range(0..5)].to_string()));
        g.push(maybe(rng, |rng| rng.random_range(-2..3_i32)));
        i.push(maybe(rng, |rng| rng.random_range(-1_000..1_000_i64)));
        n.push(rng.random_range(0..50_i32));
        d.push(maybe(rng, |rng| [0.0, -0.0, 1.5, -2.25, 1e9, rng.random::<f64>()][rng.random_range(0..6)]));
        r.push(maybe(rng, |rng| rng.random::<f32>()));
        m.push(maybe(rng, |rng| rng.random_range(-1_000_000..1_000_000_i128)));
        b.push(maybe(rng, |rng| rng.random::<bool>()));
        day.push(maybe(rng, |rng| rng.random_range(19_000..19_003_i32)));
        login.push(maybe(rng, |rng| format!("u{}", rng.random_range(0..20))));
        match maybe(rng, |rng| rng.random_range(0..4)) {
            None => tags.append(false),
            Some(len) => {
                for _ in 0..len {
                    tags.values().append_option(maybe(rng, |rng| ["x", "y", "z"][rng.random_range(0..3)]));
                }
                tags.append(true);
            }
        }
    }
    let schema = event_schema();
    let stamp = |values: Vec<Option<i64>>| TimestampMicrosecondArray::from(values).with_timezone("UTC");
    let DataType::Struct(who) = schema.field_with_name("who").unwrap().data_type().clone() else { unreachable!() };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(partition)),
        Arc::new(Int64Array::from(offset)),
        Arc::new(stamp(at.clone())),
        Arc::new(stamp(seen_max)),
        Arc::new(BinaryArray::new_null(count)),
        new_null_array(schema.field_with_name(record::HEADERS).unwrap().data_type(), count),
        Arc::new(stamp(at)),
        Arc::new(StringArray::from(k)),
        Arc::new(Int32Array::from(g)),
        Arc::new(Int64Array::from(i)),
        Arc::new(Int32Array::from(n)),
        Arc::new(Float64Array::from(d)),
        Arc::new(Float32Array::from(r)),
        Arc::new(Decimal128Array::from(m).with_precision_and_scale(12, 2).unwrap()),
        Arc::new(BooleanArray::from(b)),
        Arc::new(Date32Array::from(day)),
        Arc::new(tags.finish()),
        Arc::new(StructArray::new(who, vec![Arc::new(StringArray::from(login))], None)),
    ];
    RecordBatch::try_new(schema, columns).unwrap()
}

/// `events` in the order of the log: by partition and offset.
pub(super) fn in_log_order(events: &RecordBatch) -> RecordBatch {
    crate::view::sort::sorted(&events.schema(), std::slice::from_ref(events), 2).unwrap()
}

/// Events of one group `k = 'a'`, i = 0, 1, 2, … at offsets 0, 1, 2, … of partition 0.
pub(super) fn numbered_events(count: i64) -> RecordBatch {
    let base = events(7, count as usize);
    let mut columns = base.columns().to_vec();
    let schema = base.schema();
    let mut set = |name: &str, array: ArrayRef| columns[schema.index_of(name).unwrap()] = array;
    set("_partition", Arc::new(Int32Array::from_iter_values((0..count).map(|_| 0))));
    set("_offset", Arc::new(Int64Array::from_iter_values(0..count)));
    set("k", Arc::new(StringArray::from_iter_values((0..count).map(|_| "a"))));
    set("i", Arc::new(Int64Array::from_iter_values(0..count)));
    set("n", Arc::new(Int32Array::from_iter_values(0..count as i32)));
    RecordBatch::try_new(base.schema(), columns).unwrap()
}

/// The answer of the plain query over `events`.
pub(super) async fn plain(sql: &str, events: &RecordBatch) -> RecordBatch {
    let context = pinned_session();
    let with_late = {
        let raw = MemTable::try_new(events.schema(), vec![vec![events.clone()]]).unwrap();
        context.register_table("raw", Arc::new(raw)).unwrap();
        "SELECT *, coalesce(at < _event_time_max - INTERVAL '10 seconds', false) AS _late FROM raw"
    };
    let all = context.sql(with_late).await.unwrap().collect().await.unwrap();
    let mut fields = event_schema().fields().to_vec();
    fields.push(Arc::new(Field::new("_late", DataType::Boolean, false)));
    let schema = Arc::new(Schema::new(fields));
    let all: Vec<_> =
        all.iter().map(|b| RecordBatch::try_new(Arc::clone(&schema), b.columns().to_vec()).unwrap()).collect();
    context.deregister_table("s").unwrap();
    let s = MemTable::try_new(schema, vec![all]).unwrap();
    context.register_table("s", Arc::new(s)).unwrap();
    for table in tables().into_values() {
        let provider = MemTable::try_new(Arc::clone(&table.schema), vec![table.batches.clone()]).unwrap();
        context.register_table(table.name.as_str(), Arc::new(provider)).unwrap();
    }
    let frame = context.sql(sql).await.unwrap_or_else(|e| panic!("{sql}\n{e}"));
    let state = context.state();
    let analyzed =
        state.analyzer().execute_and_check(frame.logical_plan().clone(), state.config_options(), |_, _| {}).unwrap();
    let schema: SchemaRef = Arc::new(analyzed.schema().as_arrow().clone());
    let batches = frame.collect().await.unwrap_or_else(|e| panic!("{sql}\n{e}"));
    let columns: Vec<_> =
        batches.iter().map(|b| RecordBatch::try_new(Arc::clone(&schema), b.columns().to_vec()).unwrap()).collect();
    arrow::compute::concat_batches(&schema, &columns).unwrap()
}

/// Runs a logical plan to its end.
pub(super) async fn run(context: &SessionContext, plan: LogicalPlan) -> RecordBatch {
    let frame = context.execute_logical_plan(plan).await.unwrap();
    let schema: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
    let batches = frame.collect().await.unwrap();
    let batches: Vec<_> =
        batches.iter().map(|b| RecordBatch::try_new(Arc::clone(&schema), b.columns().to_vec()).unwrap()).collect();
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

pub(super) fn table_of(schema: &SchemaRef, batches: Vec<RecordBatch>) -> Arc<MemTable> {
    Arc::new(MemTable::try_new(Arc::clone(schema), vec![batches]).unwrap())
}

/// What the view serves over `runs` of states.
pub(super) async fn served(view: &CompiledView, runs: &[RecordBatch], bound: Option<i64>) -> RecordBatch {
    let table = table_of(&view.state_schema(), runs.to_vec());
    run(view.session(), view.served_plan(table, bound).unwrap()).await
}

/// A filtered query on top of what the view serves.
pub(super) fn over_served(plan: LogicalPlan, sql: &str) -> LogicalPlan {
    let context = pinned_session();
    let provider = datafusion::datasource::ViewTable::new(plan, None);
    context.register_table("v", Arc::new(provider)).unwrap();
    let state = context.state();
    let planned = futures::executor::block_on(state.create_logical_plan(sql)).unwrap();
    state.optimize(&planned).unwrap()
}

#[expect(dead_code, reason = "handy while debugging")]
pub(super) fn scan(table: Arc<MemTable>) -> LogicalPlan {
    LogicalPlanBuilder::scan("t", provider_as_source(table), None).unwrap().build().unwrap()
}
