//! A real Kafka's listener with SASL over TLS: the whole program on it, and what it says when it isn't let in.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use watershed_shared::names::RunId;
use watershed_shared::testing::real_component;
use xtask::cluster::Secured;

use crate::harness::{Running, real_kafka};
use crate::program::watershed;

const PATIENCE: Duration = Duration::from_secs(120);
/// A password that stands nowhere but in its variable.
const WRONG: &str = "correct-horse-battery-staple";
/// All that this program and librdkafka say.
const LOG: &str = "info,librdkafka=debug,watershed=debug,watershed_shared=debug";
const VARIABLE: &str = "WATERSHED_TEST_PASSWORD";

/// The secured listener of the Kafka that `cargo xtask test` starts; `None` under plain `cargo test`.
pub(crate) fn secured() -> Option<Secured> {
    let file = real_component("WATERSHED_TEST_KAFKA_SECURED")?;
    // Addresses by hand, and a program without TLS: the tests would fail in ways that do not say so.
    if !cfg!(feature = "tls") {
        panic!("build with `--features tls`, as `cargo xtask test` does");
    }
    Some(Secured::read(Path::new(&file)).expect("the file that the cluster has written"))
}

/// The keys of `[kafka]` by which `user` gets in; the password comes from the environment.
fn keys(secured: &Secured, user: &str, mechanism: &str) -> Vec<(&'static str, String)> {
    vec![
        ("bootstrap_servers", secured.bootstrap_servers.clone()),
        ("security.protocol", "SASL_SSL".to_owned()),
        ("sasl.mechanism", mechanism.to_owned()),
        ("sasl.username", user.to_owned()),
        ("sasl.password", format!("${{{VARIABLE}}}")),
        ("ssl.ca.location", secured.ca.display().to_string()),
    ]
}

/// A configuration with one stream and one view.
fn config(keys: &[(&str, String)], topic: &str) -> String {
    let mut kafka = String::new();
    for (key, value) in keys {
        let _infallible = writeln!(kafka, "{key} = \"{value}\"");
    }
    format!(
        r#"
data_dir = "data"
[kafka]
{kafka}
[http]
listen = "127.0.0.1:0"
[archive]
commit_interval = "50 ms"
[stream.secret]
topic = "{topic}"
partitions = 2
columns = "v BIGINT"
[view.total]
sql = "SELECT count(*) AS n, sum(v) AS sum FROM secret"
"#
    )
}

