//! The log drops what is not archived yet: the loss is recorded and said, both layers lack it alike, and it is accepted
//! by a command. What brokers do besides: they go away, and come back with another topic.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use watershed_shared::clock::Instant;

use crate::harness::{Broker, Client, Running, config_head, real_kafka, wait_until};
use crate::oracle::events::{COLUMNS, Format, Generator};
use crate::oracle::log::Log;

const STREAM: &str = "lossy";
const VIEWS: [&str; 2] = ["all_events", "on_time"];
const PATIENCE: Duration = Duration::from_secs(120);

/// A log to lose something of: the embedded broker's, or a topic of its own on a real Kafka.
struct Case {
    /// `None`: a real Kafka.
    broker: Option<Broker>,
    bootstrap: String,
    topic: String,
}

impl Case {
    fn embedded() -> Self {
        let broker = Broker::start();
        let bootstrap = broker.bootstrap_servers().to_owned();
        Self { broker: Some(broker), bootstrap, topic: STREAM.to_owned() }
    }

    /// On the real Kafka; `None` under plain `cargo test`.
    fn kafka() -> Option<Self> {
        let bootstrap = real_kafka()?;
        Some(Self { broker: None, bootstrap, topic: format!("lossy-{}", watershed_shared::names::RunId::unique()) })
    }

    fn config(&self, commit_interval: &str) -> String {
        config(&self.bootstrap, &self.topic, commit_interval)
    }

    fn produce(&self, client: &Client, generator: &mut Generator, log: &mut Log) {
        produce(client, &self.bootstrap, &self.topic, generator, log);
    }

    /// Drops what lies before `starts`, from the log and from what the truth knows above `archived`.
    fn drop_before(&mut self, starts: &BTreeMap<i32, i64>, archived: &BTreeMap<i32, i64>, log: &mut Log) {
        match &mut self.broker {
            Some(broker) => broker.drop_before(&self.topic, starts),
            None => Client::default().delete_records(&self.bootstrap, &self.topic, starts),
        }
        log.drop_between(archived, starts);
    }

    /// Drops the first half of what is not archived, a little more of later partitions. Answers where the log begins now.
    fn lose(&mut self, archived: &BTreeMap<i32, i64>, log: &mut Log) -> BTreeMap<i32, i64> {
        let start = |(p, end): (i32, i64)| (p, archived[&p] + (end - archived[&p]) / 2 + i64::from(p));
        let starts = log.ends().into_iter().map(start).collect();
        self.drop_before(&starts, archived, log);
        starts
    }
}

/// By `k`: the number of events and the sum of `v`.
type Counts = BTreeMap<String, (i64, i64)>;

#[test]
fn what_the_log_dropped_is_said_and_lacking_in_both_layers_alike() {
    lose_and_accept(Case::embedded());
}

#[test]
fn what_a_real_kafka_dropped_is_said_and_lacking_in_both_layers_alike() {
    if let Some(case) = Case::kafka() {
        lose_and_accept(case);
    }
}

