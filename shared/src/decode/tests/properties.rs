//! What holds for every schema and every record.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::avro;
use super::random::{Value, bare, ddl, object, read, value};
use super::*;
use crate::decode::column::Column;

/// Runs `property` with many generators; a failure prints the seed that repeats it.
pub(super) fn check_property(runs: u64, property: impl Fn(&mut StdRng)) {
    let first: u64 = match std::env::var("WATERSHED_SEEDS") {
        Ok(seed) => seed.parse().expect("WATERSHED_SEEDS is a number"),
        Err(_) => rand::random(),
    };
    for seed in (0..runs).map(|i| first.wrapping_add(i)) {
        let run = std::panic::AssertUnwindSafe(|| property(&mut StdRng::seed_from_u64(seed)));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("WATERSHED_SEEDS={seed} repeats it");
            std::panic::resume_unwind(panic);
        }
    }
}

pub(super) fn row_of(batch: &DecodedBatch, row: usize) -> Vec<Value> {
    batch.events.columns()[record::SYSTEM_COLUMNS.len()..].iter().map(|c| read(c.as_ref(), row)).collect()
}

fn rows(rng: &mut StdRng, config: &StreamConfig) -> Vec<Vec<Value>> {
    let fields = config.columns.fields();
    (0..rng.random_range(0..20)).map(|_| fields.iter().map(|f| value(rng, f)).collect()).collect()
}

fn csv_record(rng: &mut StdRng, config: &StreamConfig, row: &[Value]) -> String {
    let field = |(value, field): (&Value, &std::sync::Arc<arrow::datatypes::Field>)| {
        if *value == Value::Null {
            return String::new();
        }
        let text = bare(rng, field, value);
        let must = text.contains(['"', ',', '\n', '\r']);
        if must || rng.random_bool(0.2) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
    };
    let fields: Vec<String> = row.iter().zip(config.columns.fields()).map(field).collect();
    fields.join(",")
}

pub(super) fn random_stream(rng: &mut StdRng, format: Format) -> StreamConfig {
    let mut config = stream(format, &ddl(rng, 3));
    config.event_time = Some("at".into());
    config
}

#[test]
fn what_is_written_as_json_is_read_again() {
    check_property(400, |rng| {
        let config = random_stream(rng, Format::Json);
        let rows = rows(rng, &config);
        let mut texts = vec![];
        for row in &rows {
            let mut text = String::new();
            object(rng, config.columns.fields(), row, &mut text);
            texts.push(text);
        }
        let batch = decode(&config, &raw(&texts));
        assert_eq!(batch.dead_letters, [], "{:?}", config.columns);
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(row_of(&batch, i), *row, "{}", texts[i]);
        }
    });
}

#[test]
fn what_is_written_as_csv_is_read_again() {
    check_property(400, |rng| {
        let config = random_stream(rng, CSV);
        let mut rows = rows(rng, &config);
        // An empty field is NULL, so that CSV cannot write the empty string.
        for value in rows.iter_mut().flatten() {
            match value {
                Value::Text(text) if text.is_empty() => *text = "x".into(),
                Value::Bytes(bytes) if bytes.is_empty() => bytes.push(0),
                _ => {}
            }
        }
        let texts: Vec<String> = rows.iter().map(|row| csv_record(rng, &config, row)).collect();
        let batch = decode(&config, &raw(&texts));
        assert_eq!(batch.dead_letters, [], "{:?}", config.columns);
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(row_of(&batch, i), *row, "{}", texts[i]);
        }
    });
}

#[test]
fn many_columns_are_found_in_any_order() {
    check_property(10, |rng| {
        let ddl: Vec<String> = (0..rng.random_range(14..60)).map(|i| format!("c{i} INT")).collect();
        let config = stream(Format::Json, &ddl.join(", "));
        let rows = rows(rng, &config);
        let write = |row: &Vec<Value>, rng: &mut StdRng| {
            let mut text = String::new();
            object(rng, config.columns.fields(), row, &mut text);
            text
        };
        let texts: Vec<String> = rows.iter().map(|row| write(row, rng)).collect();
        let batch = decode(&config, &raw(&texts));
        assert_eq!(batch.dead_letters, []);
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(row_of(&batch, i), *row, "{}", texts[i]);
        }
    });
}

