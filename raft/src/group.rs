//! A handle to one Raft group of this node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::Instant as _;
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use openraft::raft::AppendEntriesRequest;
use signaldb_model::mutation::{self, Mutation};
use signaldb_model::{AckLevel, Clock, GroupId, NodeId, Position};
use signaldb_proto::peer;
use signaldb_wal::Wal;
use tokio::sync::{MutexGuard, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, Refusal};
use crate::command::{Append, Command};
use crate::disk::{DiskLevel, DiskWatch, SnapshotRoom};
use crate::error::{OpenError, ReadError};
use crate::forward::Forwarder;
use crate::log_store::LogStore;
use crate::metrics::{GroupMeters, SeenLeadership};
use crate::network::Network;
use crate::peers::{Lane, Peers};
use crate::recovery::{Acks, Gate, StartDecision, Trust};
use crate::sink::ApplySink;
use crate::state::GroupState;
use crate::state_machine::{Shared, StateMachine};
use crate::state_store::StateStore;
use crate::types::{Peer, Raft, TypeConfig};

mod incarnation;
mod observe;
mod propose;
mod recover;
mod sync_lag;
mod synced;
mod time;
mod trim;

pub use recover::{RecoverError, Recovered};
pub(crate) use sync_lag::{SyncFallback, watch_sync};

/// How long opening waits for a lone voter to lead and to replay its log.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a voter leaves it to the one whose turn it is to start a new group.
const INITIALIZE_DELAY: Duration = Duration::from_secs(3);

/// Entries that a follower may be behind and still be asked to lead.
const LAG_MAX: u64 = 8;

/// Pause before a write or a read asks again who leads.
const LEADER_POLL: Duration = Duration::from_millis(50);

/// How long a read may look for a leader.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a snapshot, a few MB at most, may take to become durable.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(30);

/// An acknowledged write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Where the write is; for a repeat, where its first copy is.
    pub position: Position,
    pub level: AckLevel,
    /// The dedup window held the write already.
    pub deduplicated: bool,
}

/// What `/api/v1/cluster` shows of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupStatus {
    pub group: u32,
    pub leader: Option<u64>,
    pub term: u64,
    pub last_log_index: u64,
    pub commit_index: u64,
    pub applied_index: u64,
    /// On the disks of a majority, as the leader knows; on this node's disk where it follows.
    pub synced_index: u64,
    /// Every row up to here is in Iceberg.
    pub flushed_index: u64,
    /// The log holds nothing up to here any more.
    pub purged_index: u64,
    pub state: String,
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
}

/// Shared by all groups of a node.
#[derive(Debug, Clone)]
pub(crate) struct GroupDeps {
    pub(crate) wal: Arc<Wal>,
    pub(crate) store: Arc<dyn StateStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) node_admission: Arc<Admission>,
    /// Bytes of requests that are on their way to a leader.
    pub(crate) waiting: Arc<Admission>,
    pub(crate) refusal: Refusal,
    pub(crate) disk: DiskWatch,
    pub(crate) snapshots: Arc<SnapshotRoom>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// One group. Cheap to share behind an `Arc`.
pub struct Group {
    id: GroupId,
    node: NodeId,
    raft: Raft,
    log: LogStore,
    shared: Arc<Shared>,
    level: AckLevel,
    admission: Admission,
    node_admission: Arc<Admission>,
    refusal: Refusal,
    disk: DiskWatch,
    snapshots: Arc<SnapshotRoom>,
    peers: Arc<Peers>,
    forwarder: Arc<Forwarder>,
    clock: Arc<dyn Clock>,
    /// When a node that leads, or believes so, called last; `None` until one does: the leader that the vote on disk
    /// names proves nothing.
    heard: Mutex<Option<std::time::Instant>>,
    silence_max: Duration,
    panicked: Mutex<Option<String>>,
    synced: Mutex<synced::SyncedQuorum>,
    lag: Mutex<sync_lag::SyncLag>,
    sync_lag_max: Duration,
    fallback: SyncFallback,
    meters: GroupMeters,
    time: Mutex<time::LeaderTime>,
    gate: Mutex<Gate>,
    /// Why the group serves nothing while this node leads.
    halted: Mutex<Option<incarnation::Halt>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Who leads a group, as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    pub term: u64,
    pub leader: Option<NodeId>,
    /// This node leads.
    pub here: bool,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("id", &self.id).field("node", &self.node).finish_non_exhaustive()
    }
}

