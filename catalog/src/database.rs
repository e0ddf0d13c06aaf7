//! A SQLite file, opened so that a committed transaction survives power loss.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use thiserror::Error;

/// The catalog could not be asked, or its answer to a commit was lost.
#[derive(Debug, Error)]
pub enum CatalogError {
    #[error("catalog address {0:?} is not sqlite://PATH or sqlite::memory:")]
    Address(String),
    #[error("create {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Nothing was changed.
    #[error("{action}")]
    Sql {
        action: &'static str,
        #[source]
        source: sqlx::Error,
    },
    /// The commit was sent and no answer came back: the change may have happened. Look before doing it again.
    #[error("outcome of the catalog commit is unknown")]
    Unknown(#[source] sqlx::Error),
}

impl CatalogError {
    pub(crate) fn sql(action: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Sql { action, source }
    }
}

/// A pool of connections to one database.
#[derive(Debug, Clone)]
pub struct Database(pub(crate) SqlitePool);

impl Database {
    /// Opens `sqlite://PATH` (created when missing), or `sqlite::memory:` for tests.
    ///
    /// # Errors
    /// [`CatalogError::Address`] for other schemes; else what the file system or SQLite says.
    pub async fn open(address: &str) -> Result<Self, CatalogError> {
        let memory = matches!(address, "sqlite::memory:" | "sqlite://:memory:");
        if !address.starts_with("sqlite:") {
            return Err(CatalogError::Address(address.to_owned()));
        }
        if !memory {
            create_parent(address)?;
        }
        let options = SqliteConnectOptions::from_str(address)
            .map_err(|_| CatalogError::Address(address.to_owned()))?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // In WAL mode only FULL syncs the log at each commit.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5));
        let mut pool =
            SqlitePoolOptions::new().min_connections(1).max_connections(10).acquire_timeout(Duration::from_secs(5));
        if memory {
            // Every connection of a memory database would be a database of its own.
            pool = pool.max_connections(1).idle_timeout(None).max_lifetime(None);
        }
        let pool = pool.connect_with(options).await.map_err(CatalogError::sql("open the catalog"))?;
        Ok(Self(pool))
    }

    pub(crate) async fn execute_all(&self, statements: &[&'static str]) -> Result<(), CatalogError> {
        for statement in statements {
            sqlx::query(statement).execute(&self.0).await.map_err(CatalogError::sql("create the catalog's tables"))?;
        }
        Ok(())
    }

    pub async fn close(&self) {
        self.0.close().await;
    }
}

fn create_parent(address: &str) -> Result<(), CatalogError> {
    let path = address.trim_start_matches("sqlite:").trim_start_matches("//");
    let path = Path::new(path.split('?').next().unwrap_or(path));
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
    std::fs::create_dir_all(parent).map_err(|source| CatalogError::Directory { path: parent.to_owned(), source })
}
