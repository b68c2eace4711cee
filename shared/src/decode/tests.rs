//! What records mean, case by case.

mod avro;
mod properties;
pub(super) mod random;
mod real_data;

use std::time::Duration;

use arrow::array::Array;
use arrow::util::display::array_value_to_string;
use bytes::Bytes;

use super::*;
use crate::columns::parse_columns;
use crate::offsets::{Offset, OffsetRange, PartitionId};

pub(super) fn stream(format: Format, ddl: &str) -> StreamConfig {
    let columns = parse_columns(ddl).unwrap_or_else(|e| panic!("{ddl}: {e}"));
    StreamConfig {
        name: "s".into(),
        topic: "s".into(),
        partitions: 1,
        replication: 1,
        shards: 1,
        format,
        event_time: None,
        allowed_lateness: None,
        max_ahead: Duration::from_secs(86_400),
        columns: columns.schema,
        json_columns: columns.json,
        accept_compacted: false,
        epoch_units: BTreeMap::new(),
    }
}

pub(super) const CSV: Format = Format::Csv { delimiter: b',' };

/// Records of partition 3 from offset 100 on.
pub(super) fn raw<V: AsRef<[u8]>>(values: impl IntoIterator<Item = V>) -> RawBatch {
    let records: Vec<RawRecord> = (100..)
        .zip(values)
        .map(|(offset, value)| RawRecord {
            offset: Offset(offset),
            timestamp: Some(1_700_000_000_000_000 + offset),
            key: None,
            value: Some(Bytes::copy_from_slice(value.as_ref())),
            headers: vec![],
        })
        .collect();
    let end = Offset(100 + i64::try_from(records.len()).unwrap());
    RawBatch { partition: PartitionId(3), range: OffsetRange::new(Offset(100), end), records, leader_epoch: None }
}

pub(super) fn decode(config: &StreamConfig, raw: &RawBatch) -> DecodedBatch {
    Decoder::new(config).unwrap().decode(raw, &mut RunningMaximum::default())
}

/// The user's columns of row `row` as text, NULL as `-`.
fn show(batch: &DecodedBatch, row: usize) -> Vec<String> {
    let user = &batch.events.columns()[record::SYSTEM_COLUMNS.len()..];
    let cell = |c: &arrow::array::ArrayRef| match c.is_null(row) {
        true => "-".to_owned(),
        false => array_value_to_string(c, row).unwrap(),
    };
    user.iter().map(cell).collect()
}

/// Decodes each value alone, as the column `c`, and compares it or the error.
fn check_values(config: &StreamConfig, record: impl Fn(&str) -> String, cases: &[(&str, Result<&str, &str>)]) {
    for (value, want) in cases {
        let text = record(value);
        let batch = decode(config, &raw([&text]));
        let got = match batch.dead_letters.first() {
            None => Ok(show(&batch, 0).remove(0)),
            Some(dead) => Err(dead.error.clone()),
        };
        match want {
            Ok(want) => assert_eq!(got.as_deref(), Ok(*want), "{text}"),
            Err(want) => assert_eq!(got, Err(format!("column `c`: {want}")), "{text}"),
        }
    }
}

fn check_json(data_type: &str, cases: &[(&str, Result<&str, &str>)]) {
    let config = stream(Format::Json, &format!("c {data_type}"));
    check_values(&config, |value| format!("{{\"c\":{value}}}"), cases);
}

fn check_csv(data_type: &str, cases: &[(&str, Result<&str, &str>)]) {
    let config = stream(CSV, &format!("c {data_type}, d VARCHAR"));
    check_values(&config, |value| format!("\"{}\",x", value.replace('"', "\"\"")), cases);
}

/// The whole-record error of one value.
fn check_dead(config: &StreamConfig, value: &[u8], message: &str) {
    let batch = decode(config, &raw([value]));
    assert_eq!(batch.events.num_rows(), 0, "{}", String::from_utf8_lossy(value));
    assert_eq!(batch.dead_letters[0].error, message, "{}", String::from_utf8_lossy(value));
}

