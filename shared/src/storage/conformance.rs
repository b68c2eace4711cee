//! What every kind of storage must do: one suite, run by each of them and by each decorator.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use url::Url;

use super::*;

fn settings() -> Settings {
    Settings {
        call_timeout: Duration::from_secs(60),
        retry_for: Duration::from_secs(120),
        first_backoff: Duration::from_micros(200),
        max_backoff: Duration::from_millis(10),
    }
}

fn file_storage() -> (tempfile::TempDir, Storage) {
    let dir = tempfile::tempdir().unwrap();
    let url = Url::from_directory_path(dir.path().join("storage")).unwrap();
    let storage = Storage::open_with(&url, settings()).unwrap();
    (dir, storage)
}

/// A new folder of the real HDFS, if there is one.
pub(crate) fn hdfs_storage() -> Option<Storage> {
    let service = crate::testing::real_component("WATERSHED_TEST_HDFS")?;
    let url = Url::parse(&format!("{service}/tests/{}", Uuid::new_v4().simple())).unwrap();
    Some(Storage::open_with(&url, settings()).unwrap())
}

fn faulty(inner: &Storage, seed: u64, rates: FaultRates) -> (Faulty, Storage) {
    let faulty = Faulty::new(inner.store(), seed, rates);
    let storage = Storage::over(inner.url().clone(), Arc::new(faulty.clone()), settings());
    // Folders are the inner store's own: no call through the faulty one removes them.
    (faulty, Storage { leftovers: inner.leftovers.clone(), ..storage })
}

#[tokio::test]
async fn memory_conforms() {
    conforms(&Storage::memory()).await;
}

#[tokio::test]
async fn a_folder_conforms() {
    let (_dir, storage) = file_storage();
    conforms(&storage).await;
}

#[tokio::test]
async fn a_real_hdfs_conforms() {
    let Some(storage) = hdfs_storage() else { return };
    conforms(&storage).await;
}

#[tokio::test]
async fn faulty_without_faults_conforms_over_a_real_hdfs() {
    let Some(inner) = hdfs_storage() else { return };
    let (_, storage) = faulty(&inner, 1, FaultRates::default());
    conforms(&storage).await;
}

#[tokio::test]
async fn a_faulty_hdfs_is_used_safely() {
    let Some(inner) = hdfs_storage() else { return };
    let (faults, storage) = faulty(&inner, 5, FaultRates::each(60));
    objects_come_and_go(&storage).await;
    races_have_one_winner(&storage).await;
    assert!(faults.faults() > 50, "the faults must fire");
}

#[tokio::test]
async fn faulty_without_faults_conforms() {
    let (_, storage) = faulty(&Storage::memory(), 1, FaultRates::default());
    conforms(&storage).await;
}

/// With faults all calls of [`Storage`] still tell the truth; only what the engine reads by itself may fail.
#[tokio::test]
async fn a_faulty_folder_is_used_safely() {
    for seed in 0..4 {
        let (_dir, inner) = file_storage();
        let (faults, storage) = faulty(&inner, seed, FaultRates::each(60));
        objects_come_and_go(&storage).await;
        races_have_one_winner(&storage).await;
        assert!(faults.faults() > 50, "the faults must fire, seed {seed}");
    }
}

async fn conforms(storage: &Storage) {
    objects_come_and_go(storage).await;
    races_have_one_winner(storage).await;
    overwrites_replace(storage).await;
    empty_folders_can_be_removed(storage).await;
    uploads_are_whole_or_absent(&storage.store()).await;
    ranges_and_renames_work(&storage.store()).await;
    listings_are_of_what_lies_below(&storage.store()).await;
}

