//! What clients do: write rows, again when they do not know, and read what was promised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use prost::Message;
use signaldb_model::{DatasetId, GroupId, Position, TableId, TenantId, UnixNanos};
use signaldb_query::{Consistency, QueryError, TableReader};
use signaldb_raft::{Append, Compression, Digest, TableStats, WriteError};
use signaldb_signals::{SignalKind, SignalTable};

use crate::ledger::Ledger;
use crate::node::Parts;
use crate::world::{Event, World, digest_of};

/// The one data group.
pub(crate) const GROUP: GroupId = GroupId(1);
const TABLE: SignalTable = SignalTable::Traces;
const DATASETS: [&str; 2] = ["one", "two"];
/// What tells rows from each other.
const COLUMN: &str = "name";
/// How long a client waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long a query may take: a leader that is gone is looked for again.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// Length of the dedup window, seconds: longer than a simulation.
const DEDUP_SECONDS: u32 = 3600;

/// The two tables that are written to.
pub(crate) fn table_ids() -> [TableId; 2] {
    DATASETS.map(|dataset| TableId {
        tenant: TenantId::new("tenant").expect("a name"),
        dataset: DatasetId::new(dataset).expect("a name"),
        code: TABLE.code(),
    })
}

/// Rows of one request.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) table: TableId,
    pub(crate) rows: Vec<String>,
    pub(crate) payload: Bytes,
    pub(crate) attempts: u32,
}

impl Write {
    pub(crate) fn new(number: u64, count: u64, now: UnixNanos) -> Self {
        let [one, two] = table_ids();
        let table = if number.is_multiple_of(3) { two } else { one };
        let rows: Vec<String> = (0..count).map(|at| format!("{number}-{at}")).collect();
        let span = |row: &String| Span { name: row.clone(), start_time_unix_nano: now.0, ..Span::default() };
        let scope = ScopeSpans { spans: rows.iter().map(span).collect(), ..ScopeSpans::default() };
        let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
        let payload = ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec();
        Self { table, rows, payload: payload.into(), attempts: 0 }
    }

    fn append(&self) -> Append {
        let mut digest = [0; 16];
        digest[..8].copy_from_slice(&digest_of(&self.payload).to_le_bytes());
        let rows = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        let stats = TableStats { table: self.table.code, rows, time_min: UnixNanos(0), time_max: UnixNanos(0) };
        Append {
            kind: SignalKind::Traces as u8,
            tenant: self.table.tenant.clone(),
            dataset: self.table.dataset.clone(),
            at: UnixNanos(0),
            dedup: Some((Digest(digest), DEDUP_SECONDS)),
            tables: vec![stats],
            compression: Compression::None,
            raw_len: u32::try_from(self.payload.len()).unwrap_or(u32::MAX),
            payload: self.payload.clone(),
        }
    }

    /// Writes through the node of `parts`.
    pub(crate) async fn perform(self, parts: Parts) -> Result<Position, WriteError> {
        let group = parts.groups.home(&self.table.tenant, TIMEOUT).await?;
        Ok(Box::pin(group.append(self.append(), None, TIMEOUT)).await?.position)
    }
}

/// Where the outcome of a call goes. A call that ends without one, with its process, has none.
pub(crate) struct Reply<T> {
    slot: Arc<Mutex<Option<T>>>,
    world: World,
    event: Option<Event>,
}

/// What a caller waits for.
pub(crate) struct Call<T>(Arc<Mutex<Option<T>>>);

impl<T> Call<T> {
    /// A call after whose end `event` happens.
    pub(crate) fn new(world: &World, event: Event) -> (Self, Reply<T>) {
        let slot = Arc::new(Mutex::new(None));
        (Self(Arc::clone(&slot)), Reply { slot, world: world.clone(), event: Some(event) })
    }

    pub(crate) fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<T> Reply<T> {
    pub(crate) fn give(self, outcome: T) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            self.world.after(0, event);
        }
    }
}

/// Rows of data files by path: files never change.
pub(crate) type Files = Arc<Mutex<BTreeMap<String, Vec<String>>>>;

/// What a read asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Everything that was acknowledged before it.
    Strong,
    /// The last position that was acknowledged, whatever else there is.
    Position,
    /// What there is.
    Eventual,
    /// Everything, from files alone, after a flush by this node.
    Flushed,
}

/// Reads tables through a node and compares them with what was promised.
#[derive(Clone)]
pub(crate) struct Reader {
    pub(crate) parts: Parts,
    pub(crate) ledger: Ledger,
    pub(crate) world: World,
    pub(crate) files: Files,
}

