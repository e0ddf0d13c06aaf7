//! The log engine alone, in this process: appends as raft's log store makes them, in turn with plain writes of the same
//! bytes to the same file system under the same sync policy; then what a start reads, and how often the disk is synced.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use signaldb_wal::{AppendEntry, Durability, LogFile, LogIo, RealIo, Wal, WalConfig, WalError, inspect, keep_trust};

use crate::load::{Latency, random_bytes};

/// Bytes of the entries that are measured.
const ENTRIES: [usize; 3] = [1 << 10, 64 << 10, 1 << 20];
/// Payload of one run; entries of 1 KiB take an eighth of it, for they are slow.
const RUN_BYTES: usize = 512 << 20;
/// Appends in flight, as admission bounds them: far from a group's 64 MiB, and enough that the writer never waits.
const WINDOW_BYTES: usize = 16 << 20;
/// Appends whose latency is measured, one at a time, and how often one is made.
const SAMPLES: u32 = 1000;
const PACE: Duration = Duration::from_millis(5);
/// Payload that is read back, in entries of 64 KiB.
const RECOVERY_BYTES: usize = 2 << 30;
const RECOVERY_ENTRY: usize = 64 << 10;
/// Bytes that one read of the log returns at most, as raft reads.
const READ_BYTES_MAX: usize = 4 << 20;
/// The disk's syncs are counted over so many groups, each with an entry of 1 KiB every 10 ms: 6.5 MB/s, so that time
/// and not `sync_bytes` makes them due.
const GROUPS: u32 = 64;
const SYNCS_LAST: Duration = Duration::from_secs(5);
const SYNCS_PACE: Duration = Duration::from_millis(10);

const GROUP: u32 = 1;

/// Everything about the log engine.
#[derive(Debug)]
pub(crate) struct MeasuredWal {
    pub(crate) appends: Vec<Appends>,
    pub(crate) recoveries: Vec<Recovery>,
    /// fdatasyncs a second at memory-level traffic of [`GROUPS`] groups.
    pub(crate) syncs_a_second: f64,
}

/// Entries of one size.
#[derive(Debug)]
pub(crate) struct Appends {
    pub(crate) bytes: usize,
    pub(crate) rounds: Vec<Round>,
    /// From the call to the acknowledgment, one at a time every [`PACE`].
    pub(crate) latency: Latency,
    /// The same for a plain write.
    pub(crate) plain_latency: Latency,
    /// Bytes of the log's files for each byte of payload.
    pub(crate) file_amplification: f64,
    /// Bytes of pages that the log dirtied (`write_bytes` of `/proc/self/io`) for each byte of payload.
    pub(crate) page_amplification: f64,
}

/// MB/s of the same payload, written three ways one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    pub(crate) log: f64,
    /// One file that grows.
    pub(crate) plain: f64,
    /// Files of a segment's size, each on disk before the next begins, as the log's are.
    pub(crate) segmented: f64,
}

/// GB/s of payload.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// The page cache was dropped before each step.
    pub(crate) cold: bool,
    /// Opening: of sealed segments a start reads the index alone.
    pub(crate) open: f64,
    /// Opening and reading every entry back, as a new leader does with what is not flushed.
    pub(crate) replay: f64,
    /// Reading every byte against its checksum (`signaldb wal verify`), as a start does with what is suspect.
    pub(crate) verify: f64,
}

/// Blocks for a minute or two.
pub(crate) fn measure(rounds: usize) -> anyhow::Result<MeasuredWal> {
    let appends = ENTRIES.into_iter().map(|bytes| measure_appends(bytes, rounds)).collect::<anyhow::Result<_>>()?;
    Ok(MeasuredWal { appends, recoveries: recover()?, syncs_a_second: syncs_a_second()? })
}