fn lose_and_accept(mut case: Case) {
    let dir = tempfile::tempdir().unwrap();
    let mut generator = Generator::new(11, 2, Format::Json);
    let mut log = Log::default();
    // Nothing is archived by itself: only builds ask for it.
    let config = case.config("1 hour");
    let running = Running::start(&config, dir.path());
    case.produce(running.client(), &mut generator, &mut log);
    running.client().view_waiting("all_events", &log.ends(), PATIENCE);
    // The cut is where the speed layer stands: at the end.
    build(running.client(), "rebuild");
    let archived = log.ends();
    // The speed layer has these, and may have stored them.
    case.produce(running.client(), &mut generator, &mut log);
    for view in VIEWS {
        let body = running.client().view_waiting(view, &log.ends(), PATIENCE);
        assert_eq!(counts(&body), truth(&log, view), "{view} before the loss");
    }
    running.kill();

    let starts = case.lose(&archived, &mut log);
    let running = Running::start(&config, dir.path());
    let client = running.client();
    for view in VIEWS {
        wait_for_loss(client, view, &log, &archived, &starts);
    }
    let (status, body) = client.get("/v1/views/all_events?min_complete=true");
    assert_eq!((status, &body["error"]["code"]), (503, &json!("incomplete")), "{body}");
    // The batch layer lacks them too.
    build(client, "rebuild");
    for view in VIEWS {
        wait_for_loss(client, view, &log, &archived, &starts);
        let (status, verified) = client.post(&format!("/v1/views/{view}/verify"), &json!({}));
        assert_eq!((status, &verified["equal"]), (200, &json!(true)), "{verified}");
    }
    check_stream(client, &log, false);
    check_status(client, &starts, false);

    let accepted = accept(client);
    assert_eq!(accepted["accepted"], json!(starts.len()), "{accepted}");
    assert_eq!(accept(client)["accepted"], json!(0), "once");
    let (status, body) = client.post("/v1/streams/losy/accept-loss", &json!({}));
    assert_eq!((status, &body["error"]["code"]), (404, &json!("unknown_stream")), "{body}");
    for view in VIEWS {
        let body = client.view_when(view, PATIENCE, |meta| meta["complete"] == json!(true));
        assert_eq!(counts(&body), truth(&log, view), "{view} after the loss was accepted");
    }
    let (status, body) = client.get("/v1/views/all_events?min_complete=true");
    assert_eq!(status, 200, "{body}");
    check_stream(client, &log, true);
    check_status(client, &starts, true);

    case.produce(client, &mut generator, &mut log);
    build(client, "refresh");
    running.stop();
    let running = Running::start(&config, dir.path());
    for view in VIEWS {
        let body = running.client().view_waiting(view, &log.ends(), PATIENCE);
        assert_eq!(counts(&body), truth(&log, view), "{view} after a refresh and a restart");
        running.client().view_when(view, PATIENCE, |meta| meta["complete"] == json!(true));
    }
    check_status(running.client(), &starts, true);
    running.stop();
}

#[test]
fn a_crash_between_the_record_of_a_loss_and_the_archive_changes_nothing() {
    let mut case = Case::embedded();
    let dir = tempfile::tempdir().unwrap();
    let config = case.config("1 hour");
    let mut generator = Generator::new(12, 2, Format::Json);
    let mut log = Log::default();
    let running = Running::start(&config, dir.path());
    case.produce(running.client(), &mut generator, &mut log);
    running.client().view_waiting("all_events", &log.ends(), PATIENCE);
    running.kill();
    // Nothing was archived, so it is lost from the origin on.
    let archived = log.ends().into_keys().map(|p| (p, 0)).collect();
    let starts = case.lose(&archived, &mut log);
    let mut crashing = Running::start_with(&config, dir.path(), &[("WATERSHED_ABORT_AT", "loss recorded")]);
    assert!(crashing.ended_within(PATIENCE), "it did not crash:\n{}", crashing.log());
    let running = Running::start(&config, dir.path());
    for view in VIEWS {
        wait_for_loss(running.client(), view, &log, &archived, &starts);
    }
    build(running.client(), "rebuild");
    for view in VIEWS {
        wait_for_loss(running.client(), view, &log, &archived, &starts);
    }
    check_status(running.client(), &starts, false);
    running.stop();
}

#[test]
fn a_stream_may_begin_in_the_middle_of_a_log() {
    begin_in_the_middle(Case::embedded(), false);
}

#[test]
fn a_stream_may_begin_in_the_middle_of_a_real_kafkas_log() {
    if let Some(case) = Case::kafka() {
        begin_in_the_middle(case, true);
    }
}

