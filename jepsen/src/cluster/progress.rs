//! Whether rows get into the tables, by the accounts of those who flush them: proof that an outage was one.
//!
//! That nothing is seen to be flushed proves nothing: beside other faults a node may be down, deaf or deposed, and not say. So
//! only leaders count that led a group in the same life and term at the begin and at the end. If one of them had rows that
//! waited at the begin, and these still wait at the end, nobody took them from it; if they do not, somebody did. One that
//! committed nothing meanwhile may be deaf, and proves nothing either.
//!
//! Few leaders stay where other faults move them: so accounts are taken again and again, and any two of them will do that are
//! far enough from each other ([`Watched`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use serde_json::Value;

/// Between two accounts that prove something: four times what rows wait in a usual cluster, `flush.max_interval`.
const WINDOW: Duration = Duration::from_secs(2);

/// A leadership of a group: group, node, life of its process, term.
type Leadership = (u64, u64, u64, u64);

/// What leaders say of their groups at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Accounts(BTreeMap<Leadership, Account>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    committed: u64,
    applied: u64,
    /// The table that is furthest behind has rows up to here; with no row that waits it is what is applied.
    flushed: u64,
}

/// What became of groups between two times, as far as one leader saw both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// Entries that were committed.
    pub(crate) committed: u64,
    /// Groups whose rows got into the tables although they had been waiting.
    pub(crate) flushed: u64,
    /// Groups with rows that waited all the time, at a leader that committed others.
    pub(crate) withheld: u64,
}

impl Accounts {
    /// Looks at what a node says (`/api/v1/cluster`) in one life of its process. What it does not say proves nothing.
    pub(crate) fn sample(&mut self, state: &Value, life: u64) {
        let Some(node) = state["node"].as_u64() else { return };
        let led = state["groups"].as_array().into_iter().flatten().filter(|group| group["state"] == "leader");
        for group in led {
            let number = |name: &str| group[name].as_u64();
            let read = || {
                let account = Account {
                    committed: number("commit_index")?,
                    applied: number("applied_index")?,
                    flushed: number("flushed_index")?,
                };
                Some(((number("group")?, node, life, number("term")?), account))
            };
            self.0.extend(read());
        }
    }

    /// What became of it until `later`.
    pub(crate) fn until(&self, later: &Self) -> Progress {
        let mut progress = Progress::default();
        for (leadership, begun) in &self.0 {
            let Some(ended) = later.0.get(leadership) else { continue };
            progress.committed += ended.committed.saturating_sub(begun.committed);
            if begun.waits() {
                progress.flushed += u64::from(ended.flushed > begun.flushed);
                let withheld = ended.flushed <= begun.flushed && ended.committed > begun.committed;
                progress.withheld += u64::from(withheld);
            }
        }
        progress
    }
}

/// Accounts one after the other, and when each was taken: it takes its time to ask all nodes.
#[derive(Debug, Default)]
pub(crate) struct Watched(Vec<(Range<Duration>, Accounts)>);

impl Watched {
    pub(crate) fn add(&mut self, taken: Range<Duration>, accounts: Accounts) {
        self.0.push((taken, accounts));
    }

    /// What became of the first until the last.
    pub(crate) fn whole(&self) -> Progress {
        let (first, last) = (self.0.first(), self.0.last());
        first.zip(last).map_or_else(Progress::default, |((_, first), (_, last))| first.until(last))
    }

    /// Whether writes went on for a while in which nothing got into the tables that had been waiting; nor did it at leaders that
    /// stayed all the time.
    pub(crate) fn shows_outage(&self) -> bool {
        let shows = |(begun, first): &(Range<Duration>, Accounts)| {
            let later = self.0.iter().filter(|(taken, _)| taken.start >= begun.end + WINDOW);
            later.map(|(_, second)| first.until(second)).any(Progress::shows_outage)
        };
        self.whole().flushed == 0 && self.0.iter().any(shows)
    }
}

impl Account {
    /// Whether there are rows that no table has.
    fn waits(self) -> bool {
        self.flushed < self.applied
    }
}

