//! Between log and tables after the log may have lost entries (DESIGN section 6, "Iceberg ahead of the log").

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use iceberg::spec::TableMetadata;
use signaldb_catalog::{Swap, SwapOutcome, TablePointer};
use signaldb_model::{DatasetId, TableId, TenantId};
use signaldb_raft::{Command, Group, Incarnation};
use signaldb_signals::SignalTable;

use super::mark::{FlushMark, lineage};
use super::{CONFLICT_PART, Flusher, chain};
use crate::error::LakeError;
use crate::lake::Lake;
use crate::retry::draw;
use crate::table::version_of;
use crate::turns::Turn;

/// How long a new leader may take to apply what was committed before it led.
const APPLY_TIMEOUT: Duration = Duration::from_secs(30);

impl Flusher {
    /// Writes the new incarnation's mark into every table that the group ever flushed to, tells the replicas how far the
    /// rows are there, and then that all is settled. Done again from any point, it does the same.
    pub(super) async fn settle(&self, incarnation: Incarnation) -> Result<(), LakeError> {
        for pointer in self.lake.pointers().tables().await? {
            let Some(id) = table_id(&pointer) else { continue };
            match self.settle_table(&id, &pointer, incarnation).await {
                Err(error @ LakeError::ForeignMark { .. }) => {
                    tracing::error!(table = %id, error = %chain(&error), "table is left alone");
                }
                settled => settled.inspect_err(|error| {
                    tracing::warn!(group = %self.group.id(), table = %id, error = %chain(error),
                        "the table cannot be told of the group's new incarnation: until it can, the group's rows are \
                         neither flushed nor shown");
                })?,
            }
        }
        let settled = Command::IncarnationSettled { id: incarnation.id };
        self.proposer.propose_for_flush(&settled).await?;
        tracing::warn!(group = %self.group.id(), incarnation = incarnation.id, "tables know the new incarnation");
        Ok(())
    }

    async fn settle_table(
        &self,
        id: &TableId,
        pointer: &TablePointer,
        incarnation: Incarnation,
    ) -> Result<(), LakeError> {
        let (mut location, retry) = (pointer.location.clone(), &self.lake.config().retry);
        // After a lost swap it is taken: nobody else on this node comes between look and swap then.
        let mut turn: Option<Turn> = None;
        for attempt in 1..=retry.max_attempts {
            let metadata = self.lake.metadata_at(&location).await?;
            let Some(mark) = FlushMark::of(&metadata, &self.cluster_id, self.group.id(), id)? else { return Ok(()) };
            let own = self.group.with_state(lineage);
            let index = mark.index_in(&own);
            if mark.incarnation == incarnation.id {
                return self.tell(id, index, &location).await;
            }
            // Whoever was deposed must not move the mark of a newer incarnation: if that one settled before this table was
            // read, nobody proves any more that this node leads, and if it settles now, the swap loses.
            self.group.read_index_here().await?;
            // Entries of a later leadership than the flush's cannot be in the table. There are some before the command
            // that began the incarnation, when rows were taken until it was known that entries are lost.
            let index = self.group.last_entry_until(index, mark.term)?;
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
            let moved = self.move_mark(pointer, &location, &metadata, &mark).await?;
            drop(turn.take());
            if let Some(next) = moved {
                return self.tell(id, index, &next).await;
            }
            tokio::time::sleep(retry.pause_from(retry.initial_delay / CONFLICT_PART, attempt, draw())).await;
            turn = Some(self.lake.commit_turns().take([id.clone()]).await);
            let (namespace, table) = (&pointer.namespace, &pointer.table);
            location =
                self.lake.pointers().load(namespace, table).await?.ok_or(LakeError::Stopped("a table is gone"))?;
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
        let staged = self.stage(metadata, location, Vec::new(), &[], mark).await?;
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
        self.proposer.propose_for_flush(&committed).await?;
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
    let marks = news(lake, group, cluster_id, which).await?;
    if furthest_ahead(group, &marks).is_none() {
        return Ok(true);
    }
    // Whoever leads has every committed entry, a cut that was flushed among them, but may not have applied it yet. Without
    // proof it may just be deposed. What was read before the proof must be in the log now.
    let index = group.read_index_here().await?;
    group.wait_applied(index, APPLY_TIMEOUT).await?;
    if group.with_state(|state| state.unsettled().is_some()) {
        return Ok(false);
    }
    let Some(flushed) = furthest_ahead(group, &marks) else { return Ok(true) };
    let last = group.last_log_index();
    group.halt(format!(
        "its tables hold rows up to entry {flushed} of another copy of this log, which ends with entry {last}: this log is \
         older than its tables. Put the newer log back, or go on from here with `signaldb cluster recover --group {} \
         --accept-data-loss`",
        group.id()
    ));
    Ok(true)
}

/// The group's marks in tables whose current version the log does not know.
async fn news(lake: &Lake, group: &Group, cluster_id: &str, which: Known) -> Result<Vec<FlushMark>, LakeError> {
    let known: HashMap<TableId, String> =
        group.with_state(|state| state.tables.iter().map(|(id, table)| (id.clone(), table.location.clone())).collect());
    let mut marks = Vec::new();
    for pointer in lake.pointers().tables().await? {
        let Some(id) = table_id(&pointer) else { continue };
        // What the log itself told of is not ahead of it.
        let location = known.get(&id);
        if location == Some(&pointer.location) || (location.is_none() && which == Known::Only) {
            continue;
        }
        let metadata = match lake.metadata_at(&pointer.location).await {
            Err(error @ (LakeError::Catalog(_) | LakeError::Store(_))) => return Err(error),
            // Its neighbours must not wait for it; it cannot be flushed until it can be read.
            Err(error) => {
                tracing::error!(table = %id, error = %chain(&error), "table cannot be compared with the log");
                continue;
            }
            Ok(metadata) => metadata,
        };
        // A mark that is not the group's says so when the table is to be flushed.
        marks.extend(FlushMark::of(&metadata, cluster_id, group.id(), &id).ok().flatten());
    }
    Ok(marks)
}

/// The furthest index of the marks that this log cannot have led to.
fn furthest_ahead(group: &Group, marks: &[FlushMark]) -> Option<u64> {
    marks.iter().filter(|mark| !mark.is_of_log(group)).map(|mark| mark.index).max()
}

/// The table's id, if it is one of ours.
pub(crate) fn table_id(pointer: &TablePointer) -> Option<TableId> {
    let (tenant, dataset) = pointer.namespace.split_once('.')?;
    let table = SignalTable::ALL.into_iter().find(|table| table.name() == pointer.table)?;
    let (tenant, dataset) = (TenantId::new(tenant).ok()?, DatasetId::new(dataset).ok()?);
    Some(TableId { tenant, dataset, code: table.code() })
}
