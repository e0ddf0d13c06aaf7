//! A replica that may have lost acknowledged entries: it follows, and leaves that state by the rules of
//! [`crate::recovery`]; when no majority is left that may vote, all voters together choose the longest log.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::alias::LeaderIdOf;
use openraft::raft::VoteRequest;
use signaldb_model::NodeId;
use signaldb_proto::peer;

use super::Group;
use crate::error::{ReadError, WriteError};
use crate::peers::Lane;
use crate::recovery::{
    Act, Consent, Flushed, Gate, LeaderVote, LogEnd, Loss, Plan, Report, Target, Trust, Undecided,
    plan_unclean_recovery, promise,
};
use crate::types::{LogId, TypeConfig, Vote};
use crate::wire;

/// How often a recovering replica looks around.
const INTERVAL: Duration = Duration::from_millis(200);
/// How long a peer may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Looks between two attempts of a chosen replica to be elected.
const CAMPAIGN_EVERY: u32 = 10;
/// Looks without a leader before all voters are asked to choose one: a majority that may vote elects sooner.
const PATIENCE: u32 = 30;
/// How long a healthy replica that was chosen may take to lead.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// What an operator's recovery of a group did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    /// There is a leader, or a majority that may elect one.
    NotNeeded,
    /// The log is older than the tables; the leader begins a new incarnation.
    Halted { reason: String, done: bool },
    /// The longest log that is left leads.
    Elected { winner: u64, loss: Loss, done: bool },
}

/// Why an operator's recovery did nothing.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("group {group} cannot be recovered now: {reason}")]
    Undecided { group: u32, reason: Undecided },
    #[error("group {group}: only {promised:?} of the voters {voters:?} promised their vote; try again")]
    Promises { group: u32, promised: BTreeSet<u64>, voters: BTreeSet<u64> },
    #[error("group {group}: node {leader} leads and does not answer")]
    Leader { group: u32, leader: u64 },
    #[error("begin a new incarnation")]
    Begin(#[from] WriteError),
}

impl Group {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this replica may have lost acknowledged entries.
    pub fn is_recovering(&self) -> bool {
        !self.gate().is_open()
    }

    /// Whether the gate lets this replica do `act` now.
    pub(crate) fn may(&self, act: Act) -> bool {
        self.gate().may(self.node.0, act)
    }

    /// The vote that this replica has persisted, for an answer that grants nothing.
    pub(crate) fn own_vote(&self) -> Vote {
        self.log.vote().ok().flatten().unwrap_or_else(|| vote(LeaderVote { term: 0, node: self.node.0 }))
    }

    /// How far a recovering replica has to get: answered by the core, while it leads.
    ///
    /// # Errors
    /// When this node does not lead.
    pub(crate) async fn recovery_target(&self) -> Result<peer::RecoveryTarget, ReadError> {
        let me = self.node.0;
        // Whoever reached this log before the new incarnation is in it could elect past it.
        if self.is_recovering() {
            return Err(ReadError::NoLeader { group: self.id.0 });
        }
        let led = self.raft.with_raft_state(move |state| {
            let vote = *state.vote_ref();
            let leads = state.server_state.is_leader() && vote.committed && vote.leader_id.voted_for == me;
            leads.then(|| (vote, state.log_ids.last().map_or(0, |id| id.index)))
        });
        let failed =
            |error: &dyn std::fmt::Display| ReadError::Unavailable { group: self.id.0, reason: error.to_string() };
        let (vote, last_index) =
            led.await.map_err(|error| failed(&error))?.ok_or(ReadError::NoLeader { group: self.id.0 })?;
        Ok(peer::RecoveryTarget { leader: wire::vote_out(&vote), last_index })
    }

    /// What this replica says of itself to whoever plans an election past a lost majority.
    pub(crate) async fn recovery_report(&self) -> Result<Report, ReadError> {
        let state = self.raft.with_raft_state(|state| {
            let membership = state.membership_state.effective().membership().get_joint_config().clone();
            (state.vote_ref().leader_id.term, state.log_ids.last().copied(), membership)
        });
        let failed =
            |error: &dyn std::fmt::Display| ReadError::Unavailable { group: self.id.0, reason: error.to_string() };
        let (term, last, configs) = state.await.map_err(|error| failed(&error))?;
        let committed = self.log.saved_committed().map_err(|error| failed(&error))?.map(|id| id.index);
        let trust = if self.is_recovering() { Trust::Recovering } else { self.log.trust() };
        let last = last.map(|id| LogEnd { term: id.leader_id.term, index: id.index });
        Ok(Report { voter: self.node.0, trust, term, last, committed, configs })
    }

