//! Avro, written by another implementation (`apache-avro`) and read by this one.

use apache_avro::types::Value as Datum;
use apache_avro::{Decimal, Schema as OtherSchema, to_avro_datum};
use arrow::datatypes::{DataType, Field, Fields};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value as Json, json};

use super::random::{Value, bare, value};
use super::*;
use crate::config::SchemaRegistryConfig;

/// The schema of [`canonical`].
const ID: SchemaId = SchemaId(7);

pub(super) fn format() -> Format {
    let url = "http://localhost/".parse().unwrap();
    Format::Avro(SchemaRegistryConfig { url, user: None, password: None })
}

/// In Confluent's wire format.
fn framed(id: SchemaId, record: &[u8]) -> Vec<u8> {
    [&[0], &id.0.to_be_bytes()[..], record].concat()
}

fn known(schema: &Json) -> WriterSchema {
    WriterSchema::Avro { schema: schema.to_string(), references: vec![] }
}

/// What `id` stands for in tests that have one schema: that of the stream's columns.
pub(super) fn canonical(config: &StreamConfig, id: SchemaId) -> WriterSchema {
    if id != ID {
        return WriterSchema::Unknown;
    }
    known(&Writer { rng: None, named: 0 }.record(config.columns.fields()))
}

/// A record of the [`canonical`] schema.
pub(super) fn record(config: &StreamConfig, row: &[Value]) -> Vec<u8> {
    let schema = Writer { rng: None, named: 0 }.record(config.columns.fields());
    framed(ID, &encode(&schema, config, row))
}

fn encode(schema: &Json, config: &StreamConfig, row: &[Value]) -> Vec<u8> {
    write(schema, &record_of(schema, config.columns.fields(), row))
}

fn write(schema: &Json, datum: &Datum) -> Vec<u8> {
    struct AnyName;
    impl apache_avro::validator::RecordFieldNameValidator for AnyName {
        fn validate(&self, _: &str) -> Result<(), apache_avro::Error> {
            Ok(())
        }
    }
    // Columns may have names that fields may not have; refused once it is there.
    drop(apache_avro::validator::set_record_field_name_validator(Box::new(AnyName)));
    let other = OtherSchema::parse_str(&schema.to_string()).unwrap_or_else(|e| panic!("{schema}: {e}"));
    to_avro_datum(&other, datum.clone()).unwrap_or_else(|e| panic!("{schema}: {e}"))
}

/// Makes a writer's schema whose records fit columns; with a generator, in one of the ways that there are.
struct Writer<'a> {
    rng: Option<&'a mut StdRng>,
    named: u32,
}

