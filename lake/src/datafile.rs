//! Rows to Parquet files with statistics that never hide a row.
//!
//! The crate's own writer keeps the bounds of the other row groups when one group's are truncated, so that readers
//! prune rows away. Here a bound is written only when every row group has one, and parquet's truncated bounds, which
//! are rounded outwards, stay bounds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{SortColumn, SortOptions, lexsort_to_indices};
use arrow::datatypes::{DataType, Float64Type, TimestampMicrosecondType};
use bytes::Bytes;
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, Literal, PrimitiveType, Struct,
};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnPath;
use signaldb_signals::promoted::{self, Promoted};
use signaldb_signals::schema::{self, Column, ColumnKind};
use signaldb_signals::{Rows, SignalTable, found_in_map, promoted_into};

use crate::config::BatchConfig;
use crate::error::LakeError;
use crate::names;
use crate::promote::FileSchema;
use crate::table::SORT_ORDER_ID;

mod batches;

use batches::batches;

const ROW_GROUP_ROWS_MAX: usize = 128 << 10;
/// Rows whose resources and scopes are spread at a time.
const SPREAD_ROWS_MAX: usize = 4096;
/// An entry of the log is at most 8 MiB, so is what one row shares: the columns of such a chunk stay below 2 GiB.
pub(crate) const SPREAD_ROWS_MIN: usize = 255;
const MICROS_A_DAY: i64 = 86_400_000_000;
/// Longest bound in a manifest. Parquet truncates at 64 bytes what can be rounded outwards; a maximum of nothing but the
/// last character there is cannot, and comes whole.
const BOUND_BYTES_MAX: usize = 256;
/// Distinct ids that one row group's bloom filter is sized for; the writer folds it to what it needs.
const BLOOM_IDS: u64 = ROW_GROUP_ROWS_MAX as u64;
/// False positives of the filters. A row group has few traces and a full set of span ids, whose filter would take 2 bytes
/// a span at 1 %; at 3 % it takes one, and a span is rarely looked for without its trace.
const BLOOM_TRACES_FPP: f64 = 0.01;
const BLOOM_SPANS_FPP: f64 = 0.03;
/// Bodies come from few templates: they compress best side by side, and as a dictionary they are.
const BODIES_DICTIONARY_BYTES: usize = 4 << 20;

/// How dense a file is: bench/RESULTS.md has the measurement behind the levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Density {
    /// Of flushes, which ingest waits for, and whose files are soon rewritten.
    Flushed,
    /// Of rewrites: the last one lasts.
    Compacted,
}

impl Density {
    fn compression(self) -> Compression {
        zstd(match self {
            Self::Flushed => 1,
            Self::Compacted => 6,
        })
    }

    /// Rows of a trace are apart in a file: from level 3 on the compression looks that far back.
    fn compression_of_traces(self) -> Compression {
        zstd(match self {
            Self::Flushed => 3,
            Self::Compacted => 6,
        })
    }
}

fn zstd(level: i32) -> Compression {
    Compression::ZSTD(ZstdLevel::try_new(level).unwrap_or_default())
}

/// A file in memory and its manifest entry.
#[derive(Debug)]
pub(crate) struct EncodedFile {
    pub(crate) location: String,
    pub(crate) content: Bytes,
    pub(crate) entry: DataFile,
}

/// As [`encode_in`], with as few files as there can be.
///
/// # Errors
/// As there.
pub(crate) fn encode(
    schema: &Arc<FileSchema>,
    parts: &[Rows],
    name: impl Fn(usize, i32) -> String,
    done: &mut dyn FnMut(EncodedFile) -> Result<(), LakeError>,
) -> Result<(), LakeError> {
    encode_in(BatchConfig::WHOLE, schema, parts, name, done)
}

/// Sorts rows, batch by batch, splits them by day of `timestamp`, and encodes one file a day and batch. `name` gives the
/// location of file `n`; each file goes to `done` before the next is encoded, so that one is in memory at a time.
///
/// # Errors
/// When Arrow or Parquet refuse, or `done` does.
pub(crate) fn encode_in(
    limit: BatchConfig,
    schema: &Arc<FileSchema>,
    parts: &[Rows],
    name: impl Fn(usize, i32) -> String,
    done: &mut dyn FnMut(EncodedFile) -> Result<(), LakeError>,
) -> Result<(), LakeError> {
    let mut n = 0;
    for batch in batches(parts, limit) {
        let Some(rows) = Rows::concat(&batch.iter().collect::<Vec<_>>())? else { continue };
        for (day, order) in split_by_day(&rows, &sort(schema.table(), &rows)?)? {
            done(encode_file(schema, &rows, &order, day, name(n, day))?)?;
            n += 1;
        }
    }
    Ok(())
}

