//! Listening on all ports until told to stop.

use std::future::Future;
use std::time::Duration;

use axum::Router;
use axum::http::{Method, Uri};
use axum::response::IntoResponse;
use axum::routing::{delete, get, post};
use axum::serve::ListenerExt;
use signaldb_proto::OTLP_DESCRIPTORS;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::otlp_grpc::{Logs, Metrics, OtlpGrpc, SERVICES, Traces};
use crate::{
    flight_sql, health, iceberg_rest, otlp_http, queries_http, recover, release, sql_http, tables_http, tempo,
    transfer, view_http,
};

/// Requests of one connection that run at once; the rest waits in its window.
const STREAMS_MAX: u32 = 256;
/// What a client may send before a request of it is read, and over all requests of a connection. It is memory that
/// nothing else bounds, and enough for 100 MB/s over 10 ms, or 40 MB/s over 100 ms on several streams.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// How long requests in flight may take once the node stops; then their connections are cut.
const GRACE: Duration = Duration::from_secs(3);

/// Bound sockets.
#[derive(Debug)]
pub struct Listeners {
    pub otlp_grpc: TcpListener,
    pub otlp_http: TcpListener,
    pub http: TcpListener,
    pub flight: TcpListener,
}

impl Listeners {
    /// The same sockets once more: whoever accepts first, serves.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn again(self) -> std::io::Result<(Self, Self)> {
        let twice = |listener: TcpListener| -> std::io::Result<(TcpListener, TcpListener)> {
            let listener = listener.into_std()?;
            Ok((TcpListener::from_std(listener.try_clone()?)?, TcpListener::from_std(listener)?))
        };
        let (otlp_grpc, otlp_http) = (twice(self.otlp_grpc)?, twice(self.otlp_http)?);
        let (http, flight) = (twice(self.http)?, twice(self.flight)?);
        Ok((
            Self { otlp_grpc: otlp_grpc.0, otlp_http: otlp_http.0, http: http.0, flight: flight.0 },
            Self { otlp_grpc: otlp_grpc.1, otlp_http: otlp_http.1, http: http.1, flight: flight.1 },
        ))
    }
}

