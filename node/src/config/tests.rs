use super::*;

fn with(set: &[&str], environment: &[(&str, &str)]) -> Result<Config, String> {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    let text = |pair: &(&str, &str)| (pair.0.to_owned(), pair.1.to_owned());
    let sources = Sources {
        file: Some(file.path().to_owned()),
        environment: environment.iter().map(text).collect(),
        set: set.iter().map(|assignment| (*assignment).to_owned()).collect(),
    };
    load(&sources).map_err(|error| error.to_string())
}

#[test]
fn passwords_in_addresses_are_hidden() {
    assert_eq!(hide_password("postgres://u:p@ss@host/db"), "postgres://u:***@host/db");
    for plain in ["sqlite://x.db", "postgres://u@host/db", "sqlite::memory:"] {
        assert_eq!(hide_password(plain), plain);
    }
}

/// Until a measurement says otherwise (ADR 18).
#[test]
fn scans_stay_on_their_node_unless_somebody_says_so() {
    let distributed = Config::default().query.distributed;
    assert!(!distributed.enabled);
    assert_eq!(distributed.min_bytes.0, 1 << 30);
    let set = ["query.distributed.enabled=true", "query.distributed.min_bytes=64MiB"];
    let distributed = with(&set, &[]).expect("valid").query.distributed;
    assert!(distributed.enabled);
    assert_eq!(distributed.min_bytes.0, 64 << 20);
}

#[test]
fn later_layers_win() {
    let config =
        with(&["flush.interval=200ms", "flush.max_interval=1s"], &[("SIGNALDB_FLUSH__INTERVAL", "5s")]).expect("valid");
    assert_eq!(config.flush.interval, Time::from_millis(200));
    let config = with(&[], &[("SIGNALDB_DATABASE_DSN", "sqlite://x.db"), ("SIGNALDB_NODE__ID", "3")]).expect("valid");
    assert_eq!((config.database_dsn().as_str(), config.node.id), ("sqlite://x.db", 3));
    let adapter =
        [("SIGNALDB_STORAGE_ADAPTERS_LOCAL_TYPE", "filesystem"), ("SIGNALDB_STORAGE_ADAPTERS_LOCAL_URL", "file:///x")];
    assert_eq!(with(&[], &adapter).expect("valid").storage().0, "file:///x");
}

#[test]
fn mistakes_name_the_key_the_value_and_what_was_expected() {
    let cases = [
        ("flush.intervall=1s", &["flush", "intervall", "interval"][..]),
        ("nonsense.key=1", &["nonsense", "expected one of"]),
        ("flush.interval=soon", &["flush.interval", "soon", "500ms"]),
        ("wal.max_segment_size=64 apples", &["wal.max_segment_size", "apples", "64MiB"]),
        ("node.id=\"x\"", &["node.id", "x"]),
        ("cluster.groups=65", &["cluster.groups", "65", "1..=64"]),
        ("storage.default=s3", &["storage.default", "s3", "local"]),
        ("listen.http=0.0.0.0:3000", &["listen.http", "0.0.0.0:3000", "allow_anonymous"]),
        ("memory.limit=160%", &["memory.limit", "160%"]),
        ("compaction.target_file_size=2GiB", &["compaction.target_file_size", "512MiB"]),
        ("compaction.min_files=1", &["compaction.min_files", "2 or more"]),
        ("retention.grace=1m", &["retention.grace", "60s", "30m"]),
        ("retention.keep=0s", &["retention.keep", "for ever"]),
        ("query.deadline=0s", &["query.deadline", "every query"]),
        ("query.deadline_max=1s", &["query.deadline_max", "query.deadline"]),
        ("query.tenant_concurrency=0", &["query.tenant_concurrency", "1 or more"]),
        ("query.memory=1KiB", &["query.memory", "1MiB"]),
        ("query.scan=0B", &["query.scan", "no limit"]),
        ("wal.max_unflushed=0B", &["wal.max_unflushed", "every write"]),
        ("writer.pool.max_connections=1", &["writer.pool.max_connections", "min_connections"]),
        ("writer.pool.idle_timeout=0s", &["writer.pool.idle_timeout", "more than 0s"]),
        ("writer.retry.backoff_multiplier=0.5", &["writer.retry.backoff_multiplier", "1 to 10"]),
        ("writer.retry.max_delay=1ms", &["writer.retry.max_delay", "initial_delay"]),
        ("writer.batch.target_concurrent_batches=0", &["writer.batch.target_concurrent_batches", "1 to 64"]),
        ("writer.batch.max_rows_per_batch=10", &["writer.batch.max_rows_per_batch", "1000 or more"]),
        ("writer.batch.max_memory_per_batch=1GiB", &["writer.batch.max_memory_per_batch", "512MiB", "flush.max_bytes"]),
        ("writer.batch.max_memory_per_batch_bytes=lots", &["max_memory_per_batch_bytes", "lots"]),
        ("writer.batch.enable_auto_split=maybe", &["writer.batch.enable_auto_split", "maybe"]),
        ("writer.pool.size=3", &["writer.pool", "size", "max_connections"]),
    ];
    for (assignment, expected) in cases {
        let error = with(&[assignment], &[]).expect_err(assignment);
        for part in expected {
            assert!(error.contains(part), "{assignment}: {error}");
        }
    }
}

