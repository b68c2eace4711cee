//! The records that nobody here made, by the facts that stand in /work/shared/data/README.md. Skipped where the data is not.

use std::io::Read;
use std::path::PathBuf;

use arrow::array::{AsArray, StructArray};
use arrow::datatypes::Int64Type;
use flate2::read::MultiGzDecoder;

use super::*;

fn data(path: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from("/work/shared/data").join(path);
    if !path.try_exists().unwrap() {
        eprintln!("skipped: no {}", path.display());
        return None;
    }
    let bytes = std::fs::read(&path).unwrap();
    if path.extension().is_some_and(|e| e == "gz") {
        let mut text = vec![];
        MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut text).unwrap();
        return Some(text);
    }
    Some(bytes)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|b| *b == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line))
}

#[test]
fn an_hour_of_github_events_has_no_dead_letters() {
    let Some(text) = data("gharchive/landing/year=2015/month=01/dayofmonth=01/2015-01-01-0.json.gz") else { return };
    let mut config = stream(
        Format::Json,
        "id VARCHAR NOT NULL, type VARCHAR NOT NULL, actor STRUCT<id BIGINT NOT NULL, login VARCHAR>,
         payload STRUCT<ref_type VARCHAR, size INT, commits LIST<STRUCT<sha VARCHAR, author STRUCT<email VARCHAR>>>>,
         repo JSON, org STRUCT<login VARCHAR>, public BOOLEAN, created_at TIMESTAMP NOT NULL",
    );
    config.event_time = Some("created_at".into());
    let batch = decode(&config, &raw(lines(&text)));
    assert_eq!(batch.dead_letters, []);
    assert_eq!(batch.events.num_rows(), 7_702);
    let column = |name: &str| std::sync::Arc::clone(batch.events.column_by_name(name).unwrap());
    let field = |array: &StructArray, name: &str| std::sync::Arc::clone(array.column_by_name(name).unwrap());
    let types = column("type");
    let types = types.as_string::<i32>();
    assert_eq!(types.iter().filter(|t| *t == Some("PushEvent")).count(), 4_280);
    let actors = field(column("actor").as_struct(), "id");
    let mut actors: Vec<i64> = actors.as_primitive::<Int64Type>().values().to_vec();
    actors.sort_unstable();
    actors.dedup();
    assert_eq!(actors.len(), 3_648);
    assert_eq!(7_702 - column("org").null_count(), 2_342);
    let ref_types = field(column("payload").as_struct(), "ref_type");
    let created = |kind| {
        let pairs = types.iter().zip(ref_types.as_string::<i32>());
        pairs.filter(|pair| *pair == (Some("CreateEvent"), Some(kind))).count()
    };
    assert_eq!([created("repository"), created("branch"), created("tag")], [290, 394, 131]);
    // The JSON column holds what serde_json finds there.
    let repos = column("repo");
    for (line, repo) in lines(&text).zip(repos.as_string::<i32>().iter()) {
        let line: serde_json::Value = serde_json::from_slice(line).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(repo.unwrap()).unwrap(), line["repo"]);
    }
}

#[test]
fn later_github_events_with_fractions_decode() {
    let mut total = 0;
    for path in [
        "gharchive/landing/year=2015/month=02/dayofmonth=01/2015-02-01-0.json.gz",
        "gharchive/landing/year=2021/month=07/dayofmonth=21/2021-07-21-6.json.gz",
        "gharchive/landing/year=2021/month=07/dayofmonth=21/2021-07-21-7.json.gz",
        "gharchive/landing/year=2021/month=07/dayofmonth=21/2021-07-21-8.json.gz",
        "gharchive/landing/year=2021/month=07/dayofmonth=21/2021-07-21-9.json.gz",
    ] {
        let Some(text) = data(path) else { return };
        let config =
            stream(Format::Json, "id VARCHAR, actor STRUCT<display_login VARCHAR>, created_at TIMESTAMP NOT NULL");
        let batch = decode(&config, &raw(lines(&text)));
        assert_eq!(batch.dead_letters, [], "{path}");
        total += batch.events.num_rows();
    }
    assert_eq!(total, 900);
}

#[test]
fn fitness_trackers_are_csv_rows_with_thousands_commas() {
    let Some(text) = data("fitness/Fitness_trackers.csv") else { return };
    let config = stream(
        CSV,
        "\"Brand Name\" VARCHAR, \"Device Type\" VARCHAR, \"Model Name\" VARCHAR, \"Color\" VARCHAR, \"Selling Price\" VARCHAR,
         \"Original Price\" VARCHAR, \"Display\" VARCHAR, \"Rating (Out of 5)\" DOUBLE, \"Strap Material\" VARCHAR,
         \"Average Battery Life (in days)\" INT, \"Reviews\" VARCHAR",
    );
    let batch = decode(&config, &raw(lines(&text).skip(1)));
    assert_eq!(batch.dead_letters, []);
    assert_eq!(batch.events.num_rows(), 610);
    let column = |name: &str| std::sync::Arc::clone(batch.events.column_by_name(name).unwrap());
    let prices = column("Selling Price");
    assert_eq!(prices.as_string::<i32>().iter().flatten().filter(|p| p.contains(',')).count(), 608);
    assert_eq!(column("Reviews").null_count(), 496);
    let ratings = column("Rating (Out of 5)");
    let ratings: Vec<f64> = ratings.as_primitive::<arrow::datatypes::Float64Type>().iter().flatten().collect();
    assert_eq!(ratings.len(), 554);
    assert!((ratings.iter().sum::<f64>() / 554.0 - 4.195668).abs() < 1e-6);
}

#[test]
fn wikipedia_edits_add_up() {
    let Some(text) = data("wikipedia/wikiticker-2015-09-12-sampled.json.gz") else { return };
    let mut config = stream(
        Format::Json,
        "time TIMESTAMP NOT NULL, channel VARCHAR, page VARCHAR, added BIGINT, deleted BIGINT, \"isRobot\" BOOLEAN",
    );
    config.event_time = Some("time".into());
    let batch = decode(&config, &raw(lines(&text)));
    assert_eq!(batch.dead_letters, []);
    assert_eq!(batch.events.num_rows(), 39_244);
    let added = batch.events.column_by_name("added").unwrap().as_primitive::<Int64Type>();
    assert_eq!(added.values().iter().sum::<i64>(), 9_385_573);
}

#[test]
fn every_line_of_moby_dick_is_an_event() {
    let Some(text) = data("text/moby_dick.txt") else { return };
    let batch = decode(&stream(Format::Text, "line VARCHAR"), &raw(lines(&text)));
    assert_eq!((batch.events.num_rows(), batch.dead_letters.len()), (23_243, 0));
    let lines = batch.events.column_by_name("line").unwrap().as_string::<i32>();
    assert_eq!(lines.iter().flatten().map(|l| l.split(' ').count()).sum::<usize>(), 223_454);
}
