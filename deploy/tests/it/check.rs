//! `watershed check`.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use watershed_shared::clock::Instant;

use crate::harness::{Broker, Running};
use crate::program::{Ended, watershed};

const STREAM: &str = "\
[stream.s]
event_time = \"at\"
columns = \"id VARCHAR, n BIGINT, at TIMESTAMP\"
";

fn check(dir: &Path, config: &str, args: &[&str]) -> Ended {
    std::fs::write(dir.join("watershed.toml"), config).expect("a file");
    watershed(dir, &[&["check"], args].concat(), b"")
}

/// The errors of a configuration, as `line:column`, and what each begins with.
#[track_caller]
fn wrong(config: &str, expected: &[(&str, &str)]) {
    let dir = tempfile::tempdir().expect("a folder");
    let ended = check(dir.path(), config, &["--format", "json"]).expect_status(2);
    let json = ended.json();
    let errors = json["errors"].as_array().expect("a list");
    let found: Vec<(String, &str)> = errors
        .iter()
        .map(|e| (format!("{}:{}", e["line"], e["column"]), e["message"].as_str().expect("a text")))
        .collect();
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((place, message), (expected_place, begins)) in found.iter().zip(expected) {
        assert_eq!(place, expected_place, "{found:?}");
        assert!(message.starts_with(begins), "{message}");
    }
    assert!(errors.iter().all(|error| error["file"] == "watershed.toml"), "{errors:?}");
    for error in errors {
        let line = format!(
            "error: watershed.toml:{}:{}: {}\n",
            error["line"],
            error["column"],
            error["message"].as_str().expect("a text")
        );
        assert!(ended.stderr.contains(&line), "{line}\n{}", ended.stderr);
    }
}

#[test]
fn a_right_configuration_is_described() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("names.csv"), "id,name\na,Ann\nb,Bob\n").expect("a file");
    let config = format!(
        "{STREAM}[table.names]\nurl = \"names.csv\"\n[view.v]\nsql = \"\"\"\nSELECT date_bin(INTERVAL '1 hour', at) AS hour, \
         name, count(*) AS events, avg(n) AS mean\nFROM s JOIN names ON s.id = names.id GROUP BY 1, 2\"\"\"\n\
         refresh = \"*/5 * * * *\"\nrebuild = \"0 3 * * *\"\ntimezone = \"Europe/Madrid\"\n"
    );
    let ended = check(dir.path(), &config, &["--format", "json"]).expect_status(0);
    assert_eq!(ended.stderr, "");
    let json = ended.json();
    assert_eq!(json["errors"], json!([]));
    assert_eq!(json["streams"][0]["name"], "s");
    assert_eq!((&json["tables"][0]["name"], &json["tables"][0]["rows"]), (&json!("names"), &json!(2)));
    let view = &json["views"][0];
    assert_eq!((&view["name"], &view["kind"], &view["stream"]), (&json!("v"), &json!("aggregate"), &json!("s")));
    let names: Vec<&Value> = view["columns"].as_array().expect("a list").iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["hour", "name", "events", "mean"]);
    assert_eq!(view["aggregates"].as_array().map(Vec::len), Some(2));
    assert_eq!(view["change"]["kind"], "new");
    let schedules = view["schedules"].as_array().expect("a list");
    assert_eq!(schedules.len(), 2);
    assert!(schedules.iter().all(|schedule| schedule["next"].as_array().map(Vec::len) == Some(5)), "{schedules:?}");
    // Nothing has been started, so nothing is written.
    assert!(!dir.path().join("data").try_exists().expect("a folder"));
    let text = check(dir.path(), &config, &[]).expect_status(0).stdout;
    for part in [
        "view v (aggregate) of stream s, with tables names",
        "0 3 * * * (Europe/Madrid): 20",
        "watershed.toml is right",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn errors_in_sql_stand_where_they_are_in_the_file() {
    wrong(&format!("{STREAM}[view.v]\nsql = \"SELECT nope FROM s\"\n"), &[("5:15", "view `v`: ")]);
    wrong(
        &format!("{STREAM}[view.v]\nsql = \"\"\"\nSELECT count(*) AS c,\n    sum(nope) AS n\nFROM s\n\"\"\"\n"),
        &[("7:9", "view `v`: ")],
    );
    wrong(
        &format!(
            "{STREAM}[view.v]\nsql = '''\n  SELECT count(*)\n  FRM s'''\n[view.w]\nsql = \"SELECT now() AS t FROM s\"\n"
        ),
        &[("7:7", "view `v`: "), ("9:15", "view `w`: ")],
    );
}

#[test]
fn a_table_that_cannot_be_read_is_an_error_at_its_url() {
    wrong(
        &format!(
            "{STREAM}[table.names]\nurl = \"absent.csv\"\n[view.v]\nsql = \"SELECT name FROM s JOIN names ON s.id = names.id\"\n"
        ),
        &[("5:7", "table `names`: ")],
    );
}

#[test]
fn without_a_file_there_is_nothing_to_check() {
    let dir = tempfile::tempdir().expect("a folder");
    let ended = watershed(dir.path(), &["check"], b"").expect_status(2);
    assert!(ended.stderr.contains("there is no watershed.toml here"), "{}", ended.stderr);
    wrong("[http]\nlisen = \"x\"\n", &[("2:1", "unknown key `lisen` in [http]; did you mean `listen`?")]);
}

#[test]
fn what_is_not_there_yet_is_refused() {
    wrong("[storage]\nurl = \"s3://bucket/x\"\n", &[("2:7", "`url`: `s3://` is not there yet")]);
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("watershed.toml"), "[storage]\nurl = \"s3://bucket/x\"\n").expect("a file");
    let ended = watershed(dir.path(), &["up"], b"").expect_status(2);
    assert!(ended.stderr.contains("watershed.toml:2:7: `url`: `s3://` is not there yet"), "{}", ended.stderr);
}

