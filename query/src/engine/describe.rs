//! What a statement gives and takes, without running it.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use super::{Inner, Query, QueryEngine, plan};
use crate::error::{QueryError, QueryErrorKind};
use crate::parameters;
use crate::pool::QueryMemory;
use crate::queries::Record;

/// A statement as it is planned.
#[derive(Debug, Clone)]
pub struct Description {
    /// Of the result. Where that depends on parameters that have no values, it is what is known of it.
    pub schema: SchemaRef,
    /// `$1`, `$2` and so on, or all names; `Null` where the type is open.
    pub parameters: SchemaRef,
}

impl QueryEngine {
    /// Plans a statement; parameters may be without values.
    ///
    /// # Errors
    /// As for [`Self::run`].
    ///
    /// Cancel safety: dropping the future ends the planning.
    pub async fn describe(&self, query: Query) -> Result<Description, QueryError> {
        let allowed = self.allowed(query.allowance.deadline)?;
        let listed = self.list(&query, Bytes::new(), allowed);
        let inner = Arc::clone(&self.0);
        let task = self.0.cpu.spawn(async move { listed.within(Box::pin(inner.described(&query, &listed))).await });
        let described = AbortOnDropHandle::new(task).await;
        described.map_err(|_| QueryError::new(QueryErrorKind::Internal, "the query's task died"))?
    }
}

impl Inner {
    async fn described(&self, query: &Query, record: &Arc<Record>) -> Result<Description, QueryError> {
        let _permit = self.gate.enter(&query.identity.tenant).await?;
        let pool = QueryMemory::pool(&self.memory, self.config.query_memory_bytes);
        record.plans(Arc::clone(&pool));
        let (context, _) = self.context(query, &self.runtime_of(record, pool), record.deadline());
        let (state, plan) = Box::pin(plan(&context, &query.sql)).await?.into_parts();
        let parameters = parameters::schema_of(&plan)?;
        if !parameters.fields().is_empty() && query.parameters.is_empty() {
            return Ok(Description { schema: Arc::clone(plan.schema().inner()), parameters });
        }
        let plan = parameters::bind(plan, &query.parameters)?;
        // The very schema that a run would have: the logical one may differ in what may be null.
        let physical = Box::pin(state.create_physical_plan(&plan)).await?;
        Ok(Description { schema: physical.schema(), parameters })
    }
}
