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
