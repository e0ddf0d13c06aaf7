//! What is known of the requests of a history: attempts and repeats with the same idempotency key are one request.

use std::collections::BTreeMap;

use crate::history::{DEFAULT_DATASET, Kind, Level, Operation, Outcome, Position};
use crate::scenario::Workload;

use super::{Blackout, FLUSH_WINDOW};

/// One request, however often it was sent.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) tenant: &'static str,
    pub(super) dataset: &'a str,
    pub(super) workload: Workload,
    /// Empty for spans.
    pub(super) key: &'a str,
    pub(super) rows: &'a [String],
    /// When it was sent first.
    pub(super) invoked: u64,
    /// The best of its attempts: acknowledged before unknown before refused.
    pub(super) outcome: Outcome,
    /// In the order in which they came.
    pub(super) acks: Vec<Ack>,
    /// What was asked for, or given, with an acknowledgment.
    pub(super) level: Level,
    /// The end of the first read that showed it.
    pub(super) seen: Option<u64>,
    /// The last beginning of a read that showed it.
    pub(super) seen_last: u64,
}

/// One acknowledgment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ack {
    pub(super) ended: u64,
    pub(super) position: Option<Position>,
    /// It does not say that the log held the request already.
    pub(super) fresh: bool,
}

impl Request<'_> {
    /// The end of the first attempt that was acknowledged.
    pub(super) fn acknowledged(&self) -> Option<u64> {
        self.acks.first().map(|ack| ack.ended)
    }

    /// Where it is, as far as any acknowledgment says; of one that was stored anew after a power loss nobody can say it.
    pub(super) fn position(&self) -> Option<Position> {
        let mut positions = self.acks.iter().filter_map(|ack| ack.position);
        let first = positions.next()?;
        positions.all(|position| position == first).then_some(first)
    }

    /// From when on it is known to be committed.
    fn known(&self) -> Option<u64> {
        self.acknowledged().into_iter().chain(self.seen).min()
    }

    /// Whether a read from `invoked` to `ended` may lack it although it was committed: all nodes lost their power, and what
    /// was acknowledged, if anything was, does not promise that it is there nevertheless.
    pub(super) fn may_be_gone(&self, invoked: u64, ended: u64, blackouts: &[Blackout]) -> bool {
        let Some(known) = self.known() else { return false };
        let takes = |blackout: &Blackout| {
            let again = self.acks.iter().any(|ack| blackout.ended < ack.ended && ack.ended < invoked);
            let promised = again || (self.level == Level::Fsync && !self.acks.is_empty());
            let seen_again = blackout.ended < self.seen_last;
            is_in_window(known, blackout) && blackout.begun <= ended && !promised && !seen_again
        };
        blackouts.iter().any(takes)
    }

    /// Whether any power loss of all nodes may have taken it: then another request may have its position, and it, sent again,
    /// another position.
    pub(super) fn is_at_risk(&self, blackouts: &[Blackout]) -> bool {
        let known = self.known();
        self.level == Level::Quorum
            && blackouts.iter().any(|blackout| known.is_some_and(|known| is_in_window(known, blackout)))
    }

    /// As messages name it.
    pub(super) fn name(&self) -> String {
        let Self { tenant, dataset, key, rows, .. } = self;
        format!("{tenant}/{dataset} {key} {rows:?}")
    }
}

/// Whether what was known to be committed then may not have been on the disks of a majority when all lost their power.
fn is_in_window(known: u64, blackout: &Blackout) -> bool {
    known <= blackout.ended && known.saturating_add(FLUSH_WINDOW) >= blackout.begun
}

