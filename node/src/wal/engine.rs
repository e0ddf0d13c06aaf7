//! What the log engine finds, as values to print. The only place that knows its types, and what its opaque bytes mean.

use std::io;
use std::path::Path;
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
    let Inspection { segments, groups, torn, damages, .. } = found;
    Ok(Report {
        dir: dir.display().to_string(),
        segments: segments
            .into_iter()
            .map(|segment| Segment {
                number: segment.number,
                bytes: segment.bytes,
                records: segment.records,
                sealed: segment.sealed,
            })
            .collect(),
        groups: groups.iter().map(|(number, info)| group(*number, info)).collect::<anyhow::Result<_>>()?,
        torn_tail: torn.map(|torn| Torn {
            segment: torn.segment,
            offset: torn.offset,
            bytes: torn.bytes,
            reason: torn.reason,
        }),
        damages: damages
            .into_iter()
            .map(|damage| Damage {
                segment: damage.segment,
                offset: damage.offset,
                groups: damage.groups,
                reason: damage.reason,
            })
            .collect(),
    })
}

/// Cuts the log of each group where it is damaged; the damaged part is put aside.
pub(super) fn repair(dir: &Path) -> anyhow::Result<()> {
    signaldb_wal::repair(Arc::new(RealIo), dir).context("repair the log")?;
    Ok(())
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
            tenant: append.tenant,
            dataset: append.dataset,
        }),
        LogEntry::Command(Command::FlushCommitted { table, hi, .. }) => Entry::Flushed { table, hi },
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
        first: info.first,
        last: info.last,
        committed: index(&info.committed).with_context(|| bad("committed"))?,
        purged: info.purged.as_ref().map(|(index, _)| *index),
        term: vote.map(|vote| vote.term),
        voted_for: vote.map(|vote| vote.voted_for),
        trust: trust.map(|trust| trust.to_string()),
    })
}