fn measure_appends(bytes: usize, rounds: usize) -> anyhow::Result<Appends> {
    let payload = Payload::new(bytes);
    let count = if bytes < 4 << 10 { RUN_BYTES / 8 } else { RUN_BYTES } / bytes;
    let total = (count * bytes) as f64;
    let mut measured = Vec::new();
    let (mut file_amplification, mut page_amplification) = (0.0, 0.0);
    for _ in 0..rounds.max(1) {
        let rate = |took: Duration| total / took.as_secs_f64() / 1e6;
        let dir = tempfile::tempdir()?;
        let before = written_bytes()?;
        let log = rate(log_run(dir.path(), &payload, count)?);
        page_amplification = (written_bytes()? - before) as f64 / total;
        file_amplification = file_bytes(dir.path())? as f64 / total;
        // Its files are gone before the next run begins.
        drop(dir);
        let plain = rate(plain_run(&payload, count, u64::MAX)?);
        let segmented = rate(plain_run(&payload, count, WalConfig::default().segment_bytes_max)?);
        eprintln!("wal, {} KiB: log {log:.0}, plain {plain:.0}, segmented {segmented:.0} MB/s", bytes >> 10);
        measured.push(Round { log, plain, segmented });
    }
    let (latency, plain_latency) = (log_latency(&payload)?, plain_latency(&payload)?);
    Ok(Appends { bytes, rounds: measured, latency, plain_latency, file_amplification, page_amplification })
}

/// Entries of one size: other bytes each time, made before.
struct Payload {
    bytes: usize,
    random: Bytes,
}

impl Payload {
    fn new(bytes: usize) -> Self {
        Self { bytes, random: random_bytes(bytes + (1 << 20)).into() }
    }

    fn entry(&self, number: u64) -> Bytes {
        let at = (number as usize * 64) % (1 << 20);
        self.random.slice(at..at + self.bytes)
    }
}

fn open(io: Arc<dyn LogIo>, dir: &Path) -> anyhow::Result<Wal> {
    Ok(Wal::open(io, dir, WalConfig::default(), "bench", keep_trust)?)
}

/// Acknowledgments of appends in flight.
struct Window {
    sender: SyncSender<Result<(), WalError>>,
    done: Receiver<Result<(), WalError>>,
    room: usize,
    in_flight: usize,
}

impl Window {
    fn new(room: usize) -> Self {
        // With room for all of them, so that the log's threads never wait for this one.
        let (sender, done) = sync_channel(room);
        Self { sender, done, room, in_flight: 0 }
    }

    fn append(&mut self, wal: &Wal, group: u32, index: u64, bytes: Bytes) -> anyhow::Result<()> {
        if self.in_flight == self.room {
            self.wait()?;
        }
        let sender = self.sender.clone();
        let entry = AppendEntry { index, term: 1, bytes };
        wal.append(group, &[entry], Durability::Written, Box::new(move |outcome| drop(sender.send(outcome))));
        self.in_flight += 1;
        Ok(())
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        self.done.recv()??;
        self.in_flight -= 1;
        Ok(())
    }

    fn wait_all(&mut self) -> anyhow::Result<()> {
        while self.in_flight > 0 {
            self.wait()?;
        }
        Ok(())
    }
}

/// Time until every append was acknowledged; the log is closed, and on disk, when this returns.
fn log_run(dir: &Path, payload: &Payload, count: usize) -> anyhow::Result<Duration> {
    let wal = open(Arc::new(RealIo), dir)?;
    let mut window = Window::new((WINDOW_BYTES / payload.bytes).max(1));
    let begun = Instant::now();
    for index in 1..=count as u64 {
        window.append(&wal, GROUP, index, payload.entry(index))?;
    }
    window.wait_all()?;
    let took = begun.elapsed();
    wal.close();
    Ok(took)
}

fn log_latency(payload: &Payload) -> anyhow::Result<Latency> {
    let dir = tempfile::tempdir()?;
    let wal = open(Arc::new(RealIo), dir.path())?;
    let mut window = Window::new(1);
    latency(|number| {
        window.append(&wal, GROUP, number + 1, payload.entry(number))?;
        window.wait()
    })
}

