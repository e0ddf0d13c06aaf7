use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::found::{TailKind, keep_trust};
use crate::io::RealIo;
use crate::recovery::segment_path;
use crate::sim::{Loss, SimIo};

pub(crate) const DIR: &str = "/wal";

pub(crate) fn config(segment_bytes_max: u64) -> WalConfig {
    WalConfig { segment_bytes_max, sync_interval: Duration::from_secs(3600), ..WalConfig::default() }
}

pub(crate) fn open(io: &SimIo, segment_bytes_max: u64) -> Wal {
    try_open(io, segment_bytes_max).expect("opens")
}

pub(crate) fn try_open(io: &SimIo, segment_bytes_max: u64) -> Result<Wal, OpenError> {
    Wal::open(Arc::new(io.clone()), Path::new(DIR), config(segment_bytes_max), "disk-1", keep_trust)
}

fn entry(index: u64) -> AppendEntry {
    AppendEntry { index, term: 1, bytes: Bytes::from(format!("entry {index}")) }
}

pub(crate) fn append(
    wal: &Wal,
    group: u32,
    range: RangeInclusive<u64>,
    durability: Durability,
) -> Result<(), WalError> {
    let entries: Vec<AppendEntry> = range.map(entry).collect();
    wait(|done| wal.append(group, &entries, durability, done))
}

pub(crate) fn wait(act: impl FnOnce(Callback)) -> Result<(), WalError> {
    let (sender, receiver) = mpsc::channel();
    act(Box::new(move |outcome| drop(sender.send(outcome))));
    receiver.recv_timeout(Duration::from_secs(30)).expect("the log answers")
}

pub(crate) fn check_holds(wal: &Wal, group: u32, range: RangeInclusive<u64>) {
    let (first, last) = (*range.start(), *range.end());
    assert_eq!(wal.group_state(group).range, Some((first, last)));
    let held = wal.read(group, range.clone(), usize::MAX).expect("reads");
    let expected: Vec<(u64, Bytes)> = range.map(|index| (index, entry(index).bytes)).collect();
    assert_eq!(held, expected);
}

pub(crate) fn segment(number: u64) -> PathBuf {
    segment_path(&Path::new(DIR).join("segments"), number)
}

#[test]
fn unsynced_bytes_and_their_age_end_with_the_sync() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    append(&wal, 1, 1..=1, Durability::Written).expect("appends");
    let behind = wal.stats();
    assert!(behind.unsynced_bytes > 0 && behind.sync_lag > Duration::ZERO, "{behind:?}");
    append(&wal, 1, 2..=2, Durability::Synced).expect("appends");
    let synced = wal.stats();
    assert_eq!((synced.unsynced_bytes, synced.sync_lag), (0, Duration::ZERO));
}

#[test]
fn what_was_appended_is_read_before_and_after_a_restart() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    append(&wal, 1, 1..=3, Durability::Synced).expect("appends");
    append(&wal, 2, 1..=1, Durability::Synced).expect("appends");
    append(&wal, 1, 4..=9, Durability::Written).expect("appends");
    wait(|done| wal.save_vote(1, 7, Bytes::from_static(b"vote"), done)).expect("votes");
    wal.save_committed(1, Bytes::from_static(b"committed"));
    check_holds(&wal, 1, 1..=9);
    drop(wal);
    let wal = open(&io, 1 << 20);
    check_holds(&wal, 1, 1..=9);
    check_holds(&wal, 2, 1..=1);
    let state = wal.group_state(1);
    assert_eq!(state.vote.as_deref(), Some(&b"vote"[..]));
    assert_eq!(state.committed.as_deref(), Some(&b"committed"[..]));
    assert_eq!(wal.torn_tail(), None);
}

#[test]
fn reads_honour_the_byte_budget_but_return_at_least_one() {
    let wal = open(&SimIo::new(), 1 << 20);
    append(&wal, 1, 1..=9, Durability::Written).expect("appends");
    assert_eq!(wal.read(1, 2..=9, 0).expect("reads").len(), 1);
    assert_eq!(wal.read(1, 2..=9, 15).expect("reads").len(), 2);
    assert!(matches!(wal.read(1, 10..=12, 100), Err(WalError::Missing { first: 1, last: 9, .. })));
}

