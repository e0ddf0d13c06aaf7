//! An open log.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use crate::config::WalConfig;
use crate::error::{OpenError, WalError};
use crate::found::{Found, TornTail};
use crate::index::{GroupIndex, GroupState};
use crate::io::LogIo;
use crate::metrics::Meters;
use crate::record::{self, Kind};
use crate::recovery::{self, Depth};
use crate::shared::{Groups, Lock, Queue, Recent, Shared, Signal, VotesState};
use crate::start::{self, DiskId};
use crate::workers::{Step, Worker, Workers};
use crate::writer::{self, Request, SyncState, Writer};

/// Bytes of entries that go into one record; a longer append becomes several.
const RECORD_BYTES_TARGET: usize = 4 << 20;

/// Runs once, on a thread of the log: it must not block.
pub type Callback = Box<dyn FnOnce(Result<(), WalError>) + Send>;

/// When a request is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The bytes are in the operating system: they survive `kill -9`, not a power loss.
    Written,
    /// The bytes were fdatasynced.
    Synced,
}

/// One entry to append; `bytes` are opaque.
#[derive(Debug, Clone)]
pub struct AppendEntry {
    pub index: u64,
    pub term: u64,
    pub bytes: Bytes,
}

/// Sizes for `/health` and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WalStats {
    pub segments: u64,
    pub bytes: u64,
    /// Written and not known to be on disk.
    pub unsynced_bytes: u64,
    /// Age of the oldest of these bytes.
    pub sync_lag: Duration,
}

/// The log of one disk. Dropping it closes it: everything queued is written and synced.
pub struct Wal {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// In place of the threads, in simulation.
    workers: Mutex<Vec<Worker>>,
    is_threaded: bool,
    disk_id: String,
    sync_interval: Duration,
    torn: Option<TornTail>,
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wal").field("disk_id", &self.disk_id).finish_non_exhaustive()
    }
}

