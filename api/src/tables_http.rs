//! `/api/v1/admin/tables`: what an operator sees of a tenant's tables, and asks to be done with them; `/promote` and
//! `/demote` beside it are about one attribute of one table.
//!
//! Looking is answered from catalog and store, by any node; what is asked for, and what would become of it, by the node
//! that leads the tables' owner group.

use axum::Json;
use axum::body::Body;
use axum::extract::{Query as UrlQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use signaldb_lake::{Attribute, Promotion, TableFilter, TableTask, Task};
use signaldb_model::{DatasetId, TenantId};
use signaldb_signals::SignalTable;
use signaldb_signals::copies::{CopyKind, Level};

use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::identity::identify_admin;
use crate::otlp_http::read_body;

/// Which of the tenant's tables; what is left out is all of them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Selection {
    dataset: Option<String>,
    table: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskRequest {
    dataset: Option<String>,
    table: Option<String>,
    /// Only says what would be done.
    #[serde(default)]
    dry_run: bool,
}

/// An attribute, and the table whose column it gets.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PromotionRequest {
    dataset: Option<String>,
    table: String,
    key: String,
    level: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Only says what would be done.
    #[serde(default)]
    dry_run: bool,
}

pub(crate) async fn list(
    State(app): State<App>,
    UrlQuery(selection): UrlQuery<Selection>,
    headers: HeaderMap,
) -> Response {
    let listed = async {
        let identity = identify_admin(&app, &headers)?;
        let filter = filter(identity.tenant, selection.dataset.as_deref(), selection.table.as_deref())?;
        let shapes = app.lake.table_shapes(&filter).await?;
        Ok::<_, ApiError>(Json(json!({"tables": shapes})))
    };
    listed.await.into_response()
}

pub(crate) async fn files(
    State(app): State<App>,
    UrlQuery(selection): UrlQuery<Selection>,
    headers: HeaderMap,
) -> Response {
    let listed = async {
        let identity = identify_admin(&app, &headers)?;
        let name = selection.table.ok_or_else(|| ApiError::invalid("`table` says whose files are meant"))?;
        let (table, dataset) = (known(&name)?, selection.dataset.as_deref().map(dataset).transpose()?);
        let dataset = dataset.unwrap_or(identity.dataset);
        let files = app.lake.file_shapes(&identity.tenant, &dataset, table).await?;
        let namespace = format!("{}.{dataset}", identity.tenant);
        let files = files.ok_or_else(|| missing(&namespace, &name))?;
        Ok::<_, ApiError>(Json(json!({"namespace": namespace, "table": name, "files": files})))
    };
    listed.await.into_response()
}

pub(crate) async fn compact(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    perform(&app, &headers, body, Task::Compact).await
}

pub(crate) async fn expire(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    perform(&app, &headers, body, Task::Expire).await
}

pub(crate) async fn retain(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    perform(&app, &headers, body, Task::Retain).await
}

pub(crate) async fn promote(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    let promoted = change_promotion(&app, &headers, body, |kind| {
        let unknown = |name: &str| {
            let kinds = CopyKind::ALL.map(CopyKind::name).join(", ");
            ApiError::invalid(format!("{name:?} is not a type; expected one of {kinds}"))
        };
        let name = kind.unwrap_or(CopyKind::Text.name());
        CopyKind::from_name(name).map(Some).ok_or_else(|| unknown(name))
    });
    promoted.await.map_or_else(IntoResponse::into_response, report)
}

pub(crate) async fn demote(State(app): State<App>, headers: HeaderMap, body: Body) -> Response {
    let demoted = change_promotion(&app, &headers, body, |kind| match kind {
        None => Ok(None),
        Some(_) => Err(ApiError::invalid("a type is only for what is promoted")),
    });
    demoted.await.map_or_else(IntoResponse::into_response, report)
}

