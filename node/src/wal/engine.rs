//! What the log engine finds, as values to print. The only place that knows its types, and what its opaque bytes mean.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use signaldb_raft::Command;
use signaldb_raft::inspect::{LogEntry, decode_entry, decode_index, decode_vote};
use signaldb_raft::recovery::Trust;
use signaldb_wal::{GroupInfo, Inspection, RealIo, readable_entries};

use super::report::{Damage, Group, Report, Segment, Torn};
use super::rows::{Entries, Entry, Rows};

/// Reads the whole log in `dir` and changes nothing.
pub(super) fn inspect(dir: &Path) -> anyhow::Result<Report> {
    let found = signaldb_wal::inspect(&RealIo, dir).context("read the log")?;
    let Inspection { segments, groups, torn, damages, unlisted, sound, .. } = found;
    Ok(Report {
        dir: dir.display().to_string(),
        sound,
        unlisted: unlisted.map(|lost| lost.reason),
        segments: segments
            .into_iter()
            .map(|segment| Segment {
                number: segment.number,
                bytes: segment.bytes,
                records: segment.records.values().sum(),
                sealed: segment.sealed,
            })
            .collect(),
        damages: damages
            .into_iter()
            .map(|damage| Damage {
                groups: concerned(&damage, &groups),
                segment: damage.segment,
                offset: damage.offset,
                harmless: damage.harmless,
                settled: damage.settled,
                reason: damage.reason,
            })
            .collect(),
        groups: groups.iter().map(|(number, info)| group(*number, info)).collect::<anyhow::Result<_>>()?,
        torn_tail: torn.map(|torn| Torn {
            segment: torn.segment,
            offset: torn.offset,
            bytes: torn.bytes,
            reason: torn.reason,
        }),
    })
}

/// The groups that lose something by the damage: whose record it was, and whose log ends there.
fn concerned(damage: &signaldb_wal::Damage, groups: &BTreeMap<u32, GroupInfo>) -> Vec<u32> {
    let of_no_group = ["segment-start", "checkpoint", "footer"];
    let record = damage.record.filter(|(_, kind)| !of_no_group.contains(kind)).map(|(group, _)| group);
    let ends_there = |info: &GroupInfo| {
        let lost = info.lost.as_ref();
        lost.is_some_and(|lost| (lost.segment, lost.offset) == (damage.segment, damage.offset))
    };
    let ending = groups.iter().filter(|(_, info)| ends_there(info)).map(|(group, _)| *group);
    record.into_iter().chain(ending).collect::<BTreeSet<u32>>().into_iter().collect()
}

/// Cuts the log of each group where it is damaged; returns where copies of the damaged segments are.
pub(super) fn repair(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    Ok(signaldb_wal::repair(Arc::new(RealIo), dir).context("repair the log")?.copies)
}

/// The entries that can still be read.
pub(super) fn entries(dir: &Path) -> anyhow::Result<Entries> {
    let read = readable_entries(&RealIo, dir, |_, index, bytes| {
        let len = bytes.len() as u64;
        decode_entry(index, &bytes).map(|decoded| entry(decoded, len))
    });
    let mut out = Entries::new();
    for (group, found) in read.context("read the log")? {
        let found = found.into_iter().map(|(index, entry)| {
            Ok((index, entry.with_context(|| format!("entry {index} of group {group} cannot be decoded"))?))
        });
        out.insert(group, found.collect::<anyhow::Result<_>>()?);
    }
    Ok(out)
}

fn entry(decoded: LogEntry, bytes: u64) -> Entry {
    match decoded {
        LogEntry::Command(Command::Append(append)) => Entry::Rows(Rows {
            bytes,
            tables: append.tables.iter().map(|stats| (stats.table, stats.rows)).collect(),
            request: append.dedup.map(|(digest, _)| digest.0.iter().map(|byte| format!("{byte:02x}")).collect()),
            tenant: append.tenant,
            dataset: append.dataset,
        }),
        LogEntry::Command(Command::FlushCommitted { table, hi, .. }) => Entry::Flushed { table, hi },
        LogEntry::Command(Command::FlushCut { .. }) => Entry::Cut,
        LogEntry::Command(_) | LogEntry::Blank | LogEntry::Membership => Entry::Other,
    }
}

fn group(number: u32, info: &GroupInfo) -> anyhow::Result<Group> {
    let bad = |what: &str| format!("the {what} record of group {number} cannot be decoded");
    let vote = info.vote.as_deref().map(decode_vote).transpose().with_context(|| bad("vote"))?;
    let index = |bytes: &Option<Vec<u8>>| -> io::Result<Option<u64>> { bytes.as_deref().map(decode_index).transpose() };
    let trust = info.trust.as_deref().map(Trust::decode).transpose().with_context(|| bad("trust"))?;
    Ok(Group {
        group: number,
        first: info.first_index,
        last: info.last_index,
        committed: index(&info.committed).with_context(|| bad("committed"))?,
        purged: info.purged_index,
        term: vote.map(|vote| vote.term),
        voted_for: vote.map(|vote| vote.voted_for),
        trust: trust.map(|trust| trust.to_string()),
        first_lost: info.lost.as_ref().map(|lost| lost.first_lost_index),
        last_lost: info.lost.as_ref().and_then(|lost| lost.last_lost_index),
        lost_vote: info.lost_vote,
    })
}