#[test]
fn integers_are_exact() {
    check_json(
        "INT",
        &[
            ("7", Ok("7")),
            ("-0", Ok("0")),
            ("2147483647", Ok("2147483647")),
            ("-2147483648", Ok("-2147483648")),
            ("1.0", Ok("1")),
            ("1e3", Ok("1000")),
            ("\"123\"", Ok("123")),
            ("\"+007\"", Ok("7")),
            ("\"1\\u0032\"", Ok("12")),
            ("null", Ok("-")),
            ("1.5", Err("expected INT, got number 1.5: not an integer")),
            ("1e400", Err("expected INT, got number 1e400: out of range")),
            ("1e-400", Err("expected INT, got number 1e-400: not an integer")),
            ("2147483648", Err("expected INT, got number 2147483648: out of range")),
            ("\"x\"", Err("expected INT, got string \"x\"")),
            ("\"\"", Err("expected INT, got string \"\"")),
            ("\" 1\"", Err("expected INT, got string \" 1\"")),
            ("\"NaN\"", Err("expected INT, got string \"NaN\"")),
            ("true", Err("expected INT, got true")),
            ("{\"a\":[1]}", Err("expected INT, got an object")),
            ("[1]", Err("expected INT, got an array")),
        ],
    );
    check_json(
        "BIGINT",
        &[
            ("9007199254740993", Ok("9007199254740993")),
            ("9223372036854775807", Ok("9223372036854775807")),
            ("-9223372036854775808", Ok("-9223372036854775808")),
            ("\"9223372036854775807\"", Ok("9223372036854775807")),
            ("9223372036854775808", Err("expected BIGINT, got number 9223372036854775808: out of range")),
        ],
    );
    check_csv(
        "BIGINT",
        &[
            ("007", Ok("7")),
            ("+7", Ok("7")),
            ("1e2", Ok("100")),
            ("", Ok("-")),
            ("2,499", Err("expected BIGINT, got \"2,499\"")),
            ("1.5", Err("expected BIGINT, got \"1.5\": not an integer")),
            (" 7", Err("expected BIGINT, got \" 7\"")),
        ],
    );
}

#[test]
fn floats_are_the_nearest_and_finite() {
    check_json(
        "DOUBLE",
        &[
            ("0.1", Ok("0.1")),
            ("-0.0", Ok("-0.0")),
            ("17", Ok("17.0")),
            ("1e-400", Ok("0.0")),
            ("1.7976931348623157e308", Ok("1.7976931348623157e308")),
            ("\"2.5\"", Ok("2.5")),
            ("1e400", Err("expected DOUBLE, got number 1e400: out of range")),
            ("\"NaN\"", Err("expected DOUBLE, got string \"NaN\"")),
            ("\"Infinity\"", Err("expected DOUBLE, got string \"Infinity\"")),
            ("\"inf\"", Err("expected DOUBLE, got string \"inf\"")),
            ("false", Err("expected DOUBLE, got false")),
        ],
    );
    check_json(
        "REAL",
        &[
            ("16777217", Ok("16777216.0")),
            ("3.4028235e38", Ok("3.4028235e38")),
            ("1e39", Err("expected REAL, got number 1e39: out of range")),
        ],
    );
    check_csv("DOUBLE", &[("4.1", Ok("4.1")), ("nan", Err("expected DOUBLE, got \"nan\""))]);
}

#[test]
fn decimals_are_never_rounded() {
    check_json(
        "DECIMAL(6, 2)",
        &[
            ("12.34", Ok("12.34")),
            ("-12.3", Ok("-12.30")),
            ("\"12.34\"", Ok("12.34")),
            ("12.340000", Ok("12.34")),
            ("1234e-2", Ok("12.34")),
            ("9999.99", Ok("9999.99")),
            (
                "12.345",
                Err(
                    "expected DECIMAL(6, 2), got number 12.345: too many digits behind the point, it would have to be rounded",
                ),
            ),
            ("10000", Err("expected DECIMAL(6, 2), got number 10000: out of range")),
            ("\"12,34\"", Err("expected DECIMAL(6, 2), got string \"12,34\"")),
        ],
    );
    check_json(
        "DECIMAL(38, 0)",
        &[
            ("99999999999999999999999999999999999999", Ok("99999999999999999999999999999999999999")),
            (
                "100000000000000000000000000000000000000",
                Err("expected DECIMAL(38, 0), got number 100000000000000000000000000000000000000: out of range"),
            ),
        ],
    );
    check_csv("DECIMAL(6, 2)", &[("0.10", Ok("0.10")), ("abc", Err("expected DECIMAL(6, 2), got \"abc\""))]);
}

