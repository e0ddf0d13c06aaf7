//! What a start reads, and what it makes of damage. Changes nothing; [`crate::start`] acts.
//!
//! The flushed position decides (DESIGN section 5). It is known from the records (each says how far the log was synced
//! when it was written), from the `votes` file, and from the next segment: a segment is synced before the next one.
//!
//! * **Above it**, the first place that is not a record is a torn tail: nobody was told about it. It is left in the file
//!   and cut by the next segment's first record, which holds the valid length: until that is on disk, and with it what
//!   the start decided, a later start finds the same tail.
//! * **Below it**, it is damage. So is what is missing of a preamble: a segment gets its name when that is on disk. Batches
//!   have no gaps, so whatever is not there is missed: a bad payload or a header known from a footer concerns its group;
//!   anything else (a bad header, a file that is short, a segment that is missing) every group. The preamble of a segment
//!   and its footer only repeat what is elsewhere: a single bad place there is harmless. [`replay`] says what a group
//!   keeps: a dense prefix, and every later vote, trust, purge and commit. A vote that may be lost in the log counts from
//!   the `votes` file; without that the start stops.
//!
//! When a start goes on past damage, the preamble of its segment says so: [`record::Settled`] lists the places, a
//! truncate-after record cuts each group. They are in force as long as the damaged segment exists, as older segments go
//! first. A later start reads the damage again and takes the log as the first one did; damage that is not listed is
//! new. A copy of the segment is put into `quarantine/`.
//!
//! Sealed segments are not read but for their footers, except those that a failed read marked in `suspects`.
//!
//! Bytes that the disk does not return are damage, wherever they are: that a write was torn can only be said of what can be
//! read. What stands for them when a start writes the segment anew is known again, should that start be killed.
//!
//! Nothing is ever appended behind what was found: every start begins a new segment.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::OpenError;
use crate::found::{Damage, Found, FoundGroup, Quarantined, TornTail};
use crate::index::GroupIndex;
use crate::io::{LogFile, LogIo};
use crate::record::{FORMAT, HEADER_BYTES, Header, Kind, SegmentStart, Settled, le_u64};
use crate::suspects;
use crate::votes::{SavedVote, Votes, VotesFile};

mod replay;
mod scan;

use replay::{Replay, Settlement};
use scan::{Bad, read_footer};
pub(crate) use scan::{Item, read_content, read_payload};

/// Bytes of the fixed trailer of a sealed segment: footer offset (u64), its crc32c (u32), magic `SDBF`.
pub(crate) const TRAILER_BYTES: usize = 16;
const TRAILER_MAGIC: [u8; 4] = *b"SDBF";
/// A segment start and a checkpoint.
const PREAMBLE_RECORDS_MIN: u64 = 2;

/// Everything a start learned.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// Without what is lost.
    pub(crate) groups: BTreeMap<u32, GroupIndex>,
    pub(crate) votes: BTreeMap<u32, SavedVote>,
    pub(crate) segments: BTreeMap<u64, Segment>,
    pub(crate) next_batch: u64,
    /// The disk that the segments name.
    pub(crate) disk_id: Option<String>,
    pub(crate) found: Found,
    pub(crate) damages: Vec<Damage>,
    /// A vote that was on disk may be neither in the log nor in `votes`.
    pub(crate) lost_votes: BTreeMap<u32, Quarantined>,
    /// Checksum of the newest segment as it was read, all of it.
    pub(crate) newest_crc: Option<u32>,
}

#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn LogFile>,
    /// Bytes that belong to the log.
    pub(crate) len: u64,
}

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Footers are trusted.
    Start,
    /// Every byte.
    Full,
}

pub(crate) fn segments_dir(dir: &Path) -> PathBuf {
    dir.join("segments")
}

pub(crate) fn segment_path(segments_dir: &Path, number: u64) -> PathBuf {
    segments_dir.join(format!("{number:06}.wal"))
}

pub(crate) fn encode_trailer(footer_offset: u64) -> [u8; TRAILER_BYTES] {
    let mut out = [0; TRAILER_BYTES];
    out[..8].copy_from_slice(&footer_offset.to_le_bytes());
    let crc = crc32c::crc32c(&out[..8]);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out[12..].copy_from_slice(&TRAILER_MAGIC);
    out
}

fn decode_trailer(bytes: &[u8; TRAILER_BYTES]) -> Option<u64> {
    let valid = bytes[12..] == TRAILER_MAGIC && crc32c::crc32c(&bytes[..8]).to_le_bytes() == bytes[8..12];
    valid.then(|| le_u64(bytes, 0))
}

