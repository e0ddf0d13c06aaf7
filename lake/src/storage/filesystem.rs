//! A directory whose files survive power loss.
//!
//! Neither `iceberg` nor `object_store` sync files or directories; this does: temporary file, fsync, rename, fsync of
//! the directory.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Backend, Listed, StoreError};

/// Files below a `file:///` root.
pub(super) struct Filesystem;

impl Filesystem {
    /// Makes the directory exist; returns its root, `file:///...` without a trailing slash.
    pub(super) fn make_root(path: &str, prefix: &str) -> Result<String, StoreError> {
        let path = Path::new(path).join(prefix);
        let failed = |source| StoreError::Io { action: "create", path: path.display().to_string(), source };
        create_dirs(&std::path::absolute(&path).map_err(failed)?).map_err(failed)?;
        let path = fs::canonicalize(&path).map_err(failed)?;
        Ok(format!("file://{}", path.display()))
    }
}

#[async_trait]
impl Backend for Filesystem {
    async fn write(&self, location: &str, content: Bytes) -> Result<(), StoreError> {
        let path = path_of(location);
        run("write", location, move || write_durably(&path, &content)).await
    }

    /// Replaces what is there: directories that nodes share know no better, and the caller reads back.
    async fn create(&self, location: &str, content: Bytes) -> Result<(), StoreError> {
        self.write(location, content).await
    }

    async fn read(&self, location: &str) -> Result<Bytes, StoreError> {
        let path = path_of(location);
        run("read", location, move || fs::read(path).map(Bytes::from)).await
    }

    async fn read_range(&self, location: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = path_of(location);
        run("read", location, move || {
            let mut buffer = vec![0; usize::try_from(range.end - range.start).map_err(io::Error::other)?];
            fs::File::open(path)?.read_exact_at(&mut buffer, range.start)?;
            Ok(Bytes::from(buffer))
        })
        .await
    }

    async fn exists(&self, location: &str) -> Result<bool, StoreError> {
        let path = path_of(location);
        run("look for", location, move || path.try_exists()).await
    }

    async fn delete(&self, location: &str) -> Result<(), StoreError> {
        let path = path_of(location);
        let remove = move || match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        };
        run("delete", location, remove).await
    }

    async fn list(&self, location: &str) -> Result<Vec<Listed>, StoreError> {
        let path = path_of(location);
        let walk = move || {
            let mut out = Vec::new();
            walk(&path, &mut out).map(|()| out)
        };
        run("list", location, walk).await
    }
}

/// Adds all files below `dir`. What goes away meanwhile is left out.
fn walk(dir: &Path, out: &mut Vec<Listed>) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        if metadata.is_dir() {
            walk(&entry.path(), out)?;
        } else {
            let since = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            out.push(Listed {
                location: format!("file://{}", entry.path().display()),
                modified_ms: i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
                bytes: metadata.len(),
            });
        }
    }
    Ok(())
}

fn path_of(location: &str) -> PathBuf {
    PathBuf::from(location.trim_start_matches("file://"))
}

async fn run<T: Send + 'static>(
    action: &'static str,
    location: &str,
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
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
