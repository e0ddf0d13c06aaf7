use bytes::Bytes;

use super::*;
use crate::recovery::tests::{accept, quarantined};
use crate::sim::SimIo;
use crate::wal::tests::{DIR, append, check_holds, open, segment, try_open, wait};
use crate::{Durability, OpenError};

fn contents(io: &SimIo) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    io.paths().into_iter().map(|path| (path.clone(), io.read(&path).expect("reads"))).collect()
}

/// Two groups over several segments, closed.
fn filled() -> SimIo {
    let io = SimIo::new();
    let wal = open(&io, 1500);
    wait(|done| wal.save_vote(1, 7, Bytes::from_static(b"vote"), done)).expect("votes");
    for index in 1..=30 {
        append(&wal, 1, index..=index, Durability::Synced).expect("appends");
        append(&wal, 2, index..=index, Durability::Synced).expect("appends");
    }
    wait(|done| wal.purge_upto(2, 3, Bytes::from_static(b"id3"), done)).expect("purges");
    io
}

#[test]
fn inspection_lists_segments_and_groups_and_changes_nothing() {
    let io = filled();
    let before = contents(&io);
    let found = inspect(&io, Path::new(DIR)).expect("inspects");
    assert_eq!(contents(&io), before);
    assert!(found.sound && found.damages.is_empty() && found.torn.is_none() && found.disk_id == "disk-1");
    let one = &found.groups[&1];
    assert_eq!((one.first_index, one.last_index, one.last_term, one.vote_term), (Some(1), Some(30), Some(1), Some(7)));
    assert_eq!((found.groups[&2].first_index, found.groups[&2].purged_index), (Some(4), Some(3)));
    let sealed: Vec<bool> = found.segments.iter().map(|segment| segment.sealed).collect();
    assert!(
        sealed.len() > 2 && sealed[..sealed.len() - 1].iter().all(|sealed| *sealed) && sealed.last() == Some(&false)
    );
    let appends: u64 = found.segments.iter().filter_map(|segment| segment.records.get("append")).sum();
    assert_eq!(appends, 60);
    assert!(
        found.segments.iter().all(|segment| segment.records["checkpoint"] == 1 && segment.valid_bytes <= segment.bytes)
    );
    serde_json::to_string(&found).expect("is JSON");
}

/// Scenario: a bit flips in a sealed segment of the only voter.
/// Guarantees: the start names it and changes nothing; `repair` accepts it for the group that lost something, and tells
/// the next start once.
#[test]
fn a_single_voter_stops_until_the_loss_is_accepted() {
    let io = filled();
    let len = io.file_len(&segment(2)).expect("exists");
    io.flip(&segment(2), len / 4);
    // Nobody read it: the footer is trusted, an inspection is not.
    let found = inspect(&io, Path::new(DIR)).expect("inspects");
    assert!(!found.sound);
    let (group, lost) = found.groups.iter().find_map(|(group, info)| Some((*group, info.lost.clone()?))).expect("lost");
    assert_eq!(
        found.damages.iter().map(|damage| damage.record.map(|(group, _)| group)).collect::<Vec<_>>(),
        [Some(group)]
    );
    crate::suspects::save(&io, Path::new(DIR), &BTreeSet::from([2])).expect("marks");
    let before = contents(&io);
    let error = try_open(&io, 1500).expect_err("refuses");
    let text = error.to_string();
    assert!(matches!(&error, OpenError::Corrupt { segment: 2, groups, .. } if *groups == [group]), "{text}");
    assert!(text.contains(&format!("group {group} from entry {}", lost.first_lost_index)), "{text}");
    assert_eq!(contents(&io), before);

    let report = repair(Arc::new(io.clone()), Path::new(DIR)).expect("repairs");
    assert_eq!(report.lost, BTreeMap::from([(group, lost.clone())]));
    assert_eq!(report.copies, [Path::new(DIR).join("quarantine/000002.wal")]);
    serde_json::to_string(&report).expect("is JSON");
    let again = repair(Arc::new(io.clone()), Path::new(DIR)).expect("repairs");
    assert!(again.lost.is_empty() && again.damages.is_empty() && again.copies.is_empty());
    assert!(inspect(&io, Path::new(DIR)).expect("inspects").sound);

    let (wal, found) = accept(&io);
    assert!(quarantined(&found).is_empty());
    assert_eq!(found.groups[&group].accepted.as_ref(), Some(&lost));
    let first = if group == 2 { 4 } else { 1 };
    check_holds(&wal, group, first..=lost.first_lost_index - 1);
    check_holds(&wal, 3 - group, 5 - first..=30);
    drop(wal);
    let (_wal, found) = accept(&io);
    assert!(found.groups.values().all(|group| group.accepted.is_none()));
}
