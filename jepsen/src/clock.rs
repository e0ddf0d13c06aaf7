//! Wall clocks that can be moved while a node runs, without root.
//!
//! libfaketime is loaded into each node and adds an offset that it reads from a file once a second. Monotonic clocks and
//! the times of files stay true, as they do when an administrator sets a clock.
//! Source: README of libfaketime 0.9.10, sections 4d and 4e.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, anyhow, ensure};

use crate::random::Random;

/// The variant whose state is safe with threads.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// A jump is this far at least, seconds.
const JUMP_MIN: i64 = 60;
/// A jump is this far at most, seconds.
const JUMP_MAX: i64 = 7200;

/// How far a clock may seem to be from where it was set, seconds: answers take time.
const TOLERANCE: u64 = 20;

/// libfaketime as it was found and tried, and the files with the offsets.
#[derive(Debug)]
pub(crate) struct Clocks {
    library: PathBuf,
    /// Absolute: nodes run elsewhere.
    dir: PathBuf,
}

impl Clocks {
    /// Finds the library, and sees it move the clock of a small program. `dir` will hold the offsets.
    pub(crate) fn find(dir: &Path) -> anyhow::Result<Self> {
        let mut failure = anyhow!("libfaketime is not installed: scripts/install-deps.sh jepsen does it");
        for library in libraries() {
            let clocks = Self { library, dir: dir.to_owned() };
            match clocks.try_out() {
                Ok(()) => return Ok(clocks),
                Err(error) => failure = error.context(format!("try {}", clocks.library.display())),
            }
        }
        Err(failure)
    }

    fn try_out(&self) -> anyhow::Result<()> {
        let (program, offset) = ("date", 5000);
        self.set(program, offset)?;
        let mut command = Command::new(program);
        self.load_into(&mut command, program);
        let output = command.arg("+%s").output().context("run date")?;
        let shown = String::from_utf8_lossy(&output.stdout);
        let shown: i64 = shown.trim().parse().context("read the time that date shows")?;
        ensure!(is_at(shown, now(), offset), "it does not move the clock of a program");
        Ok(())
    }

    /// Has `command` follow the clock `name` when it is started.
    pub(crate) fn load_into(&self, command: &mut Command, name: &str) {
        // What this process was started with must not come first.
        command.env_remove("FAKETIME").env_remove("FAKETIME_SHARED");
        command.env("LD_PRELOAD", &self.library).env("FAKETIME_TIMESTAMP_FILE", self.file(name));
        // Read again as soon as the second changes.
        command.env("FAKETIME_CACHE_DURATION", "0");
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
    }

    /// Sets the clock `name` to `offset` seconds from the true time.
    pub(crate) fn set(&self, name: &str, offset: i64) -> io::Result<()> {
        // A reader that met half a line would end its process.
        let (file, fresh) = (self.file(name), self.file(&format!("{name}.new")));
        std::fs::write(&fresh, line(offset))?;
        std::fs::rename(fresh, file)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("clock-{name}"))
    }
}

/// The library of every architecture that is installed; one of another does not load.
fn libraries() -> Vec<PathBuf> {
    let multiarch = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let elsewhere = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from);
    let mut found: Vec<PathBuf> = multiarch.chain(elsewhere).map(|dir| dir.join(LIBRARY)).collect();
    found.retain(|library| library.exists());
    found.sort();
    found
}

/// An offset as libfaketime reads it: with its sign, in seconds.
fn line(offset: i64) -> String {
    format!("{offset:+}\n")
}

/// Removes what libfaketime leaves of a process that was killed: the next process with its id would not start.
pub(crate) fn forget(pid: u32) {
    for left in [format!("/dev/shm/faketime_shm_{pid}"), format!("/dev/shm/sem.faketime_sem_{pid}")] {
        // Without libfaketime there is nothing.
        let _ = std::fs::remove_file(left);
    }
}

/// A jump forwards or back, seconds.
pub(crate) fn jump(random: &Random) -> i64 {
    let far = JUMP_MIN + random.below((JUMP_MAX - JUMP_MIN + 1) as usize) as i64;
    if random.below(2) == 0 { far } else { -far }
}

/// The true time, seconds since 1970.
pub(crate) fn now() -> i64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs() as i64)
}

/// Whether a clock that shows `shown` is `offset` away from `now`, in seconds.
pub(crate) fn is_at(shown: i64, now: i64, offset: i64) -> bool {
    shown.abs_diff(now + offset) <= TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_have_their_sign() {
        assert_eq!(line(3600), "+3600\n");
        assert_eq!(line(-60), "-60\n");
        assert_eq!(line(0), "+0\n");
    }

    #[test]
    fn jumps_go_both_ways_and_keep_their_bounds() {
        let random = Random::new(1);
        let jumps: Vec<i64> = (0..1000).map(|_| jump(&random)).collect();
        assert!(jumps.iter().all(|jump| (JUMP_MIN..=JUMP_MAX).contains(&jump.abs())));
        assert!(jumps.iter().any(|jump| *jump > 0) && jumps.iter().any(|jump| *jump < 0));
    }

    #[test]
    fn the_smallest_jump_is_told_from_none() {
        assert!(is_at(1_000_003, 1_000_000, 0));
        for offset in [JUMP_MIN, -JUMP_MIN] {
            assert!(is_at(1_000_000 + offset, 1_000_000, offset));
            assert!(!is_at(1_000_000, 1_000_000, offset));
            assert!(!is_at(1_000_000 - offset, 1_000_000, offset));
        }
    }

    #[test]
    fn a_clock_is_set_as_a_whole() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let clocks = Clocks { library: PathBuf::new(), dir: dir.path().to_owned() };
        clocks.set("node-1", 90)?;
        clocks.set("node-1", -90)?;
        assert_eq!(std::fs::read_to_string(dir.path().join("clock-node-1"))?, "-90\n");
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 1, "nothing else is left");
        Ok(())
    }
}
