//! openraft's state machine: a thin shell around [`GroupState`].
//!
//! It is transient: on disk there is only the snapshot of the last completed cut, and a start replays the log from
//! there (DESIGN section 4).

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::alias::{EntryPayloadOf, SnapshotOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};
use signaldb_model::GroupId;
use tokio::sync::watch;

use crate::blocking;
use crate::codec;
use crate::command::Command;
use crate::metrics::{SnapshotKind, note_snapshot};
use crate::sink::{ApplySink, snapshot_key};
use crate::state::{Captures, GroupState};
use crate::state_store::StateStore;
use crate::types::{Applied, LogId, SnapshotMeta, StoredMembership, TypeConfig};

/// An encoded [`GroupState`].
#[derive(Debug, Clone)]
pub(crate) struct SnapshotBytes(pub(crate) Bytes);

type RaftSnapshot = SnapshotOf<TypeConfig, SnapshotBytes>;
type Current = Option<(SnapshotMeta, Bytes)>;

pub(crate) struct StateMachine {
    group: GroupId,
    shared: Arc<Shared>,
    applied: Option<LogId>,
    membership: StoredMembership,
    captures: Captures,
    /// Log id and membership at each cut that is still captured.
    cuts: BTreeMap<u64, (LogId, StoredMembership)>,
    sink: Arc<dyn ApplySink>,
    store: Arc<dyn StateStore>,
    /// Index of the newest completed cut; whoever watches it triggers the snapshot.
    completed_cut: watch::Sender<u64>,
}

/// What others may look at beside the apply task.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    state: Mutex<GroupState>,
    /// The durable snapshot.
    current: Mutex<Current>,
    /// A completed cut that is not durable yet.
    ready: Mutex<Current>,
    /// Held while a snapshot is written: an older one must not land after a newer one.
    persisting: tokio::sync::Mutex<()>,
}

