//! The queries of this node, from their arrival until nobody works on them any more.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use metrics::{counter, gauge, histogram};
use signaldb_catalog::Identity;
use signaldb_model::{Clock, NodeId, TenantId, UnixNanos};
use signaldb_proto::peer::QueryState;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::budget::{Budget, late, size};
use crate::error::{QueryError, QueryErrorKind};
use crate::pool::QueryPool;

/// Characters of a query's text that are kept.
const TEXT_CHARS_MAX: usize = 1000;

/// No query has longer, whatever is configured or a peer says: a moment much further away is none that clocks can say.
const TIME_MAX: Duration = Duration::from_secs(30 * 365 * 86_400);

/// Names a query among those of all nodes, as `node-number`, the number in hex. The number is random: a node that starts
/// again does not give a name twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QueryId {
    /// Where it runs.
    pub node: NodeId,
    pub(crate) number: u64,
}

impl fmt::Display for QueryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.node, self.number)
    }
}

impl FromStr for QueryId {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        let parse = || {
            let (node, number) = text.split_once('-')?;
            let number = (number.len() == 16).then(|| u64::from_str_radix(number, 16).ok()).flatten()?;
            Some(Self { node: NodeId(node.parse().ok()?), number })
        };
        parse().ok_or_else(|| {
            let text: String = text.chars().take(80).collect();
            QueryError::new(QueryErrorKind::Invalid, format!("{text:?} is not the id of a query, node-number"))
        })
    }
}

/// What a query does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum State {
    Waiting,
    Planning,
    Running,
    /// It was told to stop.
    Stopping,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Planning => "planning",
            Self::Running => "running",
            Self::Stopping => "stopping",
        }
    }
}

/// A query that somebody works on, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryStatus {
    /// As [`QueryId`] writes it.
    pub id: String,
    pub node: NodeId,
    pub tenant: String,
    pub dataset: String,
    /// Its text, cut at 1000 characters.
    pub query: String,
    pub started: UnixNanos,
    pub elapsed: Duration,
    /// Rows that it yielded so far.
    pub rows: u64,
    /// Bytes that it read from the store.
    pub scanned_bytes: u64,
    /// Bytes that its operators hold.
    pub memory_bytes: u64,
    /// `waiting`, `planning`, `running` or `stopping`.
    pub state: String,
}

impl QueryStatus {
    /// As another node says it.
    pub(crate) fn from_peer(node: NodeId, query: QueryState) -> Self {
        Self {
            id: query.id,
            node,
            tenant: query.tenant,
            dataset: query.dataset,
            query: query.query,
            started: UnixNanos(query.started_unix_nano),
            elapsed: Duration::from_nanos(query.elapsed_nano),
            rows: query.rows,
            scanned_bytes: query.scanned_bytes,
            memory_bytes: query.memory_bytes,
            state: query.state,
        }
    }

    /// As another node is told.
    pub(crate) fn into_peer(self) -> QueryState {
        QueryState {
            id: self.id,
            tenant: self.tenant,
            dataset: self.dataset,
            query: self.query,
            started_unix_nano: self.started.0,
            elapsed_nano: u64::try_from(self.elapsed.as_nanos()).unwrap_or(u64::MAX),
            rows: self.rows,
            scanned_bytes: self.scanned_bytes,
            memory_bytes: self.memory_bytes,
            state: self.state,
        }
    }
}

/// The queries of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Queries(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: NodeId,
    clock: Arc<dyn Clock>,
    running: Mutex<HashMap<u64, Arc<Record>>>,
    /// How many results of each tenant are open.
    open: Mutex<HashMap<TenantId, usize>>,
}

/// A result that somebody reads, or could: its last rows are kept although nobody works on it any more.
#[derive(Debug)]
pub(crate) struct OpenResult {
    queries: Queries,
    tenant: TenantId,
}

