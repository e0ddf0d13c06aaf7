//! How names in a query resolve: `traces`, `<dataset>.traces`, `system.nodes`; only the caller's tenant exists.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::error::DataFusionError;
use signaldb_model::DatasetId;
use signaldb_signals::SignalTable;

use crate::logical_view;
use crate::snapshot::Snapshotter;
use crate::system;

/// Name of the one catalog (CONTRACT).
pub(crate) const CATALOG: &str = "signaldb";
/// Schema of the system tables; no dataset can have its name in a query.
pub const SYSTEM: &str = "system";

/// The only catalog there is.
#[derive(Debug)]
pub(crate) struct OneCatalog(pub(crate) Arc<TenantCatalog>);

impl CatalogProviderList for OneCatalog {
    fn register_catalog(&self, _name: String, _catalog: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        let catalog: Arc<dyn CatalogProvider> = Arc::<TenantCatalog>::clone(&self.0);
        (name == CATALOG).then_some(catalog)
    }
}

/// The datasets of one tenant.
pub(crate) struct TenantCatalog {
    pub(crate) snapshotter: Arc<Snapshotter>,
    pub(crate) datasets: Vec<DatasetId>,
    /// Any well-formed dataset name resolves (authentication is off).
    pub(crate) open: bool,
}

impl fmt::Debug for TenantCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantCatalog").field("datasets", &self.datasets).finish_non_exhaustive()
    }
}

impl CatalogProvider for TenantCatalog {
    fn schema_names(&self) -> Vec<String> {
        let datasets = self.datasets.iter().map(ToString::to_string);
        datasets.chain([SYSTEM.to_owned()]).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let snapshotter = Arc::clone(&self.snapshotter);
        if name == SYSTEM {
            return Some(Arc::new(SystemTables { snapshotter }));
        }
        let dataset = self.dataset(name)?;
        Some(Arc::new(DatasetTables { snapshotter, dataset }))
    }
}

impl TenantCatalog {
    /// The dataset of that name, if there is one for the caller.
    pub(crate) fn dataset(&self, name: &str) -> Option<DatasetId> {
        let dataset = DatasetId::new(name).ok()?;
        (self.open || self.datasets.contains(&dataset)).then_some(dataset)
    }
}

struct DatasetTables {
    snapshotter: Arc<Snapshotter>,
    dataset: DatasetId,
}

impl fmt::Debug for DatasetTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatasetTables").field("dataset", &self.dataset).finish_non_exhaustive()
    }
}

#[async_trait]
impl SchemaProvider for DatasetTables {
    fn table_names(&self) -> Vec<String> {
        SignalTable::ALL.into_iter().map(|table| table.name().to_owned()).collect()
    }

    fn table_exist(&self, name: &str) -> bool {
        SignalTable::from_name(name).is_some()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let Some(table) = SignalTable::from_name(name) else { return Ok(None) };
        let stored = self.snapshotter.table(&self.dataset, table).await?;
        let schema = stored.schema.clone();
        Ok(Some(logical_view::over(&schema, Arc::new(stored))?))
    }
}

struct SystemTables {
    snapshotter: Arc<Snapshotter>,
}

impl fmt::Debug for SystemTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemTables").finish_non_exhaustive()
    }
}

#[async_trait]
impl SchemaProvider for SystemTables {
    fn table_names(&self) -> Vec<String> {
        system::NAMES.iter().map(|name| (*name).to_owned()).collect()
    }

    fn table_exist(&self, name: &str) -> bool {
        system::NAMES.contains(&name)
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        system::table(name, &self.snapshotter).await
    }
}
