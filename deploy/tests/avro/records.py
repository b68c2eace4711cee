"""Records of a topic whose schema evolves, made by Confluent's own serializer.

usage: records.py REGISTRY_URL TOPIC

Prints one JSON object a line: `version` of the schema, the record's `value` in hexadecimal as it goes into the log, and
`row`, what the stream's columns must say of it, in the words of Watershed's HTTP interface.
"""

import datetime
import decimal
import json
import sys
import uuid

from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

UTC = datetime.timezone.utc
START = datetime.datetime(2026, 3, 1, tzinfo=UTC)


def field(name, of_type, **more):
    return {"name": name, "type": of_type, **more}


def nullable(of_type):
    return ["null", of_type]


AT_MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
AT_MICROS = {"type": "long", "logicalType": "timestamp-micros"}
AT_LOCAL = {"type": "long", "logicalType": "local-timestamp-micros"}
KIND = {"type": "enum", "name": "Kind", "symbols": ["SALE", "RETURN"]}
PLACE = {
    "type": "record",
    "name": "Place",
    "fields": [field("planet", "string"), field("zip", nullable("int")), field("city", "string")],
}
AMOUNT_2 = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
AMOUNT_4 = {"type": "fixed", "name": "Amount", "size": 8, "logicalType": "decimal", "precision": 12, "scale": 4}

# Each is what somebody might do to the one before it.
VERSIONS = [
    # As it began.
    [field("id", "int"), field("kind", "string"), field("at", AT_MILLIS), field("amount", AMOUNT_2), field("price", "int")],
    # Wider numbers, an enum, finer times, fields that are new, one that no column wants.
    [
        field("id", "long"),
        field("kind", KIND),
        field("at", AT_MICROS),
        field("amount", AMOUNT_2),
        field("price", "float"),
        field("tags", {"type": "array", "items": "string"}, default=[]),
        field("internal", {"type": "map", "values": nullable({"type": "array", "items": "double"})}, default={}),
    ],
    # Another order, optional fields, a nested record, another scale; `kind` is gone.
    [
        field("price", nullable("double"), default=None),
        field("origin", nullable(PLACE), default=None),
        field("amount", nullable(AMOUNT_4), default=None),
        field("tags", {"type": "array", "items": nullable("string")}, default=[]),
        field("device", {"type": "string", "logicalType": "uuid"}),
        field("day", {"type": "int", "logicalType": "date"}),
        field("at", AT_LOCAL),
        field("id", "long"),
    ],
    # The price became a text: Avro has no way from it to DOUBLE, so these are dead letters.
    [field("id", "long"), field("at", AT_MICROS), field("price", "string")],
]


def time(micros):
    digits = "seconds" if micros % 1_000_000 == 0 else "milliseconds" if micros % 1_000 == 0 else "microseconds"
    text = (START + datetime.timedelta(microseconds=micros)).isoformat(timespec=digits)
    return text.replace("+00:00", "Z")


def record(version, i):
    """The i-th record of a version, and the row that it must become."""
    number = version * 1_000 + i
    micros = number * 60_000_000 + (i * 1_001_001 if version > 0 else i * 1_001_000)
    at = START + datetime.timedelta(microseconds=micros)
    amount = decimal.Decimal(number * 7 - 500).scaleb(-2)
    row = dict.fromkeys(["kind", "amount", "price", "tags", "origin", "day", "device"])
    row |= {"id": number, "at": time(micros)}
    value = {"id": number, "at": at, "amount": amount, "price": i, "kind": ["SALE", "RETURN"][i % 2]}
    if version in (0, 1):
        row |= {"amount": f"{amount:.4f}", "price": float(i), "kind": value["kind"]}
    if version == 1:
        value |= {"price": i + 0.25, "tags": ["é"] * (i % 3), "internal": {"x": [1.5], "y": None}}
        row |= {"price": i + 0.25, "tags": value["tags"]}
    if version == 2:
        value |= {"price": None if i % 3 else i / 8, "at": at.replace(tzinfo=None), "tags": ["a", None]}
        value["amount"] = amount = None if i % 2 else decimal.Decimal(number * 13).scaleb(-4)
        value["origin"] = None if i % 4 else {"planet": "Earth", "zip": None if i % 8 else i, "city": "Málaga"}
        value["day"] = at.date()
        value["device"] = str(uuid.UUID(int=number))
        row |= {"price": value["price"], "tags": ["a", None], "day": str(at.date()), "device": value["device"]}
        row["amount"] = None if amount is None else f"{amount:.4f}"
        if value["origin"] is not None:
            row["origin"] = {"city": "Málaga", "zip": value["origin"]["zip"], "street": None}
    if version == 3:
        value["price"] = "cheap"
        row = None
    fields = {f["name"] for f in VERSIONS[version]}
    return {name: value for name, value in value.items() if name in fields}, row


def main(url, topic):
    client = SchemaRegistryClient({"url": url})
    for version, fields in enumerate(VERSIONS):
        schema = {"type": "record", "name": "Event", "namespace": "org.example", "fields": fields}
        serialize = AvroSerializer(client, json.dumps(schema))
        for i in range(24):
            value, row = record(version, i)
            data = serialize(value, SerializationContext(topic, MessageField.VALUE))
            print(json.dumps({"version": version, "value": data.hex(), "row": row}))


main(*sys.argv[1:])
