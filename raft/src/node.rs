//! All groups of one process: the meta group, the data groups, and which tenant lives where.
//!
//! A cluster forms once: when all first voters answer and none has an identity (DESIGN section 4). The meta group comes
//! first; what it agrees on at the founding names the data groups.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use signaldb_model::{Clock, GroupId, NodeId, TableId, TenantId};
use signaldb_wal::{LogIo, Wal, WalConfig, WalStats};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xxhash_rust::xxh3::xxh3_64;

use crate::admission::{Admission, Refusal, Refuse};
use crate::blocking;
use crate::command::{Append, Command};
use crate::disk::{DiskLevel, SnapshotRoom};
use crate::error::{OpenError, ReadError, TransferError, WriteError};
use crate::forward::Forwarder;
use crate::group::{Group, GroupConfig, GroupDeps, GroupStatus, RecoverError, Recovered, watch_sync};
use crate::known::{Known, KnownStarts, Starts, learn};
use crate::peers::{Dial, Peers, PeersConfig, Tcp};
use crate::recovery::{StartEpoch, StartHistory};
use crate::sink::ApplySink;
use crate::state::GroupState;
use crate::state_store::StateStore;
use crate::types::Peer;

mod admittance;
mod balance;
mod formation;
mod secret;
mod start;

pub use secret::ClusterSecret;

/// How long a stopping node waits for others to take its leaderships.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long writes in flight may take when the node stops.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Settings of the groups of a node.
#[derive(Debug, Clone)]
pub struct GroupsConfig {
    /// Where peers reach this node, `host:port`.
    pub address: String,
    pub wal_dir: PathBuf,
    /// Names this boot of the machine: another one means that the page cache is gone.
    pub boot_id: String,
    pub wal: WalConfig,
    /// Data groups of a new cluster; an existing one keeps what it was founded with.
    pub data_groups: u32,
    pub heartbeat_interval: Duration,
    pub election_timeout: (Duration, Duration),
    /// Flushed log is kept this long before it is purged, as insurance against a lying catalog or store.
    pub purge_lag: Duration,
    /// Beyond this many bytes of log the lag is ignored.
    pub purge_lag_bytes_max: u64,
    /// How often a group looks whether it keeps the oldest log segment alive without need.
    pub trim_interval: Duration,
    /// Data groups of several voters acknowledge at `quorum-fsync` instead of `quorum`.
    pub fsync: bool,
}

/// What the cluster agreed on when it was founded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// Random; names the cluster in Iceberg properties and seeds the request digests.
    pub cluster_id: String,
    /// Written into every store and catalog (DESIGN section 4).
    pub store_id: String,
    pub data_groups: u32,
    /// First voters of every group; empty for a single node.
    #[serde(default)]
    voters: BTreeMap<u64, Peer>,
    /// `None` in clusters that were founded before there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<ClusterSecret>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum MetaCommand {
    Found(Founding),
    /// The groups of a tenant from this epoch on.
    Place {
        tenant: TenantId,
        groups: Vec<u32>,
        epoch: u64,
    },
    /// A node runs: who does not remember this start of its disk is an older copy.
    Started {
        node: u64,
        disk_id: String,
        epoch: StartEpoch,
    },
    /// This start of a node ended with a failed write or fsync.
    Poisoned {
        node: u64,
        disk_id: String,
        epoch: StartEpoch,
    },
}

/// State of the meta group, rebuilt from its commands.
#[derive(Debug, Default)]
struct Meta {
    founding: Option<Founding>,
    placements: BTreeMap<TenantId, Vec<u32>>,
    starts: Starts,
}

/// A node as this one sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    pub id: NodeId,
    pub address: String,
    /// `ready`, `not ready` (this node alone knows that of itself) or `unreachable`.
    pub state: &'static str,
}

/// The log of this node, open, before any group is: peers may already ask who this is.
#[derive(Debug)]
pub struct OpenLog {
    wal: Arc<Wal>,
    store: Arc<dyn StateStore>,
    peers: Arc<Peers>,
    decisions: start::Decisions,
    /// Peers that did not say what they know of this node.
    silent: BTreeSet<NodeId>,
    /// Number of the last poisoned start that the decisions account for.
    settled: u64,
}

