//! Rows that are applied and not yet known to be in Iceberg, per group and table.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use signaldb_model::TableId;
use signaldb_raft::{Append, Compression, TableState};
use signaldb_signals::decode::{DecodedTable, decode};
use signaldb_signals::request::{EXPANDED_BYTES_MAX, expanded_bytes};
use signaldb_signals::{Rows, SignalKind, SignalTable};
use tokio::sync::{Notify, watch};

/// Entries that a new leader reads back at a time, at most.
const LOAD_ENTRIES: usize = 1024;
/// Bytes of log that are read at a time.
const LOAD_BYTES: usize = 4 << 20;
/// Batches are merged while the result stays below this: many small exports must not become many small batches.
const MERGED_ROWS_MAX: usize = 2 << 10;

/// Memory of rows for each byte of the requests that they come in, roughly: a span of 400 bytes takes about 1 kB. What
/// is to be decoded counts as what it becomes: decoding must not be where the budget is found to be overdrawn.
pub(crate) const ROW_BYTES_A_REQUEST_BYTE: usize = 3;

/// Rows of one table with the log indexes that they came from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MemBatch {
    pub rows: Rows,
    /// Log index and end of its rows, both ascending.
    entries: Vec<(u64, usize)>,
    /// When the oldest of its rows was applied.
    since: Duration,
    /// Memory of the columns, bytes; counted once, for it is asked at every request.
    bytes: usize,
}

/// What one group holds of one table, at one moment.
#[derive(Debug, Clone, Default)]
pub struct TableView {
    /// Rows up to here are in Iceberg.
    pub watermark: u64,
    /// Rows up to here are not expected in the table; 0 unless it was released from quarantine.
    pub floor: u64,
    /// Newest metadata known, -1 and empty when the table is not known to exist.
    pub version: i64,
    pub location: String,
    /// Why its rows are put aside, while they are.
    pub quarantined: Option<String>,
    /// Rows of entries above the watermark, up to what was built.
    pub batches: Vec<MemBatch>,
}

/// The memtable of one group. Only the leader decodes; the others note where the rows are in the log, so that whoever
/// leads next can read them back.
#[derive(Debug)]
pub(crate) struct GroupMemtable {
    state: Mutex<State>,
    built: watch::Sender<Built>,
    pub(crate) work: Notify,
}

/// What can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Built {
    /// Changes whenever rows are dropped to be built again, here or elsewhere.
    epoch: u64,
    active: bool,
    /// Rows up to this index.
    index: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Rows are decoded here.
    active: bool,
    epoch: u64,
    /// Indexes of entries with unflushed rows, ascending; no repeats that the dedup window recognized.
    indexes: VecDeque<u64>,
    /// Of those, what is still to be read from the log.
    to_load: VecDeque<u64>,
    queue: VecDeque<(u64, Append)>,
    queued_bytes: usize,
    applied: u64,
    tables: BTreeMap<TableId, Table>,
}

#[derive(Debug, Default)]
struct Table {
    watermark: u64,
    last_append: u64,
    /// No row below this index is unflushed; `None` when none is. The watermark alone would say too little: it stays
    /// where the last flush of this table left it, however long ago that was.
    dirty_from: Option<u64>,
    floor: u64,
    version: i64,
    location: String,
    quarantined: Option<String>,
    batches: Vec<MemBatch>,
}

/// Work for one step of the builder.
enum Step {
    /// Entries to read from the log: indexes, ascending.
    Load(Vec<u64>),
    /// Entries as they were applied, and how far that reaches.
    Decode(VecDeque<(u64, Append)>, u64),
    Nothing,
}

/// What a flusher looks at to decide whether to cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableLoad {
    pub(crate) bytes: usize,
    pub(crate) since: Duration,
}

/// Where a new leader reads the rows that it did not decode.
pub(crate) trait LogReader {
    /// The appends from `from` to `to`, cut at about `bytes_max`, and the index to go on at. Blocking.
    fn read_appends(&self, from: u64, to: u64, bytes_max: usize) -> Result<(Vec<(u64, Append)>, u64), String>;

    /// The last index that the log no longer holds: what is purged is flushed.
    fn purged(&self) -> u64;
}

