//! SQLite or PostgreSQL, opened so that a committed transaction survives power loss; the same few statements on both.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{PgPool, Postgres, Row as _, Sqlite, SqlitePool};
use thiserror::Error;

/// How long a statement waits for another writer of a SQLite database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// PostgreSQL's "create if missing" is not safe against itself; nodes that start together take turns.
const SCHEMA_LOCK: i64 = 0x5167_6e61_6c44_4201;

/// The catalog could not be asked, or its answer to a commit was lost.
#[derive(Debug, Error)]
pub enum CatalogError {
    #[error("catalog address {0:?} is not sqlite://PATH, sqlite::memory: or postgres://USER:PASSWORD@HOST/DATABASE")]
    Address(String),
    #[error("create {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// What is committed there may be lost.
    #[error("the PostgreSQL server has {setting} = {found}; a catalog needs on")]
    NotDurable { setting: &'static str, found: String },
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

/// How many connections to a database, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Kept open even when nobody needs them. Default 2.
    pub min_connections: u32,
    /// Default 10.
    pub max_connections: u32,
    /// How long a request waits for a connection, and a connection for its server. Default 5 s.
    pub connection_timeout: Duration,
    /// A connection that nobody needed for so long is closed, down to the minimum. Default 30 min.
    pub idle_timeout: Duration,
    /// A connection this old is closed. Default 30 min.
    pub max_lifetime: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        let half_hour = Duration::from_secs(30 * 60);
        Self {
            min_connections: 2,
            max_connections: 10,
            connection_timeout: Duration::from_secs(5),
            idle_timeout: half_hour,
            max_lifetime: half_hour,
        }
    }
}

/// A pool at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatus {
    pub idle: u32,
    pub in_use: u32,
    pub max: u32,
    /// Connections that were opened so far.
    pub opened: u64,
    /// Requests so far that got no connection in time.
    pub timeouts: u64,
}

/// A pool of connections to one database.
#[derive(Debug, Clone)]
pub struct Database {
    pool: Pool,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    opened: AtomicU64,
    timeouts: AtomicU64,
}

#[derive(Debug, Clone)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A statement with `?` for each of its arguments, whatever the database calls them.
#[derive(Debug, Clone)]
pub(crate) struct Statement<'a> {
    sql: &'static str,
    arguments: Vec<Argument<'a>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl<'a> From<&'a str> for Argument<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Argument<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

pub(crate) fn statement<'a>(sql: &'static str, arguments: impl IntoIterator<Item = Argument<'a>>) -> Statement<'a> {
    Statement { sql, arguments: arguments.into_iter().collect() }
}

/// A row of either database.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    pub(crate) fn text(&self, at: usize) -> Result<String, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(at),
            Self::Postgres(row) => row.try_get(at),
        }
    }

    pub(crate) fn bytes(&self, at: usize) -> Result<Vec<u8>, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(at),
            Self::Postgres(row) => row.try_get(at),
        }
    }
}

impl Database {
    /// Opens `sqlite://PATH` (created when missing), `sqlite::memory:` for tests, or `postgres://...`.
    ///
    /// # Errors
    /// [`CatalogError::Address`] for other schemes; [`CatalogError::NotDurable`] for a PostgreSQL that may lose commits;
    /// else what the file system or the database says.
    pub async fn open(address: &str, config: &PoolConfig) -> Result<Self, CatalogError> {
        if address.starts_with("postgres://") || address.starts_with("postgresql://") {
            return open_postgres(address, config).await;
        }
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
            .busy_timeout(BUSY_TIMEOUT);
        let counts = Arc::<Counts>::default();
        let mut pool = pool_options::<Sqlite>(config, &counts);
        if memory {
            // Every connection of a memory database would be a database of its own.
            pool = pool.min_connections(1).max_connections(1).idle_timeout(None).max_lifetime(None);
        }
        let pool = pool.connect_with(options).await.map_err(CatalogError::sql("open the catalog"))?;
        Ok(Self { pool: Pool::Sqlite(pool), counts })
    }

    /// The pool as of now.
    pub fn pool_status(&self) -> PoolStatus {
        let (size, idle, max) = match &self.pool {
            Pool::Sqlite(pool) => (pool.size(), pool.num_idle(), pool.options().get_max_connections()),
            Pool::Postgres(pool) => (pool.size(), pool.num_idle(), pool.options().get_max_connections()),
        };
        let idle = u32::try_from(idle).unwrap_or(u32::MAX);
        PoolStatus {
            idle,
            in_use: size.saturating_sub(idle),
            max,
            opened: self.counts.opened.load(Ordering::Relaxed),
            timeouts: self.counts.timeouts.load(Ordering::Relaxed),
        }
    }

