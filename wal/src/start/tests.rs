use super::*;
use crate::found::{Found, TailKind};
use crate::record::Kind;
use crate::recovery::tests::{accept, quarantined};
use crate::recovery::{Depth, Item, recover};
use crate::sim::{Loss, SimIo};
use crate::wal::tests::{DIR, append, check_holds, open, segment, try_open, wait};
use crate::{Durability, Wal, WalError};

/// Small, so that everything is spread over segments.
const SEGMENT_BYTES: u64 = 1500;

fn vote(wal: &Wal, group: u32, term: u64) {
    wait(|done| wal.save_vote(group, term, Bytes::from(term.to_string()), done)).expect("votes");
}

fn vote_of(wal: &Wal, group: u32) -> Option<String> {
    wal.group_state(group).vote.map(|vote| String::from_utf8(vote).expect("text"))
}

/// Three groups of nine entries in one unsealed segment, all synced, and where each record of one entry begins.
fn filled(io: &SimIo) -> Vec<(u32, u64, usize)> {
    filled_to(io, 9)
}

fn filled_to(io: &SimIo, last: u64) -> Vec<(u32, u64, usize)> {
    let wal = open(io, 1 << 20);
    let mut records = Vec::new();
    for index in 1..=last {
        for group in 1..=3 {
            records.push((group, index, io.file_len(&segment(1)).expect("exists")));
            append(&wal, group, index..=index, Durability::Synced).expect("appends");
        }
    }
    vote(&wal, 1, 7);
    io.kill();
    records
}

fn offset_of(records: &[(u32, u64, usize)], group: u32, index: u64) -> usize {
    records.iter().find(|record| (record.0, record.1) == (group, index)).expect("was written").2
}

#[test]
fn a_damaged_payload_concerns_its_group() {
    let io = SimIo::new();
    let records = filled(&io);
    io.flip(&segment(1), offset_of(&records, 2, 5) + 80);
    let (wal, found) = accept(&io);
    let lost = quarantined(&found);
    assert_eq!(lost.keys().collect::<Vec<_>>(), [&2]);
    assert_eq!((lost[&2].first_lost_index, lost[&2].last_lost_index, lost[&2].segment), (5, Some(9), 1));
    assert_eq!(wal.torn_tail(), None);
    for (group, last) in [(1, 9), (2, 4), (3, 9)] {
        check_holds(&wal, group, 1..=last);
    }
    assert!(io.paths().contains(&Path::new(DIR).join("quarantine/000001.wal")));
    append(&wal, 2, 5..=6, Durability::Synced).expect("refilled");
    for _ in 0..2 {
        io.lose_power(Loss::All);
        let (wal, found) = accept(&io);
        assert_eq!(quarantined(&found), BTreeMap::new());
        assert_eq!(found.groups[&2].trust.as_deref(), Some(&b"recovering"[..]), "until the gate opens");
        check_holds(&wal, 2, 1..=6);
        check_holds(&wal, 3, 1..=9);
    }
}

#[test]
fn a_damaged_header_concerns_every_group_but_no_vote() {
    let io = SimIo::new();
    let records = filled(&io);
    io.flip(&segment(1), offset_of(&records, 2, 5) + 40);
    let (wal, found) = accept(&io);
    let first_lost = quarantined(&found).into_iter().map(|(group, lost)| (group, lost.first_lost_index));
    assert_eq!(first_lost.collect::<Vec<_>>(), [(1, 6), (2, 5), (3, 5)]);
    assert_eq!(vote_of(&wal, 1).as_deref(), Some("7"));
    check_holds(&wal, 1, 1..=5);
    append(&wal, 1, 6..=7, Durability::Synced).expect("refilled");
    io.kill();
    let (wal, found) = accept(&io);
    assert_eq!(quarantined(&found), BTreeMap::new());
    check_holds(&wal, 1, 1..=7);
    check_holds(&wal, 2, 1..=4);
}