/// Reads the log in `dir`, and shows each segment to `visit`.
///
/// # Errors
/// Damage is not one; a newer format is, and files that cannot be opened.
pub(crate) fn recover(
    io: &dyn LogIo,
    dir: &Path,
    depth: Depth,
    mut visit: impl FnMut(u64, &[Item]),
) -> Result<Recovered, OpenError> {
    let votes = VotesFile::read(io, dir).map_err(OpenError::io("read votes in", dir))?;
    let suspects = suspects::read(io, dir).map_err(OpenError::io("read suspects in", dir))?;
    let reader = Reader::open(io, dir)?;
    let settled = reader.starts().flat_map(|(_, start)| start.settled.clone()).collect::<Vec<Settled>>();
    let newest = reader.starts().last().map(|(_, start)| start);
    let settled_by = reader.starts().flat_map(|(by, start)| start.settled.iter().map(move |place| (by, place.clone())));
    let disk_id = newest.map(|start| start.disk_id.clone());
    let accepted = newest.map(|start| start.accepted.clone()).unwrap_or_default();
    let known_votes = match &votes {
        VotesFile::Sound(votes) => Some(votes),
        // Nothing can have been lost of a log that was never opened.
        VotesFile::Missing if reader.segments.is_empty() => Some(&NO_VOTES),
        VotesFile::Missing | VotesFile::Damaged => None,
    };
    let floor = known_votes.map_or(0, |votes| votes.flushed);
    let mut replay = Replay::new(settled_by.collect());
    let (mut segments, mut torn, mut newest_crc) = (BTreeMap::new(), None, None);
    let oldest = known_votes.map_or(0, |votes| votes.oldest);
    if let Some(first) = reader.segments.first().filter(|first| first.number > oldest && oldest > 0) {
        let reason = format!("segments {oldest} to {} are missing", first.number - 1);
        let missing = Bad { reason, ..Bad::missing(oldest, 0, 0, first.number - oldest) };
        replay.segment(&[Item::Bad(missing)], None);
    }
    let mut expected = reader.segments.first().and_then(|segment| segment.start.as_ref()).map(|(batch, _)| *batch);
    for at in 0..reader.segments.len() {
        let suspect = depth == Depth::Full || suspects.contains(&reader.segments[at].number);
        let read = reader.read(at, expected, suspect, &settled, floor)?;
        let ReadSegment { number, file, .. } = &reader.segments[at];
        replay.segment(&read.items, Some(file.as_ref()));
        expected = read.items.last().map(Item::next).or(expected);
        torn = read.torn.or(torn);
        newest_crc = read.crc.or(newest_crc);
        segments.insert(*number, Segment { file: Arc::clone(file), len: read.len });
        visit(*number, &read.items);
    }
    if segments.is_empty() && floor > 0 {
        let missing = Item::Bad(Bad::missing(1, 0, expected.unwrap_or(1), floor));
        replay.segment(std::slice::from_ref(&missing), None);
        expected = Some(floor);
    }
    let damages = std::mem::take(&mut replay.damages);
    replay.damages.clone_from(&damages);
    let (settlements, unlisted) = replay.finish(known_votes);
    let mut recovered = Recovered {
        groups: BTreeMap::new(),
        votes: BTreeMap::new(),
        segments,
        next_batch: expected.unwrap_or(1),
        disk_id,
        found: Found { torn, groups: BTreeMap::new(), unlisted },
        damages,
        lost_votes: BTreeMap::new(),
        newest_crc,
    };
    for (group, settlement) in settlements {
        recovered.add(group, settlement, accepted.get(&group).cloned());
    }
    Ok(recovered)
}

static NO_VOTES: Votes = Votes { flushed: 0, oldest: 0, groups: BTreeMap::new() };

impl Recovered {
    fn add(&mut self, group: u32, settlement: Settlement, accepted: Option<Quarantined>) {
        let Settlement { index, vote, quarantined, lost_vote } = settlement;
        let empty = index.range().is_none() && index.meta.purged.is_none();
        let found = FoundGroup { trust: index.meta.trust.clone(), empty, quarantined, accepted };
        self.found.groups.insert(group, found);
        self.groups.insert(group, index);
        self.votes.extend(vote.map(|vote| (group, vote)));
        self.lost_votes.extend(lost_vote.map(|lost| (group, lost)));
    }

    /// Damage that no earlier start dealt with.
    pub(crate) fn new_damages(&self) -> impl Iterator<Item = &Damage> {
        self.damages.iter().filter(|damage| !damage.settled)
    }

