//! Trace indexes: which rows of a compaction's data files may be of a trace (DESIGN section 10, ADR 17). No I/O.
//!
//! One file a commit, integers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `SDBTIDX1`: the version is its last digit |
//! | 4 | rows of a block |
//! | 4 | length of the directory |
//! | 8 | XXH3 of the 16 bytes before this and of the directory |
//! | | the directory: number of data files; of each its number and its row groups, of each of these the rows; number of leaves; of each leaf the first hash (8), the length (4) and the XXH3 (8) |
//! | | the leaves, of about [`LEAF_BYTES`] |
//!
//! A leaf is a run of entries, sorted by hash and data file: the XXH3 of the trace id (8), then as varints the position of
//! the file in the directory, how many blocks follow, the first of them, and by how much each is after the one before.
//! All entries of a hash are in one leaf. Blocks are counted over the row groups of a file; the last one of a row group may
//! be shorter.
//!
//! The index is of no consequence for answers: rows that it leads to are compared with the trace id all the same, and
//! whoever cannot read it reads the data files without it.

mod build;

use std::collections::BTreeSet;
use std::ops::Range;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

pub(crate) use build::{Section, SectionBuilder, encode};

const MAGIC: &[u8; 8] = b"SDBTIDX1";
/// Before the directory.
const HEADER_BYTES: usize = 24;
/// A leaf ends with the entry that reaches this.
const LEAF_BYTES: usize = 16 << 10;
/// A directory of commits as large as there can be has a few hundred KiB.
const DIRECTORY_BYTES_MAX: usize = 16 << 20;

/// What a reader asks for first: the directory of nearly all indexes, and all of a small one.
pub const HEAD_BYTES: u64 = 64 << 10;

/// The bytes are not an index of a version that is known here, or not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the trace index is damaged, or of a newer version")]
pub struct DamagedIndex;

/// The directory of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceIndex {
    block_rows: u32,
    files: Vec<IndexedFile>,
    leaves: Vec<Leaf>,
}

/// What the beginning of an index came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Head {
    Read(TraceIndex),
    /// So many bytes from the front have the directory.
    Needs(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct IndexedFile {
    /// In its name.
    number: u32,
    /// Rows of each row group.
    groups: Vec<u32>,
}

/// A part of the index with all entries of some hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    first: u64,
    /// Where it is.
    pub range: Range<u64>,
    checksum: u64,
}

/// What a data file's index says: the rows of each row group that may be of the traces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowGroups {
    pub groups: Vec<GroupRows>,
}

/// Rows of one row group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRows {
    /// All that it has.
    pub rows: usize,
    /// Those that may be of the traces, counted in the row group; none when it can be left out.
    pub ranges: Vec<Range<usize>>,
}

/// Blocks of data files, by the files' numbers: what was found for one trace or more.
pub type Blocks = BTreeSet<(u32, u32)>;

/// Where the trace index for a data file is, and which number the file has in it; `None` when it has none.
pub fn trace_index_of(location: &str) -> Option<(String, u32)> {
    crate::names::trace_index_of(location)
}

impl TraceIndex {
    /// Reads the beginning of an index.
    ///
    /// # Errors
    /// [`DamagedIndex`], also for bytes that end too early.
    pub fn read(head: &[u8]) -> Result<Head, DamagedIndex> {
        let mut rest = Reader(head);
        if rest.take(MAGIC.len())? != MAGIC {
            return Err(DamagedIndex);
        }
        let (block_rows, length, checksum) = (rest.u32()?, rest.u32()? as usize, rest.u64()?);
        if length > DIRECTORY_BYTES_MAX || block_rows == 0 {
            return Err(DamagedIndex);
        }
        let Ok(directory) = rest.take(length) else { return Ok(Head::Needs((HEADER_BYTES + length) as u64)) };
        let mut hasher = Xxh3::new();
        hasher.update(head.get(..HEADER_BYTES - 8).ok_or(DamagedIndex)?);
        hasher.update(directory);
        if hasher.digest() != checksum {
            return Err(DamagedIndex);
        }
        Self::directory(block_rows, directory).map(Head::Read)
    }

