//! Building an index: a section for each data file while its rows are written, and one merge of them all.

use arrow::array::{Array, FixedSizeBinaryArray};
use bytes::Bytes;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{HEADER_BYTES, LEAF_BYTES, MAGIC};

/// Rows of a block: less than a data page has, so that a trace is found by a page of each of its services.
const BLOCK_ROWS: u32 = 8192;
/// Entries of one data file that are kept while it is written, 16 bytes each. A file with more is not indexed.
const ENTRIES_MAX: usize = 4 << 20;

/// The entries of a data file that is being written.
#[derive(Debug)]
pub(crate) struct SectionBuilder {
    /// At which the writer ends a row group by itself.
    group_rows_max: u32,
    /// Rows of the row groups that are complete.
    groups: Vec<u32>,
    rows_in_group: u32,
    /// Hashes of the block that is not complete.
    block: Vec<u64>,
    blocks: u32,
    /// Hash and block.
    entries: Vec<(u64, u32)>,
    too_many: bool,
}

/// The entries of a data file, sorted, as they are in leaves but for the file's position.
#[derive(Debug, Default)]
pub(crate) struct Section {
    groups: Vec<u32>,
    entries: Vec<u8>,
}

impl SectionBuilder {
    pub(crate) fn new(group_rows_max: usize) -> Self {
        Self {
            group_rows_max: u32::try_from(group_rows_max).unwrap_or(u32::MAX),
            groups: Vec::new(),
            rows_in_group: 0,
            block: Vec::new(),
            blocks: 0,
            entries: Vec::new(),
            too_many: false,
        }
    }

    /// Rows that were written; those without an id are of no trace.
    pub(crate) fn add(&mut self, trace_ids: &FixedSizeBinaryArray) {
        for row in 0..trace_ids.len() {
            if trace_ids.is_valid(row) {
                self.block.push(xxh3_64(trace_ids.value(row)));
            }
            self.rows_in_group += 1;
            if self.rows_in_group == self.group_rows_max {
                self.end_group();
            } else if self.rows_in_group.is_multiple_of(BLOCK_ROWS) {
                self.end_block();
            }
        }
    }

    /// The writer ended a row group.
    pub(crate) fn end_group(&mut self) {
        if self.rows_in_group == 0 {
            return;
        }
        // Ended already if it is full.
        if !self.rows_in_group.is_multiple_of(BLOCK_ROWS) || self.rows_in_group == self.group_rows_max {
            self.end_block();
        }
        self.groups.push(std::mem::take(&mut self.rows_in_group));
    }

    fn end_block(&mut self) {
        self.block.sort_unstable();
        self.block.dedup();
        self.too_many |= self.entries.len() + self.block.len() > ENTRIES_MAX;
        if self.too_many {
            self.entries = Vec::new();
        } else {
            self.entries.extend(self.block.iter().map(|hash| (*hash, self.blocks)));
        }
        self.block.clear();
        self.blocks += 1;
    }

    /// `None` when there were too many entries, or when the row groups of the file are not those that were expected, as in
    /// tables without trace ids.
    pub(crate) fn finish(mut self, footer: &ParquetMetaData) -> Option<Section> {
        self.end_group();
        let written = footer.row_groups().iter().map(RowGroupMetaData::num_rows);
        if self.too_many || !written.eq(self.groups.iter().map(|rows| i64::from(*rows))) {
            return None;
        }
        Some(self.section())
    }

    fn section(mut self) -> Section {
        self.entries.sort_unstable();
        let mut entries = Vec::new();
        for of_hash in self.entries.chunk_by(|(a, _), (b, _)| a == b) {
            let Some((hash, _)) = of_hash.first() else { continue };
            entries.extend_from_slice(&hash.to_le_bytes());
            push_varint(&mut entries, u32::try_from(of_hash.len()).unwrap_or(u32::MAX));
            let mut before = 0;
            for (_, block) in of_hash {
                push_varint(&mut entries, block - before);
                before = *block;
            }
        }
        Section { groups: self.groups, entries }
    }
}

impl Section {
    /// About what it takes in memory, and in the index.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.len()
    }

    fn split_first(rest: &[u8]) -> Option<(Entry<'_>, &[u8])> {
        let (hash, blocks) = rest.split_first_chunk::<8>()?;
        let (count, mut length) = varint(blocks)?;
        for _ in 0..count {
            length += varint(blocks.get(length..)?)?.1;
        }
        let (blocks, rest) = blocks.split_at_checked(length)?;
        Some((Entry { hash: u64::from_le_bytes(*hash), blocks }, rest))
    }
}

/// An entry without its file.
#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    hash: u64,
    /// Their count, and the blocks.
    blocks: &'a [u8],
}

