//! An open log.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::config::WalConfig;
use crate::error::{OpenError, WalError};
use crate::found::{Found, FoundGroup, TornTail};
use crate::index::{Batch, DiskPlace, GroupIndex, GroupState};
use crate::io::{LogFile, LogIo};
use crate::record::{self, FORMAT, Header, Kind};
use crate::recovery::{self, Recovered, Segment, segment_path};
use crate::writer::{self, Request, SyncState, Writer};

/// Bytes of entries that go into one record; a longer append becomes several.
const RECORD_BYTES_TARGET: usize = 4 << 20;

/// Payloads of the newest records are kept in memory up to this many bytes: replication to each follower, apply and the
/// builder of the tables all read them within moments, and a record is read whole.
const RECENT_BYTES_MAX: usize = 32 << 20;

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
}

/// The log of one disk. Dropping it closes it: everything queued is written and synced.
pub struct Wal {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    disk_id: String,
    torn: Option<TornTail>,
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wal").field("disk_id", &self.disk_id).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    format: u32,
    disk_id: String,
}

impl Wal {
    /// Opens the log in `dir`, creating it with `fresh_disk_id` when there is none. Blocks while segments are read.
    ///
    /// `decide` sees what was read, before anything is changed on disk. It returns the trust records to write, by
    /// group; the others keep theirs ([`crate::keep_trust`] changes none). They go into the checkpoint of the segment
    /// that this start begins, in the same write as the seal that cuts a torn tail off (see [`Wal::torn_tail`]):
    /// until it is on disk, a later start finds what this one found. Everything that remains of the log is
    /// fdatasynced before.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] names segment, offset and groups; [`OpenError::Refused`] is the answer of `decide`.
    /// Nothing was changed then.
    pub fn open(
        io: Arc<dyn LogIo>,
        dir: &Path,
        config: WalConfig,
        fresh_disk_id: &str,
        decide: impl FnOnce(&Found) -> Result<BTreeMap<u32, Bytes>, String>,
    ) -> Result<Self, OpenError> {
        let segments_dir = dir.join("segments");
        io.create_dir_all(&segments_dir).map_err(OpenError::io("create", &segments_dir))?;
        let disk_id = read_or_create_metadata(io.as_ref(), dir, fresh_disk_id)?;
        let mut recovered = recovery::recover(io.as_ref(), &segments_dir)?;
        let trust =
            decide(&found(&recovered)).map_err(|reason| OpenError::Refused { path: segments_dir.clone(), reason })?;
        for (group, trust) in trust {
            recovered.groups.entry(group).or_default().meta.trust = Some(trust.to_vec());
        }
        if let Some(torn) = &recovered.torn {
            tracing::warn!(segment = torn.segment, offset = torn.offset, bytes = torn.bytes, kind = ?torn.kind,
                reason = %torn.reason, "WAL tail was torn by a crash before it was acknowledged; cut off");
        }
        if let Some(number) = recovered.unfinished {
            let path = segment_path(&segments_dir, number);
            tracing::warn!(segment = number, "WAL segment was never finished by the crash that interrupted its start");
            io.remove(&path).map_err(OpenError::io("remove", &path))?;
            io.sync_dir(&segments_dir).map_err(OpenError::io("sync", &segments_dir))?;
        }
        let previous = recovered.segments.last_key_value().map(|(number, segment)| (*number, segment.len));
        if let Some((number, segment)) = recovered.segments.last_entry().map(|last| (*last.key(), last.get().clone())) {
            let rewritten = rewrite(io.as_ref(), &segment_path(&segments_dir, number), &segment)?;
            recovered.segments.insert(number, rewritten);
        }
        recovered.groups.values_mut().for_each(GroupIndex::all_synced);
        let metas = recovered.groups.iter().map(|(group, index)| (*group, index.meta.clone())).collect();
        let number = previous.map_or(1, |(number, _)| number + 1);
        let current = writer::start_segment(
            io.as_ref(),
            &segments_dir,
            &disk_id,
            number,
            previous,
            &metas,
            &mut recovered.next_batch,
        )
        .map_err(OpenError::io("start segment", segment_path(&segments_dir, number)))?;
        recovered.segments.insert(number, Segment { file: Arc::clone(&current.file), len: current.len });
        let shared = Arc::new(Shared {
            queue: Lock::new(Queue { requests: Vec::new(), closed: false }),
            queue_ready: Signal::default(),
            groups: Lock::new(Groups { indexes: recovered.groups, purges_queued: 0, recent: Recent::default() }),
            segments: Lock::new(recovered.segments),
            sync: Lock::new(SyncState::default()),
            sync_ready: Signal::default(),
            synced: AtomicU64::new(recovered.next_batch),
            poison: Lock::new(None),
            fsync: Lock::new(()),
        });
        let next_batch = recovered.next_batch;
        let writer = Writer {
            shared: Arc::clone(&shared),
            io,
            dir: segments_dir,
            config: config.clone(),
            disk_id: disk_id.clone(),
            metas,
            next_batch,
            current,
        };
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
        Ok(Self { shared, threads: Mutex::new(threads), disk_id, torn: recovered.torn })
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
            let mut payload = Vec::new();
            let start = at;
            while at < entries.len() && (at == start || payload.len() + entries[at].bytes.len() <= RECORD_BYTES_TARGET)
            {
                payload.extend_from_slice(&(entries[at].bytes.len() as u32).to_le_bytes());
                payload.extend_from_slice(&entries[at].bytes);
                at += 1;
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
    /// holds for it.
    pub fn save_trust(&self, group: u32, trust: Bytes, durability: Durability, done: Callback) {
        self.shared.submit(vec![Self::small(Kind::Trust, group, 0, 0, trust, durability, Some(done))]);
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

    pub fn stats(&self) -> WalStats {
        let segments = self.shared.segments.lock();
        WalStats { segments: segments.len() as u64, bytes: segments.values().map(|segment| segment.len).sum() }
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
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.close();
    }
}

fn found(recovered: &Recovered) -> Found {
    let group = |index: &GroupIndex| FoundGroup {
        trust: index.meta.trust.clone(),
        empty: index.range().is_none() && index.meta.purged.is_none(),
        quarantined: None,
    };
    let groups = recovered.groups.iter().map(|(number, index)| (*number, group(index))).collect();
    Found { torn: recovered.torn.clone(), groups, unlisted: None }
}

/// Writes the unsealed segment anew. After a failed fsync the kernel calls pages clean that never reached the disk, and
/// an fsync of the same file would succeed without them: only fresh pages are known to be written.
///
/// The torn end is written with it. It is evidence that acknowledged bytes may be lost, and the decision on it is
/// durable only with the next segment: were it cut here, a start after a kill in between would find a whole log. It
/// does no harm: the next segment's first record seals this one at its valid length, and nothing is appended to it.
fn rewrite(io: &dyn LogIo, path: &Path, segment: &Segment) -> Result<Segment, OpenError> {
    let len = segment.file.size().map_err(OpenError::io("measure", path))?;
    let mut content = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    segment.file.read_exact_at(&mut content, 0).map_err(OpenError::io("read", path))?;
    io.replace(path, &content).map_err(OpenError::io("rewrite", path))?;
    let file = io.open(path).map_err(OpenError::io("open", path))?;
    Ok(Segment { file, len: segment.len })
}

fn read_or_create_metadata(io: &dyn LogIo, dir: &Path, fresh_disk_id: &str) -> Result<String, OpenError> {
    let path: PathBuf = dir.join("metadata.json");
    let Some(content) = io.read(&path).map_err(OpenError::io("read", &path))? else {
        let metadata = Metadata { format: FORMAT, disk_id: fresh_disk_id.to_owned() };
        let content = serde_json::to_vec_pretty(&metadata).expect("metadata is plain JSON");
        io.replace(&path, &content).map_err(OpenError::io("write", &path))?;
        return Ok(metadata.disk_id);
    };
    let metadata: Metadata = serde_json::from_slice(&content)
        .map_err(|error| OpenError::Metadata { path: path.clone(), reason: error.to_string() })?;
    if metadata.format == FORMAT {
        Ok(metadata.disk_id)
    } else {
        Err(OpenError::Format { path, found: metadata.format, supported: FORMAT })
    }
}

/// What the handle and the two threads share. Locks are held for moments, all but `fsync` never across I/O.
pub(crate) struct Shared {
    queue: Lock<Queue>,
    queue_ready: Signal,
    groups: Lock<Groups>,
    segments: Lock<BTreeMap<u64, Segment>>,
    pub(crate) sync: Lock<SyncState>,
    pub(crate) sync_ready: Signal,
    /// Batches below this were fdatasynced.
    synced: AtomicU64,
    poison: Lock<Option<WalError>>,
    /// Held over each fdatasync: the kernel reports a failure once, and nobody may see a later success before the poison.
    fsync: Lock<()>,
}

struct Queue {
    requests: Vec<Request>,
    closed: bool,
}

struct Groups {
    indexes: BTreeMap<u32, GroupIndex>,
    /// Purges in the index whose record is not yet written; while there are any, no segment is dropped.
    purges_queued: u64,
    recent: Recent,
}

/// Written records whose bytes are still in memory, oldest first: group, first index, payload.
#[derive(Default)]
struct Recent {
    records: VecDeque<(u32, u64, Bytes)>,
    bytes: usize,
}

impl Shared {
    /// Puts requests into the queue and their effect into the index, as one step.
    fn submit(&self, requests: Vec<Request>) {
        let refused = {
            let mut queue = self.queue.lock();
            let poison = self.poisoned().or(queue.closed.then_some(WalError::Closed));
            if poison.is_none() {
                let mut groups = self.groups.lock();
                for request in &requests {
                    groups.note(request);
                }
                drop(groups);
                queue.requests.extend(requests);
                self.queue_ready.notify_one();
                return;
            }
            poison
        };
        for done in requests.into_iter().filter_map(|request| request.done) {
            done(Err(refused.clone().unwrap_or(WalError::Closed)));
        }
    }

    /// Waits for requests; `None` once the log is closed and drained, or poisoned.
    pub(crate) fn next_requests(&self) -> Option<Vec<Request>> {
        let mut queue = self.queue.lock();
        loop {
            if self.poisoned().is_some() {
                return None;
            }
            if !queue.requests.is_empty() {
                return Some(std::mem::take(&mut queue.requests));
            }
            if queue.closed {
                return None;
            }
            queue = self.queue_ready.wait(queue);
        }
    }

    /// Stops the log for good; returns what everybody who asks is told.
    pub(crate) fn poison(&self, operation: &'static str, error: std::io::Error) -> WalError {
        tracing::error!(operation, error = %error, "WAL is poisoned: the node must stop");
        let failure = WalError::Poisoned { operation, source: Arc::new(error) };
        let failure = self.poison.lock().get_or_insert(failure).clone();
        let stranded = std::mem::take(&mut self.queue.lock().requests);
        for done in stranded.into_iter().filter_map(|request| request.done) {
            done(Err(failure.clone()));
        }
        self.queue_ready.notify_one();
        failure
    }

    /// fdatasync for both threads.
    pub(crate) fn sync_file(&self, file: &dyn LogFile) -> Result<(), WalError> {
        let _one_at_a_time = self.fsync.lock();
        match self.poisoned() {
            Some(poison) => Err(poison),
            None => file.sync_data().map_err(|error| self.poison("fsync", error)),
        }
    }

    pub(crate) fn poisoned(&self) -> Option<WalError> {
        self.poison.lock().clone()
    }

    pub(crate) fn synced_batch(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    pub(crate) fn synced_index(&self, group: u32) -> u64 {
        let synced = self.synced_batch();
        self.groups.lock().indexes.get_mut(&group).map_or(0, |index| index.synced_index(synced))
    }

    pub(crate) fn advance_synced(&self, batch: u64) {
        self.synced.fetch_max(batch, Ordering::AcqRel);
    }

    pub(crate) fn segment_written(&self, number: u64, file: &Arc<dyn LogFile>, len: u64) {
        self.segments.lock().insert(number, Segment { file: Arc::clone(file), len });
    }

    pub(crate) fn written(&self, record: u64, group: u32, first: u64, memory: &Bytes, place: DiskPlace) {
        let mut groups = self.groups.lock();
        if let Some(index) = groups.indexes.get_mut(&group) {
            index.written(record, first, memory, place);
        }
        groups.recent.bytes += memory.len();
        groups.recent.records.push_back((group, first, memory.clone()));
        while groups.recent.bytes > RECENT_BYTES_MAX
            && let Some((group, first, memory)) = groups.recent.records.pop_front()
        {
            groups.recent.bytes -= memory.len();
            if let Some(index) = groups.indexes.get_mut(&group) {
                index.forget(first, &memory);
            }
        }
    }

    /// The oldest segment that holds a live entry; `None` while a purge is in the index but not yet on disk.
    pub(crate) fn oldest_needed_segment(&self, current: u64) -> Option<u64> {
        let groups = self.groups.lock();
        if groups.purges_queued > 0 {
            return None;
        }
        Some(groups.indexes.values().filter_map(GroupIndex::oldest_segment).min().unwrap_or(current).min(current))
    }

    pub(crate) fn remove_segments_below(&self, keep_from: u64) -> Vec<u64> {
        let mut segments = self.segments.lock();
        let kept = segments.split_off(&keep_from);
        std::mem::replace(&mut *segments, kept).into_keys().collect()
    }

    pub(crate) fn purge_written(&self) {
        self.groups.lock().purges_queued -= 1;
    }

    fn find(&self, group: u32, index: u64) -> Option<Batch> {
        self.groups.lock().indexes.get(&group)?.find(index).cloned()
    }

    fn payload(&self, batch: &Batch) -> Result<Bytes, WalError> {
        if let Some(payload) = &batch.memory {
            return Ok(payload.clone());
        }
        let DiskPlace { segment, offset, payload_len, payload_crc } =
            batch.disk.expect("what is not in memory is on disk");
        let failed = |reason: String| WalError::Read { segment, offset, reason };
        let file = self.segments.lock().get(&segment).map(|segment| Arc::clone(&segment.file));
        let file = file.ok_or_else(|| failed("segment was removed".to_owned()))?;
        let header = Header {
            kind: Kind::Append,
            payload_len,
            payload_crc,
            group: 0,
            segment,
            batch: 0,
            term: 0,
            first: 0,
            last: 0,
            flushed: 0,
        };
        recovery::read_payload(file.as_ref(), offset, &header).map(Bytes::from).map_err(failed)
    }
}

impl Groups {
    fn note(&mut self, request: &Request) {
        let index = self.indexes.entry(request.group).or_default();
        match request.kind {
            Kind::Append => index.append(request.first, request.last, request.payload.clone()),
            Kind::TruncateAfter => index.truncate_from(request.last),
            Kind::Vote => index.meta.vote = Some(request.payload.to_vec()),
            Kind::Committed => index.meta.committed = Some(request.payload.to_vec()),
            Kind::Trust => index.meta.trust = Some(request.payload.to_vec()),
            Kind::Purge => {
                index.purge_upto(request.last, request.payload.to_vec());
                self.purges_queued += 1;
            }
            Kind::SegmentStart | Kind::Checkpoint | Kind::Footer => {}
        }
    }
}

/// A mutex whose poison is ignored: a panic of one thread must not hide the log's own failure from the others.
pub(crate) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
pub(crate) struct Signal(Condvar);

impl Signal {
    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, wait: Duration) -> MutexGuard<'a, T> {
        self.0.wait_timeout(guard, wait).unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests;