/// Scenario: damage, debris of a torn write behind it, and a segment that an interrupted start left; the power fails
/// after each single change that the next start makes to the disk.
/// Guarantees: the start after that finds the same or what was decided, and no group trusts what it should not.
#[test]
fn power_fails_after_each_step_of_a_start() {
    let io = SimIo::new();
    let records = filled(&io);
    let (wal, _) = accept(&io);
    append(&wal, 1, 10..=10, Durability::Synced).expect("appends");
    append(&wal, 1, 11..=11, Durability::Written).expect("appends");
    io.kill();
    drop(wal);
    io.flip(&segment(1), offset_of(&records, 2, 5) + 80);
    let end = io.file_len(&segment(2)).expect("exists");
    io.flip(&segment(2), end - 1);
    io.replace(&segment(3).with_added_extension("tmp"), b"SDB1 torn").expect("writes");
    io.lose_power(Loss::KeepPrefix(usize::MAX));
    let (_wal, first) = accept(&io.fork());
    assert_eq!(first.torn.as_ref().map(|torn| torn.kind), Some(TailKind::Bad));
    assert_eq!(quarantined(&first).keys().collect::<Vec<_>>(), [&2]);
    for loss in [Loss::All, Loss::KeepPrefix(100), Loss::ZerosAfter(100)] {
        let mut steps = 0;
        loop {
            let io = io.fork();
            io.fail_after(Some(steps));
            let decide = |found: &Found| {
                assert_eq!(found, &first);
                Ok(found.groups.keys().map(|group| (*group, Bytes::from_static(b"recovering"))).collect())
            };
            let config = crate::wal::tests::config(1 << 20);
            let opened = Wal::open(std::sync::Arc::new(io.clone()), Path::new(DIR), config, "disk-1", decide);
            let done = opened.is_ok();
            io.lose_power(loss);
            drop(opened);
            io.fail_after(None);
            let (wal, again) = accept(&io);
            let decided = again.groups[&1].trust.is_some();
            assert!(decided || again == first, "after {steps} steps and {loss:?}: {again:?}");
            assert!(!decided || again.torn.is_none() && quarantined(&again).is_empty(), "{again:?}");
            for (group, last) in [(1, 10), (2, 4), (3, 9)] {
                check_holds(&wal, group, 1..=last);
            }
            assert_eq!(vote_of(&wal, 1).as_deref(), Some("7"));
            assert!(!io.paths().iter().any(|path| path.extension().is_some_and(|end| end == "tmp")));
            steps += 1;
            if done {
                assert!(decided && steps > 5, "{steps} steps");
                break;
            }
        }
    }
}

/// Guarantees: a vote that reached only the second copy counts, and so does the newer of two in one term.
#[test]
fn a_vote_that_is_only_in_the_file_counts() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    vote(&wal, 1, 3);
    let first = io.file_len(&segment(1)).expect("exists");
    vote(&wal, 1, 5);
    io.kill();
    drop(wal);
    // As if the disk had lied about the log: cut it before the second vote.
    io.cut(&segment(1), first);
    let (wal, found) = accept(&io);
    assert_eq!(vote_of(&wal, 1).as_deref(), Some("5"));
    assert!(found.groups[&1].quarantined.is_some(), "the file knows that the log was longer");
    wait(|done| wal.save_vote(1, 5, Bytes::from_static(b"5, committed"), done)).expect("votes");
    io.lose_power(Loss::All);
    drop(wal);
    for _ in 0..2 {
        let wal = open(&io, 1 << 20);
        assert_eq!(vote_of(&wal, 1).as_deref(), Some("5, committed"));
        io.kill();
    }
}

/// Scenario: the second copy knows a vote whose record was lost with batches that are given out again.
/// Guarantees: a later vote of the same term is the newer one.
#[test]
fn a_vote_from_the_file_does_not_outlive_its_successor() {
    let io = SimIo::new();
    drop(open(&io, 1 << 20));
    let lost = crate::votes::SavedVote { term: 5, batch: 500, bytes: b"5, for 2".to_vec() };
    let votes = Votes { flushed: 0, oldest: 1, groups: BTreeMap::from([(1, lost)]) };
    votes.save(&io, Path::new(DIR)).expect("saves");
    let wal = open(&io, 1 << 20);
    assert_eq!(vote_of(&wal, 1).as_deref(), Some("5, for 2"));
    wait(|done| wal.save_vote(1, 5, Bytes::from_static(b"5, committed"), done)).expect("votes");
    io.kill();
    drop(wal);
    assert_eq!(vote_of(&open(&io, 1 << 20), 1).as_deref(), Some("5, committed"));
}

