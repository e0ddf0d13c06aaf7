//! When an append may be acknowledged, and when the trust record has to be on disk first (R2).

use super::Trust;

/// When an append counts as flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AckAfter {
    /// The bytes are in the page cache.
    Write,
    /// The bytes were fdatasynced, with everything before them.
    Sync,
}

/// What an append has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Before {
    /// Write this record into the log, before the entries and in the same critical section.
    pub record: Option<Trust>,
    pub ack: AckAfter,
}

/// The trust record of one group on one replica, as written and as it may be found after a crash.
///
/// Calls must happen in the order in which their records enter the log's queue: keep it under the lock that covers
/// both.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Acks {
    /// Every append waits for its sync: the meta group, groups of one voter, groups at `quorum-fsync`.
    always_syncs: bool,
    written: Trust,
    /// The most trustful record that an operating-system crash could leave behind.
    after_crash: Trust,
    /// Appends that wait for their sync. A later one must not complete first: openraft's progress is cumulative, so
    /// the later completion would acknowledge the earlier entries too.
    syncing: u32,
}

impl Acks {
    /// `trust` is what the start decided, and is on disk.
    pub fn new(trust: Trust, always_syncs: bool) -> Self {
        Self { always_syncs, written: trust, after_crash: trust, syncing: 0 }
    }

    pub fn trust(&self) -> Trust {
        self.written
    }

    /// The group's level changed, or it shrank to one voter or grew from one.
    pub fn set_always_syncs(&mut self, always_syncs: bool) {
        self.always_syncs = always_syncs;
    }

    /// Called for each append, by leader and follower alike: openraft counts the leader's own flush as an
    /// acknowledgment. `must_sync` is for membership entries and for requests at an fsync level that hurry the sync.
    ///
    /// After an answer of [`AckAfter::Sync`], [`Acks::synced`] must follow when that sync is done.
    pub fn append(&mut self, must_sync: bool) -> Before {
        let record = (!self.always_syncs && self.written == Trust::Synced).then_some(Trust::Unsynced);
        self.written = record.unwrap_or(self.written);
        // RECOVERING on disk is as strict as UNSYNCED: a crash leads to RECOVERING either way.
        let protected = self.after_crash != Trust::Synced;
        if self.always_syncs || must_sync || !protected || self.syncing > 0 {
            self.syncing += 1;
            return Before { record, ack: AckAfter::Sync };
        }
        Before { record, ack: AckAfter::Write }
    }

    /// One append that had to wait is on disk, and so is every record before it.
    ///
    /// `written` is what [`Acks::trust`] said when that append was queued.
    pub fn synced(&mut self, written: Trust) {
        self.syncing = self.syncing.saturating_sub(1);
        self.raise(written);
    }

    fn raise(&mut self, on_disk: Trust) {
        // A record of SYNCED that was written later may still reach the disk alone; it lowers `after_crash` at once,
        // and only a later UNSYNCED may raise it. As that one waits for its sync, `on_disk` is never from before.
        self.after_crash = self.after_crash.max(on_disk);
    }

    /// The group is idle: all that it ever wrote is fdatasynced and nothing is queued. Returns the record to write, so
    /// that a cluster whose power fails while it is idle starts without recovery.
    ///
    /// The record needs no sync of its own. From here on the next append waits for a sync once.
    pub fn idle(&mut self) -> Option<Trust> {
        if self.written != Trust::Unsynced || self.syncing > 0 {
            return None;
        }
        (self.written, self.after_crash) = (Trust::Synced, Trust::Synced);
        Some(Trust::Synced)
    }

    /// The gate opened. Returns the record to write.
    ///
    /// Not SYNCED: the entries that were refilled may be in the page cache only. The record needs no sync: until it
    /// reaches the disk a crash finds RECOVERING, which is stricter.
    pub fn left_recovery(&mut self) -> Option<Trust> {
        if self.written != Trust::Recovering {
            return None;
        }
        self.written = Trust::Unsynced;
        Some(Trust::Unsynced)
    }

    /// What an operating-system crash at this moment may leave: for the model and for assertions.
    pub fn found_after_crash(&self) -> Trust {
        self.after_crash
    }
}

#[cfg(test)]
mod tests {
    use super::AckAfter::{Sync, Write};
    use super::Trust::{Recovering, Synced, Unsynced};
    use super::*;

    #[test]
    fn first_append_after_idle_waits_until_unsynced_is_on_disk() {
        let mut acks = Acks::new(Synced, false);
        assert_eq!(acks.append(false), Before { record: Some(Unsynced), ack: Sync });
        assert_eq!(acks.append(false), Before { record: None, ack: Sync }, "it may not complete before the first");
        assert_eq!(acks.found_after_crash(), Synced);
        acks.synced(Unsynced);
        assert_eq!(acks.found_after_crash(), Unsynced);
        assert_eq!(acks.append(false).ack, Sync, "one is still syncing");
        acks.synced(Unsynced);
        acks.synced(Unsynced);
        assert_eq!(acks.append(false), Before { record: None, ack: Write });
        assert_eq!(acks.append(true), Before { record: None, ack: Sync }, "membership entries sync");
        assert_eq!(acks.append(false).ack, Sync, "and nothing overtakes them");
    }

    #[test]
    fn idle_returns_to_synced_and_the_next_append_syncs_once() {
        let mut acks = Acks::new(Unsynced, false);
        assert_eq!(acks.append(false).ack, Write);
        assert_eq!(acks.idle(), Some(Synced));
        assert_eq!(acks.idle(), None);
        assert_eq!(acks.append(false), Before { record: Some(Unsynced), ack: Sync });
        assert_eq!(acks.idle(), None, "an append is queued");
    }

    #[test]
    fn recovering_acknowledges_and_is_not_left_by_being_idle() {
        let mut acks = Acks::new(Recovering, false);
        assert_eq!(acks.append(false), Before { record: None, ack: Write });
        assert_eq!(acks.idle(), None);
        assert_eq!(acks.left_recovery(), Some(Unsynced));
        assert_eq!((acks.trust(), acks.found_after_crash()), (Unsynced, Recovering));
        assert_eq!(acks.append(false).ack, Write, "RECOVERING on disk protects as well");
        assert_eq!(acks.left_recovery(), None);
    }

    #[test]
    fn groups_that_always_sync_keep_their_record() {
        let mut acks = Acks::new(Synced, true);
        assert_eq!(acks.append(false), Before { record: None, ack: Sync });
        acks.synced(Synced);
        assert_eq!((acks.idle(), acks.trust()), (None, Synced));
        acks.set_always_syncs(false);
        assert_eq!(acks.append(false), Before { record: Some(Unsynced), ack: Sync }, "it grew from one voter");
    }
}
