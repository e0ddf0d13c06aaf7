//! Whether reads of the newest version of a key are linearizable.
//!
//! Rows are only ever appended, each with a version that no other row has. The newest version of a key is then a *max
//! register* (Aspnes, Attiya and Censor-Hillel, Max Registers, Counters, and Monotone Circuits, J. ACM 2012): `write(v)`
//! puts v into it unless something higher is there, and `read` returns what is. To decide whether any history is
//! linearizable (Herlihy and Wing 1990; Wing and Gong 1993; Lowe 2017) takes exponential time, but not when it is known which
//! write each read saw and in which order writes count, as with unique versions (Gibbons and Korach, Testing Shared
//! Memories, SIAM J. Comput. 1997). Linearizability is local, so each key is checked alone.
//!
//! Say that an operation *proves* v at its end if it is an acknowledged write of v or a read that returned v. A history
//! is linearizable exactly when no read that returns v
//!
//! | anomaly | |
//! |---|---|
//! | `unexpected`, `aborted` | returns what nobody wrote, or a write that was certainly refused |
//! | `future` | ended before v was sent |
//! | `stale` | began after an acknowledgment proved more than v |
//! | `regressed` | began after another read proved more than v |
//! | `superseded` | returns v although more was proved before v was sent: v never was the highest |
//!
//! For then all operations in the order of the versions they write or return, writes before reads of one version, respect
//! real time; but for writes that began when more was proved, which no read returned and which change nothing wherever
//! in their time they are. The most that was proved so far is kept while begins are visited in their order: one pass, after
//! sorting.
//!
//! Reads of a position ([`Query::min`]) are checked whatever their consistency: they are `behind` if they return less than
//! some write whose position is not above the one that they asked for; and `denied` if they are told that an acknowledged
//! position does not exist. Last reads show every row, and hold to what [`super::keyed`] says. A power loss of all nodes
//! may take writes: those at that risk prove nothing.
//!
//! [`Query::min`]: crate::history::Query::min

use std::collections::BTreeMap;

use crate::history::{Operation, Outcome};
use crate::scenario::Workload;

use super::keyed::{Keyed, Read, by_place, note_denied};
use super::request::Request;
use super::{Anomalies, Blackout, Found};

/// Looks through a history.
pub(super) fn examine(operations: &[Operation], blackouts: &[Blackout]) -> Found {
    let mut found = Found::default();
    for keyed in by_place(operations, Workload::Register).values_mut() {
        found.count("keys", 1);
        found.count("acknowledged", keyed.requests.iter().filter(|request| !request.acks.is_empty()).count() as u64);
        let (last, middle): (Vec<Read<'_>>, Vec<Read<'_>>) =
            std::mem::take(&mut keyed.reads).into_iter().partition(Read::is_last);
        for read in &middle {
            note_denied(*read, blackouts, &mut found.anomalies);
        }
        let middle: Vec<Read<'_>> = middle.into_iter().filter(Read::is_answered).collect();
        for read in &middle {
            let what = if read.query.strong { "strong reads" } else { "eventual reads" };
            found.count(what, 1);
            found.count("reads of a position", u64::from(read.query.min.is_some()));
        }
        check_reads(keyed, &middle, blackouts, &mut found.anomalies);
        for read in last.into_iter().filter(Read::is_answered) {
            let shown = keyed.look(read, blackouts, &mut found.anomalies);
            for row in shown.strangers {
                found.anomalies.note("unexpected", format!("{row} in the {}", read.name()));
            }
        }
    }
    found
}

/// What a register that was never written holds.
const NOTHING: u64 = 0;

/// The version that a row holds; rows sort as their versions do.
fn version(row: &str) -> Option<u64> {
    row.parse().ok()
}

/// The highest version that a read showed.
fn returned(read: Read<'_>) -> u64 {
    read.query.rows.iter().filter_map(|row| version(row)).max().unwrap_or(NOTHING)
}

/// A write of one version.
struct Versioned {
    version: u64,
    invoked: u64,
    /// As messages name it.
    name: String,
}

/// Something that proves a version at its end.
struct Proof {
    ended: u64,
    version: u64,
    by_read: bool,
    name: String,
}

