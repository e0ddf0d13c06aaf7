//! What may happen, and what must hold.

use std::collections::{BTreeMap, BTreeSet};

use signaldb_raft::recovery::{
    AckAfter, Acks, Act, Consent, Flushed, Gate, GroupStart, LeaderVote, NodeStart, Plan, Report, StartDecision, Tail,
    Target, Trust, at_start, plan_unclean_recovery, promise, quorum_synced,
};
use stateright::{Model, Property};

use super::state::{Action, Entry, Kind, Log, NODES, Node, Role, State, TERMS_MAX};

/// The property that a weakened model must break.
pub(super) const SAFE: &str = "what was acknowledged is kept, by one leader a term";

/// One rule of DESIGN section 3 left out; the model must find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weakened {
    /// A voter that crashed votes at once.
    NoGate,
    /// R3 with the leader's commit index instead of its last index.
    CommitAsTarget,
    /// R2 without the durable record: a kill while RECOVERING forgets it.
    TrustForgottenOnKill,
    /// R3 with what the leader believes to have matched.
    MatchAsExit,
    /// R1 without the fdatasync.
    VotesNotDurable,
    /// R4 left out: a leader that crashed leads on.
    LeaderRestored,
    /// The same for a leader whose process died: it may have lost what it sent before it wrote it.
    LeaderRestoredAfterKill,
    /// R2 with an acknowledgment that does not wait for the record of UNSYNCED.
    UnsyncedTooLate,
    /// A replica that was no voter when it crashed needs no gate.
    LearnersUngated,
    /// An unclean recovery by a majority of the voters.
    UncleanByMajority,
    /// The quorum-synced index counts what followers hold, not what they synced.
    SyncedByMatch,
}

/// The model and its bounds.
#[derive(Debug, Clone)]
pub(super) struct Recovery {
    pub(super) weakened: Option<Weakened>,
    pub(super) terms: u8,
    pub(super) entries: u8,
    /// Operating-system crashes in all; `None` for any number.
    pub(super) crashes: Option<u8>,
    /// Background syncs are followed, and the trust records that go with them.
    pub(super) sync: bool,
    /// The group starts with voters 0 and 1 and the learner 2, which may be promoted.
    pub(super) change: bool,
    /// All voters may elect past a lost majority; with `sync`, acknowledgments at `quorum-fsync` are followed, and
    /// records do not return to SYNCED.
    pub(super) unclean: bool,
}

pub(super) const BASE: Recovery =
    Recovery { weakened: None, terms: 3, entries: 1, crashes: None, sync: false, change: false, unclean: false };

impl Recovery {
    /// Voters by the newest membership of a log.
    fn configs(&self, log: &Log) -> Vec<BTreeSet<u64>> {
        let (two, three) = (BTreeSet::from([0, 1]), BTreeSet::from([0, 1, 2]));
        match log.entries.iter().flatten().rev().find(|entry| entry.kind != Kind::Command) {
            _ if !self.change => vec![three],
            None => vec![two],
            Some(Entry { kind: Kind::Joint, .. }) => vec![two, three],
            Some(_) => vec![three],
        }
    }

    fn majority(&self, log: &Log, of: impl Fn(usize) -> bool) -> bool {
        let yes = |config: &BTreeSet<u64>| config.iter().filter(|node| of(**node as usize)).count();
        self.configs(log).iter().all(|config| 2 * yes(config) > config.len())
    }

    fn weakened(&self, rule: Weakened) -> bool {
        self.weakened == Some(rule)
    }

    fn start(&self, node: &mut Node, found: Trust, same_boot: bool) {
        let start = NodeStart { same_boot, poisoned: false, tail: Tail::Whole };
        let group = GroupStart {
            trust: Some(found),
            empty: false,
            always_syncs: false,
            quarantined: false,
            repaired: false,
            alone: false,
        };
        let decision = at_start(start, group).expect("nothing is quarantined");
        node.acks = Acks::new(decision.trust, false);
        node.gate = Gate::new(decision);
        node.role = Role::Follower;
        // A start fdatasyncs what is left.
        (node.written, node.synced) = (node.log.len(), if self.sync { node.log.len() } else { 0 });
        (node.syncing, node.unacknowledged, node.matched) = (0, None, 0);
    }

