//! What is decided of an id, whatever the registry says and when.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::task;

const ID: SchemaId = SchemaId(7);
const NOT_FOUND: (u16, &str) = (404, r#"{"error_code": 40403, "message": "Schema not found"}"#);

/// Answers as it is told to, by path; what it was not told it does not know.
struct Server {
    answers: Arc<Mutex<BTreeMap<String, (u16, String)>>>,
    asked: Arc<Mutex<Vec<String>>>,
    url: String,
    _stop: DropGuard,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base/", listener.local_addr().unwrap());
        let (answers, asked) = (Arc::new(Mutex::new(BTreeMap::new())), Arc::new(Mutex::new(vec![])));
        let stop = CancellationToken::new();
        let (known, noted, stopped) = (Arc::clone(&answers), Arc::clone(&asked), stop.clone());
        drop(task::spawn("registry", async move {
            while let Some(Ok((mut connection, _))) = stopped.run_until_cancelled(listener.accept()).await {
                let mut request = vec![];
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(connection.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let path = request.split(' ').nth(1).unwrap().trim_start_matches("/base/").to_owned();
                let (status, body) = known.lock().get(&path).cloned().unwrap_or((NOT_FOUND.0, NOT_FOUND.1.to_owned()));
                noted.lock().push(request);
                let head =
                    format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                connection.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            }
        }));
        Self { answers, asked, url, _stop: stop.drop_guard() }
    }

    fn set(&self, path: &str, status: u16, body: &str) {
        self.answers.lock().insert(format!("{path}?deleted=true"), (status, body.to_owned()));
    }

    fn has(&self, id: SchemaId, schema: &str) {
        self.set(&format!("schemas/ids/{id}"), 200, &serde_json::json!({ "schema": schema }).to_string());
    }

    fn asked(&self) -> usize {
        self.asked.lock().len()
    }

    fn config(&self) -> SchemaRegistryConfig {
        SchemaRegistryConfig { url: self.url.parse().unwrap(), user: None, password: None }
    }

    fn schemas(&self, storage: &Storage, unknown_after: Duration) -> Schemas {
        schemas(storage, &self.config(), unknown_after)
    }
}

fn schemas(storage: &Storage, registry: &SchemaRegistryConfig, unknown_after: Duration) -> Schemas {
    let settings = Settings { timeout: Duration::from_secs(60), unknown_after, ask_again: Duration::from_millis(5) };
    Schemas::new(storage, "s", registry, settings).unwrap()
}

fn avro(schema: &str) -> WriterSchema {
    WriterSchema::Avro { schema: schema.to_owned(), references: vec![] }
}

async fn settle(schemas: &Schemas) -> Result<WriterSchema, String> {
    let settled = schemas.settle([ID].into()).await.map_err(|e| e.to_string())?;
    Ok(settled[&ID].clone())
}

#[tokio::test]
async fn the_first_answer_holds_for_all_and_for_ever() {
    let (server, storage) = (Server::start().await, Storage::memory());
    server.has(ID, "\"int\"");
    let first = server.schemas(&storage, Duration::ZERO);
    assert_eq!(settle(&first).await, Ok(avro("\"int\"")));
    let asked = server.asked();
    // The registry was set up anew, and is away then.
    server.has(ID, "\"string\"");
    assert_eq!(settle(&first).await, Ok(avro("\"int\"")));
    assert_eq!(settle(&server.schemas(&storage, Duration::ZERO)).await, Ok(avro("\"int\"")));
    assert_eq!(server.asked(), asked, "what is recorded is not asked again");
    let other_stream = Schemas { stream: "other".to_owned(), ..first };
    assert_eq!(settle(&other_stream).await, Ok(avro("\"string\"")), "another stream decides for itself");
}

#[tokio::test]
async fn an_id_that_the_registry_does_not_know_stays_unknown_once_that_is_decided() {
    let (server, storage) = (Server::start().await, Storage::memory());
    let schemas = server.schemas(&storage, Duration::ZERO);
    assert_eq!(settle(&schemas).await, Ok(WriterSchema::Unknown));
    server.has(ID, "\"int\"");
    assert_eq!(settle(&schemas).await, Ok(WriterSchema::Unknown));
}

#[tokio::test]
async fn a_schema_that_reaches_the_registry_a_moment_later_is_waited_for() {
    let (server, storage) = (Server::start().await, Storage::memory());
    let schemas = server.schemas(&storage, Duration::from_secs(600));
    let register = async {
        while server.asked() < 3 {
            clock::sleep(Duration::from_millis(1)).await;
        }
        server.has(ID, "\"int\"");
    };
    let (settled, ()) = tokio::join!(settle(&schemas), register);
    assert_eq!(settled, Ok(avro("\"int\"")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_with_different_answers_one_decides() {
    let (knows, does_not) = (Server::start().await, Server::start().await);
    knows.has(ID, "\"int\"");
    for _ in 0..30 {
        let storage = Storage::memory();
        let (a, b) = (knows.schemas(&storage, Duration::ZERO), does_not.schemas(&storage, Duration::ZERO));
        let (a, b) = tokio::join!(settle(&a), settle(&b));
        assert_eq!(a, b);
    }
    // Who still waits for its registry takes the other's word.
    let storage = Storage::memory();
    let waiting = does_not.schemas(&storage, Duration::from_secs(600));
    let decide = async {
        let asked = does_not.asked();
        while does_not.asked() == asked {
            clock::sleep(Duration::from_millis(1)).await;
        }
        settle(&knows.schemas(&storage, Duration::ZERO)).await
    };
    let (waited, decided) = tokio::join!(settle(&waiting), decide);
    assert_eq!((waited, decided), (Ok(avro("\"int\"")), Ok(avro("\"int\""))));
}

#[tokio::test]
async fn while_the_registry_is_away_or_is_none_nothing_is_decided() {
    let (server, storage) = (Server::start().await, Storage::memory());
    let away = {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}/", gone.local_addr().unwrap())
    };
    let config = SchemaRegistryConfig { url: away.parse().unwrap(), user: None, password: None };
    let error = settle(&schemas(&storage, &config, Duration::ZERO)).await.unwrap_err();
    assert!(error.starts_with("the schema registry does not answer: ") && error.contains(&away), "{error}");

    let schemas = server.schemas(&storage, Duration::ZERO);
    for (status, body, said) in [
        (404, "<html>", "it answers 404 Not Found to /schemas/ids/7; is `schema_registry` of the stream its URL?"),
        (404, r#"{"error_code": 404, "message": "HTTP 404"}"#, "it answers 404 (HTTP 404)"),
        (500, r#"{"error_code": 50001}"#, "it answers 500 Internal Server Error to /schemas/ids/7; is"),
        (401, "", "it refuses the login: check `schema_registry_user`"),
        (200, "<html>", "its answer to /schemas/ids/7 is not a schema registry's"),
    ] {
        server.set("schemas/ids/7", status, body);
        let error = settle(&schemas).await.unwrap_err();
        assert!(error.contains(said), "{status} {body}: {error}");
    }
    server.has(ID, "\"int\"");
    assert_eq!(settle(&schemas).await, Ok(avro("\"int\"")));
}

#[tokio::test]
async fn what_a_schema_refers_to_is_recorded_with_it() {
    let (server, storage) = (Server::start().await, Storage::memory());
    let reference = |subject: &str| serde_json::json!({"name": subject, "subject": subject, "version": 1});
    let schema = |text: &str, references: &[&str]| {
        let references: Vec<_> = references.iter().map(|subject| reference(subject)).collect();
        serde_json::json!({"schema": text, "references": references}).to_string()
    };
    server.set("schemas/ids/7", 200, &schema("root", &["b", "x/y"]));
    server.set("subjects/b/versions/1", 200, &schema("b", &["x/y"]));
    server.set("subjects/x%2Fy/versions/1", 200, &schema("xy", &[]));
    let schemas = server.schemas(&storage, Duration::ZERO);
    let references = vec!["xy".to_owned(), "b".to_owned()];
    assert_eq!(settle(&schemas).await, Ok(WriterSchema::Avro { schema: "root".to_owned(), references }));

    let other = serde_json::json!({"schema": "syntax", "schemaType": "PROTOBUF"}).to_string();
    server.set("schemas/ids/8", 200, &other);
    let settled = schemas.settle([SchemaId(8)].into()).await.unwrap();
    assert_eq!(settled[&SchemaId(8)], WriterSchema::Other { schema_type: "PROTOBUF".to_owned() });
}

#[tokio::test]
async fn user_and_password_are_told() {
    let (server, storage) = (Server::start().await, Storage::memory());
    server.has(ID, "\"int\"");
    let config = SchemaRegistryConfig { user: Some("u".into()), password: Some("p".into()), ..server.config() };
    settle(&schemas(&storage, &config, Duration::ZERO)).await.unwrap();
    let login = format!("authorization: Basic {}", BASE64_STANDARD.encode("u:p"));
    assert!(server.asked.lock()[0].contains(&login), "{:?}", server.asked.lock());
}

#[tokio::test]
async fn a_record_that_is_damaged_decides_nothing() {
    let (server, storage) = (Server::start().await, Storage::memory());
    server.has(ID, "\"int\"");
    let path = paths::record(SCHEMAS, "s", 7);
    for (bytes, said) in [
        ("{", "EOF"),
        (r#"{"version": "2", "id": 7, "schema": {"is": "unknown"}}"#, "its version is 2"),
        (r#"{"version": "1", "id": 8, "schema": {"is": "unknown"}}"#, "it is of schema 8"),
    ] {
        storage.overwrite(&path, Bytes::from_static(bytes.as_bytes())).await.unwrap();
        let error = settle(&server.schemas(&storage, Duration::ZERO)).await.unwrap_err();
        assert!(error.contains(said) && error.contains(path.as_ref()), "{error}");
    }
}

/// The format that other processes, and later releases, read.
#[test]
fn records_stay_readable() {
    for (text, schema) in [
        (
            r#"{"version":"1","id":7,"schema":{"is":"avro","schema":"\"int\"","references":["\"x\""]}}"#,
            WriterSchema::Avro { schema: "\"int\"".to_owned(), references: vec!["\"x\"".to_owned()] },
        ),
        (
            r#"{"version":"1","id":7,"schema":{"is":"other","schema_type":"JSON"}}"#,
            WriterSchema::Other { schema_type: "JSON".to_owned() },
        ),
        (r#"{"version":"1","id":7,"schema":{"is":"unknown"}}"#, WriterSchema::Unknown),
    ] {
        let recorded = Recorded { version: VERSION.to_owned(), id: ID, schema: schema.clone() };
        assert_eq!(serde_json::to_string(&recorded).unwrap(), text);
        assert_eq!(read(ID, &Path::from("x"), &Bytes::copy_from_slice(text.as_bytes())).unwrap(), schema);
    }
}
