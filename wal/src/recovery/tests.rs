//! Damage of every kind, against a model that remembers all that ever was.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use crate::record::Kind;
use crate::recovery::{Depth, Item, recover};
use crate::sim::{Loss, SimIo};
use crate::wal::tests::{DIR, config, histories, open, wait};
use crate::{AppendEntry, Durability, Found, LogIo, Quarantined, Wal, WalError};

const GROUPS: std::ops::Range<u32> = 1..4;
const SEGMENT_BYTES: u64 = 1500;

/// Opens past any damage, as a node with peers does.
pub(crate) fn accept(io: &SimIo) -> (Wal, Found) {
    let mut seen = None;
    let decide = |found: &Found| {
        seen = Some(found.clone());
        Ok(quarantined(found).into_keys().map(|group| (group, Bytes::from_static(b"recovering"))).collect())
    };
    let wal = Wal::open(Arc::new(io.clone()), Path::new(DIR), config(SEGMENT_BYTES), "disk-1", decide);
    (wal.expect("opens"), seen.expect("decided"))
}

pub(crate) fn quarantined(found: &Found) -> BTreeMap<u32, Quarantined> {
    let lost = |group| match found.groups.get(&group) {
        Some(found) => found.quarantined.clone(),
        None => found.unlisted.clone(),
    };
    GROUPS.filter_map(|group| Some((group, lost(group)?))).collect()
}

/// One group as it should be, and as it ever was.
#[derive(Debug, Clone, Default)]
struct Model {
    /// With what was purged.
    log: BTreeMap<u64, Bytes>,
    /// Every entry that was ever replaced belongs to a log that ended with a truncation.
    earlier: Vec<BTreeMap<u64, Bytes>>,
    purged: Option<u64>,
    vote: Option<u64>,
    trust: Option<u8>,
}

impl Model {
    fn last(&self) -> u64 {
        self.log.last_key_value().map_or(0, |(last, _)| *last)
    }

    fn held(&self) -> BTreeMap<u64, Bytes> {
        self.log.range(self.purged.map_or(0, |purged| purged + 1)..).map(|(i, e)| (*i, e.clone())).collect()
    }