    /// Entries up to `upto` were written; says when they are acknowledged.
    fn acknowledge(&self, state: &mut State, at: usize, term: u8, upto: u8, appended: bool) {
        let node = &mut state.nodes[at];
        let after = if appended { node.acks.append(false).ack } else { AckAfter::Write };
        node.syncing += u8::from(after == AckAfter::Sync);
        let wait = after == AckAfter::Sync && !self.weakened(Weakened::UnsyncedTooLate);
        if wait || node.unacknowledged.is_some() {
            node.unacknowledged = Some((term, upto));
        } else {
            Self::acked(state, at, term, upto);
        }
    }

    fn acked(state: &mut State, at: usize, term: u8, upto: u8) {
        let acked = &mut state.acked[term as usize][at];
        *acked = upto.max(*acked);
    }

    /// How far the leader of a term can commit, if it still leads.
    fn committable(&self, state: &State, term: u8) -> Option<(u8, Log)> {
        let leader = state.leaders[term as usize]? as usize;
        let node = &state.nodes[leader];
        if node.role != Role::Leader || node.term != term {
            return None;
        }
        let own = |index: &u8| node.log.at(*index).is_some_and(|entry| entry.term == term);
        let held = |index: &u8| self.majority(&node.log, |voter| state.acked[term as usize][voter] >= *index);
        let index = (1..=node.log.len()).rev().filter(own).find(held)?;
        Some((index, node.log))
    }

    fn commit(&self, state: &mut State, term: u8) {
        let Some((index, log)) = self.committable(state, term) else { return };
        let committed = log.upto(index);
        if committed.common(&state.committed) < committed.len().min(state.committed.len()) {
            state.wrong = Some("two entries are committed at one index");
        } else if committed.len() > state.committed.len() {
            state.committed = committed;
        }
        let reports = &state.reported[term as usize];
        let reports: BTreeMap<u64, u64> = (0..NODES).map(|node| (node as u64, reports[node].into())).collect();
        let synced = quorum_synced(&reports, &self.configs(&log)).unwrap_or(0);
        state.committed_synced = state.committed_synced.max(index.min(synced as u8));
    }

    fn follow(&self, node: &mut Node, term: u8, vote: u8) {
        if (node.term, node.vote) != (term, Some(vote)) {
            (node.term, node.vote, node.matched) = (term, Some(vote), 0);
            // The vote waits in the log's queue behind what the node appended as a leader.
            node.written = node.log.len();
        }
        if !self.weakened(Weakened::VotesNotDurable) {
            node.durable_vote = (node.term, node.vote);
        }
    }

    fn deliver(&self, state: &mut State, to: usize, term: u8, upto: u8) {
        let leader = state.leaders[term as usize].expect("only leaders send");
        let sent = state.sent[term as usize].upto(upto);
        let node = &mut state.nodes[to];
        self.follow(node, term, leader);
        node.role = Role::Follower;
        let common = node.log.common(&sent);
        let appends = common < upto;
        if appends {
            node.synced = node.synced.min(common);
            node.log = sent;
        }
        node.written = node.log.len();
        node.matched = if self.unclean { node.matched.max(upto) } else { 0 };
        self.acknowledge(state, to, term, upto, appends);
        if self.weakened(Weakened::SyncedByMatch) {
            self.report(state, to);
        }
        let node = &mut state.nodes[to];
        let vote = leader_of(term);
        let flushed = node.unacknowledged.is_none();
        if flushed && node.gate.flushed(Flushed { leader: vote, last_index: upto.into() }) {
            node.acks.left_recovery();
        }
    }

    fn report(&self, state: &mut State, at: usize) {
        let node = &state.nodes[at];
        let matched = if node.role == Role::Leader { node.log.len() } else { node.matched };
        let reported = &mut state.reported[node.term as usize][at];
        let synced = if self.weakened(Weakened::SyncedByMatch) { node.log.len() } else { node.synced };
        *reported = matched.min(synced).max(*reported);
    }

    fn sync(&self, state: &mut State, at: usize) {
        let node = &mut state.nodes[at];
        node.synced = node.written;
        let trust = node.acks.trust();
        (0..std::mem::take(&mut node.syncing)).for_each(|_| node.acks.synced(trust));
        if let Some((term, upto)) = node.unacknowledged.take() {
            Self::acked(state, at, term, upto);
        }
        if self.unclean {
            self.report(state, at);
        }
    }