/// Times of a group.
#[derive(Debug, Clone)]
pub(crate) struct GroupConfig {
    pub(crate) heartbeat_interval: Duration,
    pub(crate) election_timeout: (Duration, Duration),
    pub(crate) purge_lag: Duration,
    pub(crate) purge_lag_bytes_max: u64,
    pub(crate) trim_interval: Duration,
    /// Acknowledge at `quorum-fsync` instead of `quorum`.
    pub(crate) fsync: bool,
}

impl Group {
    /// Opens the group. A lone voter leads, and has replayed its log, when this returns; one of several goes on alone.
    ///
    /// `voters` are those that a new group begins with; what the log says of them comes first.
    pub(crate) async fn open(
        id: GroupId,
        voters: &BTreeMap<u64, Peer>,
        decision: StartDecision,
        config: &GroupConfig,
        deps: &GroupDeps,
        sink: Arc<dyn ApplySink>,
    ) -> Result<Arc<Self>, OpenError> {
        let failed = |reason: String| OpenError::Group { group: id.0, reason };
        let node = deps.peers.node();
        let (machine, shared, completed_cut) = StateMachine::open(id, Arc::clone(&deps.store), sink)
            .map_err(|error| failed(format!("its snapshot cannot be read: {error}")))?;
        if deps.wal.group_state(id.0).purged.is_some() && !shared.has_snapshot() {
            return Err(failed("its log was purged up to a snapshot that the state store does not hold".to_owned()));
        }
        let alone = deps.peers.addresses().len() <= 1;
        let level = match (alone, config.fsync || id == GroupId::META) {
            (true, _) => AckLevel::LocalFsync,
            (false, true) => AckLevel::QuorumFsync,
            (false, false) => AckLevel::Quorum,
        };
        let gate = match mutation::active(Mutation::SkipRecoveryGate) {
            true => Gate::new(StartDecision { trust: Trust::Unsynced, ..decision }),
            false => Gate::new(decision),
        };
        let fallback = SyncFallback::default();
        let acks = Acks::new(decision.trust, level != AckLevel::Quorum);
        let log = LogStore::new(Arc::clone(&deps.wal), id, acks, fallback.clone());
        let network = Network { group: id, peers: Arc::clone(&deps.peers) };
        let raft_config =
            Arc::new(openraft::Config { enable_elect: gate.is_open(), ..raft_config(id, config).map_err(failed)? });
        let raft = Raft::new(node.0, raft_config, network, log.clone(), machine).await;
        let group = Arc::new(Self {
            id,
            node,
            raft: raft.map_err(|error| failed(error.to_string()))?,
            log,
            shared,
            level,
            admission: Admission::of_group(Arc::clone(&deps.node_admission)),
            node_admission: Arc::clone(&deps.waiting),
            refusal: deps.refusal.clone(),
            disk: deps.disk.clone(),
            snapshots: Arc::clone(&deps.snapshots),
            peers: Arc::clone(&deps.peers),
            forwarder: Arc::clone(&deps.forwarder),
            clock: Arc::clone(&deps.clock),
            heard: Mutex::default(),
            silence_max: 3 * config.election_timeout.1,
            panicked: Mutex::default(),
            synced: Mutex::default(),
            lag: Mutex::default(),
            sync_lag_max: sync_lag::SYNC_LAG_MAX.max(2 * config.heartbeat_interval).max(2 * deps.wal.sync_interval()),
            fallback,
            meters: GroupMeters::register(id),
            time: Mutex::default(),
            gate: Mutex::new(gate),
            halted: Mutex::default(),
            tasks: deps.tasks.clone(),
            stop: deps.stop.clone(),
        });
        group.watch_core();
        deps.peers.register(&group);
        if alone {
            let peer = voters.get(&node.0).cloned().unwrap_or_default();
            group.become_leader(peer).await.map_err(failed)?;
            group.recover_alone().await.map_err(|error| failed(error.to_string()))?;
        } else if !group.is_initialized().await.map_err(failed)? {
            group.start_initializing(voters.clone());
        }
        group.start_recovering();
        group.start_snapshots(config, deps, completed_cut);
        Ok(group)
    }

