use std::collections::BTreeMap;

use iceberg::ErrorKind;
use iceberg::spec::{
    DataContentType, DataFileBuilder, DataFileFormat, FormatVersion, Literal, ManifestContentType, ManifestList,
    ManifestStatus, Struct,
};
use signaldb_signals::{SignalTable, schema};

use super::manifests::SMALL_MANIFESTS_MAX;
use super::*;
use crate::table::{day_of, new_table};

const HOUR: i64 = 3_600_000;

fn file(name: &str, rows: u64) -> DataFile {
    file_of(name, rows, 0)
}

fn file_of(name: &str, rows: u64, day: i32) -> DataFile {
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_path(name.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::from_iter([Some(Literal::date(day))]))
        .record_count(rows)
        .file_size_in_bytes(10);
    builder.build().expect("builds")
}

/// A table in memory: what the async shell does with the store.
struct Table {
    metadata: TableMetadata,
    location: String,
    files: HashMap<String, Bytes>,
    commits: u128,
}

impl Table {
    fn new() -> Self {
        let metadata = new_table(SignalTable::Traces, "file:///t", uuid::Uuid::nil(), 1).expect("builds");
        let location = "file:///t/metadata/00000-a.metadata.json".to_owned();
        Self { metadata, location, files: HashMap::new(), commits: 0 }
    }

    fn manifests(&self) -> Vec<ManifestFile> {
        let Some(snapshot) = self.metadata.current_snapshot() else { return Vec::new() };
        let list = &self.files[snapshot.manifest_list()];
        ManifestList::parse_with_version(list, FormatVersion::V2).expect("parses").entries().to_vec()
    }

    fn append(&mut self, file: DataFile, now_ms: i64) {
        let mark = (self.commits + 1).to_string();
        let change = Change {
            add: vec![file],
            set_properties: HashMap::from([("mark".to_owned(), mark.clone())]),
            summary: HashMap::from([("mark".to_owned(), mark)]),
            expire: true,
            merge_manifests: true,
            ..Change::default()
        };
        self.commit(change, now_ms).expect("stages");
    }

    /// Commits, or changes nothing.
    fn commit(&mut self, change: Change, now_ms: i64) -> Result<()> {
        let manifests = self.manifests();
        let load = |manifest: &ManifestFile| {
            let content = Manifest::parse_avro(&self.files[&manifest.manifest_path]).expect("parses");
            (manifest.manifest_path.clone(), content)
        };
        let loaded = manifests_to_load(&manifests, &change).into_iter().map(load).collect();
        let base = Base { metadata: &self.metadata, location: &self.location, manifests, loaded };
        let commit = self.commits + 1;
        let seeds = Seeds {
            snapshot_id: i64::try_from(commit).expect("small"),
            commit: uuid::Uuid::from_u128(commit),
            metadata: uuid::Uuid::from_u128(commit),
            now_ms,
        };
        let staged = next_metadata(base, change, seeds)?;
        assert_eq!(staged.version, i64::try_from(commit).expect("small"));
        self.commits = commit;
        self.files.extend(staged.files);
        self.metadata = staged.metadata;
        self.location = staged.location;
        Ok(())
    }

    fn summary(&self, key: &str) -> &str {
        &self.metadata.current_snapshot().expect("has one").summary().additional_properties[key]
    }

    fn parsed(&self) -> Vec<(ManifestFile, Manifest)> {
        let parse = |manifest: ManifestFile| {
            let content = Manifest::parse_avro(&self.files[&manifest.manifest_path]).expect("parses");
            (manifest, content)
        };
        self.manifests().into_iter().map(parse).collect()
    }

    /// Sequence numbers of the live files, by name.
    fn live(&self) -> BTreeMap<String, i64> {
        let mut live = BTreeMap::new();
        for (manifest, content) in self.parsed() {
            for entry in content.entries().iter().filter(|entry| entry.is_alive()) {
                let sequence = entry.sequence_number().unwrap_or(manifest.sequence_number);
                assert_eq!(entry.file_sequence_number.unwrap_or(manifest.sequence_number), sequence);
                assert!(manifest.min_sequence_number <= sequence);
                assert_eq!(live.insert(entry.file_path().to_owned(), sequence), None, "a file is there once");
            }
        }
        live
    }

