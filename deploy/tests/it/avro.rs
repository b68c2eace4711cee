//! A stream of Avro records whose schema evolves: Confluent's own client and serializer register the schemas and write the
//! records, the whole program reads them, and the truth is what the writer meant.
//!
//! The registry is a server of this test that keeps to Confluent's API as far as the two clients use it: none that could
//! be installed here runs (Confluent's and Karapace are not in the public registries, Apicurio's is there in parts only).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use warp::Filter;
use warp::http::StatusCode;
use watershed_shared::testing::real_component;

use crate::harness::{Broker, Client, Running, wait_until};
use crate::program::watershed;

const PATIENCE: Duration = Duration::from_secs(180);

/// Schemas by their ids, from 1.
type Schemas = Arc<Mutex<Vec<String>>>;

/// A schema registry that can go away and come back.
struct Registry {
    runtime: Runtime,
    schemas: Schemas,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Registry {
    fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let address = "127.0.0.1:0".parse().expect("an address");
        let mut registry = Self { runtime, schemas: Schemas::default(), address, stop: CancellationToken::new() };
        registry.start_again();
        registry
    }

    /// At the same address, with all that it has.
    fn start_again(&mut self) {
        let listener = self.runtime.block_on(TcpListener::bind(self.address)).expect("the address is free");
        self.address = listener.local_addr().expect("it is bound");
        self.stop = CancellationToken::new();
        let serving = warp::serve(routes(Arc::clone(&self.schemas))).incoming(listener);
        self.runtime.spawn(serving.graceful(self.stop.clone().cancelled_owned()).run());
    }

    fn stop(&self) {
        self.stop.cancel();
        wait_until(PATIENCE, || match std::net::TcpStream::connect(self.address) {
            Ok(_) => Err(json!("it still listens")),
            Err(_) => Ok(()),
        });
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

fn routes(schemas: Schemas) -> impl Filter<Extract = (impl warp::Reply,), Error = std::convert::Infallible> + Clone {
    let with = warp::any().map(move || Arc::clone(&schemas));
    let register = warp::path!("subjects" / String / "versions")
        .and(warp::post())
        .and(warp::body::content_length_limit(1 << 20))
        // Its type is the registry's own, which `warp::body::json` does not take.
        .and(warp::body::bytes())
        .and(with.clone())
        .map(|_, body: bytes::Bytes, schemas: Schemas| {
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            let schema = body["schema"].as_str().expect("a schema").to_owned();
            let mut schemas = schemas.lock();
            let known = schemas.iter().position(|known| *known == schema);
            let id = known.unwrap_or_else(|| {
                schemas.push(schema);
                schemas.len() - 1
            });
            reply(StatusCode::OK, &json!({ "id": id + 1 }))
        });
    let by_id = warp::path!("schemas" / "ids" / usize).and(warp::get()).and(with).map(|id: usize, schemas: Schemas| {
        match id.checked_sub(1).and_then(|i| schemas.lock().get(i).cloned()) {
            Some(schema) => reply(StatusCode::OK, &json!({ "schema": schema })),
            None => reply(StatusCode::NOT_FOUND, &json!({"error_code": 40403, "message": "Schema not found"})),
        }
    });
    let nothing =
        warp::any().map(|| reply(StatusCode::NOT_FOUND, &json!({"error_code": 40401, "message": "Subject not found"})));
    register.or(by_id).unify().or(nothing).unify()
}

fn reply(status: StatusCode, body: &Value) -> warp::reply::WithStatus<warp::reply::Json> {
    warp::reply::with_status(warp::reply::json(body), status)
}

/// A record of the log, and the row that it must become; `None`: a dead letter.
#[derive(Debug, Clone)]
struct Record {
    version: u64,
    value: Vec<u8>,
    row: Option<Value>,
}

/// Records of every version, registered and written by Confluent's client.
fn records(python: &str, registry: &Registry) -> Vec<Record> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/avro/records.py");
    let written = Command::new(python).args([script, &registry.url(), "orders"]).output().expect("Python runs");
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let record = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let hex = line["value"].as_str().expect("a value");
        let byte = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).expect("hexadecimal");
        Record {
            version: line["version"].as_u64().expect("a number"),
            value: (0..hex.len()).step_by(2).map(byte).collect(),
            row: Some(line["row"].clone()).filter(|row| !row.is_null()),
        }
    };
    String::from_utf8(written.stdout).expect("UTF-8").lines().map(record).collect()
}

struct World {
    broker: Broker,
    registry: Registry,
    dir: tempfile::TempDir,
    produced: BTreeMap<i32, i64>,
    /// What the stream must hold, by `id`.
    truth: BTreeMap<i64, Value>,
    dead: usize,
}

