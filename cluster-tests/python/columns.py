"""Generated OTLP of every shape goes in; SignalDB's SQL, PyIceberg and DuckDB show the same rows in every column.

SignalDB answers in Arrow. PyIceberg reads the stored tables through the REST catalog, and what SignalDB computes (ids as hex,
promoted attributes in the maps) is computed here once more. DuckDB reads the view that the node generates. The node's
addresses come from the environment.
"""

import json
import os
import random
import re
import struct
import urllib.request

import pyarrow as pa
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    Exemplar,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
    Summary,
    SummaryDataPoint,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status
from pyiceberg.catalog import load_catalog

from duckdb_view import TOKEN, ask, connect

TABLES = ["traces", "logs", *(f"metrics_{kind}" for kind in ("gauge", "sum", "histogram", "exponential_histogram", "summary"))]
MESSAGES = 40
# 2026-01-01, nanoseconds. A row of another day is a file of its own, so there are few of them.
START = 1767225600 * 10**9
TEXTS = ["", "a", "z" * 100, "é" * 50, "\U0010ffff" * 30, "zero\0byte", "with 'quotes\"", "Ωmega", "x" * 5000]
KEYS = ["k", "", "k.2", "é", "service.name", "host.name", "http.route", "http.response.status_code", "server.port", "user.id"]
LONGS = [0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63)]
DOUBLES = [0.0, -0.0, 1.5, float("inf"), float("-inf"), float("nan"), 5e-324, 1.7976931348623157e308]

draw = random.Random(5)


def text():
    return draw.choice(TEXTS)


def value(depth=2):
    kinds = ["none", "string", "string", "string", "bool", "int", "double", "bytes"] + ["array", "kvlist"] * (depth > 0)
    match draw.choice(kinds):
        case "none":
            return AnyValue()
        case "string":
            return AnyValue(string_value=text())
        case "bool":
            return AnyValue(bool_value=draw.random() < 0.5)
        case "int":
            return AnyValue(int_value=draw.choice(LONGS))
        case "double":
            return AnyValue(double_value=draw.choice(DOUBLES))
        case "bytes":
            return AnyValue(bytes_value=draw.randbytes(5))
        case "array":
            return AnyValue(array_value=ArrayValue(values=[value(depth - 1) for _ in range(2)]))
        case "kvlist":
            return AnyValue(kvlist_value=KeyValueList(values=attributes(depth - 1)))


def attributes(depth=2):
    keys = [draw.choice(KEYS) for _ in range(draw.randrange(6))]
    return [KeyValue(key=key, value=value(depth)) for key in keys]


def number(bits):
    return draw.choice([0, 1, 2 ** (bits - 1), 2**bits - 1])


def identifier(size):
    return draw.choice([b"", draw.randbytes(size), draw.randbytes(size)])


def time():
    return draw.choice([0, 2**63 - 1, 2**63, 2**64 - 1]) if draw.random() < 0.03 else START + draw.randrange(10**12)


def resource():
    return Resource(attributes=attributes(), dropped_attributes_count=number(32))


def scope():
    return InstrumentationScope(name=text(), version=text(), attributes=attributes(), dropped_attributes_count=number(32))


def span():
    event = lambda: Span.Event(time_unix_nano=time(), name=text(), attributes=attributes(), dropped_attributes_count=number(32))
    link = lambda: Span.Link(
        trace_id=identifier(16), span_id=identifier(8), trace_state=text(), attributes=attributes(), flags=number(32)
    )
    return Span(
        trace_id=identifier(16),
        span_id=identifier(8),
        parent_span_id=identifier(8),
        trace_state=text(),
        flags=number(32),
        name=text(),
        kind=draw.randrange(6),
        start_time_unix_nano=time(),
        end_time_unix_nano=time(),
        attributes=attributes(),
        dropped_attributes_count=number(32),
        events=[event() for _ in range(draw.randrange(3))],
        dropped_events_count=number(32),
        links=[link() for _ in range(draw.randrange(3))],
        dropped_links_count=number(32),
        status=Status(message=text(), code=draw.randrange(3)),
    )


def record():
    return LogRecord(
        time_unix_nano=time(),
        observed_time_unix_nano=time(),
        severity_number=draw.randrange(25),
        severity_text=text(),
        body=value(),
        attributes=attributes(),
        dropped_attributes_count=number(32),
        flags=number(32),
        trace_id=identifier(16),
        span_id=identifier(8),
        event_name=text(),
    )


def either_number():
    return draw.choice([{"as_int": draw.choice(LONGS)}, {"as_double": draw.choice(DOUBLES)}, {}])


def exemplars():
    one = lambda: Exemplar(
        filtered_attributes=attributes(), time_unix_nano=time(), span_id=identifier(8), trace_id=identifier(16), **either_number()
    )
    return [one() for _ in range(draw.randrange(3))]


