//! A SQLite catalog that takes no commits: somebody else holds it locked.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, ensure};

use crate::command::{python, run};

/// Locks the databases of its arguments until its standard input ends, also because this process did.
const LOCK: &str = "
import sqlite3, sys
connections = [sqlite3.connect(path, isolation_level=None, timeout=30) for path in sys.argv[1:]]
for connection in connections:
    connection.execute('BEGIN EXCLUSIVE')
print('locked', flush=True)
sys.stdin.read()
for connection in connections:
    connection.execute('ROLLBACK')
";

/// The lock on databases: they can be read, and no commit gets through. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Lock {
    holder: Child,
    /// Dropped first.
    until: Option<ChildStdin>,
}

impl Lock {
    /// Whether databases can be locked here.
    pub(crate) fn try_out() -> anyhow::Result<()> {
        run(Command::new(python()).args(["-I", "-c", "import sqlite3"]))?;
        Ok(())
    }

    /// Waits for its turn. Blocking.
    pub(crate) fn take(databases: &[&Path]) -> anyhow::Result<Self> {
        let mut command = Command::new(python());
        command.args(["-I", "-c", LOCK]).args(databases).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().context("start python3")?;
        let (until, said) = (holder.stdin.take(), holder.stdout.take());
        let lock = Self { holder, until };
        let mut line = String::new();
        BufReader::new(said.context("its output")?).read_line(&mut line)?;
        ensure!(line.trim() == "locked", "the catalog could not be locked");
        Ok(lock)
    }

    /// Whether it still is one: nobody ended its holder.
    pub(crate) fn holds(&mut self) -> bool {
        matches!(self.holder.try_wait(), Ok(None))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        drop(self.until.take());
        // It ends by itself now, which nothing but a full machine delays.
        let _ = self.holder.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_database_takes_no_commit_until_the_lock_is_dropped() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("some.db");
        let write = "
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0.1)
connection.execute('CREATE TABLE IF NOT EXISTS t (x)')
connection.execute('INSERT INTO t VALUES (1)')
connection.commit()";
        let try_to_write = || run(Command::new(python()).args(["-I", "-c", write]).arg(&path));
        if Lock::try_out().is_err() {
            // Where there is no Python, jepsen leaves this fault out.
            return Ok(());
        }
        try_to_write()?;
        let mut lock = Lock::take(&[path.as_path()])?;
        let refused = try_to_write().expect_err("is locked").to_string();
        assert!(refused.contains("locked") && lock.holds(), "{refused}");
        drop(lock);
        try_to_write()?;
        let mut lost = Lock::take(&[path.as_path()])?;
        lost.holder.kill()?;
        lost.holder.wait()?;
        assert!(!lost.holds(), "it ended before its time");
        Ok(())
    }
}
