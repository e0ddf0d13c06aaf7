//! What the seed documents call differently, translated before the configuration is typed (SEEDS.md decides each).

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::layers::ConfigError;

/// Rewrites the seeds' keys into ours; returns what an operator should know.
pub(super) fn translate(root: &mut Table) -> Result<Vec<String>, ConfigError> {
    let mut notes = Vec::new();
    if let Some(wal) = root.get_mut("wal").and_then(Value::as_table_mut) {
        translate_wal(wal, &mut notes)?;
    }
    translate_storage(root)?;
    if let Some(writer) = root.get_mut("writer").and_then(Value::as_table_mut) {
        translate_writer(writer)?;
    }
    translate_queue(root, &mut notes)?;
    Ok(notes)
}

fn wrong(key: &str, value: &Value, expected: &str) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), message: format!("{value} is not {expected}") }
}

fn translate_wal(wal: &mut Table, notes: &mut Vec<String>) -> Result<(), ConfigError> {
    if wal.remove("acceptor").is_some() {
        notes.push("wal.acceptor: acceptors keep no log, the quorum is the acknowledgment; ignored".to_owned());
    }
    if let Some(writer) = wal.remove("writer") {
        let dir = writer.as_table().and_then(|writer| writer.get("wal_dir").or_else(|| writer.get("dir"))).cloned();
        let dir = dir.ok_or_else(|| wrong("wal.writer", &writer, "a section with wal_dir"))?;
        wal.entry("dir").or_insert(dir);
    }
    if let Some(value) = wal.remove("flush_interval_secs") {
        let seconds = value.as_integer().filter(|seconds| *seconds >= 0);
        let seconds = seconds.ok_or_else(|| wrong("wal.flush_interval_secs", &value, "a number of seconds"))?;
        wal.entry("sync_interval").or_insert(Value::String(format!("{seconds}s")));
    }
    // The environment's WAL_FLUSH_INTERVAL arrives as sync_interval; a bare number means seconds there.
    if let Some(seconds) = wal.get("sync_interval").and_then(Value::as_integer) {
        wal.insert("sync_interval".to_owned(), Value::String(format!("{seconds}s")));
    }
    if let Some(value) = wal.remove("max_buffer_entries") {
        match value.as_integer() {
            Some(1) => drop(wal.insert("sync_bytes".to_owned(), Value::String("1B".to_owned()))),
            Some(2..) => {
                notes.push("wal.max_buffer_entries: wal.sync_bytes bounds what waits for a sync; ignored".to_owned())
            }
            _ => return Err(wrong("wal.max_buffer_entries", &value, "a number of entries, 1 or more")),
        }
    }
    Ok(())
}

/// The writer's settings under the names of its API, whose numbers have their unit in the name.
fn translate_writer(writer: &mut Table) -> Result<(), ConfigError> {
    for (section, key, unit) in [
        ("pool", "connection_timeout_ms", "ms"),
        ("pool", "idle_timeout_seconds", "s"),
        ("pool", "max_lifetime_seconds", "s"),
        ("batch", "catalog_cache_ttl_seconds", "s"),
        ("batch", "max_memory_per_batch_bytes", "B"),
    ] {
        let Some(section) = writer.get_mut(section).and_then(Value::as_table_mut) else { continue };
        let Some(value) = section.remove(key) else { continue };
        let number = value.as_integer().filter(|number| *number >= 0);
        let number = number.ok_or_else(|| wrong(key, &value, "a number, 0 or more"))?;
        let name = key.rsplit_once('_').map_or(key, |(name, _)| name);
        section.entry(name).or_insert(Value::String(format!("{number}{unit}")));
    }
    Ok(())
}

/// `[storage] dsn` is the adapter `default`.
fn translate_storage(root: &mut Table) -> Result<(), ConfigError> {
    let Some(storage) = root.get_mut("storage").and_then(Value::as_table_mut) else { return Ok(()) };
    let Some(dsn) = storage.remove("dsn") else { return Ok(()) };
    let kinds = BTreeMap::from([("file", "filesystem"), ("s3", "s3"), ("memory", "memory")]);
    let scheme = dsn.as_str().and_then(|dsn| dsn.split_once("://")).map(|(scheme, _)| scheme);
    let kind = scheme.and_then(|scheme| kinds.get(scheme));
    let kind = kind.ok_or_else(|| wrong("storage.dsn", &dsn, "file://..., s3://... or memory://"))?;
    let adapter = Table::from_iter([("type", Value::from(*kind)), ("url", dsn)].map(|(k, v)| (k.to_owned(), v)));
    let adapters = storage.entry("adapters").or_insert_with(|| Value::Table(Table::new()));
    if let Some(adapters) = adapters.as_table_mut() {
        adapters.insert("default".to_owned(), Value::Table(adapter));
    }
    storage.entry("default").or_insert(Value::from("default"));
    Ok(())
}

/// The seed's queue before Parquet: its wait is the flush interval, its size is bounded in bytes here.
fn translate_queue(root: &mut Table, notes: &mut Vec<String>) -> Result<(), ConfigError> {
    let Some(Value::Table(mut queue)) = root.remove("queue") else { return Ok(()) };
    if let Some(dsn) = queue.remove("dsn").filter(|dsn| dsn.as_str() != Some("memory://")) {
        return Err(wrong("queue.dsn", &dsn, "memory:// (the replicated log is the queue)"));
    }
    if let Some(wait) = queue.remove("max_batch_wait") {
        let flush = root.entry("flush").or_insert_with(|| Value::Table(Table::new()));
        if let Some(flush) = flush.as_table_mut() {
            flush.entry("interval").or_insert(wait);
        }
    }
    if let Some(size) = queue.remove("max_batch_size") {
        if size.as_integer().is_none_or(|rows| rows < 1) {
            return Err(wrong("queue.max_batch_size", &size, "a number of rows, 1 or more"));
        }
        notes.push("queue.max_batch_size: flush.max_bytes bounds a batch; ignored".to_owned());
    }
    match queue.keys().next() {
        Some(key) => Err(ConfigError::Value {
            key: format!("queue.{key}"),
            message: "unknown key; expected dsn, max_batch_size or max_batch_wait".to_owned(),
        }),
        None => Ok(()),
    }
}
