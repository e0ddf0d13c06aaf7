use std::path::PathBuf;
use std::process::Command;

use crate::node::Node;

/// Scenario: the OpenTelemetry SDK for Python exports all signals over gRPC and HTTP, ADBC queries and lists tables,
/// PyIceberg opens the SQLite catalog (`cluster-tests/python/clients.py`).
/// Guarantees: what the SDK was told was accepted is what ADBC and, after a flush, PyIceberg read, by span id.
#[tokio::test(flavor = "multi_thread")]
async fn python_clients_read_what_the_sdk_wrote() -> anyhow::Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var_os("SIGNALDB_PYTHON").map(PathBuf::from);
    let Some(python) = python.filter(|python| python.exists()) else {
        anyhow::ensure!(std::env::var_os("CI").is_none(), "SIGNALDB_PYTHON must name a Python with the clients in CI");
        println!("skipped: SIGNALDB_PYTHON is not set; `make test` makes the virtual environment and sets it");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let output = Command::new(python)
        .arg(root.join("python/clients.py"))
        .env("OTLP_GRPC", node.otlp_grpc())
        .env("OTLP_HTTP", node.otlp_http(""))
        .env("SIGNALDB_HTTP", node.url(""))
        .env("SIGNALDB_FLIGHT", node.flight().replace("http://", "grpc://"))
        .env("SIGNALDB_CATALOG", format!("sqlite:///{}", dir.path().join("data/catalog.db").display()))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{text}");
    assert!(text.contains("every span id agrees"), "{text}");
    Ok(())
}
