//! A disk in memory that loses power: unsynced bytes vanish, tear or turn into zeros.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::io::{LogFile, LogIo};

/// A simulated disk; clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimIo(Arc<Mutex<Disk>>);

#[derive(Debug, Default, Clone)]
struct Disk {
    files: BTreeMap<PathBuf, Content>,
    /// Handles of an earlier power cycle are dead.
    cycle: u64,
    /// Bytes that may still be written before ENOSPC.
    space: Option<u64>,
    /// Bytes that all files together may have before ENOSPC.
    capacity: Option<u64>,
    /// fdatasyncs that still fail.
    failing_syncs: u64,
    /// fdatasyncs that were asked for.
    syncs: u64,
    /// Changes that are still carried out before the power fails.
    changes: Option<u64>,
    /// Bytes of a file that cannot be read.
    unreadable: Option<(PathBuf, Range<usize>)>,
    /// Reads of open files that still succeed, and how many fail then.
    failing_reads: Option<(u64, u64)>,
}

#[derive(Debug, Default, Clone)]
struct Content {
    bytes: Vec<u8>,
    synced: usize,
    /// What a failed fdatasync was about: called clean ever since, and not on the disk.
    dropped: Option<Range<usize>>,
}

/// What a power loss does to the unsynced end of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All of it is gone.
    All,
    /// The first `0` bytes of it survive.
    KeepPrefix(usize),
    /// The first `0` bytes survive, the rest reads as zeros (the length was journaled, the data was not).
    ZerosAfter(usize),
}

impl SimIo {
    pub fn new() -> Self {
        Self::default()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Power loss: open handles die, every unsynced end suffers `loss`.
    pub fn lose_power(&self, loss: Loss) {
        let mut disk = self.disk();
        disk.cycle += 1;
        for content in disk.files.values_mut() {
            let unsynced = content.bytes.len() - content.synced;
            match loss {
                Loss::All => content.bytes.truncate(content.synced),
                Loss::KeepPrefix(keep) => content.bytes.truncate(content.synced + keep.min(unsynced)),
                Loss::ZerosAfter(keep) => content.bytes[content.synced + keep.min(unsynced)..].fill(0),
            }
            if let Some(dropped) = content.dropped.take() {
                let len = content.bytes.len();
                content.bytes[dropped.start.min(len)..dropped.end.min(len)].fill(0);
            }
            content.synced = content.bytes.len();
        }
    }

    /// `kill -9`: handles die, every written byte stays.
    pub fn kill(&self) {
        self.disk().cycle += 1;
    }

    /// From now on at most `bytes` more can be written, whatever is removed; `None` lifts the bound.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.disk().space = bytes;
    }

    /// From now on all files together have at most `bytes`: what is removed makes room; `None` lifts the bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk().capacity = bytes;
    }

    /// Bytes of all files.
    pub fn used_bytes(&self) -> u64 {
        self.disk().used()
    }

    /// Bytes that can still be written; `None` without a bound.
    pub fn free_bytes(&self) -> Option<u64> {
        Some(self.disk().room()).filter(|room| *room < u64::MAX)
    }

    /// From now on every fdatasync fails with EIO.
    pub fn fail_syncs(&self) {
        self.disk().failing_syncs = u64::MAX;
    }

    /// The next fdatasync fails with EIO, later ones succeed: the kernel reports a failure once, and calls the pages
    /// clean that it could not write. They can be read until the power fails.
    pub fn fail_one_sync(&self) {
        self.disk().failing_syncs = 1;
    }

    /// How often fdatasync was called.
    pub fn syncs(&self) -> u64 {
        self.disk().syncs
    }

    /// After `changes` more writes, syncs, creations and removals every further one fails, the first of them halfway;
    /// `None` lifts the bound.
    pub fn fail_after(&self, changes: Option<u64>) {
        self.disk().changes = changes;
    }

    /// From now on these bytes of the file at `path` cannot be read (EIO).
    pub fn make_unreadable(&self, path: &Path, bytes: Range<usize>) {
        self.disk().unreadable = Some((path.to_owned(), bytes));
    }

    /// After `reads` more reads of open files the next `failing` fail with EIO, and those after them succeed.
    pub fn fail_reads(&self, reads: u64, failing: u64) {
        self.disk().failing_reads = Some((reads, failing));
    }

    /// All reads succeed again; whether the time to fail had come since [`Self::fail_reads`].
    pub fn mend_reads(&self) -> bool {
        self.disk().failing_reads.take().is_none_or(|(reads, _)| reads == 0)
    }

    /// Another disk with the same content.
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.disk().clone())))
    }

    /// Cuts the file at `path` to `len` bytes.
    pub fn cut(&self, path: &Path, len: usize) {
        if let Some(content) = self.disk().files.get_mut(path) {
            content.bytes.truncate(len);
            content.synced = content.synced.min(len);
        }
    }

    /// Flips one bit of the file at `path`.
    pub fn flip(&self, path: &Path, offset: usize) {
        if let Some(content) = self.disk().files.get_mut(path) {
            content.bytes[offset] ^= 1;
        }
    }

    pub fn file_len(&self, path: &Path) -> Option<usize> {
        self.disk().files.get(path).map(|content| content.bytes.len())
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        self.disk().files.keys().cloned().collect()
    }
}

