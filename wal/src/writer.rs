//! The two workers of an open log, a thread each: one writes, one syncs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::config::WalConfig;
use crate::error::WalError;
use crate::index::DiskPlace;
use crate::io::{LogFile, LogIo};
use crate::record::{GroupMeta, HEADER_BYTES, Header, Kind};
use crate::recovery::segment_path;
use crate::segment::{Current, Preamble, start_segment};
use crate::shared::Shared;
use crate::votes::SavedVote;
use crate::wal::{Callback, Durability};
use crate::workers::Step;

/// A record waiting for the write thread.
pub(crate) struct Request {
    pub(crate) kind: Kind,
    pub(crate) group: u32,
    pub(crate) term: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) payload: Bytes,
    pub(crate) durability: Durability,
    pub(crate) done: Option<Callback>,
}

/// Shared with the sync thread: what was written and who waits for it to be on disk.
#[derive(Default)]
pub(crate) struct SyncState {
    waiting: Vec<Callback>,
    /// Who waits for a group's index to be on disk.
    hurried: Vec<(u32, u64, Callback)>,
    /// Batches below this are written.
    written: u64,
    file: Option<Arc<dyn LogFile>>,
    unsynced_bytes: u64,
    oldest_unsynced: Option<Instant>,
    /// What a sync that runs is about: bytes, and when the oldest of them were written.
    syncing: Option<(u64, Instant)>,
    closed: bool,
}

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) io: Arc<dyn LogIo>,
    pub(crate) dir: PathBuf,
    pub(crate) config: WalConfig,
    pub(crate) disk_id: String,
    /// State of the groups as of the records written, for checkpoints; the shared index runs ahead of it.
    pub(crate) metas: BTreeMap<u32, GroupMeta>,
    pub(crate) next_batch: u64,
    pub(crate) current: Current,
}

impl Writer {
    /// Writes until the log is closed and drained, or poisoned.
    pub(crate) fn run(mut self) {
        while let Some(requests) = self.shared.next_requests() {
            self.take(requests);
        }
        self.end();
    }

    /// Writes what is there.
    pub(crate) fn step(&mut self) -> Step {
        match self.shared.try_requests() {
            Poll::Ready(Some(requests)) => {
                self.take(requests);
                Step::Again
            }
            Poll::Ready(None) => {
                self.end();
                Step::Done
            }
            Poll::Pending => Step::Wait(None),
        }
    }

    fn take(&mut self, requests: Vec<Request>) {
        match self.write(&requests) {
            Ok(()) => self.complete(requests),
            Err((operation, error)) => {
                let failure = self.shared.poison(operation, error);
                for done in requests.into_iter().filter_map(|request| request.done) {
                    done(Err(failure.clone()));
                }
            }
        }
    }

    /// Nothing more will be written.
    fn end(&self) {
        self.shared.sync.lock().closed = true;
        self.shared.sync_ready.notify_one();
    }

    fn write(&mut self, requests: &[Request]) -> Result<(), (&'static str, std::io::Error)> {
        let mut at = 0;
        while at < requests.len() {
            if self.current.len >= self.config.segment_bytes_max {
                self.rotate().map_err(|error| ("segment rotation", error))?;
            }
            // As many records as fit the segment go out in one vectored write.
            let room = self.config.segment_bytes_max.saturating_sub(self.current.len);
            let mut taken = 0;
            let mut bytes = 0;
            while at + taken < requests.len() && (taken == 0 || bytes < room) {
                bytes += (HEADER_BYTES + requests[at + taken].payload.len()) as u64;
                taken += 1;
            }
            self.write_run(&requests[at..at + taken]).map_err(|error| ("write", error))?;
            at += taken;
        }
        if requests.iter().any(|request| request.kind == Kind::Purge) {
            self.sync_current().map_err(|error| ("fsync", error))?;
            self.drop_purged_segments().map_err(|error| ("segment removal", error))?;
        }
        Ok(())
    }

    fn write_run(&mut self, requests: &[Request]) -> std::io::Result<()> {
        let flushed = self.shared.synced_batch();
        let mut headers = Vec::with_capacity(requests.len());
        for request in requests {
            let template = Header {
                kind: request.kind,
                group: request.group,
                term: request.term,
                first: request.first,
                last: request.last,
                flushed,
                ..Header::footer(self.current.number, 0)
            };
            let offset = self.current.len;
            let header = self.current.place(&mut self.next_batch, template, &request.payload);
            headers.push((offset, header, header.encode()));
        }
        let slices: Vec<&[u8]> = headers
            .iter()
            .zip(requests)
            .flat_map(|((_, _, head), request)| [head.as_slice(), request.payload.as_ref()])
            .filter(|slice| !slice.is_empty())
            .collect();
        self.current.file.append(&slices)?;
        self.shared.segment_written(self.current.number, &self.current.file, self.current.len);
        let (mut bytes, mut appended) = (0, 0);
        for ((offset, header, _), request) in headers.iter().zip(requests) {
            bytes += header.record_len();
            appended += if request.kind == Kind::Append { request.payload.len() as u64 } else { 0 };
            self.note(*offset, header, request);
        }
        self.shared.meters.written_bytes.increment(bytes);
        self.shared.meters.appended_bytes.increment(appended);
        self.shared.sync.lock().wrote(self.next_batch, bytes, &self.current.file);
        Ok(())
    }

