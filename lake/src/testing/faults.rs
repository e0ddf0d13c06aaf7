//! Faults at chosen steps. A step is a call of the catalog, the store or the log; a flusher's are numbered as they come,
//! so that a test can go through all of them: a fault at the first, at the second, until a flush ends before its turn.
//! What reads rows back from the log has a count of its own: it goes on beside the flush.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use signaldb_catalog::{CatalogError, IcebergCatalog, Swap, SwapOutcome, TablePointer};
use signaldb_raft::{Append, Command, Group, RejectReason, WriteError};
use tokio::sync::Notify;

use crate::flush::Proposer;
use crate::memtable::LogReader;
use crate::pointers::TablePointers;

/// What goes wrong with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    /// It does not happen, and the answer says so.
    Refused,
    /// It does not happen, and the answer does not say.
    CommitError,
    /// It happens, and the answer does not come. With [`Hold::After`] it does not come for as long as others take.
    LostReply,
    /// The caller gives up; a swap or a command happens all the same, once the caller has looked and is about to act on
    /// what it saw.
    Late,
}

/// Where the caller stands still until it is told to go on; whoever drops it there has it crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    Nowhere,
    Before,
    After,
}

/// A fault at one step, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) at: u64,
    pub(crate) fault: Fault,
    pub(crate) hold: Hold,
}

/// What happens before a swap is made, given the swap.
pub(crate) type BeforeSwap = Arc<dyn Fn(Swap) -> BoxFuture<'static, ()> + Send + Sync>;

tokio::task_local! {
    /// Comes before each swap of whoever is in its scope: so long the caller takes from looking at a table to its swap.
    pub(crate) static BEFORE_SWAP: BeforeSwap;
}

/// Counts the steps of one flusher and has one of them fail.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    script: Mutex<Script>,
    held: Notify,
    resume: Notify,
}

#[derive(Debug, Default)]
struct Script {
    steps: u64,
    plan: Option<Plan>,
}

impl Faults {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts anew, with this fault.
    pub(crate) fn arm(&self, plan: Plan) {
        *self.script() = Script { steps: 0, plan: Some(plan) };
    }

    /// Ends the faults; whether the one that was planned had its turn.
    pub(crate) fn disarm(&self) -> bool {
        let script = std::mem::take(&mut *self.script());
        script.plan.is_some_and(|plan| script.steps >= plan.at)
    }

    /// Waits until the caller stands still.
    pub(crate) async fn held(&self) {
        self.held.notified().await;
    }

    /// Lets the caller go on.
    pub(crate) fn resume(&self) {
        self.resume.notify_one();
    }

    async fn hold(&self) {
        self.held.notify_one();
        self.resume.notified().await;
    }

    fn turn(&self) -> Option<Plan> {
        let mut script = self.script();
        script.steps += 1;
        let steps = script.steps;
        script.plan.filter(|plan| plan.at == steps)
    }

    /// One step: `act` does it, `later` has it done after the caller gave up, `failed` is what the caller hears.
    pub(crate) async fn step<T, E>(
        &self,
        act: impl Future<Output = Result<T, E>> + Send,
        later: impl FnOnce() + Send,
        failed: impl FnOnce(Fault) -> E + Send,
    ) -> Result<T, E> {
        let Some(plan) = self.turn() else { return act.await };
        if plan.hold == Hold::Before {
            self.hold().await;
        }
        let outcome = match plan.fault {
            Fault::Nothing => act.await,
            Fault::Refused | Fault::CommitError => Err(failed(plan.fault)),
            Fault::LostReply => match act.await {
                Ok(_) => Err(failed(plan.fault)),
                refused => refused,
            },
            Fault::Late => {
                later();
                Err(failed(plan.fault))
            }
        };
        if plan.hold == Hold::After {
            self.hold().await;
        }
        outcome
    }
}

/// The catalog.
#[derive(Debug)]
pub(crate) struct FaultyPointers {
    catalog: IcebergCatalog,
    faults: Arc<Faults>,
    late: Mutex<Vec<Vec<Swap>>>,
}

