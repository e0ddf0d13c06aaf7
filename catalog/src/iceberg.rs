//! The two tables of Iceberg's JDBC catalog, byte-compatible with PyIceberg's `SqlCatalog`.
//!
//! | table | key | value | a row exists |
//! |---|---|---|---|
//! | `iceberg_tables` | catalog, namespace, table | current and previous metadata location | for every table |
//! | `iceberg_namespace_properties` | catalog, namespace, property | value | `exists=true` for every namespace |

use sqlx::Row;

use crate::database::{CatalogError, Database};

/// Name of the catalog in the database (CONTRACT, "SQL and tables").
const CATALOG: &str = "signaldb";

const SCHEMA: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS iceberg_tables (
        catalog_name VARCHAR(255) NOT NULL, table_namespace VARCHAR(255) NOT NULL, table_name VARCHAR(255) NOT NULL,
        metadata_location VARCHAR(1000), previous_metadata_location VARCHAR(1000), iceberg_type VARCHAR(5),
        PRIMARY KEY (catalog_name, table_namespace, table_name))",
    "CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (
        catalog_name VARCHAR(255) NOT NULL, namespace VARCHAR(255) NOT NULL,
        property_key VARCHAR(255) NOT NULL, property_value VARCHAR(1000) NOT NULL,
        PRIMARY KEY (catalog_name, namespace, property_key))",
    "CREATE TABLE IF NOT EXISTS signaldb_store (one INTEGER PRIMARY KEY CHECK (one = 1), store_id VARCHAR(64) NOT NULL)",
];

/// Where tables' metadata is.
#[derive(Debug, Clone)]
pub struct IcebergCatalog(Database);

/// A table and its current metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePointer {
    pub namespace: String,
    pub table: String,
    pub location: String,
}

/// Moves one table from `base` to `new`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    pub namespace: String,
    pub table: String,
    pub base: String,
    pub new: String,
}

/// What a swap did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapOutcome {
    /// Every table moved.
    Moved,
    /// Some table was not at its base; nothing moved.
    Conflict,
}

impl IcebergCatalog {
    /// Creates the catalog's tables when they are missing.
    pub async fn open(database: Database) -> Result<Self, CatalogError> {
        database.execute_all(SCHEMA).await?;
        Ok(Self(database))
    }

    /// The store that this catalog belongs to; a new catalog adopts `store_id`.
    pub async fn store_id(&self, store_id: &str) -> Result<String, CatalogError> {
        let action = "read the store id";
        let adopt = "INSERT INTO signaldb_store (one, store_id) VALUES (1, ?) ON CONFLICT DO NOTHING";
        sqlx::query(adopt).bind(store_id).execute(&self.0.0).await.map_err(CatalogError::sql(action))?;
        let found = sqlx::query("SELECT store_id FROM signaldb_store").fetch_one(&self.0.0).await;
        found.map_err(CatalogError::sql(action))?.try_get(0).map_err(CatalogError::sql(action))
    }

    /// Registers a table at `location` unless it exists; returns where it is.
    pub async fn create(&self, namespace: &str, table: &str, location: &str) -> Result<String, CatalogError> {
        let action = "create a table";
        let mut transaction = self.0.0.begin_with("BEGIN IMMEDIATE").await.map_err(CatalogError::sql(action))?;
        let exists = "INSERT INTO iceberg_namespace_properties VALUES (?, ?, 'exists', 'true') ON CONFLICT DO NOTHING";
        sqlx::query(exists)
            .bind(CATALOG)
            .bind(namespace)
            .execute(&mut *transaction)
            .await
            .map_err(CatalogError::sql(action))?;
        let insert = "INSERT INTO iceberg_tables VALUES (?, ?, ?, ?, NULL, 'TABLE') ON CONFLICT DO NOTHING";
        sqlx::query(insert)
            .bind(CATALOG)
            .bind(namespace)
            .bind(table)
            .bind(location)
            .execute(&mut *transaction)
            .await
            .map_err(CatalogError::sql(action))?;
        transaction.commit().await.map_err(CatalogError::Unknown)?;
        let found = self.load(namespace, table).await?;
        found.ok_or_else(|| CatalogError::Sql { action, source: sqlx::Error::RowNotFound })
    }

    /// Where the table's metadata is; `None` when there is no such table.
    pub async fn load(&self, namespace: &str, table: &str) -> Result<Option<String>, CatalogError> {
        let action = "load a table";
        let select = "SELECT metadata_location FROM iceberg_tables
            WHERE catalog_name = ? AND table_namespace = ? AND table_name = ?";
        let row = sqlx::query(select).bind(CATALOG).bind(namespace).bind(table).fetch_optional(&self.0.0).await;
        row.map_err(CatalogError::sql(action))?.map(|row| row.try_get(0)).transpose().map_err(CatalogError::sql(action))
    }

