//! The program, as the files start it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;

use super::{Probe, Process, ROLES, compose, kubernetes, python};
use crate::harness::{Broker, Running};

const PATIENCE: Duration = Duration::from_secs(120);

#[track_caller]
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from} in\n{text}");
    text.replace(from, to)
}

/// The configuration of compose.yaml on this machine: any port, and the log and the storage of this test.
fn local(process: &Process, broker: &Broker, storage: &str) -> String {
    let text = replaced(&process.config_text, "\"/var/lib/watershed\"", "\"data\"");
    let text = replaced(&text, "\"kafka:19092\"", &format!("{:?}", broker.bootstrap_servers()));
    let text = replaced(&text, "\"hdfs://namenode:8020/watershed\"", &format!("{storage:?}"));
    let text = replaced(&text, "\"0.0.0.0:8080\"", "\"127.0.0.1:0\"");
    let text = replaced(&text, "\"0.0.0.0:8081\"", "\"127.0.0.1:0\"");
    replaced(&text, "advertise = \"speed:8081\"\n", "")
}

#[test]
fn roles_run_as_they_are_deployed_and_answer_every_probe() {
    let Some(python) = python() else { return };
    let broker = Broker::start();
    let dir = tempfile::tempdir().expect("a folder");
    let storage = dir.path().join("storage").display().to_string();
    let mut running = BTreeMap::new();
    // The order in which they depend on each other.
    for role in ["speed", "batch", "serving"] {
        let process = compose::process(&python, role);
        let home = dir.path().join(role);
        std::fs::create_dir(&home).expect("a folder");
        let env: Vec<(&str, &str)> = process.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        running.insert(role, Running::start_role(role, &local(&process, &broker, &storage), &home, &env));
    }
    let serving = running["serving"].client();
    let record = json!({ "at": "2024-10-06T12:00:00Z", "page": "/", "visitor": "ann" });
    let (status, published) = serving.post("/v1/streams/clicks", &record);
    assert_eq!(status, 200, "{published}");
    let offsets = published["offsets"].as_object().expect("offsets");
    let offsets = offsets.iter().map(|(p, o)| (p.parse().expect("a partition"), o.as_i64().expect("an offset")));
    let answer = serving.view_waiting("pages", &offsets.collect(), PATIENCE);
    assert_eq!(answer["rows"], json!([{ "page": "/", "views": 1, "visitors": 1 }]), "{answer}");

    for role in ROLES {
        let deployed = [compose::process(&python, role), kubernetes::process(&python, role)];
        let probes: BTreeSet<Probe> = deployed.into_iter().flat_map(|process| process.health).collect();
        for Probe { path, .. } in probes {
            let (status, body) = running[role].client().get(&path);
            assert_eq!(status, 200, "{role}: {path}: {body}");
        }
    }
    // SIGTERM ends each of them cleanly, in whatever order.
    for (_, running) in running {
        running.stop();
    }
}