    /// Brings the writer's view and the shared index up to a record that is now in the file.
    fn note(&mut self, offset: u64, header: &Header, request: &Request) {
        let meta = self.metas.entry(request.group).or_default();
        let bytes = || request.payload.to_vec();
        match request.kind {
            Kind::Vote => {
                meta.vote = Some(bytes());
                let vote = SavedVote { term: header.term, batch: header.batch, bytes: bytes() };
                let mut votes = self.shared.votes.lock();
                votes.file.groups.insert(request.group, vote);
                votes.unsaved = true;
            }
            Kind::Committed => meta.committed = Some(bytes()),
            Kind::Trust => meta.trust = Some(bytes()),
            Kind::Purge => {
                meta.purged = Some((request.last, bytes()));
                self.shared.purge_written();
            }
            Kind::Append => {
                let place = DiskPlace::of(offset, header);
                self.shared.written(header.batch, request, place);
            }
            Kind::TruncateAfter | Kind::SegmentStart | Kind::Checkpoint | Kind::Footer => {}
        }
    }

    fn complete(&self, requests: Vec<Request>) {
        let mut waiting = Vec::new();
        for request in requests {
            match (request.done, request.durability) {
                (Some(done), Durability::Written) => done(Ok(())),
                (Some(done), Durability::Synced) => waiting.push(done),
                (None, _) => {}
            }
        }
        self.shared.sync.lock().waiting.append(&mut waiting);
        self.shared.sync_ready.notify_one();
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        let before_footer = self.current.len;
        self.current.write_footer(&mut self.next_batch, self.shared.synced_batch())?;
        self.shared.meters.written_bytes.increment(self.current.len - before_footer);
        // Synced before the next segment is written: damage in a sealed segment is never a torn tail.
        self.sync_current()?;
        self.shared.segment_written(self.current.number, &self.current.file, self.current.len);
        // Nobody else changes them.
        let mut votes = self.shared.votes.lock().file.groups.clone();
        let preamble = Preamble {
            disk_id: &self.disk_id,
            previous: Some((self.current.number, self.current.len)),
            metas: &self.metas,
            votes: &mut votes,
            cuts: &BTreeMap::new(),
            settled: Vec::new(),
            accepted: BTreeMap::new(),
        };
        let number = self.current.number + 1;
        self.current = start_segment(self.io.as_ref(), &self.dir, number, preamble, &mut self.next_batch)?;
        {
            let mut state = self.shared.votes.lock();
            state.file.groups = votes;
            // So that the file soon knows how far the log reaches.
            state.unsaved = true;
        }
        self.shared.segment_written(self.current.number, &self.current.file, self.current.len);
        self.shared.sync.lock().wrote(self.next_batch, 0, &self.current.file);
        self.shared.meters.written_bytes.increment(self.current.len);
        self.shared.meters.segments_created.increment(1);
        Ok(())
    }

    fn sync_current(&self) -> std::io::Result<()> {
        self.shared.sync_file(self.current.file.as_ref()).map_err(std::io::Error::other)
    }

    /// Removes the oldest segments that no group needs any more. The purge records that allow it are synced.
    fn drop_purged_segments(&self) -> std::io::Result<()> {
        let Some(keep_from) = self.shared.oldest_needed_segment(self.current.number) else { return Ok(()) };
        let dropped = self.shared.remove_segments_below(keep_from);
        if !dropped.is_empty() {
            self.shared.votes.lock().file.oldest = keep_from;
            // The purge records that allow it were synced just now: they may not be taken for a torn tail any more.
            self.shared.save_votes(self.next_batch)?;
        }
        for number in &dropped {
            // One after the other: a gap between segments would look like damage.
            self.io.remove(&segment_path(&self.dir, *number))?;
            self.io.sync_dir(&self.dir)?;
            self.shared.meters.segments_removed.increment(1);
        }
        Ok(())
    }
}

