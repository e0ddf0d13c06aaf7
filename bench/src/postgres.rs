//! A private PostgreSQL, from Debian's binaries, on loopback: a catalog to compare with SQLite.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// A running server in a directory of its own. Dropping it ends it and removes its data.
pub(crate) struct Postgres {
    /// `None` until it was started.
    child: Option<Child>,
    port: u16,
    bin: PathBuf,
    /// Whether this process is root: PostgreSQL refuses to be, and runs as `postgres`.
    root: bool,
    dir: tempfile::TempDir,
}

impl Postgres {
    /// `None` where PostgreSQL is not installed. Blocking.
    pub(crate) fn start() -> anyhow::Result<Option<Self>> {
        let Some(bin) = binaries() else { return Ok(None) };
        let dir = tempfile::tempdir()?;
        // Only root may give it away.
        let root = run(Command::new("chown").arg("postgres").arg(dir.path())).is_ok();
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut server = Self { child: None, port, bin, root, dir };
        let data = server.dir.path().join("data");
        run(server.command("initdb").arg("-D").arg(&data).args(["-A", "trust", "-U", "postgres", "--no-sync"]))?;
        let (port, socket) = (port.to_string(), format!("unix_socket_directories={}", server.dir.path().display()));
        let mut postgres = server.command("postgres");
        postgres.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p", &port, "-c", &socket]);
        let quiet = postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        server.child = Some(quiet.spawn().context("start postgres")?);
        let begun = Instant::now();
        while run(Command::new(server.bin.join("pg_isready")).args(["-h", "127.0.0.1", "-p", &port])).is_err() {
            ensure!(begun.elapsed() < Duration::from_secs(60), "PostgreSQL does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Some(server))
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

    pub(crate) fn address(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // At once: its data goes with it.
        let _ = run(Command::new("kill").args(["-QUIT", &child.id().to_string()]));
        let _ = child.wait();
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn binaries() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let bins = versions.flatten().map(|version| version.path().join("bin"));
    bins.filter(|bin| bin.join("initdb").exists()).max()
}