#[test]
fn booleans_are_true_and_false() {
    check_json(
        "BOOLEAN",
        &[
            ("true", Ok("true")),
            ("false", Ok("false")),
            ("\"true\"", Err("expected BOOLEAN, got string \"true\"")),
            ("1", Err("expected BOOLEAN, got number 1")),
        ],
    );
    check_csv("BOOLEAN", &[("true", Ok("true")), ("False", Ok("false")), ("1", Err("expected BOOLEAN, got \"1\""))]);
}

#[test]
fn texts_are_strings() {
    check_json(
        "VARCHAR",
        &[
            ("\"\"", Ok("")),
            ("\"a\\u0000b\"", Ok("a\0b")),
            ("\"\\ud83d\\ude00\"", Ok("😀")),
            (
                "\"\\ud83d\"",
                Err("expected VARCHAR, got string \"\\\\ud83d\": half of a surrogate pair is no character"),
            ),
            ("5", Err("expected VARCHAR, got number 5")),
            ("true", Err("expected VARCHAR, got true")),
            ("[]", Err("expected VARCHAR, got an array")),
        ],
    );
    check_csv(
        "VARCHAR",
        &[("2,499", Ok("2,499")), ("say \"hi\"", Ok("say \"hi\"")), (" a ", Ok(" a ")), ("", Ok("-"))],
    );
}

#[test]
fn bytes_are_base64() {
    for check in [check_csv, |t: &str, c: &[(&str, Result<&str, &str>)]| {
        let quoted: Vec<(String, _)> = c.iter().map(|(v, w)| (format!("\"{v}\""), *w)).collect();
        check_json(t, &quoted.iter().map(|(v, w)| (v.as_str(), *w)).collect::<Vec<_>>());
    }] {
        check("VARBINARY", &[("AP8=", Ok("00ff")), ("AP8", Ok("00ff"))]);
    }
    check_json(
        "VARBINARY",
        &[
            ("\"\"", Ok("")),
            ("\"AP8!\"", Err("expected VARBINARY, got string \"AP8!\": not base64")),
            ("\"AP9=\"", Err("expected VARBINARY, got string \"AP9=\": not base64")),
            ("1", Err("expected VARBINARY, got number 1")),
        ],
    );
}

#[test]
fn dates_and_timestamps_read_alike_in_every_format() {
    let date = "write YYYY-MM-DD";
    check_json(
        "DATE",
        &[
            ("\"2024-02-29\"", Ok("2024-02-29")),
            ("\"2023-02-29\"", Err(&format!("expected DATE, got string \"2023-02-29\": {date}"))),
            ("\"2024-02-29T00:00:00Z\"", Err(&format!("expected DATE, got string \"2024-02-29T00:00:00Z\": {date}"))),
            ("19000", Err("expected DATE, got number 19000")),
        ],
    );
    let times = [
        ("2015-01-01T00:00:00Z", Some("2015-01-01T00:00:00Z")),
        ("2015-01-01 02:00:00+02:00", Some("2015-01-01T00:00:00Z")),
        ("2015-01-01T00:00:00.1234569Z", Some("2015-01-01T00:00:00.123456Z")),
        ("2015-01-01", Some("2015-01-01T00:00:00Z")),
        ("yesterday", None),
        ("2015-02-30T00:00:00Z", None),
    ];
    let hint = "write it as RFC 3339, like 2024-10-06T12:00:00Z";
    for (text, want) in times {
        let error = |got: String| format!("expected TIMESTAMP, got {got}: {hint}");
        let (json, csv) = (error(format!("string \"{text}\"")), error(format!("\"{text}\"")));
        check_json("TIMESTAMP", &[(&format!("\"{text}\""), want.ok_or(json.as_str()))]);
        check_csv("TIMESTAMP", &[(text, want.ok_or(csv.as_str()))]);
    }
    let unit = "a number needs its unit, declare it in the stream's epoch_units";
    check_json(
        "TIMESTAMP",
        &[
            ("1420070400", Err(&format!("expected TIMESTAMP, got number 1420070400: {unit}"))),
            ("\"1420070400\"", Err(&format!("expected TIMESTAMP, got string \"1420070400\": {unit}"))),
        ],
    );
    check_csv("TIMESTAMP", &[("1420070400", Err(&format!("expected TIMESTAMP, got \"1420070400\": {unit}")))]);
}

