use arrow::array::{Float64Array, Int64Array};
use arrow::datatypes::{Int32Type, Int64Type};
use iceberg::spec::PrimitiveLiteral;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric, number_data_point,
};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use signaldb_signals::SignalKind;
use signaldb_signals::decode::decode;

use super::*;
use crate::testing::Draw;

const DAY: u64 = 86_400_000_000_000;
const TRACES: SignalTable = SignalTable::Traces;

fn decoded(spans: Vec<Span>) -> Rows {
    let scope = ScopeSpans { spans, ..ScopeSpans::default() };
    let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
    let body = ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec();
    decode(SignalKind::Traces, [(1, body.as_slice())]).remove(0).rows
}

fn spans(names: &[(&str, u64)]) -> Rows {
    let span = |(name, start): &(&str, u64)| Span {
        name: (*name).to_owned(),
        start_time_unix_nano: *start,
        ..Span::default()
    };
    decoded(names.iter().map(span).collect())
}

fn attribute(key: &str, value: Option<any_value::Value>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value }), ..KeyValue::default() }
}

fn text(value: &str) -> Option<any_value::Value> {
    Some(any_value::Value::StringValue(value.to_owned()))
}

fn integer(value: i64) -> Option<any_value::Value> {
    Some(any_value::Value::IntValue(value))
}

fn span_with(attributes: Vec<KeyValue>) -> Span {
    Span { attributes, ..Span::default() }
}

/// The entry of a file with so many rows in each row group.
fn written(table: SignalTable, rows: &RecordBatch, group_rows: usize) -> DataFile {
    let location = names::data_file("file:///t", "1", uuid::Uuid::now_v7(), 0, 0);
    written_as(table, rows, group_rows, &location)
}

fn written_as(table: SignalTable, rows: &RecordBatch, group_rows: usize, location: &str) -> DataFile {
    let properties = properties(&plain(table), Density::Flushed)
        .into_builder()
        .set_max_row_group_row_count(Some(group_rows))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), Some(properties)).expect("opens");
    writer.write(rows).expect("writes");
    let footer = writer.close().expect("closes");
    assert_eq!(footer.num_row_groups(), rows.num_rows().div_ceil(group_rows));
    let mut counts = Counts::default();
    counts.add_rows(&plain(table), rows);
    entry(&plain(table), counts, &footer, 0, location, 1).expect("builds")
}

fn plain(table: SignalTable) -> Arc<FileSchema> {
    Arc::new(FileSchema::plain(table))
}

fn column_of(table: SignalTable, column: &str) -> &'static Column {
    schema::of(table).column(column).expect("exists")
}

fn id(table: SignalTable, column: &str) -> i32 {
    column_of(table, column).id
}

/// No value lies outside its column's bounds, and the counts are those of the rows. Returns the columns with bounds.
fn check_entry(table: SignalTable, rows: &RecordBatch, entry: &DataFile) -> HashSet<String> {
    assert_eq!(entry.record_count(), rows.num_rows() as u64);
    let mut with_bounds = HashSet::new();
    for column in &schema::of(table).columns {
        let array = rows.column_by_name(&column.name).expect("exists");
        if array.data_type().is_nested() {
            continue;
        }
        assert_eq!(entry.value_counts()[&column.id], array.len() as u64, "{}", column.name);
        assert_eq!(entry.null_value_counts()[&column.id], array.null_count() as u64, "{}", column.name);
        let (lower, upper) = (entry.lower_bounds().get(&column.id), entry.upper_bounds().get(&column.id));
        assert_eq!(lower.is_some(), upper.is_some(), "{}", column.name);
        let (Some(lower), Some(upper)) = (lower, upper) else { continue };
        with_bounds.insert(column.name.clone());
        match (lower.literal(), upper.literal()) {
            (PrimitiveLiteral::String(lower), PrimitiveLiteral::String(upper)) => {
                let mut values = array.as_string::<i32>().iter().flatten();
                assert!(values.all(|value| lower.as_str() <= value && value <= upper.as_str()), "{}", column.name);
            }
            (PrimitiveLiteral::Long(lower), PrimitiveLiteral::Long(upper)) => {
                let array = arrow::compute::cast(array, &DataType::Int64).expect("is an integer");
                let values: &Int64Array = array.as_primitive::<Int64Type>();
                assert!(values.iter().flatten().all(|value| (*lower..=*upper).contains(&value)), "{}", column.name);
            }
            (PrimitiveLiteral::Int(lower), PrimitiveLiteral::Int(upper)) => {
                let mut values = array.as_primitive::<Int32Type>().iter().flatten();
                assert!(values.all(|value| (*lower..=*upper).contains(&value)), "{}", column.name);
            }
            other => panic!("bounds of {}: {other:?}", column.name),
        }
    }
    with_bounds
}