#[test]
fn synced_entries_survive_power_loss_and_a_torn_tail_is_never_appended_behind() {
    for loss in [Loss::All, Loss::KeepPrefix(20), Loss::KeepPrefix(80), Loss::ZerosAfter(0), Loss::ZerosAfter(75)] {
        let io = SimIo::new();
        let wal = open(&io, 1 << 20);
        append(&wal, 1, 1..=3, Durability::Synced).expect("appends");
        append(&wal, 1, 4..=6, Durability::Written).expect("appends");
        io.lose_power(loss);
        drop(wal);
        let wal = open(&io, 1 << 20);
        check_holds(&wal, 1, 1..=3);
        assert_eq!(wal.torn_tail().is_some(), loss != Loss::All, "{loss:?}");
        append(&wal, 1, 4..=5, Durability::Synced).expect("appends");
        io.lose_power(Loss::All);
        drop(wal);
        // The second restart is the one that finds debris if anything was written behind it.
        check_holds(&open(&io, 1 << 20), 1, 1..=5);
    }
}

fn torn_kind(wal: &Wal) -> Option<TailKind> {
    wal.torn_tail().map(|torn| torn.kind)
}

#[test]
fn a_torn_tail_tells_what_a_killed_process_leaves_from_missing_bytes() {
    // Two records above the flushed position, of one entry each: header, length, "entry n".
    let torn = |damage: &dyn Fn(&SimIo, usize)| {
        let io = SimIo::new();
        let wal = open(&io, 1 << 20);
        append(&wal, 1, 1..=3, Durability::Synced).expect("appends");
        let synced = io.file_len(&segment(1)).expect("exists");
        append(&wal, 1, 4..=4, Durability::Written).expect("appends");
        append(&wal, 1, 5..=5, Durability::Written).expect("appends");
        io.kill();
        drop(wal);
        damage(&io, synced);
        let wal = open(&io, 1 << 20);
        let state = wal.group_state(1).range;
        (torn_kind(&wal), state.map(|(_, last)| last))
    };
    let record = 72 + 4 + 7;
    let loss = |loss| move |io: &SimIo, _| io.lose_power(loss);
    assert_eq!(torn(&|_, _| ()), (None, Some(5)));
    assert_eq!(torn(&loss(Loss::KeepPrefix(record + 10))), (Some(TailKind::CutShort), Some(4)), "within the header");
    assert_eq!(torn(&loss(Loss::KeepPrefix(record + 75))), (Some(TailKind::CutShort), Some(4)), "within the payload");
    assert_eq!(torn(&loss(Loss::KeepPrefix(3))), (Some(TailKind::CutShort), Some(3)));
    assert_eq!(torn(&loss(Loss::ZerosAfter(0))), (Some(TailKind::CutShort), Some(3)));
    assert_eq!(torn(&loss(Loss::ZerosAfter(record + 30))), (Some(TailKind::CutShort), Some(4)));
    for (at, name) in [(0, "magic"), (40, "batch"), (74, "payload"), (record - 1, "last byte")] {
        assert_eq!(torn(&|io, synced| io.flip(&segment(1), synced + at)), (Some(TailKind::Bad), Some(3)), "{name}");
        let flip_last = |io: &SimIo, synced| io.flip(&segment(1), synced + record + at);
        assert_eq!(torn(&flip_last), (Some(TailKind::Bad), Some(4)), "{name} of the last record");
    }
}

/// Guarantees: a kill anywhere in a start leaves the torn tail to be found again, until the decision on it is durable.
#[test]
fn a_torn_tail_is_evidence_until_the_decision_is_durable() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    append(&wal, 1, 1..=3, Durability::Synced).expect("appends");
    append(&wal, 1, 4..=4, Durability::Written).expect("appends");
    io.kill();
    drop(wal);
    let len = io.file_len(&segment(1)).expect("exists");
    io.flip(&segment(1), len - 1);
    // The new segment cannot be written: everything up to it was done, also the old one was rewritten.
    io.set_space(Some(len as u64 + 10));
    assert!(try_open(&io, 1 << 20).is_err());
    io.set_space(None);
    let decided = Wal::open(Arc::new(io.clone()), Path::new(DIR), config(1 << 20), "disk-1", |found| {
        assert_eq!(found.torn.as_ref().map(|torn| torn.kind), Some(TailKind::Bad));
        assert!(!found.groups[&1].empty && found.groups[&1].trust.is_none());
        Ok(BTreeMap::from([(1, Bytes::from_static(b"recovering"))]))
    });
    drop(decided.expect("opens"));
    io.lose_power(Loss::All);
    let wal = open(&io, 1 << 20);
    assert_eq!(wal.torn_tail(), None);
    assert_eq!(wal.group_state(1).trust.as_deref(), Some(&b"recovering"[..]));
    check_holds(&wal, 1, 1..=3);
}

