//! From records to the state of each group, with damage in between.
//!
//! * Entries of a record whose header is known are marked as lost. A later truncation or purge takes the mark away
//!   with the entries; what is still marked at the end cuts the group's log.
//! * Where not even the headers are known, each group may have lost anything, a truncation too, so entries from before
//!   and from behind must not be joined. Those behind are kept apart; if they alone make a whole log from the purged
//!   position on, they are it; else the log ends where it was before the damage, which is a prefix of history. Entries that
//!   are marked as lost count as held for this choice: a later start that trusts an index does not see the damage, and has to
//!   choose the same.
//! * Votes, trust, purges and commits that are found later count: by rank for votes. A later checkpoint restores what
//!   damage took of them.

use std::collections::BTreeMap;

use super::scan::{Bad, Item, read_payload};
use crate::found::{Damage, Quarantined};
use crate::index::{Batch, DiskPlace, GroupIndex};
use crate::io::LogFile;
use crate::record::{self, GroupMeta, Header, Kind, SegmentStart, Settled};
use crate::votes::{SavedVote, Votes};

/// What was read so far.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    groups: BTreeMap<u32, Replayed>,
    /// Every damaged place.
    pub(crate) damages: Vec<Damage>,
    /// Damage behind which a group may exist that nothing names.
    unlisted: Option<Place>,
    /// What earlier starts dealt with, and in which segment they said so.
    settled: Vec<(u64, Settled)>,
}

/// Where something was lost.
#[derive(Debug, Clone)]
struct Place {
    segment: u64,
    offset: u64,
    reason: String,
    /// The segment that was begun by the first start which dealt with it.
    settled_by: Option<u64>,
}

#[derive(Debug, Default)]
struct Replayed {
    index: GroupIndex,
    /// The log as it was before a damage of which nothing is known; truncated and purged with `index`.
    before: Option<GroupIndex>,
    /// The damages behind `before`.
    unknown: Vec<Place>,
    vote: Option<SavedVote>,
    /// A damaged vote record, or the chance of one: any vote may have been there.
    lost_vote: Option<((u64, u64), Place)>,
    /// Damage that may have taken trust or a purge; a later checkpoint makes it good.
    lost_facts: Option<Place>,
    /// The first damage that took entries.
    lost_entries: Option<Place>,
}

/// One group at the end.
#[derive(Debug)]
pub(crate) struct Settlement {
    pub(crate) index: GroupIndex,
    pub(crate) vote: Option<SavedVote>,
    pub(crate) quarantined: Option<Quarantined>,
    /// A vote that was on disk may be lost.
    pub(crate) lost_vote: Option<Quarantined>,
}

const ANY_VOTE: (u64, u64) = (u64::MAX, u64::MAX);

impl Replay {
    pub(crate) fn new(settled: Vec<(u64, Settled)>) -> Self {
        Self { settled, ..Self::default() }
    }

    /// Replays one segment.
    pub(crate) fn segment(&mut self, items: &[Item], file: Option<&dyn LogFile>) {
        let checkpoint = items.iter().position(|item| item.is_sound(Kind::Checkpoint));
        for (at, item) in items.iter().enumerate() {
            match item {
                Item::Sound(offset, header) => match self.record(*offset, header, file) {
                    Ok(()) => {}
                    // Sound when it was indexed, but no more.
                    Err(reason) => {
                        let bad = Bad {
                            segment: header.segment,
                            offset: *offset,
                            bytes: header.record_len(),
                            batch: header.batch,
                            next: header.batch + 1,
                            header: Some(*header),
                            reason,
                        };
                        self.bad(&bad, false);
                    }
                },
                Item::Bad(bad) => {
                    // The preamble says everything twice.
                    let restated = checkpoint.is_some_and(|checkpoint| at < checkpoint);
                    self.bad(bad, restated || is_lone_checkpoint(items, at, file));
                }
            }
        }
    }

