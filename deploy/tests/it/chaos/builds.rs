//! Builds and activations under way while things fail.

use std::sync::atomic::Ordering;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};
use watershed_shared::clock::Instant;

use super::fleet::Role;
use super::poller::{Asked, ask, http};
use super::strikes::shuffled;
use super::{PATIENCE, World};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Rebuild,
    Refresh,
    Activate,
    Cancel,
}

const ORDERS: [Order; 4] = [Order::Rebuild, Order::Refresh, Order::Activate, Order::Cancel];
/// The views without schedules: an activation would pause them.
const BUILT: [&str; 3] = ["by_key", "total", "some_rows"];

impl World {
    /// Whether a build that was asked for has not ended.
    pub(super) fn building(&self) -> bool {
        self.builds.load(Ordering::Relaxed) > 0
    }

    /// Asks for builds while `going_on`; what fails or is interrupted is asked for no more.
    pub(super) fn build_while(&self, random: &mut StdRng, going_on: impl Fn() -> bool) {
        while going_on() && !self.watch.is_over() {
            for order in shuffled(&ORDERS, random) {
                let view = *BUILT.choose(random).expect("there are some");
                let fair = self.weather.fair();
                let outcome = self.order(order, view, random);
                if let Some((state, why)) = &outcome
                    && state == "failed"
                {
                    println!("{} {order:?} of {view} failed: {why}", self.time());
                    assert!(!self.weather.fair_since(fair), "{order:?} of {view} failed in fair weather: {why}");
                }
                if !going_on() {
                    return;
                }
            }
        }
    }

    /// Nothing is broken: each kind of build succeeds.
    pub(super) fn build_in_calm(&self, random: &mut StdRng) {
        let view = *BUILT.choose(random).expect("there are some");
        for order in ORDERS {
            let deadline = Instant::now() + PATIENCE;
            while !self.watch.is_over() {
                match (self.order(order, view, random), order) {
                    (Some((state, _)), Order::Cancel) if state == "cancelled" => break,
                    // It was quicker.
                    (Some((state, _)), Order::Cancel) if state == "succeeded" => {}
                    (Some((state, _)), _) if state == "succeeded" => break,
                    (Some((state, why)), _) => panic!("{order:?} of {view}, with nothing broken: {state}: {why}"),
                    (None, _) => {}
                }
                assert!(Instant::now() < deadline, "{order:?} of {view} does not come to be");
            }
        }
    }

    /// Asks for a build and waits for its end; answers its state and error, `None` if nobody took the order.
    fn order(&self, order: Order, view: &str, random: &mut StdRng) -> Option<(String, String)> {
        let route = match order {
            Order::Activate => {
                let generations =
                    self.request(random, "GET", &format!("/v1/views/{view}/generations"), &Value::Null)?;
                let list = generations["generations"].as_array().expect("generations");
                let generation = &list.choose(random)?["generation"];
                format!("/v1/views/{view}/generations/{generation}/activate")
            }
            Order::Rebuild | Order::Refresh | Order::Cancel => format!("/v1/views/{view}/rebuilds"),
        };
        let mode = if let Order::Refresh = order { "refresh" } else { "rebuild" };
        let body = if let Order::Activate = order { json!({}) } else { json!({"mode": mode}) };
        let accepted = self.request(random, "POST", &route, &body)?;
        let id = accepted["id"].as_str().expect("an id").to_owned();
        self.builds.fetch_add(1, Ordering::Relaxed);
        let ended = self.await_end(&id, order, random);
        self.builds.fetch_sub(1, Ordering::Relaxed);
        let (state, why) = ended?;
        let hit = match (order, state.as_str()) {
            (Order::Rebuild, "succeeded") => Some("rebuilds on request"),
            (Order::Refresh, "succeeded") => Some("refreshes on request"),
            (Order::Activate, "succeeded") => Some("activations"),
            (Order::Cancel, "cancelled") => Some("cancelled builds"),
            _ => None,
        };
        if let Some(hit) = hit {
            self.hits.count(hit, 1);
        }
        Some((state, why))
    }

    fn await_end(&self, id: &str, order: Order, random: &mut StdRng) -> Option<(String, String)> {
        let deadline = Instant::now() + PATIENCE;
        let mut cancel = order == Order::Cancel;
        loop {
            if self.watch.is_over() {
                return None;
            }
            if cancel {
                let asked = self.request(random, "DELETE", &format!("/v1/rebuilds/{id}"), &Value::Null);
                cancel = asked.is_none() && random.random_bool(0.9);
            }
            let Some(status) = self.request(random, "GET", &format!("/v1/rebuilds/{id}?wait_ms=1000"), &Value::Null)
            else {
                continue;
            };
            let state = status["state"].as_str().expect("a state").to_owned();
            if !["queued", "running", "publishing", "held"].contains(&state.as_str()) {
                return Some((state, status["error"].to_string()));
            }
            assert!(Instant::now() < deadline, "build {id} does not end: {status}");
        }
    }

    /// Asks one of the serving processes; `None` if it says to ask later, or does not answer.
    fn request(&self, random: &mut StdRng, method: &str, route: &str, body: &Value) -> Option<Value> {
        let serving = self.fleet.of(Role::Serving);
        let process = serving.choose(random).expect("there are some");
        let fair = self.weather.fair();
        let (url, _) = process.url()?;
        let method = method.parse().expect("a method");
        let mut request = http().request(method, format!("{url}{route}"));
        if !body.is_null() {
            request = request.json(body);
        }
        let later = |what: String| {
            assert!(!self.weather.fair_since(fair), "{} {route}, with nothing broken: {what}", process.name);
            std::thread::sleep(std::time::Duration::from_millis(100));
        };
        match ask(request) {
            Asked::Answer(body) => return Some(body),
            // Another one is under way, or it has ended.
            Asked::Later(409, _) => std::thread::sleep(std::time::Duration::from_millis(100)),
            Asked::Later(status, body) => later(format!("{status} {body}")),
            Asked::Nobody(why) => later(why),
        }
        None
    }
}
