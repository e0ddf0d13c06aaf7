//! What was promised: the invariants of a simulation. Everything here is told at the moment it happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use signaldb_lake::Lake;
use signaldb_model::{GroupId, Position, TableId};
use signaldb_raft::{Append, ApplySink, GroupState, TableState};

use crate::world::{World, digest_of};

/// Group and index of an entry.
type Place = (u32, u64);

/// What is known of one replica in one life of its process.
#[derive(Debug, Default)]
struct Replica {
    applied: u64,
    /// Rows that it was given since `applied`.
    given: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Book {
    /// Digest of the rows of every entry that some replica applied.
    committed: BTreeMap<Place, u64>,
    /// Where the rows are.
    places: BTreeMap<u64, Place>,
    replicas: BTreeMap<(u64, u32), Replica>,
    leaders: BTreeMap<(u32, u64), u64>,
    /// By table, rows that a client was told are there, with their index, and those that may be.
    acknowledged: BTreeMap<TableId, BTreeMap<String, u64>>,
    attempted: BTreeMap<TableId, BTreeSet<String>>,
    /// By group, the last index that a client was told of.
    told: BTreeMap<u32, u64>,
}

/// Keeps the books of all nodes. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    book: Arc<Mutex<Book>>,
    world: World,
}

impl Ledger {
    pub(crate) fn new(world: World) -> Self {
        Self { book: Arc::default(), world }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One leader in each term.
    pub(crate) fn leads(&self, node: u64, group: u32, term: u64) {
        let other = *self.book().leaders.entry((group, term)).or_insert(node);
        if other != node {
            self.world.violate(format!("nodes {other} and {node} both lead group {group} in term {term}"));
        }
    }

    /// A client is about to write these rows.
    pub(crate) fn attempts(&self, table: &TableId, rows: &[String]) {
        self.book().attempted.entry(table.clone()).or_default().extend(rows.iter().cloned());
    }

    /// A client was told that its rows are written.
    pub(crate) fn acknowledged(&self, table: &TableId, rows: &[String], payload: &[u8], position: Position) {
        let place = (position.group.0, position.index);
        let mut book = self.book();
        let known = book.acknowledged.entry(table.clone()).or_default();
        known.extend(rows.iter().map(|row| (row.clone(), position.index)));
        let told = book.told.entry(place.0).or_default();
        *told = (*told).max(place.1);
        let found = book.committed.get(&place).copied();
        drop(book);
        if found != Some(digest_of(payload)) {
            self.world.violate(format!("a write was acknowledged at {position}, and is not what was applied there"));
        }
    }

    /// What a strong read that begins now must see.
    pub(crate) fn promised(&self, table: &TableId) -> BTreeSet<String> {
        self.promised_upto(table, u64::MAX)
    }

    /// What a read must see that asks for an acknowledged index.
    pub(crate) fn promised_upto(&self, table: &TableId, index: u64) -> BTreeSet<String> {
        let book = self.book();
        let rows = book.acknowledged.get(table).into_iter().flatten();
        rows.filter(|(_, at)| **at <= index).map(|(row, _)| row.clone()).collect()
    }

    /// The last index of the table that a client was told of.
    pub(crate) fn told_of(&self, table: &TableId) -> Option<u64> {
        self.book().acknowledged.get(table)?.values().copied().max()
    }

    /// The index that a strong read of the group that begins now must be at, at least.
    pub(crate) fn told(&self, group: u32) -> u64 {
        self.book().told.get(&group).copied().unwrap_or(0)
    }

    /// A read of a table that was promised some of them came to these rows.
    pub(crate) fn read(&self, who: &str, table: &TableId, promised: &BTreeSet<String>, rows: &[String]) {
        let distinct: BTreeSet<&String> = rows.iter().collect();
        let missing: Vec<&String> = promised.iter().filter(|row| !distinct.contains(row)).collect();
        let doubled = rows.len() - distinct.len();
        let book = self.book();
        let attempted = book.attempted.get(table);
        let strange: Vec<&&String> =
            distinct.iter().filter(|row| attempted.is_none_or(|known| !known.contains(**row))).collect();
        let (count, strange) = (strange.len(), strange.first().map(|row| (**row).clone()));
        drop(book);
        if missing.is_empty() && doubled == 0 && strange.is_none() {
            return;
        }
        self.world.violate(format!(
            "{who} of {table}: {} of {} acknowledged rows missing ({:?}), {doubled} doubled, {count} that nobody wrote ({:?})",
            missing.len(),
            promised.len(),
            missing.first(),
            strange,
        ));
    }

    pub(crate) fn rows(&self) -> (usize, usize) {
        let book = self.book();
        let acknowledged = book.acknowledged.values().map(BTreeMap::len).sum();
        (acknowledged, book.attempted.values().map(BTreeSet::len).sum())
    }

    fn restored(&self, node: u64, group: u32, applied: u64) {
        let replica = Replica { applied, given: BTreeSet::new() };
        self.book().replicas.insert((node, group), replica);
        self.world.note(format_args!("restored {node} {group}:{applied}"));
    }

    /// Committed entries never change, and none is there twice.
    fn appended(&self, node: u64, group: u32, index: u64, append: &Append) {
        let (place, digest) = ((group, index), digest_of(&append.payload));
        self.world.note(format_args!("append {node} {group}:{index} {digest:016x}"));
        let mut book = self.book();
        let before = *book.committed.entry(place).or_insert(digest);
        let first = *book.places.entry(digest).or_insert(place);
        book.replicas.entry((node, group)).or_default().given.insert(index);
        drop(book);
        if before != digest {
            self.world.violate(format!("entry {group}:{index} is another one on node {node} than it was"));
        }
        if first != place {
            self.world.violate(format!("the rows at {}:{} are at {group}:{index} again", first.0, first.1));
        }
    }

    /// Committed entries never vanish.
    fn applied(&self, node: u64, group: u32, index: u64) {
        let mut guard = self.book();
        let Book { committed, replicas, .. } = &mut *guard;
        let replica = replicas.entry((node, group)).or_default();
        let since = replica.applied;
        let lost = committed.range((group, since + 1)..=(group, index.max(since + 1)));
        let lost = lost.map(|((_, at), _)| *at).find(|at| *at <= index && !replica.given.contains(at));
        replica.applied = index;
        replica.given.clear();
        drop(guard);
        // The first entry of a group, its membership, is at 0, as is what a group without a snapshot begins with.
        if index <= since && index != 0 {
            self.world.violate(format!("node {node} applied {group}:{index} after {group}:{since}"));
        }
        if let Some(lost) = lost {
            self.world.violate(format!("entry {group}:{lost} was committed, and node {node} does not have it"));
        }
    }

    /// Nothing is flushed that was not applied.
    fn flushed(&self, node: u64, group: u32, table: &TableId, hi: u64) {
        self.world.note(format_args!("flushed {node} {group} {table} {hi}"));
        let applied = self.book().replicas.get(&(node, group)).map_or(0, |replica| replica.applied);
        if hi > applied {
            self.world.violate(format!("rows of {table} up to {group}:{hi} are flushed before they are applied"));
        }
    }
}

/// Tells the lake of a node and the ledger.
pub(crate) struct Sink {
    pub(crate) node: u64,
    pub(crate) lake: Lake,
    pub(crate) ledger: Ledger,
}

impl ApplySink for Sink {
    fn restored(&self, group: GroupId, applied: u64, state: &GroupState) {
        self.ledger.restored(self.node, group.0, applied);
        self.lake.restored(group, applied, state);
    }

    fn appended(&self, group: GroupId, index: u64, append: Append) {
        self.ledger.appended(self.node, group.0, index, &append);
        self.lake.appended(group, index, append);
    }

    fn flushed(&self, group: GroupId, table: &TableId, hi: u64, version: i64, location: &str) {
        self.ledger.flushed(self.node, group.0, table, hi);
        self.lake.flushed(group, table, hi, version, location);
    }

    fn advanced(&self, group: GroupId, table: &TableId, version: i64, location: &str) {
        self.lake.advanced(group, table, version, location);
    }

    fn quarantine(&self, group: GroupId, table: &TableId, state: &TableState) {
        self.ledger.world.violate(format!("table {table} is in quarantine: {:?}", state.quarantined));
        self.lake.quarantine(group, table, state);
    }

    fn meta(&self, _json: &str) {}

    fn applied(&self, group: GroupId, index: u64) {
        self.ledger.applied(self.node, group.0, index);
        self.lake.applied(group, index);
    }
}
