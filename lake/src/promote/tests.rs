use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::DataType;
use iceberg::arrow::schema_to_arrow_schema;
use iceberg::spec::DataFile;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use prost::Message;
use serde_json::json;
use signaldb_signals::decode::decode;
use signaldb_signals::{Rows, SignalKind};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::commit::{Committed, commit};
use crate::datafile::{self, is_filled, is_whole};
use crate::maintain::Upkeep;
use crate::metadata::{Base, Seeds, next_metadata};
use crate::names;
use crate::testing::faults::{Fault, Hold, Plan};
use crate::testing::rig::{Leader, Rig, table_id};
use crate::testing::{TABLE, TestLake};
use crate::{CompactionConfig, LakeConfig, LakeError, TableFilter, TableTask, Task};

/// The column that `tenant.plan` is copied into, in a table that nobody else has given columns.
const GOLDEN: &str = concat!(
    r#"{"version":1,"columns":[{"key":"tenant.plan","level":"record","column":"attr_tenant_plan","id":1000000,"#,
    r#""type":"text","written":true}]}"#
);

fn attribute(key: &str, level: Level) -> Attribute {
    Attribute::new(key, level).expect("a key")
}

fn promote(key: &str, kind: CopyKind) -> Promotion {
    Promotion { attribute: attribute(key, Level::Record), kind: Some(kind) }
}

fn demote(key: &str) -> Promotion {
    Promotion { attribute: attribute(key, Level::Record), kind: None }
}

fn new_table(table: SignalTable) -> TableMetadata {
    table::new_table(table, "file:///t", uuid::Uuid::nil(), 1).expect("builds")
}

/// Decides, and commits what was decided.
fn apply(metadata: &mut TableMetadata, table: SignalTable, promotion: &Promotion) -> Result<Effect, PromoteError> {
    let decision = promotion.decide(metadata, table)?;
    assert_eq!(decision.change.is_none(), decision.effect == Effect::Unchanged);
    if let Some(change) = decision.change {
        let location = format!("file:///t/metadata/00001-{}.metadata.json", uuid::Uuid::nil());
        let base = Base { metadata, location: &location, manifests: Vec::new(), loaded: HashMap::new() };
        let seeds = Seeds { snapshot_id: 1, commit: uuid::Uuid::nil(), metadata: uuid::Uuid::nil(), now_ms: 2 };
        *metadata = next_metadata(base, change, seeds).expect("stages").metadata;
    }
    Ok(decision.effect)
}

fn alter(metadata: &TableMetadata, change: impl Fn(&mut serde_json::Value)) -> TableMetadata {
    let mut json = serde_json::to_value(metadata).expect("is JSON");
    change(&mut json);
    serde_json::from_value(json).expect("is metadata")
}

#[test]
fn golden_property_of_version_1() {
    let mut metadata = new_table(TABLE);
    let plan = promote("tenant.plan", CopyKind::Text);
    assert_eq!(apply(&mut metadata, TABLE, &plan), Ok(Effect::Promoted));
    assert_eq!(metadata.properties()[PROPERTY], GOLDEN);
    assert_eq!(metadata.current_schema().name_by_field_id(FIRST_ID), Some("attr_tenant_plan"));
    assert_eq!((metadata.last_column_id(), metadata.snapshots().count()), (FIRST_ID, 0));
    let [copy] = &copies_of(&metadata)[..] else { panic!("one copy") };
    assert_eq!((copy.key.as_str(), copy.level, copy.kind), ("tenant.plan", Level::Record, CopyKind::Text));
    let arrow = schema_to_arrow_schema(metadata.current_schema()).expect("converts");
    assert_eq!(&arrow, FileSchema::of(TABLE, &metadata).arrow().as_ref(), "our files fit other engines' schema");
}

#[test]
fn what_a_newer_version_says_is_left_alone() {
    for text in [GOLDEN.replace(":1,", ":2,"), GOLDEN.replace("text", "date"), "nonsense".to_owned()] {
        let metadata = alter(&new_table(TABLE), |json| json["properties"][PROPERTY] = json!(text));
        assert!(copies_of(&metadata).is_empty(), "{text}");
        let refused = promote("other", CopyKind::Text).decide(&metadata, TABLE).expect_err("refuses");
        assert!(matches!(refused, PromoteError::Unreadable(_)), "{refused}");
        let file = FileSchema::of(TABLE, &metadata);
        assert_eq!(file.columns().len(), schema::of(TABLE).columns.len());
        assert!(!file.is_replaceable("attr_tenant_plan"), "a file that has it is not rewritten");
    }
}

