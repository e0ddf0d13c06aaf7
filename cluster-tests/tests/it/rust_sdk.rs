//! The OpenTelemetry SDK for Rust as a client.

use opentelemetry::KeyValue;
use opentelemetry::logs::{LogRecord, Logger, LoggerProvider, Severity};
use opentelemetry::metrics::MeterProvider;
use opentelemetry::trace::{Span, SpanKind, Tracer, TracerProvider};
use opentelemetry_otlp::{LogExporter, MetricExporter, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::node::DEADLINE;

/// Exports spans, a log record and metrics over gRPC; returns the ids of the spans once the node answered all of it.
///
/// Blocks, as the SDK does: for a thread of the runtime that may.
pub(crate) fn export(endpoint: &str) -> anyhow::Result<Vec<String>> {
    let resource = Resource::builder().with_service_name("rust-shop").build();

    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let traces = SdkTracerProvider::builder().with_resource(resource.clone()).with_batch_exporter(exporter).build();
    let tracer = traces.tracer("clients");
    let mut ids = Vec::new();
    for n in 0..20_i64 {
        let attributes = [KeyValue::new("http.route", "/pay"), KeyValue::new("n", n)];
        let builder = tracer.span_builder("checkout").with_kind(SpanKind::Server).with_attributes(attributes);
        let mut span = builder.start(&tracer);
        span.add_event("charged", vec![KeyValue::new("amount", n)]);
        ids.push(span.span_context().span_id().to_string());
        span.end();
    }
    traces.shutdown_with_timeout(DEADLINE)?;

    let exporter = LogExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let logs = SdkLoggerProvider::builder().with_resource(resource.clone()).with_batch_exporter(exporter).build();
    let logger = logs.logger("clients");
    let mut record = logger.create_log_record();
    record.set_severity_number(Severity::Info);
    record.set_severity_text("INFO");
    record.set_body("paid order-2".into());
    record.add_attribute("order", "order-2");
    logger.emit(record);
    logs.shutdown_with_timeout(DEADLINE)?;

    let exporter = MetricExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let metrics = SdkMeterProvider::builder().with_resource(resource).with_periodic_exporter(exporter).build();
    let meter = metrics.meter("clients");
    meter.u64_counter("orders").build().add(3, &[KeyValue::new("region", "eu")]);
    meter.f64_histogram("latency").build().record(0.25, &[]);
    // Unlike a shutdown, which exports once more, it waits as long as it takes.
    metrics.force_flush()?;
    Ok(ids)
}
