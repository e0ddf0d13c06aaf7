//! Bringing a group's rows into Iceberg exactly once (DESIGN section 6).
//!
//! The watermark lives in the table itself, as a property written in the same commit as the data files: whatever a
//! flusher believes, at most one append of the rows after a watermark can win the swap. Any error is *unknown*: reload
//! and look; nothing is deleted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use iceberg::spec::{DataFile, TableMetadata};
use serde::{Deserialize, Serialize};
use signaldb_catalog::{Swap, SwapOutcome};
use signaldb_model::{TableId, UnixNanos};
use signaldb_raft::{Command, Group};
use signaldb_signals::{Rows, SignalTable};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::datafile::{self, EncodedFile};
use crate::error::LakeError;
use crate::lake::Lake;
use crate::memtable::{GroupMemtable, MemBatch};
use crate::metadata::{Change, Staged};
use crate::names;
use crate::table;

/// A table smaller than this waits for `max_interval`: small commits cost as much as large ones.
const SMALL_TABLE_BYTES: usize = 1 << 20;
/// How long a proposal of the flusher may take.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a majority may take to bring a cut's rows to disk.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest pause between attempts while catalog or store are down.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Attempts to win the swap before the flush is reported as failed and tried again later.
const ATTEMPTS: usize = 5;

/// Bumped when a group's log restarts from a lost state, so that reused indexes do not read as flushed.
const INCARNATION: u64 = 1;

/// Somebody waits for a flush.
#[derive(Debug)]
pub(crate) struct FlushRequest {
    pub(crate) done: oneshot::Sender<Result<(), LakeError>>,
}

/// The mark of the last flush of a group, in the table's properties under [`mark_key`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FlushMark {
    cluster: String,
    group: u32,
    incarnation: u64,
    term: u64,
    index: u64,
    commit: uuid::Uuid,
}

fn mark_key(group: u32) -> String {
    format!("signaldb.flush.{group}")
}

/// Flushes one group.
pub(crate) struct Flusher {
    lake: Lake,
    group: Arc<Group>,
    memtable: Arc<GroupMemtable>,
    cluster_id: String,
    /// A cut whose tables are not all committed yet; it is finished before another is made.
    pending: Option<u64>,
    failures: u32,
    /// By the clock's elapsed time.
    not_before: Duration,
}

/// A table's part of a commit.
struct Planned {
    id: TableId,
    /// `None`: the rows were already there.
    commit: Option<(Swap, Staged)>,
    version: i64,
    location: String,
}

/// Data files by table and the watermark that they start behind, kept over the attempts of one flush.
type Encoded = HashMap<(TableId, u64), (uuid::Uuid, Vec<DataFile>)>;

