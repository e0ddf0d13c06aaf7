//! Whether positions are dense: what is at every index of the logs, between the acknowledged ones too.
//!
//! A position is an index of a group's Raft log. Seen from clients positions have gaps, for other tenants of the group take
//! indexes, and so do repeats, cuts of flushes, commits of tables and each new leader. What is dense is the log itself: at
//! the end of each round the nodes are killed, and `signaldb wal inspect --entries` lists what each of their logs holds. Every
//! index must be there, and must be accounted for.
//!
//! | anomaly | |
//! |---|---|
//! | `hole` | a log has no entry at an index between two others, none behind what it gave up, or none of its beginning |
//! | `differs` | two logs have different entries at an index that both know to be committed |
//! | `misplaced` | fewer than most logs hold a request, or have given it up after a flush, at the index that was acknowledged |
//! | `repeated` | an acknowledgment names the index of a repeat, not of the first entry of its request |
//! | `unaccounted` | the log holds more requests of a tenant's dataset than were sent |
//!
//! The last two need a log that still has everything, which a run of a few minutes has. The entry at each index is then a
//! request at the position that its acknowledgment named, a repeat of one that is at a lower index, a request whose outcome
//! nobody knows (no more of these than there are), or the log's own: nothing was lost, doubled or invented between two
//! acknowledged positions.
//!
//! A power loss of all nodes may take the end of the log. Requests at that risk prove nothing, and are not counted.

use std::collections::BTreeMap;

use crate::history::{Operation, Outcome, Position};
use crate::listing::{Entry, Group, Log, Rows};
use crate::verdict::Verdict;

use super::request::requests;
use super::{Anomalies, Blackout, judge};

/// Where a log begins that never gave anything up: the first entry of a group, its membership, is at 0.
const BEGINNING: u64 = 1;

/// A request that may be in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sent {
    tenant: &'static str,
    dataset: String,
    /// Its first row.
    row: String,
    rows: u64,
    /// Where it was acknowledged; `None` if it was not, or if a power loss of all nodes may have taken it from there.
    position: Option<Position>,
}

/// What was sent in a history, but for what was certainly refused.
pub(crate) fn sent(operations: &[Operation], blackouts: &[Blackout]) -> Vec<Sent> {
    let requests = requests(operations).into_iter().filter(|request| request.outcome != Outcome::Fail);
    let sent = requests.map(|request| Sent {
        tenant: request.tenant,
        dataset: request.dataset.to_owned(),
        row: request.rows.first().cloned().unwrap_or_default(),
        rows: request.rows.len() as u64,
        position: request.position().filter(|_| !request.is_at_risk(blackouts)),
    });
    sent.collect()
}

impl Sent {
    fn is(&self, rows: &Rows) -> bool {
        (self.tenant, self.dataset.as_str(), self.rows) == (rows.tenant.as_str(), rows.dataset.as_str(), rows.rows)
    }

    fn name(&self) -> String {
        format!("{}/{} {} and {} more rows", self.tenant, self.dataset, self.row, self.rows.saturating_sub(1))
    }
}

/// What the logs said of what was sent, in all rounds.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    anomalies: Anomalies,
    logs: u64,
    sound: u64,
    indexes: u64,
    placed: u64,
    accounted: u64,
}

impl Entries {
    /// Looks through the logs of all nodes at the end of a round. `sent` is what is not settled yet, of all rounds; what can be
    /// looked at no more, because no log has it any more, is taken out of it.
    pub(crate) fn add(&mut self, sent: &mut Vec<Sent>, logs: &[Log], blackouts: &[Blackout]) {
        if logs.is_empty() {
            return;
        }
        let found = examine(sent, logs, blackouts);
        self.anomalies.extend(found.anomalies);
        self.logs += found.logs;
        self.sound += found.sound;
        self.indexes += found.indexes;
        self.placed += found.placed;
        self.accounted += found.accounted;
        sent.retain(|sent| sent.position.is_none_or(|position| is_kept(logs, position)));
    }

    pub(crate) fn is_sound(&self) -> bool {
        self.anomalies.is_empty()
    }

    pub(crate) fn judgment(&self) -> Verdict {
        let Self { anomalies, logs, sound, indexes, placed, accounted } = self;
        let enough = match (logs, placed) {
            (0, _) => Err("no log was looked at".to_owned()),
            (logs, 0) => Err(format!("{sound} of {logs} logs could be read as a whole, with no acknowledged position")),
            (logs, _) if *sound == 0 => Err(format!("none of {logs} logs could be read as a whole")),
            _ => Ok(format!(
                "{indexes} indexes in {sound} logs without a hole, {placed} acknowledged positions looked up, {accounted} \
                 indexes of whole logs accounted for"
            )),
        };
        judge("entries", anomalies, enough)
    }
}