def metrics():
    head = lambda: dict(attributes=attributes(), start_time_unix_nano=time(), time_unix_nano=time(), flags=number(32))
    double = lambda: draw.choice(DOUBLES)
    spread = lambda: {name: double() for name in ("sum", "min", "max") if draw.random() < 0.7}
    counts = lambda: [number(64) for _ in range(draw.randrange(4))]
    buckets = lambda: ExponentialHistogramDataPoint.Buckets(offset=number(31) - 2**30, bucket_counts=counts())
    point = lambda: NumberDataPoint(**head(), exemplars=exemplars(), **either_number())
    histogram = HistogramDataPoint(
        **head(), **spread(), count=number(64), bucket_counts=counts(), explicit_bounds=[double()], exemplars=exemplars()
    )
    exponential = ExponentialHistogramDataPoint(
        **head(),
        **spread(),
        count=number(64),
        scale=draw.randrange(-10, 20),
        zero_count=number(64),
        zero_threshold=double(),
        positive=buckets(),
        negative=buckets(),
        exemplars=exemplars(),
    )
    quantiles = [SummaryDataPoint.ValueAtQuantile(quantile=double(), value=double()) for _ in range(draw.randrange(3))]
    summary = SummaryDataPoint(**head(), count=number(64), sum=double(), quantile_values=quantiles)
    shapes = [
        {"gauge": Gauge(data_points=[point()])},
        {"sum": Sum(data_points=[point()], aggregation_temporality=draw.randrange(3), is_monotonic=draw.random() < 0.5)},
        {"histogram": Histogram(data_points=[histogram], aggregation_temporality=draw.randrange(3))},
        {"exponential_histogram": ExponentialHistogram(data_points=[exponential], aggregation_temporality=1)},
        {"summary": Summary(data_points=[summary])},
    ]
    return [Metric(name=text(), description=text(), unit=text(), metadata=attributes(), **shape) for shape in shapes]


def requests():
    about = lambda: dict(resource=resource(), schema_url=text())
    spans = lambda: ScopeSpans(scope=scope(), spans=[span(), span()], schema_url=text())
    yield "traces", ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(**about(), scope_spans=[spans()]) for _ in range(MESSAGES)]
    )
    records = lambda: ScopeLogs(scope=scope(), log_records=[record(), record()], schema_url=text())
    yield "logs", ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(**about(), scope_logs=[records()]) for _ in range(MESSAGES)]
    )
    points = lambda: ScopeMetrics(scope=scope(), metrics=metrics(), schema_url=text())
    yield "metrics", ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(**about(), scope_metrics=[points()]) for _ in range(MESSAGES)]
    )


def export(path, message):
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/x-protobuf"}
    request = urllib.request.Request(f"{os.environ['OTLP']}/v1/{path}", data=message.SerializeToString(), headers=headers)
    # Nothing was rejected, and nothing is to be said.
    assert urllib.request.urlopen(request).read() == b"", path


def plain(value):
    """A value that compares by its bits, maps in any order."""
    if isinstance(value, float):
        return "NaN" if value != value else struct.pack(">d", value).hex()
    if isinstance(value, dict):
        return tuple((name, plain(one)) for name, one in value.items())
    if isinstance(value, list):
        if value and all(isinstance(one, tuple) for one in value):
            assert len(dict(value)) == len(value), f"a key comes twice: {value}"
            return ("map", *sorted((key, one is not None, one or "") for key, one in value))
        return tuple(plain(one) for one in value)
    return value


def columns(table):
    """Column name to values, one a row."""
    out = {}
    for name, column in zip(table.column_names, table.columns):
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
        out[name] = column.to_pylist()
    return out


def ours(table):
    answer = ask("/api/v1/sql?format=arrow", json.dumps({"query": f"SELECT * FROM {table}"}).encode())
    return columns(pa.ipc.open_stream(answer).read_all())


def ddl(table):
    return ask(f"/api/v1/tables/{table}/view?dialect=duckdb").decode()


def promoted(table, column):
    """Keys that have columns of their own and belong into this map, as the generated view says."""
    lines = [line for line in ddl(table).splitlines() if line.rstrip(",").endswith(f' AS "{column}"')]
    return [found for line in lines for found in re.findall(r"""\{'k': '([^']+)', 'v': CAST\("([^"]+)\"""", line)]


def stored(catalog, table, shown):
    """The stored table as SignalDB's SQL shows it."""
    arrow = catalog.load_table(f"acme.production.{table}").scan().to_arrow()
    rows, out = columns(arrow), {}
    for name in shown:
        out[name] = rows[name]
        if pa.types.is_fixed_size_binary(arrow.schema.field(name).type):
            out[name] = [None if one is None else one.hex() for one in rows[name]]
        elif keys := promoted(table, name):
            merged = zip(rows[name], *(rows[column] for _, column in keys))
            extra = lambda row: [(key, str(one)) for (key, _), one in zip(keys, row) if one is not None]
            out[name] = [extra(row[1:]) + row[0] for row in merged]
    return out


def compare(table, who, expected, found):
    assert list(expected) == list(found), (table, who, list(found))
    for name in expected:
        # The rows come in any order, so each column is compared with the key of its row.
        assert len(expected[name]) == len(found[name]), (table, who, len(found[name]))
        sides = [sorted(repr(plain(one)) for one in side[name]) for side in (expected, found)]
        assert sides[0] == sides[1], (table, who, name, [pair for pair in zip(*sides) if pair[0] != pair[1]][:3])
    rows = [sorted(repr(tuple(map(plain, row))) for row in zip(*side.values())) for side in (expected, found)]
    assert rows[0] == rows[1], (table, who)


if __name__ == "__main__":
    for signal, request in requests():
        export(signal, request)
    unflushed = {table: ours(table) for table in TABLES}
    ask("/api/v1/admin/flush", b"")
    catalog = load_catalog("signaldb", type="rest", uri=f"{os.environ['SIGNALDB']}/iceberg", token=TOKEN)
    duck = connect()
    compared = 0
    for table in TABLES:
        shown = ours(table)
        compare(table, "memtable", shown, unflushed[table])
        compare(table, "PyIceberg", shown, stored(catalog, table, shown))
        duck.execute(ddl(table))
        compare(table, "DuckDB", shown, columns(duck.execute(f"SELECT * FROM {table}").to_arrow_table()))
        compared += len(shown) * len(shown["timestamp"])
    assert compared > 10_000, compared
    print(f"{compared} values: every column agrees")
