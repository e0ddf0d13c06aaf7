//! Where configuration comes from: defaults < TOML < environment < `--set`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use signaldb_model::NodeId;
use signaldb_signals::SignalTable;
use thiserror::Error;
use toml::{Table, Value};

use super::{Config, Time, seeds, storage, writer};

/// The file that is read when none is named, if it exists.
const DEFAULT_FILE: &str = "signaldb.toml";
const PREFIX: &str = "SIGNALDB_";
/// Keys whose values are texts, whatever else they look like, and are not shown.
const SECRETS: &[&str] = &["secret", "admin_key", "access_key_id", "secret_access_key"];
/// A power loss of every node may cost this much of what is acknowledged at `quorum`.
const SYNC_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Twice what a commit may take from writing its files to naming them.
const GRACE_MIN: Duration = Duration::from_secs(30 * 60);
/// Compacted files are built in memory.
const TARGET_FILE_MIN: u64 = 1 << 20;
const TARGET_FILE_MAX: u64 = 512 << 20;
/// A sort cannot merge what it spilled with less.
const QUERY_MEMORY_MIN: u64 = 1 << 20;

/// The ancestor's names for what is spelled `SIGNALDB_<SECTION>__<KEY>` now.
const ALIASES: &[(&str, &str)] = &[
    ("SIGNALDB_DATABASE_DSN", "database.dsn"),
    ("SIGNALDB_DISCOVERY_DSN", "discovery.dsn"),
    ("SIGNALDB_DISCOVERY_HEARTBEAT_INTERVAL", "discovery.heartbeat_interval"),
    ("SIGNALDB_DISCOVERY_POLL_INTERVAL", "discovery.poll_interval"),
    ("SIGNALDB_DISCOVERY_TTL", "discovery.ttl"),
    ("SIGNALDB_SCHEMA_CATALOG_TYPE", "schema.catalog_type"),
    ("SIGNALDB_SCHEMA_CATALOG_URI", "schema.catalog_uri"),
    ("SIGNALDB_STORAGE_DEFAULT", "storage.default"),
    ("SIGNALDB_STORAGE_DSN", "storage.dsn"),
    ("SIGNALDB_QUEUE_DSN", "queue.dsn"),
    ("SIGNALDB_QUEUE_MAX_BATCH_SIZE", "queue.max_batch_size"),
    ("SIGNALDB_QUEUE_MAX_BATCH_WAIT", "queue.max_batch_wait"),
    ("WRITER_WAL_DIR", "wal.dir"),
    ("ACCEPTOR_WAL_DIR", "wal.acceptor.wal_dir"),
    ("WAL_MAX_SEGMENT_SIZE", "wal.max_segment_size"),
    ("WAL_MAX_BUFFER_ENTRIES", "wal.max_buffer_entries"),
    ("WAL_FLUSH_INTERVAL", "wal.sync_interval"),
    ("WAL_FLUSH_INTERVAL_SECS", "wal.flush_interval_secs"),
];

/// Settings for tests, not for the file.
const NOT_SETTINGS: &[&str] = &["SIGNALDB_BOOT_ID_PATH"];

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("read configuration file {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: {message}")]
    Syntax { path: PathBuf, message: String },
    #[error("--set {0:?} is not section.key=value")]
    Set(String),
    /// The key, the value and what was expected.
    #[error("{key}: {message}")]
    Value { key: String, message: String },
}

/// What the command line and the environment say.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    pub environment: Vec<(String, String)>,
    /// `section.key=value`.
    pub set: Vec<String>,
}

impl Sources {
    /// Takes the process's environment.
    pub fn with_environment(mut self) -> Self {
        self.environment = std::env::vars().collect();
        self
    }
}

/// Reads and checks the configuration.
///
/// # Errors
/// [`ConfigError`] names the key, the value and what was expected.
pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
    let mut table = read_file(sources.file.as_deref())?;
    for (name, value) in &sources.environment {
        if let Some(key) = environment_key(name) {
            insert(&mut table, &key, value)?;
        }
    }
    for assignment in &sources.set {
        let (key, value) = assignment.split_once('=').ok_or_else(|| ConfigError::Set(assignment.clone()))?;
        insert(&mut table, key.trim(), value)?;
    }
    let mut notes = seeds::translate(&mut table)?;
    let mut config: Config = serde_path_to_error::deserialize(Value::Table(table)).map_err(|error| {
        let (key, message) = (error.path().to_string(), error.inner().to_string());
        ConfigError::Value { key, message: message.trim().replace('\n', " ") }
    })?;
    check(&config)?;
    if config.wal.sync_interval.0 > SYNC_INTERVAL_MAX {
        config.wal.sync_interval = Time(SYNC_INTERVAL_MAX);
        notes.push("wal.sync_interval: at most 1s of log may wait for a sync; set to 1s".to_owned());
    }
    config.notes = notes;
    Ok(config)
}