impl World {
    fn config(&self) -> String {
        let beginning = self.broker.config("200 ms", "commit_interval = \"50 ms\"");
        format!(
            r#"
{beginning}
[stream.orders]
partitions = 2
format = "avro"
schema_registry = "{}"
event_time = "at"
columns = """
  id BIGINT NOT NULL, kind VARCHAR, at TIMESTAMP NOT NULL, amount DECIMAL(12, 4), price DOUBLE, tags LIST<VARCHAR>,
  origin STRUCT<city VARCHAR, zip BIGINT, street VARCHAR>, day DATE, device VARCHAR
"""
[view.kinds]
sql = "SELECT kind, count(*) AS n, sum(amount) AS amount, sum(price) AS price FROM orders GROUP BY kind"
[view.rows]
sql = "SELECT id, kind, at, amount, price, tags, origin, day, device FROM orders"
"#,
            self.registry.url()
        )
    }

    fn up(&self) -> Running {
        Running::start(&self.config(), self.dir.path())
    }

    /// Into both partitions in turn.
    fn produce<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>) {
        let mut partition = 0;
        for record in records {
            partition = 1 - partition;
            let offsets = self.broker.produce("orders", &[(partition, 1_700_000_000_000, Some(record.value.clone()))]);
            self.produced.insert(partition, offsets[0] + 1);
            match &record.row {
                Some(row) => drop(self.truth.insert(row["id"].as_i64().expect("a number"), row.clone())),
                None => self.dead += 1,
            }
        }
    }

    /// Both views, at the end of what was produced, have the truth and say that it is all.
    fn check(&self, client: &Client, when: &str) {
        let body = client.view_waiting("rows", &self.produced, PATIENCE);
        let rows = body["rows"].as_array().expect("rows");
        let rows: BTreeMap<i64, Value> = rows.iter().map(|r| (r["id"].as_i64().unwrap(), r.clone())).collect();
        for (id, row) in &self.truth {
            assert_eq!(rows.get(id), Some(row), "{when}: {}", body["meta"]);
        }
        assert_eq!(rows.len(), self.truth.len(), "{when}");
        client.view_waiting("kinds", &self.produced, PATIENCE);
        let body = client.view_when("kinds", PATIENCE, |meta| meta["complete"] == json!(true));
        let mut truth: BTreeMap<String, (i64, f64)> = BTreeMap::new();
        for row in self.truth.values() {
            let (n, price) = truth.entry(row["kind"].to_string()).or_default();
            *n += 1;
            *price += row["price"].as_f64().unwrap_or(0.0);
        }
        let rows = body["rows"].as_array().expect("rows").iter();
        let rows = rows.map(|r| (r["kind"].to_string(), (r["n"].as_i64().unwrap(), r["price"].as_f64().unwrap())));
        // Sums of eighths and quarters are exact.
        assert_eq!(rows.collect::<BTreeMap<_, _>>(), truth, "{when}");
    }

    fn build(&self, client: &Client) {
        let id = client.build("kinds", "rebuild").expect("no other build runs");
        assert_eq!(client.wait_build(&id, PATIENCE)["state"], "succeeded");
    }
}

/// What the dead letters say, once there are so many.
fn dead_letters(client: &Client, count: usize) -> BTreeMap<String, usize> {
    let query = json!({"sql": "SELECT error FROM dead_letters.orders"});
    let mut errors = BTreeMap::new();
    wait_until(PATIENCE, || {
        let (status, body) = client.post("/v1/query", &query);
        let rows = body["rows"].as_array().cloned().unwrap_or_default();
        if status != 200 || rows.len() < count {
            return Err(body);
        }
        errors.clear();
        for row in rows {
            *errors.entry(row["error"].as_str().expect("a text").to_owned()).or_default() += 1;
        }
        Ok(())
    });
    assert_eq!(errors.values().sum::<usize>(), count, "{errors:?}");
    errors
}

fn says_registry_is_away(meta: &Value) -> bool {
    let reasons = meta["reasons"].as_array().expect("reasons");
    reasons.iter().any(|reason| reason["code"] == "schema_registry_unavailable")
}