impl OpenLog {
    /// With peers, asks those that answer whether this disk may go on under its node id, before anything is changed.
    ///
    /// # Errors
    /// A damaged log, or one that does not belong to the state store, stops the start and is named; so does a disk that
    /// a peer knows to be an older copy.
    pub async fn open(
        config: &GroupsConfig,
        peers: PeersConfig,
        io: Arc<dyn LogIo>,
        store: Arc<dyn StateStore>,
    ) -> Result<Self, OpenError> {
        Box::pin(Self::open_over(config, peers, io, store, Arc::new(Tcp))).await
    }

    /// The same over a network of the caller's.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub async fn open_over(
        config: &GroupsConfig,
        peers: PeersConfig,
        io: Arc<dyn LogIo>,
        store: Arc<dyn StateStore>,
        dial: Arc<dyn Dial>,
    ) -> Result<Self, OpenError> {
        let alone = peers.addresses.len() <= 1;
        let mut start = read_start(config, &io, alone).await?;
        let known = KnownStarts::load(store.as_ref())?;
        let mut silent = BTreeSet::new();
        // Of a new disk, formation finds out whether its id is taken.
        if let Some(own) = start.identity().filter(|_| !alone) {
            let asked = admittance::ask_at_start(&peers, &dial, &own, start.settled()).await?;
            // A start that was told too late exits for that; the next one knows even if nobody answers it either.
            let remembered = known.poisoned(peers.node.0, &own, start.settled());
            start.tell(asked.poisoned.max(remembered));
            silent = asked.silent;
        }
        let settled = start.settled();
        let (wal, decisions, starts) = open_wal(config, io, start).await?;
        check_disk(store.as_ref(), wal.disk_id())?;
        let peers = Arc::new(Peers::new(peers, wal.disk_id().to_owned(), starts, known).over(dial));
        Ok(Self { wal, store, peers, decisions, silent, settled })
    }

    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }
}

/// The open groups.
pub struct Groups {
    wal: Arc<Wal>,
    peers: Arc<Peers>,
    meta_group: Arc<Group>,
    meta: Arc<RwLock<Meta>>,
    data: BTreeMap<GroupId, Arc<Group>>,
    founding: Founding,
    address: String,
    refusal: Refusal,
    disk: watch::Sender<DiskLevel>,
    snapshots: Arc<SnapshotRoom>,
    admission: Arc<Admission>,
    waiting: Arc<Admission>,
    forwarder: Arc<Forwarder>,
    tasks: TaskTracker,
    stop: CancellationToken,
    stop_balancing: CancellationToken,
    poison_told: AtomicBool,
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("founding", &self.founding).finish_non_exhaustive()
    }
}

