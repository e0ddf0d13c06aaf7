//! The nodes under measurement.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// One node or a cluster: processes on free loopback ports, their data in a temporary directory.
pub(crate) struct Node {
    processes: Vec<Process>,
    dir: tempfile::TempDir,
    /// Beside what every node of a measurement gets; as for `--set`.
    settings: Vec<String>,
    http: reqwest::Client,
}

struct Process {
    child: Child,
    ports: Ports,
}

/// OTLP gRPC, OTLP HTTP, HTTP, Flight and peers.
type Ports = [u16; 5];

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
    pub(crate) async fn start(binary: &Path, nodes: usize) -> anyhow::Result<Self> {
        Self::start_with(binary, nodes, Vec::new()).await
    }

    pub(crate) async fn start_with(binary: &Path, nodes: usize, settings: Vec<String>) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let ports = (0..nodes).map(|_| free_ports()).collect::<anyhow::Result<Vec<_>>>()?;
        let launched = (0..nodes).map(|at| launch(binary, dir.path(), &ports, at, &settings));
        let processes = launched.collect::<anyhow::Result<_>>()?;
        let mut node = Self { processes, dir, settings, http: reqwest::Client::new() };
        node.wait_ready().await?;
        Ok(node)
    }

    /// The groups as one node sees them.
    async fn groups(&self, at: usize) -> anyhow::Result<Vec<Value>> {
        let sent = self.http.get(self.url(at, "/api/v1/cluster")).timeout(Duration::from_secs(2)).send().await?;
        let body: Value = sent.error_for_status()?.json().await?;
        Ok(body["groups"].as_array().context("groups")?.clone())
    }

    /// Waits until each of `nodes` sees every group led by one of them.
    pub(crate) async fn wait_led_by(&self, nodes: &[usize]) -> anyhow::Result<()> {
        let led = |group: &Value| leader(group).is_some_and(|leader| nodes.contains(&leader));
        let begun = Instant::now();
        for at in nodes {
            while !self.groups(*at).await.is_ok_and(|groups| groups.iter().all(led)) {
                anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "node {} sees no leader", at + 1);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Waits until node `at` has applied all that node `from` has now.
    pub(crate) async fn wait_caught_up(&self, at: usize, from: usize) -> anyhow::Result<()> {
        let wanted = self.groups(from).await?;
        let has = |groups: &[Value], wanted: &Value| {
            let mut same = groups.iter().filter(|group| group["group"] == wanted["group"]);
            same.any(|group| group["applied_index"].as_u64() >= wanted["applied_index"].as_u64())
        };
        let begun = Instant::now();
        while !self.groups(at).await.is_ok_and(|groups| wanted.iter().all(|wanted| has(&groups, wanted))) {
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "node {} does not catch up", at + 1);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        for at in 0..self.processes.len() {
            let url = self.url(at, "/ready");
            while !self.http.get(&url).send().await.is_ok_and(|response| response.status().is_success()) {
                if let Some(status) = self.processes[at].child.try_wait()? {
                    bail!("node {} ended with {status}", at + 1);
                }
                anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "node {} was not ready in time", at + 1);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Where to send a signal, one address a node.
    pub(crate) fn otlp(&self, path: &str) -> Vec<String> {
        self.processes.iter().map(|process| format!("http://127.0.0.1:{}{path}", process.ports[1])).collect()
    }

    /// Where to send any signal over gRPC, one address a node.
    pub(crate) fn otlp_grpc(&self) -> Vec<String> {
        self.processes.iter().map(|process| format!("http://127.0.0.1:{}", process.ports[0])).collect()
    }

    /// An address of a node's HTTP API.
    pub(crate) fn url(&self, at: usize, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.processes[at].ports[2])
    }

    /// Rows of a query, and how long it took.
    pub(crate) async fn sql(&self, query: &str) -> anyhow::Result<(Value, Duration)> {
        self.sql_as("default", query).await
    }

    /// Rows of a tenant's query, and how long it took.
    pub(crate) async fn sql_as(&self, tenant: &str, query: &str) -> anyhow::Result<(Value, Duration)> {
        self.sql_with("x-tenant-id", tenant, query).await
    }

    /// The same with a header.
    pub(crate) async fn sql_with(&self, header: &str, value: &str, query: &str) -> anyhow::Result<(Value, Duration)> {
        let begun = Instant::now();
        let request = self.http.post(self.url(self.processes.len() - 1, "/api/v1/sql")).header(header, value);
        let sent = request.json(&json!({"query": query})).send().await?;
        let body: Value = sent.error_for_status()?.json().await?;
        Ok((body["rows"].clone(), begun.elapsed()))
    }

    pub(crate) async fn flush(&self) -> anyhow::Result<()> {
        self.flush_through(0).await
    }

    pub(crate) async fn flush_through(&self, at: usize) -> anyhow::Result<()> {
        self.http.post(self.url(at, "/api/v1/admin/flush")).send().await?.error_for_status()?;
        Ok(())
    }

    /// User and system seconds of all processes.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.processes.iter().map(|process| cpu_seconds_of(process.child.id())).sum()
    }

    /// Largest resident sets, summed, bytes.
    pub(crate) fn peak_memory(&self) -> anyhow::Result<u64> {
        let mut total = 0;
        for process in &self.processes {
            total += status_bytes(process.child.id(), "VmHWM:")?;
        }
        Ok(total)
    }

    /// Resident set of the largest node that runs, bytes: now, and the largest that it ever was.
    pub(crate) fn largest_resident(&self) -> (u64, u64) {
        let largest = |name: &str| {
            let running = self.processes.iter().filter_map(|process| status_bytes(process.child.id(), name).ok());
            running.max().unwrap_or(0)
        };
        (largest("VmRSS:"), largest("VmHWM:"))
    }

    /// Of one log, and of all flushes.
    pub(crate) async fn written_bytes(&self) -> anyhow::Result<Written> {
        let mut written = Written { log: 0, iceberg: 0 };
        for at in 0..self.processes.len() {
            let metrics = self.http.get(self.url(at, "/metrics")).send().await?.text().await?;
            let counter = |name: &str| {
                let line = metrics.lines().find(|line| line.starts_with(name));
                line.and_then(|line| line.split_whitespace().nth(1)).and_then(|value| value.parse().ok()).unwrap_or(0)
            };
            written.log = written.log.max(counter("signaldb_wal_written_bytes_total"));
            written.iceberg += counter("signaldb_flush_bytes_total");
        }
        Ok(written)
    }

    /// What the first node answers to a request without a body.
    pub(crate) async fn post(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.http.post(self.url(0, path)).send().await?.error_for_status()?.json().await?)
    }

    /// Sum of the first node's series of a metric; 0 if it has none.
    pub(crate) async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let metrics = self.http.get(self.url(0, "/metrics")).send().await?.error_for_status()?.text().await?;
        Ok(sum_of(&metrics, name))
    }

    /// Where the first node keeps its tables.
    pub(crate) fn storage(&self) -> PathBuf {
        self.dir.path().join("node-1/data/storage")
    }

    /// The node that leads the busiest data group.
    pub(crate) async fn leader(&self) -> anyhow::Result<usize> {
        for at in 0..self.processes.len() {
            let Ok(groups) = self.groups(at).await else { continue };
            let data = groups.iter().filter(|group| group["group"] != 0);
            let busy = data.max_by_key(|group| group["last_log_index"].as_u64()).context("a data group")?;
            if let Some(leader) = leader(busy) {
                return Ok(leader);
            }
        }
        bail!("no node knows a leader")
    }

    /// The node that leads a group, as the first node sees it.
    pub(crate) async fn leader_of(&self, group: u64) -> anyhow::Result<usize> {
        let groups = self.groups(0).await?;
        let found = groups.iter().find(|one| one["group"].as_u64() == Some(group)).context("the group")?;
        leader(found).context("a leader")
    }

    pub(crate) fn signal(&self, at: usize, name: &str) -> anyhow::Result<()> {
        let sent = Command::new("kill").args([name, &self.processes[at].child.id().to_string()]).status()?;
        anyhow::ensure!(sent.success(), "kill {name} of node {} failed", at + 1);
        Ok(())
    }

    /// Kills one node with SIGKILL.
    pub(crate) fn kill(&mut self, at: usize) -> anyhow::Result<()> {
        self.processes[at].child.kill()?;
        self.processes[at].child.wait()?;
        Ok(())
    }

    /// Starts a node again and waits until all are ready.
    pub(crate) async fn restart(&mut self, binary: &Path, at: usize) -> anyhow::Result<()> {
        self.restart_all(binary, &[at]).await
    }

    /// Starts nodes again and waits until all are ready.
    pub(crate) async fn restart_all(&mut self, binary: &Path, nodes: &[usize]) -> anyhow::Result<()> {
        let ports: Vec<Ports> = self.processes.iter().map(|process| process.ports).collect();
        for at in nodes {
            self.processes[*at] = launch(binary, self.dir.path(), &ports, *at, &self.settings)?;
        }
        self.wait_ready().await
    }

    pub(crate) fn stop(mut self, within: Duration) -> anyhow::Result<()> {
        for process in &self.processes {
            Command::new("kill").args(["-TERM", &process.child.id().to_string()]).status()?;
        }
        let begun = Instant::now();
        for process in &mut self.processes {
            while process.child.try_wait()?.is_none() {
                anyhow::ensure!(begun.elapsed() < within, "a node did not stop");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

/// User and system seconds of a process.
pub(crate) fn cpu_seconds_of(pid: u32) -> anyhow::Result<f64> {
    cpu_seconds_in(&format!("/proc/{pid}/stat"))
}

/// User and system seconds of the thread that asks.
pub(crate) fn cpu_seconds_of_thread() -> anyhow::Result<f64> {
    cpu_seconds_in("/proc/thread-self/stat")
}

fn cpu_seconds_in(path: &str) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(path)?;
    // Fields 14 and 15, counted behind the parenthesized name; Linux counts 100 ticks a second.
    let rest = stat.rsplit_once(')').context("a stat line")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

/// A line of `/proc/<pid>/status` that counts in kB.
fn status_bytes(pid: u32, name: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(name)).with_context(|| name.to_owned())?;
    Ok(line.split_whitespace().nth(1).context("a number")?.parse::<u64>()? * 1024)
}

/// Sum of the series of `name`, with whatever labels.
fn sum_of(metrics: &str, name: &str) -> f64 {
    let of = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        (series.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok()).flatten()
    };
    metrics.lines().filter_map(of).sum()
}

/// The node that leads a group, counted from 0.
fn leader(group: &Value) -> Option<usize> {
    usize::try_from(group["leader"].as_u64()?).ok()?.checked_sub(1)
}

fn free_ports() -> anyhow::Result<Ports> {
    let sockets = (0..5).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let mut ports = [0; 5];
    for (port, socket) in ports.iter_mut().zip(&sockets) {
        *port = socket.local_addr()?.port();
    }
    Ok(ports)
}

fn launch(binary: &Path, root: &Path, ports: &[Ports], at: usize, more: &[String]) -> anyhow::Result<Process> {
    let dir = root.join(format!("node-{}", at + 1));
    let shared = root.join("shared");
    std::fs::create_dir_all(&dir)?;
    std::fs::create_dir_all(&shared)?;
    let log = std::fs::File::options().create(true).append(true).open(dir.join("node.log"))?;
    let mut command = Command::new(std::path::absolute(binary)?);
    command.current_dir(&dir).args(["server", "--data-dir", "data"]);
    let mut settings = vec!["wal.disk_reserve=64MiB".to_owned(), format!("node.id={}", at + 1)];
    for (name, port) in ["otlp_grpc", "otlp_http", "http", "flight", "peer"].iter().zip(ports[at]) {
        settings.push(format!("listen.{name}=127.0.0.1:{port}"));
    }
    if ports.len() > 1 {
        let peers = ports.iter().enumerate().map(|(at, ports)| format!("\"{}=127.0.0.1:{}\"", at + 1, ports[4]));
        settings.push(format!("cluster.peers=[{}]", peers.collect::<Vec<_>>().join(",")));
        settings.push(format!("schema.catalog_uri=sqlite://{}/catalog.db", shared.display()));
        settings.push(format!("database.dsn=sqlite://{}/signaldb.db", shared.display()));
        settings.push("storage.adapters.local.type=filesystem".to_owned());
        settings.push(format!("storage.adapters.local.url=file://{}/storage", shared.display()));
    }
    for setting in settings.iter().chain(more) {
        command.arg("--set").arg(setting);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().with_context(|| format!("start {}", binary.display()))?;
    Ok(Process { child, ports: ports[at] })
}

impl Drop for Node {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // It has usually ended by itself.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_the_sum_of_its_series() {
        let text = "# HELP a_total b\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3.5\na_total_more 9\nb 7\n";
        assert!((sum_of(text, "a_total") - 5.5).abs() < 1e-9);
        assert!((sum_of(text, "b") - 7.0).abs() < 1e-9);
        assert!(sum_of(text, "c").abs() < 1e-9);
    }
}
