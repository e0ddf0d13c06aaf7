//! Where each group's entries are: in memory until written, then a place in a segment.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::record::{GroupMeta, Header};

/// What is known of a group without reading entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupState {
    pub vote: Option<Vec<u8>>,
    pub committed: Option<Vec<u8>>,
    /// Index and opaque id of the last purged entry.
    pub purged: Option<(u64, Vec<u8>)>,
    pub trust: Option<Vec<u8>>,
    /// First and last index held, `None` when the group holds no entries.
    pub range: Option<(u64, u64)>,
}

/// Entries `first..=last` as one record wrote them.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) last: u64,
    /// Index of the record's first entry; a batch cut from the front by a purge keeps it.
    pub(crate) record_first: u64,
    /// The record's payload, while it is queued or was written a moment ago.
    pub(crate) memory: Option<Bytes>,
    /// Where it was written; `None` while it is queued.
    pub(crate) disk: Option<DiskPlace>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskPlace {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) payload_len: u32,
    pub(crate) payload_crc: u32,
}

impl DiskPlace {
    pub(crate) fn of(offset: u64, header: &Header) -> Self {
        let Header { segment, payload_len, payload_crc, .. } = *header;
        Self { segment, offset, payload_len, payload_crc }
    }
}

/// One group: its small facts and its batches by first index.
#[derive(Debug, Clone, Default)]
pub(crate) struct GroupIndex {
    pub(crate) meta: GroupMeta,
    pub(crate) batches: BTreeMap<u64, Batch>,
    /// Entries up to here are on disk.
    synced: u64,
    /// Written after the last sync: the record's sequence and its last index.
    unsynced: VecDeque<(u64, u64)>,
}

