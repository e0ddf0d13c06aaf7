//! Statements over tables whose rows are in files, in memory, or both.

use std::collections::HashMap;

use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider,
    SchemaProvider,
};
use datafusion::physical_plan::displayable;
use iceberg::spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, Literal, Struct};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use prost::Message;
use signaldb_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use signaldb_proto::otlp::common::v1::{AnyValue, KeyValue, any_value};
use signaldb_proto::otlp::resource::v1::Resource;
use signaldb_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span};
use signaldb_signals::decode::decode;
use signaldb_signals::{Rows, SignalKind, SignalTable};

use super::*;
use crate::table::StoredTable;
use crate::{logical_view, views};

const DAY: i32 = 20_000;
const DAY_NANOS: u64 = 86_400_000_000_000;
const ROWS_EACH: u64 = 20;
/// Where the files are.
pub(crate) const STORE: &str = "memory://tables";
const LONG_ROUTE: &str = "/a/route/of/more/than/twelve/bytes";

/// Where the rows of a part are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    File,
    Memory,
}

const EVERYWHERE: [[At; 3]; 4] = [
    [At::Memory, At::Memory, At::Memory],
    [At::File, At::File, At::File],
    [At::File, At::File, At::Memory],
    [At::Memory, At::Memory, At::File],
];

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn service(part: u64) -> &'static str {
    if part == 1 { "a service with a long name" } else { "a" }
}

/// One of three parts. In the second one a route is a number, so that its column is not whole.
fn rows(part: u64) -> Rows {
    let text = |key: &str, value: &str| attribute(key, any_value::Value::StringValue(value.to_owned()));
    let integer = |key: &str, value: i64| attribute(key, any_value::Value::IntValue(value));
    let span = |n: u64| {
        let mut attributes = vec![text("own", &format!("work {n}")), integer("server.port", 80 + (n % 2) as i64)];
        match n % 4 {
            0 => attributes.push(text("http.route", "/x")),
            1 => attributes.push(text("http.route", LONG_ROUTE)),
            2 if part == 1 => attributes.push(integer("http.route", 5)),
            _ => {}
        }
        let start = u64::from(DAY.unsigned_abs()) * DAY_NANOS + part * ROWS_EACH + n;
        Span {
            trace_id: vec![1 + n as u8; 16],
            span_id: vec![1 + part as u8; 8],
            name: format!("work {}", n % 3),
            start_time_unix_nano: start,
            end_time_unix_nano: start + 1000 * n,
            attributes,
            ..Span::default()
        }
    };
    let resource = Resource { attributes: vec![text("service.name", service(part))], ..Resource::default() };
    let scope_spans = vec![ScopeSpans { spans: (0..ROWS_EACH).map(span).collect(), ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }];
    let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    decode(SignalKind::Traces, [(1, body.as_slice())]).remove(0).rows
}

/// A data file as a flush writes it, and what its manifest entry says.
async fn file(store: &dyn ObjectStore, part: u64) -> DataFile {
    let content = signaldb_lake::data_files_of(SignalTable::Traces, &[rows(part)]).expect("encodes").remove(0);
    let name = format!("1-019253b0-0000-7000-8000-000000000000-{part}.parquet");
    let id = |column: &str| views::of(SignalTable::Traces).column(column).expect("exists").id;
    // Whole, or not said to be.
    let whole = if part == 1 { HashMap::new() } else { HashMap::from([(id("http_route"), 0)]) };
    let bounds = |route| {
        HashMap::from([(id("service_name"), Datum::string(service(part))), (id("http_route"), Datum::string(route))])
    };
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_path(format!("{STORE}/{name}"))
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::from_iter([Some(Literal::date(DAY))]))
        .partition_spec_id(0)
        .record_count(ROWS_EACH)
        .file_size_in_bytes(content.len() as u64)
        .null_value_counts(HashMap::from([(id("service_name"), 0)]))
        .nan_value_counts(whole)
        .lower_bounds(bounds(LONG_ROUTE))
        .upper_bounds(bounds("/x"));
    store.put(&Path::from(name.as_str()), content.into()).await.expect("puts");
    builder.build().expect("builds")
}

fn config() -> QueryConfig {
    QueryConfig {
        memory_bytes: 1 << 30,
        query_memory_bytes: 1 << 30,
        spill_dir: PathBuf::new(),
        spill_bytes_max: 0,
        scan_bytes_max: None,
        cache_bytes_max: 1 << 20,
        deadline: Duration::from_secs(60),
        deadline_max: Duration::from_secs(60),
        concurrency: 1,
        tenant_concurrency: 1,
        queue: 1,
        partitions: 2,
        distribution: Distribution { enabled: false, bytes_min: 0 },
    }
}

