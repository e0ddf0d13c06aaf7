//! What a group remembers of its log, as pure functions: the same commands give the same state on every replica.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use signaldb_model::mutation::{self, Mutation};
use signaldb_model::{TableId, UnixNanos};

use crate::command::{Append, Command, DecodeError, Decoder, Encoder};
use crate::types::Applied;

/// Entries of the dedup window of one group, at most; the oldest minute goes first.
pub const DEDUP_ENTRIES_MAX: usize = 256 << 10;

/// Cuts that may wait for their tables at the same time.
const CAPTURES_MAX: usize = 4;

/// Entries of one bucket, at most.
const BUCKET_ENTRIES_MAX: usize = DEDUP_ENTRIES_MAX / 16;

/// Identity of a request: tenant, dataset, kind and decompressed bytes, or the client's idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 16]);

/// How far one table is in Iceberg.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableState {
    /// Last log index whose rows are in Iceberg (W); 0 before the first flush.
    pub watermark: u64,
    /// Last log index that appended rows.
    pub last_append: u64,
    /// Newest known metadata version, -1 while the table is not known to exist.
    pub version: i64,
    pub location: String,
    /// Why its rows are put aside, while they are.
    pub quarantined: Option<String>,
    /// Rows up to here are not expected in the table: they were put aside, or are in one that it took the place of. 0
    /// unless it was released from quarantine.
    pub floor: u64,
}

/// State of one group as of `applied`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupState {
    /// Latest time that any command carried; never moves back.
    pub now: UnixNanos,
    pub dedup: DedupWindow,
    pub tables: BTreeMap<TableId, TableState>,
    /// JSON of each meta command, in order; only the meta group has any.
    pub meta: Vec<String>,
    /// The lives of the group after the first, in order.
    pub incarnations: Vec<Incarnation>,
}

/// A life of a group: it begins when the group goes on although its log may have lost entries.
///
/// The lost entries may be in tables, and new ones take their indexes: without the incarnation beside it, a table's
/// watermark would say that the new rows are already there (DESIGN section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incarnation {
    /// Random: two logs of one past that went on without each other must not agree. [`FIRST_INCARNATION`] is no such id.
    pub id: u64,
    /// Index of the command that began it.
    pub from: u64,
    /// Tables know of it.
    pub settled: bool,
}

/// What a group is before it ever lost anything.
pub const FIRST_INCARNATION: u64 = 1;

/// Digests of the last minutes in immutable buckets, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DedupWindow {
    /// By minute, and within a minute by [`BUCKET_ENTRIES_MAX`]: what is dropped first is always the oldest.
    buckets: BTreeMap<(u64, u32), HashMap<Digest, u64>>,
    entries: usize,
}

/// State at a cut, waiting for its tables to be committed.
#[derive(Debug, Clone)]
pub(crate) struct Capture {
    pub(crate) state: GroupState,
    open: BTreeSet<TableId>,
}

/// Captures by the index of their FlushCut.
#[derive(Debug, Clone, Default)]
pub(crate) struct Captures(BTreeMap<u64, Capture>);

impl GroupState {
    /// Applies one command at `index`. Deterministic; never fails: what cannot be applied changes nothing.
    pub(crate) fn apply(&mut self, index: u64, command: &Command) -> Applied {
        let mut applied = Applied { index, first_copy: None };
        match command {
            Command::Append(append) => applied.first_copy = self.apply_append(index, append),
            Command::FlushCut { at } => self.now = self.now.max(*at),
            Command::FlushCommitted { table, hi, version, location } => {
                let table = self.table(table);
                table.watermark = table.watermark.max(*hi);
                table.advance(*version, location);
            }
            Command::TableAdvanced { table, version, location } => self.table(table).advance(*version, location),
            Command::Meta(json) => self.meta.push(json.clone()),
            Command::BeginIncarnation { id } => self.begin(index, *id),
            Command::IncarnationSettled { id } => {
                let newest = self.incarnations.last_mut().filter(|incarnation| incarnation.id == *id);
                newest.into_iter().for_each(|incarnation| incarnation.settled = true);
            }
            Command::TableQuarantined { table, from, hi, reason } => {
                let table = self.table(table);
                // Somebody who does not know how far the table is may have put aside what it has.
                if table.watermark == *from && hi >= from {
                    table.watermark = *hi;
                    table.quarantined = Some(reason.clone());
                }
            }
            Command::TableReleased { table } => self.table(table).release(),
        }
        applied
    }

