//! A trace by its id, as OTLP, in parts: what has been read goes out before the rest is read.

use std::collections::{BTreeSet, HashMap};

use arrow::array::RecordBatch;
use prost::Message;
use signaldb_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans};
use signaldb_signals::{SignalTable, encode, schema};

use super::bytes::bytes_of;
use super::scan::{self, Asked, Reader, Window, of_traces};
use super::search::Inspected;
use crate::engine::{Answers, Progress, QueryEngine};
use crate::error::QueryError;
use crate::functions::hex;

/// Protobuf of one part, about: a trace that has no more comes as one, its spans grouped by resource and scope.
const PART_BYTES: usize = 256 << 10;
/// Rows that are decoded at once: each comes with a resource of its own.
const ROWS: usize = 256;
/// What a span takes in memory for each byte of its protobuf, about.
const DECODED: usize = 4;
/// Parts that wait or are being written, and the one that grows.
const PARTS_HELD: usize = 4;

/// Some of a trace; the last part, which may have no spans, says how it ended.
#[derive(Debug, Default)]
pub struct TracePart {
    /// The first part has some, unless there is no such trace.
    pub spans: Vec<ResourceSpans>,
    /// There is more than what was asked for.
    pub cut: bool,
    /// What was read until then.
    pub inspected: Inspected,
}

impl QueryEngine {
    /// The spans of a trace, up to `bytes_max` of protobuf if that is given. A window says where to look; spans a day around
    /// it belong to the trace as well.
    ///
    /// # Errors
    /// They come as the answer: those of [`QueryEngine::run`].
    pub fn trace_by_id(
        &self,
        asked: Asked,
        id: [u8; 16],
        window: Window,
        bytes_max: Option<usize>,
    ) -> Result<Answers<TracePart>, QueryError> {
        let bytes_max = bytes_max.unwrap_or(usize::MAX);
        let text = format!("trace {}", hex(&id));
        scan::start(self, asked, text, move |reader, parts| read(reader, id, window, bytes_max, parts))
    }
}

async fn read(
    mut reader: Reader,
    id: [u8; 16],
    window: Window,
    bytes_max: usize,
    parts: Progress<TracePart>,
) -> Result<TracePart, QueryError> {
    let columns: BTreeSet<&'static str> =
        schema::of(SignalTable::Traces).columns.iter().map(|column| column.name.as_str()).collect();
    let held = reader.memory("a trace");
    let mut spans = reader.spans(&columns, of_traces(&[id], window.spread())).await?;
    let (mut part, mut sent, mut largest) = (Merged::default(), 0, 0);
    while let Some(batch) = reader.next(&mut spans).await? {
        let bytes = bytes_of(&batch);
        for rows in slices(&batch, bytes) {
            largest = largest.max(part.bytes + bytes_of(&rows));
            held.try_resize(bytes + largest * DECODED * PARTS_HELD)?;
            for one in encode::resource_spans(&rows) {
                if sent + part.bytes + one.encoded_len() > bytes_max {
                    let spans = part.resources;
                    return Ok(TracePart { spans, cut: true, inspected: reader.inspected() });
                }
                part.add(one);
            }
            if part.bytes >= PART_BYTES {
                let full = std::mem::take(&mut part);
                sent += full.bytes;
                let (spans, inspected) = (full.resources, Inspected { so_far: true, ..reader.inspected() });
                parts.part(TracePart { spans, cut: false, inspected }).await?;
            }
        }
    }
    if sent + part.bytes > 0 {
        reader.note_traces(1);
    }
    Ok(TracePart { spans: part.resources, cut: false, inspected: reader.inspected() })
}

/// The batch in pieces that are about as large as a part at most.
fn slices(batch: &RecordBatch, bytes: usize) -> impl Iterator<Item = RecordBatch> + '_ {
    let rows = (batch.num_rows() * PART_BYTES).checked_div(bytes).unwrap_or(ROWS).clamp(1, ROWS);
    (0..batch.num_rows()).step_by(rows).map(move |at| batch.slice(at, rows.min(batch.num_rows() - at)))
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
    use std::sync::Arc;

    use arrow::array::StringArray;
    use arrow::datatypes::{DataType, Field, Schema};
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

    #[test]
    fn pieces_of_a_batch_are_no_larger_than_a_part_and_all_of_it() {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Utf8, false)]));
        let batch = |rows: usize| {
            let texts = StringArray::from_iter_values((0..rows).map(|row| row.to_string()));
            RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(texts)]).expect("a batch")
        };
        let sizes = |rows: usize, bytes: usize| -> Vec<usize> {
            slices(&batch(rows), bytes).map(|slice| slice.num_rows()).collect()
        };
        assert_eq!(sizes(600, 600), [256, 256, 88]);
        assert_eq!(sizes(5, 5 * PART_BYTES / 2), [2, 2, 1]);
        assert_eq!(sizes(2, 100 * PART_BYTES), [1, 1], "a row is not cut");
        assert_eq!(sizes(3, 0), [3]);
        assert_eq!(sizes(0, 0), Vec::<usize>::new());
    }
}
