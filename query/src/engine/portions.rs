//! Queries that are more than a plan: several plans over one table, and work between them.
//!
//! All of it is one query: one turn at the gate, one place in `system.queries`, one deadline, one memory, one count of bytes
//! read, and one moment of the table.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::Bytes;
use datafusion::datasource::provider_as_source;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_plan::{EmptyRecordBatchStream, SendableRecordBatchStream};
use datafusion::prelude::{DataFrame, SessionContext};
use futures::StreamExt;
use signaldb_signals::SignalTable;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Consistency, Inner, OUTPUT_QUEUE, Query, QueryEngine, RESTARTS_MAX};
use crate::error::{QueryError, QueryErrorKind};
use crate::metrics;
use crate::pool::QueryMemory;
use crate::queries::{OpenResult, QueryId, Record};
use crate::snapshot::LEADER_POLL;
use crate::table::StoredTable;

/// Puts a plan on the scan of a table; once more when the scan begins anew.
pub(crate) type Shape =
    Box<dyn Fn(LogicalPlanBuilder) -> datafusion::common::Result<LogicalPlan> + Send + Sync + 'static>;

/// Answers as they come: some so far, or parts, and at last one that is the end. Dropping it cancels the query.
#[derive(Debug)]
pub struct Answers<A> {
    answers: mpsc::Receiver<Result<Answer<A>, QueryError>>,
    record: Arc<Record>,
    ended: bool,
    _open: OpenResult,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Answer<A> {
    value: A,
    last: bool,
}

impl<A> Answers<A> {
    /// Its name in `system.queries`.
    pub fn id(&self) -> QueryId {
        self.record.id()
    }

    /// The next answer, `None` after the last or an error.
    pub async fn next(&mut self) -> Option<Result<A, QueryError>> {
        if self.ended {
            return None;
        }
        // The task may go away in the middle: what was said so far must not pass for the last.
        let answer = self.answers.recv().await.unwrap_or_else(|| Err(self.record.gone()));
        self.ended = match &answer {
            Ok(answer) => answer.last,
            Err(_) => true,
        };
        Some(answer.map(|answer| answer.value))
    }

    /// The last answer.
    ///
    /// # Errors
    /// That of the query.
    pub async fn last(mut self) -> Result<A, QueryError> {
        loop {
            let answer = self.next().await.unwrap_or_else(|| Err(self.record.gone()))?;
            if self.ended {
                return Ok(answer);
            }
        }
    }
}

/// How a query says what it knows before its end.
pub(crate) struct Progress<A> {
    answers: mpsc::Sender<Result<Answer<A>, QueryError>>,
    /// How often somebody wants to hear what is known so far.
    every: Option<Duration>,
    said: Option<Instant>,
}

impl<A> Progress<A> {
    /// Whether it is time to say what is known so far. The first time is as soon as anything is known.
    pub(crate) fn is_due(&self) -> bool {
        self.every.is_some_and(|every| self.said.is_none_or(|said| said.elapsed() >= every))
    }

    /// Says what is known so far; whoever has not read the last such does without.
    pub(crate) fn so_far(&mut self, value: A) {
        self.said = Some(Instant::now());
        drop(self.answers.try_send(Ok(Answer { value, last: false })));
    }

