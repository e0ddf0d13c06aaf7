//! The catalog as commits see it: where a table's metadata is, and the swap that moves it.

use async_trait::async_trait;
use signaldb_catalog::{CatalogError, IcebergCatalog, Swap, SwapOutcome, TablePointer};

/// What [`IcebergCatalog`] does for commits, with the same promises; tests and the simulation put one in its place that
/// fails on time.
#[async_trait]
pub trait TablePointers: std::fmt::Debug + Send + Sync {
    async fn load(&self, namespace: &str, table: &str) -> Result<Option<String>, CatalogError>;
    async fn create(&self, namespace: &str, table: &str, location: &str) -> Result<String, CatalogError>;
    async fn tables(&self) -> Result<Vec<TablePointer>, CatalogError>;
    async fn swap(&self, swaps: &[Swap]) -> Result<SwapOutcome, CatalogError>;
}

#[async_trait]
impl TablePointers for IcebergCatalog {
    async fn load(&self, namespace: &str, table: &str) -> Result<Option<String>, CatalogError> {
        IcebergCatalog::load(self, namespace, table).await
    }

    async fn create(&self, namespace: &str, table: &str, location: &str) -> Result<String, CatalogError> {
        IcebergCatalog::create(self, namespace, table, location).await
    }

    async fn tables(&self) -> Result<Vec<TablePointer>, CatalogError> {
        IcebergCatalog::tables(self).await
    }

    async fn swap(&self, swaps: &[Swap]) -> Result<SwapOutcome, CatalogError> {
        IcebergCatalog::swap(self, swaps).await
    }
}
