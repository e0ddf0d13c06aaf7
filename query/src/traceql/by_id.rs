//! A trace by its id, as OTLP.

use std::collections::{BTreeSet, HashMap};

use prost::Message;
use signaldb_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, TracesData};
use signaldb_signals::{SignalTable, encode, schema};

use super::scan::{Asked, Reader, Window, of_traces};
use super::search::Inspected;
use crate::engine::QueryEngine;
use crate::error::QueryError;

/// A trace, or the part of it that fits.
#[derive(Debug, Default)]
pub struct FoundById {
    /// Without spans when there is no such trace.
    pub trace: TracesData,
    /// There is more than `bytes_max`.
    pub cut: bool,
    pub inspected: Inspected,
}

impl QueryEngine {
    /// The spans of a trace, grouped by resource and scope, up to `bytes_max` of protobuf. A window says where to look;
    /// spans a day around it belong to the trace as well.
    ///
    /// # Errors
    /// As for [`QueryEngine::run`].
    pub async fn trace_by_id(
        &self,
        asked: Asked,
        id: [u8; 16],
        window: Window,
        bytes_max: usize,
    ) -> Result<FoundById, QueryError> {
        let engine = self.clone();
        self.beside(asked.allowance, async move { read(Reader::new(engine, asked), id, window, bytes_max).await }).await
    }
}

async fn read(mut reader: Reader, id: [u8; 16], window: Window, bytes_max: usize) -> Result<FoundById, QueryError> {
    let columns: BTreeSet<&'static str> =
        schema::of(SignalTable::Traces).columns.iter().map(|column| column.name.as_str()).collect();
    let mut spans = reader.spans(&columns, of_traces(&[id], window.spread())).await?;
    let (mut merged, mut cut) = (Merged::default(), false);
    while let Some(batch) = spans.next().await {
        let batch = batch?;
        reader.note(&batch);
        for part in encode::resource_spans(&batch) {
            merged.add(part);
            if merged.bytes > bytes_max {
                cut = true;
                break;
            }
        }
        if cut {
            break;
        }
    }
    let inspected = Inspected {
        traces: u64::from(!merged.resources.is_empty()),
        spans: reader.inspected_spans,
        bytes: reader.inspected_bytes,
        missing_groups: reader.missing,
    };
    Ok(FoundById { trace: TracesData { resource_spans: merged.resources }, cut, inspected })
}

/// Spans under the resource and the scope that they share with others.
#[derive(Debug, Default)]
struct Merged {
    resources: Vec<ResourceSpans>,
    /// By the bytes of the resource, and of resource and scope.
    places: HashMap<Vec<u8>, usize>,
    scopes: HashMap<(usize, Vec<u8>), usize>,
    bytes: usize,
}

impl Merged {
    fn add(&mut self, part: ResourceSpans) {
        let ResourceSpans { resource, scope_spans, schema_url } = part;
        let head = ResourceSpans { resource, scope_spans: Vec::new(), schema_url };
        let key = head.encode_to_vec();
        let place = match self.places.get(&key) {
            Some(place) => *place,
            None => {
                self.bytes += key.len();
                self.places.insert(key, self.resources.len());
                self.resources.push(head);
                self.resources.len() - 1
            }
        };
        for ScopeSpans { scope, spans, schema_url } in scope_spans {
            let head = ScopeSpans { scope, spans: Vec::new(), schema_url };
            let key = (place, head.encode_to_vec());
            let scopes = &mut self.resources[place].scope_spans;
            let scope = match self.scopes.get(&key) {
                Some(scope) => *scope,
                None => {
                    self.bytes += key.1.len();
                    self.scopes.insert(key, scopes.len());
                    scopes.push(head);
                    scopes.len() - 1
                }
            };
            self.bytes += spans.iter().map(Message::encoded_len).sum::<usize>();
            scopes[scope].spans.extend(spans);
        }
    }
}

#[cfg(test)]
mod tests {
    use signaldb_proto::otlp::common::v1::InstrumentationScope;
    use signaldb_proto::otlp::trace::v1::Span;

    use super::*;

    #[test]
    fn spans_share_their_resource_and_scope() {
        let part = |url: &str, scope: &str, name: &str| {
            let scope = Some(InstrumentationScope { name: scope.to_owned(), ..Default::default() });
            let spans = vec![Span { name: name.to_owned(), ..Span::default() }];
            let scope_spans = vec![ScopeSpans { scope, spans, ..ScopeSpans::default() }];
            ResourceSpans { scope_spans, schema_url: url.to_owned(), ..ResourceSpans::default() }
        };
        let mut merged = Merged::default();
        for (url, scope, name) in [("a", "x", "1"), ("b", "x", "2"), ("a", "y", "3"), ("a", "x", "4")] {
            merged.add(part(url, scope, name));
        }
        let names = |spans: &ScopeSpans| spans.spans.iter().map(|span| span.name.clone()).collect::<Vec<_>>();
        let shape: Vec<(String, Vec<Vec<String>>)> = merged
            .resources
            .iter()
            .map(|one| (one.schema_url.clone(), one.scope_spans.iter().map(names).collect()))
            .collect();
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let expected =
            [("a".to_owned(), vec![owned(&["1", "4"]), owned(&["3"])]), ("b".to_owned(), vec![owned(&["2"])])];
        assert_eq!(shape, expected);
        assert!(merged.bytes > 0);
    }
}