/// Records of which some are damaged in one way or another, some are tombstones, some offsets are holes.
fn damaged(rng: &mut StdRng, config: &StreamConfig) -> RawBatch {
    let rows = rows(rng, config);
    let mut values: Vec<Vec<u8>> = vec![];
    for row in &rows {
        let mut text = String::new();
        values.push(match config.format {
            Format::Avro(_) => avro::record(config, row),
            Format::Json => {
                object(rng, config.columns.fields(), row, &mut text);
                text.into_bytes()
            }
            _ => csv_record(rng, config, row).into_bytes(),
        });
    }
    for i in 0..values.len() {
        if rng.random_bool(0.5) {
            continue;
        }
        let other = values[rng.random_range(0..values.len())].clone();
        let value = &mut values[i];
        let at = rng.random_range(0..=value.len());
        match rng.random_range(0..7) {
            0 => value.truncate(at),
            1 => drop(value.drain(..at)),
            2 => value.insert(at, rng.random()),
            3 => value.insert(at, b"{}[],:\"\\0-e.n\n"[rng.random_range(0..14)]),
            4 if at < value.len() => value[at] = rng.random(),
            5 => value.extend(other),
            _ => value.clear(),
        }
    }
    let mut batch = raw(&values);
    let mut offset = batch.range.start.0;
    for record in &mut batch.records {
        offset += rng.random_range(0..3);
        record.offset = Offset(offset);
        offset += 1;
        if rng.random_bool(0.1) {
            record.value = None;
        }
        record.timestamp = rng.random_bool(0.9).then(|| rng.random_range(0..253_402_300_800_000_000));
        if rng.random_bool(0.1) {
            record.headers = vec![("h".into(), Some(Bytes::from_static(b"v")))];
        }
    }
    batch.range = OffsetRange::new(batch.range.start, Offset(offset + rng.random_range(0..3)));
    batch
}

/// A decoder that knows the schemas of the records of `raw`, as far as there are any.
fn decoder(config: &StreamConfig, raw: &RawBatch) -> Decoder {
    let mut decoder = Decoder::new(config).unwrap();
    for id in decoder.unknown_schemas(raw) {
        decoder.learn(id, &avro::canonical(config, id));
    }
    decoder
}

fn any_format(rng: &mut StdRng) -> Format {
    match rng.random_range(0..3) {
        0 => Format::Json,
        1 => CSV,
        _ => avro::format(),
    }
}

#[test]
fn a_record_decodes_in_a_batch_as_it_does_alone() {
    check_property(400, |rng| {
        let format = any_format(rng);
        let config = random_stream(rng, format);
        let raw = damaged(rng, &config);
        let mut together = RunningMaximum { event_time_max: None };
        let batch = decoder(&config, &raw).decode(&raw, &mut together);
        let mut alone = RunningMaximum { event_time_max: None };
        let mut decoder = decoder(&config, &raw);
        let (mut events, mut dead, mut tombstones, mut ahead) = (0, 0, 0, 0);
        for record in &raw.records {
            let range = OffsetRange::new(record.offset, Offset(record.offset.0 + 1));
            let one = RawBatch { partition: raw.partition, range, records: vec![record.clone()], leader_epoch: None };
            let one = decoder.decode(&one, &mut alone);
            assert_eq!(one.events.num_rows() + one.dead_letters.len() + usize::try_from(one.tombstones).unwrap(), 1);
            if config.format == Format::Json && one.events.num_rows() == 1 {
                let text = record.value.as_ref().unwrap();
                assert!(serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok(), "{text:?}");
            }
            if one.events.num_rows() == 1 {
                assert_eq!(batch.events.slice(events, 1), one.events);
                events += 1;
            }
            for letter in one.dead_letters {
                assert_eq!(letter.record, *record);
                assert_eq!(batch.dead_letters[dead], letter);
                dead += 1;
            }
            tombstones += one.tombstones;
            ahead += one.ahead;
        }
        assert_eq!((events, dead), (batch.events.num_rows(), batch.dead_letters.len()));
        assert_eq!((tombstones, ahead), (batch.tombstones, batch.ahead));
        assert_eq!((alone, together.event_time_max), (together, batch.event_time_max));
    });
}

fn assert_same(a: &DecodedBatch, b: &DecodedBatch) {
    assert_eq!((a.partition, a.range), (b.partition, b.range));
    assert_eq!(a.events, b.events);
    assert_eq!(a.dead_letters, b.dead_letters);
    assert_eq!(a.event_time_max, b.event_time_max);
}

