//! `POST /api/v1/sql`.

use axum::body::Body;
use axum::extract::{Query as UrlQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use crate::app::App;
use crate::error::ApiError;
use crate::format::{Format, respond};
use crate::identity::identify;
use crate::otlp_http::read_body;
use crate::reading::{Reading, ReadingParameters};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SqlRequest {
    query: String,
}

#[derive(Debug, Default, Clone, Deserialize)]
pub(crate) struct SqlParameters {
    format: Option<String>,
    consistency: Option<String>,
    deadline: Option<String>,
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
    let SqlParameters { consistency, deadline, .. } = parameters.clone();
    let reading = Reading::of(app, &ReadingParameters { consistency, deadline }, headers)?;
    let begun = std::time::Instant::now();
    let running = app.engine.run(reading.query(identity, request.query)).await?;
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