#[test]
fn a_refusal_changes_nothing() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    append(&wal, 1, 1..=3, Durability::Synced).expect("appends");
    append(&wal, 1, 4..=4, Durability::Written).expect("appends");
    io.lose_power(Loss::KeepPrefix(30));
    drop(wal);
    let content = |io: &SimIo| io.paths().iter().map(|path| io.read(path).expect("reads")).collect::<Vec<_>>();
    let before = content(&io);
    let refuse = |_: &Found| Err("not today".to_owned());
    let refused = Wal::open(Arc::new(io.clone()), Path::new(DIR), config(1 << 20), "disk-1", refuse);
    let error = refused.expect_err("refused");
    assert!(matches!(error, OpenError::Refused { .. }) && error.to_string().contains("not today"), "{error}");
    assert_eq!(content(&io), before);
}

#[test]
fn a_flipped_bit_below_the_flushed_position_stops_the_start() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    append(&wal, 1, 1..=3, Durability::Synced).expect("appends");
    let damaged = io.file_len(&segment(1)).expect("exists") - 1;
    append(&wal, 2, 1..=3, Durability::Synced).expect("appends");
    append(&wal, 3, 1..=3, Durability::Synced).expect("appends");
    drop(wal);
    io.flip(&segment(1), damaged);
    let error = try_open(&io, 1 << 20).expect_err("refuses");
    assert!(matches!(error, OpenError::Corrupt { segment: 1, .. }), "{error}");
    assert!(error.to_string().contains("segment 000001 at offset"), "{error}");
}

#[test]
fn truncation_survives_and_replacements_win() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    append(&wal, 1, 1..=9, Durability::Synced).expect("appends");
    wait(|done| wal.truncate_from(1, 5, done)).expect("truncates");
    append(&wal, 1, 5..=6, Durability::Synced).expect("appends");
    check_holds(&wal, 1, 1..=6);
    drop(wal);
    check_holds(&open(&io, 1 << 20), 1, 1..=6);
}

#[test]
fn purged_segments_go_and_an_idle_group_keeps_its_vote() {
    let io = SimIo::new();
    let wal = open(&io, 400);
    wait(|done| wal.save_vote(9, 3, Bytes::from_static(b"idle"), done)).expect("votes");
    for index in 1..=50 {
        append(&wal, 1, index..=index, Durability::Synced).expect("appends");
    }
    let before = wal.stats().segments;
    wait(|done| wal.purge_upto(1, 40, Bytes::from_static(b"id40"), done)).expect("purges");
    check_holds(&wal, 1, 41..=50);
    assert!(wal.stats().segments < before, "{before} segments before");
    assert!(!io.paths().contains(&segment(1)));
    io.lose_power(Loss::All);
    drop(wal);
    let wal = open(&io, 400);
    check_holds(&wal, 1, 41..=50);
    assert_eq!(wal.group_state(1).purged, Some((40, b"id40".to_vec())));
    assert_eq!(wal.group_state(9).vote.as_deref(), Some(&b"idle"[..]));
}

/// Guarantees: what would go is shared by the groups that keep some of it, and nobody who keeps nothing of the oldest segment,
/// or would go on to, has a part.
#[test]
fn a_group_knows_its_share_of_a_purge() {
    let io = SimIo::new();
    let wal = open(&io, 400);
    append(&wal, 2, 1..=1, Durability::Synced).expect("appends");
    for index in 1..=50 {
        append(&wal, 1, index..=index, Durability::Synced).expect("appends");
    }
    let (some, all) = (wal.share_of_purge(1, 30), wal.share_of_purge(1, 50));
    assert!(0 < some && some < all && 2 * all < wal.stats().bytes, "{some} and {all} of {:?}", wal.stats());
    assert_eq!(wal.share_of_purge(2, 1), all, "both would have to let go");
    assert_eq!(wal.share_of_purge(1, 0), 0, "it would go on to keep the oldest segment");
    wait(|done| wal.purge_upto(2, 1, Bytes::from_static(b"id1"), done)).expect("purges");
    assert_eq!(wal.share_of_purge(2, 1), 0, "it keeps nothing any more");
    assert!(wal.share_of_purge(1, 50) >= 2 * all, "nobody else does");
}

#[test]
fn a_failed_fsync_poisons_the_log() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    io.fail_syncs();
    let error = append(&wal, 1, 1..=1, Durability::Synced).expect_err("fails");
    assert!(matches!(error, WalError::Poisoned { operation: "fsync", .. }), "{error}");
    assert!(append(&wal, 1, 2..=2, Durability::Written).is_err());
    assert!(wal.poisoned().is_some());
}