impl Groups {
    /// Founds or joins the cluster if this is the first start, and replays every group into `sink`. With peers, their
    /// calls must be served meanwhile ([`crate::PeerService`]), and this waits until the cluster is founded.
    ///
    /// # Errors
    /// A damaged snapshot, a configuration that does not fit what the disk holds, or a cluster that knows this node by
    /// another disk stops the start and is named.
    pub async fn open(
        log: OpenLog,
        config: GroupsConfig,
        clock: Arc<dyn Clock>,
        sink: Arc<dyn ApplySink>,
    ) -> Result<Self, OpenError> {
        let OpenLog { wal, store, peers, decisions, silent, settled } = log;
        let decision = |group: GroupId| decisions.of(group);
        let disk = watch::Sender::new(DiskLevel::Normal);
        let deps = GroupDeps {
            wal: Arc::clone(&wal),
            snapshots: Arc::new(SnapshotRoom::new(Arc::clone(&store))),
            store,
            clock,
            node_admission: Arc::new(Admission::of_node()),
            waiting: Arc::new(Admission::of_node()),
            refusal: Refusal::default(),
            disk: disk.subscribe(),
            peers: Arc::clone(&peers),
            forwarder: Arc::new(Forwarder::new(Arc::clone(&peers))),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let group_config = GroupConfig {
            heartbeat_interval: config.heartbeat_interval,
            election_timeout: config.election_timeout,
            purge_lag: config.purge_lag,
            purge_lag_bytes_max: config.purge_lag_bytes_max,
            trim_interval: config.trim_interval,
            fsync: config.fsync,
        };
        let meta = Arc::new(RwLock::new(Meta::default()));
        let meta_sink = Arc::new(MetaSink { meta: Arc::clone(&meta), peers: Arc::clone(&peers) });
        let me = Peer { address: config.address.clone(), disk_id: peers.disk_id().to_owned() };
        let alone = peers.addresses().len() <= 1;
        let begun = wal.group_state(GroupId::META.0);
        let fresh = begun.range.is_none() && begun.purged.is_none();
        if fresh {
            peers.set_knows_itself();
        }
        let mut voters = match (alone, fresh) {
            (true, _) => BTreeMap::from([(peers.node().0, me)]),
            (false, true) => formation::form(&peers).await?,
            (false, false) => BTreeMap::new(),
        };
        peers.set_voters(formation::listed(&voters));
        let meta_group =
            Group::open(GroupId::META, &voters, decision(GroupId::META), &group_config, &deps, meta_sink).await?;
        if !fresh {
            let members = meta_group.members();
            formation::check_members(&peers, &members)?;
            peers.set_voters(formation::listed(&members));
            peers.set_knows_itself();
            voters = members;
        }
        if !alone {
            let admittance = admittance::Admittance {
                peers: Arc::clone(&peers),
                meta_group: Arc::clone(&meta_group),
                meta: Arc::clone(&meta),
                store: Arc::clone(&deps.store),
                silent,
                settled,
                stored: Starts::new(),
            };
            deps.tasks.spawn(admittance.run(deps.stop.clone()));
        }
        let founding = found(&meta_group, &meta, &config, &voters, &peers).await?;
        let mut data = BTreeMap::new();
        for id in (1..=founding.data_groups).map(GroupId) {
            let voters = founding.voters_or(&voters);
            let group = Group::open(id, voters, decision(id), &group_config, &deps, Arc::clone(&sink)).await?;
            data.insert(id, group);
        }
        let stop_balancing = deps.stop.child_token();
        if !alone {
            let groups: Vec<_> = std::iter::once(&meta_group).chain(data.values()).cloned().collect();
            deps.tasks.spawn(watch_sync(groups.clone(), deps.stop.clone()));
            deps.tasks.spawn(balance::run(groups, Arc::clone(&peers), disk.subscribe(), stop_balancing.clone()));
        }
        Ok(Self {
            wal,
            peers,
            meta_group,
            meta,
            data,
            founding,
            address: config.address,
            refusal: deps.refusal,
            disk,
            snapshots: deps.snapshots,
            admission: deps.node_admission,
            waiting: deps.waiting,
            forwarder: deps.forwarder,
            tasks: deps.tasks,
            stop: deps.stop,
            stop_balancing,
            poison_told: AtomicBool::new(false),
        })
    }

    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Rows that other nodes send to the groups that this one leads are refused while `refuse` says why.
    pub fn refuse_when(&self, refuse: Box<Refuse>) {
        self.refusal.set(refuse);
    }

    /// What whoever watches the log's disk found.
    pub fn set_disk_level(&self, level: DiskLevel) {
        self.disk.send_if_modified(|known| std::mem::replace(known, level) != level);
    }

    /// What snapshots may take of the log's disk from now on, bytes; without bound unless it is called, as it is where they are on
    /// another disk. It counts while the level is not [`DiskLevel::Normal`].
    pub fn set_room_for_snapshots(&self, bytes: u64) {
        self.snapshots.set_left(bytes);
    }

    pub fn disk_level(&self) -> DiskLevel {
        *self.disk.borrow()
    }

    /// The data groups without whose entries the oldest log segment could go. The meta group is cut by its leader.
    pub fn pinning_groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.data.values().filter(move |group| self.wal.pins_oldest_segment(group.id().0))
    }

    pub fn founding(&self) -> &Founding {
        &self.founding
    }