/// `emptied`: nothing is left of partition 1.
fn begin_in_the_middle(mut case: Case, emptied: bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut generator = Generator::new(13, 2, Format::Json);
    let mut log = Log::default();
    // Another platform has made the topic, long ago.
    let config = case.config("1 hour");
    let elsewhere = tempfile::tempdir().unwrap();
    let running = Running::start(&config, elsewhere.path());
    case.produce(running.client(), &mut generator, &mut log);
    running.stop();
    let nothing = log.ends().into_keys().map(|p| (p, 0)).collect();
    let mut starts: BTreeMap<i32, i64> = log.ends().into_iter().map(|(p, end)| (p, end / 2)).collect();
    if emptied {
        starts.insert(1, log.ends()[&1]);
    }
    case.drop_before(&starts, &nothing, &mut log);
    let running = Running::start(&config, dir.path());
    for mode in ["rebuild", "refresh", "rebuild"] {
        build(running.client(), mode);
        for view in VIEWS {
            let body = running.client().view_waiting(view, &log.ends(), PATIENCE);
            assert_eq!(counts(&body), truth(&log, view), "{view} after a {mode}");
            let meta = &body["meta"]["views"][view];
            assert_eq!(meta["complete"], json!(true), "what was gone before the stream began is no loss: {meta}");
        }
        case.produce(running.client(), &mut generator, &mut log);
    }
    running.stop();
}

#[test]
fn brokers_may_go_away_and_come_back() {
    let mut broker = Broker::start();
    let dir = tempfile::tempdir().unwrap();
    let config = config(broker.bootstrap_servers(), STREAM, "50 ms");
    let mut generator = Generator::new(14, 2, Format::Json);
    let mut log = Log::default();
    let running = Running::start(&config, dir.path());
    let client = running.client();
    produce(client, broker.bootstrap_servers(), STREAM, &mut generator, &mut log);
    client.view_waiting("all_events", &log.ends(), PATIENCE);
    for for_long in [true, false] {
        broker.stop();
        if for_long {
            // What there is goes on being answered, and the log's absence is said.
            let away = |meta: &Value| codes(meta).contains(&"log_unreachable".to_owned());
            let body = client.view_when("all_events", PATIENCE, away);
            assert_eq!(counts(&body), truth(&log, "all_events"));
        }
        broker.start_again();
        produce(client, broker.bootstrap_servers(), STREAM, &mut generator, &mut log);
        for view in VIEWS {
            let body = client.view_waiting(view, &log.ends(), PATIENCE);
            assert_eq!(counts(&body), truth(&log, view), "{view} after the broker came back");
            client.view_when(view, PATIENCE, |meta| meta["complete"] == json!(true));
        }
    }
    build(client, "rebuild");
    wait_until(PATIENCE, || {
        let status = stream_status(client);
        if status["archiver"]["state"] == "healthy" { Ok(()) } else { Err(status) }
    });
    running.stop();
}

/// The embedded broker answers a reader of a topic that is gone with what librdkafka 2.12 crashes on (a topic without name
/// or id), so there it happens while the program is down.
#[test]
fn a_topic_that_is_made_anew_stops_its_stream_and_is_never_mixed_in() {
    replace_topic(&Case::embedded(), false);
}

#[test]
fn a_real_kafkas_topic_that_is_made_anew_stops_its_stream_at_once() {
    if let Some(case) = Case::kafka() {
        replace_topic(&case, true);
    }
}

fn replace_topic(case: &Case, under_the_program: bool) {
    let dir = tempfile::tempdir().unwrap();
    let config = case.config("50 ms");
    let mut generator = Generator::new(15, 2, Format::Json);
    let mut log = Log::default();
    let running = Running::start(&config, dir.path());
    case.produce(running.client(), &mut generator, &mut log);
    build(running.client(), "rebuild");
    case.produce(running.client(), &mut generator, &mut log);
    for view in VIEWS {
        running.client().view_waiting(view, &log.ends(), PATIENCE);
    }

    let mut replace = |client: &Client| {
        client.replace_topic(&case.bootstrap, &case.topic, 2);
        let mut other = Log::default();
        for _ in 0..3 {
            case.produce(client, &mut generator, &mut other);
        }
    };
    if under_the_program {
        replace(running.client());
        check_replaced(running.client(), &log);
        running.stop();
    } else {
        running.stop();
        replace(&Client::default());
    }
    // It starts all the same: other streams have nothing to do with it.
    let running = Running::start_unready(&config, dir.path());
    check_replaced(running.client(), &log);
    running.stop();
}

