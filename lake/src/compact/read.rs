//! Rows of a data file, one row group in memory.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch, new_null_array};
use arrow::compute::cast;
use bytes::{Buf, Bytes};
use iceberg::spec::DataFile;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::Type;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length};
use signaldb_signals::SignalTable;
use signaldb_signals::schema::{self, TableSchema};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::merge::Source;
use crate::datafile::SPREAD_ROWS_MIN;
use crate::error::LakeError;
use crate::storage::Store;

/// Bytes from the end of a file that are read at first: footers of most files fit.
const TAIL_BYTES: u64 = 64 << 10;
/// Rows of a batch.
const BATCH_ROWS: u64 = 4096;
/// Decoded bytes of a batch, about; many files are open at once.
const BATCH_BYTES: u64 = 4 << 20;
/// A row group none of whose columns is larger can be read in batches of any size.
const COLUMN_BYTES_MAX: u64 = 1 << 30;

/// How to reach the store from a thread that may block.
#[derive(Clone)]
pub(super) struct BlockingStore {
    pub(super) store: Store,
    /// The runtime that does the reads.
    pub(super) io: Handle,
    /// Ends every read.
    pub(super) stop: CancellationToken,
}

impl BlockingStore {
    fn read_range(&self, location: &str, range: std::ops::Range<u64>) -> Result<Bytes, LakeError> {
        self.io.block_on(async {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => Err(LakeError::Stopped("the node is stopping")),
                content = self.store.read_range(location, range) => Ok(content?),
            }
        })
    }
}

/// A data file, read from the front.
pub(super) struct FileSource {
    store: BlockingStore,
    location: String,
    schema: &'static TableSchema,
    metadata: ArrowReaderMetadata,
    next_group: usize,
    reader: Option<ParquetRecordBatchReader>,
}

impl FileSource {
    pub(super) fn open(store: BlockingStore, table: SignalTable, file: &DataFile) -> Result<Self, LakeError> {
        let location = file.file_path().to_owned();
        let footer = read_footer(&store, &location, file.file_size_in_bytes())?;
        let metadata = ArrowReaderMetadata::try_new(Arc::new(footer), ArrowReaderOptions::new())?;
        Ok(Self { store, location, schema: schema::of(table), metadata, next_group: 0, reader: None })
    }

    /// Opens the next row group; whether there is one.
    fn open_group(&mut self) -> Result<bool, LakeError> {
        let at = self.next_group;
        let Some(group) = self.metadata.metadata().row_groups().get(at) else { return Ok(false) };
        let ranges = || group.columns().iter().map(|column| column.byte_range());
        let start = ranges().map(|(start, _)| start).min().unwrap_or(0);
        let end = ranges().map(|(start, length)| start + length).max().unwrap_or(start);
        let content = self.store.read_range(&self.location, start..end)?;
        let chunk = Chunk { start, content };
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(chunk, self.metadata.clone())
            .with_row_groups(vec![at])
            .with_batch_size(batch_rows(group))
            .build()?;
        self.reader = Some(reader);
        self.next_group += 1;
        Ok(true)
    }
}

impl Source for FileSource {
    fn next(&mut self) -> Result<Option<RecordBatch>, LakeError> {
        loop {
            if let Some(reader) = &mut self.reader {
                match reader.next() {
                    Some(batch) => {
                        let batch = conform(&batch?, self.schema, &self.location)?;
                        if batch.num_rows() > 0 {
                            return Ok(Some(batch));
                        }
                    }
                    None => self.reader = None,
                }
            } else if !self.open_group()? {
                return Ok(None);
            }
        }
    }
}

fn read_footer(store: &BlockingStore, location: &str, size: u64) -> Result<ParquetMetaData, LakeError> {
    let mut reader = ParquetMetaDataReader::new();
    let tail = store.read_range(location, size.saturating_sub(TAIL_BYTES)..size)?;
    match reader.try_parse_sized(&tail, size) {
        Err(ParquetError::NeedMoreData(needed)) => {
            let tail = store.read_range(location, size.saturating_sub(needed as u64)..size)?;
            reader.try_parse_sized(&tail, size)?;
        }
        parsed => parsed?,
    }
    Ok(reader.finish()?)
}

