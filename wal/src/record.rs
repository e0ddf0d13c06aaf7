//! The persisted record, format 1.
//!
//! A segment is a sequence of records. Each has a fixed header of [`HEADER_BYTES`] bytes, little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `SDB1` |
//! | 4 | 1 | kind, see [`Kind`] |
//! | 5 | 3 | zero |
//! | 8 | 4 | payload length |
//! | 12 | 4 | crc32c of the payload |
//! | 16 | 4 | crc32c of the header with this field zero |
//! | 20 | 4 | group |
//! | 24 | 8 | segment number (a recycled or copied file cannot pass for another) |
//! | 32 | 8 | batch sequence, +1 for each record of the log, no gaps |
//! | 40 | 8 | term of the last entry or of the vote, 0 where it means nothing |
//! | 48 | 8 | first index |
//! | 56 | 8 | last index (for truncate-after: the last index kept, plus one) |
//! | 64 | 8 | flushed: every batch below this sequence was fdatasynced before this record was written |
//!
//! A segment begins with its preamble, on disk before the file gets its name, all with flushed = 0: a
//! [`Kind::SegmentStart`]; for each group what its checkpoint says as records of their own ([`Kind::Vote`],
//! [`Kind::Trust`], [`Kind::Purge`], [`Kind::Committed`]), so that one damaged place in the preamble loses nothing; a
//! [`Kind::TruncateAfter`] for each group that a quarantine cut; the [`Kind::Checkpoint`].

use std::collections::BTreeMap;
use std::fmt;

use crate::found::Quarantined;

/// Bytes of a record header.
pub const HEADER_BYTES: usize = 72;
/// Version of the persisted format, written to `metadata.json` and to each segment's first record.
pub const FORMAT: u32 = 1;
/// Longest payload: bounds what a damaged length can make a reader allocate.
pub const PAYLOAD_BYTES_MAX: usize = 32 << 20;

pub(crate) const MAGIC: [u8; 4] = *b"SDB1";

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// First record of a segment; payload: [`SegmentStart`] as JSON.
    SegmentStart = 1,
    /// State of every group when the segment was started; payload: see [`encode_checkpoint`].
    Checkpoint = 2,
    /// Entries `first..=last` of a group; payload: for each a length (u32) and the bytes.
    Append = 3,
    /// Entries of the group from `last` on are gone.
    TruncateAfter = 4,
    /// Entries of the group up to and including `last` are gone; payload: the opaque id of entry `last`.
    Purge = 5,
    /// The group's vote; payload opaque.
    Vote = 6,
    /// The group's committed position; payload opaque.
    Committed = 7,
    /// Whether the group's unsynced acknowledgments survived (DESIGN section 3, R2); payload opaque.
    Trust = 8,
    /// Index of a sealed segment, its last record; payload: see [`encode_footer`].
    Footer = 9,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::SegmentStart => "segment-start",
            Self::Checkpoint => "checkpoint",
            Self::Append => "append",
            Self::TruncateAfter => "truncate-after",
            Self::Purge => "purge",
            Self::Vote => "vote",
            Self::Committed => "committed",
            Self::Trust => "trust",
            Self::Footer => "footer",
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::SegmentStart,
            2 => Self::Checkpoint,
            3 => Self::Append,
            4 => Self::TruncateAfter,
            5 => Self::Purge,
            6 => Self::Vote,
            7 => Self::Committed,
            8 => Self::Trust,
            9 => Self::Footer,
            _ => return None,
        })
    }
}

/// Header of a record, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub payload_len: u32,
    pub payload_crc: u32,
    pub group: u32,
    pub segment: u64,
    pub batch: u64,
    pub term: u64,
    pub first: u64,
    pub last: u64,
    pub flushed: u64,
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadHeader {
    Short,
    Zeros,
    Magic,
    Checksum,
    Kind,
    TooLong,
}

impl fmt::Display for BadHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "record header runs past the end",
            Self::Zeros => "zeros instead of a record",
            Self::Magic => "no record magic",
            Self::Checksum => "record header checksum mismatch",
            Self::Kind => "unknown record kind",
            Self::TooLong => "record length out of bounds",
        })
    }
}