/// What a start would refuse, and what a changed view would cost, as far as the storage can tell.
#[test]
fn the_storage_is_asked_about_columns_and_costs() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().expect("a folder");
    let config = |columns: &str, sql: &str| {
        let stream = format!("[stream.kept]\npartitions = 1\ncolumns = \"{columns}\"\n");
        format!("{}{stream}[view.v]\nsql = \"{sql}\"\n", broker.config("100 ms", ""))
    };
    let (columns, sql) = ("id VARCHAR, n BIGINT", "SELECT count(*) AS c FROM kept");
    let running = Running::start(&config(columns, sql), dir.path());
    let records = |count: i64| (0..count).map(|n| (0, 1_700_000_000_000, Some(format!("{{\"n\":{n}}}").into_bytes())));
    let patience = Duration::from_secs(120);
    broker.produce("kept", &records(10).collect::<Vec<_>>());
    let id = running.client().build("v", "rebuild").expect("no other build runs");
    assert_eq!(running.client().wait_build(&id, patience)["state"], "succeeded");
    // The newest generation has a tenth of what there is.
    broker.produce("kept", &records(90).collect::<Vec<_>>());
    let deadline = Instant::now() + patience;
    let until = || running.client().get("/v1/status").1["streams"][0]["archive"]["archived_until"]["0"].as_i64();
    while until() != Some(100) {
        assert!(Instant::now() < deadline, "{:?}", until());
        std::thread::sleep(Duration::from_millis(20));
    }
    running.stop();

    let change = |sql: &str| check(dir.path(), &config(columns, sql), &["--format", "json"]).expect_status(0).json();
    let found = change("SELECT count(*) AS c, sum(n) AS s FROM kept")["views"][0]["change"].clone();
    assert_eq!((&found["kind"], &found["events"]), (&json!("changed"), &json!(100)));
    assert_eq!(change(sql)["views"][0]["change"]["kind"], "unchanged");

    let ended = check(dir.path(), &config("id VARCHAR, n INT", sql), &[]).expect_status(2);
    let said = "stream `kept`: the table has other columns than the stream declares";
    assert!(ended.stderr.contains(said) && ended.stderr.contains("column=`n`"), "{}", ended.stderr);
    assert!(!ended.stdout.contains("is right"), "{}", ended.stdout);
}