impl SyncState {
    fn wrote(&mut self, written: u64, bytes: u64, file: &Arc<dyn LogFile>) {
        self.written = written;
        self.unsynced_bytes += bytes;
        self.file = Some(Arc::clone(file));
        if bytes > 0 {
            self.oldest_unsynced.get_or_insert_with(Instant::now);
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Bytes that are written and not known to be on disk, and the age of the oldest of them.
    pub(crate) fn lag(&self) -> (u64, Duration) {
        let (syncing_bytes, syncing_since) = self.syncing.unzip();
        let since = syncing_since.or(self.oldest_unsynced);
        (self.unsynced_bytes + syncing_bytes.unwrap_or(0), since.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    pub(crate) fn wait_for(&mut self, group: u32, index: u64, done: Callback) {
        self.hurried.push((group, index, done));
    }

    fn next(&self, config: &WalConfig) -> Next {
        match self.due_in(config) {
            Some(Duration::ZERO) => Next::Sync,
            _ if self.closed && self.waiting.is_empty() && self.unsynced_bytes == 0 => Next::End,
            _ if self.closed => Next::Sync,
            due => Next::Wait(due),
        }
    }

    /// How long the sync thread may still wait; `None` while there is nothing to sync.
    fn due_in(&self, config: &WalConfig) -> Option<Duration> {
        if !self.waiting.is_empty() || self.unsynced_bytes >= config.sync_bytes {
            return Some(Duration::ZERO);
        }
        let since = self.oldest_unsynced?;
        if !self.hurried.is_empty() {
            return Some(Duration::ZERO);
        }
        Some(config.sync_interval.saturating_sub(since.elapsed()))
    }
}

impl Shared {
    /// Takes those out whose index is on disk now.
    fn satisfied(&self) -> Vec<Callback> {
        let hurried = std::mem::take(&mut self.sync.lock().hurried);
        let (satisfied, waiting): (Vec<_>, Vec<_>) =
            hurried.into_iter().partition(|(group, index, _)| self.synced_index(*group) >= *index);
        self.sync.lock().hurried.extend(waiting);
        satisfied.into_iter().map(|(_, _, done)| done).collect()
    }
}

impl Shared {
    /// Nobody is told of a vote before its second copy is on disk.
    fn save_unsaved_votes(&self, written: u64) -> Result<(), WalError> {
        if !self.votes.lock().unsaved {
            return Ok(());
        }
        self.save_votes(written).map_err(|error| self.poison("write of the votes file", error))
    }

    /// The next start knows then that the whole log was on disk. `file` was written since the log was opened.
    fn save_votes_at_close(&self, file: Option<&dyn LogFile>) {
        let Some(file) = file else { return };
        let synced = self.sync_file(file).is_ok();
        if synced && let Err(error) = self.save_votes(self.synced_batch()) {
            tracing::warn!(%error, "the votes file was not brought up to date");
        }
    }
}

/// What the sync thread does next.
enum Next {
    Sync,
    /// Everything is on disk and nothing more will be written.
    End,
    Wait(Option<Duration>),
}

/// Syncs until the write thread is gone and everything is on disk, or the log is poisoned.
pub(crate) fn run_sync(shared: &Shared, config: &WalConfig) {
    loop {
        let mut state = shared.sync.lock();
        loop {
            match state.next(config) {
                Next::Sync => break,
                Next::End => return end_sync(shared, state),
                Next::Wait(Some(wait)) => state = shared.sync_ready.wait_timeout(state, wait),
                Next::Wait(None) => state = shared.sync_ready.wait(state),
            }
        }
        sync(shared, state);
    }
}

/// Syncs once if that is due.
pub(crate) fn step_sync(shared: &Shared, config: &WalConfig) -> Step {
    let state = shared.sync.lock();
    match state.next(config) {
        Next::Sync => {
            sync(shared, state);
            Step::Again
        }
        Next::End => {
            end_sync(shared, state);
            Step::Done
        }
        Next::Wait(due) => Step::Wait(due),
    }
}

fn sync(shared: &Shared, mut state: MutexGuard<'_, SyncState>) {
    let waiting = std::mem::take(&mut state.waiting);
    let (written, file) = (state.written, state.file.clone());
    let syncing = state.oldest_unsynced.map(|since| (state.unsynced_bytes, since));
    state.syncing = syncing;
    state.unsynced_bytes = 0;
    state.oldest_unsynced = None;
    drop(state);
    // Earlier segments were synced when they were sealed, so the newest file is enough.
    let synced = file.map_or(Ok(()), |file| shared.sync_file(file.as_ref()));
    match synced.and_then(|()| shared.save_unsaved_votes(written)) {
        Ok(()) => {
            shared.advance_synced(written);
            shared.sync.lock().syncing = None;
            let poisoned = shared.poisoned();
            for done in waiting.into_iter().chain(shared.satisfied()) {
                done(poisoned.clone().map_or(Ok(()), Err));
            }
        }
        Err(failure) => {
            let hurried = std::mem::take(&mut shared.sync.lock().hurried);
            for done in waiting.into_iter().chain(hurried.into_iter().map(|(_, _, done)| done)) {
                done(Err(failure.clone()));
            }
        }
    }
}

fn end_sync(shared: &Shared, mut state: MutexGuard<'_, SyncState>) {
    let hurried = std::mem::take(&mut state.hurried);
    let file = state.file.clone();
    drop(state);
    shared.save_votes_at_close(file.as_deref());
    let failure = shared.poisoned().unwrap_or(WalError::Closed);
    hurried.into_iter().for_each(|(_, _, done)| done(Err(failure.clone())));
}
