//! Bringing a group's rows into Iceberg exactly once (DESIGN section 6).
//!
//! The watermark lives in the table itself, as a property written in the same commit as the data files: whatever a
//! flusher believes, at most one append of the rows after a watermark can win the swap. Any error is *unknown*: reload
//! and look; nothing is deleted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use iceberg::spec::{DataFile, Snapshot, TableMetadata};
use signaldb_catalog::{CatalogError, Swap, SwapOutcome};
use signaldb_model::mutation::{self, Mutation};
use signaldb_model::{GroupId, TableId, UnixNanos};
use signaldb_raft::{Command, Group, GroupState, WriteError};
use signaldb_signals::schema::{self, Column};
use signaldb_signals::{Rows, SignalTable};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::datafile::{self, EncodedFile};
use crate::error::LakeError;
use crate::lake::Lake;
use crate::memtable::{GroupMemtable, MemBatch, TableView};
use crate::metadata::{Change, Staged};
use crate::metrics::Retried;
use crate::names;
use crate::promote::FileSchema;
use crate::quarantine;
use crate::retry::draw;
use crate::table;

#[cfg(test)]
mod exactly_once;
#[cfg(test)]
mod foreign;
mod mark;
#[cfg(test)]
mod mutations;
#[cfg(test)]
mod read_back;
mod settle;

use mark::{FlushMark, MARK_PREFIX, lineage, mark_key};
pub(crate) use settle::{Known, look_ahead, table_id};

/// A table smaller than this waits for `max_interval`: small commits cost as much as large ones.
const SMALL_TABLE_BYTES: usize = 1 << 20;
/// How long a proposal of the flusher may take.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a majority may take to bring a cut's rows to disk.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a group looks whether to flush: small memtables fill in a fraction of a second.
const TICK_MAX: Duration = Duration::from_millis(100);
/// A lost swap is tried again after this part of the configured pause: flushes win against other commits.
const CONFLICT_PART: u32 = 5;

/// Somebody waits for a flush.
#[derive(Debug)]
pub(crate) struct FlushRequest {
    pub(crate) done: oneshot::Sender<Result<(), LakeError>>,
}

/// Where the flusher's commands go: to the group's leader; tests put something in between that fails on time.
#[async_trait]
pub(crate) trait Proposer: Send + Sync {
    /// Returns the index of the command's entry.
    async fn propose_for_flush(&self, command: &Command) -> Result<u64, WriteError>;
}

#[async_trait]
impl Proposer for Group {
    async fn propose_for_flush(&self, command: &Command) -> Result<u64, WriteError> {
        self.propose_index(command, PROPOSE_TIMEOUT).await
    }
}

/// Flushes one group.
pub(crate) struct Flusher {
    lake: Lake,
    group: Arc<Group>,
    proposer: Arc<dyn Proposer>,
    memtable: Arc<GroupMemtable>,
    cluster_id: String,
    /// A cut whose tables are not all committed yet; it is finished before another is made.
    pending: Option<u64>,
    /// Files of an attempt that failed behind them: the next one does not write them again.
    written: Option<Written>,
    failures: u32,
    /// By the clock's elapsed time.
    not_before: Duration,
    /// The term of leadership in which tables were compared with the log.
    looked_ahead: Option<u64>,
}

/// A table's part of a commit.
struct Planned {
    /// `None`: the rows were already there, or were put aside.
    commit: Option<(Swap, Staged)>,
    /// What every replica is told then.
    announcement: Command,
}

/// A table as a flush finds it.
enum Found {
    Ours {
        location: String,
        metadata: Arc<TableMetadata>,
    },
    /// It is gone, or somebody changed it so that our files do not fit; why.
    Lost(String),
}

/// Data files by table, its UUID, and the watermark that they start behind, kept over the attempts of one flush. Those of a
/// table that is gone may be gone with it.
type Encoded = HashMap<(TableId, uuid::Uuid, u64), (uuid::Uuid, Vec<DataFile>)>;

/// The data files of the rows up to an index, as one leadership saw them.
struct Written {
    epoch: u64,
    upto: u64,
    encoded: Mutex<Encoded>,
}

