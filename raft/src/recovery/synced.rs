//! The index up to which a quorum has fdatasynced: acknowledgments at `quorum-fsync`, and what may go to Iceberg.

use std::collections::{BTreeMap, BTreeSet};

use super::LeaderVote;

/// The highest index that a majority of **each** configuration has reached, `None` while there is none.
///
/// `reports` holds for each voter the lower of what it matched by the present leader's vote and what it has synced of
/// these very entries; a voter without a report has nothing. `configs` is the effective membership: one set, or two
/// while it is joint. Indexes start at 0.
///
/// The entry at the index is not therefore committed: take the lower of this and the commit index.
/// Source: Ongaro, Consensus: Bridging Theory and Practice, sections 4.3 (joint consensus) and 10.2.1 (disk writes).
pub fn quorum_synced(reports: &BTreeMap<u64, u64>, configs: &[BTreeSet<u64>]) -> Option<u64> {
    let of_majority = |voters: &BTreeSet<u64>| {
        let mut reached: Vec<Option<u64>> = voters.iter().map(|voter| reports.get(voter).copied()).collect();
        reached.sort_unstable_by(|a, b| b.cmp(a));
        reached.get(voters.len() / 2).copied().flatten()
    };
    configs.iter().map(of_majority).min().flatten()
}

/// What the voters reported to one leader.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SyncedReports {
    leader: LeaderVote,
    reports: BTreeMap<u64, u64>,
}

impl SyncedReports {
    pub fn new(leader: LeaderVote) -> Self {
        Self { leader, reports: BTreeMap::new() }
    }

    /// `voter` says that it has synced through `index` of what `leader` sent. Reports to another leader are dropped:
    /// there the same index may be another entry. A late report changes nothing: within a term a follower never takes
    /// back what it has synced.
    pub fn report(&mut self, voter: u64, leader: LeaderVote, index: u64) {
        if leader == self.leader {
            let known = self.reports.entry(voter).or_insert(index);
            *known = index.max(*known);
        }
    }

    /// See [`quorum_synced`].
    pub fn index(&self, configs: &[BTreeSet<u64>]) -> Option<u64> {
        quorum_synced(&self.reports, configs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorum_of_each_configuration() {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let abc = set(&[1, 2, 3]);
        type Case<'a> = (&'a [(u64, u64)], Vec<BTreeSet<u64>>, Option<u64>);
        let cases: [Case<'_>; 11] = [
            (&[], vec![abc.clone()], None),
            (&[(1, 9)], vec![abc.clone()], None),
            (&[(1, 9), (2, 4)], vec![abc.clone()], Some(4)),
            (&[(1, 9), (2, 4), (3, 7)], vec![abc.clone()], Some(7)),
            (&[(1, 9), (2, 0)], vec![abc.clone()], Some(0)),
            (&[(1, 9), (4, 9)], vec![abc.clone()], None),
            (&[(1, 3)], vec![set(&[1])], Some(3)),
            (&[(1, 9), (2, 4)], vec![set(&[1, 2])], Some(4)),
            (&[(1, 9), (2, 8), (3, 7), (4, 1)], vec![set(&[1, 2, 3, 4])], Some(7)),
            (&[(1, 9), (2, 8), (4, 1), (5, 2)], vec![abc, set(&[3, 4, 5])], Some(1)),
            (&[(1, 9)], vec![], None),
        ];
        for (reports, configs, expected) in cases {
            let reports: BTreeMap<u64, u64> = reports.iter().copied().collect();
            assert_eq!(quorum_synced(&reports, &configs), expected, "{reports:?} in {configs:?}");
        }
    }

    #[test]
    fn reports_to_another_leader_do_not_count() {
        let (mine, other) = (LeaderVote { term: 4, node: 1 }, LeaderVote { term: 3, node: 1 });
        let configs = [BTreeSet::from([1, 2, 3])];
        let mut reports = SyncedReports::new(mine);
        reports.report(1, mine, 10);
        reports.report(2, other, 10);
        assert_eq!(reports.index(&configs), None);
        reports.report(2, mine, 6);
        reports.report(2, mine, 5);
        assert_eq!(reports.index(&configs), Some(6), "a late report does not take back");
    }
}