    fn data_files(&self) -> Vec<String> {
        self.live().into_keys().collect()
    }
}

#[test]
fn appends_build_on_their_base_and_keep_every_file() {
    let mut table = Table::new();
    for n in 0..200 {
        table.append(file(&format!("f{n:03}"), 2), 10 + n);
    }
    let expected: Vec<String> = (0..200).map(|n| format!("f{n:03}")).collect();
    assert_eq!(table.data_files(), expected);
    assert!(table.manifests().len() <= SMALL_MANIFESTS_MAX, "small manifests are merged");
    let summary = &table.metadata.current_snapshot().expect("has one").summary().additional_properties;
    assert_eq!(summary["total-records"], "400");
    assert_eq!(summary["total-data-files"], "200");
    assert_eq!(summary["mark"], "200");
    assert_eq!(table.metadata.properties()["mark"], "200");
}

#[test]
fn merged_manifests_keep_sequence_numbers() {
    let mut table = Table::new();
    for n in 0..60 {
        table.append(file(&format!("f{n:03}"), 1), 10);
    }
    let merged = table.manifests().into_iter().max_by_key(|manifest| manifest.existing_files_count).expect("has some");
    let content = Manifest::parse_avro(&table.files[&merged.manifest_path]).expect("parses");
    let sequences: Vec<_> = content.entries().iter().map(|entry| entry.sequence_number()).collect();
    assert!(sequences.len() >= SMALL_MANIFESTS_MAX);
    assert!(sequences.contains(&Some(1)) && sequences.contains(&Some(2)), "{sequences:?}");
    assert_eq!(merged.min_sequence_number, 1);
}

#[test]
fn a_clock_that_runs_backwards_never_makes_metadata_unreadable() {
    let mut table = Table::new();
    table.append(file("a", 1), 10 * HOUR);
    table.append(file("b", 1), HOUR);
    assert_eq!(table.metadata.last_updated_ms(), 10 * HOUR);
    assert_eq!(table.data_files(), ["a", "b"]);
}

#[test]
fn old_snapshots_go_but_the_current_one_and_the_files_stay() {
    let mut table = Table::new();
    for n in 0..30 {
        table.append(file(&format!("f{n:02}"), 1), n * HOUR / 10);
    }
    assert_eq!(table.metadata.snapshots().count(), 13, "an hour of all, then one an hour");
    table.append(file("late", 1), 40 * 24 * HOUR);
    assert_eq!(table.metadata.snapshots().count(), 2, "the one it was built on goes with the next commit");
    assert_eq!(table.data_files().len(), 31);
}

#[test]
fn the_past_is_shown_exactly_or_not_at_all() {
    let mut table = Table::new();
    let minute = HOUR / 60;
    for n in 0..30 {
        table.append(file(&format!("f{n:02}"), 1), (1 + n) * 6 * minute);
    }
    // Kept: the last of the first hour (id 9, minute 54), the last of the second (19, minute 114), all of the last hour
    // before minute 180 (20 to 30).
    let at = |minutes: i64| match snapshot_as_of(&table.metadata, AsOf::Time(Moment(minutes * minute))) {
        Ok(snapshot) => Ok(snapshot.snapshot_id()),
        Err(AsOfError::Expired { kept, .. }) => Err((kept.before.map(|(id, _)| id), kept.after.map(|(id, _)| id))),
        Err(other) => panic!("{other}"),
    };
    assert_eq!(at(10_000), Ok(30), "the newest");
    assert_eq!(at(179), Ok(29));
    assert_eq!(at(120), Ok(20), "a snapshot is current from its own time on");
    assert_eq!(at(119), Ok(19));
    assert_eq!(at(59), Ok(9), "nothing was committed in the rest of that hour");
    assert_eq!(at(60), Err((Some(9), Some(19))), "the one of minute 60 has expired");
    assert_eq!(at(90), Err((Some(9), Some(19))));
    assert_eq!(at(53), Err((None, Some(9))));
}