impl Writer<'_> {
    fn one_in(&mut self, ways: u32) -> bool {
        self.rng.as_mut().is_some_and(|rng| rng.random_ratio(1, ways))
    }

    fn name(&mut self) -> String {
        self.named += 1;
        format!("N{}", self.named)
    }

    fn record(&mut self, fields: &Fields) -> Json {
        let mut members: Vec<Json> =
            fields.iter().map(|field| json!({"name": field.name(), "type": self.nullable(field)})).collect();
        while self.one_in(3) {
            let name = self.name();
            let extra = [
                json!("string"),
                json!(["null", "long"]),
                json!({"type": "array", "items": {"type": "map", "values": "double"}}),
                json!({"type": "record", "name": self.name(), "fields": [{"name": "x", "type": "boolean"}]}),
                json!({"type": "enum", "name": self.name(), "symbols": ["A", "B"]}),
                json!({"type": "fixed", "name": self.name(), "size": 3}),
            ];
            let of_type = extra[self.rng.as_mut().expect("asked above").random_range(0..extra.len())].clone();
            members.push(json!({"name": format!("extra_{name}"), "type": of_type}));
        }
        if let Some(rng) = &mut self.rng {
            members.shuffle(rng);
        }
        json!({"type": "record", "name": self.name(), "namespace": "x.y", "fields": members})
    }

    fn nullable(&mut self, field: &Field) -> Json {
        let of_type = self.of_type(field);
        match field.is_nullable() {
            true if self.one_in(2) => json!([of_type, "null"]),
            true => json!(["null", of_type]),
            // A branch that no record has need not fit.
            false if self.one_in(4) => {
                let other = json!({"type": "fixed", "name": self.name(), "size": 1});
                json!([other, of_type])
            }
            false => of_type,
        }
    }

    fn of_type(&mut self, field: &Field) -> Json {
        match field.data_type() {
            DataType::Boolean => json!("boolean"),
            DataType::Int32 => json!("int"),
            DataType::Int64 => json!("long"),
            DataType::Float32 => json!("float"),
            DataType::Float64 => json!("double"),
            DataType::Decimal128(precision, scale) => {
                let logical = json!({"logicalType": "decimal", "precision": precision, "scale": scale});
                let mut of_type = match self.one_in(2) {
                    true => json!({"type": "fixed", "name": self.name(), "size": 18}),
                    false => json!({"type": "bytes"}),
                };
                of_type.as_object_mut().unwrap().extend(logical.as_object().unwrap().clone());
                of_type
            }
            DataType::Utf8 if self.one_in(3) => json!("bytes"),
            DataType::Utf8 => json!("string"),
            DataType::Binary => json!("bytes"),
            DataType::Date32 if self.one_in(2) => json!("int"),
            DataType::Date32 => json!({"type": "int", "logicalType": "date"}),
            DataType::Timestamp(..) if self.one_in(2) => {
                json!({"type": "long", "logicalType": "local-timestamp-micros"})
            }
            DataType::Timestamp(..) => json!({"type": "long", "logicalType": "timestamp-micros"}),
            DataType::Struct(fields) => self.record(fields),
            DataType::List(item) => json!({"type": "array", "items": self.nullable(item)}),
            DataType::Map(entries, _) => {
                let DataType::Struct(kv) = entries.data_type() else { panic!("{entries}") };
                json!({"type": "map", "values": self.nullable(&kv[1])})
            }
            other => panic!("{other}"),
        }
    }
}

fn record_of(schema: &Json, fields: &Fields, row: &[Value]) -> Datum {
    let members = schema["fields"].as_array().unwrap();
    let member = |member: &Json| {
        let name = member["name"].as_str().unwrap();
        let datum = match fields.iter().position(|field| field.name() == name) {
            Some(i) => datum(&member["type"], &fields[i], &row[i]),
            None => extra(&member["type"]),
        };
        (name.to_owned(), datum)
    };
    Datum::Record(members.iter().map(member).collect())
}

fn extra(of_type: &Json) -> Datum {
    match of_type["type"].as_str() {
        None if of_type.is_array() => Datum::Union(1, Box::new(Datum::Long(5))),
        None => Datum::String("extra".to_owned()),
        Some("array") => Datum::Array(vec![Datum::Map([("k".to_owned(), Datum::Double(0.5))].into())]),
        Some("record") => Datum::Record(vec![("x".to_owned(), Datum::Boolean(true))]),
        Some("enum") => Datum::Enum(1, "B".to_owned()),
        _ => Datum::Fixed(3, vec![1, 2, 3]),
    }
}

fn datum(of_type: &Json, field: &Field, value: &Value) -> Datum {
    if let Json::Array(branches) = of_type {
        let is_null = *value == Value::Null;
        let fits = |branch: &Json| (*branch == json!("null")) == is_null && branch["size"] != json!(1);
        let branch = branches.iter().position(fits).unwrap();
        let inner = if is_null { Datum::Null } else { datum(&branches[branch], field, value) };
        return Datum::Union(u32::try_from(branch).unwrap(), Box::new(inner));
    }
    let logical = of_type["logicalType"].as_str();
    match (value, field.data_type()) {
        (Value::Boolean(b), _) => Datum::Boolean(*b),
        (Value::Integer(n), DataType::Int32) => Datum::Int(i32::try_from(*n).unwrap()),
        (Value::Integer(n), _) => Datum::Long(*n),
        (Value::Real(f), _) => Datum::Float(*f),
        (Value::Double(f), _) => Datum::Double(*f),
        (Value::Decimal(n), _) => Datum::Decimal(Decimal::from(n.to_be_bytes())),
        (Value::Text(text), _) if *of_type == json!("bytes") => Datum::Bytes(text.clone().into_bytes()),
        (Value::Text(text), _) => Datum::String(text.clone()),
        (Value::Bytes(bytes), _) => Datum::Bytes(bytes.clone()),
        (Value::Date(days), _) if logical.is_none() => Datum::Int(*days),
        (Value::Date(days), _) => Datum::Date(*days),
        (Value::Timestamp(micros), _) if logical == Some("timestamp-micros") => Datum::TimestampMicros(*micros),
        (Value::Timestamp(micros), _) => Datum::LocalTimestampMicros(*micros),
        (Value::Struct(values), DataType::Struct(fields)) => record_of(of_type, fields, values),
        (Value::List(values), DataType::List(item)) => {
            Datum::Array(values.iter().map(|value| datum(&of_type["items"], item, value)).collect())
        }
        (Value::Map(pairs), DataType::Map(entries, _)) => {
            let DataType::Struct(kv) = entries.data_type() else { panic!("{entries}") };
            let mut rng = StdRng::seed_from_u64(0);
            let pair =
                |(key, value): &(Value, Value)| (bare(&mut rng, &kv[0], key), datum(&of_type["values"], &kv[1], value));
            Datum::Map(pairs.iter().map(pair).collect())
        }
        other => panic!("{other:?}"),
    }
}

