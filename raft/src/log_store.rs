//! openraft's log storage on the shared log engine.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, StreamExt};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use signaldb_model::GroupId;
use signaldb_wal::{AppendEntry, Durability, Wal, WalError};
use tokio::sync::oneshot;

use crate::codec;
use crate::group::SyncFallback;
use crate::recovery::{AckAfter, Acks, Trust};
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// Bytes of entries that one read returns at most: bounds an append message and what apply holds at once.
const READ_BYTES_MAX: usize = 4 << 20;

/// The log of one group. Clones read the same log.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    wal: Arc<Wal>,
    group: GroupId,
    /// When an append counts as flushed, and what must be on disk first. Locked over the decision and the queueing.
    acks: Arc<Mutex<Acks>>,
    /// Asks every append to wait for its sync for a while: what a power loss could take stays small.
    fallback: SyncFallback,
    appended: Arc<AtomicU64>,
}

impl LogStore {
    pub(crate) fn new(wal: Arc<Wal>, group: GroupId, acks: Acks, fallback: SyncFallback) -> Self {
        Self { wal, group, acks: Arc::new(Mutex::new(acks)), fallback, appended: Arc::default() }
    }

    /// Bytes of all entries since the start.
    pub(crate) fn appended_bytes(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    fn acks(&self) -> MutexGuard<'_, Acks> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn trust(&self) -> Trust {
        self.acks().trust()
    }

    /// The gate opened: the record that protected the group is replaced by one that lets it vote.
    pub(crate) fn left_recovery(&self) {
        let mut acks = self.acks();
        if let Some(trust) = acks.left_recovery() {
            self.wal.save_trust(self.group.0, trust.encode().into(), Durability::Written, None);
        }
    }

    /// When everything is on disk, says so on disk: a crash from here on costs no recovery.
    pub(crate) fn note_idle(&self) {
        let mut acks = self.acks();
        if self.wal.synced_index(self.group.0) < self.last_index() {
            return;
        }
        if let Some(trust) = acks.idle() {
            self.wal.save_trust(self.group.0, trust.encode().into(), Durability::Written, None);
        }
    }

    /// The newest entry that was known to be committed; it may be lost.
    pub(crate) fn saved_committed(&self) -> io::Result<Option<LogId>> {
        self.wal.group_state(self.group.0).committed.map(|id| codec::decode_log_id(&id)).transpose()
    }

    /// The last index that the log holds, or held.
    pub(crate) fn last_index(&self) -> u64 {
        let state = self.wal.group_state(self.group.0);
        state.range.map_or(state.purged.map_or(0, |(index, _)| index), |(_, last)| last)
    }

    /// The persisted vote.
    pub(crate) fn vote(&self) -> io::Result<Option<Vote>> {
        self.wal.group_state(self.group.0).vote.map(|vote| codec::decode_vote(&vote)).transpose()
    }

    fn last_log_id(&self) -> io::Result<Option<LogId>> {
        let state = self.wal.group_state(self.group.0);
        let Some((_, last)) = state.range else {
            return state.purged.map(|(_, id)| codec::decode_log_id(&id)).transpose();
        };
        let term = self.term_at(last)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Some(LogId::new_term_index(term, last)))
    }

    /// Term of the entry at `index`; `None` when the log does not hold it (any more).
    pub(crate) fn term_at(&self, index: u64) -> io::Result<Option<u64>> {
        match self.wal.read(self.group.0, index..=index, 0) {
            Err(WalError::Missing { .. }) => Ok(None),
            Err(error) => Err(to_io(error)),
            Ok(entries) => entries.first().map(|(_, bytes)| codec::entry_term(bytes)).transpose(),
        }
    }

    /// Calls `done` once the log is on disk up to `index`, and hurries the sync.
    pub(crate) fn when_synced(&self, index: u64, done: signaldb_wal::Callback) {
        self.wal.when_synced(self.group.0, index, done);
    }

    /// Entries from `from` on, below `to`; none when the first is not held (any more): a replication task may ask for
    /// what a truncation or a purge has just taken away, and an error would stop the group for good.
    fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        if from >= to {
            return Ok(Vec::new());
        }
        match self.wal.read(self.group.0, from..=to - 1, bytes_max) {
            Err(WalError::Missing { .. }) => Ok(Vec::new()),
            Err(error) => Err(to_io(error)),
            Ok(entries) => entries.iter().map(|(index, bytes)| codec::decode_entry(*index, bytes)).collect(),
        }
    }

    pub(crate) fn purged_index(&self) -> u64 {
        self.wal.group_state(self.group.0).purged.map_or(0, |(index, _)| index)
    }

    /// The term of the vote on disk.
    pub(crate) fn saved_term(&self) -> u64 {
        let vote = self.wal.group_state(self.group.0).vote;
        vote.and_then(|vote| codec::decode_vote(&vote).ok()).map_or(0, |vote| vote.leader_id.term)
    }

    /// The last index that is on disk here.
    pub(crate) fn synced_index(&self) -> u64 {
        self.wal.synced_index(self.group.0)
    }

    /// Entries from `from` to `to` inclusive, cut at about `bytes_max`.
    pub(crate) fn read_all(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let entries = self.wal.read(self.group.0, from..=to, bytes_max).map_err(to_io)?;
        entries.iter().map(|(index, bytes)| codec::decode_entry(*index, bytes)).collect()
    }
}

