//! One trace, written as it comes: nothing holds it as a whole.
//!
//! In protobuf the parts of a repeated field, and of a message that comes more than once, are one for whoever reads them.

use prost::Message;
use signaldb_proto::otlp::trace::v1::{ResourceSpans, TracesData};
use signaldb_proto::tempo;
use signaldb_query::traceql::TracePart;

use super::{answer, json};

/// Which answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// The trace alone.
    First,
    /// With what was read for it, and whether it is whole.
    Second,
}

/// Writes one answer, part by part.
#[derive(Debug)]
pub(super) struct Writer {
    version: Version,
    protobuf: bool,
    begun: bool,
}

impl Writer {
    pub(super) fn new(version: Version, protobuf: bool) -> Self {
        Self { version, protobuf, begun: false }
    }

    /// Some of the trace.
    pub(super) fn part(&mut self, spans: Vec<ResourceSpans>) -> Vec<u8> {
        if spans.is_empty() {
            return Vec::new();
        }
        if self.protobuf {
            let trace = TracesData { resource_spans: spans };
            return match self.version {
                Version::First => trace.encode_to_vec(),
                Version::Second => {
                    tempo::TraceByIdResponse { trace: Some(trace), ..Default::default() }.encode_to_vec()
                }
            };
        }
        let mut text = String::new();
        for one in &spans {
            text.push_str(match (self.begun, self.version) {
                (true, _) => ",",
                (false, Version::First) => "{\"batches\":[",
                (false, Version::Second) => "{\"trace\":{\"resourceSpans\":[",
            });
            self.begun = true;
            text.push_str(&json::resource_spans(one).to_string());
        }
        text.into_bytes()
    }

    /// The last part.
    pub(super) fn end(mut self, mut last: TracePart) -> Vec<u8> {
        let mut out = self.part(std::mem::take(&mut last.spans));
        let end = answer::trace_end(&last);
        match (self.protobuf, self.version) {
            (true, Version::First) => {}
            (true, Version::Second) => out.extend(end.encode_to_vec()),
            (false, Version::First) => out.extend_from_slice(if self.begun { "]}" } else { "{}" }.as_bytes()),
            (false, Version::Second) => {
                out.extend_from_slice(if self.begun { "]}," } else { "{\"trace\":{}," }.as_bytes());
                // An object that is never empty, without its opening brace.
                out.extend_from_slice(&json::trace_end(&end, self.begun).to_string().as_bytes()[1..]);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use signaldb_proto::otlp::trace::v1::{ScopeSpans, Span};
    use signaldb_query::traceql::Inspected;

    use super::*;

    fn spans(names: &[&str]) -> Vec<ResourceSpans> {
        let one = |name: &&str| {
            let spans = vec![Span { name: (*name).to_owned(), ..Span::default() }];
            let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
            ResourceSpans { scope_spans, ..ResourceSpans::default() }
        };
        names.iter().map(one).collect()
    }

    fn last(names: &[&str], cut: bool) -> TracePart {
        TracePart { spans: spans(names), cut, inspected: Inspected { bytes: 7, ..Inspected::default() } }
    }

    /// The parts, and then the last one.
    fn written(version: Version, protobuf: bool, parts: &[&[&str]], end: TracePart) -> Vec<u8> {
        let mut writer = Writer::new(version, protobuf);
        let mut out: Vec<u8> = parts.iter().flat_map(|names| writer.part(spans(names))).collect();
        out.extend(writer.end(end));
        out
    }

    fn read(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(bytes)))
    }

    #[test]
    fn parts_are_one_trace_in_json() {
        let one = |name: &str| json!({"scopeSpans": [{"spans": [{"name": name}]}]});
        let all = json!([one("a"), one("b"), one("c")]);
        let cases: &[&[&[&str]]] = &[&[&["a", "b", "c"]], &[&["a"], &["b", "c"]], &[&["a"], &["b"], &[], &["c"]]];
        for parts in cases {
            let first = written(Version::First, false, parts, last(&[], false));
            assert_eq!(read(&first), json!({"batches": all}));
            let second = written(Version::Second, false, parts, last(&[], false));
            let metrics = json!({"inspectedBytes": "7"});
            assert_eq!(read(&second), json!({"trace": {"resourceSpans": all}, "metrics": metrics}));
        }
        let cut = read(&written(Version::Second, false, &[&["a"]], last(&["b", "c"], true)));
        assert_eq!((&cut["trace"]["resourceSpans"], &cut["status"]), (&all, &json!("PARTIAL")));
        assert!(cut["message"].as_str().is_some_and(|message| message.contains("larger")), "{cut}");
        let none = written(Version::Second, false, &[], last(&[], false));
        assert_eq!(read(&none), json!({"trace": {}, "metrics": {}}));
    }

    #[test]
    fn parts_are_one_trace_in_protobuf() {
        let all = TracesData { resource_spans: spans(&["a", "b", "c"]) };
        let cases: &[&[&[&str]]] = &[&[&["a", "b"]], &[&["a"], &["b"]], &[]];
        for parts in cases {
            let known: usize = parts.iter().map(|names| names.len()).sum();
            let end = || last(&["a", "b", "c"][known..], true);
            let first = written(Version::First, true, parts, end());
            assert_eq!(TracesData::decode(first.as_slice()).expect("a trace"), all);
            let second = written(Version::Second, true, parts, end());
            let second = tempo::TraceByIdResponse::decode(second.as_slice()).expect("an answer");
            assert_eq!((second.trace.as_ref(), second.status), (Some(&all), 1));
            assert_eq!(second.metrics.map(|metrics| metrics.inspected_bytes), Some(7));
        }
    }
}
