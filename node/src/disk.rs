//! The room on the log's disk, and what the node does while there is little (DESIGN section 4).
//!
//! [`decide`] says what follows from what was found, [`watch`] carries it out: the groups are told the level (they give
//! leaderships away and purge at once), groups that keep the oldest segment are flushed by their leaders, queries that spill
//! to the same disk are ended, and a ballast file beside the log goes when next to nothing is free, so that votes and purge
//! records can still be written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use signaldb_api::App;
use signaldb_model::GroupId;
use signaldb_raft::{DiskLevel, Group};
use signaldb_wal::{LogIo, RealIo};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::DiskReserve;
use crate::metrics;

/// How often the room is looked at. Between two looks a log grows by less than a usual reserve.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The same below the reserve: followers still take what leaders send, and stop in time only if nothing much comes between
/// two looks, some MiB at the most.
const LOOK_INTERVAL_BELOW: Duration = Duration::from_millis(10);
/// A group is asked to flush at most so often: small files in its tables are the price.
const FLUSH_AGAIN: Duration = Duration::from_secs(30);
/// Pause after the ballast file could not be made or removed.
const BALLAST_AGAIN: Duration = Duration::from_secs(60);
/// Votes, purge records, and the ends and beginnings of segments are KiBs each.
const BALLAST_BYTES: u64 = 16 << 20;
const BALLAST: &str = "ballast";
const LOW_BYTES_MAX: u64 = 64 << 20;

/// Room on the file system of the log, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskRoom {
    pub(crate) size: u64,
    pub(crate) free: u64,
    /// Ingest stops when less is free.
    pub(crate) reserve: u64,
}

impl DiskRoom {
    /// `None` when the system does not say.
    fn of(dir: &Path, reserve: DiskReserve) -> Option<Self> {
        let stat = statvfs(dir).ok()?;
        let (size, free) = (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize);
        Some(Self { size, free, reserve: reserve.bytes.min(size / 100 * u64::from(reserve.percent)) })
    }

    /// So much has to be free again before ingest goes on: a node at the edge must not come and go.
    fn resume(self) -> u64 {
        self.reserve.saturating_add(self.reserve / 8)
    }

    /// What snapshots may take: even the last of it is not theirs alone, for the log goes on meanwhile.
    fn for_snapshots(self) -> u64 {
        self.free.saturating_sub(self.low() / 4)
    }

    /// When less is free, the ballast goes; at half of it, entries of leaders are refused.
    fn low(self) -> u64 {
        LOW_BYTES_MAX.min(self.reserve / 4)
    }
}

/// What becomes of the ballast file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BallastAction {
    Keep,
    Make,
    Remove,
}

/// The level that follows `before` now that so much room was found.
fn decide(before: DiskLevel, room: DiskRoom, has_ballast: bool) -> (DiskLevel, BallastAction) {
    let (free, low) = (room.free, room.low());
    let stays_exhausted = before == DiskLevel::Exhausted && free < low;
    let stays_nearly_full = before != DiskLevel::Normal && free < room.resume();
    let level = if free < low / 2 || stays_exhausted {
        DiskLevel::Exhausted
    } else if free < room.reserve || stays_nearly_full {
        DiskLevel::NearlyFull
    } else {
        DiskLevel::Normal
    };
    let has_room = room.reserve > 0 && free >= room.resume().saturating_add(BALLAST_BYTES);
    let action = match has_ballast {
        true if free < low => BallastAction::Remove,
        // It must not be what stops ingest.
        false if level == DiskLevel::Normal && has_room => BallastAction::Make,
        _ => BallastAction::Keep,
    };
    (level, action)
}

/// Before the log is opened: a start writes too.
pub(crate) fn make_room(dir: &Path, reserve: DiskReserve) {
    let ballast = dir.join(BALLAST);
    let room = DiskRoom::of(dir, reserve);
    let action = room.map(|room| decide(DiskLevel::Normal, room, has_ballast(&ballast)).1);
    if action == Some(BallastAction::Remove) {
        tracing::warn!(ballast = %ballast.display(), "disk reserve: the log's disk is full; its ballast file is removed");
        if let Err(error) = remove_ballast(&ballast) {
            tracing::warn!(%error, "the ballast file cannot be removed");
        }
    }
}

