//! Real data that nobody here made: loaded with `watershed produce`, read by HTTP before and after a rebuild, and
//! recounted from the raw files by DuckDB; the tables that hold it are read by Spark.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::harness::{Broker, Running, shared_data};

const PATIENCE: Duration = Duration::from_secs(300);
const CONFIG: &str = include_str!("../real_input/watershed.toml");
const VIEWS: [(&str, &str, &[&str]); 5] = [
    ("events_per_minute", "github", &["minute", "type"]),
    ("created", "github", &["what"]),
    ("edits", "wikipedia", &["channel", "hour"]),
    ("words", "moby", &["word"]),
    ("brands", "trackers", &["brand"]),
];

#[test]
fn real_data_gives_the_answers_that_an_independent_engine_counts_from_the_raw_files() {
    let data = shared_data();
    let recounted = recount(&data);
    let dir = tempfile::tempdir().unwrap();
    let config = CONFIG.replace("${DATA_DIR}", "data");
    let running = Running::start(&config, dir.path());

    let hour = data.join("gharchive/landing/year=2015/month=01/dayofmonth=01/2015-01-01-0.json.gz");
    let inputs = [
        ("github", hour.as_path(), "json", 7_702),
        ("wikipedia", &data.join("wikipedia/wikiticker-2015-09-12-sampled.json.gz"), "json", 39_244),
        ("moby", &data.join("text/moby_dick.txt"), "text", 23_243),
        ("trackers", &data.join("fitness/Fitness_trackers.csv"), "csv", 610),
    ];
    let mut ends: BTreeMap<&str, BTreeMap<i32, i64>> = BTreeMap::new();
    for (stream, file, input, records) in inputs {
        let output = watershed(dir.path(), &["produce", stream, "--input", input, "--format", "json", "--from"], file);
        assert!(output.status.success(), "{stream}: {}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
        assert_eq!((report["read"].as_i64(), report["delivered"].as_i64()), (Some(records), Some(records)), "{report}");
        let partitions = report["partitions"].as_object().expect("partitions");
        let next = partitions.iter().map(|(p, o)| (p.parse().unwrap(), o["next"].as_i64().unwrap())).collect();
        ends.insert(stream, next);
    }

    let before: Vec<Value> = VIEWS
        .iter()
        .map(|(view, stream, key)| {
            let body = running.client().view_waiting(view, &ends[stream], PATIENCE);
            assert_equal(view, key, &body["rows"], &recounted[*view]);
            body
        })
        .collect();
    for ((view, _, key), before) in VIEWS.iter().zip(before) {
        let id = running.client().build(view, "rebuild").expect("no other build runs");
        let status = running.client().wait_build(&id, PATIENCE);
        assert_eq!(status["state"], "succeeded", "{view}: {status}");
        let after = running.client().view_when(view, PATIENCE, |meta| meta["generation"] == 1);
        assert_equal(view, key, &after["rows"], &before["rows"]);
        let meta = &after["meta"]["views"][view];
        for (partition, state) in meta["partitions"].as_object().expect("partitions") {
            assert_eq!(state["batch_until"], state["position"], "{view}: partition {partition}: {meta}");
        }
    }
    // Three products of one file have an empty price: the brand's aggregate leaves none of the others out.
    let (status, body) = running.client().get("/v1/views/words?where=word%20%3D%20'the'");
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["rows"], serde_json::json!([{"word": "the", "count": 13_666}]));
    running.stop();
    let said = python("tables.py", &[&data, &dir.path().join("data/storage"), &spark_jars()]);
    println!("read by Spark:\n{said}");
}