    /// Says a part of the answer; waits for whoever reads slowly.
    ///
    /// # Errors
    /// When nobody reads.
    pub(crate) async fn part(&self, value: A) -> Result<(), QueryError> {
        let sent = self.answers.send(Ok(Answer { value, last: false })).await;
        sent.map_err(|_| QueryError::new(QueryErrorKind::Cancelled, "nobody reads the answer any more"))
    }
}

impl QueryEngine {
    /// Starts `work` as one query over a table of the caller's dataset as it is stored, helper columns included;
    /// `query.sql` only names it in `system.queries`. What `work` returns is the last of the answers. `every` says how often
    /// answers so far are wanted, if they are.
    ///
    /// # Errors
    /// [`QueryErrorKind::Invalid`] for a deadline that is too long, [`QueryErrorKind::Busy`] when too many answers are not
    /// read; others come as the answer.
    pub(crate) fn in_portions<A, F>(
        &self,
        query: Query,
        table: SignalTable,
        every: Option<Duration>,
        work: impl FnOnce(Portions, Progress<A>) -> F + Send + 'static,
    ) -> Result<Answers<A>, QueryError>
    where
        A: Send + 'static,
        F: Future<Output = Result<A, QueryError>> + Send + 'static,
    {
        let allowed = self.allowed(query.allowance.deadline)?;
        let open = self.open_result(&query.identity.tenant)?;
        let listed = self.list(&query, Bytes::new(), allowed);
        let (sender, answers) = mpsc::channel(OUTPUT_QUEUE);
        let (inner, record) = (Arc::clone(&self.0), Arc::clone(&listed));
        let progress = Progress { answers: sender.clone(), every, said: None };
        let task = self.0.cpu.spawn(async move {
            metrics::note_started();
            let record: &Arc<Record> = &listed;
            let whole = async {
                // Given back as soon as the work is done: others need not wait for whoever reads the end slowly.
                let _permit = inner.gate.enter(&query.identity.tenant).await?;
                let pool = QueryMemory::pool(&inner.memory, inner.config.query_memory_bytes);
                record.plans(Arc::clone(&pool));
                let runtime = inner.runtime_of(record, pool);
                record.runs();
                let (inner, record) = (Arc::clone(&inner), Arc::clone(record));
                let missing = BTreeSet::new();
                Box::pin(work(Portions { inner, query, table, record, runtime, taken: None, missing }, progress)).await
            };
            let last = record.within(Box::pin(whole)).await;
            if let Err(error) = &last {
                metrics::note_failed(error);
            }
            let last = last.map(|value| Answer { value, last: true });
            if record.reason().is_some() {
                // Nobody waits for it any more; who reads slowly hears of it from the record.
                drop(sender.try_send(last));
            } else {
                drop(tokio::time::timeout_at(record.deadline(), sender.send(last)).await);
            }
        });
        Ok(Answers { answers, record, ended: false, _open: open, _task: AbortOnDropHandle::new(task) })
    }
}

/// What such a query works with.
pub(crate) struct Portions {
    inner: Arc<Inner>,
    query: Query,
    table: SignalTable,
    record: Arc<Record>,
    runtime: Arc<RuntimeEnv>,
    /// The moment of the table that all plans see, from the first one on.
    taken: Option<(SessionContext, Arc<StoredTable>)>,
    /// Groups without whose newest rows an eventual answer is given.
    missing: BTreeSet<u32>,
}

/// Rows of one plan.
pub(crate) struct Scan {
    stream: SendableRecordBatchStream,
    /// While it may begin anew: nobody has seen anything of it.
    shape: Option<Shape>,
    restarts: usize,
    /// Bytes of the store that the query had read before it.
    scanned_before: u64,
}

impl Portions {
    /// Counts memory that is held between the plans. It is the query's, and refused with the name of the budget.
    pub(crate) fn memory(&self, what: &str) -> MemoryReservation {
        MemoryConsumer::new(what).register(&self.runtime.memory_pool)
    }

    pub(crate) fn missing(&self) -> &BTreeSet<u32> {
        &self.missing
    }

    /// Starts a plan. One that is to see what plans before it saw does not begin anew (`!may_restart`): a leader that is gone
    /// takes its moment of the table with it. One at a time: one that begins anew takes back what was read since it began.
    pub(crate) async fn scan(&mut self, shape: Shape, may_restart: bool) -> Result<Scan, QueryError> {
        let scanned_before = self.record.scanned_bytes();
        let stream = Box::pin(self.open(&shape)).await?;
        let strong = self.query.consistency == Consistency::Strong || self.query.min_position.is_some();
        Ok(Scan { stream, shape: (may_restart && strong).then_some(shape), restarts: 0, scanned_before })
    }

    /// The next rows of a plan, `None` after the last. Other tasks have their turn in between.
    pub(crate) async fn next(&mut self, scan: &mut Scan) -> Result<Option<RecordBatch>, QueryError> {
        tokio::task::yield_now().await;
        loop {
            let error = match scan.stream.next().await.transpose().map_err(QueryError::from) {
                Ok(batch) => {
                    scan.shape = None;
                    self.record.note_rows(batch.as_ref().map_or(0, RecordBatch::num_rows));
                    return Ok(batch);
                }
                Err(error) => error,
            };
            let Some(shape) = scan.shape.as_ref().filter(|_| error.kind == QueryErrorKind::Unavailable) else {
                return Err(error);
            };
            // A leader that held rows for it is gone, say.
            scan.restarts += 1;
            if scan.restarts > RESTARTS_MAX {
                return Err(error);
            }
            // Nor do other parts of it go on reading, and holding memory.
            scan.stream = Box::pin(EmptyRecordBatchStream::new(scan.stream.schema()));
            tokio::time::sleep(LEADER_POLL).await;
            self.record.scan_again(scan.scanned_before);
            self.taken = None;
            scan.stream = Box::pin(self.open(shape)).await?;
        }
    }

    async fn open(&mut self, shape: &Shape) -> Result<SendableRecordBatchStream, QueryError> {
        let (context, stored) = self.take().await?;
        let scan = LogicalPlanBuilder::scan(self.table.name(), provider_as_source(stored), None)?;
        Ok(DataFrame::new(context.state(), shape(scan)?).execute_stream().await?)
    }

    /// The table at the moment of the query.
    async fn take(&mut self) -> Result<(SessionContext, Arc<StoredTable>), QueryError> {
        if let Some((context, stored)) = &self.taken {
            return Ok((context.clone(), Arc::clone(stored)));
        }
        let (context, snapshotter) = self.inner.context(&self.query, &self.runtime, self.record.deadline());
        let stored = Arc::new(Box::pin(snapshotter.table(&self.query.identity.dataset, self.table)).await?);
        self.missing.extend(snapshotter.missing());
        self.taken = Some((context.clone(), Arc::clone(&stored)));
        Ok((context, stored))
    }
}