#[test]
fn demotion_leaves_the_column_and_promotion_wakes_it() {
    let mut metadata = new_table(TABLE);
    let plan = promote("tenant.plan", CopyKind::Integer);
    for (promotion, effect, copies) in [
        (&plan, Effect::Promoted, 1),
        (&plan, Effect::Unchanged, 1),
        (&demote("tenant.plan"), Effect::Demoted, 0),
        (&demote("tenant.plan"), Effect::Unchanged, 0),
        (&plan, Effect::Woken, 1),
    ] {
        assert_eq!(apply(&mut metadata, TABLE, promotion), Ok(effect));
        assert_eq!(copies_of(&metadata).len(), copies);
        assert_eq!(metadata.schemas_iter().count(), 2, "one column, once");
    }
    assert_eq!(apply(&mut metadata, TABLE, &promote("other", CopyKind::Text)), Ok(Effect::Promoted));
    let ids: Vec<i32> = copies_of(&metadata).iter().map(|copy| copy.column.id).collect();
    assert_eq!(ids, [FIRST_ID, FIRST_ID + 1]);
}

/// Scenario: somebody drops the column, another engine gives the table a column of its own, and the attribute is promoted
/// again.
#[test]
fn an_id_is_never_given_twice() {
    let mut metadata = new_table(TABLE);
    let plan = promote("tenant.plan", CopyKind::Text);
    apply(&mut metadata, TABLE, &plan).expect("promotes");
    let mut metadata = alter(&metadata, |json| {
        let schemas = json["schemas"].as_array().expect("schemas");
        let current = schemas.iter().find(|schema| schema["schema-id"] == 1).expect("the current one");
        let mut schema = current.clone();
        schema["schema-id"] = json!(2);
        let fields = schema["fields"].as_array_mut().expect("fields");
        fields.pop().expect("the copy");
        fields.push(json!({"id": FIRST_ID + 1, "name": "theirs", "required": false, "type": "string"}));
        json["schemas"].as_array_mut().expect("schemas").push(schema);
        json["current-schema-id"] = json!(2);
        json["last-column-id"] = json!(FIRST_ID + 1);
    });
    assert!(copies_of(&metadata).is_empty(), "nothing is written for nobody");
    assert_eq!(apply(&mut metadata, TABLE, &plan), Ok(Effect::Promoted));
    let ids: Vec<i32> = copies_of(&metadata).iter().map(|copy| copy.column.id).collect();
    assert_eq!(ids, [FIRST_ID + 2]);
    let written =
        PromotedSet::of(&metadata).expect("reads").entries.iter().map(|entry| entry.written).collect::<Vec<_>>();
    assert_eq!(written, [false, true]);
    assert_eq!(apply(&mut metadata, TABLE, &demote("tenant.plan")), Ok(Effect::Demoted));
}

#[test]
fn what_cannot_be_promoted_is_refused_by_name() {
    for key in ["", "a\0b", "line\n", &"x".repeat(KEY_BYTES_MAX + 1)] {
        assert!(matches!(Attribute::new(key, Level::Scope), Err(PromoteError::Key(_))), "{key:?}");
    }
    assert!(Attribute::new(&"x".repeat(KEY_BYTES_MAX), Level::Scope).is_ok());
    let mut metadata = new_table(TABLE);
    let mut refused = |promotion: &Promotion| apply(&mut metadata, TABLE, promotion).expect_err("refuses");
    assert!(matches!(
        refused(&promote("http.route", CopyKind::Text)),
        PromoteError::BuiltIn { column: "http_route", .. }
    ));
    let service = Promotion { attribute: attribute("service.name", Level::Resource), kind: Some(CopyKind::Text) };
    assert!(matches!(refused(&service), PromoteError::BuiltIn { column: "service_name", .. }));
    assert!(matches!(refused(&demote("http.route")), PromoteError::BuiltIn { .. }));
    assert!(matches!(refused(&demote("a.b")), PromoteError::NotPromoted { level: "record", .. }));
    assert_eq!(apply(&mut metadata, TABLE, &promote("a.b", CopyKind::Boolean)), Ok(Effect::Promoted));
    let mut refused = |promotion: &Promotion| apply(&mut metadata, TABLE, promotion).expect_err("refuses");
    let taken = refused(&promote("A_b", CopyKind::Text));
    assert_eq!(taken, PromoteError::NameTaken { column: "attr_a_b".to_owned() });
    let other = refused(&promote("a.b", CopyKind::Text));
    assert!(matches!(other, PromoteError::OtherType { kind: "bool", .. }), "{other}");
    // The same key elsewhere has a column of its own; a point's attributes have no columns of ours.
    let scope = Promotion { attribute: attribute("a.b", Level::Scope), kind: Some(CopyKind::Text) };
    assert_eq!(apply(&mut metadata, TABLE, &scope), Ok(Effect::Promoted));
    let sums = SignalTable::MetricsSum;
    assert_eq!(apply(&mut new_table(sums), sums, &promote("http.route", CopyKind::Text)), Ok(Effect::Promoted));
}

