//! `golden/v1` is a data directory as the first released format wrote it (`golden/write_v1.py`): every later commit opens
//! it and finds the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use signaldb_wal::record::{HEADER_BYTES, Header, SegmentStart};
use signaldb_wal::{GroupState, OpenError, RealIo, Wal, WalConfig, keep_trust, readable_entries};
use tempfile::TempDir;

/// `expected.json`; byte strings are hex.
#[derive(Debug, Deserialize)]
struct Expected {
    disk_id: String,
    groups: BTreeMap<u32, Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    vote: String,
    committed: String,
    purged: Option<(u64, String)>,
    trust: Option<String>,
    entries: BTreeMap<u64, String>,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

/// A copy to work on: a start begins a segment of its own.
fn copy() -> TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    fs::create_dir(dir.path().join("segments")).expect("creates");
    for name in ["metadata.json", "segments/000001.wal", "segments/000002.wal", "segments/000003.wal"] {
        fs::copy(golden().join("wal").join(name), dir.path().join(name)).expect("copies");
    }
    dir
}

fn open(dir: &Path) -> Result<Wal, OpenError> {
    Wal::open(Arc::new(RealIo), dir, WalConfig::default(), "another disk", keep_trust)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every file below `dir` with its content.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("lists") {
        let path = entry.expect("lists").path();
        if path.is_dir() {
            out.extend(files(&path));
        } else {
            out.insert(path.clone(), fs::read(&path).expect("reads"));
        }
    }
    out
}

impl Group {
    fn check(&self, wal: &Wal, number: u32) {
        let state = wal.group_state(number);
        assert_eq!(state.vote.as_deref().map(hex), Some(self.vote.clone()), "vote of group {number}");
        assert_eq!(state.committed.as_deref().map(hex), Some(self.committed.clone()), "committed of group {number}");
        assert_eq!(state.purged.map(|(index, id)| (index, hex(&id))), self.purged, "purged of group {number}");
        let trust = state.trust.map(|trust| String::from_utf8_lossy(&trust).into_owned());
        assert_eq!(trust, self.trust, "trust of group {number}");
        let (first, last) = state.range.expect("every group holds entries");
        let held = wal.read(number, first..=last, usize::MAX).expect("reads");
        let held: BTreeMap<u64, String> = held.into_iter().map(|(index, bytes)| (index, hex(&bytes))).collect();
        assert_eq!(held, self.entries, "entries of group {number}");
    }
}

fn expected() -> Expected {
    let expected = fs::read_to_string(golden().join("expected.json")).expect("reads");
    serde_json::from_str(&expected).expect("parses")
}

#[test]
fn version_1_opens_with_exactly_its_contents() {
    let expected = expected();
    let dir = copy();
    // The second start reads what the first one made of it.
    for _ in 0..2 {
        let wal = open(dir.path()).expect("opens");
        assert_eq!(wal.disk_id(), expected.disk_id);
        assert_eq!(wal.torn_tail(), None);
        assert_eq!(expected.groups.len(), 3);
        for (number, group) in &expected.groups {
            group.check(&wal, *number);
        }
        assert_eq!(wal.group_state(3), GroupState::default(), "there is no fourth group");
    }
}

fn readable(dir: &Path) -> BTreeMap<u32, BTreeMap<u64, String>> {
    readable_entries(&RealIo, dir, |_, _, bytes| hex(&bytes)).expect("reads")
}

#[test]
fn entries_of_version_1_are_readable_without_a_start_and_behind_damage() {
    let dir = copy();
    let mut expected: BTreeMap<u32, BTreeMap<u64, String>> =
        expected().groups.into_iter().map(|(number, group)| (number, group.entries)).collect();
    assert_eq!(readable(dir.path()), expected);
    // The first entry of group 2 that a client sent, in a record with the two before it.
    let path = dir.path().join("segments/000001.wal");
    let mut content = fs::read(&path).expect("reads");
    let at = content.windows(4).position(|bytes| bytes == b"five").expect("is there");
    content[at] ^= 1;
    fs::write(&path, &content).expect("writes");
    let before = files(dir.path());
    expected.get_mut(&2).expect("group 2").retain(|index, _| *index > 2);
    assert_eq!(readable(dir.path()), expected);
    assert_eq!(files(dir.path()), before, "looking changes nothing");
}

/// The start names `path` and both versions, and leaves everything as it is.
fn check_refused(dir: &Path, path: &Path) {
    let before = files(dir);
    let error = open(dir).expect_err("refuses");
    let named = matches!(&error, OpenError::Format { path: named, found: 99, supported: 1 } if named == path);
    assert!(named, "{error:?}");
    let text = error.to_string();
    assert!(text.contains("99") && text.contains(&path.display().to_string()), "{text}");
    assert_eq!(files(dir), before);
}

#[test]
fn metadata_of_version_99_is_refused_by_name() {
    let dir = copy();
    let path = dir.path().join("metadata.json");
    let content = fs::read_to_string(&path).expect("reads").replace("\"format\": 1", "\"format\": 99");
    fs::write(&path, content).expect("writes");
    check_refused(dir.path(), &path);
}

#[test]
fn a_segment_of_version_99_is_refused_by_name() {
    // A sealed one, and the last one.
    for name in ["000001.wal", "000003.wal"] {
        let dir = copy();
        let path = dir.path().join("segments").join(name);
        let content = fs::read(&path).expect("reads");
        fs::write(&path, with_version_99(&content)).expect("writes");
        check_refused(dir.path(), &path);
    }
}

fn with_version_99(segment: &[u8]) -> Vec<u8> {
    let header = Header::decode(segment).expect("begins with a record");
    let (head, rest) = segment.split_at(usize::try_from(header.record_len()).expect("small"));
    let mut start: SegmentStart = serde_json::from_slice(&head[HEADER_BYTES..]).expect("parses");
    start.format = 99;
    let payload = serde_json::to_vec(&start).expect("plain JSON");
    let header = Header { payload_len: payload.len() as u32, payload_crc: crc32c::crc32c(&payload), ..header };
    [header.encode().as_slice(), payload.as_slice(), rest].concat()
}
