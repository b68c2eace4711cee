//! Exit statuses, and what goes to which output.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::thread::JoinHandle;

use crate::program::watershed;

fn with_config(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("watershed.toml"), text).expect("a file");
    dir
}

#[test]
fn a_wrong_command_line_is_status_2() {
    let dir = with_config("");
    for args in [&["quary"][..], &[], &["query"], &["produce"], &["query", "SELECT 1", "--timeout", "soon"]] {
        let ended = watershed(dir.path(), args, b"").expect_status(2);
        assert_eq!(ended.stdout, "", "{args:?}");
        assert_ne!(ended.stderr, "", "{args:?}");
    }
    let ended = watershed(dir.path(), &["status", "--url", "localhost"], b"").expect_status(2);
    assert!(ended.stderr.contains("`localhost` (from --url or WATERSHED_URL) is not a URL"), "{}", ended.stderr);
}

#[test]
fn a_wrong_configuration_is_status_2_with_every_error_in_its_place() {
    let dir = with_config("[http]\nlisten = \"here\"\n[view.v]\nsql = \"SELECT 1\"\nrefresh = \"61 * * * *\"\n");
    let ended = watershed(dir.path(), &["status"], b"").expect_status(2);
    assert_eq!(ended.stdout, "");
    assert_eq!(
        ended.stderr,
        "error: watershed.toml:2:10: `listen`: `here` is not an address such as 127.0.0.1:8080, 0.0.0.0:8080 or \
         [::1]:8080\nerror: watershed.toml:5:11: `refresh`: the minute field: 61 is not within 0-59\n"
    );
    let json = watershed(dir.path(), &["status", "--format", "json"], b"").expect_status(2).json();
    assert_eq!(
        json["errors"][1],
        serde_json::json!({
            "file": "watershed.toml", "line": 5, "column": 11,
            "message": "`refresh`: the minute field: 61 is not within 0-59",
        })
    );
    let ended = watershed(dir.path(), &["status", "-c", "absent.toml"], b"").expect_status(2);
    assert!(ended.stderr.contains("absent.toml:1:1: cannot read the configuration: No such file"), "{}", ended.stderr);
}

#[test]
fn without_a_platform_the_message_says_what_to_start() {
    // A port that nobody listens on: it was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let dir = with_config(&format!("[http]\nlisten = \"127.0.0.1:{port}\"\n"));
    for args in [&["status"][..], &["query", "SELECT 1"], &["rebuild", "v"], &["verify", "v"]] {
        let ended = watershed(dir.path(), args, b"").expect_status(1);
        assert!(ended.stderr.contains(&format!("no platform answers at http://127.0.0.1:{port}/")), "{}", ended.stderr);
        assert!(ended.stderr.contains("start one with `watershed up`"), "{}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
    let dir = with_config("[http]\nlisten = \"127.0.0.1:0\"\n");
    let ended = watershed(dir.path(), &["status"], b"").expect_status(1);
    assert!(ended.stderr.contains("`[http] listen` has port 0"), "{}", ended.stderr);
}

#[test]
fn the_reference_is_printed() {
    let ended = watershed(Path::new("/"), &["config"], b"").expect_status(0);
    assert!(ended.stdout.contains("[archive]\n") && ended.stdout.contains("commit_interval = \"10 seconds\""));
}

/// Answers one connection after the other with `answers`, (status line, body); gives back the requests' heads and bodies.
fn answering(answers: &'static [(&'static str, &'static str)]) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let thread = std::thread::spawn(move || {
        let mut requests = Vec::new();
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
            let mut request = String::new();
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).expect("a line");
                let lower = line.to_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a number");
                }
                request.push_str(&line);
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut content = vec![0; length];
            reader.read_exact(&mut content).expect("a body");
            request.push_str(&String::from_utf8(content).expect("UTF-8"));
            requests.push(request);
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).expect("it is sent");
        }
        requests
    });
    (url, thread)
}

