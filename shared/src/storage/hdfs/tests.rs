//! What the conformance suite does not ask, on the real HDFS that `cargo xtask test` starts.

mod faults;

use object_store::{ObjectStoreExt, PutResult};
use uuid::Uuid;

use super::*;
use crate::clock::{self, Instant};
use crate::storage::leftovers::Leftovers;

/// A NameNode takes ten seconds to come back on a quiet machine, and a minute on a busy one.
const PATIENCE: Duration = Duration::from_secs(300);

/// A new folder, with blocks of a megabyte.
fn store() -> Option<Hdfs> {
    let service = crate::testing::real_component("WATERSHED_TEST_HDFS")?;
    let url = Url::parse(&format!("{service}/tests/of hdfs/{}", Uuid::new_v4().simple())).unwrap();
    Some(Hdfs { block_bytes: 1 << 20, ..Hdfs::open(&url, Duration::from_secs(20)).unwrap() })
}

/// Neither zeros nor the same in each block.
fn noise(length: usize) -> Bytes {
    (0..length).map(|i| (i * i / 7919 + i) as u8).collect()
}

async fn create(store: &Hdfs, path: &str, bytes: &Bytes) -> Result<PutResult> {
    store.put_opts(&path.into(), bytes.clone().into(), PutMode::Create.into()).await
}

async fn names(store: &Hdfs) -> Vec<String> {
    let files: Vec<_> = list::files(store.connection(), store.folder()).try_collect().await.unwrap();
    files.iter().map(|f| f.path.strip_prefix(&format!("{}/", store.folder())).unwrap().to_owned()).collect()
}

/// Waits until the names of all files, hidden ones too, are these.
async fn names_become(store: &Hdfs, wanted: &[&str]) {
    let start = Instant::now();
    while names(store).await != wanted {
        assert!(start.elapsed() < PATIENCE, "{:?} instead of {wanted:?}", names(store).await);
        clock::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_object_of_several_blocks_is_read_in_any_range() {
    let Some(store) = store() else { return };
    let path = Path::from("a/b");
    for length in [0, 1, (1 << 20) - 1, 1 << 20, (3 << 20) + 17] {
        let bytes = noise(length);
        store.put(&path, bytes.clone().into()).await.unwrap();
        let found = store.get(&path).await.unwrap();
        assert_eq!((found.meta.size, found.range.clone()), (length as u64, 0..length as u64));
        assert_eq!(found.bytes().await.unwrap(), bytes, "{length}");
    }
    let (bytes, mib) = (noise((3 << 20) + 17), 1 << 20);
    for range in [0..1, mib - 3..mib + 3, mib..mib, mib / 2..3 * mib + 17, 3 * mib..3 * mib + 17] {
        let wanted = bytes.slice(range.clone());
        let range = range.start as u64..range.end as u64;
        assert_eq!(store.get_ranges(&path, &[range.clone(), 5..9]).await.unwrap(), [wanted.clone(), bytes.slice(5..9)]);
        if !range.is_empty() {
            assert_eq!(store.get_range(&path, range).await.unwrap(), wanted);
        }
    }
    let across = store.get_ranges(&path, &[0..1, 3 * mib as u64..9 * mib as u64]).await.unwrap();
    assert_eq!(across, [bytes.slice(..1), bytes.slice(3 * mib..)]);
    store.get_ranges(&path, &[0..1, 9 * mib as u64..10 * mib as u64]).await.unwrap_err();
    store.get_range(&path, 9 * mib as u64..10 * mib as u64).await.unwrap_err();
    names_become(&store, &["a/b"]).await;
}

#[tokio::test]
async fn a_listing_comes_in_the_order_of_paths_without_hidden_files() {
    let Some(store) = store() else { return };
    let paths = ["a-b", "a.b/x", "a/.hidden/y", "a/x", "a/x.y/z", "a/x0", "a0", "b"];
    for path in paths.iter().rev().chain(&["a/.x.tmp", ".y"]) {
        store.put(&Path::from(*path), "1".into()).await.unwrap();
    }
    let listed = async |offset: Option<&str>| {
        let listing = match offset {
            Some(offset) => store.list_with_offset(None, &offset.into()),
            None => store.list(None),
        };
        listing.map_ok(|o| o.location.to_string()).try_collect::<Vec<_>>().await.unwrap()
    };
    assert_eq!(listed(None).await, paths);
    assert_eq!(listed(Some("a/x")).await, paths[4..]);
    assert!(listed(Some("b")).await.is_empty());
}

#[tokio::test]
async fn parts_that_come_in_any_order_make_the_same_object() {
    let Some(store) = store() else { return };
    let (path, bytes) = (Path::from("parts"), noise(5 << 20));
    store.put(&path, "the old one".into()).await.unwrap();
    let mut upload = store.put_multipart(&path).await.unwrap();
    let mut parts: Vec<_> = bytes.chunks(700_000).map(|c| upload.put_part(Bytes::copy_from_slice(c).into())).collect();
    parts.reverse();
    futures::future::try_join_all(parts).await.unwrap();
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "the old one");
    upload.complete().await.unwrap();
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), bytes);
    upload.complete().await.unwrap_err();

    let mut lacking = store.put_multipart(&path).await.unwrap();
    drop(lacking.put_part("never sent".into()));
    lacking.put_part("sent".into()).await.unwrap();
    assert!(lacking.complete().await.unwrap_err().to_string().contains("a part of the upload is missing"));
    lacking.abort().await.unwrap();
    names_become(&store, &["parts"]).await;
}