#[test]
fn there_are_only_so_many() {
    let mut metadata = new_table(TABLE);
    for n in 0..PROMOTED_MAX {
        assert_eq!(apply(&mut metadata, TABLE, &promote(&format!("k{n}"), CopyKind::Text)), Ok(Effect::Promoted));
    }
    let next = promote("next", CopyKind::Text);
    assert_eq!(apply(&mut metadata, TABLE, &next), Err(PromoteError::TooMany));
    assert_eq!(apply(&mut metadata, TABLE, &promote("k3", CopyKind::Text)), Ok(Effect::Unchanged));
    for n in PROMOTED_MAX..COLUMNS_MAX {
        apply(&mut metadata, TABLE, &demote(&format!("k{}", n - 1))).expect("demotes");
        assert_eq!(apply(&mut metadata, TABLE, &promote(&format!("k{n}"), CopyKind::Text)), Ok(Effect::Promoted));
    }
    assert_eq!(apply(&mut metadata, TABLE, &promote("k40", CopyKind::Text)), Err(PromoteError::TooMany));
    apply(&mut metadata, TABLE, &demote("k0")).expect("demotes");
    assert_eq!(apply(&mut metadata, TABLE, &next), Err(PromoteError::TooManyColumns));
    assert_eq!(apply(&mut metadata, TABLE, &promote("k40", CopyKind::Text)), Ok(Effect::Woken));
}

fn pair(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(value: &str) -> any_value::Value {
    any_value::Value::StringValue(value.to_owned())
}

/// Spans from `start` on, one for each value; each has the value in its own attributes, and in those of resource and scope.
fn spans(start: u64, values: &[Option<any_value::Value>]) -> Rows {
    let resource = |(at, value): (usize, &Option<any_value::Value>)| {
        let attributes: Vec<KeyValue> = value.iter().map(|value| pair("k", value.clone())).collect();
        let start_time_unix_nano = start + at as u64;
        let span = Span { start_time_unix_nano, attributes: attributes.clone(), ..Span::default() };
        let scope = InstrumentationScope { attributes: attributes.clone(), ..InstrumentationScope::default() };
        ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans: vec![span], ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }
    };
    let request = ExportTraceServiceRequest { resource_spans: values.iter().enumerate().map(resource).collect() };
    decode(SignalKind::Traces, [(1, request.encode_to_vec().as_slice())]).remove(0).rows
}

/// Writes and commits rows as a flush does.
async fn flush(lake: &TestLake, rows: Rows) {
    let location = lake.lake.ensure_table(&lake.id, TABLE).await.expect("exists");
    let metadata = lake.lake.metadata_at(&location).await.expect("reads");
    let (schema, commit_id) = (Arc::new(FileSchema::of(TABLE, &metadata)), lake.lake.new_commit());
    let mut files = Vec::new();
    let mut keep = |file| {
        files.push(file);
        Ok(())
    };
    let name = |n, day| names::data_file(metadata.location(), "1", commit_id, n, day);
    datafile::encode(&schema, &[rows], name, &mut keep).expect("encodes");
    let mut add = Vec::new();
    for file in files {
        lake.lake.store().write(&file.location, file.content).await.expect("writes");
        add.push(file.entry);
    }
    let change = Change { add, ..Change::default() };
    let committed = commit(&lake.lake, &lake.id, TABLE, &change, Some(commit_id)).await.expect("commits");
    assert!(matches!(committed, Committed::Done { .. }), "{committed:?}");
}