    pub fn group(&self, id: GroupId) -> Option<Arc<Group>> {
        self.data.get(&id).cloned()
    }

    pub fn data_groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.data.values()
    }

    /// The groups that ever held rows of `tenant`; empty before its first write.
    pub fn homes(&self, tenant: &TenantId) -> Vec<Arc<Group>> {
        let meta = self.meta.read().unwrap_or_else(PoisonError::into_inner);
        let ids = meta.placements.get(tenant).map(Vec::as_slice).unwrap_or_default();
        ids.iter().filter_map(|id| self.data.get(&GroupId(*id))).cloned().collect()
    }

    /// The same, as of now: a tenant that another node has placed just before is known. Empty only when the meta
    /// group's leader proves that the tenant has no groups.
    ///
    /// # Errors
    /// When the meta group has no leader that answers within `timeout`, or this node does not follow it in time.
    pub async fn homes_now(&self, tenant: &TenantId, timeout: Duration) -> Result<Vec<Arc<Group>>, ReadError> {
        let known = self.homes(tenant);
        // Placements are not moved: one that is known is current.
        if !known.is_empty() {
            return Ok(known);
        }
        let followed = async {
            let index = self.meta_group.read_index().await?;
            self.meta_group.wait_applied(index, timeout).await
        };
        let late = |_| {
            let reason = format!("no leader answered within {timeout:?}");
            Err(ReadError::Unavailable { group: GroupId::META.0, reason })
        };
        tokio::time::timeout(timeout, followed).await.unwrap_or_else(late)?;
        Ok(self.homes(tenant))
    }

    /// The group that takes a request of `tenant`; places the tenant at its first write.
    ///
    /// # Errors
    /// As for any write to the meta group.
    pub async fn home(&self, tenant: &TenantId, timeout: Duration) -> Result<Arc<Group>, WriteError> {
        if let Some(group) = self.homes(tenant).into_iter().next() {
            return Ok(group);
        }
        let group = rendezvous(tenant, self.founding.data_groups);
        let place = MetaCommand::Place { tenant: tenant.clone(), groups: vec![group.0], epoch: 1 };
        let index = self.meta_group.propose_index(&meta_command(&place), timeout).await?;
        let unknown = |error: ReadError| WriteError::Unknown(error.to_string());
        self.meta_group.wait_applied(index, timeout).await.map_err(unknown)?;
        self.homes(tenant).into_iter().next().ok_or_else(|| WriteError::Unknown("the tenant was not placed".to_owned()))
    }

    /// Gives up every leadership, for good, one group after the other; groups that nobody takes are left after a while.
    pub async fn hand_over(&self) {
        if self.peers.addresses().len() <= 1 {
            return;
        }
        self.stop_balancing.cancel();
        self.peers.set_stopping();
        self.tell_poison().await;
        let willing = formation::willing(&self.peers).await;
        let willing: BTreeSet<u64> = willing.into_iter().map(|node| node.0).collect();
        let willing = &willing;
        let groups = std::iter::once(&self.meta_group).chain(self.data.values());
        let moves = groups.map(|group| async move {
            if let Err(error) = group.hand_over(willing, HAND_OVER_TIMEOUT).await {
                tracing::warn!(group = %group.id(), %error, "leadership was not handed over");
            }
        });
        futures::future::join_all(moves).await;
    }

    /// Gives a leadership of this node to `to`, or to any voter that would take it; says to whom. Somebody else may lead by
    /// then: leaderships are spread again. `None`: there is no such group.
    ///
    /// # Errors
    /// Why nobody was asked, or that nobody took it.
    pub async fn transfer_leader(&self, group: GroupId, to: Option<NodeId>) -> Option<Result<NodeId, TransferError>> {
        let group = if group == GroupId::META { Some(&self.meta_group) } else { self.data.get(&group) };
        Some(self.give(group?, to).await)
    }

    async fn give(&self, group: &Group, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        let id = group.id().0;
        let leadership = group.leadership();
        if !leadership.here {
            return Err(TransferError::NotLeader { group: id, leader: leadership.leader });
        }
        // Asked first: openraft does not take a transfer back, and a group would wait for a node that may not lead.
        let willing = formation::willing(&self.peers).await;
        let may = |node: &NodeId| to.is_none_or(|to| to == *node) && group.is_close_behind(*node);
        let to = willing.into_iter().find(may).ok_or(TransferError::Nobody { group: id })?;
        let taken = group.transfer(to.0, HAND_OVER_TIMEOUT).await;
        taken.map(|()| to).map_err(|reason| TransferError::NotTaken { group: id, to, reason })
    }

    /// Lets a group go on past what it lost; see [`Group::recover`]. `None`: there is no such group.
    ///
    /// # Errors
    /// Why nothing was done.
    pub async fn recover(&self, group: GroupId, accept: bool) -> Option<Result<Recovered, RecoverError>> {
        let group = if group == GroupId::META { Some(&self.meta_group) } else { self.data.get(&group) };
        Some(group?.recover(accept).await)
    }

    /// Tells the peers, once, that the log is poisoned, if it is: the mark beside it may be lost with it.
    async fn tell_poison(&self) {
        if self.wal.poisoned().is_some() && !self.poison_told.swap(true, Ordering::Relaxed) {
            admittance::tell_poison(&self.peers).await;
        }
    }

    pub fn statuses(&self) -> Vec<GroupStatus> {
        std::iter::once(&self.meta_group).chain(self.data.values()).map(|group| group.status()).collect()
    }

    /// The nodes and whether they can be reached from here.
    pub async fn nodes(&self) -> Vec<NodeStatus> {
        let here = || if self.not_ready().is_empty() { "ready" } else { "not ready" };
        if self.peers.addresses().len() <= 1 {
            return vec![NodeStatus { id: self.peers.node(), address: self.address.clone(), state: here() }];
        }
        let ask = |id: NodeId, address: String| async move {
            if id == self.peers.node() {
                return NodeStatus { id, address, state: here() };
            }
            let state = if formation::answers(&self.peers, id).await { "ready" } else { "unreachable" };
            NodeStatus { id, address, state }
        };
        futures::future::join_all(self.peers.addresses().iter().map(|(id, address)| ask(*id, address.clone()))).await
    }

    /// Why this node cannot acknowledge writes; empty when it can.
    pub fn not_ready(&self) -> Vec<String> {
        if let Some(poison) = self.wal.poisoned() {
            return vec![format!("log: {poison}")];
        }
        let leaderless = |group: &&Arc<Group>| !group.has_leader() || group.failure().is_some();
        let groups = std::iter::once(&self.meta_group).chain(self.data.values()).filter(leaderless);
        let leaderless = groups.map(|group| format!("group {} has no leader", group.id()));
        let all = || std::iter::once(&self.meta_group).chain(self.data.values());
        let recovering = all().filter(|group| group.is_recovering());
        let recovering = recovering.map(|group| format!("group {} is recovering", group.id()));
        let halted = all().filter_map(|group| Some(format!("group {} halted: {}", group.id(), group.halted()?)));
        leaderless.chain(recovering).chain(halted).collect()
    }

    /// The failure after which the process must stop, if there was one.
    pub fn failure(&self) -> Option<String> {
        let poison = self.wal.poisoned().map(|poison| format!("the log failed: {poison}"));
        let refused = || self.peers.refused().map(str::to_owned);
        poison
            .or_else(refused)
            .or_else(|| std::iter::once(&self.meta_group).chain(self.data.values()).find_map(|group| group.failure()))
    }

    /// Brings the gauges of log and groups up to date, for whoever reads metrics next.
    pub fn record_metrics(&self) {
        signaldb_wal::metrics::record(&self.wal);
        crate::metrics::record_node(&self.admission, &self.waiting);
        std::iter::once(&self.meta_group).chain(self.data.values()).for_each(|group| group.record_metrics());
    }

    pub fn wal_stats(&self) -> WalStats {
        self.wal.stats()
    }

    /// Refuses new writes, gives those in flight a moment, stops the groups and syncs the log.
    pub async fn close(&self) {
        self.tasks.close();
        self.stop.cancel();
        // Writes of a leader without a quorum end only with their group.
        let in_flight = tokio::time::timeout(CLOSE_TIMEOUT, self.tasks.wait()).await;
        // Nobody is left to wait for what other nodes lead.
        self.forwarder.close().await;
        let groups = std::iter::once(&self.meta_group).chain(self.data.values());
        futures::future::join_all(groups.map(|group| group.shutdown())).await;
        if in_flight.is_err() && tokio::time::timeout(CLOSE_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!("writes in flight did not end");
        }
        // Whatever happens to the machine from here on, nothing is lost.
        let groups = std::iter::once(&self.meta_group).chain(self.data.values());
        let settle = groups.map(|group| async move {
            if let Err(error) = group.settle(CLOSE_TIMEOUT).await {
                tracing::warn!(group = %group.id(), %error, "the log is not marked as synced");
            }
        });
        futures::future::join_all(settle).await;
        let wal = Arc::clone(&self.wal);
        if blocking::run(wal.is_threaded(), move || wal.close()).await.is_err() {
            tracing::error!("closing the log panicked");
        }
        self.tell_poison().await;
    }
}

