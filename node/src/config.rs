//! The configuration of a node: defaults, then TOML, then environment, then `--set`, parsed once into typed values.
//!
//! An unknown key or a bad value stops the start with the key, the value and what was expected.

mod layers;
mod seeds;
mod storage;
mod values;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use signaldb_model::NodeId;

pub use layers::{ConfigError, Sources, load};
pub use storage::{Adapter, AdapterOptions, Storage};
pub use values::{ByteSize, DiskReserve, MemoryLimit, Secret, Time, hide_password};
pub use writer::{Batch, Pool, Retry, Writer};

/// Everything that can be set. See `docs/configuration.md` for the file.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub node: Node,
    pub listen: Listen,
    pub cluster: Cluster,
    pub wal: Wal,
    pub flush: Flush,
    pub writer: Writer,
    pub compaction: Compaction,
    pub retention: Retention,
    pub memory: Memory,
    pub query: Query,
    pub schema: Schema,
    pub database: Database,
    pub discovery: Discovery,
    pub storage: Storage,
    pub auth: Auth,
    pub log: Log,
    /// What was accepted and does less than its name says.
    #[serde(skip)]
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Number of the node in its cluster; 1 on a single node.
    pub id: u64,
    /// Where the node keeps what is its own.
    pub data_dir: PathBuf,
    /// All roles run in one process.
    pub roles: Vec<String>,
}

/// Addresses, `host:port`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    pub otlp_grpc: String,
    pub otlp_http: String,
    pub http: String,
    pub flight: String,
    /// Reserved for record streams.
    pub streams: String,
    /// Reserved for peers.
    pub peer: String,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    pub name: String,
    /// First voters, `id=host:port`; empty on a single node.
    pub peers: Vec<String>,
    /// Voters of a group; default 3, and 1 on a single node.
    pub replication_factor: Option<u32>,
    /// Data groups of a new cluster.
    pub groups: u32,
    /// `quorum` or `quorum-fsync`; one voter always acknowledges at `local-fsync`.
    pub ack: String,
    /// How long a byte-identical retry is recognized; `0s` turns it off.
    pub dedup_window: Time,
    pub secret: Secret,
    pub heartbeat_interval: Time,
    /// Shortest and longest time without a leader before an election.
    pub election_timeout: (Time, Time),
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wal {
    /// Default `<node.data_dir>/wal`.
    pub dir: Option<PathBuf>,
    pub max_segment_size: ByteSize,
    pub sync_interval: Time,
    pub sync_bytes: ByteSize,
    /// Ingest stops while less is free on the log's disk.
    pub disk_reserve: DiskReserve,
    /// Log whose rows are in Iceberg is kept this long, as insurance, and for nodes that were away.
    pub keep_flushed: Time,
    /// Log whose rows are not: beyond it writes are throttled. Not set, `disk_reserve` is the limit.
    pub max_unflushed: Option<ByteSize>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flush {
    /// Tables over 1 MiB are in Iceberg this long after an acknowledgment.
    pub interval: Time,
    /// Every row is.
    pub max_interval: Time,
    /// Or as soon as a group holds this much.
    pub max_bytes: ByteSize,
}

/// How small data files become large ones.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compaction {
    /// Off, small files stay small; retention and cleaning go on.
    pub enabled: bool,
    /// How often a table is looked at.
    pub interval: Time,
    /// Built in memory.
    pub target_file_size: ByteSize,
    /// Files of like size that are merged while their day lasts.
    pub min_files: usize,
    /// Compressed bytes that a merge may hold.
    pub memory: ByteSize,
}

/// How long rows and files are kept.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Age at which rows go where no rule says otherwise; for ever if it is not set.
    pub keep: Option<Time>,
    /// How long a file that no table needs is kept for queries that still read it.
    pub grace: Time,
    /// How often a table's files are listed.
    pub collect_interval: Time,
    pub rules: Vec<RetentionRule>,
}