impl Flusher {
    pub(crate) fn new(lake: Lake, group: Arc<Group>, cluster_id: String) -> Self {
        let memtable = lake.memtable(group.id());
        Self { lake, group, memtable, cluster_id, pending: None, failures: 0, not_before: Duration::ZERO }
    }

    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<FlushRequest>, stop: CancellationToken) {
        let config = self.lake.config();
        let shortest = config.interval.min(config.max_interval);
        let mut tick = tokio::time::interval((shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let request = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                request = requests.recv() => match request {
                    Some(request) => Some(request),
                    None => return,
                },
                _ = tick.tick() => None,
            };
            if request.is_none() && !self.due() {
                continue;
            }
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                outcome = self.flush(request.is_some()) => outcome,
            };
            self.note(outcome.as_ref().err());
            if let Some(request) = request {
                // The caller may be gone.
                let _ = request.done.send(outcome);
            }
        }
    }

    fn due(&self) -> bool {
        let now = self.lake.clock().elapsed();
        if now < self.not_before || !self.group.is_leader() {
            return false;
        }
        if self.pending.is_some() {
            return true;
        }
        let config = self.lake.config();
        let loads = self.memtable.loads();
        let bytes: usize = loads.values().map(|load| load.bytes).sum();
        let old = |since: Duration, limit: Duration| now.saturating_sub(since) >= limit;
        bytes >= config.max_bytes
            || loads.values().any(|load| {
                let busy = load.bytes > SMALL_TABLE_BYTES && old(load.since, config.interval);
                busy || old(load.since, config.max_interval)
            })
    }

    fn note(&mut self, failure: Option<&LakeError>) {
        let Some(failure) = failure else {
            self.failures = 0;
            self.lake.note_flush(self.group.id(), Ok(()));
            return;
        };
        self.failures += 1;
        let pause = Duration::from_millis(100).saturating_mul(1 << self.failures.min(10)).min(BACKOFF_MAX);
        self.not_before = self.lake.clock().elapsed() + pause;
        let chain = chain(failure);
        tracing::warn!(group = %self.group.id(), failures = self.failures, retry_in = ?pause, error = %chain,
            "flush failed; rows stay in the log and in memory");
        crate::metrics::note_failure(failure);
        self.lake.note_flush(self.group.id(), Err(chain));
    }

    /// Cuts and commits. With `fresh`, rows applied before the call are included even if an older cut is pending.
    async fn flush(&mut self, fresh: bool) -> Result<(), LakeError> {
        if let Some(hi) = self.pending {
            self.finish_cut(hi).await?;
            if !fresh {
                return Ok(());
            }
        }
        let cut = Command::FlushCut { at: UnixNanos::default() };
        let hi = self.group.propose_index(&cut, PROPOSE_TIMEOUT).await?;
        self.pending = Some(hi);
        self.finish_cut(hi).await
    }

    async fn finish_cut(&mut self, hi: u64) -> Result<(), LakeError> {
        let outcome = self.commit_cut(hi).await;
        // When only some table failed the others are done: the next cut takes its rows along with theirs.
        if matches!(outcome, Ok(()) | Err(LakeError::Table(_))) {
            self.pending = None;
        }
        outcome
    }

    async fn commit_cut(&self, hi: u64) -> Result<(), LakeError> {
        let moved = LakeError::Stopped("another node leads the group");
        let Some(epoch) = self.memtable.wait_built(hi).await else { return Err(moved) };
        // A table ahead of what every log remembers would hide the rows that are written at the lost indexes next.
        self.group.wait_synced(hi, SYNC_TIMEOUT).await?;
        let begun = self.lake.clock().elapsed();
        let mut encoded = Encoded::new();
        for attempt in 0..ATTEMPTS {
            let mut failed = None;
            if let Some(planned) = self.try_commit(hi, epoch, &mut encoded, &mut failed).await? {
                let tables = planned.len();
                for plan in planned {
                    self.announce(hi, plan).await?;
                }
                let took = self.lake.clock().elapsed().saturating_sub(begun);
                metrics::histogram!("signaldb_flush_duration_seconds").record(took.as_secs_f64());
                tracing::debug!(group = %self.group.id(), hi, tables, ?took, "WAL entry processed: flushed");
                return failed.map_or(Ok(()), |error| Err(LakeError::Table(Box::new(error))));
            }
            // Somebody else moved a table: look again, a little later each time.
            tokio::time::sleep(Duration::from_millis(20 << attempt)).await;
        }
        Err(LakeError::Stopped("other commits won every attempt"))
    }

    /// One attempt on the tables' current metadata; `None` when a swap lost or its outcome is unknown.
    ///
    /// A table that cannot be planned is left out and reported through `failed`: it must not stop its neighbours.
    async fn try_commit(
        &self,
        hi: u64,
        epoch: u64,
        encoded: &mut Encoded,
        failed: &mut Option<LakeError>,
    ) -> Result<Option<Vec<Planned>>, LakeError> {
        let mut planned = Vec::new();
        for id in self.memtable.loads().into_keys() {
            match self.plan(&id, hi, epoch, encoded).await {
                Ok(plan) => planned.extend(plan),
                // Catalog and store are everybody's: the cut waits for them.
                Err(error @ (LakeError::Catalog(_) | LakeError::Store(_))) => return Err(error),
                Err(error) => {
                    tracing::error!(table = %id, error = %chain(&error), "table cannot be flushed");
                    *failed = Some(error);
                }
            }
        }
        // Under another leadership the memtable may hold only a part of the rows: to mark them flushed would lose the rest.
        if self.memtable.epoch() != epoch {
            return Err(LakeError::Stopped("another node leads the group"));
        }
        let mut swaps = Vec::new();
        for (swap, staged) in planned.iter().filter_map(|plan| plan.commit.as_ref()) {
            for (location, content) in &staged.files {
                self.lake.store().write(location, content.clone()).await?;
            }
            swaps.push(swap.clone());
        }
        if swaps.is_empty() {
            return Ok(Some(planned));
        }
        // Whoever collects orphans may take files that waited this long for such: write them anew.
        if encoded.values().any(|(commit, _)| !self.lake.may_commit(*commit)) {
            encoded.clear();
            return Ok(None);
        }
        match self.lake.catalog().swap(&swaps).await {
            Ok(SwapOutcome::Moved) => Ok(Some(planned)),
            Ok(SwapOutcome::Conflict) => Ok(None),
            Err(error) => {
                tracing::warn!(group = %self.group.id(), error = %chain(&error), "swap not confirmed; looking again");
                Ok(None)
            }
        }
    }

    /// Plans the rows of one table up to `hi`; `None` when it has none.
    async fn plan(
        &self,
        id: &TableId,
        hi: u64,
        epoch: u64,
        encoded: &mut Encoded,
    ) -> Result<Option<Planned>, LakeError> {
        let Some(table) = SignalTable::from_code(id.code) else { return Ok(None) };
        let Some(view) = self.memtable.view(id, epoch) else { return Ok(None) };
        let rows: Vec<MemBatch> = view.batches.iter().filter_map(|batch| batch.upto(hi)).collect();
        if rows.is_empty() {
            return Ok(None);
        }
        let location = self.lake.ensure_table(id, table).await?;
        let metadata = self.lake.metadata_at(&location).await?;
        let done = flushed_index(&metadata, &self.cluster_id, self.group.id().0, id)?;
        let version = table::version_of(&location);
        if done >= hi {
            return Ok(Some(Planned { id: id.clone(), commit: None, version, location }));
        }
        // Normally the watermark that we know; after a crash between swap and announcement, a later one.
        let rows: Vec<MemBatch> = rows.iter().filter_map(|batch| batch.above(done)).collect();
        let (commit, files) = self.write_files(id, table, &metadata, rows, done, encoded).await?;
        let mark = FlushMark {
            cluster: self.cluster_id.clone(),
            group: self.group.id().0,
            incarnation: INCARNATION,
            term: self.group.term(),
            index: hi,
            commit,
        };
        let staged = self.stage(&metadata, &location, files, &mark).await?;
        let swap = Swap {
            namespace: id.namespace(),
            table: table.name().to_owned(),
            base: location,
            new: staged.location.clone(),
        };
        let (version, location) = (staged.version, staged.location.clone());
        Ok(Some(Planned { id: id.clone(), commit: Some((swap, staged)), version, location }))
    }

    async fn write_files(
        &self,
        id: &TableId,
        table: SignalTable,
        metadata: &TableMetadata,
        rows: Vec<MemBatch>,
        from: u64,
        encoded: &mut Encoded,
    ) -> Result<(uuid::Uuid, Vec<DataFile>), LakeError> {
        let key = (id.clone(), from);
        if let Some(found) = encoded.get(&key) {
            return Ok(found.clone());
        }
        let commit = self.lake.new_commit();
        let (root, group) = (metadata.location().to_owned(), self.group.id().0.to_string());
        // One file waits while the next is encoded: rows of very many days must not pile up in memory as files.
        let (sender, mut files) = mpsc::channel(1);
        let encode = move || -> Result<(), LakeError> {
            let rows: Vec<Rows> = rows.into_iter().map(|batch| batch.rows).collect();
            let name = |n: usize, day: i32| names::data_file(&root, &group, commit, n, day);
            let mut done = |file: EncodedFile| {
                sender.blocking_send(file).map_err(|_| LakeError::Stopped("the data file's write failed"))
            };
            datafile::encode(table, &rows, name, &mut done)
        };
        let encoding = self.lake.cpu().spawn_blocking(encode);
        let mut entries = Vec::new();
        while let Some(file) = files.recv().await {
            metrics::counter!("signaldb_flush_bytes_total").increment(file.content.len() as u64);
            self.lake.store().write(&file.location, file.content).await?;
            entries.push(file.entry);
        }
        encoding.await.map_err(|_| LakeError::Stopped("encoding a data file panicked"))??;
        encoded.insert(key, (commit, entries.clone()));
        Ok((commit, entries))
    }

    async fn stage(
        &self,
        metadata: &TableMetadata,
        location: &str,
        files: Vec<DataFile>,
        mark: &FlushMark,
    ) -> Result<Staged, LakeError> {
        let mark = serde_json::to_string(mark).map_err(iceberg::Error::from)?;
        let key = mark_key(self.group.id().0);
        let change = Change {
            add: files,
            set_properties: HashMap::from([(key.clone(), mark.clone())]),
            summary: HashMap::from([(key, mark)]),
            expire: true,
            merge_manifests: true,
            ..Change::default()
        };
        self.lake.stage(metadata, location, change).await
    }

    /// Tells every replica that the rows are in Iceberg.
    async fn announce(&self, hi: u64, plan: Planned) -> Result<(), LakeError> {
        if let Some((_, staged)) = plan.commit {
            self.lake.remember(&plan.location, Arc::new(staged.metadata));
        }
        let committed = Command::FlushCommitted { table: plan.id, hi, version: plan.version, location: plan.location };
        self.group.propose_index(&committed, PROPOSE_TIMEOUT).await?;
        Ok(())
    }
}

/// Last log index of `group` whose rows are in this version of a table: the cut between scan and memtable.
///
/// # Errors
/// [`LakeError::ForeignMark`] when another cluster or incarnation flushed the group's rows.
pub(crate) fn flushed_index(
    metadata: &TableMetadata,
    cluster_id: &str,
    group: u32,
    table: &TableId,
) -> Result<u64, LakeError> {
    let Some(text) = metadata.properties().get(&mark_key(group)) else { return Ok(0) };
    let mark: Option<FlushMark> = serde_json::from_str(text).ok();
    match mark {
        Some(mark) if mark.cluster == cluster_id && mark.group == group && mark.incarnation == INCARNATION => {
            Ok(mark.index)
        }
        _ => Err(LakeError::ForeignMark { table: table.to_string(), found: text.clone() }),
    }
}

/// An error and everything behind it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