    fn crash(&self, state: &mut State, at: usize, kept: u8) {
        let node = &mut state.nodes[at];
        node.log = node.log.upto(kept);
        (node.term, node.vote) = node.durable_vote;
        let (led, term) = (node.role == Role::Leader, node.term);
        let learner = !self.configs(&node.log).iter().any(|config| config.contains(&(at as u64)));
        let ungated = self.weakened(Weakened::NoGate)
            || self.weakened(Weakened::LeaderRestored) && led
            || self.weakened(Weakened::LearnersUngated) && learner;
        let found = node.acks.found_after_crash();
        self.start(node, found, ungated);
        if led && self.weakened(Weakened::LeaderRestored) {
            node.role = Role::Leader;
            state.sent[term as usize] = node.log;
        }
    }

    fn die(&self, state: &mut State, at: usize) {
        let node = &mut state.nodes[at];
        node.log = node.log.upto(node.written);
        let (led, term) = (node.role == Role::Leader, node.term);
        let forgotten = self.weakened(Weakened::TrustForgottenOnKill) && node.acks.trust() == Trust::Recovering;
        let found = if forgotten { Trust::Unsynced } else { node.acks.trust() };
        self.start(node, found, true);
        if led && self.weakened(Weakened::LeaderRestoredAfterKill) {
            node.role = Role::Leader;
            state.sent[term as usize] = node.log;
        }
    }

    fn ask(&self, state: &mut State, at: usize, leader: usize) -> Option<()> {
        let asked = &state.nodes[leader];
        let last_index =
            if self.weakened(Weakened::CommitAsTarget) { asked.log.common(&state.committed) } else { asked.log.len() };
        let leader = leader_of(asked.term);
        let node = &mut state.nodes[at];
        node.gate.answered(node.term.into(), Target { leader, last_index: last_index.into() }).ok()
    }

    fn win(&self, state: &mut State, at: usize) {
        let node = &mut state.nodes[at];
        node.role = Role::Leader;
        let term = node.term as usize;
        if state.unclean[term] == Some(at as u8) {
            let voters: BTreeSet<u64> = (0..NODES as u64).collect();
            let promised = voters.iter().copied().filter(|voter| node.granted[*voter as usize]).collect();
            node.gate.chosen(0, &promised, &voters);
            if node.gate.elected(0) {
                node.acks.left_recovery();
            }
            // What no log holds is lost, by name. What was acknowledged at `quorum-fsync` must not be.
            if !self.weakened(Weakened::UncleanByMajority) {
                state.committed = state.committed.upto(node.log.common(&state.committed));
            }
        }
        if state.leaders[term].is_some_and(|leader| leader != at as u8) {
            state.wrong = Some("two leaders in one term");
        }
        state.leaders[term] = Some(at as u8);
        state.sent[term] = node.log;
        if node.written == node.log.len() && node.unacknowledged.is_none() {
            Self::acked(state, at, term as u8, state.nodes[at].written);
        }
    }

    /// Drops what nothing can depend on any more, so that states that behave alike are one.
    fn forget(&self, state: &mut State) {
        for node in state.nodes.iter_mut().filter(|node| node.role != Role::Candidate) {
            node.granted = [false; NODES];
        }
        let oldest = state.nodes.iter().map(|node| node.term.min(node.durable_vote.0)).min().unwrap_or(0);
        for term in 1..TERMS_MAX {
            let leads = |leader: u8| {
                let node = &state.nodes[leader as usize];
                node.role == Role::Leader && node.term as usize == term
            };
            if !state.leaders[term].is_some_and(leads) {
                (state.acked[term], state.reported[term]) = ([0; NODES], [0; NODES]);
            }
            if term < oldest as usize {
                (state.sent[term], state.leaders[term], state.unclean[term]) = (Log::default(), None, None);
            }
        }
        // On disk RECOVERING and UNSYNCED lead to the same; what left is only shown where that is asked for.
        let left = |node: &Node| node.gate.is_open() && node.acks.found_after_crash() == Trust::Recovering;
        for node in state.nodes.iter_mut().filter(|node| left(node) && node.syncing == 0 && !self.unclean) {
            node.acks = Acks::new(Trust::Unsynced, false);
        }
        if self.weakened.is_none() {
            self.rename(state);
        }
    }

