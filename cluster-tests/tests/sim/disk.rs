//! The disk of a node, as one of its processes sees it, and the workers of the log on it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signaldb_raft::DiskLevel;
use signaldb_wal::sim::SimIo;
use signaldb_wal::{LogFile, LogIo, Step, Wake, Worker, Workers};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::world::{MILLI, Operation, World, digest_of};

/// Room on a disk below which a node takes no rows.
const RESERVE_BYTES: u64 = 64 << 10;

/// The level that follows `before` with so many bytes free: as `node/src/disk.rs` decides, with a reserve for logs of kibibytes
/// and no ballast beside them.
pub(crate) fn level(before: DiskLevel, free: Option<u64>) -> DiskLevel {
    let (free, low) = (free.unwrap_or(u64::MAX), RESERVE_BYTES / 4);
    let stays_exhausted = before == DiskLevel::Exhausted && free < low;
    let stays_nearly_full = before != DiskLevel::Normal && free < RESERVE_BYTES + RESERVE_BYTES / 8;
    if free < low / 2 || stays_exhausted {
        DiskLevel::Exhausted
    } else if free < RESERVE_BYTES || stays_nearly_full {
        DiskLevel::NearlyFull
    } else {
        DiskLevel::Normal
    }
}

/// The disk until the process ends. What a process does as it falls apart must not reach the disk of the next one.
#[derive(Debug, Clone)]
pub(crate) struct ProcessDisk {
    pub(crate) disk: SimIo,
    pub(crate) gone: Arc<AtomicBool>,
    pub(crate) world: World,
    pub(crate) node: u64,
}

#[derive(Debug)]
struct ProcessFile {
    file: Arc<dyn LogFile>,
    of: ProcessDisk,
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl ProcessDisk {
    /// The process asks for a change.
    fn note(&self, what: &str, path: &Path, bytes: &[&[u8]]) -> io::Result<()> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(io::Error::other("the process is gone"));
        }
        let (len, digest) = (bytes.iter().map(|part| part.len()).sum::<usize>(), digest_of(&bytes.concat()));
        self.world.note(format_args!("disk {} {what} {} {len} {digest:016x}", self.node, path.display()));
        Ok(())
    }

    /// The same, and it fails when the disk does.
    fn change(&self, what: &str, path: &Path) -> io::Result<()> {
        self.note(what, path, &[])?;
        self.attempt(Operation::Change)
    }

    fn attempt(&self, operation: Operation) -> io::Result<()> {
        let alive = !self.gone.load(Ordering::Relaxed);
        if alive && self.fails(operation) { Err(eio()) } else { Ok(()) }
    }

    fn fails(&self, operation: Operation) -> bool {
        self.world.with(|state| state.fails(self.node, operation))
    }

    fn open_file(&self, file: Arc<dyn LogFile>) -> Arc<dyn LogFile> {
        Arc::new(ProcessFile { file, of: self.clone() })
    }
}

impl LogIo for ProcessDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        self.attempt(Operation::Open)?;
        self.disk.open(path).map(|file| self.open_file(file))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change("remove", path)?;
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.change("sync_dir", dir)?;
        self.disk.sync_dir(dir)
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.note("replace", path, &[content])?;
        if !self.fails(Operation::Change) {
            return self.disk.replace(path, content);
        }
        // The last of its steps may be the one that fails.
        if self.world.with(|state| state.chance.percent(50)) {
            self.disk.replace(path, content)?;
        }
        Err(eio())
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.attempt(Operation::Read)?;
        self.disk.read(path)
    }

    fn workers(&self) -> Option<Box<dyn Workers>> {
        Some(Box::new(SimWorkers { world: self.world.clone(), node: self.node }))
    }
}

impl LogFile for ProcessFile {
    fn append(&self, buffers: &[&[u8]]) -> io::Result<()> {
        self.of.note("append", Path::new("log"), buffers)?;
        if !self.of.fails(Operation::Change) {
            return self.file.append(buffers);
        }
        let whole = buffers.concat();
        self.file.append(&[&whole[..whole.len() / 2]])?;
        Err(eio())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.of.note("sync", Path::new("log"), &[])?;
        if self.of.fails(Operation::Sync) {
            self.of.disk.fail_one_sync();
        }
        self.file.sync_data()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.of.attempt(Operation::Read)?;
        self.file.read_exact_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.of.change("truncate", Path::new("log"))?;
        self.file.truncate(len)
    }
}

/// Runs the workers as tasks of the node: what was written waits for its sync, which takes as long as the disk says.
#[derive(Debug)]
struct SimWorkers {
    world: World,
    node: u64,
}

impl Workers for SimWorkers {
    fn start(&self, name: &'static str, worker: Worker) -> Wake {
        let (world, node) = (self.world.clone(), self.node);
        let ready = Arc::new(Notify::new());
        let wake = Arc::clone(&ready);
        let syncs = name == "wal-sync";
        // It ends with the runtime of its node, as a thread with its process.
        drop(Handle::current().spawn(async move {
            loop {
                match worker() {
                    Step::Done => return,
                    Step::Again => {}
                    Step::Wait(None) => ready.notified().await,
                    // Late or early, the next step finds out.
                    Step::Wait(Some(limit)) => {
                        let _ = tokio::time::timeout(limit, ready.notified()).await;
                    }
                }
                let takes = world.with(|state| {
                    if !syncs {
                        return 0;
                    }
                    let (usual, slow) =
                        (state.chance.between(MILLI, 4 * MILLI), state.trouble.slow_disks.get(&node).copied());
                    if slow.is_some() {
                        state.count("slow syncs");
                    }
                    usual + slow.unwrap_or(0)
                });
                if takes > 0 {
                    tokio::time::sleep(Duration::from_nanos(takes)).await;
                } else {
                    tokio::task::yield_now().await;
                }
            }
        }));
        Arc::new(move || wake.notify_one())
    }
}
