//! The tenant's tables as one query sees them: views of its groups first, metadata second.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use signaldb_lake::{Lake, MemBatch, TableView, copies_of};
use signaldb_model::mutation::{self, Mutation};
use signaldb_model::{DatasetId, GroupId, NodeId, Position, TableId, TenantId};
use signaldb_raft::{Group, Groups};
use signaldb_signals::SignalTable;
use tokio::time::Instant;

use crate::engine::Consistency;
use crate::error::{QueryError, QueryErrorKind, lake_error, read_error, unavailable};
use crate::queries::Queries;
use crate::remote::{self, Lease, RemoteRows, ViewQuestion};
use crate::table::StoredTable;

#[cfg(feature = "testing")]
pub(crate) mod testing;

/// How long a query looks for the leaders of its groups.
pub(crate) const LEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an eventual read looks for a leader before it goes on without its rows.
const EVENTUAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long one leader may take to build its rows.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a leader is asked again.
pub(crate) const LEADER_POLL: Duration = Duration::from_millis(50);

/// How long a mutated query is held up between metadata and views: long enough for a flush.
const MUTATED_PAUSE: Duration = Duration::from_millis(500);

/// Takes the tenant's tables at the moment of one query (DESIGN section 7).
pub(crate) struct Snapshotter {
    pub(crate) lake: Lake,
    pub(crate) groups: Arc<Groups>,
    pub(crate) queries: Queries,
    pub(crate) tenant: TenantId,
    pub(crate) consistency: Consistency,
    pub(crate) min_position: Option<Position>,
    /// Authentication is off.
    pub(crate) open: bool,
    pub(crate) all_tenants: bool,
    pub(crate) deadline: Instant,
    /// Groups that an eventual read went on without.
    pub(crate) missing: Mutex<BTreeSet<u32>>,
}

impl Snapshotter {
    /// Views first, metadata second: then a flush that is in Iceberg and not yet applied is neither lost nor doubled.
    pub(crate) async fn table(&self, dataset: &DatasetId, table: SignalTable) -> Result<StoredTable, QueryError> {
        let id = TableId { tenant: self.tenant.clone(), dataset: dataset.clone(), code: table.code() };
        let homes = self.homes().await?;
        if let Some(position) =
            self.min_position.filter(|position| homes.iter().all(|home| home.id() != position.group))
        {
            let message = format!("position {position} is not of a group that holds rows of the tenant");
            return Err(QueryError::new(QueryErrorKind::Invalid, message));
        }
        let mutated = mutation::active(Mutation::ViewAfterMetadata);
        let too_early = if mutated { Box::pin(self.location_too_early(&id, table)).await? } else { None };
        let asked: Vec<GroupId> = homes.iter().map(|home| home.id()).collect();
        let mut views = Vec::new();
        for group in homes {
            let view = match self.view(&group, &id).await {
                Err(error) if self.may_miss() && error.kind == QueryErrorKind::Unavailable => {
                    self.miss(group.id());
                    continue;
                }
                view => view?,
            };
            views.extend(view.map(|view| (group, view)));
        }
        let catalog_reads = u64::from(views.iter().all(|(_, view)| view.version < 0));
        let newest = if mutated { Ok(too_early) } else { self.newest_location(&id, table, &views).await };
        let location = match newest {
            // Nobody flushed to it as far as the log knows; the catalog may know more, and cannot be asked.
            Err(error) if self.may_miss() && error.kind == QueryErrorKind::Unavailable => {
                asked.into_iter().for_each(|group| self.miss(group));
                None
            }
            location => location?,
        };
        let Some(location) = location else {
            let mut stored = StoredTable::new(table, Vec::new())?;
            for (_, view) in views {
                let above = view.watermark;
                view.rows_above(above, &mut stored);
            }
            return Ok(stored);
        };
        let metadata = self.lake.metadata_at(&location).await.map_err(lake_error)?;
        let mut stored = StoredTable::new(table, copies_of(&metadata))?;
        stored.catalog_reads = catalog_reads;
        let cluster_id = &self.groups.founding().cluster_id;
        for (group, view) in views {
            // The cut is the watermark of the metadata that is scanned, not the one that the view knew.
            let cut = self.lake.flushed_index(&metadata, cluster_id, group.id(), &id).map_err(lake_error)?;
            let cut = cut.max(view.floor);
            if cut < view.watermark && !mutated {
                let message = format!("table {} went back behind its watermark {}", table.name(), view.watermark);
                return Err(QueryError::new(QueryErrorKind::Unavailable, message));
            }
            view.rows_above(cut, &mut stored);
        }
        stored.files = self.lake.data_files(&metadata).await.map_err(lake_error)?;
        Ok(stored)
    }

