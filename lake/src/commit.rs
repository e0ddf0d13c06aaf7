//! Commits that are not flushes: on exactly one base, again while others win, and never instead of a flush.
//!
//! When another commit was first, only metadata and manifests are made anew, on what that commit left; the data files that a
//! commit adds stay as they were written.

use std::collections::HashMap;

use iceberg::ErrorKind;
use iceberg::spec::TableMetadata;
use signaldb_catalog::{CatalogError, Swap, SwapOutcome};
use signaldb_model::TableId;
use signaldb_signals::{SignalTable, schema};
use uuid::Uuid;

use crate::error::LakeError;
use crate::flush::chain;
use crate::lake::Lake;
use crate::metadata::Change;
use crate::retry::draw;

/// After the first lost swap this many times the configured pause; a flush looks again after a tenth of that and wins.
const PATIENCE: u32 = 2;
/// A commit that adds data files is tried so many times as often as others: writing them again would cost more.
const REBASES: u32 = 8;
/// After so many attempts pauses grow no longer: what wins is another attempt, not a longer wait.
const PAUSES_GROW: u32 = 5;

/// How a commit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Committed {
    /// The table is at this location, or was on the way to where it is now.
    Done { location: String },
    /// A file that was to be removed is not in the table any more, or the table is gone: plan anew.
    Overtaken,
}

/// Commits `change`. `files` names the data files that it adds: they are given up when they are too old, because whoever
/// collects orphans may take them for such. Until then they are worth many attempts.
///
/// # Errors
/// Catalog, store or metadata. The commit may have happened all the same: plan anew from what the table says.
pub(crate) async fn commit(
    lake: &Lake,
    id: &TableId,
    table: SignalTable,
    change: &Change,
    files: Option<Uuid>,
) -> Result<Committed, LakeError> {
    let retry = &lake.config().retry;
    let attempts = if files.is_some() { retry.max_attempts.saturating_mul(REBASES) } else { retry.max_attempts };
    let mut unknown: Option<String> = None;
    let mut read = HashMap::new();
    for attempt in 1..=attempts {
        // From here to the swap nobody else on this node comes between.
        let turn = lake.commit_turns().take([id.clone()]).await;
        let Some(base) = lake.pointers().load(&id.namespace(), table.name()).await? else {
            return Ok(Committed::Overtaken);
        };
        let metadata = lake.metadata_at(&base).await?;
        if let Some(location) = unknown.take_if(|location| leads_to(&metadata, &base, location)) {
            return Ok(Committed::Done { location });
        }
        let change = Change { add_columns: schema::of(table).columns.clone(), ..change.clone() };
        let staged = match lake.restage(&metadata, &base, change, &mut read).await {
            Err(LakeError::Iceberg(error)) if error.kind() == ErrorKind::PreconditionFailed => {
                return Ok(Committed::Overtaken);
            }
            staged => staged?,
        };
        for (location, content) in &staged.files {
            lake.store().write(location, content.clone()).await?;
        }
        if files.is_some_and(|commit| !lake.may_commit(commit)) {
            return Ok(Committed::Overtaken);
        }
        let location = staged.location.clone();
        let swap = Swap { namespace: id.namespace(), table: table.name().to_owned(), base, new: location.clone() };
        match lake.swap(&[swap]).await {
            Ok(SwapOutcome::Moved) => {
                lake.remember(&location, std::sync::Arc::new(staged.metadata));
                return Ok(Committed::Done { location });
            }
            Ok(SwapOutcome::Conflict) => {}
            Err(error @ CatalogError::Unknown(_)) => {
                tracing::warn!(table = %id, error = %chain(&error), "swap not confirmed; looking again");
                unknown = Some(location);
            }
            Err(error) => return Err(error.into()),
        }
        drop(turn);
        let pause = retry.pause_from(retry.initial_delay * PATIENCE, attempt.min(PAUSES_GROW), draw());
        crate::metrics::note_retry(if unknown.is_some() { "unknown" } else { "conflict" }, pause);
        tokio::time::sleep(pause).await;
    }
    Err(LakeError::Stopped("other commits won every attempt"))
}

/// Whether the version at `base` is the one at `location`, or came after it.
fn leads_to(metadata: &TableMetadata, base: &str, location: &str) -> bool {
    base == location || metadata.metadata_log().iter().any(|version| version.metadata_file == location)
}

#[cfg(test)]
mod tests;