    fn directory(block_rows: u32, directory: &[u8]) -> Result<Self, DamagedIndex> {
        let mut rest = Reader(directory);
        let (mut files, mut leaves) = (Vec::new(), Vec::new());
        for _ in 0..rest.u32()? {
            let (number, count) = (rest.u32()?, rest.u32()?);
            let groups = (0..count).map(|_| rest.u32()).collect::<Result<_, _>>()?;
            files.push(IndexedFile { number, groups });
        }
        let mut start = (HEADER_BYTES + directory.len()) as u64;
        for _ in 0..rest.u32()? {
            let (first, length, checksum) = (rest.u64()?, u64::from(rest.u32()?), rest.u64()?);
            leaves.push(Leaf { first, range: start..start + length, checksum });
            start += length;
        }
        Ok(Self { block_rows, files, leaves })
    }

    /// Whether the index is of the data file with this number, so many rows and row groups.
    pub fn covers(&self, number: u32, rows: u64, groups: Option<usize>) -> bool {
        let fits = |file: &IndexedFile| {
            file.groups.iter().map(|rows| u64::from(*rows)).sum::<u64>() == rows
                && groups.is_none_or(|groups| groups == file.groups.len())
        };
        self.file(number).is_some_and(fits)
    }

    /// The leaf that has the entries of a trace, if any has.
    pub fn leaf(&self, trace_id: &[u8]) -> Option<&Leaf> {
        let hash = xxh3_64(trace_id);
        let after = self.leaves.partition_point(|leaf| leaf.first <= hash);
        self.leaves.get(after.checked_sub(1)?)
    }

    /// Adds the blocks that may have rows of a trace; `content` is that of its leaf.
    ///
    /// # Errors
    /// [`DamagedIndex`]; nothing was added then.
    pub fn find(&self, leaf: &Leaf, content: &[u8], trace_id: &[u8], found: &mut Blocks) -> Result<(), DamagedIndex> {
        if xxh3_64(content) != leaf.checksum {
            return Err(DamagedIndex);
        }
        let (hash, mut rest, mut blocks) = (xxh3_64(trace_id), Reader(content), Blocks::new());
        while !rest.0.is_empty() {
            let (entry, file, count) = (rest.u64()?, rest.varint()?, rest.varint()?);
            let mut block = 0;
            for _ in 0..count {
                block += rest.varint()?;
                if entry == hash {
                    let file = usize::try_from(file).ok().and_then(|file| self.files.get(file)).ok_or(DamagedIndex)?;
                    blocks.insert((file.number, u32::try_from(block).map_err(|_| DamagedIndex)?));
                }
            }
            if entry > hash {
                break;
            }
        }
        found.extend(blocks);
        Ok(())
    }

    /// The rows of a data file that `blocks` has; `None` when the index is not of it.
    pub fn rows(&self, number: u32, blocks: &Blocks) -> Option<RowGroups> {
        let (mut groups, mut first) = (Vec::new(), 0_u32);
        for rows in &self.file(number)?.groups {
            let count = rows.div_ceil(self.block_rows);
            let here = blocks.range((number, first)..(number, first.saturating_add(count)));
            let ranges = here.map(|(_, block)| {
                let start = (block - first) * self.block_rows;
                start as usize..start.saturating_add(self.block_rows).min(*rows) as usize
            });
            groups.push(GroupRows { rows: *rows as usize, ranges: ranges.collect() });
            first = first.saturating_add(count);
        }
        Some(RowGroups { groups })
    }

    /// About what the directory takes in memory.
    pub fn memory_bytes(&self) -> usize {
        let files = self.files.iter().map(|file| size_of::<IndexedFile>() + 4 * file.groups.len()).sum::<usize>();
        size_of::<Self>() + files + self.leaves.len() * size_of::<Leaf>()
    }

    fn file(&self, number: u32) -> Option<&IndexedFile> {
        self.files.iter().find(|file| file.number == number)
    }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], DamagedIndex> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(DamagedIndex)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, DamagedIndex> {
        let bytes = self.take(4)?.try_into().map_err(|_| DamagedIndex)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, DamagedIndex> {
        let bytes = self.take(8)?.try_into().map_err(|_| DamagedIndex)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Seven bits a byte, the lowest first; at most five bytes.
    fn varint(&mut self) -> Result<u64, DamagedIndex> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let byte = *self.take(1)?.first().ok_or(DamagedIndex)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DamagedIndex)
    }
}

#[cfg(test)]
mod tests;