impl Written {
    fn encoded(&self) -> MutexGuard<'_, Encoded> {
        self.encoded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an attempt to commit came to.
enum Attempt {
    Done(Vec<Planned>),
    /// Somebody else moved a table first.
    Lost,
    /// The COMMIT was not answered.
    Unknown(CatalogError),
}

impl Flusher {
    pub(crate) fn new(lake: Lake, group: Arc<Group>, cluster_id: String) -> Self {
        let proposer = Arc::<Group>::clone(&group);
        Self::with_proposer(lake, group, proposer, cluster_id)
    }

    pub(crate) fn with_proposer(
        lake: Lake,
        group: Arc<Group>,
        proposer: Arc<dyn Proposer>,
        cluster_id: String,
    ) -> Self {
        let memtable = lake.memtable(group.id());
        Self {
            lake,
            group,
            proposer,
            memtable,
            cluster_id,
            pending: None,
            written: None,
            failures: 0,
            not_before: Duration::ZERO,
            looked_ahead: None,
        }
    }

    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<FlushRequest>, stop: CancellationToken) {
        let config = self.lake.config();
        let shortest = config.interval.min(config.max_interval);
        let mut tick = tokio::time::interval((shortest / 4).clamp(Duration::from_millis(10), TICK_MAX));
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
            self.look_around();
            if request.is_none() && !self.due() {
                continue;
            }
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                outcome = self.step(request.is_some()) => outcome,
            };
            self.note(outcome.as_ref());
            if let Some(request) = request {
                // The caller may be gone.
                let _ = request.done.send(outcome.map(drop));
            }
        }
    }

    /// What others do may concern this group.
    fn look_around(&mut self) {
        self.lake.look_for_outage();
        if self.memtable.has_backlog() {
            self.memtable.work.notify_one();
        }
        if self.failures > 0 && !self.group.is_leader() {
            // Now it is another node that fails, or does not.
            self.failures = 0;
            self.written = None;
            self.lake.note_flush(self.group.id(), Ok(false), false);
        }
    }

    fn due(&self) -> bool {
        let now = self.lake.clock().elapsed();
        if now < self.not_before || !self.group.is_leader() || self.group.halted().is_some() {
            return false;
        }
        !self.is_prepared() || self.cut_is_due(now)
    }

    /// The tables were compared with the log in this leadership, and know its incarnation.
    fn is_prepared(&self) -> bool {
        self.looked_ahead == Some(self.group.term()) && self.group.with_state(|state| state.unsettled().is_none())
    }

    fn cut_is_due(&self, now: Duration) -> bool {
        if self.pending.is_some() {
            return true;
        }
        let config = self.lake.config();
        let loads = self.memtable.loads();
        let bytes: usize = loads.values().map(|load| load.bytes).sum();
        let old = |since: Duration, limit: Duration| now.saturating_sub(since) >= limit;
        bytes >= config.max_bytes
            || crowds(bytes, self.lake.unflushed_bytes(), self.lake.group_count(), config.memtable_bytes_max)
            || loads.values().any(|load| {
                let busy = load.bytes > SMALL_TABLE_BYTES && old(load.since, config.interval);
                busy || old(load.since, config.max_interval)
            })
    }

    /// Prepares if that is due, and flushes if that is; whether it flushed.
    pub(crate) async fn step(&mut self, asked: bool) -> Result<bool, LakeError> {
        self.prepare().await?;
        if !asked && !self.cut_is_due(self.lake.clock().elapsed()) {
            return Ok(false);
        }
        self.flush(asked).await.map(|()| true)
    }

    async fn prepare(&mut self) -> Result<(), LakeError> {
        let unsettled = self.group.with_state(GroupState::unsettled).filter(|_| self.group.is_leader());
        if let Some(incarnation) = unsettled {
            self.settle(incarnation).await?;
        }
        let term = self.group.term();
        // A lone log may be older than tables that it does not know; the look at the start may have had no answer.
        let which = if self.lake.config().lone_voter { Known::OrNot } else { Known::Only };
        if self.looked_ahead != Some(term) && look_ahead(&self.lake, &self.group, &self.cluster_id, which).await? {
            self.looked_ahead = Some(term);
        }
        match self.group.halted() {
            Some(_) => Err(LakeError::Stopped("the group halted")),
            None => Ok(()),
        }
    }

    fn note(&mut self, outcome: Result<&bool, &LakeError>) {
        let failure = match outcome {
            Ok(flushed) => {
                if self.failures > 0 {
                    Retried::Succeeded.note();
                }
                self.failures = 0;
                self.lake.note_flush(self.group.id(), Ok(*flushed), false);
                return;
            }
            Err(failure) => failure,
        };
        if self.failures > 0 {
            Retried::Failed.note();
        }
        self.failures = self.failures.saturating_add(1);
        let pause = self.lake.config().retry.pause(self.failures, draw());
        self.not_before = self.lake.clock().elapsed() + pause;
        crate::metrics::note_retry(crate::metrics::cause(failure), pause);
        let chain = chain(failure);
        tracing::warn!(group = %self.group.id(), failures = self.failures, retry_in = ?pause, error = %chain,
            "flush failed; rows stay in the log and in memory");
        crate::metrics::note_failure(failure);
        let outside = matches!(failure, LakeError::Catalog(_) | LakeError::Store(_));
        self.lake.note_flush(self.group.id(), Err(chain), outside);
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
        let hi = self.proposer.propose_for_flush(&cut).await?;
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

    /// Commits all rows up to `hi`: at once, or, when memory never had room for all of them, in steps.
    async fn commit_cut(&mut self, hi: u64) -> Result<(), LakeError> {
        let (mut committed, mut left_out) = (None, None);
        loop {
            let moved = |_| LakeError::Stopped("another node leads the group");
            let (epoch, upto) = self.memtable.wait_flushable(hi).await.map_err(moved)?;
            let again = committed.replace(upto) == Some(upto);
            if again {
                // Nothing was flushed by that, so nothing can be read back: whoever has the memory is about to.
                tokio::time::sleep(TICK_MAX).await;
            }
            // A table ahead of what every log remembers would hide the rows that are written at the lost indexes next.
            self.group.wait_synced(upto, SYNC_TIMEOUT).await?;
            let written = self.written.take().filter(|written| (written.epoch, written.upto) == (epoch, upto));
            let written = written.unwrap_or_else(|| Written { epoch, upto, encoded: Mutex::default() });
            let outcome = self.commit_upto(&written).await;
            if outcome.is_err() {
                self.written = Some(written);
            }
            match outcome {
                // The rows of its neighbours that wait in the log do not wait for it: theirs that were here made room.
                Err(error @ LakeError::Table(_)) if upto < hi && !again => {
                    left_out = Some(error);
                    tokio::time::sleep(TICK_MAX).await;
                }
                outcome => outcome?,
            }
            if upto >= hi {
                return left_out.map_or(Ok(()), Err);
            }
        }
    }

    async fn commit_upto(&self, written: &Written) -> Result<(), LakeError> {
        let (begun, retry) = (self.lake.clock().elapsed(), &self.lake.config().retry);
        let mut unknown = None;
        for attempt in 1..=retry.max_attempts {
            let mut failed = None;
            // Whoever lost once has files to commit, and need not lose again: the next attempt is made in turn.
            unknown = match self.try_commit(written, attempt > 1, &mut failed).await? {
                Attempt::Done(planned) => {
                    let tables = planned.len();
                    for plan in planned {
                        self.announce(plan).await?;
                    }
                    let took = self.lake.clock().elapsed().saturating_sub(begun);
                    metrics::histogram!("signaldb_flush_duration_seconds").record(took.as_secs_f64());
                    tracing::debug!(group = %self.group.id(), upto = written.upto, tables, ?took,
                        "WAL entry processed: flushed");
                    return failed.map_or(Ok(()), |error| Err(LakeError::Table(Box::new(error))));
                }
                Attempt::Lost => None,
                Attempt::Unknown(error) => Some(error),
            };
            // Look again, a little later each time.
            let pause = retry.pause_from(retry.initial_delay / CONFLICT_PART, attempt, draw());
            let cause = if unknown.is_some() { "unknown" } else { "conflict" };
            crate::metrics::note_retry(cause, pause);
            tokio::time::sleep(pause).await;
        }
        Err(unknown.map_or(LakeError::Stopped("other commits won every attempt"), LakeError::Catalog))
    }

    /// One attempt on the tables' current metadata; `in_turn`: nobody else on this node comes between look and swap.
    ///
    /// A table that cannot be planned is left out and reported through `failed`: it must not stop its neighbours.
    async fn try_commit(
        &self,
        written: &Written,
        in_turn: bool,
        failed: &mut Option<LakeError>,
    ) -> Result<Attempt, LakeError> {
        let turn = match in_turn {
            true => Some(self.lake.commit_turns().take(self.memtable.loads().into_keys()).await),
            false => None,
        };
        let plans = stream::iter(self.memtable.loads().into_keys()).map(|id| async move {
            let plan = Box::pin(self.plan(&id, written)).await;
            (id, plan)
        });
        let mut plans = plans.buffered(self.lake.config().concurrency.max(1));
        let (mut planned, mut tables) = (Vec::new(), Vec::new());
        while let Some((id, plan)) = plans.next().await {
            match plan {
                Ok(Some(plan)) => {
                    planned.push(plan);
                    tables.push(id);
                }
                Ok(None) => {}
                // Catalog and store are everybody's: the cut waits for them.
                Err(error @ (LakeError::Catalog(_) | LakeError::Store(_))) => return Err(error),
                Err(error) => {
                    tracing::error!(table = %id, error = %chain(&error), "table cannot be flushed");
                    *failed = Some(error);
                }
            }
        }
        drop(plans);
        // Under another leadership the memtable may hold only a part of the rows: to mark them flushed would lose the rest.
        if self.memtable.epoch() != written.epoch {
            return Err(LakeError::Stopped("another node leads the group"));
        }
        let commits = || planned.iter().filter_map(|plan| plan.commit.as_ref());
        let files: Vec<_> = commits().flat_map(|(_, staged)| staged.files.clone()).collect();
        let writes = stream::iter(files).map(|(location, content)| async move {
            let _call = self.lake.call();
            self.lake.store().write(&location, content).await
        });
        writes.buffer_unordered(self.lake.config().concurrency.max(1)).try_collect::<Vec<()>>().await?;
        let swaps: Vec<Swap> = commits().map(|(swap, _)| swap.clone()).collect();
        if swaps.is_empty() {
            return Ok(Attempt::Done(planned));
        }
        // Whoever collects orphans may take files that waited this long for such: write them anew.
        let too_old = written.encoded().values().any(|(commit, _)| !self.lake.may_commit(*commit));
        if too_old {
            written.encoded().clear();
            return Ok(Attempt::Lost);
        }
        // Without it, files are written beside others' commits; but not in the way of one that is nearly done.
        let _turn = match turn {
            Some(turn) => turn,
            None => self.lake.commit_turns().take(tables).await,
        };
        match self.lake.swap(&swaps).await {
            Ok(SwapOutcome::Moved) => Ok(Attempt::Done(planned)),
            Ok(SwapOutcome::Conflict) => Ok(Attempt::Lost),
            Err(error @ CatalogError::Unknown(_)) => {
                tracing::warn!(group = %self.group.id(), error = %chain(&error), "swap not confirmed; looking again");
                Ok(Attempt::Unknown(error))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Plans the rows of one table up to the index; `None` when it has none.
    async fn plan(&self, id: &TableId, written: &Written) -> Result<Option<Planned>, LakeError> {
        let (epoch, hi) = (written.epoch, written.upto);
        let Some(table) = SignalTable::from_code(id.code) else { return Ok(None) };
        let Some(view) = self.memtable.view(id, epoch) else { return Ok(None) };
        let rows: Vec<MemBatch> = view.batches.iter().filter_map(|batch| batch.upto(hi)).collect();
        if rows.is_empty() {
            return Ok(None);
        }
        let found = {
            let _call = self.lake.call();
            self.find(id, table, &view).await?
        };
        let (location, metadata) = match found {
            Found::Ours { location, metadata } => (location, metadata),
            Found::Lost(reason) => return self.put_aside(id, table, &view, hi, rows, reason).await.map(Some),
        };
        let done = match mutation::active(Mutation::FlushWithoutWatermark) {
            true => view.watermark,
            false => self.flushed_index(&metadata, id)?.max(view.floor),
        };
        let version = table::version_of(&location);
        // The view is older than what the catalog said: only from outside can it be ahead.
        if done < view.watermark || version < view.version {
            return Err(LakeError::WentBack {
                table: id.to_string(),
                found: version,
                flushed: done,
                known: view.version,
                watermark: view.watermark,
                location: view.location,
            });
        }
        let announce = |version, location| Command::FlushCommitted { table: id.clone(), hi, version, location };
        if done >= hi {
            return Ok(Some(Planned { commit: None, announcement: announce(version, location) }));
        }
        // Normally the watermark that we know; after a crash between swap and announcement, a later one.
        let rows: Vec<MemBatch> = rows.iter().filter_map(|batch| batch.above(done)).collect();
        let (commit, files) = self.write_files(id, table, &metadata, rows, done, written).await?;
        let (incarnation, lineage) = self.group.with_state(|state| (state.incarnation(), lineage(state)));
        let mark = FlushMark {
            cluster: self.cluster_id.clone(),
            group: self.group.id().0,
            incarnation,
            term: self.group.term(),
            index: hi,
            commit,
            lineage,
        };
        let staged = {
            let _call = self.lake.call();
            self.stage(&metadata, &location, files, &schema::of(table).columns, &mark).await?
        };
        let swap = Swap {
            namespace: id.namespace(),
            table: table.name().to_owned(),
            base: location,
            new: staged.location.clone(),
        };
        let announcement = announce(staged.version, staged.location.clone());
        Ok(Some(Planned { commit: Some((swap, staged)), announcement }))
    }

    /// Looks for the table that `view` is of, and creates one that the log does not know.
    async fn find(&self, id: &TableId, table: SignalTable, view: &TableView) -> Result<Found, LakeError> {
        // However the table is now: it lacks rows until an operator has seen to that.
        if let Some(reason) = &view.quarantined {
            return Ok(Found::Lost(reason.clone()));
        }
        let known = view.version >= 0;
        let location = match self.lake.pointers().load(&id.namespace(), table.name()).await? {
            Some(location) => location,
            None if known => return Ok(Found::Lost("the catalog does not have it any more".to_owned())),
            None => self.lake.ensure_table(id, table).await?,
        };
        let metadata = self.lake.metadata_at(&location).await?;
        if let Some(reason) = quarantine::altered(&metadata, table) {
            return Ok(Found::Lost(reason));
        }
        if known && location != view.location && self.is_replaced(&metadata, view).await? {
            return Ok(Found::Lost("the catalog has another table in its place".to_owned()));
        }
        Ok(Found::Ours { location, metadata })
    }

    /// Whether the catalog's table is another one than the log's.
    async fn is_replaced(&self, metadata: &TableMetadata, view: &TableView) -> Result<bool, LakeError> {
        match self.lake.metadata_at(&view.location).await {
            Ok(known) => Ok(known.uuid() != metadata.uuid()),
            // Purged with the table, or old: what we flushed to has our mark.
            Err(LakeError::Store(error)) if error.is_not_found() => {
                Ok(view.watermark > view.floor && !metadata.properties().contains_key(&mark_key(self.group.id())))
            }
            Err(error) => Err(error),
        }
    }

    /// Writes rows that have no table any more into files beside the tables, so that nothing is lost and the log can go on.
    async fn put_aside(
        &self,
        id: &TableId,
        table: SignalTable,
        view: &TableView,
        hi: u64,
        rows: Vec<MemBatch>,
        reason: String,
    ) -> Result<Planned, LakeError> {
        let count: usize = rows.iter().map(|batch| batch.rows.num_rows()).sum();
        let (prefix, group, from) = (quarantine::prefix(self.lake.store(), id), self.group.id(), view.watermark);
        tracing::error!(%group, table = %id, reason, rows = count, %prefix, "table is in quarantine: its rows are put aside");
        let schema = Arc::new(FileSchema::plain(table));
        self.encode_files(schema, rows, move |n, _day| quarantine::file(&prefix, group, from, hi, n)).await?;
        let announcement = Command::TableQuarantined { table: id.clone(), from, hi, reason };
        Ok(Planned { commit: None, announcement })
    }

    /// Last index whose rows are in this version of a table.
    ///
    /// # Errors
    /// [`LakeError::ForeignMark`] when another cluster, the group in another incarnation, or another copy of its log
    /// flushed there.
    fn flushed_index(&self, metadata: &TableMetadata, id: &TableId) -> Result<u64, LakeError> {
        let Some(mark) = FlushMark::of(metadata, &self.cluster_id, self.group.id(), id)? else { return Ok(0) };
        if !mark.is_of_log(&self.group) {
            let FlushMark { incarnation, term, index, .. } = mark;
            let found = format!("entry {index} of term {term} and incarnation {incarnation}, which this log never had");
            return Err(LakeError::ForeignMark { table: id.to_string(), found });
        }
        Ok(mark.index)
    }

    async fn write_files(
        &self,
        id: &TableId,
        table: SignalTable,
        metadata: &TableMetadata,
        rows: Vec<MemBatch>,
        from: u64,
        written: &Written,
    ) -> Result<(uuid::Uuid, Vec<DataFile>), LakeError> {
        let key = (id.clone(), metadata.uuid(), from);
        let found = written.encoded().get(&key).cloned();
        if let Some(found) = found {
            return Ok(found);
        }
        let commit = self.lake.new_commit();
        let (root, group) = (metadata.location().to_owned(), self.group.id().0.to_string());
        let name = move |n: usize, day: i32| names::data_file(&root, &group, commit, n, day);
        // Whatever is promoted by the time of the commit: files say themselves which copies they have (ADR 13).
        let schema = Arc::new(FileSchema::of(table, metadata));
        let entries = self.encode_files(schema, rows, name).await?;
        written.encoded().insert(key, (commit, entries.clone()));
        Ok((commit, entries))
    }

    /// Sorts and encodes rows, and writes the files where `name` says.
    async fn encode_files(
        &self,
        schema: Arc<FileSchema>,
        rows: Vec<MemBatch>,
        name: impl Fn(usize, i32) -> String + Send + 'static,
    ) -> Result<Vec<DataFile>, LakeError> {
        if self.lake.is_simulated() {
            return self.encode_files_here(&schema, rows, name).await;
        }
        // One file waits while the next is encoded: rows of very many days must not pile up in memory as files.
        let (sender, mut files) = mpsc::channel(1);
        let batch = self.lake.config().batch;
        let encode = move || -> Result<(), LakeError> {
            let rows: Vec<Rows> = rows.into_iter().map(|batch| batch.rows).collect();
            let mut done = |file: EncodedFile| {
                sender.blocking_send(file).map_err(|_| LakeError::Stopped("the data file's write failed"))
            };
            datafile::encode_in(batch, &schema, &rows, name, &mut done)
        };
        let encoding = self.lake.cpu().spawn_blocking(encode);
        let mut entries = Vec::new();
        while let Some(file) = files.recv().await {
            entries.push(self.write_file(file).await?);
        }
        encoding.await.map_err(|_| LakeError::Stopped("encoding a data file panicked"))??;
        crate::metrics::note_batch(entries.len());
        Ok(entries)
    }

    /// The same on one thread, for simulation: all files are encoded, then written.
    async fn encode_files_here(
        &self,
        schema: &Arc<FileSchema>,
        rows: Vec<MemBatch>,
        name: impl Fn(usize, i32) -> String,
    ) -> Result<Vec<DataFile>, LakeError> {
        let mut files = Vec::new();
        {
            let rows: Vec<Rows> = rows.into_iter().map(|batch| batch.rows).collect();
            let mut keep = |file: EncodedFile| {
                files.push(file);
                Ok(())
            };
            datafile::encode_in(self.lake.config().batch, schema, &rows, name, &mut keep)?;
        }
        let mut entries = Vec::new();
        for file in files {
            entries.push(self.write_file(file).await?);
        }
        Ok(entries)
    }

    async fn write_file(&self, file: EncodedFile) -> Result<DataFile, LakeError> {
        let bytes = file.content.len() as u64;
        metrics::counter!("signaldb_flush_bytes_total").increment(bytes);
        let _call = self.lake.call();
        self.lake.store().write(&file.location, file.content).await?;
        crate::metrics::note_file(file.entry.record_count(), bytes);
        Ok(file.entry)
    }

    async fn stage(
        &self,
        metadata: &TableMetadata,
        location: &str,
        files: Vec<DataFile>,
        columns: &[Column],
        mark: &FlushMark,
    ) -> Result<Staged, LakeError> {
        let mark = serde_json::to_string(mark).map_err(iceberg::Error::from)?;
        let key = mark_key(self.group.id());
        let change = Change {
            add: files,
            add_columns: columns.to_vec(),
            set_properties: HashMap::from([(key.clone(), mark.clone())]),
            summary: HashMap::from([(key, mark)]),
            expire: true,
            merge_manifests: true,
            ..Change::default()
        };
        self.lake.stage(metadata, location, change).await
    }

    /// Tells every replica where the rows are.
    async fn announce(&self, plan: Planned) -> Result<(), LakeError> {
        if let Some((_, Staged { location, metadata, .. })) = plan.commit {
            self.lake.remember(&location, Arc::new(metadata));
        }
        self.proposer.propose_for_flush(&plan.announcement).await?;
        Ok(())
    }
}

/// Whether a group's rows have to go for the memory that all `groups` share, `total` bytes now: half of the budget is
/// used, and writes stop when all is. The groups that hold at least their share go, so that commits stay large.
fn crowds(bytes: usize, total: usize, groups: usize, budget: usize) -> bool {
    bytes > 0 && total >= budget / 2 && bytes.saturating_mul(groups) >= total
}

/// Last log index of `group` whose rows are in this version of a table: the cut between scan and memtable. Views are
/// only served by a group whose tables know its incarnation.
///
/// # Errors
/// [`LakeError::ForeignMark`] when another cluster flushed the group's rows.
pub(crate) fn flushed_index(
    metadata: &TableMetadata,
    cluster_id: &str,
    group: GroupId,
    table: &TableId,
) -> Result<u64, LakeError> {
    Ok(FlushMark::of(metadata, cluster_id, group, table)?.map_or(0, |mark| mark.index))
}

/// Whose rows a snapshot brought into Iceberg: the group, and the last log index of it; `None` when it was no flush.
pub fn flush_of(snapshot: &Snapshot) -> Option<(GroupId, u64)> {
    let summary = &snapshot.summary().additional_properties;
    let (_, text) = summary.iter().find(|(key, _)| key.starts_with(MARK_PREFIX))?;
    let mark: FlushMark = serde_json::from_str(text).ok()?;
    Some((GroupId(mark.group), mark.index))
}

/// Whether this version of a table can come of the group's log. One that knows more must not be told to the log, for that
/// would pass for known: [`look_ahead`] halts the group.
pub(crate) fn is_of_log(
    metadata: &TableMetadata,
    cluster_id: &str,
    group: &Group,
    table: &TableId,
) -> Result<bool, LakeError> {
    let Some(mark) = FlushMark::of(metadata, cluster_id, group.id(), table)? else { return Ok(true) };
    Ok(mark.is_of_log(group))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_share_a_small_budget_flush_before_it_is_used_up() {
        for (bytes, total, groups, budget, expected) in [
            // Eight groups fill a budget that none of them would fill alone.
            (8, 64, 8, 128, true),
            (9, 64, 8, 128, true),
            (7, 64, 8, 128, false),
            // There is room.
            (60, 63, 8, 128, false),
            // One group, one tenant.
            (64, 64, 1, 128, true),
            // Nothing to flush, whatever others hold.
            (0, 0, 8, 0, false),
            (0, 128, 8, 128, false),
        ] {
            assert_eq!(crowds(bytes, total, groups, budget), expected, "{bytes} of {total} in {groups}");
        }
    }

    #[test]
    fn in_a_full_budget_some_group_is_due() {
        for loads in [[50, 50, 28], [128, 0, 0], [43, 43, 42], [1, 1, 126]] {
            let total = loads.iter().sum();
            assert!(loads.iter().any(|bytes| crowds(*bytes, total, loads.len(), 128)), "{loads:?}");
        }
    }
}
