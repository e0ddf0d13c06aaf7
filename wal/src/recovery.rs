//! What a start does with the segments that it finds.
//!
//! The flushed position decides (DESIGN section 5): a bad record above it is the torn end of a write that nobody was
//! told about, and is cut off; below it acknowledged bytes are damaged, and the start stops. Nothing is ever
//! appended behind what was found: every start seals the last segment and begins a new one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::OpenError;
use crate::found::{TailKind, TornTail};
use crate::index::{DiskPlace, GroupIndex};
use crate::io::{LogFile, LogIo};
use crate::record::{self, FORMAT, HEADER_BYTES, Header, Kind, SegmentStart};

/// Bytes of the fixed trailer of a sealed segment: footer offset (u64), its crc32c (u32), magic `SDBF`.
pub(crate) const TRAILER_BYTES: usize = 16;
const TRAILER_MAGIC: [u8; 4] = *b"SDBF";

/// Everything a start learned.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) groups: BTreeMap<u32, GroupIndex>,
    pub(crate) segments: BTreeMap<u64, Segment>,
    pub(crate) next_batch: u64,
    pub(crate) torn: Option<TornTail>,
    /// A segment whose start a crash interrupted: it holds nothing and has to be removed.
    pub(crate) unfinished: Option<u64>,
}

#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn LogFile>,
    /// Bytes that belong to the log.
    pub(crate) len: u64,
}

pub(crate) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:06}.wal"))
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
    valid.then(|| bytes[..8].iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b)))
}