fn plain_latency(payload: &Payload) -> anyhow::Result<Latency> {
    let dir = tempfile::tempdir()?;
    with_plain(dir.path(), u64::MAX, |plain| latency(|number| plain.append(&payload.entry(number))))
}

fn latency(mut append: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<Latency> {
    let begun = Instant::now();
    let mut times = Vec::new();
    for number in 0..SAMPLES {
        std::thread::sleep((begun + PACE * number).saturating_duration_since(Instant::now()));
        let called = Instant::now();
        append(number.into())?;
        times.push(called.elapsed());
    }
    Ok(Latency::of(times))
}

/// Time until every write returned; all is on disk when this returns.
fn plain_run(payload: &Payload, count: usize, file_bytes_max: u64) -> anyhow::Result<Duration> {
    let dir = tempfile::tempdir()?;
    with_plain(dir.path(), file_bytes_max, |plain| {
        let begun = Instant::now();
        for number in 1..=count as u64 {
            plain.append(&payload.entry(number))?;
        }
        Ok(begun.elapsed())
    })
}

/// Plain writes, synced by another thread when the log's would be.
struct Plain<'a> {
    dir: PathBuf,
    file_bytes_max: u64,
    files: u32,
    file: Arc<File>,
    len: u64,
    syncs: &'a Syncs,
}

#[derive(Default)]
struct Syncs {
    state: Mutex<Unsynced>,
    changed: Condvar,
}

#[derive(Default)]
struct Unsynced {
    file: Option<Arc<File>>,
    bytes: u64,
    since: Option<Instant>,
    closed: bool,
}

fn with_plain<T>(
    dir: &Path,
    file_bytes_max: u64,
    act: impl FnOnce(&mut Plain<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let syncs = Syncs::default();
    let file = Arc::new(File::create_new(dir.join("0"))?);
    let mut plain = Plain { dir: dir.to_owned(), file_bytes_max, files: 1, file, len: 0, syncs: &syncs };
    std::thread::scope(|scope| {
        let syncing = scope.spawn(|| syncs.run(&WalConfig::default()));
        let outcome = act(&mut plain);
        // Also after a failure: the scope waits for the thread.
        syncs.lock().closed = true;
        syncs.changed.notify_one();
        let synced = syncing.join().unwrap_or_else(|_| Err(io::Error::other("the sync thread panicked")));
        synced?;
        outcome
    })
}

impl Plain<'_> {
    fn append(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if self.len >= self.file_bytes_max {
            self.file.sync_data()?;
            self.file = Arc::new(File::create_new(self.dir.join(self.files.to_string()))?);
            (self.files, self.len) = (self.files + 1, 0);
        }
        self.file.write_all_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        let mut state = self.syncs.lock();
        state.file = Some(Arc::clone(&self.file));
        state.bytes += bytes.len() as u64;
        state.since.get_or_insert_with(Instant::now);
        drop(state);
        self.syncs.changed.notify_one();
        Ok(())
    }
}