    /// All tables whose namespace is `tenant.*`.
    pub async fn tables_of(&self, tenant: &str) -> Result<Vec<TablePointer>, CatalogError> {
        let action = "list tables";
        let select = "SELECT table_namespace, table_name, metadata_location FROM iceberg_tables
            WHERE catalog_name = ? AND substr(table_namespace, 1, ?) = ? ORDER BY 1, 2";
        let prefix = format!("{tenant}.");
        let rows = sqlx::query(select).bind(CATALOG).bind(prefix.len() as i64).bind(&prefix).fetch_all(&self.0.0).await;
        let pointer = |row: sqlx::sqlite::SqliteRow| {
            Ok(TablePointer { namespace: row.try_get(0)?, table: row.try_get(1)?, location: row.try_get(2)? })
        };
        let rows = rows.map_err(CatalogError::sql(action))?;
        rows.into_iter().map(pointer).collect::<Result<_, sqlx::Error>>().map_err(CatalogError::sql(action))
    }

    /// Moves every table from its base to its new location in one transaction, or none.
    ///
    /// # Errors
    /// [`CatalogError::Unknown`]: the COMMIT was not answered; load the tables to see what happened.
    /// Any other error: nothing moved.
    pub async fn swap(&self, swaps: &[Swap]) -> Result<SwapOutcome, CatalogError> {
        let action = "swap metadata locations";
        // IMMEDIATE: a deferred transaction that reads first cannot always be upgraded and would fail halfway.
        let mut transaction = self.0.0.begin_with("BEGIN IMMEDIATE").await.map_err(CatalogError::sql(action))?;
        for swap in swaps {
            let update = "UPDATE iceberg_tables SET metadata_location = ?, previous_metadata_location = ?
                WHERE catalog_name = ? AND table_namespace = ? AND table_name = ? AND metadata_location = ?";
            let updated = sqlx::query(update)
                .bind(&swap.new)
                .bind(&swap.base)
                .bind(CATALOG)
                .bind(&swap.namespace)
                .bind(&swap.table)
                .bind(&swap.base)
                .execute(&mut *transaction)
                .await
                .map_err(CatalogError::sql(action))?;
            if updated.rows_affected() != 1 {
                transaction.rollback().await.map_err(CatalogError::sql(action))?;
                return Ok(SwapOutcome::Conflict);
            }
        }
        transaction.commit().await.map_err(CatalogError::Unknown)?;
        Ok(SwapOutcome::Moved)
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), CatalogError> {
        sqlx::query("SELECT 1 FROM iceberg_tables LIMIT 1")
            .fetch_optional(&self.0.0)
            .await
            .map(drop)
            .map_err(CatalogError::sql("ask the catalog"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn catalog(dir: &tempfile::TempDir) -> IcebergCatalog {
        let address = format!("sqlite://{}/new/catalog.db", dir.path().display());
        IcebergCatalog::open(Database::open(&address).await.expect("opens")).await.expect("creates tables")
    }

    fn swap(table: &str, base: &str, new: &str) -> Swap {
        let text = str::to_owned;
        Swap { namespace: text("t.d"), table: text(table), base: text(base), new: text(new) }
    }

    #[tokio::test]
    async fn swaps_move_all_tables_or_none() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let catalog = catalog(&dir).await;
        for table in ["a", "b"] {
            assert_eq!(catalog.create("t.d", table, "v0").await.expect("creates"), "v0");
            assert_eq!(catalog.create("t.d", table, "other").await.expect("exists"), "v0");
        }
        let both = [swap("a", "v0", "v1"), swap("b", "v0", "v1")];
        assert_eq!(catalog.swap(&both).await.expect("swaps"), SwapOutcome::Moved);
        let stale = [swap("a", "v1", "v2"), swap("b", "v0", "v2")];
        assert_eq!(catalog.swap(&stale).await.expect("answers"), SwapOutcome::Conflict);
        assert_eq!(catalog.load("t.d", "a").await.expect("loads").as_deref(), Some("v1"), "nothing moved");
        assert_eq!(catalog.load("t.d", "c").await.expect("loads"), None);
        assert_eq!(catalog.tables_of("t").await.expect("lists").len(), 2);
        assert_eq!(catalog.tables_of("t_").await.expect("lists").len(), 0);
    }

    #[tokio::test]
    async fn concurrent_swaps_of_one_base_have_one_winner() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let catalog = catalog(&dir).await;
        catalog.create("t.d", "a", "0").await.expect("creates");
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..8 {
            let catalog = catalog.clone();
            tasks.spawn(async move {
                let mut won = 0;
                for step in 0..25 {
                    let base = catalog.load("t.d", "a").await.expect("loads").expect("exists");
                    let new = format!("{writer}-{step}");
                    let outcome = catalog.swap(&[swap("a", &base, &new)]).await.expect("answers");
                    won += u32::from(outcome == SwapOutcome::Moved);
                }
                won
            });
        }
        let wins: u32 = tasks.join_all().await.into_iter().sum();
        assert!(wins >= 25, "each round has a winner: {wins}");
    }

    #[tokio::test]
    async fn a_catalog_keeps_its_first_store() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let catalog = catalog(&dir).await;
        assert_eq!(catalog.store_id("one").await.expect("adopts"), "one");
        assert_eq!(catalog.store_id("two").await.expect("reads"), "one");
    }
}