/// A session with a table `traces` of three parts.
async fn session(parts: [At; 3]) -> SessionContext {
    let (context, _) = Box::pin(session_and_store(parts)).await;
    context
}

/// The same, and the store of its files.
pub(crate) async fn session_and_store(parts: [At; 3]) -> (SessionContext, Arc<dyn ObjectStore>) {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let mut stored = StoredTable::new(SignalTable::Traces, Vec::new()).expect("no copies");
    let mut files = Vec::new();
    for (part, at) in (0..).zip(parts) {
        match at {
            At::File => files.push(file(store.as_ref(), part).await),
            At::Memory => stored.rows.push(rows(part)),
        }
    }
    stored.files = vec![Arc::new(files)];
    let table = logical_view::over(views::of(SignalTable::Traces), Arc::new(stored)).expect("plans");
    let tables = Arc::new(MemorySchemaProvider::new());
    tables.register_table("traces".to_owned(), table).expect("is new");
    let catalog = Arc::new(MemoryCatalogProvider::new());
    catalog.register_schema("default", tables).expect("is new");
    let catalogs = Arc::new(MemoryCatalogProviderList::new());
    catalogs.register_catalog(CATALOG.to_owned(), catalog);
    let state = SessionStateBuilder::new_from_existing(template(&config())).with_catalog_list(catalogs).build();
    let context = SessionContext::new_with_state(state);
    let url = ObjectStoreUrl::parse(STORE).expect("a URL");
    context.runtime_env().register_object_store(url.as_ref(), Arc::clone(&store));
    (context, store)
}

async fn answer(context: &SessionContext, sql: &str) -> String {
    let rows = context.sql(sql).await.expect(sql).collect().await.expect(sql);
    arrow::util::pretty::pretty_format_batches(&rows).expect(sql).to_string()
}

async fn physical_plan(context: &SessionContext, sql: &str) -> String {
    let plan = context.sql(sql).await.expect(sql).create_physical_plan().await.expect(sql);
    displayable(plan.as_ref()).indent(false).to_string()
}

/// What a statement with one number says.
fn number(answer: &str) -> Option<u64> {
    answer.lines().nth(3)?.trim_matches(['|', ' ']).parse().ok()
}

#[tokio::test]
async fn answers_do_not_depend_on_where_rows_are() {
    let mut contexts = Vec::new();
    for parts in EVERYWHERE {
        contexts.push((parts, session(parts).await));
    }
    for (filter, rows) in [
        ("http_route = '/x'", 15),
        ("service_name = 'a'", 40),
        ("service_name <> 'a'", 20),
        ("name IN ('work 0', 'work 2', 'x', 'y', 'z')", 39),
        ("name LIKE '%k 1'", 21),
        (r"http_route LIKE '/a/route%' ESCAPE '\'", 15),
        (r"http_route LIKE '/a\_route%' ESCAPE '\'", 0),
        ("arrow_cast(http_route, 'LargeUtf8') LIKE '/a/route%'", 15),
        ("http_route > '/b'", 15),
        ("http_route IS NULL", 30),
        ("attributes['http.route'] = '/x'", 15),
        ("attributes['http.route'] <> '/x'", 20),
        ("attributes['http.route'] > '/b'", 20),
        ("attributes['http.route'] LIKE '/a/route%'", 15),
        ("attributes['http.route'] LIKE '/a%bytes'", 15),
        ("attributes['http.route'] NOT LIKE '/a/route%'", 20),
        ("attributes['http.route'] NOT LIKE '/a%bytes'", 20),
        ("attributes['http.route'] ~ '^/a.*bytes$'", 15),
        ("attributes['http.route'] IN ('/x', '5')", 20),
        ("attributes['http.route'] IN ('/x', '/y', '/z', '/5', '5')", 20),
        ("attributes['http.route'] IS NULL", 25),
        ("starts_with(attributes['http.route'], '/a')", 15),
        ("upper(attributes['http.route']) = '/X'", 15),
        ("coalesce(attributes['http.route'], name) = 'work 0'", 10),
        ("CASE WHEN server_port = 80 THEN attributes['http.route'] ELSE name END = '/x'", 15),
        ("attributes['http.route'] || name = '/xwork 0'", 6),
        ("attributes['own'] = name", 9),
        ("attributes['server.port'] = '80'", 30),
        ("CAST(attributes['server.port'] AS VARCHAR) = '80'", 30),
        ("CAST(server_port AS VARCHAR) = '80'", 30),
        ("CAST(attributes['http.route'] AS VARCHAR) = '/x'", 15),
        ("CAST(service_name AS VARCHAR) = 'a'", 40),
        ("resource_attributes['service.name'] = 'a'", 40),
        ("attributes[CAST('http.route' AS VARCHAR)] = '/x'", 15),
        ("attributes[CAST('own' AS VARCHAR)] = 'work 7'", 3),
        ("scope_attributes[CAST('own' AS VARCHAR)] IS NULL", 60),
        ("trace_id = '01010101010101010101010101010101'", 3),
        ("CAST(trace_id AS VARCHAR) = '01010101010101010101010101010101'", 3),
    ] {
        let sql = format!("SELECT count(*) FROM traces WHERE {filter}");
        for (parts, context) in &contexts {
            assert_eq!(number(&answer(context, &sql).await), Some(rows), "{filter} of {parts:?}");
        }
    }
    for sql in [
        "SELECT service_name, http_route, count(*) FROM traces GROUP BY 1, 2 ORDER BY 1, 2",
        "SELECT attributes['http.route'] AS route, count(*), min(name) FROM traces GROUP BY 1 ORDER BY 1",
        "SELECT attributes, resource_attributes, service_name, http_route FROM traces ORDER BY time_unix_nano",
        "SELECT min(service_name), max(service_name), min(name), count(DISTINCT http_route) FROM traces",
        "SELECT name, trace_id FROM traces ORDER BY service_name DESC, name, trace_id LIMIT 7",
        "SELECT one.name, count(*) FROM traces one JOIN traces other ON one.name = other.attributes['own'] \
         GROUP BY one.name ORDER BY 1",
        "SELECT name, service_name FROM traces WHERE attributes['http.route'] = '/x' ORDER BY time_unix_nano",
    ] {
        let expected = answer(&contexts[0].1, sql).await;
        for (parts, context) in &contexts[1..] {
            assert_eq!(answer(context, sql).await, expected, "{sql} of {parts:?}");
        }
    }
}

