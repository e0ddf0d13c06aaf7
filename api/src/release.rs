//! `POST /api/v1/admin/release`: an operator has seen to a table in quarantine; its rows go into Iceberg again.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use signaldb_model::{DatasetId, TableId, TenantId};
use signaldb_raft::Command;
use signaldb_signals::SignalTable;

use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::identity::authorize_admin;
use crate::otlp_http::read_body;

/// How long the leaders of a table's groups may take.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleaseRequest {
    tenant: String,
    dataset: String,
    table: String,
}

pub(crate) async fn release(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    match run(&app, &headers, body).await {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn run(app: &App, headers: &HeaderMap, body: Body) -> Result<Value, ApiError> {
    authorize_admin(app, headers)?;
    let body = read_body(body).await?;
    let request: ReleaseRequest = serde_json::from_slice(&body).map_err(|error| {
        ApiError::invalid(format!("the body is not {{\"tenant\": T, \"dataset\": D, \"table\": \"traces\"}}: {error}"))
    })?;
    let id = table_id(&request)?;
    let unavailable = |error: signaldb_raft::ReadError| ApiError::new(Kind::Unavailable, error.to_string());
    let mut released = Vec::new();
    for group in app.groups.homes_now(&id.tenant, TIMEOUT).await.map_err(unavailable)? {
        // This node may follow a little behind; what is not in quarantine stays as it is.
        let aside = group.with_state(|state| state.tables.get(&id).is_some_and(|known| known.quarantined.is_some()));
        group.propose_index(&Command::TableReleased { table: id.clone() }, TIMEOUT).await?;
        if aside {
            tracing::warn!(group = %group.id(), table = %id, "the table was released from quarantine");
            released.push(group.id().0);
        }
    }
    Ok(json!({"table": request.table, "released": !released.is_empty(), "groups": released}))
}

fn table_id(request: &ReleaseRequest) -> Result<TableId, ApiError> {
    let invalid = |error: signaldb_model::InvalidName| ApiError::invalid(error.to_string());
    let unknown = || ApiError::new(Kind::NotFound, format!("there is no table {}", request.table));
    Ok(TableId {
        tenant: TenantId::new(&request.tenant).map_err(invalid)?,
        dataset: DatasetId::new(&request.dataset).map_err(invalid)?,
        code: SignalTable::from_name(&request.table).ok_or_else(unknown)?.code(),
    })
}
