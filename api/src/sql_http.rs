//! `POST /api/v1/sql`.

use axum::body::Body;
use axum::extract::{Query as UrlQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use signaldb_query::{Consistency, Parameters, Query};

use crate::app::App;
use crate::error::ApiError;
use crate::format::{Format, respond};
use crate::identity::identify;
use crate::otlp_http::read_body;

pub(crate) const MIN_POSITION: &str = "x-signaldb-min-position";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SqlRequest {
    query: String,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct SqlParameters {
    format: Option<String>,
    consistency: Option<String>,
}

pub(crate) async fn sql(
    State(app): State<App>,
    UrlQuery(parameters): UrlQuery<SqlParameters>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match run(&app, &parameters, &headers, body).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn run(app: &App, parameters: &SqlParameters, headers: &HeaderMap, body: Body) -> Result<Response, ApiError> {
    let identity = identify(app, headers)?;
    app.prepare(&identity);
    let format = format(parameters, headers)?;
    let body = read_body(body).await?;
    let request: SqlRequest = serde_json::from_slice(&body).map_err(|error| {
        ApiError::invalid(format!("the body is not {{\"query\": \"...\"}}: {error}"))
            .with_hint("curl -H 'Content-Type: application/json' -d '{\"query\": \"SELECT count(*) FROM traces\"}'")
    })?;
    let query = Query {
        identity,
        sql: request.query,
        parameters: Parameters::default(),
        consistency: consistency(parameters.consistency.as_deref())?,
        min_position: min_position(headers)?,
    };
    let begun = std::time::Instant::now();
    let running = app.engine.run(query).await?;
    respond(running, format, begun).await
}

fn format(parameters: &SqlParameters, headers: &HeaderMap) -> Result<Format, ApiError> {
    if let Some(name) = &parameters.format {
        return Format::from_name(name)
            .ok_or_else(|| ApiError::invalid(format!("format {name:?} is not json, ndjson, csv or arrow")));
    }
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    Ok(accept.split(',').find_map(|one| Format::from_media_type(one.split(';').next()?.trim())).unwrap_or(Format::Json))
}

pub(crate) fn consistency(name: Option<&str>) -> Result<Consistency, ApiError> {
    match name {
        None | Some("strong") => Ok(Consistency::Strong),
        Some("eventual") => Ok(Consistency::Eventual),
        Some(other) => Err(ApiError::invalid(format!("consistency {other:?} is not strong or eventual"))),
    }
}

pub(crate) fn min_position(headers: &HeaderMap) -> Result<Option<signaldb_model::Position>, ApiError> {
    let Some(value) = headers.get(MIN_POSITION) else { return Ok(None) };
    let text = value.to_str().map_err(|_| ApiError::invalid("the position header is not ASCII text"))?;
    position(text).map(Some)
}

pub(crate) fn position(text: &str) -> Result<signaldb_model::Position, ApiError> {
    text.parse().map_err(|error: signaldb_model::ParsePositionError| ApiError::invalid(error.to_string()))
}
