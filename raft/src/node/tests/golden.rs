//! The golden directory of version 1 (`wal/tests/golden`), opened as a node opens it.

use std::path::Path;

use super::*;
use crate::codec;

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wal/tests/golden/v1").join(name);
    std::fs::read(path).expect("reads")
}

/// A machine with the golden log on its disk, and `snapshot` as that of group 1.
fn machine(snapshot: &[u8]) -> Machine {
    let machine = Machine::new();
    for name in ["metadata.json", "segments/000001.wal", "segments/000002.wal", "segments/000003.wal"] {
        let content = golden(&format!("wal/{name}"));
        machine.io.replace(&Path::new("/wal").join(name), &content).expect("writes");
    }
    machine.store.put(&[(b"snapshot/0000000001".as_slice(), snapshot)]).expect("puts");
    machine
}

#[tokio::test]
async fn version_1_opens_with_exactly_its_contents() {
    let machine = machine(&golden("snapshot-1"));
    // The second start reads what the first one made of it.
    for _ in 0..2 {
        let (groups, sink) = machine.start().await;
        let founding = groups.founding();
        assert_eq!((founding.cluster_id.as_str(), founding.store_id.as_str()), ("golden-cluster", "golden-store"));
        assert_eq!(founding.data_groups, 2);
        assert_eq!(groups.wal.disk_id(), "golden-v1");
        let rows = [((1, 7), "three"), ((1, 9), "four"), ((2, 2), "five"), ((2, 3), "six")];
        let rows: BTreeMap<(u32, u64), Bytes> =
            BTreeMap::from(rows.map(|(at, text)| (at, Bytes::from_static(text.as_bytes()))));
        assert_eq!(*sink.appended.lock().expect("lock"), rows);
        assert_eq!(sink.watermark.lock().expect("lock")[&1], 4);
        for (name, group) in [("acme", 1u32), ("globex", 2)] {
            let homes = groups.homes(&TenantId::new(name).expect("name"));
            assert_eq!(homes.iter().map(|home| home.id().0).collect::<Vec<_>>(), [group], "{name}");
        }
        // The window comes from the snapshot and from the log behind it.
        for (text, index) in [("one", 2), ("two", 3), ("three", 7)] {
            let written = write(&groups, text).await;
            assert!(written.deduplicated, "{text}");
            assert_eq!(written.position.index, index, "{text}");
        }
        groups.close().await;
    }
}

#[test]
fn a_snapshot_of_version_1_is_written_as_it_was() {
    let bytes = Bytes::from(golden("snapshot-1"));
    let (meta, state) = codec::decode_snapshot(&bytes).expect("decodes");
    let state = GroupState::decode(&state).expect("decodes");
    let tables: Vec<(String, u64, u64)> =
        state.tables.iter().map(|(id, table)| (id.to_string(), table.watermark, table.last_append)).collect();
    assert_eq!(tables, [("acme.production#1".to_owned(), 4, 2), ("acme.production#2".to_owned(), 4, 3)]);
    assert!(state.tables.values().all(|table| table.version == 1 && table.location.ends_with("/00001.json")));
    assert_eq!(state.dedup.len(), 2);
    assert_eq!(codec::encode_snapshot(&meta, &state.encode()), bytes);
}

#[tokio::test]
async fn a_snapshot_of_version_99_is_refused_by_name() {
    let mut snapshot = golden("snapshot-1");
    let head = u32::from_le_bytes(snapshot[..4].try_into().expect("four bytes"));
    snapshot[4 + head as usize] = 99;
    let machine = machine(&snapshot);
    let error = machine.try_start().await.expect_err("refuses").to_string();
    assert!(error.contains("group 1") && error.contains("snapshot format 99"), "{error}");
}
