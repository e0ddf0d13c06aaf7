//! Where a plan is cut: below the operators that make fewer rows out of many, above large scans.
//!
//! ```text
//! AggregateExec: Final                       AggregateExec: Final
//!   RepartitionExec: Hash                      RepartitionExec: Hash
//!     AggregateExec: Partial                     UnionExec
//!       UnionExec                      =>          UnsealExec
//!         files                                      NetworkCoalesceExec   (the nodes)
//!         memtable                                     SealExec
//!                                                        AggregateExec: Partial
//!                                                          files
//!                                                  AggregateExec: Partial
//!                                                    memtable
//! ```
//!
//! Everything is decided before the plan runs, so that `EXPLAIN` shows it. A part that does not come out of its encoding as
//! it went in stays here.

use std::cmp::Reverse;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig, FileSource, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::expressions::DynamicFilterPhysicalExpr;
use datafusion::physical_expr::{Partitioning, PhysicalExpr, split_conjunction};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::analyze::AnalyzeExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion_distributed::{DistributedCodec, DistributedLeafExec, NetworkCoalesceExec};
use datafusion_proto::physical_plan::AsExecutionPlan;
use datafusion_proto::protobuf::PhysicalPlanNode;
use prost::Message;

use super::is_cut;
use super::seal::{SealExec, UnsealExec};

/// The rule; the last one.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) bytes_min: u64,
    pub(super) nodes: usize,
    /// Threads of a node that a query may use.
    pub(super) partitions: usize,
    /// What nodes know of functions and stores; they all know the same.
    pub(super) context: Arc<TaskContext>,
}

impl PhysicalOptimizerRule for Cut {
    fn name(&self) -> &str {
        "spread_scans"
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        match plan.downcast_ref::<AnalyzeExec>() {
            // What is analyzed is the plan below.
            Some(analyze) => {
                let input = self.whole(Arc::clone(analyze.input()))?;
                plan.with_new_children(vec![input])
            }
            None => self.whole(plan),
        }
    }
}

/// A scan that other nodes can do, and what is done with its rows there.
struct Away {
    scan: Arc<dyn ExecutionPlan>,
    /// From the scan upwards.
    above: Vec<Arc<dyn ExecutionPlan>>,
}

impl Away {
    /// The same over another scan of the same columns.
    fn over(&self, scan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        self.above.iter().try_fold(scan, |plan, above| Arc::clone(above).with_new_children(vec![plan]))
    }

    fn bytes(&self) -> u64 {
        scan_of(&self.scan).map_or(0, |config| files(config).map(PartitionedFile::effective_size).sum())
    }

    /// Whether fewer rows come back than are read: others would cost more on their way than they do here.
    fn reduces(&self) -> bool {
        let above = |plan: &Arc<dyn ExecutionPlan>| plan.is::<AggregateExec>() || plan.is::<FilterExec>();
        self.above.iter().any(above) || is_filtered(&self.scan)
    }
}

/// A plan as parts whose rows are its rows.
#[derive(Default)]
struct Split {
    away: Vec<Away>,
    here: Option<Arc<dyn ExecutionPlan>>,
}

impl Cut {
    fn whole(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let cut = match self.cut(&plan, false) {
            Ok(cut) if is_cut(&cut)? && cut.schema() == plan.schema() => cut,
            Ok(_) => return Ok(plan),
            Err(error) => {
                tracing::warn!(%error, "a plan cannot be cut");
                return Ok(plan);
            }
        };
        // A plan in parts has one partition, whoever reads it.
        Ok(in_one_partition(cut))
    }

    /// `limited`: only the first rows are wanted. A few pages have those, and what is found tells what need not be read;
    /// that knowledge does not travel.
    fn cut(&self, plan: &Arc<dyn ExecutionPlan>, limited: bool) -> Result<Arc<dyn ExecutionPlan>> {
        if !limited {
            let split = split(plan)?;
            let bytes: u64 = split.away.iter().map(Away::bytes).sum();
            let is_worth_it = bytes >= self.bytes_min && split.away.iter().all(Away::reduces);
            if is_worth_it
                && !split.away.is_empty()
                && let Some(joined) = self.joined(split)?
            {
                return Ok(match plan.output_partitioning().partition_count() {
                    // Who reads it was planned for one partition, and reads no other.
                    1 => in_one_partition(joined),
                    _ => joined,
                });
            }
        }
        self.below(plan, limited)
    }