#[test]
fn a_vote_that_may_be_lost_stops_every_start() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    let at = io.file_len(&segment(1)).expect("exists");
    vote(&wal, 1, 3);
    append(&wal, 2, 1..=2, Durability::Synced).expect("appends");
    io.kill();
    drop(wal);
    io.flip(&segment(1), at + 72);
    let intact = io.fork();
    assert_eq!(vote_of(&accept(&intact).0, 1).as_deref(), Some("3"), "the copy is as good");
    io.remove(&Path::new(DIR).join("votes")).expect("removes");
    let decide = |_: &Found| Ok(BTreeMap::new());
    let config = crate::wal::tests::config(1 << 20);
    let opened = Wal::open(std::sync::Arc::new(io.clone()), Path::new(DIR), config, "disk-1", decide);
    let error = opened.expect_err("refuses").to_string();
    assert!(error.contains("votes may be lost") && error.contains("segment 000001"), "{error}");
    let report = crate::repair(std::sync::Arc::new(io.clone()), Path::new(DIR)).expect("repairs");
    assert_eq!(report.lost_votes.into_iter().collect::<Vec<_>>(), [1]);
    let (wal, found) = accept(&io);
    assert!(found.groups[&1].accepted.is_some() && found.groups[&2].accepted.is_none());
    check_holds(&wal, 2, 1..=2);
}

/// Guarantees: a read that finds damage in a sealed segment makes the next start look at all of it.
#[test]
fn damage_at_rest_is_found_by_a_read_and_quarantined_by_the_next_start() {
    let io = SimIo::new();
    let wal = open(&io, SEGMENT_BYTES);
    for index in 1..=60u64 {
        append(&wal, 1 + index as u32 % 2, index.div_ceil(2)..=index.div_ceil(2), Durability::Synced).expect("appends");
    }
    drop(wal);
    assert!(io.paths().contains(&segment(3)));
    let mut end = 0;
    let find = |number, items: &[Item]| {
        let entry = items.iter().find(|item| number == 2 && item.is_sound(Kind::Append));
        end = entry.map_or(end, Item::end);
    };
    recover(&io, Path::new(DIR), Depth::Start, find).expect("reads");
    io.flip(&segment(2), usize::try_from(end).expect("fits") - 1);
    let wal = open(&io, SEGMENT_BYTES);
    let damaged = [1, 2].map(|group| wal.read(group, 1..=30, usize::MAX));
    let failed = damaged.iter().filter(|read| matches!(read, Err(WalError::Read { segment: 2, .. }))).count();
    assert_eq!(failed, 1, "{damaged:?}");
    io.kill();
    drop(wal);
    let error = try_open(&io, SEGMENT_BYTES).expect_err("refuses").to_string();
    assert!(error.contains("segment 000002") && error.contains("repair --accept-data-loss"), "{error}");
    let (wal, found) = accept(&io);
    let lost = quarantined(&found);
    let (group, lost) = lost.first_key_value().expect("one is damaged");
    check_holds(&wal, *group, 1..=lost.first_lost_index - 1);
    check_holds(&wal, 3 - group, 1..=30);
    append(&wal, *group, lost.first_lost_index..=40, Durability::Synced).expect("refilled");
    io.kill();
    drop(wal);
    let (wal, found) = accept(&io);
    assert_eq!(quarantined(&found), BTreeMap::new());
    check_holds(&wal, *group, 1..=40);
}

#[test]
fn a_sector_that_cannot_be_read_is_damage_and_not_a_torn_write() {
    let io = SimIo::new();
    let records = filled_to(&io, 100);
    let at = offset_of(&records, 2, 60) + 75;
    assert!(at > 8192, "the segment begins with another sector");
    io.make_unreadable(&segment(1), at..at + 1);
    let (wal, found) = accept(&io);
    assert!(found.torn.is_none() && quarantined(&found).contains_key(&2));
    assert!(wal.group_state(2).range.is_none_or(|(_, last)| last < 60));
}