    /// Whether the group's log holds anything.
    pub(crate) async fn is_initialized(&self) -> Result<bool, String> {
        self.raft.is_initialized().await.map_err(|error| error.to_string())
    }

    /// The members by the newest membership that this node knows.
    pub(crate) fn members(&self) -> BTreeMap<u64, Peer> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        metrics.membership_config.membership().nodes().map(|(id, node)| (*id, node.clone())).collect()
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.raft
    }

    /// Starts a new group: all voters may, with the same members; they take turns, so that leaders spread and votes do
    /// not split.
    fn start_initializing(self: &Arc<Self>, voters: BTreeMap<u64, Peer>) {
        let turn = voters.keys().nth(self.id.0 as usize % voters.len().max(1)) == Some(&self.node.0);
        let (group, delay) = (Arc::clone(self), if turn { Duration::ZERO } else { INITIALIZE_DELAY });
        self.tasks.spawn(async move {
            tokio::select! {
                () = group.stop.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            match group.raft.initialize(voters).await {
                // Somebody was faster.
                Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(error) => tracing::error!(group = group.id.0, %error, "group cannot be started"),
            }
        });
    }

    /// A lone voter elects itself without waiting for an election timeout.
    async fn become_leader(&self, peer: Peer) -> Result<(), String> {
        let raft = &self.raft;
        if raft.is_initialized().await.map_err(|error| error.to_string())? {
            raft.trigger().elect(false).await.map_err(|error| error.to_string())?;
        } else {
            raft.initialize(BTreeMap::from([(self.node.0, peer)])).await.map_err(|error| error.to_string())?;
        }
        let led = |metrics: &openraft::RaftMetrics<crate::types::TypeConfig>| {
            let applied = metrics.last_applied.map(|id| id.index);
            metrics.state.is_leader() && applied.is_some() && applied >= metrics.last_log_index
        };
        raft.wait(Some(REPLAY_TIMEOUT)).metrics(led, "the log is replayed").await.map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Turns completed cuts into snapshots and purges the log behind them, after the lag that keeps flushed log for a while.
    fn start_snapshots(&self, config: &GroupConfig, deps: &GroupDeps, completed_cut: watch::Receiver<u64>) {
        // Since when is not known any more.
        let durable = self.shared.durable_index().filter(|index| *index > self.log.purged_index());
        let trimmer = trim::Trimmer {
            id: self.id,
            raft: self.raft.clone(),
            shared: Arc::clone(&self.shared),
            store: Arc::clone(&deps.store),
            unfinished: None,
            log: self.log.clone(),
            seen: 0,
            wal: Arc::clone(&deps.wal),
            clock: Arc::clone(&deps.clock),
            config: config.clone(),
            disk: deps.disk.clone(),
            snapshots: Arc::clone(&deps.snapshots),
            kept: durable.map(|index| (deps.clock.elapsed(), index)).into_iter().collect(),
            last: None,
        };
        self.tasks.spawn(trimmer.run(completed_cut, deps.stop.clone()));
    }

    pub fn id(&self) -> GroupId {
        self.id
    }

    /// The level at which this group acknowledges.
    pub fn ack_level(&self) -> AckLevel {
        self.level
    }

    /// Who leads, as far as this node knows. A leader that is gone is named until another is elected.
    pub fn leadership(&self) -> Leadership {
        leadership(&self.raft.server_metrics().borrow_watched())
    }

    /// Waits until the leadership is not what was `seen`.
    ///
    /// # Errors
    /// When the group stopped.
    ///
    /// Cancel safety: safe.
    pub async fn leadership_change(&self, seen: Leadership) -> Result<Leadership, ReadError> {
        // Unlike the other metrics these change only when something happens.
        let mut metrics = self.raft.server_metrics();
        loop {
            let now = leadership(&metrics.borrow_watched());
            if now != seen {
                return Ok(now);
            }
            let stopped = |_| ReadError::Unavailable { group: self.id.0, reason: "the group stopped".to_owned() };
            metrics.changed().await.map_err(stopped)?;
        }
    }

    /// Waits until the entry at `index` is applied here.
    ///
    /// # Errors
    /// After `timeout`, or when the group stopped.
    pub async fn wait_applied(&self, index: u64, timeout: Duration) -> Result<(), ReadError> {
        let applied = |metrics: &openraft::RaftMetrics<crate::types::TypeConfig>| {
            metrics.last_applied.is_some_and(|applied| applied.index >= index)
        };
        let waited = self.raft.wait(Some(timeout)).metrics(applied, "the index is applied").await;
        waited.map(drop).map_err(|error| ReadError::Unavailable { group: self.id.0, reason: error.to_string() })
    }

    /// The last index that the log no longer holds.
    pub fn purged_index(&self) -> u64 {
        self.log.purged_index()
    }

    /// Whether this node would take rows as a leader.
    pub(crate) fn is_willing(&self) -> bool {
        let has_room = *self.disk.borrow() == DiskLevel::Normal;
        has_room && self.refusal.check().is_ok() && !self.tasks.is_closed() && !self.is_recovering()
    }

    /// Refuses a leader's entries while the disk has no room for them. A refusal is as good as a lost message.
    pub(crate) fn check_room(&self, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), tonic::Status> {
        if request.entries.is_empty() || *self.disk.borrow() < DiskLevel::Exhausted {
            return Ok(());
        }
        let reason = format!("the log's disk on node {} is full: only votes and purge records are written", self.node);
        Err(tonic::Status::resource_exhausted(reason))
    }

    /// Refuses a leader's snapshot while the disk has no room for it: openraft stops a group for good whose snapshot cannot be
    /// written, and the node with it. While what this returns is held, no other snapshot takes the room.
    pub(crate) async fn room_for_snapshot(&self, bytes: u64) -> Result<Option<MutexGuard<'_, ()>>, tonic::Status> {
        if *self.disk.borrow() == DiskLevel::Normal {
            return Ok(None);
        }
        let turn = self.snapshots.turn().await;
        let (takes, left) = (self.snapshots.taken_by(bytes), self.snapshots.left());
        if takes <= left {
            self.snapshots.took(takes);
            return Ok(Some(turn));
        }
        let reason = format!(
            "the log's disk on node {} is full: a snapshot may take {takes} bytes of it for a while, {left} are left",
            self.node
        );
        Err(tonic::Status::resource_exhausted(reason))
    }

    /// Refuses a leader's log that is not the one of what was committed here. The others lost entries that this replica
    /// holds and went on without it (`cluster recover --accept-data-loss`); openraft would take all up to its committed
    /// index for equal, and acknowledge what it does not have. The node stops: it was given up.
    pub(crate) fn check_history(&self, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), tonic::Status> {
        let (own_term, committed) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.current_term, metrics.local_committed)
        };
        // A leader that was deposed is told so by openraft.
        let Some(committed) = committed.filter(|_| request.vote.leader_id.term >= own_term) else { return Ok(()) };
        let shared =
            request.entries.iter().map(|entry| entry.log_id).take_while(|id| id.index <= committed.index).last();
        let shared = shared.or(request.prev_log_id.filter(|id| id.index <= committed.index));
        // Logs that agree at an index agree before it.
        let Some(theirs) = shared.filter(|theirs| *theirs != committed) else { return Ok(()) };
        let own = self.log.term_at(theirs.index).ok().flatten();
        let Some(own) = own.filter(|own| *own != theirs.leader_id.term) else { return Ok(()) };
        let reason = format!(
            "entry {} of group {} was committed here in term {own}, and its leader has one of term {} there: the others lost \
             entries and went on without this node (`signaldb cluster recover --accept-data-loss`). It must not come back \
             under its id",
            theirs.index, self.id, theirs.leader_id.term
        );
        self.peers.refuse(reason.clone());
        Err(tonic::Status::unavailable(reason))
    }

    /// Reads appends from the log, `from` to `to` inclusive, until about `bytes_max`; returns where to go on. Blocking.
    ///
    /// # Errors
    /// When the log does not hold an entry, or holds one that is no command.
    pub fn read_appends(&self, from: u64, to: u64, bytes_max: usize) -> Result<(Vec<(u64, Append)>, u64), ReadError> {
        let failed = |reason: String| ReadError::Unavailable { group: self.id.0, reason };
        let entries = self.log.read_all(from, to, bytes_max).map_err(|error| failed(error.to_string()))?;
        let next = entries.last().map_or(to, |entry| entry.log_id.index) + 1;
        let mut appends = Vec::new();
        for entry in entries {
            let openraft::EntryPayload::Normal(encoded) = entry.payload else { continue };
            if let Command::Append(append) = Command::decode(&encoded.0).map_err(|error| failed(error.to_string()))? {
                appends.push((entry.log_id.index, append));
            }
        }
        Ok((appends, next))
    }

    /// Notes that the leader called just now, for [`Self::has_leader`].
    pub(crate) fn heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::time::Instant::now());
    }

    /// Whether a leader is there, by what was heard lately and not by whom was elected once.
    pub(crate) fn has_leader(&self) -> bool {
        let seen = self.leadership();
        if self.level == AckLevel::LocalFsync || !seen.here {
            let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let recent = heard.is_some_and(|at| at.elapsed() < self.silence_max);
            return seen.here || (seen.leader.is_some() && recent);
        }
        let acked = self.raft.metrics().borrow_watched().last_quorum_acked;
        acked.is_some_and(|acked| acked.elapsed() < self.silence_max)
    }

    /// The index that a strong read must see: every write acknowledged before the call is at or below it.
    ///
    /// # Errors
    /// [`ReadError::NoLeader`] when no node can prove that it leads.
    pub async fn read_index(&self) -> Result<u64, ReadError> {
        let until = tokio::time::Instant::now() + READ_TIMEOUT;
        loop {
            let seen = self.leadership();
            let error = match seen.leader {
                _ if seen.here => match self.read_index_here().await {
                    Ok(index) => return Ok(index),
                    Err(error) => error,
                },
                Some(leader) if leader != self.node => {
                    let request = peer::ReadIndexRequest { group: self.id.0 };
                    let timeout = Duration::from_secs(2);
                    let answer = self.peers.call(leader, Lane::Control, "ReadIndex", &request, timeout).await;
                    match answer {
                        Ok(peer::ReadIndexResponse { index }) => return Ok(index),
                        Err(status) => ReadError::Unavailable { group: self.id.0, reason: status.message().to_owned() },
                    }
                }
                _ => ReadError::NoLeader { group: self.id.0 },
            };
            if tokio::time::Instant::now() >= until {
                return Err(error);
            }
            tokio::select! {
                () = tokio::time::sleep(LEADER_POLL) => {}
                Ok(_) = self.leadership_change(seen) => {}
            }
        }
    }

    /// The same, as the leader.
    ///
    /// # Errors
    /// [`ReadError::NoLeader`] when this node cannot prove that it leads.
    pub async fn read_index_here(&self) -> Result<u64, ReadError> {
        let group = self.id.0;
        // It leads, but the incarnation that says so is not everybody's yet.
        if self.is_recovering() {
            return Err(ReadError::NoLeader { group });
        }
        if mutation::active(Mutation::StaleStrongRead) {
            return Ok(self.status().applied_index);
        }
        let linearizer = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await;
        match linearizer {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(_)) => Err(ReadError::NoLeader { group }),
            Err(error) => Err(ReadError::Unavailable { group, reason: error.to_string() }),
        }
    }

    /// Asks another voter to lead, of the `willing` ones the one that is furthest; waits until somebody else does, or
    /// `timeout`.
    pub(crate) async fn hand_over(&self, willing: &BTreeSet<u64>, timeout: Duration) -> Result<(), String> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        if !metrics.state.is_leader() {
            return Ok(());
        }
        let others = metrics.replication.iter().flatten().filter(|(node, _)| willing.contains(node));
        let Some((target, _)) = others.max_by_key(|(_, matched)| matched.map(|id| id.index)) else { return Ok(()) };
        self.transfer(*target, timeout).await
    }

    /// Whether a follower has nearly everything and answered lately: leadership that goes elsewhere is an outage.
    pub(crate) fn is_close_behind(&self, node: NodeId) -> bool {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let matched = metrics.replication.iter().flatten().find(|(follower, _)| **follower == node.0);
        let matched = matched.and_then(|(_, matched)| matched.map(|id| id.index));
        let answered = metrics.heartbeat.iter().flatten().find(|(follower, _)| **follower == node.0);
        let answered = answered.and_then(|(_, at)| *at).is_some_and(|at| at.elapsed() < self.silence_max);
        answered && matched.is_some_and(|matched| metrics.last_log_index.unwrap_or(0) <= matched + LAG_MAX)
    }

    /// Asks `target` to lead, as the leader; waits until this node does not lead, or `timeout`.
    ///
    /// # Errors
    /// When it still leads then, or the group stopped.
    pub async fn transfer(&self, target: u64, timeout: Duration) -> Result<(), String> {
        self.raft.trigger().transfer_leader(target).await.map_err(|error| error.to_string())?;
        let moved = |metrics: &openraft::RaftMetrics<crate::types::TypeConfig>| !metrics.state.is_leader();
        let waited = self.raft.wait(Some(timeout)).metrics(moved, "another leader").await;
        waited.map(drop).map_err(|error| error.to_string())
    }

    /// Looks at the replicated state as of the last applied entry.
    pub fn with_state<T>(&self, look: impl FnOnce(&GroupState) -> T) -> T {
        self.shared.with_state(look)
    }

    pub fn is_leader(&self) -> bool {
        self.raft.metrics().borrow_watched().state.is_leader()
    }

    pub fn term(&self) -> u64 {
        self.raft.metrics().borrow_watched().current_term
    }

    /// `None` when the group works; else why it stopped for good.
    pub fn failure(&self) -> Option<String> {
        let failed = self.raft.metrics().borrow_watched().running_state.as_ref().err().map(ToString::to_string);
        failed.or_else(|| self.panicked.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Counts elections, and notices a core that panics: it changes no metrics, its channels close, that is all.
    fn watch_core(self: &Arc<Self>) {
        let group = Arc::clone(self);
        let mut metrics = self.raft.server_metrics();
        self.tasks.spawn(async move {
            let mut seen = SeenLeadership::since(group.log.saved_term());
            loop {
                group.meters.note_leadership(&mut seen, group.leadership());
                tokio::select! {
                    () = group.stop.cancelled() => return,
                    changed = metrics.changed() => if changed.is_err() {
                        let reason = format!("the core of group {} is gone: it panicked", group.id);
                        *group.panicked.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                        return;
                    },
                }
            }
        });
    }

    pub fn status(&self) -> GroupStatus {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let applied = metrics.last_applied.map_or(0, |id| id.index);
        let flushed = self.with_state(|state| {
            let unflushed = state.tables.values().filter(|table| table.last_append > table.watermark);
            unflushed.map(|table| table.watermark).min().unwrap_or(applied)
        });
        let membership = metrics.membership_config.membership();
        GroupStatus {
            group: self.id.0,
            leader: metrics.current_leader,
            term: metrics.current_term,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            commit_index: metrics.local_committed.map_or(0, |id| id.index),
            applied_index: applied,
            synced_index: self.quorum_synced_index(),
            flushed_index: flushed,
            purged_index: metrics.purged.map_or(0, |id| id.index),
            state: if self.is_recovering() {
                "recovering".to_owned()
            } else if self.halted().is_some() {
                "halted".to_owned()
            } else {
                format!("{:?}", metrics.state).to_lowercase()
            },
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
        }
    }

    pub(crate) async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = self.id.0, %error, "group did not stop cleanly");
        }
    }
}

fn leadership(metrics: &openraft::metrics::RaftServerMetrics<crate::types::TypeConfig>) -> Leadership {
    Leadership {
        term: metrics.vote.leader_id.term,
        leader: metrics.current_leader.map(NodeId),
        here: metrics.state.is_leader(),
    }
}

fn raft_config(id: GroupId, config: &GroupConfig) -> Result<openraft::Config, String> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: format!("group-{id}"),
        heartbeat_interval: millis(config.heartbeat_interval),
        heartbeat_min_interval: Some(0),
        election_timeout_min: millis(config.election_timeout.0),
        election_timeout_max: millis(config.election_timeout.1),
        max_payload_entries: 4096,
        // Snapshots come at flush cuts, purges after them, both by hand.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
        // A leader that hears nobody falls silent now and then, so that the others can elect.
        quorum_loss_probe_interval: Some(2 * millis(config.election_timeout.1)),
        // A restored leader could commit what it lost (DESIGN section 3, R4).
        enable_leader_restore: Some(mutation::active(Mutation::LeaderRestore)),
        allow_log_reversion: Some(true),
        removed_leader_step_down: openraft::StepDownPolicy::Never,
        ..Default::default()
    }
    .validate()
    .map_err(|error| error.to_string())
}
