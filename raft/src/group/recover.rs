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
use crate::error::ReadError;
use crate::peers::Lane;
use crate::recovery::{
    Act, Consent, Flushed, Gate, LeaderVote, LogEnd, Plan, Report, Target, Trust, plan_unclean_recovery, promise,
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
        if !self.gate().chosen(winner, promised, voters) || winner != self.node.0 || !self.is_recovering() {
            return;
        }
        tracing::warn!(group = %self.id, loss, "a majority may have lost entries: all voters chose this replica's log");
        self.campaign().await;
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
        if leadership.here && self.gate().elected(self.node.0) {
            return self.opened();
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
        let mut reports = Vec::new();
        for node in self.members().into_keys() {
            reports.extend(self.report_of(node).await);
        }
        let recovering = reports.iter().filter(|report| report.trust == Trust::Recovering);
        if recovering.map(|report| report.voter).min() != Some(self.node.0) {
            return;
        }
        let plan = match plan_unclean_recovery(&reports, Consent::Automatic) {
            Ok(plan) => plan,
            Err(undecided) => {
                return tracing::warn!(group = %self.id, %undecided, "the group halts: its majority may have lost entries");
            }
        };
        let Plan::Elect { winner, term, last, voters, loss } = plan else { return };
        let last = last.map(|end| peer::LogId { term: end.term, index: end.index });
        let request = peer::PromiseRequest { group: self.id.0, term, winner, last };
        let mut promised = BTreeSet::new();
        for node in &voters {
            let answer: Option<peer::PromiseResponse> = self.ask(*node, "RecoveryPromise", &request).await;
            if answer.is_some_and(|answer| answer.promised) {
                promised.insert(*node);
            }
        }
        if promised != voters {
            return tracing::warn!(group = %self.id, ?promised, ?voters, "not every voter promised; trying again");
        }
        let (voters, promised) = (voters.into_iter().collect::<Vec<_>>(), promised.into_iter().collect());
        let request =
            peer::ChosenRequest { group: self.id.0, winner, voters: voters.clone(), promised, loss: loss.to_string() };
        // The winner last: when it campaigns the others know.
        for node in voters.iter().filter(|node| **node != winner).chain(std::iter::once(&winner)) {
            let _: Option<peer::Done> = self.ask(*node, "RecoveryChosen", &request).await;
        }
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
