//! `GET /api/v1/queries`, `DELETE /api/v1/queries/{id}`: who runs what on any node, and an end to it. A tenant sees and stops
//! its own; the admin key, or a node where all is open, everybody's.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat};
use serde_json::{Value, json};
use signaldb_query::{QueryId, QueryStatus};

use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::identity::reach;

pub(crate) async fn list(State(app): State<App>, headers: HeaderMap) -> Response {
    let listed = async {
        let tenant = reach(&app, &headers)?;
        let (queries, silent) = app.engine.queries(tenant.as_ref()).await;
        let queries: Vec<Value> = queries.iter().map(shown).collect();
        let unreachable: Vec<u64> = silent.iter().map(|node| node.0).collect();
        Ok::<_, ApiError>(Json(json!({"queries": queries, "unreachable": unreachable})))
    };
    listed.await.into_response()
}

pub(crate) async fn kill(State(app): State<App>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let killed = async {
        let tenant = reach(&app, &headers)?;
        let id: QueryId = id.parse()?;
        match app.engine.kill(id, tenant.as_ref()).await? {
            true => Ok::<_, ApiError>(Json(json!({"id": id.to_string(), "killed": true}))),
            // Whether another tenant has such a query is none of the caller's business.
            false => Err(ApiError::new(Kind::NotFound, format!("there is no query {id}; it may have ended"))),
        }
    };
    killed.await.into_response()
}

fn shown(query: &QueryStatus) -> Value {
    let started = i64::try_from(query.started.0).map(DateTime::from_timestamp_nanos).unwrap_or_default();
    json!({
        "id": query.id,
        "node": query.node.0,
        "tenant": query.tenant,
        "dataset": query.dataset,
        "query": query.query,
        "started_at": started.to_rfc3339_opts(SecondsFormat::Millis, true),
        "elapsed_ms": query.elapsed.as_secs_f64() * 1000.0,
        "rows": query.rows,
        "scanned_bytes": query.scanned_bytes,
        "memory_bytes": query.memory_bytes,
        "state": query.state,
    })
}
