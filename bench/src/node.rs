//! The node under measurement.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// A process of its own on free loopback ports, its data in a temporary directory.
pub(crate) struct Node {
    child: Child,
    dir: tempfile::TempDir,
    ports: [u16; 4],
    http: reqwest::Client,
}

/// Bytes that the node wrote so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    pub(crate) log: u64,
    pub(crate) iceberg: u64,
}

impl Written {
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self { log: self.log - before.log, iceberg: self.iceberg - before.iceberg }
    }
}

impl Node {
    pub(crate) async fn start(binary: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let sockets = (0..4).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
        let mut ports = [0; 4];
        for (port, socket) in ports.iter_mut().zip(&sockets) {
            *port = socket.local_addr()?.port();
        }
        drop(sockets);
        let log = std::fs::File::create(dir.path().join("node.log"))?;
        let mut command = Command::new(std::path::absolute(binary)?);
        command.current_dir(dir.path()).args(["server", "--data-dir", "data", "--set", "wal.disk_reserve=64MiB"]);
        for (name, port) in ["otlp_grpc", "otlp_http", "http", "flight"].iter().zip(ports) {
            command.arg("--set").arg(format!("listen.{name}=127.0.0.1:{port}"));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {}", binary.display()))?;
        let mut node = Self { child, dir, ports, http: reqwest::Client::new() };
        node.wait_ready().await?;
        Ok(node)
    }

    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            if let Some(status) = self.child.try_wait()? {
                bail!("the node ended with {status}");
            }
            if self.http.get(self.url("/ready")).send().await.is_ok_and(|response| response.status().is_success()) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the node was not ready in time")
    }

    pub(crate) fn otlp(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports[1])
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports[2])
    }

    /// Rows of a query, and how long it took.
    pub(crate) async fn sql(&self, query: &str) -> anyhow::Result<(Value, Duration)> {
        let begun = Instant::now();
        let sent = self.http.post(self.url("/api/v1/sql")).json(&json!({"query": query})).send().await?;
        let body: Value = sent.error_for_status()?.json().await?;
        Ok((body["rows"].clone(), begun.elapsed()))
    }

    pub(crate) async fn flush(&self) -> anyhow::Result<()> {
        self.http.post(self.url("/api/v1/admin/flush")).send().await?.error_for_status()?;
        Ok(())
    }

    /// User and system seconds of the process.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Fields 14 and 15, counted behind the parenthesized name; Linux counts 100 ticks a second.
        let rest = stat.rsplit_once(')').context("a stat line")?.1;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
    }

    /// Largest resident set, bytes.
    pub(crate) fn peak_memory(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM")?;
        Ok(line.split_whitespace().nth(1).context("a number")?.parse::<u64>()? * 1024)
    }

    pub(crate) async fn written_bytes(&self) -> anyhow::Result<Written> {
        let metrics = self.http.get(self.url("/metrics")).send().await?.text().await?;
        let counter = |name: &str| {
            let line = metrics.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1)).and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        Ok(Written { log: counter("signaldb_wal_written_bytes_total"), iceberg: counter("signaldb_flush_bytes_total") })
    }

    pub(crate) fn stop(mut self, within: Duration) -> anyhow::Result<()> {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        let begun = Instant::now();
        while begun.elapsed() < within {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the node did not stop; its log is {}", self.log().display())
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("node.log")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It has usually ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