    fn begin(&mut self, index: u64, id: u64) {
        if !self.incarnations.iter().any(|known| known.id == id) {
            self.incarnations.push(Incarnation { id, from: index, settled: false });
        }
    }

    /// The incarnation that tables must name.
    pub fn incarnation(&self) -> u64 {
        self.incarnations.last().map_or(FIRST_INCARNATION, |incarnation| incarnation.id)
    }

    /// The incarnation that tables do not know of yet: until then no row can be read or flushed.
    pub fn unsettled(&self) -> Option<Incarnation> {
        self.incarnations.last().copied().filter(|incarnation| !incarnation.settled)
    }

    /// Returns the index of the first copy when the window holds the digest; then nothing changes.
    fn apply_append(&mut self, index: u64, append: &Append) -> Option<u64> {
        self.now = self.now.max(append.at);
        if let Some((digest, window)) = append.dedup.filter(|_| !mutation::active(Mutation::DedupOff)) {
            self.dedup.expire(self.now, Duration::from_secs(window.into()));
            if let Some(first) = self.dedup.get(&digest) {
                return Some(first);
            }
            self.dedup.insert(self.now, digest, index);
        }
        for table in append.table_ids() {
            self.table(&table).last_append = index;
        }
        None
    }

    fn table(&mut self, table: &TableId) -> &mut TableState {
        if !self.tables.contains_key(table) {
            self.tables.insert(table.clone(), TableState { version: -1, ..TableState::default() });
        }
        self.tables.get_mut(table).expect("inserted above")
    }

    /// Tables with rows that are not yet in Iceberg.
    pub fn dirty(&self) -> impl Iterator<Item = &TableId> {
        self.tables.iter().filter(|(_, state)| state.last_append > state.watermark).map(|(table, _)| table)
    }
}

impl TableState {
    fn release(&mut self) {
        if self.quarantined.take().is_some() {
            self.floor = self.watermark;
            // Whatever the catalog has now: an older version, or another table.
            self.version = -1;
            self.location.clear();
        }
    }

    fn advance(&mut self, version: i64, location: &str) {
        if version > self.version {
            self.version = version;
            location.clone_into(&mut self.location);
        }
    }
}

impl DedupWindow {
    pub fn get(&self, digest: &Digest) -> Option<u64> {
        self.buckets.values().rev().find_map(|bucket| bucket.get(digest)).copied()
    }

    pub fn len(&self) -> usize {
        self.entries
    }

    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    fn insert(&mut self, now: UnixNanos, digest: Digest, index: u64) {
        if self.entries >= DEDUP_ENTRIES_MAX
            && let Some((_, oldest)) = self.buckets.pop_first()
        {
            self.entries -= oldest.len();
            metrics::counter!("signaldb_dedup_window_shortened_total").increment(1);
        }
        let minute = minute(now);
        let newest = self.buckets.range((minute, 0)..=(minute, u32::MAX)).next_back();
        let part = newest.map_or(0, |((_, part), held)| part + u32::from(held.len() >= BUCKET_ENTRIES_MAX));
        if self.buckets.entry((minute, part)).or_default().insert(digest, index).is_none() {
            self.entries += 1;
        }
    }

    /// Drops the buckets that lie wholly outside the window.
    fn expire(&mut self, now: UnixNanos, window: Duration) {
        let oldest = minute(UnixNanos(now.0.saturating_sub(u64::try_from(window.as_nanos()).unwrap_or(u64::MAX))));
        while let Some(bucket) = self.buckets.first_entry()
            && bucket.key().0 < oldest
        {
            self.entries -= bucket.remove().len();
        }
    }
}

fn minute(at: UnixNanos) -> u64 {
    at.0 / 60_000_000_000
}

