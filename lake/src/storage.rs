//! The store of the tables: a local directory, or a bucket that speaks S3, behind one type.
//!
//! What [`Store::write`] returned for survives power loss: a file is synced with its directory, a PUT is durable when it
//! is answered. Locations are whole URLs, `file:///...` or `s3://bucket/...`, as Iceberg's metadata names them.

#[cfg(test)]
mod faulty;
mod filesystem;
mod object;
mod s3;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use self::filesystem::Filesystem;
use self::object::{Objects, failed};

pub use self::object::ObjectFailure;
pub use self::s3::{S3Credentials, S3Options};

/// Name of the file that says which cluster a store belongs to.
const STORE_FILE: &str = "signaldb-store.json";
/// Where the objects of a store in memory are.
const MEMORY_URL: &str = "memory://tables";

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
    #[error("{action} {location}")]
    Object {
        action: &'static str,
        location: String,
        #[source]
        source: ObjectFailure,
    },
    #[error("storage url {0:?} is not file:///PATH, s3://BUCKET or memory://")]
    Url(String),
    #[error("storage prefix {0:?} has a part that is empty, `.` or `..`")]
    Prefix(String),
    #[error("{location} is not in the store {root}")]
    Elsewhere { location: String, root: String },
    #[error("store {root} belongs to cluster store {found}, the catalog and log to {expected}")]
    Foreign { root: String, found: String, expected: String },
    #[error("a storage task panicked")]
    Panicked,
}

impl StoreError {
    /// Nothing is there; the store itself answered.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Object { source, .. } => source.not_found,
            _ => false,
        }
    }
}

/// What a kind of store does with one location.
#[async_trait]
trait Backend: Send + Sync {
    /// Writes a whole file, durable when this returns; readers see all of it or none.
    async fn write(&self, location: &str, content: Bytes) -> Result<(), StoreError>;
    /// Makes something be at `location`: `content`, or, where the store can tell, what came first.
    async fn create(&self, location: &str, content: Bytes) -> Result<(), StoreError>;
    async fn read(&self, location: &str) -> Result<Bytes, StoreError>;
    /// Reads a range that is not empty; it may come short at the end of the file.
    async fn read_range(&self, location: &str, range: Range<u64>) -> Result<Bytes, StoreError>;
    async fn exists(&self, location: &str) -> Result<bool, StoreError>;
    /// Deletes a file, if it is there.
    async fn delete(&self, location: &str) -> Result<(), StoreError>;
    /// All files below a directory, in any order; none when it does not exist.
    async fn list(&self, location: &str) -> Result<Vec<Listed>, StoreError>;
}

/// A file as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub location: String,
    /// By the store's clock, milliseconds since 1970.
    pub modified_ms: i64,
    pub bytes: u64,
}

/// One tree of files, and whose it is. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    root: String,
    backend: Box<dyn Backend>,
    /// The bucket's URL and the bucket, for scans; `None` for local files.
    objects: Option<(String, Arc<dyn ObjectStore>)>,
    client_properties: BTreeMap<&'static str, String>,
    /// The cluster store that writes are for, once somebody claimed this one.
    owner: OnceLock<String>,
    /// The store was found to belong to `owner`.
    claimed: OnceCell<()>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.0.root).finish()
    }
}

#[derive(Serialize, Deserialize)]
struct StoreIdentity {
    store_id: String,
}