/// The most that was proved so far.
#[derive(Default)]
struct Proved<'a> {
    by_write: Option<&'a Proof>,
    by_read: Option<&'a Proof>,
}

impl<'a> Proved<'a> {
    fn add(&mut self, proof: &'a Proof) {
        let most = if proof.by_read { &mut self.by_read } else { &mut self.by_write };
        if most.is_none_or(|most| most.version < proof.version) {
            *most = Some(proof);
        }
    }
}

fn check_reads(keyed: &Keyed<'_>, reads: &[Read<'_>], blackouts: &[Blackout], anomalies: &mut Anomalies) {
    note_impossible(keyed, reads, anomalies);
    note_behind(keyed, reads, blackouts, anomalies);
    let strong: Vec<Read<'_>> = reads.iter().copied().filter(|read| read.query.strong).collect();
    let proofs = proofs(keyed, &strong, blackouts);
    let writes: BTreeMap<u64, Versioned> = keyed
        .requests
        .iter()
        .flat_map(|request| request.rows.iter().filter_map(move |row| Some((version(row)?, request))))
        .map(|(version, request)| (version, Versioned { version, invoked: request.invoked, name: request.name() }))
        .collect();
    note_low(&strong, &proofs, anomalies);
    note_superseded(&strong, &writes, &proofs, anomalies);
}

/// Reads of what cannot have been there.
fn note_impossible(keyed: &Keyed<'_>, reads: &[Read<'_>], anomalies: &mut Anomalies) {
    for read in reads {
        for row in &read.query.rows {
            let Some(writer) = keyed.writer(row) else {
                anomalies.note("unexpected", format!("{row} in the {}", read.name()));
                continue;
            };
            if writer.outcome == Outcome::Fail {
                anomalies.note("aborted", format!("{} in the {}", writer.name(), read.name()));
            }
            if writer.invoked > read.operation.ended {
                anomalies.note("future", format!("{} in the {}", writer.name(), read.name()));
            }
        }
    }
}

/// Reads of a position that lack what is up to there.
fn note_behind(keyed: &Keyed<'_>, reads: &[Read<'_>], blackouts: &[Blackout], anomalies: &mut Anomalies) {
    // By group: index and version, the version the highest up to that index.
    let mut groups: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for request in keyed.requests.iter().filter(|request| !request.is_at_risk(blackouts)) {
        let highest = request.rows.iter().filter_map(|row| version(row)).max();
        if let Some((position, version)) = request.position().zip(highest) {
            groups.entry(position.group).or_default().push((position.index, version));
        }
    }
    for written in groups.values_mut() {
        written.sort_unstable();
        let mut highest = NOTHING;
        for (_, version) in written {
            highest = highest.max(*version);
            *version = highest;
        }
    }
    for read in reads {
        let Some(min) = read.query.min else { continue };
        let written = groups.get(&min.group).map(Vec::as_slice).unwrap_or_default();
        let upto = written.partition_point(|(index, _)| *index <= min.index);
        let least = written[..upto].last().map_or(NOTHING, |(_, version)| *version);
        if returned(*read) < least {
            let what = format!("{} in the {}, up to which {least} was written", returned(*read), read.name());
            anomalies.note("behind", what);
        }
    }
}

/// What proves versions, in the order of ends.
fn proofs(keyed: &Keyed<'_>, strong: &[Read<'_>], blackouts: &[Blackout]) -> Vec<Proof> {
    let mut proofs = Vec::new();
    for request in keyed.requests.iter().filter(|request| !request.is_at_risk(blackouts)) {
        let Some(ended) = request.acknowledged() else { continue };
        let versions = request.rows.iter().filter_map(|row| version(row));
        proofs.extend(versions.map(|version| Proof { ended, version, by_read: false, name: request.name() }));
    }
    for read in strong {
        let (ended, version) = (read.operation.ended, returned(*read));
        // What a read saw just before all nodes lost their power may be gone too.
        let may_go = blackouts.iter().any(|blackout| ended <= blackout.ended && version > NOTHING);
        if !may_go || keyed.requests.iter().any(|request| is_safe(request, version, blackouts)) {
            proofs.push(Proof { ended, version, by_read: true, name: read.name() });
        }
    }
    proofs.sort_by_key(|proof| proof.ended);
    proofs
}

