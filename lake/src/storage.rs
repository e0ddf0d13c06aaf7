//! The object store: a local directory now, written so that what a catalog row points to survives power loss.
//!
//! Neither `iceberg` nor `object_store` sync files or directories; this does: temporary file, fsync, rename, fsync of
//! the directory.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage, StorageConfig,
    StorageFactory,
};
use iceberg::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// Name of the file that says which cluster a store belongs to.
const STORE_FILE: &str = "signaldb-store.json";

/// The store failed; nothing that was not already durable may be relied on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("storage url {0:?} is not file:///PATH")]
    Url(String),
    #[error("store {root} belongs to cluster store {found}, the catalog and log to {expected}")]
    Foreign { root: String, found: String, expected: String },
    #[error("a storage task panicked")]
    Panicked,
}

/// One directory tree under a `file:///` root.
#[derive(Debug, Clone)]
pub struct Store {
    root: String,
    io: FileIO,
}

#[derive(Serialize, Deserialize)]
struct StoreIdentity {
    store_id: String,
}

impl Store {
    /// Opens the tree at `url` (`file://PATH`), creating it when missing.
    ///
    /// # Errors
    /// [`StoreError::Url`] for other schemes.
    pub fn open(url: &str, prefix: &str) -> std::result::Result<Self, StoreError> {
        let path = url.strip_prefix("file://").ok_or_else(|| StoreError::Url(url.to_owned()))?;
        let path = Path::new(path).join(prefix);
        let failed = |source| StoreError::Io { action: "create", path: path.display().to_string(), source };
        create_dirs(&std::path::absolute(&path).map_err(failed)?).map_err(failed)?;
        let path = fs::canonicalize(&path).map_err(failed)?;
        let root = format!("file://{}", path.display());
        Ok(Self { root, io: FileIOBuilder::new(Arc::new(DurableFsFactory)).build() })
    }

    /// `file:///...` without a trailing slash.
    pub fn root(&self) -> &str {
        &self.root
    }

    pub fn file_io(&self) -> &FileIO {
        &self.io
    }

    /// Writes a file that is durable when this returns.
    pub async fn write(&self, location: &str, content: Bytes) -> std::result::Result<(), StoreError> {
        let path = PathBuf::from(location.trim_start_matches("file://"));
        run("write", location, move || write_durably(&path, &content)).await
    }

    pub async fn read(&self, location: &str) -> std::result::Result<Bytes, StoreError> {
        let path = PathBuf::from(location.trim_start_matches("file://"));
        run("read", location, move || fs::read(path).map(Bytes::from)).await
    }

    /// Makes the store belong to `store_id`, or checks that it does.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] names both.
    pub async fn claim(&self, store_id: &str) -> std::result::Result<(), StoreError> {
        let location = format!("{}/{STORE_FILE}", self.root);
        let found = match self.read(&location).await {
            Ok(content) => serde_json::from_slice::<StoreIdentity>(&content)
                .map_or_else(|_| String::from_utf8_lossy(&content).into_owned(), |identity| identity.store_id),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let identity = StoreIdentity { store_id: store_id.to_owned() };
                let content = serde_json::to_vec_pretty(&identity).expect("an identity is plain JSON");
                return self.write(&location, content.into()).await;
            }
            Err(error) => return Err(error),
        };
        if found == store_id {
            return Ok(());
        }
        Err(StoreError::Foreign { root: self.root.clone(), found, expected: store_id.to_owned() })
    }

    /// Whether the store can be written to.
    pub async fn ping(&self) -> std::result::Result<(), StoreError> {
        self.read(&format!("{}/{STORE_FILE}", self.root)).await.map(drop)
    }
}

async fn run<T: Send + 'static>(
    action: &'static str,
    location: &str,
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> std::result::Result<T, StoreError> {
    let outcome = tokio::task::spawn_blocking(act).await.map_err(|_| StoreError::Panicked)?;
    outcome.map_err(|source| StoreError::Io { action, path: location.to_owned(), source })
}

fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    create_dirs(dir)?;
    let temporary = dir.join(format!(".tmp-{}", uuid::Uuid::new_v4()));
    let mut file = fs::File::options().write(true).create_new(true).open(&temporary)?;
    // An fsync error is never retried: the file is abandoned, the caller starts over with another.
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(dir)?.sync_all()
}