    /// Promises this replica's vote to the winner of a plan, durably; the gate stays shut.
    pub(crate) async fn promise(&self, winner: LeaderVote, winner_last: Option<LogId>) -> bool {
        let Ok(own) = self.recovery_report().await else { return false };
        let end = winner_last.map(|id| LogEnd { term: id.leader_id.term, index: id.index });
        if !promise(own.term, own.last, winner, end) {
            return false;
        }
        let granted = self.raft.vote(VoteRequest::new(vote(winner), winner_last)).await;
        granted.is_ok_and(|response| response.vote_granted)
    }

    /// All of `voters` have promised: the winner may campaign, and does.
    pub(crate) async fn chosen(
        self: &Arc<Self>,
        winner: u64,
        promised: &BTreeSet<u64>,
        voters: &BTreeSet<u64>,
        loss: &str,
    ) {
        if !self.gate().chosen(winner, promised, voters) || winner != self.node.0 {
            return;
        }
        tracing::warn!(group = %self.id, loss, "a majority may have lost entries: the voters chose this replica's log");
        self.campaign().await;
        if !self.is_recovering() {
            let group = Arc::clone(self);
            self.tasks.spawn(async move { group.begin_once_leading().await });
        }
    }

    /// A chosen replica that lost nothing itself: it is elected like any other, and then begins the incarnation.
    async fn begin_once_leading(&self) {
        let led = async {
            while !self.leadership().here {
                let seen = self.leadership();
                self.leadership_change(seen).await?;
            }
            Ok::<(), ReadError>(())
        };
        let led = tokio::select! {
            () = self.stop.cancelled() => return,
            led = tokio::time::timeout(ELECTION_TIMEOUT, led) => led,
        };
        let begun = match led {
            Ok(Ok(())) => self.begin_incarnation().await.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("another replica was elected, or none".to_owned()),
        };
        if let Err(error) = begun {
            tracing::warn!(group = %self.id, error, "no new incarnation after the recovery");
        }
    }

    /// A lone voter goes on from a log that was cut: nobody else is asked, the cut was accepted before.
    pub(super) async fn recover_alone(&self) -> Result<(), WriteError> {
        if !self.is_recovering() {
            return Ok(());
        }
        tracing::warn!(group = %self.id, "the log was cut, and the loss accepted: the group goes on from there");
        let me = BTreeSet::from([self.node.0]);
        self.gate().chosen(self.node.0, &me, &me);
        self.open_as_chosen().await
    }

    /// Begins the new incarnation, and opens the gate once it is on this disk.
    async fn open_as_chosen(&self) -> Result<(), WriteError> {
        let index = self.begin_incarnation().await?;
        self.sync_here(index).await.map_err(|error| WriteError::Unknown(error.to_string()))?;
        if self.gate().elected(self.node.0) {
            self.opened();
        }
        Ok(())
    }

    async fn campaign(&self) {
        if let Err(error) = self.raft.trigger().elect(false).await {
            tracing::warn!(group = %self.id, %error, "the chosen replica cannot campaign");
        }
    }

    /// Works until the gate is open.
    pub(super) fn start_recovering(self: &Arc<Self>) {
        if !self.is_recovering() {
            return;
        }
        tracing::warn!(group = %self.id,
            "this replica may have lost acknowledged entries in a crash: it votes again once it has caught up");
        let group = Arc::clone(self);
        self.tasks.spawn(async move {
            let mut looked = 0_u32;
            while group.is_recovering() {
                tokio::select! {
                    () = group.stop.cancelled() => return,
                    () = tokio::time::sleep(INTERVAL) => {}
                }
                looked = if group.has_leader() { 0 } else { looked + 1 };
                let step = async {
                    group.follow_rule_3().await;
                    // Chosen, and the others know; the first attempt may have been lost. Not at every look: an election
                    // must have time for the votes' fdatasync.
                    if looked > 0
                        && looked.is_multiple_of(CAMPAIGN_EVERY)
                        && group.may(Act::Campaign)
                        && group.is_recovering()
                    {
                        group.campaign().await;
                    }
                    if looked >= PATIENCE && group.is_recovering() {
                        looked = 0;
                        group.choose_among_all().await;
                    }
                };
                tokio::select! {
                    () = group.stop.cancelled() => return,
                    () = step => {}
                }
            }
        });
    }

