//! A lake without groups: store and catalog in memory, a clock that stands still. What a flush does to a table is done
//! here with the same encoding, the same metadata and the same swap. [`rig`] has groups and whole flushes; [`faults`] has
//! either of them fail.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use iceberg::spec::{DataFile, Datum, TableMetadata};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use prost::Message;
use signaldb_catalog::{Database, IcebergCatalog, PoolConfig};
use signaldb_model::{Clock, DatasetId, ManualClock, SystemClock, TableId, TenantId};
use signaldb_signals::decode::decode;
use signaldb_signals::{Rows, SignalKind, SignalTable, schema};
use xxhash_rust::xxh3::xxh3_128;

use crate::commit::{Committed, commit};
use crate::datafile::EncodedFile;
use crate::maintain::Upkeep;
use crate::metadata::Change;
use crate::promote::FileSchema;
use crate::storage::{S3Options, Store};
use crate::table::SORT_ORDER_ID;
use crate::{Lake, LakeConfig, datafile, names};

pub(crate) mod faults;
pub(crate) mod rig;

use faults::{Faults, FaultyPointers};

pub(crate) const TABLE: SignalTable = SignalTable::Traces;
pub(crate) const DAY_NANOS: u64 = 86_400_000_000_000;
const MARK: &str = "signaldb.flush.1";

/// Service, span name, start.
pub(crate) type Row = (String, String, i64);

pub(crate) struct TestLake {
    pub(crate) lake: Lake,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) id: TableId,
    pub(crate) faults: Arc<Faults>,
    pub(crate) pointers: Arc<FaultyPointers>,
    /// Without faults.
    store: Store,
}

impl TestLake {
    pub(crate) async fn new(config: LakeConfig) -> Self {
        let database = Database::open("sqlite::memory:", &PoolConfig::default()).await.expect("opens");
        let catalog = IcebergCatalog::open(database).await.expect("creates tables");
        Self::over(config, catalog, Store::open("memory://", "", &S3Options::default()).expect("opens"))
    }

    pub(crate) fn over(config: LakeConfig, catalog: IcebergCatalog, store: Store) -> Self {
        // The store in memory stamps its files with the time of the machine.
        Self::at(config, catalog, store, Arc::new(ManualClock::new(SystemClock.now())))
    }

    /// Another node: the same catalog, store and time, and nothing else in common.
    pub(crate) fn elsewhere(&self) -> Self {
        let (config, catalog) = (self.lake.config().clone(), self.lake.catalog().clone());
        Self::at(config, catalog, self.store.clone(), Arc::clone(&self.clock))
    }

    fn at(config: LakeConfig, catalog: IcebergCatalog, store: Store, clock: Arc<ManualClock>) -> Self {
        let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let faults = Arc::new(Faults::default());
        let pointers = Arc::new(FaultyPointers::new(catalog.clone(), Arc::clone(&faults)));
        let (way, faulty) = (Arc::<FaultyPointers>::clone(&pointers), store.with_faults(&faults));
        let lake = Lake::with_pointers(config, catalog, way, faulty, shared, tokio::runtime::Handle::current());
        let id = TableId {
            tenant: TenantId::new("t").expect("name"),
            dataset: DatasetId::new("d").expect("name"),
            code: TABLE.code(),
        };
        Self { lake, clock, id, faults, pointers, store }
    }

    pub(crate) fn upkeep(&self) -> Upkeep<'_> {
        Upkeep { lake: &self.lake, id: &self.id, table: TABLE }
    }

    /// The beginning of the day that is so many days ago, nanoseconds.
    pub(crate) fn day_start(&self, days_ago: u64) -> u64 {
        (self.clock.now().0 / DAY_NANOS - days_ago) * DAY_NANOS
    }

    /// Encodes and commits rows as a flush with the mark `index` does.
    pub(crate) async fn flush(&self, rows: &[Row], index: u64) {
        let (commit_id, add) = self.write(rows).await;
        let change = Change {
            add,
            set_properties: HashMap::from([(MARK.to_owned(), index.to_string())]),
            expire: true,
            merge_manifests: true,
            ..Change::default()
        };
        let committed = commit(&self.lake, &self.id, TABLE, &change, Some(commit_id)).await.expect("commits");
        assert!(matches!(committed, Committed::Done { .. }), "{committed:?}");
    }

    /// Writes rows as data files that no table has yet; returns the commit that names them, and their entries.
    pub(crate) async fn write(&self, rows: &[Row]) -> (uuid::Uuid, Vec<DataFile>) {
        let location = self.lake.ensure_table(&self.id, TABLE).await.expect("exists");
        let metadata = self.lake.metadata_at(&location).await.expect("reads");
        let (schema, root) = (Arc::new(FileSchema::of(TABLE, &metadata)), metadata.location().to_owned());
        let commit_id = self.lake.new_commit();
        let mut entries = Vec::new();
        for file in encode(&schema, rows, |n, day| names::data_file(&root, "1", commit_id, n, day)) {
            self.lake.store().write(&file.location, file.content).await.expect("writes");
            entries.push(file.entry);
        }
        (commit_id, entries)
    }

    pub(crate) async fn metadata(&self) -> Arc<TableMetadata> {
        self.upkeep().current().await.expect("reads").expect("exists").1
    }

    /// The mark of the last flush.
    pub(crate) async fn mark(&self) -> u64 {
        self.metadata().await.properties()[MARK].parse().expect("a number")
    }

    pub(crate) async fn files(&self) -> Vec<DataFile> {
        let metadata = self.metadata().await;
        let files = self.lake.data_files(&metadata).await.expect("reads");
        files.iter().flat_map(|files| files.iter().cloned()).collect()
    }

    /// All rows, sorted. Checks on the way that every file is what its entry says.
    pub(crate) async fn rows(&self) -> Vec<Row> {
        let mut all = Vec::new();
        for file in self.files().await {
            let rows = read_file(&self.lake, &file).await;
            check_entry(&file, &rows);
            all.extend(rows);
        }
        all.sort();
        all
    }
}