#[test]
fn a_stream_of_avro_outlives_its_schemas_its_registry_and_kills() {
    let Some(python) = real_component("WATERSHED_TEST_PYTHON") else { return };
    let registry = Registry::start();
    let records = records(&python, &registry);
    let of = |version: u64| records.iter().filter(move |record| record.version == version);
    let (broker, dir) = (Broker::start(), tempfile::tempdir().expect("a folder"));
    let (produced, truth) = (BTreeMap::new(), BTreeMap::new());
    let mut world = World { broker, registry, dir, produced, truth, dead: 0 };

    let running = world.up();
    let client = running.client();
    world.produce(of(0).chain(of(1)));
    world.check(client, "two versions");
    world.build(client);
    world.check(client, "a rebuild");

    // Known schemas need no registry; a new one waits for it, and what came before it is answered.
    world.registry.stop();
    let next: Vec<Record> = of(0).chain(of(1)).map(renumbered).collect();
    world.produce(&next);
    world.check(client, "the registry's end");
    world.produce(of(2));
    let body = client.view_when("kinds", PATIENCE, says_registry_is_away);
    assert_eq!(body["meta"]["views"]["kinds"]["complete"], json!(false), "{body}");
    let why = body["meta"]["views"]["kinds"]["reasons"].to_string();
    assert!(why.contains("the schema registry does not answer") && why.contains(&world.registry.url()), "{why}");
    wait_until(PATIENCE, || {
        let archiver = client.get("/v1/status").1["streams"][0]["archiver"].clone();
        let said =
            archiver["error"].as_str().is_some_and(|error| error.contains("the schema registry does not answer"));
        if said { Ok(()) } else { Err(archiver) }
    });
    let said = watershed(world.dir.path(), &["status"], b"").expect_status(0).stdout;
    assert!(said.contains("the schema registry does not answer"), "{said}");
    world.registry.start_again();
    world.check(client, "the registry's return");
    assert_eq!(dead_letters(client, 0), BTreeMap::new(), "what waited is no dead letter");

    // Everything that is no record of these columns.
    let good = of(1).next().expect("a record").value.clone();
    let wrong: [&[u8]; 5] = [
        b"{\"id\": 1}",
        &good[..4],
        &good[..good.len() - 1],
        &[&good[..], &[0]].concat(),
        &[&[0, 0, 1, 0, 0], &good[5..]].concat(),
    ];
    let wrong: Vec<Record> =
        wrong.iter().map(|value| Record { version: 9, value: value.to_vec(), row: None }).collect();
    world.produce(of(3).chain(&wrong));
    world.check(client, "dead letters");
    let length = good.len() - 5;
    let expected = [
        ("column `price`: expected DOUBLE, but the writer's schema has string (schema 4)".to_owned(), of(3).count()),
        ("not in Confluent's wire format: it begins with the byte 0x7b, not 0x00".to_owned(), 1),
        ("truncated: 4 bytes, and Confluent's wire format has 5 before the record".to_owned(), 1),
        (format!("truncated: the Avro record goes on behind its {} bytes (schema 2)", length - 1), 1),
        ("1 bytes follow behind the Avro record of the schema (schema 2)".to_owned(), 1),
        ("the schema registry has no schema 65536".to_owned(), 1),
    ];
    assert_eq!(dead_letters(client, world.dead), expected.into());

    // Lines are no Avro records.
    let (status, body) = client.post_text("/v1/streams/orders", "{\"id\": 1}\n");
    assert_eq!((status, &body["error"]["code"]), (400, &json!("bad_request")), "{body}");
    let refused = watershed(world.dir.path(), &["produce", "orders"], b"{\"id\": 1}\n").expect_status(2);
    assert!(refused.stderr.contains("lines are no Avro records"), "{}", refused.stderr);
    running.kill();

    // Neither a registry nor a delta store: what was decided of the schemas is in the storage.
    world.registry.stop();
    std::fs::remove_dir_all(world.dir.path().join("data/delta")).expect("it was there");
    let running = world.up();
    let client = running.client();
    world.check(client, "a kill, a lost delta store and a lost registry");
    world.build(client);
    world.check(client, "a rebuild without a registry");
    let (status, verified) = client.post("/v1/views/kinds/verify", &json!({}));
    assert_eq!((status, &verified["equal"]), (200, &json!(true)), "{verified}");
    // A registry that was set up anew, and another topic's schema with the id that was unknown: what is decided holds.
    let missing = 65_536 - world.registry.schemas.lock().len();
    world.registry.schemas.lock().extend((0..missing).map(|_| "\"int\"".to_owned()));
    world.registry.start_again();
    let again: Vec<Record> = wrong[4..].to_vec();
    world.produce(&again);
    let after: Vec<Record> = of(2).map(renumbered).collect();
    world.produce(&after);
    world.check(client, "a registry that says something else");
    assert_eq!(dead_letters(client, world.dead)["the schema registry has no schema 65536"], 2);
    running.stop();
}

/// The same record with an id of its own: the first field of versions 0 and 1, the last of version 2.
fn renumbered(record: &Record) -> Record {
    let mut record = record.clone();
    let row = record.row.as_mut().expect("a good record");
    let id = row["id"].as_i64().expect("a number");
    let (old, new) = (zigzag(id), zigzag(id + 100_000));
    row["id"] = json!(id + 100_000);
    let at = if record.version == 2 { record.value.len() - old.len() } else { 5 };
    assert_eq!(record.value[at..at + old.len()], old);
    record.value.splice(at..at + old.len(), new);
    record
}

fn zigzag(number: i64) -> Vec<u8> {
    let mut rest = ((number << 1) ^ (number >> 63)).cast_unsigned();
    let mut bytes = vec![];
    while rest >= 0x80 {
        bytes.push(u8::try_from(rest & 0x7f).expect("7 bits") | 0x80);
        rest >>= 7;
    }
    bytes.push(u8::try_from(rest).expect("7 bits"));
    bytes
}
