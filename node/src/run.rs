//! A node from start to stop.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use metrics_exporter_prometheus::PrometheusHandle;
use signaldb_api::{App, AppDeps, Listeners, serve, serve_starting};
use signaldb_catalog::{Access, CatalogError, Database, IcebergCatalog, PoolConfig, TenantConfig};
use signaldb_lake::{
    BatchConfig, CompactionConfig, Lake, LakeConfig, RetentionConfig, RetentionRule, RetryConfig, S3Credentials,
    S3Options, Store, StoreError,
};
use signaldb_model::{AckLevel, Clock, DatasetId, NodeId, SystemClock, TenantId};
use signaldb_query::{Distribution, PeerWorker, Queries, QueryConfig, QueryEngine};
use signaldb_raft::admission::Refuse;
use signaldb_raft::state_store::RocksStateStore;
use signaldb_raft::{ApplySink, ClusterSecret, Groups, GroupsConfig, OpenLog, PeersConfig, RejectReason};
use signaldb_signals::SignalKind as OtlpKind;
use signaldb_wal::{RealIo, WalConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{self, AdapterOptions, Compaction, Config, DefaultSchemas, Retention, Tenant};
use crate::data_dir::DataDir;
use crate::{banner, disk, metrics, peer_port};

/// How long a write may wait for its commit.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Flushed log beyond this goes, however young it is.
const PURGE_LAG_BYTES: u64 = 1 << 30;
/// How long servers may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_millis(3500);
/// How often a group looks whether it keeps old log alive without need.
const TRIM_INTERVAL: Duration = Duration::from_secs(10);
/// How long a start waits for its databases.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a start waits for the object store, which writes can do without.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a node looks at its own health.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Runs a node until a signal or a failure that it must not survive.
pub(crate) async fn run(config: Config, cpu: tokio::runtime::Handle, cores: usize) -> anyhow::Result<()> {
    // First, so that a stop during a long start is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let metrics = metrics::install()?;
    let _data_dirs = DataDir::open_all(&config)?;
    disk::make_room(&config.wal_dir(), config.wal.disk_reserve);
    let (listeners, starting) = bind(&config).await?.again().context("serve the ports twice")?;
    let peer_listener = match config.cluster.is_replicated() {
        true => Some(bind_one("peer", &config.listen.peer).await?),
        false => None,
    };
    let started = CancellationToken::new();
    let mut starting = JoinSet::from_iter([serve_starting(starting, started.clone())]);
    let node = tokio::select! {
        node = Box::pin(Node::open(&config, cpu, cores, metrics.clone(), peer_listener)) => node?,
        Some(failed) = starting.join_next() => bail!("the ports cannot be served: {failed:?}"),
        _ = terminate.recv() => bail!("stopped before the start was complete"),
    };
    // Its connections end by themselves; nobody waits for a slow one.
    started.cancel();
    starting.detach_all();
    let ack = node.groups.data_groups().next().map_or(AckLevel::LocalFsync, |group| group.ack_level());
    println!("{}", banner::text(&config, ack));
    let stop = CancellationToken::new();
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    tasks.spawn(watch(node.app.clone(), metrics, stop.clone()));
    let (wal_dir, data_dir) = (config.wal_dir(), config.node.data_dir.clone());
    let look = disk::watch(node.app.clone(), wal_dir, data_dir, config.wal.disk_reserve, stop.clone());
    tasks.spawn(async move {
        look.await;
        Ok(())
    });
    tasks.spawn(reload_tenants(node.app.clone(), config.writer.batch.catalog_cache_ttl.0, stop.clone()));
    let (app, stop_serving) = (node.app.clone(), stop.clone());
    tasks.spawn(async move { serve(app, listeners, stop_serving).await.context("serve") });
    let outcome = tokio::select! {
        _ = terminate.recv() => {
            tracing::info!("SIGTERM: stopping");
            Ok(())
        }
        _ = tokio::signal::ctrl_c() => {
            tracing::info!("interrupted: stopping");
            Ok(())
        }
        Some(ended) = tasks.join_next() => ended.map_err(anyhow::Error::from).and_then(|outcome| outcome),
    };
    node.app.drain();
    node.groups.hand_over().await;
    stop.cancel();
    let served = async { while tasks.join_next().await.is_some() {} };
    drop(tokio::time::timeout(STOP_TIMEOUT, served).await);
    node.close().await;
    tracing::info!("stopped");
    outcome
}

/// What a node is made of.
struct Node {
    groups: Arc<Groups>,
    lake: Lake,
    app: App,
    peer_tasks: JoinSet<anyhow::Result<()>>,
    stop_peers: CancellationToken,
}

impl Node {
    async fn open(
        config: &Config,
        cpu: tokio::runtime::Handle,
        cores: usize,
        metrics: PrometheusHandle,
        peer_listener: Option<TcpListener>,
    ) -> anyhow::Result<Self> {
        let catalog_uri = config.catalog_uri();
        if catalog_uri.contains(":memory:") {
            tracing::warn!("the catalog is in memory: tables are lost when the node stops");
        }
        let pool = pool(&config.writer.pool);
        let catalog = patiently("schema.catalog_uri", async || {
            IcebergCatalog::open(Database::open(&catalog_uri, &pool).await?).await
        });
        let catalog = catalog.await?;
        let tenants = config.auth.tenants.iter().map(tenant).collect::<anyhow::Result<Vec<_>>>()?;
        let access = patiently("database.dsn", async || {
            let database = Database::open(&config.database_dsn(), &pool).await?;
            Access::open(database, config.auth.enabled, &tenants).await
        });
        let access = access.await?;
        let (url, adapter) = config.storage();
        if adapter.kind == "memory" {
            tracing::warn!("the store is in memory: tables are lost when the node stops");
        }
        let store = Store::open(&url, &adapter.prefix, &s3_options(&adapter.options)).context("storage")?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let memory = usize::try_from(config.memory.limit.bytes()).unwrap_or(usize::MAX);
        let lake_config = LakeConfig {
            interval: config.flush.interval.0,
            max_interval: config.flush.max_interval.0,
            max_bytes: usize::try_from(config.flush.max_bytes.0).unwrap_or(usize::MAX),
            memtable_bytes_max: memory / 8,
            log_bytes_max: config.wal.max_unflushed.map(|limit| usize::try_from(limit.0).unwrap_or(usize::MAX)),
            concurrency: config.writer.batch.target_concurrent_batches,
            batch: batch(&config.writer.batch),
            cache_ttl: cache_ttl(&config.writer.batch),
            retry: retry(&config.writer.retry),
            lone_voter: !config.cluster.is_replicated(),
            compaction: compaction(&config.compaction),
            retention: retention(&config.retention),
        };
        let lake = Lake::new(lake_config, catalog, store, Arc::clone(&clock), cpu.clone());
        let state_dir = config.node.data_dir.join("state");
        let state = tokio::task::spawn_blocking(move || RocksStateStore::open(&state_dir)).await?;
        let sink: Arc<dyn ApplySink> = Arc::new(lake.clone());
        let log =
            OpenLog::open(&groups_config(config), peers_config(config)?, Arc::new(RealIo), Arc::new(state?)).await;
        let log = log.context("open the log")?;
        let queries = Queries::new(NodeId(config.node.id), Arc::clone(&clock));
        let worker = PeerWorker::new(cpu.clone());
        let (mut peer_tasks, stop_peers, opened) =
            (JoinSet::new(), CancellationToken::new(), Arc::new(OnceLock::new()));
        if let Some(listener) = peer_listener {
            let (peers, groups) = (Arc::clone(log.peers()), Arc::clone(&opened));
            let serving = (lake.clone(), groups, queries.clone(), worker.clone());
            peer_tasks.spawn(peer_port::serve(listener, peers, serving, stop_peers.clone()));
        }
        let groups = Groups::open(log, groups_config(config), Arc::clone(&clock), sink).await;
        let groups = Arc::new(groups.context("open the log")?);
        // Nobody else sets it.
        let _ = opened.set(Arc::clone(&groups));
        tracing::info!("WAL replay is complete");
        claim_store(&lake, &groups).await?;
        if !config.cluster.is_replicated() {
            look_ahead(&lake, &groups).await;
        }
        for group in groups.data_groups() {
            lake.start_flusher(Arc::clone(group), groups.founding().cluster_id.clone());
        }
        lake.start_maintenance(Arc::clone(&groups));
        let query_config = query_config(config, memory / 2, cores);
        let groups_of_engine = Arc::clone(&groups);
        let engine =
            QueryEngine::new(query_config, lake.clone(), groups_of_engine, access.clone(), queries, worker, cpu)?;
        let app = App::new(AppDeps {
            groups: Arc::clone(&groups),
            lake: lake.clone(),
            engine,
            access,
            node: NodeId(config.node.id),
            cluster: config.cluster.name.clone(),
            address: config.listen.peer.clone(),
            admin_key: config.auth.admin_key.as_ref().map(|key| key.0.clone()),
            session_secret: session_secret(
                &config.cluster.secret.0,
                &groups.founding().cluster_id,
                groups.founding().secret.as_ref().map(ClusterSecret::as_bytes),
            ),
            clock,
            write_timeout: WRITE_TIMEOUT,
            dedup_window: config.cluster.dedup_window.0,
            tenant_acks: tenant_acks(&config.auth.tenants)?,
            intake_bytes_max: memory / 16,
            signals: enabled_signals(&config.schema.default_schemas),
            metrics: Box::new(move || metrics.render()),
        });
        groups.refuse_when(refusal(&app));
        Ok(Self { groups, lake, app, peer_tasks, stop_peers })
    }

    /// Ends flushing, then the log: everything acknowledged is synced when this returns.
    async fn close(mut self) {
        self.lake.close().await;
        self.groups.close().await;
        self.stop_peers.cancel();
        // Connections of peers stay open as long as they like.
        self.peer_tasks.abort_all();
        while self.peer_tasks.join_next().await.is_some() {}
    }
}

/// Budgets of queries that have `memory` bytes together.
fn query_config(config: &Config, memory: usize, cores: usize) -> QueryConfig {
    let query = &config.query;
    let own = query.memory.map_or(memory / 4, |own| usize::try_from(own.0).unwrap_or(usize::MAX));
    QueryConfig {
        memory_bytes: memory,
        query_memory_bytes: own.min(memory),
        spill_dir: config.node.data_dir.join("spill"),
        spill_bytes_max: query.spill.0,
        scan_bytes_max: query.scan.map(|scan| scan.0),
        cache_bytes_max: usize::try_from(query.cache.0).unwrap_or(usize::MAX),
        deadline: query.deadline.0,
        deadline_max: query.deadline_max(),
        concurrency: query.concurrency,
        tenant_concurrency: query.tenant_concurrency,
        queue: query.queue,
        partitions: cores,
        distribution: Distribution { enabled: query.distributed.enabled, bytes_min: query.distributed.min_bytes.0 },
    }
}

/// What a leader says to rows from other nodes; its own clients hear the same from the API.
fn refusal(app: &App) -> Box<Refuse> {
    let app = app.clone();
    Box::new(move || app.lake.refusal(0).map(|reason| RejectReason::Busy(format!("the group's leader: {reason}"))))
}

/// What every node of this cluster knows, and nobody who reads its database, catalog or tables: those say `cluster_id`. A
/// cluster that was `founded` before there were secrets has what is configured, if something is.
fn session_secret(configured: &str, cluster_id: &str, founded: Option<&[u8]>) -> Option<Vec<u8>> {
    let public = format!("{configured}\0{cluster_id}").into_bytes();
    match founded {
        Some(founded) => Some([public.as_slice(), b"\0", founded].concat()),
        None => (!configured.is_empty()).then_some(public),
    }
}

fn enabled_signals(enabled: &DefaultSchemas) -> Vec<OtlpKind> {
    [
        (OtlpKind::Traces, enabled.traces_enabled),
        (OtlpKind::Logs, enabled.logs_enabled),
        (OtlpKind::Metrics, enabled.metrics_enabled),
    ]
    .into_iter()
    .filter_map(|(kind, enabled)| enabled.then_some(kind))
    .collect()
}

/// Tries again while a database does not answer: a node that starts again while it is down, or busy with the others, is
/// needed for the quorum all the more.
async fn patiently<T>(setting: &str, open: impl AsyncFn() -> Result<T, CatalogError>) -> anyhow::Result<T> {
    let until = tokio::time::Instant::now() + DATABASE_TIMEOUT;
    loop {
        match open().await {
            Err(error @ CatalogError::Sql { .. }) if tokio::time::Instant::now() < until => {
                tracing::warn!(setting, error = %anyhow!(error), "the database does not answer yet");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            outcome => return outcome.with_context(|| setting.to_owned()),
        }
    }
}

/// Names this boot of the machine; every read of it that fails is another boot, which is the safe guess.
fn boot_id() -> String {
    let path = std::env::var("SIGNALDB_BOOT_ID_PATH").unwrap_or_else(|_| "/proc/sys/kernel/random/boot_id".to_owned());
    let read = std::fs::read_to_string(&path).map(|id| id.trim().to_owned());
    read.unwrap_or_else(|error| {
        tracing::warn!(path, %error, "the machine's boot cannot be told; starting as after a crash of the machine");
        format!("unknown, started at {}", SystemClock.now().0)
    })
}

fn groups_config(config: &Config) -> GroupsConfig {
    GroupsConfig {
        address: config.listen.peer.clone(),
        wal_dir: config.wal_dir(),
        boot_id: boot_id(),
        wal: WalConfig {
            segment_bytes_max: config.wal.max_segment_size.0,
            sync_interval: config.wal.sync_interval.0,
            sync_bytes: config.wal.sync_bytes.0,
        },
        data_groups: config.cluster.groups,
        heartbeat_interval: config.cluster.heartbeat_interval.0,
        election_timeout: (config.cluster.election_timeout.0.0, config.cluster.election_timeout.1.0),
        purge_lag: config.wal.keep_flushed.0,
        purge_lag_bytes_max: PURGE_LAG_BYTES,
        trim_interval: TRIM_INTERVAL,
        fsync: config.cluster.ack == "quorum-fsync",
    }
}

fn peers_config(config: &Config) -> anyhow::Result<PeersConfig> {
    Ok(PeersConfig {
        cluster: config.cluster.name.clone(),
        secret: config.cluster.secret.0.clone(),
        node: NodeId(config.node.id),
        addresses: config.cluster.addresses().map_err(|error| anyhow!("cluster.peers: {error}"))?,
    })
}

fn pool(pool: &config::Pool) -> PoolConfig {
    PoolConfig {
        min_connections: pool.min_connections,
        max_connections: pool.max_connections,
        connection_timeout: pool.connection_timeout.0,
        idle_timeout: pool.idle_timeout.0,
        max_lifetime: pool.max_lifetime.0,
    }
}

fn retry(retry: &config::Retry) -> RetryConfig {
    RetryConfig {
        max_attempts: retry.max_attempts,
        initial_delay: retry.initial_delay.0,
        max_delay: retry.max_delay.0,
        backoff_multiplier: retry.backoff_multiplier,
    }
}

fn batch(batch: &config::Batch) -> BatchConfig {
    let rows_max = if batch.enable_auto_split { batch.max_rows_per_batch } else { usize::MAX };
    let bytes_max = if batch.enable_auto_split { batch.max_memory_per_batch.0 } else { u64::MAX };
    BatchConfig { rows_max, bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX) }
}

fn cache_ttl(batch: &config::Batch) -> Duration {
    if batch.enable_catalog_caching { batch.catalog_cache_ttl.0 } else { Duration::ZERO }
}

fn compaction(compaction: &Compaction) -> CompactionConfig {
    CompactionConfig {
        enabled: compaction.enabled,
        interval: compaction.interval.0,
        target_file_bytes: compaction.target_file_size.0,
        min_files: compaction.min_files,
        memory_bytes: compaction.memory.0,
    }
}

fn retention(retention: &Retention) -> RetentionConfig {
    let rule = |rule: &config::RetentionRule| RetentionRule {
        tenant: rule.tenant.clone(),
        dataset: rule.dataset.clone(),
        table: rule.table.clone(),
        keep: rule.keep.map(|keep| keep.0),
    };
    RetentionConfig {
        keep: retention.keep.map(|keep| keep.0),
        rules: retention.rules.iter().map(rule).collect(),
        grace: retention.grace.0,
        collect_interval: retention.collect_interval.0,
    }
}

fn s3_options(options: &AdapterOptions) -> S3Options {
    let keys = options.access_key_id.as_ref().zip(options.secret_access_key.as_ref());
    S3Options {
        endpoint: options.endpoint.clone(),
        region: options.region.clone(),
        allow_http: options.allow_http,
        path_style: options.path_style,
        timeout: options.timeout.map(|timeout| timeout.0),
        credentials: keys
            .map(|(id, secret)| S3Credentials { access_key_id: id.0.clone(), secret_access_key: secret.0.clone() }),
    }
}

fn tenant_acks(tenants: &[Tenant]) -> anyhow::Result<BTreeMap<TenantId, AckLevel>> {
    let asked = tenants.iter().filter_map(|tenant| Some((&tenant.id, tenant.ack.as_deref()?)));
    asked.map(|(id, ack)| Ok((TenantId::new(id).context("auth.tenants.id")?, ack.parse()?))).collect()
}

fn tenant(tenant: &Tenant) -> anyhow::Result<TenantConfig> {
    let datasets = tenant.datasets.iter().map(|dataset| DatasetId::new(&dataset.id));
    let datasets = datasets.collect::<Result<Vec<_>, _>>().context("auth.tenants.datasets.id")?;
    let default = tenant.datasets.iter().find(|dataset| dataset.is_default).map(|dataset| dataset.id.as_str());
    let default = tenant.default_dataset.as_deref().or(default).unwrap_or("default");
    Ok(TenantConfig {
        id: TenantId::new(&tenant.id).context("auth.tenants.id")?,
        default_dataset: DatasetId::new(default).context("auth.tenants.default_dataset")?,
        datasets,
        keys: tenant.api_keys.iter().map(|key| (key.key.0.clone(), key.name.clone())).collect(),
    })
}

/// Store and catalog belong to the cluster whose log this is; others are refused by name.
async fn claim_store(lake: &Lake, groups: &Groups) -> anyhow::Result<()> {
    let store_id = &groups.founding().store_id;
    match lake.catalog().store_id(store_id).await {
        Ok(found) if found == *store_id => {}
        Ok(found) => bail!("the catalog belongs to cluster store {found}, the log to {store_id}"),
        Err(error) => tracing::warn!(%error, "the catalog does not answer; it is checked at the first flush"),
    }
    match tokio::time::timeout(CLAIM_TIMEOUT, lake.store().claim(store_id)).await {
        Ok(Err(error @ StoreError::Foreign { .. })) => return Err(error.into()),
        Ok(Err(error)) => {
            let error = anyhow!(error);
            tracing::warn!("the object store does not answer; it is checked at the first write: {error:#}");
        }
        Err(_) => tracing::warn!("the object store does not answer in time; it is checked at the first write"),
        Ok(Ok(())) => {}
    }
    Ok(())
}

/// A lone node has no peers that know how far its log was: only the tables can tell that an old copy of it came back.
async fn look_ahead(lake: &Lake, groups: &Groups) {
    let data: Vec<_> = groups.data_groups().cloned().collect();
    let looked = lake.look_ahead(&data, &groups.founding().cluster_id);
    match tokio::time::timeout(CLAIM_TIMEOUT, looked).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let error = anyhow!(error);
            tracing::warn!("log and tables are compared later, one of them does not answer: {error:#}");
        }
        Err(_) => tracing::warn!("log and tables are compared later, the tables do not answer in time"),
    }
}