    /// The groups that hold rows of the tenant. Where nobody can say that a tenant is new, the meta group is missing:
    /// its rows may be anywhere.
    async fn homes(&self) -> Result<Vec<Arc<Group>>, QueryError> {
        let timeout = if self.may_miss() { EVENTUAL_TIMEOUT } else { LEADER_TIMEOUT };
        match self.groups.homes_now(&self.tenant, timeout).await {
            Err(_) if self.may_miss() => {
                self.miss(GroupId::META);
                Ok(Vec::new())
            }
            homes => homes.map_err(read_error),
        }
    }

    /// What the group's leader, wherever it is, holds of a table; asked again while leadership moves.
    async fn view(&self, group: &Arc<Group>, id: &TableId) -> Result<Option<GroupView>, QueryError> {
        let min_index =
            self.min_position.filter(|position| position.group == group.id()).map_or(0, |asked| asked.index);
        let strong = self.consistency == Consistency::Strong;
        let until = Instant::now() + if self.may_miss() { EVENTUAL_TIMEOUT } else { LEADER_TIMEOUT };
        loop {
            let seen = group.leadership();
            let outcome = match seen.leader {
                _ if seen.here => self.view_here(group, id, strong, min_index).await,
                Some(leader) => {
                    let question = ViewQuestion {
                        group: group.id(),
                        table: id,
                        strong,
                        min_index,
                        keep: self.deadline.saturating_duration_since(Instant::now()),
                        may_miss: self.may_miss(),
                    };
                    tokio::select! {
                        outcome = self.view_at(leader, &question) => outcome,
                        // A leader that was replaced may never answer.
                        Ok(_) = group.leadership_change(seen) => Err(unavailable(format!("node {leader} was replaced"))),
                        () = tokio::time::sleep_until(until.min(Instant::now() + ASK_TIMEOUT)) => Err(unavailable(format!("node {leader} does not answer"))),
                    }
                }
                None => Err(unavailable(format!("group {} has no leader", group.id()))),
            };
            let error = match outcome {
                Err(error) if matches!(error.kind, QueryErrorKind::Unavailable | QueryErrorKind::Backlog) => error,
                Err(error) => return Err(error),
                Ok((view, whole)) => {
                    if !whole {
                        self.miss(group.id());
                    }
                    return Ok(view);
                }
            };
            if Instant::now() >= until {
                return Err(error);
            }
            tokio::select! {
                () = tokio::time::sleep(LEADER_POLL) => {}
                Ok(_) = group.leadership_change(seen) => {}
            }
        }
    }

    /// Whether the answer may lack the newest rows of a group, and say so.
    fn may_miss(&self) -> bool {
        self.consistency == Consistency::Eventual && self.min_position.is_none()
    }