#[test]
fn a_compacted_topic_is_refused_unless_it_is_accepted() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().unwrap();
    Client::default().create_topic(broker.bootstrap_servers(), STREAM, 2, &[("cleanup.policy", "compact")]);
    let refused = config(broker.bootstrap_servers(), STREAM, "50 ms");
    let said = Running::refused(&refused, dir.path());
    for part in ["start stream `lossy`", "cleanup.policy=compact", "accept_compacted = true", "[stream.lossy]"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let accepted = refused.replace("partitions = 2", "partitions = 2\naccept_compacted = true");
    let running = Running::start(&accepted, dir.path());
    let (mut generator, mut log) = (Generator::new(16, 2, Format::Json), Log::default());
    produce(running.client(), broker.bootstrap_servers(), STREAM, &mut generator, &mut log);
    running.client().view_waiting("all_events", &log.ends(), PATIENCE);
    running.stop();
}

/// What was counted before goes on being answered, with the reason.
fn check_replaced(client: &Client, log: &Log) {
    for view in VIEWS {
        wait_until(PATIENCE, || {
            // A process that has just started answers nothing yet.
            let (status, body) = client.get(&format!("/v1/views/{view}"));
            let said = status == 200 && codes(&body["meta"]["views"][view]).contains(&"topic_replaced".to_owned());
            if said { Ok(()) } else { Err(body) }
        });
        let body = client.view_waiting(view, &log.ends(), PATIENCE);
        assert_eq!(counts(&body), truth(log, view), "{view}: {}", body["meta"]);
        let meta = &body["meta"]["views"][view];
        assert_eq!(meta["complete"], json!(false), "{meta}");
        let (status, body) = client.get(&format!("/v1/views/{view}?min_complete=true"));
        assert_eq!((status, &body["error"]["code"]), (503, &json!("incomplete")), "{body}");
    }
    wait_until(PATIENCE, || {
        let status = stream_status(client);
        let error = status["archiver"]["error"].as_str().unwrap_or_default();
        let stopped = status["archiver"]["state"] == "stopped" && error.contains("declare it as a new stream");
        if stopped { Ok(()) } else { Err(status) }
    });
}

