//! What the handle and the two threads of an open log share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::WalError;
use crate::index::{Batch, DiskPlace, GroupIndex};
use crate::io::{LogFile, LogIo};
use crate::metrics::Meters;
use crate::record::{Header, Kind};
use crate::recovery::{self, Segment};
use crate::suspects;
use crate::votes::Votes;
use crate::workers::Wake;
use crate::writer::{Request, SyncState};

/// Payloads of the newest records are kept in memory up to this many bytes: replication to each follower, apply and the
/// builder of the tables all read them within moments, and a record is read whole.
const RECENT_BYTES_MAX: usize = 32 << 20;

/// Left beside the segments by a failed write or fsync: the next start must not trust what it reads back.
pub const POISON_FILE: &str = "poisoned";

/// What the handle and the two threads share. Locks are held for moments, `fsync` and `votes_file` alone across I/O.
pub(crate) struct Shared {
    pub(crate) queue: Lock<Queue>,
    pub(crate) queue_ready: Signal,
    pub(crate) groups: Lock<Groups>,
    pub(crate) segments: Lock<BTreeMap<u64, Segment>>,
    pub(crate) sync: Lock<SyncState>,
    pub(crate) sync_ready: Signal,
    /// Batches below this were fdatasynced.
    pub(crate) synced: AtomicU64,
    pub(crate) poison: Lock<Option<WalError>>,
    /// Held over each fdatasync: the kernel reports a failure once, and nobody may see a later success before the poison.
    pub(crate) fsync: Lock<()>,
    pub(crate) votes: Lock<VotesState>,
    /// Held while the `votes` file is replaced.
    pub(crate) votes_file: Lock<()>,
    /// Segments in which a read found damage.
    pub(crate) suspects: Lock<BTreeSet<u64>>,
    pub(crate) io: Arc<dyn LogIo>,
    pub(crate) dir: PathBuf,
    pub(crate) meters: Meters,
}

/// Votes as of the records written.
pub(crate) struct VotesState {
    /// What the file should say.
    pub(crate) file: Votes,
    /// There are some that the `votes` file lacks.
    pub(crate) unsaved: bool,
}

pub(crate) struct Queue {
    pub(crate) requests: Vec<Request>,
    pub(crate) closed: bool,
}

pub(crate) struct Groups {
    pub(crate) indexes: BTreeMap<u32, GroupIndex>,
    /// Purges in the index whose record is not yet written; while there are any, no segment is dropped.
    pub(crate) purges_queued: u64,
    pub(crate) recent: Recent,
}

/// Written records whose bytes are still in memory, oldest first: group, indexes, payload.
#[derive(Default)]
pub(crate) struct Recent {
    records: VecDeque<(u32, RangeInclusive<u64>, Bytes)>,
    bytes: usize,
}