impl Header {
    /// A header that says just: here is a footer.
    pub(crate) fn footer(segment: u64, batch: u64) -> Self {
        let (kind, payload_len, payload_crc) = (Kind::Footer, 0, 0);
        Self { kind, payload_len, payload_crc, group: 0, segment, batch, term: 0, first: 0, last: 0, flushed: 0 }
    }

    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4] = self.kind as u8;
        out[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[20..24].copy_from_slice(&self.group.to_le_bytes());
        for (at, value) in [
            (24, self.segment),
            (32, self.batch),
            (40, self.term),
            (48, self.first),
            (56, self.last),
            (64, self.flushed),
        ] {
            out[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out);
        out[16..20].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes a header from the start of `bytes`.
    ///
    /// # Errors
    /// [`BadHeader`] tells a torn end (short, zeros) from damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let Some(head) = bytes.get(..HEADER_BYTES) else {
            return Err(if bytes.iter().all(|b| *b == 0) { BadHeader::Zeros } else { BadHeader::Short });
        };
        if head[0..4] != MAGIC {
            return Err(if head.iter().all(|b| *b == 0) { BadHeader::Zeros } else { BadHeader::Magic });
        }
        let mut checked: [u8; HEADER_BYTES] = head.try_into().map_err(|_| BadHeader::Short)?;
        checked[16..20].fill(0);
        if crc32c::crc32c(&checked) != le_u32(head, 16) {
            return Err(BadHeader::Checksum);
        }
        let header = Self {
            kind: Kind::from_byte(head[4]).ok_or(BadHeader::Kind)?,
            payload_len: le_u32(head, 8),
            payload_crc: le_u32(head, 12),
            group: le_u32(head, 20),
            segment: le_u64(head, 24),
            batch: le_u64(head, 32),
            term: le_u64(head, 40),
            first: le_u64(head, 48),
            last: le_u64(head, 56),
            flushed: le_u64(head, 64),
        };
        if header.payload_len as usize > PAYLOAD_BYTES_MAX {
            return Err(BadHeader::TooLong);
        }
        Ok(header)
    }

    /// Bytes of the whole record.
    pub fn record_len(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.payload_len)
    }
}

/// Payload of a segment's first record. A field that says nothing is absent, as it was before it existed.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SegmentStart {
    pub format: u32,
    pub disk_id: String,
    /// Number and valid length of the segment before; bytes of it beyond that length are not part of the log.
    pub previous: Option<(u64, u64)>,
    /// Records from this one to the checkpoint, both included.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub preamble: u64,
    /// Bytes of the preamble behind this record: whether a damaged checkpoint was the last thing there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub preamble_rest_bytes: u64,
    /// Damage in earlier segments that the start which wrote this had found and dealt with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settled: Vec<Settled>,
    /// What `repair` accepted as lost, by group, for the next start to know.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub accepted: BTreeMap<u32, Quarantined>,
}

/// A damaged place that was dealt with.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Settled {
    pub segment: u64,
    pub offset: u64,
    pub bytes: u64,
    /// Batches from `batch` on and below `next` were there.
    pub batch: u64,
    pub next: u64,
    /// Nothing is known of them: not even that a later read may be believed.
    pub unknown: bool,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What a checkpoint keeps of one group; byte strings are opaque to the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupMeta {
    pub vote: Option<Vec<u8>>,
    pub committed: Option<Vec<u8>>,
    /// Id and index of the last purged entry.
    pub purged: Option<(u64, Vec<u8>)>,
    pub trust: Option<Vec<u8>>,
}

/// Encodes the groups of a checkpoint: for each the number (u32), then vote, committed, purged id and trust, each as
/// a presence byte, a length (u32) and bytes, with the purged index (u64) before the purged id.
pub fn encode_checkpoint<'a>(groups: impl IntoIterator<Item = (u32, &'a GroupMeta)>) -> Vec<u8> {
    let mut out = Vec::new();
    let field = |out: &mut Vec<u8>, bytes: Option<&[u8]>| match bytes {
        None => out.push(0),
        Some(bytes) => {
            out.push(1);
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(bytes);
        }
    };
    for (group, meta) in groups {
        out.extend_from_slice(&group.to_le_bytes());
        field(&mut out, meta.vote.as_deref());
        field(&mut out, meta.committed.as_deref());
        out.extend_from_slice(&meta.purged.as_ref().map_or(0, |(index, _)| *index).to_le_bytes());
        field(&mut out, meta.purged.as_ref().map(|(_, id)| id.as_slice()));
        field(&mut out, meta.trust.as_deref());
    }
    out
}