impl GroupMemtable {
    /// A lone voter is active from the start; otherwise see [`Self::activate`].
    pub(crate) fn new(active: bool) -> Self {
        let state = State { active, ..State::default() };
        let built = Built { active, ..Built::default() };
        Self { state: Mutex::new(state), built: watch::channel(built).0, work: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts over from a snapshot.
    pub(crate) fn restore(&self, applied: u64, tables: &BTreeMap<TableId, TableState>) {
        let table = |state: &TableState| Table {
            watermark: state.watermark,
            last_append: state.last_append,
            // A snapshot is taken at a cut whose rows are all in Iceberg.
            dirty_from: None,
            floor: state.floor,
            version: state.version,
            location: state.location.clone(),
            quarantined: state.quarantined.clone(),
            batches: Vec::new(),
        };
        let tables = tables.iter().map(|(id, state)| (id.clone(), table(state))).collect();
        let mut state = self.state();
        let (active, epoch) = (state.active, state.epoch + 1);
        *state = State { active, epoch, applied, tables, ..State::default() };
        self.built.send_replace(Built { epoch, active, index: applied });
    }

    /// This node leads: rows that are only in the log are read back, then everything is decoded as it comes.
    pub(crate) fn activate(&self) {
        let mut state = self.state();
        if state.active {
            return;
        }
        state.active = true;
        state.epoch += 1;
        state.to_load = state.indexes.clone();
        self.built.send_replace(Built { epoch: state.epoch, active: true, index: 0 });
        drop(state);
        self.work.notify_one();
    }

    /// Another node leads: the log has it all.
    pub(crate) fn deactivate(&self) {
        let mut state = self.state();
        if !state.active {
            return;
        }
        state.active = false;
        state.epoch += 1;
        state.to_load.clear();
        state.queue.clear();
        state.queued_bytes = 0;
        state.tables.values_mut().for_each(|table| table.batches.clear());
        self.built.send_replace(Built { epoch: state.epoch, active: false, index: 0 });
    }

    pub(crate) fn append(&self, index: u64, append: Append) {
        let mut state = self.state();
        state.indexes.push_back(index);
        for id in append.table_ids() {
            let table = state.tables.entry(id).or_insert_with(Table::unknown);
            table.last_append = index;
            table.dirty_from.get_or_insert(index);
        }
        if state.active {
            state.queued_bytes += append.raw_len as usize;
            state.queue.push_back((index, append));
        }
    }

    pub(crate) fn applied(&self, index: u64) {
        let mut state = self.state();
        state.applied = index;
        let active = state.active;
        drop(state);
        if active {
            self.work.notify_one();
        }
    }

    pub(crate) fn flushed(&self, id: &TableId, hi: u64, version: i64, location: &str) {
        let mut state = self.state();
        let table = state.tables.entry(id.clone()).or_insert_with(Table::unknown);
        table.advance(version, location);
        table.forget_upto(hi);
        state.forget_flushed();
    }

    /// The table was put in quarantine, with more of its rows, or released from it.
    pub(crate) fn quarantine(&self, id: &TableId, known: &TableState) {
        let mut state = self.state();
        let table = state.tables.entry(id.clone()).or_insert_with(Table::unknown);
        table.quarantined.clone_from(&known.quarantined);
        table.floor = known.floor;
        table.version = known.version;
        table.location.clone_from(&known.location);
        table.forget_upto(known.watermark);
        state.forget_flushed();
    }

    /// Tables in quarantine, with the reasons.
    pub(crate) fn quarantined(&self) -> Vec<(TableId, String)> {
        let state = self.state();
        let aside = |(id, table): (&TableId, &Table)| Some((id.clone(), table.quarantined.clone()?));
        state.tables.iter().filter_map(aside).collect()
    }

    pub(crate) fn advanced(&self, id: &TableId, version: i64, location: &str) {
        self.state().tables.entry(id.clone()).or_insert_with(Table::unknown).advance(version, location);
    }

    /// Decodes everything that is queued, in bulk. Call from one task only, on the CPU runtime.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn build(&self, now: Duration, log: Option<&dyn LogReader>) -> Result<(), String> {
        loop {
            let (epoch, step) = self.next_step();
            match step {
                Step::Nothing => return Ok(()),
                Step::Load(indexes) => {
                    let log = log.ok_or("rows are to be read from a log that is not open")?;
                    match load(log, &indexes) {
                        Ok(queue) => drop(self.push(epoch, decode_all(queue), now)),
                        // Flushed meanwhile, and purged from the log: only what is left counts.
                        Err(reason) => self.load_again(epoch, &indexes, log.purged()).then_some(()).ok_or(reason)?,
                    }
                }
                Step::Decode(queue, applied) => {
                    let bytes: usize = queue.iter().map(|(_, append)| append.raw_len as usize).sum();
                    if self.push(epoch, decode_all(queue), now) {
                        let mut state = self.state();
                        state.queued_bytes = state.queued_bytes.saturating_sub(bytes);
                        self.built.send_if_modified(|built| {
                            let newer = built.epoch == epoch && built.index < applied;
                            if newer {
                                built.index = applied;
                            }
                            newer
                        });
                        drop(state);
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Puts entries that are still needed back to be loaded; whether there is any progress in that.
    fn load_again(&self, epoch: u64, indexes: &[u64], purged: u64) -> bool {
        let mut state = self.state();
        if state.epoch != epoch {
            return true;
        }
        let gone = state.indexes.partition_point(|index| *index <= purged);
        state.indexes.drain(..gone);
        let needed_from = state.indexes.front().copied().unwrap_or(u64::MAX);
        let flushed = indexes.partition_point(|index| *index < needed_from);
        for index in indexes[flushed..].iter().rev() {
            state.to_load.push_front(*index);
        }
        flushed > 0
    }

    fn next_step(&self) -> (u64, Step) {
        let mut state = self.state();
        let step = if !state.active {
            Step::Nothing
        } else if state.to_load.is_empty() {
            Step::Decode(std::mem::take(&mut state.queue), state.applied)
        } else {
            let count = state.to_load.len().min(LOAD_ENTRIES);
            Step::Load(state.to_load.drain(..count).collect())
        };
        (state.epoch, step)
    }

    /// Adds rows unless they were dropped meanwhile; whether they still belong here.
    fn push(&self, epoch: u64, decoded: Vec<(TableId, DecodedTable)>, now: Duration) -> bool {
        let mut state = self.state();
        if state.epoch != epoch {
            return false;
        }
        for (id, table) in decoded {
            let batch = MemBatch::new(table.rows, table.requests, now);
            let table = state.tables.entry(id).or_insert_with(Table::unknown);
            if let Some(batch) = batch.above(table.watermark) {
                table.push(batch);
            }
        }
        true
    }

    /// Waits until rows up to `index` can be read; returns the epoch in which they can, `None` when another node leads.
    pub(crate) async fn wait_built(&self, index: u64) -> Option<u64> {
        let mut built = self.built.subscribe();
        let built = built.wait_for(|built| !built.active || built.index >= index).await;
        // The sender lives as long as self.
        built.ok().filter(|built| built.active).map(|built| built.epoch)
    }

    /// The table as of now; `None` when it never had rows, or when the epoch is over.
    pub(crate) fn view(&self, id: &TableId, epoch: u64) -> Option<TableView> {
        let state = self.state();
        state.tables.get(id).filter(|_| state.epoch == epoch).map(|table| TableView {
            watermark: table.watermark,
            floor: table.floor,
            version: table.version,
            location: table.location.clone(),
            quarantined: table.quarantined.clone(),
            batches: table.batches.clone(),
        })
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.state().epoch
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

    /// Bytes held, decoded or queued; what is queued counts as what it becomes.
    pub(crate) fn bytes(&self) -> usize {
        let state = self.state();
        let decoded: usize = state.tables.values().flat_map(|table| &table.batches).map(MemBatch::bytes).sum();
        decoded + state.queued_bytes.saturating_mul(ROW_BYTES_A_REQUEST_BYTE)
    }
}

impl State {
    /// Forgets entries whose rows are all in Iceberg.
    fn forget_flushed(&mut self) {
        let needed_from = self.tables.values().filter_map(|table| table.dirty_from).min().unwrap_or(u64::MAX);
        let gone = self.indexes.partition_point(|index| *index < needed_from);
        self.indexes.drain(..gone);
    }
}

/// Reads the entries at `indexes` back from the log; others in between have no rows, or were recognized as repeats.
fn load(log: &dyn LogReader, indexes: &[u64]) -> Result<VecDeque<(u64, Append)>, String> {
    let (Some(first), Some(last)) = (indexes.first(), indexes.last()) else { return Ok(VecDeque::new()) };
    let (mut at, mut queue) = (*first, VecDeque::new());
    while at <= *last {
        let (appends, next) = log.read_appends(at, *last, LOAD_BYTES)?;
        queue.extend(appends.into_iter().filter(|(index, _)| indexes.binary_search(index).is_ok()));
        at = next.max(at + 1);
    }
    Ok(queue)
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

    /// Rows up to `hi` are in files.
    fn forget_upto(&mut self, hi: u64) {
        let watermark = self.watermark.max(hi);
        self.watermark = watermark;
        let dirty = self.last_append > watermark;
        self.dirty_from = self.dirty_from.filter(|_| dirty).map(|from| from.max(watermark + 1));
        self.batches = self.batches.drain(..).filter_map(|batch| batch.above(watermark)).collect();
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
    fn new(rows: Rows, entries: Vec<(u64, usize)>, since: Duration) -> Self {
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
    use signaldb_model::{DatasetId, TenantId, UnixNanos};
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
        let table = GroupMemtable::new(true);
        let id = append(1).table_ids().next().expect("one table");
        for index in 1..=40 {
            table.append(index, append(2));
            table.applied(index);
            table.build(Duration::from_nanos(index), None).expect("builds");
        }
        let epoch = table.wait_built(40).await.expect("active");
        let view = table.view(&id, epoch).expect("exists");
        assert_eq!((rows(&view), view.version), (80, -1));
        assert!(view.batches.len() < 8, "small batches are merged: {}", view.batches.len());
        let kept: usize =
            view.batches.iter().filter_map(|batch| batch.above(30)?.upto(35)).map(|b| b.rows.num_rows()).sum();
        assert_eq!(kept, 10);
        assert_eq!(table.loads()[&id].since, Duration::from_nanos(1));
        table.flushed(&id, 33, 1, "v1");
        let view = table.view(&id, table.epoch()).expect("exists");
        assert_eq!((rows(&view), view.watermark, view.location.as_str()), (14, 33, "v1"));
        table.flushed(&id, 40, 2, "v2");
        assert!(table.loads().is_empty());
        assert_eq!(table.bytes(), 0);
    }

    #[tokio::test]
    async fn rows_at_or_below_the_watermark_are_not_built_again() {
        let table = GroupMemtable::new(true);
        let id = append(1).table_ids().next().expect("one table");
        table.flushed(&id, 5, 1, "v1");
        for index in 4..=7 {
            table.append(index, append(1));
        }
        table.applied(7);
        table.build(Duration::from_nanos(1), None).expect("builds");
        assert_eq!(rows(&table.view(&id, table.epoch()).expect("exists")), 2);
    }

    #[tokio::test]
    async fn a_table_that_was_clean_needs_only_its_own_rows() {
        let table = GroupMemtable::new(false);
        let busy = append(1).table_ids().next().expect("one table");
        let sparse = TableId { tenant: TenantId::new("sparse").expect("name"), ..busy.clone() };
        table.append(10, Append { tenant: sparse.tenant.clone(), ..append(1) });
        table.flushed(&sparse, 10, 1, "v1");
        for index in 11..=2000 {
            table.append(index, append(1));
        }
        table.append(2001, Append { tenant: sparse.tenant.clone(), ..append(1) });
        // The cut at 2000 is complete: everything up to it may be purged from the log.
        table.flushed(&busy, 2000, 1, "v1");
        assert_eq!(table.state().indexes, [2001]);
    }

    /// A log of one kind of append, index for index.
    struct Log;

    impl LogReader for Log {
        fn read_appends(&self, from: u64, to: u64, _bytes_max: usize) -> Result<(Vec<(u64, Append)>, u64), String> {
            if from <= 3 {
                return Err("purged".to_owned());
            }
            let upto = to.min(from + 2);
            Ok(((from..=upto).map(|index| (index, append(1))).collect(), upto + 1))
        }

        fn purged(&self) -> u64 {
            3
        }
    }

    #[tokio::test]
    async fn what_the_log_no_longer_holds_is_not_read_back() {
        let table = GroupMemtable::new(false);
        let id = append(1).table_ids().next().expect("one table");
        for index in [2, 3, 4, 5] {
            table.append(index, append(1));
            table.applied(index);
        }
        table.activate();
        table.build(Duration::from_nanos(1), Some(&Log)).expect("goes on with what is left");
        let epoch = table.wait_built(5).await.expect("active");
        assert_eq!(rows(&table.view(&id, epoch).expect("exists")), 2);
    }

    #[tokio::test]
    async fn a_new_leader_reads_back_what_is_not_flushed_and_no_repeats() {
        let table = GroupMemtable::new(false);
        let id = append(1).table_ids().next().expect("one table");
        // Entry 7 was a repeat: nobody told us of it.
        for index in [4, 5, 6, 8, 9] {
            table.append(index, append(1));
            table.applied(index);
        }
        table.build(Duration::from_nanos(1), None).expect("a follower decodes nothing");
        assert_eq!((table.bytes(), table.wait_built(1).await), (0, None));
        table.flushed(&id, 5, 1, "v1");
        table.activate();
        table.append(10, append(1));
        table.applied(10);
        table.build(Duration::from_nanos(1), Some(&Log)).expect("loads and decodes");
        let epoch = table.wait_built(10).await.expect("active");
        assert_eq!(rows(&table.view(&id, epoch).expect("exists")), 4, "6, 8, 9 and 10");
        table.deactivate();
        assert_eq!(table.bytes(), 0);
        assert!(table.view(&id, epoch).is_none(), "what was seen under one leadership is not mixed with another");
        table.activate();
        table.build(Duration::from_nanos(1), Some(&Log)).expect("loads");
        let epoch = table.wait_built(10).await.expect("active again");
        assert_eq!(rows(&table.view(&id, epoch).expect("exists")), 4);
        table.flushed(&id, 10, 2, "v2");
        table.deactivate();
        table.activate();
        table.build(Duration::from_nanos(1), None).expect("nothing is left to load");
    }
}
