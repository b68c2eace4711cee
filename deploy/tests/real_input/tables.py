"""Reads the master dataset of each stream with Spark and compares its rows with those of the raw files.

Usage: tables.py DATA_FOLDER STORAGE_FOLDER JARS_FOLDER; ends with a message and status 1 at the first table that differs.
"""

import glob
import json
import os
import sys
import tempfile
import time
from collections import Counter

os.environ["TZ"] = "UTC"  # Spark hands out timestamps in the machine's zone.
time.tzset()
os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"

from pyspark.sql import SparkSession  # noqa: E402

import raw  # noqa: E402

STREAMS = ["github", "wikipedia", "moby", "trackers"]
SYSTEM_COLUMNS = ["_date", "_partition", "_offset", "_timestamp", "_event_time_max", "_key", "_headers"]


def session(jars, scratch):
    builder = SparkSession.builder.master("local[2]").appName("tables")
    for name, value in {
        "spark.driver.extraClassPath": ":".join(sorted(glob.glob(f"{jars}/*.jar"))),
        "spark.driver.memory": "1g",
        "spark.local.dir": scratch,
        "spark.sql.warehouse.dir": f"{scratch}/warehouse",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "2",
        # The tables' logs are short: Delta's 50 tasks for each are all overhead.
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    }.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def canonical(columns, values):
    return json.dumps(dict(zip(columns, values)), sort_keys=True, default=str, ensure_ascii=False)


def compare(stream, table, db):
    columns = [name for name in table.columns if name not in SYSTEM_COLUMNS]
    # In quotes: some of the names hold spaces and parentheses.
    selected = table.select("_partition", "_offset", *(f"`{name}`" for name in columns))
    stored = [row.asDict(recursive=True) for row in selected.collect()]
    cursor = db.execute("SELECT " + ", ".join(f'"{name}"' for name in columns) + f" FROM {stream}")
    expected = Counter(canonical(columns, row) for row in cursor.fetchall())
    found = Counter(canonical(columns, [row[name] for name in columns]) for row in stored)
    for what, rows in [("not in the table", expected - found), ("not in the raw file", found - expected)]:
        if rows:
            sys.exit(f"{stream}: {rows.total()} rows {what}, such as {rows.most_common(1)[0]}")
    offsets = {}
    for row in stored:
        offsets.setdefault(row["_partition"], []).append(row["_offset"])
    for partition, held in offsets.items():
        if sorted(held) != list(range(len(held))):
            sys.exit(f"{stream}: partition {partition} does not hold each offset from 0 once")
    print(f"{stream}: {len(stored)} rows, {len(columns)} columns: {', '.join(columns)}")


def main(data, storage, jars):
    db = raw.load(data)
    with tempfile.TemporaryDirectory() as scratch:
        spark = session(jars, scratch)
        for stream in STREAMS:
            compare(stream, spark.read.format("delta").load(f"{storage}/streams/{stream}"), db)
        spark.stop()


main(*sys.argv[1:])