fn read_file(path: Option<&Path>) -> Result<Table, ConfigError> {
    let (path, required) = path.map_or((Path::new(DEFAULT_FILE), false), |path| (path, true));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return Ok(Table::new()),
        Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
    };
    text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        message: error.to_string().trim().to_owned(),
    })
}

fn environment_key(name: &str) -> Option<String> {
    if let Some((_, key)) = ALIASES.iter().find(|(alias, _)| *alias == name) {
        return Some((*key).to_owned());
    }
    if NOT_SETTINGS.contains(&name) {
        return None;
    }
    let rest = name.strip_prefix(PREFIX)?;
    if let Some(adapter) = rest.strip_prefix("STORAGE_ADAPTERS_")
        && let Some((name, key)) = adapter.rsplit_once('_')
        && !adapter.contains("__")
    {
        return Some(format!("storage.adapters.{}.{}", name.to_lowercase(), key.to_lowercase()));
    }
    let (section, key) = rest.split_once("__")?;
    Some(format!("{}.{}", section.to_lowercase(), key.to_lowercase().replace("__", ".")))
}

/// Puts a value at a dotted key. It is read as TOML, and as text when it is not TOML.
fn insert(table: &mut Table, key: &str, text: &str) -> Result<(), ConfigError> {
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().unwrap_or_default();
    let secret = SECRETS.contains(&last);
    let value = format!("v = {text}").parse::<Table>().ok().and_then(|mut parsed| parsed.remove("v"));
    let value = value.filter(|value| value.is_str() || !secret);
    let value = value.unwrap_or_else(|| Value::String(text.to_owned()));
    let mut current = table;
    for part in parts {
        let next = current.entry(part).or_insert_with(|| Value::Table(Table::new()));
        let shown = if secret { "***" } else { text };
        let message = format!("{shown:?} is set below a key that is not a section");
        current = next.as_table_mut().ok_or_else(|| ConfigError::Value { key: key.to_owned(), message })?;
    }
    current.insert(last.to_owned(), value);
    Ok(())
}

fn check(config: &Config) -> Result<(), ConfigError> {
    let wrong = |key: &str, message: String| Err(ConfigError::Value { key: key.to_owned(), message });
    let (shortest, longest) = config.cluster.election_timeout;
    if config.node.id == 0 {
        return wrong("node.id", "0 is not a node number; expected 1 or more".to_owned());
    }
    if !(1..=64).contains(&config.cluster.groups) {
        return wrong("cluster.groups", format!("{} is not in 1..=64", config.cluster.groups));
    }
    check_cluster(config)?;
    if shortest >= longest || config.cluster.heartbeat_interval >= shortest {
        let message = "expected heartbeat_interval < shortest < longest".to_owned();
        return wrong("cluster.election_timeout", message);
    }
    if config.flush.interval.0.is_zero() || config.flush.max_interval < config.flush.interval {
        return wrong("flush.max_interval", "expected 0 < flush.interval <= flush.max_interval".to_owned());
    }
    check_maintenance(config)?;
    check_query(config)?;
    writer::check(config)?;
    if config.wal.max_unflushed.is_some_and(|limit| limit.0 == 0) {
        return wrong("wal.max_unflushed", "0 would refuse every write; leave it out for no limit".to_owned());
    }
    if !matches!(config.schema.catalog_type.as_str(), "sql" | "memory") {
        return wrong("schema.catalog_type", format!("{:?} is not sql or memory", config.schema.catalog_type));
    }
    storage::check(config)?;
    if config.auth.enabled && config.auth.tenants.is_empty() {
        return wrong("auth.tenants", "authentication is on and there are no tenants; expected one or more".to_owned());
    }
    check_open_listeners(config)
}

fn check_maintenance(config: &Config) -> Result<(), ConfigError> {
    let wrong = |key: &str, message: String| Err(ConfigError::Value { key: key.to_owned(), message });
    let (compaction, retention) = (&config.compaction, &config.retention);
    if compaction.interval.0.is_zero() {
        return wrong("compaction.interval", "expected more than 0s".to_owned());
    }
    if !(TARGET_FILE_MIN..=TARGET_FILE_MAX).contains(&compaction.target_file_size.0) {
        let message = format!("{} bytes is not in 1MiB..=512MiB", compaction.target_file_size.0);
        return wrong("compaction.target_file_size", message);
    }
    if compaction.min_files < 2 {
        return wrong("compaction.min_files", format!("{} is not 2 or more", compaction.min_files));
    }
    // A file must outlive the queries that still read it, and the commits that are still on their way.
    let grace_min = GRACE_MIN.max(2 * config.query.deadline_max());
    if retention.grace.0 < grace_min {
        let message = format!(
            "{:?} is too short; expected at least {grace_min:?}: 30m, and twice query.deadline_max",
            retention.grace.0
        );
        return wrong("retention.grace", message);
    }
    let keeps = retention.rules.iter().map(|rule| rule.keep).chain([retention.keep]);
    if keeps.flatten().any(|keep| keep.0.is_zero()) {
        return wrong("retention.keep", "0s would delete everything; leave it out to keep rows for ever".to_owned());
    }
    let mut tables = retention.rules.iter().filter_map(|rule| rule.table.as_deref());
    if let Some(unknown) = tables.find(|table| SignalTable::from_name(table).is_none()) {
        let known = SignalTable::ALL.map(SignalTable::name).join(", ");
        return wrong("retention.rules.table", format!("{unknown:?} is not a table; expected one of {known}"));
    }
    Ok(())
}