impl LogIo for SimIo {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let disk = self.disk();
        if !disk.files.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Arc::new(SimFile { io: self.clone(), path: path.to_owned(), cycle: disk.cycle }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk();
        let names = disk.files.keys().filter(|path| path.parent() == Some(dir)).filter_map(|path| path.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.change()?;
        disk.files.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.disk().change()
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let replaced = disk.change().and_then(|()| disk.take_space(content.len()));
        if replaced.is_ok() {
            // The new one lies elsewhere on the disk.
            disk.unreadable = disk.unreadable.take().filter(|(bad, _)| bad != path);
        }
        let temporary = path.with_added_extension("tmp");
        disk.files.remove(&temporary);
        let (path, bytes) = match &replaced {
            Ok(()) => (path.to_owned(), content),
            Err(_) => (temporary, &content[..content.len() / 2]),
        };
        disk.files.insert(path, Content { bytes: bytes.to_vec(), synced: bytes.len(), dropped: None });
        replaced
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        Ok(self.disk().files.get(path).map(|content| content.bytes.clone()))
    }
}

impl Disk {
    fn used(&self) -> u64 {
        self.files.values().map(|content| content.bytes.len() as u64).sum()
    }

    /// Bytes that may be written now.
    fn room(&self) -> u64 {
        let left = self.capacity.map(|capacity| capacity.saturating_sub(self.used()));
        left.into_iter().chain(self.space).min().unwrap_or(u64::MAX)
    }

    fn take_space(&mut self, bytes: usize) -> io::Result<()> {
        if self.room() < bytes as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.space = self.space.map(|space| space - bytes as u64);
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        let Some((reads, failing)) = &mut self.failing_reads else { return Ok(()) };
        if *reads > 0 {
            *reads -= 1;
            return Ok(());
        }
        *failing -= 1;
        if *failing == 0 {
            self.failing_reads = None;
        }
        Err(io::Error::other("simulated EIO"))
    }

    fn change(&mut self) -> io::Result<()> {
        match &mut self.changes {
            Some(0) => Err(io::Error::other("simulated power failure")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct SimFile {
    io: SimIo,
    path: PathBuf,
    cycle: u64,
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut Disk, &Path) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.io.disk();
        if disk.cycle != self.cycle {
            return Err(io::Error::other("the machine was restarted"));
        }
        act(&mut disk, &self.path)
    }
}

fn content<'a>(disk: &'a mut Disk, path: &Path) -> io::Result<&'a mut Content> {
    disk.files.get_mut(path).ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl LogFile for SimFile {
    fn append(&self, buffers: &[&[u8]]) -> io::Result<()> {
        self.with(|disk, path| {
            let bytes: usize = buffers.iter().map(|buffer| buffer.len()).sum();
            let changed = disk.change();
            let room = bytes.min(usize::try_from(disk.room()).unwrap_or(usize::MAX));
            let room = if changed.is_ok() { room } else { room / 2 };
            disk.space = disk.space.map(|space| space - room as u64);
            let written = buffers.concat();
            content(disk, path)?.bytes.extend_from_slice(&written[..room]);
            changed?;
            if room == bytes { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|disk, path| {
            disk.syncs += 1;
            if disk.failing_syncs > 0 {
                disk.failing_syncs -= 1;
                let content = content(disk, path)?;
                let from = content.dropped.as_ref().map_or(content.synced, |dropped| dropped.start.min(content.synced));
                content.dropped = Some(from..content.bytes.len());
                return Err(io::Error::other("simulated EIO"));
            }
            disk.change()?;
            let content = content(disk, path)?;
            content.synced = content.bytes.len();
            Ok(())
        })
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|disk, path| {
            disk.read()?;
            let end = offset as usize + buffer.len();
            let bad = disk.unreadable.as_ref().filter(|(bad, _)| bad == path);
            if bad.is_some_and(|(_, bytes)| (offset as usize) < bytes.end && bytes.start < end) {
                return Err(io::Error::other("simulated EIO"));
            }
            let content = content(disk, path)?;
            let source = content.bytes.get(offset as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(source);
            Ok(())
        })
    }

    fn size(&self) -> io::Result<u64> {
        self.with(|disk, path| Ok(content(disk, path)?.bytes.len() as u64))
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.with(|disk, path| {
            disk.change()?;
            let content = content(disk, path)?;
            content.bytes.truncate(len as usize);
            content.synced = content.synced.min(len as usize);
            Ok(())
        })
    }
}