/// Data files of `rows`, as a flush encodes them.
pub(crate) fn encode(schema: &Arc<FileSchema>, rows: &[Row], name: impl Fn(usize, i32) -> String) -> Vec<EncodedFile> {
    let mut files = Vec::new();
    let mut keep = |file| {
        files.push(file);
        Ok(())
    };
    datafile::encode(schema, &[decoded(rows)], name, &mut keep).expect("encodes");
    files
}

pub(crate) async fn read_file(lake: &Lake, file: &DataFile) -> Vec<Row> {
    let content = lake.store().read(file.file_path()).await.expect("is there");
    assert_eq!(content.len() as u64, file.file_size_in_bytes());
    read_parquet(content)
}

fn read_parquet(content: Bytes) -> Vec<Row> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(content).expect("is Parquet").build().expect("reads");
    reader.flat_map(|batch| rows_of(&batch.expect("reads"))).collect()
}

fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let text = |name: &str| batch.column_by_name(name).expect("exists").as_string::<i32>().clone();
    let (services, names) = (text("service_name"), text("name"));
    let times = batch.column_by_name("time_unix_nano").expect("exists").as_primitive::<Int64Type>().clone();
    let row = |at: usize| (services.value(at).to_owned(), names.value(at).to_owned(), times.value(at));
    (0..batch.num_rows()).map(row).collect()
}

/// The manifest's entry of a file against its rows.
fn check_entry(file: &DataFile, rows: &[Row]) {
    let path = file.file_path();
    assert_eq!(rows.len() as u64, file.record_count(), "{path}");
    assert!(rows.is_sorted_by_key(|(service, _, time)| (service.clone(), *time)), "{path} is not in the table's order");
    assert_eq!(file.sort_order_id(), Some(SORT_ORDER_ID as i32), "{path}");
    let column = |name: &str| schema::of(TABLE).column(name).expect("exists");
    let (time, service) = (column("time_unix_nano").id, column("service_name").id);
    let times = || rows.iter().map(|row| row.2);
    assert_eq!(Some(&Datum::long(times().min().expect("has rows"))), file.lower_bounds().get(&time), "{path}");
    assert_eq!(Some(&Datum::long(times().max().expect("has rows"))), file.upper_bounds().get(&time), "{path}");
    assert!(datafile::is_whole(file, column("service_name")), "{path}");
    let services = || rows.iter().map(|row| row.0.as_str());
    let (first, last) = (services().min().expect("has rows"), services().max().expect("has rows"));
    assert_eq!(Some(&Datum::string(first)), file.lower_bounds().get(&service), "{path}");
    assert_eq!(Some(&Datum::string(last)), file.upper_bounds().get(&service), "{path}");
}

fn decoded(rows: &[Row]) -> Rows {
    decode(SignalKind::Traces, [(1, request_of(rows, trace_id).as_slice())]).remove(0).rows
}

/// Each row is a trace of its own.
pub(crate) fn trace_id((_, name, _): &Row) -> Vec<u8> {
    xxh3_128(name.as_bytes()).to_be_bytes().to_vec()
}

/// Of rows without trace ids.
fn request(rows: &[Row]) -> Vec<u8> {
    request_of(rows, |_| Vec::new())
}

fn request_of(rows: &[Row], trace_id: impl Fn(&Row) -> Vec<u8>) -> Vec<u8> {
    let resource = |row: &Row| {
        let (service, name, start) = row;
        let value = Some(AnyValue { value: Some(any_value::Value::StringValue(service.clone())) });
        let attribute = KeyValue { key: "service.name".to_owned(), value, ..KeyValue::default() };
        let span = Span {
            trace_id: trace_id(row),
            name: name.clone(),
            start_time_unix_nano: *start as u64,
            ..Span::default()
        };
        ResourceSpans {
            resource: Some(Resource { attributes: vec![attribute], ..Resource::default() }),
            scope_spans: vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }
    };
    ExportTraceServiceRequest { resource_spans: rows.iter().map(resource).collect() }.encode_to_vec()
}

/// Numbers that look random, the same ones in every run.
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// Rows of a few services within an hour from `start`; `n` makes their names differ from those of other calls.
    pub(crate) fn rows(&mut self, n: usize, count: usize, start: u64) -> Vec<Row> {
        let row = |at: usize| {
            let noise = (self.below(1 << 31), self.below(1 << 31));
            let at_nanos = start + self.below(3_600_000_000_000 / 2000) * 2000;
            (format!("service-{}", self.below(5)), format!("{n}-{at}-{:08x}{:08x}", noise.0, noise.1), at_nanos as i64)
        };
        (0..count).map(row).collect()
    }
}