impl Shared {
    pub(crate) fn with_state<T>(&self, look: impl FnOnce(&GroupState) -> T) -> T {
        look(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn has_snapshot(&self) -> bool {
        self.current().is_some()
    }

    /// Size of the durable snapshot; 0 without one.
    pub(crate) fn snapshot_bytes(&self) -> usize {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map_or(0, |(_, bytes)| bytes.len())
    }

    /// Size of the completed cut that is not durable yet; 0 without one.
    pub(crate) fn ready_bytes(&self) -> usize {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.as_ref().map_or(0, |(_, bytes)| bytes.len())
    }

    /// The last index that the durable snapshot covers.
    pub(crate) fn durable_index(&self) -> Option<u64> {
        self.current().and_then(|(meta, _)| meta.last_log_id).map(|id| id.index)
    }

    /// Makes the newest completed cut durable. After a failure it is still there for the next attempt.
    pub(crate) async fn persist_ready(&self, store: &Arc<dyn StateStore>, group: GroupId) -> io::Result<()> {
        let _one_at_a_time = self.persisting.lock().await;
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((meta, bytes)) = ready else { return Ok(()) };
        // The durable snapshot never goes back.
        if self.current().is_none_or(|(current, _)| current.last_log_id < meta.last_log_id) {
            persist(store, group, &meta, &bytes).await?;
            note_snapshot(group, SnapshotKind::Built);
            *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some((meta.clone(), bytes));
        }
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.as_ref().is_some_and(|(newest, _)| newest.last_log_id == meta.last_log_id) {
            *ready = None;
        }
        Ok(())
    }

    fn current(&self) -> Current {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl StateMachine {
    /// Loads the durable snapshot, if there is one, and tells the sink where the group starts.
    pub(crate) fn open(
        group: GroupId,
        store: Arc<dyn StateStore>,
        sink: Arc<dyn ApplySink>,
    ) -> io::Result<(Self, Arc<Shared>, watch::Receiver<u64>)> {
        let (completed_cut, watcher) = watch::channel(0);
        let shared = Arc::new(Shared::default());
        let mut machine = Self {
            group,
            shared: Arc::clone(&shared),
            applied: None,
            membership: StoredMembership::default(),
            captures: Captures::default(),
            cuts: BTreeMap::new(),
            sink,
            store,
            completed_cut,
        };
        match machine.store.get(&snapshot_key(group)).map_err(io::Error::other)? {
            Some(bytes) => {
                let (meta, state) = codec::decode_snapshot(&Bytes::from(bytes))?;
                machine.restore(meta, state)?;
            }
            None => machine.sink.restored(group, 0, &GroupState::default()),
        }
        Ok((machine, shared, watcher))
    }

    fn restore(&mut self, meta: SnapshotMeta, bytes: Bytes) -> io::Result<()> {
        let state = GroupState::decode(&bytes).map_err(io::Error::other)?;
        self.sink.restored(self.group, meta.last_log_id.map_or(0, |id| id.index), &state);
        for json in &state.meta {
            self.sink.meta(json);
        }
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.captures = Captures::default();
        self.cuts.clear();
        *self.shared.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        *self.shared.current.lock().unwrap_or_else(PoisonError::into_inner) = Some((meta, bytes));
        Ok(())
    }

    fn apply_entry(&mut self, log_id: LogId, payload: EntryPayloadOf<TypeConfig>) -> io::Result<Applied> {
        let index = log_id.index;
        let applied = match payload {
            EntryPayload::Blank => Applied { index, first_copy: None },
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(log_id), membership);
                Applied { index, first_copy: None }
            }
            EntryPayload::Normal(encoded) => {
                let command = Command::decode(&encoded.0).map_err(io::Error::other)?;
                self.apply_command(log_id, command)
            }
        };
        self.applied = Some(log_id);
        self.sink.applied(self.group, index);
        Ok(applied)
    }

    fn apply_command(&mut self, log_id: LogId, command: Command) -> Applied {
        let index = log_id.index;
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let applied = state.apply(index, &command);
        if matches!(command, Command::FlushCut { .. }) {
            self.cuts.insert(index, (log_id, self.membership.clone()));
        }
        let completed = self.captures.follow(index, &command, &state);
        let table = match &command {
            Command::TableQuarantined { table, .. } | Command::TableReleased { table } => {
                state.tables.get(table).map(|known| (table.clone(), known.clone()))
            }
            _ => None,
        };
        drop(state);
        match command {
            Command::Append(append) if applied.first_copy.is_none() => self.sink.appended(self.group, index, append),
            Command::Append(_)
            | Command::FlushCut { .. }
            | Command::BeginIncarnation { .. }
            | Command::IncarnationSettled { .. } => {}
            Command::TableQuarantined { .. } | Command::TableReleased { .. } => {
                if let Some((id, known)) = table {
                    self.sink.quarantine(self.group, &id, &known);
                }
            }
            Command::FlushCommitted { table, hi, version, location } => {
                self.sink.flushed(self.group, &table, hi, version, &location);
            }
            Command::TableAdvanced { table, version, location } => {
                self.sink.advanced(self.group, &table, version, &location);
            }
            Command::Meta(json) => self.sink.meta(&json),
        }
        if let Some((cut, state)) = completed {
            self.complete_cut(cut, &state);
        }
        applied
    }

    fn complete_cut(&mut self, cut: u64, state: &GroupState) {
        let later = self.cuts.split_off(&(cut + 1));
        let done = std::mem::replace(&mut self.cuts, later);
        // A cut that the snapshot we started from already covers has no log id here.
        let Some((log_id, membership)) = done.get(&cut) else { return };
        let meta = SnapshotMeta { last_log_id: Some(*log_id), last_membership: membership.clone() };
        *self.shared.ready.lock().unwrap_or_else(PoisonError::into_inner) = Some((meta, state.encode()));
        self.completed_cut.send_replace(cut);
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotBytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let applied = self.apply_entry(entry.log_id, entry.payload)?;
            if let Some(responder) = responder {
                responder.send(applied);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        Some(Builder { shared: Arc::clone(&self.shared) })
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { shared: Arc::clone(&self.shared) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotBytes) -> Result<(), io::Error> {
        let shared = Arc::clone(&self.shared);
        let _one_at_a_time = shared.persisting.lock().await;
        persist(&self.store, self.group, meta, &snapshot.0).await?;
        note_snapshot(self.group, SnapshotKind::Installed);
        *shared.ready.lock().unwrap_or_else(PoisonError::into_inner) = None;
        tracing::info!(group = self.group.0, last = ?meta.last_log_id.map(|id| id.index), "snapshot from the leader installed");
        self.restore(meta.clone(), snapshot.0)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        Ok(self.shared.current().map(|(meta, bytes)| Snapshot { meta, snapshot: SnapshotBytes(bytes) }))
    }
}

/// Returns the snapshot that [`Shared::persist_ready`] made durable: an error here would stop the group for good, a full
/// disk there only delays the purge.
pub(crate) struct Builder {
    shared: Arc<Shared>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotBytes;

    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
        let (meta, bytes) = self.shared.current().ok_or_else(|| io::Error::other("no flush cut is complete yet"))?;
        Ok(Snapshot { meta, snapshot: SnapshotBytes(bytes) })
    }
}

async fn persist(store: &Arc<dyn StateStore>, group: GroupId, meta: &SnapshotMeta, bytes: &Bytes) -> io::Result<()> {
    let (store, encoded) = (Arc::clone(store), codec::encode_snapshot(meta, bytes));
    blocking::run(store.blocks(), move || store.put(&[(&snapshot_key(group), &encoded)]))
        .await
        .map_err(io::Error::other)?
        .map_err(io::Error::other)
}
