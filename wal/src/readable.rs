//! Entries of a log that is not open, for tools: whatever can still be read of it, damage or not.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use crate::error::OpenError;
use crate::io::LogIo;
use crate::record::{self, HEADER_BYTES, Header, Kind, SegmentStart};
use crate::recovery::{read_content, segment_path};

/// What was made of the entries, by group and index.
pub type Readable<T> = BTreeMap<u32, BTreeMap<u64, T>>;

/// Makes a `T` of each entry that is neither truncated nor purged and whose record is whole; `make` gets group, index
/// and bytes. One segment is in memory at a time.
///
/// Unlike a start this goes on behind damage: entries behind it are readable, and still not part of a log that anybody
/// can serve. A gap in the indexes of a group is what cannot be read. Behind a damaged header the next record is
/// searched for, and bytes that a client sent might look like one: this is for reports, not for recovery.
///
/// # Errors
/// When a file cannot be opened. Bytes that the disk does not return are damage like any other.
pub fn readable_entries<T>(
    io: &dyn LogIo,
    dir: &Path,
    mut make: impl FnMut(u32, u64, Bytes) -> T,
) -> Result<Readable<T>, OpenError> {
    let segments = dir.join("segments");
    let mut numbers: Vec<u64> = io
        .list(&segments)
        .map_err(OpenError::io("list", &segments))?
        .iter()
        .filter_map(|name| name.strip_suffix(".wal")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    let mut out = Readable::new();
    for number in numbers {
        let path = segment_path(&segments, number);
        let file = io.open(&path).map_err(OpenError::io("open", &path))?;
        let len = file.size().map_err(OpenError::io("measure", &path))?;
        let len = sealed_len(io, &segments, number).map_or(len, |sealed| sealed.min(len));
        let content = read_content(file.as_ref(), len).map_err(OpenError::io("read", &path))?;
        follow_segment(&Bytes::from(content), number, &mut out, &mut make);
    }
    Ok(out)
}

/// What the next segment says of the length of segment `number`; bytes behind that are not part of the log.
fn sealed_len(io: &dyn LogIo, segments: &Path, number: u64) -> Option<u64> {
    let next = io.open(&segment_path(segments, number + 1)).ok()?;
    let mut head = [0; HEADER_BYTES];
    next.read_exact_at(&mut head, 0).ok()?;
    let header = Header::decode(&head).ok().filter(|header| header.kind == Kind::SegmentStart)?;
    let mut payload = vec![0; header.payload_len as usize];
    next.read_exact_at(&mut payload, HEADER_BYTES as u64).ok()?;
    let whole = crc32c::crc32c(&payload) == header.payload_crc;
    let start: SegmentStart = serde_json::from_slice(&payload).ok().filter(|_| whole)?;
    start.previous.filter(|(previous, _)| *previous == number).map(|(_, len)| len)
}

fn follow_segment<T>(content: &Bytes, number: u64, out: &mut Readable<T>, make: &mut impl FnMut(u32, u64, Bytes) -> T) {
    let mut at = 0;
    while at < content.len() {
        let Some(header) = Header::decode(&content[at..]).ok().filter(|header| header.segment == number) else {
            at += 1;
            continue;
        };
        let payload_at = at + HEADER_BYTES;
        let end = payload_at + header.payload_len as usize;
        if end <= content.len() {
            let payload = content.slice(payload_at..end);
            if crc32c::crc32c(&payload) == header.payload_crc {
                follow(&header, &payload, out, make);
            }
        }
        at = end;
    }
}

fn follow<T>(header: &Header, payload: &Bytes, out: &mut Readable<T>, make: &mut impl FnMut(u32, u64, Bytes) -> T) {
    let group = header.group;
    match header.kind {
        Kind::Append => {
            let entries = record::split_entries(payload).unwrap_or_default();
            for (index, entry) in (header.first..=header.last).zip(entries) {
                let made = make(group, index, payload.slice_ref(entry));
                out.entry(group).or_default().insert(index, made);
            }
        }
        Kind::TruncateAfter => drop(out.entry(group).or_default().split_off(&header.last)),
        Kind::Purge => purge(out.entry(group).or_default(), header.last),
        Kind::Checkpoint => {
            for (group, meta) in record::decode_checkpoint(payload).unwrap_or_default() {
                if let Some((purged, _)) = meta.purged {
                    purge(out.entry(group).or_default(), purged);
                }
            }
        }
        _ => {}
    }
}

fn purge<T>(entries: &mut BTreeMap<u64, T>, upto: u64) {
    *entries = entries.split_off(&upto.saturating_add(1));
}
