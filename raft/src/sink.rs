//! Who listens behind apply.

use bytes::Bytes;
use signaldb_model::{GroupId, TableId};

use crate::command::Append;
use crate::state::{GroupState, TableState};

/// Receives what a group applied, in log order, on the group's apply task.
///
/// Calls must be short and must not block: hand the work over. Every replica gets the same calls; after a restart they
/// begin with [`ApplySink::restored`] and replay the log from the snapshot on.
pub trait ApplySink: Send + Sync + 'static {
    /// The group starts from this state, as of log index `applied`.
    fn restored(&self, group: GroupId, applied: u64, state: &GroupState);
    /// Rows to keep until they are flushed. Not called for a deduplicated retry.
    fn appended(&self, group: GroupId, index: u64, append: Append);
    /// Rows of `table` up to `hi` are in Iceberg, at `version`.
    fn flushed(&self, group: GroupId, table: &TableId, hi: u64, version: i64, location: &str);
    /// The table has new metadata.
    fn advanced(&self, group: GroupId, table: &TableId, version: i64, location: &str);
    /// The table was put in quarantine, with more of its rows, or released from it; this is what holds now.
    fn quarantine(&self, _group: GroupId, _table: &TableId, _state: &TableState) {}
    /// A command of the meta group.
    fn meta(&self, json: &str);
    /// Everything up to `index` was passed on.
    fn applied(&self, group: GroupId, index: u64);
}

/// A key for state that outlives the process; see [`crate::state_store`].
pub(crate) fn snapshot_key(group: GroupId) -> Bytes {
    Bytes::from(format!("snapshot/{:010}", group.0))
}
