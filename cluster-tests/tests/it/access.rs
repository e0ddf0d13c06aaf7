use arrow_flight::sql::client::FlightSqlServiceClient;
use serde_json::json;
use signaldb_proto::otlp::collector::trace::v1::trace_service_client::TraceServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::node::{Node, flight_number, flight_rows};
use crate::spans::{batch, request, span};

const CONFIG: &str = r#"
[auth]
enabled = true
[[auth.tenants]]
id = "acme"
default_dataset = "production"
[[auth.tenants.api_keys]]
key = "sk-acme"
[[auth.tenants.datasets]]
id = "staging"
[[auth.tenants]]
id = "other"
default_dataset = "main"
[[auth.tenants.api_keys]]
key = "sk-other"
"#;

async fn start(dir: &tempfile::TempDir) -> anyhow::Result<Node> {
    // Read because it lies in the node's working directory.
    std::fs::write(dir.path().join("signaldb.toml"), CONFIG)?;
    Node::start(dir.path(), &[]).await
}

type Headers<'a> = &'a [(&'a str, &'a str)];

const ACME: Headers<'_> = &[("authorization", "Bearer sk-acme"), ("x-tenant-id", "acme")];
const OTHER: Headers<'_> = &[("authorization", "Bearer sk-other"), ("x-tenant-id", "other")];

/// What each set of headers gets.
const CASES: &[(Headers<'_>, u16, Code)] = &[
    (&[], 400, Code::InvalidArgument),
    (&[("authorization", "Bearer sk-acme")], 400, Code::InvalidArgument),
    (&[("x-tenant-id", "acme")], 400, Code::InvalidArgument),
    (&[("authorization", "nonsense"), ("x-tenant-id", "acme")], 400, Code::InvalidArgument),
    (&[("authorization", "Bearer sk-acme"), ("x-tenant-id", "NOT/VALID")], 400, Code::InvalidArgument),
    (&[("authorization", "Bearer wrong"), ("x-tenant-id", "acme")], 401, Code::Unauthenticated),
    (&[("authorization", "Bearer sk-acme"), ("x-tenant-id", "other")], 403, Code::PermissionDenied),
    (
        &[("authorization", "Bearer sk-acme"), ("x-tenant-id", "acme"), ("x-dataset-id", "nope")],
        403,
        Code::PermissionDenied,
    ),
];

async fn post(node: &Node, url: String, headers: Headers<'_>, body: Vec<u8>, kind: &str) -> anyhow::Result<u16> {
    let mut request = node.http.post(url).header("content-type", kind).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Ok(request.send().await?.status().as_u16())
}

fn with_metadata<T>(message: T, headers: Headers<'_>) -> anyhow::Result<Request<T>> {
    let mut request = Request::new(message);
    for (name, value) in headers {
        request.metadata_mut().insert(name.parse::<tonic::metadata::AsciiMetadataKey>()?, value.parse()?);
    }
    Ok(request)
}

async fn flight_as(node: &Node, headers: Headers<'_>) -> anyhow::Result<FlightSqlServiceClient<Channel>> {
    let mut client = node.flight_client().await?;
    for (name, value) in headers {
        client.set_header(*name, *value);
    }
    Ok(client)
}

/// Scenario: requests with every kind of wrong credentials on every port.
/// Guarantees: 400, 401 and 403 and their gRPC equivalents, exactly as documented.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_told_apart_on_every_port() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = start(&dir).await?;
    let query = json!({"query": "SELECT count(*) FROM traces"}).to_string().into_bytes();
    let mut grpc = TraceServiceClient::connect(node.otlp_grpc()).await?;
    for (headers, status, code) in CASES {
        let (body, _) = batch(1);
        let sent = post(&node, node.otlp_http("/v1/traces"), headers, body.to_vec(), "application/x-protobuf").await?;
        assert_eq!(sent, *status, "OTLP HTTP {headers:?}");
        let asked = post(&node, node.url("/api/v1/sql"), headers, query.clone(), "application/json").await?;
        assert_eq!(asked, *status, "SQL {headers:?}");
        let refused = grpc.export(with_metadata(request("s", vec![span("x")]), headers)?).await;
        assert_eq!(refused.map_err(|error| error.code()).err(), Some(*code), "OTLP gRPC {headers:?}");
        let mut flight = flight_as(&node, headers).await?;
        let refused = flight.execute("SELECT 1".to_owned(), None).await;
        let name = format!("{code:?}");
        let error = refused.expect_err("Flight refuses").to_string();
        assert!(error.contains(&name) || error.contains(code.description()), "Flight {headers:?}: {error}");
    }
    Ok(())
}

/// Scenario: two tenants with the same table names, written over HTTP and gRPC, asked over HTTP and Flight.
/// Guarantees: each sees its own rows only, whatever it calls them; names of the other tenant do not exist.
#[tokio::test(flavor = "multi_thread")]
async fn tenants_do_not_see_each_other() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = start(&dir).await?;
    let (body, _) = batch(3);
    let url = node.otlp_http("/v1/traces");
    assert_eq!(post(&node, url, ACME, body.to_vec(), "application/x-protobuf").await?, 200);
    let mut grpc = TraceServiceClient::connect(node.otlp_grpc()).await?;
    grpc.export(with_metadata(request("s", vec![span("x")]), OTHER)?).await?;
    for (headers, expected) in [(ACME, 3), (OTHER, 1)] {
        let mut flight = flight_as(&node, headers).await?;
        assert_eq!(flight_number(&mut flight, "SELECT count(*) FROM traces").await?, expected);
        let flushes = flight_rows(&mut flight, "SELECT * FROM system.tables").await?;
        let tables: usize = flushes.iter().map(arrow::array::RecordBatch::num_rows).sum();
        assert!(tables <= 14, "{tables}");
    }
    let mut acme = flight_as(&node, ACME).await?;
    for foreign in ["SELECT * FROM main.traces", "SELECT * FROM other.traces", "SELECT * FROM signaldb.main.traces"] {
        let error = flight_rows(&mut acme, foreign).await.expect_err("does not exist").to_string();
        assert!(error.contains("not found"), "{foreign}: {error}");
    }
    assert_eq!(flight_number(&mut acme, "SELECT count(*) FROM staging.traces").await?, 0);
    let mut basic = node.flight_client().await?;
    basic.handshake("acme", "sk-acme").await?;
    assert_eq!(flight_number(&mut basic, "SELECT count(*) FROM traces").await?, 3);
    Ok(())
}
