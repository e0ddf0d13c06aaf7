//! Rows that are applied and not yet known to be in Iceberg, per group and table.
//!
//! Memory holds the oldest of them. While there is no room for more, because catalog or store are down for long, newer
//! entries stay in the log alone, and are read back, oldest first, as flushes make room.

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
/// Bytes of requests that are read back and decoded at a time: by so much memory may be overdrawn.
const LOAD_RAW_BYTES: usize = 1 << 20;
/// How often a flush looks whether others have made room for rows of its group.
const ROOM_POLL: Duration = Duration::from_millis(50);
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
    /// Further rows are in the log, and memory has no room for them now.
    paused: bool,
}

/// Why rows cannot be read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotBuilt {
    /// Another node leads the group.
    Moved,
    /// They are in the log alone until there is room for them.
    InLog,
}

/// An entry of the log with unflushed rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    index: u64,
    /// Of its payload in the log.
    log_bytes: u32,
    /// Of the request that it holds.
    raw_bytes: u32,
}

#[derive(Debug, Default)]
struct State {
    /// Rows are decoded here.
    active: bool,
    epoch: u64,
    /// By index, ascending; no repeats that the dedup window recognized.
    entries: VecDeque<Entry>,
    /// What they take in the log.
    log_bytes: usize,
    /// Of those, what is still to be read from the log: newer than everything in `queue`, and that than what is decoded.
    to_load: VecDeque<Entry>,
    queue: VecDeque<(u64, Append)>,
    /// Of requests that are queued or being decoded.
    queued_bytes: usize,
    /// Memory of all batches.
    decoded_bytes: usize,
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
    /// Entries to read from the log, ascending.
    Load(Vec<Entry>),
    /// Entries as they were applied, how far that reaches, and whether that is all there is.
    Decode(VecDeque<(u64, Append)>, u64, bool),
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
        self.built.send_replace(Built { epoch, active, index: applied, paused: false });
    }

    /// This node leads: rows that are only in the log are read back, then everything is decoded as it comes.
    pub(crate) fn activate(&self) {
        let mut state = self.state();
        if state.active {
            return;
        }
        state.active = true;
        state.epoch += 1;
        state.to_load = state.entries.clone();
        self.built.send_replace(Built { epoch: state.epoch, active: true, ..Built::default() });
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
        state.decoded_bytes = 0;
        state.tables.values_mut().for_each(|table| table.batches.clear());
        self.built.send_replace(Built { epoch: state.epoch, ..Built::default() });
    }

    /// Takes an entry that was applied. Without `room`, or while older ones wait in the log, it stays there for now.
    pub(crate) fn append(&self, index: u64, append: Append, room: bool) {
        let mut state = self.state();
        let log_bytes = u32::try_from(append.payload.len()).unwrap_or(u32::MAX);
        let entry = Entry { index, log_bytes, raw_bytes: append.raw_len };
        state.entries.push_back(entry);
        state.log_bytes += log_bytes as usize;
        for id in append.table_ids() {
            let table = state.tables.entry(id).or_insert_with(Table::unknown);
            table.last_append = index;
            table.dirty_from.get_or_insert(index);
        }
        if !state.active {
            return;
        }
        if room && state.to_load.is_empty() {
            state.queued_bytes += append.raw_len as usize;
            state.queue.push_back((index, append));
        } else {
            state.to_load.push_back(entry);
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
        state.count_decoded();
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
        state.count_decoded();
    }

    /// Why the rows of a table are put aside, while they are.
    pub(crate) fn quarantine_of(&self, id: &TableId) -> Option<String> {
        self.state().tables.get(id).and_then(|table| table.quarantined.clone())
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

    /// Decodes everything that is queued, in bulk, and while there is `room` what waits in the log. Call from one task
    /// only, on the CPU runtime. Without `log` what is there waits for a later call.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn build(
        &self,
        now: Duration,
        log: Option<&dyn LogReader>,
        room: &dyn Fn() -> bool,
    ) -> Result<(), String> {
        loop {
            let log = log.filter(|_| room());
            let (epoch, step) = self.next_step(log.is_some());
            match (step, log) {
                (Step::Load(entries), Some(log)) => {
                    let bytes: usize = entries.iter().map(|entry| entry.raw_bytes as usize).sum();
                    let last = entries.last().map_or(0, |entry| entry.index);
                    match load(log, &entries) {
                        Ok(queue) => self.push(epoch, decode_all(queue), now, bytes, last),
                        // Flushed meanwhile, and purged from the log: only what is left counts.
                        Err(reason) => self.load_again(epoch, &entries, log.purged()).then_some(()).ok_or(reason)?,
                    }
                }
                (Step::Decode(queue, upto, all), _) => {
                    let bytes: usize = queue.iter().map(|(_, append)| append.raw_len as usize).sum();
                    self.push(epoch, decode_all(queue), now, bytes, upto);
                    if all {
                        return Ok(());
                    }
                }
                (Step::Nothing | Step::Load(_), _) => return Ok(()),
            }
        }
    }

    /// Puts entries that are still needed back to be loaded; whether there is any progress in that.
    fn load_again(&self, epoch: u64, entries: &[Entry], purged: u64) -> bool {
        let mut state = self.state();
        if state.epoch != epoch {
            return true;
        }
        let bytes: usize = entries.iter().map(|entry| entry.raw_bytes as usize).sum();
        state.queued_bytes = state.queued_bytes.saturating_sub(bytes);
        state.forget_below(purged + 1);
        let needed_from = state.entries.front().map_or(u64::MAX, |entry| entry.index);
        let flushed = entries.partition_point(|entry| entry.index < needed_from);
        for entry in entries[flushed..].iter().rev() {
            state.to_load.push_front(*entry);
        }
        flushed > 0
    }

    fn next_step(&self, may_load: bool) -> (u64, Step) {
        let mut state = self.state();
        let step = if !state.active {
            Step::Nothing
        } else if !state.queue.is_empty() || state.to_load.is_empty() {
            let upto = state.to_load.front().map_or(state.applied, |entry| state.applied.min(entry.index - 1));
            Step::Decode(std::mem::take(&mut state.queue), upto, state.to_load.is_empty())
        } else if may_load {
            Step::Load(state.next_load())
        } else {
            Step::Nothing
        };
        let paused = matches!(step, Step::Nothing) && state.active;
        self.built.send_if_modified(|built| {
            let changed = built.epoch == state.epoch && built.paused != paused;
            if changed {
                built.paused = paused;
            }
            changed
        });
        (state.epoch, step)
    }

    /// Adds rows of `bytes` of requests, unless they were dropped meanwhile; all up to `upto` are there then.
    fn push(&self, epoch: u64, decoded: Vec<(TableId, DecodedTable)>, now: Duration, bytes: usize, upto: u64) {
        let mut state = self.state();
        if state.epoch != epoch {
            return;
        }
        for (id, table) in decoded {
            let batch = MemBatch::new(table.rows, table.requests, now);
            let table = state.tables.entry(id).or_insert_with(Table::unknown);
            if let Some(batch) = batch.above(table.watermark) {
                table.push(batch);
            }
        }
        state.queued_bytes = state.queued_bytes.saturating_sub(bytes);
        state.count_decoded();
        self.built.send_if_modified(|built| {
            let newer = built.epoch == epoch && built.index < upto;
            if newer {
                built.index = upto;
            }
            newer
        });
    }

    /// Waits until rows up to `index` can be read; returns the epoch in which they can.
    pub(crate) async fn wait_built(&self, index: u64) -> Result<u64, NotBuilt> {
        let mut built = self.built.subscribe();
        let built = built.wait_for(|built| !built.active || built.index >= index || built.paused).await;
        // The sender lives as long as self.
        match built.map(|built| *built) {
            Ok(built) if built.active && built.index >= index => Ok(built.epoch),
            Ok(built) if built.active => Err(NotBuilt::InLog),
            _ => Err(NotBuilt::Moved),
        }
    }

    /// Waits until rows can be flushed: all up to `hi`, or, when memory has no room for these, some. Returns the epoch,
    /// and the index up to which all rows are here.
    ///
    /// # Errors
    /// [`NotBuilt::Moved`].
    pub(crate) async fn wait_flushable(&self, hi: u64) -> Result<(u64, u64), NotBuilt> {
        let mut built = self.built.subscribe();
        loop {
            let now = built.wait_for(|built| !built.active || built.index >= hi || built.paused).await;
            let now = now.map(|built| *built).ok().filter(|built| built.active).ok_or(NotBuilt::Moved)?;
            if now.index >= hi {
                return Ok((now.epoch, hi));
            }
            if self.state().decoded_bytes > 0 {
                return Ok((now.epoch, now.index));
            }
            // Rows of other groups fill the memory, and are flushed.
            tokio::time::sleep(ROOM_POLL).await;
        }
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
        state.decoded_bytes + state.queued_bytes.saturating_mul(ROW_BYTES_A_REQUEST_BYTE)
    }

    /// What entries with unflushed rows take in the log.
    pub(crate) fn log_bytes(&self) -> usize {
        self.state().log_bytes
    }

    /// Memory that rows would take which are in the log alone; 0 where nothing is decoded.
    pub(crate) fn backlog_bytes(&self) -> usize {
        let state = self.state();
        let raw: usize = state.to_load.iter().map(|entry| entry.raw_bytes as usize).sum();
        raw.saturating_mul(ROW_BYTES_A_REQUEST_BYTE)
    }

    /// Whether rows wait in the log for room.
    pub(crate) fn has_backlog(&self) -> bool {
        !self.state().to_load.is_empty()
    }
}