#[test]
fn before_the_first_commit_there_is_no_snapshot() {
    let asked = Moment(5);
    let as_of = |table: &Table, as_of: AsOf| snapshot_as_of(&table.metadata, as_of).map(|found| found.snapshot_id());
    let mut table = Table::new();
    assert_eq!(as_of(&table, AsOf::Time(asked)), Err(AsOfError::NoSnapshotYet(asked)), "an empty table");
    table.append(file("a", 1), 10);
    table.append(file("b", 1), 20);
    assert_eq!(as_of(&table, AsOf::Time(asked)), Err(AsOfError::NoSnapshotYet(asked)));
    assert_eq!(as_of(&table, AsOf::Time(Moment(19))), Ok(1));
    assert_eq!(as_of(&table, AsOf::Snapshot(1)), Ok(1));
    assert_eq!(as_of(&table, AsOf::Snapshot(7)), Err(AsOfError::UnknownSnapshot(7)));
}

#[test]
fn an_expired_past_names_its_neighbours() {
    let kept = Neighbours { before: Some((1, Moment(0))), after: Some((2, Moment(1500))) };
    let error = AsOfError::Expired { asked: Moment(1000), kept };
    let text = "the snapshot that was current at 1970-01-01T00:00:01.000Z has expired; \
        kept are 1 of 1970-01-01T00:00:00.000Z and 2 of 1970-01-01T00:00:01.500Z";
    assert_eq!(error.to_string(), text);
}

#[test]
fn removed_files_are_deleted_entries_and_the_others_keep_their_numbers() {
    let mut table = Table::new();
    for n in 0..3 {
        table.append(file(&format!("f{n}"), 1), 10);
    }
    let small = [file("f0", 1), file("f2", 1)];
    let change = Change { add: vec![file("large", 2)], remove: small.to_vec(), ..Change::default() };
    table.commit(change, 20).expect("stages");
    assert_eq!(table.live(), BTreeMap::from([("f1".to_owned(), 2), ("large".to_owned(), 4)]));
    let deleted: BTreeMap<String, Option<i64>> = table
        .parsed()
        .iter()
        .flat_map(|(_, content)| content.entries().iter().filter(|entry| entry.status() == ManifestStatus::Deleted))
        .inspect(|entry| assert_eq!(entry.snapshot_id(), table.metadata.current_snapshot_id()))
        .map(|entry| (entry.file_path().to_owned(), entry.sequence_number()))
        .collect();
    assert_eq!(deleted, BTreeMap::from([("f0".to_owned(), Some(1)), ("f2".to_owned(), Some(3))]));
    let snapshot = table.metadata.current_snapshot().expect("has one");
    assert_eq!(snapshot.summary().operation, Operation::Replace);
    assert_eq!((table.summary("total-data-files"), table.summary("total-records")), ("2", "3"));
    assert_eq!((table.summary("deleted-data-files"), table.summary("deleted-records")), ("2", "2"));
    assert_eq!(table.metadata.properties()["mark"], "3", "a flush mark survives every other commit");

    let retention = Change { remove: vec![file("f1", 1)], ..Change::default() };
    table.commit(retention, 30).expect("stages");
    assert_eq!(table.live(), BTreeMap::from([("large".to_owned(), 4)]));
    let snapshot = table.metadata.current_snapshot().expect("has one");
    assert_eq!(snapshot.summary().operation, Operation::Delete);
    let deleted =
        table.parsed().iter().flat_map(|(_, content)| content.entries().to_vec()).filter(|e| !e.is_alive()).count();
    assert_eq!(deleted, 1, "what an earlier snapshot deleted is not listed again");
}

