//! The second copy of every vote, and of how far the log is known to be on disk.
//!
//! File `votes` beside `segments/`, replaced as a whole (write, fsync, rename, fsync of the directory) after each sync
//! that brought a vote to disk and before anybody is told, before segments are dropped, by each start, and when the
//! log is closed. It holds the same
//! slot twice, so that damage in one half leaves the other. A slot, little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `SDBV` |
//! | 4 | 4 | format, [`FORMAT`] |
//! | 8 | 4 | length of what follows the checksum |
//! | 12 | 4 | crc32c of what follows |
//! | 16 | 8 | flushed: every batch below was fdatasynced |
//! | 24 | 8 | oldest: segments before this one were dropped, no others |
//! | 32 | | for each group: number (u32), term (u64), batch (u64), length (u32) and bytes of the vote |
//!
//! A start takes the maximum of log and file by (term, then the newer batch). The flushed position tells a log that
//! was cut off behind it from one that ends there, the oldest segment one that was dropped from one that is missing.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::io::LogIo;
use crate::record::{le_u32, le_u64};

/// Version of the file.
pub(crate) const FORMAT: u32 = 1;
const MAGIC: [u8; 4] = *b"SDBV";
const HEAD_BYTES: usize = 16;
const NAME: &str = "votes";

/// A vote of one group; the bytes are opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SavedVote {
    pub(crate) term: u64,
    /// The batch that last wrote it.
    pub(crate) batch: u64,
    pub(crate) bytes: Vec<u8>,
}

impl SavedVote {
    /// Votes are ordered by this: none is ever replaced by a lower one.
    pub(crate) fn rank(&self) -> (u64, u64) {
        (self.term, self.batch)
    }
}

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Votes {
    /// Batches below this are on disk.
    pub(crate) flushed: u64,
    /// The first segment that must be there; 0 for any.
    pub(crate) oldest: u64,
    pub(crate) groups: BTreeMap<u32, SavedVote>,
}

/// The file as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VotesFile {
    Missing,
    Damaged,
    Sound(Votes),
}

impl VotesFile {
    pub(crate) fn read(io: &dyn LogIo, dir: &Path) -> io::Result<Self> {
        Ok(match io.read(&dir.join(NAME))? {
            None => Self::Missing,
            Some(content) => Votes::decode(&content).map_or(Self::Damaged, Self::Sound),
        })
    }
}

impl Votes {
    /// Durable on return.
    pub(crate) fn save(&self, io: &dyn LogIo, dir: &Path) -> io::Result<()> {
        let slot = self.encode_slot();
        io.replace(&dir.join(NAME), &[slot.as_slice(), &slot].concat())
    }

    fn encode_slot(&self) -> Vec<u8> {
        let mut body = [self.flushed.to_le_bytes(), self.oldest.to_le_bytes()].concat();
        for (group, vote) in &self.groups {
            body.extend_from_slice(&group.to_le_bytes());
            body.extend_from_slice(&vote.term.to_le_bytes());
            body.extend_from_slice(&vote.batch.to_le_bytes());
            body.extend_from_slice(&(vote.bytes.len() as u32).to_le_bytes());
            body.extend_from_slice(&vote.bytes);
        }
        let mut slot = MAGIC.to_vec();
        for field in [FORMAT, body.len() as u32, crc32c::crc32c(&body)] {
            slot.extend_from_slice(&field.to_le_bytes());
        }
        slot.extend_from_slice(&body);
        slot
    }

    /// `None` when neither half is sound.
    fn decode(content: &[u8]) -> Option<Self> {
        let halves = [content, &content[content.len() / 2..]];
        halves.into_iter().filter_map(Self::decode_slot).max_by_key(|votes| votes.flushed)
    }

    fn decode_slot(content: &[u8]) -> Option<Self> {
        let head = content.get(..HEAD_BYTES).filter(|head| head[..4] == MAGIC && le_u32(head, 4) == FORMAT)?;
        let mut body = content.get(HEAD_BYTES..)?.get(..le_u32(head, 8) as usize)?;
        if crc32c::crc32c(body) != le_u32(head, 12) {
            return None;
        }
        let mut take = |n: usize| {
            let (taken, rest) = body.split_at_checked(n)?;
            body = rest;
            Some(taken)
        };
        let (flushed, oldest) = (le_u64(take(8)?, 0), le_u64(take(8)?, 0));
        let mut groups = BTreeMap::new();
        while let Some(head) = take(24) {
            let bytes = take(le_u32(head, 20) as usize)?.to_vec();
            groups.insert(le_u32(head, 0), SavedVote { term: le_u64(head, 4), batch: le_u64(head, 12), bytes });
        }
        body.is_empty().then_some(Self { flushed, oldest, groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimIo;

    #[test]
    fn a_flip_anywhere_leaves_one_half_and_two_are_seen() {
        let io = SimIo::new();
        let dir = Path::new("/wal");
        assert_eq!(VotesFile::read(&io, dir).expect("reads"), VotesFile::Missing);
        let vote = |term, byte| SavedVote { term, batch: 9, bytes: vec![byte; 17] };
        let votes = Votes { flushed: 12, oldest: 2, groups: BTreeMap::from([(0, vote(3, 1)), (7, vote(5, 2))]) };
        votes.save(&io, dir).expect("saves");
        let len = io.file_len(&dir.join(NAME)).expect("exists");
        for at in 0..len {
            io.flip(&dir.join(NAME), at);
            assert_eq!(VotesFile::read(&io, dir).expect("reads"), VotesFile::Sound(votes.clone()), "flip at {at}");
            io.flip(&dir.join(NAME), (at + len / 2) % len);
            assert_eq!(VotesFile::read(&io, dir).expect("reads"), VotesFile::Damaged, "flips at {at} and beyond");
            votes.save(&io, dir).expect("saves");
        }
    }

    #[test]
    fn golden_slot_of_format_1() {
        let vote = SavedVote { term: 3, batch: 9, bytes: b"v".to_vec() };
        let slot = Votes { flushed: 12, oldest: 2, groups: BTreeMap::from([(7, vote)]) }.encode_slot();
        let mut golden = b"SDBV\x01\0\0\0\x29\0\0\0".to_vec();
        golden.extend_from_slice(&slot[12..16]);
        golden.extend_from_slice(
            b"\x0c\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x07\0\0\0\x03\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x01\0\0\0v",
        );
        assert_eq!(slot, golden);
    }
}