fn examine(sent: &[Sent], logs: &[Log], blackouts: &[Blackout]) -> Entries {
    let mut found = Entries { logs: logs.len() as u64, ..Entries::default() };
    let placed: BTreeMap<Position, &Sent> = sent.iter().filter_map(|sent| Some((sent.position?, sent))).collect();
    for (at, log) in logs.iter().enumerate().filter(|(_, log)| log.sound) {
        found.sound += 1;
        for (number, group) in &log.groups {
            found.indexes += group.entries.len() as u64;
            note_holes(&format!("group {number} in the log of node {}", at + 1), group, &mut found.anomalies);
        }
        for (other, others) in logs.iter().enumerate().skip(at + 1).filter(|(_, log)| log.sound) {
            note_differences((at, log), (other, others), &mut found.anomalies);
        }
        if blackouts.is_empty() {
            found.accounted += account(at, log, sent, &placed, &mut found.anomalies);
        }
    }
    // Not only `placed`: a position may have been acknowledged to two, in different rounds.
    for (position, sent) in sent.iter().filter_map(|sent| Some((sent.position?, sent))) {
        let holders = logs.iter().filter(|log| holds(log, position, sent)).count();
        if holders <= logs.len() / 2 {
            let what = format!("{} is not at {position}, where it was acknowledged, in most logs", sent.name());
            found.anomalies.note("misplaced", what);
        }
        found.placed += u64::from(logs.iter().any(|log| shows(log, position, sent)));
    }
    found
}

/// Whether any log may still have it.
fn is_kept(logs: &[Log], position: Position) -> bool {
    logs.iter().any(|log| log.groups.get(&position.group).is_some_and(|group| group.is_kept(position.index)))
}

impl Group {
    /// It was not given up.
    fn is_kept(&self, index: u64) -> bool {
        self.purged.is_none_or(|purged| purged < index)
    }
}

fn note_holes(name: &str, group: &Group, anomalies: &mut Anomalies) {
    let mut before = group.purged;
    if let Some((first, _)) = group.entries.first_key_value().filter(|(first, _)| **first > BEGINNING)
        && before.is_none()
    {
        anomalies.note("hole", format!("{name}: no entry before {first}, and none was given up"));
    }
    for index in group.entries.keys() {
        if let Some(before) = before.filter(|before| before + 1 != *index) {
            anomalies.note("hole", format!("{name}: no entry between {before} and {index}"));
        }
        before = Some(*index);
    }
}

fn note_differences((one, first): (usize, &Log), (two, second): (usize, &Log), anomalies: &mut Anomalies) {
    for (number, group) in &first.groups {
        let Some(other) = second.groups.get(number) else { continue };
        // What is not known to be committed may be of another term, and go.
        let Some(upto) = group.committed.zip(other.committed).map(|(one, two)| one.min(two)) else { continue };
        for (index, entry) in group.entries.range(..=upto) {
            if let Some(there) = other.entries.get(index).filter(|there| *there != entry) {
                let (one, two) = (one + 1, two + 1);
                let what = format!("{number}:{index} is {entry:?} on node {one}, {there:?} on node {two}");
                anomalies.note("differs", what);
            }
        }
    }
}

/// Whether a log holds a request where it was acknowledged, or does not say that it does not.
fn holds(log: &Log, position: Position, sent: &Sent) -> bool {
    let Some(group) = log.groups.get(&position.group) else { return !log.sound };
    match group.entries.get(&position.index) {
        Some(Entry::Rows(rows)) => sent.is(rows),
        Some(Entry::Own(_)) => false,
        None => !log.sound || !group.is_kept(position.index),
    }
}

/// Whether a log shows a request where it was acknowledged.
fn shows(log: &Log, position: Position, sent: &Sent) -> bool {
    let entry = log.groups.get(&position.group).and_then(|group| group.entries.get(&position.index));
    matches!(entry, Some(Entry::Rows(rows)) if sent.is(rows))
}