#[test]
fn a_file_that_is_gone_cannot_be_removed_again() {
    let mut table = Table::new();
    table.append(file("a", 1), 10);
    table.append(file("b", 1), 10);
    let remove = || Change { remove: vec![file("a", 1)], add: vec![file("c", 1)], ..Change::default() };
    table.commit(remove(), 20).expect("stages");
    let error = table.commit(remove(), 30).expect_err("somebody else was faster");
    assert_eq!(error.kind(), ErrorKind::PreconditionFailed);
    assert_eq!(table.data_files(), ["b", "c"]);
}

#[test]
fn files_are_not_removed_from_under_foreign_deletes() {
    let mut table = Table::new();
    table.append(file("a", 1), 10);
    let mut manifests = table.manifests();
    manifests.push(ManifestFile { content: ManifestContentType::Deletes, ..manifests[0].clone() });
    let change = Change { remove: vec![file("a", 1)], ..Change::default() };
    let base = Base { metadata: &table.metadata, location: &table.location, manifests, loaded: HashMap::new() };
    let nil = uuid::Uuid::nil();
    let seeds = Seeds { snapshot_id: 9, commit: nil, metadata: nil, now_ms: 20 };
    let error = next_metadata(base, change, seeds).expect_err("refuses");
    assert_eq!(error.kind(), ErrorKind::FeatureUnsupported);
}

#[test]
fn only_manifests_that_may_hold_a_file_are_read() {
    let mut table = Table::new();
    for day in 0..5 {
        table.append(file_of(&format!("d{day}"), 1, day), 10);
    }
    let change = Change { remove: vec![file_of("d3", 1, 3)], ..Change::default() };
    let manifests = table.manifests();
    assert_eq!(manifests_to_load(&manifests, &change).len(), 1);
    table.commit(change, 20).expect("stages");
    assert_eq!(table.data_files(), ["d0", "d1", "d2", "d4"]);
}

#[test]
fn merged_manifests_hold_neighbouring_days() {
    let mut table = Table::new();
    for n in 0..SMALL_MANIFESTS_MAX as i32 {
        table.append(file_of(&format!("f{n:02}"), 1, (n * 7) % 10), 10);
    }
    let change = Change { merge_manifests: true, ..Change::default() };
    table.commit(change, 20).expect("stages");
    let parsed = table.parsed();
    let [(_, merged)] = parsed.as_slice() else { panic!("one manifest holds them all") };
    let days: Vec<Option<i32>> = merged.entries().iter().map(|entry| day_of(entry.data_file())).collect();
    assert!(days.is_sorted() && days.len() == SMALL_MANIFESTS_MAX, "{days:?}");
    let snapshot = table.metadata.current_snapshot().expect("has one");
    assert_eq!(snapshot.summary().operation, Operation::Replace);
    assert_eq!(table.summary("total-data-files"), "50");
}

#[test]
fn a_commit_that_only_expires_makes_no_snapshot() {
    let mut table = Table::new();
    for n in 0..20 {
        table.append(file(&format!("f{n:02}"), 1), n * HOUR / 10);
    }
    let (current, before) = (table.metadata.current_snapshot_id(), table.metadata.snapshots().count());
    let now = 30 * 24 * HOUR;
    table.commit(Change { expire: true, ..Change::default() }, now).expect("stages");
    assert_eq!((table.metadata.snapshots().count(), before > 1), (1, true));
    assert_eq!(table.metadata.current_snapshot_id(), current);
    assert_eq!(table.metadata.last_updated_ms(), now);
    assert_eq!(table.data_files().len(), 20);
    table.append(file("next", 1), now + 1);
    assert_eq!(table.data_files().len(), 21);
}

#[test]
fn a_table_that_is_ahead_of_the_clock_expires_and_keeps_its_times() {
    let (mut table, far) = (Table::new(), 4_102_444_800_000);
    for n in 0..3 {
        table.append(file(&format!("f{n}"), 1), far + n * 10);
    }
    let times = |table: &Table| -> (Vec<i64>, Vec<i64>) {
        let snapshots = table.metadata.history().iter().map(|entry| entry.timestamp_ms()).collect();
        (snapshots, table.metadata.metadata_log().iter().map(|entry| entry.timestamp_ms).collect())
    };
    let (snapshots, versions) = times(&table);
    let last = table.metadata.last_updated_ms();
    let change = Change { expire: true, ..Change::default() };
    table.commit(change, far + 8 * 24 * HOUR).expect("stages");
    assert_eq!(table.metadata.snapshots().count(), 1);
    let (kept, logged) = times(&table);
    assert_eq!(kept, snapshots[snapshots.len() - 1..]);
    assert_eq!(logged, [versions, vec![last]].concat());
    assert_eq!(table.metadata.last_updated_ms(), far + 8 * 24 * HOUR);
}

