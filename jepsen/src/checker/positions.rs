//! What acknowledgments say of their place in the log, whichever workload they are of.
//!
//! After Jepsen's workload for Kafka, whose offsets are our positions; and Raft's promise that an entry has one index. An
//! index that was acknowledged names one request for ever, a request that is sent again keeps its first, and the order of
//! indexes of a group is one in which the requests can have happened (strict serializability, Herlihy and Wing 1990):
//! what began after another one was acknowledged has the higher index. That last part is checked in one pass over begins
//! and ends in their order, with the highest index that was acknowledged so far.
//!
//! | anomaly | |
//! |---|---|
//! | `unplaced` | an acknowledgment names no position |
//! | `shared` | two requests have one position: one of them overwrote the other |
//! | `moved` | a repeat of a request was given another position |
//! | `twice` | more than one acknowledgment of a request says that it was new |
//! | `weaker` | a request was acknowledged at a lower level than it had asked for |
//! | `disordered` | a request began after another one of its group was acknowledged, and has the lower index |
//!
//! Indexes of acknowledged requests have gaps, for a log also holds what no client was told of, and what no client sent. That
//! the log itself has none, and what is in the gaps, is asked of the logs: [`super::entries`].
//!
//! A power loss of all nodes may take what was acknowledged last at `quorum`, and then gives its indexes away again:
//! requests at that risk prove nothing.

use std::collections::BTreeMap;

use crate::history::{Kind, Level, Operation, Outcome, Position};

use super::request::{Request, requests};
use super::{Anomalies, Blackout, Found};

