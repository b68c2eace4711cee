//! What plans look like, and what names a view.

use super::fixture::*;

const HOURLY: &str = "SELECT date_bin(INTERVAL '1 hour', at) AS hour, k, count(*) AS events, sum(i) AS total, \
                      approx_distinct(n) AS people FROM s GROUP BY 1, 2";

fn scan_line(sql: &str, view_sql: &str) -> String {
    let view = compile(view_sql, "");
    let states = table_of(&view.state_schema(), vec![]);
    let filtering = std::sync::Arc::new(Filtering(states));
    let plan = view.served_plan(filtering, None).unwrap();
    let text = over_served(plan, sql).display_indent().to_string();
    text.lines().find(|l| l.contains("TableScan")).unwrap_or_else(|| panic!("{text}")).trim().to_string()
}

/// A table that takes filters, as runs do.
#[derive(Debug)]
struct Filtering(std::sync::Arc<datafusion::catalog::MemTable>);

#[async_trait::async_trait]
impl datafusion::catalog::TableProvider for Filtering {
    fn schema(&self) -> arrow::datatypes::SchemaRef {
        self.0.schema()
    }
    fn table_type(&self) -> datafusion::logical_expr::TableType {
        datafusion::logical_expr::TableType::Base
    }
    async fn scan(
        &self,
        state: &dyn datafusion::catalog::Session,
        projection: Option<&Vec<usize>>,
        filters: &[datafusion::logical_expr::Expr],
        limit: Option<usize>,
    ) -> datafusion::common::Result<std::sync::Arc<dyn datafusion::physical_plan::ExecutionPlan>> {
        self.0.scan(state, projection, filters, limit).await
    }
    fn supports_filters_pushdown(
        &self,
        filters: &[&datafusion::logical_expr::Expr],
    ) -> datafusion::common::Result<Vec<datafusion::logical_expr::TableProviderFilterPushDown>> {
        Ok(vec![datafusion::logical_expr::TableProviderFilterPushDown::Inexact; filters.len()])
    }
}

#[test]
fn a_filter_on_a_key_reaches_the_scan_of_states() {
    let scan = scan_line("SELECT * FROM v WHERE k = 'a' AND hour >= '2024-01-01T00:00:00Z'", HOURLY);
    assert!(scan.contains("partial_filters=["), "{scan}");
    assert!(scan.contains("key_1 = Utf8(\"a\")") && scan.contains("key_0 >="), "{scan}");
}

#[test]
fn unused_aggregates_are_not_read() {
    let scan = scan_line("SELECT k, sum(events) FROM v GROUP BY k", HOURLY);
    assert!(scan.contains("state_0") && !scan.contains("state_1") && !scan.contains("state_2"), "{scan}");
}

#[test]
fn safe_conjuncts_reach_the_scan_of_events_and_others_do_not() {
    let view = compile("SELECT k, count(*) FROM s WHERE g > 1 AND 10 / n > 1 AND at >= '2024-01-01' GROUP BY k", "");
    let events = std::sync::Arc::new(Filtering(table_of(&event_schema(), vec![])));
    let (plan, _) = view.state_plan(events).unwrap();
    let physical = futures::executor::block_on(view.session().state().create_physical_plan(&plan)).unwrap();
    let text = datafusion::physical_plan::displayable(physical.as_ref()).indent(false).to_string();
    assert!(text.contains("FilterExec: g@") && text.contains("at@"), "{text}");
    assert!(!text.contains("10 /"), "{text}");
}

#[test]
fn the_definition_does_not_know_formatting_but_everything_else() {
    let of = |sql: &str, settings: &str| compile(sql, settings).definition().clone();
    let base = of("SELECT k, count(*) AS c FROM s GROUP BY k", "");
    assert_eq!(base, of("select  k, COUNT(*) as c -- by k\n FROM s\nGROUP BY k", ""));
    assert_eq!(base, of("SELECT k, count(*) AS c FROM s GROUP BY 1", "rebuild = \"0 3 * * *\""));
    for (sql, settings) in [
        ("SELECT k, count(*) AS d FROM s GROUP BY k", ""),
        ("SELECT k, count(i) AS c FROM s GROUP BY k", ""),
        ("SELECT k, count(*) AS c FROM s WHERE n > 1 GROUP BY k", ""),
        ("SELECT k, count(*) AS c FROM s GROUP BY k", "late = \"exclude\""),
    ] {
        assert_ne!(base, of(sql, settings), "{sql} {settings}");
    }
    assert_eq!(base.as_str().len(), 64);
}

#[test]
fn columns_that_a_view_does_not_read_are_not_in_its_definition() {
    let mut streams = streams();
    let sql = "SELECT k, count(*) AS c FROM s GROUP BY k";
    let of = |streams: &std::collections::BTreeMap<String, crate::config::StreamConfig>| {
        let compiler = crate::view::Compiler::new(streams, &tables()).unwrap();
        compiler.compile(&view_config(sql, "")).unwrap().definition().clone()
    };
    let before = of(&streams);
    let stream = streams.get_mut("s").unwrap();
    let mut fields = stream.columns.fields().to_vec();
    fields.push(std::sync::Arc::new(arrow::datatypes::Field::new("more", arrow::datatypes::DataType::Utf8, true)));
    stream.columns = std::sync::Arc::new(arrow::datatypes::Schema::new(fields));
    stream.allowed_lateness = None;
    assert_eq!(before, of(&streams));
}