    /// The same plan over cut inputs.
    fn below(&self, plan: &Arc<dyn ExecutionPlan>, limited: bool) -> Result<Arc<dyn ExecutionPlan>> {
        // What runs more than once cannot be asked of others a second time.
        if plan.is::<RecursiveQueryExec>() {
            return Ok(Arc::clone(plan));
        }
        let limited = plan.fetch().is_some() || (limited && (plan.is::<UnionExec>() || passes(plan).is_some()));
        let before = plan.children();
        let after = before.iter().map(|child| self.cut(child, limited)).collect::<Result<Vec<_>>>()?;
        if before.iter().zip(&after).all(|(before, after)| Arc::ptr_eq(before, after)) {
            return Ok(Arc::clone(plan));
        }
        Arc::clone(plan).with_new_children(after)
    }

    /// The parts in one plan again; `None` when nothing of it can go away after all.
    fn joined(&self, split: Split) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let (mut parts, mut spread) = (Vec::new(), false);
        for away in &split.away {
            let Some(shares) = scan_of(&away.scan).and_then(|config| self.shares(config)) else {
                // One file: nobody could share it.
                parts.push(away.over(Arc::clone(&away.scan))?);
                continue;
            };
            let first: Arc<dyn ExecutionPlan> = Arc::new(SealExec::new(away.over(Arc::clone(&shares[0]))?));
            if let Err(error) = self.travels(first) {
                tracing::debug!(%error, "a scan does not spread");
                return Ok(None);
            }
            let tasks = shares.len();
            let part = away.over(Arc::new(DistributedLeafExec::try_new(Arc::clone(&away.scan), shares)?))?;
            let schema = part.schema();
            let boundary = NetworkCoalesceExec::try_new(Arc::new(SealExec::new(part)), tasks, 1)?;
            parts.push(Arc::new(UnsealExec::new(Arc::new(boundary), schema)));
            spread = true;
        }
        if !spread {
            return Ok(None);
        }
        if let Some(here) = split.here {
            parts.push(self.below(&here, false)?);
        }
        match parts.len() {
            1 => Ok(parts.pop()),
            _ => UnionExec::try_new(parts).map(Some),
        }
    }

    /// Scans of a share of the files each, one for every node that gets any, all with as many partitions.
    fn shares(&self, config: &FileScanConfig) -> Option<Vec<Arc<dyn ExecutionPlan>>> {
        let files: Vec<&PartitionedFile> = files(config).collect();
        let tasks = self.nodes.min(files.len());
        if tasks < 2 {
            return None;
        }
        let hands = deal(files, tasks, |file| file.effective_size());
        let partitions = hands.iter().map(Vec::len).max().unwrap_or(1).min(self.partitions).max(1);
        let share = |hand: Vec<&PartitionedFile>| {
            let groups = deal(hand, partitions, |file| file.effective_size());
            let mut share = config.clone();
            share.file_groups =
                groups.into_iter().map(|group| group.into_iter().cloned().collect::<FileGroup>()).collect();
            let share: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(share);
            share
        };
        Some(hands.into_iter().map(share).collect())
    }

    /// Whether another node gets the plan that it is sent.
    fn travels(&self, plan: Arc<dyn ExecutionPlan>) -> Result<()> {
        let codec = DistributedCodec::new_combined_with_user(self.context.session_config());
        let schema = plan.schema();
        let sent = PhysicalPlanNode::try_from_physical_plan(plan, &codec)?.encode_to_vec();
        let got = PhysicalPlanNode::try_decode(&sent)?.try_into_physical_plan(&self.context, &codec)?.schema();
        let same = schema.fields().len() == got.fields().len()
            && schema.fields().iter().zip(got.fields()).all(|(sent, got)| sent.data_type() == got.data_type());
        match same {
            true => Ok(()),
            false => datafusion::common::plan_err!("the plan yields {schema} here and {got} elsewhere"),
        }
    }
}

fn in_one_partition(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    match plan.output_partitioning().partition_count() {
        1 => plan,
        _ => Arc::new(CoalescePartitionsExec::new(plan)),
    }
}