/// Looks until `stop`. In `data_dir` is what else may be on the log's disk.
pub(crate) async fn watch(app: App, dir: PathBuf, data_dir: PathBuf, reserve: DiskReserve, stop: CancellationToken) {
    let mut watcher = Watcher {
        app,
        ballast: dir.join(BALLAST),
        holds_snapshots: share_disk(&dir, &data_dir.join("state")),
        holds_spilled: share_disk(&dir, &data_dir.join("spill")),
        dir,
        reserve,
        level: DiskLevel::Normal,
        ballast_not_before: Instant::now(),
        asked: BTreeMap::new(),
        flushes: JoinSet::new(),
    };
    loop {
        watcher.look().await;
        let pause = match watcher.level {
            DiskLevel::Normal => LOOK_INTERVAL,
            DiskLevel::NearlyFull | DiskLevel::Exhausted => LOOK_INTERVAL_BELOW,
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct Watcher {
    app: App,
    dir: PathBuf,
    /// Snapshots are on the same disk.
    holds_snapshots: bool,
    /// So is what queries spill.
    holds_spilled: bool,
    reserve: DiskReserve,
    level: DiskLevel,
    ballast: PathBuf,
    ballast_not_before: Instant,
    /// When each group was asked to flush last.
    asked: BTreeMap<GroupId, Instant>,
    flushes: JoinSet<()>,
}

impl Watcher {
    async fn look(&mut self) {
        let Some(room) = DiskRoom::of(&self.dir, self.reserve) else { return };
        let has_ballast = has_ballast(&self.ballast);
        let (level, action) = decide(self.level, room, has_ballast);
        if level != self.level {
            tell(self.level, level, room);
        }
        self.level = level;
        // Before the level, which is what groups wait for.
        if self.holds_snapshots {
            self.app.groups.set_room_for_snapshots(room.for_snapshots());
        }
        self.app.groups.set_disk_level(level);
        metrics::record_disk(room, level, if has_ballast { BALLAST_BYTES } else { 0 });
        self.move_ballast(action).await;
        self.end_spilling();
        self.flush_what_pins();
    }

    async fn move_ballast(&mut self, action: BallastAction) {
        if Instant::now() < self.ballast_not_before {
            return;
        }
        let path = self.ballast.clone();
        let moved = match action {
            BallastAction::Keep => return,
            BallastAction::Make => tokio::task::spawn_blocking(move || make_ballast(&path)).await,
            BallastAction::Remove => tokio::task::spawn_blocking(move || remove_ballast(&path)).await,
        };
        match moved.unwrap_or_else(|panicked| Err(io::Error::other(panicked))) {
            Ok(()) if action == BallastAction::Remove => {
                tracing::warn!("disk reserve: the ballast file was given up, so that votes and purges can be written");
            }
            Ok(()) => tracing::info!(bytes = BALLAST_BYTES, "the ballast file beside the log was made"),
            Err(error) => {
                tracing::warn!(path = %self.ballast.display(), %error, ?action, "the ballast file stays as it is");
                self.ballast_not_before = Instant::now() + BALLAST_AGAIN;
            }
        }
    }

    /// What queries may spill is more than a reserve.
    fn end_spilling(&self) {
        if self.level == DiskLevel::Normal || !self.holds_spilled {
            return;
        }
        let queries = self.app.engine.stop_spilling();
        if queries > 0 {
            tracing::warn!(queries, "disk reserve: queries that spill to the log's disk are ended");
        }
    }

    /// Has the groups flushed that keep the oldest segment, by whoever leads them; the purge follows by itself.
    fn flush_what_pins(&mut self) {
        while self.flushes.try_join_next().is_some() {}
        if self.level == DiskLevel::Normal {
            self.asked.clear();
            return;
        }
        let pinning: Vec<Arc<Group>> = self.app.groups.pinning_groups().cloned().collect();
        let now = Instant::now();
        for group in pinning {
            if self.asked.get(&group.id()).is_some_and(|asked| now.duration_since(*asked) < FLUSH_AGAIN) {
                continue;
            }
            self.asked.insert(group.id(), now);
            let app = self.app.clone();
            self.flushes.spawn(async move {
                if let Err(error) = app.engine.flush_group(&group).await {
                    tracing::warn!(group = %group.id(), %error, "disk reserve: the log cannot shrink, a flush failed");
                }
            });
        }
    }
}

/// For the operator, at changes only.
fn tell(before: DiskLevel, level: DiskLevel, room: DiskRoom) {
    let DiskRoom { free, reserve, .. } = room;
    match level {
        DiskLevel::Normal => tracing::info!(free, reserve, "disk reserve: ingest is resumed"),
        DiskLevel::NearlyFull if before == DiskLevel::Exhausted => {
            tracing::warn!(free, reserve, "disk reserve: entries of leaders are taken again, rows are not");
        }
        DiskLevel::NearlyFull => tracing::warn!(
            free,
            reserve,
            "disk reserve: ingest is stopped; leaderships go to other nodes, flush and purge are forced"
        ),
        DiskLevel::Exhausted => tracing::error!(
            free,
            reserve,
            "disk reserve: next to nothing is free; entries of leaders are refused too, votes and purges go on"
        ),
    }
}

/// Whether both are on one file system; unless the system says that they are not.
fn share_disk(one: &Path, other: &Path) -> bool {
    let device = |dir: &Path| dir.metadata().map(|found| found.dev()).ok();
    device(one).zip(device(other)).is_none_or(|(one, other)| one == other)
}

/// One that a crash left half made is no ballast; it is made again.
fn has_ballast(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.size() == BALLAST_BYTES)
}

/// Blocking.
fn make_ballast(path: &Path) -> io::Result<()> {
    let made = take_blocks(path);
    if made.is_err() {
        // Half of it is of no use.
        let _ = std::fs::remove_file(path);
    }
    made
}

fn take_blocks(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES) {
        // The file system gives blocks only to what is written.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_noise(&mut file)?,
        allocated => allocated?,
    }
    file.sync_all()?;
    sync_parent(path)
}

/// What a file system cannot compress away.
fn write_noise(file: &mut File) -> io::Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = Vec::with_capacity(1 << 20);
    for _ in 0..BALLAST_BYTES >> 20 {
        block.clear();
        while block.len() < 1 << 20 {
            // Marsaglia, Xorshift RNGs, 2003.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    Ok(())
}

/// Blocking. A file system may give freed blocks away only once their removal is on disk.
fn remove_ballast(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    RealIo.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_left_with_more_room_than_it_is_entered() {
        use BallastAction::{Keep, Make, Remove};
        use DiskLevel::{Exhausted, NearlyFull, Normal};
        for (before, free, has_ballast, level, action) in [
            (Normal, 200, false, Normal, Make),
            (Normal, 200, true, Normal, Keep),
            // 90 and 16 MiB more, so that the ballast stops nothing.
            (Normal, 106, false, Normal, Make),
            (Normal, 105, false, Normal, Keep),
            (Normal, 80, true, Normal, Keep),
            (Normal, 79, true, NearlyFull, Keep),
            (NearlyFull, 89, true, NearlyFull, Keep),
            (NearlyFull, 90, true, Normal, Keep),
            (NearlyFull, 300, false, Normal, Make),
            (NearlyFull, 20, true, NearlyFull, Keep),
            (NearlyFull, 19, true, NearlyFull, Remove),
            (NearlyFull, 19, false, NearlyFull, Keep),
            (NearlyFull, 10, false, NearlyFull, Keep),
            (NearlyFull, 9, true, Exhausted, Remove),
            (Normal, 0, true, Exhausted, Remove),
            (Exhausted, 19, false, Exhausted, Keep),
            (Exhausted, 20, false, NearlyFull, Keep),
            (Exhausted, 300, true, Normal, Keep),
        ] {
            let room = DiskRoom { size: 1 << 40, free: free << 20, reserve: 80 << 20 };
            assert_eq!(decide(before, room, has_ballast), (level, action), "{before:?}, {free} MiB, {has_ballast}");
        }
    }

    #[test]
    fn a_usual_reserve_keeps_64_mib_for_the_last_steps_and_none_turns_all_of_it_off() {
        let room = |free: u64, reserve| DiskRoom { size: 1 << 40, free, reserve };
        for (free_mib, expected) in [(64, DiskLevel::NearlyFull), (31, DiskLevel::Exhausted)] {
            assert_eq!(decide(DiskLevel::Normal, room(free_mib << 20, 5 << 30), false).0, expected);
        }
        assert_eq!(decide(DiskLevel::Normal, room(0, 0), false), (DiskLevel::Normal, BallastAction::Keep));
        assert_eq!(decide(DiskLevel::Normal, room(1 << 40, 0), false), (DiskLevel::Normal, BallastAction::Keep));
    }

    #[test]
    fn snapshots_leave_room_for_the_log() {
        let room = |free: u64, reserve: u64| DiskRoom { size: 1 << 40, free: free << 20, reserve: reserve << 20 };
        for (free, reserve, left) in [(100, 5 << 10, 84), (17, 5 << 10, 1), (15, 5 << 10, 0), (32, 64, 28), (3, 64, 0)]
        {
            assert_eq!(room(free, reserve).for_snapshots(), left << 20, "{free} of {reserve} MiB");
        }
    }

    #[test]
    fn directories_of_one_file_system_share_a_disk() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let state = dir.path().join("state");
        assert!(share_disk(dir.path(), &state), "nobody knows");
        std::fs::create_dir(&state).expect("creates");
        assert!(share_disk(dir.path(), &state));
        assert!(!share_disk(dir.path(), Path::new("/proc")));
    }

    #[test]
    fn the_ballast_has_blocks_and_gives_them_back() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join(BALLAST);
        std::fs::write(&path, b"half made").expect("writes");
        assert!(!has_ballast(&path));
        make_ballast(&path).expect("is made");
        assert!(has_ballast(&path));
        let blocks = path.metadata().expect("is there").blocks() * 512;
        assert!(blocks >= BALLAST_BYTES, "{blocks} bytes of blocks");
        remove_ballast(&path).expect("is removed");
        assert!(!path.exists());
    }

    #[test]
    fn noise_fills_the_ballast() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join(BALLAST);
        write_noise(&mut File::create(&path).expect("creates")).expect("writes");
        assert!(has_ballast(&path));
    }
}