impl Shared {
    /// Puts requests into the queue and their effect into the index, as one step.
    pub(crate) fn submit(&self, requests: Vec<Request>) {
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
            match self.poll_requests(&mut queue) {
                Poll::Ready(requests) => return requests,
                Poll::Pending => queue = self.queue_ready.wait(queue),
            }
        }
    }

    /// The same without waiting.
    pub(crate) fn try_requests(&self) -> Poll<Option<Vec<Request>>> {
        self.poll_requests(&mut self.queue.lock())
    }

    fn poll_requests(&self, queue: &mut Queue) -> Poll<Option<Vec<Request>>> {
        if self.poisoned().is_some() {
            return Poll::Ready(None);
        }
        if !queue.requests.is_empty() {
            return Poll::Ready(Some(std::mem::take(&mut queue.requests)));
        }
        if queue.closed { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Stops the log for good; returns what everybody who asks is told.
    pub(crate) fn poison(&self, operation: &'static str, error: std::io::Error) -> WalError {
        tracing::error!(operation, error = %error, "WAL is poisoned: the node must stop");
        self.mark_poison(operation, &error);
        let failure = WalError::Poisoned { operation, source: Arc::new(error) };
        let failure = self.poison.lock().get_or_insert(failure).clone();
        let stranded = std::mem::take(&mut self.queue.lock().requests);
        for done in stranded.into_iter().filter_map(|request| request.done) {
            done(Err(failure.clone()));
        }
        self.queue_ready.notify_one();
        failure
    }

    /// For the next start. Best effort: the disk may take nothing any more.
    fn mark_poison(&self, operation: &str, error: &std::io::Error) {
        let (path, text) = (self.dir.join(POISON_FILE), format!("{operation} failed: {error}\n"));
        if let Err(error) = self.io.replace(&path, text.as_bytes()) {
            tracing::error!(%error, path = %path.display(), "the poison mark cannot be written");
        }
    }

    /// fdatasync for both threads.
    pub(crate) fn sync_file(&self, file: &dyn LogFile) -> Result<(), WalError> {
        let _one_at_a_time = self.fsync.lock();
        if let Some(poison) = self.poisoned() {
            return Err(poison);
        }
        let begun = Instant::now();
        let outcome = file.sync_data();
        self.meters.syncs.increment(1);
        self.meters.sync_duration.record(begun.elapsed().as_secs_f64());
        outcome.map_err(|error| self.poison("fsync", error))
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

    pub(crate) fn written(&self, record: u64, request: &Request, place: DiskPlace) {
        let (group, range, memory) = (request.group, request.first..=request.last, &request.payload);
        let mut groups = self.groups.lock();
        if let Some(index) = groups.indexes.get_mut(&group) {
            index.written(record, &range, memory, place);
        }
        groups.recent.bytes += memory.len();
        groups.recent.records.push_back((group, range, memory.clone()));
        while groups.recent.bytes > RECENT_BYTES_MAX
            && let Some((group, range, memory)) = groups.recent.records.pop_front()
        {
            groups.recent.bytes -= memory.len();
            if let Some(index) = groups.indexes.get_mut(&group) {
                index.forget(&range, &memory);
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

    pub(crate) fn find(&self, group: u32, index: u64) -> Option<Batch> {
        self.groups.lock().indexes.get(&group)?.find(index).cloned()
    }

    pub(crate) fn payload(&self, batch: &Batch) -> Result<Bytes, WalError> {
        if let Some(payload) = &batch.memory {
            return Ok(payload.clone());
        }
        let DiskPlace { segment, offset, payload_len, payload_crc } =
            batch.disk.expect("what is not in memory is on disk");
        let failed = |reason: String| WalError::Read { segment, offset, reason };
        let file = self.segments.lock().get(&segment).map(|segment| Arc::clone(&segment.file));
        let file = file.ok_or_else(|| failed("segment was removed".to_owned()))?;
        let header = Header { payload_len, payload_crc, ..Header::footer(segment, 0) };
        recovery::read_payload(file.as_ref(), offset, &header).map(Bytes::from).map_err(failed)
    }

    /// Remembers, as well as it can, that the next start must read this segment in full.
    pub(crate) fn suspect(&self, segment: u64, reason: &str) {
        let mut suspects = self.suspects.lock();
        if suspects.insert(segment) {
            self.meters.corruptions.increment(1);
            let marked = suspects::save(self.io.as_ref(), &self.dir, &suspects);
            tracing::error!(segment, reason, marked = marked.is_ok(), "WAL corruption found by a read");
        }
    }

    /// Brings the `votes` file up to date; everything below `flushed` is on disk.
    pub(crate) fn save_votes(&self, flushed: u64) -> std::io::Result<()> {
        let _one_at_a_time = self.votes_file.lock();
        let votes = {
            let mut votes = self.votes.lock();
            votes.unsaved = false;
            votes.file.flushed = votes.file.flushed.max(flushed);
            votes.file.clone()
        };
        votes.save(self.io.as_ref(), &self.dir)
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
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
pub(crate) struct Signal {
    ready: Condvar,
    /// Where no thread waits.
    wake: OnceLock<Wake>,
}

impl Signal {
    /// Calls `wake` from now on, too.
    pub(crate) fn wake_with(&self, wake: Wake) {
        // There is one worker for each signal.
        let _ = self.wake.set(wake);
    }

    pub(crate) fn notify_one(&self) {
        self.ready.notify_one();
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.ready.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, wait: Duration) -> MutexGuard<'a, T> {
        self.ready.wait_timeout(guard, wait).unwrap_or_else(PoisonError::into_inner).0
    }
}
