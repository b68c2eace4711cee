//! Files that are missing, or not as they were written.

use object_store::path::Path;
use serde_json::{Value, json};
use watershed_shared::catalog::BuildMode;
use watershed_shared::clock;

use crate::http::{built, code, rows};
use crate::world::{PATIENCE, World, assert_same};

/// Asks until the answer is as wanted.
async fn until(world: &World, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
    let mut last = Value::Null;
    let asked = async {
        loop {
            let (status, answer) = world.get(path).await;
            if wanted(status, &answer) {
                return answer;
            }
            last = answer;
            clock::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer,
        Err(_) => panic!("{path} does not become as wanted: {last}"),
    }
}

async fn write(world: &World, path: &Path, bytes: Vec<u8>) {
    world.storage.delete(path).await.unwrap();
    world.storage.create(path, bytes.into()).await.unwrap();
}

async fn read(world: &World, path: &Path) -> Vec<u8> {
    world.storage.get(path).await.unwrap().unwrap().to_vec()
}

/// The file of the active generation of `per_who`, in a world that has reached the log's end.
async fn caught_up() -> (World, Path) {
    let world = built().await;
    world.advance(world.end()).await;
    world.settle().await;
    until(&world, "/readyz", |status, _| status == 200).await;
    let file = world.registers["per_who"].borrow().active_generation().unwrap().runs[0].file.clone();
    (world, Path::from(file.as_str()))
}

/// Every way to ask says that the file cannot be read; other views answer; a rebuild is started, once.
async fn unreadable(world: &World, said: &str) {
    let query = json!({"sql": "SELECT sum(events) FROM per_who"}).to_string();
    for (method, path, body) in [
        ("GET", "/v1/views/per_who", ""),
        ("GET", "/v1/views/per_who?where=who='w03'", ""),
        ("GET", "/v1/views/per_who?generation=1", ""),
        ("POST", "/v1/query", query.as_str()),
    ] {
        let (status, error) = world.request(method, path, body).await;
        assert_eq!((status, code(&error)), (503, "not_ready"), "{path}: {error}");
        assert!(error["error"]["message"].as_str().unwrap().starts_with(said), "{path}: {error}");
    }
    assert_eq!(world.get("/v1/views/totals").await.0, 200);
    let ready = until(world, "/readyz", |status, _| status == 503).await;
    assert!(ready["error"]["message"].as_str().unwrap().starts_with("view `per_who`: file `views/per_who/"), "{ready}");
    let per_who = |status: &Value| {
        let views = status["views"].as_array().unwrap();
        views.iter().find(|v| v["name"] == "per_who").unwrap()["meta"].clone()
    };
    let status = until(world, "/v1/status", |_, status| per_who(status)["complete"] == false).await;
    assert_eq!(per_who(&status)["reasons"][0]["code"], "generation_unreadable");
    let started = until(world, "/v1/rebuilds?view=per_who", |_, list| list["rebuilds"] != json!([])).await;
    assert_eq!(started["rebuilds"].as_array().unwrap().len(), 1);
    assert_eq!(started["rebuilds"][0]["trigger"], "repair");
    assert_eq!(started["rebuilds"][0]["mode"], "rebuild");
}

/// It answers again, and rightly.
async fn well(world: &World) {
    until(world, "/readyz", |status, _| status == 200).await;
    let answer = until(world, "/v1/views/per_who", |_, a| a["meta"]["views"]["per_who"]["complete"] == true).await;
    assert_same(rows(&answer), &world.truth("per_who", world.end()).await, "per_who");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_file_is_told_and_a_rebuild_makes_it_anew() {
    let (world, file) = caught_up().await;
    world.storage.delete(&file).await.unwrap();
    unreadable(&world, &format!("view `per_who`: file `{file}` is missing")).await;
    world.build("per_who", &world.delta.position(), BuildMode::Rebuild).await;
    world.settle().await;
    well(&world).await;
    let (_, list) = world.get("/v1/rebuilds?view=per_who").await;
    assert_eq!(list["rebuilds"].as_array().unwrap().len(), 1, "{list}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_file_of_known_metadata_is_told_too() {
    let (world, file) = caught_up().await;
    assert_eq!(world.get("/v1/views/per_who").await.0, 200);
    world.storage.delete(&file).await.unwrap();
    unreadable(&world, &format!("view `per_who`: file `{file}` is missing")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_told_until_it_is_restored() {
    let (world, file) = caught_up().await;
    let bytes = read(&world, &file).await;
    let mut damaged = bytes.clone();
    damaged[20] ^= 4;
    write(&world, &file, damaged).await;
    unreadable(&world, &format!("view `per_who`: file `{file}` is damaged: ")).await;
    write(&world, &file, bytes).await;
    well(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_or_damaged_list_of_errors_is_told() {
    let world = built().await;
    let run = world.registers["rates"].borrow().active_generation().unwrap().runs[0].clone();
    let file = Path::from(run.errors_file.unwrap().as_str());
    let query = json!({"sql": "SELECT * FROM view_errors.rates"}).to_string();
    assert_eq!(world.request("POST", "/v1/query", &query).await.0, 200);
    let mut bytes = read(&world, &file).await;
    bytes[9] ^= 1;
    write(&world, &file, bytes).await;
    for said in ["is damaged: it has another checksum", "is missing"] {
        let (status, error) = world.request("POST", "/v1/query", &query).await;
        assert_eq!((status, code(&error)), (503, "not_ready"), "{error}");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("view `rates`: file `{file}` {said}")), "{error}");
        world.storage.delete(&file).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_the_master_dataset_says_what_it_cannot_read() {
    let world = built().await;
    let query = json!({"sql": "SELECT sum(n) AS n FROM clicks"}).to_string();
    let stored = world.storage.list(&Path::from("streams/clicks")).await.unwrap();
    let file = stored.iter().find(|f| f.location.as_ref().ends_with(".parquet")).unwrap().location.clone();
    let bytes = read(&world, &file).await;
    let mut damages = vec![bytes[..bytes.len() / 2].to_vec(), vec![7; bytes.len()]];
    damages.push([&bytes[..100], &vec![0xff; bytes.len() - 200][..], &bytes[bytes.len() - 100..]].concat());
    for damaged in damages {
        write(&world, &file, damaged).await;
        for (method, path, body) in [("GET", "/v1/views/large", ""), ("POST", "/v1/query", query.as_str())] {
            let (status, error) = world.request(method, path, body).await;
            assert_eq!((status, code(&error)), (503, "not_ready"), "{path}: {error}");
            let message = error["error"]["message"].as_str().unwrap();
            assert!(message.starts_with("a file that the statement reads is damaged: "), "{message}");
        }
    }
    world.storage.delete(&file).await.unwrap();
    for (method, path, body) in [("GET", "/v1/views/large", ""), ("POST", "/v1/query", query.as_str())] {
        let (status, error) = world.request(method, path, body).await;
        assert_eq!((status, code(&error)), (503, "not_ready"), "{path}: {error}");
        let message = error["error"]["message"].as_str().unwrap();
        // Where a folder is the storage, its own path stands there.
        let said = format!("{file}` is missing; it is part of a master dataset");
        assert!(message.starts_with("file `") && message.contains(&said), "{message}");
    }
    write(&world, &file, bytes).await;
    assert_eq!(world.request("POST", "/v1/query", &query).await.0, 200);
}