/// Looks through a history.
pub(super) fn examine(operations: &[Operation], blackouts: &[Blackout]) -> Found {
    let mut found = Found::default();
    let mut requests = requests(operations);
    requests.retain(|request| !request.acks.is_empty());
    let repeats: u64 = requests.iter().map(|request| request.acks.len() as u64 - 1).sum();
    found.count("acknowledged", requests.len() as u64);
    found.count("repeats acknowledged", repeats);
    for request in requests.iter().filter(|request| request.acks.iter().any(|ack| ack.position.is_none())) {
        found.anomalies.note("unplaced", request.name());
    }
    note_weaker(operations, &mut found.anomalies);
    requests.retain(|request| !request.is_at_risk(blackouts));
    requests.iter().for_each(|request| note_repeats(request, &mut found.anomalies));
    note_shared(&requests, &mut found.anomalies);
    let mut groups: BTreeMap<u32, Vec<(u64, &Request<'_>)>> = BTreeMap::new();
    for request in &requests {
        if let Some(Position { group, index }) = request.position() {
            groups.entry(group).or_default().push((index, request));
        }
    }
    found.count("groups", groups.len() as u64);
    groups.values().for_each(|group| note_disorder(group, &mut found.anomalies));
    found
}

/// Of spans `set-full` says it.
fn note_weaker(operations: &[Operation], anomalies: &mut Anomalies) {
    for operation in operations.iter().filter(|one| one.outcome == Outcome::Ok) {
        let (asked, given) = (operation.asked, operation.given.unwrap_or(Level::Quorum));
        if let Kind::Write(write) = &operation.kind
            && asked.is_some_and(|asked| given < asked)
        {
            let (key, rows) = (&write.key, &write.rows);
            anomalies.note("weaker", format!("{key} {rows:?}, asked for at {asked:?}, acknowledged at {given:?}"));
        }
    }
}

fn note_repeats(request: &Request<'_>, anomalies: &mut Anomalies) {
    let mut positions: Vec<Position> = request.acks.iter().filter_map(|ack| ack.position).collect();
    positions.sort_unstable();
    positions.dedup();
    if let [first, .., last] = positions[..] {
        anomalies.note("moved", format!("{} is at {first} and at {last}", request.name()));
    }
    if request.acks.iter().filter(|ack| ack.fresh).count() > 1 {
        anomalies.note("twice", format!("{} was new more than once: {:?}", request.name(), request.acks));
    }
}

fn note_shared(requests: &[Request<'_>], anomalies: &mut Anomalies) {
    let mut owners: BTreeMap<Position, &Request<'_>> = BTreeMap::new();
    for request in requests {
        let Some(position) = request.position() else { continue };
        if let Some(other) = owners.insert(position, request) {
            anomalies.note("shared", format!("{position} is of {} and of {}", other.name(), request.name()));
        }
    }
}

/// `group` is in the order of begins.
fn note_disorder(group: &[(u64, &Request<'_>)], anomalies: &mut Anomalies) {
    let mut acknowledged: Vec<(u64, u64, &Request<'_>)> =
        group.iter().filter_map(|(index, request)| Some((request.acknowledged()?, *index, *request))).collect();
    acknowledged.sort_by_key(|(ended, _, _)| *ended);
    let mut acknowledged = acknowledged.into_iter().peekable();
    let mut highest: Option<(u64, u64, &Request<'_>)> = None;
    for (index, request) in group {
        while let Some(before) = acknowledged.next_if(|(ended, _, _)| *ended < request.invoked) {
            highest = highest.filter(|(_, highest, _)| *highest > before.1).or(Some(before));
        }
        let Some((ended, above, first)) = highest.filter(|(_, highest, _)| highest >= index) else { continue };
        let (first, second, invoked) = (first.name(), request.name(), request.invoked);
        let what =
            format!("{first} at {above}, acknowledged at {ended} ns; {second} at {index}, begun at {invoked} ns");
        anomalies.note("disordered", what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::testing::{SECOND, unknown, write};

    fn kinds(operations: &[Operation]) -> Vec<&'static str> {
        examine(operations, &[]).anomalies.kinds()
    }

    /// An acknowledgment that says that the log held the request already.
    fn repeat(at: u64, request: &str, rows: &str, index: u64) -> Operation {
        let mut operation = write(at, request, rows, index);
        if let Kind::Write(write) = &mut operation.kind {
            write.deduplicated = true;
        }
        operation
    }

    #[test]
    fn good_positions_are_valid() {
        let overlapping = Operation { ended: 100, ..write(1, "a", "x", 9) };
        let other_group = Operation { position: Some(Position { group: 2, index: 1 }), ..write(9, "d", "u", 0) };
        let good = [
            overlapping,
            // It began before the first was acknowledged: either order is one.
            write(2, "b", "y", 4),
            // Gaps are other entries of the log.
            write(20, "c", "z", 17),
            other_group,
            unknown(30, "e", "v"),
            // Long after: a repeat keeps the place that the first had.
            repeat(40, "b", "y", 4),
        ];
        assert_eq!(kinds(&good), Vec::<&str>::new());
        let counts = examine(&good, &[]).counts;
        assert_eq!((counts["acknowledged"], counts["repeats acknowledged"], counts["groups"]), (4, 1, 2));
    }

    #[test]
    fn every_kind_of_bad_position_is_found() {
        let unplaced = Operation { position: None, ..write(1, "a", "x", 0) };
        let weaker = Operation { asked: Some(Level::Fsync), given: Some(Level::Quorum), ..write(1, "a", "x", 7) };
        for (kind, bad) in [
            ("unplaced", vec![unplaced]),
            ("weaker", vec![weaker]),
            ("shared", vec![write(1, "a", "x", 7), Operation { ended: 100, invoked: 10, ..write(1, "b", "y", 7) }]),
            ("moved", vec![write(1, "a", "x", 7), repeat(5, "a", "x", 9)]),
            ("twice", vec![write(1, "a", "x", 7), write(5, "a", "x", 7)]),
            ("disordered", vec![write(1, "a", "x", 7), write(5, "b", "y", 6)]),
            ("disordered", vec![unknown(1, "a", "x"), repeat(3, "a", "x", 7), write(5, "b", "y", 6)]),
        ] {
            assert_eq!(kinds(&bad), [kind], "{bad:?}");
        }
    }

    #[test]
    fn a_shared_position_is_found_between_workloads_and_tenants() {
        let add = Kind::Add(vec!["x".to_owned()]);
        let span = Operation { kind: add, tenant: "b", ended: 100, ..write(1, "", "", 7) };
        assert_eq!(kinds(&[span, write(2, "a", "x", 7)]), ["shared"]);
    }

    #[test]
    fn a_power_loss_of_all_gives_indexes_away_again_but_not_those_that_were_synced() {
        let blackout = Blackout { begun: 100 * SECOND, ended: 102 * SECOND };
        let at = |ended: u64, operation: Operation| Operation { invoked: ended - 5, ended, ..operation };
        let before = at(blackout.begun - SECOND / 10, write(0, "a", "x", 7));
        let after = at(blackout.ended + SECOND, write(0, "b", "y", 7));
        let found = |before: &Operation| examine(&[before.clone(), after.clone()], &[blackout]).anomalies.kinds();
        assert_eq!(found(&before), Vec::<&str>::new());
        let synced = Operation { given: Some(Level::Fsync), ..before.clone() };
        assert_eq!(found(&synced), ["disordered", "shared"]);
        let early = at(90 * SECOND, before);
        assert_eq!(found(&early), ["disordered", "shared"]);
    }
}
