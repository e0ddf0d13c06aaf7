//! Rows that were decoded together.

use std::time::Duration;

use signaldb_signals::Rows;

/// Rows of one table with the log indexes that they came from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MemBatch {
    pub rows: Rows,
    /// Log index and end of its rows, both ascending.
    entries: Vec<(u64, usize)>,
    /// When the oldest of its rows was applied.
    pub(super) since: Duration,
    /// Memory of the columns, bytes; counted once, for it is asked at every request.
    bytes: usize,
}

impl MemBatch {
    pub(super) fn new(rows: Rows, entries: Vec<(u64, usize)>, since: Duration) -> Self {
        let bytes = rows.memory_bytes();
        Self { rows, entries, since, bytes }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn last_index(&self) -> u64 {
        self.entries.last().map_or(0, |(index, _)| *index)
    }

    pub(super) fn merge(&self, next: &Self) -> Option<Self> {
        let rows = Rows::concat(&[&self.rows, &next.rows]).ok()??;
        let shift = self.rows.num_rows();
        let shifted = next.entries.iter().map(|(index, end)| (*index, end + shift));
        let entries = self.entries.iter().copied().chain(shifted).collect();
        Some(Self::new(rows, entries, self.since.min(next.since)))
    }

    /// The rows of entries above `index`; `None` when there are none.
    pub fn above(&self, index: u64) -> Option<Self> {
        let skipped = self.entries.partition_point(|(entry, _)| *entry <= index);
        if skipped == 0 {
            return Some(self.clone());
        }
        let start = self.entries[skipped - 1].1;
        self.cut(start, self.rows.num_rows(), skipped..self.entries.len())
    }

    /// The rows of entries up to and including `index`.
    pub fn upto(&self, index: u64) -> Option<Self> {
        let kept = self.entries.partition_point(|(entry, _)| *entry <= index);
        let end = kept.checked_sub(1).map(|last| self.entries[last].1)?;
        self.cut(0, end, 0..kept)
    }

    fn cut(&self, start: usize, end: usize, entries: std::ops::Range<usize>) -> Option<Self> {
        let entries: Vec<_> = self.entries[entries].iter().map(|(index, end)| (*index, end - start)).collect();
        // A slice keeps the whole columns alive.
        let rows = || self.rows.slice(start, end - start);
        (end > start).then(|| Self { rows: rows(), entries, since: self.since, bytes: self.bytes })
    }
}
