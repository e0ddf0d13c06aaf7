//! OTLP over gRPC, taking the request's bytes as they came: what the log carries is what the client sent.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http;
use bytes::Bytes;
use prost::Message;
use signaldb_catalog::Identity;
use signaldb_model::limits::REQUEST_BYTES_MAX;
use signaldb_proto::RawCodec;
use signaldb_proto::otlp::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
use signaldb_proto::otlp::collector::metrics::v1::{ExportMetricsPartialSuccess, ExportMetricsServiceResponse};
use signaldb_proto::otlp::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use signaldb_signals::SignalKind;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataValue;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Code, Request, Response, Status};

use crate::app::App;
use crate::error::ApiError;
use crate::identity::identify;
use crate::ingest::{Accepted, Options, ack_headers, ingest};
use crate::intake::{self, Held, paced};
use crate::metrics::note_failed_ingest;

/// Before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Names of OTLP's services, as reflection lists them.
pub(crate) const SERVICES: [&str; 3] = [Traces::SERVICE, Logs::SERVICE, Metrics::SERVICE];

/// One of OTLP's three services.
pub(crate) trait Signal: Send + Sync + 'static {
    const SERVICE: &'static str;
    const KIND: SignalKind;
}

#[derive(Debug)]
pub(crate) enum Traces {}
#[derive(Debug)]
pub(crate) enum Logs {}
#[derive(Debug)]
pub(crate) enum Metrics {}

impl Signal for Traces {
    const SERVICE: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
    const KIND: SignalKind = SignalKind::Traces;
}

impl Signal for Logs {
    const SERVICE: &'static str = "opentelemetry.proto.collector.logs.v1.LogsService";
    const KIND: SignalKind = SignalKind::Logs;
}

impl Signal for Metrics {
    const SERVICE: &'static str = "opentelemetry.proto.collector.metrics.v1.MetricsService";
    const KIND: SignalKind = SignalKind::Metrics;
}

/// The service of one signal.
pub(crate) struct OtlpGrpc<S>(App, PhantomData<fn() -> S>);

impl<S> OtlpGrpc<S> {
    pub(crate) fn new(app: App) -> Self {
        Self(app, PhantomData)
    }
}

impl<S> Clone for OtlpGrpc<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<S> fmt::Debug for OtlpGrpc<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpGrpc").finish_non_exhaustive()
    }
}

impl<S: Signal> NamedService for OtlpGrpc<S> {
    const NAME: &'static str = S::SERVICE;
}

type ResponseFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl<S: Signal> tower::Service<http::Request<Body>> for OtlpGrpc<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let refuse = |status: Status| -> Self::Future { Box::pin(std::future::ready(Ok(status.into_http()))) };
        if request.uri().path().rsplit('/').next() != Some("Export") {
            return refuse(Status::unimplemented("OTLP services have the one method Export"));
        }
        // Before the body is read: tonic would buffer it whole before it calls the service.
        let admitted =
            identify(&self.0, request.headers()).and_then(|identity| Ok((identity, Options::read(request.headers())?)));
        let (identity, options) = match admitted {
            Ok(admitted) => admitted,
            Err(error) => return refuse(error.grpc_status()),
        };
        let (app, held) = (self.0.clone(), self.0.intake().hold());
        let export = Export { app: app.clone(), kind: S::KIND, identity, options, held: Arc::clone(&held) };
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = match intake::read(app, S::KIND, held, body, REQUEST_BYTES_MAX + PREFIX_BYTES).await {
                Ok(body) => body,
                Err(error) => return Ok(error.grpc_status().into_http()),
            };
            let request = http::Request::from_parts(parts, body);
            let response = Grpc::new(RawCodec)
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd)
                .max_decoding_message_size(REQUEST_BYTES_MAX)
                .unary(export, request)
                .await;
            Ok(oversize_is_not_retryable(response))
        })
    }
}

/// tonic answers OUT_OF_RANGE for a message over the limit, which OTLP clients retry for ever.
fn oversize_is_not_retryable(response: http::Response<Body>) -> http::Response<Body> {
    match response.extensions().get::<Status>() {
        Some(status) if status.code() == Code::OutOfRange => Status::resource_exhausted(status.message()).into_http(),
        _ => response,
    }
}

struct Export {
    app: App,
    kind: SignalKind,
    identity: Identity,
    options: Options,
    held: Arc<Held>,
}

impl UnaryService<Bytes> for Export {
    type Response = Bytes;
    type Future = ResponseFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (app, kind) = (self.app.clone(), self.kind);
        let (identity, options) = (self.identity.clone(), self.options.clone());
        let (held, body) = (Arc::clone(&self.held), request.into_inner());
        let counted = Arc::clone(&held);
        let rest = async move {
            // Decompressed it may be larger than what was read.
            counted.at_least(body.len()).inspect_err(|error| note_failed_ingest(error.kind))?;
            ingest(&app, kind, &identity, &options, &body, body.clone()).await
        };
        Box::pin(async move {
            let accepted = paced(&held, rest).await.map_err(|error: ApiError| error.grpc_status())?;
            let mut response = Response::new(Bytes::from(response_message(kind, &accepted)));
            for (name, value) in ack_headers(&accepted) {
                if let Ok(value) = MetadataValue::try_from(value) {
                    response.metadata_mut().insert(name, value);
                }
            }
            Ok(response)
        })
    }
}

/// The encoded response; `partial_success` is unset on full success, as OTLP demands.
pub(crate) fn response_message(kind: SignalKind, accepted: &Accepted) -> Vec<u8> {
    let rejected = i64::try_from(accepted.rejected).unwrap_or(i64::MAX);
    let error_message = accepted.message.clone();
    let partial = rejected > 0 || !error_message.is_empty();
    match kind {
        SignalKind::Traces => {
            let partial = partial.then_some(ExportTracePartialSuccess { rejected_spans: rejected, error_message });
            ExportTraceServiceResponse { partial_success: partial }.encode_to_vec()
        }
        SignalKind::Logs => {
            let partial = partial.then_some(ExportLogsPartialSuccess { rejected_log_records: rejected, error_message });
            ExportLogsServiceResponse { partial_success: partial }.encode_to_vec()
        }
        SignalKind::Metrics => {
            let partial =
                partial.then_some(ExportMetricsPartialSuccess { rejected_data_points: rejected, error_message });
            ExportMetricsServiceResponse { partial_success: partial }.encode_to_vec()
        }
    }
}
