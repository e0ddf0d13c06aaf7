//! Small keyed state that outlives the process: snapshots now, stream metadata later.
//!
//! Log payloads never go through it. Two implementations, one conformance suite (`tests` below).

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rocksdb::properties;
use thiserror::Error;

/// The store failed; the state is unknown.
#[derive(Debug, Error)]
#[error("state store: {0}")]
pub struct StateStoreError(String);

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Keys and values, durable when a call returns. Blocking.
pub trait StateStore: Send + Sync + fmt::Debug + 'static {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateStoreError>;
    /// Writes all pairs or none.
    fn put(&self, pairs: &[(&[u8], &[u8])]) -> Result<(), StateStoreError>;
    fn delete(&self, key: &[u8]) -> Result<(), StateStoreError>;
    /// Pairs whose key starts with `prefix`, in key order.
    fn scan(&self, prefix: &[u8]) -> Result<Vec<Pair>, StateStoreError>;

    /// Bytes of its disk that a put of so many bytes takes for a while, at most. Does not block.
    fn room_to_put(&self, bytes: u64) -> u64;

    /// Whether calls may take long: then they run on a thread of their own.
    fn blocks(&self) -> bool {
        true
    }
}

/// Small: RocksDB allocates a tenth more for the log of each buffer, at once. On a disk that is nearly full 8 MiB were the room
/// that votes and purges of our own log had left.
const WRITE_BUFFER_BYTES: u64 = 2 << 20;
/// RocksDB's own log of what it does, which would grow for as long as the process runs. This many bytes, so many files.
const INFO_LOG_BYTES: usize = 1 << 20;
const INFO_LOG_FILES: usize = 4;

/// RocksDB.
pub struct RocksStateStore(rocksdb::DB);

impl fmt::Debug for RocksStateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RocksStateStore({})", self.0.path().display())
    }
}

impl RocksStateStore {
    /// # Errors
    /// When the directory is locked by another process, damaged, or not writable.
    pub fn open(dir: &Path) -> Result<Self, StateStoreError> {
        let mut options = rocksdb::Options::default();
        options.create_if_missing(true);
        options.set_compression_type(rocksdb::DBCompressionType::Lz4);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES as usize);
        options.set_manifest_preallocation_size(64 << 10);
        options.set_max_log_file_size(INFO_LOG_BYTES);
        options.set_keep_log_file_num(INFO_LOG_FILES);
        rocksdb::DB::open(&options, dir).map(Self).map_err(failed)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn failed(error: rocksdb::Error) -> StateStoreError {
    StateStoreError(error.to_string())
}

fn synced() -> rocksdb::WriteOptions {
    let mut options = rocksdb::WriteOptions::default();
    options.set_sync(true);
    options
}

impl StateStore for RocksStateStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateStoreError> {
        self.0.get(key).map_err(failed)
    }

    fn put(&self, pairs: &[(&[u8], &[u8])]) -> Result<(), StateStoreError> {
        let mut batch = rocksdb::WriteBatch::default();
        for (key, value) in pairs {
            batch.put(key, value);
        }
        self.0.write_opt(batch, &synced()).map_err(failed)
    }

    fn delete(&self, key: &[u8]) -> Result<(), StateStoreError> {
        self.0.delete_opt(key, &synced()).map_err(failed)
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<Pair>, StateStoreError> {
        let from = rocksdb::IteratorMode::From(prefix, rocksdb::Direction::Forward);
        let mut out = Vec::new();
        for pair in self.0.iterator(from) {
            let (key, value) = pair.map_err(failed)?;
            if !key.starts_with(prefix) {
                break;
            }
            out.push((key.into_vec(), value.into_vec()));
        }
        Ok(out)
    }

    /// A buffer's log holds the pair, and then a file all that the buffer holds. A compaction may follow, which writes what is
    /// left of all files, allocated a tenth too large, before it removes them. And logs are allocated ahead.
    fn room_to_put(&self, bytes: u64) -> u64 {
        let size = |name| self.0.property_int_value(name).ok().flatten().unwrap_or(0);
        let flushed = bytes + size(properties::CUR_SIZE_ALL_MEM_TABLES);
        let compacted = flushed + size(properties::TOTAL_SST_FILES_SIZE);
        let logs_ahead = 2 * (WRITE_BUFFER_BYTES + WRITE_BUFFER_BYTES / 10);
        bytes + flushed + compacted + compacted / 10 + logs_ahead
    }
}

/// The twin in memory, for tests and simulation.
#[derive(Debug, Default)]
pub struct MemoryStateStore(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

impl StateStore for MemoryStateStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateStoreError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    fn put(&self, pairs: &[(&[u8], &[u8])]) -> Result<(), StateStoreError> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.extend(pairs.iter().map(|(key, value)| (key.to_vec(), value.to_vec())));
        Ok(())
    }