#[test]
fn rows_are_split_by_day_and_sorted_by_time() {
    let batches = [spans(&[("late", 2 * DAY + 5), ("first", 7)]), spans(&[("second", 9)])];
    let mut files = Vec::new();
    let mut keep = |file| {
        files.push(file);
        Ok(())
    };
    encode(&plain(TRACES), &batches, |n, day| format!("file:///{day}-{n}"), &mut keep).expect("encodes");
    let counts: Vec<_> = files.iter().map(|file| (file.location.as_str(), file.entry.record_count())).collect();
    assert_eq!(counts, [("file:///0-0", 2), ("file:///2-1", 1)]);
    assert_eq!(files[0].entry.lower_bounds()[&2], Datum::long(7));
    assert_eq!(files[0].entry.upper_bounds()[&2], Datum::long(9));
}

#[test]
fn each_batch_is_a_file_of_its_own() {
    let rows = [spans(&[("a", 3), ("b", 1), ("c", 2)])];
    let limit = BatchConfig { rows_max: 2, ..BatchConfig::WHOLE };
    let mut counts = Vec::new();
    let mut keep = |file: EncodedFile| {
        counts.push((file.location, file.entry.record_count()));
        Ok(())
    };
    encode_in(limit, &plain(TRACES), &rows, |n, _| format!("file:///{n}"), &mut keep).expect("encodes");
    assert_eq!(counts, [("file:///0".to_owned(), 2), ("file:///1".to_owned(), 1)]);
}

#[test]
fn long_texts_get_outward_bounds_over_all_row_groups() {
    let long = "z".repeat(100);
    let rows = spans(&[("a", 1), (&long, 2)]).to_batch().expect("small");
    let entry = written(TRACES, &rows, 1);
    assert!(check_entry(TRACES, &rows, &entry).contains("name"));
    let name = id(TRACES, "name");
    assert_eq!(entry.lower_bounds()[&name], Datum::string("a"));
    assert!(entry.upper_bounds()[&name] > Datum::string(&long), "{:?}", entry.upper_bounds()[&name]);
    assert_eq!(entry.split_offsets().map(<[i64]>::len), Some(2));
    // The long one in the first row group, or alone.
    for names in [[(long.as_str(), 1), ("a", 2)], [(long.as_str(), 1), (long.as_str(), 2)]] {
        let rows = spans(&names).to_batch().expect("small");
        assert!(check_entry(TRACES, &rows, &written(TRACES, &rows, 1)).contains("name"));
    }
}

/// Around the 64 bytes at which Parquet truncates, with characters of one to four bytes and such as have no next one of
/// their length.
#[test]
fn texts_that_are_cut_anywhere_stay_within_their_bounds() {
    const CHARACTERS: [char; 9] =
        ['a', 'z', '\u{7f}', '\u{80}', '\u{7ff}', '\u{d7ff}', '\u{ffff}', '\u{10000}', '\u{10ffff}'];
    let mut draw = Draw(3);
    for round in 0..200 {
        let last_only = round % 4 == 0;
        let mut name = || -> String {
            let length = 10 + draw.below(60);
            let mut character = || CHARACTERS[if last_only { 8 } else { draw.below(9) as usize }];
            (0..length).map(|_| character()).collect()
        };
        let names: Vec<String> = (0..5).map(|_| name()).collect();
        let named: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let rows = spans(&named).to_batch().expect("small");
        let with_bounds = check_entry(TRACES, &rows, &written(TRACES, &rows, 2));
        assert!(with_bounds.contains("name") || last_only, "{names:?}");
    }
}

#[test]
fn a_text_without_a_short_bound_gets_none() {
    let greatest = "\u{10ffff}".repeat(100);
    let rows = spans(&[("a", 1), (&greatest, 2)]).to_batch().expect("small");
    let with_bounds = check_entry(TRACES, &rows, &written(TRACES, &rows, 1));
    assert!(!with_bounds.contains("name") && with_bounds.contains("time_unix_nano"));
}

