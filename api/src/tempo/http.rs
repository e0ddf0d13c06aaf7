//! The API over HTTP.

use axum::Router;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as UrlQuery, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use prost::Message;
use serde_json::{Value, json};
use signaldb_model::{Clock, SystemClock};
use signaldb_query::traceql::{Asked, Field, Inspected, Scope, TagQuestion};

use super::ask::{self, Parameters, SearchParts};
use super::{answer, grpc, json};
use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::format::{PARTIAL, missing_groups};
use crate::identity::identify;
use crate::reading::{Reading, ReadingParameters};

/// Protobuf of one trace; more of it is cut off.
const TRACE_BYTES_MAX: usize = 48 << 20;

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

/// Who asks, and what must be seen.
pub(super) fn asked(app: &App, headers: &HeaderMap, parameters: &Parameters) -> Result<Asked, ApiError> {
    let identity = identify(app, headers)?;
    app.prepare(&identity);
    let parameter = |name: &str| parameters.get(name).cloned();
    let reading = ReadingParameters { consistency: parameter("consistency"), deadline: parameter("deadline") };
    let Reading { consistency, min_position, allowance } = Reading::of(app, &reading, headers)?;
    Ok(Asked { identity, consistency, min_position, allowance })
}

fn wants_protobuf(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.contains("application/protobuf")
}

/// An answer in the encoding that the client asks for.
fn respond<M: Message>(
    headers: &HeaderMap,
    message: &M,
    json: impl Fn(&M) -> Value,
    inspected: &Inspected,
) -> Response {
    let response = if wants_protobuf(headers) {
        ([(header::CONTENT_TYPE, "application/protobuf")], message.encode_to_vec()).into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/json")], json(message).to_string()).into_response()
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

fn finish(outcome: Result<Response, ApiError>) -> Response {
    outcome.unwrap_or_else(ApiError::into_tempo)
}

async fn buildinfo() -> Response {
    let info = json!({
        "version": env!("CARGO_PKG_VERSION"), "revision": "", "branch": "", "buildUser": "", "buildDate": "",
        "goVersion": "",
    });
    ([(header::CONTENT_TYPE, "application/json")], info.to_string()).into_response()
}

async fn trace_v1(State(app): State<App>, path: Segment, url: Url, headers: HeaderMap) -> Response {
    finish(trace(&app, path, url, &headers, true).await)
}

async fn trace_v2(State(app): State<App>, path: Segment, url: Url, headers: HeaderMap) -> Response {
    finish(trace(&app, path, url, &headers, false).await)
}

async fn trace(app: &App, path: Segment, url: Url, headers: &HeaderMap, first: bool) -> Result<Response, ApiError> {
    let parameters = parameters(url)?;
    let asked = asked(app, headers, &parameters)?;
    let id = ask::trace_id(&segment(path)?)?;
    let window = ask::window_of(&parameters)?;
    let found = app.engine.trace_by_id(asked, id, window, TRACE_BYTES_MAX).await?;
    let (cut, inspected) = (found.cut, found.inspected.clone());
    let answer = answer::trace(found);
    if !first {
        return Ok(respond(headers, &answer, json::trace_v2, &inspected));
    }
    let trace = answer.trace.clone().unwrap_or_default();
    if trace.resource_spans.is_empty() {
        return Ok(with_missing(StatusCode::NOT_FOUND.into_response(), &inspected));
    }
    if cut {
        // Nothing in this answer could say that it is a part.
        let message = format!("the trace has more than {TRACE_BYTES_MAX} bytes: /api/v2/traces shows a part of it");
        return Err(ApiError::new(Kind::Resources, message));
    }
    Ok(respond(headers, &trace, |_| json::trace_v1(&answer), &inspected))
}

async fn search(State(app): State<App>, url: Url, headers: HeaderMap) -> Response {
    let run = async {
        let parameters = parameters(url)?;
        let asked = asked(&app, &headers, &parameters)?;
        let (search, by_tags) = SearchParts::of(&parameters)?.search()?;
        let (found, inspected) = app.engine.search_traces(asked, search).await?;
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
        let parameters = parameters(url)?;
        let (asked, scopes, question) = tag_question(&app, &headers, &parameters)?;
        let (found, inspected) = app.engine.tag_names(asked, stored(&scopes), question).await?;
        Ok::<_, ApiError>(respond(&headers, &answer::tags_v1(&scopes, found), json::tags_v1, &inspected))
    };
    finish(run.await)
}

async fn tags_v2(State(app): State<App>, url: Url, headers: HeaderMap) -> Response {
    let run = async {
        let parameters = parameters(url)?;
        let (asked, scopes, question) = tag_question(&app, &headers, &parameters)?;
        let (found, inspected) = app.engine.tag_names(asked, stored(&scopes), question).await?;
        Ok::<_, ApiError>(respond(&headers, &answer::tags_v2(&scopes, found), json::tags_v2, &inspected))
    };
    finish(run.await)
}

type TagParts = (Asked, Vec<Option<Scope>>, TagQuestion);

fn tag_question(app: &App, headers: &HeaderMap, parameters: &Parameters) -> Result<TagParts, ApiError> {
    let asked = asked(app, headers, parameters)?;
    let scopes = ask::scopes(parameters.get("scope").map(String::as_str).unwrap_or_default())?;
    Ok((asked, scopes, ask::tags_of(parameters)?))
}

async fn values_v1(State(app): State<App>, path: Segment, url: Url, headers: HeaderMap) -> Response {
    let run = async {
        let parameters = parameters(url)?;
        let asked = asked(&app, &headers, &parameters)?;
        let field = answer::field_v1(&decoded(&segment(path)?));
        let (values, inspected) = app.engine.tag_values(asked, field, ask::tags_of(&parameters)?).await?;
        Ok::<_, ApiError>(respond(&headers, &answer::values_v1(&values), json::values_v1, &inspected))
    };
    finish(run.await)
}

async fn values_v2(State(app): State<App>, path: Segment, url: Url, headers: HeaderMap) -> Response {
    let run = async {
        let parameters = parameters(url)?;
        let asked = asked(&app, &headers, &parameters)?;
        let field = Field::parse(&decoded(&segment(path)?));
        let (values, inspected) = app.engine.tag_values(asked, field, ask::tags_of(&parameters)?).await?;
        Ok::<_, ApiError>(respond(&headers, &answer::values_v2(values), json::values_v2, &inspected))
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

async fn query_range(State(app): State<App>, url: Url, headers: HeaderMap) -> Response {
    let run = async {
        let parameters = parameters(url)?;
        let asked = asked(&app, &headers, &parameters)?;
        let question = ask::series_of(&parameters, SystemClock.now().0, false)?;
        let (series, inspected) = app.engine.span_series(asked, question).await?;
        Ok::<_, ApiError>(respond(&headers, &answer::range(series, &inspected), json::range, &inspected))
    };
    finish(run.await)
}

async fn query_instant(State(app): State<App>, url: Url, headers: HeaderMap) -> Response {
    let run = async {
        let parameters = parameters(url)?;
        let asked = asked(&app, &headers, &parameters)?;
        let question = ask::series_of(&parameters, SystemClock.now().0, true)?;
        let (series, inspected) = app.engine.span_series(asked, question).await?;
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
