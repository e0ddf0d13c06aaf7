//! Looking at a log that is not open, and accepting what it lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::error::OpenError;
use crate::found::{Damage, Quarantined, TornTail};
use crate::index::GroupIndex;
use crate::io::LogIo;
use crate::record::{HEADER_BYTES, Header, Kind};
use crate::recovery::{self, Depth, Item, Recovered};
use crate::start::{self, DiskId};

/// What a log holds. Byte strings are opaque to the log.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    pub disk_id: String,
    pub segments: Vec<SegmentInfo>,
    /// Without what is lost.
    pub groups: BTreeMap<u32, GroupInfo>,
    pub torn: Option<TornTail>,
    pub damages: Vec<Damage>,
    /// Damage may have taken groups of which there is no other trace.
    pub unlisted: Option<Quarantined>,
    /// The next start goes on as it is: nothing is lost that no earlier start dealt with.
    pub sound: bool,
}

/// One segment file.
#[derive(Debug, Clone, Serialize)]
pub struct SegmentInfo {
    pub number: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Bytes of it that belong to the log.
    pub valid_bytes: u64,
    /// Ends with an index, or is sealed by the segment behind it.
    pub sealed: bool,
    /// Sound records by kind.
    pub records: BTreeMap<&'static str, u64>,
    /// Groups with records in it.
    pub groups: BTreeSet<u32>,
}

/// One group, as the next start would find it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct GroupInfo {
    pub first_index: Option<u64>,
    pub last_index: Option<u64>,
    /// Term of the last entry, if its record says it.
    pub last_term: Option<u64>,
    pub vote_term: Option<u64>,
    pub vote: Option<Vec<u8>>,
    pub committed: Option<Vec<u8>>,
    pub purged_index: Option<u64>,
    pub purged: Option<Vec<u8>>,
    pub trust: Option<Vec<u8>>,
    /// What damage took from it.
    pub lost: Option<Quarantined>,
    /// A vote that was on disk may be lost.
    pub lost_vote: bool,
}

/// What [`repair`] did.
#[derive(Debug, Clone, Serialize)]
pub struct RepairReport {
    pub disk_id: String,
    /// By group, what is lost for good. Empty together with `damages`: there was nothing to repair, and nothing was
    /// changed.
    pub lost: BTreeMap<u32, Quarantined>,
    /// Groups that may have lost a vote, and could vote twice in a term if they have peers.
    pub lost_votes: BTreeSet<u32>,
    pub unlisted: Option<Quarantined>,
    pub torn: Option<TornTail>,
    pub damages: Vec<Damage>,
    /// Copies of the damaged segments.
    pub copies: Vec<PathBuf>,
}

/// Reads every byte of the log in `dir`. Changes nothing. The log must not be open.
///
/// # Errors
/// Damage is not one: see [`Inspection::damages`]. A newer format is, and files that cannot be opened.
pub fn inspect(io: &dyn LogIo, dir: &Path) -> Result<Inspection, OpenError> {
    let mut segments = Vec::new();
    let recovered =
        recovery::recover(io, dir, Depth::Full, |number, items| segments.push(segment_info(number, items)))?;
    let disk_id = DiskId::read(io, dir, recovered.disk_id.as_deref(), "")?.id;
    for info in &mut segments {
        let segment = &recovered.segments[&info.number];
        let path = recovery::segment_path(&recovery::segments_dir(dir), info.number);
        info.bytes = segment.file.size().map_err(OpenError::io("measure", path))?;
        info.valid_bytes = segment.len;
        info.sealed |= recovered.segments.range(info.number + 1..).next().is_some();
    }
    let groups = recovered.groups.iter().map(|(group, index)| (*group, group_info(&recovered, *group, index)));
    let groups: BTreeMap<u32, GroupInfo> = groups.collect();
    let lossless = groups.values().all(|group| group.lost.is_none() && !group.lost_vote);
    Ok(Inspection {
        disk_id,
        segments,
        sound: lossless && recovered.found.unlisted.is_none(),
        groups,
        torn: recovered.found.torn,
        damages: recovered.damages,
        unlisted: recovered.found.unlisted,
    })
}

