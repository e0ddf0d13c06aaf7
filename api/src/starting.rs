//! What the ports answer while the log replays: come again, in every protocol's words.

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::error::{ApiError, Kind};
use crate::otlp_http;
use crate::serve::{Listeners, ServeError, serve_http};

/// Answers on all ports until `stop`; connections that come later wait for whoever serves the ports next.
///
/// # Errors
/// When a port cannot be served.
pub async fn serve_starting(listeners: Listeners, stop: CancellationToken) -> Result<(), ServeError> {
    let serve = |name, listener| serve_http(name, router(), listener, stop.clone());
    tokio::try_join!(
        serve("otlp_grpc", listeners.otlp_grpc),
        serve("otlp_http", listeners.otlp_http),
        serve("http", listeners.http),
        serve("flight", listeners.flight),
    )?;
    Ok(())
}

fn router() -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(health))
        .route("/ready", get(not_ready))
        .route("/readyz", get(not_ready))
        .fallback(come_again)
}

/// The process works, it only does not serve yet.
async fn health() -> Response {
    let body = json!({"status": "ok", "version": env!("CARGO_PKG_VERSION"), "wal": null});
    json_response(StatusCode::OK, &body)
}

async fn not_ready() -> Response {
    let body = json!({"ready": false, "reasons": ["replay"], "degraded": []});
    json_response(StatusCode::SERVICE_UNAVAILABLE, &body)
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json"), (header::CONNECTION, "close")], body.to_string())
        .into_response()
}

/// A refusal with a retry hint, as gRPC or as HTTP.
async fn come_again(headers: HeaderMap) -> Response {
    let error = ApiError::new(Kind::Unavailable, "the node is starting: its log is replayed");
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.starts_with("application/grpc") {
        return error.grpc_status().into_http();
    }
    otlp_http::refuse(&headers, &error)
}