/// Kills at any moment, while real events come in and builds run: none is lost, none counted twice.
#[test]
fn real_data_is_counted_once_however_often_the_program_is_killed_at_random() {
    const KILLS: usize = 8;
    const RECORDS: i64 = 39_244;
    let data = shared_data();
    let recounted = recount(&data);
    let broker = Broker::start();
    let dir = tempfile::tempdir().unwrap();
    let streams = &CONFIG[CONFIG.find("[stream.wikipedia]").unwrap()..CONFIG.find("[stream.moby]").unwrap()];
    let config = format!("{}{streams}", broker.config("300 ms", "commit_interval = \"50 ms\""));
    let mut random = StdRng::seed_from_u64(2015);
    let file = data.join("wikipedia/wikiticker-2015-09-12-sampled.json.gz");
    let (running, report): (Running, Value) = std::thread::scope(|scope| {
        let mut running = Running::start(&config, dir.path());
        let produced = scope.spawn(|| {
            let rate = ["produce", "wikipedia", "--rate", "5000", "--format", "json", "--from"];
            watershed(dir.path(), &rate, &file)
        });
        let mut kills = 0;
        while kills < KILLS || !produced.is_finished() {
            for mode in ["rebuild", "refresh"] {
                std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
                // One of the view may run.
                running.client().build("edits", mode);
            }
            std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
            running.kill();
            running = Running::start(&config, dir.path());
            kills += 1;
        }
        let output = produced.join().expect("the producer is waited for");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (running, serde_json::from_slice(&output.stdout).expect("one JSON document"))
    });
    assert_eq!(report["delivered"], RECORDS, "{report}");
    let partitions = report["partitions"].as_object().expect("partitions");
    let ends = partitions.iter().map(|(p, o)| (p.parse().unwrap(), o["next"].as_i64().unwrap())).collect();
    let (_, _, key) = VIEWS[2];
    let served = running.client().view_waiting("edits", &ends, PATIENCE);
    assert_equal("edits", key, &served["rows"], &recounted["edits"]);
    let id = loop {
        // One that a schedule or an earlier request has begun may still run.
        if let Some(id) = running.client().build("edits", "rebuild") {
            break id;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let status = running.client().wait_build(&id, PATIENCE);
    assert_eq!(status["state"], "succeeded", "{status}");
    let answers = |meta: &Value| meta["generation"] == status["generation"];
    let rebuilt = running.client().view_when("edits", PATIENCE, answers);
    assert_equal("edits", key, &rebuilt["rows"], &recounted["edits"]);
    let once = "SELECT count(*) AS events, count(DISTINCT _partition * 1000000 + _offset) AS places FROM wikipedia";
    let (code, counted) = running.client().post("/v1/query", &json!({"sql": once}));
    assert_eq!((code, &counted["rows"]), (200, &json!([{"events": RECORDS, "places": RECORDS}])), "{counted}");
    running.stop();
}

fn watershed(dir: &Path, args: &[&str], file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_watershed"));
    command.args(args).arg(file).arg("-c").arg(dir.join("watershed.toml"));
    command.output().expect("the program starts")
}

fn recount(data: &Path) -> Value {
    serde_json::from_str(&python("recount.py", &[data])).expect("one JSON document")
}

fn spark_jars() -> PathBuf {
    let jars = std::env::var_os("WATERSHED_TEST_SPARK_JARS");
    jars.expect("WATERSHED_TEST_SPARK_JARS names a folder of jars: run the tests with `cargo xtask test`").into()
}

/// What a script prints; it must succeed.
fn python(script: &str, args: &[&Path]) -> String {
    let python = std::env::var_os("WATERSHED_TEST_PYTHON");
    let python =
        python.expect("WATERSHED_TEST_PYTHON names a Python with DuckDB: run the tests with `cargo xtask test`");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_input").join(script);
    let output = Command::new(python).arg("-B").arg(&script).args(args).output().expect("Python starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}\n{stderr}", script.display(), output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The same rows in any order: integers and strings exactly, floats within 1e-9.
fn assert_equal(view: &str, key: &[&str], served: &Value, expected: &Value) {
    let by_key = |rows: &Value| -> BTreeMap<String, Value> {
        let rows = rows.as_array().unwrap_or_else(|| panic!("{view}: rows, not {rows}"));
        rows.iter().map(|r| (key.iter().map(|k| r[*k].to_string()).collect::<Vec<_>>().join(" "), r.clone())).collect()
    };
    let (served, expected) = (by_key(served), by_key(expected));
    assert_eq!(served.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{view}: groups");
    for (group, row) in expected {
        for (column, value) in row.as_object().expect("a row") {
            let got = &served[&group][column];
            let equal = match (value.as_f64(), got.as_f64()) {
                (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * a.abs().max(1.0),
                _ => value == got,
            };
            assert!(equal, "{view}, group {group}, column {column}: served {got}, expected {value}");
        }
    }
}
