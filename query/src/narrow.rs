//! Leaves out columns that nobody asks for, before the other rules look at them: the view has some sixty, and a query wants
//! a few.

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

/// [`OptimizeProjections`] for plans that may still have queries within queries.
///
/// It knows what these ask of the plan around them, with two exceptions: `= ANY (SELECT ..)`, so that it has to run behind
/// `rewrite_set_comparison`, and lateral joins, which it leaves alone until they are joins like others.
#[derive(Debug, Default)]
pub(crate) struct NarrowEarly(OptimizeProjections);

impl OptimizerRule for NarrowEarly {
    fn name(&self) -> &str {
        "narrow_early"
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match has_lateral_join(&plan)? {
            true => Ok(Transformed::no(plan)),
            false => self.0.rewrite(plan, config),
        }
    }
}

/// Of queries within queries, those in place of a table are an input of a plan; all others are in expressions.
fn has_lateral_join(plan: &LogicalPlan) -> Result<bool> {
    let end = plan.apply_with_subqueries(|node| {
        let lateral = node.inputs().into_iter().any(|input| matches!(input, LogicalPlan::Subquery(_)));
        Ok(if lateral { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(matches!(end, TreeNodeRecursion::Stop))
}