/// Scenario: one fdatasync fails, and the kernel would call the same pages clean the next time.
/// Guarantees: it is not asked again, by nobody, not even when the log is closed; nothing is acknowledged any more.
#[test]
fn a_failed_fsync_is_never_retried() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    append(&wal, 1, 1..=3, Durability::Synced).expect("appends");
    let before = io.syncs();
    io.fail_one_sync();
    let vote = |term| wait(|done| wal.save_vote(1, term, Bytes::from_static(b"vote"), done));
    let poisoned = |outcome: Result<(), WalError>| matches!(outcome, Err(WalError::Poisoned { .. }));
    assert!(poisoned(vote(4)), "the vote that the sync was for");
    assert!(poisoned(append(&wal, 1, 4..=4, Durability::Synced)));
    assert!(poisoned(append(&wal, 1, 4..=4, Durability::Written)));
    assert!(poisoned(wait(|done| wal.when_synced(1, 3, done))));
    assert!(poisoned(wait(|done| wal.purge_upto(1, 2, Bytes::new(), done))));
    assert!(poisoned(vote(5)));
    drop(wal);
    assert_eq!(io.syncs(), before + 1);
    io.lose_power(Loss::All);
    let wal = open(&io, 1 << 20);
    check_holds(&wal, 1, 1..=3);
    assert_eq!(wal.group_state(1).vote, None);
}

/// Guarantees: after a failed write no vote leaves, also when there is room again, and the vote of before stays.
#[test]
fn no_vote_after_a_write_error() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    let vote =
        |wal: &Wal, term, vote: &'static [u8]| wait(|done| wal.save_vote(1, term, Bytes::from_static(vote), done));
    vote(&wal, 3, b"three").expect("votes");
    io.set_space(Some(30));
    append(&wal, 1, 1..=3, Durability::Written).expect_err("the disk is full");
    io.set_space(None);
    let refused = vote(&wal, 4, b"four").expect_err("nobody knows what is in the file");
    assert!(matches!(refused, WalError::Poisoned { operation: "write", .. }), "{refused}");
    drop(wal);
    let wal = open(&io, 1 << 20);
    assert_eq!(wal.group_state(1).vote.as_deref(), Some(&b"three"[..]));
    vote(&wal, 4, b"four").expect("votes");
}

/// Scenario: the disk is full after any number of bytes: in a record, in the footer of a segment, in the first write of
/// the next, in the `votes` file.
/// Guarantees: the log is poisoned and takes nothing more; with room a start finds all that was acknowledged.
#[test]
fn enospc_during_rotation_or_anywhere_else_loses_nothing_acknowledged() {
    let mut failed = BTreeSet::new();
    for space in (0..2000).step_by(7) {
        let io = SimIo::new();
        let wal = open(&io, 600);
        io.set_space(Some(space));
        let mut acknowledged = 0;
        let failure = loop {
            match append(&wal, 1, acknowledged + 1..=acknowledged + 1, Durability::Synced) {
                Ok(()) => acknowledged += 1,
                Err(failure) => break failure,
            }
        };
        let WalError::Poisoned { operation, source } = failure else { panic!("{failure}") };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{operation}");
        failed.insert(operation);
        io.set_space(None);
        append(&wal, 1, acknowledged + 1..=acknowledged + 1, Durability::Written).expect_err("poisoned for good");
        drop(wal);
        let wal = open(&io, 600);
        let last = wal.group_state(1).range.map_or(0, |(_, last)| last);
        // What nobody was told of may be there.
        assert!((acknowledged..=acknowledged + 1).contains(&last), "{acknowledged} of {last}, {space} bytes");
        append(&wal, 1, last + 1..=last + 1, Durability::Synced).expect("appends");
        check_holds(&wal, 1, 1..=last + 1);
    }
    assert_eq!(failed, BTreeSet::from(["segment rotation", "write", "write of the votes file"]));
}

#[test]
fn a_full_disk_poisons_the_log_and_loses_nothing_acknowledged() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    append(&wal, 1, 1..=3, Durability::Synced).expect("appends");
    io.set_space(Some(30));
    assert!(append(&wal, 1, 4..=6, Durability::Synced).is_err());
    drop(wal);
    io.set_space(None);
    let wal = open(&io, 1 << 20);
    check_holds(&wal, 1, 1..=3);
    append(&wal, 1, 4..=4, Durability::Synced).expect("appends");
}

#[test]
fn a_crash_while_a_segment_is_started_leaves_nothing_in_the_way() {
    let io = SimIo::new();
    let wal = open(&io, 1 << 20);
    append(&wal, 1, 1..=3, Durability::Synced).expect("appends");
    drop(wal);
    let unnamed = segment(2).with_added_extension("tmp");
    io.replace(&unnamed, b"SDB1 torn").expect("writes");
    check_holds(&open(&io, 1 << 20), 1, 1..=3);
}