    /// Asks a leader for its last index, and looks whether the own log has come so far.
    async fn follow_rule_3(&self) {
        let leadership = self.leadership();
        if leadership.here && self.gate().is_chosen(self.node.0) {
            if let Err(error) = self.open_as_chosen().await {
                tracing::warn!(group = %self.id, %error, "no new incarnation yet");
            }
            return;
        }
        let own_term = self.own_vote().leader_id.term;
        let asks = self.gate().must_ask(own_term);
        if let Some(leader) = leadership.leader.filter(|leader| asks && *leader != self.node) {
            let request = peer::RecoveryRequest { group: self.id.0 };
            let answer = self.peers.call(leader, Lane::Control, "RecoveryTarget", &request, ANSWER_TIMEOUT).await;
            let answer: Result<peer::RecoveryTarget, _> = answer;
            match answer {
                Ok(target) => {
                    let leader = LeaderVote { term: target.leader.term, node: target.leader.node };
                    let answered = self.gate().answered(own_term, Target { leader, last_index: target.last_index });
                    if let Err(error) = answered {
                        tracing::debug!(group = %self.id, %error, "asking again");
                    }
                }
                Err(status) => tracing::debug!(group = %self.id, %leader, %status, "no target for the recovery"),
            }
        }
        let progress = self.raft.watch_log_progress().get();
        let flushed = progress.and_then(|point| {
            let leader = LeaderVote { term: point.vote.leader_id.term, node: point.vote.leader_id.voted_for };
            point.last_log_id.filter(|_| point.vote.committed).map(|id| Flushed { leader, last_index: id.index })
        });
        if let Some(flushed) = flushed
            && self.gate().flushed(flushed)
        {
            self.opened();
        }
    }

    /// Syncs the log of a stopped group and says so in it: a crash of the machine from here on costs no recovery.
    pub(crate) async fn settle(&self, timeout: Duration) -> Result<(), ReadError> {
        let last = self.log.last_index();
        let synced = tokio::time::timeout(timeout, self.sync_here(last)).await;
        let late = |_| ReadError::Unavailable { group: self.id.0, reason: "the disk does not sync in time".to_owned() };
        synced.map_err(late)??;
        self.log.note_idle();
        Ok(())
    }

    fn opened(&self) {
        self.log.left_recovery();
        self.raft.runtime_config().elect(true);
        tracing::info!(group = %self.id, "this replica has caught up: it votes and may lead again");
    }

    /// Plans an election past a lost majority, if every voter answers; of those that recover the one with the lowest id
    /// does it for all.
    async fn choose_among_all(&self) {
        let reports = self.reports().await;
        let recovering = reports.iter().filter(|report| report.trust == Trust::Recovering);
        if recovering.map(|report| report.voter).min() != Some(self.node.0) {
            return;
        }
        let carried_out = match plan_unclean_recovery(&reports, Consent::Automatic) {
            Ok(plan) => self.carry_out(&plan).await,
            Err(undecided) => {
                return tracing::warn!(group = %self.id, %undecided, "the group halts: its majority may have lost entries");
            }
        };
        if let Err(error) = carried_out {
            tracing::warn!(%error, "no recovery yet");
        }
    }

