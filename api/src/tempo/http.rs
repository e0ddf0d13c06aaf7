//! The API over HTTP.

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as UrlQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::{StreamExt, stream};
use prost::Message;
use serde_json::{Value, json};
use signaldb_model::{Clock, SystemClock};
use signaldb_query::traceql::{Asked, Field, Inspected, Scope, TagQuestion};

use super::ask::{self, Parameters, SearchParts};
use super::trace::{Version, Writer};
use super::{answer, grpc, json};
use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::format::{PARTIAL, QUERY_ID, missing_groups};
use crate::identity::identify;
use crate::otlp_http::read_within;
use crate::reading::{Reading, ReadingParameters};

/// Protobuf of one trace where the answer can say that there is more.
const TRACE_BYTES_MAX: usize = 48 << 20;
/// A query of 64 KiB, escaped.
const FORM_BYTES_MAX: usize = 256 << 10;

const PROTOBUF: &str = "application/protobuf";
const JSON: &str = "application/json";

/// Header of an answer that looked back so far because nobody said how far (HTTP, and metadata of gRPC).
pub(super) const LOOKBACK: &str = "x-signaldb-lookback";

/// The paths, at the root and under `/tempo`.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .merge(paths())
        .nest("/tempo", paths())
        .route(&format!("/{}/{{method}}", signaldb_proto::tempo::SERVICE), post(grpc::call))
}

fn paths() -> Router<App> {
    Router::new()
        .route("/api/echo", get(|| async { "echo" }))
        .route("/api/status/buildinfo", get(buildinfo))
        .route("/api/traces/{id}", get(trace_v1))
        .route("/api/v2/traces/{id}", get(trace_v2))
        .route("/api/search", get(search).post(search))
        .route("/api/search/tags", get(tags_v1))
        .route("/api/v2/search/tags", get(tags_v2))
        .route("/api/search/tag/{tag}/values", get(values_v1))
        .route("/api/v2/search/tag/{tag}/values", get(values_v2))
        .route("/api/metrics/query_range", get(query_range).post(query_range))
        .route("/api/metrics/query", get(query_instant).post(query_instant))
}

type Url = Result<UrlQuery<Parameters>, QueryRejection>;
type Segment = Result<Path<String>, PathRejection>;

fn parameters(url: Url) -> Result<Parameters, ApiError> {
    url.map(|UrlQuery(parameters)| parameters).map_err(|error| ApiError::invalid(error.body_text()))
}

fn segment(path: Segment) -> Result<String, ApiError> {
    path.map(|Path(segment)| segment).map_err(|error| ApiError::invalid(error.body_text()))
}

