//! Reading one segment, record by record: what is sound, and what is not.

use std::io;

use crate::found::{TailKind, TornTail};
use crate::io::LogFile;
use crate::record::{self, HEADER_BYTES, Header, Kind, MAGIC, Settled};

/// A run of zeros at the end of a file counts as never written from this length on: a payload may end in a few itself.
const ZEROS_MIN: usize = 16;
/// Read one after the other when a file cannot be read in one piece: what a bad sector takes.
const BLOCK_BYTES: usize = 4096;
/// Stands for bytes that the disk does not return. Not zero: zeros are what a cut write leaves. Known on disk: a start writes
/// the newest segment anew, and docs/deployment/wal-persistence.md has copies of a bad disk filled with it.
const UNREADABLE: u8 = 0xEE;
/// The least that a disk does not return.
const SECTOR_BYTES: usize = 512;

/// Part of a segment, in the order of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// A record at its offset.
    Sound(u64, Header),
    Bad(Bad),
}

/// A place that is not a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bad {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// The batch that was expected here.
    pub(crate) batch: u64,
    /// The batch behind it; `batch` itself while nobody knows.
    pub(crate) next: u64,
    /// Known when only the payload is damaged, or by a footer.
    pub(crate) header: Option<Header>,
    pub(crate) reason: String,
}

impl Bad {
    /// Records that should be at the end of a segment, and the bytes are not there at all.
    pub(crate) fn missing(segment: u64, offset: u64, batch: u64, next: u64) -> Self {
        let reason = format!("batches {batch} to {} are missing", next.saturating_sub(1));
        Self { segment, offset, bytes: 0, batch, next, header: None, reason }
    }
}

impl Item {
    /// The footer that sealed a segment of `len` bytes; its content was read already.
    pub(crate) fn footer(segment: u64, len: u64, batch: u64) -> Self {
        Self::Sound(len.saturating_sub(HEADER_BYTES as u64), Header::footer(segment, batch))
    }

    pub(crate) fn header(&self) -> Option<&Header> {
        match self {
            Self::Sound(_, header) => Some(header),
            Self::Bad(bad) => bad.header.as_ref(),
        }
    }

    pub(crate) fn batch(&self) -> u64 {
        match self {
            Self::Sound(_, header) => header.batch,
            Self::Bad(bad) => bad.batch,
        }
    }

    /// The batch behind it.
    pub(crate) fn next(&self) -> u64 {
        match self {
            Self::Sound(_, header) => header.batch + 1,
            Self::Bad(bad) => bad.next,
        }
    }

    pub(crate) fn end(&self) -> u64 {
        match self {
            Self::Sound(offset, header) => offset + header.record_len(),
            Self::Bad(bad) => bad.offset + bad.bytes,
        }
    }

    pub(crate) fn is_bad(&self) -> bool {
        matches!(self, Self::Bad(_))
    }

    pub(crate) fn is_sound(&self, kind: Kind) -> bool {
        matches!(self, Self::Sound(_, header) if header.kind == kind)
    }
}

/// Reads the first `len` bytes, or as many as there are. Bytes that the disk does not return are replaced: they cannot
/// pass for a record.
pub(crate) fn read_content(file: &dyn LogFile, len: u64) -> io::Result<Vec<u8>> {
    read_blocks(file, len).map(|(content, _)| content)
}

/// The same, and whether the disk returned all of it.
pub(crate) fn read_blocks(file: &dyn LogFile, len: u64) -> io::Result<(Vec<u8>, bool)> {
    let len = usize::try_from(len.min(file.size()?)).map_err(io::Error::other)?;
    let (mut content, mut whole) = (vec![0; len], true);
    if file.read_exact_at(&mut content, 0).is_err() {
        for (at, block) in content.chunks_mut(BLOCK_BYTES).enumerate() {
            if file.read_exact_at(block, (at * BLOCK_BYTES) as u64).is_err() {
                block.fill(UNREADABLE);
                whole = false;
            }
        }
    }
    Ok((content, whole))
}