impl Reader {
    /// Reads every table.
    ///
    /// # Errors
    /// Why nothing was read.
    pub(crate) async fn read_tables(self, who: String, level: Level) -> Result<(), String> {
        if level == Level::Flushed {
            let groups = [self.parts.groups.group(GROUP).ok_or("no such group")?];
            self.parts.lake.flush(&groups).await.map_err(|error| error.to_string())?;
        }
        let who = format!("{who} {level:?}");
        for table in table_ids() {
            Box::pin(self.read_table(&who, &table, level)).await?;
        }
        Ok(())
    }

    /// As a query takes a table (`query/src/engine.rs`), which then would scan it.
    async fn read_table(&self, who: &str, id: &TableId, level: Level) -> Result<(), String> {
        let told = self.ledger.told_of(id).filter(|_| level == Level::Position);
        let (consistency, promised) = match level {
            Level::Strong | Level::Flushed => (Consistency::Strong, self.ledger.promised(id)),
            Level::Position | Level::Eventual => {
                (Consistency::Eventual, told.map(|index| self.ledger.promised_upto(id, index)).unwrap_or_default())
            }
        };
        let position = told.map(|index| Position { group: GROUP, index });
        let Parts { groups, lake, queries } = self.parts.clone();
        let reader = TableReader { lake, groups, queries };
        let seen = reader.read(id, COLUMN, consistency, position, READ_TIMEOUT).await;
        let seen = seen.map_err(|error| self.refused(who, id, &error))?;
        if !seen.missing_groups.is_empty() && (consistency == Consistency::Strong || position.is_some()) {
            self.world.violate(format!("{who} of {id} goes on without groups {:?}", seen.missing_groups));
        }
        let mut rows = Vec::new();
        for batch in &seen.rows {
            rows.extend(names(batch));
        }
        if level == Level::Flushed && !rows.is_empty() {
            self.world.violate(format!("rows of {id} are not in files after a flush"));
        }
        let paths: Vec<&str> = seen.files.iter().flat_map(|files| files.iter()).map(|file| file.file_path()).collect();
        let distinct: BTreeSet<&str> = paths.iter().copied().collect();
        if distinct.len() != paths.len() {
            self.world.violate(format!("{who}: a file of table {id} is referenced twice"));
        }
        for path in paths {
            rows.extend(self.rows_of_file(path).await?);
        }
        self.world.note(format_args!("read {who} {id} {}", rows.len()));
        self.ledger.read(who, id, &promised, &rows);
        Ok(())
    }

    /// Some of what a read may be told must never be.
    fn refused(&self, who: &str, id: &TableId, error: &QueryError) -> String {
        let message = error.to_string();
        let never = ["went back behind its watermark", "does not exist yet", "is not of a group that holds rows"];
        if never.iter().any(|never| message.contains(never)) {
            self.world.violate(format!("{who} of {id}: {message}"));
        }
        message
    }

    async fn rows_of_file(&self, path: &str) -> Result<Vec<String>, String> {
        let known = self.files.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        if let Some(rows) = known {
            return Ok(rows);
        }
        let content = match self.parts.lake.store().read(path).await {
            Err(error) if error.is_not_found() => {
                self.world.violate(format!("{path} is in a table, and not in the store"));
                return Err(error.to_string());
            }
            read => read.map_err(|error| error.to_string())?,
        };
        let rows = parquet_names(content)?;
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), rows.clone());
        Ok(rows)
    }

    /// The index that a strong read through this node, whoever leads, is at.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn read_index(self, who: String) -> Result<(), String> {
        let group = self.parts.groups.group(GROUP).ok_or("no such group")?;
        let told = self.ledger.told(GROUP.0);
        let index = group.read_index().await.map_err(|error| error.to_string())?;
        self.world.note(format_args!("read index {who} {index}"));
        if index < told {
            self.world.violate(format!("{who}: a strong read is at {index}, and {told} was acknowledged before"));
        }
        Ok(())
    }
}

fn parquet_names(content: Bytes) -> Result<Vec<String>, String> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(content).and_then(|builder| {
        // The others take most of the time.
        let mask = ProjectionMask::columns(builder.parquet_schema(), [COLUMN]);
        builder.with_projection(mask).build()
    });
    let mut rows = Vec::new();
    for batch in reader.map_err(|error| error.to_string())? {
        rows.extend(names(&batch.map_err(|error| error.to_string())?));
    }
    Ok(rows)
}

/// The names of spans.
fn names(batch: &RecordBatch) -> Vec<String> {
    let column = batch.column_by_name(COLUMN).expect("spans have names");
    column.as_string::<i32>().iter().flatten().map(str::to_owned).collect()
}
