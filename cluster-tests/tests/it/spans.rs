//! Spans with ids of their own, and a client that retries unknown outcomes byte by byte.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::Bytes;
use prost::Message;
use signaldb_proto::otlp::collector::logs::v1::ExportLogsServiceRequest;
use signaldb_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use signaldb_proto::otlp::common::v1::{AnyValue, KeyValue, any_value};
use signaldb_proto::otlp::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use signaldb_proto::otlp::resource::v1::Resource;
use signaldb_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span};

use crate::node::DEADLINE;

pub(crate) fn text(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

pub(crate) fn now_nanos() -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn span(name: &str) -> Span {
    let id = uuid::Uuid::new_v4();
    let start = now_nanos();
    Span {
        trace_id: id.as_bytes().to_vec(),
        span_id: uuid::Uuid::new_v4().as_bytes()[..8].to_vec(),
        name: name.to_owned(),
        kind: 2,
        start_time_unix_nano: start,
        end_time_unix_nano: start + 1_000_000,
        attributes: vec![text("http.route", "/checkout"), text("cart.size", "3")],
        ..Span::default()
    }
}

pub(crate) fn request(service: &str, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let resource = Resource { attributes: vec![text("service.name", service)], ..Resource::default() };
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let resource_spans = ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request of `count` new spans: its bytes and the ids in it.
pub(crate) fn batch(count: usize) -> (Bytes, Vec<String>) {
    let spans: Vec<Span> = (0..count).map(|n| span(&format!("span {n}"))).collect();
    let ids = spans.iter().map(|span| hex(&span.span_id)).collect();
    (request("shop", spans).encode_to_vec().into(), ids)
}

/// A request of one log record.
pub(crate) fn log_record(time_unix_nano: u64) -> Bytes {
    let record = LogRecord { time_unix_nano, ..LogRecord::default() };
    let scope_logs = vec![ScopeLogs { log_records: vec![record], ..ScopeLogs::default() }];
    let resource_logs = vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }];
    ExportLogsServiceRequest { resource_logs }.encode_to_vec().into()
}

/// Sends the same bytes to one address after the other until they are acknowledged, whatever happens to the nodes
/// meanwhile.
pub(crate) async fn send_until_acknowledged(
    http: &reqwest::Client,
    urls: &[impl AsRef<str>],
    body: Bytes,
) -> anyhow::Result<()> {
    let until = Instant::now() + DEADLINE;
    for url in urls.iter().cycle() {
        let sent = http
            .post(url.as_ref())
            .header("content-type", "application/x-protobuf")
            .timeout(Duration::from_secs(15))
            .body(body.clone())
            .send()
            .await;
        match sent {
            Ok(response) if response.status().is_success() => return Ok(()),
            Ok(response) if !matches!(response.status().as_u16(), 429 | 502..=504) => {
                bail!("{} is not retryable: {}", response.status(), response.text().await.unwrap_or_default())
            }
            _ if Instant::now() > until => bail!("not acknowledged in time"),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    bail!("no address to send to")
}

/// Sends `count` new spans in the same way; returns their ids.
pub(crate) async fn send_batch(
    http: &reqwest::Client,
    urls: &[impl AsRef<str>],
    count: usize,
) -> anyhow::Result<Vec<String>> {
    let (body, ids) = batch(count);
    send_until_acknowledged(http, urls, body).await?;
    Ok(ids)
}

/// Ids that are there more or less often than once, `(missing, doubled)`.
pub(crate) fn compare(acknowledged: &[String], found: &[String]) -> (Vec<String>, Vec<String>) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for id in found {
        *counts.entry(id).or_default() += 1;
    }
    let missing = acknowledged.iter().filter(|id| !counts.contains_key(id.as_str())).cloned().collect();
    let doubled = counts.iter().filter(|(_, count)| **count > 1).map(|(id, _)| (*id).to_owned()).collect();
    (missing, doubled)
}
