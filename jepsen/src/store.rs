//! Where a run is kept: `jepsen/store/<time>/`, and how its files are written.
//!
//! Their formats are documented in docs/consistency.md.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};

use crate::history::{self, Operation};
use crate::workload::Tenants;

/// Version of [`VERDICT`].
pub(crate) const FORMAT: u64 = 1;
/// Version of [`HISTORY`].
pub(crate) const HISTORY_FORMAT: u64 = 1;

pub(crate) const VERDICT: &str = "verdict.json";
pub(crate) const HISTORY: &str = "history.jsonl";
pub(crate) const FAULTS: &str = "faults.jsonl";
pub(crate) const LEADERS: &str = "leaders.jsonl";
pub(crate) const PAGE: &str = "index.html";
/// Names the newest run.
const LATEST: &str = "latest";

/// The directory of one run.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    /// Makes a directory below `store` that is named after the time (seconds since 1970), and points `latest` to it.
    pub(crate) fn make(store: &Path, now: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(store).with_context(|| format!("create {}", store.display()))?;
        let store = store.canonicalize()?;
        let name = dir_name(now);
        let mut dir = store.join(&name);
        for n in 2.. {
            match std::fs::create_dir(&dir) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    dir = store.join(format!("{name}-{n}"));
                }
                made => {
                    made.with_context(|| format!("create {}", dir.display()))?;
                    break;
                }
            }
        }
        // A convenience: file systems without links do without.
        let latest = store.join(LATEST);
        let _ = std::fs::remove_file(&latest);
        let _ = std::os::unix::fs::symlink(dir.file_name().unwrap_or_default(), &latest);
        Ok(Self { dir })
    }

    /// One that the caller chose.
    pub(crate) fn at(dir: &Path) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir)?;
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Self { dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The operations of a round, counted from 0.
    pub(crate) fn write_history(&self, round: usize, tenants: Tenants, operations: &[Operation]) -> anyhow::Result<()> {
        let name = match round {
            0 => HISTORY.to_owned(),
            round => HISTORY.replace('.', &format!("-{round}.")),
        };
        let head = json!({"format": HISTORY_FORMAT, "round": round, "tenants": tenants});
        self.write(&name, |out| {
            serde_json::to_writer(&mut *out, &head)?;
            out.write_all(b"\n")?;
            for operation in operations {
                serde_json::to_writer(&mut *out, operation)?;
                out.write_all(b"\n")?;
            }
            Ok(())
        })
    }

    /// Whatever else happened, a line each.
    pub(crate) fn write_lines<T: Serialize>(&self, name: &str, happened: &[T]) -> anyhow::Result<()> {
        history::write(&self.dir.join(name), happened)
    }

    pub(crate) fn write_verdict(&self, verdict: &Value) -> anyhow::Result<()> {
        self.write(VERDICT, |out| Ok(serde_json::to_writer_pretty(out, verdict)?))
    }

    pub(crate) fn write_page(&self, page: &str) -> anyhow::Result<()> {
        self.write(PAGE, |out| Ok(out.write_all(page.as_bytes())?))
    }

    fn write(
        &self,
        name: &str,
        content: impl FnOnce(&mut std::io::BufWriter<std::fs::File>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let path = self.dir.join(name);
        let file = std::fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let mut out = std::io::BufWriter::new(file);
        content(&mut out)?;
        out.flush().with_context(|| format!("write {}", path.display()))
    }

    /// Removes what the nodes stored: hundreds of megabytes that nobody looks at when all is well. Their words stay.
    pub(crate) fn remove_data(&self) {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for dir in entries.map(|entry| entry.path()).filter(|path| path.is_dir()) {
            let data = if dir.ends_with("shared") { dir } else { dir.join("data") };
            // What cannot be removed only takes room.
            let _ = std::fs::remove_dir_all(data);
        }
    }
}

/// Sorted by name, directories are sorted by time.
fn dir_name(seconds: u64) -> String {
    let [year, month, day, hour, minute, second] = civil(seconds);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// For people.
pub(crate) fn utc(seconds: u64) -> String {
    let [year, month, day, hour, minute, second] = civil(seconds);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// As XML has it.
pub(crate) fn iso_date(seconds: u64) -> String {
    let [year, month, day, hour, minute, second] = civil(seconds);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// As HTTP has it.
pub(crate) fn http_date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let [year, month, day, hour, minute, second] = civil(seconds);
    let (name, month) = (DAYS[(seconds / 86_400 % 7) as usize], MONTHS[month as usize - 1]);
    format!("{name}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

/// Year, month, day, hour, minute and second of a time since 1970.
/// Source: Hinnant, chrono-Compatible Low-Level Date Algorithms, civil_from_days.
fn civil(seconds: u64) -> [u64; 6] {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since the first of March of the year 0; an era has 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    [year, month, of_year - (153 * from_march + 2) / 5 + 1, rest / 3600, rest / 60 % 60, rest % 60]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Kind, Level, Outcome, Position};

    #[test]
    fn times_are_named_as_the_calendar_does() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_767_225_599, "2025-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), expected);
        }
        assert_eq!(dir_name(1_767_225_599), "20251231T235959Z");
        assert_eq!(iso_date(1_767_225_599), "2025-12-31T23:59:59Z");
        assert_eq!(http_date(1_767_225_599), "Wed, 31 Dec 2025 23:59:59 GMT");
        assert_eq!(http_date(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
    }

    #[test]
    fn two_runs_of_one_second_have_directories_of_their_own_and_latest_is_the_second() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let first = Store::make(dir.path(), 1_767_225_599)?;
        let second = Store::make(dir.path(), 1_767_225_599)?;
        assert!(first.dir().ends_with("20251231T235959Z") && second.dir().ends_with("20251231T235959Z-2"));
        assert_eq!(dir.path().join(LATEST).canonicalize()?, second.dir());
        Ok(())
    }

    /// A change of a line is a change of the format: a new number, and docs/consistency.md says what is new.
    #[test]
    fn golden_history() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let store = Store::at(dir.path())?;
        let add = Operation {
            process: 3,
            node: 1,
            tenant: "alpha",
            invoked: 1000,
            ended: 2500,
            outcome: Outcome::Ok,
            asked: Some(Level::Quorum),
            given: Some(Level::Fsync),
            position: Position::parse("3:41"),
            kind: Kind::Add(vec!["00ff".to_owned()]),
        };
        let read = Operation {
            outcome: Outcome::Info,
            asked: None,
            given: None,
            position: None,
            kind: Kind::Read(Vec::new()),
            ..add.clone()
        };
        store.write_history(2, ["alpha", "beta"], &[add, read])?;
        let written = std::fs::read_to_string(dir.path().join("history-2.jsonl"))?;
        let lines: Vec<&str> = written.lines().collect();
        assert_eq!(
            lines,
            [
                r#"{"format":1,"round":2,"tenants":["alpha","beta"]}"#,
                r#"{"process":3,"node":1,"tenant":"alpha","invoked":1000,"ended":2500,"outcome":"ok","asked":"quorum","given":"fsync","position":"3:41","f":"add","value":["00ff"]}"#,
                r#"{"process":3,"node":1,"tenant":"alpha","invoked":1000,"ended":2500,"outcome":"info","f":"read","value":[]}"#,
            ]
        );
        Ok(())
    }

    #[test]
    fn data_goes_and_words_stay() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let store = Store::at(dir.path())?;
        for path in ["node-1/data/wal", "shared/storage"] {
            std::fs::create_dir_all(dir.path().join(path))?;
        }
        std::fs::write(dir.path().join("node-1/node.log"), "ready")?;
        store.write_page("<p>")?;
        store.remove_data();
        assert!(!dir.path().join("node-1/data").exists() && !dir.path().join("shared").exists());
        assert!(dir.path().join("node-1/node.log").exists() && dir.path().join(PAGE).exists());
        Ok(())
    }
}
