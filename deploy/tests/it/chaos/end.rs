//! The end: nothing is broken, nothing is produced. Everything has come through, everywhere, once.

use serde_json::{Value, json};

use super::fleet::Role;
use super::recount::{Recount, View, views};
use super::weather::Ends;
use super::{PATIENCE, TOPIC, World};
use crate::harness::{Client, wait_until};
use crate::oracle::compare::assert_rows;
use crate::oracle::log::{Log, offsets};

impl World {
    fn clients(&self) -> Vec<Client> {
        let serving = self.fleet.of(Role::Serving);
        serving.iter().map(|process| Client::at(process.url().expect("it is up").0)).collect()
    }

    /// Each serving process answers the truth at the log's end, in the speed layer's way and after a rebuild, and
    /// `verify` agrees.
    pub(super) fn check_end(&self, ends: &Ends) {
        let clients = self.clients();
        let mut truths = Vec::new();
        for view in &views() {
            let truth = Recount::new(view).at(ends, &self.ledger);
            for client in &clients {
                let body = client.view_waiting(view.name(), ends, PATIENCE);
                self.compare(view, &body, ends, &truth, "at the end");
            }
            truths.push(truth);
        }
        for (view, truth) in views().iter().zip(&truths) {
            rebuild(&clients[0], view);
            for client in &clients {
                let meta_at_end = |meta: &Value| meta["complete"] == true && offsets(meta, "batch_until") == *ends;
                let body = client.view_when(view.name(), PATIENCE, meta_at_end);
                self.compare(view, &body, ends, truth, "after the last rebuild");
                let (status, verified) = client.post(&format!("/v1/views/{}/verify", view.name()), &json!({}));
                assert_eq!((status, &verified["equal"]), (200, &json!(true)), "{}: {verified}", view.name());
            }
        }
    }

    fn compare(&self, view: &View, body: &Value, ends: &Ends, truth: &[Value], when: &str) {
        let meta = &body["meta"]["views"][view.name()];
        assert_eq!(offsets(meta, "position"), *ends, "{} {when}: {meta}", view.name());
        assert_rows(&view.case, &body["rows"], truth, &format!("{when}, meta {meta}"));
    }

    /// The master dataset holds each event once, the dead letters each record that cannot be decoded; what was counted
    /// as it came in is what the oracle counts.
    pub(super) fn check_table(&self, log: &Log, ends: &Ends) {
        let clients = self.clients();
        log.check_master_dataset(&clients[0], TOPIC);
        let mut seen = log.seen_below(ends);
        for view in views() {
            if !view.late {
                seen.retain(|event| !event.late);
            }
            let truth = (view.case.truth)(&seen);
            let body = clients[0].view_waiting(view.name(), ends, PATIENCE);
            assert_rows(&view.case, &body["rows"], &truth, "as the oracle counts");
            if !view.late {
                seen = log.seen_below(ends);
            }
        }
    }

    /// What the schedules built, and who claimed what.
    pub(super) fn count_at_end(&self) {
        let (status, body) = self.clients()[0].get("/v1/rebuilds?view=on_time&state=succeeded");
        assert_eq!(status, 200, "{body}");
        let builds = body["rebuilds"].as_array().expect("builds");
        let scheduled = builds.iter().filter(|build| build["trigger"] == "schedule").count();
        self.hits.count("builds by a schedule", scheduled as u64);
        let claims: usize = self.fleet.of(Role::Speed).iter().map(|p| p.log().matches("claimed a shard").count()).sum();
        self.hits.count("changes of the owner of a shard", claims.saturating_sub(super::SHARDS) as u64);
    }

    /// Nobody has panicked but sled, on files that were damaged or a disk that was full.
    pub(super) fn check_logs(&self) {
        for process in self.fleet.all() {
            let log = process.log();
            let mut lines = log.lines();
            while let Some(line) = lines.next() {
                if line.contains("panicked at") {
                    let of_sled = process.role == Role::Speed && line.contains("/sled-");
                    let more: Vec<&str> = lines.clone().take(40).collect();
                    assert!(of_sled, "{}: {line}\n{}", process.name, more.join("\n"));
                }
            }
        }
    }
}

fn rebuild(client: &Client, view: &View) {
    let mut id = None;
    // One of its schedule may be under way.
    wait_until(PATIENCE, || {
        id = client.build(view.name(), "rebuild");
        if id.is_some() { Ok(()) } else { Err(json!("another build is under way")) }
    });
    let status = client.wait_build(&id.expect("it was taken"), PATIENCE);
    assert_eq!(status["state"], "succeeded", "{status}");
}