/// Maps come in any order.
fn sorted(value: Value) -> Value {
    let all = |values: Vec<Value>| values.into_iter().map(sorted).collect();
    match value {
        Value::Struct(values) => Value::Struct(all(values)),
        Value::List(values) => Value::List(all(values)),
        Value::Map(pairs) => {
            let mut pairs: Vec<_> = pairs.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            pairs.sort_by_key(|(key, _)| format!("{key:?}"));
            Value::Map(pairs)
        }
        scalar => scalar,
    }
}

/// Random rows of random columns, each written by one of several random schemas.
pub(super) fn written_by_many(rng: &mut StdRng, config: &StreamConfig) -> (Vec<Vec<Value>>, Vec<Vec<u8>>, Decoder) {
    let fields = config.columns.fields();
    let mut decoder = Decoder::new(config).unwrap();
    let schemas: Vec<Json> = (0..3).map(|_| Writer { rng: Some(&mut *rng), named: 0 }.record(fields)).collect();
    for (id, schema) in (0..).zip(&schemas) {
        decoder.learn(SchemaId(id), &known(schema));
    }
    let (mut rows, mut records) = (vec![], vec![]);
    for _ in 0..rng.random_range(0..20) {
        let row: Vec<Value> = fields.iter().map(|field| value(rng, field)).collect();
        let id = rng.random_range(0..schemas.len());
        records.push(framed(SchemaId(u32::try_from(id).unwrap()), &encode(&schemas[id], config, &row)));
        rows.push(row);
    }
    (rows, records, decoder)
}

#[test]
fn what_is_written_as_avro_is_read_again() {
    properties::check_property(300, |rng| {
        let config = properties::random_stream(rng, format());
        let (rows, records, mut decoder) = written_by_many(rng, &config);
        let batch = decoder.decode(&raw(&records), &mut RunningMaximum::default());
        assert_eq!(batch.dead_letters, [], "{:?}", config.columns);
        for (i, row) in rows.into_iter().enumerate() {
            let got: Vec<Value> = properties::row_of(&batch, i).into_iter().map(sorted).collect();
            assert_eq!(got, row.into_iter().map(sorted).collect::<Vec<_>>(), "{:?}", records[i]);
        }
    });
}

/// One record `{"c": …}` of `of_type`, as the column `c`.
fn one(data_type: &str, units: Option<EpochUnit>, of_type: &Json, datum: &Datum) -> Result<String, String> {
    let schema = json!({"type": "record", "name": "R", "fields": [{"name": "c", "type": of_type}]});
    let bytes = write(&schema, &Datum::Record(vec![("c".to_owned(), datum.clone())]));
    let mut config = stream(format(), &format!("c {data_type}"));
    config.epoch_units.extend(units.map(|unit| ("c".to_owned(), unit)));
    decode_one(&config, &known(&schema), &framed(ID, &bytes))
}