    fn delete(&self, key: &[u8]) -> Result<(), StateStoreError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        Ok(())
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<Pair>, StateStoreError> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let from = map.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(from.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    /// What a disk would have to keep.
    fn room_to_put(&self, bytes: u64) -> u64 {
        bytes
    }

    fn blocks(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// What every implementation must do.
    fn conforms(store: &dyn StateStore) {
        assert_eq!(store.get(b"a").expect("gets"), None);
        store.put(&[(b"a/1", b"one"), (b"a/2", b"two"), (b"b", b"")]).expect("puts");
        assert_eq!(store.get(b"a/1").expect("gets").as_deref(), Some(&b"one"[..]));
        assert_eq!(store.get(b"b").expect("gets").as_deref(), Some(&b""[..]));
        store.put(&[(b"a/1", b"uno")]).expect("replaces");
        let scanned = store.scan(b"a/").expect("scans");
        assert_eq!(scanned, [(b"a/1".to_vec(), b"uno".to_vec()), (b"a/2".to_vec(), b"two".to_vec())]);
        store.delete(b"a/1").expect("deletes");
        store.delete(b"a/1").expect("deletes what is not there");
        assert_eq!(store.scan(b"").expect("scans").len(), 2);
    }

    #[test]
    fn memory_conforms() {
        conforms(&MemoryStateStore::default());
    }

    #[test]
    fn rocksdb_conforms_and_keeps_what_it_was_given() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = RocksStateStore::open(dir.path()).expect("opens");
        conforms(&store);
        drop(store);
        let store = RocksStateStore::open(dir.path()).expect("reopens");
        assert_eq!(store.get(b"a/2").expect("gets").as_deref(), Some(&b"two"[..]));
    }

    /// Bytes of the blocks of all files in a directory.
    fn taken(dir: &Path) -> u64 {
        let files = std::fs::read_dir(dir).expect("lists").flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum()
    }

    #[test]
    fn a_put_takes_no_more_room_than_it_said() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = RocksStateStore::open(dir.path()).expect("opens");
        let (mut noise, mut put_more) = (1_u64, 0);
        for round in 0..30_u8 {
            let value: Vec<u8> = std::iter::repeat_with(|| {
                // Knuth's MMIX: what LZ4 cannot make smaller.
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (noise >> 56) as u8
            })
            .take(1 << 20)
            .collect();
            let (before, room) = (taken(dir.path()), store.room_to_put(value.len() as u64));
            store.put(&[(&[round % 3], &value)]).expect("puts");
            let grown = taken(dir.path()).saturating_sub(before);
            assert!(grown <= room, "round {round}: {grown} bytes of {room}");
            put_more += u8::from(grown > value.len() as u64);
        }
        assert!(put_more > 0, "it never takes more than its bytes");
    }

    #[test]
    fn the_stores_own_log_is_bounded() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let _store = RocksStateStore::open(dir.path()).expect("opens");
        let files = std::fs::read_dir(dir.path()).expect("lists").flatten();
        let options = files.filter(|file| file.file_name().to_string_lossy().starts_with("OPTIONS-"));
        let options: String =
            options.map(|file| std::fs::read_to_string(file.path()).expect("reads")).collect::<Vec<_>>().concat();
        for bound in ["max_log_file_size=1048576", "keep_log_file_num=4"] {
            assert!(options.lines().any(|line| line.trim() == bound), "{bound}: {options}");
        }
    }
}