/// Goes through a segment without the help of an index. `first` is the batch that it begins with, if that is known.
///
/// A place in `settled` of which nothing was known stays bad, however it reads today: later records are to be taken as
/// the start that settled it took them.
pub(crate) fn scan(content: &[u8], number: u64, first: Option<u64>, settled: &[Settled]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut expected = first;
    let mut at = 0;
    while at < content.len() {
        let offset = at as u64;
        let bad = |bytes: usize, next: Option<u64>, header: Option<Header>, reason: String| Bad {
            segment: number,
            offset,
            bytes: bytes as u64,
            batch: expected.unwrap_or(0),
            next: next.or(expected).unwrap_or(0),
            header,
            reason,
        };
        let known = settled.iter().find(|place| place.unknown && place.segment == number && place.offset == offset);
        let item = match (known.filter(|known| known.bytes > 0), check_record(&content[at..], number, expected)) {
            (Some(known), _) => {
                let bytes = usize::try_from(known.bytes).unwrap_or(usize::MAX).min(content.len() - at);
                Item::Bad(bad(bytes, Some(known.next), None, "unreadable at an earlier start".to_owned()))
            }
            (None, Ok(header)) => Item::Sound(offset, header),
            (None, Err(reason)) => Item::Bad(match sound_header(&content[at..], number, expected) {
                // Its length is known, so nothing that a client put into the payload is taken for a record.
                Some(header) => {
                    let bytes = usize::try_from(header.record_len()).unwrap_or(usize::MAX).min(content.len() - at);
                    bad(bytes, Some(header.batch + 1), Some(header), reason)
                }
                None => match resync(content, at, number, expected) {
                    Some((behind, header)) => bad(behind - at, Some(header.batch), None, reason),
                    None => bad(content.len() - at, None, None, reason),
                },
            }),
        };
        let footer = item.is_sound(Kind::Footer);
        expected = Some(item.next());
        at = usize::try_from(item.end()).unwrap_or(usize::MAX);
        items.push(item);
        if footer {
            // Only the trailer follows.
            break;
        }
    }
    items
}

/// Compares a sealed segment with the index at its end.
pub(crate) fn scan_indexed(content: &[u8], number: u64, records: &[(u64, Header)]) -> Vec<Item> {
    let check = |(offset, header): &(u64, Header)| {
        let rest = content.get(usize::try_from(*offset).unwrap_or(usize::MAX)..).unwrap_or(&[]);
        let reason = match check_record(rest, number, Some(header.batch)) {
            Ok(found) if found == *header => return Item::Sound(*offset, *header),
            Ok(_) => "record differs from the segment's index".to_owned(),
            Err(reason) => reason,
        };
        Item::Bad(Bad {
            segment: number,
            offset: *offset,
            bytes: header.record_len(),
            batch: header.batch,
            next: header.batch + 1,
            header: Some(*header),
            reason,
        })
    };
    records.iter().map(check).collect()
}

/// Takes the torn tail off a segment that nothing seals: from the first bad place whose batch nobody knows to be on
/// disk. Batches below `floor` are. There is none where bytes could not be read, now or by a start that was killed before its
/// decision was on disk.
pub(crate) fn take_torn_tail(items: &mut Vec<Item>, content: &[u8], floor: u64) -> Option<TornTail> {
    let flushed = items.iter().filter_map(Item::header).map(|header| header.flushed).fold(floor, u64::max);
    let at = items.iter().position(|item| item.is_bad() && item.batch() >= flushed)?;
    let Some(Item::Bad(bad)) = items.get(at).cloned() else { return None };
    let from = usize::try_from(bad.offset).unwrap_or(usize::MAX).min(content.len());
    if content.chunks(SECTOR_BYTES).skip(from / SECTOR_BYTES).any(is_stand_in) {
        return None;
    }
    let behind = items.split_off(at);
    let rest = &content[from..];
    let last = behind.iter().all(Item::is_bad);
    let kind = if last && is_cut_short(rest, bad.segment, bad.batch) { TailKind::CutShort } else { TailKind::Bad };
    let bytes = content.len() as u64 - bad.offset;
    Some(TornTail { segment: bad.segment, offset: bad.offset, bytes, kind, reason: bad.reason })
}

/// Whether a sector was written in place of one that could not be read. The last one of a file may be short.
fn is_stand_in(sector: &[u8]) -> bool {
    sector.len() >= ZEROS_MIN && sector.iter().all(|byte| *byte == UNREADABLE)
}