async fn bind(config: &Config) -> anyhow::Result<Listeners> {
    let listen = &config.listen;
    Ok(Listeners {
        otlp_grpc: bind_one("otlp_grpc", &listen.otlp_grpc).await?,
        otlp_http: bind_one("otlp_http", &listen.otlp_http).await?,
        http: bind_one("http", &listen.http).await?,
        flight: bind_one("flight", &listen.flight).await?,
    })
}

async fn bind_one(name: &str, address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "listen.{name} = {address:?} cannot be used; free the port or move it with --set listen.{name}=HOST:PORT"
        )
    })
}

/// Reads the tenants again now and then: other nodes write the same tables.
async fn reload_tenants(app: App, interval: Duration, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // They were just read.
    tick.tick().await;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        if let Err(error) = app.access.reload().await {
            tracing::warn!(error = %anyhow!(error), "tenants cannot be read again; those that are known go on");
        }
    }
}

/// Stops the node when its log failed, or its peers refuse it.
async fn watch(app: App, metrics: PrometheusHandle, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(WATCH_INTERVAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        metrics.run_upkeep();
        if let Some(failure) = app.groups.failure() {
            return Err(anyhow!("the node must stop: {failure}"));
        }
        if let Some(failure) = app.lake.failure() {
            return Err(anyhow!("the node must stop; nothing is lost, the log has it all: {failure}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_sealed_with_what_no_table_says() {
        let founded = session_secret("", "c", Some(b"hush")).expect("a new cluster needs no setting");
        assert!(founded.ends_with(b"hush"));
        assert_ne!(session_secret("set", "c", Some(b"hush")), Some(founded), "a setting ends the sessions of before");
        // As nodes of before sealed them, which an upgrade must not end.
        assert_eq!(session_secret("set", "c", None), Some(b"set\0c".to_vec()));
        assert_eq!(session_secret("", "c", None), None);
    }
}
