//! The way out when a majority of voters is RECOVERING: all voters together, or an operator who accepts the loss.
//!
//! No rule over the voters that happen to be alive is safe: one that is missing may hold an acknowledged entry, or may
//! still lead and count acknowledgments of before the crash. So:
//!
//! 1. A coordinator asks every voter for its [`Report`] and plans ([`plan_unclean_recovery`]).
//! 2. Each voter [`promise`]s: it durably votes for the winner in the planned term. No older leader finds a quorum any
//!    more, whatever it still counts.
//! 3. With the promise of **every** voter the winner is chosen ([`super::Gate::chosen`], told to all): only now the
//!    gates let it campaign and be voted for. It leads the longest log that is left; the others recover from it by R3.
//!
//! Each log is a prefix of its replica's history, so the longest one, by (term, index), holds every committed entry
//! that any of them still holds. With a majority synced, as at `quorum-fsync`, that is all of them.

use std::collections::BTreeSet;
use std::fmt;

use super::{LeaderVote, Trust};

/// Where a log ends. Ordered as Raft orders logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LogEnd {
    /// Term of the last entry.
    pub term: u64,
    /// Index of the last entry.
    pub index: u64,
}

/// What one voter says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Report {
    pub voter: u64,
    pub trust: Trust,
    /// Persisted term.
    pub term: u64,
    /// `None` for an empty log.
    pub last: Option<LogEnd>,
    /// Highest index that it knows to be committed, by the log or from before: may be beyond its last entry.
    pub committed: Option<u64>,
    /// The effective membership of its log: one set of voters, or two while joint.
    pub configs: Vec<BTreeSet<u64>>,
}

/// Who stands behind a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Consent {
    /// Nobody: only with the report of every voter.
    Automatic,
    /// An operator gave `--accept-data-loss`: voters that do not answer are lost for good.
    AcceptDataLoss,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Plan {
    /// Voters that trust their logs are a majority: the ordinary election works.
    NotNeeded,
    Elect {
        winner: u64,
        term: u64,
        last: Option<LogEnd>,
        /// They have to promise, all of them.
        voters: BTreeSet<u64>,
        loss: Loss,
    },
}

/// What the winner's log cannot prove to be whole. Shown to the operator, alarmed, and kept with the new incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Loss {
    /// Last entry that is kept.
    pub kept: Option<LogEnd>,
    /// Entries that somebody knows to be committed and that no log holds, first and last index.
    pub known: Option<(u64, u64)>,
    /// Voters that may have lost acknowledged entries at their last crash: at most one sync interval each.
    pub recovering: BTreeSet<u64>,
    /// Voters that did not answer. They must never come back under their ids.
    pub missing: BTreeSet<u64>,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kept {
            Some(end) => write!(f, "kept through entry {} of term {}", end.index, end.term)?,
            None => f.write_str("no entry is kept")?,
        }
        match self.known {
            Some((first, last)) => write!(f, "; committed entries {first} to {last} are lost")?,
            None => f.write_str("; no committed entry is known to be lost")?,
        }
        write!(
            f,
            "; acknowledged within the last sync interval before the crash and maybe lost: voters {:?}",
            self.recovering
        )?;
        if !self.missing.is_empty() {
            write!(
                f,
                "; voters {:?} did not answer: what only they hold is lost, they must not come back",
                self.missing
            )?;
        }
        Ok(())
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Undecided {
    /// Without them only an operator can decide.
    Missing(BTreeSet<u64>),
    /// Not even together can those that answered elect.
    NoMajority { answered: BTreeSet<u64>, missing: BTreeSet<u64> },
    /// No voter answered.
    Nobody,
}

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(voters) => {
                write!(f, "voters {voters:?} did not answer: only all of them may elect past a lost majority")
            }
            Self::NoMajority { answered, missing } => {
                write!(
                    f,
                    "voters {answered:?} answered, and they are no majority: bring one of {missing:?} back first, \
                     with its own disk: an older copy of it is refused"
                )
            }
            Self::Nobody => f.write_str("no voter answered"),
        }
    }
}

impl std::error::Error for Undecided {}

/// Plans an election past a lost majority.
///
/// Whom it needs is the union of the memberships of all logs: a crash may have taken a membership entry from some.
///
/// # Errors
/// [`Undecided::Missing`] and [`Undecided::NoMajority`] name the voters to wait for.
pub fn plan_unclean_recovery(reports: &[Report], consent: Consent) -> Result<Plan, Undecided> {
    let voters: BTreeSet<u64> = reports.iter().flat_map(|report| report.configs.iter().flatten().copied()).collect();
    // A learner may have the longest log, but nobody counted on it.
    let reports = reports.iter().filter(|report| voters.contains(&report.voter));
    let longest = reports.clone().max_by_key(|report| (report.last, std::cmp::Reverse(report.voter)));
    let longest = longest.ok_or(Undecided::Nobody)?;
    let trusting = |report: &&Report| report.trust != Trust::Recovering;
    let trusted: BTreeSet<u64> = reports.clone().filter(trusting).map(|report| report.voter).collect();
    let electable = |config: &BTreeSet<u64>| 2 * config.intersection(&trusted).count() > config.len();
    if longest.configs.iter().all(electable) {
        return Ok(Plan::NotNeeded);
    }
    let answered: BTreeSet<u64> = reports.clone().map(|report| report.voter).collect();
    let missing: BTreeSet<u64> = voters.difference(&answered).copied().collect();
    if !missing.is_empty() && consent == Consent::Automatic {
        return Err(Undecided::Missing(missing));
    }
    let majority = |config: &BTreeSet<u64>| 2 * config.intersection(&answered).count() > config.len();
    if !longest.configs.iter().all(majority) {
        return Err(Undecided::NoMajority { answered, missing });
    }
    let next = longest.last.map_or(0, |end| end.index + 1);
    let committed = reports.clone().filter_map(|report| report.committed).max();
    let loss = Loss {
        kept: longest.last,
        known: committed.filter(|committed| *committed >= next).map(|committed| (next, committed)),
        recovering: &answered - &trusted,
        missing,
    };
    let term = reports.map(|report| report.term).max().unwrap_or(0) + 1;
    Ok(Plan::Elect { winner: longest.voter, term, last: longest.last, voters: answered, loss })
}