#[test]
fn integers_at_their_limits_have_their_bounds() {
    let times = [0, 1, i64::MAX as u64, 1 << 63, u64::MAX];
    let codes = [i64::MIN, -1, 0, i64::MAX];
    let span = |(start, code): (&u64, &i64)| Span {
        start_time_unix_nano: *start,
        end_time_unix_nano: u64::MAX - *start,
        ..span_with(vec![attribute("http.response.status_code", integer(*code))])
    };
    let rows = decoded(times.iter().zip(codes.iter().cycle()).map(span).collect()).to_batch().expect("small");
    for group_rows in [1, 2, 5] {
        let entry = written(TRACES, &rows, group_rows);
        let with_bounds = check_entry(TRACES, &rows, &entry);
        for column in ["timestamp", "time_unix_nano", "end_time_unix_nano", "http_response_status_code"] {
            assert!(with_bounds.contains(column), "{column}");
        }
        let code = id(TRACES, "http_response_status_code");
        assert_eq!(entry.lower_bounds()[&code], Datum::long(i64::MIN));
        assert_eq!(entry.upper_bounds()[&code], Datum::long(i64::MAX));
    }
}

#[test]
fn columns_of_nulls_have_no_bounds_and_row_groups_of_nulls_take_none_away() {
    let route =
        |route: Option<&str>| span_with(route.map(|route| attribute("http.route", text(route))).into_iter().collect());
    let spans = vec![route(None), route(None), route(Some("/a")), route(Some("/b")), route(None), route(None)];
    let rows = decoded(spans).to_batch().expect("small");
    for group_rows in [1, 2, 6] {
        let entry = written(TRACES, &rows, group_rows);
        let with_bounds = check_entry(TRACES, &rows, &entry);
        assert!(with_bounds.contains("http_route") && !with_bounds.contains("service_name"));
        assert_eq!(entry.upper_bounds()[&id(TRACES, "http_route")], Datum::string("/b"));
    }
}

#[test]
fn doubles_have_counts_of_nan_and_no_bounds() {
    let values = [f64::NAN, -0.0, 0.0, f64::INFINITY, f64::NEG_INFINITY, -f64::NAN];
    let point = |value: &f64| NumberDataPoint {
        value: Some(number_data_point::Value::AsDouble(*value)),
        ..NumberDataPoint::default()
    };
    let gauge = Gauge { data_points: values.iter().map(point).collect() };
    let metric = Metric { data: Some(metric::Data::Gauge(gauge)), ..Metric::default() };
    let scope_metrics = vec![ScopeMetrics { metrics: vec![metric], ..ScopeMetrics::default() }];
    let resource_metrics = vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }];
    let body = ExportMetricsServiceRequest { resource_metrics }.encode_to_vec();
    let table = SignalTable::MetricsGauge;
    let rows = decode(SignalKind::Metrics, [(1, body.as_slice())]).remove(0).rows.to_batch().expect("small");
    let stored: &Float64Array = rows.column_by_name("value_double").expect("exists").as_primitive::<Float64Type>();
    assert_eq!(stored.len(), values.len());
    for group_rows in [1, 4] {
        let entry = written(table, &rows, group_rows);
        assert!(!check_entry(table, &rows, &entry).contains("value_double"));
        assert_eq!(entry.nan_value_counts()[&id(table, "value_double")], 2);
    }
}

#[test]
fn a_promoted_column_is_whole_unless_a_value_is_in_the_map() {
    let is_whole = |spans: Vec<Span>, column: &str| {
        let rows = decoded(spans).to_batch().expect("small");
        super::is_whole(&written(TRACES, &rows, 1), column_of(TRACES, column))
    };
    let fits = || span_with(vec![attribute("http.route", text("/a")), attribute("server.port", integer(80))]);
    let other_type = || span_with(vec![attribute("http.route", integer(5)), attribute("other", text("x"))]);
    assert!(is_whole(vec![fits(), fits()], "http_route"));
    assert!(is_whole(vec![fits()], "url_path"), "no value at all is in no map");
    assert!(!is_whole(vec![fits(), other_type()], "http_route"));
    assert!(is_whole(vec![fits(), other_type()], "server_port"), "only the key whose value does not fit");
    assert!(!is_whole(vec![fits()], "name"), "only promoted columns");
    let rows = decoded(vec![fits()]).to_batch().expect("small");
    let foreign = written_as(TRACES, &rows, 1, "file:///t/data/00000-0-other.parquet");
    assert!(!super::is_whole(&foreign, column_of(TRACES, "http_route")), "whatever others count");
    // A key without a value reads as null from column and map alike; of a repeated key the first value counts.
    let repeated = vec![attribute("http.route", text("/a")), attribute("http.route", integer(5))];
    assert!(is_whole(vec![span_with(vec![attribute("http.route", None)]), span_with(repeated)], "http_route"));
}