/// Opens as far as `changes` of the disk go, with every group recovering; whether that was all the way.
fn start_cut_off(io: &SimIo, changes: u64) -> bool {
    io.fail_after(Some(changes));
    let decide =
        |found: &Found| Ok(found.groups.keys().map(|group| (*group, Bytes::from_static(b"recovering"))).collect());
    let config = crate::wal::tests::config(1 << 20);
    let opened = Wal::open(std::sync::Arc::new(io.clone()), Path::new(DIR), config, "disk-1", decide);
    let done = opened.is_ok();
    io.kill();
    drop(opened);
    io.fail_after(None);
    done
}

/// A segment of more than two blocks, and where its last record begins. All of it is synced, and of the last record nobody knows.
fn filled_beyond_what_is_known(io: &SimIo) -> usize {
    let wal = open(io, 1 << 20);
    append(&wal, 2, 1..=3, Durability::Synced).expect("appends");
    for index in 1..=150 {
        append(&wal, 1, index..=index, Durability::Synced).expect("appends");
    }
    let at = io.file_len(&segment(1)).expect("exists");
    append(&wal, 1, 151..=151, Durability::Synced).expect("appends");
    io.kill();
    assert!(at > 2 * 4096, "{at}");
    at
}

/// Scenario: the disk does not return the last records, which are synced; a start is killed after each of its changes, one of
/// which writes the segment anew.
/// Guarantees: no later start takes what is missing for a torn write.
#[test]
fn what_could_not_be_read_stays_damage_when_the_start_is_killed() {
    let io = SimIo::new();
    let at = filled_beyond_what_is_known(&io);
    io.make_unreadable(&segment(1), at..at + 1);
    let (_wal, first) = accept(&io.fork());
    assert!(first.torn.is_none() && quarantined(&first).contains_key(&1), "{first:?}");
    for changes in 0.. {
        let io = io.fork();
        let done = start_cut_off(&io, changes);
        let (_wal, again) = accept(&io);
        let decided = again.groups[&1].trust.is_some();
        assert!(decided || again == first, "after {changes} changes: {again:?}");
        if done {
            assert!(decided && changes > 2, "{changes} changes");
            break;
        }
    }
}

/// Scenario: a bad disk was copied, and what could not be read of the newest segment was filled as
/// docs/deployment/wal-persistence.md says: one sector, or all from one on, which may be a short one.
/// Guarantees: the start finds damage there, as on the disk itself.
#[test]
fn what_a_copy_has_filled_is_damage() {
    let io = SimIo::new();
    let at = filled_beyond_what_is_known(&io);
    let content = io.read(&segment(1)).expect("reads").expect("exists");
    let sector = at / 512 * 512;
    for (from, to) in [(sector, sector + 512), (sector - 512, sector), (sector, content.len()), (4096, content.len())] {
        let (io, mut content, to) = (io.fork(), content.clone(), to.min(content.len()));
        content[from..to].fill(0xEE);
        io.replace(&segment(1), &content).expect("writes");
        let found = accept(&io).1;
        assert!(found.torn.is_none() && quarantined(&found).contains_key(&1), "{from} to {to}: {found:?}");
    }
}

/// Scenario: a log with damage, on a disk that has room for what a start writes; the start is killed after each of its changes.
/// Guarantees: what it leaves takes no room from the next one.
#[test]
fn a_start_needs_no_more_room_because_one_before_it_was_killed() {
    let io = SimIo::new();
    let records = filled_to(&io, 100);
    io.flip(&segment(1), offset_of(&records, 2, 5) + 80);
    let len = io.file_len(&segment(1)).expect("exists") as u64;
    assert!(len > 4 * 4096, "{len}");
    // A copy of the damaged segment, the same segment anew, and a little for the next one.
    io.set_capacity(Some(io.used_bytes() + 2 * len + 4096));
    for changes in 0.. {
        let io = io.fork();
        let done = start_cut_off(&io, changes);
        check_holds(&accept(&io).0, 2, 1..=4);
        assert!(!io.paths().iter().any(|path| path.extension().is_some_and(|end| end == "tmp")), "{changes} changes");
        if done {
            assert!(changes > 2, "{changes} changes");
            break;
        }
    }
}