impl Captures {
    /// Follows `command`, which was just applied at `index`. Returns the newest capture whose tables are all committed,
    /// with its index; older ones are dropped with it.
    pub(crate) fn follow(&mut self, index: u64, command: &Command, state: &GroupState) -> Option<(u64, GroupState)> {
        match command {
            Command::FlushCut { .. } => {
                let open = state.dirty().cloned().collect();
                self.0.insert(index, Capture { state: state.clone(), open });
                // Each holds a whole dedup window. A cut that a broken table keeps open is overtaken by later ones.
                while self.0.len() > CAPTURES_MAX {
                    self.0.pop_first();
                }
            }
            Command::TableQuarantined { table, hi, .. } => {
                // A void one tells nothing about a cut.
                let now = state.tables.get(table).filter(|now| now.watermark >= *hi)?;
                for capture in self.0.values_mut() {
                    let Some(captured) = capture.state.tables.get_mut(table) else { continue };
                    if captured.last_append <= *hi {
                        *captured = TableState { last_append: captured.last_append, ..now.clone() };
                        capture.open.remove(table);
                    }
                }
            }
            Command::FlushCommitted { table, hi, .. } => {
                for (cut, capture) in &mut self.0 {
                    // A later cut is complete for the table as well when nothing was appended in between.
                    let last_append = capture.state.tables.get(table).map_or(0, |state| state.last_append);
                    if last_append <= *hi {
                        capture.state.apply(*cut, command);
                        capture.open.remove(table);
                    }
                }
            }
            _ => return None,
        }
        let committed = |capture: &Capture| capture.open.is_empty() || mutation::active(Mutation::PurgePastWatermark);
        let complete = self.0.iter().rev().find(|(_, capture)| committed(capture)).map(|(cut, _)| *cut)?;
        let later = self.0.split_off(&(complete + 1));
        let mut done = std::mem::replace(&mut self.0, later);
        done.remove(&complete).map(|capture| (complete, capture.state))
    }
}

/// Version of the snapshot encoding of a group that never lost anything.
const SNAPSHOT_FORMAT: u8 = 1;
/// The same with the incarnations at its end.
const SNAPSHOT_FORMAT_INCARNATIONS: u8 = 2;
/// The same with what was ever in quarantine at its end.
const SNAPSHOT_FORMAT_QUARANTINE: u8 = 3;

