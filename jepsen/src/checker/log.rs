//! Whether reads of a log show what was appended to it, in the order in which it was.
//!
//! After Jepsen's workload for Kafka: clients append to logs (here: keys of a table) and learn positions, pollers see
//! prefixes. A read of a group shows what its log holds up to some index, so besides what holds of every read of a key
//! ([`super::keyed`]) it shows everything below the highest position that it shows, and everything up to the position
//! that the client asked for, even at a node that was not asked for a strong read.
//!
//! | anomaly | the read, of whatever consistency |
//! |---|---|
//! | `unexpected` | shows a row that nobody wrote |
//! | `hole` | lacks a request with a lower position than one that it shows: lost or reordered |
//! | `behind` | lacks a request with a position up to the one that it asked for |
//!
//! Rows do not tell their positions, only acknowledgments do; a request whose outcome is unknown has none until a repeat of
//! it is acknowledged. Streams, whose reads tell them too, will be another source of the same [`Keyed`] requests and reads,
//! with a check of their own that a row is where its acknowledgment says.

use std::collections::BTreeMap;

use crate::history::{Operation, Position};
use crate::scenario::Workload;

use super::keyed::{Keyed, Read, Shown, by_place, note_denied};
use super::{Anomalies, Blackout, Found};

/// Looks through a history.
pub(super) fn examine(operations: &[Operation], blackouts: &[Blackout]) -> Found {
    let mut found = Found::default();
    for keyed in by_place(operations, Workload::Log).values_mut() {
        found.count("keys", 1);
        found.count("acknowledged", keyed.requests.iter().filter(|request| !request.acks.is_empty()).count() as u64);
        for read in std::mem::take(&mut keyed.reads) {
            note_denied(read, blackouts, &mut found.anomalies);
            if !read.is_answered() {
                continue;
            }
            let what = if read.query.strong { "strong reads" } else { "eventual reads" };
            found.count(what, 1);
            found.count("reads of a position", u64::from(read.query.min.is_some()));
            let shown = keyed.look(read, blackouts, &mut found.anomalies);
            for row in &shown.strangers {
                found.anomalies.note("unexpected", format!("{row} in the {}", read.name()));
            }
            note_order(keyed, read, &shown, blackouts, &mut found.anomalies);
        }
    }
    found
}