#[tokio::test]
async fn what_is_given_up_leaves_nothing_behind() {
    let Some(store) = store() else { return };
    let bytes = noise(2 << 20);
    create(&store, "x", &bytes).await.unwrap();
    assert!(matches!(create(&store, "x", &noise(9)).await, Err(Error::AlreadyExists { .. })));
    names_become(&store, &["x"]).await;
    let mut upload = store.put_multipart(&"y".into()).await.unwrap();
    upload.put_part(bytes.clone().into()).await.unwrap();
    assert_eq!(names(&store).await.len(), 2);
    drop(upload);
    names_become(&store, &["x"]).await;
    // Ended by its caller at any point: whole or absent, and no temporary file.
    for delay in 0..20 {
        let path = format!("z{delay}");
        drop(tokio::time::timeout(Duration::from_millis(delay * 2), create(&store, &path, &bytes)).await);
        let start = Instant::now();
        while names(&store).await.iter().any(|n| n.starts_with('.')) {
            assert!(start.elapsed() < PATIENCE, "{:?}", names(&store).await);
            clock::sleep(Duration::from_millis(10)).await;
        }
        match store.get(&path.as_str().into()).await {
            Ok(found) => assert_eq!(found.bytes().await.unwrap(), bytes),
            Err(error) => assert!(matches!(error, Error::NotFound { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn leftovers_of_killed_writers_are_collected_when_they_are_old() {
    let Some(store) = store() else { return };
    store.put(&"f/x".into(), "1".into()).await.unwrap();
    let mut upload = store.put_multipart(&"f/run.parquet".into()).await.unwrap();
    upload.put_part("half".into()).await.unwrap();
    // As if the process had been killed: nobody removes the file, and its lease stays.
    std::mem::forget(upload);
    assert_eq!(names(&store).await.len(), 2);
    assert_eq!(store.list(None).count().await, 1, "it is no object");
    assert_eq!(store.remove_older_than(Duration::from_secs(3600)).await.unwrap(), 0, "its writer may live");
    clock::sleep(Duration::from_millis(20)).await;
    assert_eq!(store.remove_older_than(Duration::from_millis(1)).await.unwrap(), 1);
    assert_eq!(names(&store).await, ["f/x"]);
}

#[tokio::test]
async fn what_is_not_there_is_told_apart_from_what_cannot_be() {
    let Some(store) = store() else { return };
    let (absent, folder) = (Path::from("nothing"), Path::from("folder"));
    store.put(&"folder/x".into(), "1".into()).await.unwrap();
    for path in [&absent, &folder] {
        for error in [
            store.get(path).await.unwrap_err(),
            store.head(path).await.unwrap_err(),
            store.delete(path).await.unwrap_err(),
            store.get_ranges(path, &[0..1, 2..3]).await.unwrap_err(),
            store.rename(path, &"elsewhere".into()).await.unwrap_err(),
            store.copy(path, &"elsewhere".into()).await.unwrap_err(),
        ] {
            assert!(matches!(error, Error::NotFound { .. }), "{error}");
            assert!(error.to_string().contains(path.as_ref()), "{error}");
        }
    }
    assert_eq!(names(&store).await, ["folder/x"], "a folder with objects is not deleted");
    let error = create(&store, "folder/x/y", &noise(1)).await.unwrap_err().to_string();
    assert!(error.contains("HDFS takes no such name"), "{error}");
    let error = store.put(&Path::parse("10:30").unwrap(), "1".into()).await.unwrap_err().to_string();
    assert!(error.contains("HDFS takes no such name") && error.contains("10:30"), "{error}");
    let update = PutMode::Update(object_store::UpdateVersion { e_tag: None, version: None });
    let refused = store.put_opts(&absent, "1".into(), update.into()).await;
    assert!(matches!(refused, Err(Error::NotImplemented { .. })), "{refused:?}");
}
