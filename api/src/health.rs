//! Health, readiness, metrics, cluster state and operations on port 3000.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use signaldb_model::UnixNanos;

use crate::app::App;
use crate::error::ApiError;
use crate::identity::{authorize_admin, identify_admin};

fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// The process works.
pub(crate) async fn health(State(app): State<App>) -> Response {
    let wal = app.groups.wal_stats();
    let unprocessed: u64 = app
        .groups
        .data_groups()
        .map(|group| group.status())
        .map(|status| status.applied_index.saturating_sub(status.flushed_index))
        .sum();
    let body = json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "wal": {
            "unprocessed_entries": unprocessed,
            "total_segments": wal.segments,
            "disk_usage_bytes": wal.bytes,
            "last_flush": app.lake.last_flush().map(rfc3339),
        },
    });
    json_response(StatusCode::OK, &body)
}

fn rfc3339(at: UnixNanos) -> String {
    let time = i64::try_from(at.0).map(chrono::DateTime::from_timestamp_nanos).unwrap_or_default();
    time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// The node can acknowledge writes.
pub(crate) async fn ready(State(app): State<App>) -> Response {
    let reasons = not_ready(&app);
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_response(status, &json!({"ready": reasons.is_empty(), "reasons": reasons, "degraded": app.lake.degraded()}))
}

fn not_ready(app: &App) -> Vec<String> {
    let mut reasons = app.groups.not_ready();
    if app.draining() {
        reasons.push("draining".to_owned());
    }
    if app.disk_full() {
        reasons.push("disk reserve".to_owned());
    }
    reasons
}

/// Gauges are computed here, when somebody asks.
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    crate::metrics::record(&app, not_ready(&app).is_empty());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (app.metrics)()).into_response()
}

/// The cluster as this node sees it.
pub(crate) async fn cluster(State(app): State<App>, headers: HeaderMap) -> Response {
    if let Err(error) = authorize_admin(&app, &headers) {
        return error.into_response();
    }
    let nodes = app.groups.nodes().await;
    let nodes: Vec<Value> =
        nodes.into_iter().map(|node| json!({"id": node.id.0, "address": node.address, "state": node.state})).collect();
    let groups: Vec<Value> = app
        .groups
        .statuses()
        .into_iter()
        .map(|status| {
            json!({
                "group": status.group, "leader": status.leader, "term": status.term,
                "last_log_index": status.last_log_index, "commit_index": status.commit_index,
                "applied_index": status.applied_index, "synced_index": status.synced_index,
                "flushed_index": status.flushed_index, "purged_index": status.purged_index, "state": status.state,
                "voters": status.voters, "learners": status.learners,
            })
        })
        .collect();
    let body = json!({
        "cluster": app.cluster,
        "node": app.node.0,
        "nodes": nodes,
        "groups": groups,
    });
    json_response(StatusCode::OK, &body)
}

/// Flushes the caller's tenant; answers when its rows up to now are in Iceberg.
pub(crate) async fn flush(State(app): State<App>, headers: HeaderMap) -> Response {
    let outcome = async {
        let identity = identify_admin(&app, &headers)?;
        Ok::<usize, ApiError>(app.engine.flush(&identity.tenant).await?)
    };
    match outcome.await {
        Ok(groups) => json_response(StatusCode::OK, &json!({"flushed_groups": groups})),
        Err(error) => error.into_response(),
    }
}