#[test]
fn the_contracts_example_is_accepted() {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    let text = r#"
        [node]
        id = 1
        data_dir = ".data"
        roles = ["acceptor", "router", "writer", "querier"]
        [wal]
        dir = ".data/wal"
        disk_reserve = "min(5GiB, 10%)"
        [memory]
        limit = "60%"
        [schema]
        catalog_type = "sql"
        catalog_uri = "sqlite://.data/catalog.db"
        [storage]
        default = "local"
        [storage.adapters.local]
        type = "filesystem"
        url = "file://.data/storage"
        prefix = ""
        [auth]
        enabled = true
        [[auth.tenants]]
        id = "acme"
        default_dataset = "production"
        [[auth.tenants.api_keys]]
        key = "sk-acme-prod-key-123"
        name = "Production Key"
        [[auth.tenants.datasets]]
        id = "production"
        is_default = true
    "#;
    std::fs::write(file.path(), text).expect("writes");
    let config = load(&Sources { file: Some(file.path().to_owned()), ..Sources::default() }).expect("valid");
    assert_eq!(config.auth.tenants[0].id, "acme");
    assert_eq!(config.wal.disk_reserve, DiskReserve { bytes: 5 << 30, percent: 10 });
    let shown = toml::to_string(&config).expect("writes");
    assert!(!shown.contains("sk-acme"), "secrets are hidden: {shown}");
}

#[test]
fn a_bucket_is_configured_and_its_keys_are_hidden() {
    let environment = [
        ("SIGNALDB_STORAGE__ADAPTERS__LOCAL__TYPE", "s3"),
        ("SIGNALDB_STORAGE__ADAPTERS__LOCAL__URL", "s3://tables"),
        ("SIGNALDB_STORAGE__ADAPTERS__LOCAL__PREFIX", "prod"),
        ("SIGNALDB_STORAGE__ADAPTERS__LOCAL__OPTIONS__ENDPOINT", "http://s3:8333"),
        ("SIGNALDB_STORAGE__ADAPTERS__LOCAL__OPTIONS__ALLOW_HTTP", "true"),
        // Not a number, although it reads like one.
        ("SIGNALDB_STORAGE__ADAPTERS__LOCAL__OPTIONS__ACCESS_KEY_ID", "1234567890"),
        ("SIGNALDB_STORAGE__ADAPTERS__LOCAL__OPTIONS__SECRET_ACCESS_KEY", "12e34"),
    ];
    let config = with(
        &["storage.adapters.local.options.path_style=false", "storage.adapters.local.options.timeout=5s"],
        &environment,
    )
    .expect("valid");
    let (url, adapter) = config.storage();
    assert_eq!((url.as_str(), adapter.prefix.as_str()), ("s3://tables", "prod"));
    let expected = AdapterOptions {
        endpoint: Some("http://s3:8333".to_owned()),
        region: None,
        allow_http: Some(true),
        path_style: Some(false),
        timeout: Some(Time::from_secs(5)),
        access_key_id: Some(Secret("1234567890".to_owned())),
        secret_access_key: Some(Secret("12e34".to_owned())),
    };
    assert_eq!(adapter.options, expected);
    for shown in [toml::to_string(&config).expect("writes"), format!("{config:?}")] {
        assert!(shown.contains("s3://tables") && shown.contains("http://s3:8333"), "{shown}");
        assert!(!shown.contains("1234567890") && !shown.contains("12e34"), "secrets are hidden: {shown}");
    }
}

