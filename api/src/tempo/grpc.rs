//! The API as gRPC service `tempopb.StreamingQuerier`. Each answer is whole and the only one of its stream.

use axum::body::Body;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::HeaderMap;
use axum::response::Response as HttpResponse;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, Iter};
use prost::Message;
use signaldb_proto::RawCodec;
use signaldb_proto::tempo;
use signaldb_query::traceql::{Asked, Field, Inspected};
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataValue;
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Request, Response, Status};

use super::answer;
use super::ask::{self, Parameters, SearchParts};
use super::http::{asked, stored};
use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::format::{PARTIAL, missing_groups};

/// A message, and what was read for it.
type Answered = Result<(Vec<u8>, Inspected), ApiError>;

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
    let service = asked(&app, &headers, &Parameters::new()).map(|asked| Method { app, method, asked });
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

type Answers = Iter<std::array::IntoIter<Result<Bytes, Status>, 1>>;

impl ServerStreamingService<Bytes> for Method {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = BoxFuture<'static, Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (app, method, asked) = (self.app.clone(), self.method.clone(), self.asked.clone());
        Box::pin(async move {
            let answer = run(&app, &method, asked, &request.into_inner()).await;
            let (answer, inspected) = answer.map_err(|error| error.grpc_status())?;
            let mut response = Response::new(stream::iter([Ok(Bytes::from(answer))]));
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

async fn run(app: &App, method: &str, asked: Asked, body: &[u8]) -> Answered {
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

async fn search(app: &App, asked: Asked, request: tempo::SearchRequest) -> Answered {
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
    let (found, inspected) = app.engine.search_traces(asked, search).await?;
    Ok((answer::search(found, &inspected, by_tags).encode_to_vec(), inspected))
}

async fn tags(app: &App, asked: Asked, request: tempo::SearchTagsRequest, second: bool) -> Answered {
    let scopes = ask::scopes(&request.scope)?;
    let window = ask::window(request.start.into(), request.end.into())?;
    let question = ask::tags(&request.query, window, some(request.max_tags_per_scope));
    let (found, inspected) = app.engine.tag_names(asked, stored(&scopes), question).await?;
    let answer = match second {
        true => answer::tags_v2(&scopes, found).encode_to_vec(),
        false => answer::tags_v1(&scopes, found).encode_to_vec(),
    };
    Ok((answer, inspected))
}

async fn values(app: &App, asked: Asked, request: tempo::SearchTagValuesRequest, second: bool) -> Answered {
    let window = ask::window(request.start.into(), request.end.into())?;
    let question = ask::tags(&request.query, window, some(request.max_tag_values));
    let field = if second { Field::parse(&request.tag_name) } else { answer::field_v1(&request.tag_name) };
    let (values, inspected) = app.engine.tag_values(asked, field, question).await?;
    let answer = match second {
        true => answer::values_v2(values).encode_to_vec(),
        false => answer::values_v1(&values).encode_to_vec(),
    };
    Ok((answer, inspected))
}

async fn query_range(app: &App, asked: Asked, request: tempo::QueryRangeRequest) -> Answered {
    let tempo::QueryRangeRequest { query, start, end, step, exemplars } = request;
    let question = ask::series(&query, (start, end), Some(step), some(exemplars))?;
    let (series, inspected) = app.engine.span_series(asked, question).await?;
    Ok((answer::range(series, &inspected).encode_to_vec(), inspected))
}

async fn query_instant(app: &App, asked: Asked, request: tempo::QueryInstantRequest) -> Answered {
    let question = ask::series(&request.query, (request.start, request.end), None, None)?;
    let (series, inspected) = app.engine.span_series(asked, question).await?;
    Ok((answer::instant(series, &inspected).encode_to_vec(), inspected))
}