/// The data files that a flush would write of `parts`: for measurements, without a table.
///
/// # Errors
/// When Arrow or Parquet refuse.
pub fn data_files_of(table: SignalTable, parts: &[Rows]) -> Result<Vec<Bytes>, LakeError> {
    let mut files = Vec::new();
    let mut keep = |file: EncodedFile| {
        files.push(file.content);
        Ok(())
    };
    encode(&Arc::new(FileSchema::plain(table)), parts, |n, day| format!("memory:///{day}-{n}.parquet"), &mut keep)?;
    Ok(files)
}

fn sort(table: SignalTable, rows: &Rows) -> Result<UInt32Array, LakeError> {
    let options = Some(SortOptions { descending: false, nulls_first: true });
    let column = |name: &&str| Ok(SortColumn { values: rows.column(rows.schema().index_of(name)?)?, options });
    let columns = table.sort_columns().iter().map(column).collect::<Result<Vec<_>, LakeError>>()?;
    Ok(lexsort_to_indices(&columns, None)?)
}

/// The rows of each day, in the order given.
fn split_by_day(rows: &Rows, order: &UInt32Array) -> Result<BTreeMap<i32, Vec<u32>>, LakeError> {
    let timestamps = rows.column(rows.schema().index_of("timestamp")?)?;
    let timestamps = timestamps.as_primitive::<TimestampMicrosecondType>();
    let mut rows_of: BTreeMap<i32, Vec<u32>> = BTreeMap::new();
    for row in order.values() {
        let day = timestamps.value(*row as usize).div_euclid(MICROS_A_DAY) as i32;
        rows_of.entry(day).or_default().push(*row);
    }
    Ok(rows_of)
}

fn encode_file(
    schema: &Arc<FileSchema>,
    rows: &Rows,
    order: &[u32],
    day: i32,
    location: String,
) -> Result<EncodedFile, LakeError> {
    let mut writer = DataFileWriter::new(schema, Density::Flushed, day, location)?;
    // Even if every row had all that is shared, a spread column would stay below the 2 GiB that offsets can address.
    let spread_rows = (i32::MAX as usize / rows.shared_bytes().max(1)).clamp(SPREAD_ROWS_MIN, SPREAD_ROWS_MAX);
    for chunk in order.chunks(spread_rows) {
        writer.write(&rows.take(&UInt32Array::from(chunk.to_vec()))?.to_batch()?)?;
    }
    writer.finish()
}

/// One file of one day on its way into memory; rows come in the table's order.
pub(crate) struct DataFileWriter {
    schema: Arc<FileSchema>,
    day: i32,
    location: String,
    writer: ArrowWriter<Vec<u8>>,
    counts: Counts,
}

impl DataFileWriter {
    pub(crate) fn new(
        schema: &Arc<FileSchema>,
        density: Density,
        day: i32,
        location: String,
    ) -> Result<Self, LakeError> {
        let arrow = Arc::clone(schema.arrow());
        let writer = ArrowWriter::try_new(Vec::new(), arrow, Some(properties(schema, density)))?;
        Ok(Self { schema: Arc::clone(schema), day, location, writer, counts: Counts::default() })
    }

    /// Writes rows with the table's own columns.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), LakeError> {
        let (batch, partial) = self.schema.fill(batch)?;
        self.counts.partial_copies.extend(partial);
        self.counts.add_rows(&self.schema, &batch);
        Ok(self.writer.write(&batch)?)
    }

    /// Whether the file has about `bytes`, and certainly seven eighths of that. What is in progress seems larger than it
    /// is until it is compressed; to find out, a row group may end here.
    pub(crate) fn is_full(&mut self, bytes: usize) -> Result<bool, LakeError> {
        if self.writer.bytes_written() + self.writer.in_progress_size() < bytes {
            return Ok(false);
        }
        self.writer.flush()?;
        Ok(self.writer.bytes_written() >= bytes - bytes / 8)
    }

    pub(crate) fn finish(mut self) -> Result<EncodedFile, LakeError> {
        let footer = self.writer.finish()?;
        let content = std::mem::take(self.writer.inner_mut());
        let entry = entry(&self.schema, self.counts, &footer, self.day, &self.location, content.len() as u64)?;
        Ok(EncodedFile { location: self.location, content: content.into(), entry })
    }
}

fn properties(schema: &FileSchema, density: Density) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_compression(density.compression())
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
        // Of map entries and nested leaves only for the size of their texts, which whoever reads the file in batches needs.
        .set_statistics_enabled(EnabledStatistics::Chunk);
    for column in schema.columns() {
        let path = ColumnPath::from(column.name.as_str());
        if bounded(schema, &column.name) {
            builder = builder.set_column_statistics_enabled(path.clone(), EnabledStatistics::Page);
        } else if matches!(column.kind, ColumnKind::Double | ColumnKind::Fixed(_)) {
            // Row groups would be pruned by bounds of doubles that leave NaN out; those of random ids say nothing.
            builder = builder.set_column_statistics_enabled(path.clone(), EnabledStatistics::None);
        }
        builder = encoding(builder, &column.name, &column.kind, density, &path);
    }
    builder.build()
}