#[test]
fn key_columns_are_those_that_are_exactly_keys() {
    let keys = |sql: &str| compile(sql, "").key_columns().to_vec();
    assert_eq!(keys(HOURLY), [("hour".to_string(), 0), ("k".to_string(), 1)]);
    assert_eq!(keys("SELECT upper(k) AS u, g AS h, count(*) FROM s GROUP BY k, g"), [("h".to_string(), 1)]);
    assert_eq!(keys("SELECT k, count(*) FROM s GROUP BY k LIMIT 3"), []);
    assert_eq!(keys("SELECT k, g FROM s GROUP BY ROLLUP (k, g)"), []);
}

#[test]
fn nothing_of_a_long_constant_is_left_out_of_the_definition() {
    let hash = |sql: &str| compile(sql, "").definition().clone();
    let values = |last: i32| {
        format!(
            "SELECT l, count(*) FROM s JOIN (VALUES (1), (2), (3), (4), (5), ({last})) AS m(l) ON s.i = m.l GROUP BY l"
        )
    };
    assert_ne!(hash(&values(6)), hash(&values(7)));
    assert_eq!(hash(&values(6)), hash(&values(6)));
    let bytes = |last: &str| {
        format!("SELECT k, count(*) FROM s WHERE CAST(k AS BYTEA) = X'000102030405060708090a{last}' GROUP BY k")
    };
    assert_ne!(hash(&bytes("01")), hash(&bytes("02")));
}

#[test]
fn columns_of_sketches_are_known() {
    let sketched = |sql: &str| compile(sql, "").sketched_columns().iter().cloned().collect::<Vec<_>>();
    assert_eq!(sketched(HOURLY), Vec::<String>::new());
    let sql = "SELECT k, count(*) AS n, approx_median(i) + 1 AS m, sum(i) AS t FROM s GROUP BY k";
    assert_eq!(sketched(sql), ["m"]);
    let windowed = "SELECT k, count(*) AS n, approx_median(i) AS m, rank() OVER (ORDER BY approx_median(i), k) AS r FROM s GROUP BY k";
    assert_eq!(sketched(windowed), ["k", "m", "n", "r"], "across groups it is not known");
}

#[test]
fn the_report_warns_of_states_that_grow() {
    let view = compile("SELECT k, median(i) AS m, count(*) AS c, count(DISTINCT n) AS d FROM s GROUP BY k", "");
    let report = view.report();
    assert_eq!(report.warnings.len(), 2, "{:?}", report.warnings);
    assert_eq!(report.columns[0].sql_type, "VARCHAR");
    assert_eq!(report.aggregates[1].state[0].sql_type, "BIGINT");
    assert_eq!(report.reads, ["i", "k", "n"]);
    assert!(serde_json::to_string(report).unwrap().contains("\"kind\":\"aggregate\""));
}

#[test]
fn a_query_of_a_row_view_prunes_the_scan_of_events() {
    let view = compile("SELECT t.at AS time, upper(t.k) AS u, t.n FROM (SELECT * FROM s WHERE 10 / n > 1) AS t", "");
    let events = std::sync::Arc::new(Filtering(table_of(&event_schema(), vec![])));
    let (rows, _) = view.rows_plan(events).unwrap();
    let states = std::sync::Arc::new(datafusion::datasource::ViewTable::new(rows, None));
    let served = view.served_plan(states, None).unwrap();
    let sql = "SELECT * FROM v WHERE time >= '2024-01-01T00:00:00Z' AND u = 'A'";
    let plan = over_served(served, sql);
    let physical = futures::executor::block_on(view.session().state().create_physical_plan(&plan)).unwrap();
    let text = datafusion::physical_plan::displayable(physical.as_ref()).indent(false).to_string();
    let below_guard = text.split("GuardExec").nth(1).unwrap_or_else(|| panic!("{text}"));
    assert!(below_guard.contains("at@") && below_guard.contains("FilterExec"), "{text}");
    assert!(!below_guard.contains("upper"), "{text}");
}

/// Definitions name generations: this text may change only with the reason to rebuild every view.
#[test]
fn the_text_of_a_definition() {
    let sql =
        "SELECT name, count(*) FILTER (WHERE NOT _late) AS c, max(n) AS m FROM s JOIN dim ON s.k = dim.k GROUP BY name";
    let text = compile(sql, "").definition_text().to_string();
    let expected = "\
watershed view definition 1
Projection: dim.name, count(Int64(1)) FILTER (WHERE NOT s._late) AS count(*) FILTER (WHERE NOT s._late) AS c, max(s.n) AS m
  Aggregate: groupBy=[[dim.name]], aggr=[[count(Int64(1)) FILTER (WHERE NOT s._late), max(s.n)]]
    Inner Join:  Filter: s.k = dim.k
      TableScan: s
      TableScan: dim
output name Utf8 NULL
output c Int64 NOT NULL
output m Int32 NULL
stream s
reads _event_time_max Timestamp(µs, \"UTC\") NULL
reads at Timestamp(µs, \"UTC\") NULL
reads k Utf8 NULL
reads n Int32 NOT NULL
late is below Some(\"at\") by Some(10000000) microseconds
table dim c0ffee
state count 1
state max 1";
    assert_eq!(text, expected);
}
