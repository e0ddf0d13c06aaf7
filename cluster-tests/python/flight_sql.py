"""ADBC's Flight SQL driver, call by call, at each node; what one node hands out is read at the next.

Addresses of both ports, the ids of the three spans of tenant `acme` and the position of the last of them come from the environment.
Tenant `other` has two spans.
"""

import datetime
import os
import urllib.request

import adbc_driver_flightsql.dbapi as flight_sql
import pyarrow
from adbc_driver_flightsql import DatabaseOptions

HEADER = DatabaseOptions.RPC_CALL_HEADER_PREFIX.value
SPANS = sorted(os.environ["SPANS"].split(","))
COUNT = "SELECT count(*) FROM traces"


def connect(address, tenant="acme", key=None, headers=None, login=False):
    """With a bearer and headers as any client, or by a login that answers a session."""
    key = key or f"sk-{tenant}"
    if login:
        options = {"username": tenant, "password": key}
    else:
        options = {DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {key}", HEADER + "x-tenant-id": tenant}
    options.update({HEADER + name: value for name, value in (headers or {}).items()})
    return flight_sql.connect(address, db_kwargs=options, autocommit=True)


def ask(connection, sql, parameters=None):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall()


def table(connection, sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetch_arrow_table()


def refused(status, action, *named):
    try:
        action()
    except flight_sql.Error as error:
        assert error.status_code.name == status, (error.status_code, error)
        assert all(name in str(error) for name in named), error
        return
    raise AssertionError(f"not refused with {status}")


def refused_any(action):
    try:
        action()
    except flight_sql.Error:
        return
    raise AssertionError("not refused")


def statements(connection):
    assert sorted(row[0] for row in ask(connection, "SELECT span_id FROM traces")) == SPANS
    assert ask(connection, "SELECT 1 WHERE false") == []
    everything = table(connection, "SELECT * FROM traces")
    assert everything.num_rows == 3
    assert pyarrow.types.is_map(everything.schema.field("attributes").type)
    assert ask(connection, "SELECT attributes['http.route'] FROM traces LIMIT 1") == [("/checkout",)]
    for sql in (
        "SELECT service_name, count(*), avg(duration_nano), max(timestamp) FROM traces GROUP BY service_name",
        "SELECT CASE WHEN kind = 'SERVER' THEN 1 ELSE NULL END FROM traces UNION ALL SELECT 2.5",
        "SELECT row_number() OVER (ORDER BY span_id), date_trunc('hour', timestamp) FROM traces",
        "SELECT map_keys(attributes), resource_attributes, events, links FROM traces",
        "SELECT a.span_id, b.name FROM traces a LEFT JOIN logs l ON a.trace_id = l.trace_id JOIN traces b ON a.span_id = b.span_id",
        "EXPLAIN SELECT count(*) FROM traces",
        "SELECT * FROM system.tables",
        "SELECT * FROM staging.logs",
    ):
        table(connection, sql)
    odd = table(connection, "SELECT arrow_cast('x', 'Dictionary(Int32, Utf8)') AS d, arrow_cast('y', 'Utf8View') AS v")
    assert pyarrow.types.is_dictionary(odd.schema.field("d").type) and pyarrow.types.is_string(odd.schema.field("v").type)
    assert odd.to_pylist() == [{"d": "x", "v": "y"}]
    with connection.cursor() as cursor:
        # Not read to its end.
        cursor.execute("SELECT a.value FROM generate_series(1, 100000) a CROSS JOIN generate_series(1, 100000) b")
        assert cursor.fetchone() is not None
    for sql in ("SELEC 1", "SELECT nope FROM traces", "DROP TABLE traces", "SELECT * FROM main.traces"):
        refused("INVALID_ARGUMENT", lambda sql=sql: ask(connection, sql))


def parameters(connection):
    first = SPANS[0]
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    for sql, values, expected in (
        ("SELECT span_id FROM traces WHERE span_id = ?", (first,), [(first,)]),
        ("SELECT span_id FROM traces WHERE span_id = $1 OR span_id = $1", (first,), [(first,)]),
        ("SELECT count(*) FROM traces WHERE attributes['http.route'] = ? AND duration_nano > ?", ("/checkout", 0), [(3,)]),
        ("SELECT count(*) FROM traces WHERE timestamp < ?", (soon,), [(3,)]),
        ("SELECT count(*) FROM traces WHERE span_id IN (?, ?)", (first, SPANS[1]), [(2,)]),
        ("SELECT span_id FROM traces ORDER BY span_id LIMIT ?", (2,), [(span,) for span in SPANS[:2]]),
        ("SELECT count(*) FROM traces WHERE name LIKE ?", ("span %",), [(3,)]),
        ("SELECT ? IS NULL, '?'", (None,), [(True, "?")]),
        ("SELECT ?, ?, ?", (1.5, True, "é"), [(1.5, True, "é")]),
    ):
        assert ask(connection, sql, values) == expected, (sql, ask(connection, sql, values))
    several = pyarrow.record_batch({"0": [SPANS[2], "nobody", first]})
    assert ask(connection, "SELECT count(*) FROM traces WHERE span_id = ?", several) == [(1,), (0,), (1,)]
    named = pyarrow.record_batch({"route": ["/checkout"], "id": [first]})
    sql = "SELECT span_id FROM traces WHERE span_id = $id AND attributes['http.route'] = $route"
    assert ask(connection, sql, named) == [(first,)]
    with connection.cursor() as cursor:
        wanted = cursor.adbc_prepare("SELECT name FROM traces WHERE service_name = ? AND duration_nano > ?")
        assert wanted.names == ["$1", "$2"] and pyarrow.types.is_string(wanted.field(0).type), wanted
        assert pyarrow.types.is_integer(wanted.field(1).type), wanted
        result = cursor.adbc_execute_schema("SELECT name, count(*) AS n FROM traces GROUP BY name")
        assert result.names == ["name", "n"], result
        # A prepared statement is executed more than once.
        for span in SPANS:
            cursor.execute("SELECT span_id FROM traces WHERE span_id = ?", (span,))
            assert cursor.fetchall() == [(span,)]
    refused("INVALID_ARGUMENT", lambda: ask(connection, "SELECT ?"), "no values are bound")
    refused("INVALID_ARGUMENT", lambda: ask(connection, "SELECT ?", (1, 2)), "1 parameters")
    refused("INVALID_ARGUMENT", lambda: ask(connection, "SELECT $a", named), "$a is not bound")
    large = pyarrow.record_batch({"0": ["x" * 1000] * 2000})
    refused_any(lambda: ask(connection, "SELECT ?", large))


def metadata(connection):
    info = connection.adbc_get_info()
    assert info["vendor_name"] == "SignalDB" and info["vendor_version"], info
    assert connection.adbc_get_table_types() == ["BASE TABLE", "SYSTEM TABLE"]
    catalogs = connection.adbc_get_objects(depth="catalogs").read_all().to_pylist()
    assert [catalog["catalog_name"] for catalog in catalogs] == ["signaldb"]
    (catalog,) = connection.adbc_get_objects(depth="db_schemas").read_all().to_pylist()
    schemas = {schema["db_schema_name"] for schema in catalog["catalog_db_schemas"]}
    assert schemas == {"production", "staging", "system"}, schemas
    (catalog,) = connection.adbc_get_objects(
        depth="all", db_schema_filter="production", table_name_filter="trac%"
    ).read_all().to_pylist()
    (schema,) = catalog["catalog_db_schemas"]
    (traces,) = schema["db_schema_tables"]
    columns = [column["column_name"] for column in traces["table_columns"]]
    assert traces["table_type"] == "BASE TABLE" and {"trace_id", "attributes", "timestamp"} <= set(columns), traces
    (catalog,) = connection.adbc_get_objects(depth="tables", table_types_filter=["SYSTEM TABLE"]).read_all().to_pylist()
    system = [schema for schema in catalog["catalog_db_schemas"] if schema["db_schema_name"] == "system"]
    assert "tables" in {table["table_name"] for table in system[0]["db_schema_tables"]}
    schema = connection.adbc_get_table_schema("traces", db_schema_filter="production")
    assert schema.names == columns


def not_supported(connection):
    with connection.cursor() as cursor:
        refused("NOT_IMPLEMENTED", lambda: cursor.executemany("SELECT 1", None), "CommandPreparedStatementUpdate")
    with connection.cursor() as cursor:
        refused_any(lambda: cursor.adbc_ingest("fresh", pyarrow.table({"a": [1]}), mode="create"))
    refused_any(lambda: connection.adbc_connection.set_autocommit(False))


def partitions(here, there):
    """A ticket of one node is read at another, by another connection."""
    with connect(here) as connection, connection.cursor() as cursor:
        tickets, schema = cursor.adbc_execute_partitions("SELECT span_id FROM traces ORDER BY span_id")
        assert len(tickets) == 1 and schema.names == ["span_id"], (tickets, schema)
    with connect(there) as connection, connection.cursor() as cursor:
        cursor.adbc_read_partition(tickets[0])
        assert [row[0] for row in cursor.fetchall()] == SPANS
    with connect(there, "other") as connection, connection.cursor() as cursor:
        refused("UNAUTHORIZED", lambda: (cursor.adbc_read_partition(tickets[0]), cursor.fetchall()), "somebody else")


def kills(here, there, http):
    """A query that one node runs is found and killed at another."""
    endless = "SELECT a.value FROM generate_series(1, 1000000) a CROSS JOIN generate_series(1, 1000000) b"
    with connect(here) as connection, connection.cursor() as cursor:
        cursor.execute(endless)
        assert cursor.fetchone() is not None
        with connect(there) as other:
            found = ask(other, f"SELECT id FROM system.queries WHERE state = 'running' AND query = '{endless}'")
        assert len(found) == 1, found
        headers = {"Authorization": "Bearer sk-acme", "X-Tenant-ID": "acme"}
        request = urllib.request.Request(f"{http}/api/v1/queries/{found[0][0]}", method="DELETE", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200, answer.status
        try:
            while cursor.fetchmany(10_000):
                pass
        except Exception as error:  # Of the driver, or of the library that reads its stream.
            assert "was killed" in str(error), error
        else:
            raise AssertionError("the result ended as if it were whole")


def consistency(address):
    for headers in ({"x-signaldb-consistency": "eventual"}, {"x-signaldb-min-position": os.environ["POSITION"]}):
        with connect(address, headers=headers) as connection:
            assert ask(connection, COUNT) == [(3,)], headers
    group = os.environ["POSITION"].split(":")[0]
    for headers in (
        {"x-signaldb-consistency": "sometimes"},
        {"x-signaldb-min-position": "nowhere"},
        {"x-signaldb-min-position": f"{group}:999999999"},
    ):
        with connect(address, headers=headers) as connection:
            refused("INVALID_ARGUMENT", lambda: ask(connection, COUNT))
    with connect(address, headers={"x-signaldb-flatten": "true"}) as connection:
        flat = table(connection, "SELECT * FROM traces")
        assert not any(pyarrow.types.is_nested(field.type) for field in flat.schema), flat.schema
        assert "/checkout" in flat.column("attributes")[0].as_py()
    with connect(address, headers={"x-dataset-id": "staging"}) as connection:
        assert ask(connection, COUNT) == [(0,)]


def tenants(address):
    with connect(address, "other", login=True) as connection:
        assert ask(connection, COUNT) == [(2,)]
        refused("INVALID_ARGUMENT", lambda: ask(connection, "SELECT * FROM production.traces"), "not found")
    refused_any(lambda: connect(address, key="sk-nobody", login=True))

    def once(tenant, key):
        with connect(address, tenant, key) as connection:
            ask(connection, "SELECT 1")

    refused("UNAUTHENTICATED", lambda: once("acme", "sk-nobody"))
    refused("UNAUTHORIZED", lambda: once("other", "sk-acme"))


if __name__ == "__main__":
    addresses = os.environ["SIGNALDB_FLIGHT"].split(",")
    https = os.environ["SIGNALDB_HTTP"].split(",")
    for at, address in enumerate(addresses):
        for login in (True, False):
            with connect(address, login=login) as connection:
                statements(connection)
                parameters(connection)
                metadata(connection)
                not_supported(connection)
        following = (at + 1) % len(addresses)
        partitions(address, addresses[following])
        kills(address, addresses[following], https[following])
        consistency(address)
        tenants(address)
    print(f"{len(addresses)} nodes: every call answered")
