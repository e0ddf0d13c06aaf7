//! What a start does once it has read everything and somebody has decided.
//!
//! Every step may be the last before a kill; until the new segment is durable the next start finds the same:
//! 1. temporary files are removed: what never got its name was never part of the log, and takes room that the rest needs;
//! 2. damaged segments are copied to `quarantine/`;
//! 3. the newest segment is written anew, whole, with its torn end;
//! 4. the new segment is begun: one write holds the seal of the one before, the places that are settled, the cuts, and
//!    the checkpoint with the decision;
//! 5. the `votes` file is written, before any new vote; the marks of suspects go.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::OpenError;
use crate::found::{Damage, Quarantined};
use crate::index::GroupIndex;
use crate::io::LogIo;
use crate::record::{FORMAT, GroupMeta, Settled};
use crate::recovery::{Recovered, Segment, read_content, segment_path, segments_dir};
use crate::segment::{Current, Preamble, start_segment};
use crate::suspects;
use crate::votes::Votes;

/// Beside `segments/`.
const QUARANTINE: &str = "quarantine";
/// Copies of damaged segments that are kept, the newest.
const QUARANTINE_FILES_MAX: usize = 4;

/// A log that may be written to.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) groups: BTreeMap<u32, GroupIndex>,
    pub(crate) votes: Votes,
    pub(crate) metas: BTreeMap<u32, GroupMeta>,
    pub(crate) segments: BTreeMap<u64, Segment>,
    pub(crate) current: Current,
    pub(crate) next_batch: u64,
    /// Copies that were put aside.
    pub(crate) copies: Vec<PathBuf>,
}

/// Whose log this is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DiskId {
    pub(crate) id: String,
    /// `metadata.json` does not exist yet.
    missing: bool,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    format: u32,
    disk_id: String,
}

impl DiskId {
    /// What `metadata.json` and the segments say; `fresh` if neither exists.
    pub(crate) fn read(io: &dyn LogIo, dir: &Path, in_segments: Option<&str>, fresh: &str) -> Result<Self, OpenError> {
        let path = dir.join("metadata.json");
        let Some(content) = io.read(&path).map_err(OpenError::io("read", &path))? else {
            return Ok(Self { id: in_segments.unwrap_or(fresh).to_owned(), missing: true });
        };
        let damaged = |reason: String| OpenError::Metadata { path: path.clone(), reason };
        let metadata: Metadata = serde_json::from_slice(&content).map_err(|error| damaged(error.to_string()))?;
        if metadata.format != FORMAT {
            return Err(OpenError::Format { path, found: metadata.format, supported: FORMAT });
        }
        if let Some(other) = in_segments.filter(|id| *id != metadata.disk_id) {
            return Err(damaged(format!("it names disk {}, the segments are of disk {other}", metadata.disk_id)));
        }
        Ok(Self { id: metadata.disk_id, missing: false })
    }

    fn write_if_missing(&self, io: &dyn LogIo, dir: &Path) -> Result<(), OpenError> {
        if !self.missing {
            return Ok(());
        }
        let path = dir.join("metadata.json");
        let metadata = Metadata { format: FORMAT, disk_id: self.id.clone() };
        let content = serde_json::to_vec_pretty(&metadata).expect("metadata is plain JSON");
        io.replace(&path, &content).map_err(OpenError::io("write", &path))
    }
}

/// The id of the disk that the log in `dir` is on, as far as `metadata.json` tells; changes nothing. A log without the
/// file has an id all the same, in its segments. Blocking.
///
/// # Errors
/// The file is damaged or of another version.
pub fn disk_id(io: &dyn LogIo, dir: &Path) -> Result<Option<String>, OpenError> {
    let found = DiskId::read(io, dir, None, "")?;
    Ok((!found.missing).then_some(found.id))
}

/// Goes on from what was read: with `trust`, and without what is damaged. `accepted` is told to the next start.
pub(crate) fn start(
    io: &dyn LogIo,
    dir: &Path,
    disk_id: &DiskId,
    mut recovered: Recovered,
    trust: BTreeMap<u32, Bytes>,
    accepted: BTreeMap<u32, Quarantined>,
) -> Result<Started, OpenError> {
    let segments_dir = segments_dir(dir);
    io.create_dir_all(&segments_dir).map_err(OpenError::io("create", &segments_dir))?;
    remove_temporary(io, &[dir, &segments_dir, &dir.join(QUARANTINE)])?;
    disk_id.write_if_missing(io, dir)?;
    for (group, trust) in trust {
        recovered.groups.entry(group).or_default().meta.trust = Some(trust.to_vec());
    }
    warn(&recovered);
    let copies = quarantine(io, dir, &recovered)?;
    if let Some(mut newest) = recovered.segments.last_entry() {
        let path = segment_path(&segments_dir, *newest.key());
        let rewritten = rewrite(io, &path, newest.get(), recovered.newest_crc)?;
        newest.insert(rewritten);
    }
    let previous = recovered.segments.last_key_value().map(|(number, segment)| (*number, segment.len));
    let number = previous.map_or(1, |(number, _)| number + 1);
    let metas = recovered.groups.iter().map(|(group, index)| (*group, index.meta.clone())).collect();
    let cut = |group: &u32| Some((*group, recovered.found.groups.get(group)?.quarantined.as_ref()?.first_lost_index));
    let preamble = Preamble {
        disk_id: &disk_id.id,
        previous,
        metas: &metas,
        votes: &mut recovered.votes,
        cuts: &recovered.groups.keys().filter_map(cut).collect(),
        settled: recovered.damages.iter().filter(|damage| !damage.settled).map(settle).collect(),
        accepted,
    };
    let mut next_batch = recovered.next_batch;
    let current = start_segment(io, &segments_dir, number, preamble, &mut next_batch)
        .map_err(OpenError::io("start segment", segment_path(&segments_dir, number)))?;
    let oldest = recovered.segments.first_key_value().map_or(number, |(oldest, _)| *oldest);
    let votes = Votes { flushed: next_batch, oldest, groups: recovered.votes };
    votes.save(io, dir).map_err(OpenError::io("write votes in", dir))?;
    suspects::clear(io, dir).map_err(OpenError::io("clear suspects in", dir))?;
    recovered.groups.values_mut().for_each(GroupIndex::all_synced);
    let Recovered { groups, mut segments, .. } = recovered;
    segments.insert(number, Segment { file: std::sync::Arc::clone(&current.file), len: current.len });
    Ok(Started { groups, votes, metas, segments, current, next_batch, copies })
}