/// `kind` says by the type that was named which column is wanted, if one is.
async fn change_promotion(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    kind: impl FnOnce(Option<&str>) -> Result<Option<CopyKind>, ApiError>,
) -> Result<String, ApiError> {
    let identity = identify_admin(app, headers)?;
    let body = read_body(body).await?;
    let request: PromotionRequest = serde_json::from_slice(&body).map_err(|error| {
        let expected = r#"{"dataset": "...", "table": "...", "key": "...", "level": "record", "type": "text"}"#;
        ApiError::invalid(format!("the body is not {expected}, with table and key, and dry_run if wanted: {error}"))
    })?;
    let (table, kind) = (known(&request.table)?, kind(request.kind.as_deref())?);
    let attribute = Attribute::new(&request.key, level(request.level.as_deref())?);
    let attribute = attribute.map_err(|error| ApiError::invalid(error.to_string()))?;
    let dataset = request.dataset.as_deref().map(dataset).transpose()?.unwrap_or(identity.dataset);
    let namespace = format!("{}.{dataset}", identity.tenant);
    if app.lake.current_table(&namespace, table.name()).await?.is_none() {
        return Err(missing(&namespace, table.name()));
    }
    let tables = TableFilter { tenant: identity.tenant, dataset: Some(dataset), table: Some(table) };
    let task = TableTask { task: Task::Promote(Promotion { attribute, kind }), tables, dry_run: request.dry_run };
    Ok(Box::pin(app.engine.maintain(&task)).await?)
}

fn level(name: Option<&str>) -> Result<Level, ApiError> {
    let name = name.unwrap_or(Level::Record.name());
    Level::from_name(name).ok_or_else(|| {
        let levels = Level::ALL.map(Level::name).join(", ");
        ApiError::invalid(format!("{name:?} is not a level; expected one of {levels}"))
    })
}

fn missing(namespace: &str, table: &str) -> ApiError {
    ApiError::new(Kind::NotFound, format!("there is no table {namespace}.{table}: nothing was written to it"))
}

/// The policy of each table, and what it would remove now.
pub(crate) async fn policy(
    State(app): State<App>,
    UrlQuery(selection): UrlQuery<Selection>,
    headers: HeaderMap,
) -> Response {
    let Selection { dataset, table } = selection;
    let request = TaskRequest { dataset, table, dry_run: true };
    run(&app, &headers, &request, Task::Retain).await.map_or_else(IntoResponse::into_response, report)
}

async fn perform(app: &App, headers: &HeaderMap, body: Body, task: Task) -> Response {
    let performed = async {
        // Before anything is read of who may not ask.
        identify_admin(app, headers)?;
        let body = read_body(body).await?;
        let request = match body.is_empty() {
            true => TaskRequest::default(),
            false => serde_json::from_slice(&body).map_err(|error| {
                let expected = r#"{"dataset": "...", "table": "...", "dry_run": false}"#;
                ApiError::invalid(format!("the body is not {expected}, each part optional: {error}"))
            })?,
        };
        run(app, headers, &request, task).await
    };
    performed.await.map_or_else(IntoResponse::into_response, report)
}

async fn run(app: &App, headers: &HeaderMap, request: &TaskRequest, task: Task) -> Result<String, ApiError> {
    let tenant = identify_admin(app, headers)?.tenant;
    let tables = filter(tenant, request.dataset.as_deref(), request.table.as_deref())?;
    let task = TableTask { task, tables, dry_run: request.dry_run };
    Ok(Box::pin(app.engine.maintain(&task)).await?)
}

fn report(report: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], report).into_response()
}

fn filter(tenant: TenantId, dataset: Option<&str>, table: Option<&str>) -> Result<TableFilter, ApiError> {
    let dataset = dataset.map(self::dataset).transpose()?;
    Ok(TableFilter { tenant, dataset, table: table.map(known).transpose()? })
}

fn dataset(name: &str) -> Result<DatasetId, ApiError> {
    DatasetId::new(name).map_err(|error| ApiError::invalid(error.to_string()))
}

fn known(table: &str) -> Result<SignalTable, ApiError> {
    let unknown = || {
        let tables = SignalTable::ALL.map(SignalTable::name).join(", ");
        ApiError::invalid(format!("{table:?} is not a table; expected one of {tables}"))
    };
    SignalTable::from_name(table).ok_or_else(unknown)
}
