//! What a RECOVERING replica may do, and when it stops being one (R3, R4).

use std::collections::BTreeSet;
use std::fmt;

use super::{StartDecision, Trust};

/// The vote of an established leader ("committed" in openraft's words). There is one leader a term, and still the node
/// is compared too: nothing here relies on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaderVote {
    pub term: u64,
    pub node: u64,
}

/// What a leader's core answered to a recovering replica.
///
/// The answer must be made by the core itself, after the request arrived, while it leads: `last_index` is the last
/// entry of its log, committed or not. The commit index would not do: an acknowledgment from before the crash may
/// still be on its way, and count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    pub leader: LeaderVote,
    pub last_index: u64,
}

/// How far this replica's own log is: entries up to `last_index` were accepted from that leader, or found equal to its
/// own, and flushed, since this process started.
///
/// openraft's `watch_log_progress` says exactly this: a start sets it to the stored vote without an index, and it
/// advances under a leader's vote only with what that leader sent or probed. The leader's `matched` would not do: it
/// may be from before the crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flushed {
    pub leader: LeaderVote,
    pub last_index: u64,
}

/// What a replica may be asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    /// Grant a vote or a pre-vote to this node.
    GrantVote { candidate: u64 },
    /// Start an election or a pre-vote, by a timer, by hand or because a leader transfers its leadership.
    Campaign,
    /// Lead again in the term of before the start.
    ResumeLeadership,
    /// Take entries from a leader, and acknowledge them.
    Append,
    /// Install a leader's snapshot.
    InstallSnapshot,
}

/// The gate of one group on one replica. In memory: what survives a kill is the trust record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gate(Option<Recovery>);

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Recovery {
    target: Option<Target>,
    /// The winner of an unclean recovery, once every voter has promised.
    chosen: Option<u64>,
}

/// An answer that does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaleAnswer {
    pub own_term: u64,
    pub answered: u64,
}

impl fmt::Display for StaleAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the leader of term {} answered, this replica has seen term {}", self.answered, self.own_term)
    }
}

impl std::error::Error for StaleAnswer {}

impl Gate {
    pub fn new(decision: StartDecision) -> Self {
        Self((decision.trust == Trust::Recovering).then(Recovery::default))
    }

    pub fn is_open(&self) -> bool {
        self.0.is_none()
    }

    pub fn may(&self, me: u64, act: Act) -> bool {
        match (act, &self.0) {
            // Not even after the mere death of the process: openraft sends entries to followers before the leader has
            // written them, so the leader may have lost what a follower acknowledged in its name.
            (Act::ResumeLeadership, _) => false,
            (Act::Append | Act::InstallSnapshot, _) | (_, None) => true,
            (Act::GrantVote { candidate }, Some(recovery)) => recovery.chosen == Some(candidate),
            (Act::Campaign, Some(recovery)) => recovery.chosen == Some(me),
        }
    }

    /// Whether a leader has to be asked, for the first time or again. `own_term` is the replica's persisted term.
    pub fn must_ask(&self, own_term: u64) -> bool {
        let answered = |recovery: &Recovery| recovery.target.is_some_and(|target| target.leader.term >= own_term);
        self.0.as_ref().is_some_and(|recovery| !answered(recovery))
    }

    /// A leader answered a question of this process.
    ///
    /// # Errors
    /// The answer is of an older term than this replica has persisted: an acknowledgment of the newer term may count
    /// that this leader knows nothing of. Ask again.
    pub fn answered(&mut self, own_term: u64, target: Target) -> Result<(), StaleAnswer> {
        if target.leader.term < own_term {
            return Err(StaleAnswer { own_term, answered: target.leader.term });
        }
        if let Some(recovery) = &mut self.0 {
            recovery.target = Some(target);
        }
        Ok(())
    }

    /// The replica's log progress moved. True when that opened the gate, once: then write what
    /// [`super::Acks::left_recovery`] says and let elections begin.
    pub fn flushed(&mut self, flushed: Flushed) -> bool {
        let reached = |target: Target| target.leader == flushed.leader && flushed.last_index >= target.last_index;
        let opens = self.0.as_ref().is_some_and(|recovery| recovery.target.is_some_and(reached));
        if opens {
            self.0 = None;
        }
        opens
    }

