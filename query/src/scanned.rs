//! What a query reads of the store, counted at the reads themselves, whoever asks for them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry, ObjectStoreUrl};
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

use crate::queries::Record;

/// The stores that queries read from.
#[derive(Debug, Clone)]
pub(crate) struct Stores(Vec<(ObjectStoreUrl, Arc<dyn ObjectStore>)>);

impl Stores {
    /// Files of this machine, and one more store if there is one.
    pub(crate) fn new(other: Option<(ObjectStoreUrl, Arc<dyn ObjectStore>)>) -> Self {
        let local: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new());
        Self(std::iter::once((ObjectStoreUrl::local_filesystem(), local)).chain(other).collect())
    }

    /// The same for one query, which is stopped when it reads too much.
    pub(crate) fn counted(&self, record: &Arc<Record>) -> Arc<dyn ObjectStoreRegistry> {
        let counted = DefaultObjectStoreRegistry::new();
        for (url, store) in &self.0 {
            let store = Counted { store: Arc::clone(store), record: Arc::clone(record) };
            counted.register_store(url.as_ref(), Arc::new(store));
        }
        Arc::new(counted)
    }
}

/// A store as one query sees it.
#[derive(Debug)]
struct Counted {
    store: Arc<dyn ObjectStore>,
    record: Arc<Record>,
}

impl Counted {
    fn count(&self, bytes: u64) -> Result<()> {
        self.record.scan(bytes).map_err(|error| Error::Generic { store: "query", source: Box::new(error) })
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.store, f)
    }
}

#[async_trait]
impl ObjectStore for Counted {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let result = self.store.get_opts(location, options).await?;
        if !head {
            self.count(result.range.end.saturating_sub(result.range.start))?;
        }
        Ok(result)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        // Before anything is read: what is too much costs nothing.
        self.count(ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum())?;
        self.store.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.store.rename_opts(from, to, options).await
    }
}