    /// Has the answer say that it lacks the newest rows of a group.
    fn miss(&self, group: GroupId) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).insert(group.0);
    }

    /// The groups that the answer lacks the newest rows of.
    pub(crate) fn missing(&self) -> Vec<u32> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    async fn view_here(
        &self,
        group: &Group,
        id: &TableId,
        strong: bool,
        min_index: u64,
    ) -> Result<(Option<GroupView>, bool), QueryError> {
        let index = view_index(group, strong, min_index).await?;
        let (view, whole) = view_of(&self.lake, group.id(), id, index, self.may_miss()).await?;
        let view = view.map(|view| GroupView {
            watermark: view.watermark,
            floor: view.floor,
            version: view.version,
            location: view.location,
            rows: GroupRows::Here(view.batches),
        });
        Ok((view, whole))
    }

    async fn view_at(
        &self,
        leader: NodeId,
        question: &ViewQuestion<'_>,
    ) -> Result<(Option<GroupView>, bool), QueryError> {
        let peers = self.groups.peers();
        let view = remote::view(peers, leader, question).await.map_err(|status| QueryError::from_status(&status))?;
        let whole = !view.partial;
        if !view.found {
            return Ok((None, whole));
        }
        let (peers, runtime) = (Arc::clone(peers), tokio::runtime::Handle::current());
        let lease = Arc::new(Lease { peers, leader, view: view.view, runtime });
        let view = GroupView {
            watermark: view.watermark,
            floor: view.floor,
            version: view.version,
            location: view.location,
            rows: GroupRows::There(RemoteRows { lease, above: 0 }),
        };
        Ok((Some(view), whole))
    }

    /// Of a mutated build: where the metadata is before any view is taken.
    async fn location_too_early(&self, id: &TableId, table: SignalTable) -> Result<Option<String>, QueryError> {
        let location = self.newest_location(id, table, &[]).await;
        tokio::time::sleep(MUTATED_PAUSE).await;
        location
    }

    /// The newest metadata that any view names; the catalog is asked only while no view names one.
    async fn newest_location(
        &self,
        id: &TableId,
        table: SignalTable,
        views: &[(Arc<Group>, GroupView)],
    ) -> Result<Option<String>, QueryError> {
        let newest = views.iter().map(|(_, view)| view).max_by_key(|view| view.version);
        if let Some(view) = newest.filter(|view| view.version >= 0) {
            return Ok(Some(view.location.clone()));
        }
        self.lake.location(id, table).await.map_err(lake_error)
    }
}

/// What one group holds of a table.
struct GroupView {
    /// Rows up to here were in Iceberg.
    watermark: u64,
    /// Rows up to here are not expected in the table.
    floor: u64,
    /// Newest metadata known, -1 while there is none.
    version: i64,
    location: String,
    rows: GroupRows,
}

enum GroupRows {
    Here(Vec<MemBatch>),
    There(RemoteRows),
}

impl GroupView {
    fn rows_above(self, index: u64, table: &mut StoredTable) {
        match self.rows {
            GroupRows::Here(batches) => {
                table.rows.extend(batches.iter().filter_map(|batch| Some(batch.above(index)?.rows)));
            }
            GroupRows::There(rows) => table.remote.push(RemoteRows { above: index, ..rows }),
        }
    }
}

/// The index up to which the leader, which this node is, must have built its rows for a query.
pub(crate) async fn view_index(group: &Group, strong: bool, min_index: u64) -> Result<u64, QueryError> {
    let proven = match strong || min_index > 0 {
        true => group.read_index_here().await.map_err(read_error)?,
        false => group.status().applied_index,
    };
    if min_index > proven {
        let message = format!("position {}:{min_index} does not exist yet", group.id());
        return Err(QueryError::new(QueryErrorKind::Invalid, message));
    }
    Ok(proven)
}

/// What this node, the leader, holds of a table, and whether that is all; it is unless a query `may_miss` rows.
pub(crate) async fn view_of(
    lake: &Lake,
    group: GroupId,
    id: &TableId,
    index: u64,
    may_miss: bool,
) -> Result<(Option<TableView>, bool), QueryError> {
    let view = match may_miss {
        true => lake.partial_view(group, id, index).await,
        false => lake.view(group, id, index).await.map(|view| (view, true)),
    };
    view.map_err(lake_error)
}
