//! Entries of the log to rows, many at a time.

use std::collections::{BTreeMap, VecDeque};

use signaldb_model::TableId;
use signaldb_raft::{Append, Compression};
use signaldb_signals::decode::{DecodedTable, decode};
use signaldb_signals::request::{EXPANDED_BYTES_MAX, expanded_bytes};
use signaldb_signals::{SignalKind, SignalTable};

/// Decodes a run of entries, all of one tenant, dataset and kind at once.
pub(super) fn decode_all(queue: VecDeque<(u64, Append)>) -> Vec<(TableId, DecodedTable)> {
    /// Log index and request.
    type Requests = Vec<(u64, Vec<u8>)>;
    let mut groups: BTreeMap<(TableId, u8), Requests> = BTreeMap::new();
    for (index, append) in queue {
        let Some(id) = append.table_ids().next() else { continue };
        let id = TableId { code: signaldb_model::TableCode(0), ..id };
        match request_of(&append) {
            Some(payload) => groups.entry((id, append.kind)).or_default().push((index, payload)),
            // Checked before it was proposed and by the log's checksums since.
            None => tracing::error!(index, "a log entry does not decompress; its rows are left out"),
        }
    }
    let mut out = Vec::new();
    for ((id, kind), payloads) in groups {
        let Some(kind) = SignalKind::from_code(kind) else {
            tracing::error!(kind, "a log entry has a kind of a newer version; its rows are left out");
            continue;
        };
        let mut rest = payloads.as_slice();
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(chunk_len(kind, rest));
            for table in decode(kind, chunk.iter().map(|(index, payload)| (*index, payload.as_slice()))) {
                out.push((TableId { code: SignalTable::code(table.table), ..id.clone() }, table));
            }
            rest = later;
        }
    }
    out
}

/// Requests that are decoded into one batch: a column's texts must stay well below 2 GiB.
fn chunk_len(kind: SignalKind, payloads: &[(u64, Vec<u8>)]) -> usize {
    let mut bytes = 0;
    let fits = payloads.iter().take_while(|(_, payload)| {
        bytes += expanded_bytes(kind, payload) + payload.len() as u64;
        bytes <= EXPANDED_BYTES_MAX
    });
    fits.count().max(1)
}

/// The request of an entry, as its client sent it; of one beyond the size of an entry, the part that the entry holds. `None` if
/// it does not decompress.
pub fn request_of(append: &Append) -> Option<Vec<u8>> {
    match append.compression {
        Compression::None => Some(append.payload.to_vec()),
        Compression::Lz4 => lz4_flex::block::decompress(&append.payload, append.raw_len as usize).ok(),
    }
}