impl State {
    /// Forgets entries whose rows are all in Iceberg.
    fn forget_flushed(&mut self) {
        let needed_from = self.tables.values().filter_map(|table| table.dirty_from).min().unwrap_or(u64::MAX);
        self.forget_below(needed_from);
    }

    fn forget_below(&mut self, index: u64) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.index < index) {
            self.log_bytes = self.log_bytes.saturating_sub(entry.log_bytes as usize);
        }
    }

    /// The oldest entries of the log that are to be decoded, a bounded amount.
    fn next_load(&mut self) -> Vec<Entry> {
        let mut bytes = 0;
        let fits = self.to_load.iter().take(LOAD_ENTRIES).take_while(|entry| {
            bytes += entry.raw_bytes as usize;
            bytes <= LOAD_RAW_BYTES
        });
        let count = fits.count().max(1);
        let entries: Vec<Entry> = self.to_load.drain(..count).collect();
        self.queued_bytes += entries.iter().map(|entry| entry.raw_bytes as usize).sum::<usize>();
        entries
    }

    /// Counted here, where rows come and go: it is asked at every request.
    fn count_decoded(&mut self) {
        self.decoded_bytes = self.tables.values().flat_map(|table| &table.batches).map(MemBatch::bytes).sum();
    }
}

/// Reads entries back from the log; others in between have no rows, or were recognized as repeats.
fn load(log: &dyn LogReader, entries: &[Entry]) -> Result<VecDeque<(u64, Append)>, String> {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(VecDeque::new()) };
    let (mut at, last, mut queue) = (first.index, last.index, VecDeque::new());
    while at <= last {
        let (appends, next) = log.read_appends(at, last, LOAD_BYTES)?;
        let wanted = |index: &u64| entries.binary_search_by_key(index, |entry| entry.index).is_ok();
        queue.extend(appends.into_iter().filter(|(index, _)| wanted(index)));
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

    const ROOM: &dyn Fn() -> bool = &|| true;
    const NO_ROOM: &dyn Fn() -> bool = &|| false;

    fn rows(view: &TableView) -> usize {
        view.batches.iter().map(|batch| batch.rows.num_rows()).sum()
    }

    #[tokio::test]
    async fn rows_can_be_read_up_to_the_built_index_and_go_when_flushed() {
        let table = GroupMemtable::new(true);
        let id = append(1).table_ids().next().expect("one table");
        for index in 1..=40 {
            table.append(index, append(2), true);
            table.applied(index);
            table.build(Duration::from_nanos(index), None, ROOM).expect("builds");
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
            table.append(index, append(1), true);
        }
        table.applied(7);
        table.build(Duration::from_nanos(1), None, ROOM).expect("builds");
        assert_eq!(rows(&table.view(&id, table.epoch()).expect("exists")), 2);
    }

    #[tokio::test]
    async fn a_table_that_was_clean_needs_only_its_own_rows() {
        let table = GroupMemtable::new(false);
        let busy = append(1).table_ids().next().expect("one table");
        let sparse = TableId { tenant: TenantId::new("sparse").expect("name"), ..busy.clone() };
        table.append(10, Append { tenant: sparse.tenant.clone(), ..append(1) }, true);
        table.flushed(&sparse, 10, 1, "v1");
        for index in 11..=2000 {
            table.append(index, append(1), true);
        }
        table.append(2001, Append { tenant: sparse.tenant.clone(), ..append(1) }, true);
        // The cut at 2000 is complete: everything up to it may be purged from the log.
        table.flushed(&busy, 2000, 1, "v1");
        let left: Vec<u64> = table.state().entries.iter().map(|entry| entry.index).collect();
        assert_eq!(left, [2001]);
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
            table.append(index, append(1), true);
            table.applied(index);
        }
        table.activate();
        table.build(Duration::from_nanos(1), Some(&Log), ROOM).expect("goes on with what is left");
        let epoch = table.wait_built(5).await.expect("active");
        assert_eq!(rows(&table.view(&id, epoch).expect("exists")), 2);
    }

    #[tokio::test]
    async fn a_new_leader_reads_back_what_is_not_flushed_and_no_repeats() {
        let table = GroupMemtable::new(false);
        let id = append(1).table_ids().next().expect("one table");
        // Entry 7 was a repeat: nobody told us of it.
        for index in [4, 5, 6, 8, 9] {
            table.append(index, append(1), true);
            table.applied(index);
        }
        table.build(Duration::from_nanos(1), None, ROOM).expect("a follower decodes nothing");
        assert_eq!((table.bytes(), table.wait_built(1).await), (0, Err(NotBuilt::Moved)));
        table.flushed(&id, 5, 1, "v1");
        table.activate();
        table.append(10, append(1), true);
        table.applied(10);
        table.build(Duration::from_nanos(1), Some(&Log), ROOM).expect("loads and decodes");
        let epoch = table.wait_built(10).await.expect("active");
        assert_eq!(rows(&table.view(&id, epoch).expect("exists")), 4, "6, 8, 9 and 10");
        table.deactivate();
        assert_eq!(table.bytes(), 0);
        assert!(table.view(&id, epoch).is_none(), "what was seen under one leadership is not mixed with another");
        table.activate();
        table.build(Duration::from_nanos(1), Some(&Log), ROOM).expect("loads");
        let epoch = table.wait_built(10).await.expect("active again");
        assert_eq!(rows(&table.view(&id, epoch).expect("exists")), 4);
        table.flushed(&id, 10, 2, "v2");
        table.deactivate();
        table.activate();
        table.build(Duration::from_nanos(1), None, ROOM).expect("nothing is left to load");
    }

    /// Entries 4 to 9 come while memory is full after entry 5.
    #[tokio::test]
    async fn rows_that_memory_has_no_room_for_are_flushed_in_steps() {
        let table = GroupMemtable::new(true);
        let id = append(1).table_ids().next().expect("one table");
        for index in 4..=9 {
            table.append(index, append(1), index <= 5);
            table.applied(index);
            table.build(Duration::from_nanos(index), Some(&Log), NO_ROOM).expect("builds");
        }
        assert_eq!(table.wait_built(5).await, Ok(table.epoch()));
        assert_eq!(table.wait_built(6).await, Err(NotBuilt::InLog), "a strong read does not wait for the store");
        let in_log = table.log_bytes();
        assert!(table.has_backlog() && in_log > 0);
        assert_eq!(table.wait_flushable(9).await, Ok((table.epoch(), 5)), "what is here goes first");
        table.flushed(&id, 5, 1, "v1");
        assert_eq!((table.bytes(), table.loads().len()), (0, 0));
        assert_eq!(table.log_bytes(), in_log / 3 * 2);
        table.append(10, append(1), true);
        table.applied(10);
        table.build(Duration::from_nanos(10), Some(&Log), ROOM).expect("reads back");
        assert_eq!(table.wait_flushable(9).await, Ok((table.epoch(), 9)));
        let view = table.view(&id, table.wait_built(10).await.expect("active")).expect("exists");
        assert_eq!(rows(&view), 5, "6 to 9 from the log, 10 behind them, each once");
        assert!(!table.has_backlog());
        table.flushed(&id, 10, 2, "v2");
        assert_eq!(table.log_bytes(), 0);
    }

    /// Entries 4 to 9 of a table in quarantine come while memory is full after entry 5.
    #[tokio::test]
    async fn rows_that_are_put_aside_make_room_for_those_in_the_log() {
        let table = GroupMemtable::new(true);
        let id = append(1).table_ids().next().expect("one table");
        for index in 4..=9 {
            table.append(index, append(1), index <= 5);
            table.applied(index);
            table.build(Duration::from_nanos(index), Some(&Log), NO_ROOM).expect("builds");
        }
        assert_eq!(table.wait_flushable(9).await, Ok((table.epoch(), 5)));
        let in_log = table.log_bytes();
        let aside = |watermark| TableState {
            watermark,
            last_append: 9,
            version: 1,
            quarantined: Some("gone".to_owned()),
            ..TableState::default()
        };
        // A step's range ends at the step's watermark: the rows behind it are not in its files.
        table.quarantine(&id, &aside(5));
        assert_eq!((table.bytes(), table.loads().len()), (0, 0));
        assert_eq!(table.log_bytes(), in_log / 3 * 2);
        assert_eq!(table.quarantine_of(&id).as_deref(), Some("gone"));
        table.build(Duration::from_nanos(10), Some(&Log), ROOM).expect("reads back");
        assert_eq!(table.wait_flushable(9).await, Ok((table.epoch(), 9)));
        let view = table.view(&id, table.epoch()).expect("exists");
        assert_eq!((rows(&view), view.watermark), (4, 5), "6 to 9");
        table.quarantine(&id, &aside(9));
        assert_eq!((table.bytes(), table.log_bytes()), (0, 0));
        assert!(!table.has_backlog());
    }

    #[tokio::test]
    async fn a_log_that_is_not_open_yet_is_read_later() {
        let table = GroupMemtable::new(true);
        table.append(4, append(1), false);
        table.applied(4);
        table.build(Duration::from_nanos(1), None, ROOM).expect("waits for the log");
        assert_eq!(table.wait_built(4).await, Err(NotBuilt::InLog));
        table.build(Duration::from_nanos(1), Some(&Log), ROOM).expect("reads it");
        table.wait_built(4).await.expect("active");
    }

    #[tokio::test]
    async fn what_is_read_back_at_a_time_is_bounded() {
        let table = GroupMemtable::new(true);
        let large = |index| (index, Append { raw_len: 3 << 20, ..append(1) });
        for (index, append) in (4..=9).map(large) {
            table.append(index, append, false);
        }
        table.applied(9);
        let (_, step) = table.next_step(true);
        let Step::Load(entries) = step else { panic!("there is something to load") };
        assert_eq!(entries.len(), 1, "one is more than enough");
        assert_eq!(table.bytes(), ROW_BYTES_A_REQUEST_BYTE * (3 << 20), "what is being read counts");
        assert_eq!(table.backlog_bytes(), 5 * ROW_BYTES_A_REQUEST_BYTE * (3 << 20));
    }
}