    async fn reports(&self) -> Vec<Report> {
        let asked = self.members().into_keys().map(|node| self.report_of(node));
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// What an operator asks for: an election past voters that are gone, or the going on of a log that the tables are
    /// ahead of. Without `accept` it only says what it would do, and what would be lost.
    ///
    /// # Errors
    /// Why nothing was done; asking again is harmless.
    pub async fn recover(&self, accept: bool) -> Result<Recovered, RecoverError> {
        let group = self.id.0;
        let leader = self.leadership().leader.filter(|_| self.has_leader());
        if let Some(leader) = leader {
            return self.recover_at(leader, accept).await;
        }
        let plan = plan_unclean_recovery(&self.reports().await, Consent::AcceptDataLoss);
        let plan = plan.map_err(|reason| RecoverError::Undecided { group, reason })?;
        if accept {
            self.carry_out(&plan).await?;
        }
        Ok(match plan {
            Plan::NotNeeded => Recovered::NotNeeded,
            Plan::Elect { winner, loss, .. } => Recovered::Elected { winner, loss, done: accept },
        })
    }

    async fn recover_at(&self, leader: NodeId, accept: bool) -> Result<Recovered, RecoverError> {
        if leader == self.node {
            return Ok(self.go_on(accept).await?);
        }
        let request = peer::GoOnRequest { group: self.id.0, accept };
        let answer: Option<peer::GoOnResponse> = self.ask(leader.0, "RecoveryGoOn", &request).await;
        let answer = answer.ok_or(RecoverError::Leader { group: self.id.0, leader: leader.0 })?;
        Ok(answer.halted.map_or(Recovered::NotNeeded, |reason| Recovered::Halted { reason, done: answer.done }))
    }

    /// As the leader of a halted group: goes on in a new incarnation, if `accept` says so.
    pub(crate) async fn go_on(&self, accept: bool) -> Result<Recovered, WriteError> {
        let Some(reason) = self.halted() else { return Ok(Recovered::NotNeeded) };
        if accept {
            self.begin_incarnation().await?;
        }
        Ok(Recovered::Halted { reason, done: accept })
    }

    /// Collects the promises that a plan needs, and tells all voters whom they chose.
    async fn carry_out(&self, plan: &Plan) -> Result<(), RecoverError> {
        let Plan::Elect { winner, term, last, voters, loss } = plan else { return Ok(()) };
        let (group, winner, term) = (self.id.0, *winner, *term);
        let last = last.map(|end| peer::LogId { term: end.term, index: end.index });
        let request = peer::PromiseRequest { group, term, winner, last };
        let mut promised = BTreeSet::new();
        for node in voters {
            let answer: Option<peer::PromiseResponse> = self.ask(*node, "RecoveryPromise", &request).await;
            if answer.is_some_and(|answer| answer.promised) {
                promised.insert(*node);
            }
        }
        if promised != *voters {
            return Err(RecoverError::Promises { group, promised, voters: voters.clone() });
        }
        let request = peer::ChosenRequest {
            group,
            winner,
            voters: voters.iter().copied().collect(),
            promised: promised.into_iter().collect(),
            loss: loss.to_string(),
        };
        // The winner last: when it campaigns the others know.
        for node in voters.iter().filter(|node| **node != winner).chain(std::iter::once(&winner)) {
            let _: Option<peer::Done> = self.ask(*node, "RecoveryChosen", &request).await;
        }
        Ok(())
    }

    async fn report_of(&self, node: u64) -> Option<Report> {
        let answer: peer::RecoveryReport =
            self.ask(node, "RecoveryReport", &peer::RecoveryRequest { group: self.id.0 }).await?;
        let last = answer.last.map(|id| LogEnd { term: id.term, index: id.index });
        let configs = answer.configs.into_iter().map(|config| config.ids.into_iter().collect()).collect();
        let trust = Trust::decode(&answer.trust).ok()?;
        Some(Report { voter: node, trust, term: answer.term, last, committed: answer.committed, configs })
    }

    /// Asks a voter, this one included, over the peer port.
    async fn ask<A, B>(&self, node: u64, method: &'static str, request: &A) -> Option<B>
    where
        A: prost::Message,
        B: prost::Message + Default,
    {
        let answer = self.peers.call(NodeId(node), Lane::Control, method, request, ANSWER_TIMEOUT).await;
        answer.inspect_err(|status| tracing::debug!(group = %self.id, node, method, %status, "no answer")).ok()
    }
}

/// The vote for a candidate.
fn vote(of: LeaderVote) -> Vote {
    let leader_id = LeaderIdOf::<TypeConfig> { term: of.term, voted_for: of.node };
    Vote { leader_id, committed: false }
}