    /// The winner of an unclean recovery has the promise of each of `voters`, as [`super::Plan::Elect`] names them:
    /// from now on this replica may vote for it. False, and nothing changes, while one is missing: a promise alone opens
    /// nothing, or a majority of promises would elect past a leader that still counts old acknowledgments.
    ///
    /// Lost with the process; then the recovery has to begin anew.
    pub fn chosen(&mut self, winner: u64, promised: &BTreeSet<u64>, voters: &BTreeSet<u64>) -> bool {
        let all = !voters.is_empty() && voters.is_subset(promised);
        if let Some(recovery) = self.0.as_mut().filter(|_| all) {
            recovery.chosen = Some(winner);
        }
        all
    }

    /// Whether an unclean recovery chose this replica, and it has not led yet.
    pub fn is_chosen(&self, me: u64) -> bool {
        self.0.as_ref().is_some_and(|recovery| recovery.chosen == Some(me))
    }

    /// The chosen replica leads, and a majority holds the command that begins the new incarnation: it has nobody to
    /// ask, and the loss was named. True when that opened its gate.
    pub fn elected(&mut self, me: u64) -> bool {
        let opens = self.is_chosen(me);
        if opens {
            self.0 = None;
        }
        opens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const L5: LeaderVote = LeaderVote { term: 5, node: 2 };

    fn recovering() -> Gate {
        Gate::new(StartDecision { trust: Trust::Recovering, write: false })
    }

    fn flushed(leader: LeaderVote, last_index: u64) -> Flushed {
        Flushed { leader, last_index }
    }

    #[test]
    fn a_recovering_voter_only_follows() {
        let open = Gate::new(StartDecision { trust: Trust::Unsynced, write: false });
        let mut chosen = recovering();
        assert!(chosen.chosen(1, &BTreeSet::from([1, 2, 3]), &BTreeSet::from([1, 2, 3])));
        for (act, by_open, by_recovering, by_chosen) in [
            (Act::GrantVote { candidate: 1 }, true, false, true),
            (Act::GrantVote { candidate: 2 }, true, false, false),
            (Act::Campaign, true, false, true),
            (Act::ResumeLeadership, false, false, false),
            (Act::Append, true, true, true),
            (Act::InstallSnapshot, true, true, true),
        ] {
            let got = (open.may(1, act), recovering().may(1, act), chosen.may(1, act));
            assert_eq!(got, (by_open, by_recovering, by_chosen), "{act:?}");
        }
        assert!(!chosen.may(3, Act::Campaign), "another was chosen");
    }

    #[test]
    fn leaves_when_its_own_log_reaches_the_leaders_last_entry() {
        let mut gate = recovering();
        assert!(gate.must_ask(5));
        assert!(!gate.flushed(flushed(L5, 100)), "nobody was asked");
        gate.answered(5, Target { leader: L5, last_index: 10 }).expect("term 5 is not older");
        assert!(!gate.must_ask(5));
        for short in
            [flushed(L5, 9), flushed(LeaderVote { term: 5, node: 3 }, 10), flushed(LeaderVote { term: 6, node: 2 }, 10)]
        {
            assert!(!gate.flushed(short), "{short:?}");
        }
        assert!(gate.flushed(flushed(L5, 10)));
        assert!(gate.is_open() && !gate.flushed(flushed(L5, 11)), "it opens once");
    }

    #[test]
    fn asks_again_when_the_term_changes() {
        let mut gate = recovering();
        gate.answered(5, Target { leader: L5, last_index: 10 }).expect("term 5 is not older");
        assert!(gate.must_ask(6));
        let stale = StaleAnswer { own_term: 6, answered: 5 };
        assert_eq!(gate.answered(6, Target { leader: L5, last_index: 10 }), Err(stale));
        let newer = LeaderVote { term: 7, node: 3 };
        gate.answered(6, Target { leader: newer, last_index: 4 }).expect("a newer leader counts");
        assert!(!gate.flushed(flushed(L5, 10)), "the target is another leader's now");
        assert!(gate.flushed(flushed(newer, 4)));
    }

    #[test]
    fn only_the_winner_of_all_promises_opens() {
        let (voters, two) = (BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 2]));
        let mut gate = recovering();
        assert!(!gate.chosen(1, &two, &voters) && !gate.may(1, Act::Campaign), "a promise is missing");
        assert!(!gate.elected(1));
        assert!(gate.chosen(1, &voters, &voters));
        assert!(!gate.elected(2));
        assert!(gate.elected(1) && gate.is_open());
    }
}
