//! Bounds, pruning, running maxima, schemas.

use super::*;
use crate::log::{Seed, Seeds};
use crate::record::{DATE, OFFSET};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_are_exact_at_every_offset() {
    let dataset = MasterDataset::open_or_create(&Storage::memory(), &small_stream()).await.unwrap();
    // Two days take turns, so the files of partition 0 interleave.
    append(&dataset, vec![events(0, 3..9, |o| Some(o % 2 * DAY)), events(1, 0..4, |_| None)]).await;
    append(&dataset, vec![events(0, 9..12, |o| Some(o % 2 * DAY))]).await;
    let snapshot = dataset.snapshot().await.unwrap();
    assert_eq!(*snapshot.archived_until(), [(0, 12), (1, 4)].into());
    for start in 0..=13 {
        for end in 0..=12 {
            let from: OffsetVector = [(0, start)].into();
            let found = offsets(snapshot.scan(Some(&from), &[(0, end)].into()).unwrap()).await;
            assert_eq!(found, pairs(0, start.max(3)..end), "[{start}, {end})");
        }
    }
    let both = offsets(snapshot.scan(None, &[(0, 5), (1, 2)].into()).unwrap()).await;
    assert_eq!(both, [pairs(0, 3..5), pairs(1, 0..2)].concat(), "no lower bound");
    assert_eq!(offsets(snapshot.scan(None, &OffsetVector::new()).unwrap()).await, []);
    assert_eq!(offsets(snapshot.scan(None, &[(7, 0)].into()).unwrap()).await, [], "nothing is asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_archived_cannot_be_scanned() {
    let dataset = MasterDataset::open_or_create(&Storage::memory(), &small_stream()).await.unwrap();
    append(&dataset, vec![events(0, 0..4, |_| None)]).await;
    let snapshot = dataset.snapshot().await.unwrap();
    for until in [[(0, 5)], [(1, 1)]] {
        let error = snapshot.scan(None, &until.into()).unwrap_err();
        assert!(matches!(error, Error::NotArchived { .. }), "{error}");
        assert!(error.is_transient());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_read_only_what_they_need() {
    let dataset = MasterDataset::open_or_create(&Storage::memory(), &small_stream()).await.unwrap();
    for day in 0..10 {
        append(
            &dataset,
            vec![events(0, day * 10..day * 10 + 10, |o| Some(day * DAY + o)), events(1, day..day + 1, |_| None)],
        )
        .await;
    }
    let snapshot = dataset.snapshot().await.unwrap();
    let scan = || snapshot.scan(None, &[(0, 95), (1, 10)].into()).unwrap();

    let count = sql(scan(), "SELECT count(*) FROM t").await;
    assert_eq!(count[0].column(0).as_primitive::<Int64Type>().value(0), 105);
    let query = "SELECT n FROM t WHERE at >= '1970-01-04T00:00:00Z' AND at < '1970-01-05T00:00:00Z' ORDER BY n";
    let rows = sql(scan(), query).await;
    assert_eq!(rows[0].column(0).as_primitive::<Int32Type>().values().to_vec(), (30..40).collect::<Vec<i32>>());

    let plan = sql(scan(), &format!("EXPLAIN {query}")).await;
    let plan = arrow::util::pretty::pretty_format_batches(&plan).unwrap().to_string();
    assert_eq!(plan.matches(".parquet").count(), 1, "{plan}");
    assert!(!plan.contains(DATE) || plan.contains("_date="), "{plan}");
    let plan = sql(scan(), "EXPLAIN SELECT n FROM t WHERE _partition = 0 AND _offset >= 90").await;
    let plan = arrow::util::pretty::pretty_format_batches(&plan).unwrap().to_string();
    assert_eq!(plan.matches(".parquet").count(), 1, "{plan}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projection_leaves_out_the_columns_of_the_bounds() {
    let dataset = MasterDataset::open_or_create(&Storage::memory(), &small_stream()).await.unwrap();
    append(&dataset, vec![events(2, 0..10, Some)]).await;
    let snapshot = dataset.snapshot().await.unwrap();
    let scan = || snapshot.scan(Some(&[(2, 2)].into()), &[(2, 5)].into()).unwrap();
    let rows = sql(scan(), "SELECT sum(n) AS n FROM t").await;
    assert_eq!(rows[0].column(0).as_primitive::<Int64Type>().value(0), 2 + 3 + 4);
    let rows = sql(scan(), "SELECT n, _offset, n + 1 FROM t ORDER BY n DESC LIMIT 1").await;
    assert_eq!(rows[0].column(1).as_primitive::<Int64Type>().value(0), 4);
    let rows = sql(scan(), "SELECT count(*) FROM t LIMIT 2").await;
    assert_eq!(rows[0].column(0).as_primitive::<Int64Type>().value(0), 3);
    let rows: usize = sql(scan(), "SELECT * FROM t LIMIT 2").await.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_running_maximum_comes_from_the_last_row_below() {
    let stream = small_stream();
    let dataset = MasterDataset::open_or_create(&Storage::memory(), &stream).await.unwrap();
    let with_max = |mut batch: DecodedBatch, max: &[Option<i64>]| {
        let mut columns = batch.events.columns().to_vec();
        columns[3] = Arc::new(max.iter().copied().collect::<TimestampMicrosecondArray>().with_timezone("UTC"));
        batch.events = RecordBatch::try_new(batch.events.schema(), columns).unwrap();
        Arc::new(batch)
    };
    // Offset 4: event time 50; 5: 40; a hole of two; 8: NULL.
    let range = OffsetRange::new(Offset(4), Offset(12));
    let at = |o| match o {
        4 => Some(50),
        5 => Some(40),
        _ => None,
    };
    let batch = with_max(events_at(0, range, &[4, 5, 8], at), &[None, Some(50), Some(50)]);
    dataset.append(&dataset.snapshot().await.unwrap(), &[batch]).await.unwrap();
    // Offset 12: a day and a bit ahead of its record.
    let mut ahead = events(0, 12..13, |_| Some(0));
    let mut columns = ahead.events.columns().to_vec();
    columns[7] = Arc::new(TimestampMicrosecondArray::from(vec![DAY + 1]).with_timezone("UTC"));
    ahead.events = RecordBatch::try_new(ahead.events.schema(), columns).unwrap();
    let batch = with_max(ahead, &[Some(50)]);
    dataset.append(&dataset.snapshot().await.unwrap(), &[batch]).await.unwrap();

    let snapshot = dataset.snapshot().await.unwrap();
    let p = PartitionId(0);
    for (offset, expected) in
        [(0, None), (4, None), (5, Some(50)), (6, Some(50)), (9, Some(50)), (12, Some(50)), (13, Some(50))]
    {
        assert_eq!(snapshot.event_time_max_at(p, Offset(offset)).await.unwrap(), expected, "{offset}");
    }
    assert_eq!(snapshot.event_time_max_at(PartitionId(1), Offset(9)).await.unwrap(), None);
    assert!(snapshot.event_time_max_at(p, Offset(14)).await.is_err());
    let seed = Seed { archived_until: Offset(13), event_time_max: Some(50), leader_epoch: None };
    assert_eq!(Seeds::resume(&dataset).await.unwrap(), [(p, seed)].into());

    // One that is just not too far ahead counts.
    let mut last = events(0, 13..14, |_| Some(0));
    let mut columns = last.events.columns().to_vec();
    columns[7] = Arc::new(TimestampMicrosecondArray::from(vec![DAY]).with_timezone("UTC"));
    last.events = RecordBatch::try_new(last.events.schema(), columns).unwrap();
    dataset.append(&dataset.snapshot().await.unwrap(), &[with_max(last, &[Some(50)])]).await.unwrap();
    let snapshot = dataset.snapshot().await.unwrap();
    assert_eq!(snapshot.event_time_max_at(p, Offset(14)).await.unwrap(), Some(DAY));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_epoch_is_that_of_the_last_offset_or_not_known() {
    let dataset = MasterDataset::open_or_create(&Storage::memory(), &small_stream()).await.unwrap();
    let epoch = async || Seeds::resume(&dataset).await.unwrap()[&PartitionId(0)].leader_epoch;
    append(&dataset, vec![DecodedBatch { leader_epoch: Some(7), ..events(0, 0..3, |_| Some(0)) }]).await;
    assert_eq!(epoch().await, Some(7));
    // Behind it only a control record, whose leader nothing tells: that of the records before may have ended before it.
    append(&dataset, vec![DecodedBatch { leader_epoch: None, ..events(0, 3..4, |_| Some(0)) }]).await;
    assert_eq!(epoch().await, None);
    append(&dataset, vec![DecodedBatch { leader_epoch: Some(9), ..events(0, 4..5, |_| Some(0)) }]).await;
    assert_eq!(epoch().await, Some(9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_lie_in_the_folder_of_their_date() {
    let dataset = MasterDataset::open_or_create(&Storage::memory(), &small_stream()).await.unwrap();
    let year_10000 = 2_932_897 * DAY;
    append(
        &dataset,
        vec![events(0, 0..4, |o| [None, Some(-1), Some(DAY), Some(year_10000)][usize::try_from(o).unwrap()])],
    )
    .await;
    let snapshot = dataset.snapshot().await.unwrap();
    let folders: Vec<_> = snapshot.files().map(|f| f.path.parts().next().unwrap().as_ref().to_owned()).collect();
    assert_eq!(folders, ["_date=1969-12-31", "_date=1970-01-02", "_date=__HIVE_DEFAULT_PARTITION__"]);
    let null_folder = snapshot.files().last().unwrap();
    assert_eq!((null_folder.rows, null_folder.date), (Some(2), None));
    let (_, paths, rows) = as_plain_delta_reader(&dataset).await;
    assert_eq!((paths.len(), rows), (3, 4));
    assert_eq!(offsets(snapshot.scan_archived().unwrap()).await, pairs(0, 0..4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_other_columns_is_refused_by_the_column_that_differs() {
    let storage = Storage::memory();
    MasterDataset::open_or_create(&storage, &small_stream()).await.unwrap();
    let n = |data_type, nullable| vec![Field::new("n", data_type, nullable), Field::new("at", timestamp_type(), true)];
    for (columns, column) in [
        (n(DataType::Int64, true), "n"),
        (n(DataType::Int32, false), "n"),
        (n(DataType::Int32, true).into_iter().chain([Field::new("x", DataType::Utf8, true)]).collect(), "x"),
        (n(DataType::Int32, true).into_iter().skip(1).collect(), "n"),
    ] {
        let error = MasterDataset::open_or_create(&storage, &stream(columns)).await.unwrap_err();
        assert!(matches!(&error, Error::SchemaDiffers { column: c, .. } if c == column), "{error}");
        assert!(!error.is_transient());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_kept_whole() {
    let dataset = MasterDataset::open_or_create(&Storage::memory(), &small_stream()).await.unwrap();
    let mut batch = events_at(1, OffsetRange::new(Offset(0), Offset(4)), &[0, 2], Some);
    batch.dead_letters = vec![dead_letter(1, 1), dead_letter(1, 3)];
    let commit = append(&dataset, vec![batch]).await;
    assert_eq!((commit.events, commit.dead_letters, commit.files), (2, 2, 1));
    let table = dataset.dead_letters().await.unwrap();
    let query = "SELECT topic, _partition, _offset, _timestamp, _key, _headers, arrow_cast(value, 'Utf8') AS value, error FROM t ORDER BY _offset";
    let rows = sql(table, query).await;
    let expected = "\
+--------+------------+---------+-----------------------------+------+-----------------------------------------------+-------+---------------+
| topic  | _partition | _offset | _timestamp                  | _key | _headers                                      | value | error         |
+--------+------------+---------+-----------------------------+------+-----------------------------------------------+-------+---------------+
| github | 1          | 1       | 1970-01-01T00:00:00.000001Z |      | [{key: trace, value: 31}, {key: empty, value: }] | {     | not JSON at 1 |
| github | 1          | 3       | 1970-01-01T00:00:00.000003Z |      | [{key: trace, value: 31}, {key: empty, value: }] | {     | not JSON at 3 |
+--------+------------+---------+-----------------------------+------+-----------------------------------------------+-------+---------------+";
    let found = arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string();
    let words = |text: &str| text.split_whitespace().filter(|w| !w.starts_with('+')).collect::<Vec<_>>().join(" ");
    assert_eq!(words(&found), words(expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_move_without_rows_but_not_for_nothing() {
    let dataset = MasterDataset::open_or_create(&Storage::memory(), &small_stream()).await.unwrap();
    let commit = append(&dataset, vec![events_at(0, OffsetRange::new(Offset(5), Offset(9)), &[], |_| None)]).await;
    assert_eq!((commit.files, commit.archived_until), (0, [(0, 9)].into()));
    let snapshot = dataset.snapshot().await.unwrap();
    let nothing = Arc::new(events_at(0, OffsetRange::new(Offset(9), Offset(9)), &[], |_| None));
    assert_eq!(dataset.append(&snapshot, &[nothing]).await.unwrap(), AppendOutcome::Nothing);
    assert_eq!(dataset.append(&snapshot, &[]).await.unwrap(), AppendOutcome::Nothing);
    assert_eq!(dataset.snapshot().await.unwrap().version(), snapshot.version());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_and_overlaps_are_refused() {
    let dataset = MasterDataset::open_or_create(&Storage::memory(), &small_stream()).await.unwrap();
    append(&dataset, vec![events(0, 0..4, |_| None)]).await;
    let snapshot = dataset.snapshot().await.unwrap();
    for batches in [
        vec![events(0, 5..6, |_| None)],
        vec![events(0, 3..6, |_| None)],
        vec![events(0, 4..5, |_| None), events(0, 6..7, |_| None)],
    ] {
        let batches: Vec<_> = batches.into_iter().map(Arc::new).collect();
        let error = dataset.append(&snapshot, &batches).await.unwrap_err();
        assert!(matches!(error, Error::NotContiguous { .. }), "{error}");
    }
    assert_eq!(offsets(dataset.snapshot().await.unwrap().scan_archived().unwrap()).await, pairs(0, 0..4));
    assert_eq!(OFFSET, "_offset");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_topic_of_the_same_name_is_refused() {
    let storage = Storage::memory();
    let first = MasterDataset::open_for_topic(&storage, &small_stream(), Some("id-1")).await.unwrap();
    append(&first, vec![events(0, 0..4, |_| None)]).await;
    let second = MasterDataset::open_for_topic(&storage, &small_stream(), Some("id-2")).await.unwrap();
    let snapshot = second.snapshot().await.unwrap();
    assert_eq!(*snapshot.archived_until(), [(0, 4)].into(), "reading needs no id");
    let error = second.append(&snapshot, &[Arc::new(events(0, 4..5, |_| None))]).await.unwrap_err();
    assert!(matches!(error, Error::TopicReplaced { .. }), "{error}");
}
