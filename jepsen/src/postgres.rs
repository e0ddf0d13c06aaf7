//! A private PostgreSQL for one run, from Debian's binaries, on an address of this machine.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::command::run;

/// Who may connect, beside loopback: the addresses of [`crate::namespace`], which nothing else here has.
const NEIGHBOURS: &str = "10.77.0.0/16";

/// A running server in a directory of its own. Dropping it ends it and removes its data.
#[derive(Debug)]
pub(crate) struct Server {
    /// `None` while it does not run.
    child: Mutex<Option<Child>>,
    address: SocketAddr,
    bin: PathBuf,
    /// Whether this process is root: PostgreSQL refuses to be, and runs as `postgres`.
    root: bool,
    dir: tempfile::TempDir,
    log: PathBuf,
}

impl Server {
    /// Makes a new database cluster and waits until it answers; it writes its log to `log`. Blocking.
    pub(crate) fn start(address: SocketAddr, log: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("make a directory for PostgreSQL")?;
        // Only root may give it away.
        let root = run(Command::new("chown").arg("postgres").arg(dir.path())).is_ok();
        let server = Self { child: Mutex::default(), address, bin: binaries()?, root, dir, log: log.to_owned() };
        let mut initdb = server.command("initdb");
        run(initdb.arg("-D").arg(server.data()).args(["-A", "trust", "-U", "postgres", "--no-sync"]))?;
        server.admit_neighbours()?;
        server.go_on()?;
        Ok(server)
    }

    /// By default it trusts loopback alone.
    fn admit_neighbours(&self) -> anyhow::Result<()> {
        let path = self.data().join("pg_hba.conf");
        let file = std::fs::File::options().append(true).open(&path);
        let line = format!("host all all {NEIGHBOURS} trust\n");
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.with_context(|| format!("write {}", path.display()))
    }

    /// Starts it, unless it runs, and waits until it answers. Blocking.
    pub(crate) fn go_on(&self) -> anyhow::Result<()> {
        let mut running = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_some() {
            return Ok(());
        }
        let log = std::fs::File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("open {}", self.log.display()))?;
        let socket = format!("unix_socket_directories={}", self.dir.path().display());
        let (host, port) = (self.address.ip().to_string(), self.address.port().to_string());
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(self.data()).args(["-h", &host, "-p", &port, "-c", &socket]);
        postgres.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = running.insert(postgres.spawn().context("start postgres")?);
        let until = Instant::now() + Duration::from_secs(60);
        while run(Command::new(self.bin.join("pg_isready")).args(["-h", &host, "-p", &port])).is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("PostgreSQL ended with {status}");
            }
            ensure!(Instant::now() < until, "PostgreSQL does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends it at once, as a crash would. Blocking.
    pub(crate) fn stop(&self) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            let _ = run(Command::new("kill").args(["-QUIT", &child.id().to_string()]));
            let _ = child.wait();
        }
    }

    fn command(&self, name: &str) -> Command {
        let program = self.bin.join(name);
        let mut command = if self.root { Command::new("setpriv") } else { Command::new(&program) };
        if self.root {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(&program);
        }
        command.current_dir(self.dir.path());
        command
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn address(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address)
    }

    /// Where the current metadata of an Iceberg table is, as the catalog says. Blocking.
    pub(crate) fn metadata_location(&self, namespace: &str, table: &str) -> anyhow::Result<String> {
        let query = format!(
            "SELECT metadata_location FROM iceberg_tables WHERE table_namespace = '{namespace}' AND table_name = '{table}'"
        );
        let address = self.address();
        let found = run(Command::new(self.bin.join("psql")).args(["-X", "-A", "-t", "-c", &query, &address]))?;
        ensure!(!found.trim().is_empty(), "the catalog has no table {namespace}.{table}");
        Ok(found.trim().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // At once: its data goes with it.
        self.stop();
    }
}

/// The newest version's.
fn binaries() -> anyhow::Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|entry| entry.path()).filter(|version| version.join("bin/initdb").exists());
    let newest = found.max_by_key(|version| number(version));
    Ok(newest.context("PostgreSQL is not installed: scripts/install-deps.sh tests does it")?.join("bin"))
}

fn number(version: &Path) -> Option<u32> {
    version.file_name()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        let newest = ["9.6", "9", "15", "16"].map(Path::new).into_iter().max_by_key(|version| number(version));
        assert_eq!(newest, Some(Path::new("16")));
        assert!(number(Path::new("/usr/lib/postgresql/100")) > number(Path::new("/usr/lib/postgresql/99")));
    }
}
