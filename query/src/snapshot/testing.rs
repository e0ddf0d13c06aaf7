//! What queries read, without plans over it. The simulation takes tables this way: it has no database for tenants, and a
//! plan takes longer than all that it is about.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::RecordBatch;
use datafusion::error::DataFusionError;
use iceberg::spec::DataFile;
use signaldb_lake::Lake;
use signaldb_model::{Position, TableId};
use signaldb_raft::Groups;
use signaldb_signals::SignalTable;
use tokio::time::Instant;

use super::Snapshotter;
use crate::engine::Consistency;
use crate::error::{QueryError, QueryErrorKind};
use crate::queries::Queries;
use crate::remote;

/// Reads tables through one node, wherever their groups are led. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TableReader {
    pub lake: Lake,
    pub groups: Arc<Groups>,
    pub queries: Queries,
}

/// What one query sees of a table.
#[derive(Debug)]
pub struct SeenTable {
    /// Live files of the metadata version that it reads.
    pub files: Vec<Arc<Vec<DataFile>>>,
    /// The column that was asked for, of the rows that this version does not have.
    pub rows: Vec<RecordBatch>,
    /// Groups that did not answer; only an eventual read goes on without them.
    pub missing_groups: Vec<u32>,
}

impl TableReader {
    /// Takes a table as a query does that has `within` to end, and fetches `column` of the rows that no file has.
    ///
    /// # Errors
    /// As for [`crate::QueryEngine::run`].
    pub async fn read(
        &self,
        id: &TableId,
        column: &str,
        consistency: Consistency,
        min_position: Option<Position>,
        within: Duration,
    ) -> Result<SeenTable, QueryError> {
        let invalid = |message: String| QueryError::new(QueryErrorKind::Invalid, message);
        let table = SignalTable::from_code(id.code).ok_or_else(|| invalid(format!("{id} is no table")))?;
        let snapshotter = Snapshotter {
            lake: self.lake.clone(),
            groups: Arc::clone(&self.groups),
            queries: self.queries.clone(),
            tenant: id.tenant.clone(),
            consistency,
            min_position,
            open: true,
            all_tenants: false,
            deadline: Instant::now() + within,
            missing: Mutex::default(),
        };
        let stored = Box::pin(snapshotter.table(&id.dataset, table)).await?;
        let schema = &stored.schema.arrow;
        let at = schema.index_of(column).map_err(|error| invalid(error.to_string()))?;
        let mut rows = Vec::new();
        for held in &stored.rows {
            rows.push(held.project(&[at]).map_err(DataFusionError::from)?);
        }
        for held in &stored.remote {
            rows.extend(Box::pin(remote::collect(held, schema, at)).await?);
        }
        Ok(SeenTable { files: stored.files, rows, missing_groups: snapshotter.missing() })
    }
}