impl FaultyPointers {
    pub(crate) fn new(catalog: IcebergCatalog, faults: Arc<Faults>) -> Self {
        Self { catalog, faults, late: Mutex::default() }
    }

    /// Carries out the swaps that were given up.
    pub(crate) async fn land_late(&self) {
        let late = std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner));
        for swaps in late {
            self.catalog.swap(&swaps).await.expect("the database answers");
        }
    }
}

fn catalog_error(fault: Fault) -> CatalogError {
    let source = io::Error::other("injected");
    match fault {
        Fault::Refused => CatalogError::Sql { action: "fail", source: source.into() },
        _ => CatalogError::Unknown(source.into()),
    }
}

#[async_trait]
impl TablePointers for FaultyPointers {
    async fn load(&self, namespace: &str, table: &str) -> Result<Option<String>, CatalogError> {
        // A read that fails never leaves a doubt.
        self.faults.step(self.catalog.load(namespace, table), || (), |_| catalog_error(Fault::Refused)).await
    }

    async fn create(&self, namespace: &str, table: &str, location: &str) -> Result<String, CatalogError> {
        self.faults.step(self.catalog.create(namespace, table, location), || (), catalog_error).await
    }

    async fn tables(&self) -> Result<Vec<TablePointer>, CatalogError> {
        self.faults.step(self.catalog.tables(), || (), |_| catalog_error(Fault::Refused)).await
    }

    async fn swap(&self, swaps: &[Swap]) -> Result<SwapOutcome, CatalogError> {
        if let (Ok(before), Some(swap)) = (BEFORE_SWAP.try_with(Arc::clone), swaps.first()) {
            // What swaps in it is not held up itself.
            let nothing: BeforeSwap = Arc::new(|_: Swap| futures::future::ready(()).boxed());
            BEFORE_SWAP.scope(nothing, before(swap.clone())).await;
        }
        self.land_late().await;
        let later = || self.late.lock().unwrap_or_else(PoisonError::into_inner).push(swaps.to_vec());
        self.faults.step(self.catalog.swap(swaps), later, catalog_error).await
    }
}

/// The log.
pub(crate) struct FaultyProposer {
    group: Arc<Group>,
    faults: Arc<Faults>,
    late: Mutex<Vec<Command>>,
}

impl FaultyProposer {
    pub(crate) fn new(group: Arc<Group>, faults: Arc<Faults>) -> Self {
        Self { group, faults, late: Mutex::default() }
    }

    /// Proposes the commands that were given up.
    pub(crate) async fn land_late(&self) {
        let late = std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner));
        for command in late {
            self.group.propose_for_flush(&command).await.expect("the group answers");
        }
    }
}

#[async_trait]
impl Proposer for FaultyProposer {
    async fn propose_for_flush(&self, command: &Command) -> Result<u64, WriteError> {
        self.land_late().await;
        let later = || self.late.lock().unwrap_or_else(PoisonError::into_inner).push(command.clone());
        let failed = |fault| match fault {
            Fault::Refused => WriteError::Rejected(RejectReason::Stopping),
            _ => WriteError::Unknown("injected".to_owned()),
        };
        self.faults.step(self.group.propose_for_flush(command), later, failed).await
    }
}

/// The log as rows are read back from it.
#[derive(Debug)]
pub(crate) struct FaultyLog {
    group: Arc<Group>,
    /// Reads up to and including the one that fails; 0 when none does.
    left: Mutex<u64>,
}

impl FaultyLog {
    pub(crate) fn new(group: Arc<Group>) -> Self {
        Self { group, left: Mutex::default() }
    }

    /// The `read`th from now on fails, counted from 1.
    pub(crate) fn fail_at(&self, read: u64) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = read;
    }

    fn fails(&self) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let fails = *left == 1;
        *left = left.saturating_sub(1);
        fails
    }
}

impl LogReader for FaultyLog {
    fn read_appends(&self, from: u64, to: u64, bytes_max: usize) -> Result<(Vec<(u64, Append)>, u64), String> {
        if self.fails() {
            return Err("injected".to_owned());
        }
        LogReader::read_appends(self.group.as_ref(), from, to, bytes_max)
    }

    fn purged(&self) -> u64 {
        self.group.purged_index()
    }
}