/// A port could not be served.
#[derive(Debug, Error)]
pub enum ServeError {
    #[error("set up {0}")]
    Setup(&'static str, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("serve {0}")]
    Serve(&'static str, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("a server task panicked")]
    Panicked,
}

fn boxed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Box<dyn std::error::Error + Send + Sync> {
    error.into()
}

/// Serves until `stop`, then lets requests in flight finish for a moment.
///
/// # Errors
/// When one of the servers fails, the others are stopped as well.
pub async fn serve(app: App, listeners: Listeners, stop: CancellationToken) -> Result<(), ServeError> {
    let mut servers = JoinSet::new();
    let otlp = Routes::new(OtlpGrpc::<Traces>::new(app.clone()))
        .add_service(OtlpGrpc::<Logs>::new(app.clone()))
        .add_service(OtlpGrpc::<Metrics>::new(app.clone()))
        .add_service(reflection()?)
        .add_service(reflection_alpha()?);
    servers.spawn(within_grace(stop.clone(), serve_grpc("otlp_grpc", otlp, listeners.otlp_grpc, stop.clone())));
    let flight = flight_sql::service(app.clone()).map_err(|error| ServeError::Setup("flight", boxed(error)))?;
    let flight = Routes::new(flight);
    servers.spawn(within_grace(stop.clone(), serve_grpc("flight", flight, listeners.flight, stop.clone())));
    let otlp_http = otlp_http::router(app.clone());
    servers.spawn(within_grace(stop.clone(), serve_http("otlp_http", otlp_http, listeners.otlp_http, stop.clone())));
    servers.spawn(within_grace(stop.clone(), serve_http("http", api_router(app), listeners.http, stop.clone())));
    let mut outcome = Ok(());
    while let Some(ended) = servers.join_next().await {
        let ended = ended.unwrap_or(Err(ServeError::Panicked));
        if ended.is_err() && outcome.is_ok() {
            outcome = ended;
        }
        stop.cancel();
    }
    outcome
}

/// Neither tonic nor axum bounds its graceful shutdown.
async fn within_grace(
    stop: CancellationToken,
    server: impl Future<Output = Result<(), ServeError>>,
) -> Result<(), ServeError> {
    let cut = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        outcome = server => outcome,
        () = cut => Ok(()),
    }
}

async fn serve_grpc(
    name: &'static str,
    routes: Routes,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .max_concurrent_streams(Some(STREAMS_MAX))
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .initial_stream_window_size(Some(STREAM_WINDOW_BYTES))
        .initial_connection_window_size(Some(CONNECTION_WINDOW_BYTES))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
        .map_err(|error| ServeError::Serve(name, boxed(error)))
}

pub(crate) async fn serve_http(
    name: &'static str,
    router: Router,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let listener = listener.tap_io(|stream| {
        // Only latency is lost without it.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .map_err(|error| ServeError::Serve(name, boxed(error)))
}

fn api_router(app: App) -> Router {
    Router::new()
        .route("/health", get(health::health))
        .route("/livez", get(health::health))
        .route("/ready", get(health::ready))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/api/v1/sql", post(sql_http::sql))
        .route("/api/v1/queries", get(queries_http::list))
        .route("/api/v1/queries/{id}", delete(queries_http::kill))
        .route("/api/v1/cluster", get(health::cluster))
        .route("/api/v1/admin/flush", post(health::flush))
        .route("/api/v1/admin/recover", post(recover::recover))
        .route("/api/v1/admin/promote", post(tables_http::promote))
        .route("/api/v1/admin/demote", post(tables_http::demote))
        .route("/api/v1/admin/tables", get(tables_http::list))
        .route("/api/v1/admin/tables/files", get(tables_http::files))
        .route("/api/v1/admin/tables/compact", post(tables_http::compact))
        .route("/api/v1/admin/tables/expire", post(tables_http::expire))
        .route("/api/v1/admin/tables/retention", get(tables_http::policy).post(tables_http::retain))
        .route("/api/v1/admin/release", post(release::release))
        .route("/api/v1/admin/transfer-leader", post(transfer::transfer))
        .route("/api/v1/tables/{table}/view", get(view_http::view))
        .merge(iceberg_rest::routes())
        .merge(tempo::routes())
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::new(Kind::MethodNotAllowed, format!("{} does not answer {method}", uri.path())).into_response()
        })
        .fallback(not_built)
        .with_state(app)
}

/// Paths that come later say so by name; others do not exist.
async fn not_built(method: Method, uri: Uri) -> axum::response::Response {
    let path = uri.path();
    let later: &[(&str, &str)] = &[
        ("/loki/", "the Loki API"),
        ("/prometheus/", "the Prometheus API"),
        ("/api/v1/query", "the Prometheus API"),
        ("/api/v1/labels", "the Prometheus API"),
        ("/api/v1/series", "the Prometheus API"),
        ("/console", "the console"),
    ];
    let feature = later.iter().find(|(prefix, _)| path.starts_with(prefix)).map(|(_, feature)| *feature);
    let error = match feature {
        Some(feature) => ApiError::new(Kind::NotImplemented, format!("{feature} is not built yet")),
        None => ApiError::new(Kind::NotFound, format!("there is no {method} {path}")),
    };
    error.into_response()
}

fn reflection() -> Result<
    tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection>,
    ServeError,
> {
    reflection_builder().build_v1().map_err(|error| ServeError::Setup("reflection", boxed(error)))
}

fn reflection_alpha() -> Result<
    tonic_reflection::server::v1alpha::ServerReflectionServer<impl tonic_reflection::server::v1alpha::ServerReflection>,
    ServeError,
> {
    reflection_builder().build_v1alpha().map_err(|error| ServeError::Setup("reflection", boxed(error)))
}

/// Lists only the services that are here; the descriptors hold more.
fn reflection_builder() -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(OTLP_DESCRIPTORS);
    let names = SERVICES.into_iter().chain(["grpc.reflection.v1.ServerReflection"]);
    names.fold(builder, |builder, name| builder.with_service_name(name))
}