/// Whether `rest`, which is not a record, is the beginning of one that ends with the file or goes over into zeros. All
/// that can be checked of it must be right: where in doubt, bytes are missing that had been written.
fn is_cut_short(rest: &[u8], number: u64, expected: u64) -> bool {
    let zeros = rest.iter().rev().take_while(|byte| **byte == 0).count();
    let written = if zeros >= ZEROS_MIN || zeros == rest.len() { &rest[..rest.len() - zeros] } else { rest };
    let into_zeros = written.len() < rest.len();
    match sound_header(rest, number, Some(expected)) {
        Some(header) => {
            let past_end = header.record_len() > rest.len() as u64;
            past_end || into_zeros && (written.len() as u64) < header.record_len()
        }
        // Of a header that is not whole only the beginning can be checked.
        None => {
            let partial = written.len() < HEADER_BYTES && (into_zeros || rest.len() < HEADER_BYTES);
            partial && written.iter().zip(MAGIC).all(|(found, magic)| *found == magic)
        }
    }
}

fn check_record(bytes: &[u8], number: u64, expected: Option<u64>) -> Result<Header, String> {
    let header = Header::decode(bytes).map_err(|bad| bad.to_string())?;
    if header.segment != number {
        return Err(format!("record of segment {}", header.segment));
    }
    if let Some(expected) = expected.filter(|expected| *expected != header.batch) {
        return Err(format!("batch {} where {expected} was expected", header.batch));
    }
    let payload = bytes
        .get(HEADER_BYTES..HEADER_BYTES + header.payload_len as usize)
        .ok_or_else(|| "record payload runs past the end".to_owned())?;
    if crc32c::crc32c(payload) != header.payload_crc {
        return Err("record payload checksum mismatch".to_owned());
    }
    Ok(header)
}

fn sound_header(bytes: &[u8], number: u64, expected: Option<u64>) -> Option<Header> {
    let next = |header: &Header| header.segment == number && expected.is_none_or(|batch| batch == header.batch);
    Header::decode(bytes).ok().filter(next)
}

/// Finds the next record behind a header that is damaged. It must be of a batch that the bytes between can have led up
/// to: they may hold what a client sent.
fn resync(content: &[u8], bad: usize, number: u64, expected: Option<u64>) -> Option<(usize, Header)> {
    let plausible = |at: usize, header: &Header| {
        let records_between = ((at - bad) / HEADER_BYTES) as u64;
        expected.is_none_or(|expected| header.batch > expected && header.batch <= expected + records_between)
    };
    (bad + 1..content.len().saturating_sub(HEADER_BYTES - 1)).find_map(|at| {
        let rest = &content[at..];
        let header = rest.starts_with(&MAGIC).then(|| sound_header(rest, number, None)).flatten()?;
        plausible(at, &header).then_some((at, header))
    })
}

/// The payload of the record at `offset`.
///
/// # Errors
/// Says why it cannot be read.
pub(crate) fn read_payload(file: &dyn LogFile, offset: u64, header: &Header) -> Result<Vec<u8>, String> {
    let mut payload = vec![0; header.payload_len as usize];
    file.read_exact_at(&mut payload, offset + HEADER_BYTES as u64).map_err(|error| error.to_string())?;
    if crc32c::crc32c(&payload) == header.payload_crc {
        Ok(payload)
    } else {
        Err("record payload checksum mismatch".to_owned())
    }
}

/// The index at the end of a segment of `limit` bytes, if it is sealed by one.
pub(crate) fn read_footer(file: &dyn LogFile, number: u64, limit: u64) -> Option<Vec<(u64, Header)>> {
    let at = limit.checked_sub(super::TRAILER_BYTES as u64)?;
    let mut trailer = [0; super::TRAILER_BYTES];
    file.read_exact_at(&mut trailer, at).ok()?;
    let offset = super::decode_trailer(&trailer)?;
    let mut head = [0; HEADER_BYTES];
    file.read_exact_at(&mut head, offset).ok()?;
    let header = Header::decode(&head).ok().filter(|header| {
        header.kind == Kind::Footer && header.segment == number && offset + header.record_len() == at
    })?;
    record::decode_footer(&read_payload(file, offset, &header).ok()?)
}