impl Drop for OpenResult {
    fn drop(&mut self) {
        let mut open = self.queries.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(results) = open.get_mut(&self.tenant) {
            *results -= 1;
            if *results == 0 {
                open.remove(&self.tenant);
            }
        }
    }
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Record {
    id: QueryId,
    identity: Identity,
    text: String,
    /// Of the Flight ticket that it answers; empty for all others. The same ticket may be read twice.
    ticket: Bytes,
    started: UnixNanos,
    begun: Instant,
    deadline: Instant,
    /// Of all its time. Errors name it, also where a share began with less.
    allowed: Duration,
    scan_bytes_max: Option<u64>,
    /// Of a share: what its query had read before, wherever that was.
    scanned_before: u64,
    state: AtomicU8,
    rows: AtomicU64,
    scanned: AtomicU64,
    memory: OnceLock<Arc<QueryPool>>,
    stop: CancellationToken,
    /// Why it has to stop, once it has to.
    reason: OnceLock<QueryError>,
}

/// What a query may still use, and what it may use in all, which is what errors name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    /// Until its deadline.
    pub(crate) time: Duration,
    /// From its arrival to its deadline.
    pub(crate) time_max: Duration,
    /// Bytes of the store; `None`: as many as it likes.
    pub(crate) scan_bytes: Option<u64>,
    pub(crate) scan_bytes_max: Option<u64>,
}

/// Takes a query off the list when nobody works on it any more.
#[derive(Debug)]
pub(crate) struct Listed {
    queries: Queries,
    record: Arc<Record>,
    /// Of another node's query, which counts how long it took.
    is_share: bool,
}

impl std::ops::Deref for Listed {
    type Target = Arc<Record>;

    fn deref(&self) -> &Arc<Record> {
        &self.record
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let queries = &self.queries.0;
        queries.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.record.id.number);
        if !self.is_share {
            histogram!("signaldb_query_duration_seconds").record(self.record.begun.elapsed());
        }
    }
}

impl Queries {
    /// None yet.
    pub fn new(node: NodeId, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { node, clock, running: Mutex::default(), open: Mutex::default() }))
    }

    /// Opens a result; until it is dropped, it is one of at most `most` of its tenant.
    ///
    /// # Errors
    /// When so many are open.
    pub(crate) fn open(&self, tenant: &TenantId, most: usize) -> Result<OpenResult, QueryError> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let results = open.get(tenant).copied().unwrap_or(0);
        if results >= most {
            return Err(Budget::Queue.exceeded(format!(
                "{results} results of the tenant are open, beyond query.tenant_concurrency and query.queue: read them to \
                 their end, or close them"
            )));
        }
        open.insert(tenant.clone(), results + 1);
        Ok(OpenResult { queries: self.clone(), tenant: tenant.clone() })
    }

    /// A query arrived. `allowed` is all the time that it has, `ticket` what [`Self::cancel`] may name it by.
    pub(crate) fn list(
        &self,
        identity: &Identity,
        text: &str,
        ticket: Bytes,
        allowed: Duration,
        scan_bytes_max: Option<u64>,
    ) -> Listed {
        let left = Left { time: allowed, time_max: allowed, scan_bytes: scan_bytes_max, scan_bytes_max };
        let record = Arc::new(self.new_record(identity, text, ticket, left));
        self.enlist_as(&record, false)
    }

    /// Shares of another node's query, which nobody works on yet.
    pub(crate) fn record_of_shares(&self, identity: &Identity, text: &str, left: Left) -> Arc<Record> {
        Arc::new(self.new_record(identity, text, Bytes::new(), left))
    }

    fn new_record(&self, identity: &Identity, text: &str, ticket: Bytes, left: Left) -> Record {
        let begun = Instant::now();
        let scanned_before = left.scan_bytes_max.zip(left.scan_bytes).map_or(0, |(max, left)| max.saturating_sub(left));
        let (number, _) = uuid::Uuid::new_v4().as_u64_pair();
        Record {
            id: QueryId { node: self.0.node, number },
            identity: identity.clone(),
            text: text.chars().take(TEXT_CHARS_MAX).collect(),
            ticket,
            started: self.0.clock.now(),
            begun,
            deadline: begun + left.time.min(TIME_MAX),
            allowed: left.time_max.min(TIME_MAX),
            scan_bytes_max: left.scan_bytes_max,
            scanned_before,
            state: AtomicU8::new(State::Waiting as u8),
            rows: AtomicU64::new(0),
            scanned: AtomicU64::new(0),
            memory: OnceLock::new(),
            stop: CancellationToken::new(),
            reason: OnceLock::new(),
        }
    }

    /// Somebody works on a share of a query.
    pub(crate) fn enlist_share(&self, record: &Arc<Record>) -> Listed {
        self.enlist_as(record, true)
    }

    fn enlist_as(&self, record: &Arc<Record>, is_share: bool) -> Listed {
        let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(record.id.number, Arc::clone(record));
        Listed { queries: self.clone(), record: Arc::clone(record), is_share }
    }

    fn of(&self, tenant: Option<&TenantId>) -> Vec<Arc<Record>> {
        let running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        let visible = |record: &&Arc<Record>| tenant.is_none_or(|tenant| *tenant == record.identity.tenant);
        running.values().filter(visible).cloned().collect()
    }

    /// Those of a tenant, or all.
    pub(crate) fn statuses(&self, tenant: Option<&TenantId>) -> Vec<QueryStatus> {
        self.of(tenant).iter().map(|record| record.status()).collect()
    }

    /// One of them, if somebody works on it.
    pub(crate) fn find(&self, id: QueryId) -> Option<Arc<Record>> {
        let running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(&id.number).filter(|record| record.id == id).cloned()
    }

    /// Stops a query, of that tenant if one is named; says whether there is one.
    pub(crate) fn kill(&self, id: QueryId, tenant: Option<&TenantId>) -> bool {
        let found = self.of(tenant).into_iter().find(|record| record.id == id);
        if let Some(record) = &found {
            record.stop(QueryError::new(QueryErrorKind::Cancelled, format!("query {id} was killed")));
        }
        found.is_some()
    }

    /// Stops the tenant's queries that answer one of these tickets; says whether there is one.
    pub(crate) fn cancel(&self, tickets: &[Bytes], tenant: &TenantId) -> bool {
        let named = |record: &Arc<Record>| !record.ticket.is_empty() && tickets.contains(&record.ticket);
        let found: Vec<_> = self.of(Some(tenant)).into_iter().filter(named).collect();
        for record in &found {
            record.stop(QueryError::new(QueryErrorKind::Cancelled, "the query was cancelled by its client"));
        }
        !found.is_empty()
    }

    /// Stops the queries that may have spilled, because the log needs the disk; returns how many.
    pub(crate) fn stop_spilling(&self) -> usize {
        let spills = |record: &Arc<Record>| record.memory().is_some_and(|memory| memory.inner().may_have_spilled());
        let runs = |record: &Arc<Record>| record.state() != State::Stopping;
        let found: Vec<_> = self.of(None).into_iter().filter(|record| runs(record) && spills(record)).collect();
        for record in &found {
            let message =
                "less is free of the log's disk than wal.disk_reserve: until there is more, no query may spill to it";
            record.stop(Budget::Spill.exceeded(message));
        }
        found.len()
    }

    /// Brings the gauges up to date.
    pub(crate) fn record_metrics(&self) {
        let running = self.of(None);
        let waiting = running.iter().filter(|record| record.state() == State::Waiting).count();
        gauge!("signaldb_queries_running").set((running.len() - waiting) as f64);
        gauge!("signaldb_queries_waiting").set(waiting as f64);
    }
}