fn decode_one(config: &StreamConfig, writer: &WriterSchema, value: &[u8]) -> Result<String, String> {
    let mut decoder = Decoder::new(config).unwrap();
    decoder.learn(ID, writer);
    let batch = decoder.decode(&raw([value]), &mut RunningMaximum::default());
    match batch.dead_letters.first() {
        None => Ok(show(&batch, 0).join(", ")),
        Some(dead) => Err(dead.error.clone()),
    }
}

#[track_caller]
fn check(data_type: &str, of_type: Json, datum: Datum, want: Result<&str, &str>) {
    let want = want.map(str::to_owned).map_err(|want| format!("column `c`: {want} (schema 7)"));
    assert_eq!(one(data_type, None, &of_type, &datum), want, "{of_type} as {data_type}");
}

fn logical(of_type: &str, logical: &str) -> Json {
    json!({"type": of_type, "logicalType": logical})
}

#[test]
fn numbers_are_promoted_as_avro_has_it() {
    let (int, long, float, double) = (Datum::Int(-7), Datum::Long(1 << 40), Datum::Float(0.5), Datum::Double(0.1));
    check("INT", json!("int"), int.clone(), Ok("-7"));
    check("BIGINT", json!("int"), int.clone(), Ok("-7"));
    check("REAL", json!("int"), int.clone(), Ok("-7.0"));
    check("DOUBLE", json!("int"), int, Ok("-7.0"));
    check("BIGINT", json!("long"), long.clone(), Ok("1099511627776"));
    check("REAL", json!("long"), Datum::Long(16_777_217), Ok("16777216.0"));
    check("DOUBLE", json!("long"), long.clone(), Ok("1099511627776.0"));
    check("REAL", json!("float"), float.clone(), Ok("0.5"));
    check("DOUBLE", json!("float"), float.clone(), Ok("0.5"));
    check("DOUBLE", json!("double"), double.clone(), Ok("0.1"));
    check("INT", json!("long"), long, Err("expected INT, but the writer's schema has long"));
    check("REAL", json!("double"), double, Err("expected REAL, but the writer's schema has double"));
    check("BIGINT", json!("float"), float, Err("expected BIGINT, but the writer's schema has float"));
    let boolean = Datum::Boolean(true);
    check("BOOLEAN", json!("boolean"), boolean.clone(), Ok("true"));
    check("INT", json!("boolean"), boolean, Err("expected INT, but the writer's schema has boolean"));
}

