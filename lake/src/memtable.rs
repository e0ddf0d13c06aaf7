//! Rows that are applied and not yet known to be in Iceberg, per group and table.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use signaldb_model::{TableId, UnixNanos};
use signaldb_raft::{Append, Compression, TableState};
use signaldb_signals::decode::{DecodedTable, decode};
use signaldb_signals::request::{EXPANDED_BYTES_MAX, expanded_bytes};
use signaldb_signals::{Rows, SignalKind, SignalTable};
use tokio::sync::{Notify, watch};

/// Batches are merged while the result stays below this: many small exports must not become many small batches.
const MERGED_ROWS_MAX: usize = 2 << 10;

/// Rows of one table with the log indexes that they came from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MemBatch {
    pub rows: Rows,
    /// Log index and end of its rows, both ascending.
    entries: Vec<(u64, usize)>,
    /// When the oldest of its rows was applied.
    since: UnixNanos,
    /// Memory of the columns, bytes; counted once, for it is asked at every request.
    bytes: usize,
}

/// What one group holds of one table, at one moment.
#[derive(Debug, Clone, Default)]
pub struct TableView {
    /// Rows up to here are in Iceberg.
    pub watermark: u64,
    /// Newest metadata known, -1 and empty when the table is not known to exist.
    pub version: i64,
    pub location: String,
    /// Rows of entries above the watermark, up to what was built.
    pub batches: Vec<MemBatch>,
}

/// The memtable of one group.
#[derive(Debug)]
pub(crate) struct GroupMemtable {
    state: Mutex<State>,
    /// Rows up to this index can be read.
    built: watch::Sender<u64>,
    pub(crate) work: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<(u64, Append)>,
    queued_bytes: usize,
    applied: u64,
    tables: BTreeMap<TableId, Table>,
}

#[derive(Debug, Default)]
struct Table {
    watermark: u64,
    version: i64,
    location: String,
    batches: Vec<MemBatch>,
}

/// What a flusher looks at to decide whether to cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableLoad {
    pub(crate) bytes: usize,
    pub(crate) since: UnixNanos,
}

impl GroupMemtable {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), built: watch::channel(0).0, work: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts over from a snapshot.
    pub(crate) fn restore(&self, applied: u64, tables: &BTreeMap<TableId, TableState>) {
        let table = |state: &TableState| Table {
            watermark: state.watermark,
            version: state.version,
            location: state.location.clone(),
            batches: Vec::new(),
        };
        let tables = tables.iter().map(|(id, state)| (id.clone(), table(state))).collect();
        *self.state() = State { applied, tables, ..State::default() };
        self.built.send_replace(applied);
    }

    pub(crate) fn append(&self, index: u64, append: Append) {
        let mut state = self.state();
        state.queued_bytes += append.raw_len as usize;
        state.queue.push_back((index, append));
    }

    pub(crate) fn applied(&self, index: u64) {
        self.state().applied = index;
        self.work.notify_one();
    }

    pub(crate) fn flushed(&self, id: &TableId, hi: u64, version: i64, location: &str) {
        let mut state = self.state();
        let table = state.tables.entry(id.clone()).or_insert_with(Table::unknown);
        table.watermark = table.watermark.max(hi);
        table.advance(version, location);
        let watermark = table.watermark;
        table.batches = table.batches.drain(..).filter_map(|batch| batch.above(watermark)).collect();
    }

    pub(crate) fn advanced(&self, id: &TableId, version: i64, location: &str) {
        self.state().tables.entry(id.clone()).or_insert_with(Table::unknown).advance(version, location);
    }

    /// Decodes everything that is queued, in bulk. Call from one task only, on the CPU runtime.
    pub(crate) fn build(&self, now: UnixNanos) {
        let (queue, applied) = {
            let mut state = self.state();
            (std::mem::take(&mut state.queue), state.applied)
        };
        let bytes: usize = queue.iter().map(|(_, append)| append.raw_len as usize).sum();
        let decoded = decode_all(queue);
        let mut state = self.state();
        state.queued_bytes -= bytes;
        for (id, table) in decoded {
            let entries = table.requests;
            let batch = MemBatch::new(table.rows, entries, now);
            let table = state.tables.entry(id).or_insert_with(Table::unknown);
            if let Some(batch) = batch.above(table.watermark) {
                table.push(batch);
            }
        }
        drop(state);
        self.built.send_if_modified(|built| std::mem::replace(built, applied) != applied);
    }

    /// Waits until rows up to `index` can be read.
    pub(crate) async fn wait_built(&self, index: u64) {
        let mut built = self.built.subscribe();
        // The sender lives as long as self.
        let _ = built.wait_for(|built| *built >= index).await;
    }

    pub(crate) fn view(&self, id: &TableId) -> Option<TableView> {
        let state = self.state();
        state.tables.get(id).map(|table| TableView {
            watermark: table.watermark,
            version: table.version,
            location: table.location.clone(),
            batches: table.batches.clone(),
        })
    }

    /// Tables with unflushed rows.
    pub(crate) fn loads(&self) -> BTreeMap<TableId, TableLoad> {
        let state = self.state();
        let load = |table: &Table| {
            let since = table.batches.iter().map(|batch| batch.since).min()?;
            let bytes = table.batches.iter().map(MemBatch::bytes).sum();
            Some(TableLoad { bytes, since })
        };
        state.tables.iter().filter_map(|(id, table)| Some((id.clone(), load(table)?))).collect()
    }

    /// Bytes held, decoded or queued.
    pub(crate) fn bytes(&self) -> usize {
        let state = self.state();
        let decoded: usize = state.tables.values().flat_map(|table| &table.batches).map(MemBatch::bytes).sum();
        decoded + state.queued_bytes
    }
}