/// Takes a plan apart as far as its operators look at one row at a time, or group what they see and leave it to others to
/// group that again.
fn split(plan: &Arc<dyn ExecutionPlan>) -> Result<Split> {
    if scan_of(plan).is_some() {
        let away = Away { scan: Arc::clone(plan), above: Vec::new() };
        return Ok(Split { away: vec![away], here: None });
    }
    if plan.is::<UnionExec>() {
        let (mut away, mut here) = (Vec::new(), Vec::new());
        for child in plan.children() {
            let split = split(child)?;
            away.extend(split.away);
            here.extend(split.here);
        }
        let here = match here.len() {
            0 | 1 => here.pop(),
            _ => Some(UnionExec::try_new(here)?),
        };
        return Ok(Split { away, here });
    }
    let Some(input) = passes(plan) else { return Ok(Split { here: Some(Arc::clone(plan)), ..Split::default() }) };
    let mut split = split(input)?;
    if !plan.is::<RepartitionExec>() {
        split.away.iter_mut().for_each(|away| away.above.push(Arc::clone(plan)));
    }
    split.here = split.here.map(|here| Arc::clone(plan).with_new_children(vec![here])).transpose()?;
    Ok(split)
}

/// The input of an operator that may as well run on parts of it.
fn passes(plan: &Arc<dyn ExecutionPlan>) -> Option<&Arc<dyn ExecutionPlan>> {
    let groups = plan.downcast_ref::<AggregateExec>().is_some_and(|plan| *plan.mode() == AggregateMode::Partial);
    let deals = plan
        .downcast_ref::<RepartitionExec>()
        .is_some_and(|plan| matches!(plan.partitioning(), Partitioning::RoundRobinBatch(_)) && !plan.preserve_order());
    let passes = groups
        || deals
        || plan.is::<ProjectionExec>()
        || plan.is::<CooperativeExec>()
        || (plan.is::<FilterExec>() && plan.fetch().is_none());
    plan.children().first().copied().filter(|_| passes)
}

/// The files of a scan, if nothing but their bytes matters: not their order, and nothing that is known of them here alone.
fn scan_of(plan: &Arc<dyn ExecutionPlan>) -> Option<&FileScanConfig> {
    let (config, _) = plan.downcast_ref::<DataSourceExec>()?.downcast_to_file_source::<ParquetSource>()?;
    let is_plain = |file: &PartitionedFile| file.extensions.is_empty() && file.ordering.is_none();
    let any_order = config.limit.is_none()
        && !config.preserve_order
        && config.output_ordering.is_empty()
        && !config.partitioned_by_file_group;
    (any_order && files(config).all(is_plain)).then_some(config)
}

/// Whether the scan leaves out rows that a query does not ask for; what a running query learns does not count.
fn is_filtered(scan: &Arc<dyn ExecutionPlan>) -> bool {
    let source = scan.downcast_ref::<DataSourceExec>();
    let Some((_, source)) = source.and_then(DataSourceExec::downcast_to_file_source::<ParquetSource>) else {
        return false;
    };
    let filter = source.filter();
    let known = |filter: &Arc<dyn PhysicalExpr>| {
        split_conjunction(filter).iter().any(|part| !part.is::<DynamicFilterPhysicalExpr>())
    };
    filter.as_ref().is_some_and(known)
}

fn files(config: &FileScanConfig) -> impl Iterator<Item = &PartitionedFile> {
    config.file_groups.iter().flat_map(|group| group.iter())
}

/// Deals out `items` so that all of the `hands` get about as much of their `size`; each keeps their order.
fn deal<T>(items: Vec<T>, hands: usize, size: impl Fn(&T) -> u64) -> Vec<Vec<T>> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|at| Reverse(size(&items[*at])));
    let (mut held, mut hand_of) = (vec![(0_u64, 0_usize); hands], vec![0; items.len()]);
    for at in order {
        // The one with the least; of those that have as much, the one with fewer, then the first.
        let Some(hand) = (0..hands).min_by_key(|hand| held[*hand]) else { break };
        held[hand] = (held[hand].0 + size(&items[at]), held[hand].1 + 1);
        hand_of[at] = hand;
    }
    let mut dealt: Vec<Vec<T>> = (0..hands).map(|_| Vec::new()).collect();
    for (at, item) in items.into_iter().enumerate() {
        dealt[hand_of[at]].push(item);
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sizes: &[u64], hands: usize, expected: &[&[u64]]) {
        assert_eq!(deal(sizes.to_vec(), hands, |size| *size), expected);
    }

    #[test]
    fn every_hand_gets_about_as_much_and_keeps_the_order() {
        check(&[1, 2, 3, 4], 2, &[&[1, 4], &[2, 3]]);
        check(&[10, 1, 1, 1], 2, &[&[10], &[1, 1, 1]]);
        check(&[5, 5, 5], 3, &[&[5], &[5], &[5]]);
        check(&[0, 0, 0], 3, &[&[0], &[0], &[0]]);
        check(&[7], 2, &[&[7], &[]]);
        check(&[], 2, &[&[], &[]]);
    }
}