#[test]
fn epoch_units_let_timestamps_come_as_numbers() {
    let mut config = stream(Format::Json, "c TIMESTAMP, s STRUCT<at LIST<TIMESTAMP>>");
    config.epoch_units.insert("c".into(), EpochUnit::Milliseconds);
    config.epoch_units.insert("s.at.element".into(), EpochUnit::Seconds);
    check_values(
        &config,
        |value| format!("{{\"c\":{value}}}"),
        &[
            ("1420070400123", Ok("2015-01-01T00:00:00.123Z")),
            ("1420070400123.4567", Ok("2015-01-01T00:00:00.123456Z")),
            ("\"1420070400123\"", Ok("2015-01-01T00:00:00.123Z")),
            ("\"2015-01-01T00:00:00Z\"", Ok("2015-01-01T00:00:00Z")),
            ("1e18", Err("expected TIMESTAMP, got number 1e18: out of range, years 0000 to 9999 can be kept")),
        ],
    );
    let batch = decode(&config, &raw([r#"{"s":{"at":[0,1.5]}}"#]));
    assert_eq!(show(&batch, 0)[1], "{at: [1970-01-01T00:00:00Z, 1970-01-01T00:00:01.500Z]}");
    let mut dotted = stream(Format::Json, "\"a.b\" TIMESTAMP");
    for name in ["a.b", "\"a.b\""] {
        dotted.epoch_units = [(name.to_owned(), EpochUnit::Seconds)].into();
        assert_eq!(show(&decode(&dotted, &raw([r#"{"a.b":1}"#])), 0), ["1970-01-01T00:00:01Z"]);
    }
    config.format = CSV;
    let batch = decode(&config, &raw(["1420070400123,"]));
    assert_eq!(show(&batch, 0)[0], "2015-01-01T00:00:00.123Z");
    config.epoch_units.insert("s".into(), EpochUnit::Seconds);
    assert!(matches!(Decoder::new(&config), Err(Error::EpochUnits { column, .. }) if column == "s"));
}

#[test]
fn json_columns_keep_the_records_own_text() {
    check_json(
        "JSON",
        &[
            ("{ \"b\" : 1.50, \"a\":[ ] }", Ok("{ \"b\" : 1.50, \"a\":[ ] }")),
            ("  \"x\\u00e9\" ", Ok("\"x\\u00e9\"")),
            ("1e400", Ok("1e400")),
            ("null", Ok("-")),
        ],
    );
    check_csv("JSON", &[("{\"a\": 1}", Ok("{\"a\": 1}"))]);
    let csv = stream(CSV, "c JSON");
    check_dead(&csv, b"{\"\"", "not JSON: expected `:` at byte 3, found the end");
    let nested = stream(Format::Json, "s STRUCT<raw JSON, l LIST<JSON>>");
    let batch = decode(&nested, &raw([r#"{"s":{"raw":[1, 2],"l":[{}, "x", null]}}"#]));
    assert_eq!(show(&batch, 0), [r#"{raw: [1, 2], l: [{}, "x", ]}"#]);
}

#[test]
fn nested_values_are_read_and_named_in_errors() {
    let config = stream(
        Format::Json,
        "a STRUCT<b INT, \"x.y\" LIST<STRUCT<n BIGINT NOT NULL>>>, m MAP<VARCHAR, INT NOT NULL>, d MAP<DATE, BOOLEAN>",
    );
    let batch = decode(
        &config,
        &raw([
            r#"{"a":{"b":1,"x.y":[{"n":2},null,{"n":3,"o":{}}]},"m":{"k":4,"l":5},"d":{"2024-01-01":true}}"#,
            r#"{"a":null,"m":{},"d":null}"#,
            r#"{"a":{}}"#,
        ]),
    );
    assert_eq!(batch.dead_letters, []);
    assert_eq!(show(&batch, 0), ["{b: 1, x.y: [{n: 2}, , {n: 3}]}", "{k: 4, l: 5}", "{2024-01-01: true}"]);
    assert_eq!(show(&batch, 1), ["-", "{}", "-"]);
    assert_eq!(show(&batch, 2), ["{b: , x.y: }", "-", "-"]);
    for (record, message) in [
        (r#"{"a":{"b":"x"}}"#, "column `a.b`: expected INT, got string \"x\""),
        (r#"{"a":{"x.y":[{"n":1},{"n":[]}]}}"#, "column `a.\"x.y\".element.n`: expected BIGINT, got an array"),
        (
            r#"{"a":{"x.y":[{"n":1},{}]}}"#,
            "column `a.\"x.y\".element.n`: expected BIGINT NOT NULL, got nothing: the field is missing",
        ),
        (r#"{"a":[]}"#, "column `a`: expected STRUCT<b INT, \"x.y\" LIST<STRUCT<n BIGINT NOT NULL>>>, got an array"),
        (r#"{"m":{"k":null}}"#, "column `m.value`: expected INT NOT NULL, got null"),
        (r#"{"m":{"k":1,"\u006b":2}}"#, "column `m`: expected MAP<VARCHAR, INT NOT NULL>, got a key twice"),
        (
            r#"{"m":{"\ud800":1}}"#,
            "column `m.key`: expected VARCHAR, got \"\\\\ud800\": half of a surrogate pair is no character",
        ),
        (r#"{"d":{"x":true}}"#, "column `d.key`: expected DATE, got \"x\": write YYYY-MM-DD"),
    ] {
        check_dead(&config, record.as_bytes(), message);
    }
    // In csv they are JSON in the field.
    let batch = decode(&StreamConfig { format: CSV, ..config }, &raw([r#""{""b"":1}","{""k"":2}","#]));
    assert_eq!(show(&batch, 0), ["{b: 1, x.y: }", "{k: 2}", "-"]);
}

#[test]
fn not_null_makes_a_dead_letter_of_null() {
    let config = stream(Format::Json, "id VARCHAR NOT NULL, n INT");
    check_dead(&config, b"{}", "column `id`: expected VARCHAR NOT NULL, got nothing: the field is missing");
    check_dead(&config, br#"{"id":null}"#, "column `id`: expected VARCHAR NOT NULL, got null");
    let config = StreamConfig { format: CSV, ..config };
    check_dead(&config, b",5", "column `id`: expected VARCHAR NOT NULL, got an empty field");
}

#[test]
fn a_record_is_one_object() {
    let config = stream(Format::Json, "a INT");
    for (record, message) in [
        ("", "the value is empty"),
        (" ", "not JSON: expected a value at byte 1, found the end"),
        ("{\"a\":1}{\"a\":2}", "not JSON: expected nothing more behind the value at byte 7, found `{\"a\":2}`"),
        ("{\"a\":1}\n{\"a\":2}", "not JSON: expected nothing more behind the value at byte 8, found `{\"a\":2}`"),
        ("{\"a\":1},", "not JSON: expected nothing more behind the value at byte 7, found `,`"),
        ("{\"a\":", "not JSON: expected a value at byte 5, found the end"),
        ("1}", "not JSON: expected nothing more behind the value at byte 1, found `}`"),
        ("null", "expected a JSON object, got null"),
        ("[{\"a\":1}]", "expected a JSON object, got [{\"a\":1}]"),
        ("\"{}\"", "expected a JSON object, got \"{}\""),
        // Not JSON, even where it would be ignored.
        ("{\"b\":tru}", "not JSON: expected a value at byte 5, found `tru}`"),
        (
            "{\"b\":\"\u{1}\"}",
            "not JSON: expected control characters in a string to be escaped at byte 6, found `\\u{1}\"}`",
        ),
    ] {
        check_dead(&config, record.as_bytes(), message);
    }
    check_dead(&config, b"{\"b\":\"\xff\"}", "invalid UTF-8 at byte 6");
    let fine = [
        "{}",
        " {\n  \"a\" : 1\n}\n",
        "{\"b\":\"\\ud800\",\"\\ud800\":1,\"a\":1}",
        "{\"a\":2,\"a\":1}",
        "{\"\\u0061\":1}",
        "{\"A\":2,\"a\":1,\"a \":3}",
    ];
    let batch = decode(&config, &raw(fine));
    assert_eq!(batch.dead_letters, []);
    let rows: Vec<_> = (0..fine.len()).map(|row| show(&batch, row).remove(0)).collect();
    assert_eq!(rows, ["-", "1", "1", "1", "1", "1"]);
    let deep = format!("{{\"b\":{}{},\"a\":1}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(show(&decode(&config, &raw([deep])), 0), ["1"]);
}

#[test]
fn a_bad_record_costs_its_neighbours_nothing() {
    let config = stream(Format::Json, "a INT, s STRUCT<l LIST<VARCHAR>, n INT>");
    let mut records = raw([
        r#"{"a":1,"s":{"l":["x"]}}"#,
        r#"{"a":"#,
        "1}",
        r#"{"a":2,"s":{"l":["y","z",3]}}"#,
        r#"{"a":3,"s":{"l":["w"],"n":4}}"#,
        "tombstone",
        r#"{"s":{"l":["v"],"n":4},"a":[]}"#,
    ]);
    records.records[5].value = None;
    let batch = decode(&config, &records);
    assert_eq!((batch.events.num_rows(), batch.tombstones, batch.range), (2, 1, records.range));
    assert_eq!(show(&batch, 0), ["1", "{l: [x], n: }"]);
    assert_eq!(show(&batch, 1), ["3", "{l: [w], n: 4}"]);
    let dead: Vec<_> = batch.dead_letters.iter().map(|d| d.record.offset.0).collect();
    assert_eq!(dead, [101, 102, 103, 106]);
    assert_eq!(batch.dead_letters[0].record, records.records[1]);
    assert_eq!(batch.dead_letters[0].partition, PartitionId(3));
}

#[test]
fn a_csv_record_has_a_field_for_each_column() {
    let config = stream(CSV, "a INT, b VARCHAR, c VARCHAR");
    let batch = decode(&config, &raw(["1,x,y", "2,\"\",", "3,\"a\nb\",z\r\n"]));
    assert_eq!(show(&batch, 0), ["1", "x", "y"]);
    assert_eq!(show(&batch, 1), ["2", "-", "-"]);
    assert_eq!(show(&batch, 2), ["3", "a\nb", "z"]);
    check_dead(&config, b"1,x", "expected 3 fields, got 2");
    check_dead(&config, b"1,x,y,z", "expected 3 fields, got 4");
    check_dead(&config, b"1,x,y\n2,x,y", "not one CSV row: more follows behind the line's end");
    check_dead(&config, b"1,\"x", "not CSV: the quote at byte 2 is not closed");
    check_dead(&config, b"", "the value is empty");
    check_dead(&config, b"1,\xff,y", "invalid UTF-8 at byte 2");
    let tabs = StreamConfig { format: Format::Csv { delimiter: b'\t' }, ..config };
    assert_eq!(show(&decode(&tabs, &raw(["1\tx,\ty"])), 0), ["1", "x,", "y"]);
}

#[test]
fn a_text_record_is_a_line() {
    let config = stream(Format::Text, "line VARCHAR");
    let batch = decode(&config, &raw(["Call me Ishmael.", "", "\"a\",\nb"]));
    let rows: Vec<_> = (0..3).map(|row| show(&batch, row).remove(0)).collect();
    assert_eq!(rows, ["Call me Ishmael.", "", "\"a\",\nb"]);
    check_dead(&config, b"caf\xe9", "invalid UTF-8 at byte 3");
}

#[test]
fn keys_headers_and_timestamps_come_along() {
    let config = stream(Format::Text, "line VARCHAR");
    let mut records = raw(["a", "b", "c"]);
    records.records[0].key = Some(Bytes::from_static(b"\xff"));
    records.records[1].timestamp = None;
    records.records[1].headers =
        vec![("h".into(), Some(Bytes::from_static(b"v"))), ("h".into(), None), (String::new(), Some(Bytes::new()))];
    let batch = decode(&config, &records);
    let cell = |column: &str, row| {
        let array = batch.events.column_by_name(column).unwrap();
        if array.is_null(row) { "-".into() } else { array_value_to_string(array, row).unwrap() }
    };
    assert_eq!([cell("_partition", 2), cell("_offset", 2)], ["3", "102"]);
    assert_eq!([cell("_key", 0), cell("_key", 1)], ["ff", "-"]);
    assert_eq!([cell("_timestamp", 0), cell("_timestamp", 1)], ["2023-11-14T22:13:20.000100Z", "-"]);
    assert_eq!(
        [cell("_headers", 0), cell("_headers", 1)],
        ["-", "[{key: h, value: 76}, {key: h, value: }, {key: , value: }]"]
    );
    assert_eq!(batch.events.schema(), record::event_schema(&config.columns));
}

#[test]
fn the_running_maximum_is_of_lower_offsets() {
    let mut config = stream(Format::Json, "at TIMESTAMP");
    config.event_time = Some("at".into());
    let at = |micros: i64| {
        let time = chrono::DateTime::from_timestamp_micros(micros).unwrap();
        format!("{{\"at\":\"{}\"}}", time.to_rfc3339())
    };
    let day = 86_400_000_000;
    let base = 1_700_000_000_000_000; // and the record's offset is its timestamp
    let mut records = raw([
        "{}".into(),
        at(base + 5),
        at(base + 3),
        "bad".into(),
        at(base + day + 104),     // at the bound: not ahead
        at(base + day + 105 + 1), // one past it
        at(base),
        at(base + 2 * day),
    ]);
    records.records[7].timestamp = None; // nothing to be ahead of
    let mut max = RunningMaximum::default();
    let batch = Decoder::new(&config).unwrap().decode(&records, &mut max);
    let maxima = batch.events.column_by_name("_event_time_max").unwrap();
    let maxima: Vec<_> = arrow::array::AsArray::as_primitive::<arrow::datatypes::TimestampMicrosecondType>(maxima)
        .iter()
        .map(|m| m.map(|m| m - base))
        .collect();
    let late = Some(day + 104);
    assert_eq!(maxima, [None, None, Some(5), Some(5), late, late, late]);
    assert_eq!(batch.ahead, 1);
    assert_eq!(batch.event_time_max, Some(base + 2 * day));
    assert_eq!(max.event_time_max, batch.event_time_max);
    // The next batch goes on from there.
    let next = Decoder::new(&config).unwrap().decode(&raw(["{}"]), &mut max);
    let maximum = next.events.column_by_name("_event_time_max").unwrap();
    assert_eq!(array_value_to_string(maximum, 0).unwrap(), "2023-11-16T22:13:20Z");
}

#[test]
fn declarations_that_cannot_be_decoded_are_refused() {
    let json = stream(Format::Json, "a INT, at TIMESTAMP");
    let error = |config: StreamConfig| Decoder::new(&config).expect_err("refused").to_string();
    assert!(error(StreamConfig { format: Format::Text, ..json.clone() }).contains("single column `line VARCHAR`"));
    assert!(error(StreamConfig { event_time: Some("b".into()), ..json.clone() }).contains("names no column"));
    assert!(error(StreamConfig { event_time: Some("a".into()), ..json.clone() }).contains("type=`INT`"));
    assert!(error(StreamConfig { json_columns: vec!["a".into()], ..json.clone() }).contains("column=`a`"));
    assert!(error(StreamConfig { format: Format::Csv { delimiter: b'"' }, ..json.clone() }).contains("delimiter=`34`"));
    let field = arrow::datatypes::Field::new("u", DataType::UInt8, true);
    let columns = std::sync::Arc::new(arrow::datatypes::Schema::new(vec![field]));
    assert!(error(StreamConfig { columns, ..json }).contains("column `u`"));
}

#[test]
fn long_values_are_cut_in_messages() {
    let config = stream(Format::Json, "c INT");
    let batch = decode(&config, &raw([format!("{{\"c\":\"{}\"}}", "é".repeat(1_000_000))]));
    let error = &batch.dead_letters[0].error;
    assert_eq!(*error, format!("column `c`: expected INT, got string \"{}\"…", "é".repeat(64)));
}
