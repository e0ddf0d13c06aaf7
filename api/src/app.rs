//! What every handler needs.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use signaldb_catalog::{Access, Identity};
use signaldb_lake::Lake;
use signaldb_model::{AckLevel, Clock, NodeId, TenantId};
use signaldb_query::QueryEngine;
use signaldb_raft::{DiskLevel, Groups};
use signaldb_signals::{SignalKind, SignalTable};
use tokio_util::task::TaskTracker;

use crate::intake::Intake;

/// Services behind the API.
pub struct AppDeps {
    pub groups: Arc<Groups>,
    pub lake: Lake,
    pub engine: QueryEngine,
    pub access: Access,
    pub node: NodeId,
    pub cluster: String,
    pub address: String,
    /// Guards operations when it is set.
    pub admin_key: Option<String>,
    /// Seals the session tokens of Flight handshakes; the same on every node of the cluster. Without it there are none.
    pub session_secret: Option<Vec<u8>>,
    pub clock: Arc<dyn Clock>,
    /// How long a write may wait for its commit before its outcome is called unknown.
    pub write_timeout: Duration,
    /// How long a repeated request is recognized; zero turns it off.
    pub dedup_window: Duration,
    /// Tenants whose writes are acknowledged at a stronger level than the groups' (`[[auth.tenants]] ack`).
    pub tenant_acks: BTreeMap<TenantId, AckLevel>,
    /// What requests that are read, or are on their way into the log, may hold together; beyond it they are throttled.
    pub intake_bytes_max: usize,
    /// Signals that are stored (`schema.default_schemas`).
    pub signals: Vec<SignalKind>,
    /// Renders the node's metrics as Prometheus text.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
}

/// Shared by all handlers; cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Inner>);

struct Inner {
    deps: AppDeps,
    draining: AtomicBool,
    intake: Intake,
    /// Datasets whose tables are known to exist, or are being made.
    prepared: Mutex<HashSet<(String, String)>>,
    tasks: TaskTracker,
}

impl fmt::Debug for AppDeps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppDeps").field("node", &self.node).field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("node", &self.0.deps.node).finish_non_exhaustive()
    }
}

impl std::ops::Deref for App {
    type Target = AppDeps;

    fn deref(&self) -> &AppDeps {
        &self.0.deps
    }
}

impl App {
    pub fn new(deps: AppDeps) -> Self {
        Self(Arc::new(Inner {
            intake: Intake::new(deps.intake_bytes_max),
            deps,
            draining: AtomicBool::new(false),
            prepared: Mutex::default(),
            tasks: TaskTracker::new(),
        }))
    }

    /// From now on new requests are refused with a retry hint.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Below the disk reserve: writes are refused with a retry hint; queries go on.
    pub(crate) fn disk_full(&self) -> bool {
        self.groups.disk_level() != DiskLevel::Normal
    }

    pub(crate) fn intake(&self) -> &Intake {
        &self.0.intake
    }

    pub(crate) fn draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Makes the dataset's tables exist, once, in the background: a catalog outage must not delay a write.
    pub(crate) fn prepare(&self, identity: &Identity) {
        let key = (identity.tenant.to_string(), identity.dataset.to_string());
        if !self.0.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            return;
        }
        let (app, identity) = (self.clone(), identity.clone());
        self.0.tasks.spawn(async move {
            let noted = app.access.note_use(&identity).await.map_err(|error| error.to_string());
            let tables = SignalTable::ALL.into_iter().filter(|table| app.signals.contains(&table.kind()));
            let made = app.lake.ensure_tables(&identity.tenant, &identity.dataset, tables).await;
            if let Err(error) = noted.and(made.map_err(|error| error.to_string())) {
                tracing::warn!(tenant = %identity.tenant, dataset = %identity.dataset, %error, "tables are not created yet");
                // One attempt a second a dataset, however many requests come.
                tokio::time::sleep(Duration::from_secs(1)).await;
                app.0.prepared.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            }
        });
    }
}