/// The index of data files, each with its number; `None` when no row of them is of a trace.
pub(crate) fn encode(sections: &[(u32, Section)]) -> Option<Bytes> {
    let mut cursors: Vec<_> = sections.iter().map(|(_, section)| Section::split_first(&section.entries)).collect();
    let mut leaves = Leaves::default();
    while let Some((file, (entry, rest))) = least(&cursors) {
        leaves.push(entry, file);
        cursors[file] = Section::split_first(rest);
    }
    leaves.end();
    if leaves.directory.is_empty() {
        return None;
    }
    let mut directory = Vec::new();
    push_u32(&mut directory, sections.len());
    for (number, section) in sections {
        push_u32(&mut directory, *number as usize);
        push_u32(&mut directory, section.groups.len());
        section.groups.iter().for_each(|rows| push_u32(&mut directory, *rows as usize));
    }
    push_u32(&mut directory, leaves.ends.len());
    directory.extend_from_slice(&leaves.directory);

    let mut index = Vec::with_capacity(HEADER_BYTES + directory.len() + leaves.content.len());
    index.extend_from_slice(MAGIC);
    push_u32(&mut index, BLOCK_ROWS as usize);
    push_u32(&mut index, directory.len());
    let mut hasher = Xxh3::new();
    hasher.update(&index);
    hasher.update(&directory);
    index.extend_from_slice(&hasher.digest().to_le_bytes());
    index.extend_from_slice(&directory);
    index.extend_from_slice(&leaves.content);
    Some(index.into())
}

type Cursor<'a> = Option<(Entry<'a>, &'a [u8])>;

/// The entry with the least hash, of those the one of the first file, and what is behind it.
fn least<'a>(cursors: &[Cursor<'a>]) -> Option<(usize, (Entry<'a>, &'a [u8]))> {
    let heads = cursors.iter().enumerate().filter_map(|(file, head)| Some((file, (*head)?)));
    heads.min_by_key(|(file, (entry, _))| (entry.hash, *file))
}

/// Leaves on their way.
#[derive(Default)]
struct Leaves {
    content: Vec<u8>,
    /// What the directory says of those that are complete.
    directory: Vec<u8>,
    ends: Vec<usize>,
    /// The first and the last hash of the leaf that is not.
    hashes: Option<(u64, u64)>,
}

impl Leaves {
    fn push(&mut self, entry: Entry<'_>, file: usize) {
        let begin = self.ends.last().copied().unwrap_or(0);
        if self.hashes.is_some_and(|(_, last)| last != entry.hash) && self.content.len() - begin >= LEAF_BYTES {
            self.end();
        }
        self.hashes = Some((self.hashes.map_or(entry.hash, |(first, _)| first), entry.hash));
        self.content.extend_from_slice(&entry.hash.to_le_bytes());
        push_varint(&mut self.content, u32::try_from(file).unwrap_or(u32::MAX));
        self.content.extend_from_slice(entry.blocks);
    }

    fn end(&mut self) {
        let Some((first, _)) = self.hashes.take() else { return };
        let leaf = &self.content[self.ends.last().copied().unwrap_or(0)..];
        self.directory.extend_from_slice(&first.to_le_bytes());
        push_u32(&mut self.directory, leaf.len());
        self.directory.extend_from_slice(&xxh3_64(leaf).to_le_bytes());
        self.ends.push(self.content.len());
    }
}

/// Numbers of an index are far below the limit of the type.
fn push_u32(out: &mut Vec<u8>, value: usize) {
    out.extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
}

fn push_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A number, and how many bytes it has.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut rest = super::Reader(bytes);
    let value = rest.varint().ok()?;
    Some((value, bytes.len() - rest.0.len()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The section of a file whose row groups have these trace ids.
    pub(crate) fn section(group_rows_max: usize, groups: &[Vec<[u8; 16]>]) -> Section {
        let mut builder = SectionBuilder::new(group_rows_max);
        for ids in groups {
            builder.add(&FixedSizeBinaryArray::try_from_iter(ids.iter()).expect("ids"));
            builder.end_group();
        }
        assert_eq!(builder.groups, groups.iter().map(|ids| ids.len() as u32).collect::<Vec<_>>());
        builder.section()
    }

    #[test]
    fn row_groups_and_blocks_end_where_the_writer_ends_them() {
        let ids = |count: u32| -> FixedSizeBinaryArray {
            let rows = (0..count).map(|row| u128::from(row).to_le_bytes());
            FixedSizeBinaryArray::try_from_iter(rows).expect("ids")
        };
        let mut builder = SectionBuilder::new(3 * BLOCK_ROWS as usize);
        builder.add(&ids(BLOCK_ROWS + 1));
        builder.add(&ids(2 * BLOCK_ROWS + 5));
        assert_eq!((builder.groups.clone(), builder.blocks), (vec![3 * BLOCK_ROWS], 3));
        builder.end_group();
        builder.end_group();
        builder.add(&ids(BLOCK_ROWS));
        builder.end_group();
        assert_eq!((builder.groups, builder.blocks), (vec![3 * BLOCK_ROWS, 6, BLOCK_ROWS], 5));
    }

    #[test]
    fn a_file_with_too_many_entries_is_not_indexed() {
        let mut builder = SectionBuilder::new(8);
        builder.entries = vec![(0, 0); ENTRIES_MAX];
        builder.add(&FixedSizeBinaryArray::try_from_iter(std::iter::once([7_u8; 16])).expect("ids"));
        builder.end_group();
        assert!(builder.too_many && builder.entries.is_empty());
    }
}
