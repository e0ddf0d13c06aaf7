"""DuckDB over the REST catalog and over a data file: the generated view shows what SignalDB's SQL shows.

The node's address comes from the environment.
"""

import base64
import json
import os
import pathlib
import urllib.parse
import urllib.request

import duckdb
import duckdb_extension_avro
import duckdb_extension_httpfs
import duckdb_extension_iceberg

NODE = os.environ["SIGNALDB"]
# Clients that send a token and nothing else carry the tenant in it.
TOKEN = "sdb1." + base64.b64encode(b"acme:sk-acme").decode()
COLUMNS = """span_id, trace_id, parent_span_id, name, kind, service_name, http_route, time_unix_nano,
    attributes['http.route'], attributes['cart.size'], attributes['none'], resource_attributes['service.name']"""
ROWS = f"SELECT {COLUMNS} FROM traces ORDER BY span_id"


def ask(path, body=None):
    request = urllib.request.Request(NODE + path, data=body, headers={"Authorization": f"Bearer {TOKEN}"})
    return urllib.request.urlopen(request).read()


def sql(query):
    return [tuple(row) for row in json.loads(ask("/api/v1/sql", json.dumps({"query": query}).encode()))["rows"]]


def ddl(**parameters):
    return ask("/api/v1/tables/traces/view?" + urllib.parse.urlencode({"dialect": "duckdb", **parameters})).decode()


def connect():
    connection = duckdb.connect()
    for extension in (duckdb_extension_httpfs, duckdb_extension_avro, duckdb_extension_iceberg):
        # From the package, not from the network.
        file = next(pathlib.Path(extension.__path__[0]).rglob("*.duckdb_extension"))
        connection.execute(f"LOAD '{file}'")
    connection.execute(f"CREATE SECRET signaldb (TYPE iceberg, TOKEN '{TOKEN}')")
    connection.execute(f"ATTACH 'signaldb' AS signaldb (TYPE iceberg, ENDPOINT '{NODE}/iceberg', SECRET signaldb)")
    return connection


if __name__ == "__main__":
    expected = sql(ROWS)
    assert len(expected) == 3, expected
    assert expected[0][8:] == ("/checkout", "3", None, "shop"), expected[0]
    duck = connect()
    duck.execute(ddl())
    assert duck.execute(ROWS).fetchall() == expected
    paths = [path for (path,) in sql("SELECT path FROM system.files WHERE \"table\" = 'traces'")]
    files = ", ".join(f"'{path.removeprefix('file://')}'" for path in paths)
    duck.execute(ddl(source=f"read_parquet([{files}])", view="from files"))
    assert duck.execute(ROWS.replace("FROM traces", 'FROM "from files"')).fetchall() == expected
    try:
        duck.execute('CREATE TABLE signaldb."acme.production".fresh (i INTEGER)')
    except duckdb.Error as error:
        assert "read-only" in str(error), error
    else:
        raise AssertionError("a table was made")
    print(f"{len(expected)} spans: the views agree")