#[test]
fn what_a_tag_names_is_not_expired() {
    let mut table = Table::new();
    table.append(file("a", 1), HOUR);
    let mut json = serde_json::to_value(&table.metadata).expect("is JSON");
    json["refs"]["release"] = serde_json::json!({"snapshot-id": 1, "type": "tag"});
    json["refs"]["draft"] = serde_json::json!({"snapshot-id": 1, "type": "tag", "max-ref-age-ms": HOUR});
    table.metadata = serde_json::from_value(json).expect("parses");
    table.append(file("b", 1), 2 * HOUR);
    table.append(file("c", 1), 60 * 24 * HOUR);
    table.append(file("d", 1), 60 * 24 * HOUR);
    assert!(table.metadata.snapshot_by_id(1).is_some() && table.metadata.snapshot_for_ref("release").is_some());
    assert!(table.metadata.snapshot_by_id(2).is_none());
}

/// The most that expiry lets through; `expiry` simulates how it comes to that.
#[test]
fn five_hundred_snapshots_are_less_than_a_megabyte_of_metadata() {
    let mut table = Table::new();
    let mark = serde_json::json!({"cluster": uuid::Uuid::max(), "group": 63, "incarnation": 1000, "term": 1_000_000,
        "index": u64::MAX, "commit": uuid::Uuid::max()});
    let append = |n: i64| Change {
        add: vec![file(&format!("f{n}"), 1_000_000)],
        set_properties: HashMap::from([("signaldb.flush.63".to_owned(), mark.to_string())]),
        summary: HashMap::from([("signaldb.flush.63".to_owned(), mark.to_string())]),
        expire: true,
        ..Change::default()
    };
    table.commit(append(0), 1000).expect("stages");
    let mut json = serde_json::to_value(&table.metadata).expect("is JSON");
    let (snapshot, log) = (json["snapshots"][0].clone(), json["snapshot-log"][0].clone());
    for n in 2..=1000_i64 {
        let (mut snapshot, mut log) = (snapshot.clone(), log.clone());
        (snapshot["snapshot-id"], snapshot["sequence-number"]) = ((n << 52).into(), n.into());
        (snapshot["timestamp-ms"], log["timestamp-ms"]) = ((1000 + n).into(), (1000 + n).into());
        log["snapshot-id"] = (n << 52).into();
        json["snapshots"].as_array_mut().expect("is a list").push(snapshot);
        json["snapshot-log"].as_array_mut().expect("is a list").push(log);
    }
    json["last-sequence-number"] = 1000.into();
    json["current-snapshot-id"] = (1000_i64 << 52).into();
    json["refs"]["main"]["snapshot-id"] = (1000_i64 << 52).into();
    json["last-updated-ms"] = 2000.into();
    table.metadata = serde_json::from_value(json).expect("parses");
    for n in 0..3 {
        table.commit(append(n), 3000).expect("stages");
        assert!(table.metadata.snapshots().count() <= 500);
        let bytes = table.files[&table.location].len();
        assert!(bytes < 1_000_000, "{bytes} bytes");
    }
    assert!(table.metadata.metadata_log().len() <= 20);
}