/// The requests of a history in the order in which they were sent first.
pub(super) fn requests(operations: &[Operation]) -> Vec<Request<'_>> {
    let mut by_identity: BTreeMap<(&str, &str, Workload, &str), Request<'_>> = BTreeMap::new();
    for operation in operations {
        let (identity, key, rows, fresh) = match &operation.kind {
            Kind::Add(rows) => {
                let Some(first) = rows.first() else { continue };
                ((operation.tenant, DEFAULT_DATASET, Workload::Ingest, first.as_str()), "", rows, true)
            }
            Kind::Write(write) => {
                let identity = (operation.tenant, write.dataset, write.workload, write.request.as_str());
                (identity, write.key.as_str(), &write.rows, !write.deduplicated)
            }
            Kind::Read(_) | Kind::Final(_) | Kind::Query(_) | Kind::Audit(_) => continue,
        };
        let request = by_identity.entry(identity).or_insert_with(|| Request {
            tenant: operation.tenant,
            dataset: identity.1,
            workload: identity.2,
            key,
            rows,
            invoked: operation.invoked,
            outcome: Outcome::Fail,
            acks: Vec::new(),
            level: Level::Quorum,
            seen: None,
            seen_last: 0,
        });
        request.invoked = request.invoked.min(operation.invoked);
        match operation.outcome {
            Outcome::Ok => {
                request.outcome = Outcome::Ok;
                request.acks.push(Ack { ended: operation.ended, position: operation.position, fresh });
                // Who asked for more holds the cluster to it.
                let level = operation.asked.max(operation.given).unwrap_or(Level::Quorum);
                request.level = request.level.max(level);
            }
            Outcome::Info if request.outcome == Outcome::Fail => request.outcome = Outcome::Info,
            Outcome::Info | Outcome::Fail => {}
        }
    }
    let mut requests: Vec<Request<'_>> = by_identity.into_values().collect();
    for request in &mut requests {
        request.acks.sort_by_key(|ack| ack.ended);
    }
    requests.sort_by_key(|request| request.invoked);
    requests
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::testing::{SECOND, write};

    const BLACKOUT: Blackout = Blackout { begun: 100 * SECOND, ended: 102 * SECOND };

    #[test]
    fn attempts_and_repeats_are_one_request_with_the_best_outcome() {
        let unknown = Operation { outcome: Outcome::Info, position: None, ..write(1, "r", "x", 0) };
        let refused = Operation { outcome: Outcome::Fail, position: None, ..write(2, "r", "x", 0) };
        let operations = [refused.clone(), unknown.clone(), write(5, "r", "x", 7), write(3, "r", "x", 7)];
        let found = requests(&operations);
        assert_eq!(found.len(), 1);
        let (invoked, acknowledged) = (found[0].invoked, found[0].acknowledged());
        assert_eq!((found[0].outcome, invoked, acknowledged), (Outcome::Ok, 10, Some(35)));
        assert_eq!(found[0].position().map(|position| position.index), Some(7));
        assert_eq!(requests(&[refused.clone(), unknown])[0].outcome, Outcome::Info);
        assert_eq!(requests(&[refused])[0].outcome, Outcome::Fail);
    }

    #[test]
    fn the_same_request_of_two_tenants_or_datasets_is_two() {
        let other_tenant = Operation { tenant: "b", ..write(1, "r", "x", 2) };
        let mut other_dataset = write(1, "r", "x", 3);
        if let Kind::Write(write) = &mut other_dataset.kind {
            write.dataset = "other";
        }
        assert_eq!(requests(&[write(1, "r", "x", 1), other_tenant, other_dataset]).len(), 3);
    }

    #[test]
    fn a_power_loss_of_all_may_take_what_was_acknowledged_at_quorum_just_before_unless_it_was_sent_again() {
        let at = |ended: u64| Operation { invoked: ended - 1, ended, ..write(0, "r", "x", 7) };
        let gone = |operations: &[Operation], invoked: u64| {
            requests(operations)[0].may_be_gone(invoked, invoked + 1, &[BLACKOUT])
        };
        let just_before = at(BLACKOUT.begun - SECOND / 10);
        assert!(gone(std::slice::from_ref(&just_before), 103 * SECOND));
        assert!(!gone(std::slice::from_ref(&just_before), 90 * SECOND), "a read before it");
        assert!(!gone(&[at(90 * SECOND)], 103 * SECOND), "long before");
        let fsync = Operation { asked: Some(Level::Fsync), ..just_before.clone() };
        assert!(!gone(&[fsync], 103 * SECOND));
        let again = [just_before, at(104 * SECOND)];
        assert!(gone(&again, 103 * SECOND) && !gone(&again, 105 * SECOND), "it was stored anew");
        let [first, mut second] = again;
        second.position = Some(Position { group: 1, index: 9 });
        assert_eq!(requests(&[first, second])[0].position(), None, "at 7 or at 9");
    }
}