    fn record(&mut self, offset: u64, header: &Header, file: Option<&dyn LogFile>) -> Result<(), String> {
        let payload = || file.ok_or("no file".to_owned()).and_then(|file| read_payload(file, offset, header));
        match header.kind {
            Kind::SegmentStart => {
                let start: SegmentStart = serde_json::from_slice(&payload()?).map_err(|error| error.to_string())?;
                if !start.settled.is_empty() {
                    self.settle_known(header.segment);
                }
            }
            Kind::Footer => {}
            Kind::Checkpoint => {
                let checkpoint = record::decode_checkpoint(&payload()?).ok_or("checkpoint is cut short")?;
                for (group, meta) in checkpoint {
                    self.group(group).checkpoint(meta, header.batch);
                }
                self.groups.values_mut().for_each(Replayed::restored);
                self.unlisted = None;
            }
            Kind::Append => {
                let disk = DiskPlace::of(offset, header);
                self.group(header.group).index.found(header.first, header.last, Some(disk));
            }
            Kind::TruncateAfter => self.group(header.group).truncate_from(header.last),
            Kind::Purge => {
                let id = payload()?;
                self.group(header.group).purge_upto(header.last, &id);
            }
            Kind::Vote => {
                let vote = SavedVote { term: header.term, batch: header.batch, bytes: payload()? };
                self.group(header.group).offer_vote(vote);
            }
            Kind::Committed => self.group(header.group).index.meta.committed = Some(payload()?),
            Kind::Trust => self.group(header.group).index.meta.trust = Some(payload()?),
        }
        Ok(())
    }

    fn bad(&mut self, bad: &Bad, restated: bool) {
        let covers =
            |known: &Settled| known.segment == bad.segment && known.batch <= bad.batch && bad.next <= known.next;
        let settled_by = self.settled.iter().filter(|(_, known)| covers(known)).map(|(by, _)| *by).min();
        let place = Place { segment: bad.segment, offset: bad.offset, reason: bad.reason.clone(), settled_by };
        let harmless = restated || self.lose(bad, &place);
        self.damages.push(Damage {
            segment: bad.segment,
            offset: bad.offset,
            bytes: bad.bytes,
            batch: bad.batch,
            next: bad.next,
            record: bad.header.map(|header| (header.group, header.kind.name())),
            harmless,
            settled: settled_by.is_some(),
            reason: bad.reason.clone(),
        });
    }

    /// Returns whether nothing was lost.
    fn lose(&mut self, bad: &Bad, place: &Place) -> bool {
        let Some(header) = bad.header.filter(|header| header.kind != Kind::Checkpoint) else {
            self.groups.values_mut().for_each(|group| group.lose_anything(place));
            self.unlisted.get_or_insert(place.clone());
            return false;
        };
        match header.kind {
            // The log is the same without, and the position is only a hint.
            Kind::Footer | Kind::SegmentStart | Kind::Checkpoint | Kind::Committed => return true,
            Kind::TruncateAfter => {
                self.group(header.group).truncate_from(header.last);
                return true;
            }
            Kind::Append => {
                let group = self.group(header.group);
                group.index.found(header.first, header.last, None);
                note(&mut group.lost_entries, place);
            }
            Kind::Purge | Kind::Trust => note(&mut self.group(header.group).lost_facts, place),
            Kind::Vote => {
                self.group(header.group).lost_vote = Some(((header.term, header.batch), place.clone()));
            }
        }
        false
    }

    fn group(&mut self, number: u32) -> &mut Replayed {
        let unlisted = self.unlisted.clone();
        self.groups.entry(number).or_insert_with(|| {
            let mut group = Replayed::default();
            if let Some(place) = unlisted {
                group.lose_anything(&place);
            }
            group
        })
    }

    /// The start that began segment `number` had found damage, and made up its mind: what it kept is the log. Of damage
    /// that was found after it, it knew nothing.
    fn settle_known(&mut self, number: u64) {
        let knew = |place: &Place| place.settled_by.is_some_and(|by| by <= number);
        for group in self.groups.values_mut().filter(|group| group.unknown.iter().all(knew)) {
            group.choose();
            group.lost_entries.take_if(|place| knew(place));
            group.lost_facts.take_if(|place| knew(place));
            group.lost_vote.take_if(|(_, place)| knew(place));
        }
        self.unlisted.take_if(|place| knew(place));
    }