/// Whether a voter may promise its vote to the winner of a plan; between report and promise a leader may have reached
/// it.
///
/// On `true`: save the vote durably, as if granted (openraft: `raft.vote` with the planned term and the winner's last
/// log id checks the same again) and say so. The gate stays shut until all have.
pub fn promise(own_term: u64, own_last: Option<LogEnd>, winner: LeaderVote, winner_last: Option<LogEnd>) -> bool {
    winner.term > own_term && winner_last >= own_last
}

#[cfg(test)]
mod tests {
    use super::Trust::{Recovering, Synced, Unsynced};
    use super::*;

    fn report(voter: u64, trust: Trust, term: u64, index: u64) -> Report {
        let configs = vec![BTreeSet::from([1, 2, 3])];
        Report { voter, trust, term: 7, last: Some(LogEnd { term, index }), committed: Some(index), configs }
    }

    fn elected(plan: &Result<Plan, Undecided>) -> Option<(u64, u64)> {
        match plan {
            Ok(Plan::Elect { winner, term, .. }) => Some((*winner, *term)),
            _ => None,
        }
    }

    #[test]
    fn all_voters_elect_the_longest_log() {
        let all = [report(1, Recovering, 4, 9), report(2, Recovering, 5, 8), report(3, Recovering, 5, 7)];
        assert_eq!(elected(&plan_unclean_recovery(&all, Consent::Automatic)), Some((2, 8)), "by term, then index");
        let even = [report(3, Recovering, 5, 8), report(2, Recovering, 5, 8), report(1, Unsynced, 4, 9)];
        assert_eq!(elected(&plan_unclean_recovery(&even, Consent::Automatic)), Some((2, 8)), "then the lower id");
    }

    #[test]
    fn a_missing_voter_needs_an_operator() {
        let two = [report(1, Recovering, 4, 9), report(2, Unsynced, 5, 8)];
        let missing = BTreeSet::from([3]);
        assert_eq!(plan_unclean_recovery(&two, Consent::Automatic), Err(Undecided::Missing(missing.clone())));
        let plan = plan_unclean_recovery(&two, Consent::AcceptDataLoss);
        let Ok(Plan::Elect { winner: 2, loss, .. }) = plan else { panic!("{plan:?}") };
        assert_eq!((&loss.missing, loss.known), (&missing, Some((9, 9))));
        let text = loss.to_string();
        assert!(
            text.contains("committed entries 9 to 9 are lost") && text.contains("voters {3} did not answer"),
            "{text}"
        );
        assert_eq!(plan_unclean_recovery(&[], Consent::AcceptDataLoss), Err(Undecided::Nobody));
        let one = plan_unclean_recovery(&two[..1], Consent::AcceptDataLoss);
        let missing = BTreeSet::from([2, 3]);
        assert_eq!(one, Err(Undecided::NoMajority { answered: BTreeSet::from([1]), missing }), "it would never lead");
    }

    #[test]
    fn a_trusted_majority_elects_by_itself() {
        let plan = plan_unclean_recovery(&[report(1, Synced, 4, 9), report(2, Unsynced, 5, 8)], Consent::Automatic);
        assert_eq!(plan, Ok(Plan::NotNeeded));
        let lone = Report { configs: vec![BTreeSet::from([1])], ..report(1, Recovering, 4, 9) };
        assert_eq!(elected(&plan_unclean_recovery(&[lone], Consent::Automatic)), Some((1, 8)), "its own only voter");
    }

    #[test]
    fn voters_of_every_membership_are_needed() {
        let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4, 5])];
        let mut all = vec![report(1, Recovering, 5, 8), report(2, Recovering, 4, 9), report(3, Unsynced, 4, 9)];
        all[1].configs = joint;
        let missing = BTreeSet::from([4, 5]);
        assert_eq!(plan_unclean_recovery(&all, Consent::Automatic), Err(Undecided::Missing(missing)));
        let learner = Report { configs: vec![BTreeSet::from([1, 2, 3])], ..report(9, Unsynced, 6, 99) };
        all[1].configs.pop();
        all.push(learner);
        assert_eq!(elected(&plan_unclean_recovery(&all, Consent::Automatic)), Some((1, 8)), "a learner is not elected");
    }

    #[test]
    fn a_promise_is_only_for_a_longer_log_in_a_newer_term() {
        let end = |term, index| Some(LogEnd { term, index });
        let winner = LeaderVote { term: 8, node: 2 };
        for (own_term, own_last, expected) in
            [(7, end(5, 8), true), (7, None, true), (8, end(5, 8), false), (7, end(5, 9), false), (7, end(6, 1), false)]
        {
            assert_eq!(promise(own_term, own_last, winner, end(5, 8)), expected, "{own_term} {own_last:?}");
        }
    }
}