impl GroupState {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Encoder::default();
        let aside: Vec<_> =
            self.tables.iter().filter(|(_, state)| state.quarantined.is_some() || state.floor > 0).collect();
        let format = match (aside.is_empty(), self.incarnations.is_empty()) {
            (true, true) => SNAPSHOT_FORMAT,
            (true, false) => SNAPSHOT_FORMAT_INCARNATIONS,
            (false, _) => SNAPSHOT_FORMAT_QUARANTINE,
        };
        out.u8(format).u64(self.now.0).u32(self.tables.len() as u32);
        for (table, state) in &self.tables {
            out.table(table)
                .u64(state.watermark)
                .u64(state.last_append)
                .u64(state.version as u64)
                .text(&state.location);
        }
        out.u32(self.meta.len() as u32);
        for json in &self.meta {
            out.text(json);
        }
        out.u32(self.dedup.buckets.len() as u32);
        for ((minute, part), bucket) in &self.dedup.buckets {
            out.u64(*minute).u32(*part).u32(bucket.len() as u32);
            // In order, so that every replica writes the same bytes.
            let sorted: BTreeMap<_, _> = bucket.iter().collect();
            for (digest, index) in sorted {
                out.bytes(&digest.0).u64(*index);
            }
        }
        if format >= SNAPSHOT_FORMAT_INCARNATIONS {
            out.u32(self.incarnations.len() as u32);
            for incarnation in &self.incarnations {
                out.u64(incarnation.id).u64(incarnation.from).u8(incarnation.settled.into());
            }
        }
        if format >= SNAPSHOT_FORMAT_QUARANTINE {
            out.u32(aside.len() as u32);
            for (table, state) in aside {
                let reason = state.quarantined.as_deref();
                out.table(table).u64(state.floor).u8(reason.is_some().into()).text(reason.unwrap_or_default());
            }
        }
        out.0.freeze()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Decoder(bytes);
        let mut state = Self::default();
        let found = from.u8()?;
        if !(SNAPSHOT_FORMAT..=SNAPSHOT_FORMAT_QUARANTINE).contains(&found) {
            return Err(DecodeError::Format { what: "snapshot", found, supported: SNAPSHOT_FORMAT_QUARANTINE });
        }
        state.now = UnixNanos(from.u64()?);
        for _ in 0..from.u32()? {
            let table = from.table()?;
            let (watermark, last_append) = (from.u64()?, from.u64()?);
            let (version, location) = (from.u64()? as i64, from.text()?);
            let known = TableState { watermark, last_append, version, location, ..TableState::default() };
            state.tables.insert(table, known);
        }
        for _ in 0..from.u32()? {
            state.meta.push(from.text()?);
        }
        for _ in 0..from.u32()? {
            let bucket_key = (from.u64()?, from.u32()?);
            let mut bucket = HashMap::new();
            for _ in 0..from.u32()? {
                let digest: [u8; 16] = from.take(16)?.try_into().expect("sixteen bytes were taken");
                bucket.insert(Digest(digest), from.u64()?);
            }
            state.dedup.entries += bucket.len();
            state.dedup.buckets.insert(bucket_key, bucket);
        }
        if found >= SNAPSHOT_FORMAT_INCARNATIONS {
            for _ in 0..from.u32()? {
                let (id, begun, settled) = (from.u64()?, from.u64()?, from.u8()? != 0);
                state.incarnations.push(Incarnation { id, from: begun, settled });
            }
        }
        if found >= SNAPSHOT_FORMAT_QUARANTINE {
            for _ in 0..from.u32()? {
                let table = from.table()?;
                let (floor, quarantined, reason) = (from.u64()?, from.u8()? != 0, from.text()?);
                let known = state.table(&table);
                known.floor = floor;
                known.quarantined = quarantined.then_some(reason);
            }
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use signaldb_model::{DatasetId, TableCode, TenantId};

    use super::*;
    use crate::command::{Compression, TableStats};

    fn append(second: u64, digest: u8, table: u8) -> Command {
        Command::Append(Append {
            kind: 1,
            tenant: TenantId::new("t").expect("name"),
            dataset: DatasetId::new("d").expect("name"),
            at: UnixNanos(second * 1_000_000_000),
            dedup: Some((Digest([digest; 16]), 600)),
            tables: vec![TableStats {
                table: TableCode(table),
                rows: 1,
                time_min: UnixNanos(0),
                time_max: UnixNanos(0),
            }],
            compression: Compression::None,
            raw_len: 0,
            payload: Bytes::new(),
        })
    }

    fn table(code: u8) -> TableId {
        TableId {
            tenant: TenantId::new("t").expect("name"),
            dataset: DatasetId::new("d").expect("name"),
            code: TableCode(code),
        }
    }

    fn committed(code: u8, hi: u64) -> Command {
        Command::FlushCommitted { table: table(code), hi, version: hi as i64, location: format!("v{hi}") }
    }

    #[test]
    fn a_retry_in_the_window_returns_the_first_index_and_later_it_is_new() {
        let mut state = GroupState::default();
        assert_eq!(state.apply(5, &append(1000, 1, 1)).first_copy, None);
        assert_eq!(state.apply(6, &append(1599, 1, 1)).first_copy, Some(5));
        // The clock of a new leader may be behind: the window does not move back.
        assert_eq!(state.apply(7, &append(10, 1, 1)).first_copy, Some(5));
        assert_eq!(state.apply(8, &append(1700, 1, 1)).first_copy, None);
    }

    #[test]
    fn the_window_is_bounded_and_drops_the_oldest_minute() {
        let mut window = DedupWindow::default();
        for n in 0..DEDUP_ENTRIES_MAX as u64 + 1 {
            let mut digest = [0; 16];
            digest[..8].copy_from_slice(&n.to_le_bytes());
            window.insert(UnixNanos(n / 1000 * 60_000_000_000), Digest(digest), n);
        }
        assert!(window.len() <= DEDUP_ENTRIES_MAX);
        assert_eq!(window.get(&Digest([0; 16])), None);
    }

    #[test]
    fn a_capture_is_complete_when_every_table_of_its_cut_is_committed() {
        let mut state = GroupState::default();
        let mut captures = Captures::default();
        let mut step = |index: u64, command: Command| {
            state.apply(index, &command);
            captures.follow(index, &command, &state)
        };
        assert!(step(1, append(1, 1, 1)).is_none());
        assert!(step(2, append(1, 2, 2)).is_none());
        assert!(step(3, Command::FlushCut { at: UnixNanos(0) }).is_none());
        assert!(step(4, append(2, 3, 1)).is_none());
        assert!(step(5, committed(1, 3)).is_none());
        let (cut, captured) = step(6, committed(2, 3)).expect("complete");
        assert_eq!(cut, 3);
        assert_eq!(captured.tables[&table(1)].watermark, 3);
        assert_eq!(captured.tables[&table(1)].last_append, 1, "the append after the cut is not in the capture");
        assert_eq!(captured.dedup.len(), 2);
        assert_eq!(captured.dirty().count(), 0);
    }

    #[test]
    fn a_cut_without_rows_is_complete_at_once() {
        let mut state = GroupState::default();
        let cut = Command::FlushCut { at: UnixNanos(0) };
        state.apply(9, &cut);
        assert_eq!(Captures::default().follow(9, &cut, &state).map(|(index, _)| index), Some(9));
    }

    #[test]
    fn an_incarnation_begins_once_and_is_unsettled_until_its_tables_know() {
        let mut state = GroupState::default();
        assert_eq!((state.incarnation(), state.unsettled()), (FIRST_INCARNATION, None));
        state.apply(5, &Command::BeginIncarnation { id: 77 });
        state.apply(6, &Command::BeginIncarnation { id: 77 });
        assert_eq!(state.unsettled(), Some(Incarnation { id: 77, from: 5, settled: false }));
        state.apply(7, &Command::IncarnationSettled { id: 99 });
        assert!(state.unsettled().is_some(), "an answer of another life");
        state.apply(8, &Command::IncarnationSettled { id: 77 });
        assert_eq!((state.incarnation(), state.unsettled()), (77, None));
    }

    fn quarantined(code: u8, from: u64, hi: u64) -> Command {
        Command::TableQuarantined { table: table(code), from, hi, reason: "gone".into() }
    }

    #[test]
    fn a_quarantined_table_keeps_no_cut_open() {
        let mut state = GroupState::default();
        let mut captures = Captures::default();
        let mut step = |index: u64, command: Command| {
            state.apply(index, &command);
            captures.follow(index, &command, &state)
        };
        assert!(step(1, append(1, 1, 1)).is_none());
        assert!(step(2, append(1, 2, 2)).is_none());
        assert!(step(3, Command::FlushCut { at: UnixNanos(0) }).is_none());
        assert!(step(4, append(2, 3, 1)).is_none());
        assert!(step(5, committed(2, 3)).is_none());
        assert!(step(6, quarantined(1, 2, 3)).is_none(), "of somebody who knows another watermark");
        let (cut, captured) = step(7, quarantined(1, 0, 3)).expect("complete");
        let aside = &captured.tables[&table(1)];
        assert_eq!(
            (cut, aside.watermark, aside.last_append),
            (3, 3, 1),
            "the append after the cut is not in the capture"
        );
        assert_eq!(aside.quarantined.as_deref(), Some("gone"));
        assert_eq!(captured.dirty().count(), 0);
    }

    #[test]
    fn a_released_table_begins_anew_behind_what_was_put_aside() {
        let mut state = GroupState::default();
        state.apply(1, &append(1, 1, 1));
        state.apply(2, &committed(1, 1));
        state.apply(3, &Command::TableReleased { table: table(1) });
        assert_eq!(state.tables[&table(1)].version, 1, "nothing was in quarantine");
        state.apply(4, &append(1, 2, 1));
        state.apply(5, &quarantined(1, 1, 4));
        state.apply(6, &append(1, 3, 1));
        state.apply(7, &quarantined(1, 1, 6));
        let known = &state.tables[&table(1)];
        assert_eq!((known.watermark, known.version), (4, 1), "what is put aside twice counts once");
        assert_eq!(state.dirty().count(), 1);
        state.apply(8, &Command::TableReleased { table: table(1) });
        let known = TableState { watermark: 4, last_append: 6, version: -1, floor: 4, ..TableState::default() };
        assert_eq!(state.tables[&table(1)], known);
    }

    #[test]
    fn snapshots_hold_the_whole_state() {
        let mut state = GroupState::default();
        state.apply(1, &append(1, 1, 1));
        state.apply(2, &append(100, 2, 2));
        state.apply(3, &committed(1, 2));
        state.apply(4, &Command::Meta("{\"a\":1}".into()));
        assert_eq!(state.encode()[0], 1, "a build of format 1 reads what never lost anything");
        assert_eq!(GroupState::decode(&state.encode()), Ok(state.clone()));
        state.apply(5, &Command::BeginIncarnation { id: 77 });
        let bytes = state.encode();
        assert_eq!(bytes[0], 2);
        assert_eq!(GroupState::decode(&bytes), Ok(state.clone()));
        state.apply(6, &quarantined(1, 2, 5));
        state.apply(7, &quarantined(2, 0, 5));
        state.apply(8, &Command::TableReleased { table: table(2) });
        let bytes = state.encode();
        assert_eq!(bytes[0], 3);
        assert_eq!(GroupState::decode(&bytes), Ok(state));
        for len in 0..bytes.len() {
            assert!(GroupState::decode(&bytes[..len]).is_err(), "cut at {len}");
        }
    }
}
