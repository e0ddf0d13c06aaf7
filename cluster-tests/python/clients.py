"""Real clients against running nodes: OpenTelemetry SDK in through one, ADBC out through each, PyIceberg at the catalog.

Addresses come from the environment, and the ids of spans that others wrote before; the last line says whether every span
id agrees.
"""

import os
import urllib.request

import adbc_driver_flightsql.dbapi as flight_sql
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from pyiceberg.catalog import load_catalog
import logging

RESOURCE = Resource.create({"service.name": "python-shop"})


class Recorder(SpanExporter):
    """Passes spans on and remembers the ids of those that were acknowledged."""

    def __init__(self, inner, acknowledged):
        self.inner, self.acknowledged = inner, acknowledged

    def export(self, spans):
        result = self.inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.acknowledged.extend(f"{span.context.span_id:016x}" for span in spans)
        return result

    def shutdown(self):
        self.inner.shutdown()


def export_spans():
    acknowledged = []
    grpc = GrpcSpanExporter(endpoint=os.environ["OTLP_GRPC"], insecure=True)
    http = HttpSpanExporter(endpoint=os.environ["OTLP_HTTP"] + "/v1/traces")
    for exporter in (grpc, http):
        provider = TracerProvider(resource=RESOURCE)
        provider.add_span_processor(SimpleSpanProcessor(Recorder(exporter, acknowledged)))
        tracer = provider.get_tracer("clients")
        for n in range(20):
            with tracer.start_as_current_span("checkout", kind=trace.SpanKind.SERVER) as span:
                span.set_attributes({"http.route": "/pay", "http.response.status_code": 200, "cart.total": 9.5, "n": n})
                span.add_event("charged", {"amount": n})
        provider.shutdown()
    return acknowledged


def export_logs_and_metrics():
    logs = LoggerProvider(resource=RESOURCE)
    logs.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(endpoint=os.environ["OTLP_HTTP"] + "/v1/logs")))
    logger = logging.getLogger("clients")
    logger.addHandler(LoggingHandler(logger_provider=logs))
    logger.setLevel(logging.INFO)
    logger.info("paid %s", "order-1", extra={"order": "order-1"})
    logs.shutdown()
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=os.environ["OTLP_GRPC"], insecure=True))
    meters = MeterProvider(metric_readers=[reader], resource=RESOURCE)
    meter = meters.get_meter("clients")
    meter.create_counter("orders").add(3, {"region": "eu"})
    meter.create_histogram("latency").record(0.25)
    meter.create_gauge("queue").set(7)
    meters.shutdown()


def adbc(address, acknowledged, earlier):
    with flight_sql.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT span_id FROM traces")
        found = sorted(row[0] for row in cursor.fetchall())
        assert found == sorted(acknowledged + earlier), (address, len(found), len(acknowledged), len(earlier))
        cursor.execute("SELECT attributes['http.route'], http_response_status_code FROM traces WHERE service_name = 'python-shop' LIMIT 1")
        assert cursor.fetchone() == ("/pay", 200)
        cursor.execute("SELECT body, attributes['order'] FROM logs WHERE service_name = 'python-shop'")
        assert cursor.fetchall() == [("paid order-1", "order-1")]
        cursor.execute("SELECT value_int, attributes['region'] FROM metrics_sum WHERE metric_name = 'orders' AND service_name = 'python-shop'")
        assert cursor.fetchone() == (3, "eu")
        cursor.execute("SELECT count FROM metrics_histogram WHERE metric_name = 'latency' AND service_name = 'python-shop'")
        assert cursor.fetchone() == (1,)
        objects = connection.adbc_get_objects(depth="tables").read_all().to_pylist()
        tables = {
            table["table_name"]
            for catalog in objects
            for schema in catalog["catalog_db_schemas"]
            for table in schema["db_schema_tables"]
        }
        assert {"traces", "logs", "metrics_sum"} <= tables, tables
        schema = connection.adbc_get_table_schema("traces")
        assert "trace_id" in schema.names
        assert connection.adbc_get_table_types() == ["BASE TABLE", "SYSTEM TABLE"]
        assert connection.adbc_get_info()["vendor_name"] == "SignalDB"


def pyiceberg(acknowledged, earlier):
    urllib.request.urlopen(urllib.request.Request(os.environ["SIGNALDB_HTTP"] + "/api/v1/admin/flush", method="POST"))
    catalog = load_catalog("signaldb", type="sql", uri=os.environ["SIGNALDB_CATALOG"], init_catalog_tables="false")
    assert ("default", "default", "traces") in catalog.list_tables("default.default")
    table = catalog.load_table("default.default.traces")
    rows = table.scan(row_filter="service_name == 'python-shop'").to_arrow()
    found = sorted(value.hex() for value in rows["span_id"].to_pylist())
    assert found == sorted(acknowledged), (len(found), len(acknowledged))
    everybody = sorted(value.hex() for value in table.scan().to_arrow()["span_id"].to_pylist())
    assert everybody == sorted(acknowledged + earlier), (len(everybody), len(acknowledged), len(earlier))
    assert table.scan(row_filter="service_name == 'nobody'").to_arrow().num_rows == 0
    assert set(rows["http_route"].to_pylist()) == {"/pay"}
    assert dict(rows["attributes"].to_pylist()[0])["cart.total"] == "9.5"


if __name__ == "__main__":
    sent = export_spans()
    assert len(sent) == 40, len(sent)
    export_logs_and_metrics()
    others = [span for span in os.environ["EARLIER_SPANS"].split(",") if span]
    for node in os.environ["SIGNALDB_FLIGHT"].split(","):
        adbc(node, sent, others)
    pyiceberg(sent, others)
    print(f"{len(sent)} and {len(others)} spans: every span id agrees")