#[test]
fn ten_thousand_keys_make_no_large_file_and_no_large_entry() {
    let keys: Vec<KeyValue> =
        (0..10_000).map(|n| attribute(&format!("key.{n:05}"), text(&format!("value {n}")))).collect();
    let spans: Vec<Span> = keys.chunks(5).chain([keys.as_slice()]).map(|keys| span_with(keys.to_vec())).collect();
    let sent: usize = spans.iter().map(Message::encoded_len).sum();
    let mut files = Vec::new();
    let mut keep = |file| {
        files.push(file);
        Ok(())
    };
    encode(&plain(TRACES), &[decoded(spans)], |_, _| "file:///f".to_owned(), &mut keep).expect("encodes");
    let [file] = files.as_slice() else { panic!("one file") };
    assert!(file.content.len() < sent, "{} bytes of {sent}", file.content.len());
    let columns = schema::of(TRACES).columns.len();
    assert!(file.entry.value_counts().len() <= columns && file.entry.column_sizes().len() <= columns);
}

/// Spans and where they belong, as much as the encodings see of it: traces of twenty spans, a millisecond apart.
fn traces(count: u64) -> Rows {
    let span = |n: u64| Span {
        trace_id: (1 + n % (count / 20)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().repeat(2),
        span_id: n.wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes().to_vec(),
        name: format!("GET /{}", n % 7),
        start_time_unix_nano: DAY + n * 1_000_000,
        end_time_unix_nano: DAY + n * 1_000_000 + 1000 * (n % 977),
        ..Span::default()
    };
    let scope = ScopeSpans { spans: (1..=count).map(span).collect(), ..ScopeSpans::default() };
    let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
    let body = ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec();
    decode(SignalKind::Traces, [(1, body.as_slice())]).remove(0).rows
}

/// Readers prune row groups by the bounds in the footer, too, and those leave NaN out.
#[test]
fn no_double_has_bounds_in_the_footer() {
    let mut doubles = 0;
    for table in SignalTable::ALL {
        let schema = plain(table);
        let properties = properties(&schema, Density::Compacted);
        for column in schema.columns().iter().filter(|column| column.kind == ColumnKind::Double) {
            let statistics = properties.statistics_enabled(&ColumnPath::from(column.name.as_str()));
            assert_eq!(statistics, EnabledStatistics::None, "{}", column.name);
            doubles += 1;
        }
    }
    assert!(doubles > 0);
}

/// Bytes a row of one column, and its encodings.
fn column(footer: &ParquetMetaData, name: &str) -> (f64, Vec<Encoding>) {
    let group = footer.row_group(0);
    let chunk = group.columns().iter().find(|chunk| chunk.column_path().string() == name).expect("exists");
    (chunk.compressed_size() as f64 / group.num_rows() as f64, chunk.encodings().collect())
}

#[test]
fn times_and_durations_are_kept_as_differences_and_a_trace_once() {
    let rows = traces(20_000).to_batch().expect("small");
    let properties = properties(&plain(TRACES), Density::Flushed);
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), Some(properties)).expect("opens");
    writer.write(&rows).expect("writes");
    let footer = writer.close().expect("closes");
    for name in ["timestamp", "time_unix_nano", "end_time_unix_nano", "duration_nano"] {
        let (bytes, encodings) = column(&footer, name);
        assert!(encodings.contains(&Encoding::DELTA_BINARY_PACKED), "{name}: {encodings:?}");
        assert!(bytes < 4.0, "{name}: {bytes} bytes");
    }
    let (trace_ids, _) = column(&footer, "trace_id");
    assert!(trace_ids < 4.0, "{trace_ids} bytes for an id that twenty spans have");
    let (span_ids, _) = column(&footer, "span_id");
    assert!(span_ids < 8.2, "{span_ids} bytes for eight that are all different");
}