/// How many rows of a row group are decoded at a time.
fn batch_rows(group: &RowGroupMetaData) -> usize {
    let sizes = || group.columns().iter().map(decoded_bytes);
    let rows = u64::try_from(group.num_rows()).unwrap_or(1).max(1);
    // The rows of a batch may be the largest of all, and files of other writers may not say how large any is.
    let small = sizes().all(|size| size.is_some_and(|bytes| bytes <= COLUMN_BYTES_MAX));
    let most = if small { BATCH_ROWS } else { SPREAD_ROWS_MIN as u64 / 2 };
    let all = sizes().flatten().fold(0, u64::saturating_add).max(1);
    (BATCH_BYTES.saturating_mul(rows) / all).clamp(16, most) as usize
}

/// Bytes of a column in memory, if the file says so, as ours do. Dictionaries make them many times those of the file.
fn decoded_bytes(column: &ColumnChunkMetaData) -> Option<u64> {
    let values = u64::try_from(column.num_values()).unwrap_or(0);
    let texts = match column.column_type() {
        Type::BYTE_ARRAY => u64::try_from(column.unencoded_byte_array_data_bytes()?).unwrap_or(0),
        _ => 0,
    };
    Some(texts.saturating_add(values.saturating_mul(16)))
}

/// The table's columns: those that the file does not have, because it is older than they are, are null.
fn conform(batch: &RecordBatch, schema: &TableSchema, location: &str) -> Result<RecordBatch, LakeError> {
    if let Some(unknown) = batch.schema_ref().fields().iter().find(|field| schema.column(field.name()).is_none()) {
        // Written by a newer version: to leave it out would lose it.
        return Err(LakeError::UnknownColumn { column: unknown.name().clone(), location: location.to_owned() });
    }
    let columns = schema.arrow.fields().iter().map(|field| match batch.column_by_name(field.name()) {
        None => Ok(new_null_array(field.data_type(), batch.num_rows())),
        Some(column) if column.data_type() == field.data_type() => Ok(Arc::clone(column)),
        Some(column) => cast(column, field.data_type()),
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new(Arc::clone(&schema.arrow), columns)?)
}

/// A row group's part of a file.
struct Chunk {
    start: u64,
    content: Bytes,
}

impl Chunk {
    fn slice(&self, start: u64, length: Option<usize>) -> Result<Bytes, ParquetError> {
        let outside = || ParquetError::EOF(format!("offset {start} is not in the row group"));
        let from = start.checked_sub(self.start).and_then(|from| usize::try_from(from).ok()).ok_or_else(outside)?;
        let to = length.map_or(Some(self.content.len()), |length| from.checked_add(length)).ok_or_else(outside)?;
        if from > to || to > self.content.len() {
            return Err(outside());
        }
        Ok(self.content.slice(from..to))
    }
}

impl Length for Chunk {
    fn len(&self) -> u64 {
        self.start + self.content.len() as u64
    }
}

impl ChunkReader for Chunk {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.slice(start, None)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.slice(start, Some(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Draw, encode};

    /// Rows a batch, for `count` small rows as this build writes them.
    fn rows_a_batch(count: usize) -> usize {
        let files = encode(&Draw(1).rows(0, count, 0), |n, day| format!("memory:///{day}-{n}.parquet"));
        let footer = ParquetMetaDataReader::new().parse_and_finish(&files[0].content).expect("our own");
        batch_rows(footer.row_group(0))
    }

    /// A batch costs the same however few rows it has: a file that does not say how large its texts are is read slowly.
    #[test]
    fn our_own_files_are_read_in_large_batches() {
        let rows = rows_a_batch(5000);
        assert!(rows > 1000, "{rows} rows a batch");
    }
}