fn check_query(config: &Config) -> Result<(), ConfigError> {
    let wrong = |key: &str, message: &str| Err(ConfigError::Value { key: key.to_owned(), message: message.to_owned() });
    let query = &config.query;
    if query.deadline.0.is_zero() {
        return wrong("query.deadline", "0s would refuse every query; expected more");
    }
    if query.deadline_max() < query.deadline.0 {
        return wrong("query.deadline_max", "is less than query.deadline; expected that much or more");
    }
    for (key, value) in
        [("query.concurrency", query.concurrency), ("query.tenant_concurrency", query.tenant_concurrency)]
    {
        if value == 0 {
            return wrong(key, "0 would refuse every query; expected 1 or more");
        }
    }
    if query.memory.is_some_and(|memory| memory.0 < QUERY_MEMORY_MIN) {
        return wrong(
            "query.memory",
            "is too little to sort anything; expected 1MiB or more, or nothing for the default",
        );
    }
    if query.scan.is_some_and(|scan| scan.0 == 0) {
        return wrong("query.scan", "0 would refuse every query of stored rows; leave it out for no limit");
    }
    Ok(())
}

fn check_cluster(config: &Config) -> Result<(), ConfigError> {
    let wrong = |key: &str, message: String| Err(ConfigError::Value { key: key.to_owned(), message });
    if !matches!(config.cluster.ack.as_str(), "quorum" | "quorum-fsync") {
        return wrong("cluster.ack", format!("{:?} is not quorum or quorum-fsync", config.cluster.ack));
    }
    for tenant in &config.auth.tenants {
        if let Some(ack) = tenant.ack.as_deref().filter(|ack| !matches!(*ack, "quorum" | "quorum-fsync")) {
            let message = format!("{ack:?} of tenant {:?} is not quorum or quorum-fsync", tenant.id);
            return wrong("auth.tenants.ack", message);
        }
    }
    let addresses = match config.cluster.addresses() {
        Ok(addresses) => addresses,
        Err(message) => return wrong("cluster.peers", message),
    };
    if addresses.len() <= 1 {
        return Ok(());
    }
    if !matches!(addresses.len(), 3 | 5) {
        let message = format!("{} nodes; expected 3 or 5 first voters (or none on a single node)", addresses.len());
        return wrong("cluster.peers", message);
    }
    let factor = config.cluster.replication_factor.unwrap_or(addresses.len() as u32);
    if factor as usize != addresses.len() {
        let message = format!("{factor} voters on {} nodes is not built yet; expected {0}", addresses.len());
        return wrong("cluster.replication_factor", message);
    }
    if !addresses.contains_key(&NodeId(config.node.id)) {
        let message = format!("{} is not one of cluster.peers {:?}", config.node.id, config.cluster.peers);
        return wrong("node.id", message);
    }
    if config.cluster.secret.0.is_empty() && !is_loopback(&config.listen.peer) {
        let message = format!(
            "is empty while listen.peer = {:?} is reachable from outside; expected a secret that all nodes share",
            config.listen.peer
        );
        return wrong("cluster.secret", message);
    }
    if config.catalog_uri().contains(":memory:") {
        let message = "a catalog in memory cannot be shared; expected a file that all nodes see, or PostgreSQL";
        return wrong("schema.catalog_uri", message.to_owned());
    }
    Ok(())
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    matches!(host, "localhost" | "[::1]") || host.starts_with("127.")
}

/// An open node serves loopback only, unless somebody says otherwise.
fn check_open_listeners(config: &Config) -> Result<(), ConfigError> {
    if config.auth.enabled || config.auth.allow_anonymous {
        return Ok(());
    }
    let listen = &config.listen;
    for (name, address) in [
        ("otlp_grpc", &listen.otlp_grpc),
        ("otlp_http", &listen.otlp_http),
        ("http", &listen.http),
        ("flight", &listen.flight),
    ] {
        if !is_loopback(address) {
            return Err(ConfigError::Value {
                key: format!("listen.{name}"),
                message: format!(
                    "{address:?} is reachable from outside while auth.enabled is false; expected a loopback address, \
                     auth.enabled = true, or auth.allow_anonymous = true"
                ),
            });
        }
    }
    Ok(())
}