#[test]
fn an_error_of_the_platform_is_told_with_its_code() {
    let (url, _) =
        answering(&[("404 Not Found", r#"{"error": {"code": "unknown_view", "message": "there is no view `v`"}}"#)]);
    let ended = watershed(Path::new("/"), &["generations", "v", "--url", &url], b"").expect_status(1);
    assert_eq!(ended.stderr, "error: there is no view `v` (unknown_view)\n");
    let (url, _) = answering(&[("502 Bad Gateway", "<html>")]);
    let ended = watershed(Path::new("/"), &["generations", "v", "--url", &url], b"").expect_status(1);
    assert_eq!(ended.stderr, "error: the platform answered 502 Bad Gateway: <html>\n");
}

#[test]
fn a_verification_that_finds_differences_is_status_1() {
    const DIFFERENT: &str =
        r#"{"view": "v", "position": {"0": 7}, "equal": false, "groups": 1, "differences": [{"key": "a"}]}"#;
    let (url, _) =
        answering(&[("200 OK", DIFFERENT), ("200 OK", r#"{"view": "v", "equal": true, "differences": []}"#)]);
    let ended = watershed(Path::new("/"), &["verify", "v", "--url", &url, "--format", "json"], b"").expect_status(1);
    assert_eq!(ended.stdout.trim(), DIFFERENT, "the body as it came");
    watershed(Path::new("/"), &["verify", "v", "--url", &url], b"").expect_status(0);
}

#[test]
fn rebuild_waits_for_the_end_and_fails_unless_it_succeeded() {
    const STARTED: (&str, &str) = ("202 Accepted", r#"{"id": "b1"}"#);
    const RUNNING: (&str, &str) = (
        "200 OK",
        r#"{"id": "b1", "state": "running", "progress": {"step": "reading events", "events_read": 1, "events_total": 9}}"#,
    );
    let (url, requests) =
        answering(&[STARTED, RUNNING, ("200 OK", r#"{"id": "b1", "state": "succeeded", "generation": 3}"#)]);
    let ended =
        watershed(Path::new("/"), &["rebuild", "v/x", "--refresh", "--wait", "--url", &url, "--format", "json"], b"");
    assert_eq!(ended.expect_status(0).json()["generation"], 3);
    let requests = requests.join().expect("the server ends");
    assert!(requests[0].starts_with("POST /v1/views/v%2Fx/rebuilds "), "{}", requests[0]);
    assert!(requests[0].ends_with(r#"{"dry_run":false,"mode":"refresh"}"#), "{}", requests[0]);
    assert!(requests[1].starts_with("GET /v1/rebuilds/b1?wait_ms="), "{}", requests[1]);

    let (url, _) = answering(&[STARTED, ("200 OK", r#"{"id": "b1", "state": "failed", "error": "the disk is full"}"#)]);
    let ended = watershed(Path::new("/"), &["rebuild", "v", "--wait", "--url", &url], b"").expect_status(1);
    assert!(ended.stdout.contains("the disk is full"), "{}", ended.stdout);

    let (url, _) = answering(&[STARTED]);
    let ended = watershed(Path::new("/"), &["rebuild", "v", "--url", &url], b"").expect_status(0);
    assert!(ended.stdout.contains("b1"), "{}", ended.stdout);
}

#[test]
fn query_prints_a_table_and_tells_what_is_missing() {
    let (url, requests) = answering(&[(
        "200 OK",
        r#"{"rows": [{"type": "Push", "events": 41, "last": null}],
            "meta": {"views": {"v": {"complete": false, "reasons": [{"code": "catching_up", "message": "still catching up"}]}}}}"#,
    )]);
    let ended = watershed(Path::new("/"), &["query", "-", "--url", &url], b"SELECT * FROM v").expect_status(0);
    let lines: Vec<Vec<&str>> = ended.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["type", "events", "last"]);
    assert_eq!(lines[2], ["Push", "41", "NULL"]);
    assert_eq!(lines[3], ["1", "row"]);
    assert_eq!(ended.stderr, "warning: v is not complete: still catching up\n");
    let requests = requests.join().expect("the server ends");
    assert!(requests[0].ends_with(r#"{"sql":"SELECT * FROM v","timeout_ms":30000}"#), "{}", requests[0]);
}