impl GroupIndex {
    /// Just these entries.
    pub(crate) fn of(batches: BTreeMap<u64, Batch>) -> Self {
        Self { batches, ..Self::default() }
    }

    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        let first = self.batches.first_key_value()?.0;
        let last = self.batches.last_key_value()?.1.last;
        Some((*first, last))
    }

    pub(crate) fn state(&self) -> GroupState {
        GroupState {
            vote: self.meta.vote.clone(),
            committed: self.meta.committed.clone(),
            purged: self.meta.purged.clone(),
            trust: self.meta.trust.clone(),
            range: self.range(),
        }
    }

    /// Notes entries that are queued for the write thread.
    pub(crate) fn append(&mut self, first: u64, last: u64, memory: Bytes) {
        self.batches.insert(first, Batch { last, record_first: first, memory: Some(memory), disk: None });
    }

    /// Notes entries that a start found on disk; `None` when they were there and are damaged.
    pub(crate) fn found(&mut self, first: u64, last: u64, disk: Option<DiskPlace>) {
        // An append is always at the end of the log: what it overlaps was truncated.
        self.truncate_from(first);
        self.batches.insert(first, Batch { last, record_first: first, memory: None, disk });
    }

    /// Drops entries from `from` on.
    pub(crate) fn truncate_from(&mut self, from: u64) {
        let kept = from.saturating_sub(1);
        self.batches.split_off(&from);
        if let Some(mut tail) = self.batches.last_entry() {
            let batch = tail.get_mut();
            batch.last = batch.last.min(kept);
        }
        self.synced = self.synced.min(kept);
        for (_, last) in &mut self.unsynced {
            *last = kept.min(*last);
        }
    }

    /// Everything held is on disk, as a start makes sure.
    pub(crate) fn all_synced(&mut self) {
        self.unsynced.clear();
        self.synced = self.range().map_or(0, |(_, last)| last);
    }

    /// The last index that is on disk together with all before it, when records below `synced_record` are.
    pub(crate) fn synced_index(&mut self, synced_record: u64) -> u64 {
        while let Some((_, last)) = self.unsynced.pop_front_if(|(record, _)| *record < synced_record) {
            self.synced = last;
        }
        self.synced.max(self.meta.purged.as_ref().map_or(0, |(index, _)| *index))
    }

    /// Drops entries up to and including `index`, and remembers the id of the last one.
    pub(crate) fn purge_upto(&mut self, index: u64, id: Vec<u8>) {
        if self.meta.purged.as_ref().is_some_and(|(purged, _)| *purged >= index) {
            return;
        }
        let mut kept = self.batches.split_off(&(index + 1));
        if let Some((_, batch)) = self.batches.pop_last()
            && batch.last > index
        {
            kept.insert(index + 1, batch);
        }
        self.batches = kept;
        self.meta.purged = Some((index, id));
    }

    /// The batch that holds `index`.
    pub(crate) fn find(&self, index: u64) -> Option<&Batch> {
        let (_, batch) = self.batches.range(..=index).next_back()?;
        (batch.last >= index).then_some(batch)
    }

    /// Points the batch of record number `record`, which holds entries `range`, to its place on disk, whatever was cut from
    /// it meanwhile.
    pub(crate) fn written(&mut self, record: u64, range: &RangeInclusive<u64>, memory: &Bytes, disk: DiskPlace) {
        if let Some(batch) = self.batch_of(range, memory) {
            batch.disk = Some(disk);
            let last = batch.last;
            self.unsynced.push_back((record, last));
        }
    }

    /// Lets go of the bytes of the record of entries `range`: it is read from disk from now on.
    pub(crate) fn forget(&mut self, range: &RangeInclusive<u64>, memory: &Bytes) {
        if let Some(batch) = self.batch_of(range, memory)
            && batch.disk.is_some()
        {
            batch.memory = None;
        }
    }

    /// The batch of the record of entries `range`: a purge may have cut it from the front, and after a truncation another
    /// record may begin there.
    fn batch_of(&mut self, range: &RangeInclusive<u64>, memory: &Bytes) -> Option<&mut Batch> {
        let same = |batch: &&mut Batch| batch.memory.as_ref().is_some_and(|held| held.as_ptr() == memory.as_ptr());
        self.batches.range_mut(range.clone()).map(|(_, batch)| batch).find(same)
    }

    /// The oldest segment that holds an entry of this group.
    pub(crate) fn oldest_segment(&self) -> Option<u64> {
        self.batches.values().find_map(|batch| batch.disk.map(|disk| disk.segment))
    }

    /// The oldest segment that it would hold an entry in without those up to `index`.
    pub(crate) fn oldest_segment_after(&self, index: u64) -> Option<u64> {
        let across =
            self.batches.range(..=index).next_back().map(|(_, batch)| batch).filter(|batch| batch.last > index);
        let later = self.batches.range(index + 1..).map(|(_, batch)| batch);
        across.into_iter().chain(later).find_map(|batch| batch.disk.map(|disk| disk.segment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> GroupIndex {
        let mut index = GroupIndex::default();
        for (first, last) in [(1, 3), (4, 4), (5, 9)] {
            index.found(first, last, Some(DiskPlace { segment: first, offset: 0, payload_len: 0, payload_crc: 0 }));
        }
        index
    }

    #[test]
    fn truncation_cuts_the_batch_it_falls_into() {
        let mut index = index();
        index.truncate_from(7);
        assert_eq!(index.range(), Some((1, 6)));
        assert!(index.find(7).is_none());
        index.truncate_from(4);
        assert_eq!(index.range(), Some((1, 3)));
        index.truncate_from(1);
        assert_eq!(index.range(), None);
    }

    #[test]
    fn what_a_purge_would_leave_is_known_before_it() {
        let index = index();
        for (upto, oldest) in
            [(0, Some(1)), (2, Some(1)), (3, Some(4)), (4, Some(5)), (8, Some(5)), (9, None), (20, None)]
        {
            assert_eq!(index.oldest_segment_after(upto), oldest, "{upto}");
        }
    }

    #[test]
    fn what_is_cut_is_not_synced() {
        let mut index = GroupIndex::default();
        let memory = |n: u8| Bytes::from(vec![n]);
        let place = DiskPlace { segment: 1, offset: 0, payload_len: 0, payload_crc: 0 };
        let (first, second, third) = (memory(1), memory(2), memory(3));
        index.append(1, 5, first.clone());
        index.append(6, 9, second.clone());
        index.written(10, &(1..=5), &first, place);
        assert_eq!(index.synced_index(10), 0, "record 10 is not below 10");
        assert_eq!(index.synced_index(11), 5);
        // Cut before its record was written: it never counts.
        index.truncate_from(4);
        assert_eq!(index.synced_index(11), 3);
        index.written(11, &(6..=9), &second, place);
        index.append(4, 8, third.clone());
        index.written(13, &(4..=8), &third, place);
        assert_eq!(index.synced_index(13), 3);
        assert_eq!(index.synced_index(14), 8);
        index.purge_upto(8, vec![]);
        assert_eq!(index.synced_index(14), 8);
    }

    #[test]
    fn bytes_are_let_go_only_once_they_are_on_disk() {
        let mut index = GroupIndex::default();
        let memory = Bytes::from(vec![1]);
        let place = DiskPlace { segment: 1, offset: 0, payload_len: 1, payload_crc: 0 };
        index.append(1, 3, memory.clone());
        index.forget(&(1..=3), &memory);
        assert!(index.find(1).expect("held").memory.is_some(), "it is nowhere else yet");
        index.purge_upto(1, vec![]);
        index.written(1, &(1..=3), &memory, place);
        index.forget(&(1..=3), &memory);
        let batch = index.find(2).expect("held");
        assert!(batch.memory.is_none() && batch.disk.is_some());
    }

    #[test]
    fn purge_keeps_the_rest_of_a_batch() {
        let mut index = index();
        index.purge_upto(6, vec![6]);
        assert_eq!(index.range(), Some((7, 9)));
        let batch = index.find(7).expect("kept");
        assert_eq!(batch.record_first, 5);
        assert_eq!(index.oldest_segment(), Some(5));
        index.purge_upto(2, vec![2]);
        assert_eq!(index.meta.purged, Some((6, vec![6])));
        index.purge_upto(9, vec![9]);
        assert_eq!(index.range(), None);
    }
}
