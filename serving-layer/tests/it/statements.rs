//! Statements at the edges: instants, subqueries, streams read directly, functions that want too much.

use serde_json::{Value, json};
use watershed_serving_layer::{QuerySettings, Settings};
use watershed_shared::catalog::StreamEvent;
use watershed_shared::clock;

use crate::http::{built, code, rows};
use crate::world::{ORIGINS, PATIENCE, World};

async fn query(world: &World, sql: &str) -> (u16, Value) {
    world.request("POST", "/v1/query", &json!({ "sql": sql }).to_string()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn now_is_one_instant_of_a_statement() {
    let world = built().await;
    let sql = "SELECT now() AS a, (SELECT max(now()) FROM per_who) AS b, current_timestamp = now() AS same, \
               current_date = CAST(now() AS DATE) AS today, current_time IS NOT NULL AS time FROM totals";
    let before = clock::now();
    let (status, answer) = query(&world, sql).await;
    assert_eq!(status, 200, "{answer}");
    let row = &rows(&answer)[0];
    assert_eq!(row["a"], row["b"]);
    assert_eq!((&row["same"], &row["today"], &row["time"]), (&json!(true), &json!(true), &json!(true)), "{answer}");
    let said: chrono::DateTime<chrono::Utc> = row["a"].as_str().unwrap().parse().unwrap();
    assert!(said >= before && said <= clock::now(), "{said}");
    let (_, all) = world.get("/v1/views/per_hour").await;
    let (status, past) = world.get("/v1/views/per_hour?where=hour%3Cnow()-interval'7%20days'").await;
    assert_eq!((status, rows(&past).len()), (200, rows(&all).len()), "{past}");
    let (_, none) = world.get("/v1/views/per_hour?where=hour%3Enow()").await;
    assert_eq!(rows(&none).len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subquery_in_the_place_of_a_value_has_one_row_or_none() {
    let world = built().await;
    for sql in [
        "SELECT (SELECT events FROM per_who) AS x",
        "SELECT who FROM per_who WHERE events = (SELECT events FROM per_who)",
        "SELECT count(*) FROM clicks WHERE n > (SELECT events FROM per_who)",
    ] {
        let (status, error) = query(&world, sql).await;
        assert_eq!((status, code(&error)), (400, "bad_sql"), "{sql}: {error}");
        assert_eq!(error["error"]["message"], "a subquery in the place of a value gave more than one row", "{sql}");
    }
    let (_, max) = query(&world, "SELECT max(events) AS x FROM per_who").await;
    let (status, answer) = query(&world, "SELECT (SELECT max(events) FROM per_who) AS x FROM totals").await;
    assert_eq!((status, rows(&answer)), (200, rows(&max)), "{answer}");
    let (status, answer) = query(&world, "SELECT (SELECT events FROM per_who WHERE who = 'nobody') AS x").await;
    assert_eq!((status, rows(&answer)), (200, &vec![json!({"x": null})]), "{answer}");
    let sql = "SELECT count(*) AS n FROM per_who WHERE events >= (SELECT max(events) FROM per_who)";
    let (status, answer) = query(&world, sql).await;
    assert!(status == 200 && rows(&answer)[0]["n"].as_i64().unwrap() >= 1, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_make_no_more_than_a_result_may_have() {
    let query_settings = QuerySettings { threads: 2, max_result_bytes: 1 << 20, ..QuerySettings::default() };
    let world = World::with(11, 60, Settings { query: query_settings, ..Settings::default() }).await;
    world.advance(&[(0, 50), (1, 50)].into()).await;
    world.settle().await;
    for sql in [
        "SELECT repeat('a', 1000000000) AS x",
        "SELECT length(repeat('a', 1000000000)) AS x",
        "SELECT max(length(repeat(who, 1000000 + events))) AS x FROM per_who",
        "SELECT lpad('a', 1000000000) AS x",
        "SELECT rpad(who, 1000000, 'xy') AS x FROM per_who",
        "SELECT array_repeat(1, 1000000000) AS x",
        "SELECT list_resize([1], 1000000000, 0) AS x",
        "SELECT range(10000000000) AS x",
        "SELECT range(5, 10000000000, 2) AS x",
        "SELECT generate_series(10000000000, 1, -1) AS x",
    ] {
        let (status, error) = query(&world, sql).await;
        assert_eq!((status, code(&error)), (413, "too_large"), "{sql}: {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains("bytes at once"), "{sql}: {error}");
    }
    let sql = "SELECT repeat('ab', 3) AS a, lpad('a', 3, 'x') AS b, rpad('a', 2) AS c, range(3) AS d, \
               generate_series(1, 5, 2) AS e, array_repeat(7, 2) AS f, array_resize([1], 2, 0) AS g, \
               repeat(NULL, 1000000000) AS h";
    let (status, answer) = query(&world, sql).await;
    let expected = json!({"a": "ababab", "b": "xxa", "c": "a ", "d": [0, 1, 2], "e": [1, 3, 5], "f": [7, 7],
                          "g": [1, 0], "h": null});
    assert_eq!((status, rows(&answer)), (200, &vec![expected]), "{answer}");
    let (status, answer) = query(&world, "SELECT max(length(repeat(who, events))) AS x FROM per_who").await;
    assert!(status == 200 && rows(&answer)[0]["x"].as_i64().unwrap() > 3, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_reads_his_own_writes_from_a_stream() {
    let world = std::sync::Arc::new(built().await);
    let body = |sql: &str, offset: i64, timeout_ms: u64| {
        let wait = json!({"clicks": {"0": offset}});
        json!({ "sql": sql, "wait_for": wait, "timeout_ms": timeout_ms }).to_string()
    };
    let statements = [
        ("SELECT count(*) AS n FROM clicks WHERE _partition = 0", 50),
        ("SELECT count(*) AS n FROM dead_letters.clicks", 0),
        // The view's answer has reached it before.
        ("SELECT (SELECT count(*) FROM clicks WHERE _partition = 0) AS n FROM totals", 50),
    ];
    for (sql, _) in statements {
        let (status, late) = world.request("POST", "/v1/query", &body(sql, 50, 100)).await;
        assert_eq!((status, code(&late)), (504, "timeout"), "{sql}: {late}");
        assert_eq!(late["error"]["position"], json!({"0": 20, "1": 30}), "{late}");
    }
    let mut waiting = Vec::new();
    for (sql, n) in statements {
        let (world, body) = (std::sync::Arc::clone(&world), body(sql, 50, PATIENCE.as_millis() as u64));
        waiting.push(watershed_shared::task::spawn("waits", async move {
            (sql, n, world.request("POST", "/v1/query", &body).await)
        }));
    }
    world.archive(&[(0, 50), (1, 30)].into()).await;
    for waits in waiting {
        let (sql, n, (status, answer)) = waits.await.unwrap();
        assert_eq!((status, rows(&answer)), (200, &vec![json!({ "n": n })]), "{sql}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_offsets_that_there_cannot_be_and_who_waits_for_an_unknown_partition_is_told() {
    let world = built().await;
    let seen = StreamEvent::Seen {
        topic: "clicks".into(),
        topic_id: None,
        origins: ORIGINS.into(),
        shards: None,
        decoding: None,
    };
    world.stream_register.append(0, seen).await.unwrap();
    let ask = async |wait: &str| {
        let encoded = wait.replace('{', "%7B").replace('"', "%22").replace('}', "%7D");
        let view = world.get(&format!("/v1/views/totals?timeout_ms=1&wait_for={encoded}")).await;
        let body = format!(r#"{{"sql": "SELECT 1 FROM clicks", "wait_for": {{"clicks": {wait}}}, "timeout_ms": 1}}"#);
        [view, world.request("POST", "/v1/query", &body).await]
    };
    for (status, error) in ask(r#"{"0":-1}"#).await {
        let said = "parameter `wait_for`: offset -1 of partition 0 is negative";
        assert_eq!(status, 400, "{error}");
        assert_eq!((code(&error), error["error"]["message"].as_str().unwrap()), ("bad_parameter", said), "{error}");
    }
    // The register is followed: what is known comes a little later.
    let told = tokio::time::timeout(PATIENCE, async {
        loop {
            let [(status, error), (other_status, other)] = ask(r#"{"7":1}"#).await;
            assert_eq!((status, other_status), (504, 504), "{error} {other}");
            let message = error["error"]["message"].as_str().unwrap();
            if message.ends_with("no partition 7 is known of stream `clicks`, only 0, 1") {
                return;
            }
            clock::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    told.await.expect("it is said in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_no_turn_is_told_to_come_again() {
    let query_settings = QuerySettings { threads: 2, max_concurrent: 1, max_waiting: 0, ..QuerySettings::default() };
    let world = World::with(11, 60, Settings { query: query_settings, ..Settings::default() }).await;
    let world = std::sync::Arc::new(world);
    let ended = std::sync::Arc::new(std::sync::OnceLock::new());
    let (asking, ending) = (std::sync::Arc::clone(&world), std::sync::Arc::clone(&ended));
    let long = watershed_shared::task::spawn("long", async move {
        let sql = "SELECT sum(value % 7) AS x FROM generate_series(1, 1000000000000)";
        let body = json!({ "sql": sql, "timeout_ms": 3_600_000 }).to_string();
        // The others may have the only turn.
        let mut answer = asking.request("POST", "/v1/query", &body).await;
        while answer.0 == 429 {
            answer = asking.request("POST", "/v1/query", &body).await;
        }
        ending.set(answer).expect("it ends once");
    });
    let seen = async |wanted: u16| {
        let asked = async {
            loop {
                let (status, answer) = query(&world, "SELECT events FROM totals").await;
                if status == wanted {
                    return answer;
                }
                clock::sleep(std::time::Duration::from_millis(20)).await;
                assert_eq!(ended.get(), None, "the long one has ended");
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("no {wanted}"))
    };
    assert_eq!(code(&seen(429).await), "too_many_requests");
    // Whoever asked has gone: the work ends at its next batch, and gives its turn back.
    long.abort();
    seen(200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_parameter_at_fault_is_named_with_its_own_text() {
    let world = built().await;
    for (parameters, said) in [
        (
            "where=evnts%3E5&order=who",
            "parameter `where`: there is no column `evnts`; did you mean `events`?, in `evnts>5`",
        ),
        ("where=events%3E5&order=wo", "parameter `order`: there is no column `wo`; did you mean `who`?, in `wo`"),
        ("columns=who,zzzzzzzz", "parameter `columns`: there is no column `zzzzzzzz`, in `who,zzzzzzzz`"),
        ("where=sum(who)", "parameter `where`: "),
        ("where=events/0=1&order=who", "parameter `where, order`: "),
    ] {
        let (status, error) = world.get(&format!("/v1/views/per_who?{parameters}")).await;
        assert_eq!((status, code(&error)), (400, "bad_parameter"), "{parameters}: {error}");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(said) && !message.contains("Line"), "{parameters}: {message}");
        assert!(message.len() < 300, "{message}");
    }
    let (status, error) = query(&world, "SELECT sum(who) FROM per_who").await;
    let message = error["error"]["message"].as_str().unwrap();
    assert!(status == 400 && message.len() < 200 && !message.contains("Internal"), "{message}");
}