    /// An error of a statement; counts those that found no connection.
    fn failed(&self, action: &'static str) -> impl Fn(sqlx::Error) -> CatalogError {
        move |source| {
            if matches!(source, sqlx::Error::PoolTimedOut) {
                self.counts.timeouts.fetch_add(1, Ordering::Relaxed);
            }
            CatalogError::Sql { action, source }
        }
    }

    /// Creates tables that are missing. `BLOB` stands for the type of bytes of either database.
    pub(crate) async fn create_tables(&self, statements: &[&'static str]) -> Result<(), CatalogError> {
        let action = "create the catalog's tables";
        match &self.pool {
            Pool::Sqlite(pool) => {
                for sql in statements {
                    sqlx::query(sql).execute(pool).await.map_err(self.failed(action))?;
                }
            }
            Pool::Postgres(pool) => {
                let mut transaction = pool.begin().await.map_err(self.failed(action))?;
                let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(SCHEMA_LOCK);
                lock.execute(&mut *transaction).await.map_err(self.failed(action))?;
                for sql in statements {
                    let sql = sql.replace("BLOB", "BYTEA");
                    sqlx::query(&sql).execute(&mut *transaction).await.map_err(self.failed(action))?;
                }
                transaction.commit().await.map_err(self.failed(action))?;
            }
        }
        Ok(())
    }

    /// Runs one statement by itself.
    pub(crate) async fn execute(&self, action: &'static str, statement: &Statement<'_>) -> Result<(), CatalogError> {
        let executed = match &self.pool {
            Pool::Sqlite(pool) => sqlite(statement).execute(pool).await.map(drop),
            Pool::Postgres(pool) => {
                let sql = numbered(statement.sql);
                postgres(&sql, statement).execute(pool).await.map(drop)
            }
        };
        executed.map_err(self.failed(action))
    }

    /// All rows of a query.
    pub(crate) async fn fetch(
        &self,
        action: &'static str,
        statement: &Statement<'_>,
    ) -> Result<Vec<Row>, CatalogError> {
        let rows = match &self.pool {
            Pool::Sqlite(pool) => {
                sqlite(statement).fetch_all(pool).await.map(|rows| rows.into_iter().map(Row::Sqlite).collect())
            }
            Pool::Postgres(pool) => {
                let sql = numbered(statement.sql);
                let rows = postgres(&sql, statement).fetch_all(pool).await;
                rows.map(|rows| rows.into_iter().map(Row::Postgres).collect())
            }
        };
        rows.map_err(self.failed(action))
    }

    /// Runs all statements in one transaction and commits if each of them changed what `enough` asks of its number of
    /// rows; otherwise changes nothing. Returns whether it committed.
    ///
    /// # Errors
    /// [`CatalogError::Unknown`]: the COMMIT was not answered. Any other error: nothing changed.
    pub(crate) async fn transact(
        &self,
        action: &'static str,
        statements: &[Statement<'_>],
        enough: fn(u64) -> bool,
    ) -> Result<bool, CatalogError> {
        match &self.pool {
            Pool::Sqlite(pool) => {
                // IMMEDIATE: a deferred transaction that reads first cannot always be upgraded and would fail halfway.
                let begun = pool.begin_with("BEGIN IMMEDIATE").await;
                let mut transaction = begun.map_err(self.failed(action))?;
                for statement in statements {
                    let done = sqlite(statement).execute(&mut *transaction).await.map_err(self.failed(action))?;
                    if !enough(done.rows_affected()) {
                        transaction.rollback().await.map_err(self.failed(action))?;
                        return Ok(false);
                    }
                }
                transaction.commit().await.map_err(CatalogError::Unknown)?;
            }
            Pool::Postgres(pool) => {
                let mut transaction = pool.begin().await.map_err(self.failed(action))?;
                for statement in statements {
                    let sql = numbered(statement.sql);
                    let done = postgres(&sql, statement).execute(&mut *transaction).await;
                    if !enough(done.map_err(self.failed(action))?.rows_affected()) {
                        transaction.rollback().await.map_err(self.failed(action))?;
                        return Ok(false);
                    }
                }
                transaction.commit().await.map_err(CatalogError::Unknown)?;
            }
        }
        Ok(true)
    }

    pub async fn close(&self) {
        match &self.pool {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::Postgres(pool) => pool.close().await,
        }
    }
}

/// What both databases' pools have in common.
fn pool_options<DB: sqlx::Database>(config: &PoolConfig, counts: &Arc<Counts>) -> PoolOptions<DB> {
    let counts = Arc::clone(counts);
    PoolOptions::new()
        .min_connections(config.min_connections)
        .max_connections(config.max_connections)
        .acquire_timeout(config.connection_timeout)
        .idle_timeout(config.idle_timeout)
        .max_lifetime(config.max_lifetime)
        .after_connect(move |_connection, _metadata| {
            counts.opened.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Ok(()) })
        })
}

