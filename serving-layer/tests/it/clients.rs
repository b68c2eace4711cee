//! Clients that stall: over real connections.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use watershed_serving_layer::Settings;
use watershed_shared::{clock, task};

use crate::http::code;
use crate::world::{PATIENCE, World};

/// A world behind a listener.
struct Server {
    address: SocketAddr,
    ended: JoinHandle<()>,
    stop: CancellationToken,
    world: World,
}

impl Server {
    async fn start(settings: Settings) -> Self {
        let world = World::with(1, 5, settings).await;
        let stop = CancellationToken::new();
        let listen = "127.0.0.1:0".parse().unwrap();
        let serving = world.serving.clone();
        let (address, server) = watershed_serving_layer::serve(serving, listen, stop.clone()).await.unwrap();
        Self { address, ended: task::spawn("server", server), stop, world }
    }

    /// A connection on which `request` was sent.
    async fn send(&self, request: &str) -> TcpStream {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        connection
    }
}

fn post(path: &str, length: usize, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// What comes until `wanted` does, or the connection ends.
async fn read_until(connection: &mut TcpStream, wanted: &str) -> String {
    let mut text = String::new();
    let reading = async {
        let mut buffer = vec![0; 4096];
        while !text.contains(wanted) {
            match connection.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("no `{wanted}`"));
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_stops_coming_is_not_waited_for() {
    let settings = Settings { body_timeout: Duration::from_millis(50), ..Settings::default() };
    let server = Server::start(settings).await;
    for path in ["/v1/streams/clicks", "/v1/query"] {
        let mut connection = server.send(&post(path, 100, "{\"a\":1}\n")).await;
        let answer = read_until(&mut connection, "KiB/s").await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{path}: {answer}");
        assert!(answer.contains("request_timeout") && answer.contains("8 bytes of it have come"), "{path}: {answer}");
    }
    assert!(server.world.ingest.0.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_stall_do_not_keep_the_process_from_ending() {
    // Of the two, only the end can be what ends them.
    let settings = Settings { body_timeout: PATIENCE * 10, grace: Duration::from_millis(100), ..Settings::default() };
    let server = Server::start(settings).await;
    // More than both ends of a connection buffer, and only its beginning is read.
    let sql = r#"{"sql": "SELECT repeat('x', 67108864) AS x"}"#;
    let mut reader = server.send(&post("/v1/query", sql.len(), sql)).await;
    assert!(read_until(&mut reader, "xxx").await.starts_with("HTTP/1.1 200 "));
    let mut live = server.send("GET /v1/views/totals/live HTTP/1.1\r\nHost: x\r\n\r\n").await;
    read_until(&mut live, "event:snapshot").await;
    // It is being read, for the server says so.
    let expect = post("/v1/streams/clicks", 100, "").replace("Host", "Expect: 100-continue\r\nHost");
    let mut writer = server.send(&expect).await;
    assert!(read_until(&mut writer, "100 Continue").await.starts_with("HTTP/1.1 100 "));
    writer.write_all(b"{\"a\":1}\n").await.unwrap();

    server.stop.cancel();
    tokio::time::timeout(PATIENCE, server.ended).await.expect("it ends").unwrap();
    // What was being done for them has ended, too.
    assert_eq!(read_until(&mut writer, "HTTP").await, "");
    assert!(server.world.ingest.0.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_being_published_share_a_memory() {
    let settings = Settings { publish_memory_bytes: 100, body_timeout: PATIENCE * 10, ..Settings::default() };
    let server = Server::start(settings).await;
    let publish = async |body: &str| server.world.request("POST", "/v1/streams/clicks", body).await;
    let seen = async |wanted: u16, body: &str| {
        let asked = async {
            loop {
                match publish(body).await {
                    (status, answer) if status == wanted => return answer,
                    _ => clock::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("no {wanted}"))
    };
    let thirty = "x".repeat(30);
    assert_eq!(publish(&thirty).await.0, 200);
    let slow = server.send(&post("/v1/streams/clicks", 90, &"y".repeat(80))).await;
    let error = seen(429, &thirty).await;
    assert_eq!(code(&error), "too_many_requests");
    assert!(error["error"]["message"].as_str().unwrap().contains("publish_memory"), "{error}");
    // There is place for a small one, and all others are answered as ever.
    assert_eq!(publish("x").await.0, 200);
    assert_eq!(server.world.get("/v1/views").await.0, 200);
    drop(slow);
    seen(200, &thirty).await;
    // What does not fit at all need not be tried again, however small it comes.
    assert_eq!(code(&publish(&"x".repeat(101)).await.1), "too_large");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&[b'x'; 10_000]).unwrap();
    let routes = watershed_serving_layer::routes(server.world.serving.clone());
    let request = warp::test::request().method("POST").path("/v1/streams/clicks").header("content-encoding", "gzip");
    assert_eq!(request.body(encoder.finish().unwrap()).reply(&routes).await.status(), 413);
    assert!(server.world.ingest.0.lock().iter().all(|record| record.len() <= 30));
    seen(200, &"x".repeat(100)).await;
}