/// Accounts for what is in a log, as far as it still has all of a group; returns the number of its indexes.
fn account(at: usize, log: &Log, sent: &[Sent], placed: &BTreeMap<Position, &Sent>, anomalies: &mut Anomalies) -> u64 {
    let mut accounted = 0;
    // By tenant and dataset, requests that are in the log, and nobody was told where.
    let mut untold: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (number, group) in log.groups.iter().filter(|(_, group)| group.purged.is_none()) {
        let mut firsts: BTreeMap<&str, u64> = BTreeMap::new();
        let committed = group.committed.map(|committed| group.entries.range(..=committed));
        for (index, entry) in committed.into_iter().flatten() {
            accounted += 1;
            let Entry::Rows(rows) = entry else { continue };
            let first = *firsts.entry(rows.request.as_str()).or_insert(*index);
            let told = placed.get(&Position { group: *number, index: *index });
            if first != *index {
                if let Some(told) = told {
                    let what = format!("{} was acknowledged at {number}:{index}, and is at {first}", told.name());
                    anomalies.note("repeated", what);
                }
            } else if told.is_none() {
                *untold.entry((rows.tenant.as_str(), rows.dataset.as_str())).or_default() += 1;
            }
        }
    }
    for ((tenant, dataset), count) in untold {
        let here = |one: &&Sent| one.tenant == tenant && one.dataset == dataset;
        let unknown = sent.iter().filter(here).filter(|one| one.position.is_none()).count() as u64;
        if count > unknown {
            let what = format!(
                "node {} holds {count} requests of {tenant}/{dataset} at indexes that nobody was told, but {unknown} were sent \
                 whose index nobody was told",
                at + 1
            );
            anomalies.note("unaccounted", what);
        }
    }
    accounted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::testing::{SECOND, refused, unknown, write};

    /// An entry of group 1 as a word: rows of `a` by the name of their request, or `-` for one of the log's own.
    fn entry(word: &str) -> Entry {
        if word == "-" {
            return Entry::Own("cut".to_owned());
        }
        let [tenant, dataset, request] = ["a", "default", word].map(str::to_owned);
        Entry::Rows(Rows { tenant, dataset, rows: 1, request })
    }

    /// A log of group 1 from index 1 on, all of it committed.
    fn log(words: &str) -> Log {
        let entries: BTreeMap<u64, Entry> =
            words.split_whitespace().map(entry).zip(1..).map(|(e, at)| (at, e)).collect();
        let committed = entries.last_key_value().map(|(index, _)| *index);
        Log { sound: true, groups: BTreeMap::from([(1, Group { committed, purged: None, entries })]) }
    }

    fn with_group(mut log: Log, change: impl FnOnce(&mut Group)) -> Log {
        change(log.groups.entry(1).or_default());
        log
    }

    /// Requests r and s were acknowledged at 2 and 4; nobody knows of u.
    fn history() -> Vec<Sent> {
        sent(&[write(1, "r", "x", 2), write(3, "s", "y", 4), unknown(5, "u", "z"), refused(6, "v", "w")], &[])
    }

    fn kinds(logs: &[Log]) -> Vec<&'static str> {
        examine(&history(), logs, &[]).anomalies.kinds()
    }

    #[test]
    fn logs_in_which_every_index_is_accounted_for_are_valid() {
        for words in ["- r - s", "- r - s u", "- r r s s -", "- r u s"] {
            let logs = [log(words), log(words), log(words)];
            assert_eq!(kinds(&logs), Vec::<&str>::new(), "{words}");
            let verdict = examine(&history(), &logs, &[]).judgment();
            assert_eq!(verdict.valid, Some(true), "{verdict:?}");
        }
        let whole = || log("- r - s u");
        let behind = log("- r");
        assert_eq!(kinds(&[whole(), behind, whole()]), Vec::<&str>::new(), "a follower may be behind");
        let given_up = with_group(whole(), |group| {
            group.purged = Some(3);
            group.entries.retain(|index, _| *index > 3);
        });
        assert_eq!(kinds(&[given_up.clone(), given_up.clone(), given_up]), Vec::<&str>::new());
        let stale = with_group(log("- r - x"), |group| group.committed = Some(3));
        assert_eq!(kinds(&[whole(), stale, whole()]), Vec::<&str>::new(), "what was never committed");
        let damaged = Log { sound: false, ..with_group(whole(), |group| drop(group.entries.remove(&2))) };
        assert_eq!(kinds(&[whole(), damaged, whole()]), Vec::<&str>::new(), "nobody can tell what it had");
    }

    #[test]
    fn every_kind_of_bad_log_is_found() {
        let whole = || log("- r - s u");
        let without = |index: u64| with_group(whole(), |group| drop(group.entries.remove(&index)));
        let gap = with_group(whole(), |group| {
            group.purged = Some(1);
            group.entries.retain(|index, _| *index > 2);
        });
        let headless = with_group(whole(), |group| group.entries.retain(|index, _| *index > 2));
        for (kind, bad) in [
            (vec!["hole"], vec![without(3), whole(), whole()]),
            (vec!["hole"], vec![gap, whole(), whole()]),
            (vec!["hole"], vec![headless, whole(), whole()]),
            (vec!["differs"], vec![whole(), whole(), log("- r - s -")]),
            (vec!["misplaced"], vec![log("- r"), log("- r"), whole()]),
            (vec!["misplaced", "unaccounted"], vec![log("r - u s"), log("r - u s"), log("r - u s")]),
            (vec!["repeated"], vec![log("r r - s"), log("r r - s"), log("r r - s")]),
            (vec!["unaccounted"], vec![log("- r n s u"), log("- r n s u"), log("- r n s u")]),
        ] {
            assert_eq!(kinds(&bad), kind, "{bad:?}");
        }
    }

    #[test]
    fn rows_of_another_tenant_or_another_number_are_another_request() {
        let other = |change: fn(&mut Rows)| {
            let change = |group: &mut Group| {
                if let Some(Entry::Rows(rows)) = group.entries.get_mut(&2) {
                    change(rows);
                }
            };
            let one = || with_group(log("- r - s"), change);
            kinds(&[one(), one(), one()])
        };
        assert_eq!(other(|_| ()), Vec::<&str>::new());
        assert_eq!(other(|rows| rows.tenant = "b".to_owned()), ["misplaced"]);
        assert_eq!(other(|rows| rows.dataset = "other".to_owned()), ["misplaced"]);
        assert_eq!(other(|rows| rows.rows = 2), ["misplaced"]);
    }

    #[test]
    fn of_two_that_were_acknowledged_at_one_position_one_is_misplaced() {
        let other = Operation { tenant: "b", ..write(1, "s", "y", 2) };
        let sent = sent(&[other, write(3, "r", "x", 2)], &[]);
        assert_eq!(sent.len(), 2);
        let found = examine(&sent, &[log("- r"), log("- r"), log("- r")], &[]);
        assert_eq!(found.anomalies.kinds(), ["misplaced"]);
    }

    #[test]
    fn a_power_loss_of_all_may_take_the_end_and_everything_is_accounted_for_no_more() {
        let blackout = Blackout { begun: 100 * SECOND, ended: 102 * SECOND };
        let at = |ended: u64, operation: Operation| Operation { invoked: ended - 5, ended, ..operation };
        let old = at(90 * SECOND, write(0, "r", "x", 2));
        let late = at(blackout.begun - SECOND / 10, write(0, "s", "y", 4));
        let sent = sent(&[old, late], &[blackout]);
        let kinds = |words: &str| examine(&sent, &[log(words), log(words), log(words)], &[blackout]).anomalies.kinds();
        assert_eq!(kinds("- r - s"), Vec::<&str>::new());
        assert_eq!(kinds("- r -"), Vec::<&str>::new());
        assert_eq!(kinds("- - -"), ["misplaced"], "it was synced long before");
    }

    #[test]
    fn rounds_are_judged_together_and_too_little_is_unknown() {
        let mut entries = Entries::default();
        entries.add(&mut history(), &[], &[]);
        assert_eq!(entries.judgment().valid, None, "no log");
        let logs = |words: &str| [log(words), log(words), log(words)];
        let given_up = logs("- r - s").map(|log| {
            with_group(log, |group| {
                group.purged = Some(9);
                group.entries.clear();
            })
        });
        entries.add(&mut history(), &given_up, &[]);
        assert_eq!(entries.judgment().valid, None, "nothing to look up");
        let mut sent = history();
        entries.add(&mut sent, &logs("- r - s"), &[]);
        assert_eq!((entries.judgment().valid, sent.len()), (Some(true), 3));
        entries.add(&mut sent, &given_up, &[]);
        assert_eq!(sent.len(), 1, "what nobody knows may still come to light");
        entries.add(&mut history(), &logs("- - - s"), &[]);
        entries.add(&mut history(), &logs("- r - s"), &[]);
        assert_eq!((entries.judgment().valid, entries.is_sound()), (Some(false), false));
    }

    #[test]
    fn a_log_that_is_damaged_proves_nothing_either_way() {
        let broken = || Log { sound: false, groups: BTreeMap::new() };
        assert_eq!(kinds(&[broken(), broken(), log("- r - s")]), Vec::<&str>::new());
        assert_eq!(kinds(&[broken(), log("- - - s"), log("- - - s")]), ["misplaced"]);
        let judged = |logs: &[Log]| examine(&history(), logs, &[]).judgment().valid;
        assert_eq!(judged(&[broken(), broken(), broken()]), None, "nothing was looked up");
        let shows_all = || Log { sound: false, ..log("- r - s") };
        assert_eq!(judged(&[shows_all(), shows_all(), shows_all()]), None, "nobody can tell what they lack");
    }
}