#[test]
fn a_newest_segment_whose_first_sector_cannot_be_read_is_damage() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    append(&wal, 1, 1..=3, Durability::Synced).expect("appends");
    io.kill();
    drop(wal);
    io.make_unreadable(&segment(1), 0..1);
    let error = try_open(&io, 1 << 20).expect_err("a single node stops").to_string();
    assert!(error.contains("segment 000001") && error.contains("repair --accept-data-loss"), "{error}");
    let (wal, found) = accept(&io);
    assert!(found.torn.is_none() && found.unlisted.is_some(), "{found:?}");
    append(&wal, 1, 1..=3, Durability::Synced).expect("refilled");
    io.kill();
    drop(wal);
    let (wal, found) = accept(&io);
    assert_eq!((quarantined(&found), found.unlisted), (BTreeMap::new(), None));
    check_holds(&wal, 1, 1..=3);
}

/// Scenario: a segment was just begun, by a rotation or by a start, and holds one synced record, when two of its bits flip,
/// or it loses its end.
/// Guarantees: it is taken for damaged, never for one whose start was interrupted, nor for one that held nothing yet.
#[test]
fn damage_of_a_segment_that_was_just_begun_is_never_silent() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 10);
    vote(&wal, 2, 3);
    for index in 1.. {
        append(&wal, 1, index..=index, Durability::Synced).expect("appends");
        if io.paths().contains(&segment(2)) {
            break;
        }
    }
    io.kill();
    drop(wal);
    check_damage_of_segment_2(&io);

    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    vote(&wal, 2, 3);
    append(&wal, 1, 1..=2, Durability::Synced).expect("appends");
    io.kill();
    drop(wal);
    let wal = open(&io, 1 << 20);
    append(&wal, 1, 3..=3, Durability::Synced).expect("appends");
    io.kill();
    drop(wal);
    check_damage_of_segment_2(&io);
}

fn check_damage_of_segment_2(io: &SimIo) {
    let (mut record, mut preamble) = (0, Vec::new());
    let find = |number, items: &[Item]| {
        if number == 2 {
            let offset = |item: &Item| item.end() - item.header().expect("is sound").record_len();
            let (last, before) = items.split_last().expect("holds records");
            record = usize::try_from(offset(last)).expect("fits");
            preamble = before.iter().map(|item| usize::try_from(offset(item)).expect("fits")).collect();
        }
    };
    recover(io, Path::new(DIR), Depth::Full, find).expect("reads");
    assert!(preamble.len() >= 3, "{preamble:?}");
    for flipped in preamble {
        let io = io.fork();
        io.flip(&segment(2), flipped + 30);
        io.flip(&segment(2), record + 30);
        let found = accept(&io).1;
        let told =
            quarantined(&found).contains_key(&1) || found.torn.as_ref().is_some_and(|torn| torn.kind == TailKind::Bad);
        assert!(told, "flips at {flipped} and {record}: {found:?}");
    }
    for len in 0..record {
        let io = io.fork();
        io.cut(&segment(2), len);
        let found = accept(&io).1;
        assert!(quarantined(&found).contains_key(&1) && found.torn.is_none(), "cut to {len}: {found:?}");
    }
}

/// What docs/deployment/wal-persistence.md says about such a segment on a single node.
#[test]
fn a_repair_goes_on_past_a_newest_segment_whose_first_sector_cannot_be_read() {
    let io = SimIo::new();
    filled_to(&io, 100);
    io.make_unreadable(&segment(1), 0..1);
    // Before a repair and after it, the command reads whose entries they are.
    let readable = || crate::readable_entries(&io, Path::new(DIR), |_, index, _| index).expect("reads what is there");
    assert!(readable().get(&1).is_some_and(|entries| entries.contains_key(&100)));
    let report = crate::repair(std::sync::Arc::new(io.clone()), Path::new(DIR)).expect("repairs");
    assert!(!report.lost.is_empty() && report.copies.len() == 1, "{report:?}");
    readable();
    let (wal, found) = accept(&io);
    assert!(found.torn.is_none());
    vote(&wal, 1, 8);
    assert_eq!(vote_of(&wal, 1).as_deref(), Some("8"));
}