async fn read_start(config: &GroupsConfig, io: &Arc<dyn LogIo>, alone: bool) -> Result<start::Start, OpenError> {
    let (config, io, blocks) = (config.clone(), Arc::clone(io), io.workers().is_none());
    let read = move || start::Start::read(io.as_ref(), &config.wal_dir, &config.boot_id, alone, config.fsync);
    let read = blocking::run(blocks, read).await;
    read.map_err(|error| OpenError::Group { group: 0, reason: error.to_string() })?
}

async fn open_wal(
    config: &GroupsConfig,
    io: Arc<dyn LogIo>,
    start: start::Start,
) -> Result<(Arc<Wal>, start::Decisions, StartHistory), OpenError> {
    let (config, disk_id, blocks) = (config.clone(), uuid::Uuid::new_v4().to_string(), io.workers().is_none());
    let open = move || {
        let mut decisions = start::Decisions::default();
        let wal = Wal::open(Arc::clone(&io), &config.wal_dir, config.wal.clone(), &disk_id, |found| {
            decisions = start.decide(found)?;
            Ok(decisions.records())
        })?;
        let starts = start.note_boot(io.as_ref())?;
        Ok::<_, OpenError>((Arc::new(wal), decisions, starts))
    };
    let opened = blocking::run(blocks, open).await;
    let (wal, decisions, starts) =
        opened.map_err(|error| OpenError::Group { group: 0, reason: error.to_string() })??;
    let stats = wal.stats();
    tracing::info!(segments = stats.segments, bytes = stats.bytes, epoch = starts.number(), "WAL replay begins");
    Ok((wal, decisions, starts))
}

