//! `system.*`: what the node knows of itself, as far as the caller may see it.

mod metadata;

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::error::ArrowError;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use signaldb_catalog::TablePointer;
use signaldb_lake::version_of;
use signaldb_model::NodeId;

use crate::engine::running::of_all_nodes;
use crate::error::{QueryError, QueryErrorKind};
use crate::queries::QueryStatus;
use crate::snapshot::Snapshotter;

use self::metadata::{LazyTable, MetadataTable};

/// The tables of `system`.
pub const NAMES: &[&str] = &["nodes", "groups", "tables", "flushes", "snapshots", "files", "queries"];

type Columns = Vec<(&'static str, ArrayRef)>;

pub(crate) async fn table(
    name: &str,
    snapshotter: &Arc<Snapshotter>,
) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
    let columns = match name {
        "nodes" => nodes(snapshotter).await,
        "groups" => groups(snapshotter),
        "queries" => queries(snapshotter).await,
        "tables" => tables(&pointers(snapshotter).await?),
        _ => {
            let Some(table) = MetadataTable::from_name(name) else { return Ok(None) };
            return Ok(Some(Arc::new(LazyTable::new(table, Arc::clone(snapshotter))?)));
        }
    };
    let batch = batch(columns)?;
    Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
}

fn batch(columns: Columns) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))
}

async fn nodes(snapshotter: &Snapshotter) -> Columns {
    let nodes = snapshotter.groups.nodes().await;
    vec![
        ("id", Arc::new(UInt64Array::from_iter_values(nodes.iter().map(|node| node.id.0)))),
        ("address", Arc::new(StringArray::from_iter_values(nodes.iter().map(|node| node.address.as_str())))),
        ("state", Arc::new(StringArray::from_iter_values(nodes.iter().map(|node| node.state)))),
    ]
}

fn groups(snapshotter: &Snapshotter) -> Columns {
    let homes: Vec<u32> = snapshotter.groups.homes(&snapshotter.tenant).iter().map(|group| group.id().0).collect();
    let visible = |group: u32| snapshotter.open || homes.contains(&group);
    let statuses: Vec<_> = snapshotter.groups.statuses().into_iter().filter(|status| visible(status.group)).collect();
    let number = |field: fn(&signaldb_raft::GroupStatus) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(statuses.iter().map(field)))
    };
    vec![
        ("group", number(|status| status.group.into())),
        ("leader", Arc::new(UInt64Array::from_iter(statuses.iter().map(|status| status.leader)))),
        ("term", number(|status| status.term)),
        ("last_log_index", number(|status| status.last_log_index)),
        ("commit_index", number(|status| status.commit_index)),
        ("applied_index", number(|status| status.applied_index)),
        ("flushed_index", number(|status| status.flushed_index)),
        ("state", Arc::new(StringArray::from_iter_values(statuses.iter().map(|status| status.state.as_str())))),
    ]
}

/// Nothing for each of these nodes.
fn absent<T>(nodes: &[NodeId]) -> impl Iterator<Item = Option<T>> {
    nodes.iter().map(|_| None)
}

/// One row a query. A node that does not answer is there with nothing but its number, so that nobody takes the others for
/// all there are.
async fn queries(snapshotter: &Snapshotter) -> Columns {
    let tenant = (!snapshotter.all_tenants).then_some(&snapshotter.tenant);
    let (found, silent) = of_all_nodes(&snapshotter.queries, snapshotter.groups.peers(), tenant).await;
    let text = |field: fn(&QueryStatus) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter(found.iter().map(|query| Some(field(query))).chain(absent(&silent))))
    };
    let number = |field: fn(&QueryStatus) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter(found.iter().map(|query| Some(field(query))).chain(absent(&silent))))
    };
    let started = found.iter().map(|query| i64::try_from(query.started.0 / 1000).ok()).chain(absent(&silent));
    let elapsed = found.iter().map(|query| Some(query.elapsed.as_secs_f64() * 1000.0)).chain(absent(&silent));
    let nodes = found.iter().map(|query| query.node.0).chain(silent.iter().map(|node| node.0));
    let states = found.iter().map(|query| query.state.as_str()).chain(silent.iter().map(|_| "unreachable"));
    vec![
        ("id", text(|query| &query.id)),
        ("node", Arc::new(UInt64Array::from_iter_values(nodes))),
        ("tenant", text(|query| &query.tenant)),
        ("dataset", text(|query| &query.dataset)),
        ("query", text(|query| &query.query)),
        ("started_at", Arc::new(started.collect::<TimestampMicrosecondArray>().with_timezone("+00:00"))),
        ("elapsed_ms", Arc::new(Float64Array::from_iter(elapsed))),
        ("rows", number(|query| query.rows)),
        ("scanned_bytes", number(|query| query.scanned_bytes)),
        ("memory_bytes", number(|query| query.memory_bytes)),
        ("state", Arc::new(StringArray::from_iter_values(states))),
    ]
}

async fn pointers(snapshotter: &Snapshotter) -> Result<Vec<TablePointer>, QueryError> {
    let found = snapshotter.lake.catalog().tables_of(snapshotter.tenant.as_str()).await;
    found.map_err(|error| QueryError::new(QueryErrorKind::Unavailable, format!("the catalog does not answer: {error}")))
}

fn dataset(pointer: &TablePointer) -> &str {
    pointer.namespace.split_once('.').map_or(pointer.namespace.as_str(), |(_, dataset)| dataset)
}

fn tables(pointers: &[TablePointer]) -> Columns {
    let text = |field: fn(&TablePointer) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(pointers.iter().map(field)))
    };
    let versions = pointers.iter().map(|pointer| version_of(&pointer.location));
    vec![
        ("dataset", text(dataset)),
        ("table", text(|pointer| &pointer.table)),
        ("version", Arc::new(Int64Array::from_iter_values(versions))),
        ("metadata_location", text(|pointer| &pointer.location)),
    ]
}
