//! Rows that are applied and not yet known to be in Iceberg, per group and table.
//!
//! Memory holds the oldest of them. While there is no room for more, because catalog or store are down for long, newer
//! entries stay in the log alone, and are read back, oldest first, as flushes make room.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use signaldb_model::TableId;
use signaldb_raft::{Append, TableState};
use signaldb_signals::decode::DecodedTable;
use tokio::sync::{Notify, watch};

mod batch;
mod decode;
mod table;

pub use batch::MemBatch;
pub use decode::request_of;

use decode::decode_all;
use table::Table;

/// Entries that a new leader reads back at a time, at most.
const LOAD_ENTRIES: usize = 1024;
/// Bytes of log that are read at a time.
const LOAD_BYTES: usize = 4 << 20;
/// Bytes of requests that are read back and decoded at a time: by so much memory may be overdrawn.
const LOAD_RAW_BYTES: usize = 1 << 20;
/// How often a flush looks whether others have made room for rows of its group, at least.
const ROOM_POLL: Duration = Duration::from_millis(50);

/// Memory of rows for each byte of the requests that they come in, roughly: a span of 400 bytes takes about 1 kB. What
/// is to be decoded counts as what it becomes: decoding must not be where the budget is found to be overdrawn.
pub(crate) const ROW_BYTES_A_REQUEST_BYTE: usize = 3;

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

/// Where rows are read that were not decoded as they came; tests put a log in its place that fails on time.
pub(crate) trait LogReader: std::fmt::Debug + Send + Sync {
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
            // Rows are being read back, or rows of other groups fill the memory, and are flushed.
            drop(tokio::time::timeout(ROOM_POLL, built.changed()).await);
        }
    }

    /// The table as of now; `None` when it never had rows, or when the epoch is over.
    pub(crate) fn view(&self, id: &TableId, epoch: u64) -> Option<TableView> {
        let state = self.state();
        state.tables.get(id).filter(|_| state.epoch == epoch).map(Table::view)
    }

    /// The table as of now, while rows of its group wait in the log, and whether none of its own up to `index` does: tables
    /// that are quiet need not suffer for the busy ones. `None` when nothing is decoded here.
    pub(crate) fn view_beside_backlog(&self, id: &TableId, index: u64) -> Option<(Option<TableView>, bool)> {
        let state = self.state();
        let built = self.built.borrow().index;
        let table = state.tables.get(id);
        let here = table.is_none_or(|table| table.last_append <= built.max(table.watermark));
        // Of what is not applied yet nobody knows whose rows it has.
        let whole = here && state.applied >= index;
        state.active.then(|| (table.map(Table::view), whole))
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

#[cfg(test)]
mod tests;
