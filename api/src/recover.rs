//! `POST /api/v1/admin/recover`: an operator lets a group go on past what it lost.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use signaldb_model::GroupId;
use signaldb_raft::{RecoverError, Recovered};

use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::identity::authorize_admin;
use crate::otlp_http::read_body;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecoverRequest {
    group: u32,
    /// Without it the answer says what would be done, and what would be lost.
    #[serde(default)]
    accept_data_loss: bool,
}

pub(crate) async fn recover(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    match run(&app, &headers, body).await {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn run(app: &App, headers: &HeaderMap, body: Body) -> Result<Value, ApiError> {
    authorize_admin(app, headers)?;
    let body = read_body(body).await?;
    let request: RecoverRequest = serde_json::from_slice(&body).map_err(|error| {
        ApiError::invalid(format!("the body is not {{\"group\": N, \"accept_data_loss\": false}}: {error}"))
    })?;
    let group = request.group;
    let recovered = app.groups.recover(GroupId(group), request.accept_data_loss).await;
    let recovered = recovered.ok_or_else(|| ApiError::new(Kind::NotFound, format!("there is no group {group}")))?;
    Ok(match recovered.map_err(|error| failed(&error))? {
        Recovered::NotNeeded => json!({"group": group, "action": "none", "done": false,
            "reason": "the group has a leader, or a majority that may elect one"}),
        Recovered::Halted { reason, done } => {
            json!({"group": group, "action": "go_on", "done": done, "reason": reason})
        }
        Recovered::Elected { winner, loss, done } => json!({"group": group, "action": "elect", "done": done,
            "winner": winner, "loss": loss.to_string(), "recovering": loss.recovering, "missing": loss.missing,
            "lost_entries": loss.known.map(|(first, last)| json!([first, last]))}),
    })
}

fn failed(error: &RecoverError) -> ApiError {
    let kind = match error {
        RecoverError::Undecided { .. } | RecoverError::Promises { .. } | RecoverError::Leader { .. } => {
            Kind::Unavailable
        }
        RecoverError::Begin(signaldb_raft::WriteError::Unknown(_)) => Kind::UnknownOutcome,
        RecoverError::Begin(_) => Kind::Unavailable,
    };
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    ApiError::new(kind, format!("{error}{source}"))
}