/// A configuration for [`Secured::FULL`] with some keys changed: `None` leaves one out.
fn changed(secured: &Secured, changes: &[(&'static str, Option<&str>)]) -> String {
    let mut keys = keys(secured, Secured::FULL, "SCRAM-SHA-512");
    for (name, value) in changes {
        keys.retain(|(key, _)| key != name);
        keys.extend(value.map(|value| (*name, value.to_owned())));
    }
    config(&keys, "never")
}

fn topic() -> String {
    format!("secured-{}", RunId::unique())
}

#[test]
fn events_pass_by_plain_over_tls() {
    if let Some(secured) = secured() {
        pass(&secured, "PLAIN");
    }
}

#[test]
fn events_pass_by_scram_over_tls() {
    if let Some(secured) = secured() {
        pass(&secured, "SCRAM-SHA-512");
    }
}

/// Produces by the command and over HTTP, and asks both layers. The password is nowhere to be seen.
fn pass(secured: &Secured, mechanism: &str) {
    let dir = tempfile::tempdir().unwrap();
    let password = &secured.passwords[Secured::FULL];
    let config = config(&keys(secured, Secured::FULL, mechanism), &topic());
    let running = Running::start_with(&config, dir.path(), &[(VARIABLE, password), ("RUST_LOG", LOG)]);
    let client = running.client();
    for (i, line) in ["{\"v\": 1}\n{\"v\": 2}\n", "{\"v\": 4}\n"].into_iter().enumerate() {
        let (status, body) = client.post_text("/v1/streams/secret", line);
        assert_eq!(status, 200, "{body}");
        let offsets = body["offsets"].as_object().expect("offsets");
        let next = offsets.iter().map(|(p, next)| (p.parse().unwrap(), next.as_i64().unwrap())).collect();
        let body = client.view_waiting("total", &next, PATIENCE);
        assert_eq!(body["rows"][0]["n"], json!(2 + i), "{body}");
        let id = client.build("total", if i == 0 { "rebuild" } else { "refresh" }).expect("no other build runs");
        assert_eq!(client.wait_build(&id, PATIENCE)["state"], "succeeded");
    }
    // The command reads the same file, with the password written out: it is a client of its own.
    let text = config.replace(&format!("${{{VARIABLE}}}"), password);
    std::fs::write(dir.path().join("produce.toml"), text).unwrap();
    let args = ["produce", "secret", "--from", "-", "--format", "json", "-c", "produce.toml"];
    let produced = watershed(dir.path(), &args, b"{\"v\": 8}\n").expect_status(0);
    assert_eq!(produced.json()["delivered"], json!(1));
    let body = client.view_when("total", PATIENCE, |meta| {
        meta["partitions"]
            .as_object()
            .expect("partitions")
            .values()
            .map(|p| p["position"].as_i64().unwrap())
            .sum::<i64>()
            == 4
    });
    assert_eq!((&body["rows"][0]["n"], &body["rows"][0]["sum"]), (&json!(4), &json!(15)), "{body}");

    let (_, status) = client.get("/v1/status");
    assert_eq!(status["streams"][0]["log_unreachable"], json!(null), "{status}");
    let reference = watershed(dir.path(), &["config"], b"");
    let told = [running.log(), status.to_string(), reference.stdout, produced.stdout, produced.stderr];
    for text in told {
        assert!(!text.contains(password.as_str()), "the password is told:\n{text}");
    }
    running.stop();
}

/// The program ends with `status`, says each of `parts` and not the password.
#[track_caller]
fn check_refused(config: &str, password: &str, status: i32, parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let env = [(VARIABLE, password), ("RUST_LOG", LOG)];
    let said = Running::refused_as(config, dir.path(), &env, status);
    for part in parts {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains(password), "{said}");
}

#[test]
fn a_wrong_password_is_said() {
    let Some(secured) = secured() else { return };
    let parts = ["refuses the login", "`sasl.password`", &secured.bootstrap_servers, "Authentication failed"];
    check_refused(&changed(&secured, &[]), WRONG, 1, &parts);
    check_refused(&changed(&secured, &[("sasl.mechanism", Some("PLAIN"))]), WRONG, 1, &parts);
}

#[test]
fn a_certificate_that_is_not_trusted_is_said() {
    let Some(secured) = secured() else { return };
    let password = &secured.passwords[Secured::FULL];
    let parts = ["no TLS connection", "`ssl.ca.location`", &secured.bootstrap_servers, "certificate verify failed"];
    check_refused(&changed(&secured, &[("ssl.ca.location", None)]), password, 1, &parts);
    // Not a certificate at all, and none there: nothing to wait for.
    let parts = ["[kafka]", "ssl.ca.location"];
    check_refused(&changed(&secured, &[("ssl.ca.location", Some("/nowhere/ca.pem"))]), password, 2, &parts);
}

#[test]
fn a_protocol_that_is_not_the_listeners_is_said() {
    let (Some(secured), Some(plain)) = (secured(), real_kafka()) else { return };
    let password = &secured.passwords[Secured::FULL];
    let with = |protocol: &str, servers: &str| {
        changed(&secured, &[("security.protocol", Some(protocol)), ("bootstrap_servers", Some(servers))])
    };
    let parts = ["`security.protocol`", &plain];
    check_refused(&with("SASL_PLAINTEXT", &plain), password, 1, &["refuses the login", parts[0], parts[1]]);
    check_refused(
        &with("SASL_SSL", &plain),
        password,
        1,
        &["no TLS connection", parts[0], parts[1], "PLAINTEXT broker listener"],
    );
    let servers = &secured.bootstrap_servers;
    check_refused(
        &with("PLAINTEXT", servers),
        password,
        1,
        &["no Kafka broker answered", servers, "security.protocol"],
    );
    check_refused(&with("SSL", servers), password, 1, &[servers, "security.protocol"]);
}