/// Decodes [`encode_checkpoint`]; `None` when the bytes are cut short.
pub fn decode_checkpoint(mut bytes: &[u8]) -> Option<Vec<(u32, GroupMeta)>> {
    fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
        let (head, rest) = bytes.split_at_checked(n)?;
        *bytes = rest;
        Some(head)
    }
    fn field(bytes: &mut &[u8]) -> Option<Option<Vec<u8>>> {
        if take(bytes, 1)?[0] == 0 {
            return Some(None);
        }
        let len = le_u32(take(bytes, 4)?, 0) as usize;
        Some(Some(take(bytes, len)?.to_vec()))
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let group = le_u32(take(&mut bytes, 4)?, 0);
        let vote = field(&mut bytes)?;
        let committed = field(&mut bytes)?;
        let purged_index = le_u64(take(&mut bytes, 8)?, 0);
        let purged = field(&mut bytes)?.map(|id| (purged_index, id));
        let trust = field(&mut bytes)?;
        out.push((group, GroupMeta { vote, committed, purged, trust }));
    }
    Some(out)
}

/// Encodes the index of a sealed segment: the headers of its records, in order, each after its offset (u64).
pub fn encode_footer(records: &[(u64, Header)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(records.len() * (8 + HEADER_BYTES));
    for (offset, header) in records {
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&header.encode());
    }
    out
}

/// Decodes [`encode_footer`]; `None` when an entry is damaged.
pub fn decode_footer(bytes: &[u8]) -> Option<Vec<(u64, Header)>> {
    if !bytes.len().is_multiple_of(8 + HEADER_BYTES) {
        return None;
    }
    bytes
        .chunks_exact(8 + HEADER_BYTES)
        .map(|chunk| Some((le_u64(chunk, 0), Header::decode(&chunk[8..]).ok()?)))
        .collect()
}

/// Splits the payload of an append record into its entries; `None` when lengths do not add up.
pub fn split_entries(mut payload: &[u8]) -> Option<Vec<&[u8]>> {
    let mut out = Vec::new();
    while !payload.is_empty() {
        let (len, rest) = payload.split_at_checked(4)?;
        let (entry, rest) = rest.split_at_checked(le_u32(len, 0) as usize)?;
        out.push(entry);
        payload = rest;
    }
    Some(out)
}

pub(crate) fn le_u32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |sum, b| sum << 8 | u32::from(*b))
}

pub(crate) fn le_u64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: Kind::Append,
            payload_len: 5,
            payload_crc: 7,
            group: 3,
            segment: 1,
            batch: 9,
            term: 2,
            first: 10,
            last: 12,
            flushed: 8,
        }
    }

    #[test]
    fn header_survives_and_damage_is_seen() {
        let bytes = header().encode();
        assert_eq!(Header::decode(&bytes), Ok(header()));
        for at in 0..HEADER_BYTES {
            let mut bad = bytes;
            bad[at] ^= 0x10;
            assert!(Header::decode(&bad).is_err(), "flip at {at}");
        }
        assert_eq!(Header::decode(&bytes[..40]), Err(BadHeader::Short));
        assert_eq!(Header::decode(&[0; 200]), Err(BadHeader::Zeros));
    }

    #[test]
    fn golden_header_of_format_1() {
        let hex: String = header().encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "53444231030000000500000007000000".to_owned()
                + &hex[32..40]
                + "03000000010000000000000009000000000000000200000000000000"
                + "0a000000000000000c000000000000000800000000000000"
        );
    }

    #[test]
    fn golden_segment_start_of_format_1() {
        let golden = r#"{"format":1,"disk_id":"d","previous":[3,70]}"#;
        let start: SegmentStart = serde_json::from_str(golden).expect("is one");
        assert_eq!((start.previous, start.preamble, start.settled.len()), (Some((3, 70)), 0, 0));
        assert_eq!(serde_json::to_string(&start).expect("is JSON"), golden);
        let place = Settled { segment: 2, offset: 72, bytes: 80, batch: 9, next: 10, unknown: true };
        let full = SegmentStart { preamble: 4, preamble_rest_bytes: 216, settled: vec![place], ..start };
        let golden = concat!(
            r#"{"format":1,"disk_id":"d","previous":[3,70],"preamble":4,"preamble_rest_bytes":216,"#,
            r#""settled":[{"segment":2,"offset":72,"bytes":80,"batch":9,"next":10,"unknown":true}]}"#
        );
        assert_eq!(serde_json::to_string(&full).expect("is JSON"), golden);
    }

    #[test]
    fn checkpoint_round_trip() {
        let full = GroupMeta {
            vote: Some(vec![1, 2]),
            committed: Some(vec![]),
            purged: Some((7, vec![9])),
            trust: Some(vec![1]),
        };
        let groups = [(0, GroupMeta::default()), (4, full)];
        let bytes = encode_checkpoint(groups.iter().map(|(g, m)| (*g, m)));
        assert_eq!(decode_checkpoint(&bytes).as_deref(), Some(&groups[..]));
        assert_eq!(decode_checkpoint(&bytes[..bytes.len() - 1]), None);
    }
}
