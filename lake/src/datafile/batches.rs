//! What is sorted together: rows of a flush in batches of bounded size, each of which becomes one data file a day.

use signaldb_signals::Rows;

use crate::config::BatchConfig;

/// Memory of one batch at most, whatever is configured: no column of it comes near the 2 GiB that Arrow's offsets can
/// address.
const BYTES_MAX: usize = 512 << 20;

impl BatchConfig {
    /// Bounded by what can be sorted together, and by nothing else.
    pub(crate) const WHOLE: Self = Self { rows_max: usize::MAX, bytes_max: BYTES_MAX };
}

/// The rows of `parts`, in order. A part that does not fit is cut.
pub(super) fn batches(parts: &[Rows], limit: BatchConfig) -> Vec<Vec<Rows>> {
    let (rows_max, bytes_max) = (limit.rows_max.max(1), limit.bytes_max.min(BYTES_MAX));
    let mut batches: Vec<Vec<Rows>> = Vec::new();
    let (mut rows_left, mut bytes_left) = (0, 0);
    for part in parts {
        let row_bytes = part.memory_bytes().div_ceil(part.num_rows().max(1)).max(1);
        let mut at = 0;
        while at < part.num_rows() {
            if rows_left.min(bytes_left / row_bytes) == 0 {
                batches.push(Vec::new());
                (rows_left, bytes_left) = (rows_max, bytes_max);
            }
            // A row that is larger than a batch is one.
            let count = rows_left.min((bytes_left / row_bytes).max(1)).min(part.num_rows() - at);
            if let Some(batch) = batches.last_mut() {
                batch.push(part.slice(at, count));
            }
            rows_left -= count;
            bytes_left = bytes_left.saturating_sub(count * row_bytes);
            at += count;
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use prost::Message;
    use signaldb_signals::SignalKind;
    use signaldb_signals::decode::decode;

    use super::*;

    fn spans(count: usize) -> Rows {
        let scope = ScopeSpans { spans: vec![Span::default(); count], ..ScopeSpans::default() };
        let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
        let body = ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec();
        decode(SignalKind::Traces, [(1, body.as_slice())]).remove(0).rows
    }

    fn counts(batches: &[Vec<Rows>]) -> Vec<Vec<usize>> {
        batches.iter().map(|batch| batch.iter().map(Rows::num_rows).collect()).collect()
    }

    #[test]
    fn batches_have_no_more_rows_than_they_may() {
        let parts = [spans(3), spans(1), spans(7)];
        let cut = |rows_max| counts(&batches(&parts, BatchConfig { rows_max, ..BatchConfig::WHOLE }));
        assert_eq!(cut(usize::MAX), [[3, 1, 7]]);
        assert_eq!(cut(4), [vec![3, 1], vec![4], vec![3]]);
        assert_eq!(cut(5), [vec![3, 1, 1], vec![5], vec![1]]);
        assert_eq!(cut(1).len(), 11);
        assert_eq!(counts(&batches(&[], BatchConfig::WHOLE)), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn batches_take_no_more_memory_than_they_may_and_hold_at_least_a_row() {
        let parts = [spans(100), spans(100)];
        let row_bytes = parts[0].memory_bytes().div_ceil(100);
        let cut = |bytes_max| counts(&batches(&parts, BatchConfig { bytes_max, ..BatchConfig::WHOLE }));
        assert_eq!(cut(row_bytes * 150), [vec![100, 50], vec![50]]);
        assert_eq!(cut(row_bytes * 60), [vec![60], vec![40, 20], vec![60], vec![20]]);
        assert_eq!(cut(1).len(), 200);
    }
}
