//! What a request says, read back from its bytes: the same elements that [`super::spans`] and [`super::rows::records`] put in.

use anyhow::{Context, bail, ensure};
use prost::Message;
use signaldb_proto::otlp::collector::logs::v1::ExportLogsServiceRequest;
use signaldb_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use signaldb_proto::otlp::common::v1::{AnyValue, any_value};
use signaldb_proto::otlp::logs::v1::ResourceLogs;

use crate::history::{LOG_RECORDS, SPANS};

/// Key and row of each element of a request for a table, given in hex; spans have no key.
pub(crate) fn elements(table: &str, request: &str) -> anyhow::Result<Vec<(String, String)>> {
    let request = bytes(request)?;
    match table {
        SPANS => spans(&request),
        LOG_RECORDS => log_records(&request),
        _ => bail!("nobody writes to {table}"),
    }
}

fn spans(request: &[u8]) -> anyhow::Result<Vec<(String, String)>> {
    let request = ExportTraceServiceRequest::decode(request)?;
    let scopes = request.resource_spans.iter().flat_map(|of_resource| &of_resource.scope_spans);
    let spans = scopes.flat_map(|of_scope| &of_scope.spans);
    Ok(spans.map(|span| (String::new(), hex(&span.span_id))).collect())
}

fn log_records(request: &[u8]) -> anyhow::Result<Vec<(String, String)>> {
    let request = ExportLogsServiceRequest::decode(request)?;
    let mut elements = Vec::new();
    for of_resource in &request.resource_logs {
        let key = key(of_resource).context("log records without a key")?;
        for record in of_resource.scope_logs.iter().flat_map(|of_scope| &of_scope.log_records) {
            let row = text(record.body.as_ref()).context("a log record without a text")?;
            elements.push((key.to_owned(), row.to_owned()));
        }
    }
    Ok(elements)
}

fn key(of_resource: &ResourceLogs) -> Option<&str> {
    let attributes = &of_resource.resource.as_ref()?.attributes;
    text(attributes.iter().find(|attribute| attribute.key == "service.name")?.value.as_ref())
}

fn text(value: Option<&AnyValue>) -> Option<&str> {
    match value?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> anyhow::Result<Vec<u8>> {
    ensure!(hex.is_ascii() && hex.len().is_multiple_of(2), "no bytes in hex");
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).context("no bytes in hex");
    (0..hex.len()).step_by(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::workload::rows::records;

    #[test]
    fn what_was_put_into_a_request_is_read_from_its_bytes() -> anyhow::Result<()> {
        let (body, ids) = super::super::spans(&Random::new(1), 3);
        let expected: Vec<(String, String)> = ids.into_iter().map(|id| (String::new(), id)).collect();
        assert_eq!(expected.len(), 3);
        assert_eq!(elements(SPANS, &hex(&body))?, expected);
        let body = records("log-1", &["x".to_owned(), "y".to_owned()]);
        let expected = ["x", "y"].map(|row| ("log-1".to_owned(), row.to_owned()));
        assert_eq!(elements(LOG_RECORDS, &hex(&body))?, expected);
        Ok(())
    }

    #[test]
    fn what_is_no_request_of_ours_is_an_error() {
        let body = hex(&records("log-1", &["x".to_owned()]));
        let cut = &body[..body.len() - 2];
        let nameless = hex(&ExportLogsServiceRequest { resource_logs: vec![ResourceLogs::default()] }.encode_to_vec());
        for (table, request) in [
            ("metrics_sum", body.as_str()),
            (LOG_RECORDS, cut),
            (LOG_RECORDS, nameless.as_str()),
            (SPANS, "0"),
            (SPANS, "zz"),
        ] {
            assert!(elements(table, request).is_err(), "{table} {request}");
        }
    }
}