fn note_order(keyed: &Keyed<'_>, read: Read<'_>, shown: &Shown<'_>, blackouts: &[Blackout], anomalies: &mut Anomalies) {
    let placed = || {
        let requests = keyed.requests.iter().zip(&shown.whole);
        requests.filter_map(|(request, whole)| Some((request.position()?, request, *whole)))
    };
    // By group, the highest index that the read shows.
    let mut highest: BTreeMap<u32, u64> = BTreeMap::new();
    for (Position { group, index }, _, _) in placed().filter(|(_, _, whole)| *whole) {
        let reached = highest.entry(group).or_default();
        *reached = index.max(*reached);
    }
    let (invoked, ended) = (read.operation.invoked, read.operation.ended);
    let missing = placed().filter(|(_, request, whole)| !*whole && !request.may_be_gone(invoked, ended, blackouts));
    for (Position { group, index }, request, _) in missing {
        let what = || format!("{} at {group}:{index} not in the {}", request.name(), read.name());
        if let Some(reached) = highest.get(&group).filter(|reached| **reached > index) {
            anomalies.note("hole", format!("{}, which shows {group}:{reached}", what()));
        }
        if read.query.min.is_some_and(|min| min.group == group && index <= min.index) {
            anomalies.note("behind", what());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::testing::{SECOND, operation, read, read_upto, refused, unknown, with_query, write};
    use crate::history::{Kind, Outcome, Purpose};

    fn kinds(operations: &[Operation]) -> Vec<&'static str> {
        examine(operations, &[]).anomalies.kinds()
    }

    fn last(read: Operation) -> Operation {
        with_query(read, |query| query.purpose = Purpose::Last)
    }

    fn eventual(read: Operation) -> Operation {
        with_query(read, |query| query.strong = false)
    }

    #[test]
    fn good_histories_are_valid() {
        let overlapping = Operation { ended: 65, ..write(5, "d", "u", 9) };
        for good in [
            vec![write(1, "a", "x y", 3), write(2, "b", "z", 5), read(3, "x y z"), last(read(9, "z x y"))],
            // Unknown: there or not, and there once it was shown.
            vec![unknown(1, "a", "x"), read(3, ""), last(read(9, ""))],
            vec![unknown(1, "a", "x"), read(3, ""), read(5, "x"), last(read(9, "x"))],
            // What overlaps may be in either order.
            vec![overlapping.clone(), read(6, ""), last(read(9, "u"))],
            vec![overlapping, read(6, "u"), last(read(9, "u"))],
            // A node that is not asked for more may be behind, but not behind the position that it was asked for.
            vec![
                write(1, "a", "x", 3),
                write(2, "b", "y", 5),
                eventual(read(4, "")),
                read(5, "x y"),
                eventual(read(6, "x")),
            ],
            vec![write(1, "a", "x", 3), write(2, "b", "y", 5), read_upto(4, 3, "x"), read_upto(5, 5, "x y")],
            // The outcome was unknown, and a repeat said where it is: in an earlier place than what came meanwhile.
            vec![unknown(1, "a", "x"), write(3, "b", "y", 5), read(4, "x y"), write(7, "a", "x", 2), read(8, "x y")],
            vec![refused(1, "a", "x"), read(3, ""), last(read(9, ""))],
        ] {
            assert_eq!(kinds(&good), Vec::<&str>::new(), "{good:?}");
        }
    }

    #[test]
    fn every_kind_of_bad_history_is_found() {
        let denied = with_query(read_upto(4, 3, ""), |query| query.refused = Some(400));
        for (kind, bad) in [
            ("lost", vec![write(1, "a", "x", 3), last(read(9, ""))]),
            ("stale", vec![write(1, "a", "x", 3), read(4, "")]),
            ("doubled", vec![write(1, "a", "x", 3), read(4, "x x")]),
            ("doubled", vec![unknown(1, "a", "x"), last(read(9, "x x"))]),
            ("aborted", vec![refused(1, "a", "x"), read(4, "x")]),
            ("future", vec![write(8, "a", "x", 3), read(4, "x")]),
            ("torn", vec![write(1, "a", "x y", 3), read(4, "x")]),
            ("vanished", vec![unknown(1, "a", "x"), read(3, "x"), read(5, "")]),
            ("unexpected", vec![read(4, "x")]),
            ("hole", vec![write(1, "a", "x", 3), write(2, "b", "y", 5), eventual(read(4, "y"))]),
            ("behind", vec![write(1, "a", "x", 3), write(2, "b", "y", 5), read_upto(4, 5, "x")]),
            ("denied", vec![write(1, "a", "x", 3), Operation { outcome: Outcome::Fail, ..denied }]),
        ] {
            assert_eq!(kinds(&bad), [kind], "{bad:?}");
        }
    }

    #[test]
    fn a_reordered_request_is_a_hole_even_if_its_position_was_learned_later() {
        let learned = write(7, "a", "x", 2);
        let bad = [unknown(1, "a", "x"), write(3, "b", "y", 5), eventual(read(4, "y")), learned];
        assert_eq!(kinds(&bad), ["hole"]);
    }

    #[test]
    fn keys_and_tenants_are_logs_of_their_own() {
        let elsewhere = with_query(read(4, ""), |query| query.key = "l".to_owned());
        let other = Operation { tenant: "b", ..read(4, "") };
        assert_eq!(kinds(&[write(1, "a", "x", 3), elsewhere, other]), Vec::<&str>::new());
        assert_eq!(kinds(&[write(1, "a", "x", 3), Operation { tenant: "b", ..read(4, "x") }]), ["unexpected"]);
    }

    #[test]
    fn reads_that_were_not_answered_and_other_workloads_show_nothing() {
        let refused = Operation { outcome: Outcome::Fail, ..read(4, "") };
        let spans = operation(5, Outcome::Ok, Kind::Read(Vec::new()));
        assert_eq!(kinds(&[write(1, "a", "x", 3), refused, spans]), Vec::<&str>::new());
    }

    #[test]
    fn a_power_loss_of_all_may_take_the_end_of_the_log_and_nothing_below() {
        let blackout = Blackout { begun: 100 * SECOND, ended: 102 * SECOND };
        let at = |ended: u64, operation: Operation| Operation { invoked: ended - 5, ended, ..operation };
        let old = at(90 * SECOND, write(0, "a", "x", 3));
        let new = at(blackout.begun - SECOND / 10, write(0, "b", "y", 5));
        let after = at(104 * SECOND, write(0, "c", "z", 5));
        let kinds = |shown: &str| {
            let history = [old.clone(), new.clone(), after.clone(), at(106 * SECOND, read(0, shown))];
            examine(&history, &[blackout]).anomalies.kinds()
        };
        assert_eq!(kinds("x z"), Vec::<&str>::new());
        assert_eq!(kinds("x y z"), Vec::<&str>::new());
        assert_eq!(kinds("y z"), ["hole", "stale"]);
    }
}