impl Table {
    fn unknown() -> Self {
        Self { version: -1, ..Self::default() }
    }

    fn advance(&mut self, version: i64, location: &str) {
        if version > self.version {
            self.version = version;
            location.clone_into(&mut self.location);
        }
    }

    /// Adds a batch and merges neighbours of like size, so that each row is copied a logarithmic number of times.
    fn push(&mut self, batch: MemBatch) {
        self.batches.push(batch);
        while let [.., before, last] = self.batches.as_slice() {
            let (rows_before, rows) = (before.rows.num_rows(), last.rows.num_rows());
            if rows_before > 2 * rows || rows_before + rows > MERGED_ROWS_MAX {
                break;
            }
            let Some(merged) = before.merge(last) else { break };
            self.batches.truncate(self.batches.len() - 2);
            self.batches.push(merged);
        }
    }
}

impl MemBatch {
    fn new(rows: Rows, entries: Vec<(u64, usize)>, since: UnixNanos) -> Self {
        let bytes = rows.memory_bytes();
        Self { rows, entries, since, bytes }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn last_index(&self) -> u64 {
        self.entries.last().map_or(0, |(index, _)| *index)
    }

    fn merge(&self, next: &Self) -> Option<Self> {
        let rows = Rows::concat(&[&self.rows, &next.rows]).ok()??;
        let shift = self.rows.num_rows();
        let shifted = next.entries.iter().map(|(index, end)| (*index, end + shift));
        let entries = self.entries.iter().copied().chain(shifted).collect();
        Some(Self::new(rows, entries, self.since.min(next.since)))
    }

    /// The rows of entries above `index`; `None` when there are none.
    pub fn above(&self, index: u64) -> Option<Self> {
        let skipped = self.entries.partition_point(|(entry, _)| *entry <= index);
        if skipped == 0 {
            return Some(self.clone());
        }
        let start = self.entries[skipped - 1].1;
        self.cut(start, self.rows.num_rows(), skipped..self.entries.len())
    }

    /// The rows of entries up to and including `index`.
    pub fn upto(&self, index: u64) -> Option<Self> {
        let kept = self.entries.partition_point(|(entry, _)| *entry <= index);
        let end = kept.checked_sub(1).map(|last| self.entries[last].1)?;
        self.cut(0, end, 0..kept)
    }

    fn cut(&self, start: usize, end: usize, entries: std::ops::Range<usize>) -> Option<Self> {
        let entries: Vec<_> = self.entries[entries].iter().map(|(index, end)| (*index, end - start)).collect();
        // A slice keeps the whole columns alive.
        let rows = || self.rows.slice(start, end - start);
        (end > start).then(|| Self { rows: rows(), entries, since: self.since, bytes: self.bytes })
    }
}

/// Decodes a run of entries, all of one tenant, dataset and kind at once.
fn decode_all(queue: VecDeque<(u64, Append)>) -> Vec<(TableId, DecodedTable)> {
    /// Log index and request.
    type Requests = Vec<(u64, Vec<u8>)>;
    let mut groups: BTreeMap<(TableId, u8), Requests> = BTreeMap::new();
    for (index, append) in queue {
        let Some(id) = append.table_ids().next() else { continue };
        let id = TableId { code: signaldb_model::TableCode(0), ..id };
        match decompress(&append) {
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

fn decompress(append: &Append) -> Option<Vec<u8>> {
    match append.compression {
        Compression::None => Some(append.payload.to_vec()),
        Compression::Lz4 => lz4_flex::block::decompress(&append.payload, append.raw_len as usize).ok(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use prost::Message;
    use signaldb_model::{DatasetId, TenantId};
    use signaldb_raft::TableStats;

    use super::*;

    fn append(spans: usize) -> Append {
        let scope = ScopeSpans { spans: vec![Span::default(); spans], ..ScopeSpans::default() };
        let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
        let body = ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec();
        Append {
            kind: SignalKind::Traces as u8,
            tenant: TenantId::new("t").expect("name"),
            dataset: DatasetId::new("d").expect("name"),
            at: UnixNanos(0),
            dedup: None,
            tables: vec![TableStats {
                table: SignalTable::Traces.code(),
                rows: spans as u32,
                time_min: UnixNanos(0),
                time_max: UnixNanos(0),
            }],
            compression: Compression::Lz4,
            raw_len: body.len() as u32,
            payload: Bytes::from(lz4_flex::block::compress(&body)),
        }
    }

    fn rows(view: &TableView) -> usize {
        view.batches.iter().map(|batch| batch.rows.num_rows()).sum()
    }

    #[tokio::test]
    async fn rows_can_be_read_up_to_the_built_index_and_go_when_flushed() {
        let table = GroupMemtable::new();
        let id = append(1).table_ids().next().expect("one table");
        for index in 1..=40 {
            table.append(index, append(2));
            table.applied(index);
            table.build(UnixNanos(index));
        }
        table.wait_built(40).await;
        let view = table.view(&id).expect("exists");
        assert_eq!((rows(&view), view.version), (80, -1));
        assert!(view.batches.len() < 8, "small batches are merged: {}", view.batches.len());
        let kept: usize =
            view.batches.iter().filter_map(|batch| batch.above(30)?.upto(35)).map(|b| b.rows.num_rows()).sum();
        assert_eq!(kept, 10);
        assert_eq!(table.loads()[&id].since, UnixNanos(1));
        table.flushed(&id, 33, 1, "v1");
        let view = table.view(&id).expect("exists");
        assert_eq!((rows(&view), view.watermark, view.location.as_str()), (14, 33, "v1"));
        table.flushed(&id, 40, 2, "v2");
        assert!(table.loads().is_empty());
        assert_eq!(table.bytes(), 0);
    }

    #[tokio::test]
    async fn rows_at_or_below_the_watermark_are_not_built_again() {
        let table = GroupMemtable::new();
        let id = append(1).table_ids().next().expect("one table");
        table.flushed(&id, 5, 1, "v1");
        for index in 4..=7 {
            table.append(index, append(1));
        }
        table.applied(7);
        table.build(UnixNanos(1));
        assert_eq!(rows(&table.view(&id).expect("exists")), 2);
    }
}