/// Retention of the tables that match all that is given.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionRule {
    pub tenant: Option<String>,
    pub dataset: Option<String>,
    pub table: Option<String>,
    /// For ever if it is not set.
    pub keep: Option<Time>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Of RAM or the cgroup (`60%`), or an amount; shared by memtables and queries.
    pub limit: MemoryLimit,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Query {
    /// From arrival to the last row, of queries that do not say it themselves.
    pub deadline: Time,
    /// The most that a query may ask for; default 10m, or `deadline` if that is longer.
    pub deadline_max: Option<Time>,
    /// Queries that run at once.
    pub concurrency: usize,
    /// The same of one tenant.
    pub tenant_concurrency: usize,
    /// Queries of one tenant that may wait for their turn.
    pub queue: usize,
    /// Memory of one query; default a quarter of what all queries have.
    pub memory: Option<ByteSize>,
    /// Bytes that one query may read from the store; not set: as many as it likes.
    pub scan: Option<ByteSize>,
    /// Bytes that queries may spill to disk, together.
    pub spill: ByteSize,
    /// Memory for footers, page indexes, bloom filters and trace indexes of data files, beside that of queries.
    pub cache: ByteSize,
    pub distributed: Distributed,
}

/// Scans that spread over the nodes of a cluster.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Distributed {
    /// Of queries that this node is asked and that do not say it themselves; it does shares of others' in any case.
    pub enabled: bool,
    /// A scan of fewer bytes of data files stays on its node.
    pub min_bytes: ByteSize,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schema {
    /// `sql`, or `memory` for tests.
    pub catalog_type: String,
    /// Default `sqlite://<node.data_dir>/catalog.db`.
    pub catalog_uri: Option<String>,
    pub default_schemas: DefaultSchemas,
}

/// Signals that are stored; the others are refused.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DefaultSchemas {
    pub traces_enabled: bool,
    pub logs_enabled: bool,
    pub metrics_enabled: bool,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// Tenants and keys; default `sqlite://<node.data_dir>/signaldb.db`.
    pub dsn: Option<String>,
}

/// Accepted for clusters; a single node needs no discovery.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Discovery {
    pub dsn: Option<String>,
    pub heartbeat_interval: Time,
    pub poll_interval: Time,
    pub ttl: Time,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    pub enabled: bool,
    /// Lets an open node listen beyond loopback.
    pub allow_anonymous: bool,
    pub admin_key: Option<Secret>,
    pub tenants: Vec<Tenant>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    pub id: String,
    /// For people; nothing depends on it.
    #[serde(default)]
    pub name: String,
    pub default_dataset: Option<String>,
    /// A stronger level than `cluster.ack` for this tenant's writes: `quorum-fsync`.
    pub ack: Option<String>,
    #[serde(default)]
    pub api_keys: Vec<ApiKey>,
    #[serde(default)]
    pub datasets: Vec<Dataset>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    pub key: Secret,
    #[serde(default)]
    pub name: String,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    pub id: String,
    #[serde(default)]
    pub is_default: bool,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// As `RUST_LOG`, which wins: `info`, `signaldb_lake=debug,info`.
    pub level: String,
    /// `text` or `json`.
    pub format: String,
}

impl Default for Node {
    fn default() -> Self {
        let roles = ["acceptor", "router", "writer", "querier"];
        Self { id: 1, data_dir: ".data".into(), roles: roles.map(str::to_owned).into() }
    }
}

impl Default for Listen {
    fn default() -> Self {
        let local = |port: u16| format!("127.0.0.1:{port}");
        Self {
            otlp_grpc: local(4317),
            otlp_http: local(4318),
            http: local(3000),
            flight: local(50053),
            streams: local(50052),
            peer: local(50051),
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            name: "signaldb".to_owned(),
            peers: Vec::new(),
            replication_factor: None,
            groups: 8,
            ack: "quorum".to_owned(),
            dedup_window: Time::from_secs(600),
            secret: Secret::default(),
            heartbeat_interval: Time::from_millis(500),
            election_timeout: (Time::from_millis(1000), Time::from_millis(1500)),
        }
    }
}

impl Default for Wal {
    fn default() -> Self {
        Self {
            dir: None,
            max_segment_size: ByteSize(64 << 20),
            sync_interval: Time::from_millis(50),
            sync_bytes: ByteSize(4 << 20),
            disk_reserve: DiskReserve { bytes: 5 << 30, percent: 10 },
            keep_flushed: Time::from_secs(600),
            max_unflushed: None,
        }
    }
}