async fn compact(lake: &TestLake) {
    lake.clock.advance(Duration::from_secs(3 * 3600));
    let rewrite = lake.upkeep().rewrites().await.expect("plans").remove(0);
    let stop = CancellationToken::new();
    lake.upkeep().rewrite(&rewrite, &stop).await.expect("rewrites").expect("nobody else commits");
}

async fn change(lake: &TestLake, level: Level, kind: Option<CopyKind>) -> Effect {
    let promotion = Promotion { attribute: attribute("k", level), kind };
    lake.upkeep().promote(&promotion).await.expect("commits").0.effect
}

async fn rows_of(lake: &TestLake, file: &DataFile) -> RecordBatch {
    let content = lake.lake.store().read(file.file_path()).await.expect("is there");
    let reader = ParquetRecordBatchReaderBuilder::try_new(content).expect("is Parquet").build().expect("reads");
    let batches: Vec<RecordBatch> = reader.map(|batch| batch.expect("reads")).collect();
    concat_batches(&batches[0].schema(), &batches).expect("one schema")
}

/// A column's values as text; `None` when the file does not have it.
fn texts_of(rows: &RecordBatch, column: &str) -> Option<Vec<Option<String>>> {
    let texts = cast(rows.column_by_name(column)?, &DataType::Utf8).expect("is plain");
    Some(texts.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect())
}

/// What the map has under `k`, row by row.
fn map_of(rows: &RecordBatch, level: Level) -> Vec<Option<String>> {
    let map = rows.column_by_name(level.map()).expect("exists").as_map();
    let (keys, values): (&StringArray, &StringArray) = (map.keys().as_string(), map.values().as_string());
    let value = |row: usize| {
        let mut entries = map.value_offsets()[row] as usize..map.value_offsets()[row + 1] as usize;
        entries.find(|at| keys.value(*at) == "k").map(|at| values.value(at).to_owned())
    };
    (0..map.len()).map(value).collect()
}

fn config() -> LakeConfig {
    let compaction = CompactionConfig { min_files: 4, ..CompactionConfig::default() };
    LakeConfig { compaction, ..LakeConfig::default() }
}

/// Compacts everything into one file, and checks what its column has, in any order; `None`: it has no column.
async fn check_compacted(lake: &TestLake, column: &Column, expected: Option<&[&str]>) {
    compact(lake).await;
    let files = lake.files().await;
    let [file] = &files[..] else { panic!("one file") };
    let rows = rows_of(lake, file).await;
    let found = texts_of(&rows, &column.name).map(|texts| {
        let mut texts: Vec<String> = texts.into_iter().flatten().collect();
        texts.sort();
        texts
    });
    assert_eq!(found, expected.map(|texts| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()));
    assert_eq!(is_filled(file, column), expected.is_some());
    assert!(!is_whole(file, column), "one value does not fit");
    assert!(map_of(&rows, Level::Record).contains(&Some("five".to_owned())), "the map has it");
}

/// Scenario: rows are flushed before and after their key is promoted, one of them with a value that does not fit; they are
/// compacted; the key is demoted, rows are flushed and compacted; it is promoted again, and rows are compacted once more.
/// Guarantees: files say of themselves whether they have the column, and whether it has every value; compaction brings
/// the column into files of before, and takes it away while nobody wants it; the maps keep everything throughout.
#[tokio::test]
async fn flushes_fill_the_column_and_compaction_fills_what_was_there_before() {
    let lake = TestLake::new(config()).await;
    let start = lake.day_start(1);
    let number = |number: i64| Some(any_value::Value::IntValue(number));
    flush(&lake, spans(start, &[number(1), None])).await;
    assert_eq!(change(&lake, Level::Record, Some(CopyKind::Integer)).await, Effect::Promoted);
    let column = copies_of(lake.metadata().await.as_ref()).remove(0).column;
    flush(&lake, spans(start, &[number(2), number(-3)])).await;
    flush(&lake, spans(start, &[number(4), Some(text("five"))])).await;
    flush(&lake, spans(start, &[Some(text("6"))])).await;
    let mut said = Vec::new();
    for file in lake.files().await {
        let rows = rows_of(&lake, &file).await;
        let (in_map, copied) = (map_of(&rows, Level::Record), texts_of(&rows, "attr_k"));
        if let Some(copied) = &copied {
            let fits = |text: &Option<String>| text.clone().filter(|text| text.parse::<i64>().is_ok());
            assert_eq!(copied, &in_map.iter().map(fits).collect::<Vec<_>>());
            let nulls = copied.iter().filter(|one| one.is_none()).count() as u64;
            assert_eq!(file.null_value_counts()[&column.id], nulls);
        }
        assert_eq!(copied.is_some(), is_filled(&file, &column));
        said.push((in_map[0].clone().expect("a value"), copied.is_some(), is_whole(&file, &column)));
    }
    said.sort();
    let expected = [("1", false, false), ("2", true, true), ("4", true, false), ("6", true, true)];
    assert_eq!(said, expected.map(|(first, filled, whole)| (first.to_owned(), filled, whole)));
    check_compacted(&lake, &column, Some(&["-3", "1", "2", "4", "6"])).await;

    assert_eq!(change(&lake, Level::Record, None).await, Effect::Demoted);
    for _ in 0..3 {
        flush(&lake, spans(start, &[number(7)])).await;
    }
    check_compacted(&lake, &column, None).await;

    assert_eq!(change(&lake, Level::Record, Some(CopyKind::Integer)).await, Effect::Woken);
    for _ in 0..3 {
        flush(&lake, spans(start, &[None])).await;
    }
    check_compacted(&lake, &column, Some(&["-3", "1", "2", "4", "6", "7", "7", "7"])).await;
}

