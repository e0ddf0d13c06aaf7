//! `POST /api/v1/admin/transfer-leader`: an operator moves a leadership, for example before maintenance of a host.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use signaldb_model::{GroupId, NodeId};

use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::identity::authorize_admin;
use crate::otlp_http::read_body;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TransferRequest {
    group: u32,
    /// Any that would take it, by default.
    to: Option<u64>,
}

pub(crate) async fn transfer(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    match run(&app, &headers, body).await {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn run(app: &App, headers: &HeaderMap, body: Body) -> Result<Value, ApiError> {
    authorize_admin(app, headers)?;
    let body = read_body(body).await?;
    let request: TransferRequest = serde_json::from_slice(&body)
        .map_err(|error| ApiError::invalid(format!("the body is not {{\"group\": G, \"to\": NODE}}: {error}")))?;
    let group = request.group;
    let given = app.groups.transfer_leader(GroupId(group), request.to.map(NodeId)).await;
    let given = given.ok_or_else(|| ApiError::new(Kind::NotFound, format!("there is no group {group}")))?;
    let to = given.map_err(|error| ApiError::new(Kind::Unavailable, error.to_string()))?;
    Ok(json!({"group": group, "from": app.node.0, "to": to.0}))
}