async fn open_postgres(address: &str, config: &PoolConfig) -> Result<Database, CatalogError> {
    let action = "open the catalog";
    let options = PgConnectOptions::from_str(address).map_err(|_| CatalogError::Address(hidden(address)))?;
    let options = options.application_name("signaldb").options([
        // A role may have switched it off for itself.
        ("synchronous_commit", "on"),
        // A node that is cut off or stopped in the middle of a swap must not hold the others' rows.
        ("idle_in_transaction_session_timeout", "5s"),
        ("lock_timeout", "5s"),
        ("statement_timeout", "10s"),
    ]);
    let counts = Arc::<Counts>::default();
    let pool = pool_options::<Postgres>(config, &counts);
    let pool = pool.connect_with(options).await.map_err(CatalogError::sql(action))?;
    for setting in ["synchronous_commit", "fsync"] {
        let show = sqlx::query("SELECT current_setting($1)").bind(setting).fetch_one(&pool).await;
        let found: String = show.and_then(|row| row.try_get(0)).map_err(CatalogError::sql(action))?;
        if found == "off" || found == "local" {
            return Err(CatalogError::NotDurable { setting, found });
        }
    }
    Ok(Database { pool: Pool::Postgres(pool), counts })
}

/// The address without what may be a password.
fn hidden(address: &str) -> String {
    match (address.split_once("://"), address.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        _ => address.to_owned(),
    }
}

fn sqlite<'q>(statement: &Statement<'q>) -> Query<'q, Sqlite, SqliteArguments<'q>> {
    statement.arguments.iter().fold(sqlx::query(statement.sql), |query, argument| match argument {
        Argument::Text(text) => query.bind(*text),
        Argument::Bytes(bytes) => query.bind(*bytes),
    })
}

fn postgres<'q>(sql: &'q str, statement: &Statement<'q>) -> Query<'q, Postgres, PgArguments> {
    statement.arguments.iter().fold(sqlx::query(sql), |query, argument| match argument {
        Argument::Text(text) => query.bind(*text),
        Argument::Bytes(bytes) => query.bind(*bytes),
    })
}

/// `?` as `$1`, `$2`, ...; our statements hold no other question marks.
fn numbered(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len() + 16);
    let mut parts = sql.split('?');
    out.push_str(parts.next().unwrap_or_default());
    for (number, part) in parts.enumerate() {
        out.push_str(&format!("${}", number + 1));
        out.push_str(part);
    }
    out
}

fn create_parent(address: &str) -> Result<(), CatalogError> {
    let path = address.trim_start_matches("sqlite:").trim_start_matches("//");
    let path = Path::new(path.split('?').next().unwrap_or(path));
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
    std::fs::create_dir_all(parent).map_err(|source| CatalogError::Directory { path: parent.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: more requests at once than the pool has connections; then one that gets none in time.
    #[tokio::test]
    async fn a_pool_keeps_its_limits_and_counts() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let config = PoolConfig {
            min_connections: 1,
            max_connections: 2,
            connection_timeout: Duration::from_secs(2),
            ..PoolConfig::default()
        };
        let address = format!("sqlite://{}/a.db", dir.path().display());
        let database = Database::open(&address, &config).await.expect("opens");
        let Pool::Sqlite(pool) = &database.pool else { panic!("SQLite") };
        let held = [pool.acquire().await.expect("the first"), pool.acquire().await.expect("the second")];
        let status = database.pool_status();
        assert_eq!((status.in_use, status.idle, status.max, status.opened), (2, 0, 2, 2));
        let refused = database.execute("look", &statement("SELECT 1", [])).await.expect_err("no third");
        assert!(matches!(refused, CatalogError::Sql { source: sqlx::Error::PoolTimedOut, .. }), "{refused}");
        assert_eq!(database.pool_status().timeouts, 1);
        drop(held);
        database.execute("look", &statement("SELECT 1", [])).await.expect("there is room");
    }
}
