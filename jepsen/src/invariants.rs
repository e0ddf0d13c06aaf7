//! What must hold of the nodes' own accounts of themselves (`/api/v1/cluster`), sampled over the run.
//!
//! | anomaly | |
//! |---|---|
//! | `two leaders` | of one group in one term two nodes lead, or are said to |
//! | `beyond commit` | more is applied or flushed than is committed |
//! | `beyond log` | more is committed or purged than the log has |
//! | `went back` | within one life of a process its term, its commit, applied or purged index is lower than it was |
//! | `term lost` | a node that led knows a lower term after a start: its vote was not on disk |
//! | `restored` | a node that led is leader again in the same term after a start, without an election |
//!
//! Not all that an account says can be held against it. `flushed_index` falls when the next row of a table that was idle
//! comes; and it is read a moment after `applied_index`, so that on a node that catches up it may be ahead.
//!
//! An account that lacks a field, or has it in another shape, is looked at no further: whatever else is found, the verdict is
//! no better than unknown then, and names the field. A field that is renamed must not pass for one that is always 0.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::checker::{Anomalies, judge};
use crate::verdict::Verdict;

/// Numbers that never fall while a process lives.
const GROWING: [&str; 4] = ["term", "commit_index", "applied_index", "purged_index"];

/// What a node says of one group.
#[derive(Debug)]
struct Account<'a> {
    node: u64,
    /// Of its process.
    life: u64,
    group: u64,
    term: u64,
    leads: bool,
    leader: Option<u64>,
    last_log: u64,
    commit: u64,
    applied: u64,
    flushed: u64,
    purged: u64,
    /// As it was said.
    said: &'a Value,
}

