//! All groups of one process: the meta group, the data groups, and which tenant lives where.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use signaldb_model::{Clock, GroupId, NodeId, TableId, TenantId};
use signaldb_wal::{LogIo, Wal, WalConfig, WalStats};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xxhash_rust::xxh3::xxh3_64;

use crate::admission::Admission;
use crate::command::{Append, Command};
use crate::error::{OpenError, WriteError};
use crate::group::{Group, GroupConfig, GroupDeps, GroupStatus};
use crate::sink::ApplySink;
use crate::state::GroupState;
use crate::state_store::StateStore;
use crate::types::Peer;

/// Settings of the groups of a node.
#[derive(Debug, Clone)]
pub struct GroupsConfig {
    pub node: NodeId,
    /// Where peers reach this node, `host:port`.
    pub address: String,
    pub wal_dir: PathBuf,
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
}

/// What the cluster agreed on when it was founded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// Random; names the cluster in Iceberg properties and seeds the request digests.
    pub cluster_id: String,
    /// Written into every store and catalog (DESIGN section 4).
    pub store_id: String,
    pub data_groups: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum MetaCommand {
    Found(Founding),
    /// The groups of a tenant from this epoch on.
    Place {
        tenant: TenantId,
        groups: Vec<u32>,
        epoch: u64,
    },
}

/// State of the meta group, rebuilt from its commands.
#[derive(Debug, Default)]
struct Meta {
    founding: Option<Founding>,
    placements: BTreeMap<TenantId, Vec<u32>>,
}

/// The open groups.
pub struct Groups {
    wal: Arc<Wal>,
    meta_group: Arc<Group>,
    meta: Arc<RwLock<Meta>>,
    data: BTreeMap<GroupId, Arc<Group>>,
    founding: Founding,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("founding", &self.founding).finish_non_exhaustive()
    }
}

