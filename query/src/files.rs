//! Reading data files for scans: footers, page indexes and bloom filters come from memory where they are, pages from the
//! store, all that a step needs in one request.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::common::Result;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::parquet::arrow::arrow_reader::ArrowReaderOptions;
use datafusion::parquet::arrow::async_reader::AsyncFileReader;
use datafusion::parquet::errors::ParquetError;
use datafusion::parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, MetricCategory, MetricType};
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::{ObjectMeta, ObjectStore};

use crate::kept::{KeptParts, Part, PartKey};

/// Bytes from the end of a file that are read at first: the footer and the page index of most files.
const TAIL_BYTES: usize = 256 << 10;
/// A larger range that is asked for alone is no bloom filter.
const BLOOM_BYTES_MAX: u64 = 2 << 20;

/// Makes the readers of a scan.
#[derive(Debug)]
pub(crate) struct DataFiles {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) kept: Arc<KeptParts>,
}

impl ParquetFileReaderFactory for DataFiles {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        _tail_bytes: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let summary = || MetricBuilder::new(metrics).with_type(MetricType::Summary);
        // Under the name that DataFusion's own readers have for it.
        let bytes_scanned = summary()
            .with_new_label("filename", file.object_meta.location.to_string())
            .with_category(MetricCategory::Bytes)
            .counter("bytes_scanned", partition);
        Ok(Box::new(DataFileReader {
            store: Arc::clone(&self.store),
            kept: Arc::clone(&self.kept),
            file: file.object_meta,
            bytes_scanned,
            hits: summary().counter("cache_hits", partition),
            misses: summary().counter("cache_misses", partition),
        }))
    }
}

/// One file, or a part of it.
struct DataFileReader {
    store: Arc<dyn ObjectStore>,
    kept: Arc<KeptParts>,
    file: ObjectMeta,
    bytes_scanned: Count,
    hits: Count,
    misses: Count,
}

impl DataFileReader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes, ParquetError> {
        let mut read = self.read_all(vec![range]).await?;
        read.pop().ok_or_else(|| ParquetError::EOF("the store returned nothing".to_owned()))
    }

    /// The store coalesces ranges that are near each other.
    async fn read_all(&self, ranges: Vec<Range<u64>>) -> Result<Vec<Bytes>, ParquetError> {
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        self.bytes_scanned.add(usize::try_from(bytes).unwrap_or(usize::MAX));
        let read = self.store.get_ranges(&self.file.location, &ranges).await;
        read.map_err(|error| ParquetError::External(Box::new(error)))
    }

    fn note(&self, hit: bool) {
        let count = if hit { &self.hits } else { &self.misses };
        count.add(1);
    }

    async fn footer(&self) -> Result<Arc<ParquetMetaData>, ParquetError> {
        let key = PartKey::whole(self.file.location.as_ref());
        let load = async {
            // Always with the page index: what is kept serves every query.
            let read = DFParquetMetadata::new(self.store.as_ref(), &self.file)
                .with_metadata_size_hint(Some(TAIL_BYTES))
                .with_page_index_policy(Some(PageIndexPolicy::Optional))
                .fetch_metadata()
                .await;
            read.map(Part::Footer).map_err(|error| ParquetError::External(Box::new(error)))
        };
        let (part, hit) = self.kept.get(key, load).await?;
        self.note(hit);
        match part {
            Part::Footer(footer) => Ok(footer),
            _ => Err(ParquetError::General("a data file has the name of a trace index".to_owned())),
        }
    }

    async fn bloom_filter(&self, range: Range<u64>) -> Result<Bytes, ParquetError> {
        let key = PartKey::range(self.file.location.as_ref(), &range);
        // A copy: what the store returned may be a part of more.
        let load = async { Ok(Part::Bytes(Bytes::copy_from_slice(&self.read(range.clone()).await?))) };
        let (part, hit) = self.kept.get::<ParquetError>(key, load).await?;
        self.note(hit);
        match part {
            Part::Bytes(bytes) => Ok(bytes),
            _ => self.read(range).await,
        }
    }
}

impl AsyncFileReader for DataFileReader {
    /// Nothing but bloom filters is asked for alone.
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move {
            match range.end - range.start <= BLOOM_BYTES_MAX {
                true => self.bloom_filter(range).await,
                false => self.read(range).await,
            }
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move { self.read_all(ranges).await }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move { self.footer().await }.boxed()
    }
}