#[test]
fn a_newer_format_is_refused_by_number() {
    let io = SimIo::new();
    let metadata = br#"{"format": 99, "disk_id": "x"}"#;
    io.replace(&Path::new(DIR).join("metadata.json"), metadata).expect("writes");
    let error = try_open(&io, 1 << 20).expect_err("refuses");
    assert!(error.to_string().contains("99"), "{error}");
}

#[test]
fn the_real_file_system_behaves_like_the_simulated_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let open = || Wal::open(Arc::new(RealIo), dir.path(), config(500), "disk-1", keep_trust).expect("opens");
    let wal = open();
    for index in 1..=20 {
        append(&wal, 1, index..=index, Durability::Synced).expect("appends");
    }
    wait(|done| wal.purge_upto(1, 9, Bytes::from_static(b"id"), done)).expect("purges");
    drop(wal);
    check_holds(&open(), 1, 10..=20);
}

#[derive(Debug, Clone)]
enum Step {
    Append { group: u32, count: u64, synced: bool },
    Truncate { group: u32, keep: u64 },
    Purge { group: u32, upto: u64 },
    PowerLoss(usize),
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let group = 1..3u32;
    let step = prop_oneof![
        6 => (group.clone(), 1..5u64, any::<bool>()).prop_map(|(group, count, synced)| Step::Append { group, count, synced }),
        1 => (group.clone(), 1..4u64).prop_map(|(group, keep)| Step::Truncate { group, keep }),
        1 => (group, 0..4u64).prop_map(|(group, upto)| Step::Purge { group, upto }),
        1 => (0..200usize).prop_map(Step::PowerLoss),
        1 => Just(Step::Kill),
    ];
    proptest::collection::vec(step, 1..40)
}

/// The same `cases` in every run, so that no change fails by what it did not do; `PROPTEST_CASES` tries that many others.
pub(crate) fn histories(cases: u32) -> ProptestConfig {
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return ProptestConfig::default();
    }
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(histories(64))]

    /// Whatever is appended, cut and crashed: synced entries stay, and what is held is always dense.
    #[test]
    fn synced_entries_are_held_through_any_history(steps in steps()) {
        let io = SimIo::new();
        let mut wal = open(&io, 600);
        let mut synced = [0u64; 3];
        for step in steps {
            match step {
                Step::Append { group, count, synced: sync } => {
                    let state = wal.group_state(group);
                    let purged = state.purged.map_or(0, |(index, _)| index);
                    let next = state.range.map_or(purged, |(_, last)| last) + 1;
                    let durability = if sync { Durability::Synced } else { Durability::Written };
                    append(&wal, group, next..=next + count - 1, durability).expect("appends");
                    if sync {
                        // One fdatasync covers every group of the disk.
                        for group in 1..3 {
                            synced[group as usize] = wal.group_state(group).range.map_or(synced[group as usize], |(_, last)| last);
                        }
                    }
                }
                Step::Truncate { group, keep } => if let Some((first, last)) = wal.group_state(group).range {
                    let from = (first + keep).min(last + 1);
                    wait(|done| wal.truncate_from(group, from, done)).expect("truncates");
                    for group in 1..3 {
                        synced[group as usize] = wal.group_state(group).range.map_or(0, |(_, last)| last);
                    }
                },
                Step::Purge { group, upto } => if let Some((first, last)) = wal.group_state(group).range {
                    let index = (first + upto).min(last);
                    wait(|done| wal.purge_upto(group, index, Bytes::from_static(b"id"), done)).expect("purges");
                    for group in 1..3 {
                        synced[group as usize] = wal.group_state(group).range.map_or(0, |(_, last)| last);
                    }
                },
                Step::PowerLoss(keep) => {
                    io.lose_power(Loss::KeepPrefix(keep));
                    drop(wal);
                    wal = open(&io, 600);
                }
                Step::Kill => {
                    io.kill();
                    drop(wal);
                    wal = open(&io, 600);
                }
            }
            for group in 1..3u32 {
                let state = wal.group_state(group);
                let purged = state.purged.as_ref().map_or(0, |(index, _)| *index);
                if let Some((first, last)) = state.range {
                    check_holds(&wal, group, first..=last);
                    prop_assert!(purged == 0 || first == purged + 1);
                    prop_assert!(last >= synced[group as usize]);
                } else {
                    prop_assert!(synced[group as usize] <= purged);
                }
            }
        }
    }
}