impl Groups {
    /// Opens the log, founds the cluster if this is its first start, and replays every group into `sink`.
    ///
    /// # Errors
    /// A damaged log, snapshot or state store stops the start and is named.
    pub async fn open(
        config: GroupsConfig,
        io: Arc<dyn LogIo>,
        store: Arc<dyn StateStore>,
        clock: Arc<dyn Clock>,
        sink: Arc<dyn ApplySink>,
    ) -> Result<Self, OpenError> {
        let wal = open_wal(&config, io).await?;
        check_disk(store.as_ref(), wal.disk_id())?;
        let peer = Peer { address: config.address.clone(), disk_id: wal.disk_id().to_owned() };
        let deps = GroupDeps {
            wal: Arc::clone(&wal),
            store,
            clock,
            node_admission: Arc::new(Admission::of_node()),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let group_config = GroupConfig {
            heartbeat_interval: config.heartbeat_interval,
            election_timeout: config.election_timeout,
            purge_lag: config.purge_lag,
            purge_lag_bytes_max: config.purge_lag_bytes_max,
            trim_interval: config.trim_interval,
        };
        let meta = Arc::new(RwLock::new(Meta::default()));
        let meta_sink = Arc::new(MetaSink(Arc::clone(&meta)));
        let meta_group = Group::open(GroupId::META, config.node, peer.clone(), &group_config, &deps, meta_sink).await?;
        let founding = found(&meta_group, &meta, config.data_groups).await?;
        let mut data = BTreeMap::new();
        for id in (1..=founding.data_groups).map(GroupId) {
            let group = Group::open(id, config.node, peer.clone(), &group_config, &deps, Arc::clone(&sink)).await?;
            data.insert(id, Arc::new(group));
        }
        Ok(Self { wal, meta_group: Arc::new(meta_group), meta, data, founding, tasks: deps.tasks, stop: deps.stop })
    }

    pub fn founding(&self) -> &Founding {
        &self.founding
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
        self.meta_group.propose_index(&meta_command(&place), timeout).await?;
        self.homes(tenant).into_iter().next().ok_or_else(|| WriteError::Unknown("the tenant was not placed".to_owned()))
    }

    pub fn statuses(&self) -> Vec<GroupStatus> {
        std::iter::once(&self.meta_group).chain(self.data.values()).map(|group| group.status()).collect()
    }

    /// Why this node cannot acknowledge writes; empty when it can.
    pub fn not_ready(&self) -> Vec<String> {
        if let Some(poison) = self.wal.poisoned() {
            return vec![format!("log: {poison}")];
        }
        let leaderless = |group: &&Arc<Group>| !group.is_leader() || group.failure().is_some();
        let groups = std::iter::once(&self.meta_group).chain(self.data.values()).filter(leaderless);
        groups.map(|group| format!("group {} has no leader", group.id())).collect()
    }

    /// The failure after which the process must stop, if there was one.
    pub fn failure(&self) -> Option<String> {
        let poison = self.wal.poisoned().map(|poison| poison.to_string());
        poison.or_else(|| std::iter::once(&self.meta_group).chain(self.data.values()).find_map(|group| group.failure()))
    }

    pub fn wal_stats(&self) -> WalStats {
        self.wal.stats()
    }

    /// Refuses new writes, finishes those in flight, stops the groups and syncs the log.
    pub async fn close(&self) {
        self.tasks.close();
        self.stop.cancel();
        self.tasks.wait().await;
        for group in std::iter::once(&self.meta_group).chain(self.data.values()) {
            group.shutdown().await;
        }
        let wal = Arc::clone(&self.wal);
        if tokio::task::spawn_blocking(move || wal.close()).await.is_err() {
            tracing::error!("closing the log panicked");
        }
    }
}

async fn open_wal(config: &GroupsConfig, io: Arc<dyn LogIo>) -> Result<Arc<Wal>, OpenError> {
    let (dir, wal_config, disk_id) = (config.wal_dir.clone(), config.wal.clone(), uuid::Uuid::new_v4().to_string());
    let opened = tokio::task::spawn_blocking(move || Wal::open(io, &dir, wal_config, &disk_id)).await;
    let opened = opened.map_err(|error| OpenError::Group { group: 0, reason: error.to_string() })?;
    let wal = opened?;
    tracing::info!(segments = wal.stats().segments, bytes = wal.stats().bytes, "WAL replay begins");
    Ok(Arc::new(wal))
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

/// Reads what the cluster was founded with, or founds it.
async fn found(group: &Group, meta: &RwLock<Meta>, data_groups: u32) -> Result<Founding, OpenError> {
    let founded = || meta.read().unwrap_or_else(PoisonError::into_inner).founding.clone();
    if let Some(founding) = founded() {
        return Ok(founding);
    }
    let id = || uuid::Uuid::new_v4().to_string();
    let founding = Founding { cluster_id: id(), store_id: id(), data_groups };
    let command = meta_command(&MetaCommand::Found(founding));
    let failed = |reason: String| OpenError::Group { group: 0, reason };
    group.propose_index(&command, Duration::from_secs(60)).await.map_err(|error| failed(error.to_string()))?;
    founded().ok_or_else(|| failed("the cluster was not founded".to_owned()))
}

fn meta_command(command: &MetaCommand) -> Command {
    Command::Meta(serde_json::to_string(command).expect("a meta command is plain JSON"))
}

/// Rendezvous hash: the data group with the highest weight for the tenant.
fn rendezvous(tenant: &TenantId, data_groups: u32) -> GroupId {
    let weight = |group: u32| xxh3_64(format!("{tenant}/{group}").as_bytes());
    GroupId((1..=data_groups.max(1)).max_by_key(|group| weight(*group)).unwrap_or(1))
}

/// Follows the meta group.
struct MetaSink(Arc<RwLock<Meta>>);

impl ApplySink for MetaSink {
    fn restored(&self, _group: GroupId, _applied: u64, _state: &GroupState) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Meta::default();
    }

    fn meta(&self, json: &str) {
        let mut meta = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match serde_json::from_str(json) {
            // The first founding and the first placement win, whoever else proposed.
            Ok(MetaCommand::Found(founding)) => drop(meta.founding.get_or_insert(founding)),
            Ok(MetaCommand::Place { tenant, groups, .. }) => drop(meta.placements.entry(tenant).or_insert(groups)),
            Err(error) => tracing::error!(%error, json, "meta command of a newer version is ignored"),
        }
    }

    fn appended(&self, _group: GroupId, _index: u64, _append: Append) {}
    fn flushed(&self, _group: GroupId, _table: &TableId, _hi: u64, _version: i64, _location: &str) {}
    fn advanced(&self, _group: GroupId, _table: &TableId, _version: i64, _location: &str) {}
    fn applied(&self, _group: GroupId, _index: u64) {}
}

#[cfg(test)]
mod tests;
