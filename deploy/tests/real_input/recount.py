"""Recounts the views of watershed.toml from the raw files with DuckDB: an engine that shares no code with DataFusion.

Usage: recount.py DATA_FOLDER; prints one JSON object, view name -> rows.
"""

import json
import sys

import raw

VIEWS = {
    "events_per_minute": """
        SELECT strftime(time_bucket(INTERVAL '1 minute', created_at), '%Y-%m-%dT%H:%M:%SZ') AS minute, type,
               count(*) AS events, count(DISTINCT actor.id) AS actors, count(DISTINCT repo.id) AS repos,
               count(org.id) AS with_org
        FROM github GROUP BY 1, 2""",
    "created": """
        SELECT payload.ref_type AS what, count(*) AS events FROM github WHERE type = 'CreateEvent' GROUP BY 1""",
    "edits": """
        SELECT channel, strftime(time_bucket(INTERVAL '1 hour', time), '%Y-%m-%dT%H:%M:%SZ') AS hour,
               count(*) AS edits, sum(added)::BIGINT AS added, sum(deleted)::BIGINT AS deleted,
               count(*) FILTER (WHERE isRobot) AS by_robots
        FROM wikipedia GROUP BY 1, 2""",
    "words": "SELECT word, count(*) AS count FROM (SELECT unnest(string_split(line, ' ')) AS word FROM moby) GROUP BY 1",
    "brands": """
        SELECT trim("Brand Name") AS brand, count(*) AS products, avg("Rating (Out of 5)"::DOUBLE) AS rating,
               count("Rating (Out of 5)") AS rated, min(replace("Selling Price", ',', '')::BIGINT) AS cheapest
        FROM trackers GROUP BY 1""",
}

db = raw.load(sys.argv[1])
counted = {}
for name, sql in VIEWS.items():
    cursor = db.execute(sql)
    columns = [column[0] for column in cursor.description]
    counted[name] = [dict(zip(columns, row)) for row in cursor.fetchall()]
json.dump(counted, sys.stdout)
