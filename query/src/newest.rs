//! `ORDER BY timestamp DESC LIMIT n` reads the few pages that can have the newest rows.
//!
//! Data files are in the order of service and time, so that the newest rows of a day are all over its files. But page
//! indexes that are in memory say how many rows are certainly not older than some time. Where `n` are, no older row is among
//! the first `n`: the scan gets a filter that leaves out files, row groups and pages. Files whose footer is not in memory
//! count with the bounds of their manifest entry. The same goes for the oldest rows, and for any column of 64 bits.
//!
//! Rows that are not in files can only make for more of them, so the filter stays right. DataFusion's dynamic filter does
//! the rest: it knows what was found already, and nothing before that.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileScanConfig, FileScanConfigBuilder, FileSource, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::logical_expr::Operator;
use datafusion::parquet::file::metadata::ParquetMetaData;
use datafusion::parquet::file::page_index::column_index::ColumnIndexMetaData;
use datafusion::physical_expr::PhysicalSortExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::UnionExec;

use crate::kept::KeptParts;

/// The rule; runs once it is clear which sorts there are, and before dynamic filters are put below them.
#[derive(Debug)]
pub(crate) struct NewestPages(pub(crate) Arc<KeptParts>);

impl PhysicalOptimizerRule for NewestPages {
    fn name(&self) -> &str {
        "newest_pages"
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let step = |plan: Arc<dyn ExecutionPlan>| {
            Ok(match self.narrowed(&plan)? {
                Some(narrowed) => Transformed::new(narrowed, true, TreeNodeRecursion::Jump),
                None => Transformed::no(plan),
            })
        };
        Ok(plan.transform_down(step)?.data)
    }
}

impl NewestPages {
    /// A sort whose first rows are all that is wanted, over a narrower scan.
    fn narrowed(&self, plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        if let Some(merge) = plan.downcast_ref::<SortPreservingMergeExec>()
            && let Some(sort) = merge.input().downcast_ref::<SortExec>()
            && let Some(rows) = merge.fetch()
        {
            let Some(input) = self.narrow(sort.input(), sort.expr().first(), rows)? else { return Ok(None) };
            let sort = Arc::clone(merge.input()).with_new_children(vec![input])?;
            return Arc::clone(plan).with_new_children(vec![sort]).map(Some);
        }
        if let Some(sort) = plan.downcast_ref::<SortExec>().filter(|sort| !sort.preserve_partitioning())
            && let Some(rows) = sort.fetch()
        {
            let Some(input) = self.narrow(sort.input(), sort.expr().first(), rows)? else { return Ok(None) };
            return Arc::clone(plan).with_new_children(vec![input]).map(Some);
        }
        Ok(None)
    }

    fn narrow(
        &self,
        input: &Arc<dyn ExecutionPlan>,
        by: &PhysicalSortExpr,
        rows: usize,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(column) = by.expr.downcast_ref::<Column>() else { return Ok(None) };
        let mut scans = Vec::new();
        if !collect(input, column.index(), &mut scans) {
            return Ok(None);
        }
        let side = if by.options.descending { Side::Newest } else { Side::Oldest };
        let mut runs = BTreeMap::new();
        for scan in &scans {
            for file in scan.config.file_groups.iter().flat_map(|group| group.iter()) {
                // Parts of one file have all of its pages.
                let Some(found) = self.runs(file, scan, side) else { return Ok(None) };
                runs.insert(file.path().clone(), found);
            }
        }
        let runs: Vec<Run> = runs.into_values().flatten().collect();
        match limit(runs, rows, side) {
            Some(limit) => rebuilt(input, column.index(), limit, side).map(Some),
            None => Ok(None),
        }
    }

    /// What is known of a file's rows; `None` when some have no value: those may come first.
    fn runs(&self, file: &PartitionedFile, scan: &Scan<'_>, side: Side) -> Option<Vec<Run>> {
        let statistics = file.statistics.as_ref()?;
        let column = statistics.column_statistics.get(scan.column.index())?;
        if column.null_count != Precision::Exact(0) {
            return None;
        }
        let pages = self.0.footer(file.path().as_ref()).and_then(|footer| pages(&footer, scan.column.name(), side));
        let whole = || {
            let bound = match side {
                Side::Newest => &column.min_value,
                Side::Oldest => &column.max_value,
            };
            let (Precision::Exact(bound), Precision::Exact(rows)) = (bound, &statistics.num_rows) else { return None };
            Some(Run { bound: integer(bound)?, rows: *rows })
        };
        Some(pages.unwrap_or_else(|| whole().into_iter().collect()))
    }
}

/// Which rows come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Newest,
    Oldest,
}

/// So many rows are at the bound or on the wanted side of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    bound: i64,
    rows: usize,
}

/// A scan of data files, and the column of the table that is sorted by.
struct Scan<'a> {
    config: &'a FileScanConfig,
    column: &'a Column,
}

/// The value that at least `rows` rows are at or on the wanted side of, if there are so many and it leaves anything out.
fn limit(mut runs: Vec<Run>, rows: usize, side: Side) -> Option<i64> {
    runs.sort_by_key(|run| run.bound);
    if side == Side::Newest {
        runs.reverse();
    }
    let last = runs.last()?.bound;
    let mut found = 0_usize;
    let run = runs.into_iter().find(|run| {
        found = found.saturating_add(run.rows);
        found >= rows
    })?;
    (run.bound != last).then_some(run.bound)
}