async fn objects_come_and_go(storage: &Storage) {
    let path = Path::from("registers/views/v/00000000000000000001.json");
    assert_eq!(storage.get(&path).await.unwrap(), None);
    assert_eq!(storage.head(&path).await.unwrap(), None);
    assert_eq!(storage.create(&path, "one".into()).await.unwrap(), CreateOutcome::Created);
    assert_eq!(storage.create(&path, "one".into()).await.unwrap(), CreateOutcome::Created, "the same writer's bytes");
    assert_eq!(storage.create(&path, "two".into()).await.unwrap(), CreateOutcome::Exists("one".into()));
    assert_eq!(storage.get(&path).await.unwrap().unwrap(), "one");
    assert_eq!(storage.get_start(&path, 2).await.unwrap().unwrap(), "on");
    assert_eq!(storage.get_start(&path, 200).await.unwrap().unwrap(), "one", "a range past the end is cut");
    assert_eq!(storage.head(&path).await.unwrap().unwrap().size, 3);

    let name = |id: Uuid| Path::from(format!("views/v/{id}"));
    let big = Bytes::from(vec![7; 3 << 20]);
    let first = storage.put_unique(name, big.clone()).await.unwrap();
    let second = storage.put_unique(name, big.clone()).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(storage.get(&first).await.unwrap().unwrap(), big);

    storage.create(&Path::from("registers/views/.hidden.tmp.0"), "x".into()).await.unwrap();
    let listed = storage.list(&Path::from("registers")).await.unwrap();
    assert_eq!(listed.iter().map(|o| &o.location).collect::<Vec<_>>(), [&path]);
    assert_eq!(storage.list_folders(&Path::from("registers/views")).await.unwrap(), ["v"]);
    assert!(storage.list(&Path::from("nothing/here")).await.unwrap().is_empty());
    assert!(storage.list_folders(&Path::from("nothing/here")).await.unwrap().is_empty());

    storage.delete(&path).await.unwrap();
    storage.delete(&path).await.unwrap();
}

/// Not run with faults: an overwrite that timed out may happen after the next one.
async fn overwrites_replace(storage: &Storage) {
    let path = Path::from("builds/b/progress");
    storage.overwrite(&path, "1".into()).await.unwrap();
    storage.overwrite(&path, "22".into()).await.unwrap();
    assert_eq!(storage.get(&path).await.unwrap().unwrap(), "22");
}

async fn empty_folders_can_be_removed(storage: &Storage) {
    let (folder, file) = (Path::from("emptied/a"), Path::from("emptied/a/x"));
    storage.overwrite(&file, "1".into()).await.unwrap();
    storage.remove_folder(&folder).await.unwrap();
    assert_eq!(storage.get(&file).await.unwrap().unwrap(), "1", "there was something in it");
    storage.delete(&file).await.unwrap();
    for _ in 0..2 {
        storage.remove_folder(&folder).await.unwrap();
        assert!(storage.list_folders(&Path::from("emptied")).await.unwrap().is_empty());
    }
    storage.overwrite(&file, "2".into()).await.unwrap();
    assert_eq!(storage.get(&file).await.unwrap().unwrap(), "2");
}

async fn races_have_one_winner(storage: &Storage) {
    for round in 0..20 {
        let path = Path::from(format!("race/{round}"));
        let writers = (0..8).map(|writer| {
            let (storage, path) = (storage.clone(), path.clone());
            crate::task::spawn("racer", async move {
                let mine = Bytes::from(format!("writer {writer}"));
                match storage.create(&path, mine.clone()).await.unwrap() {
                    CreateOutcome::Created => (true, mine),
                    CreateOutcome::Exists(found) => (false, found),
                }
            })
        });
        let outcomes: Vec<_> = futures::future::join_all(writers).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(outcomes.iter().filter(|(won, _)| *won).count(), 1, "round {round}");
        let stored = storage.get(&path).await.unwrap().unwrap();
        assert!(outcomes.iter().all(|(_, found)| *found == stored), "round {round}");
    }
}

async fn uploads_are_whole_or_absent(store: &Arc<dyn ObjectStore>) {
    let path = Path::from("uploads/a");
    let mut upload = store.put_multipart(&path).await.unwrap();
    let parts: Vec<_> = (0..3_u8).map(|i| upload.put_part(vec![i; 6 << 20].into())).collect();
    for part in parts {
        part.await.unwrap();
    }
    assert!(matches!(store.head(&path).await, Err(object_store::Error::NotFound { .. })));
    upload.complete().await.unwrap();
    let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
    assert!(bytes.len() == 18 << 20 && bytes.chunks(6 << 20).zip(0..3).all(|(c, i)| c.iter().all(|b| *b == i)));

    let aborted = Path::from("uploads/b");
    let mut upload = store.put_multipart(&aborted).await.unwrap();
    upload.put_part("x".into()).await.unwrap();
    upload.abort().await.unwrap();
    assert!(matches!(store.head(&aborted).await, Err(object_store::Error::NotFound { .. })));
}