#[test]
fn a_tenant_may_ask_for_a_stronger_level() {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    let load_with = |ack: &str| {
        let text = format!("[[auth.tenants]]\nid = \"acme\"\nack = \"{ack}\"\n");
        std::fs::write(file.path(), text).expect("writes");
        load(&Sources { file: Some(file.path().to_owned()), ..Sources::default() })
    };
    let config = load_with("quorum-fsync").expect("valid");
    assert_eq!(config.auth.tenants[0].ack.as_deref(), Some("quorum-fsync"));
    let error = load_with("always").expect_err("no level").to_string();
    assert!(error.contains("auth.tenants.ack") && error.contains("always") && error.contains("acme"), "{error}");
}

#[test]
fn mistakes_about_a_store_name_the_key() {
    let s3 = ["storage.adapters.local.type=s3", "storage.adapters.local.url=s3://tables"];
    let cases = [
        (&["type=ftp"][..], &["local.type", "ftp", "filesystem"][..]),
        (&["type=filesystem", "url=s3://tables"], &["local.url", "s3://tables", "file://"]),
        (&["type=filesystem", "url=file:///x", "options.region=eu-west-1"], &["local.options", "s3"]),
        (&["url=\"file:///x\""], &["local.url", "file:///x", "s3://BUCKET"]),
        (&["url=\"s3://\""], &["local.url", "s3://BUCKET"]),
        (&["url=\"s3://a b\""], &["local.url", "a b"]),
        (&["options.endpoint=s3:8333"], &["local.options.endpoint", "s3:8333", "https://"]),
        (&["options.endpoint=http://s3"], &["local.options.endpoint", "allow_http"]),
        (&["options.endpoint=https://u:hidden@s3"], &["local.options.endpoint", "access_key_id"]),
        (&["options.allow_http=perhaps"], &["local.options.allow_http", "perhaps", "boolean"]),
        (&["options.timeout=1ms"], &["local.options.timeout", "100ms"]),
        (&["options.path_style=1"], &["local.options.path_style", "boolean"]),
        (&["options.access_key_id=hidden"], &["local.options.secret_access_key", "missing"]),
        (&["options.secret_access_key=hidden"], &["local.options.access_key_id", "missing"]),
        (&["options.bucket=x"], &["local.options", "bucket", "endpoint"]),
    ];
    for (assignments, expected) in cases {
        let assignments = assignments.iter().map(|assignment| format!("storage.adapters.local.{assignment}"));
        let all: Vec<String> = s3.iter().map(|text| (*text).to_owned()).chain(assignments).collect();
        let error = with(&all.iter().map(String::as_str).collect::<Vec<_>>(), &[]).expect_err(&all.join(" "));
        for part in expected {
            assert!(error.contains(part), "{all:?}: {error}");
        }
        assert!(!error.contains("hidden"), "{error}");
    }
    with(&s3, &[]).expect("the environment has the rest");
    let missing = with(&s3[..1], &[]).expect_err("which bucket?");
    assert!(missing.contains("local.url") && missing.contains("s3://BUCKET"), "{missing}");
    let memory = with(&["storage.adapters.local.type=memory"], &[]).expect("valid");
    assert_eq!(memory.storage().0, "memory://");
}

