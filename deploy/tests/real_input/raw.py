"""The raw files of shared/data as DuckDB tables: what an engine that shares no code with DataFusion makes of them."""

import json
import tempfile

import duckdb


def load(data):
    """A connection with one table for each stream of watershed.toml, with its declared columns or more."""
    github = f"{data}/gharchive/landing/year=2015/month=01/dayofmonth=01/2015-01-01-0.json.gz"
    wikipedia = f"{data}/wikipedia/wikiticker-2015-09-12-sampled.json.gz"
    db = duckdb.connect()
    db.execute(
        f"""
        CREATE TABLE github AS SELECT * FROM read_json('{github}', format = 'newline_delimited', columns = {{
            id: 'VARCHAR', type: 'VARCHAR', actor: 'STRUCT(id BIGINT, login VARCHAR)',
            repo: 'STRUCT(id BIGINT, name VARCHAR)', payload: 'STRUCT(ref_type VARCHAR)', org: 'STRUCT(id BIGINT)',
            created_at: 'TIMESTAMP'}});
        CREATE TABLE wikipedia AS SELECT * FROM read_json('{wikipedia}', format = 'newline_delimited', columns = {{
            time: 'TIMESTAMP', channel: 'VARCHAR', page: 'VARCHAR', user: 'VARCHAR', isRobot: 'BOOLEAN',
            cityName: 'VARCHAR', added: 'BIGINT', deleted: 'BIGINT', delta: 'BIGINT'}});
        CREATE TABLE trackers AS SELECT * REPLACE ("Rating (Out of 5)"::DOUBLE AS "Rating (Out of 5)")
        FROM read_csv('{data}/fitness/Fitness_trackers.csv', header = true, all_varchar = true);
        """
    )
    # Lines as the file has them, split at "\n" alone; the last line has no line behind it.
    with open(f"{data}/text/moby_dick.txt", encoding="utf-8", newline="\n") as file:
        lines = [line.rstrip("\n").removesuffix("\r") for line in file]
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as rows:
        rows.writelines(json.dumps({"line": line}) + "\n" for line in lines)
        rows.flush()
        db.execute(f"CREATE TABLE moby AS SELECT line FROM read_json('{rows.name}', columns = {{line: 'VARCHAR'}})")
    return db
