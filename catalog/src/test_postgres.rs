//! A private PostgreSQL for one test, from Debian's binaries, on a free port of loopback.

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server in a directory of its own. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
    port: u16,
    bin: PathBuf,
    root: bool,
    dir: tempfile::TempDir,
}

impl Server {
    /// Makes a new database cluster and waits until it answers.
    ///
    /// # Errors
    /// When the binaries are not installed, or the server does not start.
    pub fn start() -> io::Result<Self> {
        let bin = binaries()?;
        let dir = tempfile::tempdir()?;
        // PostgreSQL refuses to run as root.
        let root = run(Command::new("chown").args(["-R", "postgres"]).arg(dir.path())).is_ok();
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut server = Self { child: None, port, bin, root, dir };
        let data = server.dir.path().join("data");
        run(server.command("initdb").arg("-D").arg(&data).args(["-A", "trust", "-U", "postgres", "--no-sync"]))?;
        server.start_again()?;
        Ok(server)
    }

    fn command(&self, name: &str) -> Command {
        let program = self.bin.join(name);
        if !self.root {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
        command
    }

    /// Starts the server on its data, after [`Self::stop`].
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn start_again(&mut self) -> io::Result<()> {
        let port = self.port.to_string();
        let socket = format!("unix_socket_directories={}", self.dir.path().display());
        let child = self
            .command("postgres")
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .args(["-h", "127.0.0.1", "-p", &port, "-c", &socket])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.child = Some(child);
        let until = Instant::now() + Duration::from_secs(60);
        while run(Command::new(self.bin.join("pg_isready")).args(["-h", "127.0.0.1", "-p", &port])).is_err() {
            if Instant::now() > until {
                return Err(io::Error::other("PostgreSQL does not answer"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends the server at once, as a crash would (SIGQUIT).
    ///
    /// # Errors
    /// When there is no such process.
    pub fn stop(&mut self) -> io::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        run(Command::new("kill").args(["-QUIT", &child.id().to_string()]))?;
        child.wait().map(drop)
    }

    pub fn address(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(io::Error::other(said)) }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.stop();
    }
}

fn binaries() -> io::Result<PathBuf> {
    let missing = || io::Error::other("PostgreSQL is not installed: run scripts/install-deps.sh tests");
    let versions = std::fs::read_dir("/usr/lib/postgresql").map_err(|_| missing())?;
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
    found.retain(|bin| bin.join("initdb").exists());
    found.sort();
    found.pop().ok_or_else(missing)
}