    /// The error of a start that does not go on with what it found.
    pub(crate) fn refused(&self, dir: &Path, verdict: &str) -> OpenError {
        let refused = || OpenError::Refused { path: dir.to_owned(), reason: verdict.to_owned() };
        self.corrupt(verdict).unwrap_or_else(refused)
    }

    fn corrupt(&self, verdict: &str) -> Option<OpenError> {
        let quarantined = |(group, found): (&u32, &FoundGroup)| Some((*group, found.quarantined.clone()?));
        let lost: Vec<(u32, Quarantined)> = self.found.groups.iter().filter_map(quarantined).collect();
        let first = self.new_damages().find(|damage| !damage.harmless);
        let (segment, offset, batch, reason) = match (first, lost.first().map(|(_, lost)| lost)) {
            (Some(damage), _) => (damage.segment, damage.offset, damage.batch, damage.reason.clone()),
            (None, Some(lost)) => (lost.segment, lost.offset, 0, lost.reason.clone()),
            (None, None) => return None,
        };
        let groups = lost.iter().map(|(group, _)| *group).collect();
        let mut named: Vec<String> = lost.iter().map(|(group, lost)| format!("group {group} {lost}")).collect();
        if self.found.unlisted.is_some() {
            named.push("groups that left no other trace".to_owned());
        }
        let lost = if named.is_empty() { "nothing that is known".to_owned() } else { named.join(", ") };
        Some(OpenError::Corrupt { segment, offset, batch, groups, lost, reason, verdict: verdict.to_owned() })
    }
}

/// One segment file.
struct ReadSegment {
    number: u64,
    file: Arc<dyn LogFile>,
    file_len: u64,
    /// First batch and content of the first record, if it is sound.
    start: Option<(u64, SegmentStart)>,
}

struct ReadItems {
    items: Vec<Item>,
    len: u64,
    torn: Option<TornTail>,
    /// Of the whole file, if it is the newest.
    crc: Option<u32>,
}

struct Reader {
    dir: PathBuf,
    segments: Vec<ReadSegment>,
}