/// Scenario: a key of resources, scopes and records is promoted, as each type there is.
/// Guarantees: each column has what its own map has; bounds are those of the values, and doubles have none and are
/// never whole.
#[tokio::test]
async fn every_level_and_type_is_filled_from_its_own_map() {
    use any_value::Value;
    let columns = [
        (Level::Resource, "resource_attr_k", CopyKind::Text, Value::StringValue("a".to_owned()), true),
        (Level::Scope, "scope_attr_k", CopyKind::Boolean, Value::BoolValue(true), true),
        (Level::Record, "attr_k", CopyKind::Double, Value::DoubleValue(1.5), false),
    ];
    for (level, name, kind, value, whole) in columns {
        let lake = TestLake::new(config()).await;
        let start = lake.day_start(1);
        flush(&lake, spans(start, &[None])).await;
        assert_eq!(change(&lake, level, Some(kind)).await, Effect::Promoted);
        let column = copies_of(lake.metadata().await.as_ref()).remove(0).column;
        assert_eq!(column.name, name);
        flush(&lake, spans(start, &[Some(value), None])).await;
        let files = lake.files().await;
        let file = files.iter().find(|file| is_filled(file, &column)).expect("one has the column");
        let rows = rows_of(&lake, file).await;
        assert_eq!(texts_of(&rows, name).expect("is there"), map_of(&rows, level));
        assert_eq!((is_whole(file, &column), file.lower_bounds().contains_key(&column.id)), (whole, whole), "{name}");
        let unfilled = files.iter().find(|file| !is_filled(file, &column)).expect("one has not");
        assert!(texts_of(&rows_of(&lake, unfilled).await, name).is_none());
    }
}

/// Scenario: an operator promotes or demotes an attribute while a flush stands still, before each of its steps in turn.
/// Guarantees: the flush is done, every row is there once, and what the operator asked for is what the table says.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_before_any_step_of_a_flush_loses_neither_rows_nor_itself() {
    let mut rig = Rig::new().await;
    let id = table_id("promoted");
    rig.append("promoted", 3).await;
    rig.flush(0).await.expect("flushes");
    for at in 1.. {
        rig.append("promoted", 2).await;
        let kind = (at % 2 == 1).then_some(CopyKind::Text);
        let promotion = Promotion { attribute: attribute("tenant.plan", Level::Record), kind };
        let [Leader { flusher, faults, .. }, second] = &mut rig.process.leaders;
        let upkeep = Upkeep { lake: &second.lake, id: &id, table: TABLE };
        faults.arm(Plan { at, fault: Fault::Nothing, hold: Hold::Before });
        {
            let mut flush = pin!(flusher.step(true));
            tokio::select! {
                biased;
                flushed = &mut flush => {
                    flushed.expect("flushes");
                }
                () = faults.held() => {
                    Box::pin(upkeep.promote(&promotion)).await.expect("commits");
                    faults.resume();
                    flush.as_mut().await.expect("the flush goes on");
                }
            }
        }
        let had_its_turn = faults.disarm();
        if had_its_turn {
            let (_, metadata) = upkeep.current().await.expect("reads").expect("exists");
            assert_eq!(copies_of(&metadata).len(), usize::from(kind.is_some()), "before step {at}");
        }
        rig.check(["promoted"], true, &at).await;
        if !had_its_turn {
            assert!(at > 3, "a flush takes more steps than {at}");
            break;
        }
        assert!(at < 100, "a flush comes to an end");
    }
    rig.check_files().await;
    rig.process.stop().await;
}

