"""Recounts the views of watershed.toml from the raw files with DuckDB: an engine that shares no code with DataFusion.

Usage: recount.py DATA_FOLDER; prints one JSON object, view name -> rows.
"""

import json
import sys

import duckdb

data = sys.argv[1]
github = f"{data}/gharchive/landing/year=2015/month=01/dayofmonth=01/2015-01-01-0.json.gz"
wikipedia = f"{data}/wikipedia/wikiticker-2015-09-12-sampled.json.gz"

db = duckdb.connect()
db.execute(
    f"""
    CREATE TABLE github AS SELECT * FROM read_json('{github}', format = 'newline_delimited', columns = {{
        id: 'VARCHAR', type: 'VARCHAR', actor: 'STRUCT(id BIGINT)', repo: 'STRUCT(id BIGINT)',
        payload: 'STRUCT(ref_type VARCHAR)', org: 'STRUCT(id BIGINT)', created_at: 'TIMESTAMP'}});
    CREATE TABLE wikipedia AS SELECT * FROM read_json('{wikipedia}', format = 'newline_delimited', columns = {{
        time: 'TIMESTAMP', channel: 'VARCHAR', added: 'BIGINT', deleted: 'BIGINT', isRobot: 'BOOLEAN'}});
    CREATE TABLE trackers AS SELECT * FROM read_csv('{data}/fitness/Fitness_trackers.csv', header = true, all_varchar = true);
    """
)

# Lines as the file has them, split at "\n" alone; the last line has no line behind it.
with open(f"{data}/text/moby_dick.txt", encoding="utf-8", newline="\n") as file:
    lines = [(line.rstrip("\n").removesuffix("\r"),) for line in file]
db.execute("CREATE TABLE moby (line VARCHAR)")
db.executemany("INSERT INTO moby VALUES (?)", lines[:1])
import tempfile  # noqa: E402

with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as rows:
    for (line,) in lines[1:]:
        rows.write(json.dumps({"line": line}) + "\n")
    rows.flush()
    db.execute(f"INSERT INTO moby SELECT line FROM read_json('{rows.name}', columns = {{line: 'VARCHAR'}})")

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

counted = {}
for name, sql in VIEWS.items():
    cursor = db.execute(sql)
    columns = [column[0] for column in cursor.description]
    counted[name] = [dict(zip(columns, row)) for row in cursor.fetchall()]
json.dump(counted, sys.stdout)