impl Reader {
    fn open(io: &dyn LogIo, dir: &Path) -> Result<Self, OpenError> {
        let dir = segments_dir(dir);
        let names = match io.list(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            names => names.map_err(OpenError::io("list", &dir))?,
        };
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.strip_suffix(".wal")?.parse().ok()).collect();
        numbers.sort_unstable();
        let open = |number: u64| {
            let path = segment_path(&dir, number);
            let file = io.open(&path).map_err(OpenError::io("open", &path))?;
            let file_len = file.size().map_err(OpenError::io("measure", &path))?;
            let start = read_start(&path, number, file.as_ref())?;
            Ok(ReadSegment { number, file, file_len, start })
        };
        let segments = numbers.into_iter().map(open).collect::<Result<_, OpenError>>()?;
        Ok(Self { dir, segments })
    }

    /// Numbers of the segments and what their first records say, where those are sound.
    fn starts(&self) -> impl DoubleEndedIterator<Item = (u64, &SegmentStart)> {
        self.segments.iter().filter_map(|segment| Some((segment.number, &segment.start.as_ref()?.1)))
    }

    fn content(&self, at: usize, len: u64) -> Result<Vec<u8>, OpenError> {
        self.blocks(at, len).map(|(content, _)| content)
    }

    /// The first `len` bytes of a segment, and whether the disk returned all of them.
    fn blocks(&self, at: usize, len: u64) -> Result<(Vec<u8>, bool), OpenError> {
        let segment = &self.segments[at];
        let failed = OpenError::io("read", segment_path(&self.dir, segment.number));
        scan::read_blocks(segment.file.as_ref(), len).map_err(failed)
    }

    /// The batch that the segment behind `at` begins with.
    fn end_batch(&self, at: usize) -> Result<Option<u64>, OpenError> {
        let Some(next) = self.segments.get(at + 1) else { return Ok(None) };
        if let Some((batch, _)) = next.start {
            return Ok(Some(batch));
        }
        let items = scan::scan(&self.content(at + 1, next.file_len)?, next.number, None, &[]);
        let first = items.first().and_then(Item::header).map(|header| header.batch);
        // Most likely just its first record is damaged.
        Ok(first.or_else(|| items.get(1).map(|second| second.batch().saturating_sub(1))))
    }

    /// The batch behind a segment's preamble, or an earlier one when its first record is damaged.
    fn preamble_end(&self, at: usize, expected: Option<u64>) -> u64 {
        match &self.segments[at].start {
            Some((batch, start)) => batch + start.preamble.max(PREAMBLE_RECORDS_MIN),
            None => expected.unwrap_or(0) + PREAMBLE_RECORDS_MIN,
        }
    }

    fn read(
        &self,
        at: usize,
        expected: Option<u64>,
        suspect: bool,
        settled: &[Settled],
        floor: u64,
    ) -> Result<ReadItems, OpenError> {
        let ReadSegment { number, ref file, file_len, .. } = self.segments[at];
        let last = at + 1 == self.segments.len();
        let end_batch = self.end_batch(at)?;
        let seal = self.segments.get(at + 1).and_then(|next| next.start.as_ref()).and_then(|(_, start)| start.previous);
        let limit = seal.filter(|(sealed, _)| *sealed == number).map_or(file_len, |(_, len)| len.min(file_len));
        let unread = settled.iter().any(|place| place.segment == number && place.unknown && place.bytes > 0);
        if !last
            && !unread
            && let Some(records) = read_footer(file.as_ref(), number, limit)
        {
            let batches = || records.iter().map(|(_, header)| header.batch);
            let begin = expected.or(batches().next());
            let dense = begin.is_some_and(|begin| batches().zip(begin..).all(|(batch, dense)| batch == dense));
            if dense && batches().next_back().map(|last| last + 2) == end_batch {
                let mut items = if suspect {
                    scan::scan_indexed(&self.content(at, limit)?, number, &records)
                } else {
                    records.into_iter().map(|(offset, header)| Item::Sound(offset, header)).collect()
                };
                items.push(Item::footer(number, limit, end_batch.unwrap_or(0) - 1));
                return Ok(ReadItems { items, len: limit, torn: None, crc: None });
            }
        }
        let (content, readable) = self.blocks(at, limit)?;
        let crc = last.then(|| crc32c::crc32c(&content));
        let mut items = scan::scan(&content, number, expected, settled);
        let floor = if last { floor.max(self.preamble_end(at, expected)) } else { floor };
        let torn = if last && readable { scan::take_torn_tail(&mut items, &content, floor) } else { None };
        if let Some(Item::Bad(bad)) = items.last_mut()
            && let Some(trailer) = content.last_chunk().and_then(decode_trailer)
            && trailer == bad.offset
        {
            bad.header.get_or_insert(Header::footer(number, bad.batch));
            bad.next = bad.batch + 1;
        }
        let end_batch = if last { Some(floor) } else { end_batch };
        if let Some(end_batch) = end_batch {
            if !last {
                items.retain(|item| item.batch() < end_batch);
            }
            close_gap(&mut items, number, expected, end_batch);
        }
        if let Some(Item::Bad(bad)) = items.last_mut() {
            bad.next = bad.next.max(bad.batch + u64::from(last));
        }
        let len = items.last().map_or(0, Item::end).min(content.len() as u64);
        Ok(ReadItems { items, len, torn, crc })
    }
}

/// Everything below `end` was on disk: says so where it is not.
fn close_gap(items: &mut Vec<Item>, number: u64, expected: Option<u64>, end: u64) {
    match items.last_mut() {
        Some(Item::Bad(bad)) if bad.header.is_none() => bad.next = bad.next.max(end),
        Some(item) if item.next() < end => {
            let missing = Bad::missing(number, item.end(), item.next(), end);
            items.push(Item::Bad(missing));
        }
        None if expected.is_none_or(|expected| expected < end) => {
            items.push(Item::Bad(Bad::missing(number, 0, expected.unwrap_or(0), end)));
        }
        Some(_) | None => {}
    }
}

/// First batch number and content of a segment's first record; `None` when it is damaged.
fn read_start(path: &Path, number: u64, file: &dyn LogFile) -> Result<Option<(u64, SegmentStart)>, OpenError> {
    let mut head = [0; HEADER_BYTES];
    if file.read_exact_at(&mut head, 0).is_err() {
        return Ok(None);
    }
    let sound = |header: &Header| header.kind == Kind::SegmentStart && header.segment == number;
    let Some(header) = Header::decode(&head).ok().filter(sound) else { return Ok(None) };
    let Ok(payload) = read_payload(file, 0, &header) else { return Ok(None) };
    let format = serde_json::from_slice::<FormatOnly>(&payload).map_or(0, |start| start.format);
    if format != FORMAT {
        return Err(OpenError::Format { path: path.to_owned(), found: format, supported: FORMAT });
    }
    Ok(serde_json::from_slice(&payload).ok().map(|start| (header.batch, start)))
}

#[derive(serde::Deserialize)]
struct FormatOnly {
    format: u32,
}

#[cfg(test)]
pub(crate) mod tests;