    /// Which node is which does not matter: puts them into one order, as far as that is cheap to decide.
    fn rename(&self, state: &mut State) {
        let alike = if self.change { 2 } else { NODES };
        let key = |at: usize| {
            let node = &state.nodes[at];
            let led = state.acked[node.term as usize][at];
            let own = node.vote == Some(at as u8);
            (node.term, node.role, node.log, node.written, node.synced, node.gate.is_open(), own, led)
        };
        let mut order: [usize; NODES] = std::array::from_fn(|at| at);
        order[..alike].sort_by_cached_key(|at| key(*at));
        if order.is_sorted() {
            return;
        }
        let renamed = |old: u8| order.iter().position(|at| *at == old as usize).map(|at| at as u8);
        state.nodes = order.map(|at| {
            let mut node = state.nodes[at].clone();
            node.vote = node.vote.and_then(renamed);
            node.durable_vote.1 = node.durable_vote.1.and_then(renamed);
            node.granted = order.map(|voter| node.granted[voter]);
            node
        });
        for term in 1..TERMS_MAX {
            state.leaders[term] = state.leaders[term].and_then(renamed);
            state.unclean[term] = state.unclean[term].and_then(renamed);
            state.acked[term] = order.map(|at| state.acked[term][at]);
            state.reported[term] = order.map(|at| state.reported[term][at]);
        }
    }

    fn reports(&self, state: &State) -> Vec<Report> {
        let nodes = state.nodes.iter().enumerate();
        let reports = nodes.map(|(at, node)| Report {
            voter: at as u64,
            trust: node.acks.trust(),
            term: node.term.into(),
            last: node.log.end(),
            committed: None,
            configs: self.configs(&node.log),
        });
        // Weakened, node 0 does not answer and nobody minds.
        let answered = if self.weakened(Weakened::UncleanByMajority) { 1..NODES } else { 0..NODES };
        reports.collect::<Vec<_>>()[answered].to_vec()
    }

    fn plan(&self, state: &State) -> Option<(usize, u8)> {
        let consent =
            if self.weakened(Weakened::UncleanByMajority) { Consent::AcceptDataLoss } else { Consent::Automatic };
        match plan_unclean_recovery(&self.reports(state), consent) {
            Ok(Plan::Elect { winner, term, .. }) if term <= self.terms.into() => Some((winner as usize, term as u8)),
            _ => None,
        }
    }

    fn promised(&self, state: &State, at: usize) -> Option<(u8, u8)> {
        let node = &state.nodes[at];
        let planned = (1..=self.terms).rev().find_map(|term| Some((term, state.unclean[term as usize]?)));
        let (term, winner) = planned?;
        let vote = LeaderVote { term: term.into(), node: winner.into() };
        let last = state.nodes[winner as usize].log.end();
        let candidate = &state.nodes[winner as usize];
        let campaigns = candidate.role == Role::Candidate && candidate.term == term;
        (campaigns && promise(node.term.into(), node.log.end(), vote, last)).then_some((term, winner))
    }
}

