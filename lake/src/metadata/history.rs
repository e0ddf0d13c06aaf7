//! Which snapshot a reader of the past gets: pure, like the retention that it relies on.

use std::fmt;

use iceberg::spec::{SnapshotRef, TableMetadata};
use thiserror::Error;

use super::expiry::HOUR_MS;

/// A moment of a table's past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsOf {
    /// What was current then: the last snapshot that was committed at this time or before.
    Time(Moment),
    /// The snapshot with this id.
    Snapshot(i64),
}

/// Milliseconds since 1970, as snapshots are stamped; shown as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match chrono::DateTime::from_timestamp_millis(self.0) {
            Some(time) => f.write_str(&time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)),
            None => write!(f, "{} ms since 1970", self.0),
        }
    }
}

/// The table cannot be shown as it was then.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AsOfError {
    /// Nothing had been committed yet.
    #[error("the table has no snapshot at {0}: nothing was committed by then")]
    NoSnapshotYet(Moment),
    /// Something was current then that is no longer kept. Its neighbours are named by id and time.
    #[error("the snapshot that was current at {asked} has expired; kept are {kept}")]
    Expired { asked: Moment, kept: Neighbours },
    #[error("the table keeps no snapshot {0}: it has expired or never was")]
    UnknownSnapshot(i64),
}

/// The kept snapshots around an expired one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbours {
    pub before: Option<(i64, Moment)>,
    pub after: Option<(i64, Moment)>,
}

impl fmt::Display for Neighbours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kept = [self.before, self.after].into_iter().flatten();
        let Some((id, at)) = kept.next() else { return f.write_str("none") };
        write!(f, "{id} of {at}")?;
        kept.try_for_each(|(id, at)| write!(f, " and {id} of {at}"))
    }
}

/// The snapshot that `metadata` shows as of then.
///
/// # Errors
/// [`AsOfError`] rather than a neighbouring snapshot: its rows would be taken for all rows.
pub fn snapshot_as_of(metadata: &TableMetadata, as_of: AsOf) -> Result<SnapshotRef, AsOfError> {
    match as_of {
        AsOf::Snapshot(id) => metadata.snapshot_by_id(id).cloned().ok_or(AsOfError::UnknownSnapshot(id)),
        AsOf::Time(asked) => snapshot_at(metadata, asked),
    }
}

fn snapshot_at(metadata: &TableMetadata, asked: Moment) -> Result<SnapshotRef, AsOfError> {
    // The log says what was current when, without gaps, but it begins after the last snapshot that expired.
    let logged = metadata.history().iter().rev().find(|entry| entry.timestamp_ms() <= asked.0);
    if let Some(snapshot) = logged.and_then(|entry| metadata.snapshot_by_id(entry.snapshot_id)) {
        return Ok(SnapshotRef::clone(snapshot));
    }
    let mut kept: Vec<&SnapshotRef> = metadata.snapshots().collect();
    kept.sort_by_key(|snapshot| snapshot.sequence_number());
    let after = kept.partition_point(|snapshot| snapshot.timestamp_ms() <= asked.0);
    let (before, after) = (after.checked_sub(1).and_then(|at| kept.get(at)), kept.get(after));
    let first = after.is_none_or(|after| after.parent_snapshot_id().is_none());
    match before {
        Some(before) if was_current(before, after.copied(), asked) => Ok(SnapshotRef::clone(before)),
        None if first => Err(AsOfError::NoSnapshotYet(asked)),
        _ => {
            let name = |snapshot: &&SnapshotRef| (snapshot.snapshot_id(), Moment(snapshot.timestamp_ms()));
            let kept = Neighbours { before: before.map(name), after: after.map(name) };
            Err(AsOfError::Expired { asked, kept })
        }
    }
}

/// Whether `before` was still current at `asked`, with `after` the next one that is kept.
///
/// What expired between them came after `before`'s hour: retention keeps the last snapshot of each hour, so it would have
/// kept that one instead. Not so when both are of one hour: a tag may have kept `before`. Whoever expires snapshots from outside removes the oldest, which leaves no gap.
fn was_current(before: &SnapshotRef, after: Option<&SnapshotRef>, asked: Moment) -> bool {
    let neighbours = after.is_none_or(|after| after.parent_snapshot_id() == Some(before.snapshot_id()));
    let hour = before.timestamp_ms().div_euclid(HOUR_MS);
    let last = after.is_none_or(|after| after.timestamp_ms().div_euclid(HOUR_MS) != hour);
    neighbours || (last && hour == asked.0.div_euclid(HOUR_MS))
}