fn settle(damage: &Damage) -> Settled {
    let Damage { segment, offset, bytes, batch, next, .. } = *damage;
    Settled { segment, offset, bytes, batch, next, unknown: damage.record.is_none() }
}

fn warn(recovered: &Recovered) {
    if let Some(torn) = &recovered.found.torn {
        tracing::warn!(segment = torn.segment, offset = torn.offset, bytes = torn.bytes, kind = ?torn.kind,
            reason = %torn.reason, "WAL tail was torn by a crash before it was acknowledged; cut off");
    }
    for damage in recovered.new_damages() {
        metrics::counter!("signaldb_wal_corruptions_total").increment(1);
        tracing::error!(segment = damage.segment, offset = damage.offset, batch = damage.batch,
            harmless = damage.harmless, reason = %damage.reason, "WAL corruption; the segment is quarantined");
    }
    for (group, found) in &recovered.found.groups {
        if let Some(lost) = &found.quarantined {
            tracing::error!(group, %lost, "WAL corruption: entries of the group are lost here");
        }
    }
}

/// Copies damaged segments into `quarantine/`: they themselves go with the next purge.
fn quarantine(io: &dyn LogIo, dir: &Path, recovered: &Recovered) -> Result<Vec<PathBuf>, OpenError> {
    let aside = dir.join(QUARANTINE);
    let mut numbers: Vec<u64> = recovered.new_damages().map(|damage| damage.segment).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut copies = Vec::new();
    for number in numbers {
        let path = segment_path(&segments_dir(dir), number);
        let Ok(file) = io.open(&path) else { continue };
        io.create_dir_all(&aside).map_err(OpenError::io("create", &aside))?;
        let content = read_content(file.as_ref(), u64::MAX).map_err(OpenError::io("read", &path))?;
        let copy = segment_path(&aside, number);
        io.replace(&copy, &content).map_err(OpenError::io("copy damaged segment to", &copy))?;
        copies.push(copy);
    }
    if !copies.is_empty() {
        let mut names = io.list(&aside).map_err(OpenError::io("list", &aside))?;
        names.sort_unstable();
        let old = names.len().saturating_sub(QUARANTINE_FILES_MAX);
        for name in names.iter().take(old) {
            io.remove(&aside.join(name)).map_err(OpenError::io("remove", aside.join(name)))?;
        }
        copies.retain(|copy| copy.file_name().is_some_and(|name| !names[..old].iter().any(|old| name == old.as_str())));
    }
    Ok(copies)
}

fn remove_temporary(io: &dyn LogIo, dirs: &[&Path]) -> Result<(), OpenError> {
    for dir in dirs {
        let names = match io.list(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            names => names.map_err(OpenError::io("list", dir))?,
        };
        for name in names.iter().filter(|name| name.ends_with(".tmp")) {
            io.remove(&dir.join(name)).map_err(OpenError::io("remove", dir.join(name)))?;
        }
    }
    Ok(())
}

/// Writes the unsealed segment anew. After a failed fsync the kernel calls pages clean that never reached the disk, and
/// an fsync of the same file would succeed without them: only fresh pages are known to be written.
///
/// The torn end is written with it. It is evidence that acknowledged bytes may be lost, and the decision on it is
/// durable only with the next segment: were it cut here, a start after a kill in between would find a whole log. It
/// does no harm: the next segment's first record seals this one at its valid length, and nothing is appended to it.
///
/// What is written must be what was read, and decided on: a disk that returns less now would have its gaps take the place
/// of sound records.
fn rewrite(io: &dyn LogIo, path: &Path, segment: &Segment, read: Option<u32>) -> Result<Segment, OpenError> {
    let content = read_content(segment.file.as_ref(), u64::MAX).map_err(OpenError::io("read", path))?;
    if read.is_some_and(|read| read != crc32c::crc32c(&content)) {
        let source = std::io::Error::other("the disk returns something else than a moment ago");
        return Err(OpenError::io("read", path)(source));
    }
    io.replace(path, &content).map_err(OpenError::io("rewrite", path))?;
    let file = io.open(path).map_err(OpenError::io("open", path))?;
    Ok(Segment { file, len: segment.len })
}

#[cfg(test)]
mod tests;