impl Model for Recovery {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // By being idle it becomes SYNCED before anything else happens.
        let trust = Trust::Unsynced;
        let node = |role: Role| Node {
            term: 1,
            vote: Some(0),
            durable_vote: (1, Some(0)),
            role,
            granted: [false; NODES],
            log: Log::default(),
            written: 0,
            synced: 0,
            syncing: 0,
            unacknowledged: None,
            matched: 0,
            acks: Acks::new(trust, false),
            gate: Gate::new(StartDecision { trust, write: false }),
        };
        let mut state = State {
            nodes: [node(Role::Leader), node(Role::Follower), node(Role::Follower)],
            leaders: [None; TERMS_MAX],
            sent: [Log::default(); TERMS_MAX],
            unclean: [None; TERMS_MAX],
            acked: [[0; NODES]; TERMS_MAX],
            reported: [[0; NODES]; TERMS_MAX],
            committed: Log::default(),
            committed_synced: 0,
            crashes: 0,
            wrong: None,
        };
        state.leaders[1] = Some(0);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.wrong.is_some() {
            return;
        }
        for (at, node) in state.nodes.iter().enumerate() {
            let me = at as u64;
            let voter = self.configs(&node.log).iter().any(|config| config.contains(&me));
            if node.role != Role::Leader && node.term < self.terms && voter && node.gate.may(me, Act::Campaign) {
                actions.push(Action::Campaign(at));
            }
            if node.role == Role::Candidate {
                let term = node.term as usize;
                let granted = |voter: usize| node.granted[voter];
                let wins = match state.unclean[term] {
                    Some(winner) if winner == at as u8 => {
                        let needed = if self.weakened(Weakened::UncleanByMajority) { 2 } else { NODES };
                        (0..NODES).filter(|voter| granted(*voter)).count() >= needed
                    }
                    _ => self.majority(&node.log, granted),
                };
                if wins {
                    actions.push(Action::Win(at));
                }
                for (voter, other) in state.nodes.iter().enumerate().filter(|(voter, _)| *voter != at) {
                    let newer = other.term < node.term || other.term == node.term && other.vote == Some(at as u8);
                    let may = other.gate.may(voter as u64, Act::GrantVote { candidate: me });
                    if newer && may && !granted(voter) && node.log.end() >= other.log.end() {
                        actions.push(Action::Grant { voter, candidate: at });
                    }
                }
            }
            if node.role == Role::Leader {
                if node.log.len() < self.entries {
                    if !self.change || self.configs(&node.log).len() == 1 && node.log.len() > 0 {
                        actions.push(Action::Append(at, Kind::Command));
                    }
                    let settled = state.committed.len() == node.log.len();
                    match self.configs(&node.log).as_slice() {
                        [voters] if self.change && settled && voters.len() == 2 => {
                            actions.push(Action::Append(at, Kind::Joint));
                        }
                        [_, _] if settled => actions.push(Action::Append(at, Kind::Promoted)),
                        _ => {}
                    }
                }
                if node.written < node.log.len() {
                    actions.push(Action::Write(at));
                }
                for (asking, other) in state.nodes.iter().enumerate().filter(|(asking, _)| *asking != at) {
                    if other.gate.must_ask(other.term.into()) {
                        actions.push(Action::Ask { node: asking, leader: at });
                    }
                    if self.weakened(Weakened::MatchAsExit) && !other.gate.is_open() {
                        actions.push(Action::LeaveByMatch { node: asking, leader: at });
                    }
                }
            }
            for term in node.term.max(1)..=self.terms {
                let from_other = state.leaders[term as usize].is_some_and(|leader| leader != at as u8);
                let leads = node.role == Role::Leader && node.term == term;
                if from_other && !leads {
                    let upto = 0..=state.sent[term as usize].len();
                    actions.extend(upto.map(|upto| Action::Deliver { to: at, term, upto }));
                }
            }
            if self.sync && node.synced < node.written {
                actions.push(Action::Sync(at));
            }
            if self.sync && !self.unclean && node.synced == node.log.len() {
                actions.push(Action::Idle(at));
            }
            actions.push(Action::Die(at));
            if self.crashes.is_none_or(|max| state.crashes < max) {
                actions.extend((node.synced..=node.written).map(|kept| Action::Crash { node: at, kept }));
            }
            if self.unclean && self.promised(state, at).is_some() {
                actions.push(Action::Promise(at));
            }
        }
        if self.weakened(Weakened::CommitAsTarget) {
            let can =
                |term: &u8| self.committable(state, *term).is_some_and(|(index, _)| index > state.committed.len());
            actions.extend((1..=self.terms).filter(can).map(Action::Commit));
        }
        if self.unclean && self.plan(state).is_some() {
            actions.push(Action::Plan);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Campaign(at) => {
                let node = &mut state.nodes[at];
                self.follow(node, node.term + 1, at as u8);
                node.role = Role::Candidate;
                node.granted = [false; NODES];
                node.granted[at] = true;
            }
            Action::Grant { voter, candidate } => {
                let term = state.nodes[candidate].term;
                let node = &mut state.nodes[voter];
                self.follow(node, term, candidate as u8);
                node.role = Role::Follower;
                state.nodes[candidate].granted[voter] = true;
            }
            Action::Win(at) => self.win(&mut state, at),
            Action::Append(at, kind) => {
                let node = &mut state.nodes[at];
                node.log.push(Entry { term: node.term, kind });
                let term = node.term as usize;
                state.sent[term] = node.log;
            }
            Action::Write(at) => {
                let node = &mut state.nodes[at];
                node.written = node.log.len();
                let (term, upto) = (node.term, node.written);
                self.acknowledge(&mut state, at, term, upto, true);
            }
            Action::Deliver { to, term, upto } => self.deliver(&mut state, to, term, upto),
            Action::Commit(term) => self.commit(&mut state, term),
            Action::Sync(at) => self.sync(&mut state, at),
            Action::Idle(at) => drop(state.nodes[at].acks.idle()?),
            Action::Die(at) => self.die(&mut state, at),
            Action::Crash { node, kept } => {
                state.crashes += u8::from(self.crashes.is_some());
                self.crash(&mut state, node, kept);
            }
            Action::Ask { node, leader } => self.ask(&mut state, node, leader)?,
            Action::LeaveByMatch { node, leader } => {
                let vote = leader_of(state.nodes[leader].term);
                let matched = state.acked[vote.term as usize][node];
                let left = state.nodes[node].gate.flushed(Flushed { leader: vote, last_index: matched.into() });
                left.then(|| state.nodes[node].acks.left_recovery())?;
            }
            Action::Plan => {
                let (winner, term) = self.plan(&state)?;
                let node = &mut state.nodes[winner];
                self.follow(node, term, winner as u8);
                node.role = Role::Candidate;
                node.granted = [false; NODES];
                node.granted[winner] = true;
                state.unclean[term as usize] = Some(winner as u8);
            }
            Action::Promise(at) => {
                let (term, winner) = self.promised(&state, at)?;
                let node = &mut state.nodes[at];
                self.follow(node, term, winner);
                node.role = Role::Follower;
                state.nodes[winner as usize].granted[at] = true;
            }
        }
        if !self.weakened(Weakened::CommitAsTarget) {
            (1..=self.terms).for_each(|term| self.commit(&mut state, term));
        }
        self.forget(&mut state);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(SAFE, |model: &Self, state: &State| model.is_safe(state)),
            Property::always("a recovering replica can leave", |model: &Self, state: &State| model.can_leave(state)),
            Property::sometimes("a later leader commits", |_, state: &State| {
                state.committed.at(1).is_some_and(|entry| entry.term > 1)
            }),
            Property::sometimes("a majority is recovering", |_, state: &State| {
                state.nodes.iter().filter(|node| !node.gate.is_open()).count() > 1
            }),
        ];
        if self.change {
            properties.push(Property::sometimes("the learner is promoted", |_, state: &State| {
                state.committed.entries.iter().flatten().any(|entry| entry.kind == Kind::Promoted)
            }));
        }
        if self.unclean {
            properties.push(Property::sometimes("a replica that left by R3 leads", |_, state: &State| {
                // Its record still reads RECOVERING on disk.
                let left = |node: &Node| node.gate.is_open() && node.acks.found_after_crash() == Trust::Recovering;
                let elected = |node: &Node| node.role == Role::Leader && state.unclean[node.term as usize].is_none();
                state.nodes.iter().any(|node| left(node) && elected(node))
            }));
            properties.push(Property::sometimes("an entry is synced by a quorum", |_, state: &State| {
                state.committed_synced > 0
            }));
            properties.push(Property::sometimes("all voters elect past a lost majority", |_, state: &State| {
                (0..TERMS_MAX).any(|term| state.unclean[term].is_some() && state.unclean[term] == state.leaders[term])
            }));
        }
        properties
    }
}

