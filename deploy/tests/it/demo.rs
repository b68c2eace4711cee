//! `watershed demo`: the first command that anybody runs.

use std::net::TcpListener;
use std::path::Path;

use serde_json::Value;

use crate::program::{Ended, watershed};

const ANY_PORT: &str = "127.0.0.1:0";

fn demo(dir: &Path, args: &[&str]) -> Ended {
    watershed(dir, &[&["demo", "--exit", "--listen", ANY_PORT, "--broker", ANY_PORT], args].concat(), b"")
}

#[test]
fn it_shows_its_three_steps_and_ends() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let data = data.to_str().expect("UTF-8");
    let ended = demo(dir.path(), &["--data-dir", data]).expect_status(0);
    for part in [
        // A schedule may have built already: it may be a full minute.
        "1. 20000 events are in the log. The view answers from ",
        "succeeded, generation ",
        "the same answer, to the last digit",
        "3. More events arrive",
        "/checkout",
        ", complete true; partitions:",
    ] {
        assert!(ended.stdout.contains(part), "{part}\n{}\n{}", ended.stdout, ended.stderr);
    }
    // The embedded broker complains of requests that its end cuts off.
    assert!(!ended.stderr.contains("ERROR watershed"), "{}", ended.stderr);

    // In the same folder, for programs.
    let ended = demo(dir.path(), &["--data-dir", data, "--format", "json"]).expect_status(0);
    let steps: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(steps.iter().map(|s| s["step"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
    let what = steps[0]["what"].as_str().expect("a text");
    assert!(what.starts_with("42000 events are in the log. The view answers from generation "), "{what}");
    let views = |step: &Value| -> i64 {
        step["answer"]["rows"].as_array().expect("rows").iter().filter_map(|row| row["views"].as_i64()).sum()
    };
    assert_eq!(steps.iter().map(views).collect::<Vec<_>>(), [42_000, 42_000, 44_000]);
}

#[test]
fn a_port_that_is_taken_is_said_with_the_option_that_gives_another() {
    let dir = tempfile::tempdir().expect("a folder");
    let taken = TcpListener::bind(ANY_PORT).expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for (option, other) in [("--listen", "--broker"), ("--broker", "--listen")] {
        let ended = watershed(dir.path(), &["demo", "--exit", option, &address, other, ANY_PORT], b"").expect_status(1);
        let said = format!("cannot listen on {address}: stop the other program or give another port, as in {option} ");
        assert!(ended.stderr.contains(&said), "{}", ended.stderr);
        assert!(!ended.stderr.contains("ERROR") && ended.stdout.is_empty(), "{}{}", ended.stdout, ended.stderr);
    }
}