/// Whether this request wrote the version, and was acknowledged such that nothing takes it.
fn is_safe(request: &Request<'_>, of: u64, blackouts: &[Blackout]) -> bool {
    let wrote = request.rows.iter().any(|row| version(row) == Some(of));
    wrote && !request.acks.is_empty() && !request.is_at_risk(blackouts)
}

/// Reads that return less than was proved before they began.
fn note_low(strong: &[Read<'_>], proofs: &[Proof], anomalies: &mut Anomalies) {
    let mut by_begin: Vec<Read<'_>> = strong.to_vec();
    by_begin.sort_by_key(|read| read.operation.invoked);
    let (mut proved, mut proofs) = (Proved::default(), proofs.iter().peekable());
    for read in by_begin {
        while let Some(proof) = proofs.next_if(|proof| proof.ended < read.operation.invoked) {
            proved.add(proof);
        }
        let low = |most: &&Proof| most.version > returned(read);
        let what = |most: &Proof| format!("{} in the {}, after {}", returned(read), read.name(), most.name);
        if let Some(most) = proved.by_write.filter(low) {
            anomalies.note("stale", what(most));
        }
        if let Some(most) = proved.by_read.filter(low) {
            anomalies.note("regressed", what(most));
        }
    }
}

/// Reads of writes that began when more was proved.
fn note_superseded(
    strong: &[Read<'_>],
    writes: &BTreeMap<u64, Versioned>,
    proofs: &[Proof],
    anomalies: &mut Anomalies,
) {
    let mut read: Vec<&Versioned> = strong.iter().filter_map(|read| writes.get(&returned(*read))).collect();
    read.sort_by_key(|write| (write.invoked, write.version));
    read.dedup_by_key(|write| write.version);
    let (mut proved, mut proofs) = (Proved::default(), proofs.iter().peekable());
    for write in read {
        while let Some(proof) = proofs.next_if(|proof| proof.ended < write.invoked) {
            proved.add(proof);
        }
        let most = [proved.by_write, proved.by_read].into_iter().flatten().find(|most| most.version > write.version);
        if let Some(most) = most {
            anomalies.note("superseded", format!("{} was read, but began after {}", write.name, most.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::testing::{SECOND, of, read, read_upto, refused, unknown, with_query, write};
    use crate::history::{Level, Purpose};

    fn kinds(operations: Vec<Operation>) -> Vec<&'static str> {
        examine(&of(Workload::Register, operations), &[]).anomalies.kinds()
    }

    fn eventual(read: Operation) -> Operation {
        with_query(read, |query| query.strong = false)
    }

    fn last(read: Operation) -> Operation {
        with_query(read, |query| query.purpose = Purpose::Last)
    }

    /// The same from then on for so long, in tens of nanoseconds.
    fn lasts(operation: Operation, tens: u64) -> Operation {
        Operation { ended: operation.invoked + tens * 10, ..operation }
    }

    #[test]
    fn linearizable_histories_are_valid() {
        for good in [
            vec![read(0, ""), write(1, "a", "1", 3), read(2, "1"), write(3, "b", "2", 5), read(4, "2")],
            // Reads beside a write may see it or not, as long as they see it for good.
            vec![write(1, "a", "1", 3), lasts(write(2, "b", "2", 5), 9), read(3, "1"), read(4, "2"), read(6, "2")],
            // Lower versions that come late change nothing.
            vec![write(1, "b", "2", 3), write(3, "a", "1", 5), read(5, "2")],
            // Unknown: seen or not.
            vec![unknown(1, "a", "1"), read(3, ""), read(5, "1"), write(7, "b", "2", 9), read(9, "2")],
            vec![lasts(unknown(1, "a", "1"), 90), read(3, "")],
            // Two reads that overlap may disagree.
            vec![lasts(write(1, "a", "1", 3), 20), lasts(read(2, "1"), 9), lasts(read(3, ""), 9)],
            // Without being asked for more a node may be behind.
            vec![write(1, "a", "1", 3), write(2, "b", "2", 5), eventual(read(4, "1")), read_upto(5, 3, "1")],
            vec![write(1, "a", "1", 3), write(2, "b", "2", 5), last(read(9, "1 2"))],
        ] {
            assert_eq!(kinds(good.clone()), Vec::<&str>::new(), "{good:?}");
        }
    }

    #[test]
    fn every_kind_of_bad_history_is_found() {
        let denied = with_query(read_upto(4, 3, ""), |query| query.refused = Some(400));
        for (kind, bad) in [
            ("unexpected", vec![write(1, "a", "1", 3), read(4, "2")]),
            ("aborted", vec![refused(1, "a", "1"), read(4, "1")]),
            ("future", vec![write(8, "a", "1", 3), read(4, "1")]),
            ("stale", vec![write(1, "a", "1", 3), write(2, "b", "2", 5), read(4, "1")]),
            ("stale", vec![write(1, "a", "1", 3), read(4, "")]),
            ("regressed", vec![lasts(write(1, "a", "1", 3), 20), read(3, "1"), read(5, "")]),
            ("regressed", vec![unknown(1, "a", "1"), unknown(1, "b", "2"), read(3, "2"), read(5, "1")]),
            ("behind", vec![write(1, "a", "1", 3), read_upto(4, 3, "")]),
            ("behind", vec![write(1, "b", "2", 3), write(2, "a", "1", 5), read_upto(4, 5, "1")]),
            ("denied", vec![write(1, "a", "1", 3), Operation { outcome: Outcome::Fail, ..denied }]),
            ("lost", vec![write(1, "a", "1", 3), write(2, "b", "2", 5), last(read(9, "2"))]),
            ("doubled", vec![write(1, "a", "1", 3), last(read(9, "1 1"))]),
        ] {
            assert_eq!(kinds(bad.clone()), [kind], "{bad:?}");
        }
    }

    #[test]
    fn a_version_that_never_was_the_highest_may_not_be_read() {
        // The read begins before 2 is acknowledged and returns 1, which began afterwards: at no moment was 1 the highest.
        let bad = vec![write(1, "b", "2", 3), write(3, "a", "1", 5), Operation { invoked: 0, ..read(5, "1") }];
        assert_eq!(kinds(bad), ["superseded"]);
        let good =
            vec![lasts(write(1, "b", "2", 3), 4), write(3, "a", "1", 5), Operation { invoked: 0, ..read(5, "1") }];
        assert_eq!(kinds(good), Vec::<&str>::new(), "1 began before 2 was proved");
    }

    #[test]
    fn keys_are_registers_of_their_own() {
        let elsewhere = with_query(read(4, ""), |query| query.key = "l".to_owned());
        assert_eq!(kinds(vec![write(1, "a", "1", 3), elsewhere]), Vec::<&str>::new());
    }

    #[test]
    fn a_power_loss_of_all_takes_what_was_acknowledged_at_quorum_just_before_and_nothing_else() {
        let blackout = Blackout { begun: 100 * SECOND, ended: 102 * SECOND };
        let at = |ended: u64, operation: Operation| Operation { invoked: ended - 5, ended, ..operation };
        let early = at(90 * SECOND, write(0, "a", "1", 3));
        let late = at(blackout.begun - SECOND / 10, write(0, "b", "2", 5));
        let seen = at(blackout.begun - SECOND / 20, read(0, "2"));
        let kinds = |late: &Operation, shown: &str| {
            let history = vec![early.clone(), late.clone(), seen.clone(), at(105 * SECOND, read(0, shown))];
            examine(&of(Workload::Register, history), &[blackout]).anomalies.kinds()
        };
        assert_eq!(kinds(&late, "1"), Vec::<&str>::new());
        assert_eq!(kinds(&late, "2"), Vec::<&str>::new());
        assert_eq!(kinds(&late, ""), ["stale"]);
        let synced = Operation { asked: Some(Level::Fsync), ..late };
        assert_eq!(kinds(&synced, "1"), ["regressed", "stale"]);
    }
}
