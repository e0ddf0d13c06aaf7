//! A node as a process.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::TryStreamExt;
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

/// How long a test waits for a condition.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// File in a node's directory that stands for `/proc/sys/kernel/random/boot_id`.
const BOOT_ID: &str = "boot_id";

/// Multiplies the sizes of the scenarios.
pub(crate) fn scale() -> usize {
    std::env::var("SIGNALDB_TEST_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// A running node. Dropping it kills the process.
pub(crate) struct Node {
    child: Child,
    pub(crate) dir: PathBuf,
    settings: Vec<String>,
    pub(crate) ports: [u16; 5],
    pub(crate) http: reqwest::Client,
}

impl Node {
    /// Starts a node in `dir` and waits until it is ready. `settings` are `section.key=value`.
    pub(crate) async fn start(dir: &Path, settings: &[&str]) -> anyhow::Result<Self> {
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        for _ in 0..5 {
            let ports = free_ports()?;
            let child = spawn(dir, &settings, ports)?;
            let http = reqwest::Client::new();
            let mut node = Self { child, dir: dir.to_owned(), settings: settings.clone(), ports, http };
            // Somebody else may have taken a port in between.
            if node.wait_ready().await.is_ok() {
                return Ok(node);
            }
        }
        bail!("the node did not become ready; its output is in {}", dir.join("node.log").display())
    }

    /// A process that is not waited for: see [`Node::wait_ready`].
    pub(crate) fn launch(dir: &Path, settings: Vec<String>, ports: [u16; 5]) -> anyhow::Result<Self> {
        let child = spawn(dir, &settings, ports)?;
        Ok(Self { child, dir: dir.to_owned(), settings, ports, http: reqwest::Client::new() })
    }

    /// Starts the process again, without waiting.
    pub(crate) fn relaunch(&mut self) -> anyhow::Result<()> {
        self.end();
        self.child = spawn(&self.dir, &self.settings, self.ports)?;
        Ok(())
    }

    /// A setting for the next start; it takes the place of an earlier one.
    pub(crate) fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    /// Everything that the process said, over all its starts.
    pub(crate) fn log(&self) -> anyhow::Result<String> {
        std::fs::read_to_string(self.dir.join("node.log")).context("read the node's log")
    }

    /// Waits until the process ends by itself; returns what it said.
    pub(crate) async fn wait_ended(&mut self) -> anyhow::Result<String> {
        let until = Instant::now() + DEADLINE;
        while self.child.try_wait()?.is_none() {
            anyhow::ensure!(Instant::now() < until, "the node did not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.log()
    }

    /// What the process ended with, if it did and no signal ended it.
    pub(crate) fn exit_code(&mut self) -> anyhow::Result<Option<i32>> {
        Ok(self.child.try_wait()?.and_then(|status| status.code()))
    }

    /// Starts the process again on the same directory, after it ended.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        self.relaunch()?;
        self.wait_ready().await
    }

    /// Nobody would end a process that another one takes the place of.
    fn end(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The end of the node's log.
    fn last_words(&self, lines: usize) -> String {
        let log = self.log().unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(lines).collect();
        last.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    pub(crate) async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the node ended with {status}: {}", self.last_words(5));
            }
            if self.is_ready().await {
                return Ok(());
            }
            if Instant::now() > until {
                let says = self.http.get(self.url("/ready")).send().await;
                let says = match says {
                    Ok(response) => response.text().await.unwrap_or_default(),
                    Err(error) => error.to_string(),
                };
                bail!("the node was not ready in time: {says}; {}", self.last_words(30));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether the node says that it can acknowledge writes.
    pub(crate) async fn is_ready(&self) -> bool {
        let ready = self.http.get(self.url("/ready")).timeout(Duration::from_secs(2)).send().await;
        ready.is_ok_and(|response| response.status().is_success())
    }

    /// `kill -9`, and waits until the process is gone.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("kill")?;
        self.child.wait().context("wait")?;
        Ok(())
    }

    /// What a power loss leaves: the process is gone, the machine has another boot id, and the last `lost` bytes of the
    /// log never reached the disk.
    pub(crate) fn lose_power(&mut self, lost: u64) -> anyhow::Result<()> {
        self.kill()?;
        self.reboot()?;
        let file = std::fs::File::options().write(true).open(self.newest_segment()?)?;
        let len = file.metadata()?.len();
        anyhow::ensure!(len > lost, "the newest segment has only {len} bytes");
        file.set_len(len - lost)?;
        Ok(())
    }

    /// Damages the middle of the newest segment, while the process is not running.
    pub(crate) fn flip_bit(&self) -> anyhow::Result<()> {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().read(true).write(true).open(self.newest_segment()?)?;
        let (at, mut byte) = (file.metadata()?.len() / 2, [0]);
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 0x10], at)?;
        Ok(())
    }

    /// The machine gets another boot id.
    pub(crate) fn reboot(&self) -> anyhow::Result<()> {
        std::fs::write(self.dir.join(BOOT_ID), uuid::Uuid::new_v4().to_string()).context("write the boot id")
    }

    /// Bytes of the newest segment of the log.
    pub(crate) fn log_bytes(&self) -> anyhow::Result<u64> {
        Ok(self.newest_segment()?.metadata()?.len())
    }

    fn newest_segment(&self) -> anyhow::Result<PathBuf> {
        let segments = std::fs::read_dir(self.dir.join("data/wal/segments"))?;
        let segments = segments.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
        // One that is just begun has no name yet.
        let named = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "wal");
        segments.into_iter().filter(named).max().context("a segment")
    }

    /// SIGTERM; returns the exit code and how long it took.
    pub(crate) fn terminate(&mut self) -> anyhow::Result<(Option<i32>, Duration)> {
        let begun = Instant::now();
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().context("send SIGTERM")?;
        while begun.elapsed() < DEADLINE {
            if let Some(status) = self.child.try_wait()? {
                return Ok((status.code(), begun.elapsed()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the node did not stop")
    }

    pub(crate) fn otlp_grpc(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    pub(crate) fn otlp_http(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports[1])
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports[2])
    }

    pub(crate) fn flight(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[3])
    }

    /// Where other nodes call this one.
    pub(crate) fn peer(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[4])
    }

    pub(crate) async fn sql_json(&self, query: &str) -> anyhow::Result<Value> {
        let response = self.http.post(self.url("/api/v1/sql")).json(&json!({"query": query})).send().await?;
        let status = response.status();
        let body: Value = response.json().await?;
        if !status.is_success() {
            bail!("{status}: {body}");
        }
        Ok(body)
    }

    /// The one number that a query returns.
    pub(crate) async fn number(&self, query: &str) -> anyhow::Result<i64> {
        let body = self.sql_json(query).await?;
        body["rows"][0][0].as_i64().with_context(|| format!("no number in {body}"))
    }

    pub(crate) async fn flight_client(&self) -> anyhow::Result<FlightSqlServiceClient<Channel>> {
        let channel = Endpoint::from_shared(self.flight())?.connect().await?;
        Ok(FlightSqlServiceClient::new(channel))
    }

    pub(crate) async fn flush(&self) -> anyhow::Result<()> {
        let response = self.http.post(self.url("/api/v1/admin/flush")).send().await?;
        let status = response.status();
        if !status.is_success() {
            bail!("{status}: {}", response.text().await?);
        }
        Ok(())
    }

    /// Every span id of `traces`, as often as it is there.
    pub(crate) async fn span_ids(&self) -> anyhow::Result<Vec<String>> {
        let body = self.sql_json("SELECT span_id FROM traces ORDER BY span_id").await?;
        let rows = body["rows"].as_array().context("rows")?;
        Ok(rows.iter().filter_map(|row| row[0].as_str().map(str::to_owned)).collect())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

/// All rows of a Flight SQL statement.
pub(crate) async fn flight_rows(
    client: &mut FlightSqlServiceClient<Channel>,
    query: &str,
) -> anyhow::Result<Vec<RecordBatch>> {
    let info = client.execute(query.to_owned(), None).await?;
    let ticket = info.endpoint.first().and_then(|endpoint| endpoint.ticket.clone()).context("an endpoint")?;
    Ok(client.do_get(ticket).await?.try_collect().await?)
}

pub(crate) async fn flight_number(client: &mut FlightSqlServiceClient<Channel>, query: &str) -> anyhow::Result<i64> {
    let batches = flight_rows(client, query).await?;
    let batch = batches.iter().find(|batch| batch.num_rows() > 0).context("a row")?;
    let column = batch.column(0);
    anyhow::ensure!(column.is_valid(0), "a number");
    Ok(column.as_primitive::<Int64Type>().value(0))
}

/// Ports that nobody listens on, below those that the system gives to outgoing connections, and never given to another
/// test: a node that was killed finds them free when it comes back.
pub(crate) fn free_ports() -> anyhow::Result<[u16; 5]> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut sockets = Vec::new();
    let mut ports = [0; 5];
    while sockets.len() < ports.len() {
        let port = 10_000 + u16::try_from(uuid::Uuid::new_v4().as_u128() % 22_000)?;
        if given.contains(&port) {
            continue;
        }
        if let Ok(socket) = TcpListener::bind(("127.0.0.1", port)) {
            given.insert(port);
            ports[sockets.len()] = port;
            sockets.push(socket);
        }
    }
    Ok(ports)
}

pub(crate) fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("SIGNALDB_BIN") {
        return Ok(path.into());
    }
    // target/debug/deps/it-... -> target/debug/signaldb
    let tests = std::env::current_exe()?;
    let path = tests.parent().and_then(Path::parent).context("a target directory")?.join("signaldb");
    anyhow::ensure!(path.exists(), "{} is missing: run `cargo build -p signaldb-node` first", path.display());
    Ok(path)
}

fn spawn(dir: &Path, settings: &[String], ports: [u16; 5]) -> anyhow::Result<Child> {
    std::fs::create_dir_all(dir)?;
    let log = std::fs::File::options().create(true).append(true).open(dir.join("node.log"))?;
    let mut command = Command::new(binary()?);
    command.current_dir(dir).arg("server").arg("--data-dir").arg(dir.join("data"));
    for (name, port) in ["otlp_grpc", "otlp_http", "http", "flight", "peer"].iter().zip(ports) {
        command.arg("--set").arg(format!("listen.{name}=127.0.0.1:{port}"));
    }
    // CI machines may be nearly full; what is tested here is not the reserve.
    command.arg("--set").arg("wal.disk_reserve=64MiB");
    for setting in settings {
        command.arg("--set").arg(setting);
    }
    // A machine of its own.
    let boot_id = dir.join(BOOT_ID);
    if !boot_id.exists() {
        std::fs::write(&boot_id, uuid::Uuid::new_v4().to_string())?;
    }
    command.env("SIGNALDB_BOOT_ID_PATH", boot_id);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().context("start signaldb")
}