impl Store {
    /// Opens the tree at `url` and below it `prefix`: `file://PATH`, which is created when missing, `s3://BUCKET`, which
    /// is not asked before the first use, or `memory://`, which forgets everything when it is dropped.
    ///
    /// # Errors
    /// [`StoreError::Url`] for other schemes, [`StoreError::Prefix`], or what the directory or the options say.
    ///
    /// # Panics
    /// For `s3://` outside a Tokio runtime: the one that opens the store drives its connections.
    pub fn open(url: &str, prefix: &str, options: &S3Options) -> Result<Self, StoreError> {
        match url.split_once("://") {
            Some(("file", path)) => {
                Ok(Self::new(Filesystem::make_root(path, prefix)?, Box::new(Filesystem), None, BTreeMap::new()))
            }
            Some(("s3", rest)) => {
                let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return Err(StoreError::Url(url.to_owned()));
                }
                let bucket_url = format!("s3://{bucket}");
                let root = below(&bucket_url, [path, prefix])?;
                let objects = s3::connect(bucket, options, tokio::runtime::Handle::current());
                let objects = objects.map_err(failed("open", &bucket_url))?;
                Ok(Self::over(Arc::new(objects), bucket_url, root, s3::client_properties(options)))
            }
            Some(("memory", _)) => {
                let root = below(MEMORY_URL, [prefix])?;
                Ok(Self::over(Arc::new(InMemory::new()), MEMORY_URL.to_owned(), root, BTreeMap::new()))
            }
            _ => Err(StoreError::Url(url.to_owned())),
        }
    }

    /// A store over these objects, for simulation; its locations begin with `memory://tables`.
    pub fn of_objects(objects: Arc<dyn ObjectStore>) -> Self {
        Self::over(objects, MEMORY_URL.to_owned(), MEMORY_URL.to_owned(), BTreeMap::new())
    }

    fn over(
        objects: Arc<dyn ObjectStore>,
        url: String,
        root: String,
        client_properties: BTreeMap<&'static str, String>,
    ) -> Self {
        let backend = Objects::new(Arc::clone(&objects), url.clone());
        Self::new(root, Box::new(backend), Some((url, objects)), client_properties)
    }

    fn new(
        root: String,
        backend: Box<dyn Backend>,
        objects: Option<(String, Arc<dyn ObjectStore>)>,
        client_properties: BTreeMap<&'static str, String>,
    ) -> Self {
        let (owner, claimed) = (OnceLock::new(), OnceCell::new());
        Self(Arc::new(Inner { root, backend, objects, client_properties, owner, claimed }))
    }

    /// `file:///...` or `s3://bucket/...`, without a trailing slash.
    pub fn root(&self) -> &str {
        &self.0.root
    }

    /// The URL under which scans find the objects, and the objects; `None` for local files, which every reader knows.
    pub fn objects(&self) -> Option<(&str, Arc<dyn ObjectStore>)> {
        self.0.objects.as_ref().map(|(url, objects)| (url.as_str(), Arc::clone(objects)))
    }

    /// How an Iceberg client reaches the same store, in the property names that they share; never a secret.
    pub fn client_properties(&self) -> &BTreeMap<&'static str, String> {
        &self.0.client_properties
    }

    /// Writes a file that is durable when this returns.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when the store is not the one that was claimed; any other failure is unknown: the file may
    /// be there, whole.
    pub async fn write(&self, location: &str, content: Bytes) -> Result<(), StoreError> {
        self.check_owner().await?;
        self.0.backend.write(location, content).await
    }

    pub async fn read(&self, location: &str) -> Result<Bytes, StoreError> {
        self.0.backend.read(location).await
    }

    /// Reads exactly `range`.
    ///
    /// # Errors
    /// Also when the file ends before the range does.
    pub async fn read_range(&self, location: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let length = range.end - range.start;
        let content = self.0.backend.read_range(location, range).await?;
        if content.len() as u64 != length {
            let source = io::ErrorKind::UnexpectedEof.into();
            return Err(StoreError::Io { action: "read", path: location.to_owned(), source });
        }
        Ok(content)
    }

    pub async fn exists(&self, location: &str) -> Result<bool, StoreError> {
        self.0.backend.exists(location).await
    }

    /// Deletes a file; one that is not there is deleted already.
    pub async fn delete(&self, location: &str) -> Result<(), StoreError> {
        self.check_owner().await?;
        self.0.backend.delete(location).await
    }

    /// All files below the directory `location`, in any order; none when it does not exist. Files that are written or
    /// deleted meanwhile may be missing.
    pub async fn list(&self, location: &str) -> Result<Vec<Listed>, StoreError> {
        self.0.backend.list(location).await
    }

    /// Makes the store belong to `store_id`, or checks that it does. When it does not answer now, the first write looks.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] names both.
    pub async fn claim(&self, store_id: &str) -> Result<(), StoreError> {
        let owner = self.0.owner.get_or_init(|| store_id.to_owned());
        self.identify(store_id).await?;
        if owner == store_id {
            // Somebody who looks at the same time will find the same.
            let _ = self.0.claimed.set(());
        }
        Ok(())
    }

    /// Whether the store can be written to.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.read(&self.identity()).await.map(drop)
    }

    fn identity(&self) -> String {
        format!("{}/{STORE_FILE}", self.0.root)
    }

    async fn check_owner(&self) -> Result<(), StoreError> {
        let Some(owner) = self.0.owner.get() else { return Ok(()) };
        self.0.claimed.get_or_try_init(|| self.identify(owner)).await?;
        Ok(())
    }

    async fn identify(&self, store_id: &str) -> Result<(), StoreError> {
        let location = self.identity();
        let content = match self.0.backend.read(&location).await {
            Err(error) if error.is_not_found() => {
                let identity = StoreIdentity { store_id: store_id.to_owned() };
                let content = serde_json::to_vec_pretty(&identity).expect("an identity is plain JSON");
                self.0.backend.create(&location, content.into()).await?;
                // Somebody else may have been first, and not every server says so.
                self.0.backend.read(&location).await?
            }
            outcome => outcome?,
        };
        let found = serde_json::from_slice::<StoreIdentity>(&content)
            .map_or_else(|_| String::from_utf8_lossy(&content).into_owned(), |identity| identity.store_id);
        if found == store_id {
            return Ok(());
        }
        Err(StoreError::Foreign { root: self.0.root.clone(), found, expected: store_id.to_owned() })
    }
}

/// A root below a bucket. Keys are what locations say, unescaped, so a prefix must be one that a key can have.
fn below<const N: usize>(bucket_url: &str, parts: [&str; N]) -> Result<String, StoreError> {
    let parts = parts.map(|part| part.trim_matches('/'));
    let path = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    if path.is_empty() {
        return Ok(bucket_url.to_owned());
    }
    Path::parse(&path).map_err(|_| StoreError::Prefix(path.clone()))?;
    Ok(format!("{bucket_url}/{path}"))
}

#[cfg(test)]
mod tests;
