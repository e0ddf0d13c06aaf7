//! The API as gRPC service `tempopb.StreamingQuerier`: answers so far, each with all that is known, and at last the whole
//! one, which is the same as over HTTP.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::HeaderMap;
use axum::response::Response as HttpResponse;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use signaldb_model::{Clock, SystemClock};
use signaldb_proto::RawCodec;
use signaldb_proto::tempo;
use signaldb_query::traceql::{Answered, Asked, Field, Inspected, TagQuestion};
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataValue;
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Request, Response, Status};

use super::answer;
use super::ask::{self, Parameters, SearchParts};
use super::http::{LOOKBACK, asked, stored};
use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::format::{PARTIAL, missing_groups};

type Messages = BoxStream<'static, Result<Bytes, Status>>;

/// Messages, what was read for the first one, and whether its range is the default.
struct Reply {
    messages: Messages,
    inspected: Inspected,
    by_default: bool,
}

/// How often an answer so far is sent.
const PROGRESS: Duration = Duration::from_millis(500);

/// Questions are short.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Answers one call; the method is the last part of the path.
pub(super) async fn call(
    State(app): State<App>,
    Path(method): Path<String>,
    headers: HeaderMap,
    request: HttpRequest,
) -> HttpResponse {
    // Before the body is read.
    let service = asked(&app, &headers, &Parameters::new()).map(|asked| Method {
        app,
        method,
        asked: Asked { progress: Some(PROGRESS), ..asked },
    });
    let response = match service {
        Ok(service) => {
            Grpc::new(RawCodec)
                .accept_compressed(CompressionEncoding::Gzip)
                .max_decoding_message_size(REQUEST_BYTES_MAX)
                .server_streaming(service, request)
                .await
        }
        Err(error) => error.grpc_status().into_http(),
    };
    response.map(Body::new)
}

struct Method {
    app: App,
    method: String,
    asked: Asked,
}

impl ServerStreamingService<Bytes> for Method {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = BoxFuture<'static, Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (app, method, asked) = (self.app.clone(), self.method.clone(), self.asked.clone());
        Box::pin(async move {
            let reply = run(&app, &method, asked, &request.into_inner()).await;
            let Reply { messages, inspected, by_default } = reply.map_err(|error| error.grpc_status())?;
            let mut response = Response::new(messages);
            if by_default {
                response.metadata_mut().insert(LOOKBACK, MetadataValue::from_static(ask::LOOKBACK));
            }
            let missing: Vec<u32> = inspected.missing_groups.iter().copied().collect();
            let groups = missing_groups(&missing);
            if let Some(groups) = groups.and_then(|groups| MetadataValue::try_from(groups.as_bytes()).ok()) {
                response.metadata_mut().insert(PARTIAL, groups);
            }
            Ok(response)
        })
    }
}

fn decode<M: Message + Default>(body: &[u8]) -> Result<M, ApiError> {
    M::decode(body).map_err(|error| ApiError::invalid(format!("the request is not the method's message: {error}")))
}

fn some(value: u32) -> Option<u64> {
    (value > 0).then_some(u64::from(value))
}

/// Waits for the first answer, which decides whether there is a stream; the others are sent as they come.
async fn reply<T: Send + 'static>(
    mut answers: Answered<T>,
    write: impl Fn(T, &Inspected) -> Vec<u8> + Send + 'static,
) -> Result<Reply, ApiError> {
    let Some((value, inspected)) = answers.next().await.transpose()? else {
        return Err(ApiError::new(Kind::Internal, "the query ended without an answer"));
    };
    let first = Bytes::from(write(value, &inspected));
    let rest = stream::unfold((answers, write), |(mut answers, write)| async move {
        let message = match answers.next().await? {
            Ok((value, inspected)) => Ok(Bytes::from(write(value, &inspected))),
            Err(error) => Err(ApiError::from(error).grpc_status()),
        };
        Some((message, (answers, write)))
    });
    Ok(Reply { messages: stream::iter([Ok(first)]).chain(rest).boxed(), inspected, by_default: false })
}