/// Half-open bounds of a range.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(at) => *at,
        Bound::Excluded(at) => at + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(at) => at + 1,
        Bound::Excluded(at) => *at,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

fn to_io(error: WalError) -> io::Error {
    io::Error::other(error)
}

/// Calls the log engine and waits for it to say that the request is durable.
async fn wait(act: impl FnOnce(signaldb_wal::Callback)) -> io::Result<()> {
    let (sender, receiver) = oneshot::channel();
    act(Box::new(move |outcome| drop(sender.send(outcome))));
    receiver.await.unwrap_or(Err(WalError::Closed)).map_err(to_io)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, to) = bounds(&range);
        self.read(from, to, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.vote()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES_MAX)
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        let log = self.clone();
        let chunks = futures::stream::unfold(from, move |at| {
            let chunk = log.read(at, to, READ_BYTES_MAX);
            async move {
                match chunk {
                    Ok(_) if at >= to => None,
                    // Apply asks only for what is committed; to end early would skip entries for good.
                    Ok(entries) if entries.is_empty() => {
                        let missing = io::Error::new(io::ErrorKind::NotFound, format!("entry {at} is not in the log"));
                        Some((vec![Err(missing)], to))
                    }
                    Ok(entries) => {
                        let next = at + entries.len() as u64;
                        Some((entries.into_iter().map(Ok).collect::<Vec<_>>(), next))
                    }
                    Err(error) => Some((vec![Err(error)], to)),
                }
            }
        });
        Box::pin(chunks.flat_map(futures::stream::iter))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let purged = self.wal.group_state(self.group.0).purged;
        let last_purged_log_id = purged.map(|(_, id)| codec::decode_log_id(&id)).transpose()?;
        Ok(LogState { last_purged_log_id, last_log_id: self.last_log_id()? })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    /// Durable on return, with every append before it (R1 of DESIGN section 3).
    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (group, term, bytes) = (self.group.0, vote.leader_id.term, codec::encode_vote(vote));
        wait(|done| self.wal.save_vote(group, term, bytes, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.wal.save_committed(self.group.0, codec::encode_log_id(committed));
        }
        Ok(())
    }

    /// Never beyond the log: a torn tail or another voter may have left the record ahead of the entries. Nor what is not in
    /// it: a later leader's entries may have taken the place of lost ones, and openraft takes all up to here for committed.
    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let (Some(saved), Some(last)) = (self.saved_committed()?, self.last_log_id()?) else { return Ok(None) };
        if last.index < saved.index {
            return Ok(Some(last).filter(|last| last.leader_id.term <= saved.leader_id.term));
        }
        let held = self.term_at(saved.index)?;
        Ok(held.is_none_or(|term| term == saved.leader_id.term).then_some(saved))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut changes_membership = false;
        let entries: Vec<AppendEntry> = entries
            .into_iter()
            .map(|entry| {
                changes_membership |= matches!(entry.payload, openraft::EntryPayload::Membership(_));
                AppendEntry {
                    index: entry.log_id.index,
                    term: entry.log_id.leader_id.term,
                    bytes: codec::encode_entry(&entry),
                }
            })
            .collect();
        if entries.is_empty() {
            callback.io_completed(Ok(()));
            return Ok(());
        }
        let bytes: usize = entries.iter().map(|entry| entry.bytes.len()).sum();
        self.appended.fetch_add(bytes as u64, Ordering::Relaxed);
        let must_sync = changes_membership || self.fallback.is_on();
        let mut acks = self.acks();
        let before = acks.append(must_sync);
        if let Some(trust) = before.record {
            self.wal.save_trust(self.group.0, trust.encode().into(), Durability::Written, None);
        }
        let (durability, noted, shared) = match before.ack {
            AckAfter::Write => (Durability::Written, None, Arc::clone(&self.acks)),
            AckAfter::Sync => (Durability::Synced, Some(acks.trust()), Arc::clone(&self.acks)),
        };
        let done = Box::new(move |outcome: Result<(), WalError>| {
            if let (Ok(()), Some(trust)) = (&outcome, noted) {
                shared.lock().unwrap_or_else(PoisonError::into_inner).synced(trust);
            }
            callback.io_completed(outcome.map_err(to_io));
        });
        self.wal.append(self.group.0, &entries, durability, done);
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        wait(|done| self.wal.truncate_from(self.group.0, from, done)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let id = codec::encode_log_id(log_id);
        wait(|done| self.wal.purge_upto(self.group.0, log_id.index, id, done)).await
    }
}