/// The TOML blocks of shared/seeds 000 to 002, as they stand there.
#[test]
fn every_block_of_the_seed_documents_is_accepted() {
    let blocks = [
        "[auth]\nenabled = true\n[[auth.tenants]]\nid = \"acme\"\nname = \"Acme Corporation\"\n\
         default_dataset = \"production\"\n[[auth.tenants.api_keys]]\nkey = \"sk-acme-prod-key-123\"\n\
         name = \"Production Key\"\n[[auth.tenants.datasets]]\nid = \"production\"\nis_default = true",
        "[discovery]\ndsn = \"sqlite://signaldb.db\"\nheartbeat_interval = \"30s\"\npoll_interval = \"60s\"\nttl = \"300s\"",
        "[database]\ndsn = \"sqlite://.data/signaldb.db\"",
        "[schema]\ncatalog_type = \"sql\"\ncatalog_uri = \"sqlite::memory:\"\n[schema.default_schemas]\n\
         traces_enabled = true\nlogs_enabled = true\nmetrics_enabled = true",
        "[queue]\ndsn = \"memory://\"\nmax_batch_size = 1000\nmax_batch_wait = \"10s\"",
        "[storage]\ndefault = \"local\"\n[storage.adapters.local]\ntype = \"filesystem\"\nurl = \"file:///data\"\n\
         prefix = \"traces\"",
        "[wal]\nmax_segment_size = 1048576\nmax_buffer_entries = 1000\nflush_interval_secs = 10\n[wal.acceptor]\n\
         wal_dir = \"/data/wal/acceptor\"\n[wal.writer]\nwal_dir = \"/data/wal/writer\"",
    ];
    for block in blocks {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), block).expect("writes");
        let loaded = load(&Sources { file: Some(file.path().to_owned()), ..Sources::default() });
        let config = loaded.unwrap_or_else(|error| panic!("{block}\n{error}"));
        if block.starts_with("[wal]") {
            assert_eq!(config.wal.max_segment_size, ByteSize(1 << 20));
            assert_eq!(config.wal_dir(), PathBuf::from("/data/wal/writer"));
            assert_eq!(config.wal.sync_interval, Time::from_secs(1), "clamped");
            assert_eq!(config.notes.len(), 3, "{:?}", config.notes);
        }
        if block.starts_with("[queue]") {
            assert_eq!(config.flush.interval, Time::from_secs(10));
        }
    }
}

/// The settings of shared/seeds 001, "Advanced Configuration", and its defaults (000, "Performance Optimization").
#[test]
fn the_writers_settings_have_the_seeds_names_and_defaults() {
    let writer = with(&[], &[]).expect("valid").writer;
    assert_eq!((writer.pool.min_connections, writer.pool.max_connections), (2, 10));
    assert_eq!(writer.pool.connection_timeout, Time::from_secs(5));
    assert_eq!((writer.pool.idle_timeout, writer.pool.max_lifetime), (Time::from_secs(1800), Time::from_secs(1800)));
    assert_eq!((writer.batch.target_concurrent_batches, writer.batch.catalog_cache_ttl), (4, Time::from_secs(300)));
    assert!(writer.batch.enable_catalog_caching && writer.batch.enable_auto_split);
    let batch_max = (writer.batch.max_rows_per_batch, writer.batch.max_memory_per_batch);
    assert_eq!(batch_max, (1_000_000, ByteSize(512 << 20)));
    let set = [
        "writer.pool.min_connections=5",
        "writer.pool.max_connections=20",
        "writer.pool.connection_timeout_ms=3000",
        "writer.pool.idle_timeout_seconds=600",
        "writer.pool.max_lifetime_seconds=3600",
        "writer.batch.max_rows_per_batch=100000",
        "writer.batch.max_memory_per_batch_bytes=268435456",
        "writer.batch.enable_auto_split=true",
        "writer.batch.target_concurrent_batches=8",
        "writer.batch.enable_catalog_caching=true",
        "writer.batch.catalog_cache_ttl_seconds=600",
        "writer.retry.max_attempts=5",
        "writer.retry.initial_delay=200ms",
        "writer.retry.max_delay=10s",
        "writer.retry.backoff_multiplier=2.5",
    ];
    let writer = with(&set, &[]).expect("valid").writer;
    assert_eq!((writer.pool.min_connections, writer.pool.max_connections), (5, 20));
    assert_eq!(writer.pool.connection_timeout, Time::from_secs(3));
    assert_eq!((writer.pool.idle_timeout, writer.pool.max_lifetime), (Time::from_secs(600), Time::from_secs(3600)));
    assert_eq!(writer.batch.catalog_cache_ttl, Time::from_secs(600));
    let batch_max = (writer.batch.max_rows_per_batch, writer.batch.max_memory_per_batch);
    assert_eq!(batch_max, (100_000, ByteSize(256 << 20)));
    assert_eq!((writer.retry.initial_delay, writer.retry.max_delay), (Time::from_millis(200), Time::from_secs(10)));
    let environment = [("SIGNALDB_WRITER__POOL__MAX_CONNECTIONS", "30")];
    assert_eq!(with(&[], &environment).expect("valid").writer.pool.max_connections, 30);
    let error = with(&["writer.pool.connection_timeout_ms=soon"], &[]).expect_err("no number");
    assert!(error.contains("connection_timeout_ms") && error.contains("soon"), "{error}");
}

