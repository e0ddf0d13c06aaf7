use iceberg::spec::{DataContentType, DataFileBuilder, DataFileFormat, FormatVersion, Literal, ManifestList, Struct};
use signaldb_signals::SignalTable;

use super::*;
use crate::table::new_table;

const HOUR: i64 = 3_600_000;

fn file(name: &str, rows: u64) -> DataFile {
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_path(name.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::from_iter([Some(Literal::date(0))]))
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
        self.commits += 1;
        let manifests = self.manifests();
        let load = |manifest: &ManifestFile| {
            let content = Manifest::parse_avro(&self.files[&manifest.manifest_path]).expect("parses");
            (manifest.manifest_path.clone(), content)
        };
        let loaded = manifests_to_load(&manifests).into_iter().map(load).collect();
        let base = Base { metadata: &self.metadata, location: &self.location, manifests, loaded };
        let change = Change {
            add: vec![file],
            set_properties: HashMap::from([("mark".to_owned(), self.commits.to_string())]),
            summary: HashMap::from([("mark".to_owned(), self.commits.to_string())]),
        };
        let seeds = Seeds {
            snapshot_id: i64::try_from(self.commits).expect("small"),
            commit: uuid::Uuid::from_u128(self.commits),
            metadata: uuid::Uuid::from_u128(self.commits),
            now_ms,
        };
        let staged = next_metadata(base, change, seeds).expect("stages");
        assert_eq!(staged.version, i64::try_from(self.commits).expect("small"));
        self.files.extend(staged.files);
        self.metadata = staged.metadata;
        self.location = staged.location;
    }

    fn data_files(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .manifests()
            .iter()
            .flat_map(|manifest| {
                let content = Manifest::parse_avro(&self.files[&manifest.manifest_path]).expect("parses");
                content.entries().iter().map(|entry| entry.file_path().to_owned()).collect::<Vec<_>>()
            })
            .collect();
        names.sort();
        names
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