impl Record {
    pub(crate) fn id(&self) -> QueryId {
        self.id
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Its memory, once its turn came.
    pub(crate) fn memory(&self) -> Option<Arc<QueryPool>> {
        self.memory.get().cloned()
    }

    /// What it may still use.
    pub(crate) fn left(&self) -> Left {
        Left {
            time: self.deadline.saturating_duration_since(Instant::now()),
            time_max: self.allowed,
            scan_bytes: self.scan_bytes_max.map(|limit| limit.saturating_sub(self.scanned_in_all())),
            scan_bytes_max: self.scan_bytes_max,
        }
    }

    /// With what its query had read before, if it is a share.
    fn scanned_in_all(&self) -> u64 {
        self.scanned_before.saturating_add(self.scanned_bytes())
    }

    pub(crate) fn scanned_bytes(&self) -> u64 {
        self.scanned.load(Ordering::Relaxed)
    }

    fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            _ if self.stop.is_cancelled() => State::Stopping,
            state if state == State::Waiting as u8 => State::Waiting,
            state if state == State::Planning as u8 => State::Planning,
            _ => State::Running,
        }
    }

    /// Its turn came; from now on it holds memory.
    pub(crate) fn plans(&self, memory: Arc<QueryPool>) {
        // Nobody else sets it.
        let _ = self.memory.set(memory);
        self.state.store(State::Planning as u8, Ordering::Relaxed);
    }

    pub(crate) fn runs(&self) {
        self.state.store(State::Running as u8, Ordering::Relaxed);
    }

    /// Counts as its memory what is none of its operators'. Nothing before its turn.
    pub(crate) fn reservation(&self, what: &str) -> Option<MemoryReservation> {
        let pool = Arc::clone(self.memory.get()?);
        let pool: Arc<dyn MemoryPool> = pool;
        Some(MemoryConsumer::new(what).register(&pool))
    }

    pub(crate) fn note_rows(&self, rows: usize) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// So many bytes more come from the store.
    ///
    /// # Errors
    /// Beyond the query's budget; then the query stops, whatever becomes of the error on its way.
    pub(crate) fn scan(&self, bytes: u64) -> Result<(), QueryError> {
        counter!("signaldb_query_scanned_bytes_total").increment(bytes);
        self.scan_elsewhere(bytes)
    }

    /// The same, for bytes that another node read for it and has counted.
    ///
    /// # Errors
    /// As for [`Self::scan`].
    pub(crate) fn scan_elsewhere(&self, bytes: u64) -> Result<(), QueryError> {
        let scanned = self.scanned.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let scanned = scanned.saturating_add(self.scanned_before);
        match self.scan_bytes_max {
            Some(limit) if scanned > limit => {
                let (limit, scanned) = (size(limit), size(scanned));
                let message = format!("the query wanted to read {scanned} of data files, query.scan allows {limit}");
                let error = Budget::Scan.exceeded(message);
                self.stop(error.clone());
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Its work begins again where it had read so much: what it read since was in vain, and counts for its budget no more. The
    /// node has counted it.
    pub(crate) fn scan_again(&self, scanned_before: u64) {
        self.scanned.store(scanned_before, Ordering::Relaxed);
    }

    fn stop(&self, reason: QueryError) {
        // The first reason counts.
        let _ = self.reason.set(reason);
        self.stop.cancel();
    }

    /// Why the query has to stop, if it has to.
    pub(crate) fn reason(&self) -> Option<QueryError> {
        self.reason.get().cloned()
    }

    pub(crate) fn stopped(&self) -> WaitForCancellationFuture<'_> {
        self.stop.cancelled()
    }

    /// Why a query ended that says nothing itself.
    pub(crate) fn end(&self) -> QueryError {
        self.reason().unwrap_or_else(|| late(self.allowed, self.state() == State::Waiting))
    }

    /// Why a query ended whose task went away without a word.
    pub(crate) fn gone(&self) -> QueryError {
        match self.reason() {
            None if Instant::now() < self.deadline() => {
                QueryError::new(QueryErrorKind::Internal, "the query's task died")
            }
            _ => self.end(),
        }
    }

    /// Does a part of the query's work, until its deadline, or until it has to stop.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = Result<T, QueryError>>) -> Result<T, QueryError> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(self.end()),
            outcome = tokio::time::timeout_at(self.deadline(), work) => match outcome {
                // What it was stopped for may come back as something else.
                Ok(Err(error)) => Err(self.reason().unwrap_or(error)),
                Ok(done) => done,
                Err(_) => Err(self.end()),
            },
        }
    }

    fn status(&self) -> QueryStatus {
        QueryStatus {
            id: self.id.to_string(),
            node: self.id.node,
            tenant: self.identity.tenant.to_string(),
            dataset: self.identity.dataset.to_string(),
            query: self.text.clone(),
            started: self.started,
            elapsed: self.begun.elapsed(),
            rows: self.rows.load(Ordering::Relaxed),
            scanned_bytes: self.scanned_bytes(),
            memory_bytes: self.memory.get().map_or(0, |memory| memory.reserved() as u64),
            state: self.state().name().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use signaldb_model::{DatasetId, SystemClock};

    use super::*;
    use crate::pool::{NodeMemory, QueryMemory};

    fn identity(tenant: &str) -> Identity {
        let (tenant, dataset) = (TenantId::new(tenant).expect("a name"), DatasetId::new("d").expect("a name"));
        Identity { tenant, dataset }
    }

    fn queries() -> Queries {
        Queries::new(NodeId(7), Arc::new(SystemClock))
    }

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = QueryId { node: NodeId(3), number: 0xab };
        assert_eq!(id.to_string(), "3-00000000000000ab");
        assert_eq!(id.to_string().parse::<QueryId>().expect("reads"), id);
        for bad in ["", "3", "3-ab", "x-00000000000000ab", "3-00000000000000zz", "3-é0000000000000ab"] {
            assert_eq!(bad.parse::<QueryId>().expect_err("refused").kind, QueryErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn a_query_is_listed_until_nobody_works_on_it() {
        let queries = queries();
        let listed = queries.list(&identity("acme"), &"x".repeat(5000), Bytes::new(), Duration::from_secs(60), None);
        let other = queries.list(&identity("other"), "SELECT 1", Bytes::new(), Duration::from_secs(60), None);
        let found = queries.statuses(Some(&listed.identity.tenant));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].query.len(), found[0].state.as_str()), (TEXT_CHARS_MAX, "waiting"));
        assert_eq!(queries.statuses(None).len(), 2);
        drop((listed, other));
        assert_eq!(queries.statuses(None), Vec::new());
    }

    #[test]
    fn a_peer_hears_all_of_a_query() {
        let queries = queries();
        let _listed = queries.list(&identity("acme"), "SELECT 1", Bytes::new(), Duration::from_secs(60), None);
        let status = queries.statuses(None).remove(0);
        assert_eq!(QueryStatus::from_peer(NodeId(7), status.clone().into_peer()), status);
    }

    #[test]
    fn only_its_tenant_finds_a_query() {
        let queries = queries();
        let listed = queries.list(&identity("acme"), "SELECT 1", Bytes::new(), Duration::from_secs(60), None);
        let (acme, other) = (identity("acme").tenant, identity("other").tenant);
        assert!(!queries.kill(listed.id(), Some(&other)));
        assert!(listed.reason().is_none());
        assert!(queries.kill(listed.id(), Some(&acme)));
        assert_eq!(listed.reason().expect("a reason").kind, QueryErrorKind::Cancelled);
        assert_eq!(queries.statuses(None)[0].state, "stopping");
    }

    #[test]
    fn only_queries_that_may_have_spilled_give_way_to_the_log() {
        let queries = queries();
        let list = |text| queries.list(&identity("acme"), text, Bytes::new(), Duration::from_secs(60), None);
        let (waiting, small, large) = (list("SELECT 1"), list("SELECT 2"), list("SELECT 3"));
        let node = Arc::new(NodeMemory::new(4000, 2));
        for running in [&small, &large] {
            running.plans(QueryMemory::pool(&node, 1000));
        }
        let pool: Arc<dyn MemoryPool> = large.memory().expect("its turn came");
        let sort = MemoryConsumer::new("sort").with_can_spill(true).register(&pool);
        sort.try_grow(2000).expect_err("is refused");
        assert_eq!((queries.stop_spilling(), queries.stop_spilling()), (1, 0), "once");
        assert_eq!(large.reason().expect("a reason").budget, Some(Budget::Spill));
        assert!(waiting.reason().is_none() && small.reason().is_none());
    }

    #[test]
    fn a_tenant_cancels_the_results_of_its_tickets_and_nothing_else() {
        let queries = queries();
        let [ticket, another, none] = [&b"1"[..], b"2", b""].map(Bytes::from_static);
        let of =
            |ticket: &Bytes| queries.list(&identity("acme"), "SELECT 1", ticket.clone(), Duration::from_secs(60), None);
        let (first, again, without) = (of(&ticket), of(&ticket), of(&none));
        let (acme, other) = (identity("acme").tenant, identity("other").tenant);
        assert!(!queries.cancel(std::slice::from_ref(&ticket), &other));
        assert!(!queries.cancel(&[another.clone(), none], &acme));
        assert!(first.reason().is_none());
        assert!(queries.cancel(&[another, ticket.clone()], &acme));
        for stopped in [&first, &again] {
            assert_eq!(stopped.reason().expect("a reason").kind, QueryErrorKind::Cancelled);
        }
        assert!(without.reason().is_none());
        drop((first, again));
        assert!(!queries.cancel(&[ticket], &acme));
    }

    #[test]
    fn results_that_nobody_reads_are_bounded_for_each_tenant() {
        let queries = queries();
        let (acme, other) = (identity("acme").tenant, identity("other").tenant);
        let [first, _second] = [0, 1].map(|_| queries.open(&acme, 2).expect("opens"));
        let refused = queries.open(&acme, 2).expect_err("too many");
        assert_eq!((refused.kind, refused.budget), (QueryErrorKind::Busy, Some(Budget::Queue)));
        let others = queries.open(&other, 2).expect("opens");
        drop((first, others));
        let _third = queries.open(&acme, 2).expect("opens");
        assert_eq!(queries.open(&acme, 2).expect_err("too many").kind, QueryErrorKind::Busy);
        assert_eq!(queries.0.open.lock().expect("no panic").len(), 1, "who has none is not remembered");
    }

    #[tokio::test]
    async fn a_query_that_reads_too_much_stops_with_both_numbers() {
        let listed = queries().list(&identity("acme"), "SELECT 1", Bytes::new(), Duration::from_secs(60), Some(2048));
        listed.scan(2048).expect("as much as it may");
        let error = listed.scan(1024).expect_err("too much");
        assert_eq!(error.budget, Some(Budget::Scan));
        assert!(error.message.contains("3.0 KiB") && error.message.contains("2.0 KiB"), "{error}");
        // Whoever reads may take the error for one of the store, and go on.
        let went_on = listed.within(async { Ok::<_, QueryError>(()) }).await;
        assert_eq!(went_on.expect_err("stopped").budget, Some(Budget::Scan));
    }

    #[test]
    fn what_a_query_read_before_it_began_again_counts_no_more() {
        let listed = queries().list(&identity("acme"), "SELECT 1", Bytes::new(), Duration::from_secs(60), Some(2048));
        listed.scan(512).expect("rows that somebody has seen");
        let before = listed.scanned_bytes();
        for _ in 0..3 {
            listed.scan(1536).expect("as much as it may");
            listed.scan_again(before);
            assert_eq!((listed.scanned_bytes(), listed.left().scan_bytes), (512, Some(1536)));
        }
        listed.scan(1536).expect("as much as it may");
        assert_eq!(listed.scan(1).expect_err("too much").budget, Some(Budget::Scan));
    }

    /// The query may use 2 KiB and a minute; 512 bytes are left for a share, and a millisecond for another one.
    #[tokio::test]
    async fn a_share_that_goes_beyond_a_budget_says_what_its_query_would() {
        let (asking, asked) = (queries(), queries());
        let query = asking.list(&identity("acme"), "SELECT 1", Bytes::new(), Duration::from_secs(60), Some(2048));
        query.runs();
        query.scan(1536).expect("as much as it may");
        let left = query.left();
        assert!(left.time > Duration::ZERO && left.time <= Duration::from_secs(60), "{left:?}");
        assert_eq!((left.time_max, left.scan_bytes), (Duration::from_secs(60), Some(512)));
        let begun = |left: Left| {
            let share = asked.record_of_shares(&identity("acme"), "a share", left);
            share.runs();
            share
        };
        let late = begun(Left { time: Duration::from_millis(1), ..left });
        let error = late.within(std::future::pending::<Result<(), QueryError>>()).await.expect_err("late");
        assert_eq!((error.budget, error.message), (Some(Budget::Deadline), query.end().message));
        let share = begun(left);
        share.scan(512).expect("as much as it may");
        assert_eq!((share.left().scan_bytes, share.scanned_bytes()), (Some(0), 512), "what it read itself");
        let error = share.scan(1024).expect_err("too much");
        let of_the_query = query.scan(1536).expect_err("too much");
        assert_eq!((error.budget, error.message), (Some(Budget::Scan), of_the_query.message));
    }

    #[tokio::test]
    async fn the_deadline_is_a_budget() {
        let listed = queries().list(&identity("acme"), "SELECT 1", Bytes::new(), Duration::from_millis(1), None);
        let waited = listed.within(std::future::pending::<Result<(), QueryError>>()).await.expect_err("late");
        assert_eq!((waited.kind, waited.budget), (QueryErrorKind::Deadline, Some(Budget::Deadline)));
        assert!(waited.message.contains("waited for its turn"), "{waited}");
        assert_eq!(listed.gone().kind, QueryErrorKind::Deadline);
        listed.runs();
        let ran = listed.within(std::future::pending::<Result<(), QueryError>>()).await.expect_err("late");
        assert!(ran.message.contains("did not finish"), "{ran}");
    }

    #[tokio::test]
    async fn no_deadline_is_too_far_away() {
        for allowed in [Duration::from_millis(u64::MAX), Duration::MAX] {
            let listed = queries().list(&identity("acme"), "SELECT 1", Bytes::new(), allowed, None);
            let work = async {
                // Whoever waits needs a timer.
                tokio::task::yield_now().await;
                Ok::<_, QueryError>(())
            };
            listed.within(work).await.expect("is in time");
        }
    }

    #[test]
    fn a_task_that_dies_early_was_not_late() {
        let listed = queries().list(&identity("acme"), "SELECT 1", Bytes::new(), Duration::from_secs(60), None);
        assert_eq!(listed.gone().kind, QueryErrorKind::Internal);
        listed.stop(QueryError::new(QueryErrorKind::Cancelled, "killed"));
        assert_eq!(listed.gone().kind, QueryErrorKind::Cancelled);
    }
}