/// Parameters of the URL, and those of a form in the body.
async fn parameters_of(app: &App, url: Url, headers: &HeaderMap, body: Body) -> Result<Parameters, ApiError> {
    let mut parameters = parameters(url)?;
    // Before the body is read.
    identify(app, headers)?;
    let body = read_within(body, FORM_BYTES_MAX).await?;
    if body.is_empty() {
        return Ok(parameters);
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some("application/x-www-form-urlencoded") {
        let message = "a body is read as application/x-www-form-urlencoded alone";
        return Err(ApiError::new(Kind::UnsupportedMediaType, message));
    }
    for (name, value) in ask::form(&body)? {
        if parameters.contains_key(&name) {
            return Err(ApiError::invalid(format!("invalid form: {name:?} is given twice")));
        }
        parameters.insert(name, value);
    }
    Ok(parameters)
}

/// Who asks, and what must be seen.
pub(super) fn asked(app: &App, headers: &HeaderMap, parameters: &Parameters) -> Result<Asked, ApiError> {
    let identity = identify(app, headers)?;
    app.prepare(&identity);
    let parameter = |name: &str| parameters.get(name).cloned();
    let reading = ReadingParameters { consistency: parameter("consistency"), deadline: parameter("deadline") };
    let Reading { consistency, min_position, allowance } = Reading::of(app, &reading, headers)?;
    Ok(Asked { identity, consistency, min_position, allowance, progress: None })
}

fn wants_protobuf(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.contains(PROTOBUF)
}

/// An answer in the encoding that the client asks for.
fn respond<M: Message>(
    headers: &HeaderMap,
    message: &M,
    json: impl Fn(&M) -> Value,
    inspected: &Inspected,
) -> Response {
    let response = if wants_protobuf(headers) {
        ([(header::CONTENT_TYPE, PROTOBUF)], message.encode_to_vec()).into_response()
    } else {
        ([(header::CONTENT_TYPE, JSON)], json(message).to_string()).into_response()
    };
    with_missing(response, inspected)
}

/// An eventual answer names the groups whose newest spans are not in it, also when it is that there is nothing.
fn with_missing(mut response: Response, inspected: &Inspected) -> Response {
    let missing: Vec<u32> = inspected.missing_groups.iter().copied().collect();
    if let Some(groups) = missing_groups(&missing) {
        response.headers_mut().insert(HeaderName::from_static(PARTIAL), groups);
    }
    response
}

/// An answer for a range that nobody gave says which one it was.
fn with_lookback(mut response: Response, by_default: bool) -> Response {
    if by_default {
        response.headers_mut().insert(HeaderName::from_static(LOOKBACK), HeaderValue::from_static(ask::LOOKBACK));
    }
    response
}

fn finish(outcome: Result<Response, ApiError>) -> Response {
    outcome.unwrap_or_else(ApiError::into_tempo)
}

async fn buildinfo() -> Response {
    let info = json!({
        "version": env!("CARGO_PKG_VERSION"), "revision": "", "branch": "", "buildUser": "", "buildDate": "",
        "goVersion": "",
    });
    ([(header::CONTENT_TYPE, JSON)], info.to_string()).into_response()
}

async fn trace_v1(State(app): State<App>, path: Segment, url: Url, headers: HeaderMap) -> Response {
    finish(trace(&app, path, url, &headers, Version::First).await)
}

async fn trace_v2(State(app): State<App>, path: Segment, url: Url, headers: HeaderMap) -> Response {
    finish(trace(&app, path, url, &headers, Version::Second).await)
}

/// A trace, part by part: what the first part says is the status, and an error after it ends the body short.
async fn trace(
    app: &App,
    path: Segment,
    url: Url,
    headers: &HeaderMap,
    version: Version,
) -> Result<Response, ApiError> {
    let parameters = parameters(url)?;
    let asked = asked(app, headers, &parameters)?;
    let id = ask::trace_id(&segment(path)?)?;
    let window = ask::window_of(&parameters)?;
    // Nothing in an answer of the first version could say that it is a part.
    let bytes_max = (version == Version::Second).then_some(TRACE_BYTES_MAX);
    let mut parts = app.engine.trace_by_id(asked, id, window, bytes_max)?;
    let Some(head) = parts.next().await.transpose()? else {
        return Err(ApiError::new(Kind::Internal, "the query ended without an answer"));
    };
    let inspected = head.inspected.clone();
    if head.spans.is_empty() && !head.cut && version == Version::First {
        return Ok(with_missing(StatusCode::NOT_FOUND.into_response(), &inspected));
    }
    let id = HeaderValue::try_from(parts.id().to_string());
    let protobuf = wants_protobuf(headers);
    let mut writer = Writer::new(version, protobuf);
    let body = if inspected.so_far {
        let begun = writer.part(head.spans);
        let rest = stream::unfold(Some((parts, writer)), |state| async move {
            let (mut parts, mut writer) = state?;
            Some(match parts.next().await? {
                Ok(part) if part.inspected.so_far => (Ok(writer.part(part.spans)), Some((parts, writer))),
                Ok(last) => (Ok(writer.end(last)), None),
                Err(error) => (Err(std::io::Error::other(error.to_string())), None),
            })
        });
        Body::from_stream(stream::iter([Ok(begun)]).chain(rest))
    } else {
        Body::from(writer.end(head))
    };
    let media_type = if protobuf { PROTOBUF } else { JSON };
    let mut response = ([(header::CONTENT_TYPE, media_type)], body).into_response();
    if let Ok(id) = id {
        response.headers_mut().insert(HeaderName::from_static(QUERY_ID), id);
    }
    Ok(with_missing(response, &inspected))
}

async fn search(State(app): State<App>, url: Url, headers: HeaderMap, body: Body) -> Response {
    let run = async {
        let parameters = parameters_of(&app, url, &headers, body).await?;
        let asked = asked(&app, &headers, &parameters)?;
        let (search, by_tags) = SearchParts::of(&parameters)?.search()?;
        let (found, inspected) = app.engine.search_traces(asked, search)?.last().await?;
        let answer = answer::search(found, &inspected, by_tags);
        Ok::<_, ApiError>(respond(&headers, &answer, json::search, &inspected))
    };
    finish(run.await)
}

/// The scopes of attributes among those asked for.
pub(super) fn stored(scopes: &[Option<Scope>]) -> Vec<Scope> {
    scopes.iter().flatten().copied().collect()
}

async fn tags_v1(State(app): State<App>, url: Url, headers: HeaderMap) -> Response {
    let run = async {
        let (asked, question, by_default, parameters) = tag_question(&app, url, &headers)?;
        let scopes = scopes_of(&parameters)?;
        let (found, inspected) = app.engine.tag_names(asked, stored(&scopes), question)?.last().await?;
        let response = respond(&headers, &answer::tags_v1(&scopes, found), json::tags_v1, &inspected);
        Ok::<_, ApiError>(with_lookback(response, by_default))
    };
    finish(run.await)
}

async fn tags_v2(State(app): State<App>, url: Url, headers: HeaderMap) -> Response {
    let run = async {
        let (asked, question, by_default, parameters) = tag_question(&app, url, &headers)?;
        let scopes = scopes_of(&parameters)?;
        let (found, inspected) = app.engine.tag_names(asked, stored(&scopes), question)?.last().await?;
        let response = respond(&headers, &answer::tags_v2(&scopes, found), json::tags_v2, &inspected);
        Ok::<_, ApiError>(with_lookback(response, by_default))
    };
    finish(run.await)
}

/// Who asks, for what, whether its range is the default, and the parameters.
type TagParts = (Asked, TagQuestion, bool, Parameters);

fn tag_question(app: &App, url: Url, headers: &HeaderMap) -> Result<TagParts, ApiError> {
    let parameters = parameters(url)?;
    let asked = asked(app, headers, &parameters)?;
    let (question, by_default) = ask::tags_of(&parameters, SystemClock.now().0)?;
    Ok((asked, question, by_default, parameters))
}

fn scopes_of(parameters: &Parameters) -> Result<Vec<Option<Scope>>, ApiError> {
    ask::scopes(parameters.get("scope").map(String::as_str).unwrap_or_default())
}

async fn values_v1(State(app): State<App>, path: Segment, url: Url, headers: HeaderMap) -> Response {
    let run = async {
        let (asked, question, by_default, _) = tag_question(&app, url, &headers)?;
        let field = answer::field_v1(&decoded(&segment(path)?));
        let (values, inspected) = app.engine.tag_values(asked, field, question)?.last().await?;
        let response = respond(&headers, &answer::values_v1(&values), json::values_v1, &inspected);
        Ok::<_, ApiError>(with_lookback(response, by_default))
    };
    finish(run.await)
}

async fn values_v2(State(app): State<App>, path: Segment, url: Url, headers: HeaderMap) -> Response {
    let run = async {
        let (asked, question, by_default, _) = tag_question(&app, url, &headers)?;
        let field = Field::parse(&decoded(&segment(path)?));
        let (values, inspected) = app.engine.tag_values(asked, field, question)?.last().await?;
        let response = respond(&headers, &answer::values_v2(values), json::values_v2, &inspected);
        Ok::<_, ApiError>(with_lookback(response, by_default))
    };
    finish(run.await)
}

/// Grafana encodes names twice; what is no encoding stays.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *byte == b'%') {
            Some(code) => {
                out.push(code);
                at += 3;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

async fn query_range(State(app): State<App>, url: Url, headers: HeaderMap, body: Body) -> Response {
    let run = async {
        let parameters = parameters_of(&app, url, &headers, body).await?;
        let asked = asked(&app, &headers, &parameters)?;
        let question = ask::series_of(&parameters, SystemClock.now().0, false)?;
        let (series, inspected) = app.engine.span_series(asked, question)?.last().await?;
        Ok::<_, ApiError>(respond(&headers, &answer::range(series, &inspected), json::range, &inspected))
    };
    finish(run.await)
}

async fn query_instant(State(app): State<App>, url: Url, headers: HeaderMap, body: Body) -> Response {
    let run = async {
        let parameters = parameters_of(&app, url, &headers, body).await?;
        let asked = asked(&app, &headers, &parameters)?;
        let question = ask::series_of(&parameters, SystemClock.now().0, true)?;
        let (series, inspected) = app.engine.span_series(asked, question)?.last().await?;
        Ok::<_, ApiError>(respond(&headers, &answer::instant(series, &inspected), json::instant, &inspected))
    };
    finish(run.await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_be_encoded_twice() {
        for (text, expected) in [
            ("resource.a", "resource.a"),
            ("span.a%2Fb", "span.a/b"),
            ("span.100%", "span.100%"),
            ("a%zz", "a%zz"),
            ("%ff", "%ff"),
        ] {
            assert_eq!(decoded(text), expected);
        }
    }
}