/// Scenario: two operators promote different attributes at the same time, again and again.
/// Guarantees: the table has all of them.
#[tokio::test(flavor = "multi_thread")]
async fn operators_at_the_same_time_lose_no_promotion() {
    let lake = TestLake::new(config()).await;
    flush(&lake, spans(lake.day_start(1), &[None])).await;
    for n in 0..4 {
        let [one, other] = ["a", "b"].map(|name| promote(&format!("{name}{n}"), CopyKind::Text));
        let upkeep = lake.upkeep();
        let (one, other) = tokio::join!(upkeep.promote(&one), upkeep.promote(&other));
        assert_eq!(
            (one.expect("commits").0.effect, other.expect("commits").0.effect),
            (Effect::Promoted, Effect::Promoted)
        );
    }
    let copies = copies_of(lake.metadata().await.as_ref());
    let ids: std::collections::BTreeSet<i32> = copies.iter().map(|copy| copy.column.id).collect();
    assert_eq!((copies.len(), ids.len()), (8, 8));
}

/// Scenario: an operator asks the leader, first only for what would be done; then again, and for what cannot be.
/// Guarantees: a dry run changes nothing and says what is done then; every replica knows the version with the column;
/// what is refused is refused by type, and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_hears_what_becomes_of_an_attribute() {
    let mut rig = Rig::new().await;
    let id = table_id("d");
    rig.append("d", 3).await;
    rig.flush(0).await.expect("flushes");
    let lake = &rig.process.leaders[0].lake;
    let ask = async |dataset: &str, promotion: Promotion, dry_run: bool| -> Result<serde_json::Value, LakeError> {
        let id = table_id(dataset);
        let tables = TableFilter { tenant: id.tenant, dataset: Some(id.dataset), table: Some(TABLE) };
        let task = TableTask { task: Task::Promote(promotion), tables, dry_run };
        let report = lake.maintain(&rig.process.group, &rig.process.cluster_id, &task).await?;
        Ok(serde_json::from_str(&report.to_json()).expect("is JSON"))
    };
    let version = || rig.process.group.with_state(|state| state.tables[&id].version);
    let plan = || promote("tenant.plan", CopyKind::Text);
    let before = version();
    for (dry_run, effect) in [(true, "promoted"), (false, "promoted"), (false, "unchanged"), (true, "unchanged")] {
        let report = ask("d", plan(), dry_run).await.expect("answers");
        let expected = json!({"namespace": "t.d", "table": "traces", "effect": effect, "key": "tenant.plan",
            "level": "record", "column": "attr_tenant_plan", "type": "text"});
        assert_eq!(report, json!({"dry_run": dry_run, "tables": [expected]}));
    }
    assert_eq!(version(), before + 1, "one commit, and the log knows it");
    let shapes = lake.table_shapes(&TableFilter { tenant: id.tenant.clone(), dataset: None, table: None }).await;
    let shape = shapes.expect("reads").remove(0);
    let [promoted] = &shape.promoted[..] else { panic!("one: {shape:?}") };
    assert_eq!((promoted.column.as_str(), promoted.written, promoted.filled_files), ("attr_tenant_plan", true, 0));
    let refused = ask("d", promote("tenant.plan", CopyKind::Integer), false).await.expect_err("refuses");
    assert!(matches!(refused, LakeError::Promote(PromoteError::OtherType { .. })), "{refused}");
    for dry_run in [true, false] {
        let refused = ask("nowhere", plan(), dry_run).await.expect_err("refuses");
        assert!(matches!(refused, LakeError::Promote(PromoteError::NoTable(_))), "{refused}");
    }
    assert_eq!(ask("d", demote("tenant.plan"), false).await.expect("answers")["tables"][0]["effect"], "demoted");
    assert_eq!(version(), before + 2);
    rig.process.stop().await;
}