/// As far as its records say it.
fn segment_info(number: u64, items: &[Item]) -> SegmentInfo {
    let mut info = SegmentInfo {
        number,
        bytes: 0,
        valid_bytes: 0,
        sealed: items.last().is_some_and(|item| item.is_sound(Kind::Footer)),
        records: BTreeMap::new(),
        groups: BTreeSet::new(),
    };
    for header in items.iter().filter(|item| !item.is_bad()).filter_map(Item::header) {
        *info.records.entry(header.kind.name()).or_default() += 1;
        if !matches!(header.kind, Kind::SegmentStart | Kind::Checkpoint | Kind::Footer) {
            info.groups.insert(header.group);
        }
    }
    info
}

fn group_info(recovered: &Recovered, group: u32, index: &GroupIndex) -> GroupInfo {
    let state = index.state();
    let (purged_index, purged) = state.purged.unzip();
    let (first_index, last_index) = state.range.unzip();
    let last_batch = last_index.and_then(|last| index.find(last));
    let header = last_batch.and_then(|batch| batch.disk).and_then(|disk| {
        let mut head = [0; HEADER_BYTES];
        recovered.segments.get(&disk.segment)?.file.read_exact_at(&mut head, disk.offset).ok()?;
        Header::decode(&head).ok()
    });
    // The record says the term of its last entry; a truncation may have cut that.
    let last_term = header.filter(|header| Some(header.last) == last_index).map(|header| header.term);
    GroupInfo {
        first_index,
        last_index,
        last_term,
        vote_term: recovered.votes.get(&group).map(|vote| vote.term),
        vote: state.vote,
        committed: state.committed,
        purged_index,
        purged,
        trust: state.trust,
        lost: recovered.found.groups.get(&group).and_then(|found| found.quarantined.clone()),
        lost_vote: recovered.lost_votes.contains_key(&group),
    }
}

/// Accepts what damage took from the log in `dir`, so that it opens again: for a node that holds the only copy. Reads
/// every byte, as [`inspect`] does. The log must not be open.
///
/// Each group's log ends before its first lost entry; the damaged segments are copied to `quarantine/`. The next start
/// is told ([`crate::FoundGroup::accepted`]), for it knows whether the group has peers, which may count on what is lost.
///
/// # Errors
/// As [`inspect`], and when the disk cannot be written.
pub fn repair(io: Arc<dyn LogIo>, dir: &Path) -> Result<RepairReport, OpenError> {
    let io = io.as_ref();
    let recovered = recovery::recover(io, dir, Depth::Full, |_, _| ())?;
    let disk_id = DiskId::read(io, dir, recovered.disk_id.as_deref(), "")?;
    let quarantined = |(group, found): (&u32, &crate::FoundGroup)| Some((*group, found.quarantined.clone()?));
    let lost: BTreeMap<u32, Quarantined> = recovered.found.groups.iter().filter_map(quarantined).collect();
    let mut report = RepairReport {
        disk_id: disk_id.id.clone(),
        lost_votes: recovered.lost_votes.keys().copied().collect(),
        unlisted: recovered.found.unlisted.clone(),
        torn: recovered.found.torn.clone(),
        damages: recovered.new_damages().cloned().collect(),
        copies: Vec::new(),
        lost,
    };
    let nothing = report.damages.is_empty() && report.lost.is_empty() && report.lost_votes.is_empty();
    if !nothing {
        // What an earlier repair accepted and no start has seen yet stays, and so does a lost vote.
        let known = |(group, found): (&u32, &crate::FoundGroup)| Some((*group, found.accepted.clone()?));
        let mut accepted: BTreeMap<u32, Quarantined> = recovered.found.groups.iter().filter_map(known).collect();
        accepted.extend(recovered.lost_votes.clone());
        accepted.extend(report.lost.clone());
        report.copies = start::start(io, dir, &disk_id, recovered, BTreeMap::new(), accepted)?.copies;
    }
    Ok(report)
}

#[cfg(test)]
mod tests;