async fn run(app: &App, method: &str, asked: Asked, body: &[u8]) -> Result<Reply, ApiError> {
    match method {
        "Search" => search(app, asked, decode(body)?).await,
        "SearchTags" | "SearchTagsV2" => tags(app, asked, decode(body)?, method == "SearchTagsV2").await,
        "SearchTagValues" | "SearchTagValuesV2" => {
            values(app, asked, decode(body)?, method == "SearchTagValuesV2").await
        }
        "MetricsQueryRange" => query_range(app, asked, decode(body)?).await,
        "MetricsQueryInstant" => query_instant(app, asked, decode(body)?).await,
        other => {
            let other: String = other.chars().take(80).collect();
            Err(ApiError::new(Kind::NotImplemented, format!("{} has no method {other}", tempo::SERVICE)))
        }
    }
}

async fn search(app: &App, asked: Asked, request: tempo::SearchRequest) -> Result<Reply, ApiError> {
    let millis = |value: u32| some(value).map(|millis| millis * 1_000_000);
    let parts = SearchParts {
        query: request.query,
        tags: request.tags,
        min_duration: millis(request.min_duration_ms),
        max_duration: millis(request.max_duration_ms),
        limit: some(request.limit),
        spans: some(request.spans_per_span_set),
        start: request.start.into(),
        end: request.end.into(),
    };
    let (search, by_tags) = parts.search()?;
    let answers = app.engine.search_traces(asked, search)?;
    reply(answers, move |found, inspected| answer::search(found, inspected, by_tags).encode_to_vec()).await
}

/// A question for names or values, and whether its range is the default.
fn tag_question(query: &str, (start, end): (u32, u32), limit: u32) -> Result<(TagQuestion, bool), ApiError> {
    let (window, by_default) = ask::recent(ask::window(start.into(), end.into())?, SystemClock.now().0);
    Ok((ask::tags(query, window, some(limit)), by_default))
}

async fn tags(app: &App, asked: Asked, request: tempo::SearchTagsRequest, second: bool) -> Result<Reply, ApiError> {
    let scopes = ask::scopes(&request.scope)?;
    let range = (request.start, request.end);
    let (question, by_default) = tag_question(&request.query, range, request.max_tags_per_scope)?;
    let answers = app.engine.tag_names(asked, stored(&scopes), question)?;
    let write = move |found, _: &Inspected| match second {
        true => answer::tags_v2(&scopes, found).encode_to_vec(),
        false => answer::tags_v1(&scopes, found).encode_to_vec(),
    };
    Ok(Reply { by_default, ..reply(answers, write).await? })
}

async fn values(
    app: &App,
    asked: Asked,
    request: tempo::SearchTagValuesRequest,
    second: bool,
) -> Result<Reply, ApiError> {
    let (question, by_default) = tag_question(&request.query, (request.start, request.end), request.max_tag_values)?;
    let field = if second { Field::parse(&request.tag_name) } else { answer::field_v1(&request.tag_name) };
    let answers = app.engine.tag_values(asked, field, question)?;
    let write = move |values, _: &Inspected| match second {
        true => answer::values_v2(values).encode_to_vec(),
        false => answer::values_v1(&values).encode_to_vec(),
    };
    Ok(Reply { by_default, ..reply(answers, write).await? })
}

async fn query_range(app: &App, asked: Asked, request: tempo::QueryRangeRequest) -> Result<Reply, ApiError> {
    let tempo::QueryRangeRequest { query, start, end, step, exemplars } = request;
    let step = if step == 0 { ask::default_step(end.saturating_sub(start)) } else { step };
    let question = ask::series(&query, (start, end), Some(step), some(exemplars))?;
    let answers = app.engine.span_series(asked, question)?;
    reply(answers, |series, inspected| answer::range(series, inspected).encode_to_vec()).await
}

async fn query_instant(app: &App, asked: Asked, request: tempo::QueryInstantRequest) -> Result<Reply, ApiError> {
    let question = ask::series(&request.query, (request.start, request.end), None, None)?;
    let answers = app.engine.span_series(asked, question)?;
    reply(answers, |series, inspected| answer::instant(series, inspected).encode_to_vec()).await
}