/// Scenario: in a start of a log of several segments one read after the other fails, alone or with the next few.
/// Guarantees: the start stops, or it names the groups that it lost entries of; the next one, on a disk that can be read,
/// has all that was not named.
#[test]
fn reads_that_fail_at_any_point_of_a_start_take_nothing_in_silence() {
    let io = SimIo::new();
    let wal = open(&io, SEGMENT_BYTES);
    vote(&wal, 1, 7);
    for index in 1..=30 {
        append(&wal, 1, index..=index, Durability::Synced).expect("appends");
        append(&wal, 2, index..=index, Durability::Written).expect("appends");
    }
    io.kill();
    drop(wal);
    assert!(io.paths().contains(&segment(3)));
    let (mut stopped, mut named) = (0, 0);
    for failing in 1..=3 {
        for reads in 0.. {
            let io = io.fork();
            io.fail_reads(reads, failing);
            let mut lost = BTreeMap::new();
            let decide = |found: &Found| {
                lost = quarantined(found);
                Ok(found.groups.keys().map(|group| (*group, Bytes::from_static(b"recovering"))).collect())
            };
            let config = crate::wal::tests::config(SEGMENT_BYTES);
            let opened = Wal::open(std::sync::Arc::new(io.clone()), Path::new(DIR), config, "disk-1", decide);
            let reached = io.mend_reads();
            if opened.is_err() {
                stopped += 1;
                lost.clear();
            }
            named += lost.len();
            io.kill();
            drop(opened);
            let (wal, _) = accept(&io);
            for group in [1, 2] {
                let last = wal.group_state(group).range.map_or(0, |(_, last)| last);
                let whole = last == 30 || (lost.contains_key(&group) && last < 30);
                assert!(whole, "group {group} ends at {last} after {failing} failures behind {reads} reads");
                if last > 0 {
                    check_holds(&wal, group, 1..=last);
                }
            }
            assert_eq!(vote_of(&wal, 1).as_deref(), Some("7"), "{failing} failures behind {reads} reads");
            if !reached {
                break;
            }
        }
    }
    assert!(stopped > 0 && named > 0, "{stopped} starts stopped, {named} groups were named");
}

/// Guarantees: what a failed fdatasync was about is written anew by the next start, and only then counts as on disk.
#[test]
fn what_a_failed_sync_dropped_survives_a_start_and_a_power_loss() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    append(&wal, 1, 1..=3, Durability::Synced).expect("appends");
    append(&wal, 1, 4..=6, Durability::Written).expect("appends");
    io.fail_one_sync();
    append(&wal, 1, 7..=7, Durability::Synced).expect_err("fails");
    io.kill();
    drop(wal);
    let wal = open(&io, 1 << 20);
    let last = wal.group_state(1).range.map_or(0, |(_, last)| last);
    assert!(last >= 6, "{last}");
    append(&wal, 1, last + 1..=last + 1, Durability::Synced).expect("appends");
    io.lose_power(Loss::All);
    drop(wal);
    check_holds(&open(&io, 1 << 20), 1, 1..=last + 1);
}

#[test]
fn copies_of_damaged_segments_are_bounded() {
    let io = SimIo::new();
    for index in 1..=8 {
        let (wal, _) = accept(&io);
        let newest = io.paths().into_iter().rfind(|path| path.starts_with("/wal/segments")).expect("exists");
        let at = io.file_len(&newest).expect("exists");
        append(&wal, index, 1..=1, Durability::Synced).expect("appends");
        drop(wal);
        io.flip(&newest, at + 75);
    }
    drop(accept(&io));
    assert_eq!(io.list(&Path::new(DIR).join("quarantine")).expect("lists").len(), QUARANTINE_FILES_MAX);
}