fn encoding(
    builder: WriterPropertiesBuilder,
    name: &str,
    kind: &ColumnKind,
    density: Density,
    path: &ColumnPath,
) -> WriterPropertiesBuilder {
    let bloom = |builder: WriterPropertiesBuilder, fpp: f64| {
        builder
            .set_column_bloom_filter_enabled(path.clone(), true)
            .set_column_bloom_filter_fpp(path.clone(), fpp)
            .set_column_bloom_filter_ndv(path.clone(), BLOOM_IDS)
    };
    match (kind, name) {
        // Nearly all different: a dictionary would be given up halfway.
        (ColumnKind::Timestamp | ColumnKind::Long, _) if name.contains("time") || name == "duration_nano" => builder
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_encoding(path.clone(), Encoding::DELTA_BINARY_PACKED),
        // Random, or the same as in a row nearby: parquet has no dictionaries of them in pages of version 1.
        (ColumnKind::Fixed(_), _) => {
            let builder = builder.set_column_dictionary_enabled(path.clone(), false);
            match name {
                "trace_id" => bloom(builder, BLOOM_TRACES_FPP)
                    .set_column_compression(path.clone(), density.compression_of_traces()),
                "span_id" => bloom(builder, BLOOM_SPANS_FPP),
                _ => builder,
            }
        }
        (ColumnKind::String, "body") => {
            builder.set_column_dictionary_page_size_limit(path.clone(), BODIES_DICTIONARY_BYTES)
        }
        _ => builder,
    }
}

/// Columns that carry bounds (DESIGN section 6): what people filter on.
fn bounded(schema: &FileSchema, column: &str) -> bool {
    const BOUNDED: &[&str] = &[
        "timestamp",
        "time_unix_nano",
        "end_time_unix_nano",
        "duration_nano",
        "observed_time_unix_nano",
        "start_time_unix_nano",
        "name",
        "metric_name",
        "severity_number",
        "severity_text",
        "kind",
        "status_code",
        "event_name",
    ];
    BOUNDED.contains(&column)
        || promoted_of(schema.table()).any(|promoted| promoted.column == column)
        || schema.ordered_copies().any(|copy| copy.name == column)
}

fn promoted_of(table: SignalTable) -> impl Iterator<Item = &'static Promoted> {
    promoted::RESOURCE.iter().chain(schema::record_promoted(table))
}

/// Whether all values that a promoted attribute has in `file` are in its column, so that the column alone decides what a
/// filter on the attribute keeps (ADR 12). Other writers' files, and those of earlier builds, do not say so.
///
/// The entry says it by a count of NaN, 0, which only columns of doubles have otherwise; those are never whole. Should
/// another writer count NaN in texts, it says nothing about the map: the file must have a name that only we give.
pub fn is_whole(file: &DataFile, column: &Column) -> bool {
    let said = file.nan_value_counts().get(&column.id) == Some(&0) && column.kind != ColumnKind::Double;
    said && names::data_file_ms(file.file_path()).is_some()
}

/// Whether `file` has a copy of an attribute in the column, as it was filled by us from the map.
pub fn is_filled(file: &DataFile, column: &Column) -> bool {
    file.value_counts().contains_key(&column.id) && names::data_file_ms(file.file_path()).is_some()
}

fn entry(
    schema: &FileSchema,
    mut counts: Counts,
    footer: &ParquetMetaData,
    day: i32,
    location: &str,
    bytes: u64,
) -> Result<DataFile, LakeError> {
    for chunks in columns(footer) {
        counts.add_column(schema, &chunks);
    }
    counts.add_whole(schema);
    let split_offsets = footer.row_groups().iter().filter_map(|group| group.file_offset()).collect::<Vec<i64>>();
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_path(location.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::from_iter([Some(Literal::date(day))]))
        .partition_spec_id(0)
        .record_count(counts.rows)
        .file_size_in_bytes(bytes)
        .column_sizes(counts.sizes)
        .value_counts(counts.values)
        .null_value_counts(counts.nulls)
        .nan_value_counts(counts.nans)
        .lower_bounds(counts.lower)
        .upper_bounds(counts.upper)
        .split_offsets((!split_offsets.is_empty()).then_some(split_offsets))
        .sort_order_id(SORT_ORDER_ID as i32);
    builder
        .build()
        .map_err(|error| LakeError::Iceberg(iceberg::Error::new(iceberg::ErrorKind::DataInvalid, error.to_string())))
}