/// Reads all segments of `dir` and rebuilds the index without a torn end. Changes nothing.
///
/// # Errors
/// [`OpenError::Corrupt`] when bytes known to be on disk are damaged.
pub(crate) fn recover(io: &dyn LogIo, dir: &Path) -> Result<Recovered, OpenError> {
    let mut found = open_segments(io, dir)?;
    let unfinished = take_unfinished_segment(dir, &mut found)?;
    let starts =
        found.iter().map(|(number, file)| read_start(dir, *number, file.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let mut recovered = Recovered {
        groups: BTreeMap::new(),
        segments: BTreeMap::new(),
        next_batch: starts.first().map_or(1, |start| start.0),
        torn: None,
        unfinished,
    };
    for (at, (number, file)) in found.iter().enumerate() {
        let path = segment_path(dir, *number);
        let file_len = file.size().map_err(OpenError::io("measure", &path))?;
        let sealed_len = starts.get(at + 1).and_then(|(_, start)| start.previous).map(|(_, len)| len);
        let last = at + 1 == found.len();
        let limit = sealed_len.unwrap_or(file_len).min(file_len);
        let indexed = if last { None } else { read_footer(file.as_ref(), *number, limit) };
        let (records, len) = match indexed {
            Some(records) => {
                recovered.next_batch = records.last().map_or(recovered.next_batch, |(_, header)| header.batch + 2);
                (records, limit)
            }
            None => scan_or_cut(&path, *number, file, limit, last, &mut recovered)?,
        };
        for (offset, header) in &records {
            replay(*number, *offset, header, file.as_ref(), &mut recovered.groups).map_err(|reason| {
                OpenError::Corrupt {
                    segment: *number,
                    offset: *offset,
                    batch: header.batch,
                    groups: vec![header.group],
                    reason,
                }
            })?;
        }
        recovered.segments.insert(*number, Segment { file: Arc::clone(file), len });
    }
    Ok(recovered)
}

/// Segments in order, by number.
type OpenSegments = Vec<(u64, Arc<dyn LogFile>)>;

fn open_segments(io: &dyn LogIo, dir: &Path) -> Result<OpenSegments, OpenError> {
    let mut numbers: Vec<u64> = io
        .list(dir)
        .map_err(OpenError::io("list", dir))?
        .iter()
        .filter_map(|name| name.strip_suffix(".wal")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    let open = |number: u64| {
        let path = segment_path(dir, number);
        Ok((number, io.open(&path).map_err(OpenError::io("open", path))?))
    };
    numbers.into_iter().map(open).collect()
}

/// A crash while a segment is being started leaves a file without a synced checkpoint: it holds nothing.
fn take_unfinished_segment(dir: &Path, found: &mut OpenSegments) -> Result<Option<u64>, OpenError> {
    let Some((number, file)) = found.last() else { return Ok(None) };
    let (number, path) = (*number, segment_path(dir, *number));
    let len = file.size().map_err(OpenError::io("measure", &path))?;
    let scan = scan(file.as_ref(), number, len, None).map_err(OpenError::io("read", &path))?;
    if scan.records.len() >= 2 || scan.bad.as_ref().is_some_and(|bad| bad.later.is_some()) {
        return Ok(None);
    }
    found.pop();
    Ok(Some(number))
}

/// First batch number and content of a segment's first record.
fn read_start(dir: &Path, number: u64, file: &dyn LogFile) -> Result<(u64, SegmentStart), OpenError> {
    let path = segment_path(dir, number);
    let corrupt = |reason: String| OpenError::Corrupt { segment: number, offset: 0, batch: 0, groups: vec![], reason };
    let mut head = [0; HEADER_BYTES];
    file.read_exact_at(&mut head, 0).map_err(OpenError::io("read", &path))?;
    let header = Header::decode(&head).map_err(|bad| corrupt(bad.to_string()))?;
    let payload = read_payload(file, 0, &header).map_err(corrupt)?;
    let start: SegmentStart = serde_json::from_slice(&payload).map_err(|error| corrupt(error.to_string()))?;
    if start.format != FORMAT {
        return Err(OpenError::Format { path, found: start.format, supported: FORMAT });
    }
    Ok((header.batch, start))
}

fn read_footer(file: &dyn LogFile, number: u64, limit: u64) -> Option<Vec<(u64, Header)>> {
    let at = limit.checked_sub(TRAILER_BYTES as u64)?;
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(&mut trailer, at).ok()?;
    let offset = decode_trailer(&trailer)?;
    let mut head = [0; HEADER_BYTES];
    file.read_exact_at(&mut head, offset).ok()?;
    let header = Header::decode(&head).ok().filter(|header| {
        header.kind == Kind::Footer && header.segment == number && offset + header.record_len() == at
    })?;
    record::decode_footer(&read_payload(file, offset, &header).ok()?)
}

type Records = Vec<(u64, Header)>;

fn scan_or_cut(
    path: &Path,
    number: u64,
    file: &Arc<dyn LogFile>,
    limit: u64,
    last: bool,
    recovered: &mut Recovered,
) -> Result<(Records, u64), OpenError> {
    let scan = scan(file.as_ref(), number, limit, Some(recovered.next_batch)).map_err(OpenError::io("read", path))?;
    recovered.next_batch += scan.records.len() as u64;
    let Some(bad) = scan.bad else { return Ok((scan.records, scan.end)) };
    let known_flushed = bad.later.as_ref().is_some_and(|later| later.flushed > recovered.next_batch);
    if !last || known_flushed {
        let groups = bad.later.map(|later| later.groups).unwrap_or_default();
        return Err(OpenError::Corrupt {
            segment: number,
            offset: scan.end,
            batch: recovered.next_batch,
            groups,
            reason: bad.reason,
        });
    }
    let kind = if bad.cut_short { TailKind::CutShort } else { TailKind::Bad };
    recovered.torn =
        Some(TornTail { segment: number, offset: scan.end, bytes: limit - scan.end, kind, reason: bad.reason });
    Ok((scan.records, scan.end))
}

struct Scan {
    records: Records,
    /// Offset of the first byte that is not a valid record.
    end: u64,
    bad: Option<Bad>,
}

struct Bad {
    reason: String,
    /// See [`is_cut_short`]; and nothing valid follows.
    cut_short: bool,
    /// Valid records behind the bad one, if any.
    later: Option<Later>,
}

struct Later {
    /// Highest flushed position among them.
    flushed: u64,
    groups: Vec<u32>,
}

fn scan(file: &dyn LogFile, number: u64, limit: u64, first_batch: Option<u64>) -> std::io::Result<Scan> {
    let mut content = vec![0; usize::try_from(limit).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut content, 0)?;
    let mut scan = Scan { records: Vec::new(), end: 0, bad: None };
    let mut expected = first_batch;
    while (scan.end as usize) < content.len() {
        let at = scan.end as usize;
        match check_record(&content[at..], number, expected) {
            Ok(header) => {
                scan.records.push((scan.end, header));
                scan.end += header.record_len();
                expected = Some(header.batch + 1);
                if header.kind == Kind::Footer {
                    // Only the trailer follows.
                    scan.end = limit;
                    break;
                }
            }
            Err(reason) => {
                let behind = (at + skip_bad(&content[at..], number)).min(content.len());
                let later = find_later(&content[behind..], number, expected.unwrap_or(0));
                let cut_short = later.is_none() && is_cut_short(&content[at..], number, expected);
                scan.bad = Some(Bad { reason, cut_short, later });
                break;
            }
        }
    }
    Ok(scan)
}

fn check_record(bytes: &[u8], number: u64, expected: Option<u64>) -> Result<Header, String> {
    let header = Header::decode(bytes).map_err(|bad| bad.to_string())?;
    if header.segment != number {
        return Err(format!("record of segment {}", header.segment));
    }
    if expected.is_some_and(|expected| expected != header.batch) {
        return Err(format!("batch {} where {} was expected", header.batch, expected.unwrap_or(0)));
    }
    let payload = bytes
        .get(HEADER_BYTES..HEADER_BYTES + header.payload_len as usize)
        .ok_or_else(|| "record payload runs past the end".to_owned())?;
    if crc32c::crc32c(payload) != header.payload_crc {
        return Err("record payload checksum mismatch".to_owned());
    }
    Ok(header)
}

/// A run of zeros at the end of a file counts as never written from this length on: a payload may end in a few itself.
const ZEROS_MIN: usize = 16;

/// Whether `rest`, which is not a record, is the beginning of one that ends with the file or goes over into zeros. All
/// that can be checked of it must be right: where in doubt, bytes are missing that had been written.
fn is_cut_short(rest: &[u8], number: u64, expected: Option<u64>) -> bool {
    let zeros = rest.iter().rev().take_while(|byte| **byte == 0).count();
    let written = if zeros >= ZEROS_MIN || zeros == rest.len() { &rest[..rest.len() - zeros] } else { rest };
    let into_zeros = written.len() < rest.len();
    match Header::decode(rest) {
        Ok(header) => {
            let next = header.segment == number && expected.is_none_or(|expected| expected == header.batch);
            let past_end = header.record_len() > rest.len() as u64;
            next && (past_end || into_zeros && (written.len() as u64) < header.record_len())
        }
        // Of a header that is not whole only the beginning can be checked.
        Err(_) => {
            let partial = written.len() < HEADER_BYTES && (into_zeros || rest.len() < HEADER_BYTES);
            partial && written.iter().zip(record::MAGIC).all(|(found, magic)| *found == magic)
        }
    }
}

/// Bytes to skip at a bad record: its whole length if the header is sound, so that nothing that a client put into the
/// payload is taken for a record.
fn skip_bad(bytes: &[u8], number: u64) -> usize {
    let header = Header::decode(bytes).ok().filter(|header| header.segment == number);
    header.map_or(1, |header| usize::try_from(header.record_len()).unwrap_or(usize::MAX))
}

/// Looks for records behind a bad one: they tell whether the bad one had been flushed.
fn find_later(bytes: &[u8], number: u64, expected: u64) -> Option<Later> {
    let mut later: Option<Later> = None;
    let mut at = 0;
    while at + HEADER_BYTES <= bytes.len() {
        let header =
            Header::decode(&bytes[at..]).ok().filter(|header| header.segment == number && header.batch > expected);
        let Some(header) = header else {
            at += 1;
            continue;
        };
        let later = later.get_or_insert(Later { flushed: 0, groups: Vec::new() });
        later.flushed = later.flushed.max(header.flushed);
        if !later.groups.contains(&header.group) {
            later.groups.push(header.group);
        }
        at += usize::try_from(header.record_len()).unwrap_or(usize::MAX).min(bytes.len());
    }
    later
}

pub(crate) fn read_payload(file: &dyn LogFile, offset: u64, header: &Header) -> Result<Vec<u8>, String> {
    let mut payload = vec![0; header.payload_len as usize];
    file.read_exact_at(&mut payload, offset + HEADER_BYTES as u64).map_err(|error| error.to_string())?;
    if crc32c::crc32c(&payload) == header.payload_crc {
        Ok(payload)
    } else {
        Err("record payload checksum mismatch".to_owned())
    }
}

fn replay(
    number: u64,
    offset: u64,
    header: &Header,
    file: &dyn LogFile,
    groups: &mut BTreeMap<u32, GroupIndex>,
) -> Result<(), String> {
    let payload = || read_payload(file, offset, header);
    let place = DiskPlace { segment: number, offset, payload_len: header.payload_len, payload_crc: header.payload_crc };
    match header.kind {
        Kind::SegmentStart | Kind::Footer => {}
        Kind::Checkpoint => {
            let checkpoint = record::decode_checkpoint(&payload()?).ok_or("checkpoint is cut short")?;
            for (group, meta) in checkpoint {
                let index = groups.entry(group).or_default();
                if let Some((purged, id)) = meta.purged.clone() {
                    index.purge_upto(purged, id);
                }
                let purged = index.meta.purged.take();
                index.meta = record::GroupMeta { purged, ..meta };
            }
        }
        kind => {
            let index = groups.entry(header.group).or_default();
            match kind {
                Kind::Append => index.found(header.first, header.last, place),
                Kind::TruncateAfter => index.truncate_from(header.last),
                Kind::Purge => index.purge_upto(header.last, payload()?),
                Kind::Vote => index.meta.vote = Some(payload()?),
                Kind::Committed => index.meta.committed = Some(payload()?),
                Kind::Trust => index.meta.trust = Some(payload()?),
                Kind::SegmentStart | Kind::Checkpoint | Kind::Footer => {}
            }
        }
    }
    Ok(())
}
