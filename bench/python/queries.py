"""Asks another engine what SignalDB was asked, of the same rows, and prints times and answers as JSON.

The only argument is {"engine", "tables": {"traces": [path], "logs": [path]}, "dir", "rounds", "cold", "questions": [{"name",
"sql"}]}. DuckDB and DataFusion read SignalDB's Parquet files; ClickHouse gets a table of its own, as peers.py makes it, with
the skipping indexes of the OpenTelemetry exporter. Of each question the first run is cold: with `cold`, which needs root, the
page cache is dropped before. Times are those of the engine within this process, rows in hand; nothing goes over a wire.
"""

import json
import os
import sys
import time

from peers import clickhouse_table

TABLES = ("traces", "logs")
MAPS = (
    "INDEX attribute_keys mapKeys(attributes) TYPE bloom_filter(0.01) GRANULARITY 1",
    "INDEX attribute_values mapValues(attributes) TYPE bloom_filter(0.01) GRANULARITY 1",
)
INDEXES = ("INDEX trace trace_id TYPE bloom_filter(0.001) GRANULARITY 1", *MAPS)


def directories(asked):
    """A directory a table with its live files alone: ours has those that wait to be deleted, too."""
    found = {}
    for table in TABLES:
        found[table] = os.path.join(asked["dir"], table)
        os.makedirs(found[table], exist_ok=True)
        for n, path in enumerate(asked["tables"][table]):
            link = os.path.join(found[table], f"{n}.parquet")
            if not os.path.exists(link):
                os.symlink(path, link)
    return found


def duckdb_engine(asked):
    import duckdb

    connection = duckdb.connect()
    # It would be written into the answer.
    connection.execute("SET enable_progress_bar = false")
    for table, paths in asked["tables"].items():
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet({paths!r}, hive_partitioning = false)")
    # Python would need a module of its own for times with zones.
    connection.execute("SET TimeZone = 'UTC'")
    return f"DuckDB {duckdb.__version__}", lambda sql: connection.execute(sql).fetch_arrow_table(), arrow_rows


def datafusion_engine(asked):
    import datafusion

    context = datafusion.SessionContext()
    for table, directory in directories(asked).items():
        context.register_parquet(table, directory)
    return f"DataFusion {datafusion.__version__}", lambda sql: context.sql(sql).to_arrow_table(), arrow_rows


def clickhouse_engine(asked):
    import chdb
    from chdb import session

    server = session.Session(os.path.join(asked["dir"], "clickhouse"))
    server.query("CREATE DATABASE bench ENGINE = Atomic")
    for table, paths in asked["tables"].items():
        clickhouse_table(server, f"bench.{table}", paths, "service_name, time_unix_nano", INDEXES)
    # The name of the library is not the version of the engine.
    version = json.loads(server.query("SELECT version()", "JSONCompactEachRow").data())[0]
    return (
        f"ClickHouse {version} (chdb {chdb.__version__})",
        lambda sql: server.query(sql.replace("{traces}", "bench.traces").replace("{logs}", "bench.logs"), "Arrow").bytes(),
        clickhouse_rows,
    )


def arrow_rows(table):
    return [[text(value) for value in row] for row in zip(*(column.to_pylist() for column in table.columns))]


def clickhouse_rows(data):
    import pyarrow

    return arrow_rows(pyarrow.ipc.open_file(data).read_all()) if data else []


def text(value):
    if isinstance(value, bytes):
        # Names are bytes in ClickHouse, ids everywhere.
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    return str(value)


def drop_caches():
    with open("/proc/sys/vm/drop_caches", "w") as kernel:
        kernel.write("3")


def timed(run, sql):
    begun = time.perf_counter()
    answer = run(sql)
    return (time.perf_counter() - begun) * 1000, answer


def main():
    asked = json.loads(sys.argv[1])
    engines = {"duckdb": duckdb_engine, "datafusion": datafusion_engine, "clickhouse": clickhouse_engine}
    version, run, rows = engines[asked["engine"]](asked)
    answers = []
    for question in asked["questions"]:
        sql = question["sql"]
        if asked["engine"] != "clickhouse":
            sql = sql.replace("{traces}", "traces").replace("{logs}", "logs")
        if asked["cold"]:
            drop_caches()
        cold, answer = timed(run, sql)
        hot = min(timed(run, sql)[0] for _ in range(asked["rounds"]))
        answers.append({"name": question["name"], "cold": cold, "hot": hot, "rows": rows(answer)})
    print(json.dumps({"version": version, "answers": answers}))


if __name__ == "__main__":
    main()
