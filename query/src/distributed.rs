//! Large scans on all nodes at once (ADR 18, docs/query/distributed.md).
//!
//! A plan stays whole on the node that was asked, except for scans of many bytes of data files whose rows are filtered or
//! grouped right above: [`cut`] deals the files out, and each node yields what its share comes to. What is not in files yet
//! never leaves this node, so that no row is there twice. [`seal`] makes sure that a share that ends early is an error and
//! not a short answer. [`worker`] is the other end, [`channels`] the way there; `datafusion-distributed` carries plans and
//! rows.

mod channels;
mod cut;
mod seal;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::Result;
use datafusion::common::tree_node::TreeNode;
use datafusion::error::DataFusionError;
use datafusion::execution::context::QueryPlanner;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion::prelude::SessionContext;
use datafusion_distributed::{
    DistributedConfig, DistributedExt, NetworkBoundaryExt, RouteTasksEvent, RouteTasksEventResponse, RouteTasksHandler,
    SessionStateBuilderExt,
};
use signaldb_model::NodeId;
use url::Url;

use crate::queries::Record;

pub(crate) use self::channels::{Cluster, Reach};
pub use self::worker::PeerWorker;
pub(crate) use self::worker::{Host, runtime_of};

use self::channels::{Channels, url_of};
use self::cut::Cut;
use self::seal::{Asker, SealCodec};
use self::worker::Asked;

/// Rows of one node that wait here to be read; then that node waits.
const BUFFER_BYTES: usize = 8 << 20;

/// Which scans spread over the nodes.
#[derive(Debug, Clone, Copy)]
pub struct Distribution {
    /// Unless a query says it itself.
    pub enabled: bool,
    /// Of data files that one scan reads, columns that it does not need included. A smaller one stays on its node.
    pub bytes_min: u64,
}

/// Spreads the plans of queries.
#[derive(Debug)]
pub(crate) struct Spread {
    distribution: Distribution,
    reach: Arc<dyn Reach>,
}

impl Spread {
    pub(crate) fn new(distribution: Distribution, reach: Arc<dyn Reach>) -> Self {
        Self { distribution, reach }
    }

    /// The same session, whose plans are cut where that is worth it.
    ///
    /// # Errors
    /// None but for a tenant whose name is no header.
    pub(crate) fn session(&self, context: SessionContext, record: &Arc<Record>) -> Result<SessionContext> {
        let nodes = self.reach.nodes();
        if nodes.len() < 2 {
            return Ok(context);
        }
        let state = self.prepared(context.state(), &nodes, record)?;
        let cut = Cut {
            bytes_min: self.distribution.bytes_min,
            nodes: nodes.len(),
            partitions: state.config().target_partitions(),
            context: state.task_ctx(),
        };
        let state = SessionStateBuilder::new_from_existing(state)
            .with_physical_optimizer_rule(Arc::new(cut))
            .with_query_planner(Arc::new(SpreadPlanner))
            .build();
        Ok(SessionContext::new_with_state(state))
    }

    /// With everything that a plan in parts needs to run.
    fn prepared(&self, mut state: SessionState, nodes: &[NodeId], record: &Arc<Record>) -> Result<SessionState> {
        let urls = nodes.iter().map(|node| url_of(*node)).collect::<Result<Vec<_>>>()?;
        let config = state.config_mut();
        config.set_distributed_option_extension(DistributedConfig::default());
        config.set_distributed_worker_connection_buffer_budget_bytes(BUFFER_BYTES)?;
        config.set_distributed_user_codec(SealCodec);
        config.set_distributed_channel_resolver(Channels(Arc::clone(&self.reach)));
        config.set_distributed_route_tasks_handler(InOrder(urls));
        config.set_distributed_passthrough_headers(Asked::of(record).headers()?)?;
        config.set_extension(Arc::new(Asker(Arc::clone(record))));
        Ok(state)
    }
}

/// The first share goes to the first node, and so on: a file is read by the same node in every query that reads the same
/// files, which has parts of it in memory then.
struct InOrder(Vec<Url>);

impl RouteTasksHandler for InOrder {
    fn handle(&self, event: RouteTasksEvent<'_>) -> Option<Result<RouteTasksEventResponse>> {
        Some(Ok(RouteTasksEventResponse::new(self.0.iter().cycle().take(event.task_count).cloned().collect())))
    }
}

/// Makes plans; one that [`Cut`] has cut gets what it takes to run in parts, others stay as they are.
#[derive(Debug)]
struct SpreadPlanner;

#[async_trait]
impl QueryPlanner for SpreadPlanner {
    async fn create_physical_plan(
        &self,
        logical: &LogicalPlan,
        state: &SessionState,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = DefaultPhysicalPlanner::default().create_physical_plan(logical, state).await?;
        if !is_cut(&plan)? {
            return Ok(plan);
        }
        // The planner of datafusion-distributed numbers the parts of a plan that has parts already, and does no more. Of
        // one that has none it would make parts by its own lights, the rows in memory among them: it never sees those.
        let mut finish =
            SessionStateBuilder::new().with_query_planner(Arc::new(Planned(plan))).with_distributed_planner();
        let planner = finish.query_planner().take();
        let planner = planner.ok_or_else(|| DataFusionError::Internal("no distributed planner".to_owned()))?;
        planner.create_physical_plan(logical, state).await
    }
}

/// Whether parts of the plan run elsewhere.
fn is_cut(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    plan.exists(|plan| Ok(plan.is_network_boundary()))
}

/// A plan that was made already.
#[derive(Debug)]
struct Planned(Arc<dyn ExecutionPlan>);

#[async_trait]
impl QueryPlanner for Planned {
    async fn create_physical_plan(
        &self,
        _logical: &LogicalPlan,
        _state: &SessionState,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::clone(&self.0))
    }
}