/// The literal becomes what the column is, not the other way round.
#[tokio::test]
async fn a_filter_on_an_attribute_is_one_of_a_bare_column_and_a_literal() {
    let context = session([At::File, At::Memory, At::Memory]).await;
    let check = async |filter: &str, expected: &[&str]| {
        let plan = physical_plan(&context, &format!("SELECT count(*) FROM traces WHERE {filter}")).await;
        let scan = plan.lines().find(|line| line.contains(".parquet")).expect("a scan of a file");
        assert!(scan.contains("predicate=http_route@") && !scan.contains("CAST("), "{filter}: {scan}");
        assert!(expected.iter().all(|part| scan.contains(part)), "{filter}: {scan}");
    };
    for equal in ["http_route = '/x'", "attributes['http.route'] = '/x'", "CAST(http_route AS VARCHAR) = '/x'"] {
        check(equal, &[" = /x,", "pruning_predicate=", "required_guarantees=[http_route in (/x)]"]).await;
    }
    let either = "attributes['http.route'] IN ('/x', '/u', '/v', '/w')";
    check(either, &["pruning_predicate=", "required_guarantees=[http_route in (/u, /v, /w, /x)]"]).await;
    check("attributes['http.route'] > '/b'", &[" > /b,", "pruning_predicate="]).await;
    check("attributes['http.route'] LIKE '/x%'", &[" >= /x AND ", " < /y,", "pruning_predicate="]).await;
    let other = physical_plan(&context, "SELECT count(*) FROM traces WHERE http_route LIKE '/x%z'").await;
    assert!(other.contains("pruning_predicate=") && other.contains("http_route_max@"), "{other}");
    // Bounds leave the file out.
    let sql = "SELECT count(*) FROM traces WHERE attributes['http.route'] = '/y'";
    let plan = physical_plan(&context, sql).await;
    assert!(!plan.contains(".parquet"), "{plan}");
}

#[tokio::test]
async fn texts_are_views_unless_they_are_of_a_map() {
    for parts in EVERYWHERE {
        let context = session(parts).await;
        let sql = "SELECT service_name, upper(name), min(http_route) OVER (), CAST(duration_nano AS VARCHAR), \
             attributes['http.route'], trace_id FROM traces";
        let plan = context.sql(sql).await.expect("plans").create_physical_plan().await.expect("plans");
        let schema = plan.schema();
        let kinds: Vec<&DataType> = schema.fields().iter().map(|field| field.data_type()).collect();
        let (view, text) = (&DataType::Utf8View, &DataType::Utf8);
        assert_eq!(kinds, [view, view, view, view, text, text]);
        for batch in context.sql(sql).await.expect("plans").collect().await.expect("runs") {
            let kinds: Vec<&DataType> = batch.columns().iter().map(|column| column.data_type()).collect();
            assert_eq!(kinds, [view, view, view, view, text, text], "{parts:?}");
        }
    }
}
