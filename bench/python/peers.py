"""Loads the rows of Parquet files into DuckDB and ClickHouse and prints what they take there, as JSON.

The only argument is {"table", "paths", "dir"}. The other stores get the columns that we have, sorted as ours are, but for
those that follow from others (`timestamp`, `end_time_unix_nano`): they are smaller for it. ClickHouse gets the codecs that
the OpenTelemetry exporter uses (ZSTD(1), Delta for times) and LowCardinality for texts other than bodies.
"""

import json
import os
import sys

import chdb
import duckdb
from chdb import session

DERIVED = {"timestamp", "end_time_unix_nano"}
IDS = {"trace_id": 16, "span_id": 8, "parent_span_id": 8}


def in_duckdb(paths, directory, order):
    connection = duckdb.connect()
    # It would be written into the answer.
    connection.execute("SET enable_progress_bar = false")
    source = f"read_parquet({paths!r}, hive_partitioning = false)"
    described = connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()
    exclude = ", ".join(name for name, *_ in described if name in DERIVED)
    rows = f"SELECT * EXCLUDE ({exclude}) FROM {source} ORDER BY {order}"
    native, parquet = os.path.join(directory, "rows.duckdb"), os.path.join(directory, "rows.parquet")
    # The newest of its formats is its smallest.
    connection.execute(f"ATTACH '{native}' AS native (STORAGE_VERSION 'latest')")
    connection.execute(f"CREATE TABLE native.rows AS {rows}")
    connection.execute("CHECKPOINT native")
    count = connection.execute("SELECT count(*) FROM native.rows").fetchone()[0]
    connection.execute("DETACH native")
    connection.execute(f"COPY ({rows}) TO '{parquet}' (FORMAT parquet, COMPRESSION zstd)")
    written = connection.execute(f"SELECT count(*) FROM '{parquet}'").fetchone()[0]
    connection.close()
    return (
        {"rows": count, "bytes": os.path.getsize(native)},
        {"rows": written, "bytes": os.path.getsize(parquet)},
    )


def clickhouse_column(name, kind):
    """A column's definition, and where its values come from."""
    if name in IDS:
        empty = f"toFixedString('', {IDS[name]})"
        return f"`{name}` FixedString({IDS[name]}) CODEC(ZSTD(1))", f"ifNull(`{name}`, {empty})"
    if name.endswith("time_unix_nano"):
        return f"`{name}` Int64 CODEC(Delta(8), ZSTD(1))", f"ifNull(`{name}`, 0)"
    if kind.startswith("Map"):
        return f"`{name}` Map(LowCardinality(String), String) CODEC(ZSTD(1))", f"`{name}`"
    if kind.startswith("Array"):
        return f"`{name}` String CODEC(ZSTD(1))", f"toString(`{name}`)"
    if "Int" in kind:
        return f"`{name}` Int64 CODEC(ZSTD(1))", f"ifNull(`{name}`, 0)"
    if "String" in kind:
        text = "String" if name == "body" else "LowCardinality(String)"
        return f"`{name}` {text} CODEC(ZSTD(1))", f"ifNull(`{name}`, '')"
    raise SystemExit(f"no ClickHouse type for {name} {kind}")


def clickhouse_table(server, name, paths, order, indexes=()):
    """Makes a table with the rows of our data files, in as few parts as it has them."""
    settings = "SETTINGS use_hive_partitioning = 0"
    described = server.query(f"DESCRIBE file('{paths[0]}', Parquet) {settings}", "JSONCompactEachRow").data()
    columns = [
        clickhouse_column(name, kind)
        for name, kind, *_ in map(json.loads, described.splitlines())
        if name not in DERIVED
    ]
    definitions = ", ".join([definition for definition, _ in columns] + list(indexes))
    values = ", ".join(value for _, value in columns)
    server.query(f"CREATE TABLE {name} ({definitions}) ENGINE = MergeTree ORDER BY ({order})")
    for path in paths:
        server.query(f"INSERT INTO {name} SELECT {values} FROM file('{path}', Parquet) {settings}")
    server.query(f"OPTIMIZE TABLE {name} FINAL")


def in_clickhouse(paths, directory, order):
    server = session.Session(os.path.join(directory, "clickhouse"))
    server.query("CREATE DATABASE bench ENGINE = Atomic")
    clickhouse_table(server, "bench.rows", paths, order)
    parts = "SELECT sum(rows), sum(bytes_on_disk) FROM system.parts WHERE active AND database = 'bench'"
    rows, size = json.loads(server.query(parts, "JSONCompactEachRow").data())
    server.close()
    return {"rows": int(rows), "bytes": int(size)}


def main():
    asked = json.loads(sys.argv[1])
    order = "service_name, time_unix_nano"
    native, parquet = in_duckdb(asked["paths"], asked["dir"], order)
    clickhouse = in_clickhouse(asked["paths"], asked["dir"], order)
    versions = f"DuckDB {duckdb.__version__}, chdb {chdb.__version__}"
    print(json.dumps({"duckdb": native, "duckdb_parquet": parquet, "clickhouse": clickhouse, "versions": versions}))


if __name__ == "__main__":
    main()