/// Creates directories and makes each new one durable in its parent.
fn create_dirs(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().ok_or(io::ErrorKind::InvalidInput)?;
    create_dirs(parent)?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::File::open(parent)?.sync_all()
}

/// The same tree as `iceberg` wants it, for reading manifests.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct DurableFs;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct DurableFsFactory;

#[typetag::serde(name = "signaldb-durable-fs-factory")]
impl StorageFactory for DurableFsFactory {
    fn build(&self, _config: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(DurableFs))
    }
}

fn path_of(location: &str) -> PathBuf {
    PathBuf::from(location.trim_start_matches("file://"))
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    let failed = |error: io::Error| Error::new(ErrorKind::Unexpected, error.to_string()).with_source(error);
    match tokio::task::spawn_blocking(act).await {
        Ok(outcome) => outcome.map_err(failed),
        Err(error) => Err(Error::new(ErrorKind::Unexpected, error.to_string())),
    }
}

#[derive(Debug)]
struct Reader(Arc<fs::File>);

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let file = Arc::clone(&self.0);
        blocking(move || {
            let mut buffer = vec![0; usize::try_from(range.end - range.start).map_err(io::Error::other)?];
            file.read_exact_at(&mut buffer, range.start)?;
            Ok(Bytes::from(buffer))
        })
        .await
    }
}

/// Collects a file in memory and writes it durably when it is closed.
#[derive(Debug)]
struct Writer {
    path: PathBuf,
    content: Vec<u8>,
}

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.content.extend_from_slice(&bytes);
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        let (path, content) = (self.path.clone(), std::mem::take(&mut self.content));
        blocking(move || write_durably(&path, &content)).await
    }
}

#[async_trait]
#[typetag::serde(name = "signaldb-durable-fs")]
impl Storage for DurableFs {
    async fn exists(&self, path: &str) -> Result<bool> {
        let path = path_of(path);
        blocking(move || path.try_exists()).await
    }

    async fn metadata(&self, path: &str) -> Result<FileMetadata> {
        let path = path_of(path);
        Ok(FileMetadata { size: blocking(move || Ok(fs::metadata(path)?.len())).await? })
    }

    async fn read(&self, path: &str) -> Result<Bytes> {
        let path = path_of(path);
        blocking(move || fs::read(path).map(Bytes::from)).await
    }

    async fn reader(&self, path: &str) -> Result<Box<dyn FileRead>> {
        let path = path_of(path);
        Ok(Box::new(Reader(Arc::new(blocking(move || fs::File::open(path)).await?))))
    }

    async fn write(&self, path: &str, content: Bytes) -> Result<()> {
        let path = path_of(path);
        blocking(move || write_durably(&path, &content)).await
    }

    async fn writer(&self, path: &str) -> Result<Box<dyn FileWrite>> {
        Ok(Box::new(Writer { path: path_of(path), content: Vec::new() }))
    }

    async fn delete(&self, path: &str) -> Result<()> {
        let path = path_of(path);
        blocking(move || match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        })
        .await
    }

    async fn delete_prefix(&self, path: &str) -> Result<()> {
        let path = path_of(path);
        blocking(move || if path.is_dir() { fs::remove_dir_all(path) } else { Ok(()) }).await
    }

    async fn delete_stream(&self, mut paths: BoxStream<'static, String>) -> Result<()> {
        while let Some(path) = paths.next().await {
            self.delete(&path).await?;
        }
        Ok(())
    }

    fn new_input(&self, path: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_belongs_to_one_cluster() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&format!("file://{}", dir.path().display()), "data").expect("opens");
        store.claim("one").await.expect("claims");
        store.claim("one").await.expect("is its own");
        let error = store.claim("two").await.expect_err("refuses");
        assert!(error.to_string().contains("one") && error.to_string().contains("two"), "{error}");
        store.ping().await.expect("is there");
        assert!(Store::open("s3://bucket", "").is_err());
    }

    #[tokio::test]
    async fn files_are_whole_or_absent() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&format!("file://{}", dir.path().display()), "").expect("opens");
        let location = format!("{}/a/b/c.bin", store.root());
        store.write(&location, Bytes::from_static(b"content")).await.expect("writes");
        assert_eq!(store.read(&location).await.expect("reads"), "content");
        let names: Vec<_> = fs::read_dir(dir.path().join("a/b")).expect("lists").collect();
        assert_eq!(names.len(), 1, "no temporary file stays");
    }
}