/// The chunks of each leaf column over all row groups.
fn columns(footer: &ParquetMetaData) -> Vec<Vec<&ColumnChunkMetaData>> {
    let leaves = footer.row_groups().first().map_or(0, |group| group.num_columns());
    (0..leaves).map(|at| footer.row_groups().iter().map(|group| group.column(at)).collect()).collect()
}

#[derive(Default)]
struct Counts {
    rows: u64,
    sizes: HashMap<i32, u64>,
    values: HashMap<i32, u64>,
    nulls: HashMap<i32, u64>,
    nans: HashMap<i32, u64>,
    lower: HashMap<i32, Datum>,
    upper: HashMap<i32, Datum>,
    /// Promoted columns whose attribute has a value in the map of some row.
    partial: HashSet<&'static str>,
    /// Ids of copies that lack a value of the map.
    partial_copies: HashSet<i32>,
}

impl Counts {
    fn add_rows(&mut self, schema: &FileSchema, rows: &RecordBatch) {
        self.rows += rows.num_rows() as u64;
        for column in schema.columns() {
            let Some(array) = rows.column_by_name(&column.name) else { continue };
            let promoted = promoted_into(schema.table(), column);
            if !promoted.is_empty() {
                self.partial.extend(found_in_map(array.as_map(), promoted).map(|promoted| promoted.column));
            }
            if array.data_type().is_nested() {
                continue;
            }
            *self.values.entry(column.id).or_default() += array.len() as u64;
            *self.nulls.entry(column.id).or_default() += array.null_count() as u64;
            if array.data_type() == &DataType::Float64 {
                let values = array.as_primitive::<Float64Type>();
                let nans = values.iter().flatten().filter(|value| value.is_nan()).count();
                *self.nans.entry(column.id).or_default() += nans as u64;
            }
        }
    }

    fn add_whole(&mut self, schema: &FileSchema) {
        let table = schema.table();
        for promoted in promoted_of(table).filter(|promoted| !self.partial.contains(promoted.column)) {
            self.nans.extend(schema::of(table).column(promoted.column).map(|column| (column.id, 0_u64)));
        }
        let whole = schema.ordered_copies().filter(|copy| !self.partial_copies.contains(&copy.id));
        self.nans.extend(whole.map(|copy| (copy.id, 0_u64)));
    }

    fn add_column(&mut self, schema: &FileSchema, chunks: &[&ColumnChunkMetaData]) {
        let Some(first) = chunks.first() else { return };
        let leaf = first.column_descr();
        let id = leaf.self_type().get_basic_info();
        if !id.has_id() || leaf.max_rep_level() > 0 {
            return;
        }
        let id = id.id();
        let bytes: i64 = chunks.iter().map(|chunk| chunk.compressed_size()).sum();
        self.sizes.insert(id, u64::try_from(bytes).unwrap_or(0));
        let column = schema.columns().iter().find(|column| column.id == id);
        let Some(kind) =
            column.filter(|column| bounded(schema, &column.name)).and_then(|column| primitive(&column.kind))
        else {
            return;
        };
        if let Some((lower, upper)) = bounds(chunks, &kind) {
            self.lower.insert(id, lower);
            self.upper.insert(id, upper);
        }
    }
}

fn primitive(kind: &ColumnKind) -> Option<PrimitiveType> {
    Some(match kind {
        ColumnKind::Boolean => PrimitiveType::Boolean,
        ColumnKind::Int => PrimitiveType::Int,
        ColumnKind::Long => PrimitiveType::Long,
        ColumnKind::String => PrimitiveType::String,
        ColumnKind::Timestamp => PrimitiveType::Timestamptz,
        _ => return None,
    })
}

/// Bounds over all row groups; `None` as soon as one that has values lacks a bound.
fn bounds(chunks: &[&ColumnChunkMetaData], kind: &PrimitiveType) -> Option<(Datum, Datum)> {
    let mut total: Option<(Datum, Datum)> = None;
    for chunk in chunks {
        let statistics = chunk.statistics()?;
        if statistics.null_count_opt() == u64::try_from(chunk.num_values()).ok() {
            continue;
        }
        let (lower, upper) =
            (datum(statistics, Statistics::min_bytes_opt, kind)?, datum(statistics, Statistics::max_bytes_opt, kind)?);
        total = Some(match total {
            None => (lower, upper),
            Some((low, high)) => (if lower < low { lower } else { low }, if upper > high { upper } else { high }),
        });
    }
    total
}

fn datum<'a>(
    statistics: &'a Statistics,
    side: impl Fn(&'a Statistics) -> Option<&'a [u8]>,
    kind: &PrimitiveType,
) -> Option<Datum> {
    let bytes = side(statistics).filter(|bytes| bytes.len() <= BOUND_BYTES_MAX)?;
    Datum::try_from_bytes(bytes, kind.clone()).ok()
}

#[cfg(test)]
mod tests;
