//! Between log and tables after the log may have lost entries (DESIGN section 6, "Iceberg ahead of the log").

use std::collections::HashMap;
use std::sync::Arc;

use iceberg::spec::TableMetadata;
use signaldb_catalog::{Swap, SwapOutcome, TablePointer};
use signaldb_model::{DatasetId, TableId, TenantId};
use signaldb_raft::{Command, Group, Incarnation};
use signaldb_signals::SignalTable;

use super::mark::{FlushMark, lineage};
use super::{Flusher, PROPOSE_TIMEOUT, chain};
use crate::error::LakeError;
use crate::lake::Lake;
use crate::table::version_of;

impl Flusher {
    /// Writes the new incarnation's mark into every table that the group ever flushed to, tells the replicas how far the
    /// rows are there, and then that all is settled. Done again from any point, it does the same.
    pub(super) async fn settle(&self, incarnation: Incarnation) -> Result<(), LakeError> {
        for pointer in self.lake.catalog().tables().await? {
            let Some(id) = table_id(&pointer) else { continue };
            match self.settle_table(&id, &pointer, incarnation).await {
                Err(error @ LakeError::ForeignMark { .. }) => {
                    tracing::error!(table = %id, error = %chain(&error), "table is left alone");
                }
                settled => settled?,
            }
        }
        let settled = Command::IncarnationSettled { id: incarnation.id };
        self.group.propose_index(&settled, PROPOSE_TIMEOUT).await?;
        tracing::warn!(group = %self.group.id(), incarnation = incarnation.id, "tables know the new incarnation");
        Ok(())
    }

    async fn settle_table(
        &self,
        id: &TableId,
        pointer: &TablePointer,
        incarnation: Incarnation,
    ) -> Result<(), LakeError> {
        let mut location = pointer.location.clone();
        for _ in 0..self.lake.config().retry.max_attempts {
            let metadata = self.lake.metadata_at(&location).await?;
            let Some(mark) = FlushMark::of(&metadata, &self.cluster_id, self.group.id(), id)? else { return Ok(()) };
            let own = self.group.with_state(lineage);
            let index = mark.index_in(&own);
            if mark.incarnation == incarnation.id {
                return self.tell(id, index, &location).await;
            }
            if mark.index > index {
                tracing::warn!(group = %self.group.id(), table = %id, from = index + 1, to = mark.index,
                    "the table keeps rows of entries that the log has lost");
            }
            let mark = FlushMark {
                incarnation: incarnation.id,
                lineage: own,
                term: self.group.term(),
                index,
                commit: uuid::Uuid::now_v7(),
                ..mark
            };
            if let Some(next) = self.move_mark(pointer, &location, &metadata, &mark).await? {
                return self.tell(id, index, &next).await;
            }
            let (namespace, table) = (&pointer.namespace, &pointer.table);
            location =
                self.lake.catalog().load(namespace, table).await?.ok_or(LakeError::Stopped("a table is gone"))?;
        }
        Err(LakeError::Stopped("other commits won every attempt"))
    }

    /// Commits the mark alone; `None` when the swap lost or its outcome is unknown.
    async fn move_mark(
        &self,
        pointer: &TablePointer,
        location: &str,
        metadata: &TableMetadata,
        mark: &FlushMark,
    ) -> Result<Option<String>, LakeError> {
        let staged = self.stage(metadata, location, Vec::new(), mark).await?;
        for (location, content) in &staged.files {
            self.lake.store().write(location, content.clone()).await?;
        }
        let swap = Swap {
            namespace: pointer.namespace.clone(),
            table: pointer.table.clone(),
            base: location.to_owned(),
            new: staged.location.clone(),
        };
        match self.lake.swap(&[swap]).await {
            Ok(SwapOutcome::Moved) => {
                self.lake.remember(&staged.location, Arc::new(staged.metadata));
                Ok(Some(staged.location))
            }
            Ok(SwapOutcome::Conflict) => Ok(None),
            Err(error) => {
                tracing::warn!(group = %self.group.id(), error = %chain(&error), "swap not confirmed; looking again");
                Ok(None)
            }
        }
    }

    async fn tell(&self, id: &TableId, hi: u64, location: &str) -> Result<(), LakeError> {
        let (version, location) = (version_of(location), location.to_owned());
        let committed = Command::FlushCommitted { table: id.clone(), hi, version, location };
        self.group.propose_index(&committed, PROPOSE_TIMEOUT).await?;
        Ok(())
    }
}

/// Which tables are compared with the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// Those that the log knows of: cheap enough for every new leader.
    Only,
    /// Every table there is: the log may have lost that too.
    OrNot,
}

/// Halts a group whose tables know more than its log: rows that it takes would get indexes that count as flushed.
///
/// True when the group was looked at; false when this node does not lead it.
///
/// # Errors
/// When catalog or store do not answer.
pub(crate) async fn look_ahead(lake: &Lake, group: &Group, cluster_id: &str, which: Known) -> Result<bool, LakeError> {
    if !group.is_leader() || group.with_state(|state| state.unsettled().is_some()) {
        return Ok(false);
    }
    let known: HashMap<TableId, String> =
        group.with_state(|state| state.tables.iter().map(|(id, table)| (id.clone(), table.location.clone())).collect());
    let (mut ahead, incarnation) = (None, group.with_state(|state| state.incarnation()));
    for pointer in lake.catalog().tables().await? {
        let Some(id) = table_id(&pointer) else { continue };
        // What the log itself told of is not ahead of it.
        let location = known.get(&id);
        if location == Some(&pointer.location) || (location.is_none() && which == Known::Only) {
            continue;
        }
        let metadata = lake.metadata_at(&pointer.location).await?;
        let mark = match FlushMark::of(&metadata, cluster_id, group.id(), &id) {
            Ok(Some(mark)) => mark,
            // A table that cannot be flushed says so then.
            Ok(None) | Err(_) => continue,
        };
        if mark.incarnation != incarnation || mark.index > group.last_log_index() {
            ahead = ahead.max(Some(mark.index));
        }
    }
    let Some(flushed) = ahead else { return Ok(true) };
    // Whoever leads has every committed entry, a cut that was flushed among them. Without proof it may just be deposed.
    group.read_index_here().await?;
    let last = group.last_log_index();
    if group.with_state(|state| state.incarnation()) != incarnation {
        return Ok(false);
    }
    group.halt(format!(
        "its tables hold rows up to entry {flushed} and its log ends with entry {last}, or they were flushed by another \
         copy of it: this log is older than its tables. Put the newer log back, or go on from here with `signaldb cluster \
         recover --group {} --accept-data-loss`",
        group.id()
    ));
    Ok(true)
}

/// The table's id, if it is one of ours.
fn table_id(pointer: &TablePointer) -> Option<TableId> {
    let (tenant, dataset) = pointer.namespace.split_once('.')?;
    let table = SignalTable::ALL.into_iter().find(|table| table.name() == pointer.table)?;
    let (tenant, dataset) = (TenantId::new(tenant).ok()?, DatasetId::new(dataset).ok()?);
    Some(TableId { tenant, dataset, code: table.code() })
}
