//! The routes, one by one.

use serde_json::{Value, json};
use watershed_serving_layer::{QuerySettings, ROUTES, Settings};
use watershed_shared::catalog::{BuildMode, Loss, StreamEvent};
use watershed_shared::clock::Instant;
use watershed_shared::offsets::{Offset, OffsetRange, OffsetVector, PartitionId};

use crate::world::{PATIENCE, World, assert_same, position_of};

pub(crate) fn rows(answer: &Value) -> &Vec<Value> {
    answer["rows"].as_array().unwrap_or_else(|| panic!("no rows: {answer}"))
}

pub(crate) fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or_else(|| panic!("no error: {answer}"))
}

/// A world with a generation at (20, 30) of every view and a delta up to (50, 50).
pub(crate) async fn built() -> World {
    let world = World::new(11, 60).await;
    let cut: OffsetVector = [(0, 20), (1, 30)].into();
    world.advance(&cut).await;
    for view in ["per_who", "per_hour", "totals", "large", "shares", "rates", "recent"] {
        world.build(view, &cut, BuildMode::Rebuild).await;
    }
    world.advance(&[(0, 50), (1, 50)].into()).await;
    world.settle().await;
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn meta_tells_the_truth() {
    let world = built().await;
    let (status, answer) = world.get("/v1/views/per_who").await;
    assert_eq!(status, 200);
    let meta = &answer["meta"]["views"]["per_who"];
    assert_eq!(meta["generation"], 1);
    assert_eq!(meta["definition"], world.compiled["per_who"].definition().as_str());
    assert!(meta["built_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(meta["partitions"]["0"], json!({"batch_until": 20, "position": 50, "log_end": 60}));
    assert_eq!(meta["partitions"]["1"], json!({"batch_until": 30, "position": 50, "log_end": 67}));
    // The log's end as it was at the start has not been reached yet.
    assert_eq!(meta["complete"], false);
    assert_eq!(meta["reasons"][0]["code"], "catching_up");
    assert_eq!(meta["reasons"][0]["to"], 60);
    assert!(meta["lag_seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!(answer["meta"]["streams"], json!({}));
    let (status, error) = world.get("/v1/views/per_who?min_complete=true").await;
    assert_eq!((status, code(&error)), (503, "incomplete"));
    assert_eq!(world.get("/readyz").await.0, 503);

    world.advance(world.end()).await;
    world.settle().await;
    let (_, answer) = world.get("/v1/views/per_who?min_complete=true").await;
    let meta = &answer["meta"]["views"]["per_who"];
    assert_eq!((&meta["complete"], &meta["reasons"], &meta["lag_seconds"]), (&json!(true), &json!([]), &json!(0.0)));
    assert_eq!(world.get("/readyz").await.0, 200);
    assert_eq!(world.get("/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_is_a_reason_in_every_answer_until_it_is_accepted() {
    let world = built().await;
    world.advance(world.end()).await;
    world.settle().await;
    let range = OffsetRange::new(Offset(5), Offset(9));
    let loss = Loss { partition: PartitionId(1), range, found_at: watershed_shared::clock::now(), accepted: false };
    world.stream_register.append(0, StreamEvent::Lost { loss }).await.unwrap();
    let reasons = async |path: &str| {
        let (_, answer) = world.get(path).await;
        answer["meta"]["views"]["per_who"]["reasons"].clone()
    };
    let begun = Instant::now();
    while reasons("/v1/views/per_who").await == json!([]) {
        assert!(begun.elapsed().as_secs() < 60, "the loss is not told");
        tokio::task::yield_now().await;
    }
    for path in ["/v1/views/per_who", "/v1/views/per_who?generation=1"] {
        let reasons = reasons(path).await;
        let reason = &reasons[0];
        assert_eq!((&reason["code"], &reason["partition"]), (&json!("offsets_lost"), &json!(1)), "{reasons}");
        assert_eq!((&reason["from"], &reason["to"]), (&json!(5), &json!(9)));
        assert!(reason["message"].as_str().unwrap().contains("(4 of them)"), "{reason}");
    }
    let query = json!({"sql": "SELECT 1 FROM clicks", "min_complete": true}).to_string();
    let (status, error) = world.request("POST", "/v1/query", &query).await;
    assert_eq!((status, code(&error)), (503, "incomplete"));
    assert_eq!(world.request("POST", "/v1/streams/click/accept-loss", "").await.0, 404);

    let (status, accepted) = world.request("POST", "/v1/streams/clicks/accept-loss", "").await;
    assert_eq!((status, &accepted["accepted"]), (200, &json!(1)), "{accepted}");
    assert_eq!(accepted["losses"][0]["accepted"], true);
    let begun = Instant::now();
    while reasons("/v1/views/per_who").await != json!([]) {
        assert!(begun.elapsed().as_secs() < 60, "the loss still is a reason");
        tokio::task::yield_now().await;
    }
    let (_, status) = world.get("/v1/status").await;
    assert_eq!(status["streams"][0]["losses"][0]["to"], 9, "{status}");
    assert_eq!(status["streams"][0]["archiver"], json!({"state": "healthy"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_first_build_the_delta_answers() {
    let world = World::new(3, 40).await;
    let (_, answer) = world.get("/v1/views/totals").await;
    assert_eq!(answer["rows"], json!([{"events": 0, "total": null, "low": null}]));
    let meta = &answer["meta"]["views"]["totals"];
    assert_eq!((&meta["generation"], &meta["built_at"]), (&json!(0), &Value::Null));
    assert_eq!(meta["partitions"]["1"], json!({"batch_until": 7, "position": 7, "log_end": 47}));
    world.advance(&[(0, 10), (1, 10)].into()).await;
    world.settle().await;
    let (_, answer) = world.get("/v1/views/totals").await;
    assert_eq!(answer["rows"][0]["events"], 13);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_columns_order_and_limit_are_sql() {
    let world = built().await;
    let position: OffsetVector = [(0, 50), (1, 50)].into();
    let events = world.events(&OffsetVector::new(), &position);
    let cases = [
        ("per_who?where=events%3E5", "SELECT * FROM v WHERE events > 5"),
        ("per_who?where=who='w03'", "SELECT * FROM v WHERE who = 'w03'"),
        ("per_who?where=who%20IS%20NULL&columns=who,events", "SELECT who, events FROM v WHERE who IS NULL"),
        ("per_who?columns=who,events*2%20AS%20twice", "SELECT who, events * 2 AS twice FROM v"),
        (
            "per_hour?where=hour%3E='2024-10-06T12:00:00Z'&columns=hour,who,cost",
            "SELECT hour, who, cost FROM v WHERE hour >= '2024-10-06T12:00:00Z'",
        ),
        ("per_hour?columns=who,sum(events)%20AS%20n%20", ""),
        ("large?where=n=9", "SELECT * FROM v WHERE n = 9"),
        ("totals", "SELECT * FROM v"),
    ];
    for (request, sql) in cases {
        let (status, answer) = world.get(&format!("/v1/views/{request}")).await;
        if sql.is_empty() {
            assert_eq!((status, code(&answer)), (400, "bad_parameter"), "{request}: {answer}");
            continue;
        }
        assert_eq!(status, 200, "{request}: {answer}");
        let view = request.split('?').next().unwrap();
        let sql = format!("WITH v AS ({}) {sql}", world.config.views[view].sql);
        assert_same(rows(&answer), &crate::world::rows_of(&sql, &events).await, request);
    }
    let (_, answer) = world.get("/v1/views/per_who?order=events%20DESC,who&limit=3").await;
    let counts: Vec<i64> = rows(&answer).iter().map(|r| r["events"].as_i64().unwrap()).collect();
    assert_eq!(counts.len(), 3);
    assert!(counts.is_sorted_by(|a, b| a >= b));
    assert_eq!(answer["meta"].get("truncated"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_by_all_keys_answer_as_sql_does() {
    let world = built().await;
    for who in 0..22 {
        // Parentheses around the column make it SQL's.
        let (a, fast) = world.get(&format!("/v1/views/per_who?where=who='w{who:02}'")).await;
        let (b, slow) = world.get(&format!("/v1/views/per_who?where=who||''='w{who:02}'")).await;
        assert_eq!((a, b), (200, 200));
        assert_same(rows(&fast), rows(&slow), &format!("w{who:02}"));
    }
    let (_, all) = world.get("/v1/views/per_hour?where=who='w05'").await;
    for row in rows(&all) {
        let hour = row["hour"].as_str().unwrap();
        let (status, one) = world.get(&format!("/v1/views/per_hour?where='{hour}'=hour%20AND%20who='w05'")).await;
        assert_eq!(status, 200, "{one}");
        assert_same(rows(&one), std::slice::from_ref(row), hour);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_of_keys_answer_as_sql_does() {
    let world = built().await;
    let (_, all) = world.get("/v1/views/per_hour?order=hour,who").await;
    let hours: Vec<&str> = rows(&all).iter().map(|r| r["hour"].as_str().unwrap()).collect();
    let (first, middle) = (hours[0], hours[hours.len() / 2]);
    for (view, fast, slow) in [
        ("per_who", "who>='w03' AND who<'w07'".to_owned(), "who||''>='w03' AND who||''<'w07'".to_owned()),
        ("per_who", "'w03'<who".to_owned(), "'w03'<who||''".to_owned()),
        ("per_who", "who<='w10' AND who<'w10'".to_owned(), "who||''<'w10'".to_owned()),
        ("per_who", "who>'w07' AND who<'w03'".to_owned(), "false".to_owned()),
        ("per_hour", format!("hour<='{middle}'"), format!("hour + INTERVAL '0' HOUR <= '{middle}'")),
        (
            "per_hour",
            format!("hour='{first}' AND who>'w05'"),
            format!("hour || '' = '{first}' || '' AND who || '' > 'w05'"),
        ),
    ] {
        let encode = |text: &str| text.bytes().map(|b| format!("%{b:02X}")).collect::<String>();
        let (a, fast_answer) = world.get(&format!("/v1/views/{view}?where={}", encode(&fast))).await;
        let (b, slow_answer) = world.get(&format!("/v1/views/{view}?where={}", encode(&slow))).await;
        assert_eq!((a, b), (200, 200), "{fast}: {fast_answer}, {slow}: {slow_answer}");
        assert_same(rows(&fast_answer), rows(&slow_answer), &fast);
    }
    let (_, limited) = world.get("/v1/views/per_who?where=who%3E'w03'&limit=2").await;
    assert_eq!(rows(&limited).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_on_keys_reach_both_scans() {
    let world = built().await;
    let explain = r#"{"sql": "EXPLAIN SELECT events FROM per_who WHERE who = 'w03'"}"#;
    let (status, answer) = world.request("POST", "/v1/query", explain).await;
    assert_eq!(status, 200, "{answer}");
    let plan: String = rows(&answer).iter().map(|r| r["plan"].as_str().unwrap()).collect();
    // Of the delta, only the run's slice; of the generation, the row groups that may hold the key. And only the states
    // of count(*) are read.
    assert!(plan.contains("key_0 = ") || plan.contains("key_0@0 = "), "{plan}");
    assert!(!plan.contains("state_2"), "an aggregate that is not asked for is read: {plan}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_reads_views_streams_errors_and_dead_letters() {
    let world = built().await;
    let query = |sql: &str| json!({ "sql": sql }).to_string();
    let sql = "SELECT t.events, (SELECT count(*) FROM per_hour) AS hours, (SELECT count(*) FROM clicks) AS archived FROM totals t";
    let (status, answer) = world.request("POST", "/v1/query", &query(sql)).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["rows"][0]["events"], 93);
    assert_eq!(answer["rows"][0]["archived"], 43);
    assert_eq!(answer["meta"]["streams"]["clicks"]["archived_until"], json!({"0": 20, "1": 30}));
    assert!(answer["meta"]["views"]["per_hour"].is_object() && answer["meta"]["views"]["totals"].is_object());

    let (status, answer) =
        world.request("POST", "/v1/query", &query("SELECT _partition, _offset, error FROM view_errors.rates")).await;
    assert_eq!(status, 200, "{answer}");
    let zeros = world.events(&OffsetVector::new(), &[(0, 50), (1, 50)].into());
    let zeros = crate::world::rows_of("SELECT _partition, _offset FROM clicks WHERE n = 0", &zeros).await;
    assert_eq!(rows(&answer).len(), zeros.len());
    assert!(!zeros.is_empty());
    assert_eq!(answer["meta"]["views"]["rates"]["errors"], zeros.len());

    let (status, answer) = world.request("POST", "/v1/query", &query("SELECT * FROM dead_letters.clicks")).await;
    assert_eq!((status, &answer["rows"]), (200, &json!([])), "{answer}");
    assert_eq!(answer["meta"]["streams"]["clicks"]["archived_until"], json!({"0": 20, "1": 30}), "{answer}");
    let (status, answer) =
        world.request("POST", "/v1/query", &query("SELECT count(*) AS n FROM clicks WHERE _late")).await;
    assert_eq!(status, 200, "{answer}");
    let late = answer["rows"][0]["n"].as_i64().unwrap();
    assert!(late > 0);
    // As a value, too.
    let sql = "SELECT sum(CASE WHEN _late THEN 1 ELSE 0 END) AS a, count(*) FILTER (WHERE _late) AS b, \
               count(_late) AS c, bool_or(_late) AS d, count(*) AS e FROM clicks";
    let (status, answer) = world.request("POST", "/v1/query", &query(sql)).await;
    assert_eq!((status, rows(&answer)), (200, &vec![json!({"a": late, "b": late, "c": 43, "d": true, "e": 43})]));
    let sql = "SELECT _late, count(*) AS n FROM clicks GROUP BY _late ORDER BY _late";
    let (status, answer) = world.request("POST", "/v1/query", &query(sql)).await;
    let expected = vec![json!({"_late": false, "n": 43 - late}), json!({"_late": true, "n": late})];
    assert_eq!((status, rows(&answer)), (200, &expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_view_tells_of_every_event_that_fails_below_the_cut_too() {
    let world = built().await;
    let failing = async |position: &OffsetVector| {
        let events = world.events(&OffsetVector::new(), position);
        let sql = "SELECT _partition, _offset FROM clicks WHERE n = 0 AND page <> '/p1'";
        crate::world::rows_of(sql, &events).await
    };
    let (below, all) = (failing(&[(0, 20), (1, 30)].into()).await, failing(&[(0, 50), (1, 50)].into()).await);
    assert!(!below.is_empty() && below.len() < all.len());
    let (_, answer) = world.get("/v1/views/shares?generation=1").await;
    assert_eq!(answer["meta"]["views"]["shares"]["errors"], below.len(), "{answer}");
    let (_, answer) = world.get("/v1/views/shares").await;
    assert_eq!(answer["meta"]["views"]["shares"]["errors"], all.len(), "{answer}");
    let sql = r#"{"sql": "SELECT _partition, _offset FROM view_errors.shares"}"#;
    let (_, errors) = world.request("POST", "/v1/query", sql).await;
    assert_same(rows(&errors), &all, "view_errors");
    // A refresh adds its own, and a rebuild counts them anew: nothing moves.
    for mode in [BuildMode::Refresh, BuildMode::Rebuild] {
        world.build("shares", &[(0, 50), (1, 50)].into(), mode).await;
        world.settle().await;
        let (_, after) = world.get("/v1/views/shares").await;
        assert_eq!(after["meta"]["views"]["shares"]["errors"], all.len(), "{mode:?}");
        assert_same(rows(&after), rows(&answer), "the rows");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said() {
    let world = built().await;
    let get = [
        ("/v1/views/per_whom", 404, "unknown_view", "did you mean `per_who`"),
        ("/v1/views/per_who?wehre=a", 400, "bad_parameter", "did you mean `where`"),
        ("/v1/views/per_who?where=1=1)%20UNION%20SELECT%201", 400, "bad_parameter", "where"),
        ("/v1/views/per_who?where=nobody=1", 400, "bad_parameter", "nobody"),
        ("/v1/views/per_who?where=who%20IN%20(SELECT%20who%20FROM%20per_hour)", 400, "bad_parameter", "own columns"),
        ("/v1/views/per_who?limit=-1", 400, "bad_parameter", "limit"),
        ("/v1/views/per_who?generation=7", 404, "unknown_generation", "7"),
        ("/v1/views/per_who?format=xml", 400, "bad_parameter", "xml"),
        ("/v1/views/per_who?wait_for=%7B%220%22%3A55%7D&timeout_ms=50", 504, "timeout", "50"),
        ("/v1/rebuilds/none", 404, "unknown_build", "none"),
        ("/v1/rebuilds?state=sleeping", 400, "bad_parameter", "sleeping"),
        ("/v1/nothing", 404, "not_found", "openapi"),
    ];
    for (path, status, expected, words) in get {
        let (found, answer) = world.get(path).await;
        assert_eq!((found, code(&answer)), (status, expected), "{path}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(words), "{path}: {answer}");
    }
    let post = [
        ("SELECT * FROM per_whom", "did you mean `per_who`"),
        ("SELECT nobody FROM per_who", "Column: 8"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("DROP TABLE per_who", "only SELECT"),
        ("SELECT * FROM information_schema.tables", "information_schema"),
        ("SELECT 1 / 0", "ivide by zero"),
    ];
    for (sql, words) in post {
        let (status, answer) = world.request("POST", "/v1/query", &json!({ "sql": sql }).to_string()).await;
        assert_eq!((status, code(&answer)), (400, "bad_sql"), "{sql}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(words), "{sql}: {answer}");
    }
    let (status, answer) = world.request("POST", "/v1/query", "{\"sql\": 5}").await;
    assert_eq!((status, code(&answer)), (400, "bad_request"));
    let (status, answer) = world.request("DELETE", "/v1/views/per_who", "").await;
    assert_eq!((status, code(&answer)), (405, "method_not_allowed"), "{answer}");
    let routes = watershed_serving_layer::routes(world.serving.clone());
    let refused = warp::test::request().method("DELETE").path("/v1/views/per_who").reply(&routes).await;
    assert_eq!(refused.headers()["allow"], "GET, HEAD");
    let (status, answer) = world.request("POST", "/v1/query", "[]").await;
    assert_eq!(answer["error"]["message"], "the body is not a JSON object", "{status}");
    let twice = r#"{"sql": "SELECT 1", "wait_for": {"clicks": {"0": 1, "0": 5}}}"#;
    let (status, answer) = world.request("POST", "/v1/query", twice).await;
    assert!(status == 400 && answer["error"]["message"].as_str().unwrap().contains("stands there twice"), "{answer}");
    // Paths are percent-encoded as the query string is.
    let (status, answer) = world.get("/v1/views/%70er_who?limit=1").await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(world.get("/v1/views/%ff").await.0, 404);
    assert_eq!(world.request("HEAD", "/v1/views/per_who", "").await.0, 200);
    // The position stands in a timeout.
    let (_, answer) = world.get("/v1/views/per_who?wait_for=%7B%220%22%3A55%7D&timeout_ms=50").await;
    assert_eq!(answer["error"]["position"], json!({"0": 50, "1": 50}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_for_waits() {
    let world = std::sync::Arc::new(built().await);
    let waiting = {
        let world = std::sync::Arc::clone(&world);
        watershed_shared::task::spawn("waiting", async move {
            world.get("/v1/views/totals?wait_for=%7B%220%22%3A55%7D&timeout_ms=60000").await
        })
    };
    watershed_shared::clock::sleep(std::time::Duration::from_millis(30)).await;
    assert!(!waiting.is_finished());
    world.advance(&[(0, 56), (1, 50)].into()).await;
    let (status, answer) = waiting.await.unwrap();
    assert_eq!(status, 200);
    assert_eq!(position_of(&answer, "totals"), [(0, 56), (1, 50)].into());
    assert_eq!(answer["rows"][0]["events"], 99);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_generation_answers_alone() {
    let world = built().await;
    world.build("totals", &[(0, 50), (1, 50)].into(), BuildMode::Refresh).await;
    world.settle().await;
    for (generation, cut) in [(1, OffsetVector::from([(0, 20), (1, 30)])), (2, [(0, 50), (1, 50)].into())] {
        for view in ["totals", "large"] {
            if view == "large" && generation == 2 {
                continue;
            }
            let (status, answer) = world.get(&format!("/v1/views/{view}?generation={generation}")).await;
            assert_eq!(status, 200, "{answer}");
            assert_eq!(position_of(&answer, view), cut);
            assert_same(rows(&answer), &world.truth(view, &cut).await, view);
        }
    }
    let (_, list) = world.get("/v1/views/totals/generations").await;
    assert_eq!(list["generations"][0]["generation"], 2);
    assert_eq!(list["generations"][0]["active"], true);
    assert_eq!(list["generations"][1]["previous"], true);
    let (status, diff) = world.get("/v1/views/totals/generations/1/diff/2").await;
    assert_eq!((status, &diff["equal"]), (200, &json!(true)), "{diff}");
    assert_eq!(diff["a"]["position"], json!({"0": 50, "1": 50}));
    let (_, diff) = world.get("/v1/views/totals/generations/1/diff/2?as_stored=true").await;
    assert_eq!((&diff["equal"], &diff["difference_count"]), (&json!(false), &json!(2)), "{diff}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_recounts() {
    let world = built().await;
    let (status, late) = world.request("POST", "/v1/views/per_who/verify?timeout_ms=50", "").await;
    assert_eq!((status, code(&late)), (504, "timeout"), "not archived yet");
    world.archive(&[(0, 55), (1, 52)].into()).await;
    for view in ["per_who", "per_hour", "totals", "large", "shares", "rates", "recent"] {
        let (status, verified) = world.request("POST", &format!("/v1/views/{view}/verify"), "").await;
        assert_eq!((status, &verified["equal"]), (200, &json!(true)), "{view}: {verified}");
        assert_eq!(verified["position"], json!({"0": 50, "1": 50}));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comparisons_hold_no_result() {
    let query = QuerySettings { threads: 2, max_result_bytes: 2048, ..QuerySettings::default() };
    let world = World::with(11, 60, Settings { query, ..Settings::default() }).await;
    let (cut, position) = ([(0, 20), (1, 30)].into(), [(0, 50), (1, 50)].into());
    for (until, mode) in [(&cut, BuildMode::Rebuild), (&position, BuildMode::Refresh)] {
        world.advance(until).await;
        world.build("per_hour", until, mode).await;
    }
    world.archive(&position).await;
    world.settle().await;
    let (status, answer) = world.get("/v1/views/per_hour").await;
    assert_eq!((status, code(&answer)), (413, "too_large"));
    let (status, verified) = world.request("POST", "/v1/views/per_hour/verify", "").await;
    assert_eq!((status, &verified["equal"]), (200, &json!(true)), "{verified}");
    assert_eq!(verified["groups"], world.truth("per_hour", &position).await.len());
    let (status, diff) = world.get("/v1/views/per_hour/generations/1/diff/2").await;
    assert_eq!((status, &diff["equal"]), (200, &json!(true)), "{diff}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn formats_are_negotiated() {
    let world = built().await;
    let routes = watershed_serving_layer::routes(world.serving.clone());
    let ask = |path: &'static str, accept: &'static str| {
        let routes = routes.clone();
        async move { warp::test::request().path(path).header("accept", accept).reply(&routes).await }
    };
    let csv = ask("/v1/views/totals", "text/csv").await;
    assert!(String::from_utf8_lossy(csv.body()).starts_with("events,total,low\n93,"));
    let meta: Value = serde_json::from_slice(csv.headers()["watershed-meta"].as_bytes()).unwrap();
    assert_eq!(meta["views"]["totals"]["generation"], 1);
    let ndjson = ask("/v1/views/per_who?format=ndjson", "*/*").await;
    assert_eq!(ndjson.headers()["content-type"], "application/x-ndjson");
    assert!(String::from_utf8_lossy(ndjson.body()).lines().all(|l| serde_json::from_str::<Value>(l).is_ok()));
    let arrow = ask("/v1/views/per_who", "application/vnd.apache.arrow.stream").await;
    let reader = arrow::ipc::reader::StreamReader::try_new(arrow.body().as_ref(), None).unwrap();
    assert!(reader.map(|b| b.unwrap().num_rows()).sum::<usize>() > 10);
    let parquet = ask("/v1/views/per_who?format=parquet", "*/*").await;
    assert_eq!(&parquet.body()[..4], b"PAR1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_gives_offsets() {
    let world = World::new(1, 5).await;
    let (status, answer) = world.request("POST", "/v1/streams/clicks", "{\"a\":1}\n{\"a\":2}\n").await;
    assert_eq!((status, answer), (200, json!({"accepted": 2, "offsets": {"0": 2}})));
    assert_eq!(world.ingest.0.lock().len(), 2);
    let (status, answer) = world.request("POST", "/v1/streams/click", "{}").await;
    assert_eq!((status, code(&answer)), (404, "unknown_stream"));
    // Blank lines are no records; the line is counted all the same.
    let (status, answer) = world.request("POST", "/v1/streams/clicks", "\n{\"a\":3}\n \r\n\n").await;
    assert_eq!((status, answer), (200, json!({"accepted": 1, "offsets": {"0": 3}})));
    let long = format!("{{}}\n\n{}\n", "x".repeat(1_001));
    let (status, answer) = world.request("POST", "/v1/streams/clicks", &long).await;
    assert_eq!((status, code(&answer)), (413, "too_large"));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("line 3 has 1001 bytes, and a record may have 1000"), "{message}");
    assert_eq!(world.ingest.0.lock().len(), 3, "nothing of it was published");
    // The log alone knows of this one: what it has taken is said, and what not.
    let some = format!("{{}}\n\n{}\n{{}}\n", "x".repeat(950));
    let (status, answer) = world.request("POST", "/v1/streams/clicks", &some).await;
    assert_eq!((status, code(&answer)), (413, "too_large"));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("the log has 2 of 3 records; the first that it does not have is on line 3"),
        "{message}"
    );
    assert_eq!(answer["error"]["position"], json!({"0": 5}));
    assert_eq!((&answer["accepted"], &answer["offsets"]), (&json!(2), &json!({"0": 5})));
    assert_eq!(answer["errors"], json!([{"line": 3, "error": "950 bytes"}]));
    assert_eq!(world.ingest.0.lock().len(), 5);
    let settings = watershed_serving_layer::Settings { max_publish_bytes: 10, ..Default::default() };
    let world = World::with(1, 5, settings).await;
    let (status, answer) = world.request("POST", "/v1/streams/clicks", "0123456789\n").await;
    assert_eq!((status, code(&answer)), (413, "too_large"));
    assert!(world.ingest.0.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_are_started_listed_and_stopped() {
    let world = World::new(1, 5).await;
    let (status, estimate) = world.request("POST", "/v1/views/totals/rebuilds", r#"{"dry_run": true}"#).await;
    assert_eq!((status, &estimate["events"]), (200, &json!(5)));
    let (status, started) = world.request("POST", "/v1/views/totals/rebuilds", r#"{"mode": "refresh"}"#).await;
    assert_eq!(status, 202);
    let id = started["id"].as_str().unwrap();
    let (status, again) = world.request("POST", "/v1/views/totals/rebuilds", "").await;
    assert_eq!((status, code(&again)), (409, "already_running"));
    let (_, build) = world.get(&format!("/v1/rebuilds/{id}?wait_ms=1")).await;
    assert_eq!((&build["state"], &build["mode"]), (&json!("queued"), &json!("refresh")));
    let (_, list) = world.get("/v1/rebuilds?view=totals&state=queued").await;
    assert_eq!(list["rebuilds"][0]["id"], id);
    assert_eq!(world.request("DELETE", &format!("/v1/rebuilds/{id}"), "").await.1["state"], "cancelled");
    let (status, finished) = world.request("DELETE", &format!("/v1/rebuilds/{id}"), "").await;
    assert_eq!((status, code(&finished)), (409, "finished"));
    assert_eq!(world.request("PUT", "/v1/views/totals/schedule", r#"{"paused": true}"#).await.0, 200);
    assert_eq!(world.request("POST", "/v1/views/totals/generations/3/activate", "").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_is_described_and_every_description_is_a_route() {
    let world = built().await;
    world.archive(&[(0, 50), (1, 50)].into()).await;
    let (_, document) = world.get("/openapi.json").await;
    for (method, path, ..) in ROUTES {
        assert!(document["paths"][path][method].is_object(), "{method} {path}");
        let real = path.replace("{view}", "totals").replace("{stream}", "clicks").replace("{generation}", "1");
        let real = real.replace("{a}", "1").replace("{b}", "1").replace("{id}", "x");
        if real.ends_with("/live") {
            continue;
        }
        let (status, answer) = world.request(&method.to_uppercase(), &real, "").await;
        assert!(status != 405 && answer["error"]["code"] != "not_found", "{method} {real}: {status} {answer}");
    }
    let (status, views) = world.get("/v1/views").await;
    assert_eq!((status, views["views"].as_array().unwrap().len()), (200, 7));
    let (_, schema) = world.get("/v1/views/per_hour/schema").await;
    assert_eq!(schema["columns"][0], json!({"name": "hour", "type": "TIMESTAMP", "nullable": true, "key": true}));
    let (_, status) = world.get("/v1/status").await;
    assert_eq!(status["streams"][0]["log_end"], json!({"0": 60, "1": 67}));
    let (_, metrics) = world.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("watershed_serving_view_generation{view=\"totals\"} 1"), "{metrics}");
    assert!(metrics.contains("watershed_serving_requests_total{route=\"GET /v1/views\",status=\"200\"} "), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_shows_a_snapshot_and_then_what_changes() {
    let settings = watershed_serving_layer::Settings {
        live_interval: std::time::Duration::from_millis(1),
        heartbeat: std::time::Duration::from_millis(200),
        ..Default::default()
    };
    let world = World::with(11, 60, settings).await;
    world.advance(&[(0, 20), (1, 20)].into()).await;
    world.settle().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let listen = "127.0.0.1:0".parse().unwrap();
    let (address, server) = watershed_serving_layer::serve(world.serving.clone(), listen, stop.clone()).await.unwrap();
    watershed_shared::task::spawn("server", server);
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = "GET /v1/views/totals/live HTTP/1.1\r\nHost: x\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut connection, request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let mut wait = async |wanted: &str| {
        let mut buffer = vec![0; 65536];
        while !text.contains(wanted) {
            let read = tokio::io::AsyncReadExt::read(&mut connection, &mut buffer);
            let n = tokio::time::timeout(PATIENCE, read).await.expect(wanted).unwrap();
            assert!(n > 0, "the connection ended: {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    };
    wait("event:snapshot").await;
    wait(r#""position":{"0":20,"1":20}"#).await;
    world.advance(&[(0, 30), (1, 20)].into()).await;
    wait("event:delta").await;
    wait(r#""events":43"#).await;
    wait("event:heartbeat").await;
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_renews_is_not_given() {
    let serving = built().await.stop();
    let routes = watershed_serving_layer::routes(serving);
    let refused = async {
        while warp::test::request().path("/v1/views/totals").reply(&routes).await.status() != 503 {
            watershed_shared::clock::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("it still answers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_come_as_their_encoding_says() {
    let world = World::new(1, 5).await;
    let routes = watershed_serving_layer::routes(world.serving.clone());
    let publish = |encoding: &'static str, body: Vec<u8>| {
        let request = warp::test::request().method("POST").path("/v1/streams/clicks");
        let request = request.header("content-encoding", encoding).body(body);
        let routes = routes.clone();
        async move { request.reply(&routes).await }
    };
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, b"{\"a\":1}\n{\"a\":2}\n").unwrap();
    let zipped = encoder.finish().unwrap();
    assert_eq!(publish("gzip", zipped.clone()).await.status(), 200);
    assert_eq!(*world.ingest.0.lock(), [r#"{"a":1}"#, r#"{"a":2}"#]);
    let refused = publish("zstd", zipped).await;
    assert_eq!(refused.status(), 415);
    let error: Value = serde_json::from_slice(refused.body()).unwrap();
    assert_eq!(code(&error), "unsupported_media_type");
    assert_eq!(publish("gzip", b"{}".to_vec()).await.status(), 400);
    assert_eq!(world.ingest.0.lock().len(), 2);
}
