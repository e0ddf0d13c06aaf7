"""A data file of two row groups whose longest and greatest texts have 100 bytes: with PyIceberg's predicates, which skip
files by their bounds, every row comes that SignalDB's SQL finds.

The node's addresses come from the environment; it must not flush by itself before it is asked to.
"""

import json
import os
import urllib.error
import urllib.request

import pyarrow.parquet as parquet
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
from pyiceberg.catalog import load_catalog
from pyiceberg.expressions import (
    And,
    EqualTo,
    GreaterThan,
    GreaterThanOrEqual,
    In,
    IsNull,
    LessThan,
    LessThanOrEqual,
    NotEqualTo,
    NotNull,
    StartsWith,
)

NODE = os.environ["SIGNALDB"]
# A row group has up to 128 Ki rows.
SPANS = (128 << 10) + 1000
START = 1767225600 * 10**9
GREATEST, LONG = "z" * 100, "m" * 100
# No character comes after these: such a maximum cannot be cut and rounded up.
LAST = "\U0010ffff" * 25


def attribute(key, **value):
    return KeyValue(key=key, value=AnyValue(**value))


def spans():
    """By time, as files are sorted: what is odd is in the second row group only, or in the first only."""
    for n in range(SPANS):
        span = Span(name="b", start_time_unix_nano=START + n, end_time_unix_nano=START + n + 1)
        match n:
            case 0:
                span.name = "a"
                span.attributes.append(attribute("http.route", string_value=LONG))
            case 7:
                span.attributes.append(attribute("http.response.status_code", int_value=-(2**63)))
            case _ if n == SPANS - 1:
                span.name = GREATEST
                span.attributes.append(attribute("http.response.status_code", int_value=2**63 - 1))
                span.attributes.append(attribute("user.id", string_value=LAST))
            case _ if n == SPANS - 2:
                # Not of the column's type: only the map has it.
                span.attributes.append(attribute("http.route", int_value=5))
        yield span


def post(url, body, kind):
    try:
        return urllib.request.urlopen(urllib.request.Request(url, data=body, headers={"Content-Type": kind})).read()
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read()) from error


def sql(query):
    return json.loads(post(f"{NODE}/api/v1/sql", json.dumps({"query": query}).encode(), "application/json"))["rows"]


def export():
    every = list(spans())
    for at in range(0, len(every), 20_000):
        resource_spans = [ResourceSpans(scope_spans=[ScopeSpans(spans=every[at : at + 20_000])])]
        body = ExportTraceServiceRequest(resource_spans=resource_spans).SerializeToString()
        assert post(f"{os.environ['OTLP']}/v1/traces", body, "application/x-protobuf") == b""
    post(f"{NODE}/api/v1/admin/flush", b"", "application/json")


CASES = [
    (EqualTo("name", GREATEST), f"name = '{GREATEST}'", 1),
    (GreaterThan("name", "y"), "name > 'y'", 1),
    (GreaterThanOrEqual("name", GREATEST), f"name >= '{GREATEST}'", 1),
    (GreaterThan("name", GREATEST), f"name > '{GREATEST}'", 0),
    (StartsWith("name", "z" * 70), f"name LIKE '{'z' * 70}%'", 1),
    (In("name", {"a", GREATEST}), f"name IN ('a', '{GREATEST}')", 2),
    (LessThan("name", "b"), "name < 'b'", 1),
    (NotEqualTo("name", "b"), "name <> 'b'", 2),
    (EqualTo("http_route", LONG), f"http_route = '{LONG}'", 1),
    (EqualTo("http_route", LONG), f"attributes['http.route'] = '{LONG}'", 1),
    (EqualTo("user_id", LAST), f"user_id = '{LAST}'", 1),
    (EqualTo("user_id", LAST), f"attributes['user.id'] = '{LAST}'", 1),
    (GreaterThan("user_id", "z"), "user_id > 'z'", 1),
    (EqualTo("http_response_status_code", 2**63 - 1), f"http_response_status_code = {2**63 - 1}", 1),
    (LessThan("http_response_status_code", 0), "http_response_status_code < 0", 1),
    (EqualTo("http_response_status_code", -(2**63)), f"attributes['http.response.status_code'] = '{-(2**63)}'", 1),
    (IsNull("http_response_status_code"), "http_response_status_code IS NULL", SPANS - 2),
    (NotNull("service_name"), "service_name IS NOT NULL", 0),
    (NotNull("http_route"), "http_route IS NOT NULL", 1),
    (EqualTo("time_unix_nano", START + SPANS - 1), f"time_unix_nano = {START + SPANS - 1}", 1),
    (LessThanOrEqual("time_unix_nano", START), f"time_unix_nano <= {START}", 1),
    (And(EqualTo("name", "b"), GreaterThan("time_unix_nano", START + (128 << 10))), None, 998),
    (GreaterThanOrEqual("timestamp", "2026-01-01T00:00:00+00:00"), "timestamp >= '2026-01-01'", SPANS),
    (LessThan("timestamp", "2026-01-01T00:00:00+00:00"), "timestamp < '2026-01-01'", 0),
]


if __name__ == "__main__":
    export()
    table = load_catalog("signaldb", type="rest", uri=f"{NODE}/iceberg").load_table("default.default.traces")
    [file] = [task.file.file_path for task in table.scan().plan_files()]
    groups = parquet.ParquetFile(file.removeprefix("file://")).metadata.num_row_groups
    assert groups == 2, groups
    for predicate, where, expected in CASES:
        found = table.scan(row_filter=predicate, selected_fields=("name",)).to_arrow().num_rows
        assert found == expected, (predicate, found, expected)
        if where:
            [[counted]] = sql(f"SELECT count(*) FROM traces WHERE {where}")
            assert counted == expected, (where, counted, expected)
    odd = sql("SELECT count(*) FROM traces WHERE attributes['http.route'] = '5'")
    assert odd == [[1]], odd
    print(f"{len(CASES)} predicates: every row comes")