/// Flushes, compactions, retention and expiry in any order: the table holds what a map of files would.
#[test]
fn any_order_of_commits_keeps_exactly_the_files_that_were_not_removed() {
    for seed in 1..=2 {
        let mut table = Table::new();
        let mut model: BTreeMap<String, (u64, i32, i64)> = BTreeMap::new();
        let mut state: u64 = seed;
        let mut draw = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for step in 0..90 {
            let name = format!("f{step:03}");
            let live: Vec<String> = model.keys().cloned().collect();
            let mut remove = Vec::new();
            if draw(3) == 0 {
                let count = draw(1 + live.len().min(20) as u64) as usize;
                remove = live.iter().skip(draw(1 + live.len() as u64) as usize).take(count).cloned().collect();
            }
            let add = remove.is_empty() || draw(2) == 0;
            let removed: Vec<DataFile> =
                remove.iter().map(|name| file_of(name, model[name].0, model[name].1)).collect();
            let mut rows: u64 = remove.iter().filter_map(|name| model.remove(name)).map(|(rows, ..)| rows).sum();
            let mut change =
                Change { remove: removed, expire: draw(2) == 0, merge_manifests: draw(2) == 0, ..Change::default() };
            if add {
                rows = if rows == 0 { 1 + draw(9) } else { rows };
                let day = draw(6) as i32;
                let sequence = table.metadata.next_sequence_number();
                model.insert(name.clone(), (rows, day, sequence));
                change.add = vec![file_of(&name, rows, day)];
            }
            table.commit(change, step * HOUR / 7).expect("stages");
            let expected: BTreeMap<String, i64> =
                model.iter().map(|(name, (_, _, sequence))| (name.clone(), *sequence)).collect();
            assert_eq!(table.live(), expected, "seed {seed}, step {step}");
            let rows: u64 = model.values().map(|(rows, ..)| rows).sum();
            assert_eq!(table.summary("total-records"), rows.to_string(), "seed {seed}, step {step}");
            assert_eq!(table.summary("total-data-files"), model.len().to_string());
        }
    }
}

#[test]
fn a_table_of_an_older_build_gets_the_columns_that_it_lacks() {
    let columns = &schema::of(SignalTable::Traces).columns;
    let mut table = Table::new();
    let mut json = serde_json::to_value(&table.metadata).expect("is JSON");
    let fields = json["schemas"][0]["fields"].as_array_mut().expect("is a list");
    fields.truncate(columns.len() - 10);
    table.metadata = serde_json::from_value(json).expect("parses");
    table.append(file("old", 1), 10);
    assert_eq!(table.metadata.current_schema().as_struct().fields().len(), columns.len() - 10);
    for (name, now_ms) in [("new", 20), ("newer", 30)] {
        let change = Change { add: vec![file(name, 1)], add_columns: columns.clone(), ..Change::default() };
        table.commit(change, now_ms).expect("stages");
        let current = table.metadata.current_schema();
        for column in columns {
            assert_eq!(current.name_by_field_id(column.id), Some(column.name.as_str()));
        }
        let snapshot = table.metadata.current_snapshot().expect("has one");
        assert_eq!((current.schema_id(), snapshot.schema_id(), snapshot.timestamp_ms()), (1, Some(1), now_ms));
        assert_eq!((table.metadata.schemas_iter().count(), table.metadata.last_updated_ms()), (2, now_ms));
    }
    assert_eq!(table.data_files(), ["new", "newer", "old"]);
    let first = table.metadata.snapshots().min_by_key(|snapshot| snapshot.sequence_number()).expect("has one");
    assert_eq!(first.schema_id(), Some(0), "the past keeps its columns");
}

#[test]
fn a_name_that_somebody_else_gave_to_another_field_stays_theirs() {
    let columns = &schema::of(SignalTable::Traces).columns;
    let mut table = Table::new();
    let mut json = serde_json::to_value(&table.metadata).expect("is JSON");
    let fields = json["schemas"][0]["fields"].as_array_mut().expect("is a list");
    let last = fields.len() - 1;
    fields[last]["id"] = 500_000.into();
    json["last-column-id"] = 500_000.into();
    table.metadata = serde_json::from_value(json).expect("parses");
    let change = Change { add: vec![file("a", 1)], add_columns: columns.clone(), ..Change::default() };
    table.commit(change, 10).expect("stages");
    assert_eq!(table.metadata.schemas_iter().count(), 1);
}
