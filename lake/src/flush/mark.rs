//! The mark of a flush: how far a group's log is in a table, kept in the table.

use iceberg::spec::TableMetadata;
use serde::{Deserialize, Serialize};
use signaldb_model::{GroupId, TableId};
use signaldb_raft::{Group, GroupState};

use crate::error::LakeError;

/// The mark of the last flush of a group, in the table's properties under [`mark_key`], as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FlushMark {
    pub(super) cluster: String,
    pub(super) group: u32,
    pub(super) incarnation: u64,
    pub(super) term: u64,
    pub(super) index: u64,
    pub(super) commit: uuid::Uuid,
    /// The incarnations up to this one, without the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) lineage: Vec<Begun>,
}

/// An incarnation and the index of the command that began it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    pub(super) id: u64,
    pub(super) from: u64,
}

/// What the keys of marks begin with.
pub(super) const MARK_PREFIX: &str = "signaldb.flush.";

pub(super) fn mark_key(group: GroupId) -> String {
    format!("{MARK_PREFIX}{group}")
}

/// The incarnations of a group.
pub(super) fn lineage(state: &GroupState) -> Vec<Begun> {
    state.incarnations.iter().map(|incarnation| Begun { id: incarnation.id, from: incarnation.from }).collect()
}

impl FlushMark {
    /// The group's mark in a table; `None` while it never flushed there.
    ///
    /// # Errors
    /// [`LakeError::ForeignMark`] when another cluster flushed here, or the mark cannot be read.
    pub(super) fn of(
        metadata: &TableMetadata,
        cluster_id: &str,
        group: GroupId,
        table: &TableId,
    ) -> Result<Option<Self>, LakeError> {
        let Some(text) = metadata.properties().get(&mark_key(group)) else { return Ok(None) };
        let mark = serde_json::from_str(text).ok();
        let ours = mark.filter(|mark: &Self| mark.cluster == cluster_id && mark.group == group.0);
        ours.map(Some).ok_or_else(|| LakeError::ForeignMark { table: table.to_string(), found: text.clone() })
    }

    /// Whether the flush can have been one of this log.
    pub(super) fn is_of_log(&self, group: &Group) -> bool {
        self.incarnation == group.with_state(GroupState::incarnation) && group.may_have_flushed(self.index, self.term)
    }

    /// Up to which index of a log with the incarnations `own` the table holds what that log has.
    ///
    /// The log and the one that the mark is from are the same before the first incarnation in which they differ:
    ///
    /// ```text
    /// mark: index 90, own began incarnation 7 at 50     -> 49: rows from 51 on are other rows
    /// mark: index 90, began incarnation 5 at 40; own: 7 at 50 -> 39
    /// mark: index 30, own began incarnation 7 at 50     -> 30: rows 31 to 49 are not in the table yet
    /// ```
    pub(super) fn index_in(&self, own: &[Begun]) -> u64 {
        let common = self.lineage.iter().zip(own).take_while(|(theirs, own)| theirs.id == own.id).count();
        let parted = [self.lineage.get(common), own.get(common)].into_iter().flatten();
        parted.map(|begun| begun.from.saturating_sub(1)).fold(self.index, u64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(index: u64, lineage: &[(u64, u64)]) -> FlushMark {
        FlushMark {
            cluster: "c".to_owned(),
            group: 3,
            incarnation: lineage.last().map_or(1, |(id, _)| *id),
            term: 2,
            index,
            commit: uuid::Uuid::nil(),
            lineage: begun(lineage),
        }
    }

    fn begun(lineage: &[(u64, u64)]) -> Vec<Begun> {
        lineage.iter().map(|(id, from)| Begun { id: *id, from: *from }).collect()
    }

    #[test]
    fn a_watermark_counts_only_up_to_where_two_logs_part() {
        for (index, theirs, own, expected) in [
            (90, &[][..], &[][..], 90),
            (90, &[], &[(7, 50)], 49),
            (30, &[], &[(7, 50)], 30),
            (90, &[(7, 50)], &[(7, 50)], 90),
            (90, &[(5, 40)], &[(7, 50)], 39),
            (90, &[(5, 60)], &[(7, 50)], 49),
            (90, &[(7, 50), (8, 80)], &[(7, 50), (9, 85)], 79),
            (90, &[(7, 50)], &[], 49),
        ] {
            assert_eq!(mark(index, theirs).index_in(&begun(own)), expected, "{index} {theirs:?} {own:?}");
        }
    }

    #[test]
    fn golden_mark_of_before_there_were_incarnations() {
        let text = r#"{"cluster":"c","group":3,"incarnation":1,"term":2,"index":90,"commit":"00000000-0000-0000-0000-000000000000"}"#;
        assert_eq!(serde_json::to_string(&mark(90, &[])).expect("JSON"), text);
        assert_eq!(serde_json::from_str::<FlushMark>(text).expect("reads"), mark(90, &[]));
        let text = serde_json::to_string(&mark(90, &[(7, 50)])).expect("JSON");
        assert!(text.ends_with(r#""lineage":[{"id":7,"from":50}]}"#), "{text}");
    }
}