    fn was(&self, held: &BTreeMap<u64, Bytes>) -> bool {
        let part_of = |log: &BTreeMap<u64, Bytes>| held.iter().all(|(index, entry)| log.get(index) == Some(entry));
        part_of(&self.log) || self.earlier.iter().any(part_of)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append { group: u32, count: u64, bytes: usize },
    Truncate { group: u32, keep: u64 },
    Purge { group: u32, count: u64 },
    Vote { group: u32 },
    Trust { group: u32 },
    Restart { clean: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (GROUPS, 1..5u64, 0..200usize).prop_map(|(group, count, bytes)| Step::Append { group, count, bytes }),
        1 => (GROUPS, 0..4u64).prop_map(|(group, keep)| Step::Truncate { group, keep }),
        1 => (GROUPS, 1..4u64).prop_map(|(group, count)| Step::Purge { group, count }),
        2 => GROUPS.prop_map(|group| Step::Vote { group }),
        1 => GROUPS.prop_map(|group| Step::Trust { group }),
        1 => any::<bool>().prop_map(|clean| Step::Restart { clean }),
    ];
    proptest::collection::vec(step, 5..40)
}

/// Carries the steps out, each synced; a stop without `clean` is a `kill -9`.
fn run(io: &SimIo, steps: &[Step], clean: bool) -> BTreeMap<u32, Model> {
    let mut models = BTreeMap::new();
    let mut wal = open(io, SEGMENT_BYTES);
    for (at, step) in steps.iter().enumerate() {
        if let Step::Restart { clean } = *step {
            if !clean {
                io.kill();
            }
            drop(wal);
            wal = open(io, SEGMENT_BYTES);
        }
        carry_out(&wal, at as u64, step, &mut models).expect("is synced");
    }
    if !clean {
        io.kill();
    }
    drop(wal);
    models
}

/// One step, as number `at`; in the model it is done in any case.
fn carry_out(wal: &Wal, at: u64, step: &Step, models: &mut BTreeMap<u32, Model>) -> Result<(), WalError> {
    match *step {
        Step::Append { group, count, bytes } => {
            let model = models.entry(group).or_default();
            let first = model.last() + 1;
            let entry = |index| format!("{at}/{index}/{}", "x".repeat(bytes));
            let entries: Vec<AppendEntry> = (first..first + count)
                .map(|index| AppendEntry { index, term: at, bytes: Bytes::from(entry(index)) })
                .collect();
            model.log.extend(entries.iter().map(|entry| (entry.index, entry.bytes.clone())));
            wait(|done| wal.append(group, &entries, Durability::Synced, done))
        }
        Step::Truncate { group, keep } => {
            let model = models.entry(group).or_default();
            let from = (model.last() + 1).saturating_sub(keep).max(model.purged.unwrap_or(0) + 1);
            model.earlier.push(model.log.clone());
            model.log.split_off(&from);
            wait(|done| wal.truncate_from(group, from, done))
        }
        Step::Purge { group, count } => {
            let model = models.entry(group).or_default();
            let upto = (model.purged.unwrap_or(0) + count).min(model.last());
            if upto <= model.purged.unwrap_or(0) {
                return Ok(());
            }
            model.purged = Some(upto);
            wait(|done| wal.purge_upto(group, upto, Bytes::from(format!("id{upto:>60}")), done))
        }
        Step::Vote { group } => {
            models.entry(group).or_default().vote = Some(at);
            wait(|done| wal.save_vote(group, at, Bytes::from(format!("{at:<60}")), done))
        }
        Step::Trust { group } => {
            models.entry(group).or_default().trust = Some(at as u8);
            let trust = Bytes::from(vec![at as u8; 60]);
            wait(|done| wal.save_trust(group, trust, Durability::Synced, Some(done)))
        }
        Step::Restart { .. } => Ok(()),
    }
}

type Logs = BTreeMap<u32, BTreeMap<u64, Bytes>>;

/// Reads everything; a read that finds damage makes the log be opened again. Returns what was lost on the way.
fn open_and_read(io: &SimIo) -> (Wal, Logs, BTreeMap<u32, Quarantined>, bool) {
    let (mut lost, mut torn) = (BTreeMap::new(), false);
    for _ in 0..4 {
        let (wal, found) = accept(io);
        lost.extend(quarantined(&found));
        torn |= found.torn.is_some();
        let groups: BTreeSet<u32> = GROUPS.filter(|group| wal.group_state(*group).range.is_some()).collect();
        let read = |group: u32| {
            let (first, last) = wal.group_state(group).range.expect("held");
            Ok((group, wal.read(group, first..=last, usize::MAX)?.into_iter().collect::<BTreeMap<_, _>>()))
        };
        match groups.into_iter().map(read).collect::<Result<BTreeMap<_, _>, WalError>>() {
            Ok(held) => return (wal, held, lost, torn),
            Err(WalError::Read { .. }) => io.kill(),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("reads find damage that no start removes");
}

/// What every start past damage has to keep.
fn check_damaged(io: &SimIo, models: &BTreeMap<u32, Model>, context: &str) {
    let (wal, held, lost, torn) = open_and_read(io);
    for (group, model) in models {
        let state = wal.group_state(*group);
        let held = held.get(group).cloned().unwrap_or_default();
        let purged = state.purged.map(|(index, _)| index);
        let vote = state.vote.map(|vote| String::from_utf8(vote).expect("text").trim().to_owned());
        assert_eq!(vote, model.vote.map(|term| term.to_string()), "vote of group {group}: {context}");
        assert!(model.was(&held), "group {group} holds what never was: {held:?} {model:?} {context}");
        assert!(purged <= model.purged, "{context}");
        let first = held.first_key_value().map(|(first, _)| *first);
        assert!(first.is_none_or(|first| first == purged.map_or(1, |purged| purged + 1)), "group {group}: {context}");
        if !lost.contains_key(group) && !torn {
            assert_eq!(held, model.held(), "group {group} lost something silently: {context}");
            assert_eq!(purged, model.purged, "{context}");
            assert_eq!(state.trust, model.trust.map(|trust| vec![trust; 60]), "group {group}: {context}");
        }
        if lost.contains_key(group) {
            assert_eq!(state.trust.as_deref(), Some(&b"recovering"[..]), "group {group}: {context}");
        }
    }
    // Refill, go on, and start again, twice: the same damage is not found again and nothing is behind it.
    let mut logs = held;
    for round in 0..2u8 {
        for group in GROUPS {
            let log = logs.entry(group).or_default();
            let purged = wal.group_state(group).purged.map_or(0, |(index, _)| index);
            if round == 0 {
                let next = log.last_key_value().map_or(purged, |(last, _)| *last) + 1;
                let refill = |index| AppendEntry { index, term: 99, bytes: Bytes::from(format!("refilled {index}")) };
                let entries: Vec<AppendEntry> = (next..next + 9).map(refill).collect();
                wait(|done| wal.append(group, &entries, Durability::Synced, done)).expect("appends");
                log.extend(entries.into_iter().map(|entry| (entry.index, entry.bytes)));
            }
        }
        if round == 1 {
            let (_wal, again, lost, _) = open_and_read(io);
            assert_eq!(lost, BTreeMap::new(), "{context}");
            assert_eq!(again, logs, "{context}");
        }
        if round == 0 {
            io.kill();
        }
    }
    drop(wal);
    let (_wal, again, lost, _) = open_and_read(io);
    assert_eq!((again, lost), (logs, BTreeMap::new()), "{context}");
}

fn wal_files(io: &SimIo) -> Vec<(PathBuf, usize)> {
    let segments = io.paths().into_iter().filter(|path| path.extension().is_some_and(|end| end == "wal"));
    segments.map(|path| (path.clone(), io.file_len(&path).unwrap_or(0))).filter(|(_, len)| *len > 0).collect()
}

proptest! {
    #![proptest_config(histories(400))]

    /// Guarantees: whatever bit is flipped, no entry is returned that never was, no vote goes back, and a group that
    /// is not named as damaged has lost nothing.
    #[test]
    fn a_flipped_bit_anywhere(steps in steps(), flips in proptest::collection::vec((any::<usize>(), any::<usize>()), 1..4)) {
        let io = SimIo::new();
        let models = run(&io, &steps, false);
        let mut context = String::new();
        for (file, at) in flips {
            let files = wal_files(&io);
            let (path, len) = &files[file % files.len()];
            io.flip(path, at % len);
            context += &format!("flip {path:?} at {} of {len}; ", at % len);
        }
        check_damaged(&io, &models, &context);
    }

    /// Scenario: the power fails after any single change of the disk, in the middle of a rotation, of the removal of
    /// segments, of a write of the votes.
    /// Guarantees: what was acknowledged is there, what was not is there as a whole or not at all, and none of it is
    /// taken for damage.
    #[test]
    fn power_fails_after_any_change(steps in steps(), changes in 5..150u64, keep in 0..300usize, zeros in any::<bool>()) {
        let io = SimIo::new();
        let mut wal = open(&io, SEGMENT_BYTES);
        let mut models: BTreeMap<u32, Model> = BTreeMap::new();
        io.fail_after(Some(changes));
        let mut before = models.clone();
        for (at, step) in steps.iter().enumerate() {
            before.clone_from(&models);
            if let Step::Restart { .. } = step {
                drop(wal);
                let config = config(SEGMENT_BYTES);
                match Wal::open(Arc::new(io.clone()), Path::new(DIR), config, "disk-1", crate::keep_trust) {
                    Ok(opened) => wal = opened,
                    Err(_) => break,
                }
            }
            if carry_out(&wal, at as u64, step, &mut models).is_err() {
                break;
            }
        }
        io.lose_power(if zeros { Loss::ZerosAfter(keep) } else { Loss::KeepPrefix(keep) });
        io.fail_after(None);
        let wal = open(&io, SEGMENT_BYTES);
        for (group, model) in &models {
            let before = before.get(group).cloned().unwrap_or_default();
            let state = wal.group_state(*group);
            let held = state.range.map(|(first, last)| wal.read(*group, first..=last, usize::MAX).expect("reads"));
            let held: BTreeMap<u64, Bytes> = held.into_iter().flatten().collect();
            let is = |model: &Model| held == model.held() && state.purged.as_ref().map(|(index, _)| *index) == model.purged;
            assert!(is(model) || is(&before), "group {group}: {held:?} {model:?}");
            let vote = state.vote.map(|vote| String::from_utf8(vote).expect("text").trim().to_owned());
            let votes = [model, &before].map(|model| model.vote.map(|term| term.to_string()));
            assert!(votes.contains(&vote), "group {group}: {vote:?} {votes:?}");
        }
    }

    /// The same for segments that end early, or are gone. The log was closed: how far it reached is known.
    #[test]
    fn a_truncated_segment(steps in steps(), file in any::<usize>(), at in any::<usize>(), gone in any::<bool>()) {
        let io = SimIo::new();
        let models = run(&io, &steps, true);
        let files = wal_files(&io);
        let (path, len) = &files[file % files.len()];
        let context = format!("{path:?} cut at {} of {len}, gone {gone}", at % len);
        if gone {
            io.remove(path).expect("removes");
        } else {
            io.cut(path, at % len);
        }
        check_damaged(&io, &models, &context);
    }
}

/// Scenario: a truncation is damaged, so that a start has to choose between what was before and what came behind; then
/// an entry of what it chose is damaged in a segment whose index is sound, where only a read finds it.
/// Guarantees: the log is cut there; no start comes back to the part that an earlier one had left.
#[test]
fn what_a_start_chose_no_later_damage_undoes() {
    let io = SimIo::new();
    let append = |bytes| Step::Append { group: 1, count: 1, bytes };
    let mut steps = vec![append(46), Step::Truncate { group: 1, keep: 1 }, Step::Restart { clean: false }];
    steps.extend([11, 150, 190, 190, 190, 190, 190, 190].map(append));
    let models = run(&io, &steps, false);
    let (mut truncation, mut entry) = (None, None);
    let find = |number, items: &[Item]| {
        let offsets = |kind| items.iter().filter(move |item| item.is_sound(kind)).map(|item| item.end() as usize);
        match number {
            1 => truncation = offsets(Kind::TruncateAfter).next(),
            2 => entry = offsets(Kind::Append).nth(2).filter(|_| offsets(Kind::Footer).next().is_some()),
            _ => {}
        }
    };
    recover(&io, Path::new(DIR), Depth::Full, find).expect("reads");
    io.flip(Path::new("/wal/segments/000001.wal"), truncation.expect("is in the first") - 40);
    io.flip(Path::new("/wal/segments/000002.wal"), entry.expect("is in the second, which is sealed") - 1);
    let (wal, held, lost, _) = open_and_read(&io.fork());
    assert_eq!(held[&1], models[&1].log.clone().into_iter().take(2).collect::<BTreeMap<_, _>>(), "{lost:?}");
    drop(wal);
    check_damaged(&io, &models, "a truncation, then an entry behind it");
}