#[test]
fn a_part_of_a_batch_is_what_its_records_decode_to() {
    check_property(200, |rng| {
        let format = any_format(rng);
        let config = random_stream(rng, format);
        let raw = damaged(rng, &config);
        let start = RunningMaximum { event_time_max: rng.random_bool(0.5).then(|| rng.random_range(0..1_000)) };
        let mut decoder = decoder(&config, &raw);
        let whole = decoder.decode(&raw, &mut start.clone());
        for offset in raw.range.start.0 - 1..=raw.range.end.0 + 1 {
            let (below, from) = whole.clone().split_at(Offset(offset));
            let at = Offset(offset.clamp(raw.range.start.0, raw.range.end.0));
            let part = |range: OffsetRange| {
                let records = raw.records.iter().filter(|r| range.contains(r.offset)).cloned().collect();
                RawBatch { partition: raw.partition, range, records, leader_epoch: None }
            };
            let mut max = start;
            assert_same(&below, &decoder.decode(&part(OffsetRange::new(raw.range.start, at)), &mut max));
            assert_same(&from, &decoder.decode(&part(OffsetRange::new(at, raw.range.end)), &mut max));
            assert_eq!(below.tombstones + from.tombstones, whole.tombstones);
            assert_eq!(below.ahead + from.ahead, whole.ahead);
            assert!(below.memory_size() <= whole.memory_size());
            assert_same(&DecodedBatch::concat([below, from]).unwrap(), &whole);
        }
    });
}

#[test]
fn batches_join_in_their_order_only() {
    let config = stream(Format::Json, "a INT");
    let whole = decode(&config, &raw(["{\"a\":1}", "x", "{\"a\":2}"]));
    let (first, rest) = whole.clone().split_at(Offset(101));
    let (second, third) = rest.split_at(Offset(102));
    let joined = DecodedBatch::concat([first.clone(), second.clone(), third.clone()]).unwrap();
    assert_same(&joined, &whole);
    assert!(matches!(DecodedBatch::concat([]), Err(ConcatError::Nothing)));
    assert!(matches!(DecodedBatch::concat([first.clone(), third.clone()]), Err(ConcatError::NotAdjacent(_, _))));
    assert!(matches!(DecodedBatch::concat([second.clone(), first.clone()]), Err(ConcatError::NotAdjacent(_, _))));
    assert!(matches!(DecodedBatch::concat([first.clone(), first.clone()]), Err(ConcatError::NotAdjacent(_, _))));
    let elsewhere = DecodedBatch { partition: PartitionId(4), ..second };
    assert!(matches!(DecodedBatch::concat([first.clone(), elsewhere]), Err(ConcatError::Partitions(_, _))));
    let mut other = decode(&stream(Format::Json, "b INT"), &raw(["{}", "{}"]));
    other.range = OffsetRange::new(Offset(101), Offset(103));
    assert!(matches!(DecodedBatch::concat([first, other]), Err(ConcatError::Columns(_, _))));
}

#[test]
fn memory_grows_with_rows_and_dead_letters() {
    let config = stream(Format::Json, "a VARCHAR");
    let good = format!("{{\"a\":\"{}\"}}", "x".repeat(1_000));
    let size = |texts: &[&str]| decode(&config, &raw(texts)).memory_size();
    let empty = size(&[]);
    assert!((1_000..1_300).contains(&(size(&[&good]) - empty)));
    assert!((1_000..1_300).contains(&(size(&[&good[1..]]) - empty)));
    let (below, from) = decode(&config, &raw([&good, &good, &good])).split_at(Offset(101));
    assert!((1_000..1_500).contains(&below.memory_size()));
    assert!((2_000..2_800).contains(&from.memory_size()));
}

#[test]
fn rows_are_taken_back_at_every_depth() {
    check_property(100, |rng| {
        let config = random_stream(rng, Format::Json);
        let mut column = root(&config).unwrap();
        let mut scratch = Scratch::default();
        let fields = config.columns.fields();
        let mut append = |column: &mut Column, rng: &mut StdRng| {
            let values: Vec<Value> = fields.iter().map(|f| value(rng, f)).collect();
            let mut text = String::new();
            object(rng, fields, &values, &mut text);
            column.append_json(&mut Scanner::new(&text), &mut scratch).unwrap();
            values
        };
        let mut kept = vec![];
        for _ in 0..10 {
            for _ in 0..rng.random_range(0..3) {
                append(&mut column, rng);
            }
            column.truncate(kept.len());
            kept.push(append(&mut column, rng));
        }
        let array = column.finish();
        let got: Vec<Value> = (0..array.len()).map(|row| read(array.as_ref(), row)).collect();
        assert_eq!(got, kept.into_iter().map(Value::Struct).collect::<Vec<_>>());
        assert_eq!(column.len(), 0);
    });
}