impl<'a> Account<'a> {
    /// The first field that is missing or of another type, if there is one.
    fn read(node: u64, life: u64, said: &'a Value) -> Result<Self, &'static str> {
        let number = |name: &'static str| said[name].as_u64().ok_or(name);
        let leader = match said.get("leader") {
            Some(Value::Null) => None,
            Some(_) => Some(number("leader")?),
            None => return Err("leader"),
        };
        Ok(Self {
            node,
            life,
            group: number("group")?,
            term: number("term")?,
            leads: said["state"].as_str().ok_or("state")? == "leader",
            leader,
            last_log: number("last_log_index")?,
            commit: number("commit_index")?,
            applied: number("applied_index")?,
            flushed: number("flushed_index")?,
            purged: number("purged_index")?,
            said,
        })
    }

    /// In the order of [`GROWING`].
    fn growing(&self) -> [u64; GROWING.len()] {
        [self.term, self.commit, self.applied, self.purged]
    }
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Invariants {
    /// Who leads, by group and term.
    leaders: BTreeMap<(u64, u64), u64>,
    /// In which life a node said that it leads, by node, group and term.
    led: BTreeMap<(u64, u64, u64), u64>,
    /// The highest term in which a node led, by node and group.
    terms: BTreeMap<(u64, u64), u64>,
    /// What a node said last of a group: its life, and [`GROWING`].
    newest: BTreeMap<(u64, u64), (u64, [u64; GROWING.len()])>,
    /// Accounts that were looked at.
    samples: u64,
    /// Fields that accounts lacked, or had in another shape, and how often.
    unread: BTreeMap<&'static str, u64>,
    anomalies: Anomalies,
}

impl Invariants {
    /// Looks at one node's account, of the life of its process with this number.
    pub(crate) fn sample(&mut self, state: &Value, life: u64) {
        if state.get("error").is_some() {
            // It cannot say anything yet.
            return;
        }
        self.samples += 1;
        let Some(node) = state["node"].as_u64() else { return self.note_unread("node") };
        let Some(groups) = state["groups"].as_array() else { return self.note_unread("groups") };
        for group in groups {
            match Account::read(node, life, group) {
                Ok(account) => {
                    self.note_leader(&account);
                    self.note_order(&account);
                    self.note_growth(&account);
                }
                Err(field) => self.note_unread(field),
            }
        }
    }

    fn note_unread(&mut self, field: &'static str) {
        *self.unread.entry(field).or_default() += 1;
    }

    fn note_leader(&mut self, account: &Account<'_>) {
        let Account { node, life, group, term, leads, .. } = *account;
        let leader = if leads { Some(node) } else { account.leader };
        if let Some(leader) = leader {
            let first = *self.leaders.entry((group, term)).or_insert(leader);
            if first != leader {
                let what = format!("group {group}, term {term}: {first} and, as node {node} says, {leader}");
                self.anomalies.note("two leaders", what);
            }
        }
        if leads {
            let first = *self.led.entry((node, group, term)).or_insert(life);
            if first != life {
                let what = format!("node {node} leads group {group} in term {term} in its lives {first} and {life}");
                self.anomalies.note("restored", what);
            }
        }
        let highest = self.terms.entry((node, group)).or_default();
        // A group that just starts has not read its vote yet, and says 0.
        if term > 0 && term < *highest {
            let what = format!("node {node} led group {group} in term {highest}, and is at {term} in life {life}");
            self.anomalies.note("term lost", what);
        }
        if leads {
            *highest = term.max(*highest);
        }
    }

    fn note_order(&mut self, account: &Account<'_>) {
        let Account { node, last_log, commit, applied, flushed, purged, said, .. } = account;
        for (kind, (less, low), (more, high)) in [
            ("beyond commit", ("applied_index", applied), ("commit_index", commit)),
            ("beyond commit", ("flushed_index", flushed), ("commit_index", commit)),
            ("beyond log", ("commit_index", commit), ("last_log_index", last_log)),
            ("beyond log", ("purged_index", purged), ("last_log_index", last_log)),
        ] {
            if low > high {
                self.anomalies.note(kind, format!("node {node}: {less} is above {more}: {said}"));
            }
        }
    }

    fn note_growth(&mut self, account: &Account<'_>) {
        let Account { node, life, group, said, .. } = *account;
        let now = account.growing();
        let before = self.newest.insert((node, group), (life, now));
        let Some((_, before)) = before.filter(|(of, _)| *of == life) else { return };
        for ((name, before), now) in GROWING.iter().zip(before).zip(now) {
            if now < before {
                self.anomalies.note("went back", format!("node {node}: {name} was {before} before: {said}"));
            }
        }
    }

    pub(crate) fn samples(&self) -> u64 {
        self.samples
    }

    /// What the accounts say; `deaths` are processes that ended although nothing asked them to.
    pub(crate) fn judgment(&self, deaths: Vec<String>) -> Verdict {
        let mut anomalies = self.anomalies.clone();
        deaths.into_iter().for_each(|death| anomalies.note("ended", death));
        let unread: Vec<String> = self.unread.iter().map(|(field, times)| format!("{field} ({times} times)")).collect();
        let enough = match (self.samples, self.leaders.len()) {
            _ if !unread.is_empty() => Err(format!(
                "accounts of nodes lack these fields of /api/v1/cluster, or have them in another shape: {}",
                unread.join(", ")
            )),
            (0, _) => Err("no node said anything of itself".to_owned()),
            (samples, 0) => Err(format!("{samples} accounts, none of which says who leads")),
            (samples, leaderships) => Ok(format!("{samples} accounts, {leaderships} leaderships")),
        };
        judge("nodes", &anomalies, enough)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Node 1 leads group 1 in term 2, as it says itself.
    fn account() -> Value {
        json!({
            "group": 1, "leader": 1, "term": 2, "last_log_index": 9, "commit_index": 7, "applied_index": 6,
            "flushed_index": 5, "purged_index": 4, "state": "leader",
        })
    }

    /// The account with one thing changed.
    fn with(name: &str, value: impl Into<Value>) -> Value {
        let mut account = account();
        account[name] = value.into();
        account
    }

    /// What is wrong with these accounts, each of a node and one of its lives.
    fn kinds(samples: &[(u64, u64, Value)]) -> Vec<&'static str> {
        let mut invariants = Invariants::default();
        for (node, life, account) in samples {
            invariants.sample(&json!({"node": node, "groups": [account]}), *life);
        }
        assert_eq!(invariants.samples(), samples.len() as u64);
        invariants.anomalies.kinds()
    }

    fn follower(term: u64) -> Value {
        let mut account = with("state", "follower");
        account["term"] = term.into();
        account["leader"] = Value::Null;
        account
    }

    #[test]
    fn good_accounts_are_valid() {
        let later = with("commit_index", 8);
        let mut elected = with("term", 3);
        elected["leader"] = 2.into();
        // A start may forget what was committed, and with it what was applied; a term that was only heard of may be lost.
        let started = || {
            let mut account = follower(2);
            account["commit_index"] = 0.into();
            account["applied_index"] = 0.into();
            account["flushed_index"] = 0.into();
            account
        };
        let good = [
            (1, 1, account()),
            (3, 1, with("state", "follower")),
            (1, 1, later),
            (3, 1, follower(4)),
            (2, 1, elected),
            (1, 2, started()),
            (3, 2, started()),
            // What is flushed of all tables falls when a table that was idle gets a row.
            (1, 2, with("state", "follower")),
            (1, 2, {
                let mut account = with("state", "follower");
                account["flushed_index"] = 2.into();
                account
            }),
        ];
        assert_eq!(kinds(&good), Vec::<&str>::new());
    }

    #[test]
    fn every_kind_of_bad_account_is_found() {
        let said = {
            let mut account = with("state", "follower");
            account["leader"] = 2.into();
            account
        };
        for (kind, bad) in [
            ("two leaders", vec![(1, 1, account()), (2, 1, account())]),
            ("two leaders", vec![(1, 1, account()), (3, 1, said)]),
            ("beyond commit", vec![(1, 1, with("applied_index", 8))]),
            ("beyond commit", vec![(1, 1, with("flushed_index", 8))]),
            ("beyond log", vec![(1, 1, with("commit_index", 10))]),
            ("beyond log", vec![(1, 1, with("purged_index", 10))]),
            ("went back", vec![(1, 1, account()), (1, 1, with("applied_index", 5))]),
            ("went back", vec![(1, 1, account()), (1, 1, with("commit_index", 6))]),
            ("went back", vec![(1, 1, account()), (1, 1, with("purged_index", 3))]),
            ("went back", vec![(3, 1, follower(2)), (3, 1, follower(1))]),
            ("term lost", vec![(1, 1, account()), (1, 2, follower(1))]),
            ("restored", vec![(1, 1, account()), (1, 2, account())]),
        ] {
            assert_eq!(kinds(&bad), [kind], "{bad:?}");
        }
    }

    #[test]
    fn a_field_that_is_missing_or_of_another_type_makes_the_verdict_unknown_and_is_named() {
        let judged = |account: Value| {
            let mut invariants = Invariants::default();
            invariants.sample(&json!({"node": 1, "groups": [account]}), 1);
            // What others say well does not make up for it.
            invariants.sample(&json!({"node": 2, "groups": [follower(2)]}), 1);
            invariants.judgment(Vec::new())
        };
        assert_eq!(judged(account()).valid, Some(true));
        let fields = account().as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        assert_eq!(fields.len(), 9);
        for field in fields {
            let mut without = account();
            without.as_object_mut().expect("is one").remove(&field);
            for bad in [without, with(&field, json!({"index": 1})), with(&field, -1)] {
                let verdict = judged(bad);
                assert_eq!(verdict.valid, None, "{field}");
                assert!(verdict.detail.contains(&format!("{field} (1 times)")), "{verdict:?}");
            }
        }
        for (field, state) in [("node", json!({"groups": []})), ("groups", json!({"node": 1, "group": []}))] {
            let mut invariants = Invariants::default();
            invariants.sample(&state, 1);
            let verdict = invariants.judgment(Vec::new());
            assert!(verdict.valid.is_none() && verdict.detail.contains(&format!("{field} (1")), "{verdict:?}");
        }
    }

    #[test]
    fn what_is_found_elsewhere_is_invalid_although_a_field_is_missing() {
        let mut invariants = Invariants::default();
        invariants.sample(&json!({"node": 1, "groups": [with("term", "2")]}), 1);
        invariants.sample(&json!({"node": 1, "groups": [with("applied_index", 8)]}), 1);
        assert_eq!(invariants.judgment(Vec::new()).valid, Some(false));
    }

    #[test]
    fn an_answer_that_is_an_error_is_no_account() {
        let mut invariants = Invariants::default();
        invariants.sample(&json!({"error": {"code": "unavailable", "message": "starting"}}), 1);
        assert_eq!((invariants.samples(), invariants.unread.len()), (0, 0));
    }

    #[test]
    fn processes_that_end_by_themselves_are_invalid_and_no_account_is_unknown() {
        let mut invariants = Invariants::default();
        assert_eq!(invariants.judgment(Vec::new()).valid, None);
        invariants.sample(&json!({"node": 1, "groups": []}), 1);
        assert_eq!(invariants.judgment(Vec::new()).valid, None, "nothing to look at");
        invariants.sample(&json!({"node": 1, "groups": [account()]}), 1);
        assert_eq!(invariants.judgment(Vec::new()).valid, Some(true));
        assert_eq!(invariants.judgment(vec!["node 1 ended".to_owned()]).valid, Some(false));
    }
}