impl Default for Flush {
    fn default() -> Self {
        Self { interval: Time::from_secs(30), max_interval: Time::from_secs(600), max_bytes: ByteSize(64 << 20) }
    }
}

impl Default for Compaction {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: Time::from_secs(60),
            target_file_size: ByteSize(128 << 20),
            min_files: 8,
            memory: ByteSize(256 << 20),
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        let hour = Time::from_secs(3600);
        Self { keep: None, grace: hour, collect_interval: hour, rules: Vec::new() }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self { limit: MemoryLimit::Percent(60) }
    }
}

impl Default for Query {
    fn default() -> Self {
        Self {
            deadline: Time::from_secs(60),
            deadline_max: None,
            concurrency: 16,
            tenant_concurrency: 8,
            queue: 64,
            memory: None,
            scan: None,
            spill: ByteSize(10 << 30),
            cache: ByteSize(64 << 20),
            distributed: Distributed::default(),
        }
    }
}

impl Default for Distributed {
    fn default() -> Self {
        Self { enabled: false, min_bytes: ByteSize(1 << 30) }
    }
}

impl Query {
    /// The longest time that any query has.
    pub fn deadline_max(&self) -> Duration {
        let fallback = Duration::from_secs(600).max(self.deadline.0);
        self.deadline_max.map_or(fallback, |max| max.0)
    }
}

impl Default for Schema {
    fn default() -> Self {
        Self { catalog_type: "sql".to_owned(), catalog_uri: None, default_schemas: DefaultSchemas::default() }
    }
}

impl Default for DefaultSchemas {
    fn default() -> Self {
        Self { traces_enabled: true, logs_enabled: true, metrics_enabled: true }
    }
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            dsn: None,
            heartbeat_interval: Time::from_secs(30),
            poll_interval: Time::from_secs(60),
            ttl: Time::from_secs(300),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: "text".to_owned() }
    }
}

impl Cluster {
    /// First voters by id; empty on a single node.
    ///
    /// # Errors
    /// Says which entry is not `id=host:port`, or comes twice.
    pub fn addresses(&self) -> Result<BTreeMap<NodeId, String>, String> {
        let mut out = BTreeMap::new();
        for peer in &self.peers {
            let parsed = peer.split_once('=').and_then(|(id, address)| Some((id.trim().parse().ok()?, address.trim())));
            let Some((id, address)) = parsed.filter(|(id, address)| *id > 0 && address.contains(':')) else {
                return Err(format!("{peer:?} is not id=host:port, for example \"1=10.0.0.1:50051\""));
            };
            if out.insert(NodeId(id), address.to_owned()).is_some() {
                return Err(format!("node {id} comes twice"));
            }
        }
        Ok(out)
    }

    /// Several nodes.
    pub fn is_replicated(&self) -> bool {
        self.peers.len() > 1
    }
}

impl Config {
    pub fn wal_dir(&self) -> PathBuf {
        self.wal.dir.clone().unwrap_or_else(|| self.node.data_dir.join("wal"))
    }

    pub fn catalog_uri(&self) -> String {
        if self.schema.catalog_type == "memory" {
            return "sqlite::memory:".to_owned();
        }
        self.schema.catalog_uri.clone().unwrap_or_else(|| self.sqlite("catalog.db"))
    }

    pub fn database_dsn(&self) -> String {
        self.database.dsn.clone().unwrap_or_else(|| self.sqlite("signaldb.db"))
    }

    fn sqlite(&self, file: &str) -> String {
        format!("sqlite://{}", self.node.data_dir.join(file).display())
    }

    /// The adapter that holds the tables, its url known.
    pub fn storage(&self) -> (String, Adapter) {
        let adapter = self.storage.adapters.get(&self.storage.default).cloned().unwrap_or_default();
        let url = adapter.url.clone().unwrap_or_else(|| match adapter.kind.as_str() {
            "memory" => "memory://".to_owned(),
            _ => format!("file://{}", self.node.data_dir.join("storage").display()),
        });
        (url, adapter)
    }
}

#[cfg(test)]
mod tests;