/// Waits until the view says what was lost, and answers the rest.
fn wait_for_loss(client: &Client, view: &str, log: &Log, archived: &BTreeMap<i32, i64>, starts: &BTreeMap<i32, i64>) {
    let expected: Vec<_> = starts.iter().map(|(p, start)| (*p, archived[p], *start)).collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let body = client.view_waiting(view, &log.ends(), PATIENCE);
        let meta = &body["meta"]["views"][view];
        let mut said = Vec::new();
        for reason in meta["reasons"].as_array().expect("reasons").iter().filter(|r| r["code"] == "offsets_lost") {
            let number = |name: &str| reason[name].as_i64().expect("a number");
            said.push((i32::try_from(number("partition")).unwrap(), number("from"), number("to")));
        }
        said.sort_unstable();
        let only = codes(meta).iter().all(|code| code == "offsets_lost");
        if only && said == expected && counts(&body) == truth(log, view) {
            assert_eq!(meta["complete"], json!(false), "{meta}");
            let message = meta["reasons"][0]["message"].as_str().expect("a message");
            assert!(message.contains("accept-loss lossy"), "{message}");
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{view} does not get there: {meta}\nlost: {expected:?}\nserved: {:?}\ntruth:  {:?}",
            counts(&body),
            truth(log, view)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn codes(meta: &Value) -> Vec<String> {
    let reasons = meta["reasons"].as_array().expect("reasons");
    reasons.iter().map(|r| r["code"].as_str().expect("a code").to_owned()).collect()
}

/// The stream read directly: all that is archived, and whether it says that something is lacking.
fn check_stream(client: &Client, log: &Log, complete: bool) {
    let sql = format!("SELECT count(*) AS n FROM {STREAM}");
    let (status, body) = client.post("/v1/query", &json!({"sql": sql}));
    assert_eq!(status, 200, "{body}");
    let events = log.seen_below(&log.ends()).len();
    assert_eq!(body["rows"][0]["n"], json!(events), "{body}");
    let meta = &body["meta"]["streams"][STREAM];
    assert_eq!(meta["complete"], json!(complete), "{meta}");
    let (status, body) = client.post("/v1/query", &json!({"sql": sql, "min_complete": true}));
    assert_eq!(status, if complete { 200 } else { 503 }, "{body}");
}

fn stream_status(client: &Client) -> Value {
    let (status, body) = client.get("/v1/status");
    assert_eq!(status, 200, "{body}");
    body["streams"][0].clone()
}

fn check_status(client: &Client, starts: &BTreeMap<i32, i64>, accepted: bool) {
    let status = stream_status(client);
    let losses = status["losses"].as_array().expect("losses");
    assert_eq!(losses.len(), starts.len(), "{status}");
    for loss in losses {
        let partition = i32::try_from(loss["partition"].as_i64().unwrap()).unwrap();
        assert_eq!(loss["to"], json!(starts[&partition]), "{loss}");
        assert_eq!(loss["accepted"], json!(accepted), "{loss}");
    }
    let lost: i64 = losses.iter().map(|l| l["to"].as_i64().unwrap() - l["from"].as_i64().unwrap()).sum();
    // A process that has just started may not have looked yet.
    wait_until(PATIENCE, || {
        let status = stream_status(client);
        let headroom = &status["archive"]["headroom"];
        let metrics = reqwest::blocking::get(format!("{}/metrics", client.url())).expect("an answer");
        let metrics = metrics.text().expect("text");
        let lines = [
            format!("watershed_archive_lost_offsets_total{{stream=\"{STREAM}\"}} {lost}"),
            format!("watershed_archive_archiver_state{{stream=\"{STREAM}\",state=\"healthy\"}} 1"),
            format!("watershed_archive_headroom_offsets{{stream=\"{STREAM}\",partition=\"0\"}} {}", headroom["0"]),
        ];
        let shown = lines.iter().all(|line| metrics.lines().any(|l| l == line));
        let healthy = status["archiver"]["state"] == "healthy" && headroom["0"].as_i64().is_some();
        if shown && healthy { Ok(()) } else { Err(json!([status, lines, metrics])) }
    });
}

/// `watershed accept-loss`.
fn accept(client: &Client) -> Value {
    let done = Command::new(env!("CARGO_BIN_EXE_watershed"))
        .args(["accept-loss", STREAM, "--format", "json", "--url", client.url()])
        .current_dir(Path::new("/"))
        .output()
        .expect("the program runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).expect("JSON")
}

fn build(client: &Client, mode: &str) {
    for view in VIEWS {
        let id = client.build(view, mode).expect("no other build runs");
        let status = client.wait_build(&id, PATIENCE);
        assert_eq!(status["state"], "succeeded", "{status}");
        client.view_when(view, PATIENCE, |meta| meta["generation"] == status["generation"]);
    }
}

fn produce(client: &Client, bootstrap: &str, topic: &str, generator: &mut Generator, log: &mut Log) {
    let records = (0..80).map(|_| generator.placed()).collect();
    log.produce(Format::Json, records, |payloads| client.produce_to_log(bootstrap, topic, payloads));
}

fn counts(body: &Value) -> Counts {
    let rows = body["rows"].as_array().expect("rows").iter();
    rows.map(|r| (r["k"].to_string(), (r["n"].as_i64().unwrap(), r["sv"].as_i64().unwrap()))).collect()
}

/// The view over the events that are left.
fn truth(log: &Log, view: &str) -> Counts {
    let mut counts = Counts::new();
    for event in log.seen_below(&log.ends()).iter().filter(|event| view == "all_events" || !event.late) {
        let (n, sum) = counts.entry(json!(event.row.k).to_string()).or_default();
        *n += 1;
        *sum += event.row.v;
    }
    counts
}

fn config(bootstrap: &str, topic: &str, commit_interval: &str) -> String {
    let head = config_head(bootstrap, commit_interval, "commit_interval = \"50 ms\"");
    let sql = format!("SELECT k, count(*) AS n, sum(v) AS sv FROM {STREAM} GROUP BY k");
    format!(
        r#"{head}[stream.{STREAM}]
topic = "{topic}"
partitions = 2
format = "json"
event_time = "t"
allowed_lateness = "10 minutes"
columns = """{COLUMNS}"""
[view.all_events]
sql = "{sql}"
[view.on_time]
sql = "{sql}"
late = "exclude"
"#
    )
}