/// One leader a term is itself checked, so the term names it; this keeps node ids out of the gates.
fn leader_of(term: u8) -> LeaderVote {
    LeaderVote { term: term.into(), node: 0 }
}

impl Recovery {
    fn is_safe(&self, state: &State) -> bool {
        let committed_in = state.committed.end().map_or(0, |end| end.term as u8);
        let leads_without = |node: &Node| {
            node.role == Role::Leader && node.term >= committed_in && !node.log.starts_with(&state.committed)
        };
        // The promise of the table: with a minority down, somebody who may be elected holds it.
        let open = |at: usize| state.nodes[at].gate.is_open();
        let holds = |node: &Node| node.gate.is_open() && node.log.starts_with(&state.committed);
        let minority_down = self.majority(&state.committed, open);
        state.wrong.is_none()
            && !state.nodes.iter().any(leads_without)
            && (self.weakened.is_some() || !minority_down || state.nodes.iter().any(holds))
            && state.committed_synced <= state.committed.len()
    }
}

impl Recovery {
    /// Whenever somebody leads whose term is not older, a question and one append open the gate.
    fn can_leave(&self, state: &State) -> bool {
        let recovering = (0..NODES).filter(|at| !state.nodes[*at].gate.is_open());
        let leads = |leader: &usize| state.nodes[*leader].role == Role::Leader;
        let mut pairs = recovering.flat_map(|at| (0..NODES).filter(leads).map(move |leader| (at, leader)));
        self.weakened.is_some()
            || pairs.all(|(at, leader)| {
                let mut state = state.clone();
                let (term, upto) = (state.nodes[leader].term, state.nodes[leader].log.len());
                if state.nodes[at].term > term {
                    return true;
                }
                let asked = self.ask(&mut state, at, leader).is_some();
                self.deliver(&mut state, at, term, upto);
                asked && state.nodes[at].gate.is_open()
            })
    }
}