impl Progress {
    /// Whether writes went on, and nothing got into the tables that had been waiting.
    pub(crate) fn shows_outage(self) -> bool {
        self.committed > 0 && self.withheld > 0 && self.flushed == 0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What node 1 says of group `group`, in its first life: its state there, then term, commit, applied and flushed index.
    fn account(group: u64, state: &str, [term, committed, applied, flushed]: [u64; 4]) -> Value {
        json!({
            "group": group, "state": state, "term": term, "commit_index": committed, "applied_index": applied,
            "flushed_index": flushed,
        })
    }

    fn accounts(life: u64, groups: &[Value]) -> Accounts {
        let mut accounts = Accounts::default();
        accounts.sample(&json!({"node": 1, "groups": groups}), life);
        accounts
    }

    /// What became of group 1 while node 1 led it.
    fn between(begun: [u64; 4], ended: [u64; 4]) -> Progress {
        accounts(1, &[account(1, "leader", begun)]).until(&accounts(1, &[account(1, "leader", ended)]))
    }

    #[test]
    fn rows_that_wait_at_a_leader_from_begin_to_end_show_an_outage() {
        let progress = between([3, 20, 20, 10], [3, 50, 50, 10]);
        assert_eq!(progress, Progress { committed: 30, flushed: 0, withheld: 1 });
        assert!(progress.shows_outage());
    }

    #[test]
    fn nothing_else_shows_one() {
        for (what, progress) in [
            ("some of it was flushed", between([3, 20, 20, 10], [3, 50, 50, 15])),
            ("all of it was flushed", between([3, 20, 20, 10], [3, 50, 50, 50])),
            ("nothing was written", between([3, 20, 20, 10], [3, 20, 20, 10])),
            ("nothing waited at the begin", between([3, 20, 20, 20], [3, 50, 50, 20])),
            ("it led again, in another term", between([3, 20, 20, 10], [4, 50, 50, 10])),
        ] {
            assert!(!progress.shows_outage(), "{what}: {progress:?}");
        }
        let begun = || accounts(1, &[account(1, "leader", [3, 20, 20, 10])]);
        for (what, ended) in [
            ("nobody answered", Accounts::default()),
            ("it is another life", accounts(2, &[account(1, "leader", [3, 50, 50, 10])])),
            ("it leads no more", accounts(1, &[account(1, "follower", [3, 50, 50, 10])])),
            (
                "a field is missing",
                accounts(1, &[json!({"group": 1, "state": "leader", "term": 3, "commit_index": 50})]),
            ),
        ] {
            assert!(!begun().until(&ended).shows_outage(), "{what}");
        }
        assert!(!Accounts::default().until(&begun()).shows_outage(), "nobody answered at the begin");
    }

    #[test]
    fn a_leader_that_commits_nothing_may_be_deaf() {
        let groups = |second: [u64; 4]| [account(1, "leader", [3, 20, 20, 10]), account(2, "leader", second)];
        let progress = accounts(1, &groups([1, 8, 8, 8])).until(&accounts(1, &groups([1, 60, 60, 8])));
        assert_eq!(progress, Progress { committed: 52, flushed: 0, withheld: 0 });
        assert!(!progress.shows_outage(), "that another group commits says nothing of its rows");
    }

    /// What node 1 says at each time, milliseconds, leading group 1 in a term: commit index and flushed index.
    fn watched(all: &[(u64, u64, [u64; 2])]) -> Watched {
        let mut watched = Watched::default();
        for (at, term, [committed, flushed]) in all {
            let at = Duration::from_millis(*at);
            let state = account(1, "leader", [*term, *committed, *committed, *flushed]);
            watched.add(at..at + Duration::from_millis(100), accounts(1, &[state]));
        }
        watched
    }

    #[test]
    fn leaders_that_come_and_go_show_an_outage_if_one_stays_for_long_enough() {
        let stays =
            [(0, 1, [20, 10]), (500, 2, [21, 10]), (1500, 2, [30, 10]), (2600, 2, [40, 10]), (3000, 3, [41, 10])];
        assert!(watched(&stays).shows_outage());
        assert_eq!(watched(&stays).whole(), Progress::default(), "nobody led all the time");
        let goes = [(0, 1, [20, 10]), (500, 2, [21, 10]), (2500, 2, [30, 10]), (3000, 3, [41, 10])];
        assert!(
            !watched(&goes).shows_outage(),
            "1.9 seconds from the end of the first account to the begin of the last"
        );
        let flushes = [(0, 1, [20, 10]), (500, 2, [21, 10]), (2600, 2, [30, 15]), (3000, 3, [41, 15])];
        assert!(!watched(&flushes).shows_outage());
        let later = [(0, 1, [20, 10]), (2500, 1, [30, 10]), (3000, 1, [40, 25])];
        assert!(!watched(&later).shows_outage(), "it was over before the end");
        assert!(!Watched::default().shows_outage());
    }

    #[test]
    fn one_group_whose_rows_get_through_is_no_outage_for_all() {
        let both =
            |second: [u64; 4]| accounts(1, &[account(1, "leader", [3, 50, 50, 10]), account(2, "leader", second)]);
        let begun = accounts(1, &[account(1, "leader", [3, 20, 20, 10]), account(2, "leader", [1, 8, 8, 5])]);
        assert!(begun.until(&both([1, 9, 9, 5])).shows_outage());
        assert_eq!(begun.until(&both([1, 9, 9, 9])), Progress { committed: 31, flushed: 1, withheld: 1 });
        assert!(!begun.until(&both([1, 9, 9, 9])).shows_outage());
    }
}
