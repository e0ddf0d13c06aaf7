//! One table of a group: how far it is flushed, and the rows above that.

use super::TableView;
use super::batch::MemBatch;

/// Batches are merged while the result stays below this: many small exports must not become many small batches.
const MERGED_ROWS_MAX: usize = 2 << 10;

/// What is held of one table.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) watermark: u64,
    pub(super) last_append: u64,
    /// No row below this index is unflushed; `None` when none is. The watermark alone would say too little: it stays
    /// where the last flush of this table left it, however long ago that was.
    pub(super) dirty_from: Option<u64>,
    pub(super) floor: u64,
    pub(super) version: i64,
    pub(super) location: String,
    pub(super) quarantined: Option<String>,
    pub(super) batches: Vec<MemBatch>,
}

impl Table {
    pub(super) fn unknown() -> Self {
        Self { version: -1, ..Self::default() }
    }

    pub(super) fn view(&self) -> TableView {
        TableView {
            watermark: self.watermark,
            floor: self.floor,
            version: self.version,
            location: self.location.clone(),
            quarantined: self.quarantined.clone(),
            batches: self.batches.clone(),
        }
    }

    pub(super) fn advance(&mut self, version: i64, location: &str) {
        if version > self.version {
            self.version = version;
            location.clone_into(&mut self.location);
        }
    }

    /// Rows up to `hi` are in files.
    pub(super) fn forget_upto(&mut self, hi: u64) {
        let watermark = self.watermark.max(hi);
        self.watermark = watermark;
        let dirty = self.last_append > watermark;
        self.dirty_from = self.dirty_from.filter(|_| dirty).map(|from| from.max(watermark + 1));
        self.batches = self.batches.drain(..).filter_map(|batch| batch.above(watermark)).collect();
    }

    /// Adds a batch and merges neighbours of like size, so that each row is copied a logarithmic number of times.
    pub(super) fn push(&mut self, batch: MemBatch) {
        self.batches.push(batch);
        while let [.., before, last] = self.batches.as_slice() {
            let (rows_before, rows) = (before.rows.num_rows(), last.rows.num_rows());
            if rows_before > 2 * rows || rows_before + rows > MERGED_ROWS_MAX {
                break;
            }
            let Some(merged) = before.merge(last) else { break };
            self.batches.truncate(self.batches.len() - 2);
            self.batches.push(merged);
        }
    }
}
