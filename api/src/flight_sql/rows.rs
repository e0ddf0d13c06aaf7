//! The result of a statement, which runs once, or once for each row of its parameters, one after the other.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use signaldb_query::{Parameters, Query, QueryEngine, RunningQuery};

use super::cancel::Sending;
use super::edge;
use crate::error::{ApiError, Kind};

/// Dropping it ends the query.
#[derive(Debug)]
pub(super) struct Rows {
    engine: QueryEngine,
    /// Without parameters.
    query: Query,
    /// One row for each run; without parameters there is one run.
    bound: Option<RecordBatch>,
    /// Row of the run after this one.
    next: usize,
    running: RunningQuery,
    flat: bool,
    sending: Sending,
    /// As it is sent.
    pub(super) schema: SchemaRef,
    /// Groups whose newest rows are not in the answer.
    pub(super) missing: Vec<u32>,
}

impl Rows {
    /// Starts the first run. `bound` has at least one row.
    pub(super) async fn start(
        engine: QueryEngine,
        query: Query,
        bound: Option<RecordBatch>,
        flat: bool,
        sending: Sending,
    ) -> Result<Self, ApiError> {
        let first = sending.cancelled.run_until_cancelled(run(&engine, &query, bound.as_ref(), 0)).await;
        let running = first.unwrap_or_else(|| Err(given_up()))?;
        let (schema, missing) = (edge::result(&running.schema, flat), running.missing_groups.clone());
        Ok(Self { engine, query, bound, next: 1, running, flat, sending, schema, missing })
    }

    /// The next rows, `None` after the last of all runs.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>, ApiError> {
        let cancelled = self.sending.cancelled.clone();
        let next = cancelled.run_until_cancelled(self.next_of_any_run()).await;
        next.unwrap_or_else(|| Err(given_up()))
    }

    async fn next_of_any_run(&mut self) -> Result<Option<RecordBatch>, ApiError> {
        loop {
            if let Some(batch) = self.running.next().await {
                return edge::convert(&batch?, &self.schema).map(Some);
            }
            let Some(bound) = self.bound.as_ref().filter(|bound| self.next < bound.num_rows()) else { return Ok(None) };
            let running = run(&self.engine, &self.query, Some(bound), self.next).await?;
            self.next += 1;
            if edge::result(&running.schema, self.flat) != self.schema {
                return Err(ApiError::invalid("the result's columns depend on the parameters: bind one row at a time"));
            }
            // What is missing was said before the first row.
            if running.missing_groups.iter().any(|group| !self.missing.contains(group)) {
                let message = "a leader went away between two rows of parameters; nothing would say so";
                return Err(ApiError::new(Kind::Unavailable, message));
            }
            self.running = running;
        }
    }
}

async fn run(
    engine: &QueryEngine,
    query: &Query,
    bound: Option<&RecordBatch>,
    row: usize,
) -> Result<RunningQuery, ApiError> {
    let parameters = bound.map(|bound| Parameters::of_row(bound, row)).transpose()?.unwrap_or_default();
    Ok(engine.run(Query { parameters, ..query.clone() }).await?)
}

fn given_up() -> ApiError {
    ApiError::new(Kind::Cancelled, "the query was cancelled by its client")
}
