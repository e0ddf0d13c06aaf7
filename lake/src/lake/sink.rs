//! What was applied becomes rows in memory.

use std::sync::{Arc, PoisonError};

use signaldb_model::{GroupId, TableId};
use signaldb_raft::state::GroupState;
use signaldb_raft::{Append, ApplySink, Group, TableState};

use super::Lake;
use crate::memtable::{GroupMemtable, LogReader};

impl Lake {
    /// One task a group decodes what was applied; while it works, more piles up and is decoded together.
    pub(super) fn start_builder(&self, group: GroupId, memtable: Arc<GroupMemtable>) {
        let lake = self.clone();
        let build = async move {
            loop {
                tokio::select! {
                    biased;
                    () = lake.0.stop.cancelled() => return,
                    () = memtable.work.notified() => {}
                }
                let open = lake.open_group(group);
                let log = open.as_ref().map(|open| open.log.as_ref());
                let room = || lake.unflushed_bytes() < lake.0.config.memtable_bytes_max;
                let built = std::panic::AssertUnwindSafe(|| memtable.build(lake.0.clock.elapsed(), log, &room));
                let built = std::panic::catch_unwind(built);
                if let Err(reason) = built.unwrap_or_else(|panic| Err(panic_text(panic.as_ref()).to_owned())) {
                    // Rows that were acknowledged cannot be shown: better no node than one that leaves them out.
                    let failure = format!("rows of group {group} cannot be decoded: {reason}");
                    *lake.0.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                    return;
                }
            }
        };
        self.0.tasks.spawn_on(build, &self.0.cpu);
    }
}

impl LogReader for Group {
    fn read_appends(&self, from: u64, to: u64, bytes_max: usize) -> Result<(Vec<(u64, Append)>, u64), String> {
        Self::read_appends(self, from, to, bytes_max).map_err(|error| error.to_string())
    }

    fn purged(&self) -> u64 {
        self.purged_index()
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it panicked")
}

impl ApplySink for Lake {
    fn restored(&self, group: GroupId, applied: u64, state: &GroupState) {
        self.memtable(group).restore(applied, &state.tables);
    }

    fn appended(&self, group: GroupId, index: u64, append: Append) {
        let memtable = self.memtable(group);
        let room = self.takes(&append);
        memtable.append(index, append, room);
    }

    fn flushed(&self, group: GroupId, table: &TableId, hi: u64, version: i64, location: &str) {
        self.memtable(group).flushed(table, hi, version, location);
        self.note_room();
    }

    fn advanced(&self, group: GroupId, table: &TableId, version: i64, location: &str) {
        self.memtable(group).advanced(table, version, location);
    }

    fn quarantine(&self, group: GroupId, table: &TableId, state: &TableState) {
        self.memtable(group).quarantine(table, state);
        self.note_room();
    }

    fn meta(&self, _json: &str) {}

    fn applied(&self, group: GroupId, index: u64) {
        self.memtable(group).applied(index);
    }
}