impl Wal {
    /// Opens the log in `dir`, creating it with `fresh_disk_id` when there is none. Blocks while segments are read.
    ///
    /// `decide` sees what was read, before anything is changed on disk. To return is to go on without what is damaged
    /// ([`crate::FoundGroup::quarantined`], [`Found::unlisted`]). It returns the trust records to write, by
    /// group; the others keep theirs ([`crate::keep_trust`] changes none). They go into the checkpoint of the segment
    /// that this start begins, in the same write as the seal that cuts a torn tail off (see [`Wal::torn_tail`]):
    /// until it is on disk, a later start finds what this one found. Everything that remains of the log is
    /// fdatasynced before.
    ///
    /// # Errors
    /// The answer of `decide` is [`OpenError::Corrupt`] if anything is damaged, with segment, offset, groups and what is
    /// lost, else [`OpenError::Refused`]. A vote that may be lost is [`OpenError::Corrupt`] without asking. Nothing was
    /// changed then.
    pub fn open(
        io: Arc<dyn LogIo>,
        dir: &Path,
        config: WalConfig,
        fresh_disk_id: &str,
        decide: impl FnOnce(&Found) -> Result<BTreeMap<u32, Bytes>, String>,
    ) -> Result<Self, OpenError> {
        let recovered = recovery::recover(io.as_ref(), dir, Depth::Start, |_, _| ())?;
        let disk_id = DiskId::read(io.as_ref(), dir, recovered.disk_id.as_deref(), fresh_disk_id)?;
        if !recovered.lost_votes.is_empty() {
            let verdict = "votes may be lost with it, and the `votes` file has no copy";
            return Err(recovered.refused(dir, verdict));
        }
        let trust = decide(&recovered.found).map_err(|verdict| recovered.refused(dir, &verdict))?;
        let torn = recovered.found.torn.clone();
        let started = start::start(io.as_ref(), dir, &disk_id, recovered, trust, BTreeMap::new())?;
        let shared = Arc::new(Shared {
            queue: Lock::new(Queue { requests: Vec::new(), closed: false }),
            queue_ready: Signal::default(),
            groups: Lock::new(Groups { indexes: started.groups, purges_queued: 0, recent: Recent::default() }),
            segments: Lock::new(started.segments),
            sync: Lock::new(SyncState::default()),
            sync_ready: Signal::default(),
            synced: AtomicU64::new(started.next_batch),
            poison: Lock::new(None),
            fsync: Lock::new(()),
            votes: Lock::new(VotesState { file: started.votes, unsaved: false }),
            votes_file: Lock::new(()),
            suspects: Lock::new(BTreeSet::new()),
            io: Arc::clone(&io),
            dir: dir.to_owned(),
            meters: Meters::register(),
        });
        shared.meters.torn_tails.increment(u64::from(torn.is_some()));
        let DiskId { id: disk_id, .. } = disk_id;
        let workers = io.workers();
        let writer = Writer {
            shared: Arc::clone(&shared),
            io,
            dir: recovery::segments_dir(dir),
            config: config.clone(),
            disk_id: disk_id.clone(),
            metas: started.metas,
            next_batch: started.next_batch,
            current: started.current,
        };
        let sync_interval = config.sync_interval;
        if let Some(workers) = workers {
            let workers = start_workers(workers.as_ref(), &shared, writer, config);
            let (threads, workers) = (Mutex::default(), Mutex::new(workers));
            return Ok(Self { shared, threads, workers, is_threaded: false, disk_id, sync_interval, torn });
        }
        let syncer = Arc::clone(&shared);
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(body)
                .map_err(OpenError::io("start threads for", dir))
        };
        let threads = vec![
            spawn("wal-write", Box::new(move || writer.run()))?,
            spawn("wal-sync", Box::new(move || writer::run_sync(&syncer, &config)))?,
        ];
        let (threads, workers) = (Mutex::new(threads), Mutex::default());
        Ok(Self { shared, threads, workers, is_threaded: true, disk_id, sync_interval, torn })
    }

    /// Whether the log has threads of its own, so that calls of it may block.
    pub fn is_threaded(&self) -> bool {
        self.is_threaded
    }

    /// Drawn when the log was created; tells one disk from another.
    pub fn disk_id(&self) -> &str {
        &self.disk_id
    }

    /// What the start cut off, if anything.
    pub fn torn_tail(&self) -> Option<&TornTail> {
        self.torn.as_ref()
    }

    /// Appends entries with dense indexes. They are readable when this returns; `done` runs when `durability` holds
    /// for all of them.
    ///
    /// The queue behind it is bounded by the callers' admission of uncommitted bytes, not here: a Raft core must never
    /// wait for the disk.
    pub fn append(&self, group: u32, entries: &[AppendEntry], durability: Durability, done: Callback) {
        let mut requests = Vec::new();
        let mut at = 0;
        while at < entries.len() {
            let (start, mut bytes) = (at, 0);
            while at < entries.len() && (at == start || bytes + entries[at].bytes.len() <= RECORD_BYTES_TARGET) {
                bytes += 4 + entries[at].bytes.len();
                at += 1;
            }
            let mut payload = Vec::with_capacity(bytes);
            for entry in &entries[start..at] {
                payload.extend_from_slice(&(entry.bytes.len() as u32).to_le_bytes());
                payload.extend_from_slice(&entry.bytes);
            }
            let (first, last) = (&entries[start], &entries[at - 1]);
            requests.push(Request {
                kind: Kind::Append,
                group,
                term: last.term,
                first: first.index,
                last: last.index,
                payload: Bytes::from(payload),
                durability,
                done: None,
            });
        }
        let Some(final_request) = requests.last_mut() else {
            done(Ok(()));
            return;
        };
        final_request.done = Some(done);
        self.shared.submit(requests);
    }

    /// Stores a vote; `done` runs after the fdatasync, always.
    pub fn save_vote(&self, group: u32, term: u64, vote: Bytes, done: Callback) {
        self.shared.submit(vec![Self::small(Kind::Vote, group, term, 0, vote, Durability::Synced, Some(done))]);
    }

    /// Stores the group's trust record, in order with the appends before and after it; `done` runs when `durability`
    /// holds for it, if anybody waits.
    pub fn save_trust(&self, group: u32, trust: Bytes, durability: Durability, done: Option<Callback>) {
        self.shared.submit(vec![Self::small(Kind::Trust, group, 0, 0, trust, durability, done)]);
    }

    /// Stores how far the group is committed; written in order, never waited for.
    pub fn save_committed(&self, group: u32, committed: Bytes) {
        self.shared.submit(vec![Self::small(Kind::Committed, group, 0, 0, committed, Durability::Written, None)]);
    }

    /// Removes the entries from `from` on.
    pub fn truncate_from(&self, group: u32, from: u64, done: Callback) {
        self.shared.submit(vec![Self::small(
            Kind::TruncateAfter,
            group,
            0,
            from,
            Bytes::new(),
            Durability::Synced,
            Some(done),
        )]);
    }

    /// Removes the entries up to and including `index`, whose opaque id is kept. Segments that nobody needs go.
    pub fn purge_upto(&self, group: u32, index: u64, id: Bytes, done: Callback) {
        self.shared.submit(vec![Self::small(Kind::Purge, group, 0, index, id, Durability::Synced, Some(done))]);
    }

    fn small(
        kind: Kind,
        group: u32,
        term: u64,
        last: u64,
        payload: Bytes,
        durability: Durability,
        done: Option<Callback>,
    ) -> Request {
        Request { kind, group, term, first: 0, last, payload, durability, done }
    }

    /// Reads entries of `range` in order, stopping before the one that would exceed `bytes_max` (the first is always
    /// returned). Blocking, usually from the page cache.
    ///
    /// # Errors
    /// [`WalError::Missing`] when the first entry is not held; [`WalError::Read`] when its bytes are damaged.
    pub fn read(
        &self,
        group: u32,
        range: RangeInclusive<u64>,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>, WalError> {
        let (mut next, end) = (*range.start(), *range.end());
        let mut out = Vec::new();
        let mut bytes = 0;
        while next <= end {
            let Some(batch) = self.shared.find(group, next) else {
                if out.is_empty() {
                    let (first, last) = self.group_state(group).range.unwrap_or((0, 0));
                    return Err(WalError::Missing { group, index: next, first, last });
                }
                break;
            };
            let payload = match self.shared.payload(&batch) {
                // Purged between the look into the index and the read.
                Err(WalError::Read { .. }) if self.shared.find(group, next).is_none() => {
                    if !out.is_empty() {
                        break;
                    }
                    let (first, last) = self.group_state(group).range.unwrap_or((0, 0));
                    return Err(WalError::Missing { group, index: next, first, last });
                }
                Err(WalError::Read { segment, offset, reason }) => {
                    self.shared.suspect(segment, &reason);
                    return Err(WalError::Read { segment, offset, reason });
                }
                payload => payload?,
            };
            let entries = record::split_entries(&payload).ok_or(WalError::Read {
                segment: 0,
                offset: 0,
                reason: "entry lengths do not add up".to_owned(),
            })?;
            for (index, entry) in
                (batch.record_first..=batch.last.min(end)).zip(entries).filter(|(index, _)| *index >= next)
            {
                bytes += entry.len();
                if bytes > bytes_max && !out.is_empty() {
                    return Ok(out);
                }
                out.push((index, payload.slice_ref(entry)));
            }
            next = batch.last + 1;
        }
        Ok(out)
    }

    /// The groups that the log knows of.
    pub fn groups(&self) -> Vec<u32> {
        self.shared.groups.lock().indexes.keys().copied().collect()
    }

    /// Longest time between a write and its fdatasync, as configured.
    pub fn sync_interval(&self) -> Duration {
        self.sync_interval
    }

    pub fn group_state(&self, group: u32) -> GroupState {
        self.shared.groups.lock().indexes.get(&group).map(GroupIndex::state).unwrap_or_default()
    }

    /// The last index of the group that survives a power loss, with all before it.
    pub fn synced_index(&self, group: u32) -> u64 {
        self.shared.synced_index(group)
    }

    /// Calls `done` once entries up to `index`, written or queued, are on disk; until then syncs do not wait for
    /// [`WalConfig::sync_interval`].
    pub fn when_synced(&self, group: u32, index: u64, done: Callback) {
        let outcome = {
            let mut sync = self.shared.sync.lock();
            match self.poisoned() {
                Some(poison) => Err(poison),
                // Under the lock that the sync thread takes after every sync, so that none is missed.
                None if self.synced_index(group) >= index => Ok(()),
                None if sync.is_closed() => Err(WalError::Closed),
                None => {
                    sync.wait_for(group, index, done);
                    self.shared.sync_ready.notify_one();
                    return;
                }
            }
        };
        done(outcome);
    }

    /// Whether the oldest segment could go if this group kept no entries in it.
    pub fn pins_oldest_segment(&self, group: u32) -> bool {
        let segments = self.shared.segments.lock();
        let (oldest, newest) = (segments.keys().next().copied(), segments.keys().next_back().copied());
        drop(segments);
        let held = self.shared.groups.lock().indexes.get(&group).and_then(GroupIndex::oldest_segment);
        oldest < newest && held.is_some() && held == oldest
    }

    /// The part that one of all groups with entries has in what could go if this group, which pins the oldest segment, kept none
    /// up to `upto`, and the others followed. Bytes; 0 if it does not pin it, or would go on to.
    pub fn share_of_purge(&self, group: u32, upto: u64) -> u64 {
        if !self.pins_oldest_segment(group) {
            return 0;
        }
        let (sharing, needed) = {
            let groups = self.shared.groups.lock();
            let sharing = groups.indexes.values().filter(|index| index.oldest_segment().is_some()).count();
            (sharing as u64, groups.indexes.get(&group).and_then(|index| index.oldest_segment_after(upto)))
        };
        let segments = self.shared.segments.lock();
        let Some(newest) = segments.keys().next_back().copied() else { return 0 };
        let keep_from = needed.map_or(newest, |needed| needed.min(newest));
        let bytes: u64 = segments.range(..keep_from).map(|(_, segment)| segment.len).sum();
        bytes / sharing.max(1)
    }

    pub fn stats(&self) -> WalStats {
        let (unsynced_bytes, sync_lag) = self.shared.sync.lock().lag();
        let segments = self.shared.segments.lock();
        let bytes = segments.values().map(|segment| segment.len).sum();
        WalStats { segments: segments.len() as u64, bytes, unsynced_bytes, sync_lag }
    }

    /// The failure that stopped the log, if one did.
    pub fn poisoned(&self) -> Option<WalError> {
        self.shared.poisoned()
    }

    /// Writes and syncs what is queued and stops the threads. Later requests fail with [`WalError::Closed`].
    pub fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.queue_ready.notify_one();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a log thread panicked");
            }
        }
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        for worker in workers {
            while worker() == Step::Again {}
        }
    }
}

/// Has `workers` run what the two threads would.
fn start_workers(workers: &dyn Workers, shared: &Arc<Shared>, writer: Writer, config: WalConfig) -> Vec<Worker> {
    let writer = Mutex::new(writer);
    let write: Worker = Arc::new(move || writer.lock().unwrap_or_else(PoisonError::into_inner).step());
    let syncing = Arc::clone(shared);
    let sync: Worker = Arc::new(move || writer::step_sync(&syncing, &config));
    shared.queue_ready.wake_with(workers.start("wal-write", Arc::clone(&write)));
    shared.sync_ready.wake_with(workers.start("wal-sync", Arc::clone(&sync)));
    vec![write, sync]
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
pub(crate) mod tests;