#[test]
fn texts_bytes_enums_and_uuids() {
    check("VARCHAR", json!("string"), Datum::String("é".into()), Ok("é"));
    check("VARCHAR", json!("bytes"), Datum::Bytes("é".into()), Ok("é"));
    check(
        "VARCHAR",
        json!("bytes"),
        Datum::Bytes(vec![b'a', 0xff]),
        Err("expected VARCHAR, got \"a\u{fffd}\": invalid UTF-8 at byte 1 of it"),
    );
    check("VARBINARY", json!("bytes"), Datum::Bytes(vec![0xff]), Ok("ff"));
    check("VARBINARY", json!("string"), Datum::String("A".into()), Ok("41"));
    let fixed = json!({"type": "fixed", "name": "F", "size": 2});
    check("VARBINARY", fixed.clone(), Datum::Fixed(2, vec![1, 2]), Ok("0102"));
    check("VARCHAR", fixed, Datum::Fixed(2, vec![1, 2]), Err("expected VARCHAR, but the writer's schema has fixed(2)"));
    let color = json!({"type": "enum", "name": "Color", "symbols": ["RED", "GREEN"]});
    check("VARCHAR", color.clone(), Datum::Enum(1, "GREEN".into()), Ok("GREEN"));
    check("INT", color, Datum::Enum(1, "GREEN".into()), Err("expected INT, but the writer's schema has enum"));
    let long_symbol = "A".repeat(256);
    let color = json!({"type": "enum", "name": "Color", "symbols": [long_symbol]});
    check("VARCHAR", color, Datum::Enum(0, long_symbol), Err("expected VARCHAR, but the writer's schema has enum"));
    let id = "00112233-4455-6677-8899-aabbccddeeff";
    check("VARCHAR", logical("string", "uuid"), Datum::Uuid(id.parse().unwrap()), Ok(id));
    check("JSON", json!("string"), Datum::String("{\"a\": 1}".into()), Ok("{\"a\": 1}"));
    assert!(one("JSON", None, &json!("string"), &Datum::String("{".into())).is_err());

    // apache-avro forgets that the uuid is 16 bytes, so these are written by hand.
    let schema = json!({"type": "record", "name": "R", "fields": [
        {"name": "c", "type": {"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}}]});
    let value = framed(ID, &(0..16).map(|i| i * 17).collect::<Vec<u8>>());
    assert_eq!(decode_one(&stream(format(), "c VARCHAR"), &known(&schema), &value), Ok(id.to_owned()));
}

#[test]
fn dates_and_timestamps_of_every_unit() {
    check("DATE", logical("int", "date"), Datum::Date(19_000), Ok("2022-01-08"));
    check("DATE", json!("string"), Datum::String("2022-01-08".into()), Ok("2022-01-08"));
    for days in [2_932_897, -719_529, i32::MAX, i32::MIN] {
        let error = format!("expected DATE, got day {days}: out of range, years 0000 to 9999 can be kept");
        check("DATE", logical("int", "date"), Datum::Date(days), Err(&error));
    }
    let at = "TIMESTAMP";
    let millis = |name: &str| logical("long", name);
    check(at, millis("timestamp-millis"), Datum::TimestampMillis(-1), Ok("1969-12-31T23:59:59.999Z"));
    check(at, millis("timestamp-micros"), Datum::TimestampMicros(-1), Ok("1969-12-31T23:59:59.999999Z"));
    check(at, millis("timestamp-nanos"), Datum::TimestampNanos(-1), Ok("1969-12-31T23:59:59.999999Z"));
    check(at, millis("local-timestamp-millis"), Datum::LocalTimestampMillis(1), Ok("1970-01-01T00:00:00.001Z"));
    check(at, millis("local-timestamp-micros"), Datum::LocalTimestampMicros(1), Ok("1970-01-01T00:00:00.000001Z"));
    check(at, millis("local-timestamp-nanos"), Datum::LocalTimestampNanos(1_999), Ok("1970-01-01T00:00:00.000001Z"));
    check(at, json!("string"), Datum::String("2024-10-06T12:00:00Z".into()), Ok("2024-10-06T12:00:00Z"));
    check(
        at,
        millis("timestamp-millis"),
        Datum::TimestampMillis(i64::MAX),
        Err("expected TIMESTAMP, got 9223372036854775807 milliseconds: out of range, years 0000 to 9999 can be kept"),
    );
    check(at, json!("long"), Datum::Long(1), Err("expected TIMESTAMP, but the writer's schema has long"));
    check(
        at,
        logical("int", "date"),
        Datum::Date(1),
        Err("expected TIMESTAMP, but the writer's schema has int (date)"),
    );
    let with_unit = |of_type: &str, datum| one(at, Some(EpochUnit::Seconds), &json!(of_type), &datum);
    assert_eq!(with_unit("long", Datum::Long(-1)), Ok("1969-12-31T23:59:59Z".to_owned()));
    assert_eq!(with_unit("int", Datum::Int(1)), Ok("1970-01-01T00:00:01Z".to_owned()));
}

#[test]
fn decimals_come_in_any_scale() {
    let decimal = |scale: u32| json!({"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": scale});
    let number = || Datum::Decimal(Decimal::from((-1230_i32).to_be_bytes()));
    check("DECIMAL(6, 2)", decimal(2), number(), Ok("-12.30"));
    check("DECIMAL(6, 4)", decimal(3), number(), Ok("-1.2300"));
    check("DECIMAL(6, 2)", decimal(3), number(), Ok("-1.23"));
    check(
        "DECIMAL(6, 1)",
        decimal(3),
        number(),
        Err("expected DECIMAL(6, 1): the number has too many digits behind the point, it would have to be rounded"),
    );
    check("DECIMAL(5, 2)", decimal(0), number(), Err("expected DECIMAL(5, 2): the number is out of range"));
    check("DECIMAL(5, 2)", json!("string"), Datum::String("1.50".into()), Ok("1.50"));
    check(
        "DECIMAL(5, 2)",
        json!("bytes"),
        Datum::Bytes(vec![1]),
        Err("expected DECIMAL(5, 2), but the writer's schema has bytes"),
    );
}

#[test]
fn columns_and_fields_meet_by_name() {
    let (i, s) = (json!("int"), json!("string"));
    let schema = |fields: &[(&str, &Json)]| {
        let fields: Vec<Json> = fields.iter().map(|(name, of)| json!({"name": name, "type": of})).collect();
        json!({"type": "record", "name": "R", "fields": fields})
    };
    let read = |ddl: &str, schema: &Json, fields: &[(&str, Datum)]| {
        let datum = Datum::Record(fields.iter().map(|(name, datum)| ((*name).to_owned(), datum.clone())).collect());
        decode_one(&stream(format(), ddl), &known(schema), &framed(ID, &write(schema, &datum)))
    };
    let (one, text) = (Datum::Int(1), Datum::String("x".into()));
    let both = schema(&[("b", &s), ("gone", &i), ("a", &i)]);
    let values = [("b", text.clone()), ("gone", Datum::Int(9)), ("a", one.clone())];
    assert_eq!(read("a BIGINT, b VARCHAR, new DOUBLE", &both, &values), Ok("1, x, -".to_owned()));
    assert_eq!(read("A INT, b VARCHAR", &both, &values), Ok("-, x".to_owned()), "with regard to case");
    assert_eq!(
        read("a INT, new VARCHAR NOT NULL", &both, &values),
        Err("column `new`: expected VARCHAR NOT NULL, got nothing: the writer's schema has no such field (schema 7)"
            .to_owned())
    );
    let optional = schema(&[("a", &json!(["null", "int"]))]);
    let null = [("a", Datum::Union(0, Box::new(Datum::Null)))];
    assert_eq!(read("a INT", &optional, &null), Ok("-".to_owned()));
    assert_eq!(
        read("a INT NOT NULL", &optional, &null),
        Err("column `a`: expected INT NOT NULL, got null (schema 7)".to_owned())
    );
    let several = schema(&[("a", &json!(["null", "int", "string"]))]);
    let branch = |i: u32, datum: &Datum| [("a", Datum::Union(i, Box::new(datum.clone())))];
    assert_eq!(read("a INT", &several, &branch(1, &one)), Ok("1".to_owned()), "only what is there must fit");
    assert_eq!(
        read("a INT", &several, &branch(2, &text)),
        Err("column `a`: expected INT, but the writer's schema has string (schema 7)".to_owned())
    );
    let mut inner = schema(&[("y", &i), ("x", &i)]);
    inner["name"] = json!("Inner");
    let nested = schema(&[("s", &json!({"type": "array", "items": inner}))]);
    let point = Datum::Record(vec![("y".into(), Datum::Int(2)), ("x".into(), Datum::Int(1))]);
    let nested_values = [("s", Datum::Array(vec![point]))];
    assert_eq!(read("s LIST<STRUCT<x BIGINT, z INT>>", &nested, &nested_values), Ok("[{x: 1, z: }]".to_owned()));
    assert_eq!(
        read("s LIST<STRUCT<x BOOLEAN>>", &nested, &nested_values),
        Err("column `s.element.x`: expected BOOLEAN, but the writer's schema has int (schema 7)".to_owned())
    );
    // Several kinds of records in one topic.
    let union = json!([inner, {"type": "record", "name": "Q", "fields": [{"name": "x", "type": "string"}]}]);
    let config = stream(format(), "x INT");
    assert_eq!(decode_one(&config, &known(&union), &framed(ID, &[0, 2, 4])), Ok("2".to_owned()));
    let of_other = decode_one(&config, &known(&union), &framed(ID, &[2, 2, b'a']));
    assert_eq!(of_other, Err("column `x`: expected INT, but the writer's schema has string (schema 7)".to_owned()));
}

#[test]
fn what_is_no_record_of_its_schema_is_a_dead_letter() {
    let schema = known(&json!({"type": "record", "name": "R", "fields": [
        {"name": "c", "type": ["null", {"type": "map", "values": "boolean"}]},
        {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["A"]}},
        {"name": "n", "type": {"type": "array", "items": "null"}},
        {"name": "next", "type": ["null", "R"]}]}));
    let config = stream(format(), "c MAP<VARCHAR, BOOLEAN>, n LIST<INT>");
    let dead = |value: &[u8]| decode_one(&config, &schema, value).expect_err("a dead letter");
    let dead_record = |bytes: &[u8]| dead(&framed(ID, bytes));
    assert_eq!(decode_one(&config, &schema, &framed(ID, &[0, 0, 0, 0])), Ok("-, []".to_owned()));

    assert_eq!(dead(b""), "the value is empty");
    assert_eq!(dead(b"{}"), "truncated: 2 bytes, and Confluent's wire format has 5 before the record");
    assert_eq!(dead(b"{\"a\":1}"), "not in Confluent's wire format: it begins with the byte 0x7b, not 0x00");
    assert_eq!(dead(&framed(SchemaId(1 << 31), &[])), "there is no schema 2147483648: ids end with 2147483647");

    assert_eq!(dead_record(&[]), "truncated: the Avro record goes on behind its 0 bytes (schema 7)");
    assert_eq!(dead_record(&[0, 0, 0]), "truncated: the Avro record goes on behind its 3 bytes (schema 7)");
    assert_eq!(dead_record(&[0, 0, 0, 0, 1]), "1 bytes follow behind the Avro record of the schema (schema 7)");
    let wrong = "not Avro: the branch of a union at byte 5 is number 2, and the schema has 2 (schema 7)";
    assert_eq!(dead_record(&[4, 0, 0]), wrong);
    let wrong = "not Avro: the symbol of an enum at byte 6 is number -1, and the schema has 1 (schema 7)";
    assert_eq!(dead_record(&[0, 1, 0]), wrong);
    let wrong = "not Avro: the boolean at byte 9 is 2, not 0 or 1 (schema 7)";
    assert_eq!(dead_record(&[2, 2, 2, b'k', 2]), wrong);
    let twice = [2, 4, 2, b'k', 0, 2, b'k', 1, 0, 0, 0, 0];
    assert_eq!(dead_record(&twice), "column `c`: expected MAP<VARCHAR, BOOLEAN>, got a key twice (schema 7)");
    assert_eq!(dead_record(&[2, 2, 1]), "not Avro: the length at byte 7 is -1 (schema 7)");

    // An array of a few bytes with any number of items, in a column and passed over; a block that says its bytes.
    let many = [&[0, 0][..], &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], &[0, 0]].concat();
    assert_eq!(dead_record(&many), "the Avro record has far more values than its 14 bytes can hold (schema 7)");
    let passed_over = stream(format(), "c MAP<VARCHAR, BOOLEAN>");
    let many = decode_one(&passed_over, &schema, &framed(ID, &many)).expect_err("a dead letter");
    assert_eq!(many, "the Avro record has far more values than its 14 bytes can hold (schema 7)");
    let sized = decode_one(&passed_over, &schema, &framed(ID, &[0, 0, 3, 0, 0, 0]));
    assert_eq!(sized, Ok("-".to_owned()));
    let deep = [0, 0, 0, 2].repeat(1_000);
    assert_eq!(dead_record(&deep), "the Avro record nests deeper than 256 (schema 7)");
}

#[test]
fn an_id_without_a_usable_schema_makes_dead_letters() {
    let config = stream(format(), "c INT");
    let dead = |schema: &WriterSchema| decode_one(&config, schema, &framed(ID, &[2])).expect_err("a dead letter");
    assert_eq!(dead(&WriterSchema::Unknown), "the schema registry has no schema 7");
    let protobuf = WriterSchema::Other { schema_type: "PROTOBUF".into() };
    assert_eq!(dead(&protobuf), "schema 7 is one of PROTOBUF, not of Avro");
    assert_eq!(dead(&known(&json!("int"))), "schema 7 cannot be used: it is of type int, not a record");
    assert_eq!(dead(&known(&json!("Missing"))), "schema 7 cannot be used: the type `Missing` is not defined");
    // A schema that unfolds without end along the columns.
    let endless = json!({"type": "record", "name": "R", "fields": [{"name": "c", "type": ["R", "int"]}]});
    assert_eq!(decode_one(&config, &known(&endless), &framed(ID, &[2, 6])), Ok("3".to_owned()));
}