impl Syncs {
    fn lock(&self) -> MutexGuard<'_, Unsynced> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until closed, and then until all is on disk.
    fn run(&self, config: &WalConfig) -> io::Result<()> {
        let mut state = self.lock();
        loop {
            let hurry = state.closed || state.bytes >= config.sync_bytes;
            let left = |since: Instant| config.sync_interval.saturating_sub(since.elapsed());
            match state.since.map(|since| if hurry { Duration::ZERO } else { left(since) }) {
                Some(Duration::ZERO) => {
                    let file = state.file.clone();
                    (state.bytes, state.since) = (0, None);
                    drop(state);
                    file.map_or(Ok(()), |file| file.sync_data())?;
                    state = self.lock();
                }
                Some(wait) => {
                    let waited = self.changed.wait_timeout(state, wait);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                None if state.closed => return Ok(()),
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

fn recover() -> anyhow::Result<Vec<Recovery>> {
    let dir = tempfile::tempdir()?;
    let payload = Payload::new(RECOVERY_ENTRY);
    let count = RECOVERY_BYTES / RECOVERY_ENTRY;
    log_run(dir.path(), &payload, count)?;
    let mut recoveries = vec![recover_once(dir.path(), count as u64, false)?];
    if drop_caches() {
        recoveries.push(recover_once(dir.path(), count as u64, true)?);
    } else {
        eprintln!("wal: the page cache can be dropped by root alone; recovery is measured warm");
    }
    Ok(recoveries)
}

fn recover_once(dir: &Path, last: u64, cold: bool) -> anyhow::Result<Recovery> {
    let prepare = || -> anyhow::Result<()> {
        anyhow::ensure!(!cold || drop_caches(), "the page cache was not dropped");
        Ok(())
    };
    let rate = |took: Duration| RECOVERY_BYTES as f64 / took.as_secs_f64() / 1e9;
    prepare()?;
    let begun = Instant::now();
    let inspection = inspect(&RealIo, dir)?;
    let verify = rate(begun.elapsed());
    anyhow::ensure!(inspection.sound, "the log is damaged: {:?}", inspection.damages);
    prepare()?;
    let begun = Instant::now();
    let wal = open(Arc::new(RealIo), dir)?;
    let opened = begun.elapsed();
    let mut next = 1;
    while next <= last {
        let entries = wal.read(GROUP, next..=last, READ_BYTES_MAX)?;
        next = entries.last().context("an entry")?.0 + 1;
    }
    Ok(Recovery { cold, open: rate(opened), replay: rate(begun.elapsed()), verify })
}

/// Drops the page cache. Needs root; whether it was done.
pub(crate) fn drop_caches() -> bool {
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

fn syncs_a_second() -> anyhow::Result<f64> {
    let dir = tempfile::tempdir()?;
    let io = CountingIo::default();
    let wal = open(Arc::new(io.clone()), dir.path())?;
    let payload = Payload::new(1 << 10);
    let mut window = Window::new(GROUPS as usize);
    let (begun, before) = (Instant::now(), io.syncs());
    let mut index = 0;
    while begun.elapsed() < SYNCS_LAST {
        index += 1;
        for group in 1..=GROUPS {
            window.append(&wal, group, index, payload.entry(index))?;
        }
        window.wait_all()?;
        let due = begun + SYNCS_PACE * u32::try_from(index)?;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok((io.syncs() - before) as f64 / begun.elapsed().as_secs_f64())
}

/// The real file system, with every fdatasync counted.
#[derive(Debug, Clone, Default)]
struct CountingIo(Arc<AtomicU64>);

#[derive(Debug)]
struct CountingFile(Arc<dyn LogFile>, CountingIo);

impl CountingIo {
    fn syncs(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn counted(&self, file: Arc<dyn LogFile>) -> Arc<dyn LogFile> {
        Arc::new(CountingFile(file, self.clone()))
    }
}

impl LogIo for CountingIo {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealIo.create_dir_all(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(self.counted(RealIo.open(path)?))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealIo.list(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealIo.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealIo.sync_dir(dir)
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        RealIo.replace(path, content)
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        RealIo.read(path)
    }
}

impl LogFile for CountingFile {
    fn append(&self, buffers: &[&[u8]]) -> io::Result<()> {
        self.0.append(buffers)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.1.0.fetch_add(1, Ordering::Relaxed);
        self.0.sync_data()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }
}

/// Bytes that this process caused to be written to storage.
fn written_bytes() -> anyhow::Result<u64> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let value = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("write_bytes")?;
    Ok(value.trim().parse()?)
}

/// Bytes of all files below `dir`.
fn file_bytes(dir: &Path) -> anyhow::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        total += if metadata.is_dir() { file_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(total)
}