/// The pages of a column; `None` when the index does not say.
fn pages(footer: &ParquetMetaData, column: &str, side: Side) -> Option<Vec<Run>> {
    let leaves = footer.file_metadata().schema_descr().columns();
    let leaf = leaves.iter().position(|leaf| leaf.path().string() == column)?;
    let (bounds, places) = (footer.column_index()?, footer.offset_index()?);
    let mut runs = Vec::new();
    for (at, group) in footer.row_groups().iter().enumerate() {
        let ColumnIndexMetaData::INT64(bounds) = bounds.get(at)?.get(leaf)? else { return None };
        let places = places.get(at)?.get(leaf)?.page_locations();
        let ends = places.iter().skip(1).map(|place| place.first_row_index).chain([group.num_rows()]);
        for (page, (place, end)) in places.iter().zip(ends).enumerate() {
            let bound = match side {
                Side::Newest => bounds.min_value(page)?,
                Side::Oldest => bounds.max_value(page)?,
            };
            runs.push(Run { bound: *bound, rows: usize::try_from(end - place.first_row_index).ok()? });
        }
    }
    Some(runs)
}

fn integer(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::Int64(value) | ScalarValue::TimestampMicrosecond(value, _) => *value,
        _ => None,
    }
}

/// Finds the scans of data files that a column of `plan` comes from; false when its rows are not all those of scans.
fn collect<'a>(plan: &'a Arc<dyn ExecutionPlan>, column: usize, scans: &mut Vec<Scan<'a>>) -> bool {
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let below = projection.expr().get(column).and_then(|expr| expr.expr.downcast_ref::<Column>());
        return below.is_some_and(|below| collect(projection.input(), below.index(), scans));
    }
    if is_transparent(plan) {
        return plan.children().into_iter().all(|child| collect(child, column, scans));
    }
    let Some(source) = plan.downcast_ref::<DataSourceExec>() else { return false };
    match source.downcast_to_file_source::<ParquetSource>() {
        Some((config, parquet)) => {
            let projection = parquet.projection().and_then(|projection| projection.as_ref().get(column));
            let below = projection.and_then(|expr| expr.expr.downcast_ref::<Column>());
            // Of rows that a filter keeps, pages say nothing.
            let whole = parquet.filter().is_none() && config.limit.is_none();
            let Some(column) = below.filter(|_| whole) else { return false };
            scans.push(Scan { config, column });
            true
        }
        // Rows that are not in files.
        None => true,
    }
}

/// Whether rows pass through as they are.
fn is_transparent(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<UnionExec>() || plan.is::<RepartitionExec>() || plan.is::<CoalescePartitionsExec>()
}

/// The plan that [`collect`] has walked, with a filter on its scans.
fn rebuilt(plan: &Arc<dyn ExecutionPlan>, column: usize, limit: i64, side: Side) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let below = projection.expr().get(column).and_then(|expr| expr.expr.downcast_ref::<Column>());
        let Some(below) = below else { return Ok(Arc::clone(plan)) };
        let input = rebuilt(projection.input(), below.index(), limit, side)?;
        return Arc::clone(plan).with_new_children(vec![input]);
    }
    if is_transparent(plan) {
        let children = plan.children().into_iter().map(|child| rebuilt(child, column, limit, side));
        let children = children.collect::<Result<Vec<_>>>()?;
        return Arc::clone(plan).with_new_children(children);
    }
    let mut scans = Vec::new();
    collect(plan, column, &mut scans);
    let Some(Scan { config, column }) = scans.pop() else { return Ok(Arc::clone(plan)) };
    let Some(source) = config.file_source().downcast_ref::<ParquetSource>() else { return Ok(Arc::clone(plan)) };
    let kind = source.table_schema().table_schema().field(column.index()).data_type().clone();
    let operator = if side == Side::Newest { Operator::GtEq } else { Operator::LtEq };
    let limit = Literal::new(ScalarValue::Int64(Some(limit)).cast_to(&kind)?);
    let filter = BinaryExpr::new(Arc::new(column.clone()), operator, Arc::new(limit));
    let source = source.with_predicate(Arc::new(filter));
    let config = FileScanConfigBuilder::from(config.clone()).with_source(Arc::new(source)).build();
    Ok(DataSourceExec::from_data_source(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(runs: &[(i64, usize)], rows: usize, side: Side, expected: Option<i64>) {
        let runs = runs.iter().map(|(bound, rows)| Run { bound: *bound, rows: *rows }).collect();
        assert_eq!(limit(runs, rows, side), expected);
    }

    #[test]
    fn the_limit_is_where_enough_rows_are_certain() {
        let runs = [(10, 5), (30, 5), (20, 5), (40, 5)];
        check(&runs, 1, Side::Newest, Some(40));
        check(&runs, 5, Side::Newest, Some(40));
        check(&runs, 6, Side::Newest, Some(30));
        check(&runs, 15, Side::Newest, Some(20));
        check(&runs, 5, Side::Oldest, Some(10));
        check(&runs, 11, Side::Oldest, Some(30));
    }

    #[test]
    fn without_enough_rows_or_anything_to_leave_out_there_is_none() {
        check(&[], 1, Side::Newest, None);
        check(&[(10, 5), (20, 5)], 11, Side::Newest, None);
        check(&[(10, 5), (20, 5)], 10, Side::Newest, None);
        check(&[(10, 5)], 1, Side::Newest, None);
    }
}
