//! OTLP over HTTP: `/v1/traces`, `/v1/logs`, `/v1/metrics`, protobuf and JSON.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use prost::Message;
use serde_json::{Value, json};
use signaldb_model::limits::REQUEST_BYTES_MAX;
use signaldb_signals::{SignalKind, json as otlp_json};

use crate::app::App;
use crate::decompress::{decompress, too_large};
use crate::error::{ApiError, Kind};
use crate::identity::identify;
use crate::ingest::{Accepted, Options, ack_headers, ingest};
use crate::intake;
use crate::metrics::note_failed_ingest;
use crate::otlp_grpc::response_message;

/// Encoding of request and response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Protobuf,
    Json,
}

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/v1/traces", post(|app, headers, body| export(SignalKind::Traces, app, headers, body)))
        .route("/v1/logs", post(|app, headers, body| export(SignalKind::Logs, app, headers, body)))
        .route("/v1/metrics", post(|app, headers, body| export(SignalKind::Metrics, app, headers, body)))
        .route("/health", axum::routing::get(crate::health::health))
        // The collector's own texts, for clients that match on them.
        .method_not_allowed_fallback(|| async {
            (StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed, supported: [POST]")
        })
        .fallback(not_built)
        .with_state(app)
}

/// Paths that belong to this port and come later say so; others do not exist.
async fn not_built(method: Method, uri: axum::http::Uri) -> Response {
    let error = match uri.path() {
        "/api/v1/write" => ApiError::new(Kind::NotImplemented, "Prometheus remote write is not built yet"),
        "/v1development/profiles" => ApiError::new(Kind::NotImplemented, "OTLP profiles are not built yet"),
        path => ApiError::new(Kind::NotFound, format!("there is no {method} {path} here"))
            .with_hint("OTLP: POST /v1/traces, /v1/logs, /v1/metrics"),
    };
    error.into_response()
}

async fn export(kind: SignalKind, State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    let Some(encoding) = encoding(&headers) else {
        let text = "415 unsupported media type, supported: [application/json, application/x-protobuf]";
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, text).into_response();
    };
    match accept(kind, &app, &headers, body, encoding).await {
        Ok(accepted) => success(kind, &accepted, encoding),
        Err(error) => failure(&error, encoding),
    }
}

fn encoding(headers: &HeaderMap) -> Option<Encoding> {
    let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    match content_type.split(';').next()?.trim().to_ascii_lowercase().as_str() {
        "application/x-protobuf" | "application/protobuf" => Some(Encoding::Protobuf),
        "application/json" => Some(Encoding::Json),
        _ => None,
    }
}

async fn accept(
    kind: SignalKind,
    app: &App,
    headers: &HeaderMap,
    body: Body,
    encoding: Encoding,
) -> Result<Accepted, ApiError> {
    let identity = identify(app, headers)?;
    let options = Options::read(headers)?;
    let held = app.intake().hold();
    let body = intake::read(app.clone(), kind, Arc::clone(&held), body, REQUEST_BYTES_MAX).await?;
    let rest = async {
        let Ok(body) = body.collect().await;
        let body = decompress(headers, body.to_bytes(), REQUEST_BYTES_MAX)?;
        held.at_least(body.len()).inspect_err(|error| note_failed_ingest(error.kind))?;
        let protobuf = match encoding {
            Encoding::Protobuf => body.clone(),
            Encoding::Json => {
                let translated = otlp_json::to_protobuf(kind, &body);
                let translated = translated.map_err(|error| ApiError::invalid(error.to_string()))?;
                let both = body.len() + translated.len();
                held.at_least(both).inspect_err(|error| note_failed_ingest(error.kind))?;
                Bytes::from(translated)
            }
        };
        ingest(app, kind, &identity, &options, &body, protobuf).await
    };
    intake::paced(&held, rest).await
}

/// The body as sent; a compressed one is never larger than what it becomes may be.
pub(crate) async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    read_within(body, REQUEST_BYTES_MAX).await
}

/// The body, if it has no more than `bytes_max`.
pub(crate) async fn read_within(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large(bytes_max));
    }
    match Limited::new(body, bytes_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large(bytes_max)),
        Err(error) => Err(ApiError::invalid(format!("the request body ended early: {error}"))),
    }
}

fn success(kind: SignalKind, accepted: &Accepted, encoding: Encoding) -> Response {
    let mut response = match encoding {
        Encoding::Protobuf => (content_type(encoding), response_message(kind, accepted)).into_response(),
        Encoding::Json => (content_type(encoding), response_json(kind, accepted).to_string()).into_response(),
    };
    for (name, value) in ack_headers(accepted) {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}

fn response_json(kind: SignalKind, accepted: &Accepted) -> Value {
    if accepted.rejected == 0 && accepted.message.is_empty() {
        return json!({});
    }
    let rejected = match kind {
        SignalKind::Traces => "rejectedSpans",
        SignalKind::Logs => "rejectedLogRecords",
        SignalKind::Metrics => "rejectedDataPoints",
    };
    json!({"partialSuccess": {rejected: accepted.rejected.to_string(), "errorMessage": accepted.message}})
}

/// A refusal of a request that nobody looked into.
pub(crate) fn refuse(headers: &HeaderMap, error: &ApiError) -> Response {
    match encoding(headers) {
        Some(encoding) => failure(error, encoding),
        None => error.clone().into_response(),
    }
}

/// `google.rpc.Status` in the request's encoding, as OTLP wants it.
fn failure(error: &ApiError, encoding: Encoding) -> Response {
    let status = error.rpc_status();
    let mut response = match encoding {
        Encoding::Protobuf => (error.http_status(), content_type(encoding), status.encode_to_vec()).into_response(),
        Encoding::Json => {
            let body = json!({"code": status.code, "message": status.message});
            (error.http_status(), content_type(encoding), body.to_string()).into_response()
        }
    };
    error.add_headers(&mut response);
    response
}

fn content_type(encoding: Encoding) -> [(HeaderName, &'static str); 1] {
    let value = match encoding {
        Encoding::Protobuf => "application/x-protobuf",
        Encoding::Json => "application/json",
    };
    [(header::CONTENT_TYPE, value)]
}