    /// The state of each group, and what a group that is not among them must be taken for.
    pub(crate) fn finish(mut self, votes: Option<&Votes>) -> (BTreeMap<u32, Settlement>, Option<Quarantined>) {
        for (number, vote) in votes.into_iter().flat_map(|votes| &votes.groups) {
            self.group(*number).offer_vote(vote.clone());
        }
        let damaged = !self.damages.is_empty();
        let unlisted = self.unlisted.as_ref().map(|place| place.quarantined(0, None));
        let settle = |(number, group): (u32, Replayed)| (number, group.finish(damaged, votes.is_some()));
        (self.groups.into_iter().map(settle).collect(), unlisted)
    }
}

/// Whether the place is just the checkpoint, and the rest of its preamble, which says the same, is sound.
fn is_lone_checkpoint(items: &[Item], at: usize, file: Option<&dyn LogFile>) -> bool {
    let Some(Item::Sound(offset, header)) = items.first().filter(|item| item.is_sound(Kind::SegmentStart)) else {
        return false;
    };
    let payload = file.ok_or(String::new()).and_then(|file| read_payload(file, *offset, header));
    let start: Option<SegmentStart> = payload.ok().and_then(|payload| serde_json::from_slice(&payload).ok());
    let Some(start) = start.filter(|start| start.preamble > 0) else { return false };
    let alone = items[at].next() == items[at].batch() + 1 && !items[..at].iter().any(Item::is_bad);
    // The last place of the file may have held more than the checkpoint, or have lost its end and what followed.
    let preamble_end = offset + header.record_len() + start.preamble_rest_bytes;
    let ends = at + 1 < items.len() || items[at].end() == preamble_end;
    alone && ends && items[at].batch() + 1 == header.batch + start.preamble
}

fn note(slot: &mut Option<Place>, place: &Place) {
    // The one that nobody dealt with yet is the one to report.
    if slot.as_ref().is_none_or(|known| known.settled_by.is_some() && place.settled_by.is_none()) {
        *slot = Some(place.clone());
    }
}

impl Place {
    fn quarantined(&self, first_lost_index: u64, last_lost_index: Option<u64>) -> Quarantined {
        let Self { segment, offset, ref reason, .. } = *self;
        Quarantined { first_lost_index, last_lost_index, segment, offset, reason: reason.clone() }
    }
}

/// What a log lost at its end.
struct Cut {
    /// Where it was cut.
    from: Option<u64>,
    /// The highest index that was ever seen of what is cut.
    last_seen: Option<u64>,
}

impl Replayed {
    fn truncate_from(&mut self, from: u64) {
        self.index.truncate_from(from);
        self.before.iter_mut().for_each(|before| before.truncate_from(from));
    }

    fn purge_upto(&mut self, index: u64, id: &[u8]) {
        self.index.purge_upto(index, id.to_vec());
        self.before.iter_mut().for_each(|before| before.purge_upto(index, id.to_vec()));
    }

    fn offer_vote(&mut self, vote: SavedVote) {
        if self.vote.as_ref().is_none_or(|known| known.rank() <= vote.rank()) {
            self.vote = Some(vote);
        }
    }

    fn checkpoint(&mut self, meta: GroupMeta, batch: u64) {
        if let Some((index, id)) = &meta.purged {
            self.purge_upto(*index, id);
        }
        // It does not say the term, which is at least the one before.
        let known = self.vote.as_ref();
        if let Some(bytes) = meta.vote.filter(|bytes| known.is_none_or(|known| known.bytes != *bytes)) {
            self.vote = Some(SavedVote { term: known.map_or(0, |known| known.term), batch, bytes });
        }
        (self.index.meta.committed, self.index.meta.trust) = (meta.committed, meta.trust);
    }

    /// A checkpoint was read, with or without this group in it.
    fn restored(&mut self) {
        (self.lost_facts, self.lost_vote) = (None, None);
    }