#[test]
fn identity_is_read_from_the_segments_when_it_is_lost_and_never_exchanged() {
    let io = SimIo::new();
    let metadata = Path::new(DIR).join("metadata.json");
    drop(open(&io, 1 << 20));
    io.remove(&metadata).expect("removes");
    let config = crate::wal::tests::config(1 << 20);
    let other = Wal::open(std::sync::Arc::new(io.clone()), Path::new(DIR), config, "other", crate::keep_trust);
    assert_eq!(other.expect("opens").disk_id(), "disk-1");
    io.replace(&metadata, br#"{"format": 1, "disk_id": "disk-2"}"#).expect("writes");
    let error = try_open(&io, 1 << 20).expect_err("refuses").to_string();
    assert!(error.contains("disk-1") && error.contains("disk-2"), "{error}");
}

/// Guarantees: what one place in a preamble says is elsewhere too.
#[test]
fn one_bad_place_in_a_preamble_or_a_footer_takes_nothing() {
    let io = SimIo::new();
    let wal = open(&io, SEGMENT_BYTES);
    for index in 1..=20 {
        append(&wal, 1, index..=index, Durability::Synced).expect("appends");
    }
    vote(&wal, 1, 7);
    wait(|done| wal.save_trust(2, Bytes::from_static(b"trusted"), Durability::Synced, Some(done))).expect("trusts");
    wait(|done| wal.purge_upto(1, 2, Bytes::from_static(b"id2"), done)).expect("purges");
    drop(wal);
    let wal = open(&io, 1 << 20);
    append(&wal, 1, 21..=22, Durability::Synced).expect("appends");
    append(&wal, 3, 1..=2, Durability::Synced).expect("appends");
    drop(wal);
    let mut places = Vec::new();
    let find = |number, items: &[Item]| {
        let checkpoint = items.iter().position(|item| item.is_sound(Kind::Checkpoint)).expect("is held");
        places.push((number, 0, items[checkpoint].end()));
        if let Some(footer) = items.iter().position(|item| item.is_sound(Kind::Footer)) {
            places.push((number, items[footer - 1].end(), items[footer].end()));
        }
    };
    recover(&io, Path::new(DIR), Depth::Full, find).expect("reads");
    assert_eq!(places.len(), 4, "three preambles and a footer: {places:?}");
    for at in places.into_iter().flat_map(|(number, from, to)| (from..to).step_by(7).map(move |at| (number, at))) {
        let io = io.fork();
        io.flip(&segment(at.0), usize::try_from(at.1).expect("fits"));
        let marked = crate::suspects::save(&io, Path::new(DIR), &std::collections::BTreeSet::from([at.0]));
        marked.expect("marks");
        let wal = try_open(&io, 1 << 20).unwrap_or_else(|error| panic!("flip at {at:?}: {error}"));
        check_holds(&wal, 1, 3..=22);
        check_holds(&wal, 3, 1..=2);
        assert_eq!(vote_of(&wal, 1).as_deref(), Some("7"), "flip at {at:?}");
        assert_eq!(wal.group_state(2).trust.as_deref(), Some(&b"trusted"[..]), "flip at {at:?}");
    }
}

/// Guarantees: what was cut off does not come back with the seal that cut it.
#[test]
fn debris_stays_out_when_its_seal_is_damaged() {
    let io = SimIo::new();
    filled(&io);
    let (wal, _) = accept(&io);
    append(&wal, 1, 10..=10, Durability::Written).expect("appends");
    let at = io.file_len(&segment(2)).expect("exists");
    append(&wal, 2, 10..=10, Durability::Written).expect("appends");
    append(&wal, 3, 10..=10, Durability::Written).expect("appends");
    io.kill();
    drop(wal);
    io.flip(&segment(2), at + 75);
    let wal = open(&io, 1 << 20);
    check_holds(&wal, 3, 1..=9);
    append(&wal, 2, 10..=12, Durability::Synced).expect("appends");
    io.kill();
    drop(wal);
    for at in [5, 40, 75] {
        let io = io.fork();
        io.flip(&segment(3), at);
        let wal = open(&io, 1 << 20);
        check_holds(&wal, 1, 1..=10);
        check_holds(&wal, 2, 1..=12);
        check_holds(&wal, 3, 1..=9);
    }
}