async fn ranges_and_renames_work(store: &Arc<dyn ObjectStore>) {
    let (a, b) = (Path::from("names/a"), Path::from("names/deep/b"));
    store.put_opts(&a, "0123456789".into(), PutMode::Create.into()).await.unwrap();
    let again = store.put_opts(&a, "x".into(), PutMode::Create.into()).await;
    assert!(matches!(again, Err(object_store::Error::AlreadyExists { .. })));
    assert_eq!(store.get_ranges(&a, &[0..2, 8..10]).await.unwrap(), ["01", "89"]);
    store.copy_if_not_exists(&a, &b).await.unwrap();
    assert!(matches!(store.copy_if_not_exists(&a, &b).await, Err(object_store::Error::AlreadyExists { .. })));
    assert!(matches!(store.rename_if_not_exists(&a, &b).await, Err(object_store::Error::AlreadyExists { .. })));
    store.delete(&b).await.unwrap();
    store.rename_if_not_exists(&a, &b).await.unwrap();
    assert_eq!(store.get(&b).await.unwrap().bytes().await.unwrap(), "0123456789");
    assert!(matches!(store.get(&a).await, Err(object_store::Error::NotFound { .. })));
}

async fn listings_are_of_what_lies_below(store: &Arc<dyn ObjectStore>) {
    let names = ["list/a.b", "list/a/x", "list/a/y/z", "list/a0", "lists"];
    for name in names {
        store.put(&Path::from(name), "1".into()).await.unwrap();
    }
    let sorted = async |listing: futures::stream::BoxStream<'static, object_store::Result<ObjectMeta>>| {
        let found: Vec<ObjectMeta> = listing.try_collect().await.unwrap();
        let mut names: Vec<_> = found.into_iter().map(|o| o.location.to_string()).collect();
        names.sort();
        names
    };
    let (all, inner) = (Path::from("list"), Path::from("list/a"));
    assert_eq!(sorted(store.list(Some(&all))).await, names[..4]);
    assert_eq!(sorted(store.list(Some(&inner))).await, names[1..3], "a prefix is a folder, not the start of a name");
    assert!(sorted(store.list(Some(&Path::from("list/a.b")))).await.is_empty(), "nor an object");
    assert_eq!(sorted(store.list_with_offset(Some(&all), &Path::from("list/a/x"))).await, names[2..4]);
    let direct = store.list_with_delimiter(Some(&all)).await.unwrap();
    let mut objects: Vec<_> = direct.objects.iter().map(|o| o.location.to_string()).collect();
    objects.sort();
    assert_eq!((objects, direct.common_prefixes), (vec![names[0].to_owned(), names[3].to_owned()], vec![inner]));
}

#[test]
fn other_schemes_are_refused_with_a_reason() {
    for (url, reason) in [
        ("s3://bucket/x", "not supported yet"),
        ("http://x/", "not supported yet"),
        ("file://host/x", "absolute path"),
        ("hdfs://me@localhost:9000/x", "HADOOP_USER_NAME"),
        ("hdfs://no-such-service/x", "`no-such-service` is no name service of hdfs-site.xml in $HADOOP_CONF_DIR"),
    ] {
        let error = Storage::open(&Url::parse(url).unwrap()).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn a_storage_that_stays_away_is_an_open_outcome() {
    let rates = FaultRates { lost: 1000, ..FaultRates::default() };
    let inner = Faulty::new(Storage::memory().store(), 1, rates);
    let settings = Settings { retry_for: Duration::from_millis(5), ..settings() };
    let storage = Storage::over(Url::parse("memory:///").unwrap(), Arc::new(inner), settings);
    let path = Path::from("x");
    assert!(matches!(storage.create(&path, "1".into()).await, Err(Error::Indeterminate { .. })));
    assert!(matches!(storage.get(&path).await, Err(Error::Failed { operation: "read", .. })));
}
