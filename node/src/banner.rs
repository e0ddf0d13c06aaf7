//! What a person sees first.

use signaldb_model::AckLevel;

use crate::config::Config;

/// Ports, something to paste and what an acknowledgment means.
pub(crate) fn text(config: &Config, ack: AckLevel) -> String {
    let listen = &config.listen;
    let promise = match ack {
        AckLevel::LocalFsync => "on disk (local-fsync)",
        AckLevel::Quorum => "held by a majority of the nodes (quorum)",
        AckLevel::QuorumFsync => "on the disks of a majority of the nodes (quorum-fsync)",
    };
    let auth =
        if config.auth.enabled { " \\\n    -H 'Authorization: Bearer <key>' -H 'X-Tenant-ID: <tenant>'" } else { "" };
    format!(
        r#"
  SignalDB {version} is ready. An acknowledged record is {promise} and visible to the next query.

  OTLP gRPC   {otlp_grpc}      OTLP HTTP   {otlp_http}
  HTTP API    {http}      Flight SQL  {flight}
  Data        {data}

  Send a span:

  now=$(date +%s%N); curl -sS http://{otlp_http}/v1/traces -H 'Content-Type: application/json'{auth} -d '{{"resourceSpans":[{{
    "resource":{{"attributes":[{{"key":"service.name","value":{{"stringValue":"shop"}}}}]}},
    "scopeSpans":[{{"spans":[{{"traceId":"'$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')'",
    "spanId":"'$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')'","name":"checkout","kind":2,
    "startTimeUnixNano":"'$now'","endTimeUnixNano":"'$((now + 42000000))'"}}]}}]}}]}}'

  Ask for it:

  curl -sS http://{http}/api/v1/sql -H 'Content-Type: application/json'{auth} \
    -d '{{"query": "SELECT timestamp, service_name, name, duration_nano FROM traces ORDER BY timestamp DESC LIMIT 5"}}'

  Or: signaldb sql 'SELECT count(*) FROM traces'
"#,
        version = env!("CARGO_PKG_VERSION"),
        otlp_grpc = listen.otlp_grpc,
        otlp_http = listen.otlp_http,
        http = listen.http,
        flight = listen.flight,
        data = config.node.data_dir.display(),
    )
}