    fn lose_anything(&mut self, place: &Place) {
        note(&mut self.lost_facts, place);
        note(&mut self.lost_entries, place);
        self.lost_vote = Some((ANY_VOTE, place.clone()));
        let batches = std::mem::take(&mut self.index.batches);
        let whole = is_whole(&batches, self.purged());
        self.unknown.push(place.clone());
        if self.before.is_none() || whole {
            let mut before = GroupIndex::of(batches);
            before.meta.purged.clone_from(&self.index.meta.purged);
            self.before = Some(before);
        }
    }

    fn purged(&self) -> Option<u64> {
        self.index.meta.purged.as_ref().map(|(index, _)| *index)
    }

    /// Decides which of its parts is the log; returns whether it is the one before a damage.
    fn choose(&mut self) -> bool {
        self.unknown.clear();
        let whole = is_whole(&self.index.batches, self.purged());
        let before = self.before.take().filter(|_| !whole);
        let chosen = before.is_some();
        if let Some(before) = before {
            self.index.batches = before.batches;
        }
        chosen
    }

    fn last(&self) -> Option<u64> {
        let parts = [Some(&self.index), self.before.as_ref()].into_iter().flatten();
        parts.filter_map(GroupIndex::range).map(|(_, last)| last).max()
    }

    /// Leaves the part of the log that is one piece. `damaged`: an unexplained beginning is not to be trusted.
    fn cut(&mut self, damaged: bool) -> Cut {
        let last_seen = self.last();
        let ends_early = self.choose();
        let end = || self.index.range().map(|(_, last)| last).or(self.purged()).map_or(0, |last| last + 1);
        let mut cut = ends_early.then(end);
        if let Some(hole) = first_hole(&self.index.batches, self.purged(), damaged, Lost::Missing) {
            self.index.truncate_from(hole);
            cut = Some(hole);
        }
        Cut { from: cut, last_seen: last_seen.filter(|last| cut.is_some_and(|cut| *last >= cut)) }
    }

    fn finish(mut self, damaged: bool, votes_known: bool) -> Settlement {
        let Cut { from: cut, last_seen } = self.cut(damaged);
        let next = self.index.range().map(|(_, last)| last).or(self.purged()).map_or(0, |last| last + 1);
        let unexplained = || Place {
            segment: 0,
            offset: 0,
            reason: "entries are missing, and no damage explains it".to_owned(),
            settled_by: None,
        };
        let place = cut.map(|_| self.lost_entries.clone().unwrap_or_else(unexplained)).or(self.lost_facts);
        let quarantined = place.map(|place| place.quarantined(cut.unwrap_or(next), last_seen));
        let rank = self.vote.as_ref().map_or((0, 0), SavedVote::rank);
        let lost_vote = self.lost_vote.filter(|(lost, _)| !votes_known && *lost > rank);
        let lost_vote = lost_vote.map(|(_, place)| place.quarantined(next, None));
        let mut index = self.index;
        index.meta.vote = self.vote.as_ref().map(|vote| vote.bytes.clone());
        Settlement { index, vote: self.vote, quarantined, lost_vote }
    }
}

/// What entries of a damaged record whose header is known count as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    Held,
    Missing,
}

/// Whether these entries are a log of their own, from the purged position on.
fn is_whole(batches: &BTreeMap<u64, Batch>, purged: Option<u64>) -> bool {
    !batches.is_empty() && first_hole(batches, purged, true, Lost::Held).is_none()
}

/// The first index that should be held and is not. A log that was never purged begins at 0 or 1; if nothing is
/// damaged it may begin anywhere.
fn first_hole(batches: &BTreeMap<u64, Batch>, purged: Option<u64>, damaged: bool, lost: Lost) -> Option<u64> {
    let first = *batches.first_key_value()?.0;
    let mut expected = purged.map_or(first, |purged| purged + 1);
    if purged.is_none() && damaged && first > 1 {
        return Some(0);
    }
    for (first, batch) in batches {
        if *first != expected || (lost == Lost::Missing && batch.disk.is_none()) {
            return Some(expected);
        }
        expected = batch.last + 1;
    }
    None
}