/// Log and state store belong together: one without the other has lost acknowledged writes.
fn check_disk(store: &dyn StateStore, disk_id: &str) -> Result<(), OpenError> {
    const KEY: &[u8] = b"wal-disk-id";
    match store.get(KEY)? {
        None => Ok(store.put(&[(KEY, disk_id.as_bytes())])?),
        Some(known) if known == disk_id.as_bytes() => Ok(()),
        Some(known) => {
            let known = String::from_utf8_lossy(&known).into_owned();
            let reason = format!(
                "the log is of disk {disk_id}, the state store of disk {known}: the log was deleted, moved or replaced; \
                 put it back, or start with an empty data directory"
            );
            Err(OpenError::Group { group: 0, reason })
        }
    }
}

/// Waits for what the cluster was founded with; its first leader founds it.
async fn found(
    group: &Group,
    meta: &RwLock<Meta>,
    config: &GroupsConfig,
    voters: &BTreeMap<u64, Peer>,
    peers: &Peers,
) -> Result<Founding, OpenError> {
    let id = || uuid::Uuid::new_v4().to_string();
    let several = if voters.len() > 1 { voters.clone() } else { BTreeMap::new() };
    let founding = Founding {
        cluster_id: id(),
        store_id: id(),
        data_groups: config.data_groups,
        voters: several,
        secret: Some(ClusterSecret::random()),
    };
    let command = meta_command(&MetaCommand::Found(founding));
    loop {
        if let Some(founding) = meta.read().unwrap_or_else(PoisonError::into_inner).founding.clone() {
            return Ok(founding);
        }
        if let Some(reason) = group.failure().or_else(|| peers.refused().map(str::to_owned)) {
            return Err(OpenError::Group { group: 0, reason });
        }
        // Only who knows the voters founds: a node that starts again waits for the leader's log.
        if group.is_leader() && !voters.is_empty() {
            if let Err(error) = group.propose_index(&command, Duration::from_secs(10)).await {
                tracing::warn!(%error, "the cluster is not founded yet");
            }
            continue;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Founding {
    /// What data groups begin with.
    fn voters_or<'a>(&'a self, alone: &'a BTreeMap<u64, Peer>) -> &'a BTreeMap<u64, Peer> {
        if self.voters.is_empty() { alone } else { &self.voters }
    }
}

fn meta_command(command: &MetaCommand) -> Command {
    Command::Meta(serde_json::to_string(command).expect("a meta command is plain JSON"))
}

/// Rendezvous hash: the data group with the highest weight for the tenant.
fn rendezvous(tenant: &TenantId, data_groups: u32) -> GroupId {
    let weight = |group: u32| xxh3_64(format!("{tenant}/{group}").as_bytes());
    GroupId((1..=data_groups.max(1)).max_by_key(|group| weight(*group)).unwrap_or(1))
}

impl Meta {
    fn apply(&mut self, json: &str) {
        match serde_json::from_str(json) {
            // The first founding and the first placement win, whoever else proposed.
            Ok(MetaCommand::Found(founding)) => drop(self.founding.get_or_insert(founding)),
            Ok(MetaCommand::Place { tenant, groups, .. }) => drop(self.placements.entry(tenant).or_insert(groups)),
            Ok(MetaCommand::Started { node, disk_id, epoch }) => {
                learn(&mut self.starts, node, Known { disk_id, epoch: Some(epoch), poisoned: None });
            }
            Ok(MetaCommand::Poisoned { node, disk_id, epoch }) => {
                learn(&mut self.starts, node, Known { disk_id, epoch: None, poisoned: Some(epoch) });
            }
            Err(error) => tracing::error!(
                command = name_of(json),
                column = error.column(),
                "meta command of a newer version is ignored"
            ),
        }
    }
}

/// What a command calls itself, whatever it holds: a founding has a secret, which belongs into no log.
fn name_of(json: &str) -> String {
    let command = serde_json::from_str::<BTreeMap<String, serde::de::IgnoredAny>>(json).unwrap_or_default();
    command.into_keys().next().unwrap_or_default()
}

/// Follows the meta group.
struct MetaSink {
    meta: Arc<RwLock<Meta>>,
    /// Is told what the cluster has agreed on about the starts of the nodes.
    peers: Arc<Peers>,
}

impl MetaSink {
    fn tell_peers(&self, meta: &Meta) {
        meta.starts.iter().for_each(|(node, known)| self.peers.known().learn(*node, known.clone()));
    }
}

impl ApplySink for MetaSink {
    /// In one step: nobody may see a tenant without its groups in between.
    fn restored(&self, _group: GroupId, _applied: u64, state: &GroupState) {
        let mut meta = Meta::default();
        state.meta.iter().for_each(|json| meta.apply(json));
        self.tell_peers(&meta);
        *self.meta.write().unwrap_or_else(PoisonError::into_inner) = meta;
    }

    fn meta(&self, json: &str) {
        let mut meta = self.meta.write().unwrap_or_else(PoisonError::into_inner);
        meta.apply(json);
        self.tell_peers(&meta);
    }

    fn appended(&self, _group: GroupId, _index: u64, _append: Append) {}
    fn flushed(&self, _group: GroupId, _table: &TableId, _hi: u64, _version: i64, _location: &str) {}
    fn advanced(&self, _group: GroupId, _table: &TableId, _version: i64, _location: &str) {}
    fn applied(&self, _group: GroupId, _index: u64) {}
}

#[cfg(test)]
mod tests;
