//! The two tables of Iceberg's JDBC catalog, byte-compatible with PyIceberg's `SqlCatalog`.
//!
//! | table | key | value | a row exists |
//! |---|---|---|---|
//! | `iceberg_tables` | catalog, namespace, table | current and previous metadata location | for every table |
//! | `iceberg_namespace_properties` | catalog, namespace, property | value | `exists=true` for every namespace |

use crate::database::{CatalogError, Database, PoolStatus, statement};

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
        database.create_tables(SCHEMA).await?;
        Ok(Self(database))
    }

    /// The store that this catalog belongs to; a new catalog adopts `store_id`.
    pub async fn store_id(&self, store_id: &str) -> Result<String, CatalogError> {
        let action = "read the store id";
        let adopt = "INSERT INTO signaldb_store (one, store_id) VALUES (1, ?) ON CONFLICT DO NOTHING";
        self.0.execute(action, &statement(adopt, [store_id.into()])).await?;
        let rows = self.0.fetch(action, &statement("SELECT store_id FROM signaldb_store", [])).await?;
        let found = rows.first().ok_or(sqlx::Error::RowNotFound).and_then(|row| row.text(0));
        found.map_err(CatalogError::sql(action))
    }

    /// Registers a table at `location` unless it exists; returns where it is.
    pub async fn create(&self, namespace: &str, table: &str, location: &str) -> Result<String, CatalogError> {
        let action = "create a table";
        let exists = "INSERT INTO iceberg_namespace_properties VALUES (?, ?, 'exists', 'true') ON CONFLICT DO NOTHING";
        let insert = "INSERT INTO iceberg_tables VALUES (?, ?, ?, ?, NULL, 'TABLE') ON CONFLICT DO NOTHING";
        let statements = [
            statement(exists, [CATALOG.into(), namespace.into()]),
            statement(insert, [CATALOG.into(), namespace.into(), table.into(), location.into()]),
        ];
        self.0.transact(action, &statements, |_| true).await?;
        let found = self.load(namespace, table).await?;
        found.ok_or_else(|| CatalogError::Sql { action, source: sqlx::Error::RowNotFound })
    }

    /// Where the table's metadata is; `None` when there is no such table.
    pub async fn load(&self, namespace: &str, table: &str) -> Result<Option<String>, CatalogError> {
        let action = "load a table";
        let select = "SELECT metadata_location FROM iceberg_tables
            WHERE catalog_name = ? AND table_namespace = ? AND table_name = ?";
        let rows = self.0.fetch(action, &statement(select, [CATALOG.into(), namespace.into(), table.into()])).await?;
        rows.first().map(|row| row.text(0)).transpose().map_err(CatalogError::sql(action))
    }

    /// All tables whose namespace is `tenant.*`.
    pub async fn tables_of(&self, tenant: &str) -> Result<Vec<TablePointer>, CatalogError> {
        self.tables_below(&format!("{tenant}.")).await
    }

    /// All tables.
    pub async fn tables(&self) -> Result<Vec<TablePointer>, CatalogError> {
        self.tables_below("").await
    }

    async fn tables_below(&self, prefix: &str) -> Result<Vec<TablePointer>, CatalogError> {
        let action = "list tables";
        let select = "SELECT table_namespace, table_name, metadata_location FROM iceberg_tables
            WHERE catalog_name = ? AND substr(table_namespace, 1, length(?)) = ? ORDER BY 1, 2";
        let arguments = [CATALOG.into(), prefix.into(), prefix.into()];
        let rows = self.0.fetch(action, &statement(select, arguments)).await?;
        let pointer = |row: &crate::database::Row| {
            Ok(TablePointer { namespace: row.text(0)?, table: row.text(1)?, location: row.text(2)? })
        };
        rows.iter().map(pointer).collect::<Result<_, sqlx::Error>>().map_err(CatalogError::sql(action))
    }

    /// Moves every table from its base to its new location in one transaction, or none.
    ///
    /// # Errors
    /// [`CatalogError::Unknown`]: the COMMIT was not answered; load the tables to see what happened.
    /// Any other error: nothing moved.
    pub async fn swap(&self, swaps: &[Swap]) -> Result<SwapOutcome, CatalogError> {
        let update = "UPDATE iceberg_tables SET metadata_location = ?, previous_metadata_location = ?
            WHERE catalog_name = ? AND table_namespace = ? AND table_name = ? AND metadata_location = ?";
        // Always in the same order: two transactions never wait for each other's rows.
        let mut swaps: Vec<&Swap> = swaps.iter().collect();
        swaps.sort_by(|a, b| (&a.namespace, &a.table).cmp(&(&b.namespace, &b.table)));
        let updates = swaps.into_iter().map(|Swap { namespace, table, base, new }| {
            let arguments: [&str; 6] = [new, base, CATALOG, namespace, table, base];
            statement(update, arguments.map(Into::into))
        });
        let updates: Vec<_> = updates.collect();
        let moved = self.0.transact("swap metadata locations", &updates, |rows| rows == 1).await?;
        Ok(if moved { SwapOutcome::Moved } else { SwapOutcome::Conflict })
    }

    /// Forgets a table, as another engine's `DROP TABLE` does.
    #[cfg(any(test, feature = "testing"))]
    pub async fn drop_table(&self, namespace: &str, table: &str) -> Result<(), CatalogError> {
        let delete = "DELETE FROM iceberg_tables WHERE catalog_name = ? AND table_namespace = ? AND table_name = ?";
        let arguments = [CATALOG.into(), namespace.into(), table.into()];
        self.0.execute("drop a table", &statement(delete, arguments)).await
    }

    /// The pool of connections to the database.
    pub fn pool_status(&self) -> PoolStatus {
        self.0.pool_status()
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), CatalogError> {
        let select = statement("SELECT store_id FROM signaldb_store", []);
        self.0.fetch("ask the catalog", &select).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::PoolConfig;

    async fn open(address: &str) -> IcebergCatalog {
        IcebergCatalog::open(Database::open(address, &PoolConfig::default()).await.expect("opens"))
            .await
            .expect("creates tables")
    }

    #[tokio::test]
    async fn sqlite_conforms() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let address = |name: &str| format!("sqlite://{}/new/{name}.db", dir.path().display());
        swaps_move_all_tables_or_none(open(&address("a")).await).await;
        concurrent_swaps_of_one_base_have_one_winner(open(&address("b")).await).await;
        a_catalog_keeps_its_first_store(open(&address("c")).await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn postgres_conforms() {
        let server = crate::test_postgres::Server::start().expect("a private PostgreSQL starts");
        // Three nodes start together.
        let address = server.address();
        let opened = tokio::join!(open(&address), open(&address), open(&address));
        swaps_move_all_tables_or_none(opened.0).await;
        concurrent_swaps_of_one_base_have_one_winner(opened.1).await;
        a_catalog_keeps_its_first_store(opened.2).await;
    }

    fn swap(table: &str, base: &str, new: &str) -> Swap {
        let text = str::to_owned;
        Swap { namespace: text("t.d"), table: text(table), base: text(base), new: text(new) }
    }

    async fn swaps_move_all_tables_or_none(catalog: IcebergCatalog) {
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
        assert_eq!(catalog.tables().await.expect("lists").len(), 2);
    }

    async fn concurrent_swaps_of_one_base_have_one_winner(catalog: IcebergCatalog) {
        catalog.create("t.e", "a", "0").await.expect("creates");
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..8 {
            let catalog = catalog.clone();
            tasks.spawn(async move {
                let mut won = 0;
                for step in 0..25 {
                    let base = catalog.load("t.e", "a").await.expect("loads").expect("exists");
                    let new = format!("{writer}-{step}");
                    let outcome = catalog
                        .swap(&[Swap { namespace: "t.e".to_owned(), ..swap("a", &base, &new) }])
                        .await
                        .expect("answers");
                    won += u32::from(outcome == SwapOutcome::Moved);
                }
                won
            });
        }
        let wins: u32 = tasks.join_all().await.into_iter().sum();
        assert!(wins >= 25, "each round has a winner: {wins}");
    }

    async fn a_catalog_keeps_its_first_store(catalog: IcebergCatalog) {
        assert_eq!(catalog.store_id("one").await.expect("adopts"), "one");
        assert_eq!(catalog.store_id("two").await.expect("reads"), "one");
    }
}