#[test]
fn the_ancestors_environment_is_understood_and_what_cannot_be_is_refused() {
    let config = with(
        &[],
        &[
            ("WAL_MAX_SEGMENT_SIZE", "10485760"),
            ("WAL_MAX_BUFFER_ENTRIES", "1"),
            ("WAL_FLUSH_INTERVAL_SECS", "1"),
            ("ACCEPTOR_WAL_DIR", "/data/wal"),
            ("SIGNALDB_QUEUE_MAX_BATCH_WAIT", "1m"),
            ("SIGNALDB_STORAGE_DSN", "file:///tables"),
        ],
    )
    .expect("valid");
    assert_eq!((config.wal.max_segment_size, config.wal.sync_bytes), (ByteSize(10 << 20), ByteSize(1)));
    assert_eq!((config.wal.sync_interval, config.flush.interval), (Time::from_secs(1), Time::from_secs(60)));
    assert_eq!(config.storage().0, "file:///tables");
    for (assignment, expected) in [
        ("queue.dsn=redis://x", &["queue.dsn", "redis", "memory://"][..]),
        ("storage.dsn=ftp://x", &["storage.dsn", "ftp", "file://"]),
        ("queue.size=1", &["queue.size", "max_batch_size"]),
        ("flush.interval=10", &["flush.interval", "10", "500ms"]),
    ] {
        let error = with(&[assignment], &[]).expect_err(assignment);
        for part in expected {
            assert!(error.contains(part), "{assignment}: {error}");
        }
    }
}

#[test]
fn retention_is_off_unless_somebody_asks_for_it() {
    let config = with(&[], &[]).expect("valid");
    assert!(config.retention.keep.is_none() && config.retention.rules.is_empty());
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    let text = "[retention]\nkeep = \"30d\"\n[[retention.rules]]\ntenant = \"acme\"\ntable = \"logs\"\nkeep = \"7d\"\n\
                [[retention.rules]]\ndataset = \"audit\"\n";
    std::fs::write(file.path(), text).expect("writes");
    let load_file = || load(&Sources { file: Some(file.path().to_owned()), ..Sources::default() });
    let retention = load_file().expect("valid").retention;
    assert_eq!(retention.keep, Some(Time::from_secs(30 * 86_400)));
    assert_eq!(retention.rules[0].keep, Some(Time::from_secs(7 * 86_400)));
    assert_eq!((retention.rules[1].dataset.as_deref(), retention.rules[1].keep), (Some("audit"), None));
    toml::to_string(&load_file().expect("valid")).expect("writes");
    std::fs::write(file.path(), "[[retention.rules]]\ntable = \"log\"\n").expect("writes");
    let error = load_file().expect_err("no such table").to_string();
    assert!(error.contains("retention.rules.table") && error.contains("metrics_gauge"), "{error}");
}
