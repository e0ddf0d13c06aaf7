//! Rows of one key of a dataset: what every read that shows all of them has to hold to, whichever workload wrote them.
//!
//! | anomaly | the read |
//! |---|---|
//! | `doubled` | shows a row twice |
//! | `aborted` | shows a row of a request that was certainly refused, or never sent as a whole |
//! | `future` | ended before the request was sent |
//! | `torn` | shows some rows of a request: one entry of the log is there or not |
//! | `stale` | is strong, and lacks what was acknowledged before it began |
//! | `lost` | is a last one, and lacks what was acknowledged |
//! | `vanished` | is strong, and lacks what an earlier read showed, whatever the client was told |
//! | `denied` | was refused a position that an acknowledgment had named |

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Kind, Operation, Outcome, Purpose, Query};
use crate::scenario::Workload;

use super::request::{Request, requests};
use super::{Anomalies, Blackout};

/// A read of a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Read<'a> {
    pub(super) operation: &'a Operation,
    pub(super) query: &'a Query,
}

impl Read<'_> {
    pub(super) fn is_answered(&self) -> bool {
        self.operation.outcome == Outcome::Ok
    }

    pub(super) fn is_last(&self) -> bool {
        self.query.purpose == Purpose::Last
    }

    /// As messages name it.
    pub(super) fn name(&self) -> String {
        let Operation { process, node, tenant, invoked, ended, .. } = self.operation;
        let Query { dataset, key, strong, min, .. } = self.query;
        let consistency = if *strong { "strong" } else { "eventual" };
        let upto = min.map(|min| format!(" of {min}")).unwrap_or_default();
        format!(
            "{consistency} read{upto} of {tenant}/{dataset} {key} by process {process} of node {node}, {invoked} to {ended} ns"
        )
    }
}

/// All that happened to one key of one dataset.
#[derive(Debug, Default)]
pub(super) struct Keyed<'a> {
    pub(super) requests: Vec<Request<'a>>,
    /// Requests by row.
    by_row: BTreeMap<&'a str, usize>,
    /// In the order of their ends.
    pub(super) reads: Vec<Read<'a>>,
}

/// What a read shows.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    /// Of each request, whether all of its rows are there.
    pub(super) whole: Vec<bool>,
    /// Rows that nobody wrote to the key.
    pub(super) strangers: BTreeSet<&'a str>,
}

/// Tenant, dataset and key.
pub(super) type Place<'a> = (&'static str, &'a str, &'a str);

/// What a workload did, by place.
pub(super) fn by_place(operations: &[Operation], workload: Workload) -> BTreeMap<Place<'_>, Keyed<'_>> {
    let mut places: BTreeMap<Place<'_>, Keyed<'_>> = BTreeMap::new();
    for request in requests(operations).into_iter().filter(|request| request.workload == workload) {
        let keyed = places.entry((request.tenant, request.dataset, request.key)).or_default();
        let at = keyed.requests.len();
        keyed.by_row.extend(request.rows.iter().map(|row| (row.as_str(), at)));
        keyed.requests.push(request);
    }
    for operation in operations {
        if let Kind::Query(query) = &operation.kind
            && query.workload == workload
            && query.purpose != Purpose::Trespass
        {
            let place = (operation.tenant, query.dataset, query.key.as_str());
            places.entry(place).or_default().reads.push(Read { operation, query });
        }
    }
    for keyed in places.values_mut() {
        keyed.reads.sort_by_key(|read| read.operation.ended);
    }
    places
}

impl<'a> Keyed<'a> {
    /// The request that wrote a row to the key.
    pub(super) fn writer(&self, row: &str) -> Option<&Request<'a>> {
        Some(&self.requests[*self.by_row.get(row)?])
    }

    /// Looks at an answered read that shows all rows.
    pub(super) fn look(&mut self, read: Read<'a>, blackouts: &[Blackout], anomalies: &mut Anomalies) -> Shown<'a> {
        let (invoked, ended) = (read.operation.invoked, read.operation.ended);
        let (mut rows, mut strangers) = (BTreeSet::new(), BTreeSet::new());
        let mut counts = vec![0; self.requests.len()];
        for row in &read.query.rows {
            if !rows.insert(row.as_str()) {
                anomalies.note("doubled", format!("{row} twice in the {}", read.name()));
                continue;
            }
            let Some(at) = self.by_row.get(row.as_str()) else {
                strangers.insert(row.as_str());
                continue;
            };
            counts[*at] += 1;
        }
        let mut whole = Vec::with_capacity(counts.len());
        for (request, count) in self.requests.iter_mut().zip(counts) {
            whole.push(count == request.rows.len());
            if count > 0 {
                note_shown(request, count, read, anomalies);
                // Reads come in the order of their ends.
                request.seen.get_or_insert(ended);
                request.seen_last = request.seen_last.max(invoked);
            } else if read.query.strong {
                note_missing(request, read, blackouts, anomalies);
            }
        }
        Shown { whole, strangers }
    }
}

fn note_shown(request: &Request<'_>, count: usize, read: Read<'_>, anomalies: &mut Anomalies) {
    let what = || format!("{} in the {}", request.name(), read.name());
    if request.outcome == Outcome::Fail {
        anomalies.note("aborted", what());
    }
    if request.invoked > read.operation.ended {
        anomalies.note("future", what());
    }
    if count < request.rows.len() {
        anomalies.note("torn", format!("{count} rows of {}", what()));
    }
}

fn note_missing(request: &Request<'_>, read: Read<'_>, blackouts: &[Blackout], anomalies: &mut Anomalies) {
    let (invoked, ended) = (read.operation.invoked, read.operation.ended);
    if request.may_be_gone(invoked, ended, blackouts) {
        return;
    }
    if let Some(acknowledged) = request.acknowledged().filter(|at| *at < invoked || read.is_last()) {
        let kind = if read.is_last() { "lost" } else { "stale" };
        let what = format!("{}, acknowledged at {acknowledged} ns, not in the {}", request.name(), read.name());
        anomalies.note(kind, what);
    } else if request.seen.is_some_and(|seen| seen < invoked) {
        anomalies.note("vanished", format!("{}, seen before, not in the {}", request.name(), read.name()));
    }
}

/// A position that was acknowledged exists on every node that can ask its leader; after a power loss of all it may not.
pub(super) fn note_denied(read: Read<'_>, blackouts: &[Blackout], anomalies: &mut Anomalies) {
    let gone = blackouts.iter().any(|blackout| blackout.begun <= read.operation.ended);
    if read.query.min.is_some() && read.query.refused == Some(400) && !gone {
        anomalies.note("denied", format!("400 for the {}", read.name()));
    }
}
